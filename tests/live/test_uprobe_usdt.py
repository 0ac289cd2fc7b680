# SPDX-License-Identifier: Apache-2.0
"""uprobe and usdt on programs that count their calls themselves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import ROOT, Row, command, run

import bpfkit
from bpfkit.core.errors import InputError

CC = shutil.which("gcc") or shutil.which("cc")
pytestmark = pytest.mark.skipif(CC is None, reason="no C compiler is installed")

CALLS = """
#include <pthread.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

__attribute__((noinline)) long deep(int n) { asm volatile(""); return n ? deep(n - 1) + 1 : 0; }
__attribute__((noinline)) void nap(long us)
{
	struct timespec t = { 0, us * 1000 };
	nanosleep(&t, 0);
}
__attribute__((noinline)) int half(int n) { asm volatile(""); return n % 2 ? -1 : n; }
__attribute__((noinline)) void *null(int n) { asm volatile(""); return n % 4 ? &half : 0; }
__attribute__((noinline)) int text(const char *s, long n, const char *t)
{
	volatile char used;

	if (s != (const char *)8) {
		used = s[0]; /* brings the page into memory */
		used = t[0];
	}
	(void)used;
	return n ? 7 : 8;
}
static jmp_buf back;
__attribute__((noinline)) void jump(void) { longjmp(back, 1); }
__attribute__((noinline)) long tail_end(long n) { asm volatile("" : "+r"(n)); return n + 1; }
__attribute__((noinline)) long tail(long n) { asm volatile("" : "+r"(n)); return tail_end(n); }
static void *work(void *arg)
{
	for (int i = 0; i < 20000; i++)
		half(i);
	return arg;
}

