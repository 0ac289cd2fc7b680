# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.lwt_xmit: IP in IP by a route, without a tunnel device.

The C side is bpf_c/lwt/lwt_xmit.bpf.c.  In the demo a client's routes to two networks behind the
server put an outer header in front: of IPv4 in one round, of IPv6 in the next.  A capture at the
server shows what arrives.
"""

from __future__ import annotations

from bpfkit.app.lifecycle import main
from bpfkit.app.route import RouteApp, forwarding_client
from bpfkit.core.errors import InputError, UsageError
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable

    from bpfkit.net.links.lab import Lab
    from bpfkit.show.rows import Row, Verdict

#: The networks behind the server: the host that the demo sends to, the client's next hop.
INNER = {"10.78.0.1": ("10.78.0.0/24", "10.77.1.254"), "fd78::1": ("fd78::/64", "fd77:1::fe")}
OUTER = (("10.77.1.1", "10.77.2.1"), ("fd77:1::1", "fd77:2::1"))
DATAGRAMS = 3
HELLO = b"hello from inside"


class LwtXmit(RouteApp):
    """A program on a route's transmission: IP in IP without a tunnel device."""

    name = "lwt_xmit"
    expects = (
        "datagrams to two networks leave by a route that wraps them in IPv4, the next round in IPv6"
    )
    source = "lwt/lwt_xmit.bpf.c"
    lab_namespace = "client"
    acted = "encapsulated"
    counters = ("packets", "encapsulated", "bytes")
    headroom = 40

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        text = "with --netns: the tunnel's outer addresses, local and remote"
        parser.add_argument("--tunnel", nargs=2, metavar=("SRC", "DST"), help=text)

    def check_options(self) -> None:
        super().check_options()
        if (self.options.netns is None) != (self.options.tunnel is None):
            raise UsageError("--netns and --tunnel belong together", why="the tunnel needs both")

    def build_lab(self) -> Lab:
        return forwarding_client(super().build_lab())

    def setup(self) -> None:
        self.object = self.load()
        self.arrived: dict[tuple[int, int], list[bytes]] = {}
        self.round = 0
        self.set_tunnel_ends(*(self.options.tunnel or OUTER[0]))
        self.attach_routes()

    def routes(self) -> list[tuple[str, str, str]]:
        return [(prefix, "eth0", via) for prefix, via in INNER.values()]

    def set_tunnel_ends(self, src: str, dst: str) -> None:
        """Set the outer addresses, from the next packet on."""
        from ipaddress import ip_address

        try:
            ends = ip_address(src), ip_address(dst)
        except ValueError as error:
            raise InputError(f"--tunnel {src} {dst}", why=str(error)) from None
        if ends[0].version != ends[1].version:
            raise InputError(f"--tunnel {src} {dst}", why="one is IPv4, the other IPv6")
        packed = [list(end.packed.ljust(16, b"\0")) for end in ends]
        self.object["ends"][0] = {"src": packed[0], "dst": packed[1], "family": ends[0].version}

    def demo(self) -> None:
        """Datagrams to both networks, by the IPv4 and the IPv6 tunnel in turn."""
        from bpfkit.net.packets.capture import Capture

        outer = self.round % 2
        self.round += 1
        self.set_tunnel_ends(*OUTER[outer])
        version = 6 if outer else 4
        with Capture("eth0", ns=self.lab["server"], outgoing=False) as capture:
            for host in INNER:
                self.send(host)
                self.send_tagged(host)
            found = capture.wait(
                4 * DATAGRAMS, timeout=5, where=lambda p: inner(unfragmented(p.data))[0] == version
            )
        for packet in found:
            frame = unfragmented(packet.data)
            _, wrapped = inner(frame)
            self.arrived.setdefault((version, wrapped[0] >> 4), []).append(frame)

    def send(self, host: str) -> None:
        """Datagrams to a port without a listener."""
        import _socket

        family = _socket.AF_INET6 if ":" in host else _socket.AF_INET
        sock = self.lab["client"].socket(family, _socket.SOCK_DGRAM)
        try:
            for _ in range(DATAGRAMS):
                sock.sendto(HELLO, (host, 9))
        finally:
            sock.close()

    def send_tagged(self, host: str) -> None:
        """As many in frames with a priority tag, for the client to forward into the tunnel."""
        from bpfkit.net.packets.frames import PRIORITY, send_frames, udp_frame

        ends = self.lab.lladdr("client:eth0"), self.lab.lladdr("router:left")
        source = "fd77:1::77" if ":" in host else "10.77.1.77"
        frame = udp_frame(*ends, source, host, HELLO, vlans=[PRIORITY])
        send_frames("left", [frame] * DATAGRAMS, ns=self.lab["router"])

    def conclusion(self, rows: list[Row]) -> str:
        wrapped = sum(row["encapsulated"] for row in rows)
        return (
            f"seen: {count_of(wrapped, 'datagram')} got an outer IP header at the route: IP in "
            "IP without a tunnel device"
        )

    def verify(self) -> Iterable[Verdict]:
        rounds = {4: (self.round + 1) // 2, 6: self.round // 2}
        for version, times in rounds.items():
            for inside in (4, 6):
                frames = self.arrived.get((version, inside), [])
                good = sum(sound(frame) for frame in frames)
                sent = 2 * DATAGRAMS * times  # half of them came to the client with a priority tag
                text = f"IPv{inside} in IPv{version}: {good} of {sent} arrived so"
                yield good == len(frames) == sent, text
        made = 4 * DATAGRAMS * self.round
        row = next((row for row in self.rows() if row["proto"] == "udp"), {"encapsulated": 0})
        got = row["encapsulated"]
        text = f"udp: {made} sent, half of them with a priority tag, {got} encapsulated"
        yield got == made, text


def unfragmented(frame: bytes) -> bytes:
    """``frame`` without the header of an atomic fragment, which is a whole packet (RFC 6946).

    Linux 6.1 makes such ones of what it forwards from IPv4 into IPv6; 6.18 does not.
    """
    from struct import pack, unpack

    if frame[12:14] != b"\x86\xdd" or frame[20] != 44 or frame[56:58] != b"\0\0":
        return frame
    size = unpack("!H", frame[18:20])[0] - 8
    return frame[:18] + pack("!HB", size, frame[54]) + frame[21:54] + frame[62:]


def inner(frame: bytes) -> tuple[int, bytes]:
    """(version of the outer header, the packet in it) of a frame; (0, b"") if it is no IP in IP."""
    kind = frame[12:14]
    if kind == b"\x08\x00" and frame[23] in (4, 41):
        return 4, frame[14 + 20 :]
    if kind == b"\x86\xdd" and frame[20] in (4, 41):
        return 6, frame[14 + 40 :]
    return 0, b""


def sound(frame: bytes) -> bool:
    """Outer addresses, checksum, length and protocol are right; the payload is the demo's."""
    from ipaddress import ip_address
    from struct import unpack

    version, wrapped = inner(frame)
    src, dst = (ip_address(end).packed for end in OUTER[version == 6])
    protocol = 4 if wrapped[0] >> 4 == 4 else 41
    whole = wrapped.endswith(HELLO)
    if version == 6:
        length = unpack("!H", frame[18:20])[0] == len(wrapped)
        return whole and length and frame[20] == protocol and frame[22:54] == src + dst
    total = sum(unpack("!10H", frame[14:34]))
    length = unpack("!H", frame[16:18])[0] == len(wrapped) + 20
    checksum = total % 0xFFFF == 0
    return whole and length and checksum and frame[23] == protocol and frame[26:34] == src + dst


if __name__ == "__main__":
    raise SystemExit(main(LwtXmit))
