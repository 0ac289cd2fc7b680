# SPDX-License-Identifier: Apache-2.0
"""Where XDP sends packets: DEVMAP, DEVMAP_HASH, CPUMAP, XSKMAP.

::

    client eth0 ── veth ── eth0 server: XDP, redirect by the map's element
                                  │
                                  ├── DEVMAP: out of another device
                                  ├── CPUMAP: up the stack on a CPU
                                  ├── XSKMAP: to an AF_XDP socket
                                  └── no element: up the stack
"""

from __future__ import annotations

from struct import pack
from time import monotonic

from bpfkit.core.cpus import online
from bpfkit.core.kernel import syscall as sc
from bpfkit.maps.keyed import key
from bpfkit.maps.tour import PACKET, Trial, failure, stop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.core.maps.base import Map
    from bpfkit.maps.tour import Side
    from bpfkit.net.packets.packet_socket import PacketSocket
    from bpfkit.net.sockets.xsk import XskSocket

XDP_PASS, XDP_REDIRECT = 2, 4
_WAIT_S = 1.0


def _frame(number: int) -> bytes:
    """A broadcast frame of an experimental protocol that no one answers."""
    return b"\xff" * 6 + b"\x02\0\0\0\0\x01" + b"\x88\xb5" + pack("!I", number) + bytes(42)


def _arrives(sock: PacketSocket, frame: bytes) -> bool:
    """Whether the frame comes out where ``sock`` listens."""
    deadline = monotonic() + _WAIT_S
    while monotonic() < deadline:
        packet = sock.recv(deadline - monotonic())
        if packet is not None and packet.data == frame:
            return True
    return False


def _verdicts(t: Trial, side: Side, present: int, missing: int) -> None:
    """What bpf_redirect_map returns, by test runs that send nothing."""

    def verdict(number: int) -> int:
        side.request(value=number)
        return side.programs["redirect"].run(PACKET).retval

    t.equal(verdict(present), XDP_REDIRECT, f"an element at {present}: XDP_REDIRECT")
    t.equal(verdict(missing), XDP_PASS, f"none at {missing}: the program's own verdict, XDP_PASS")


def _other_device(t: Trial) -> tuple[int, PacketSocket]:
    """(index of the server's second device, a tap on its far end)."""
    from bpfkit.net.packets.packet_socket import PacketSocket

    lab = t.tour.lab()
    if "far" not in lab:
        lab.namespace("far")
        lab.veth("server:eth1", "far:eth0")
    tap = t.keep(PacketSocket(lab.interface("far:eth0")))
    return lab.interface("server:eth1").index, tap


def _attach(t: Trial, side: Side, mode: str = "generic") -> PacketSocket:
    """The program on the server's device; returns a socket that sends there.

    Native veth sends only to a device whose far end has native XDP too; generic XDP has no CPUMAP
    before Linux 5.15.
    """
    from bpfkit.net.packets.packet_socket import PacketSocket

    lab = t.tour.lab()
    device = lab.interface("server:eth0")
    with lab["server"].entered():
        t.keep(side.programs["redirect"].attach_xdp(device.index, mode))
    return t.keep(PacketSocket(lab.interface("client:eth0"), protocol=0))


def _devices(t: Trial, m: Map, slot: int, missing: int) -> None:
    index, far = _other_device(t)
    with t.tour.lab()["server"].entered():
        t.equal(
            failure(sc.map_update, m.fd, key(slot), pack("=I", 1 << 30)),
            "EINVAL",
            "an interface that does not exist: EINVAL",
        )
        m[slot] = index
    t.equal(m[slot], index, "Python enters an interface and reads its index back")
    side = t.load(m, "redirect")
    _verdicts(t, side, slot, missing)
    sender = _attach(t, side)
    side.request(value=slot)
    sender.send(_frame(1))
    t.check(_arrives(far, _frame(1)), "a frame that comes in leaves by the interface of the map")
    del m[slot]
    sender.send(_frame(2))
    t.check(not _arrives_soon(far, _frame(2)), "deleted: the next frame does not")
    t.equal(failure(sc.map_lookup, m.fd, key(slot), 4), "ENOENT", "the element is missing: ENOENT")


def _arrives_soon(sock: PacketSocket, frame: bytes) -> bool:
    """Within a tenth of a second: what must not come is not waited for any longer."""
    deadline = monotonic() + 0.1
    while monotonic() < deadline:
        packet = sock.recv(max(0.0, deadline - monotonic()))
        if packet is not None and packet.data == frame:
            return True
    return False


