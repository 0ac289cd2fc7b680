#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What xdp_lb costs, and what a change of its backends moves.

    sudo python3 tools/bench/lb_cost.py [RUNS]

Nanoseconds a packet by BPF_PROG_TEST_RUN, 100 backends, 65537 slots; the minimum of RUNS (default
9).  In mode l2 a run is 100 000 packets.  In mode ipip the second packet of such a run would have
two outer headers: there it is the median of 20 000 runs of one packet, less the median of a program
that only says XDP_PASS, measured in the same way (and mode l2 is shown by that measure as well).

Then one of N backends leaves and comes back, with 50 000 flows of which each has sent a packet.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bpfkit.core.object import Object
    from bpfkit.core.program import Program
    from bpfkit.xdp_lb.balancer import Balancer

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

VIP4, VIP6 = "198.51.100.1", "2001:db8:51::1"
SIZE = 65537
FLOWS = 50_000
MACS = "02:00:00:00:00:02", "02:00:00:00:00:01"
ACK = 16
PASS = (
    "#include <bpfkit/bpfkit.h>\n#include <uapi/linux/bpf.h>\n"
    'SEC("xdp")\nint pass_all(struct xdp_md *ctx)\n{\n\treturn XDP_PASS;\n}\n'
)


def frame(source: str, sport: int, destination: str, dport: int = 80) -> bytes:
    """A TCP segment with 1000 bytes."""
    from bpfkit.net.packets.frames import ethernet, ip_packet, tcp_segment

    ends = source, destination
    segment = tcp_segment(*ends, bytes(1000), ports=(sport, dport), flags=ACK, acknowledgement=1)
    return ethernet(*MACS, ip_packet(*ends, 6, segment))


def loaded(backends: int, encap: int) -> tuple[Object, Balancer]:
    """The program with that many backends."""
    import bpfkit
    from bpfkit.xdp_lb.balancer import Balancer, Service

    made = bpfkit.load("xdp/xdp_lb.bpf.c", consts={"slots": SIZE, "encap": encap})
    balancer = Balancer(made, SIZE)
    for text in (f"{VIP4}:80/tcp", f"[{VIP6}]:80/tcp"):
        balancer.add_service(Service.parse(text))
    want(balancer, backends)
    return made, balancer


def want(balancer: Balancer, count: int, without: int = -1) -> dict[str, int]:
    """So many backends, all well, but one."""
    names = [f"10.0.{i >> 8}.{i & 255}" for i in range(1, count + 1) if i != without]
    for one in balancer.set_backends(dict.fromkeys(names, 1)):
        one.down_reason, one.mac = "", bytes(5) + b"\1"
    return balancer.apply()


def by_many(program: Program, packet: bytes, runs: int) -> float:
    """Nanoseconds a packet, of runs of 100 000."""
    return min(program.run(packet, repeat=100_000).duration_ns for _ in range(runs))


def by_one(program: Program, packet: bytes) -> float:
    """Nanoseconds of a run of one packet, with what it costs to take the time."""
    from bpfkit.core.kernel.syscall import TestRun

    run = TestRun(program.fd, len(packet), 0)
    run.data_in[: len(packet)] = packet
    return statistics.median(run.run(len(packet))[1] for _ in range(20_000))


def costs(runs: int) -> None:
    """The first table."""
    import bpfkit

    packets = {
        "IPv4, known flow": frame("203.0.113.5", 1234, VIP4),
        "IPv6, known flow": frame("2001:db8:9::5", 1234, VIP6),
        "IPv4, not for a service": frame("203.0.113.5", 1234, VIP4, 81),
    }
    bare = bpfkit.load(PASS)
    nothing = bare.programs["pass_all"]
    made, _ = loaded(100, 0)
    tunnel, _ = loaded(100, 1)
    layer2, ipip = made.programs["xdp_lb"], tunnel.programs["xdp_lb"]
    print(f"{'ns a packet':26}{'l2, by 100000':>15}{'l2, by 1':>10}{'ipip, by 1':>12}{'PASS':>6}")
    for name, packet in packets.items():
        base = by_one(nothing, packet)
        figures = by_many(layer2, packet, runs), by_one(layer2, packet), by_one(ipip, packet)
        many, one, two = figures
        only = by_many(nothing, packet, runs)
        print(f"{name:26}{many:15.0f}{one - base:10.0f}{two - base:12.0f}{only:6.0f}")
    for each in (bare, made, tunnel):
        each.close()


def disruption() -> None:
    """The second table."""
    from bpfkit.core.kernel.syscall import TestRun

    rng = random.Random(1)
    known = [frame(f"203.0.{rng.randrange(256)}.5", i & 0xFFFF, VIP4) for i in range(FLOWS)]
    print(
        f"\n{'backends':>8}{'change':>9}{'slots moved':>13}{'ideal':>8}{'flows moved':>13}"
        f"{'ideal':>8}{'by hash only':>14}{'ms':>6}"
    )
    for count in (3, 10, 100):
        made, balancer = loaded(count, 0)
        run = TestRun(made.programs["xdp_lb"].fd, len(known[0]), 0)
        for packet in known:
            run.data_in[: len(packet)] = packet
            run.run(len(packet))
        remembered = len(made["flows"])
        for change, without in (("-1", 1), ("+1", -1)):
            started = time.perf_counter()
            row = want(balancer, count, without)
            took = (time.perf_counter() - started) * 1e3
            ideal = remembered // count if change == "-1" else 0
            hashed = row["moved_flows"] + row["spared_flows"]
            print(
                f"{count:8}{change:>9}{row['moved_slots'] / SIZE:13.2%}"
                f"{row['ideal_slots'] / SIZE:8.2%}{row['moved_flows']:13}{ideal:8}{hashed:14}"
                f"{took:6.0f}"
            )
            for packet in known:
                run.data_in[: len(packet)] = packet
                run.run(len(packet))
        made.close()


if __name__ == "__main__":
    costs(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
    disruption()
