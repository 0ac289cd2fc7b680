# SPDX-License-Identifier: Apache-2.0
"""Capture packets in a namespace and have them as objects.

::

    with Capture("eth0", ns=lab["client"]) as capture:
        ping("10.77.0.2", count=3, ns=lab["client"])
    for packet in capture.packets:
        print(packet.ts, packet.outgoing, packet.data.hex())
    capture.write("trace.pcapng")

The tap is where tcpdump's is: behind XDP and before tc ingress on the way in, behind tc egress on
the way out.  VLAN tags that the kernel keeps beside a packet are put back in.
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
    """Captures from the moment it is made until :meth:`stop` (or the end of its with-block).

    Packets wait in the socket's buffer until they are looked at; nothing runs in the background.
    What did not fit is never silent: see :attr:`drops`.

    :param interface: a name, an :class:`Interface`, or None for all interfaces of the namespace
        (tell them apart by ``packet.interface``).
    :param ns: the namespace; default: the interface's, else the calling thread's.
    :param program: a SOCKET_FILTER program; it sees each packet, and what it returns is how many
        bytes of it are kept.
    :param incoming, outgoing: which directions to keep.  On ``lo`` every packet is seen twice,
        once each way.
    :param promiscuous: frames for others too.
    :param snaplen: bytes kept of each.
    :param buffer: bytes of socket buffer (the kernel counts about twice a packet's size).
    :param gso: learn each super-frame's segment size (``packet.gso_size``).

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
        """What was captured so far, in the order it was seen."""
        self._drain()
        return self._taken

    @property
    def drops(self) -> int:
        """Packets that found the buffer full and are missing."""
        self._drain()
        return self._drops

    def wait(
        self, count: int = 1, *, timeout: float = 2.0, where: Callable[[Packet], bool] | None = None
    ) -> list[Packet]:
        """Wait until ``count`` packets (for which ``where`` is true) are there; those.

        :raises BpfkitError: not within ``timeout`` seconds.
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
        """Forget what was captured so far."""
        self._drain()
        self._taken = []

    def write(self, path: str | os.PathLike[str]) -> int:
        """Write the packets to a file, pcapng or (by its name ``*.pcap``) pcap; how many.

        Interfaces and directions are kept in pcapng only.

        :raises BpfkitError: pcap, and the packets are of different link types.
        """
        import os

        from bpfkit.net.packets.pcap import PcapngWriter, PcapWriter

        packets = self.packets
        if os.fspath(path).endswith(".pcap"):
            kinds = {_linktype(packet) for packet in packets} or {1}
            if len(kinds) > 1:
                raise BpfkitError(f"cannot write {os.fspath(path)}", why="pcap has one link type")
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
        """Take what is left and close the socket; the packets."""
        if self._socket is not None:
            try:
                self._drain()
            finally:
                self._socket.close()
                self._socket = None
        return self._taken

    def close(self) -> None:
        """The same without the packets."""
        self.stop()

    def __iter__(self) -> Iterator[Packet]:
        return iter(self.packets)

    def __len__(self) -> int:
        return len(self.packets)

    def __repr__(self) -> str:
        return f"<Capture {len(self._taken)} packets>"


def _linktype(packet: Packet) -> int:
    """LINKTYPE_ETHERNET, or LINKTYPE_RAW of devices without a link header."""
    return 1 if packet.link_type in (1, 772) else 101
