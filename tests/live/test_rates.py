# SPDX-License-Identifier: Apache-2.0
"""tools/bench/rates.py: every method drops or forwards what it was sent; one that does not fails.

Nothing here looks at how long anything took.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest

RATES = Path(__file__).resolve().parents[2] / "tools" / "bench" / "rates.py"
#: A title, then Mpackets/s, ns, own ns, ratio, own ratio.
ROW = re.compile(r"(\S.*?)  +\d+\.\d\d +\d+ +(-|-?\d+) +(-|\d+\.\d\d) +(-|-?\d+\.\d\d)$")


def run(*options: str, **more: object) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(RATES), "-n1", "--packets", "2000", *options]
    done = subprocess.run(argv, capture_output=True, text=True, **more)  # type: ignore[call-overload]
    if "LIVE_FRAMES" in done.stderr:
        pytest.skip("this kernel sends no packets from packet runs (before 5.18)")
    assert "Traceback" not in done.stderr
    return done


def titles(text: str) -> list[str]:
    return [match[1] for line in text.splitlines() if (match := ROW.match(line))]


def test_every_method_has_its_row() -> None:
    done = run()
    assert done.returncode == 0, done.stderr
    rows = titles(done.stdout)
    for word in ("xdp_drop_world", "xdp_drop_tcp", "tc_drop_tcp", "socket filter"):
        assert any(word in row for row in rows), (word, done.stdout)
    for row in ("XDP, one call of bpf_redirect_map()", "Linux bridge", "kernel routing"):
        assert row in rows, done.stdout
    nft = [row for row in rows if row.startswith("nftables")]
    if shutil.which("nft"):
        assert len(nft) == 3, done.stdout
    assert len(rows) + done.stdout.count("not measured: ") == 20


def test_udp_one_flow_as_markdown() -> None:
    done = run("drop", "--protocol", "udp", "--flows", "1", "--markdown")
    assert done.returncode == 0, done.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert any("socket filter" in line for line in table)
    assert not any("_drop_tcp" in line for line in table)
    assert "UDP over IPv4, 60-byte frames, 1 flow," in done.stdout


def test_what_is_not_installed_gets_a_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    if not shutil.which("ethtool"):
        pytest.skip("ethtool is not installed")
    os.symlink(shutil.which("ethtool") or "", tmp_path / "ethtool")
    done = run("drop", env=os.environ | {"PATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("cannot run nft: not installed on this machine") == 3
    assert any("xdp_drop_world" in row for row in titles(done.stdout))


@pytest.mark.parametrize("options", [["bla"], ["--flows", "3"], ["--cpu", "4096"], ["-n", "0"]])
def test_bad_options(options: list[str]) -> None:
    assert run(*options).returncode == 2


def test_a_method_that_forwards_nothing_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from bpfkit.core.errors import BpfkitError, UnsupportedError

    spec = importlib.util.spec_from_file_location("rates", RATES)
    assert spec is not None and spec.loader is not None
    rates: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rates)

    class Nothing(rates.Forward):  # type: ignore[name-defined, misc]
        title = "a cable that ends here"

        def forward(self) -> None:
            pass

    monkeypatch.setitem(rates.JOBS, "none", ((rates.OnlyGenerator, Nothing), Nothing))
    options = Namespace(
        protocol="tcp", flows=4, packets=64, rounds=1, cpu=min(os.sched_getaffinity(0))
    )
    with pytest.raises(BpfkitError, match="does not do its work") as failed:
        rates.measure("none", options)
    if isinstance(failed.value, UnsupportedError):
        pytest.skip(str(failed.value))
    assert "0 packets were counted" in failed.value.why
