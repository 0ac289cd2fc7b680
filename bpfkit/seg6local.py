# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.seg6local: SRv6 segments that are programs.

The C side is bpf_c/lwt/seg6local.bpf.c.  In the demo a client sends IPv6 to a server through
segments of a router: one rewrites the segment routing header's tag, the other takes header and
outer packet off (End.DT6).  A capture at the server shows what arrives.
"""

from __future__ import annotations

from bpfkit.app.lifecycle import main
from bpfkit.app.namespace import NamespaceApp
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from bpfkit.net.links.lab import Lab
    from bpfkit.show.rows import Row, Verdict

FUNCTIONS = ("end_tag", "end_dt6")
#: The router's segments, and a last one behind End.DT6 (which wants segments left).
SEGMENTS = {"end_tag": "fc00:b::1", "end_dt6": "fc00:b::2"}
LAST = "fc00:b::3"
SERVER, CLIENT_HOP = "fd77:2::1", "fd77:1::fe"
SOURCE = "fd77:1::1"
DATAGRAMS = 3


class Seg6Local(NamespaceApp):
    """SRv6 segments as programs (End.BPF): a tag rewritten, End.DT6 decapsulation."""

    name = "seg6local"
    expects = (
        "datagrams go through segment fc00:b::1, which writes a tag, then fc00:b::2, "
        "which unpacks them"
    )
    source = "lwt/seg6local.bpf.c"
    has_live_view = False
    lab_namespace = "router"

    def check_options(self) -> None:
        super().check_options()
        if self.options.netns is not None:
            from bpfkit.core.errors import UsageError

            raise UsageError("seg6local works in its own lab only", why="it needs the segments")

    def build_lab(self) -> Lab:
        from bpfkit.net.links.lab import router_lab

        lab = router_lab()
        for ns, devices in lab.devices.items():
            for device in ("all", *devices):
                lab.sysctl(ns, f"net.ipv6.conf.{device}.seg6_enabled", 1)
        return lab

    def setup(self) -> None:
        from bpfkit.net.attach.route import attach_route

        self.object = self.load()
        self.arrived: dict[str, list[bytes]] = {name: [] for name in FUNCTIONS}
        self.sent = 0
        for name, segment in SEGMENTS.items():
            program = self.object.programs[name]
            route = f"{segment}/128"
            self.keep(
                attach_route(program, route, ns=self.namespace, device="right", recorded=False)
            )

    def demo(self) -> None:
        """Datagrams through one segment, then through the other; with and without a VLAN tag."""
        import _socket
        from time import monotonic, sleep

        from bpfkit.net.packets.capture import Capture
        from bpfkit.net.packets.frames import PRIORITY, send_frames, tag, udp_frame

        client = self.lab["client"]
        ends = self.lab.lladdr("router:left"), self.lab.lladdr("client:eth0")
        sender = client.socket(_socket.AF_INET6, _socket.SOCK_DGRAM)
        try:
            for name, mode, segments in (
                ("end_tag", "inline", SEGMENTS["end_tag"]),
                # In the header's order, as pyroute2 takes them: the last segment comes first.
                ("end_dt6", "encap", f"{LAST},{SEGMENTS['end_dt6']}"),
            ):
                self.steer(mode, segments)
                text = name.encode()
                packet = udp_frame(*ends, SOURCE, SERVER, text)
                frame = tag(steered(packet, mode, segments), PRIORITY)
                with Capture("eth0", ns=self.lab["server"], outgoing=False) as capture:
                    for _ in range(DATAGRAMS):
                        sender.sendto(text, (SERVER, 9))
                    # As many with a priority tag in front, made by hand.
                    send_frames("eth0", [frame] * DATAGRAMS, ns=client)
                    deadline = monotonic() + 5
                    found: list[bytes] = []
                    while len(found) < 2 * DATAGRAMS and monotonic() < deadline:
                        sleep(0.005)
                        found = [p.data for p in capture.packets if p.data.endswith(text)]
                self.arrived[name] += found
        finally:
            sender.close()
        self.sent += 2 * DATAGRAMS

    def steer(self, mode: str, segments: str) -> None:
        """Lead the client's route to the server through the segments."""
        from bpfkit.net.links.netlink import with_iproute

        route = {
            "dst": f"{SERVER}/128",
            "gateway": CLIENT_HOP,
            "oif": self.lab.interface("client:eth0").index,
            "family": 10,
            "encap": {"type": "seg6", "mode": mode, "segs": segments},
        }
        what = "cannot add a route with SRv6 encapsulation (CONFIG_IPV6_SEG6_LWTUNNEL)"
        with_iproute(self.lab["client"], what, lambda ipr: ipr.route("replace", **route))

    def rows(self) -> list[Row]:
        rows = dict(self.object["rows"].sums())
        return [
            {
                "segment": SEGMENTS[name],
                "function": name,
                "packets": rows[number].packets,
                "failed": rows[number].failed,
            }
            for number, name in enumerate(FUNCTIONS)
        ]

    def conclusion(self, rows: list[Row]) -> str:
        packets = sum(row["packets"] for row in rows)
        failed = sum(row["failed"] for row in rows)
        return (
            f"seen: {count_of(packets, 'packet')} at the two segments, {failed} failed: the "
            "route of a segment's address runs its program"
        )

    def verify(self) -> Iterable[Verdict]:
        for row in self.rows():
            name = row["function"]
            fine = row["packets"] == self.sent and not row["failed"]
            text = f"{self.sent} sent, half of them with a priority tag; {row['packets']} seen"
            yield fine, f"{name}: {text}, {row['failed']} failed"
        # Ethernet 14, IPv6 40 bytes: then the segment routing header, its tag at 6.
        tags = [frame[60:62].hex() for frame in self.arrived["end_tag"] if frame[20] == 43]
        fine = tags == ["beef"] * self.sent
        yield fine, f"end_tag: tags of the {len(tags)} that arrived with SRH: {', '.join(tags)}"
        plain = [frame for frame in self.arrived["end_dt6"] if frame[20] == 17]
        fine = len(plain) == len(self.arrived["end_dt6"]) == self.sent
        yield fine, f"end_dt6: {len(plain)} of {self.sent} arrived as plain IPv6 and UDP"


def steered(frame: bytes, mode: str, segments: str) -> bytes:
    """``frame``, IPv6 from SOURCE to SERVER, with the segment routing header of the client's route.

    :param mode: ``inline``: the header is inserted, with the destination as its last segment;
        ``encap``: the packet gets an outer IPv6 header and the segment routing header.
    :param segments: the last segment first, as for the route.
    """
    from struct import pack

    from bpfkit.net.packets.addresses import packed
    from bpfkit.net.packets.frames import ip_packet

    packet = frame[14:]
    hops = segments.split(",")
    following = packet
    inside = 41
    if mode == "inline":
        hops.insert(0, SERVER)
        inside, following = packet[6], packet[40:]
    left = len(hops) - 1
    header = pack("!BBBBBBH", inside, 2 * len(hops), 4, left, left, 0, 0)
    body = header + b"".join(map(packed, hops)) + following
    return frame[:14] + ip_packet(SOURCE, hops[left], 43, body)


if __name__ == "__main__":
    raise SystemExit(main(Seg6Local))
