# SPDX-License-Identifier: Apache-2.0
"""``python3 -m bpfkit.sk_lookup add|del|list``: the rules of an sk_lookup that is running."""

from __future__ import annotations

from bpfkit.app.lifecycle import guarded
from bpfkit.app.options import Parser, call_of, port, positive
from bpfkit.app.place import add_netns
from bpfkit.app.signals import output, say
from bpfkit.core.errors import UsageError
from bpfkit.core.log import set_verbose
from bpfkit.core.words import count_of, thousands

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterable, Sequence

    from bpfkit.app.signals import Signals
    from bpfkit.net.sockets.listeners import Listener
    from bpfkit.show.rows import Row
    from bpfkit.sk_lookup.control import Steering
    from bpfkit.sk_lookup.rules import Rule
    from bpfkit.sk_lookup.targets import Target

__all__ = [
    "add_listener_options",
    "command",
    "rule_lines",
    "rule_notes",
    "rule_rows",
    "wanted_rules",
]

NAME = "sk_lookup"


def add_listener_options(parser: ArgumentParser) -> None:
    """Declare the options that say which socket PORT is."""
    add = parser.add_argument
    add("--to", metavar="HOST", help="the address that the server listens on")
    add("--pid", metavar="PID", type=positive, help="the process whose socket it is")
    add("--fd", metavar="N", type=port, help="with --pid: the socket's descriptor there")
    add(
        "--proto",
        choices=("tcp", "udp", "both"),
        default="both",
        help="protocol of rules that name none (default: both)",
    )
    add("--take", action="store_true", help="steer ports that other sockets listen on, too")


