# SPDX-License-Identifier: Apache-2.0
"""xdp_firewall's demo: its traffic, and which of it must get through.

::

    client 10.77.0.1 192.0.2.7 192.0.2.9  ── eth0 ─ eth0 [xdp_firewall] ──  server 10.77.0.2
           fd77::1 2001:db8::7 2001:db8:9::9                                       fd77::2

No result relies on the firewall's own figures: an answer arrives or does not, and a capture behind
XDP sees a frame or does not.
"""

from __future__ import annotations

import os

from bpfkit.core.errors import BpfkitError
from bpfkit.core.words import count_of
from bpfkit.net.links.lab import Lab, pair_lab
from bpfkit.net.packets.capture import Capture
from bpfkit.net.packets.frames import ethernet, ip_packet, send_frames, tag, udp_packet
from bpfkit.net.traffic.ping import ping
from bpfkit.net.traffic.probes import Listener, tcp_answers
from bpfkit.net.traffic.udp import udp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from bpfkit.app.events import Channel
    from bpfkit.show.rows import Verdict
    from bpfkit.xdp_firewall.control import Firewall
    from bpfkit.xdp_firewall.events import DropReader

__all__ = ["FirewallDemo", "firewall_lab"]

_SOURCES = ("192.0.2.7", "192.0.2.9", "2001:db8::7", "2001:db8:9::9")
#: Source -> whether the demo's rules let it in.
_PINGS = {
    "10.77.0.1": True,
    "192.0.2.9": False,
    "192.0.2.7": True,
    "fd77::1": True,
    "2001:db8:9::9": False,
    "2001:db8::7": True,
}
_WAIT = 0.15  # seconds to wait for an answer that must not arrive
_GRE = 47


def firewall_lab() -> Lab:
    """:func:`pair_lab`, with more addresses at the client."""
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


def _server(source: str) -> str:
    """The server's address of the family of ``source``."""
    return "fd77::2" if ":" in source else "10.77.0.2"


class FirewallDemo:
    """The demo's traffic and its results.

    :ivar seen: attempt -> [1 if it must get in, number of attempts, number that got in].
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.seen: dict[str, list[int]] = {}
        self.listeners = [Listener(lab["server"], port) for port in (8080, 8081)]
        self.number = 0

    def close(self) -> None:
        """Close the listeners."""
        for listener in self.listeners:
            listener.close()

    def _record(self, what: str, wanted: bool, got: bool) -> None:
        entry = self.seen.setdefault(what, [int(wanted), 0, 0])
        entry[1] += 1
        entry[2] += got

    def round(self) -> None:
        """Send all of the demo's traffic once."""
        client, server = self.lab["client"], self.lab["server"]
        for source, wanted in _PINGS.items():
            timeout = 1.0 if wanted else _WAIT
            got = ping(_server(source), source=source, timeout=timeout, ns=client).received
            self._record(f"ping from {source}", wanted, got == 1)
        for host in ("10.77.0.2", "fd77::2"):
            family = 6 if ":" in host else 4
            for port in (8080, 8081):
                wanted = port != 8080
                got = tcp_answers(host, port, ns=client, timeout=1.0 if wanted else _WAIT)
                self._record(f"TCP over IPv{family} to port {port}", wanted, got)
            for port in (9009, 10009):
                report = udp(host, port=port, count=1, ns=client, server_ns=server, timeout=_WAIT)
                what = f"UDP over IPv{family} to port {port}"
                self._record(what, port != 9009, report.received == 1)
        self._send_frames()

    def _send_frames(self) -> None:
        """Frames with no, one and two VLAN tags, and GRE, a protocol without ports."""
        macs = self.lab.lladdr("server:eth0"), self.lab.lladdr("client:eth0")
        sent: list[tuple[str, bool, bytes]] = []
        frames: list[bytes] = []
        for source, wanted in _PINGS.items():
            for tags in ((), ((0x8100, 5),), ((0x88A8, 6), (0x8100, 5))):
                mark = self._next_mark()
                packet = udp_packet(source, _server(source), mark, ports=(4000, 4001))
                frame = ethernet(*macs, packet)
                for ethertype, vlan in reversed(tags):
                    frame = tag(frame, vlan, ethertype)
                frames.append(frame)
                sent.append((f"frame from {source} with {len(tags)} VLAN tags", wanted, mark))
        for source in ("10.77.0.1", "fd77::1"):
            mark = self._next_mark()
            frames.append(
                ethernet(*macs, ip_packet(source, _server(source), _GRE, bytes(4) + mark))
            )
            sent.append((f"GRE from {source}", False, mark))
        with Capture("eth0", ns=self.lab["server"], outgoing=False) as capture:
            send_frames("eth0", frames, ns=self.lab["client"])
            expected = sum(wanted for _, wanted, _ in sent)
            try:
                capture.wait(expected, where=lambda packet: b"bpfkit" in packet.data)
            except BpfkitError:
                pass  # the verdicts name the missing frames
            arrived = [packet.data for packet in capture.packets]
        for what, wanted, mark in sent:
            self._record(what, wanted, any(mark in data for data in arrived))

    def _next_mark(self) -> bytes:
        """A payload that no other frame has."""
        self.number += 1
        return b"bpfkit%06d" % self.number

    def verdicts(
        self, firewall: Firewall, drops: DropReader | None, channel: Channel | None
    ) -> Iterable[Verdict]:
        """The results of the traffic, then of rules that a second process adds and deletes."""
        for what, (wanted, tried, got) in self.seen.items():
            word = "got in" if wanted else "was dropped"
            count = got if wanted else tried - got
            yield count == tried, f"{what} {word}: {count} of {tried}"
        if drops is not None and channel is not None:
            totals = firewall.totals()
            dropped = sum(packets for packets, _ in totals[5:10])
            lost = totals[-1][0]
            channel.wait(lambda: drops.seen + lost >= dropped)
            packets, events = count_of(dropped, "packet"), count_of(drops.seen, "event")
            text = f"{packets} dropped: {events}, {lost} lost"
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
        """Run ``python3 -m bpfkit.xdp_firewall COMMAND RULE`` with the bpfkit of this process."""
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
