# SPDX-License-Identifier: Apache-2.0
"""profile: shares of time, whole stacks, names, and the forms of output."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
from running import run

SOURCE = r"""
#include <stdlib.h>
#include <time.h>
static volatile unsigned long sink;
static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}
__attribute__((noinline)) void spin(double seconds)
{
	double end = now() + seconds;
	do {
		for (int i = 0; i < 20000; i++)
			sink += i;
	} while (now() < end);
}
__attribute__((noinline)) void three_quarters(double s) { spin(s * 0.75); sink++; }
__attribute__((noinline)) void one_quarter(double s) { spin(s * 0.25); sink++; }
int main(int argc, char **argv)
{
	double seconds = atof(argv[1]);
	three_quarters(seconds);
	one_quarter(seconds);
	return 0;
}
"""


@pytest.fixture(scope="module")
def burner(tmp_path_factory: pytest.TempPathFactory) -> str:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    home = tmp_path_factory.mktemp("burner")
    (home / "burner.c").write_text(SOURCE)
    path = str(home / "burner")
    words = ["gcc", "-O1", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls"]
    subprocess.run([*words, "-o", path, f"{path}.c"], check=True)
    return path


def folded(*words: str) -> dict[tuple[str, ...], int]:
    done = run("profile", "--folded", *words)
    assert done.returncode == 0, done.stderr
    stacks = {}
    for line in done.stdout.splitlines():
        found = re.fullmatch(r"(\S.*;.*) (\d+)", line)
        assert found, line
        stacks[tuple(found[1].split(";"))] = int(found[2])
    return stacks


def test_shares_of_time_are_those_of_the_program(burner: str) -> None:
    """Three quarters of its CPU time in one function, a quarter in another; 499 Hz, two seconds."""
    stacks = folded("--hz", "499", "--", burner, "2")
    big = sum(n for frames, n in stacks.items() if "three_quarters" in frames)
    small = sum(n for frames, n in stacks.items() if "one_quarter" in frames)
    assert big + small > 700
    assert abs(big / (big + small) - 0.75) < 0.03
    # The callers, from the outermost on.
    deep = [frames for frames in stacks if "three_quarters" in frames and "spin" in frames]
    assert deep
    for frames in deep:
        assert frames[0] == "burner"
        assert frames.index("main") < frames.index("three_quarters") < frames.index("spin")


def test_the_table_says_own_and_total_samples(burner: str) -> None:
    done = run("profile", "--json", "--hz", "199", "--", burner, "1")
    rows = {row["function"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert rows["spin"]["samples"] > 100
    assert rows["spin"]["total"] >= rows["spin"]["samples"]
    assert 0.5 < rows["spin"]["share"] <= 1


def test_a_flame_graph_is_valid_svg_with_every_wide_frame(burner: str, tmp_path: Path) -> None:
    path = tmp_path / "flame.svg"
    done = run("profile", "--svg", str(path), "--hz", "199", "--", burner, "1")
    assert done.returncode == 0, done.stderr
    root = ElementTree.parse(path).getroot()
    titles = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}title")]
    for name in ("main", "spin", "three_quarters", "one_quarter"):
        assert any(title.startswith(f"{name}: ") for title in titles), titles[:9]
    widths = [float(rect.attrib["width"]) for rect in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert max(widths) <= 1200


def test_names_that_are_no_utf8_or_no_xml_are_escaped(burner: str, tmp_path: Path) -> None:
    odd = os.fsdecode(bytes(tmp_path) + b"/\xff\xe9\x1b;o")
    shutil.copy(burner, odd)
    path = tmp_path / "flame.svg"
    done = run("profile", "--svg", str(path), "--hz", "199", "--", odd, "0.3")
    assert done.returncode == 0, done.stderr
    titles = [element.text or "" for element in ElementTree.parse(path).getroot().iter()]
    assert any(title.startswith("\\xff\\xe9\\x1b;o: ") for title in titles), titles[:9]
    done = run("profile", "--folded", "--hz", "199", "--", odd, "0.3")
    assert done.returncode == 0 and "\x1b" not in done.stdout, done.stderr
    assert "\n\\xff\\xe9\\x1b:o;" in f"\n{done.stdout}"


def test_folded_stacks_have_standard_output_to_themselves(burner: str) -> None:
    """`profile --folded -- COMMAND > FILE` is what flame graph tools read."""
    words = ["sh", "-c", f"echo from the command; {burner} 0.3"]
    done = run("profile", "--folded", "--hz", "199", "--", *words)
    assert done.returncode == 0, done.stderr
    assert "from the command" in done.stderr.splitlines()
    lines = done.stdout.splitlines()
    assert lines and all(re.fullmatch(r"\S.*;.* \d+", line) for line in lines), lines[:9]


def test_broken_frame_pointers_do_not_hold_up_the_end(burner: str) -> None:
    """All processes at 999 Hz, among them the reader itself, whose frames are not all code."""
    done = run("profile", "--no-demo", "--hz", "999", "--seconds", "1", "--json", timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_a_flame_graph_that_cannot_be_written_is_named(burner: str) -> None:
    done = run("profile", "--svg", "/dev/full", "--", burner, "0.1")
    assert done.returncode == 1
    wanted = "profile: cannot write /dev/full: ENOSPC (No space left on device)"
    assert done.stderr.splitlines()[-1] == wanted  # the leak checker sees that the rest is undone


def test_a_stripped_program_is_named_by_its_file(burner: str, tmp_path: Path) -> None:
    stripped = tmp_path / "stripped"
    shutil.copy(burner, stripped)
    subprocess.run(["strip", str(stripped)], check=True)
    stacks = folded("--hz", "199", "--", str(stripped), "0.5")
    assert sum(n for frames, n in stacks.items() if "[stripped]" in frames) > 30


def test_python_names_its_own_frames_in_a_perf_map(tmp_path: Path) -> None:
    """A file /tmp/perf-PID.map, as interpreters with a JIT write it."""
    script = tmp_path / "jit.py"
    script.write_text(
        "import ctypes, mmap, os, time\n"
        "code = bytes.fromhex('554889e5b900a3e111ffc975fc5dc3')\n"  # push, count down, pop, return
        "m = mmap.mmap(-1, 4096, prot=7)\n"
        "m.write(code)\n"
        "address = ctypes.addressof(ctypes.c_char.from_buffer(m))\n"
        "path = f'/tmp/perf-{os.getpid()}.map'\n"
        "open(path, 'w').write(f'{address:x} {len(code):x} made at run time\\n')\n"
        "function = ctypes.CFUNCTYPE(None)(address)\n"
        "end = time.process_time() + 0.5\n"
        "while time.process_time() < end: function()\n"
        "time.sleep(0.3)\n"
        "os.unlink(path)\n"
    )
    stacks = folded("--hz", "199", "--", "/usr/bin/python3", str(script))
    assert sum(n for frames, n in stacks.items() if "made at run time" in frames) > 30


def test_bad_input_is_named(tmp_path: Path) -> None:
    for words, status, text in (
        (["--svg", "/nonexistent/x.svg"], 2, "cannot write /nonexistent/x.svg"),
        (["--hz", "100000000"], 2, "above what the kernel allows"),
        (["--pid", "999999999"], 2, "no process 999999999"),
        (["--folded", "--json"], 2, "do not go together"),
    ):
        done = run("profile", *words, "--seconds", "1")
        assert (done.returncode, done.stdout) == (status, ""), done.stderr
        assert text in done.stderr
        assert len(done.stderr.splitlines()) <= 2
