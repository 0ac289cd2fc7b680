# SPDX-License-Identifier: Apache-2.0
"""Steering rules: their text, and which one is in force for an address and a port.

::

    [tcp/|udp/][PREFIX:]PORTS:PORT

    5202:5201                        port 5202 of every address, TCP and UDP
    6000-6999:5201                   a range
    tcp/192.0.2.0/24:1-65535:5201    every port of a prefix, TCP only
    udp/[2001:db8::/64]:53:5353      brackets around an IPv6 prefix are optional

The longest prefix decides, then the narrowest range, then the rule added last.
"""

from __future__ import annotations

from array import array

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["PROTOS", "Place", "Rule", "parse_rule", "tables"]

#: Name -> bit in a rule's ``protos``; IPPROTO_* by name in :data:`NUMBERS`.
PROTOS = {"tcp": 1, "udp": 2}
NUMBERS = {"tcp": 6, "udp": 17}
BOTH = 3
_BITS = {4: 32, 6: 128}

#: (IPPROTO_*, 4 or 6, prefix length, 16 bytes: the address, an IPv4 one in the first four).
Place = tuple[int, int, int, bytes]


class Rule:
    """Which packets go to a listener.

    :ivar protos: 1 TCP, 2 UDP, 3 both.
    :ivar family: 4, 6, or 0 for every address.
    :ivar length: of the prefix.
    :ivar address: 16 bytes in network order, an IPv4 address in the first four.
    :ivar first: the first port, and ``last``, the last one.
    :ivar port: the listener's.
    """

    __slots__ = ("address", "family", "first", "last", "length", "port", "protos")

    def __init__(
        self, protos: int, family: int, length: int, address: bytes, ports: tuple[int, int, int]
    ) -> None:
        self.protos = protos
        self.family = family
        self.length = length
        self.address = address
        self.first, self.last, self.port = ports

    @property
    def match(self) -> tuple[int, int, int, bytes, int, int]:
        """What it matches; two rules with the same match are the same rule."""
        return self.protos, self.family, self.length, self.address, self.first, self.last

    @property
    def ports_text(self) -> str:
        """``5202`` or ``6000-6999``."""
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    @property
    def prefix_text(self) -> str:
        """``192.0.2.0/24``; "" for every address."""
        from bpfkit.show.address import address_text

        if not self.family:
            return ""
        return f"{address_text(self.address[: _BITS[self.family] // 8])}/{self.length}"

    @property
    def proto_text(self) -> str:
        """``tcp``, ``udp`` or ``both``."""
        return {1: "tcp", 2: "udp", 3: "both"}[self.protos]

    def covers(self, proto: str, family: int, address: bytes, port: int) -> bool:
        """Whether packets to a socket bound to this address may match.

        :param family: the socket's, 4 or 6.
        :param address: 4 or 16 bytes; all zero: every address.
        """
        if not self.protos & PROTOS[proto] or not self.first <= port <= self.last:
            return False
        if not self.family or not any(address):
            return not self.family or family in (self.family, 6)
        if family != self.family:
            return False
        shift = _BITS[family] - self.length
        mine = int.from_bytes(self.address[: _BITS[family] // 8], "big") >> shift
        return mine == int.from_bytes(address, "big") >> shift

    def __str__(self) -> str:
        text = f"{self.ports_text}:{self.port}"
        prefix = self.prefix_text
        if prefix:
            text = f"[{prefix}]:{text}" if self.family == 6 else f"{prefix}:{text}"
        return text if self.protos == BOTH else f"{self.proto_text}/{text}"


def _port(text: str, what: str) -> int:
    if text.isascii() and text.isdigit() and 0 < int(text) < 65536:
        return int(text)
    raise ValueError(f"{text!r} is not a {what} (1 to 65535)")


def parse_rule(text: str, proto: str = "both") -> Rule:
    """A rule from its text.

    :param proto: ``tcp``, ``udp`` or ``both``, for a text that names none.
    :raises ValueError: says what is wrong.
    """
    rest = text
    for name in PROTOS:
        if rest.startswith(f"{name}/"):
            proto, rest = name, rest[4:]
    words = rest.rsplit(":", 2)
    if len(words) < 2:
        raise ValueError(f"{text!r} is not a rule: write PORTS:PORT, such as 5202:5201")
    prefix = words[0] if len(words) == 3 else ""
    ports, port = words[-2:]
    low, dash, high = ports.partition("-")
    first = _port(low, "port")
    last = _port(high, "port") if dash else first
    if last < first:
        raise ValueError(f"{ports!r} is not a range: {first} is above {last}")
    target = _port(port, "port")
    family, length, address = 0, 0, bytes(16)
    if len(words) == 3:
        family, length, address = _prefix(prefix)
    protos = PROTOS.get(proto, BOTH)
    return Rule(protos, family, length, address, (first, last, target))


def _prefix(text: str) -> tuple[int, int, bytes]:
    """(family, length, the address in 16 bytes) of ``192.0.2.0/24`` or ``[2001:db8::/64]``."""
    from ipaddress import ip_network

    inside = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        network = ip_network(inside)
    except ValueError as error:
        why = str(error)
        if "does not appear" in why:
            why = f"{text!r} is not an address or a prefix"
        raise ValueError(why) from None
    if "%" in inside:
        raise ValueError(f"{text!r} names an interface: prefixes hold on all of them")
    first, length = network.network_address, network.prefixlen
    mapped = getattr(first, "ipv4_mapped", None)
    if mapped is not None and length >= 96:
        first, length = mapped, length - 96  # such packets are IPv4
    return first.version, length, first.packed.ljust(16, b"\0")


def _contains(outer: Rule, family: int, length: int, address: bytes) -> bool:
    if not outer.family:
        return True
    if outer.family != family or outer.length > length:
        return False
    shift = 128 - outer.length  # both addresses fill 16 bytes from the left
    return int.from_bytes(outer.address, "big") >> shift == int.from_bytes(address, "big") >> shift


def tables(rules: Iterable[tuple[int, Rule]]) -> dict[Place, bytes]:
    """For every place (protocol, prefix) the number of the rule in force at each of 65,536 ports.

    :param rules: (number, rule), in the order they were added.
    :returns: place -> 65,536 u16 in the machine's byte order; 0: no rule.
    """
    result: dict[Place, bytes] = {}
    # From the least to the most precise: the later one overwrites.
    ordered = sorted(
        enumerate(rules),
        key=lambda entry: (
            entry[1][1].length if entry[1][1].family else -1,
            -(entry[1][1].last - entry[1][1].first),
            entry[0],
        ),
    )
    made: dict[tuple[int, ...], bytes] = {}
    for proto, bit in PROTOS.items():
        mine = [(number, rule) for _, (number, rule) in ordered if rule.protos & bit]
        places = {
            (family, rule.length, rule.address)
            for _, rule in mine
            for family in ((rule.family,) if rule.family else (4, 6))
        }
        for family, length, address in places:
            inside = [entry for entry in mine if _contains(entry[1], family, length, address)]
            key = tuple(number for number, _ in inside)
            if key not in made:
                cells = array("H", bytes(2 * 65536))
                for number, rule in inside:
                    count = rule.last - rule.first + 1
                    cells[rule.first : rule.last + 1] = array("H", [number]) * count
                made[key] = cells.tobytes()
            result[NUMBERS[proto], family, length, address] = made[key]
    return result
