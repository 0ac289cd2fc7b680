# SPDX-License-Identifier: Apache-2.0
"""The rules of cgroup_skb: ``PREFIX[:PORT]``, and what they mean for a lookup of one prefix.

::

    192.0.2.0/24        these remote addresses; without a length: this address
    192.0.2.0/24:443    the same, only where the remote port is 443
    2001:db8::/32       IPv6; in brackets where a port follows: [2001:db8::/32]:443
    ::ffff:192.0.2.1    192.0.2.1: packets of an IPv6 socket to there are IPv4

The longest prefix that holds the address decides; in it a rule of the port goes before one without
port.  A prefix that has rules of ports only leaves other ports to the next shorter prefix.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton

from bpfkit.core.errors import InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ACTIONS", "ALLOW", "DENY", "REJECT", "Rule", "Table", "parse_rule", "resolve"]

_MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96

ALLOW, DENY, REJECT = 1, 2, 3  # enum action
ACTIONS = {ALLOW: "allow", DENY: "deny", REJECT: "reject"}


class Rule:
    """One rule.

    :ivar action: ALLOW, DENY or REJECT.
    :ivar address: 4 or 16 bytes, network byte order, the host bits cleared.
    :ivar length: prefix length.
    :ivar port: of the remote end; None: any, and packets without ports.
    """

    __slots__ = ("action", "address", "length", "port")

    def __init__(self, action: int, address: bytes, length: int, port: int | None) -> None:
        self.action = action
        self.address = address
        self.length = length
        self.port = port

    def __str__(self) -> str:
        family = AF_INET if len(self.address) == 4 else AF_INET6
        prefix = f"{inet_ntop(family, self.address)}/{self.length}"
        if self.port is not None:
            prefix = f"{prefix}:{self.port}" if family == AF_INET else f"[{prefix}]:{self.port}"
        return f"{ACTIONS[self.action]} {prefix}"


def parse_rule(text: str, action: int) -> Rule:
    """A rule from text.

    :raises InputError: not a rule; says why.
    """
    prefix, port = _split(text.strip())
    name, slash, length = prefix.partition("/")
    try:
        address = inet_pton(AF_INET6 if ":" in name else AF_INET, name)
    except (OSError, ValueError):
        raise InputError(
            f"{text!r} is not PREFIX[:PORT]", why=f"{name!r} is not an IPv4 or IPv6 address"
        ) from None
    bits = 8 * len(address)
    if not slash:
        length = str(bits)
    if not (length.isascii() and length.isdigit() and int(length) <= bits):
        raise InputError(
            f"{text!r} is not PREFIX[:PORT]", why=f"prefix length {length!r} is not 0 to {bits}"
        )
    number = None
    if port is not None:
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise InputError(
                f"{text!r} is not PREFIX[:PORT]", why=f"port {port!r} is not 1 to 65535"
            )
        number = int(port)
    bits = int(length)
    if address.startswith(_MAPPED) and bits >= 96:
        address, bits = address[12:], bits - 96  # such packets are IPv4
    return Rule(action, _masked(address, bits), bits, number)


def _split(text: str) -> tuple[str, str | None]:
    """(prefix, port), port None where there is none."""
    if text.startswith("["):
        inner, bracket, rest = text[1:].partition("]")
        if not bracket:
            raise InputError(f"{text!r} is not PREFIX[:PORT]", why="the ] is missing")
        length, colon, port = rest.partition(":")
        if length and (not length.startswith("/") or "/" in inner):
            raise InputError(
                f"{text!r} is not PREFIX[:PORT]", why=f"{length!r} cannot follow the ]"
            )
        return inner + length, port if colon else None
    if text.count(":") == 1:
        prefix, _, port = text.partition(":")
        return prefix, port
    return text, None


def _masked(address: bytes, length: int) -> bytes:
    bits = 8 * len(address)
    mask = (1 << bits) - (1 << bits - length)
    return (int.from_bytes(address, "big") & mask).to_bytes(len(address), "big")


class Table:
    """What the program looks up.

    :ivar prefixes: (address, length) -> (action, group); group 0: no port rules.
    :ivar ports: (group, port) -> action.
    """

    def __init__(self) -> None:
        self.prefixes: dict[tuple[bytes, int], tuple[int, int]] = {}
        self.ports: dict[tuple[int, int], int] = {}


def resolve(rules: Iterable[Rule], default: int) -> Table:
    """The table of some rules, where each prefix has what shorter ones leave to it.

    Of two rules of the same prefix and port the later one counts.

    :param default: the action for addresses without a rule.
    """
    own: dict[tuple[bytes, int], dict[int | None, int]] = {}
    for rule in rules:
        own.setdefault((rule.address, rule.length), {})[rule.port] = rule.action
    table = Table()
    full: dict[tuple[bytes, int], dict[int | None, int]] = {}
    # Shorter prefixes first: the nearest around each is complete by then.
    for address, length in sorted(own, key=lambda key: key[1]):
        mine = own[address, length]
        around: dict[int | None, int] = {None: default}
        if None not in mine:
            for shorter in range(length - 1, -1, -1):
                outer = full.get((_masked(address, shorter), shorter))
                if outer is not None:
                    around = outer
                    break
        full[address, length] = {**around, **mine}
    for group, (key, actions) in enumerate(full.items(), 1):
        ports = {port: action for port, action in actions.items() if port is not None}
        rest = actions[None]
        table.prefixes[key] = (rest, group if ports else 0)
        for port, action in ports.items():
            table.ports[group, port] = action
    return table
