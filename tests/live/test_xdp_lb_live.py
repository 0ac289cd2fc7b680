# SPDX-License-Identifier: Apache-2.0
"""xdp_lb between a real client and real servers: the file of backends, health, paths, bad input."""

from __future__ import annotations

import json
import select
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from running import Row, Running, path_of, run

from bpfkit.core.errors import BpfkitError
from bpfkit.xdp_lb.lab import VIP4, VIP6, BackendLab

B1, B2, B3 = "10.77.2.11", "fd77:2::12", "10.77.2.13"
VIPS = ["--vip", f"{VIP4}:80/tcp", "--vip", f"[{VIP6}]:80/tcp"]


@pytest.fixture
def play() -> Iterator[BackendLab]:
    with BackendLab() as made:
        yield made


def options(play: BackendLab, *arguments: str) -> list[str]:
    return ["-i", "eth0", "--netns", path_of(play.lab["lb"]), *arguments]


def running(play: BackendLab, *arguments: str) -> Running:
    """Ready when the first look at the backends is over."""
    more = ("--json", "-t", "0.2", "--health-interval", "0.1")
    return Running(
        "xdp_lb",
        *options(play, *more, *arguments),
        ready=lambda row: row.get("change") == "start",
    )


def change(program: Running, words: str) -> Row:
    """The next change of which these are words."""
    return program.row(lambda row: words in str(row.get("change", "")))


def who(play: BackendLab, count: int = 20) -> Counter[str]:
    """Who answers new connections to both VIPs."""
    return Counter(answer for *_, answer in play.burst((VIP4, VIP6), count))


def test_each_round_of_the_demo_is_a_state_of_its_story() -> None:
    """However short they are, b2, the backend with an IPv6 address, is down in the second only."""
    rows = [json.loads(line) for line in run("xdp_lb", "--json", "-t", "0.1").stdout.splitlines()]
    b2 = [row["healthy"] for row in rows if row.get("backend") == "fd77:2::12"]
    assert b2 == [True, False, True]


