#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Nanoseconds per packet of every XDP and tc program, beside one instruction.

    sudo python3 tools/bench/hook_cost.py [-n ROUNDS] [--markdown] [PROGRAM ...]

Packet runs (BPF_PROG_TEST_RUN): 100 000 repeats, program and baseline in turns, the minimum of
ROUNDS (default 50).  The baseline is `return XDP_DROP` or `return TC_ACT_UNSPEC`, loaded and run in
the same way; what a packet run itself takes is in both figures, so `more` is the program's own
cost and `ratio` is what it makes of the cheapest program there can be.

A program that changes its packet (TTL, MAC addresses, encapsulation) would find its own work
there at the second repeat.  It is run once per call, 2 000 times, the baseline too; such rows have
a * and hold the clock's own cost, which both figures share.

Programs come from `python3 -m bpfkit list`, set up as for `--pcap`; OPTIONS has their options,
PREPARED does it for those without `--pcap`.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from bpfkit.app.base import App
    from bpfkit.app.interface import InterfaceApp
    from bpfkit.core.object import Object
    from bpfkit.core.program import Program

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [path for path in (ROOT, HERE) if path not in sys.path]

from benchlib import PACKETS as EVERY  # noqa: E402
from benchlib import table  # noqa: E402

REPEAT = 100_000
SINGLES = 2_000
PACKETS = {kind: frame for kind, frame in EVERY.items() if "GRE" not in kind}
#: Number of a program type -> (its name, what the baseline returns, names of return values).
TYPES = {
    6: ("XDP", 1, "XDP_ABORTED XDP_DROP XDP_PASS XDP_TX XDP_REDIRECT"),
    3: ("SCHED_CLS", -1, "TC_ACT_OK TC_ACT_RECLASSIFY TC_ACT_SHOT TC_ACT_PIPE"),
    4: ("SCHED_ACT", -1, "TC_ACT_OK TC_ACT_RECLASSIFY TC_ACT_SHOT TC_ACT_PIPE"),
}


#: Options of programs that have `--pcap`: a row for each list; by default one without options.
OPTIONS = {
    "xdp_decap": (["--tunnel", "192.0.2.1,198.51.100.2"],),
    "tc_classifier": ([], ["--rule", "tcp,mark=1"]),
    "xdp_firewall": (
        ["--events", "none", *(f"--rule=10.{n}.0.0/16" for n in range(10))],
        ["--events", "none", *(f"--rule=192.0.{n}.0/24" for n in range(10))],
    ),
    "xdp_redirect": (["--how", "patch"], ["--how", "switch"], ["--how", "router"]),
    "xdp_lb": (
        [
            *("--vip=198.51.100.2:80/tcp", "--vip=[2001:db8::2]:80/tcp", "--health=none"),
            *("--backend=198.51.100.101", "--backend=198.51.100.102"),
            *("--backend=2001:db8::101", "--backend=2001:db8::102"),
        ],
    ),
}
#: What those options come to, where they are long.
IN_SHORT = {
    "xdp_firewall": ("10 prefixes, none matches", "10 prefixes, IPv4 matches"),
    "xdp_decap": ("not tunnelled",),
    "xdp_lb": ("2 backends, IPIP",),
}


class Prepared(NamedTuple):
    """How to make a program without `--pcap` do its usual work."""

    functions: tuple[str, ...]
    prepare: Callable[[Object], object] | None = None
    what: str = ""  # what was prepared, for the table


def _look_for_another(loaded: Object) -> None:
    # proto, dst, port, drop_hook, drop_ifindex, drop_place, push, vlan
    loaded["control"][0] = (6, 0xFFFFFFFF, 9, 0, 0, 0, 0, 0)


PREPARED = {
    "hooks": Prepared(("xdp_native", "tcx_ingress"), _look_for_another, "traces another packet"),
    "tc_action": Prepared(("tc_action",)),
}


class Cost(NamedTuple):
    """A row: ``ours`` and ``base`` in ns per packet."""

    program: str
    type: str
    packet: str
    verdict: str
    ours: int
    base: int
    single: bool

    @property
    def ratio(self) -> float:
        return self.ours / self.base


#: Programs whose XDP and tc parts serve another purpose: the tour of the map types, the program
#: that is replaced.
OTHERS = {"maps", "ext"}


def classes(wanted: list[str]) -> list[type[App]]:
    """The classes of the programs with XDP or tc functions in their source."""
    from bpfkit.commands.catalog import programs
    from bpfkit.core.errors import InputError
    from bpfkit.core.kernel.constants import prog_type_name

    names = {prog_type_name(number) for number in TYPES}
    found = {
        cls.name: cls
        for cls in programs()
        if cls.source and names & set(cls.types()) and cls.name not in OTHERS
    }
    for name in wanted:
        if name not in found:
            raise InputError(f"no XDP or tc program named {name!r}", why=", ".join(found))
    return [found[name] for name in wanted or found]


@contextmanager
def as_for_pcap(cls: type[InterfaceApp], options: list[str]) -> Generator[Program]:
    """The program that `--pcap` would run, loaded and its maps filled."""
    from bpfkit.app.options import parser_of

    app = cls(parser_of(cls).parse_args(["--pcap", "-", *options]))
    app.note = lambda text: None  # type: ignore[method-assign]
    try:
        app.check_options()
        app.runner()
        programs = app.object.programs
        yield programs[app.entry or next(iter(programs))]
    finally:
        app.close()