int main(int argc, char **argv)
{
	pthread_t threads[4];

	(void)argv;
	for (int i = 0; i < 4; i++)
		pthread_create(&threads[i], 0, work, 0);
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], 0);
	for (int i = 0; i < 100; i++) {
		deep(9);
		null(i);
		tail(i);
	}
	for (int i = 0; i < 20; i++)
		nap(2000);
	for (int i = 0; i < 10; i++)
		if (!setjmp(back))
			jump();
	text("one", -1, "two \\"words\\"");
	text((const char *)8, 1L << 40, "");
	return argc > 1 ? sleep(30) : 3;
}
"""


def build(source: str, out: Path, *flags: str) -> str:
    assert CC is not None
    words = [CC, "-O2", "-fno-optimize-sibling-calls", *flags, "-o", str(out), "-x", "c", "-"]
    subprocess.run([*words, "-lpthread"], input=source, text=True, check=True)
    return str(out)


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build(CALLS, tmp_path_factory.mktemp("uprobe") / "calls")


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> str:
    source = (ROOT / "tools/peers/probes.c").read_text()
    return build(source, tmp_path_factory.mktemp("usdt") / "probes")


def rows_of(done: subprocess.CompletedProcess[str], status: int = 0) -> list[Row]:
    assert done.returncode == status, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def table(words: list[str], status: int = 3) -> dict[str, Row]:
    rows = rows_of(run("uprobe", "--json", *words), status)
    return {str(row["function"]): row for row in rows if "function" in row and "event" not in row}


def test_every_call_of_threads_and_of_a_recursion_is_counted(calls: str) -> None:
    seen = table([f"{calls}:half", f"{calls}:deep", f"{calls}:nap", "--", calls])
    assert (seen["half"]["calls"], seen["half"]["open"]) == (80000, 0)
    assert (seen["deep"]["calls"], seen["deep"]["open"]) == (1000, 0)
    nap = seen["nap"]
    assert nap["calls"] == 20
    for figure in ("mean_us", "p50_us", "p99_us"):
        assert 2000 * 7 / 8 <= float(nap[figure]) < 50_000
    assert sum(n for _, n in nap["histogram"]) == 20
    # 2 ms and a little more lie in the powers of 2 from 1048576 (and 2097152) ns on.
    assert {start for start, _ in nap["histogram"]} <= {1 << 20, 1 << 21, 1 << 22, 1 << 23, 1 << 24}


@pytest.mark.parametrize(
    ("kind", "function", "wanted"),
    [("negative", "half", 40000), ("zero", "null", 25), ("nonzero", "null", 75)],
)
def test_results_that_mean_an_error_are_counted(
    calls: str, kind: str, function: str, wanted: int
) -> None:
    seen = table([f"{calls}:{function}", "--errors", kind, "--", calls])
    assert seen[function]["errors"] == wanted


def test_functions_left_by_longjmp_never_return(calls: str) -> None:
    seen = table([f"{calls}:jump", f"{calls}:half", "--", calls])
    assert (seen["jump"]["calls"], seen["jump"]["open"]) == (10, 10)
    assert seen["jump"]["mean_us"] is None
    assert seen["half"]["open"] == 0


def test_a_pattern_takes_all_functions_and_shows_those_that_were_called(calls: str) -> None:
    seen = table([f"{calls}:tail*", "--", calls])
    assert {name: row["calls"] for name, row in seen.items()} == {"tail": 100, "tail_end": 100}


def test_an_offset_is_the_function_that_nm_has_there(calls: str) -> None:
    listed = rows_of(run("uprobe", "--list", "--json", f"{calls}:nap"))
    words = subprocess.run(["nm", calls], capture_output=True, text=True, check=True).stdout
    address = int(
        next(line for line in words.splitlines() if line.endswith(" T nap")).split()[0], 16
    )
    headers = subprocess.run(
        ["readelf", "-SW", calls], capture_output=True, text=True, check=True
    ).stdout
    text = next(line for line in headers.splitlines() if " .text " in line).split("]")[1].split()
    offset = address - int(text[2], 16) + int(text[3], 16)
    assert [row["offset"] for row in listed] == [offset]
    seen = table([f"{calls}:{offset:#x}", "--", calls])
    assert seen["nap"]["calls"] == 20
    done = run("uprobe", "-v", f"{calls}:nap", "--", calls)
    sum_ = f"nap: {address:#x} - 0x{text[2].lstrip('0')} (.text address) + 0x{text[3].lstrip('0')}"
    assert f"{sum_} (.text offset) = {offset:#x}" in done.stderr


def test_arguments_are_those_of_the_call(calls: str) -> None:
    events = rows_of(run("uprobe", "--json", f"{calls}:text", "--args", "sds", "--", calls), 3)
    found = [row for row in events if row.get("event") == "call"]
    assert [row["args"] for row in found] == [["one", -1, 'two "words"'], [None, 1 << 40, ""]]
    assert [row["ret"] for row in found] == [7, 7]
    assert all(row["comm"] == "calls" for row in found)


def test_only_the_process_of_pid_is_counted_and_its_end_ends_the_run(calls: str) -> None:
    child = subprocess.Popen([calls, "sleep"])
    try:
        time.sleep(0.5)
        words = command("uprobe", "c:getppid", "--pid", str(child.pid), "--json", "-t", "60")
        tracer = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        time.sleep(1.5)
        subprocess.run(["/bin/sh", "-c", ":"], check=True)
    finally:
        child.kill()
        child.wait()
    out, _ = tracer.communicate(timeout=20)
    assert tracer.returncode == 0
    assert json.loads(out.splitlines()[-1])["calls"] == 0


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["c:usleeq"], "nearest: usleep"),
        (["/nonexistent:f"], "no file /nonexistent"),
        (["c"], "is no FILE:FUNCTION"),
        (["c:0x3"], "has no code at offset 0x3"),
        (["c:usleep+99999"], "behind the end of usleep"),
        (["c:*"], "functions are too many"),
        (["c:usleep", "--args", "dq"], "one to six letters"),
        (["c:usleep", "--pid", "2147483646"], "no process"),
        (["/etc/passwd:f"], "is not a 64-bit little-endian ELF file"),
        ([], "name a FILE:FUNCTION"),
    ],
)
def test_bad_input_is_said_in_two_lines(words: list[str], text: str) -> None:
    done = run("uprobe", "--no-demo", *words)
    assert done.returncode == 2
    assert text in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_a_stripped_program_is_said_to_be_stripped(calls: str, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run(["strip", "-o", str(bare), calls], check=True)
    done = run("uprobe", f"{bare}:nap", "--", str(bare))
    assert done.returncode == 2
    assert "stripped" in done.stderr or "has no function nap" in done.stderr
    offset = rows_of(run("uprobe", "--list", "--json", f"{calls}:nap"))[0]["offset"]
    seen = table([f"{bare}:{offset:#x}", "--", str(bare)])
    assert [row["calls"] for row in seen.values()] == [20]


def test_a_return_in_the_middle_of_a_function_is_not_probed(calls: str) -> None:
    seen = rows_of(run("uprobe", "--json", f"{calls}:nap+4", "--", calls), 3)
    assert "mean_us" not in seen[-1]
    done = run("uprobe", f"{calls}:half+4", f"{calls}:nap", "--", calls)
    assert done.returncode == 2
    assert "no function's first instruction" in done.stderr


def test_a_kill_leaves_the_probed_program_alone(calls: str) -> None:
    words = command("uprobe", f"{calls}:nap", "--no-demo")
    tracer = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    time.sleep(1)
    assert subprocess.run([calls], check=False).returncode == 3
    os.kill(tracer.pid, signal.SIGKILL)
    tracer.wait()
    assert subprocess.run([calls], check=False).returncode == 3


# ---------------------------------------------------------------- usdt


def hits(done: subprocess.CompletedProcess[str], status: int = 0) -> dict[str, Row]:
    return {str(row["probe"]): row for row in rows_of(done, status) if "hits" in row}


def test_every_probe_is_counted_at_all_of_its_places(probes: str) -> None:
    done = run("usdt", "--json", f"{probes}:demo:*", "--", probes, "1000")
    seen = hits(done)
    assert {probe: row["hits"] for probe, row in seen.items()} == {
        f"demo:{name}": 1000 for name in ("round", "leaf", "guarded", "inlined")
    }
    assert seen["demo:inlined"]["places"] == 2
    # The command's own words: the semaphore was up in all rounds, the leaf's locals survived.
    assert done.stderr.splitlines()[-1] == f"1000 {8 * sum(range(1000)) + 28 * 1000}"
    alone = subprocess.run([probes, "10"], capture_output=True, text=True, check=True).stdout
    assert alone.split()[0] == "0"  # and is down again


def test_arguments_have_their_signs_and_sizes(probes: str) -> None:
    words = ["--args", "--text", "4", "--", probes, "8"]
    events = rows_of(run("usdt", "--json", f"{probes}:*", *words))
    found: dict[str, list[object]] = {}
    for row in events:
        if row.get("event") == "probe":
            found.setdefault(str(row["probe"]), []).append(row["args"])
    assert found["demo:round"] == [[n, n - 5, -7, f"round {n}"] for n in range(8)]
    assert found["demo:inlined"] == [[n if n % 2 else -n] for n in range(8)]
    assert [[n] for n in range(8)]
    assert found["demo:leaf"] == found["demo:guarded"]


def test_the_list_is_that_of_readelf(probes: str) -> None:
    listed = [row["probe"] for row in rows_of(run("usdt", "--list", probes, "--json"))]
    said = subprocess.run(["readelf", "-n", probes], capture_output=True, text=True, check=True)
    names = [line.split()[1] for line in said.stdout.splitlines() if "Name:" in line]
    assert sorted(listed) == sorted(f"demo:{name}" for name in names)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["/bin/true:x"], "has no USDT probes"),
        (["{probes}:demo:rounf"], "nearest: demo:round"),
        (["{probes}"], "is no FILE:PROBE"),
        (["--list", "/etc/passwd"], "is not a 64-bit little-endian ELF file"),
        (["{probes}:leaf", "--text", "1"], "--text needs --args"),
        (["{probes}:leaf", "--args", "--text", "0"], "no list of arguments"),
    ],
)
def test_bad_probes_are_said_in_two_lines(probes: str, words: list[str], text: str) -> None:
    done = run("usdt", "--no-demo", *[word.format(probes=probes) for word in words])
    assert done.returncode == 2
    assert text in done.stderr
    assert len(done.stderr.splitlines()) <= 2


USDT = """
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>
#include <uapi/linux/ptrace.h>

