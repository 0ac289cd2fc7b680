# SPDX-License-Identifier: Apache-2.0
"""Captures packets in a namespace.

::

    with Capture("eth0", ns=lab["client"]) as capture:
        ping("10.77.0.2", count=3, ns=lab["client"])
    for packet in capture.packets:
        print(packet.ts, packet.outgoing, packet.data.hex())
    capture.write("trace.pcapng")

The tap is the same as tcpdump's: after XDP and before tc ingress on the way in, after tc egress on
the way out.  VLAN tags that the kernel stores outside a packet are reinserted.
"""

from __future__ import annotations

import time

from bpfkit.core.closing import Closing
from bpfkit.core.errors import BpfkitError
from bpfkit.net.links.interfaces import Interface
from bpfkit.net.packets.packet_socket import PacketSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from bpfkit.net.links.netns import NetNS
    from bpfkit.net.packets.packet_socket import Attachable, Packet

__all__ = ["Capture"]


class Capture(Closing):
    """A capture, from its creation until :meth:`stop` or the end of the with-block.

    Packets stay in the socket's buffer until they are read; nothing runs in the background.
    :attr:`drops` counts the packets for which the buffer had no room.

    :param interface: a name, an :class:`Interface`, or None for all interfaces of the namespace
        (``packet.interface`` has the name).
    :param ns: the namespace; default: the interface's, else the calling thread's.
    :param program: a SOCKET_FILTER program; its return value is the number of bytes to keep.
    :param incoming, outgoing: which directions to capture.  On ``lo`` every packet is seen twice,
        once in each direction.
    :param promiscuous: also capture frames for other hosts.
    :param snaplen: maximum number of bytes kept of each packet.
    :param buffer: bytes of socket buffer (a packet takes about twice its size).
    :param gso: record each super-frame's segment size (``packet.gso_size``).

    :raises InputError: no such interface.
    :raises PrivilegeError: without CAP_NET_RAW.
    """

    def __init__(
        self,
        interface: str | Interface | None = None,
        *,
        ns: NetNS | None = None,
        program: Attachable | None = None,
        incoming: bool = True,
        outgoing: bool = True,
        promiscuous: bool = False,
        snaplen: int = 65536 + 64,
        buffer: int = 64 << 20,
        gso: bool = False,
    ) -> None:
        if isinstance(interface, str):
            interface = Interface.find(interface, ns)
        self._incoming = incoming
        self._outgoing = outgoing
        self._taken: list[Packet] = []
        self._drops = 0
        self._socket: PacketSocket | None = PacketSocket(
            interface,
            program,
            ns=ns,
            promiscuous=promiscuous,
            ignore_outgoing=not outgoing,
            rcvbuf=buffer,
            snaplen=snaplen,
            vnet_hdr=gso,
        )

    def _drain(self) -> None:
        if self._socket is None:
            return
        for packet in self._socket:
            if packet.outgoing or self._incoming:
                self._taken.append(packet)
        self._drops = self._socket.statistics()[1]

    @property
    def packets(self) -> list[Packet]:
        """The packets captured so far, in order."""
        self._drain()
        return self._taken

    @property
    def drops(self) -> int:
        """Packets that are missing because the buffer was full."""
        self._drain()
        return self._drops

    def wait(
        self, count: int = 1, *, timeout: float = 2.0, where: Callable[[Packet], bool] | None = None
    ) -> list[Packet]:
        """Wait for ``count`` packets (for which ``where`` is true), and return them.

        :raises BpfkitError: fewer arrived within ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            found = [packet for packet in self.packets if where is None or where(packet)]
            if len(found) >= count:
                return found
            left = deadline - time.monotonic()
            if left <= 0 or self._socket is None:
                raise BpfkitError(
                    f"{len(found)} of {count} packets captured", why=f"waited {timeout} s"
                )
            packet = self._socket.recv(left)
            if packet is not None and (packet.outgoing or self._incoming):
                self._taken.append(packet)

    def clear(self) -> None:
        """Discard the packets captured so far."""
        self._drain()
        self._taken = []

    def write(self, path: str | os.PathLike[str]) -> int:
        """Write the packets to a file: pcap if its name ends in ``.pcap``, else pcapng.

        Only pcapng has interfaces and directions.

        :returns: the number of packets.
        :raises BpfkitError: pcap, and the packets have different link types.
        """
        import os

        from bpfkit.net.packets.pcap import PcapngWriter, PcapWriter

        packets = self.packets
        if os.fspath(path).endswith(".pcap"):
            kinds = {_linktype(packet) for packet in packets} or {1}
            if len(kinds) > 1:
                raise BpfkitError(
                    f"cannot write {os.fspath(path)}",
                    why="pcap has one link type",
                )
            with PcapWriter(path, linktype=kinds.pop()) as plain:
                for packet in packets:
                    plain.write(packet.data, packet.ts_ns, packet.orig_len)
            return len(packets)
        numbers: dict[tuple[str, int], int] = {}
        with PcapngWriter(path) as writer:
            for packet in packets:
                interface = packet.interface, _linktype(packet)
                if interface not in numbers:
                    numbers[interface] = writer.interface(*interface)
                writer.write(
                    packet.data,
                    packet.ts_ns,
                    packet.orig_len,
                    interface=numbers[interface],
                    outgoing=packet.outgoing,
                )
        return len(packets)

    def stop(self) -> list[Packet]:
        """Read the remaining packets and close the socket; all packets."""
        if self._socket is not None:
            try:
                self._drain()
            finally:
                self._socket.close()
                self._socket = None
        return self._taken

    def close(self) -> None:
        """Like :meth:`stop`, without a result."""
        self.stop()

    def __iter__(self) -> Iterator[Packet]:
        return iter(self.packets)

    def __len__(self) -> int:
        return len(self.packets)

    def __repr__(self) -> str:
        from bpfkit.core.words import count_of

        return f"<Capture {count_of(len(self._taken), 'packet')}>"


def _linktype(packet: Packet) -> int:
    """LINKTYPE_ETHERNET, or LINKTYPE_RAW for devices without a link header."""
    return 1 if packet.link_type in (1, 772) else 101
