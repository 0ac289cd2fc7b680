# SPDX-License-Identifier: Apache-2.0
"""``python3 -m bpfkit.xdp_firewall add|del|list|load``: the rules of a firewall that is running."""

from __future__ import annotations

from itertools import chain, islice

from bpfkit.app.lifecycle import guarded
from bpfkit.app.options import Parser, call_of
from bpfkit.app.place import add_interface, add_netns
from bpfkit.app.signals import output, say
from bpfkit.core.errors import UsageError
from bpfkit.core.log import set_verbose

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterator, Sequence

    from bpfkit.app.signals import Signals
    from bpfkit.show.rows import Row
    from bpfkit.xdp_firewall.control import Firewall
    from bpfkit.xdp_firewall.rules import Rule

__all__ = ["command", "interface_rows", "rule_rows"]

NAME = "xdp_firewall"
#: Up to so many prefixes `list` shows all of them; of more only those with packets.
_ALL = 10_000
_CHUNK = 4096  # rows that are written at once
_LINE = "{:<15} {:<6} {:<43} {:>12} {:>15}\n"


def _parser() -> ArgumentParser:
    parser = Parser(prog=call_of(NAME), allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    texts = {
        "add": "add rules, or change the action of those there",
        "del": "delete rules",
        "list": "show the rules, and what they have matched",
        "load": "replace all rules by those of a file, at once; their counters start at 0",
    }
    for name, text in texts.items():
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        add = sub.add_argument
        add_interface(sub, "the firewall's interface (default: the only firewall)")
        add_netns(sub)
        add("-v", "--verbose", action="store_true", help="print details on standard error")
        if name in ("add", "del"):
            add("rules", metavar="RULE", nargs="+", help="such as 192.0.2.0/24, 'allow tcp/443'")
        elif name == "load":
            add("file", metavar="FILE", help="rules, one a line (-: standard input)")
        else:
            add("--all", action="store_true", help=f"also of more than {_ALL} prefixes")
            add("--json", action="store_true", help="JSON lines")
    return parser


def command(argv: Sequence[str]) -> int:
    """Run one of the commands; returns the exit status."""

    def work(signals: Signals) -> int:
        options = _parser().parse_args(argv)
        signals.verbose = options.verbose
        set_verbose(options.verbose)
        wanted: list[Rule] = []
        rules = None
        if options.command in ("add", "del"):
            wanted = [_rule(text) for text in options.rules]
        elif options.command == "load":
            from bpfkit.xdp_firewall.rules import parse_file

            rules = parse_file(options.file)
        with _firewall(options) as firewall:
            if rules is not None:
                count = firewall.load(rules)
                others = len(rules.others)
                _say(f"{_count(count, 'prefix')} and {_count(others, 'other rule')} on", firewall)
            elif options.command == "list":
                _list(firewall, options)
            elif options.command == "add":
                changed = firewall.add(wanted)
                for rule in firewall.known:
                    _say(f"'{rule}' was there already on", firewall)
                _say(f"{_count(changed, 'rule')} added on", firewall)
            else:
                firewall.delete(wanted)
                _say(f"{_count(len(wanted), 'rule')} deleted on", firewall)
        return 0

    return guarded(NAME, work)


def _rule(text: str) -> Rule:
    from bpfkit.xdp_firewall.rules import parse_rule

    try:
        return parse_rule(text)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _firewall(options: Namespace) -> Firewall:
    from bpfkit.xdp_firewall.control import find

    if options.netns is None:
        return find(options.interface)
    from bpfkit.net.links.netns import NetNS

    with NetNS.open(options.netns) as namespace:
        return namespace.run(find, options.interface)


def _count(number: int, what: str) -> str:
    """``1 rule``, ``2 rules``."""
    if number == 1:
        return f"1 {what}"
    return f"{number} {what}{'es' if what.endswith('x') else 's'}"


def _say(text: str, firewall: Firewall) -> None:
    say(f"{NAME}: {text} {firewall.interface}")


def interface_rows(interface: str, totals: list[tuple[int, int]]) -> list[Row]:
    """Passed and dropped on the interface, by the reason."""
    from bpfkit.xdp_firewall.control import REASONS

    rows: list[Row] = []
    for (passes, why), (packets, size) in zip(REASONS, totals, strict=False):
        if packets or (why == "no rule" and passes):
            rows.append(_row(interface, "pass" if passes else "drop", f"({why})", packets, size))
    return rows


def _row(interface: str, action: str, rule: str, packets: int, size: int) -> Row:
    return {
        "interface": interface,
        "action": action,
        "rule": rule,
        "packets": packets,
        "bytes": size,
    }


def rule_rows(firewall: Firewall, *, hit_only: bool = False, skip: bool = False) -> Iterator[Row]:
    """A row per prefix (``skip``: none; ``hit_only``: those with packets) and per other rule."""
    from bpfkit.xdp_firewall.rules import ACTION_NAMES, prefix_text

    name = firewall.interface
    found = [] if skip else sorted(firewall.prefixes(hit_only=hit_only))
    for _, address, length, action, packets, size in found:
        yield _row(name, ACTION_NAMES[action], prefix_text(address, length), packets, size)
    for rule, packets, size in firewall.others():
        yield _row(name, ACTION_NAMES[rule.action], rule.match, packets, size)


def _list(firewall: Firewall, options: Namespace) -> None:
    from bpfkit.show.jsonl import json_lines
    from bpfkit.show.rows import stamp

    first = stamp(0)
    totals = firewall.totals()
    count = firewall.count
    everything = options.all or count <= _ALL
    rows = chain(
        interface_rows(firewall.interface, totals), rule_rows(firewall, hit_only=not everything)
    )
    if not options.json:
        output(_LINE.format("interface", "action", "rule", "packets", "bytes"))
    while chunk := list(islice(rows, _CHUNK)):
        if options.json:
            output(json_lines([{**first, **row} for row in chunk]))
        else:
            output("".join([_LINE.format(*row.values()) for row in chunk]))
    if options.json:
        summary = {"summary": True, "prefixes": count, "lost_events": totals[-1][0]}
        output(json_lines([{**first, **summary}]))
        return
    more = "" if everything else ", of which those with packets are shown (--all shows all)"
    output(f"{_count(count, 'prefix')}{more}\n")
