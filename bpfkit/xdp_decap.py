# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.xdp_decap: decapsulates xdp_lb's packets at a backend.

The C side is bpf_c/xdp/xdp_decap.bpf.c.  The demo: datagrams in all four kinds of IP in IP reach a
socket whose address is on lo only; those of an unknown tunnel do not.
"""

from __future__ import annotations

import _socket
import struct

from bpfkit.app.lifecycle import main
from bpfkit.app.xdp import XdpApp
from bpfkit.core.errors import UsageError
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable

    from bpfkit.core.object import Object
    from bpfkit.net.links.lab import Lab
    from bpfkit.show.rows import Row, Verdict

VIPS = ("198.51.100.1", "2001:db8:51::1")
CLIENTS = ("203.0.113.5", "2001:db8:113::5")
ENDS = (("10.77.0.1", "10.77.0.2"), ("fd77::1", "fd77::2"))
STRANGERS = ("10.77.0.9", "fd77::9")
PORT = 5300
_ROWS = ("passed", "taken off IPv4", "taken off IPv6", "dropped")
_COUNT = 5


class XdpDecap(XdpApp):
    """Decapsulates IP in IP from a load balancer, without a tunnel device."""

    name = "xdp_decap"
    expects = (
        "datagrams come in IP in IP from the balancer, and from a stranger, whose are to "
        "stay packed"
    )
    source = "xdp/xdp_decap.bpf.c"
    counters = ("packets", "bytes")
    knows_l2_len = False

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        text = "outer addresses: the balancer's and this host's; repeat for more"
        parser.add_argument("--tunnel", metavar="A,B", action="append", help=text)

    def check_options(self) -> None:
        from bpfkit.net.packets.addresses import host_address, mapped

        super().check_options()
        options = self.options
        if options.interface is None and options.pcap is None:
            if options.tunnel:
                raise UsageError("--tunnel needs --interface", why="the demo has its own tunnels")
            options.tunnel = [",".join(ends) for ends in ENDS]
        elif not options.tunnel:
            raise UsageError("--tunnel is missing", why="senders must be known")
        self.tunnels: list[bytes] = []
        for text in options.tunnel:
            try:
                first, second = map(host_address, text.split(","))
                if (":" in first) != (":" in second):
                    raise ValueError("the addresses are of different families")
            except ValueError as error:
                why = str(error) if "unpack" not in str(error) else "BALANCER,OWN is expected"
                raise UsageError(f"--tunnel {text}: {why}") from None
            self.tunnels.append(mapped(first) + mapped(second))

    def build_lab(self) -> Lab:
        from bpfkit.net.links.lab import pair_lab

        lab = pair_lab(offloads=False)
        for vip, size in zip(VIPS, (32, 128), strict=True):
            lab.address("server:lo", f"{vip}/{size}")
        lab.route("server", "default", via="10.77.0.1")
        lab.route("server", "default6", via="fd77::1")
        return lab

    def prepare(self, loaded: Object) -> None:
        #: (inner family, outer family, from a stranger) -> [sent, arrived]
        self.arrived: dict[tuple[int, int, bool], list[int]] = {}
        for tunnel in self.tunnels:
            loaded["tunnels"][tunnel] = 1

    def rows(self) -> list[Row]:
        """A row per result."""
        return [
            {"action": _ROWS[i], "packets": sums.packets, "bytes": sums.bytes}
            for i, sums in self.object["rows"].sums()
        ]

    # -- demo

    def demo(self) -> None:
        """Datagrams in each kind of tunnel, and from a stranger."""
        from itertools import product

        from bpfkit.net.packets.frames import send_frames

        client, server = self.lab["client"], self.lab["server"]
        for inner in (0, 1):
            family = _socket.AF_INET6 if inner else _socket.AF_INET
            receiver = server.socket(family, _socket.SOCK_DGRAM)
            try:
                receiver.bind((VIPS[inner], PORT))
                for outer, strange in product((0, 1), (False, True)):
                    tally = self.arrived.setdefault((inner, outer, strange), [0, 0])
                    for number in range(_COUNT):
                        body = struct.pack("!BBBB", inner, outer, strange, number)
                        frame = self._frame(inner, outer, strange, body)
                        send_frames("eth0", [frame], ns=client)
                        tally[0] += 1
                        tally[1] += _received(receiver, body, 0.01 if strange else 1.0)
            finally:
                receiver.close()

    def _frame(self, inner: int, outer: int, strange: bool, body: bytes, *vlans: int) -> bytes:
        from bpfkit.net.packets.frames import ethernet, ip_packet

        to, by = self.lab.lladdr("server:eth0"), self.lab.lladdr("client:eth0")
        balancer, own = ENDS[outer]
        source = STRANGERS[outer] if strange else balancer
        packet = ip_packet(source, own, 41 if inner else 4, _datagram(inner, body), df=True)
        return ethernet(to, by, packet, vlans=vlans)

    def conclusion(self, rows: list[Row]) -> str:
        taken = sum(row["packets"] for row in rows if row["action"].startswith("taken off"))
        return (
            f"seen: {count_of(taken, 'outer header')} taken off; a stranger's packets passed "
            "unchanged"
        )

    def verify(self) -> Iterable[Verdict]:
        from bpfkit.net.packets.capture import Capture
        from bpfkit.net.packets.frames import send_frames

        for (inner, outer, strange), (sent, arrived) in self.arrived.items():
            words = f"IPv{6 if inner else 4} in IPv{6 if outer else 4}"
            if strange:
                yield arrived == 0, f"{words} from a stranger: {arrived} of {sent} arrived"
            else:
                yield arrived == sent, f"{words}: {arrived} of {count_of(sent, 'datagram')} arrived"
        for outer in (0, 1):
            frame = self._frame(0, outer, False, b"tagged", 5)
            with Capture("eth0", ns=self.lab["server"], outgoing=False) as capture:
                send_frames("eth0", [frame], ns=self.lab["client"])
                seen = capture.wait(where=lambda p: p.data.endswith(b"tagged"))
            good = seen[0].data == frame[:16] + b"\x08\x00" + _datagram(0, b"tagged")
            yield good, f"a tagged IPv4 in IPv{6 if outer else 4} packet keeps its tag"


def _datagram(inner: int, body: bytes) -> bytes:
    """From a client to the VIP, without a tunnel."""
    from bpfkit.net.packets.frames import udp_packet

    return udp_packet(CLIENTS[inner], VIPS[inner], body, ports=(4000, PORT), df=True)


def _received(sock: _socket.socket, body: bytes, timeout: float) -> bool:
    """Whether this datagram arrives within ``timeout`` seconds."""
    from select import select

    return bool(select([sock], [], [], timeout)[0]) and sock.recv(100) == body


if __name__ == "__main__":
    raise SystemExit(main(XdpDecap))