BPF_ARRAY(hits, u64, 1);

SEC("SECTION")
int hit(struct pt_regs *ctx)
{
	u32 zero = 0;

	count_one(hits.lookup(&zero));
	return 0;
}
"""


def test_attach_finds_the_probe_that_the_section_names(probes: str) -> None:
    """The command says how many rounds had the semaphore up: only those of ``guarded``'s probe."""
    for probe, guarded in (("demo:inlined", "0"), ("demo:guarded", "50")):
        with bpfkit.load(USDT.replace("SECTION", f"usdt/{probes}:{probe}")) as obj:
            link = obj.programs["hit"].attach()
            assert obj.programs["hit"].links == (link,), "one link, however many places"
            done = subprocess.run([probes, "50"], capture_output=True, text=True, check=True)
            assert (obj["hits"][0], done.stdout.split()[0]) == (50, guarded)
            link.close()
            again = subprocess.run([probes, "50"], capture_output=True, text=True, check=True)
            assert (obj["hits"][0], again.stdout.split()[0]) == (50, "0")


@pytest.mark.parametrize(
    ("section", "target", "text"),
    [
        ("usdt", None, "attach_usdt("),
        ("usdt", "{probes}", "FILE:PROVIDER:NAME"),
        ("usdt", "{probes}:demo:rounf", "nearest: demo:round"),
        ("usdt//bin/true:a:b", None, "has no USDT probes"),
    ],
)
def test_attach_says_which_probe_it_needs(
    probes: str, section: str, target: str | None, text: str
) -> None:
    with bpfkit.load(USDT.replace("SECTION", section)) as obj:
        with pytest.raises(InputError) as caught:
            obj.programs["hit"].attach(target and target.format(probes=probes))
        assert text in str(caught.value)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="nops of x86")
