# SPDX-License-Identifier: Apache-2.0
"""What is tried against xdp_firewall in its demo, and what must come of it.

::

    client 10.77.0.1 192.0.2.7 192.0.2.9  ── eth0 ─ eth0 [xdp_firewall] ──  server 10.77.0.2
           fd77::1 2001:db8::7 2001:db8:9::9                                       fd77::2

Every observation comes from outside the firewall: an answer that came or did not, a frame that a
capture behind XDP saw or did not.
"""

from __future__ import annotations

import os
import struct
from _socket import AF_INET, AF_INET6, inet_pton

from bpfkit.core.errors import BpfkitError
from bpfkit.net.links.lab import Lab, pair_lab
from bpfkit.net.packets.capture import Capture
from bpfkit.net.traffic.probes import Listener, tcp_answers
from bpfkit.net.traffic.report import ping, udp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from bpfkit.app.events import Channel
    from bpfkit.show.rows import Verdict
    from bpfkit.xdp_firewall.control import Firewall
    from bpfkit.xdp_firewall.events import DropReader

__all__ = ["Play", "firewall_lab"]

_SOURCES = ("192.0.2.7", "192.0.2.9", "2001:db8::7", "2001:db8:9::9")
#: Source -> does it get in, by the demo's rules.
_PINGS = {
    "10.77.0.1": True,
    "192.0.2.9": False,
    "192.0.2.7": True,
    "fd77::1": True,
    "2001:db8:9::9": False,
    "2001:db8::7": True,
}
_WAIT = 0.15  # seconds, for an answer that must not come


def firewall_lab() -> Lab:
    """:func:`pair_lab`, with more addresses on the client."""
    lab = pair_lab()
    try:
        for source in _SOURCES:
            lab.address("client:eth0", f"{source}/{128 if ':' in source else 32}")
        lab.route("server", "192.0.2.0/24", via="10.77.0.1")
        lab.route("server", "2001:db8::/32", via="fd77::1")
    except BaseException:
        lab.close()
        raise
    return lab


def _packet(source: str, proto: int, payload: bytes) -> tuple[int, bytes]:
    """(ethertype, packet) from ``source`` to the server."""
    if ":" in source:
        head = struct.pack("!IHBB", 6 << 28, len(payload), proto, 64)
        addresses = inet_pton(AF_INET6, source) + inet_pton(AF_INET6, "fd77::2")
        return 0x86DD, head + addresses + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, proto, 0)
    addresses = inet_pton(AF_INET, source) + inet_pton(AF_INET, "10.77.0.2")
    total = sum(struct.unpack("!10H", head + addresses))
    total = (total & 0xFFFF) + (total >> 16)
    check = struct.pack("!H", 0xFFFF - (total & 0xFFFF) - (total >> 16))
    return 0x0800, head[:10] + check + addresses + payload


