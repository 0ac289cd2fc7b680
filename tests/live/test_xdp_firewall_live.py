# SPDX-License-Identifier: Apache-2.0
"""xdp_firewall on an interface: edited by other processes, while packets flow, and by force."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfkit.core.kernel import syscall as sc
from bpfkit.net.links.lab import Lab
from bpfkit.net.traffic.background import Traffic
from bpfkit.net.traffic.ping import ping
from bpfkit.xdp_firewall.demo import firewall_lab

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "bpfkit.xdp_firewall"]
UNPRIVILEGED = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


def run(*args: str, prefix: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*(prefix or []), *COMMAND, *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def netns(lab: Lab, name: str = "server") -> str:
    return f"/proc/{os.getpid()}/fd/{lab[name].fd}"


class Wall:
    """The firewall on the server's eth0, and other terminals that edit it."""

    def __init__(self, lab: Lab, *args: str, interface: str = "eth0") -> None:
        self.lab = lab
        self.process = subprocess.Popen(
            [*COMMAND, "-i", interface, "--netns", netns(lab), "-t", "0.5", *args],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said = ""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line
            if "(program " in line:
                return
        self.process.wait()

    def edit(self, command: str, *args: str, status: int = 0) -> str:
        done = run(command, *args, "--netns", netns(self.lab))
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if command == "list" and not status else done.stderr

    def rules(self) -> dict[str, tuple[str, int]]:
        rows = [json.loads(line) for line in self.edit("list", "--json").splitlines()]
        return {row["rule"]: (row["action"], row["packets"]) for row in rows if "rule" in row}

    def end(self) -> tuple[int, str, str]:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        out, errors = self.process.communicate(timeout=60)
        return self.process.returncode, out, self.said + errors

    def __enter__(self) -> Wall:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def lab() -> Iterator[Lab]:
    with firewall_lab() as made:
        yield made


def gets_in(lab: Lab, source: str = "10.77.0.1") -> bool:
    """Is a ping from this address answered?"""
    host = "fd77::2" if ":" in source else "10.77.0.2"
    return bool(ping(host, source=source, ns=lab["client"], timeout=0.5).received)


@pytest.mark.parametrize("args", [[], ["--events", "perf", "--bloom"], ["--mode", "generic"]])
def test_check_passes(args: list[str]) -> None:
    done = run("--check", "-c", "1", *args)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verified" in done.stdout


def test_check_passes_in_another_directory(tmp_path: Path) -> None:
    """The demo's own children, which edit the rules, find bpfkit there, too."""
    done = subprocess.run(
        [*COMMAND, "--check", "-c", "1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verified" in done.stdout


def test_edited_from_another_terminal(lab: Lab) -> None:
    with Wall(lab) as wall:
        assert gets_in(lab) and gets_in(lab, "fd77::1")
        assert "2 rules added on eth0" in wall.edit("add", "10.77.0.0/24", "fd77::1")
        assert not gets_in(lab) and not gets_in(lab, "fd77::1")
        assert "already" in wall.edit("add", "10.77.0.0/24")
        wall.edit("add", "allow 10.77.0.1", "tcp/1-1023", "proto gre")
        assert gets_in(lab)
        rules = wall.rules()
        assert rules["10.77.0.0/24"] == ("deny", 1) and rules["10.77.0.1"] == ("allow", 1)
        assert rules["fd77::1"][1] >= 1 and rules["tcp/1-1023"] == ("deny", 0)
        assert "proto gre" in wall.edit("list")
        wall.edit("del", "fd77::1", "proto gre")
        assert gets_in(lab, "fd77::1") and "proto gre" not in wall.rules()
        for command, rule, status, text in (
            ("del", "fd77::1", 2, "no rule about fd77::1"),
            ("del", "tcp/1", 2, "no rule about tcp/1"),
            ("add", "10.0.0.0/33", 2, "0 to 32"),
            ("add", "tcp/65536", 2, "not a port"),
            ("load", "/nowhere/rules", 2, "cannot read rules"),
        ):
            assert text in wall.edit(command, rule, status=status)
        status, _, errors = wall.end()
        assert status == 0, errors
    assert gets_in(lab)


def test_a_file_with_a_bad_line_changes_nothing(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "rules"
    with Wall(lab, "--rule", "10.77.0.1") as wall:
        lines = [f"198.18.{i >> 8 & 255}.{i & 255}" for i in range(100_000)]
        lines[77_776] = "198.18.0.0/40"
        path.write_text("\n".join(lines))
        assert "line 77777: prefix length '40'" in wall.edit("load", str(path), status=2)
        assert set(wall.rules()) == {"(no rule)", "10.77.0.1"}
        lines[77_776] = "fd77::/64"
        path.write_text("\n".join(lines))
        wall.edit("load", str(path))
        assert gets_in(lab) and not gets_in(lab, "fd77::1")
        rules = wall.rules()
        assert "10.77.0.1" not in rules and rules["fd77::/64"][1] >= 1


def test_no_ping_slips_through_while_lists_are_replaced(lab: Lab, tmp_path: Path) -> None:
    files = []
    for number in range(2):
        path = tmp_path / f"rules{number}"
        others = [f"198.18.{i >> 8 & 255}.{i & 255}" for i in range(number, 60_000, 3)]
        path.write_text("\n".join([*others, "192.0.2.0/24", "2001:db8::/32", "allow 10.77.0.1"]))
        files.append(str(path))
    client = lab["client"]
    with (
        Wall(lab, "--rules", files[0], "--events", "none") as wall,
        Traffic(ping, "10.77.0.2", source="192.0.2.9", count=None, interval=0.002, ns=client) as a,
        Traffic(ping, "fd77::2", source="2001:db8::7", count=None, interval=0.002, ns=client) as b,
        Traffic(ping, "10.77.0.2", count=None, interval=0.002, ns=client) as c,
    ):
        for i in range(5):
            wall.edit("load", files[(i + 1) % 2])
            wall.edit("add", f"10.9.9.{i}", f"tcp/{i}")
        denied, denied6, allowed = a.stop(), b.stop(), c.stop()
        assert denied.sent > 100 and denied6.sent > 100 and allowed.sent > 100
        assert denied.received == denied6.received == 0
        assert allowed.received > 0.9 * allowed.sent


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
@pytest.mark.parametrize("kind", ["ringbuf", "perf"])
def test_dropped_packets_in_a_file(lab: Lab, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "dropped.pcapng"
    began = time.time()
    args = ["--rule", "udp/9000-9999", "--events", kind, "--write", str(path), "--snap", "80"]
    with Wall(lab, *args, "--json") as wall:
        for family, host in ((2, "10.77.0.2"), (10, "fd77::2")):
            sock = lab["client"].socket(family, 2)
            for number in range(20):
                sock.sendto(b"GET /%02d" % number + bytes(200), (host, 9000 + number))
                sock.sendto(b"passes", (host, 10000))
            sock.close()
        time.sleep(1)
        status, out, errors = wall.end()
        assert status == 0, errors
    ended = time.time()
    text = subprocess.run(
        ["tshark", "-r", str(path), "-T", "fields", "-e", "udp.dstport", "-e", "frame.len",
         "-e", "frame.cap_len", "-e", "frame.time_epoch", "-e", "frame.interface_name",
         "-e", "udp.payload", "-e", "ip.version", "-e", "ipv6.version"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    rows = [line.split("\t") for line in text.splitlines()]
    assert len(rows) == 40
    ports = [int(row[0]) for row in rows]
    assert sorted(ports) == sorted([*range(9000, 9020)] * 2)
    lengths = {int(row[1]) for row in rows}
    assert lengths == {14 + 20 + 8 + 207, 14 + 40 + 8 + 207}
    assert {row[2] for row in rows} == {"80"} and {row[4] for row in rows} == {"eth0"}
    assert all(began - 1 < float(row[3]) < ended + 1 for row in rows)
    assert {bytes.fromhex(row[5])[:5] for row in rows if row[6] == "4"} == {b"GET /"}
    events = [json.loads(line) for line in out.splitlines()]
    summary = [row for row in events if "summary" in row][-1]
    assert (summary["events"], summary["lost_events"]) == (40, 0)
    told = [row for row in events if row.get("event") == "drop"]
    assert len(told) == 40 and {row["rule"] for row in told} == {"deny udp/9000-9999"}
    assert {row["payload"][:5] for row in told} == {"GET /"}


def test_who_has_it_and_who_has_not(lab: Lab) -> None:
    with Wall(lab, "--rule", "192.0.2.0/24") as wall:
        with Wall(lab) as second:
            status, _, errors = second.end()
            assert status == 1
            assert "'xdp_firewall'" in errors and str(wall.process.pid) in errors
        wall.edit("add", "198.18.0.0/15")
        assert set(wall.rules()) == {"(no rule)", "192.0.2.0/24", "198.18.0.0/15"}
        with Wall(lab, interface="lo") as other:
            assert "more than one firewall is running" in wall.edit("list", status=2)
            text = wall.edit("add", "1.2.3.4", status=2)
            assert "eth0" in text and "lo" in text and "-i IF" in text
            wall.edit("add", "127.0.0.2", "-i", "lo")
            assert "127.0.0.2" not in wall.edit("list", "-i", "eth0")
            other.end()
        assert "'eth7'" in wall.edit("list", "-i", "eth7", status=2)
        done = run("add", "1.2.3.4", prefix=UNPRIVILEGED)
        assert done.returncode == 77 and "sudo" in done.stderr, done.stderr
        wall.process.kill()
        wall.process.wait()
    assert gets_in(lab, "192.0.2.9")
    done = run("add", "1.2.3.4", "--netns", netns(lab))
    assert done.returncode == 1 and "no firewall is running" in done.stderr
    assert "python3 -m bpfkit.xdp_firewall -i" in done.stderr


def test_native_where_there_is_none_and_a_full_list(lab: Lab) -> None:
    with Wall(lab, "--mode", "native", interface="lo") as wall:
        status, _, errors = wall.end()
        assert status == 77 and "no native XDP" in errors
    with Wall(lab, "--max-rules", "2", "--rule", "192.0.2.0/24") as wall:
        wall.edit("add", "198.18.0.0/15")
        text = wall.edit("add", "198.51.100.1", status=1)
        assert "full" in text and "--max-rules 2" in text
        assert "198.51.100.1" not in wall.rules()


def test_the_interface_is_removed(lab: Lab) -> None:
    with Wall(lab, "--rule", "192.0.2.0/24") as wall:
        lab["server"].check_output(["ip", "link", "del", "eth0"])
        _, errors = wall.process.communicate(timeout=30)
        assert wall.process.returncode == 1 and "was removed" in errors
        assert "no firewall is running" in wall.edit("add", "1.2.3.4", status=1)


def test_a_stopped_firewall_protects_and_is_edited(lab: Lab) -> None:
    with Wall(lab) as wall:
        wall.process.send_signal(signal.SIGSTOP)
        wall.edit("add", "10.77.0.1")
        assert not gets_in(lab)
        wall.process.send_signal(signal.SIGCONT)
        assert wall.end()[0] == 0


def test_editors_at_the_same_time_lose_nothing(lab: Lab) -> None:
    with Wall(lab) as wall:
        editors = [
            subprocess.Popen(
                [*COMMAND, "add", f"198.18.0.{i}", f"2001:db8::{i}", f"tcp/{i}",
                 "--netns", netns(lab)],
                cwd=ROOT, stderr=subprocess.PIPE,
            )
            for i in range(1, 9)
        ]  # fmt: skip
        for editor in editors:
            assert editor.wait(60) == 0, editor.communicate()
            editor.communicate()
        wanted = {f(i) for i in range(1, 9) for f in ("198.18.0.{}".format, "tcp/{}".format)}
        wanted |= {f"2001:db8::{i}" for i in range(1, 9)}
        assert wanted <= set(wall.rules())
        assert "16 prefixes" in wall.edit("list")


def maps_with(name: str) -> int:
    """How many maps of that name the kernel has."""
    count, number = 0, 0
    while True:
        found = sc.next_id(sc.MAP_GET_NEXT_ID, number)
        if found is None:
            return count
        number = found
        try:
            fd = sc.map_get_fd_by_id(number)
        except OSError:
            continue
        count += sc.map_info(fd)["name"] == name
        os.close(fd)


def test_an_editor_that_is_killed_leaves_the_old_list(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "rules"
    path.write_text(
        "\n".join(f"198.18.{i >> 8 & 255}.{i & 255}" for i in range(65536)) + "\n10.77.0.1"
    )
    with Wall(lab, "--rule", "192.0.2.0/24", "--events", "none") as wall:
        began = time.monotonic()
        wall.edit("load", str(path))
        whole = time.monotonic() - began
        wall.edit("del", "10.77.0.1")
        wall.edit("add", "192.0.2.0/24")
        before = maps_with("rules4")
        killed = 0
        for i in range(6):
            editor = subprocess.Popen(
                [*COMMAND, "load", str(path), "--netns", netns(lab)],
                cwd=ROOT,
                stderr=subprocess.DEVNULL,
            )
            time.sleep(whole * (i + 1) / 8)
            editor.kill()
            if editor.wait() == 0:
                break
            killed += 1
            new = gets_in(lab, "192.0.2.9")  # is it the new list that is in force?
            assert gets_in(lab) != new, "one of the two lists, whole"
            assert i > 0 or not new, "killed long before the end: the old one"
        assert killed
        wall.edit("load", str(path))
        assert not gets_in(lab) and gets_in(lab, "192.0.2.9")
        deadline = time.monotonic() + 10
        while maps_with("rules4") > before and time.monotonic() < deadline:
            time.sleep(0.1)
        assert maps_with("rules4") <= before


def test_bad_options() -> None:
    for args, text in (
        (["--rule", "tcp/70000"], "not a port"),
        (["--rules", "/nowhere"], "cannot read rules"),
        (["--write", "x", "--events", "none"], "--write needs --events"),
        (["--snap", "5000"], "--snap"),
        (["--max-rules", "0"], "--max-rules"),
        (["add"], "RULE"),
        (["load"], "FILE"),
    ):
        done = run(*args)
        assert done.returncode == 2 and text in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


def test_a_file_that_cannot_be_written(lab: Lab) -> None:
    with Wall(lab, "--write", "/nowhere/dropped.pcapng") as wall:
        status, _, errors = wall.end()
        assert status == 2 and "cannot write /nowhere" in errors
    with Wall(lab, "--write", "/dev/full", "--rule", "10.77.0.1") as wall:
        assert not gets_in(lab)
        time.sleep(1.5)
        assert wall.process.poll() is None, "protection goes on"
        assert not gets_in(lab)
        status, _, errors = wall.end()
        assert status == 0 and errors.count("cannot write /dev/full") == 1
