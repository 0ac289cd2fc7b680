# SPDX-License-Identifier: Apache-2.0
"""``doctor sockmap`` against experiments of this file's own, which share no code with it.

bpf(2) is called by ctypes with hand-packed attributes and hand-encoded instructions; the redirect
matrix is that of the kernel's selftest ``sockmap_redir.c``.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import json
import os
import select
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfkit.net.links.netns import NetNS

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    os.uname().machine != "x86_64", reason="the experiments here have x86-64's number of bpf(2)"
)

_libc = ctypes.CDLL(None, use_errno=True)
MAP_CREATE, UPDATE, DELETE, PROG_LOAD, PROG_ATTACH = 0, 2, 3, 5, 8
SOCKMAP, SK_SKB, SK_MSG = 15, 14, 16
MSG_VERDICT, SKB_VERDICT = 7, 38
R0_IS_SK_PASS = struct.pack("<BBhiBBhi", 0xB7, 0, 0, 1, 0x95, 0, 0, 0)


def bpf(cmd: int, attr: bytes) -> int:
    found = _libc.syscall(321, cmd, ctypes.create_string_buffer(attr, len(attr)), len(attr))
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return found


def update(fd: int, sock: socket.socket) -> None:
    key, value = ctypes.c_uint(0), ctypes.c_uint(sock.fileno())
    bpf(
        UPDATE,
        struct.pack("<I4xQQQ", fd, ctypes.addressof(key), ctypes.addressof(value), 0),
    )


def delete(fd: int) -> None:
    key = ctypes.c_uint(0)
    bpf(DELETE, struct.pack("<I4xQQQ", fd, ctypes.addressof(key), 0, 0))


def redirect_ingress(targets: int) -> bytes:
    """sk_msg: return bpf_msg_redirect_map(msg, targets, 0, BPF_F_INGRESS)."""
    return b"".join(
        (
            struct.pack("<BBhiBBhi", 0x18, 0x12, 0, targets, 0, 0, 0, 0),  # r2 = map
            struct.pack("<BBhi", 0xB7, 3, 0, 0),
            struct.pack("<BBhi", 0xB7, 4, 0, 1),
            struct.pack("<BBhi", 0x85, 0, 0, 60),
            struct.pack("<BBhi", 0x95, 0, 0, 0),
        )
    )


class Maps:
    """Two sockmaps; the first has the program, if any."""

    def __init__(self, kind: int = 0, attach: int = 0, redirect: bool = False) -> None:
        create = struct.pack("<IIII", SOCKMAP, 4, 4, 1)
        self.fd, self.targets = bpf(MAP_CREATE, create), bpf(MAP_CREATE, create)
        if kind:
            code = redirect_ingress(self.targets) if redirect else R0_IS_SK_PASS
            text, gpl = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
            attr = struct.pack(
                "<IIQQ", kind, len(code) // 8, ctypes.addressof(text), ctypes.addressof(gpl)
            )
            prog = bpf(PROG_LOAD, attr.ljust(68, b"\0") + struct.pack("<I", attach))
            bpf(PROG_ATTACH, struct.pack("<IIII", self.fd, prog, attach, 0))
            os.close(prog)

    def __enter__(self) -> Maps:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)
        os.close(self.targets)


def connection() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        return client, listener.accept()[0]


def waiting(case: str) -> Iterator[tuple[socket.socket, Maps]]:
    """A socket with 777 bytes unread, and its maps, in one of doctor's three cases."""
    sender, receiver = connection()
    arguments = {
        "in a map": (),
        "with an SK_PASS verdict": (SK_SKB, SKB_VERDICT),
        "redirected": (SK_MSG, MSG_VERDICT, True),
    }[case]
    with sender, receiver, Maps(*arguments) as maps:
        if case == "redirected":
            update(maps.targets, receiver)
            update(maps.fd, sender)
        else:
            update(maps.fd, receiver)
        sender.sendall(b"x" * 777)
        assert select.select([receiver], [], [], 2)[0]
        yield receiver, maps


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    done = subprocess.run(
        [sys.executable, "-m", "bpfkit", "doctor", "sockmap", "--json"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def behaviour(rows: list[dict]) -> dict[str, dict]:
    return {row["name"]: row for row in rows if row["what"] == "behaviour"}


CASES = ["in a map", "with an SK_PASS verdict", "redirected"]


@pytest.mark.parametrize("case", CASES)
def test_fionread_is_compared_with_what_a_peek_returns(case: str, behaviour: dict) -> None:
    for sock, _ in waiting(case):
        box = array.array("i", [-1])
        fcntl.ioctl(sock, termios.FIONREAD, box)
        peeked = len(sock.recv(4096, socket.MSG_PEEK))
        assert peeked == 777
        part = next(part for part in behaviour["fionread"]["parts"] if part["name"] == case)
        assert part["state"] == ("works" if box[0] == peeked else "not supported")


@pytest.mark.parametrize("case", CASES)
def test_splice_is_what_a_splicing_reader_gets(case: str, behaviour: dict) -> None:
    for sock, _ in waiting(case):
        sock.setblocking(False)
        reader, writer = os.pipe()
        try:
            moved = os.splice(sock.fileno(), writer, 777)
        except BlockingIOError:
            moved = 0
        finally:
            os.close(reader)
            os.close(writer)
        part = next(part for part in behaviour["splice"]["parts"] if part["name"] == case)
        assert part["state"] == ("works" if moved else "not supported")
        # whatever splice() cannot read is still there for recv()
        assert len(sock.recv(4096)) == 777 - moved if moved < 777 else moved == 777


def test_leaving_the_map_loses_as_many_bytes_as_doctor_says(behaviour: dict) -> None:
    for sock, maps in waiting("redirected"):
        delete(maps.targets)
        left = len(sock.recv(4096)) if select.select([sock], [], [], 0.3)[0] else 0
        lost = 777 - left
        row = behaviour["leaving with unread data"]
        assert row["state"] == ("not supported" if lost else "works")
        assert bool(row["value"]) == bool(lost)


def test_edges_of_redirected_data_are_counted_alike(behaviour: dict) -> None:
    sender, receiver = connection()
    with sender, receiver, Maps(SK_MSG, MSG_VERDICT, True) as maps, select.epoll() as epoll:
        update(maps.targets, receiver)
        update(maps.fd, sender)
        epoll.register(receiver, select.EPOLLIN | select.EPOLLET)
        edges = 0
        for _ in range(3):
            sender.sendall(b"x")
            edges += bool(epoll.poll(1))
    assert behaviour["epoll, edge-triggered"]["value"] == edges


def _udp() -> socket.socket:
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


@pytest.mark.parametrize(
    "name, make",
    [
        ("tcp, listening", lambda: socket.create_server(("127.0.0.1", 0))),
        ("tcp, not connected", socket.socket),
        ("udp, bound", _udp),
        ("udp, not bound", lambda: socket.socket(type=socket.SOCK_DGRAM)),
        ("unix stream, not connected", lambda: socket.socket(socket.AF_UNIX)),
        ("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
    ],
)
def test_a_socket_enters_or_is_refused_with_the_same_errno(name: str, make, rows: list) -> None:
    row = next(row for row in rows if row["what"] == "entry" and row["name"] == name)
    with make() as sock, Maps() as maps:
        try:
            update(maps.fd, sock)
        except OSError as error:
            assert getattr(errno, row["value"]) == error.errno
        else:
            assert row["state"] == "works"


def test_a_second_map_with_a_program_is_busy(rows: list) -> None:
    entries = {row["name"]: row for row in rows if row["what"] == "entry"}
    ours, peer = connection()
    with ours, peer, Maps(SK_SKB, SKB_VERDICT) as one, Maps(SK_SKB, SKB_VERDICT) as two:
        update(one.fd, ours)
        with pytest.raises(OSError) as caught:
            update(two.fd, ours)
    assert caught.value.errno == errno.EBUSY
    assert entries["two maps, a verdict program each"]["value"] == "EBUSY"


def _selftest(hook: str, direction: str, source: str, target: str) -> str:
    """What ``sockmap_redir.c`` expects of a kernel, in doctor's words."""
    if hook == "SK_MSG" and source != "tcp":
        return "not run"  # these send functions have no hook; not even listed there
    if hook == "SK_MSG" and direction == "egress":
        return "ok" if target == "tcp" else "refused"
    return "refused" if target == "vsock" and direction == "ingress" else "ok"


def test_the_redirect_matrix_is_the_kernels(rows: list) -> None:
    cells = [row for row in rows if row["what"] == "redirect"]
    assert len(cells) == 2 * 2 * 5 * 5
    vsock = next(row for row in rows if row["name"] == "vsock, connected")
    wrong = [
        cell
        for cell in cells
        # vsock enters since 6.4
        if (vsock["state"] == "works" or "vsock" not in (cell["source"], cell["target"]))
        and cell["result"]
        != _selftest(cell["hook"], cell["direction"], cell["source"], cell["target"])
    ]
    assert wrong == []
    # absent are only sockets that this machine does not have
    assert {"vsock"} >= {
        kind
        for kind in ("tcp", "udp", "unix stream", "unix dgram", "vsock")
        if any(c["result"] == "absent" for c in cells if c["source"] == c["target"] == kind)
    }


def test_the_text_is_readable_at_80_columns() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bpfkit", "doctor", "sockmap"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0
    assert [line for line in done.stdout.splitlines() if len(line) > 80] == []


def test_the_users_namespace_is_not_touched() -> None:
    """The experiments' connections would stay here in TIME_WAIT for a minute."""
    with NetNS.new("user") as namespace:
        child = namespace.popen(
            [sys.executable, "-m", "bpfkit", "doctor", "sockmap", "--json"],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
        )
        assert child.wait(60) in (0, 77)
        connections = namespace.run(Path("/proc/thread-self/net/tcp").read_text).splitlines()
    assert len(connections) == 1  # the title


def test_a_low_water_mark_counts_redirected_data_or_not(behaviour: dict) -> None:
    early = {}
    for redirect in (False, True):
        sender, receiver = connection()
        with sender, receiver, Maps(SK_MSG, MSG_VERDICT, True) as maps:
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 2000)
            if redirect:
                update(maps.targets, receiver)
                update(maps.fd, sender)
            sender.sendall(b"x" * 1000)
            early[redirect] = bool(select.select([receiver], [], [], 0.1)[0])
    assert not early[False]
    expected = "not supported" if early[True] else "works"
    assert behaviour["SO_RCVLOWAT"]["state"] == expected


def test_without_root_it_is_status_77() -> None:
    unprivileged = "setpriv --reuid=65534 --regid=65534 --clear-groups".split()
    done = subprocess.run(
        [*unprivileged, sys.executable, "-m", "bpfkit", "doctor", "sockmap"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 77
    assert "privilege" in done.stderr and len(done.stderr.splitlines()) <= 2


def test_the_plain_doctor_points_at_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bpfkit", "doctor"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].endswith("python3 -m bpfkit doctor sockmap")