class Play:
    """The demo's traffic and what was seen of it.

    :ivar seen: what was tried -> (must it get in, how often tried, how often it got in).
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.seen: dict[str, list[int]] = {}
        self.listeners = [Listener(lab["server"], port) for port in (8080, 8081)]
        self.number = 0

    def close(self) -> None:
        """Stop listening."""
        for listener in self.listeners:
            listener.close()

    def _saw(self, what: str, wanted: bool, got: bool) -> None:
        entry = self.seen.setdefault(what, [int(wanted), 0, 0])
        entry[1] += 1
        entry[2] += got

    def round(self) -> None:
        """Everything once."""
        client, server = self.lab["client"], self.lab["server"]
        for source, wanted in _PINGS.items():
            timeout = 1.0 if wanted else _WAIT
            host = "fd77::2" if ":" in source else "10.77.0.2"
            got = ping(host, source=source, timeout=timeout, ns=client).received
            self._saw(f"ping from {source}", wanted, got == 1)
        for host in ("10.77.0.2", "fd77::2"):
            family = 6 if ":" in host else 4
            for port in (8080, 8081):
                wanted = port != 8080
                got = tcp_answers(host, port, ns=client, timeout=1.0 if wanted else _WAIT)
                self._saw(f"TCP over IPv{family} to port {port}", wanted, got)
            for port in (9009, 10009):
                report = udp(host, port=port, count=1, ns=client, server_ns=server, timeout=_WAIT)
                what = f"UDP over IPv{family} to port {port}"
                self._saw(what, port != 9009, report.received == 1)
        self._frames()

    def _frames(self) -> None:
        """Frames as they are: with VLAN tags, and of a protocol without ports."""
        macs = bytes.fromhex(
            (self.lab.lladdr("server:eth0") + self.lab.lladdr("client:eth0")).replace(":", "")
        )
        tried: list[tuple[str, bool, bytes]] = []
        sock = self.lab["client"].socket(17, 3)  # AF_PACKET, SOCK_RAW
        try:
            sock.bind(("eth0", 0))
            with Capture("eth0", ns=self.lab["server"], outgoing=False) as capture:
                for source, wanted in _PINGS.items():
                    for tags in (b"", b"\x81\0\0\x05", b"\x88\xa8\0\x06\x81\0\0\x05"):
                        self.number += 1
                        mark = b"bpfkit%06d" % self.number
                        udp_head = struct.pack("!HHHH", 4000, 4001, 8 + len(mark), 0)
                        kind, packet = _packet(source, 17, udp_head + mark)
                        sock.send(macs + tags + struct.pack("!H", kind) + packet)
                        what = f"frame from {source} with {len(tags) // 4} VLAN tags"
                        tried.append((what, wanted, mark))
                for source in ("10.77.0.1", "fd77::1"):
                    self.number += 1
                    mark = b"bpfkit%06d" % self.number
                    kind, packet = _packet(source, 47, bytes(4) + mark)
                    sock.send(macs + struct.pack("!H", kind) + packet)
                    tried.append((f"GRE from {source}", False, mark))
                wanted_in = sum(wanted for _, wanted, _ in tried)
                try:
                    capture.wait(wanted_in, where=lambda packet: b"bpfkit" in packet.data)
                except BpfkitError:
                    pass  # what is missing will show
                arrived = [packet.data for packet in capture.packets]
        finally:
            sock.close()
        for what, wanted, mark in tried:
            self._saw(what, wanted, any(mark in data for data in arrived))

    def verdicts(
        self, firewall: Firewall, drops: DropReader | None, channel: Channel | None
    ) -> Iterable[Verdict]:
        """What was seen, and what a second process changes."""
        for what, (wanted, tried, got) in self.seen.items():
            word = "got in" if wanted else "was dropped"
            count = got if wanted else tried - got
            yield count == tried, f"{what} {word}: {count} of {tried}"
        if drops is not None and channel is not None:
            totals = firewall.totals()
            dropped = sum(packets for packets, _ in totals[5:10])
            lost = totals[-1][0]
            channel.wait(lambda: drops.seen + lost >= dropped)
            text = f"{dropped} packets dropped: {drops.seen} events, {lost} lost"
            yield drops.seen + lost == dropped, text
        client = self.lab["client"]
        for command, rule, wanted in (
            ("add", "10.77.0.1", False),
            ("add", "allow 10.77.0.1", True),
            ("del", "10.77.0.1", True),
            ("add", "proto icmp", False),
            ("del", "proto icmp", True),
        ):
            self._edit(command, rule)
            got = ping("10.77.0.2", timeout=1.0 if wanted else _WAIT, ns=client).received == 1
            word = "a ping is answered" if wanted else "no ping is answered"
            yield got == wanted, f"after '{command} {rule}' by another process {word}"

    def _edit(self, command: str, rule: str) -> None:
        import subprocess

        from bpfkit.core.children import command as child

        netns = f"/proc/{os.getpid()}/fd/{self.lab['server'].fd}"
        done = subprocess.run(
            child("bpfkit.xdp_firewall", command, rule, "--netns", netns),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BpfkitError(f"'{command} {rule}' failed", why=done.stdout.strip())
