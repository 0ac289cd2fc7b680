# SPDX-License-Identifier: Apache-2.0
"""Traffic in a :func:`bpfkit.net.links.lab.star_lab`, captured at every host.

::

    with Star(lab) as star:
        star.exchange("h1", "h2")
        star.send("h1", frame, {"h2", "h3"})     # frame: with a unique payload
"""

from __future__ import annotations

import os
import time

from bpfkit.core.closing import Closing
from bpfkit.net.packets.capture import Capture
from bpfkit.net.packets.frames import send_frames
from bpfkit.net.traffic.ping import ping
from bpfkit.net.traffic.tcp import tcp
from bpfkit.net.traffic.udp import udp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from bpfkit.core.program import Program
    from bpfkit.net.links.lab import Lab
    from bpfkit.net.traffic.report import Report

__all__ = ["Star", "addresses", "peers_pass"]

_GRACE = 0.05  # seconds to wait for frames that must not arrive


def addresses(lab: Lab, host: str) -> list[str]:
    """The addresses of a host, IPv4 and IPv6, without prefix length."""
    return [address.partition("/")[0] for address in lab.devices[host]["eth0"].addresses]


def peers_pass(lab: Lab) -> Program:
    """Attach XDP_PASS to every host's device, so that middle's ports take redirected frames.

    :returns: the program, to be closed by the caller.
    """
    from bpfkit.net.links.peers import attach_pass

    return attach_pass(lab, [f"{name}:eth0" for name in lab if name != "middle"])


class Star(Closing):
    """Captures incoming frames at each host, from its creation on."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.hosts = [name for name in lab if name != "middle"]
        self.captures: dict[str, Capture] = {}
        try:
            for host in self.hosts:
                self.captures[host] = Capture(
                    "eth0", ns=lab[host], outgoing=False, promiscuous=True
                )
        except BaseException:
            self.close()
            raise

    def exchange(self, a: str, b: str, timeout: float = 2.0) -> list[Report]:
        """Ping, TCP and UDP from ``a`` to ``b``, IPv4 and IPv6."""
        made: list[Report] = []
        ns = self.lab[a]
        for host in addresses(self.lab, b):
            made.append(ping(host, count=2, timeout=timeout, ns=ns))
            made.append(tcp(host, up=3000, down=20000, ns=ns, server_ns=self.lab[b]))
            made.append(udp(host, count=10, ns=ns, server_ns=self.lab[b]))
        return made

    @staticmethod
    def new_mark() -> bytes:
        """A unique payload."""
        return b"bpfkit " + os.urandom(12).hex().encode()

    def send(
        self, by: str, frame: bytes, mark: bytes, expected: Iterable[str], timeout: float = 2.0
    ) -> dict[str, bytes]:
        """Send ``frame``, which contains ``mark``, from a host; host -> the frame as it arrived.

        :param expected: wait until it has arrived at these hosts, for up to ``timeout`` seconds,
            and then a moment for the others.
        """
        waiting = set(expected)
        send_frames("eth0", [frame], ns=self.lab[by])
        end = time.monotonic() + timeout
        found: dict[str, bytes] = {}
        while waiting - set(found) and time.monotonic() < end:
            found = self.arrivals(mark, len(frame))
            time.sleep(0.002)
        time.sleep(_GRACE)
        return self.arrivals(mark, len(frame))

    def arrivals(self, mark: bytes, size: int) -> dict[str, bytes]:
        """Host -> frame of ``size`` bytes with ``mark`` that arrived there.

        ICMP errors quote the frame, but are longer.
        """
        found = {}
        for host, capture in self.captures.items():
            for packet in capture.packets:
                if mark in packet.data and len(packet.data) == size:
                    found[host] = packet.data
        return found

    def count_overheard(self, by: str, a: str, b: str) -> int:
        """Number of frames between the MAC addresses of ``a`` and ``b`` that arrived at ``by``."""
        ends = {self._mac(a), self._mac(b)}
        packets = self.captures[by].packets
        return sum({p.data[:6], p.data[6:12]} == ends for p in packets)

    def _mac(self, host: str) -> bytes:
        return bytes.fromhex(self.lab.lladdr(f"{host}:eth0").replace(":", ""))

    def close(self) -> None:
        """Close the captures."""
        for capture in self.captures.values():
            capture.close()
