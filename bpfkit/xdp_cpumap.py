# SPDX-License-Identifier: Apache-2.0
"""python -m bpfkit.xdp_cpumap: the flows of an interface over CPUs.

The C sides are bpf_c/xdp/xdp_cpumap.bpf.c and xdp_cpumap_lost.bpf.c.  In the demo each receiving
socket is asked which CPU the kernel handled its datagrams on (SO_INCOMING_CPU).
"""

from __future__ import annotations

from bpfkit.app import main
from bpfkit.core.errors import BpfkitError, InputError
from bpfkit.hookapp import XdpApp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable
    from typing import Any

    from bpfkit.app import Row, Verdict
    from bpfkit.core.object import Object
    from bpfkit.core.program import Program
    from bpfkit.net.capture import Capture
    from bpfkit.net.lab import Lab
    from bpfkit.net.traffic import Report

_CLIENT = {"10.77.0.2": "10.77.0.1", "fd77::2": "fd77::1"}
SERVERS = tuple(_CLIENT)
FLOWS, DATAGRAMS = 16, 3  # of each address, in a round of the demo
_SO_INCOMING_CPU = 49
_MOST = 16384  # the longest queue that the kernel makes


def _queue(text: str) -> int:
    from argparse import ArgumentTypeError

    if text.isascii() and text.isdigit() and 1 <= int(text) <= _MOST:
        return int(text)
    raise ArgumentTypeError(f"{text!r} is not a length (1 to {_MOST})")


def cpu_list(text: str) -> list[int]:
    """``0,2-3`` -> [0, 2, 3].

    :raises ValueError: it is not such a list.
    """
    found: list[int] = []
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        if not all(word.isascii() and word.isdigit() for word in (first, last if dash else first)):
            raise ValueError(f"{part!r} is no CPU and no range of CPUs")
        numbers = range(int(first), int(last if dash else first) + 1)
        if not numbers or numbers[-1] >= 1 << 16:
            raise ValueError(f"{part!r} is no range of CPUs")
        found += [number for number in numbers if number not in found]
    return found


def online() -> list[int]:
    """The CPUs that work."""
    try:
        with open("/sys/devices/system/cpu/online") as file:
            return cpu_list(file.read())
    except OSError:
        import os

        return sorted(os.sched_getaffinity(0))


