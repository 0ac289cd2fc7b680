# SPDX-License-Identifier: Apache-2.0
"""Parses xdp_firewall's rules, one or a million.

A rule is an action, by default ``deny``, and a match::

    192.0.2.0/24            packets from these addresses; without a length: from this address
    allow 2001:db8::7
    tcp/443                 packets to this port; also udp, sctp, dccp, udplite
    deny udp/1000-2000
    proto gre               a protocol, by its IANA keyword or number

In a file a ``#`` starts a comment.  The host bits of a prefix are ignored.

A million prefixes are parsed in half a second: there is no object per rule, and the addresses of
many lines are converted and packed at once.  Lines that this does not support (comments, blanks,
ports) or refuses are parsed one by one, and the error names the first bad line.
"""

from __future__ import annotations

import sys
from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from itertools import repeat

from bpfkit.core.errors import InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["PORT_PROTOCOLS", "Rule", "RuleSet", "parse_file", "parse_rule"]

#: Protocols with ports in rules, in the order of the C program's cells.
PORT_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132, "dccp": 33, "udplite": 136}
_WORDS = {number: word for word, number in PORT_PROTOCOLS.items()}
ACTIONS = {"allow": 1, "deny": 2}
ACTION_NAMES = {1: "allow", 2: "deny"}

_CHUNK = 1 << 16  # lines that are parsed at once
_PLAIN = b"0123456789abcdefABCDEF:./\n"
_KEY4, _KEY6 = 8, 24  # struct prefix4, struct prefix6


class Rule:
    """One rule.

    :ivar action: 1 allow, 2 deny.
    :ivar address: 4 or 16 bytes with the host bits cleared; empty for a rule of ports or protocols.
    :ivar length: prefix length.
    :ivar proto: IP protocol number.
    :ivar ports: (first, last), or None: the whole protocol.
    """

    __slots__ = ("action", "address", "length", "ports", "proto")

    def __init__(
        self,
        action: int,
        address: bytes = b"",
        length: int = 0,
        proto: int = 0,
        ports: tuple[int, int] | None = None,
    ) -> None:
        self.action = action
        self.address = address
        self.length = length
        self.proto = proto
        self.ports = ports

    @property
    def key(self) -> bytes:
        """The map key of a prefix: ``struct prefix4`` or ``struct prefix6``."""
        return self.address + self.length.to_bytes(
            4 if len(self.address) == 4 else 8, sys.byteorder
        )

    @property
    def match(self) -> str:
        """The rule without its action."""
        if self.address:
            return prefix_text(self.address, self.length)
        if self.ports is None:
            from bpfkit.show.protocols import protocol_name

            return f"proto {protocol_name(self.proto)}"
        low, high = self.ports
        return f"{_WORDS[self.proto]}/{low}" + (f"-{high}" if high != low else "")

    def __str__(self) -> str:
        return f"{ACTION_NAMES.get(self.action, '?')} {self.match}"


def prefix_text(address: bytes, length: int) -> str:
    """``192.0.2.0/24``; a single address without its length."""
    text = inet_ntop(AF_INET if len(address) == 4 else AF_INET6, address)
    return text if length == 8 * len(address) else f"{text}/{length}"


def parse_rule(text: str) -> Rule:
    """A rule from text.

    :raises ValueError: not a rule; the message says why.
    """
    words = text.split()
    action = ACTIONS["deny"]
    if words and words[0] in ACTIONS:
        action = ACTIONS[words.pop(0)]
    if len(words) == 2 and words[0] == "proto":
        from bpfkit.show.protocols import protocol_number

        try:
            return Rule(action, proto=protocol_number(words[1]))
        except ValueError:
            why = "a protocol is a keyword such as gre, or a number from 0 to 255"
            raise ValueError(f"{words[1]!r} is not a protocol: {why}") from None
    if len(words) != 1:
        raise ValueError(
            f"{text.strip()!r} is not a rule: [deny|allow] ADDRESS[/LENGTH], "
            "PROTOCOL/PORT[-PORT] or proto PROTOCOL"
        )
    name, slash, rest = words[0].partition("/")
    if slash and name in PORT_PROTOCOLS:
        return Rule(action, proto=PORT_PROTOCOLS[name], ports=_ports(rest))
    return _prefix(action, name, rest if slash else None)


def _ports(text: str) -> tuple[int, int]:
    low, dash, high = text.partition("-")
    numbers = []
    for part in (low, high) if dash else (low,):
        if not (part.isascii() and part.isdigit() and len(part) < 6 and int(part) < 65536):
            raise ValueError(f"{part!r} is not a port (0 to 65535)")
        numbers.append(int(part))
    if numbers[0] > numbers[-1]:
        raise ValueError(f"ports {text!r}: the first is greater than the last")
    return numbers[0], numbers[-1]


def _prefix(action: int, name: str, length: str | None) -> Rule:
    try:
        address = inet_pton(AF_INET6 if ":" in name else AF_INET, name)
    except (OSError, ValueError):
        raise ValueError(f"{name!r} is not an IPv4 or IPv6 address") from None
    bits = 8 * len(address)
    if length is None:
        length = str(bits)
    if length not in _LENGTHS or int(length) > bits:
        raise ValueError(f"prefix length {length!r} is not 0 to {bits}")
    number = int(length)
    mask = (1 << bits) - (1 << bits - number)
    cleared = int.from_bytes(address, "big") & mask
    return Rule(action, cleared.to_bytes(len(address), "big"), number)


_LENGTHS = frozenset(map(str, range(129)))


