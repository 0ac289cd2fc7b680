# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.flow_dissector: a flow dissector for a small tunnel, shown by packet fanout.

The C side is bpf_c/misc/flow_dissector.bpf.c.  The demo sends packets of many flows through the
tunnel to a namespace where four packet sockets share an interface by flow hash: first with the
kernel's own dissector, which sees a single flow, then with the program.  Rows of the demo:
``traffic, dissector, sockets`` (packets that each socket got); with ``--netns``: ``kind, packets``.
"""

from __future__ import annotations

from struct import pack

from bpfkit.app.lifecycle import main
from bpfkit.app.namespace import NamespaceApp
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from bpfkit.show.rows import Row, Verdict

KINDS = ("plain", "tunnel IPv4", "tunnel IPv6", "fragment", "left to the kernel")
PROTOCOL = 253
FLOWS, SOCKETS = 64, 4
VLAN = 42
#: IP version -> source and destination address, outer and inner.
ENDS = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}


class FlowDissector(NamespaceApp):
    """A custom flow dissector: a tunnel's inner flows spread over packet sockets."""

    name = "flow_dissector"
    expects = (
        "64 packets of 16 flows in each tunnel go to 4 sockets: without the program, "
        "with it, without it"
    )
    source = "misc/flow_dissector.bpf.c"
    has_live_view = False
    demo_rounds = 1

    def setup(self) -> None:
        self.object = self.load(protocol=PROTOCOL)
        self.splits: list[Row] = []
        if not self.place.has_lab:
            self.attach_dissector()

    def attach_dissector(self) -> None:
        self.link = self.keep(self.object.programs["dissect"].attach_netns(self.namespace.fd))

    def demo(self) -> None:
        """The same packets without the program, with it, and without it again."""
        rows = self.split("kernel")
        self.attach_dissector()
        rows += self.split("bpf")
        self.link.close()
        rows += self.split("kernel again")
        self.splits = rows

    def split(self, dissector: str) -> list[Row]:
        """How the packets of each kind spread over the sockets."""
        rows = []
        for traffic, outer, inner, vlans in (
            ("IPv4 in IPv4", 4, 4, ()),
            ("IPv6 in IPv4", 4, 6, ()),
            ("IPv4 in IPv6", 6, 4, ()),
            ("IPv6 in IPv6 in a VLAN", 6, 6, (VLAN,)),
        ):
            frames = [frame(outer, inner, vlans, port) for port in range(1000, 1000 + FLOWS)]
            got = self.received(frames)
            rows.append({"traffic": traffic, "dissector": dissector, "sockets": got})
        return rows

    def received(self, frames: list[bytes]) -> list[int]:
        """How many of the frames each socket of the group got."""
        from time import monotonic, sleep

        from bpfkit.net.packets.packet_socket import Fanout, PacketSocket

        there, here = self.lab.interface("client:eth0"), self.lab.interface("server:eth0")
        got = [0] * SOCKETS
        group = Fanout(here, SOCKETS, "hash", ignore_outgoing=True)
        sender = PacketSocket(there, protocol=0)
        try:
            for one in frames:
                sender.send(one)
            deadline = monotonic() + 5
            while sum(got) < len(frames) and monotonic() < deadline:
                for number, sock in enumerate(group):
                    got[number] += sum(packet.data in frames for packet in sock)
                sleep(0.002)
        finally:
            sender.close()
            group.close()
        return got

    def rows(self) -> list[Row]:
        return self.splits if self.place.has_lab else self.counted()

    def counted(self) -> list[Row]:
        """Packets by the program's result."""
        seen = self.object["seen"]
        return [{"kind": kind, "packets": int(seen.sum(i))} for i, kind in enumerate(KINDS)]

    def conclusion(self, rows: list[Row]) -> str:
        spread = [row for row in rows if row["dissector"] == "bpf"]
        used = min((sum(map(bool, row["sockets"])) for row in spread), default=0)
        return (
            f"seen: with the program the inner flows use {used} of {SOCKETS} sockets; the "
            "kernel alone saw one tunnel, one flow"
        )

    def verify(self) -> Iterable[Verdict]:
        for row in self.splits:
            got = row["sockets"]
            used = sum(map(bool, got))
            text = f"{row['traffic']}, {row['dissector']} dissector: {FLOWS} flows spread {got}"
            whole = sum(got) == FLOWS
            yield whole and (used == SOCKETS if row["dissector"] == "bpf" else used == 1), text
        counted = {row["kind"]: row["packets"] for row in self.counted()}
        for kind in ("tunnel IPv4", "tunnel IPv6"):
            fine = counted[kind] >= 2 * FLOWS
            yield fine, f"{kind}: the program dissected {count_of(counted[kind], 'packet')}"


def frame(outer: int, inner: int, vlans: tuple[int, ...], port: int) -> bytes:
    """A UDP datagram from ``port`` in the tunnel: Ethernet, IP ``outer``, tunnel, IP ``inner``."""
    from bpfkit.net.packets.frames import BROADCAST, ethernet, ip_packet, udp_packet

    head = pack("!B3xI", 4 if inner == 4 else 41, 7)
    body = head + udp_packet(*ENDS[inner], b"flow", ports=(port, 9))
    packet = ip_packet(*ENDS[outer], PROTOCOL, body)
    return ethernet(BROADCAST, "02:00:00:00:00:01", packet, vlans=vlans)


if __name__ == "__main__":
    raise SystemExit(main(FlowDissector))