def _parser() -> ArgumentParser:
    parser = Parser(prog=call_of(NAME), allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    texts = {
        "add": "add rules, or give those there another listener",
        "del": "delete rules",
        "list": "show the rules, and what they have steered",
    }
    for name, text in texts.items():
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        add = sub.add_argument
        add_netns(sub)
        add("-v", "--verbose", action="store_true", help="print details on standard error")
        if name == "list":
            add("--json", action="store_true", help="JSON lines")
            continue
        add("rules", metavar="RULE", nargs="+", help="such as 5202:5201, 'tcp/6000-6999:5201'")
        if name == "add":
            add_listener_options(sub)
        else:
            add("--proto", choices=("tcp", "udp", "both"), default="both", help="as with add")
    return parser


def command(argv: Sequence[str]) -> int:
    """Run one of the commands; returns the exit status."""

    def work(signals: Signals) -> int:
        options = _parser().parse_args(argv)
        signals.verbose = options.verbose
        set_verbose(options.verbose)
        rules = [parsed(text, options.proto) for text in getattr(options, "rules", [])]
        if options.netns is None:
            _work(options, rules)
            return 0
        from bpfkit.net.links.netns import NetNS

        with NetNS.open(options.netns) as namespace:
            namespace.run(_work, options, rules)
        return 0

    return guarded(NAME, work)


def _work(options: Namespace, rules: list[Rule]) -> None:
    from bpfkit.sk_lookup.running import find

    with find() as steering:
        if options.command == "list":
            _list(steering, options)
        elif options.command == "del":
            steering.delete(rules)
            say(f"{NAME}: {_count(len(rules))} deleted")
        else:
            from bpfkit.sk_lookup.rules import PROTOS
            from bpfkit.sk_lookup.sockets import Sockets

            sockets = Sockets(steering.maps["sockets"])
            steering.add(wanted_rules(rules, options), sockets.refresh)
            if (
                any(rule.protos & PROTOS["udp"] for rule in rules)
                and not steering.wait_until_seen()
            ):
                say(f"{NAME}: the running program is busy: UDP replies are not rewritten yet")
            say(f"{NAME}: {_count(len(rules))} added")


def _count(number: int) -> str:
    return count_of(number, "rule")


def parsed(text: str, proto: str) -> Rule:
    """The rule of a text.

    :raises UsageError: it is none.
    """
    from bpfkit.sk_lookup.rules import parse_rule

    try:
        return parse_rule(text, proto)
    except ValueError as error:
        raise UsageError(str(error)) from None


def wanted_rules(rules: Iterable[Rule], options: Namespace) -> list[tuple[Rule, Target]]:
    """The rules with their targets, after seeing that a server listens and the ports are free.

    :raises UsageError: the options do not fit each other.
    :raises InputError: nothing listens there, or another socket listens on a steered port.
    """
    from copy import copy

    from bpfkit.sk_lookup.rules import PROTOS
    from bpfkit.sk_lookup.sockets import check_free, ephemeral_clash, resolve
    from bpfkit.sk_lookup.targets import Target

    if options.fd is not None and options.pid is None:
        raise UsageError("--fd needs --pid", why="descriptors are numbers of a process")
    address = b"" if options.to is None else _address(options.to)
    fd = -1 if options.fd is None else options.fd
    known: dict[tuple[int, int], tuple[Target, list[Listener]]] = {}
    result, effective = [], []
    own: list[Listener] = []
    for rule in rules:
        key = rule.port, rule.protos
        if key not in known:
            target = Target(rule.port, address, options.pid or 0, fd)
            known[key] = target, resolve(target, rule.protos)
        target, found = known[key]
        own += found
        result.append((rule, target))
        narrowed = copy(rule)
        narrowed.protos = sum({PROTOS[one.proto] for one in found}) & rule.protos
        effective.append(narrowed)
    if not options.take:
        check_free(effective, own)
    for text in filter(None, map(ephemeral_clash, effective)):
        say(f"{NAME}: {text}")
    return result


def _address(text: str) -> bytes:
    from ipaddress import ip_address

    try:
        return ip_address(text.strip("[]")).packed
    except ValueError:
        raise UsageError(
            f"--to {text}", why="that is not an address; names are not looked up"
        ) from None


# ---------------------------------------------------------------- figures


def rule_rows(steering: Steering) -> list[Row]:
    """A row for each rule, in the order they were added."""
    from bpfkit.sk_lookup.control import ERRORS

    slots = set(steering.maps["sockets"].keys())
    targets = steering.targets()
    rows: list[Row] = []
    for entry in steering.entries():
        counts = steering.counts(entry.number)
        rule = entry.rule
        target = targets.get(entry.target)
        rows.append(
            {
                "rule": str(rule),
                "proto": rule.proto_text,
                "prefix": rule.prefix_text or None,
                "ports": rule.ports_text,
                "port": rule.port,
                "pid": target.pid or None if target else None,
                "listening": any(slot // 8 == entry.target for slot in slots),
                "lookups": counts["lookups"],
                "assigned": counts["assigned"],
                "misses": counts["misses"],
                "errors": sum(counts[name] for name in ERRORS),
                **{name: counts[name] for name in ERRORS},
                "replies": counts["replies"],
            }
        )
    return rows


_SHOWN = ("rule", "lookups", "assigned", "misses", "errors", "replies")


def rule_lines(rows: list[Row], most: int = 0) -> list[str]:
    """The rows as a table of at most 80 columns, then the errors by kind.

    :param most: so many rules, those with the most lookups; 0: all.
    """
    from bpfkit.show.text import table

    if not rows:
        return ["no rules"]
    shown = rows
    if most and len(rows) > most:
        shown = sorted(rows, key=lambda row: -row["lookups"])[:most]
    body = [[str(row[name]) for name in _SHOWN] for row in shown]
    right = [name != "rule" for name in _SHOWN]
    lines = list(table(list(_SHOWN), body, right=right))
    lines += rule_notes(shown)
    if len(shown) < len(rows):
        lines.append(f"… and {count_of(len(rows) - len(shown), 'rule')} more ('list' shows all)")
    return lines


def rule_notes(rows: Iterable[Row]) -> list[str]:
    """What the table has no room for: errors by kind, and listeners that have closed."""
    from bpfkit.sk_lookup.control import ERRORS

    notes = []
    for row in rows:
        kinds = [f"{thousands(row[name])} {name.upper()}" for name in ERRORS if row[name]]
        if kinds:
            notes.append(f"{row['rule']}: {', '.join(kinds)}")
        if not row["listening"]:
            notes.append(f"{row['rule']}: nobody listens on port {row['port']}")
    return notes


def _list(steering: Steering, options: Namespace) -> None:
    from bpfkit.show.rows import json_rows

    rows = rule_rows(steering)
    if options.json:
        output(json_rows(rows, 0))
        return
    output("\n".join(rule_lines(rows)) + "\n")
