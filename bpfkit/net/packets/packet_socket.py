# SPDX-License-Identifier: Apache-2.0
"""AF_PACKET sockets (packet(7)), to which SOCKET_FILTER programs attach.

A packet socket created with a protocol receives from every interface at once, before it has a
filter and before it is bound: foreign packets are queued in that window.  Here the socket is
created with protocol 0, which receives nothing; then the filter is attached; then the socket is
bound by ifindex, and only that starts reception.

::

    socket(AF_PACKET, SOCK_RAW, 0)   receives nothing
    SO_ATTACH_BPF                    the program is attached
    bind(ifindex, ETH_P_ALL)         the first packet: from this interface, through the program
"""

from __future__ import annotations

import _socket
import ctypes
import errno
import select
import struct
import time

from bpfkit.core.closing import Held
from bpfkit.core.errors import (
    AttachError,
    BpfkitError,
    InputError,
    PrivilegeError,
    UnsupportedError,
    errno_text,
)
from bpfkit.core.words import count_of
from bpfkit.net.links.interfaces import Interface

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Protocol

    from bpfkit.net.links.netns import NetNS

    class _HasFd(Protocol):
        @property
        def fd(self) -> int: ...

    #: A program: its descriptor, an object with ``fd``, or a function that attaches to a socket.
    Attachable = int | _HasFd | Callable[[_socket.socket], object]

__all__ = ["Fanout", "Packet", "PacketSocket"]

ETH_P_ALL = 0x0003

# skb->pkt_type, sockaddr_ll.sll_pkttype (include/uapi/linux/if_packet.h)
PACKET_HOST, PACKET_BROADCAST, PACKET_MULTICAST, PACKET_OTHERHOST, PACKET_OUTGOING = range(5)

FANOUT_MODES = {
    "hash": 0,
    "lb": 1,
    "cpu": 2,
    "rollover": 3,
    "rnd": 4,
    "qm": 5,
    "ebpf": 7,
}

_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP = 1
_PACKET_STATISTICS = 6
_PACKET_AUXDATA = 8
_PACKET_VNET_HDR = 15
_PACKET_FANOUT = 18
_PACKET_FANOUT_DATA = 22
_PACKET_IGNORE_OUTGOING = 23
_PACKET_MR_PROMISC = 1
_FANOUT_FLAG_UNIQUEID = 0x2000
_FANOUT_FLAG_IGNORE_OUTGOING = 0x4000
_SO_ATTACH_FILTER = 26
_SO_DETACH_FILTER = 27
_SO_RCVBUFFORCE = 33
_SO_TIMESTAMPNS = 35
_SO_ATTACH_BPF = 50
_TP_STATUS_VLAN_VALID = 0x10
_TP_STATUS_VLAN_TPID_VALID = 0x40

_VNET_HDR = struct.Struct("=BBHHHH")  # struct virtio_net_hdr
_AUXDATA = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata

_libc = ctypes.CDLL(None, use_errno=True)


class Packet:
    """One received frame.

    :ivar data: the frame from the link header on, as on the wire: a VLAN tag that the kernel
        stores outside the frame is reinserted.  Cut at the socket's ``snaplen``.
    :ivar orig_len: bytes on the wire, that tag included.
    :ivar ts_ns: the kernel's timestamp, UNIX time in nanoseconds.
    :ivar direction: PACKET_HOST 0, _BROADCAST 1, _MULTICAST 2, _OTHERHOST 3, _OUTGOING 4.
    :ivar interface: name of the interface.
    :ivar link_type: ARPHRD_* number of the interface.
    :ivar vlan: (TPID, TCI) of the reinserted tag, or None.
    :ivar gso_size: payload bytes per segment of a super-frame, 0 for an ordinary frame; None
        if the socket was created without ``vnet_hdr``.
    :ivar gso_type: VIRTIO_NET_HDR_GSO_*: 0 none, 1 TCPv4, 4 TCPv6, 5 UDP_L4; None likewise.
    """

    __slots__ = (
        "data",
        "direction",
        "gso_size",
        "gso_type",
        "interface",
        "link_type",
        "orig_len",
        "ts_ns",
        "vlan",
    )

    def __init__(self, data: bytes, orig_len: int, ts_ns: int, direction: int) -> None:
        self.data = data
        self.orig_len = orig_len
        self.ts_ns = ts_ns
        self.direction = direction
        self.interface = ""
        self.link_type = 1
        self.vlan: tuple[int, int] | None = None
        self.gso_size: int | None = None
        self.gso_type: int | None = None

    @property
    def ts(self) -> float:
        """UNIX time in seconds."""
        return self.ts_ns / 1e9

    @property
    def outgoing(self) -> bool:
        """Whether the tap saw the frame on its way out."""
        return self.direction == PACKET_OUTGOING

    def __bytes__(self) -> bytes:
        return self.data

    def __len__(self) -> int:
        return self.orig_len

    def __repr__(self) -> str:
        way = "out" if self.outgoing else "in"
        return f"<Packet {self.interface} {way} {self.orig_len} bytes {self.data[:20].hex()}…>"


