# SPDX-License-Identifier: Apache-2.0
"""opensnoop, execs, syscounts against strace on the same work, and what their options promise."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from running import ROOT, Row, command, run

from bpfkit.app.lifecycle import main
from bpfkit.core.cgroups import Cgroup
from bpfkit.core.errors import VerifierError
from bpfkit.opensnoop import OpenSnoop

STRACE = shutil.which("strace")
needs_strace = pytest.mark.skipif(STRACE is None, reason="strace is not installed")


def rows(name: str, *words: str, **more: object) -> list[Row]:
    """The JSON rows of a program around a command, whose status must be 0."""
    done = run(name, "--json", *words, **more)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def script(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "work.py"
    path.write_text(text)
    return ["/usr/bin/python3", "-I", "-S", str(path)]


OPENS = """
import os, sys
from threading import Thread

def work(number):
    for i in range(250):
        for path in (f"/nonexistent/{number}/{i}", "/etc/passwd"):
            try:
                os.close(os.open(path, os.O_RDONLY))
            except OSError:
                pass

children = []
for number in range(4):
    pid = os.fork()
    if not pid:
        threads = [Thread(target=work, args=(number * 2 + k,)) for k in range(2)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        os._exit(0)
    children.append(pid)
for pid in children:
    os.waitpid(pid, 0)
"""


def test_opensnoop_shows_each_open_of_parallel_threads_once(tmp_path: Path) -> None:
    """4 processes of 2 threads: 2000 names that no other open has, and 2000 times the same."""
    events = rows("opensnoop", "--", *script(tmp_path, OPENS))
    assert not [row for row in events if row["event"] == "lost"]
    seen = Counter(row["path"] for row in events if str(row["path"]).startswith("/nonexistent/"))
    wanted = {f"/nonexistent/{number}/{i}" for number in range(8) for i in range(250)}
    assert set(seen) == wanted
    assert set(seen.values()) == {1}
    assert {row["ret"] for row in events if row["path"] in wanted} == {-2}
    passwd = [row["ret"] for row in events if row["path"] == "/etc/passwd"]
    assert len(passwd) == 2000
    assert all(ret >= 0 for ret in passwd)


@needs_strace
def test_opensnoop_sees_what_strace_sees(tmp_path: Path) -> None:
    """Paths, flags and results of a command's opens, in order."""
    log = tmp_path / "strace"
    assert STRACE is not None
    command = ["cat", "/etc/hostname", "/nonexistent/x"]
    traced = [STRACE, "-f", "-e", "trace=open,openat,openat2,creat", "-o", str(log), *command]
    subprocess.run(traced, capture_output=True, check=False)
    wanted = []
    for line in log.read_text().splitlines():
        found = re.search(r'open\w*\((?:AT_FDCWD, )?"([^"]*)", ([A-Z_|]+).*\) = (-?\d+)', line)
        if found:
            ret = int(found[3])
            wanted.append((found[1], found[2], -2 if ret < 0 else ret))
    done = run("opensnoop", "--json", "--", *command)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1  # cat's own
    assert [(row["path"], row["flags"], row["ret"]) for row in events] == wanted


def test_opensnoop_shows_only_failures_when_asked() -> None:
    done = run("opensnoop", "--json", "-x", "--", "cat", "/etc/hostname", "/nonexistent/x")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert "/nonexistent/x" in [row["path"] for row in events]
    assert all(row["ret"] < 0 for row in events)


def test_opensnoop_shows_names_that_are_no_utf8(tmp_path: Path) -> None:
    text = "import os\ntry: os.open(b'/nonexistent/\\xff\\x1b[31m', 0)\nexcept OSError: pass\n"
    events = rows("opensnoop", "--", *script(tmp_path, text))
    names = [row["path"] for row in events if str(row["path"]).startswith("/nonexistent")]
    assert names == ["/nonexistent/\\xff\x1b[31m"]


def test_a_name_that_cannot_be_read_is_null(tmp_path: Path) -> None:
    text = "import ctypes\nctypes.CDLL(None).syscall(257, -100, ctypes.c_void_p(8), 0)\n"
    if sys.maxsize < 1 << 32:
        pytest.skip("the script's system call is that of x86-64")
    events = rows("opensnoop", "--", *script(tmp_path, text))
    assert [row["ret"] for row in events if row["path"] is None] == [-14]  # EFAULT


EXECS = """
import os
for start in range(0, {count}, 8):
    children = []
    for i in range(start, start + 8):
        pid = os.fork()
        if not pid:
            os.execv("/bin/true", ["true", str(i), "x" * (i % 7 * 3000), "", "two words"])
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
"""


def test_execs_shows_each_exec_of_parallel_children_with_all_its_words(tmp_path: Path) -> None:
    count = 400
    events = rows("execs", "--", *script(tmp_path, EXECS.replace("{count}", str(count))))
    seen = Counter(tuple(row["argv"]) for row in events if row["argv"][0] == "true")
    wanted = [("true", str(i), "x" * (i % 7 * 3000), "", "two words") for i in range(count)]
    assert seen == Counter(wanted)
    assert {row["ret"] for row in events if row["argv"][0] == "true"} == {0}
    assert len({row["pid"] for row in events if row["argv"][0] == "true"}) == count
    parents = {row["ppid"] for row in events if row["argv"][0] == "true"}
    assert len(parents) == 1
    assert not [row for row in events if row["event"] == "lost"]


def test_execs_shows_a_megabyte_of_arguments(tmp_path: Path) -> None:
    text = (
        "import os\nos.execv('/bin/true', ['true', *[str(i) * 20000 for i in range(1, 10)] * 6])\n"
    )
    events = rows("execs", "--", *script(tmp_path, text))
    argv = next(row["argv"] for row in events if row["argv"][0] == "true")
    assert argv == ["true", *[str(i) * 20000 for i in range(1, 10)] * 6]
    assert sum(map(len, argv)) > 1_000_000


def test_execs_shows_failed_calls_with_their_words_and_errno(tmp_path: Path) -> None:
    text = (
        "import os\n"
        "for path in ('/nonexistent/a', '/etc/passwd', '/etc'):\n"
        "    try: os.execv(path, ['word', path])\n"
        "    except OSError: pass\n"
    )
    events = rows("execs", "-x", "--", *script(tmp_path, text))
    seen = [(row["path"], row["argv"], row["ret"]) for row in events if row["argv"][0] == "word"]
    assert seen == [
        ("/nonexistent/a", ["word", "/nonexistent/a"], -2),
        ("/etc/passwd", ["word", "/etc/passwd"], -13),
        ("/etc", ["word", "/etc"], -13),
    ]


def test_an_exec_from_a_thread_is_one_event(tmp_path: Path) -> None:
    text = (
        "import os, threading\n"
        "t = threading.Thread(target=os.execv, args=('/bin/true', ['true', 'from a thread']))\n"
        "t.start(); t.join()\n"
    )
    events = rows("execs", "--", *script(tmp_path, text))
    assert [row["argv"] for row in events].count(["true", "from a thread"]) == 1


@needs_strace
def test_syscounts_counts_what_strace_counts(tmp_path: Path) -> None:
    """The calls of ls, whose number does not vary; those of the start are bpfkit's child's, too."""
    log = tmp_path / "strace"
    assert STRACE is not None
    subprocess.run(
        [STRACE, "-c", "-f", "-o", str(log), "ls", "/etc"], capture_output=True, check=True
    )
    wanted = {}
    for line in log.read_text().splitlines():
        fields = line.split()
        if len(fields) >= 5 and fields[-1].isidentifier() and fields[3].isdigit():
            wanted[fields[-1]] = (int(fields[3]), int(fields[4]) if len(fields) > 5 else 0)
    assert "getdents64" in wanted
    counted = {
        row["syscall"]: (row["calls"], row["errors"])
        for row in rows("syscounts", "--by-process", "--", "ls", "/etc")
        if row.get("comm") == "ls"
    }
    for name in ("openat", "mmap", "getdents64", "read", "mprotect", "brk", "access", "ioctl"):
        assert counted.get(name) == wanted.get(name), name


def test_a_process_is_traced_until_it_ends() -> None:
    with subprocess.Popen(["sleep", "1.5"]) as sleeper:
        done = run("syscounts", "--json", "--pid", str(sleeper.pid), "-t", "0.5")
    assert done.returncode == 0, done.stderr
    names = {json.loads(line)["syscall"] for line in done.stdout.splitlines()}
    assert "exit_group" in names
    done = run("syscounts", "--pid", str(sleeper.pid))
    assert done.returncode == 2
    assert f"no process {sleeper.pid}" in done.stderr


@pytest.mark.parametrize(
    "name", ["opensnoop", "execs", "syscounts", "profile", "raw_tracepoint_writable"]
)
def test_a_demo_says_once_what_it_does(name: str) -> None:
    done = run(name, "-c", "2", "-t", "0.1")
    assert done.returncode == 0
    told = [line for line in done.stderr.splitlines() if line.startswith(f"{name}: ")]
    *before, after = told
    assert after.startswith(f"{name}: seen: ")
    assert len(before) == len(set(before)) == 1


STOPPED = """
import os, signal, socket, sys
me = os.getppid()
os.kill(me, signal.SIGSTOP)
try:
    if sys.argv[1] == "opensnoop":
        for i in range(20_000):
            try:
                os.open(f"/nonexistent/{i}", os.O_RDONLY)
            except OSError:
                pass
    else:
        for i in range(20_000):
            with socket.socket() as client:
                client.connect_ex(("127.0.0.1", 1))
finally:
    os.kill(me, signal.SIGCONT)
"""


@pytest.mark.parametrize("name", ["opensnoop", "tcpconnect"])
def test_twenty_thousand_events_wait_for_a_reader_that_has_no_cpu(
    name: str, tmp_path: Path
) -> None:
    found = rows(name, "--", *script(tmp_path, STOPPED), name)
    assert not [row for row in found if row["event"] == "lost"]
    if name == "opensnoop":
        paths = Counter(row["path"] for row in found)
        assert all(paths[f"/nonexistent/{i}"] == 1 for i in range(20_000))
    else:
        assert len([row for row in found if row["dport"] == 1]) == 20_000


@pytest.mark.parametrize("number", ["-5", "0", "99999999999999999999"])
def test_iter_refuses_what_is_no_map_id(number: str) -> None:
    done = run("iter", f"--map={number}")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 2
    assert "internal error" not in done.stderr


COUNT_STARTED = """
import glob, json, os, subprocess
for _ in range(200):
    subprocess.run(["/bin/true"])
ids = set()
for path in glob.glob(f"/proc/{os.getppid()}/fdinfo/*"):
    try:
        text = open(path).read()
    except OSError:
        continue
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    if lines.get("max_entries", "").strip() == "32768":
        ids.add(lines["map_id"].strip())
(number,) = ids
print(len(json.loads(subprocess.check_output(["bpftool", "-j", "map", "dump", "id", number]))))
"""


@pytest.mark.skipif(shutil.which("bpftool") is None, reason="bpftool is not installed")
def test_threads_that_ended_take_no_room(tmp_path: Path) -> None:
    """exit(2) has an entry and no exit."""
    done = run("syscounts", "--", *script(tmp_path, COUNT_STARTED))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 20


def test_a_killed_iter_leaves_no_process() -> None:
    child = subprocess.Popen(command("iter", "-c", "100"), stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline()
    listed = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    child.kill()
    child.wait()
    assert listed
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in listed):
        assert time.monotonic() < deadline
        time.sleep(0.02)


BIG_EXECS = """
import os, signal
me = os.getppid()
os.kill(me, signal.SIGSTOP)
try:
    for i in range(200):
        pid = os.fork()
        if not pid:
            path = "/bin/true" if i % 2 else "/nonexistent/bpfkit"
            try:
                os.execv(path, ["big", str(i), *(["x" * 8000] * 6)])
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
finally:
    os.kill(me, signal.SIGCONT)
"""


def test_an_exec_of_which_a_piece_is_lost_is_lost_as_a_whole(tmp_path: Path) -> None:
    found = rows("execs", "--", *script(tmp_path, BIG_EXECS))
    shown = [row for row in found if row.get("argv", [""])[0] == "big"]
    assert all(row["argv"][2:] == ["x" * 8000] * 6 for row in shown)
    (lost,) = {row["lost"] for row in found if row["event"] == "lost"}
    assert len({row["argv"][1] for row in shown}) == len(shown) == 200 - lost > 0


def test_a_connect_by_mptcp_is_one_event(tmp_path: Path) -> None:
    if not Path("/proc/sys/net/mptcp/enabled").exists():
        pytest.skip("this kernel has no MPTCP")
    text = """
import socket
server = socket.create_server(("127.0.0.1", 0))
client = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
client.connect(server.getsockname())
print(server.getsockname()[1])
"""
    done = run("tcpconnect", "--json", "--", *script(tmp_path, text))
    assert done.returncode == 0, done.stderr
    port = int(done.stderr.splitlines()[-1])
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["result"] for row in found if row["dport"] == port] == [0]