class XdpCpumap(XdpApp):
    """Spreads the flows that an interface receives over CPUs, with counts per CPU."""

    name = "xdp_cpumap"
    source = "xdp/xdp_cpumap.bpf.c"
    counters = ("queued", "packets", "bytes", "lost")
    entry = "xdp_cpumap"
    epilog = (
        "queued: sent to the CPU; packets, bytes: what the program on it has seen; lost: its queue "
        "was full, or no memory for an skb. The row without a CPU is what stayed on the CPU that "
        "received it: not IP, or headers that cannot be looked through. --pcap: XDP_REDIRECT is "
        "what is spread."
    )

    losses: Object | None = None

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        add = parser.add_argument
        add("--cpus", metavar="LIST", help="CPUs to use, 0,2-3 (default: all that are online)")
        text = "frames that may wait for a CPU (default: 2048)"
        add("--queue", metavar="N", type=_queue, default=2048, help=text)

    def check_options(self) -> None:
        super().check_options()
        there = online()
        self.cpus = there
        if self.options.cpus is not None:
            try:
                self.cpus = cpu_list(self.options.cpus)
            except ValueError as error:
                raise InputError(f"--cpus {self.options.cpus}", why=str(error)) from None
        missing = [cpu for cpu in self.cpus if cpu not in there]
        if missing:
            raise InputError(
                f"--cpus: no CPU {missing[0]}",
                why=f"online are {', '.join(map(str, there))}",
            )

    def load_options(self) -> dict[str, Any]:
        from bpfkit.core.maps import possible_cpus

        count = possible_cpus()
        sizes = {"chosen": len(self.cpus), "cpus": count, "queued": count + 1}
        return {"max_entries": sizes}

    def consts(self) -> dict[str, int]:
        return {"cpu_count": len(self.cpus)}

    def prepare(self, loaded: Object) -> None:
        there = loaded.programs["on_cpu"]
        for slot, cpu in enumerate(self.cpus):
            loaded["chosen"][slot] = cpu
            loaded["cpus"][cpu] = (self.options.queue, there)

    def make_lab(self) -> Lab:
        from bpfkit.net.lab import pair_lab

        return pair_lab(offloads=False)

    def setup(self) -> None:
        self.sent = self.received = 0
        #: port -> CPUs that its datagrams were handled on.
        self.handled: dict[int, set[int]] = {}
        self.made: list[Report] = []
        self.tagged: list[Verdict] = []
        super().setup()

    def attach(self, program: Program) -> None:
        """The tracepoints first."""
        from bpfkit import load
        from bpfkit.core.maps import possible_cpus
        from bpfkit.net.offloads import driver

        try:
            losses = load(
                "xdp/xdp_cpumap_lost.bpf.c",
                consts={"map_id": self.object["cpus"].id},
                max_entries={"lost": possible_cpus()},
                cache=not self.options.no_cache,
            )
            self.keep(losses)
            for one in losses.programs.values():
                self.keep(one.attach_raw_tracepoint())
            self.losses = losses
        except BpfkitError as error:
            self.note(f"what is lost is not counted: {error.why}")
        super().attach(program)
        if self.lab is None and driver(self.interface) == "veth":
            self.note(
                f"{self.interface.name} is a veth: `ethtool -K DEV tx off` on its other end, or "
                "what comes with unfinished checksums is lost"
            )

    def rows(self) -> list[Row]:
        """A row per CPU, then what stayed where it was received."""
        queued = dict(self.object["queued"].sums())
        ran = self.object["ran"][0]
        lost = self.losses["lost"] if self.losses is not None else None
        rows: list[Row] = []
        for cpu in self.cpus:
            gone = lost[cpu] if lost is not None else None
            row: Row = {"cpu": cpu, "queued": queued[1 + cpu].packets}
            row |= {"packets": ran[cpu].packets, "bytes": ran[cpu].bytes}
            row["lost"] = gone.full + gone.no_skb if gone is not None else 0
            rows.append(row)
        stayed = queued[0]
        row = {"cpu": None, "queued": 0, "packets": stayed.packets, "bytes": stayed.bytes}
        return [*rows, {**row, "lost": 0}]

    # -- demo

    def demo(self) -> None:
        """Flows of UDP, each to a socket of its own, then TCP, ping and VLAN-tagged frames."""
        from bpfkit.net.traffic import ping, tcp

        assert self.lab is not None
        client, server = self.lab["client"], self.lab["server"]
        for host in SERVERS:
            self._flows(host)
            self.made.append(tcp(host, up=3000, down=3000, ns=client, server_ns=server))
            self.made.append(ping(host, ns=client))
        self._tagged()

    def _flows(self, host: str) -> None:
        import _socket

        assert self.lab is not None
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
                    self.sent += 1
                    try:
                        self.received += len(sock.recv(200)) == 100
                    except OSError:
                        continue
                    cpu = sock.getsockopt(_socket.SOL_SOCKET, _SO_INCOMING_CPU)
                    self.handled.setdefault(port, set()).add(cpu)
        except OSError as error:
            raise BpfkitError(f"cannot send to {host}", why=str(error)) from None
        finally:
            for sock in (sender, *receivers):
                sock.close()

    def _tagged(self) -> None:
        """Frames of a VLAN are spread, too: seen by a capture behind the CPU's queue."""
        import os

        from bpfkit.net.capture import Capture
        from bpfkit.net.frames import send_frames, udp_frame

        assert self.lab is not None
        lab = self.lab
        macs = lab.lladdr("server:eth0"), lab.lladdr("client:eth0")
        for host, source in _CLIENT.items():
            mark = os.urandom(8).hex().encode()
            frame = udp_frame(*macs, source, host, mark, vlans=[10])
            before = sum(self.object["ran"].sum(0))
            with Capture("eth0", ns=lab["server"], outgoing=False) as capture:
                send_frames("eth0", [frame], ns=lab["client"])
                fine = _captured(capture, frame) and sum(self.object["ran"].sum(0)) > before
            text = f"VLAN 10, IPv{6 if ':' in host else 4}: through a CPU's queue, unchanged"
            self.tagged.append((fine, text))

    def verify(self) -> Iterable[Verdict]:
        from bpfkit.net.traffic import PingReport, TcpReport, ping

        assert self.lab is not None
        yield (
            self.received == self.sent > 0,
            f"UDP: {self.received} of {self.sent} datagrams arrived",
        )
        for report in self.made:
            if isinstance(report, TcpReport):
                fine = report.bytes_down == 3000
                yield fine, f"TCP over IPv{report.family}: {report.bytes_down} bytes back"
            elif isinstance(report, PingReport):
                yield report.received == 1, f"IPv{report.family}: ping answered"
        yield from self.tagged
        moved = sum(len(cpus) != 1 for cpus in self.handled.values())
        flows = len(self.handled)
        yield moved == 0, f"each of {flows} flows was handled on one CPU, {moved} on several"
        seen = [cpu for cpus in self.handled.values() for cpu in cpus]
        counts = {cpu: seen.count(cpu) for cpu in self.cpus}
        strange = set(seen) - set(self.cpus)
        text = ", ".join(f"{count} on CPU {cpu}" for cpu, count in counts.items())
        yield not strange, f"the sockets say: {text}" + (f", {strange} besides" if strange else "")
        if len(self.cpus) > 1:
            # 64 flows on 2 CPUs: all on one by chance once in 10^18 runs
            used = sum(map(bool, counts.values()))
            yield used > 1, f"flows are spread over {used} of {len(self.cpus)} CPUs"
        else:
            self.note("one CPU: its queue and its program were checked, nothing could be spread")
        rows, total = self._settled()
        for cpu, count in counts.items():
            least, ran = count * DATAGRAMS, rows[cpu]["packets"]
            yield ran >= least, f"CPU {cpu}: its program saw {ran} frames, its sockets {least}"
        text = (
            f"{total['queued']} frames queued, {total['packets']} taken out, {total['lost']} lost"
        )
        yield total["queued"] == total["packets"] + total["lost"] > 0, text
        self.detach()
        for host in SERVERS:
            there = ping(host, ns=self.lab["client"]).received == 1
            yield there, f"without the program {host} answers as before"

    def _settled(self) -> tuple[dict[int | None, Row], dict[str, int]]:
        """Rows by CPU, and their sums, when the queues are empty."""
        from time import sleep

        for _ in range(20):
            rows = {row["cpu"]: row for row in self.rows()}
            spread = [row for cpu, row in rows.items() if cpu is not None]
            total = {name: sum(row[name] for row in spread) for name in self.counters}
            if total["queued"] == total["packets"] + total["lost"]:
                break
            sleep(0.05)
        return rows, total


def _captured(capture: Capture, frame: bytes) -> bool:
    try:
        capture.wait(where=lambda packet: packet.data == frame)
    except BpfkitError:
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(main(XdpCpumap))
