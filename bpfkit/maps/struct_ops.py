# SPDX-License-Identifier: Apache-2.0
"""STRUCT_OPS: a table of functions that the kernel calls; here a TCP congestion control."""

from __future__ import annotations

import os
import socket

from bpfkit.core.errors import BpfkitError
from bpfkit.maps.tour import Trial, failure, stop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.core.maps.base import Map
    from bpfkit.core.program import Program

_MEMBERS = ("ssthresh", "cong_avoid", "undo_cwnd")
#: Algorithms are listed for the whole machine, so that of each process has a name of its own.
NAME = f"bpfkit_{os.getpid()}"


def available() -> list[str]:
    """The algorithms that the kernel lists, in this network namespace."""
    with open("/proc/sys/net/ipv4/tcp_available_congestion_control") as file:
        return file.read().split()


def _choose(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, NAME.encode())


@stop("struct_ops", "kernel functions made of programs")
def struct_ops(t: Trial) -> None:
    loaded = t.object(*_MEMBERS)
    before = socket.socket()
    t.equal(failure(_choose, before), "ENOENT", "before: no congestion control of this name")
    before.close()
    link = t.keep(loaded.attach_struct_ops("tcp_congestion_ops", name=NAME))
    t.check(NAME in available(), "registered: the kernel lists it as available")
    try:
        loaded.attach_struct_ops("tcp_congestion_ops", name=NAME).close()
        again = "registered"
    except BpfkitError as error:
        again = "EEXIST" if "EEXIST" in str(error) or "exists" in str(error) else str(error)
    t.equal(again, "EEXIST", "a second one of the same name: EEXIST")
    _transfer(t, loaded["requests"])
    link.close()
    t.check(NAME not in available(), "unregistered: the kernel lists it no more")
    after = socket.socket()
    t.equal(failure(_choose, after), "ENOENT", "and sockets cannot choose it: ENOENT")
    after.close()
    _incomplete(t, [loaded.programs[name] for name in _MEMBERS[:2]])


def _transfer(t: Trial, requests: Map) -> None:
    """Bytes through a connection that chose it: the kernel calls the program for ACKs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = t.keep(socket.socket())
        _choose(client)
        client.connect(listener.getsockname())
        server = t.keep(listener.accept()[0])
    chosen = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")
    t.equal(chosen.decode(), NAME, "a socket chooses it and getsockopt says so")
    received = 0
    for number in range(1, 17):
        client.sendall(bytes(1 << 14))
        while received < number << 14:
            received += len(server.recv(1 << 16))
    t.equal(received, 16 << 14, f"{16 << 14} bytes arrive over that connection")
    calls = int(requests[0].sent)
    t.check(calls > 0, f"the kernel called cong_avoid {calls} times, once for ACKs")
    server.close()
    client.close()


def _incomplete(t: Trial, programs: list[Program]) -> None:
    """A table that lacks a function that every congestion control must have."""
    from bpfkit.core.attach.struct_ops import attach

    try:
        attach(programs, "tcp_congestion_ops", {"name": "bpfkit_part"}).close()
        refused = "registered"
    except BpfkitError as error:
        refused = "EINVAL" if "EINVAL" in str(error) else str(error)
    t.equal(refused, "EINVAL", "a table without undo_cwnd: EINVAL")