@pytest.mark.parametrize("name", ["opensnoop", "sockops"])
def test_the_end_of_a_cgroup_is_the_end_of_its_program(name: str) -> None:
    with Cgroup.new("removed") as group:
        words = command(name, "--cgroup", group.path, "-v")
        child = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        assert child.stderr is not None
        while "attached to" not in child.stderr.readline():
            assert child.poll() is None
        Path(group.path).rmdir()
        assert child.wait(10) == 1
        assert child.stderr.read().splitlines()[-1] == (
            f"{name}: the cgroup {group.path} was removed, and the program with it"
        )


def test_a_process_id_of_a_container_is_refused_and_not_taken_for_another() -> None:
    words = ["unshare", "-pf", "--mount-proc", *command("opensnoop", "--pid", "1", "-c", "1")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 77, done.stderr
    assert "PID namespace" in done.stderr and len(done.stderr.splitlines()) <= 2


@pytest.mark.parametrize(
    "words",
    [
        ("sockops", "--set", "127.0.0.0/8:tos=4", "--check"),
        ("sk_msg", "--deny-prefix", "x", "--check"),
    ],
)
def test_a_check_is_about_its_own_settings(words: tuple[str, ...]) -> None:
    done = run(*words)
    assert done.returncode == 2 and "do not go together" in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_where_the_kernel_tells_no_ancestors_the_cgroup_itself_is_traced(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As on 5.10; the processes of other cgroups stay out."""
    load = OpenSnoop.load

    def refuse(self: OpenSnoop, **consts: int) -> Any:
        if consts.get("cgroup_level"):
            error = VerifierError("rejected")
            error.refused = "bpf_get_current_ancestor_cgroup_id()"
            raise error
        return load(self, **consts)

    monkeypatch.setattr(OpenSnoop, "load", refuse)
    with open("/proc/self/comm") as file:
        mine = file.read().strip()
    assert main(OpenSnoop, ["--json", "--", "cat", "/etc/hostname"]) == 0
    said = capfd.readouterr()
    assert "cgroups below are not traced" in said.err
    lines = [line for line in said.out.splitlines() if line.startswith("{")]
    rows = [row for row in map(json.loads, lines) if row.get("event")]
    assert ("cat", "/etc/hostname") in {(row["comm"], row["path"]) for row in rows}
    assert {row["comm"] for row in rows} <= {"cat", mine}  # the command's, before its exec