class RuleSet:
    """Many rules: prefixes as packed map keys, the others as objects.

    :ivar prefixes: (family, action) -> concatenated map keys.
    :ivar others: rules of ports and protocols.
    """

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self.prefixes: dict[tuple[int, int], bytearray] = {
            (family, action): bytearray() for family in (4, 6) for action in (1, 2)
        }
        self.others: list[Rule] = []
        for rule in rules:
            self.add(rule)

    def add(self, rule: Rule) -> None:
        """Add a rule."""
        if rule.address:
            family = 4 if len(rule.address) == 4 else 6
            self.prefixes[family, rule.action] += rule.key
        else:
            self.others.append(rule)

    def count(self, family: int) -> int:
        """Number of prefixes of IPv4 (4) or IPv6 (6); duplicates count."""
        size = sum(len(self.prefixes[family, action]) for action in (1, 2))
        return size // (_KEY4 if family == 4 else _KEY6)

    def keys(self, family: int) -> bytearray:
        """The map keys of all prefixes of a family, whatever their action."""
        allow, deny = self.prefixes[family, 1], self.prefixes[family, 2]
        return allow + deny if allow else deny

    def lengths(self, family: int) -> set[int]:
        """The prefix lengths in use."""
        found: set[int] = set()
        for action in (1, 2):
            keys = self.prefixes[family, action]
            if keys:
                words = memoryview(keys).cast("I" if family == 4 else "Q")
                found |= set((words[1::2] if family == 4 else words[2::3]).tolist())
        return found


def parse_file(path: str) -> RuleSet:
    """The rules in a file (``-``: standard input).

    :raises InputError: unreadable, or a bad line (the message has its number and the reason).
    """
    try:
        if path == "-":
            data = sys.stdin.buffer.read()
        else:
            with open(path, "rb") as file:
                data = file.read()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot read rules from {path}", why=why) from None
    return parse_data(data, "standard input" if path == "-" else path)


def parse_data(data: bytes, name: str) -> RuleSet:
    """The rules in ``data``; ``name`` is the file name in messages."""
    rules = RuleSet()
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    plain = not data.translate(None, _PLAIN)
    for start in range(0, len(lines), _CHUNK):
        chunk = lines[start : start + _CHUNK]
        try:
            _many(rules, chunk, plain)
        except (OSError, ValueError, KeyError):
            _one_by_one(rules, chunk, name, start + 1)
    return rules


def _one_by_one(rules: RuleSet, lines: Sequence[str], name: str, first: int) -> None:
    for number, line in enumerate(lines, first):
        text = line.partition("#")[0].strip()
        if text:
            try:
                rules.add(parse_rule(text))
            except ValueError as error:
                raise InputError(
                    f"{name}, line {number}", why=str(error), hint="no rule was changed"
                ) from None


def _many(rules: RuleSet, lines: list[str], plain: bool) -> None:
    """Add the rules of all lines.

    :raises OSError, ValueError, KeyError: a line is not supported or bad; no rule was added.
    """
    odd: list[Rule] = []
    by_action = {2: lines, 1: []}
    if not plain:
        from re import compile as pattern

        # optional action, blanks, possible prefix
        match = pattern(r"(?:(allow|deny)[ \t]+)?([0-9a-fA-F.:/]*)[ \t\r]*(?:#.*)?").fullmatch
        by_action = {2: [], 1: []}
        for line in lines:
            found = match(line)
            if found is None:
                text = line.partition("#")[0].strip()
                if text:
                    odd.append(parse_rule(text))
            elif found[2]:
                by_action[1 if found[1] == "allow" else 2].append(found[2])
            elif found[1]:
                raise ValueError  # an action without a match
    packed = []
    for action, words in by_action.items():
        words = list(filter(None, words))
        six = [word for word in words if ":" in word]
        if six:
            words = [word for word in words if ":" not in word]
        packed.append((4, action, _pack(words, 4)))
        packed.append((6, action, _pack(six, 6)))
    for family, action, keys in packed:
        rules.prefixes[family, action] += keys
    for rule in odd:
        rules.add(rule)


class _Tables:
    """Prefix length as text -> its bytes in a key, and the netmask."""

    def __init__(self, size: int, width: int) -> None:
        bits = 8 * size
        self.length = {str(n): n.to_bytes(width, sys.byteorder) for n in range(bits + 1)}
        self.mask = {
            str(n): ((1 << bits) - (1 << bits - n)).to_bytes(size, "big") for n in range(bits + 1)
        }


_tables = {4: _Tables(4, 4), 6: _Tables(16, 8)}


def _pack(words: list[str], family: int) -> bytearray:
    """Map keys of prefixes as text."""
    if not words:
        return bytearray()
    with_length = [word for word in words if "/" in word]
    if len(with_length) < len(words):
        every = "/32" if family == 4 else "/128"
        words = [word if "/" in word else word + every for word in words]
    parts = "/".join(words).split("/")
    if len(parts) != 2 * len(words):  # a line with two slashes
        raise ValueError
    tables = _tables[family]
    lengths = parts[1::2]
    addresses = b"".join(map(inet_pton, repeat(AF_INET if family == 4 else AF_INET6), parts[::2]))
    masks = b"".join(map(tables.mask.__getitem__, lengths))
    # one operation on a very long integer is fast
    both = int.from_bytes(addresses, "big") & int.from_bytes(masks, "big")
    addresses = both.to_bytes(len(addresses), "big")
    numbers = b"".join(map(tables.length.__getitem__, lengths))
    keys = bytearray(len(addresses) + len(numbers))
    to, from_address, from_length = (
        memoryview(part).cast("I") if family == 4 else memoryview(part).cast("Q")
        for part in (keys, addresses, numbers)
    )
    step = 2 if family == 4 else 3
    for i in range(step - 1):
        to[i::step] = from_address[i :: step - 1]
    to[step - 1 :: step] = from_length
    return keys