def loaded_programs(wanted: list[str]) -> Generator[tuple[str, Program]]:
    """(title, program), loaded until the next is asked for."""
    import bpfkit
    from bpfkit.app.interface import InterfaceApp

    for cls in classes(wanted):
        if issubclass(cls, InterfaceApp):
            for number, options in enumerate(OPTIONS.get(cls.name, ([],))):
                short = IN_SHORT.get(cls.name)
                words = f"({short[number]})" if short else " ".join(options)
                with as_for_pcap(cls, list(options)) as program:
                    yield f"{cls.name} {words}".strip(), program
        else:
            prepared = PREPARED[cls.name]
            with bpfkit.load(cls.source, programs=prepared.functions) as loaded:
                if prepared.prepare is not None:
                    prepared.prepare(loaded)
                for function in prepared.functions:
                    title = cls.name if function == cls.name else f"{cls.name} {function}"
                    yield (
                        f"{title} ({prepared.what})" if prepared.what else title,
                        (loaded.programs[function]),
                    )


def baseline(number: int) -> Program:
    """A program of one instruction (and the exit that every program has)."""
    from bpfkit.core.kernel import asm
    from bpfkit.core.program import Program

    code = asm.assemble(asm.mov(asm.r0, TYPES[number][1]), asm.exit_())
    return Program.from_insns(number, bytes(code), name="baseline")


def compare(
    program: Program, base: Program, frame: bytes, rounds: int, repeat: int, singles: int
) -> tuple[int, int, bool]:
    """(ns per packet of the program, of the baseline, measured by single runs)."""
    single = program.run(frame).data != frame
    pairs = [
        (program.run(frame, n).duration_ns, base.run(frame, n).duration_ns)
        for n in ([1] * singles if single else [repeat] * rounds)
    ]
    return min(ours for ours, _ in pairs), min(theirs for _, theirs in pairs), single


def verdict(number: int, retval: int) -> str:
    """The kernel's name of a return value."""
    names = TYPES[number][2].split()
    if retval == 0xFFFFFFFF:
        return "TC_ACT_UNSPEC"
    return names[retval] if retval < len(names) else str(retval)


def measure(
    wanted: list[str], rounds: int = 50, repeat: int = REPEAT, singles: int = SINGLES
) -> Generator[Cost]:
    """A row per program and kind of packet."""
    bases = {number: baseline(number) for number in TYPES}
    loaded = loaded_programs(wanted)
    try:
        for title, program in loaded:
            kind = TYPES[program.type][0]
            for packet, frame in PACKETS.items():
                judged = verdict(program.type, program.run(frame).retval)
                figures = compare(program, bases[program.type], frame, rounds, repeat, singles)
                yield Cost(title, kind, packet, judged, *figures)
    finally:
        loaded.close()  # where the reader of the rows stops early
        for base in bases.values():
            base.close()


def listing(costs: list[Cost]) -> str:
    """A line per program and kind of packet."""
    titles = ["program", "packet", "verdict", "ns", "one instruction", "more", "ratio"]
    rows = [
        [
            cost.program,
            cost.packet,
            cost.verdict + ("*" if cost.single else ""),
            f"{cost.ours}",
            f"{cost.base}",
            f"{cost.ours - cost.base:+}",
            f"{cost.ratio:.2f}",
        ]
        for cost in costs
    ]
    return table(titles, rows, 3)


def pivot(costs: list[Cost]) -> str:
    """A line per program, a column per kind of packet: ns, and the ratio to one instruction."""
    rows = []
    for kind in dict.fromkeys(cost.type for cost in costs):
        cells = []
        for packet in PACKETS:
            same = [c.base for c in costs if (c.type, c.packet, c.single) == (kind, packet, False)]
            cells.append(f"{min(same)}" if same else "-")
        rows.append([f"one instruction, {kind}", *cells])
    for title in dict.fromkeys(cost.program for cost in costs):
        own = [cost for cost in costs if cost.program == title]
        cells = [f"{c.ours}{'*' if c.single else ''} ({c.ratio:.2f})" for c in own]
        rows.append([title, *cells])
    return table(["ns per packet (ratio)", *PACKETS], rows, 1, markdown=True)


def main() -> int:
    """Print the table."""
    from argparse import ArgumentParser

    from bpfkit.core.errors import BpfkitError

    parser = ArgumentParser(description="ns per packet of XDP and tc programs, by packet runs")
    parser.add_argument("-n", "--rounds", type=int, default=50, help="default: 50")
    parser.add_argument("--repeat", type=int, default=REPEAT, help="packets a round: 100 000")
    parser.add_argument("--singles", type=int, default=SINGLES, help="of rows with a *: 2 000")
    parser.add_argument("--markdown", action="store_true", help="a Markdown table")
    parser.add_argument("program", nargs="*", help="default: all XDP and tc programs of `list`")
    options = parser.parse_args()
    if min(options.rounds, options.repeat, options.singles) < 1:
        parser.error("at least one round, one packet")
    try:
        costs = list(measure(options.program, options.rounds, options.repeat, options.singles))
    except BpfkitError as error:
        print(f"hook_cost: {error}", file=sys.stderr)
        return error.exit_status
    print(pivot(costs) if options.markdown else listing(costs))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