def test_nops_that_are_not_safe_or_not_probed_are_refused(tmp_path: Path) -> None:
    source = (ROOT / "tools/peers/probes.c").read_text()
    five = build(source, tmp_path / "five", "-DLEAF=NOP5")
    done = run("usdt", f"{five}:leaf", "--", five)
    assert (done.returncode, "nop of 5 bytes" in done.stderr) == (2, True)
    ten = build(source, tmp_path / "ten", "-DLEAF=NOP10")
    done = run("usdt", "--json", f"{ten}:leaf", "--", ten, "100")
    if done.returncode == 0:  # a kernel that knows this nop
        assert hits(done)["demo:leaf"]["hits"] == 100
    else:
        assert "does not probe the instruction" in done.stderr


@pytest.fixture
def python() -> Iterator[subprocess.Popen[str]]:
    """Debian's Python, which has probes, waiting for lines."""
    text = "import gc\ngc.disable()\nprint('ready', flush=True)\n"
    text += "while input() != 'end': print(gc.collect(1) >= 0, flush=True)\n"
    child = subprocess.Popen(
        ["/usr/bin/python3", "-I", "-S", "-c", text],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    yield child
    child.kill()
    child.communicate()


def test_a_running_python_shows_its_collections(python: subprocess.Popen[str]) -> None:
    listed = run("usdt", "--list", "/usr/bin/python3")
    if "gc__start" not in listed.stdout:
        pytest.skip("/usr/bin/python3 was built without probes")
    words = ["/usr/bin/python3:gc__start", "--pid", str(python.pid), "--args", "--json", "-v"]
    tracer = subprocess.Popen(
        command("usdt", *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert tracer.stderr is not None
    for line in tracer.stderr:
        if "attached to" in line:
            break
    assert python.stdin is not None
    assert python.stdout is not None
    for _ in range(7):
        python.stdin.write("go\n")
        python.stdin.flush()
        assert python.stdout.readline() == "True\n"
    python.stdin.write("end\n")
    python.stdin.flush()
    out, _ = tracer.communicate(timeout=20)
    assert tracer.returncode == 0
    events = [json.loads(line) for line in out.splitlines()]
    args = [row["args"] for row in events if row.get("event") == "probe"]
    assert args[:7] == [[1]] * 7  # and, at the end, those of Python's own
