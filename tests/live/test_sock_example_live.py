# SPDX-License-Identifier: Apache-2.0
"""sock_example on a loopback interface of its own: live counts against what was sent."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from running import Running, path_of, run

from bpfkit.core.maps.base import Map
from bpfkit.core.program import Program
from bpfkit.net.links.interfaces import Interface
from bpfkit.net.links.netns import NetNS
from bpfkit.net.packets.packet_socket import PacketSocket
from bpfkit.sock_example import assemble_program


@pytest.fixture
def namespace() -> Iterator[NetNS]:
    with NetNS.new("sock_example") as made:
        yield made


class Watched:
    """The program on ``lo`` of a namespace, counting the directions it is told to."""

    def __init__(self, namespace: NetNS, direction: int) -> None:
        self.map = Map.create("array", 4, 8, 256, name="packets")
        code = assemble_program(self.map.fd, direction, 14)
        self.program = Program.from_insns("socket_filter", code, name="sock_example")
        with namespace.entered():
            self.socket = PacketSocket(Interface.find("lo"), self.program, counting=True)

    def counts(self) -> dict[int, int]:
        return {proto: int(n) for proto, n in enumerate(self.map.values()) if n}

    def close(self) -> None:
        self.socket.close()
        self.program.close()
        self.map.close()


def make_socket(namespace: NetNS, family: int, kind: int) -> socket.socket:
    with namespace.entered():
        return socket.socket(family, kind)


def datagrams(namespace: NetNS, family: int, address: str, count: int) -> None:
    """``count`` UDP datagrams to a socket that takes them: nobody answers."""
    with (
        make_socket(namespace, family, socket.SOCK_DGRAM) as receiver,
        make_socket(namespace, family, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind((address, 0))
        for _ in range(count):
            sender.sendto(b"x", receiver.getsockname())


def test_defects_2_and_12_each_packet_once_and_ipv6_too(namespace: NetNS) -> None:
    """lo shows every packet going out and coming in; ::1 is as good as 127.0.0.1."""
    outgoing, both = Watched(namespace, 2), Watched(namespace, 3)
    try:
        datagrams(namespace, socket.AF_INET, "127.0.0.1", 100)
        assert outgoing.counts() == {17: 100}
        assert both.counts() == {17: 200}  # the defect, were it not for the direction
        datagrams(namespace, socket.AF_INET6, "::1", 50)
        assert outgoing.counts() == {17: 150}
    finally:
        outgoing.close()
        both.close()


def segments_out(sock: socket.socket) -> int:
    """tcpi_segs_out: what the socket itself says it has sent (Linux 4.2)."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
    return int(struct.unpack_from("<I", info, 136)[0])


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_defect_14_super_frames_are_their_segments(
    namespace: NetNS, family: int, address: str
) -> None:
    """A bulk TCP transfer over lo is made of 64 KB frames: the sockets' own figures agree."""
    watched = Watched(namespace, 2)
    try:
        with make_socket(namespace, family, socket.SOCK_STREAM) as listener:
            # a small MSS, so that one frame on lo is many segments
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1200)
            listener.bind((address, 0))
            listener.listen()
            with make_socket(namespace, family, socket.SOCK_STREAM) as client:
                client.connect(listener.getsockname())
                server, _ = listener.accept()
                with server:
                    total = 3_000_000
                    sender = threading.Thread(target=client.sendall, args=(bytes(total),))
                    sender.start()
                    while total:
                        total -= len(server.recv(1 << 16))
                    sender.join()
                    time.sleep(0.2)  # the last acknowledgement may be delayed (40 ms)
                    sent = segments_out(client) + segments_out(server)
                    counted = watched.counts()[6]
                    listening_answer = 1  # the SYN-ACK leaves before the server's socket exists
                    assert counted == sent + listening_answer
                    assert sent > 2500
    finally:
        watched.close()


def test_command_line_json(namespace: NetNS) -> None:
    """--json, --netns: totals since the start, SIGINT ends it with the last figures."""
    options = ["--no-demo", "--json", "-t", "0.2", "--netns", path_of(namespace)]
    with Running("sock_example", *options, ready=lambda row: True) as program:
        first = json.loads(program.out.splitlines()[0])
        assert first["round"] == 0 and first["ts"] > 1e9
        datagrams(namespace, socket.AF_INET, "127.0.0.1", 20)
        datagrams(namespace, socket.AF_INET6, "::1", 10)
        time.sleep(0.3)
        last = {row["proto"]: row["packets"] for row in program.rows()}
    assert last == {"tcp": 0, "udp": 30, "icmp": 0}


def test_command_line_text_and_disassembly() -> None:
    done = run("sock_example", "--no-demo", "-t", "0.1", "-c", "2", "-v")
    assert done.returncode == 0
    lines, err = done.stdout.splitlines(), done.stderr
    assert len(lines) == 2
    words = lines[-1].split()
    assert words[::2][:3] == ["TCP", "UDP", "ICMP"] and words[6] == "packets"
    assert "(bf) r6 = r1" in err and "call bpf_skb_load_bytes#26" in err and "IPv6:" in err
