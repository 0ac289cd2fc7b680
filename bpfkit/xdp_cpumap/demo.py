# SPDX-License-Identifier: Apache-2.0
"""What happens in xdp_cpumap's lab: flows, whose sockets tell which CPU the kernel handled them on.

Each receiving socket is asked (SO_INCOMING_CPU); TCP, pings and VLAN-tagged frames go the same way.
"""

from __future__ import annotations

import _socket
import os

from bpfkit.core.errors import BpfkitError
from bpfkit.net.packets.capture import Capture
from bpfkit.net.packets.frames import send_frames, udp_frame
from bpfkit.net.traffic.ping import PingReport, ping
from bpfkit.net.traffic.tcp import TcpReport, tcp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bpfkit.net.links.lab import Lab
    from bpfkit.net.traffic.report import Report

    Verdict = tuple[bool, str]

__all__ = ["DATAGRAMS", "CpumapDemo"]

_CLIENT = {"10.77.0.2": "10.77.0.1", "fd77::2": "fd77::1"}
SERVERS = tuple(_CLIENT)
FLOWS, DATAGRAMS = 16, 3  # of each address, in a round of the demo
_SO_INCOMING_CPU = 49


class CpumapDemo:
    """The play.

    :param lab: a pair_lab, without offloads.
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.datagrams = self.arrived = 0
        #: port -> CPUs that its datagrams were handled on.
        self.handled: dict[int, set[int]] = {}
        self.made: list[Report] = []
        #: What came of frames made by hand.
        self.sent: list[Verdict] = []

    def perform(self, ran: Callable[[], int]) -> None:
        """Flows of UDP, each to a socket of its own, then TCP, ping and VLAN-tagged frames.

        :param ran: a figure that grows with each frame that a CPU has taken out of its queue.
        """
        client, server = self.lab["client"], self.lab["server"]
        for host in SERVERS:
            self._flows(host)
            self.made.append(tcp(host, up=3000, down=3000, ns=client, server_ns=server))
            self.made.append(ping(host, ns=client))
        self._tagged(ran)

    def _flows(self, host: str) -> None:
        family = _socket.AF_INET6 if ":" in host else _socket.AF_INET
        sender = self.lab["client"].socket(family, _socket.SOCK_DGRAM)
        receivers = []
        try:
            sender.bind((_CLIENT[host], 0))
            for _ in range(FLOWS):
                sock = self.lab["server"].socket(family, _socket.SOCK_DGRAM)
                receivers.append(sock)
                sock.bind((host, 0))
                sock.connect(sender.getsockname()[:2])  # the others are told no CPU
                sock.settimeout(2)
            for _ in range(DATAGRAMS):
                for sock in receivers:
                    port = sock.getsockname()[1]
                    sender.sendto(bytes(100), (host, port))
                    self.datagrams += 1
                    try:
                        self.arrived += len(sock.recv(200)) == 100
                    except OSError:
                        continue
                    cpu = sock.getsockopt(_socket.SOL_SOCKET, _SO_INCOMING_CPU)
                    self.handled.setdefault(port, set()).add(cpu)
        except OSError as error:
            raise BpfkitError(f"cannot send to {host}", why=str(error)) from None
        finally:
            for sock in (sender, *receivers):
                sock.close()

    def _tagged(self, ran: Callable[[], int]) -> None:
        """Frames of a VLAN are spread, too: seen by a capture behind the CPU's queue."""
        lab = self.lab
        macs = lab.lladdr("server:eth0"), lab.lladdr("client:eth0")
        for host, source in _CLIENT.items():
            mark = os.urandom(8).hex().encode()
            frame = udp_frame(*macs, source, host, mark, vlans=[10])
            before = ran()
            with Capture("eth0", ns=lab["server"], outgoing=False) as capture:
                send_frames("eth0", [frame], ns=lab["client"])
                fine = _captured(capture, frame) and ran() > before
            text = f"VLAN 10, IPv{6 if ':' in host else 4}: through a CPU's queue, unchanged"
            self.sent.append((fine, text))

    # -- what must be true

    def counts(self, cpus: list[int]) -> dict[int, int]:
        """CPU -> flows that were handled on it."""
        seen = [cpu for handled in self.handled.values() for cpu in handled]
        return {cpu: seen.count(cpu) for cpu in cpus}

    def verdicts(self, cpus: list[int]) -> Iterator[Verdict]:
        """After the play.

        :param cpus: those that flows are spread over.
        """
        yield (
            self.arrived == self.datagrams > 0,
            f"UDP: {self.arrived} of {self.datagrams} datagrams arrived",
        )
        for report in self.made:
            if isinstance(report, TcpReport):
                fine = report.bytes_down == 3000
                yield fine, f"TCP over IPv{report.family}: {report.bytes_down} bytes back"
            elif isinstance(report, PingReport):
                yield report.received == 1, f"IPv{report.family}: ping answered"
        yield from self.sent
        moved = sum(len(handled) != 1 for handled in self.handled.values())
        flows = len(self.handled)
        yield moved == 0, f"each of {flows} flows was handled on one CPU, {moved} on several"
        counts = self.counts(cpus)
        strange = set().union(*self.handled.values()) - set(cpus)
        text = ", ".join(f"{count} on CPU {cpu}" for cpu, count in counts.items())
        yield not strange, f"the sockets say: {text}" + (f", {strange} besides" if strange else "")
        if len(cpus) > 1:
            # 64 flows on 2 CPUs: all on one by chance once in 10^18 runs
            used = sum(map(bool, counts.values()))
            yield used > 1, f"flows are spread over {used} of {len(cpus)} CPUs"

    def answers(self) -> Iterator[Verdict]:
        """Once the program is off."""
        for host in SERVERS:
            there = ping(host, ns=self.lab["client"]).received == 1
            yield there, f"without the program {host} answers as before"


def _captured(capture: Capture, frame: bytes) -> bool:
    try:
        capture.wait(where=lambda packet: packet.data == frame)
    except BpfkitError:
        return False
    return True
