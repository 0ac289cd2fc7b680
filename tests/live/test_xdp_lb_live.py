# SPDX-License-Identifier: Apache-2.0
"""xdp_lb between a real client and real servers: the file of backends, health, paths, bad input."""

from __future__ import annotations

import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bpfkit.core.errors import BpfkitError
from bpfkit.net.lb_lab import VIP4, VIP6, BackendLab

ROOT = Path(__file__).resolve().parents[2]
B1, B2, B3 = "10.77.2.11", "fd77:2::12", "10.77.2.13"
VIPS = ["--vip", f"{VIP4}:80/tcp", "--vip", f"[{VIP6}]:80/tcp"]


@pytest.fixture
def play() -> Iterator[BackendLab]:
    with BackendLab() as made:
        yield made


def command(play: BackendLab, *arguments: str) -> list[str]:
    netns = f"/proc/{os.getpid()}/fd/{play.lab['lb'].fd}"
    return [sys.executable, "-m", "bpfkit.xdp_lb", "-i", "eth0", "--netns", netns, *arguments]


def run(play: BackendLab, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(play, *arguments), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


class Running:
    """The program, its JSON rows and what it says, as they come."""

    def __init__(self, play: BackendLab, *arguments: str) -> None:
        more = ("--json", "-t", "0.2", "--health-interval", "0.1")
        self.process = subprocess.Popen(
            command(play, *more, *arguments),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: queue.Queue[str] = queue.Queue()
        self.said: list[str] = []
        self._threads = [
            threading.Thread(target=self._read_rows),
            threading.Thread(target=self._read_notes),
        ]
        for thread in self._threads:
            thread.start()
        self.row(lambda row: row.get("change") == "start")

    def _read_rows(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def _read_notes(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)

    def row(self, which: Callable[[dict[str, object]], bool], timeout: float = 20) -> dict:
        """The next row that is one of those; others are passed over."""
        deadline = time.monotonic() + timeout
        while True:
            line = self.lines.get(timeout=max(0.01, deadline - time.monotonic()))
            assert line, "it ended: " + "".join(self.said)
            row = json.loads(line)
            if which(row):
                return row

    def change(self, words: str) -> dict:
        return self.row(lambda row: words in str(row.get("change", "")))

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(30)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


def who(play: BackendLab, count: int = 20) -> Counter[str]:
    """Who answers new connections to both VIPs."""
    return Counter(answer for *_, answer in play.burst((VIP4, VIP6), count))


@pytest.mark.parametrize("name", ["xdp_lb", "xdp_lb --forward l2", "xdp_lb --mode generic"])
def test_check(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *f"bpfkit.{name}".split(), "--check", "-c", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "19 of 19 verified" in done.stdout


def test_check_of_the_other_end() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bpfkit.xdp_decap", "--check", "-c", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 of 10 verified" in done.stdout


def test_backends_change_while_it_runs(play: BackendLab, tmp_path: Path) -> None:
    path = tmp_path / "backends"
    path.write_text(f"{B1}\n{B2}\n")
    with Running(play, *VIPS, "--backends", str(path)) as running:
        assert set(who(play)) == {"b1", "b2"}
        talks = [play.talk(vip) for vip in (VIP4, VIP6) * 6]
        firsts = [talk.ask() for talk in talks]
        assert set(firsts) == {"b1", "b2"}

        path.write_text(f"{B1}\n{B2}\n{B3} weight=2 # twice as much\n")
        row = running.change(f"{B3} added")
        assert row["backends"] == 3 and row["moved_flows"] == 0 and row["flows"] >= 12
        assert row["ideal_slots"] <= row["moved_slots"] < 1.2 * row["ideal_slots"]
        assert "b3" in who(play)
        assert [talk.ask() for talk in talks] == firsts

        path.write_text(f"{B1}\n{B2}\nnonsense\n")
        deadline = time.monotonic() + 10
        while not any("backends:3" in line for line in running.said):
            assert time.monotonic() < deadline, running.said
            time.sleep(0.05)
        assert "b3" in who(play), "nothing of a bad file is applied"

        path.write_text(f"{B1} weight=0\n{B2}\n{B3}\n")
        running.change(f"{B1} drained")
        assert set(who(play)) == {"b2", "b3"}
        assert [talk.ask() for talk in talks] == firsts, "a drained backend keeps its connections"

        path.write_text(f"{B2}\n{B3}\n")
        row = running.change(f"{B1} removed")
        assert row["moved_flows"] >= firsts.count("b1") > 0
        still = [t.ask() for t, first in zip(talks, firsts, strict=True) if first == "b2"]
        assert still == ["b2"] * firsts.count("b2")
        rows = running.row(lambda row: row.get("summary") is True)
        assert rows["sent"] > 0 and rows["dropped_no_backend"] == 0
        for talk in talks:
            talk.close()
        assert running.end() == 0


def test_a_host_that_goes_silent_is_taken_out_and_comes_back(play: BackendLab) -> None:
    backends = ["--backend", B1, "--backend", B2, "--backend", B3]
    with Running(play, *VIPS, *backends) as running:
        link = play.lab.interface("switch:b3")
        link.set_up(False)
        row = running.change(f"{B3} down")
        assert row["backends"] == 2
        assert set(who(play)) == {"b1", "b2"}
        link.set_up()
        running.change(f"{B3} up")
        assert set(who(play)) == {"b1", "b2", "b3"}
        for name in ("b1", "b2", "b3"):
            play.stop(name)
        row = running.row(lambda row: row.get("backends") == 0)
        assert row["slots"] == row["moved_slots"]
        sock = play.lab["client"].socket(2, 1)
        sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            sock.connect((VIP4, 80))  # dropped, not refused
        sock.close()
        row = running.row(lambda row: row.get("summary") is True and row["dropped_no_backend"] > 0)
        for name in ("b1", "b2", "b3"):
            play.start(name)
        running.row(lambda row: row.get("backends") == 3)
        assert set(who(play)) == {"b1", "b2", "b3"}


def test_curl_ping_and_the_path_mtu_of_replies(play: BackendLab) -> None:
    client = play.lab["client"]
    with Running(play, *VIPS, "--backend", B1, "--backend", B2) as running:
        for url in (f"http://{VIP4}/", f"http://[{VIP6}]/"):
            assert client.check_output(["curl", "-sS", "-m", "5", url]).strip() in ("b1", "b2")
        for vip in (VIP4, VIP6):
            out = client.check_output(["ping", "-c", "1", "-W", "2", vip])
            assert " 0% packet loss" in out, "the balancer's kernel answers"
        # A narrow link on the way to the client, which the backends learn of by ICMP to the VIP.
        play.lab["switch"].check_output(["ip", "link", "set", "left", "mtu", "1300"])
        try:
            for vip in (VIP4, VIP6):
                talk = play.talk(vip)
                assert talk.ask(size=100_000).startswith("b")
                talk.close()
        finally:
            play.lab["switch"].check_output(["ip", "link", "set", "left", "mtu", "1500"])
        row = running.row(lambda row: row.get("summary") is True and row["sent_icmp"] > 0)
        assert row["sent"] > 0


def test_udp_in_fragments_meets_at_one_backend(play: BackendLab) -> None:
    """The kernel puts the datagram together again only if all of its pieces came."""
    servers = {name: play.lab[name].socket(10, 2) for name in ("b1", "b2", "b3")}
    sock = play.lab["client"].socket(2, 2)
    arguments = ["--vip", f"{VIP4}:53/udp", "--backend", B1, "--backend", B2, "--backend", B3]
    try:
        for server in servers.values():
            server.bind(("::", 53))
        sock.settimeout(5)
        with Running(play, *arguments, "--health", "none", "--forward", "l2") as running:
            for size in (10, 1000, 4000):
                sock.sendto(bytes(size), (VIP4, 53))
                (ready,) = select.select(servers.values(), [], [], 5)[0]
                data, where = ready.recvfrom(65536)
                assert len(data) == size and where[0] == "::ffff:10.77.1.1"
            row = running.row(lambda row: row.get("summary") is True and row["sent_fragment"] > 0)
            assert (row["sent"], row["sent_fragment"]) == (2, 3)
    finally:
        for each in (sock, *servers.values()):
            each.close()


def test_both_ends_of_the_tunnel_by_command() -> None:
    with BackendLab(decapsulate=False) as play:
        netns = f"/proc/{os.getpid()}/fd/{play.lab['b1'].fd}"
        other = [sys.executable, "-m", "bpfkit.xdp_decap", "-i", "eth0", "--netns", netns]
        url = f"http://[{VIP6}]/"
        with Running(play, *VIPS, "--backend", B1):
            asking = ["curl", "-sS", "-m", "1", url]
            with pytest.raises(BpfkitError, match="timed out"):
                play.lab["client"].check_output(asking)
            end = subprocess.Popen(
                [*other, "--tunnel", f"10.77.2.2,{B1}"],
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                assert end.stderr is not None
                assert "XDP native" in end.stderr.readline()
                asking[3] = "10"
                assert play.lab["client"].check_output(asking).strip() == "b1"
            finally:
                end.send_signal(signal.SIGINT)
                end.communicate(timeout=30)
            assert end.returncode == 0


def test_kill_leaves_nothing_and_nobody_else_is_in_the_way(play: BackendLab) -> None:
    with Running(play, *VIPS, "--backend", B1) as running:
        shown = play.lab["lb"].check_output(["ip", "link", "show", "dev", "eth0"])
        assert "prog/xdp" in shown
        second = run(play, *VIPS, "--backend", B2)
        assert second.returncode == 1 and str(running.process.pid) in second.stderr
        running.process.kill()
        running.process.wait()
    deadline = time.monotonic() + 5
    while "xdp" in play.lab["lb"].check_output(["ip", "link", "show", "dev", "eth0"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_interface_that_is_removed(tmp_path: Path) -> None:
    with BackendLab() as play, Running(play, *VIPS, "--backend", B1) as running:
        play.lab["lb"].check_output(["ip", "link", "del", "eth0"])
        assert running.process.wait(30) == 1
        time.sleep(0.1)
        assert "was removed" in "".join(running.said)
        assert "Traceback" not in "".join(running.said)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--backend", "10.77.2.2"], "address of this host"),
        (["--backend", "127.0.0.1"], "address of this host"),
        (["--backend", "10.77.1.1", "--forward", "l2"], "behind the gateway 10.77.2.254"),
    ],
)
def test_backends_that_cannot_be_reached(
    play: BackendLab, arguments: list[str], words: str
) -> None:
    done = run(play, *VIPS, *arguments)
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_a_backend_that_is_not_there_is_said(play: BackendLab) -> None:
    arguments = [*VIPS, "--backend", "10.77.2.99", "-c", "1", "-t", "0.1"]
    done = run(play, *arguments, "--health-interval", "0.2")
    assert done.returncode == 0, done.stderr
    assert "10.77.2.99" in done.stdout and "backends up: 0" in done.stderr
    done = run(play, *arguments, "--health-interval", "0.2", "--health", "none")
    assert "no MAC address" in done.stdout


def test_a_missing_interface(play: BackendLab) -> None:
    arguments = command(play, *VIPS, "--backend", B1)
    arguments[arguments.index("eth0")] = "eth7"
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "eth7" in done.stderr
