#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Packets per second: XDP, tc, nftables and socket filters that drop; XDP, bridge and routing that
forward.

    sudo python3 tools/bench/rates.py [drop|forward] [-n ROUNDS] [--protocol tcp|udp] [--markdown]

    generator -> cable -> [dropped here by one of the methods]
    generator -> cable -> [forwarded here by one of the methods] -> cable -> sink (XDP drop)

Every method has veth cables and a network namespace of its own; one generator sends into all of
them, in turns, ROUNDS times (default 7; medians).  It is in the kernel (BPF_PROG_TEST_RUN with live
frames, 5.18) and puts frames into the ring of the cable's other end as a network card does: XDP
sees the bare frame, and everything else pays for a socket buffer first, as on a card.

Generator and receiver take turns on one CPU, 64 packets at a time, so nothing waits in a queue and
nothing is lost in one: the rate is what that CPU does in all.  `ns` is its time per packet, without
what other processes had of it; `own` is that less what the generator takes when its frames go
nowhere.  Ratios are of these times.

A packet counts where it was dropped, or when it has come to the sink; counters are the kernel's
own where it has some.  A method that does not do its work fails the run; one that this machine
lacks gets a line that says why.
"""

from __future__ import annotations

import os
import re
import statistics
import struct
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Sequence

    from bpfkit.core.program import Program
    from bpfkit.net.links.lab import Lab

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [path for path in (ROOT, HERE) if path not in sys.path]

import benchlib  # noqa: E402

from bpfkit.core.children import command  # noqa: E402
from bpfkit.core.errors import BpfkitError, UnsupportedError, errno_text  # noqa: E402
from bpfkit.net.packets.frames import ip_packet, tcp_segment, udp_packet  # noqa: E402

LIVE_FRAMES = 2  # BPF_F_TEST_XDP_LIVE_FRAMES
SO_MEMINFO, MEMINFO_DROPS = 55, 8
HEADERS = 54  # struct frame of generator.bpf.c: Ethernet, IPv4, TCP
FIRST_PORT, FIRST_SEQUENCE = 1024, 32768  # room for what is added, and taken away, per flow
PORT = 80


class Bench:
    """The namespaces, and what all methods share."""

    def __init__(self, options: Namespace, keep: ExitStack) -> None:
        import bpfkit
        from bpfkit.net.links.lab import Lab

        self.options = options
        self.keep = keep
        self.lab: Lab = keep.enter_context(Lab("rates"))
        for name in ("gen", "sink"):
            self.namespace(name)
        source = os.path.join(HERE, "generator.bpf.c")
        self.generator = keep.enter_context(bpfkit.load(source, consts={"flows": options.flows}))
        self.drop_world = keep.enter_context(bpfkit.load("xdp/xdp_drop_world.bpf.c"))
        self.softirqd = _pid_of(f"ksoftirqd/{options.cpu}")

    def namespace(self, name: str) -> None:
        """A namespace in which nothing is sent but what the generator sends."""
        self.lab.namespace(name)
        try:
            for which in ("all", "default"):
                self.lab.sysctl(name, f"net.ipv6.conf.{which}.disable_ipv6", 1)
        except BpfkitError:
            pass  # a kernel without IPv6

    def cable(self, one: str, other: str, addresses: tuple[list[str], list[str]]) -> None:
        """A veth pair whose ends poll (NAPI), with or without an XDP program."""
        self.lab.veth(one, other, addresses=addresses)
        self.lab.offloads(other, gro=True)

    def attach_xdp(self, device: str, program: Program, mode: str = "native") -> None:
        """An XDP program on a device of the lab."""
        index = self.lab.interface(device).index
        ns = self.lab[device.partition(":")[0]]
        self.keep.enter_context(ns.run(program.attach_xdp, index, mode))

    def attach_tc(self, device: str, program: Program, how: str = "auto") -> str:
        """A tc program on a device's ingress; ``tcx`` or ``clsact``."""
        index = self.lab.interface(device).index
        ns = self.lab[device.partition(":")[0]]
        link = self.keep.enter_context(ns.run(program.attach_tc, index, "ingress", how))
        return str(link.kind)

    def load(self, source: str, **options: object) -> object:
        """A source, for as long as the benchmark runs."""
        import bpfkit

        return self.keep.enter_context(bpfkit.load(source, **options))

    def xdp_drops(self, device: str) -> Callable[[], int]:
        """Frames that XDP dropped on a veth device, as its driver counts them."""
        ns, _, name = device.partition(":")

        def count() -> int:
            text = self.lab[ns].check_output(["ethtool", "-S", name])
            return sum(map(int, re.findall(r"rx_queue_\d+_xdp_drops: (\d+)", text)))

        return count

    def busy_ns(self) -> int:
        """CPU time of this thread, and of the kernel's that helps it out."""
        total = time.thread_time_ns()
        if self.softirqd:
            with open(f"/proc/{self.softirqd}/schedstat") as file:
                total += int(file.read().split()[0])
        return total

    def send(self, program: Program, frame: bytes, packets: int) -> tuple[float, int]:
        """Send; (seconds, ns of CPU) that it took.

        The seconds are the kernel's: without its making ready, which takes a grace period of RCU,
        and without what other processes had of the CPU meanwhile.
        """
        from bpfkit.core.kernel.syscall import TestRun

        self.generator["sample"][0] = frame[:HEADERS]
        run = TestRun(program.fd, len(frame), 0)
        run.data_in[: len(frame)] = frame
        busy = self.busy_ns()
        try:
            _, each, _, _ = run.run(len(frame), repeat=packets, flags=LIVE_FRAMES)
        except OSError as error:
            if error.errno == 22:
                raise UnsupportedError(
                    "cannot send packets from the kernel",
                    why="it has no BPF_F_TEST_XDP_LIVE_FRAMES (5.18)",
                ) from None
            raise BpfkitError("cannot send", why=errno_text(error.errno or 0)) from None
        return max(each, 1) * packets / 1e9, self.busy_ns() - busy


