# SPDX-License-Identifier: Apache-2.0
"""xdp_cpumap's demo: UDP flows, whose sockets report the CPU that handled them (SO_INCOMING_CPU).

TCP, pings and VLAN-tagged frames take the same path.
"""

from __future__ import annotations

import _socket
import os

from bpfkit.core.errors import BpfkitError
from bpfkit.core.words import count_of
from bpfkit.net.packets.addresses import family_of
from bpfkit.net.packets.capture import Capture
from bpfkit.net.packets.frames import send_frames, udp_frame
from bpfkit.net.traffic.ping import PingReport, ping
from bpfkit.net.traffic.tcp import TcpReport, tcp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bpfkit.net.links.lab import Lab
    from bpfkit.net.traffic.report import Report
    from bpfkit.show.rows import Verdict

__all__ = ["DATAGRAMS", "CpumapDemo"]

_CLIENT = {"10.77.0.2": "10.77.0.1", "fd77::2": "fd77::1"}
SERVERS = tuple(_CLIENT)
FLOWS, DATAGRAMS = 16, 3  # for each address, in a round of the demo
_SO_INCOMING_CPU = 49


class CpumapDemo:
    """The demo's traffic and its verdicts.

    :param lab: a pair_lab, without offloads.
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.datagrams = self.arrived = 0
        #: Port -> CPUs that handled its datagrams.
        self.handled: dict[int, set[int]] = {}
        self.made: list[Report] = []
        #: The verdicts about tagged frames.
        self.sent: list[Verdict] = []

    def perform(self, ran: Callable[[], int]) -> None:
        """UDP flows, each to its own socket, then TCP, ping and VLAN-tagged frames.

        :param ran: returns the number of frames that CPUs have taken out of their queues.
        """
        client, server = self.lab["client"], self.lab["server"]
        for host in SERVERS:
            self._flows(host)
            self.made.append(tcp(host, up=3000, down=3000, ns=client, server_ns=server))
            self.made.append(ping(host, ns=client))
        self._tagged(ran)

    def _flows(self, host: str) -> None:
        family = family_of(host)
        sender = self.lab["client"].socket(family, _socket.SOCK_DGRAM)
        receivers = []
        try:
            sender.bind((_CLIENT[host], 0))
            for _ in range(FLOWS):
                sock = self.lab["server"].socket(family, _socket.SOCK_DGRAM)
                receivers.append(sock)
                sock.bind((host, 0))
                sock.connect(sender.getsockname()[:2])  # SO_INCOMING_CPU needs a connected socket
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
        """Tagged frames are distributed, too: a capture behind the CPU's queue sees them."""
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

    # -- verdicts

    def counts(self, cpus: list[int]) -> dict[int, int]:
        """CPU -> number of flows that it handled."""
        seen = [cpu for handled in self.handled.values() for cpu in handled]
        return {cpu: seen.count(cpu) for cpu in cpus}

    def verdicts(self, cpus: list[int]) -> Iterator[Verdict]:
        """The verdicts after the demo.

        :param cpus: the CPUs that flows are distributed over.
        """
        yield (
            self.arrived == self.datagrams > 0,
            f"UDP: {self.arrived} of {count_of(self.datagrams, 'datagram')} arrived",
        )
        for report in self.made:
            if isinstance(report, TcpReport):
                fine = report.bytes_down == 3000
                yield (
                    fine,
                    f"TCP over IPv{report.family}: {count_of(report.bytes_down, 'byte')} back",
                )
            elif isinstance(report, PingReport):
                yield report.received == 1, f"IPv{report.family}: ping answered"
        yield from self.sent
        moved = sum(len(handled) != 1 for handled in self.handled.values())
        flows = len(self.handled)
        yield moved == 0, f"each of {flows} flows was handled on one CPU, {moved} on several"
        counts = self.counts(cpus)
        strange = set().union(*self.handled.values()) - set(cpus)
        text = ", ".join(f"{count} on CPU {cpu}" for cpu, count in counts.items())
        yield (
            not strange,
            f"flows by the sockets: {text}" + (f", and CPUs {strange}" if strange else ""),
        )
        if len(cpus) > 1:
            # 64 flows on 2 CPUs: chance puts all of them on one CPU once in 10^18 runs
            used = sum(map(bool, counts.values()))
            yield used > 1, f"flows are distributed over {used} of {len(cpus)} CPUs"

    def answers(self) -> Iterator[Verdict]:
        """The verdicts after the program was detached."""
        for host in SERVERS:
            there = ping(host, ns=self.lab["client"]).received == 1
            yield there, f"without the program {host} answers as before"


def _captured(capture: Capture, frame: bytes) -> bool:
    try:
        capture.wait(where=lambda packet: packet.data == frame)
    except BpfkitError:
        return False
    return True