@pytest.mark.parametrize("name", ["xdp_lb", "xdp_lb --forward l2", "xdp_lb --mode generic"])
def test_check(name: str) -> None:
    done = run(*name.split(), "--check", "-c", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "19 of 19 verified" in done.stdout


def test_check_of_the_other_end() -> None:
    done = run("xdp_decap", "--check", "-c", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 of 10 verified" in done.stdout


def test_backends_change_while_it_runs(play: BackendLab, tmp_path: Path) -> None:
    path = tmp_path / "backends"
    path.write_text(f"{B1}\n{B2}\n")
    with running(play, *VIPS, "--backends", str(path)) as program:
        assert set(who(play)) == {"b1", "b2"}
        talks = [play.connect(vip) for vip in (VIP4, VIP6) * 6]
        firsts = [talk.request() for talk in talks]
        assert set(firsts) == {"b1", "b2"}

        path.write_text(f"{B1}\n{B2}\n{B3} weight=2 # twice as much\n")
        row = change(program, f"{B3} added")
        assert row["backends"] == 3 and row["moved_flows"] == 0 and row["flows"] >= 12
        assert row["ideal_slots"] <= row["moved_slots"] < 1.2 * row["ideal_slots"]
        assert "b3" in who(play)
        assert [talk.request() for talk in talks] == firsts

        path.write_text(f"{B1}\n{B2}\nnonsense\n")
        assert program.wait_for("backends:3", 10)
        assert "b3" in who(play), "nothing of a bad file is applied"

        path.write_text(f"{B1} weight=0\n{B2}\n{B3}\n")
        change(program, f"{B1} drained")
        assert set(who(play)) == {"b2", "b3"}
        assert [talk.request() for talk in talks] == firsts, (
            "a drained backend keeps its connections"
        )

        path.write_text(f"{B2}\n{B3}\n")
        row = change(program, f"{B1} removed")
        assert row["moved_flows"] >= firsts.count("b1") > 0
        still = [t.request() for t, first in zip(talks, firsts, strict=True) if first == "b2"]
        assert still == ["b2"] * firsts.count("b2")
        rows = program.row(lambda row: row.get("summary") is True)
        assert rows["sent"] > 0 and rows["dropped_no_backend"] == 0
        for talk in talks:
            talk.close()
        assert program.end()[0] == 0


def test_a_host_that_goes_silent_is_taken_out_and_comes_back(play: BackendLab) -> None:
    backends = ["--backend", B1, "--backend", B2, "--backend", B3]
    with running(play, *VIPS, *backends) as program:
        link = play.lab.interface("switch:b3")
        link.set_up(False)
        row = change(program, f"{B3} down")
        assert row["backends"] == 2
        assert set(who(play)) == {"b1", "b2"}
        link.set_up()
        change(program, f"{B3} up")
        assert set(who(play)) == {"b1", "b2", "b3"}
        for name in ("b1", "b2", "b3"):
            play.stop(name)
        row = program.row(lambda row: row.get("backends") == 0)
        assert row["slots"] == row["moved_slots"]
        sock = play.lab["client"].socket(2, 1)
        sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            sock.connect((VIP4, 80))  # dropped, not refused
        sock.close()
        row = program.row(lambda row: row.get("summary") is True and row["dropped_no_backend"] > 0)
        for name in ("b1", "b2", "b3"):
            play.start(name)
        program.row(lambda row: row.get("backends") == 3)
        assert set(who(play)) == {"b1", "b2", "b3"}


def test_curl_ping_and_the_path_mtu_of_replies(play: BackendLab) -> None:
    client = play.lab["client"]
    with running(play, *VIPS, "--backend", B1, "--backend", B2) as program:
        for url in (f"http://{VIP4}/", f"http://[{VIP6}]/"):
            assert client.check_output(["curl", "-sS", "-m", "5", url]).strip() in ("b1", "b2")
        for vip in (VIP4, VIP6):
            out = client.check_output(["ping", "-c", "1", "-W", "2", vip])
            assert " 0% packet loss" in out, "the balancer's kernel answers"
        # A narrow link on the way to the client, which the backends learn of by ICMP to the VIP.
        play.lab["switch"].check_output(["ip", "link", "set", "left", "mtu", "1300"])
        try:
            for vip in (VIP4, VIP6):
                talk = play.connect(vip)
                assert talk.request(size=100_000).startswith("b")
                talk.close()
        finally:
            play.lab["switch"].check_output(["ip", "link", "set", "left", "mtu", "1500"])
        row = program.row(lambda row: row.get("summary") is True and row["sent_icmp"] > 0)
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
        with running(play, *arguments, "--health", "none", "--forward", "l2") as program:
            for size in (10, 1000, 4000):
                sock.sendto(bytes(size), (VIP4, 53))
                (ready,) = select.select(servers.values(), [], [], 5)[0]
                data, where = ready.recvfrom(65536)
                assert len(data) == size and where[0] == "::ffff:10.77.1.1"
            row = program.row(lambda row: row.get("summary") is True and row["sent_fragment"] > 0)
            assert (row["sent"], row["sent_fragment"]) == (2, 3)
    finally:
        for each in (sock, *servers.values()):
            each.close()


@pytest.mark.parametrize("mode, said", [("native", True), ("generic", False)])
def test_a_peer_that_drops_what_is_sent_is_said(play: BackendLab, mode: str, said: bool) -> None:
    """The kernel drops what a native program sends by a veth whose other end runs no program."""
    play.peer_program.close()
    with (
        running(play, *VIPS, "--backend", B1, "--mode", mode) as program,
        closing(play.lab["client"].socket(socket.AF_INET, socket.SOCK_STREAM)) as client,
    ):
        client.setblocking(False)
        client.connect_ex((VIP4, 80))
        if said:
            assert program.wait_for("none arrived: the peer of veth eth0 has no XDP program")
            assert program.wait_for("use --mode generic")
        else:  # the handshake is done
            assert select.select([], [client], [], 30)[1]
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        _, _, errors = program.end()
    assert ("none arrived" in errors) == said


def test_both_ends_of_the_tunnel_by_command() -> None:
    with BackendLab(decapsulate=False) as play:
        other = ["-i", "eth0", "--netns", path_of(play.lab["b1"]), "--tunnel", f"10.77.2.2,{B1}"]
        url = f"http://[{VIP6}]/"
        with running(play, *VIPS, "--backend", B1):
            asking = ["curl", "-sS", "-m", "1", url]
            with pytest.raises(BpfkitError, match="timed out"):
                play.lab["client"].check_output(asking)
            with Running("xdp_decap", *other) as end:
                assert "XDP native" in end.said
                asking[3] = "10"
                assert play.lab["client"].check_output(asking).strip() == "b1"
                assert end.end()[0] == 0


def test_kill_leaves_nothing_and_nobody_else_is_in_the_way(play: BackendLab) -> None:
    with running(play, *VIPS, "--backend", B1) as program:
        shown = play.lab["lb"].check_output(["ip", "link", "show", "dev", "eth0"])
        assert "prog/xdp" in shown
        second = run("xdp_lb", *options(play, *VIPS, "--backend", B2))
        assert second.returncode == 1 and str(program.process.pid) in second.stderr
        program.process.kill()
        program.process.wait()
    deadline = time.monotonic() + 5
    while "xdp" in play.lab["lb"].check_output(["ip", "link", "show", "dev", "eth0"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_interface_that_is_removed(tmp_path: Path) -> None:
    with BackendLab() as play, running(play, *VIPS, "--backend", B1) as program:
        play.lab["lb"].check_output(["ip", "link", "del", "eth0"])
        status, _, said = program.wait(30)
        assert status == 1
        assert "was removed" in said
        assert "Traceback" not in said


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
    done = run("xdp_lb", *options(play, *VIPS, *arguments))
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_a_backend_that_is_not_there_is_said(play: BackendLab) -> None:
    arguments = [*VIPS, "--backend", "10.77.2.99", "-c", "1", "-t", "0.1"]
    arguments = options(play, *arguments, "--health-interval", "0.2")
    done = run("xdp_lb", *arguments)
    assert done.returncode == 0, done.stderr
    assert "10.77.2.99" in done.stdout and "backends up: 0" in done.stderr
    done = run("xdp_lb", *arguments, "--health", "none")
    assert "no MAC address" in done.stdout


def test_a_missing_interface(play: BackendLab) -> None:
    arguments = options(play, *VIPS, "--backend", B1)
    arguments[arguments.index("eth0")] = "eth7"
    done = run("xdp_lb", *arguments)
    assert done.returncode == 2 and "eth7" in done.stderr
