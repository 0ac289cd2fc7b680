# SPDX-License-Identifier: Apache-2.0
"""bpfkit elsewhere than in its checkout, and in Pythons that have nothing: no bcc, no rich."""

from __future__ import annotations

import json
import os
import subprocess
import venv
from pathlib import Path

import pytest
from running import run_elsewhere

from bpfkit.commands.catalog import programs

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = """
import sys
import bpfkit

source = '''
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>

BPF_HASH(lengths, u32, u64);

SEC("xdp")
int count(struct xdp_md *ctx)
{
	u32 length = ctx->data_end - ctx->data;

	lengths.increment(length);
	return XDP_PASS;
}
'''
for module in ("bcc", "pyroute2", "rich"):
    try:
        __import__(module)
    except ImportError:
        pass
    else:
        sys.exit(f"{module} is here")
with bpfkit.load(source, cache=False) as loaded:
    print(loaded.programs["count"].run(bytes(100)).retval, dict(loaded["lengths"].items()))
"""


def run(
    argv: list[str | os.PathLike[str]], where: Path, timeout: float = 60, **environ: str
) -> subprocess.CompletedProcess[str]:
    return run_elsewhere(argv, where, timeout, environ)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the standard library and nothing else."""
    place = tmp_path_factory.mktemp("bare")
    venv.create(place, with_pip=False, symlinks=True)
    return place / "bin" / "python"


def test_the_library_in_a_python_that_has_nothing(bare: Path, tmp_path: Path) -> None:
    done = run([bare, "-c", LIBRARY], tmp_path, PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stdout) == (0, "2 {100: 1}\n"), done.stderr


def test_a_program_in_a_python_that_has_nothing(bare: Path, tmp_path: Path) -> None:
    argv = [bare, "-m", "bpfkit.sockex3", "--json", "-t", "0.1", "-c", "1"]
    done = run(argv, tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["summary"]


def test_an_installed_bpfkit_lists_its_programs(installed: Path, tmp_path: Path) -> None:
    done = run([installed, "-m", "bpfkit", "list", "--json"], tmp_path)
    assert done.returncode == 0, done.stderr
    names = {json.loads(line)["name"] for line in done.stdout.splitlines()}
    assert names == {cls.name for cls in programs()}
    command = installed.parent / "bpfkit"
    assert run([command, "list", "--json"], tmp_path).stdout == done.stdout


def test_an_installed_bpfkit_brings_every_c_file(installed: Path, tmp_path: Path) -> None:
    ask = "from bpfkit.core.compile.source import c_root; print(c_root())"
    root = Path(run([installed, "-c", ask], tmp_path).stdout.strip())
    assert not root.is_relative_to(ROOT)

    def files(top: Path) -> set[str]:
        return {str(path.relative_to(top)) for path in top.rglob("*.[ch]")}

    assert files(root) == files(ROOT / "bpf_c")


def test_an_installed_bpfkit_verifies_itself(installed: Path, tmp_path: Path) -> None:
    """Compiled anew from the package's C files, from a directory that has nothing to do with it."""
    argv = [installed, "-m", "bpfkit.sockex3", "--check", "-v"]
    done = run(argv, tmp_path, BPFKIT_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr + done.stdout
    assert "compiled socket/sockex3.bpf.c" in done.stderr
    assert "FAILED" not in done.stdout


def test_the_installed_command_runs_a_program(installed: Path, tmp_path: Path) -> None:
    """bcc comes from the distribution's interpreter: this one has none."""
    has_bcc = run([installed, "-c", "import bcc"], tmp_path)
    assert has_bcc.returncode == 1
    command = installed.parent / "bpfkit"
    argv = [command, "sockex3", "-c", "1", "-t", "0.2", "--json"]
    done = run(argv, tmp_path, BPFKIT_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["summary"]
    assert run([command, "--version"], tmp_path).stdout.startswith("bpfkit ")


def test_the_doctor_in_a_virtualenv_names_its_pip(bare: Path, tmp_path: Path) -> None:
    done = run([bare, "-m", "bpfkit", "doctor", "--json"], tmp_path, 120, PYTHONPATH=str(ROOT))
    found = {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
    for module in ("pyroute2", "rich", "numpy"):
        assert found[module]["state"] == "not supported"
        assert found[module]["hint"].endswith(f"{bare.parent}/pip install {module}")
    assert str(bare) in found["python"]["value"]