class PacketSocket(Held):
    """A raw packet socket on one interface, with a program as its filter.

    :param interface: an :class:`Interface`, an ifindex, or None for all interfaces of the
        namespace.  Ifindex 0 is refused: the kernel takes it for "all", but it is a caller's error.
    :param program: the filter: program fd, object with ``fd``, or function called with the socket.
    :param ns: the namespace; default: the interface's, else the calling thread's.
    :param promiscuous: also receive frames for other hosts while the socket is open.
    :param counting: the program only counts and returns 0: keep the receive buffer minimal.
    :param ignore_outgoing: do not receive this host's outgoing frames (Linux 4.20).
    :param rcvbuf: bytes of receive buffer; may exceed the system's limit.
    :param snaplen: maximum number of bytes of a frame that :meth:`recv` returns.
    :param vnet_hdr: receive the GSO size and type of each frame.
    :param gate: start with a filter that drops everything, until :meth:`open_gate`.
    :param protocol: ethertype to receive; 0: only send.
    :raises InputError: the interface no longer exists, or its index is 0.
    :raises AttachError: the kernel refused the program.
    :raises PrivilegeError: without CAP_NET_RAW.
    """

    __slots__ = (
        "_buffer",
        "_drops",
        "_packets",
        "_program",
        "_vnet_hdr",
        "interface",
        "sock",
    )

    def __init__(
        self,
        interface: Interface | int | None,
        program: Attachable | None = None,
        *,
        ns: NetNS | None = None,
        promiscuous: bool = False,
        counting: bool = False,
        ignore_outgoing: bool = False,
        rcvbuf: int | None = None,
        snaplen: int = 65536 + 64,
        vnet_hdr: bool = False,
        gate: bool = False,
        protocol: int = ETH_P_ALL,
    ) -> None:
        index = interface.index if isinstance(interface, Interface) else interface
        if index is not None and index <= 0:
            raise InputError(f"not an interface index: {index}")
        if ns is None and isinstance(interface, Interface):
            ns = interface.ns
        self.interface = interface
        self._vnet_hdr = vnet_hdr
        self._buffer: bytearray | None = None if counting else bytearray(snaplen)
        self._packets = self._drops = 0
        self._program = program
        kind = _socket.SOCK_RAW | _socket.SOCK_CLOEXEC
        try:
            if ns is not None:
                self.sock = ns.socket(_socket.AF_PACKET, kind, 0)
            else:
                self.sock = _socket.socket(_socket.AF_PACKET, kind, 0)
        except PermissionError as error:
            raise PrivilegeError(
                "cannot open a packet socket", why="not permitted", hint="run as root (CAP_NET_RAW)"
            ) from error
        try:
            if counting:
                self.sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVBUF, 0)
            elif rcvbuf is not None:
                self._set_rcvbuf(rcvbuf)
            if gate:
                self._attach_total_filter()
            elif program is not None:
                self._attach(program)
            if not counting:
                self.sock.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
                self.sock.setsockopt(_socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            if vnet_hdr:
                self.sock.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
            if ignore_outgoing:
                self._ignore_outgoing()
            self._bind(index or 0, protocol)
            if promiscuous:
                if index is None:
                    raise InputError("promiscuous mode needs one interface")
                request = struct.pack("=iHH8x", index, _PACKET_MR_PROMISC, 0)
                self.sock.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, request)
        except BaseException:
            self.sock.close()
            raise

    # -- setting up -----------------------------------------------------------------------------

    def _set_rcvbuf(self, size: int) -> None:
        try:
            self.sock.setsockopt(_socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
        except PermissionError:  # without CAP_NET_ADMIN: up to the limit
            self.sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVBUF, size)

    def _ignore_outgoing(self) -> None:
        try:
            self.sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise
            raise UnsupportedError(
                "cannot ignore outgoing packets", why="PACKET_IGNORE_OUTGOING needs Linux 4.20"
            ) from error

    def _attach(self, program: Attachable) -> None:
        if not isinstance(program, int) and callable(program):
            program(self.sock)
            return
        fd = program if isinstance(program, int) else program.fd
        try:
            self.sock.setsockopt(_socket.SOL_SOCKET, _SO_ATTACH_BPF, fd)
        except OSError as error:
            why = errno_text(error.errno or 0)
            if error.errno == errno.EINVAL:
                why = "it is not a program of type SOCKET_FILTER"
            raise AttachError("cannot attach the program to a packet socket", why=why) from error

    def _attach_total_filter(self) -> None:
        """One classic BPF instruction: keep 0 bytes."""
        code = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0), 8)
        fprog = struct.pack("@HP", 1, ctypes.addressof(code))
        self.sock.setsockopt(_socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)

    def _bind(self, index: int, protocol: int) -> None:
        # By index: Python's bind() takes a name and looks its index up again.
        address = struct.pack("=HHi12x", _socket.AF_PACKET, _socket.htons(protocol), index)
        if _libc.bind(self.sock.fileno(), address, len(address)):
            number = ctypes.get_errno()
            if number == errno.ENODEV:
                raise InputError(f"cannot listen on interface {self._label()}", why="it is gone")
            raise BpfkitError(f"cannot listen on interface {self._label()}", why=errno_text(number))

    def _label(self) -> str:
        if isinstance(self.interface, Interface):
            return self.interface.name
        return f"with index {self.interface}" if self.interface else "(all)"

    def open_gate(self) -> None:
        """Replace the filter that drops everything by the program; without one, remove it."""
        if self._program is not None:
            self._attach(self._program)
        else:
            self.sock.setsockopt(_socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)

    # -- using ------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """The socket's file descriptor."""
        return self.sock.fileno()

    def recv(self, timeout: float | None = 0) -> Packet | None:
        """The next packet; None if none arrives within ``timeout`` seconds (None: no limit).

        :raises BpfkitError: the interface is down or was removed (see :meth:`state`).
        """
        if self._buffer is None:
            raise BpfkitError("a counting packet socket stores no packets")
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                n, control, _, address = self.sock.recvmsg_into(
                    [self._buffer], 256, _socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                poll = select.poll()
                poll.register(self.sock.fileno(), select.POLLIN)
                poll.poll(None if left is None else left * 1000)
            except OSError as error:
                if error.errno != errno.ENETDOWN:
                    raise
                raise BpfkitError(
                    f"no more packets from interface {self._label()}", why=f"it is {self.state()}"
                ) from error
            else:
                return self._packet(memoryview(self._buffer)[:n], control, address)

    def _packet(
        self,
        frame: memoryview,
        control: list[tuple[int, int, bytes]],
        address: tuple[str, int, int, int, bytes],
    ) -> Packet:
        gso_size = gso_type = None
        if self._vnet_hdr:
            _, gso_type, _, gso_size, _, _ = _VNET_HDR.unpack_from(frame)
            gso_type &= 0x7F  # the top bit is ECN
            frame = frame[_VNET_HDR.size :]
        data = bytes(frame)
        packet = Packet(data, len(data), 0, address[2])
        packet.interface, packet.link_type = address[0], address[3]
        packet.gso_size, packet.gso_type = gso_size, gso_type
        for level, kind, value in control:
            if level == _SOL_PACKET and kind == _PACKET_AUXDATA:
                status, packet.orig_len, _, _, _, tci, tpid = _AUXDATA.unpack_from(value)
                if status & _TP_STATUS_VLAN_VALID:
                    tpid = tpid if status & _TP_STATUS_VLAN_TPID_VALID else 0x8100
                    packet.vlan = tpid, tci
                    packet.data = data[:12] + struct.pack("!HH", tpid, tci) + data[12:]
                    packet.orig_len += 4
            elif level == _socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
                seconds, nanoseconds = struct.unpack("qq" if len(value) == 16 else "ll", value)
                packet.ts_ns = seconds * 1_000_000_000 + nanoseconds
        return packet

    def __iter__(self) -> Iterator[Packet]:
        """The packets in the queue."""
        while (packet := self.recv(0)) is not None:
            yield packet

    def send(self, frame: bytes) -> None:
        """Send ``frame``, link header included, out of the interface."""
        try:
            self.sock.send(frame)
        except OSError as error:
            raise BpfkitError(
                f"cannot send {count_of(len(frame), 'byte')} on interface {self._label()}",
                why=errno_text(error.errno or 0),
            ) from error

    def statistics(self) -> tuple[int, int]:
        """(packets, drops) since the socket was made.

        ``packets`` are those that the filter passed, dropped ones included; ``drops`` are those of
        them for which the receive buffer had no room.
        """
        answer = self.sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        packets, drops = struct.unpack("=II", answer)  # reading resets the kernel's counters
        self._packets += packets
        self._drops += drops
        return self._packets, self._drops

    def state(self) -> str:
        """The interface's current state: ``"up"``, ``"down"`` or ``"gone"``.

        A socket works again when its interface comes back up, but never again once the interface
        was removed.
        """
        if not isinstance(self.interface, Interface):
            return "up"
        flags = self.interface.current_flags()
        if flags is None:
            return "gone"
        return "up" if flags & 1 else "down"

    def _is_open(self) -> bool:
        return self.sock.fileno() >= 0

    def close(self) -> None:
        """Close the socket, which detaches the program.  Safe to call twice."""
        self.sock.close()

    # -- fanout -----------------------------------------------------------------------------------

    def _join(self, group: int, mode: int, flags: int) -> int:
        """Join fanout group ``group``; the group's number (the kernel's choice with UNIQUEID)."""
        value = group | mode << 16 | flags << 16
        # setsockopt wants a signed int.
        value = value - (1 << 32) if value >= 1 << 31 else value
        self.sock.setsockopt(_SOL_PACKET, _PACKET_FANOUT, value)
        return self.sock.getsockopt(_SOL_PACKET, _PACKET_FANOUT) & 0xFFFF


class Fanout(Held):
    """``count`` packet sockets that share an interface: each packet goes to one of them.

    While the sockets join, a filter drops everything; it is removed when the group is complete and
    has its program, so that no packet is distributed over an incomplete group.

    With mode ``"ebpf"``, ``program`` returns the number of a socket (taken modulo ``count``).  It
    sees the packet before the tap puts the link header back: an incoming packet starts at its
    network header, an outgoing one at its link header (loads relative to ``SKF_NET_OFF`` and
    ``bpf_skb_load_bytes_relative(BPF_HDR_START_NET)`` are right for both).

    :param interface: the interface that they share.
    :param count: 1 to 256.
    :param mode: ``hash``, ``lb``, ``cpu``, ``rollover``, ``rnd``, ``qm`` or ``ebpf``.
    :param program: mode ``ebpf``: the SOCKET_FILTER program that selects the socket, as a
        descriptor or an object with ``fd``.
    :param filters: a filter program for each socket, which runs after the selection; one for all if
        not a list.
    :param ns, promiscuous, counting, rcvbuf: as for :class:`PacketSocket`.
    :param ignore_outgoing: distribute received packets only.
    :raises InputError: unknown mode or a bad count.
    :raises AttachError: the kernel refused the group or the program.
    """

    __slots__ = ("group", "mode", "sockets")

    def __init__(
        self,
        interface: Interface,
        count: int,
        mode: str = "ebpf",
        program: int | _HasFd | None = None,
        *,
        filters: list[Attachable] | Attachable | None = None,
        ns: NetNS | None = None,
        promiscuous: bool = False,
        counting: bool = False,
        ignore_outgoing: bool = False,
        rcvbuf: int | None = None,
    ) -> None:
        if mode not in FANOUT_MODES:
            raise InputError(f"no fanout mode '{mode}'", why="there are " + ", ".join(FANOUT_MODES))
        if not 1 <= count <= 256:
            raise InputError(f"a fanout group has 1 to 256 sockets, not {count}")
        if (mode == "ebpf") != (program is not None):
            raise InputError("fanout mode 'ebpf' requires a program, other modes take none")
        each = filters if isinstance(filters, list) else [filters] * count
        self.mode = mode
        self.group = 0
        self.sockets: list[PacketSocket] = []
        try:
            for number in range(count):
                sock = PacketSocket(
                    interface,
                    each[number],
                    ns=ns,
                    promiscuous=promiscuous,
                    counting=counting,
                    rcvbuf=rcvbuf,
                    gate=True,
                )
                self.sockets.append(sock)
                flags = _FANOUT_FLAG_IGNORE_OUTGOING if ignore_outgoing else 0
                if number == 0:
                    # The kernel picks a free number, so that two processes never share a group.
                    flags |= _FANOUT_FLAG_UNIQUEID
                self.group = sock._join(self.group, FANOUT_MODES[mode], flags)
            if program is not None:
                fd = program if isinstance(program, int) else program.fd
                self.sockets[0].sock.setsockopt(_SOL_PACKET, _PACKET_FANOUT_DATA, fd)
            for sock in self.sockets:
                sock.open_gate()
        except OSError as error:
            self.close()
            raise AttachError(
                f"cannot distribute packets of {interface.name} over {count} sockets (mode {mode})",
                why=errno_text(error.errno or 0),
            ) from error
        except BaseException:
            self.close()
            raise

    def _is_open(self) -> bool:
        return any(sock.sock.fileno() >= 0 for sock in self.sockets)

    def close(self) -> None:
        """Close the sockets; the group ends with the last.  Safe to call twice."""
        for sock in self.sockets:
            sock.close()

    def __iter__(self) -> Iterator[PacketSocket]:
        return iter(self.sockets)

    def __len__(self) -> int:
        return len(self.sockets)