@stop("devmap", "interfaces that XDP sends to")
def devmap(t: Trial) -> None:
    m = t.map(4, 4, 4)
    _devices(t, m, 1, 2)
    with t.tour.lab()["server"].entered():
        index = pack("=I", t.tour.lab().interface("server:eth1").index)
        t.equal(failure(sc.map_update, m.fd, key(4), index), "E2BIG", "behind the end: E2BIG")


@stop("devmap_hash", "the same by any number: ifindex")
def devmap_hash(t: Trial) -> None:
    m = t.map(4, 4, 1)
    _devices(t, m, 100_000, 5)
    with t.tour.lab()["server"].entered():
        index = pack("=I", t.tour.lab().interface("server:eth1").index)
        m[7] = t.tour.lab().interface("server:eth1").index
        t.equal(failure(sc.map_update, m.fd, key(8), index), "E2BIG", "full: E2BIG")
        t.equal(failure(sc.map_update, m.fd, key(7), index, 1), "EEXIST", "BPF_NOEXIST: EEXIST")


@stop("cpumap", "CPUs that run the stack for XDP")
def cpumap(t: Trial) -> None:
    from bpfkit.net.packets.packet_socket import PacketSocket

    cpus = online()
    m = t.map(4, 4, max(cpus) + 1)
    last = cpus[-1]
    t.equal(
        failure(sc.map_update, m.fd, key(last), pack("=I", 1 << 20)),
        "EOVERFLOW",
        "a queue of more than 16384 frames: EOVERFLOW",
    )
    m[last] = 192
    t.equal(m[last], 192, f"Python makes a queue of 192 frames for CPU {last} and reads it")
    t.check(_kthread(last, m.id), "the kernel starts a thread for it, cpumap/CPU/map:ID")
    side = t.load(m, "redirect")
    if len(cpus) > 1:
        _verdicts(t, side, last, cpus[0])
    t.equal(
        failure(sc.map_update, m.fd, key(max(cpus) + 1), pack("=I", 8)),
        "E2BIG",
        "behind the end: E2BIG",
    )
    sender = _attach(t, side, "auto")
    tap = t.keep(PacketSocket(t.tour.lab().interface("server:eth0")))
    side.request(value=last)
    sender.send(_frame(3))
    t.check(_arrives(tap, _frame(3)), f"a frame goes up the stack through CPU {last}")
    del m[last]
    t.equal(failure(sc.map_lookup, m.fd, key(last), 4), "ENOENT", "deleted: ENOENT")


def _kthread(cpu: int, map_id: int) -> bool:
    """Whether the thread is there: ``cpumap/1/map:23``, of which 15 bytes are the name."""
    import os

    wanted = f"cpumap/{cpu}/map:{map_id}"[:15].encode()
    deadline = monotonic() + _WAIT_S
    while monotonic() < deadline:
        for pid in os.listdir("/proc"):
            if not pid.isdigit():
                continue
            try:
                with open(f"/proc/{pid}/comm", "rb") as file:
                    if file.read().startswith(wanted):
                        return True
            except OSError:
                continue  # it ended
    return False


@stop("xskmap", "AF_XDP sockets: frames to user space")
def xskmap(t: Trial) -> None:
    from bpfkit.net.sockets.xsk import XskSocket

    m = t.map(4, 4, 4)
    lab = t.tour.lab()
    with lab["server"].entered():
        xsk = t.keep(XskSocket(lab.interface("server:eth0"), 0, "copy"))
    m[0] = xsk
    t.equal(
        failure(sc.map_update, m.fd, key(1), pack("=i", m.fd)),
        "ENOTSOCK",
        "a descriptor that is no socket: ENOTSOCK",
    )
    t.equal(
        failure(sc.map_update, m.fd, key(4), pack("=i", xsk.fileno())),
        "E2BIG",
        "behind the end: E2BIG",
    )
    t.equal(failure(sc.map_lookup, m.fd, key(0), 4), "EOPNOTSUPP", "it cannot be read back")
    side = t.load(m, "redirect")
    _verdicts(t, side, 0, 3)
    sender = _attach(t, side)
    side.request(value=0)
    sender.send(_frame(4))
    got = _received(xsk)
    t.check(_frame(4) in got, "a frame that comes in is in the socket's memory in Python")
    xsk.close()
    side.request(value=0)
    deadline = monotonic() + _WAIT_S
    while True:
        gone = side.programs["redirect"].run(PACKET).retval == XDP_PASS
        if gone or monotonic() > deadline:
            break
    t.check(gone, "a socket that is closed leaves the map")


def _received(xsk: XskSocket) -> list[bytes]:
    deadline = monotonic() + _WAIT_S
    frames: list[bytes] = []
    while monotonic() < deadline and _frame(4) not in frames:
        frames += xsk.recv(0.1)
    return frames