def _pid_of(name: str) -> int:
    """A kernel thread's number; 0: it cannot be seen from here."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/comm") as file:
                if file.read().strip() == name and os.access(f"/proc/{pid}/schedstat", os.R_OK):
                    return int(pid)
        except OSError:
            continue
    return 0


class Method:
    """One way to drop or to forward: a cable from the generator, and what is at its end."""

    #: What the table calls it.
    title = ""
    #: Without it there is no table.
    needed = False
    #: Whose packets it drops; "": any.
    only = ""

    def __init__(self, bench: Bench, number: int) -> None:
        self.bench, self.number = bench, number
        self.ns = f"m{number}"
        self.start, self.end = f"gen:g{number}", f"{self.ns}:up"
        self.rates: list[float] = []
        self.ns_each: list[float] = []
        self.sent = self.counted = 0
        self.addresses = [f"10.{number}.1.{last}" for last in (1, 2)]
        self.problem = ""

    # -- what methods differ in

    def set_up(self) -> None:
        """Build; sets :attr:`count`."""
        raise NotImplementedError

    #: Packets that were dropped, or forwarded, since the start.
    count: Callable[[], int]

    # -- what they share

    def cable(self) -> None:
        """From the generator to the namespace of the method."""
        self.bench.namespace(self.ns)
        mine, theirs = ([f"{address}/24"] for address in self.addresses)
        self.bench.cable(self.start, self.end, (mine, theirs))

    def frame(self) -> bytes:
        """A TCP SYN or a UDP datagram to the other end of the cable."""
        return self.frame_to(self.addresses[1], self.bench.lab.lladdr(self.end))

    def frame_to(self, destination: str, mac: str) -> bytes:
        """A frame of the smallest size."""
        ends = self.addresses[0], destination
        if self.bench.options.protocol == "tcp":
            segment = tcp_segment(
                *ends, ports=(FIRST_PORT, PORT), sequence=FIRST_SEQUENCE, acknowledgement=1
            )
            packet = ip_packet(*ends, benchlib.TCP, segment)
        else:
            # Without a checksum: the generator changes the source port only.
            packet = udp_packet(*ends, bytes(18), ports=(FIRST_PORT, PORT), check=False)
        return benchlib.frame(packet, mac, self.bench.lab.lladdr(self.start))

    def round(self, packets: int) -> None:
        """Send, and count what came of it."""
        bench = self.bench
        index = bench.lab.interface(self.start).index
        bench.lab["gen"].run(bench.generator["out"].__setitem__, 0, index)
        before = self.count()
        seconds, busy = bench.send(bench.generator.programs["generate"], self.frame(), packets)
        done = self.count() - before
        deadline = time.monotonic() + 0.5
        while done < packets and time.monotonic() < deadline:
            time.sleep(0.01)  # what another thread of the kernel has still got
            done = self.count() - before
        self.sent += packets
        self.counted += done
        if not packets // 2 <= done <= packets + packets // 100 + 10:
            raise BpfkitError(
                f"{self.title} does not do its work",
                why=f"{done} packets were counted where it should have had {packets}",
            )
        self.rates.append(done / seconds)
        self.ns_each.append(busy / done)


class OnlyGenerator(Method):
    """The cable stays unused: what the generator takes."""

    title = "the generator alone"
    needed = True

    def set_up(self) -> None:
        self.cable()

    def round(self, packets: int) -> None:
        bench = self.bench
        program = bench.generator.programs["generate_only"]
        seconds, busy = bench.send(program, self.frame(), packets)
        self.sent += packets
        self.counted += packets
        self.rates.append(packets / seconds)
        self.ns_each.append(busy / packets)


# -- drop ------------------------------------------------------------------------------------------


class XdpOne(Method):
    title = "XDP, one instruction"

    def set_up(self) -> None:
        from bpfkit.core.kernel import asm
        from bpfkit.core.program import Program

        self.cable()
        code = bytes(asm.assemble(asm.mov(asm.r0, 1), asm.exit_()))
        program = self.bench.keep.enter_context(Program.from_insns("XDP", code, name="one"))
        self.bench.attach_xdp(self.end, program)
        self.count = self.bench.xdp_drops(self.end)


class XdpDropWorld(Method):
    title = "XDP, xdp_drop_world"

    def set_up(self) -> None:
        self.cable()
        self.bench.attach_xdp(self.end, self.bench.drop_world.programs["xdp_drop_world"])
        self.count = self.bench.xdp_drops(self.end)


class XdpDropTcp(Method):
    title = "XDP, xdp_drop_tcp"
    only = "tcp"

    def set_up(self) -> None:
        self.cable()
        loaded = self.bench.load("xdp/xdp_drop_tcp.bpf.c")
        self.bench.attach_xdp(self.end, loaded.programs["xdp_drop_tcp"])
        self.count = self.bench.xdp_drops(self.end)


class XdpGeneric(Method):
    title = "XDP generic, xdp_drop_world"

    def set_up(self) -> None:
        self.cable()
        loaded = self.bench.load("xdp/xdp_drop_world.bpf.c")
        self.bench.attach_xdp(self.end, loaded.programs["xdp_drop_world"], "generic")
        self.count = lambda: loaded["dropped"].sum(0).packets


class TcDropWorld(Method):
    title = "tc ingress, a counter and TC_ACT_SHOT"

    def set_up(self) -> None:
        self.cable()
        loaded = self.bench.load(os.path.join(HERE, "tc_drop_world.bpf.c"))
        kind = self.bench.attach_tc(self.end, loaded.programs["tc_drop_world"])
        self.title = f"tc ingress by {kind}, a counter and TC_ACT_SHOT"
        self.count = lambda: loaded["dropped"].sum(0).packets


class TcDropTcp(Method):
    title = "tc ingress, tc_drop_tcp"
    only = "tcp"
    how = "auto"

    def set_up(self) -> None:
        self.cable()
        loaded = self.bench.load("tc/tc_drop_tcp.bpf.c")
        kind = self.bench.attach_tc(self.end, loaded.programs["tc_drop_tcp"], self.how)
        self.title = f"tc ingress by {kind}, tc_drop_tcp"
        # the rows of enum drop_row in front of ROW_PASSED
        self.count = lambda: sum(row.packets for _, row in list(loaded["rows"].sums())[:-1])


class TcDropTcpClsact(TcDropTcp):
    title = "tc ingress by clsact, tc_drop_tcp"
    how = "clsact"


class Nft(Method):
    """A rule that drops the protocol, counted by nftables."""

    family = "inet"
    hook = ""

    def set_up(self) -> None:
        self.cable()
        protocol = self.bench.options.protocol
        ns = self.bench.lab[self.ns]
        rules = (
            f"add table {self.family} bench\n"
            f"add chain {self.family} bench c {{ type filter hook {self.hook}; }}\n"
            f"add rule {self.family} bench c meta l4proto {protocol} counter drop\n"
        )
        ns.check_output(["nft", "-f", "-"], input=rules)

        def count() -> int:
            text = ns.check_output(["nft", "list", "table", self.family, "bench"])
            return sum(map(int, re.findall(r"counter packets (\d+)", text)))

        self.count = count


class NftIngress(Nft):
    title = "nftables, netdev ingress"
    family = "netdev"
    hook = 'ingress device "up" priority 0'


class NftPrerouting(Nft):
    title = "nftables, prerouting (raw)"
    hook = "prerouting priority -300"


class NftInput(Nft):
    title = "nftables, input"
    hook = "input priority 0"


class SocketFilter(Method):
    """A filter that keeps nothing: on the TCP listener or UDP socket that the packets are for."""

    title = "socket filter, `return 0`"

    def set_up(self) -> None:
        from socket import AF_INET, SOCK_DGRAM, SOCK_STREAM, SOL_SOCKET

        from bpfkit.core.kernel import asm
        from bpfkit.core.program import Program

        self.cable()
        stream = self.bench.options.protocol == "tcp"
        ns = self.bench.lab[self.ns]
        sock = ns.socket(AF_INET, SOCK_STREAM if stream else SOCK_DGRAM)
        self.bench.keep.callback(sock.close)
        code = bytes(asm.assemble(asm.mov(asm.r0, 0), asm.exit_()))
        filter_ = Program.from_insns("SOCKET_FILTER", code, name="nothing")
        self.bench.keep.enter_context(filter_)
        filter_.attach_socket(sock)
        sock.bind((self.addresses[1], PORT))
        if stream:
            sock.listen(16)
        self.count = lambda: struct.unpack_from(
            "=I", sock.getsockopt(SOL_SOCKET, SO_MEMINFO, 36), 4 * MEMINFO_DROPS
        )[0]


# -- forward ---------------------------------------------------------------------------------------


class Sink(Method):
    """The generator's cable goes to the sink at once."""

    title = "nothing between generator and sink"

    def set_up(self) -> None:
        self.cable()
        self.bench.attach_xdp(self.end, self.bench.drop_world.programs["xdp_drop_world"])
        self.count = self.bench.xdp_drops(self.end)


