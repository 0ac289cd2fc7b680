# SPDX-License-Identifier: Apache-2.0
"""``python3 -m bpfkit``, and what every program's command line refuses before it does anything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bpfkit.app.options import parser_of
from bpfkit.commands.catalog import programs

ROOT = Path(__file__).resolve().parents[2]
#: The programs whose only type is SOCKET_FILTER, and those of them that read captures.
FAMILY = [cls for cls in programs() if cls.types() == ["BPF_PROG_TYPE_SOCKET_FILTER"]]
PROGRAMS = sorted(cls.name for cls in FAMILY)
OBSERVERS = sorted(cls.name for cls in FAMILY if "--pcap" in parser_of(cls).format_help())


def run(module: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def json_rows(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_list_has_a_row_per_program() -> None:
    done = run("bpfkit", "list", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    rows = json_rows(done.stdout)
    names = [row["name"] for row in rows]
    assert names == sorted(names)
    assert names == [cls.name for cls in programs()]
    for row in rows:
        assert list(row) == ["name", "types", "summary", "source"]
        types = row["types"]
        assert isinstance(types, list)
        assert types
        assert all(name.startswith("BPF_PROG_TYPE_") for name in types)
        assert str(row["summary"]).endswith(".")
        assert (ROOT / str(row["source"])).is_file()


def test_list_for_people() -> None:
    done = run("bpfkit", "list")
    assert done.returncode == 0
    assert [name for name in PROGRAMS if f"\n{name} " not in done.stdout] == []
    assert max(map(len, done.stdout.splitlines())) <= 120


def test_the_types_come_from_the_source() -> None:
    from bpfkit.commands.catalog import program

    assert program("sockex3").types() == ["BPF_PROG_TYPE_SOCKET_FILTER"]
    for name in set(PROGRAMS) - {"sock_example"}:  # which has no C source
        place = ROOT / "bpfkit" / name
        files = place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]
        assert all("BPF_PROG_TYPE_SOCKET_FILTER" not in file.read_text() for file in files)


@pytest.mark.parametrize("name", PROGRAMS)
def test_info_answers_the_questions(name: str) -> None:
    done = run("bpfkit", "info", name)
    assert (done.returncode, done.stderr) == (0, "")
    text = done.stdout
    assert text.startswith(f"{name}: ")
    assert f"sudo python3 -m bpfkit.{name}" in text
    assert "BPF_PROG_TYPE_SOCKET_FILTER" in text
    assert "/*" not in text
    rows = json_rows(run("bpfkit", "info", name, "--json").stdout)
    assert len(rows) == 1
    assert rows[0]["name"] == name
    if name != "sock_example":
        assert 'SEC("socket")' in text
        assert "__sk_buff" in text  # the context argument
        assert "packets" in text  # may it change them
        assert {"function", "section", "line"} == set(rows[0]["sections"][0])  # type: ignore[index]


def test_info_about_sockex3_lists_its_maps() -> None:
    rows = json_rows(run("bpfkit", "info", "sockex3", "--json").stdout)
    maps = {row["name"]: row["type"] for row in rows[0]["maps"]}  # type: ignore[attr-defined]
    assert maps["flows"] == "BPF_MAP_TYPE_PERCPU_HASH"
    assert maps["jump"] == "BPF_MAP_TYPE_PROG_ARRAY"


def test_info_about_nothing_names_the_nearest() -> None:
    done = run("bpfkit", "info", "sockex4")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no program named 'sockex4'" in done.stderr
    assert "sockex3" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.loads
def test_doctor_answers_in_three_values() -> None:
    done = run("bpfkit", "doctor", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    rows = json_rows(done.stdout)
    by_kind: dict[str, list[dict[str, object]]] = {}
    for row in rows:
        by_kind.setdefault(str(row["what"]), []).append(row)
        assert row["state"] in ("works", "not supported", "inconclusive")
        if row["state"] != "works":
            assert row.get("why"), row
    assert set(by_kind) == {"environment", "program type", "map type"}
    assert len(by_kind["program type"]) >= 32
    assert len(by_kind["map type"]) >= 33
    names = {row["name"] for row in by_kind["environment"]}
    assert {"bcc", "headers"} <= names


@pytest.mark.loads
def test_doctor_for_people() -> None:
    done = run("bpfkit", "doctor")
    assert (done.returncode, done.stderr) == (0, "")
    for heading in ("environment", "program types", "map types"):
        assert f"{heading}\n" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["list", "--nonsense"], ["info", "nonsense"], ["clean", "surplus"]],
)
def test_bad_commands(arguments: list[str]) -> None:
    done = run("bpfkit", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_clean_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BPFKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = run("bpfkit", "clean", "--cache")
    assert (done.returncode, done.stderr) == (0, "")
    assert run("bpfkit", "clean").returncode == 0


# ---------------------------------------------------------------- every program


@pytest.mark.parametrize("name", PROGRAMS)
def test_help(name: str) -> None:
    done = run(f"bpfkit.{name}", "--help")
    assert done.returncode == 0
    for option in ("--interval", "--count", "--no-demo", "--json", "--check", "--verbose"):
        assert option in done.stdout
    if name in OBSERVERS:
        assert "--interface" in done.stdout
        assert "--pcap" in done.stdout


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("count", ["0", "-1", "three"])
def test_bad_counts(name: str, count: str) -> None:
    done = run(f"bpfkit.{name}", "--count", count)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize("name", [*OBSERVERS, "fanout"])
def test_a_missing_interface_is_named(name: str) -> None:
    done = run(f"bpfkit.{name}", "-i", "nosuch0")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no network interface named 'nosuch0'" in done.stderr
    assert "lo" in done.stderr
    assert len(done.stderr.splitlines()) <= 2


@pytest.mark.loads
@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot read"),
        (b"", "empty"),
        (b"not a capture at all", "neither a pcap nor a pcapng"),
        (bytes.fromhex("d4c3b2a1020004000000000000000000"), "truncated"),
    ],
)
def test_bad_captures(name: str, content: bytes | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.pcap"
    if content is not None:
        path.write_bytes(content)
    done = run(f"bpfkit.{name}", "--pcap", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert str(path) in done.stderr
    assert len(done.stderr.splitlines()) <= 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max-flows", "100000000000"],
        ["--pcap", "x", "-i", "lo"],
        ["--pcap", "x", "--check"],
        ["--pcap", "x", "--netns", "y"],
        ["--pcap", "x", "--direction", "in"],
        ["--netns", "no-such-namespace"],
        ["--netns", "/etc/passwd"],
        ["--netns", "99999999"],
        ["--sort", "colour"],
        ["--host", "10.0.0.0/33"],
        ["--host", "somewhere"],
        ["--port", "70000"],
        ["--proto", "nope"],
        ["--max-flows", "0"],
        ["--top", "-1"],
        ["--vxlan", "x"],
        ["--direction", "up"],
    ],
)
def test_bad_input_of_sockex3(arguments: list[str]) -> None:
    done = run("bpfkit.sockex3", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert 1 <= len(done.stderr.splitlines()) <= 2
    assert "Traceback" not in done.stderr


def test_check_leaves_real_interfaces_alone() -> None:
    lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    others = [name for line in lines if (name := line.split(":")[0].strip()) != "lo"]
    if not others:
        pytest.skip("this machine has no interface but lo")
    done = run("bpfkit.sockex3", "--check", "-i", others[0])
    assert (done.returncode, done.stdout) == (2, "")
    assert f"--check does not touch {others[0]}" in done.stderr