class Forward(Method):
    """A second cable, to the sink."""

    def set_up(self) -> None:
        self.cable()
        self.down, self.sink = f"{self.ns}:down", f"sink:s{self.number}"
        self.far = [f"10.{self.number}.2.{last}" for last in (1, 2)]
        mine, theirs = ([f"{address}/24"] for address in self.far)
        self.bench.cable(self.down, self.sink, (mine, theirs))
        self.bench.attach_xdp(self.sink, self.bench.drop_world.programs["xdp_drop_world"])
        self.count = self.bench.xdp_drops(self.sink)
        self.forward()

    def forward(self) -> None:
        """Make what comes to ``up`` leave by ``down``."""
        raise NotImplementedError

    def frame(self) -> bytes:
        """To the sink's address and MAC: on the same link, for a bridge."""
        return self.frame_to(self.far[1], self.bench.lab.lladdr(self.sink))


class Routed(Forward):
    """By IP, not by MAC address."""

    def route(self) -> None:
        """Make the kernel a router that knows its neighbour."""
        lab = self.bench.lab
        lab.sysctl(self.ns, "net.ipv4.ip_forward", 1)
        lab.neighbour(self.down, self.far[1], lab.lladdr(self.sink))

    def frame(self) -> bytes:
        """To the sink's address, by way of the router's MAC."""
        return self.frame_to(self.far[1], self.bench.lab.lladdr(self.end))


class XdpRedirect(Forward):
    title = "XDP, one call of bpf_redirect_map()"

    def forward(self) -> None:
        bench = self.bench
        loaded = bench.load(os.path.join(HERE, "redirect.bpf.c"), programs=["by_xdp"])
        index = bench.lab.interface(self.down).index
        bench.lab[self.ns].run(loaded["out"].__setitem__, 0, index)
        bench.attach_xdp(self.end, loaded.programs["by_xdp"])


class XdpPatch(Forward):
    """The program that people use, started as they start it."""

    title = "XDP, xdp_redirect --how patch"
    how = "patch"

    def forward(self) -> None:
        options = ["-i", "up", "--to", "down", "--how", self.how, "--mode", "native", "--no-demo"]
        child = self.bench.lab[self.ns].popen(
            command("bpfkit.xdp_redirect", *options, "-t", "3600", "-v"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.bench.keep.callback(_end, child)
        line = ""
        for line in child.stderr:
            if ": attached to " in line:
                return
        raise BpfkitError("xdp_redirect ended", why=line.strip())


class XdpRouter(Routed, XdpPatch):
    title = "XDP, xdp_redirect --how router"
    how = "router"

    def forward(self) -> None:
        self.route()
        super().forward()


def _end(child: subprocess.Popen[str]) -> None:
    child.terminate()
    child.communicate()


class TcRedirect(Forward):
    title = "tc ingress, bpf_redirect()"

    def forward(self) -> None:
        bench = self.bench
        index = bench.lab.interface(self.down).index
        loaded = bench.load(
            os.path.join(HERE, "redirect.bpf.c"), programs=["by_tc"], consts={"ifindex": index}
        )
        bench.attach_tc(self.end, loaded.programs["by_tc"])


class Bridge(Forward):
    title = "Linux bridge"

    def forward(self) -> None:
        lab = self.bench.lab
        lab.bridge(f"{self.ns}:br0", [self.end, self.down])
        try:
            for family in ("ip", "ip6", "arp"):
                lab.sysctl(self.ns, f"net.bridge.bridge-nf-call-{family}tables", 0)
        except BpfkitError:
            pass  # no br_netfilter
        mac = lab.lladdr(self.sink)
        lab[self.ns].check_output(["bridge", "fdb", "add", mac, "dev", "down", "master", "static"])


class Routing(Routed):
    title = "kernel routing"

    def forward(self) -> None:
        self.route()


#: Job -> (its methods, the one that the others are compared with).
JOBS: dict[str, tuple[tuple[type[Method], ...], type[Method]]] = {
    "drop": (
        (
            OnlyGenerator,
            XdpOne,
            XdpDropWorld,
            XdpDropTcp,
            XdpGeneric,
            TcDropWorld,
            TcDropTcp,
            TcDropTcpClsact,
            NftIngress,
            NftPrerouting,
            NftInput,
            SocketFilter,
        ),
        XdpDropWorld,
    ),
    "forward": (
        (
            OnlyGenerator,
            Sink,
            XdpRedirect,
            XdpPatch,
            XdpRouter,
            TcRedirect,
            Bridge,
            Routing,
        ),
        XdpRedirect,
    ),
}


def build(bench: Bench, kinds: Sequence[type[Method]]) -> list[Method]:
    """Set all methods up; one that cannot be says why in ``problem``."""
    methods = []
    for number, kind in enumerate(kinds):
        if kind.only in ("", bench.options.protocol):
            method = kind(bench, number)
            try:
                method.set_up()
            except BpfkitError as error:
                if method.needed:
                    raise
                method.problem = f"{error.what}: {error.why}"
            methods.append(method)
    bench.lab.ready()
    return methods


def measure(job: str, options: Namespace) -> list[Method]:
    """All methods of a job, ROUNDS times in turns, after a short round that does not count."""
    with ExitStack() as keep:
        bench = Bench(options, keep)
        methods = build(bench, JOBS[job][0])
        working = [method for method in methods if not method.problem]
        for method in working:
            method.round(max(options.packets // 10, 64))
            method.rates.clear()
            method.ns_each.clear()
            method.sent = method.counted = 0
        for _ in range(options.rounds):
            for method in working:
                method.round(options.packets)
    return methods


def show(job: str, methods: list[Method], options: Namespace) -> str:
    """The table, what could not be measured, and what all rows have in common."""
    reference = JOBS[job][1]
    medians = {
        type(m): (statistics.median(m.rates), statistics.median(m.ns_each))
        for m in methods
        if m.rates
    }
    generator = medians[OnlyGenerator][1]
    peer = medians[reference][1] if reference in medians else None
    rows = []
    for method in methods:
        if method.problem:
            continue
        rate, each = medians[type(method)]
        own = each - generator
        cells = [method.title, f"{rate / 1e6:.2f}", f"{each:.0f}"]
        if isinstance(method, OnlyGenerator):
            cells += ["-", "-", "-"]
        else:
            cells.append(f"{own:.0f}")
            if peer is None or peer <= generator:
                cells += ["-", "-"]
            else:
                cells += [f"{each / peer:.2f}", f"{own / (peer - generator):.2f}"]
        rows.append(cells)
    titles = [f"{job}: method", "Mpackets/s", "ns", "own ns", "ratio", "own ratio"]
    text = benchlib.table(titles, rows, 1, options.markdown) + "\n"
    for method in methods:
        lost = method.sent - method.counted
        if lost > method.sent / 1000:
            text += f"\n{method.title}: {lost} of {method.sent} packets were lost on the way"
    for method in methods:
        if method.problem:
            text += f"\nnot measured: {method.title}: {method.problem}"
    flows = "1 flow" if options.flows == 1 else f"{options.flows} flows"
    kind = "TCP SYN" if options.protocol == "tcp" else "UDP"
    text += (
        f"\nns: CPU time per packet, all in all; own: less the generator's; ratios: to "
        f"{reference.title}.\nThe same in all: {kind} over IPv4, 60-byte frames, {flows}, "
        f"veth, CPU {options.cpu}; {options.packets} packets a round, medians of {options.rounds} "
        f"rounds in turns; Linux {os.uname().release.partition('-')[0]}.\n"
    )
    return text


def main() -> int:
    """Measure and print."""
    from argparse import ArgumentParser

    cpus = sorted(os.sched_getaffinity(0))
    parser = ArgumentParser(description="packets per second: dropped, forwarded")
    add = parser.add_argument
    add("job", nargs="*", help="drop, forward (default: both)")
    add("-n", "--rounds", type=int, default=7, help="default: 7")
    add("--packets", type=int, default=300_000, help="in a round; default: 300 000")
    add("--flows", type=int, default=256, help="source ports, a power of two; default: 256")
    add("--protocol", choices=("tcp", "udp"), default="tcp", help="default: tcp (SYN)")
    add("--cpu", type=int, default=cpus[-1], help="default: the last one")
    add("--markdown", action="store_true", help="Markdown tables")
    options = parser.parse_args()
    for job in options.job:
        if job not in JOBS:
            parser.error(f"no job '{job}': there are {', '.join(JOBS)}")
    if options.flows & (options.flows - 1) or not 1 <= options.flows <= 16384:
        parser.error("--flows is a power of two, at most 16384")
    if options.rounds < 1 or options.packets < 64:
        parser.error("at least one round and 64 packets")
    if options.cpu not in cpus:
        parser.error(f"no CPU {options.cpu}: there are {', '.join(map(str, cpus))}")
    os.sched_setaffinity(0, {options.cpu})
    try:
        for job in options.job or JOBS:
            print(show(job, measure(job, options), options), flush=True)
    except BpfkitError as error:
        print(f"rates: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
