# SPDX-License-Identifier: Apache-2.0
"""Rules: which addresses are redirected, refused, or left alone.

::

    [tcp/|udp/]HOST[/LENGTH][:PORT]     192.0.2.0/24:80  [2001:db8::/32]:443  tcp/0.0.0.0/0
    unix:PATH                           unix:/run/docker.sock  unix:@abstract

HOST is an address or a name; a name stands for all its addresses.  Without a port, or with ``*``,
the rule is for every port.
"""

from __future__ import annotations

from bpfkit.core.errors import InputError, UsageError
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Address, IPv6Address
    from typing import Any

__all__ = ["PATH_LEN", "Place", "Rule", "error_number", "make_rules", "parse_place"]

#: enum action of the C side.
PASS, REDIRECT, DENY = 0, 1, 2
MAX_RULES = 1024
PATH_LEN = 108
_PROTOCOLS = {"tcp": 6, "udp": 17}
_OF_BIND = 0x80
_PORTS = 65536


class Place:
    """One side of a rule.

    :ivar hosts: (address, prefix length) pairs; none for a UNIX socket.
    :ivar port: host order, 0: every port.
    :ivar proto: an IPPROTO_ number, 0: TCP and UDP.
    :ivar path: bytes of ``sun_path``, padded; None for IP.
    :ivar path_len: bytes of it that count.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.hosts: list[tuple[IPv4Address | IPv6Address, int]] = []
        self.port = 0
        self.proto = 0
        self.path: bytes | None = None
        self.path_len = 0
        self.is_name = False


class Rule:
    """A rule as the command line has it.

    :ivar action: ``redirect``, ``deny``, ``allow`` or ``bind``.
    """

    def __init__(self, number: int, action: str, source: Place, target: Place | None = None):
        self.number = number
        self.action = action
        self.source = source
        self.target = target
        self.escapes: list[str] = []

    @property
    def is_unix(self) -> bool:
        """Whether the rule is for UNIX sockets."""
        return self.source.path is not None

    def entries(self, error: int) -> list[tuple[Any, Any]]:
        """Keys and values of the map ``rules``: struct destination, struct rule.

        :param error: errno of a denied system call.
        """
        action = {"allow": PASS, "deny": DENY}.get(self.action, REDIRECT)
        found = []
        for host, length in self.source.hosts:
            bits = length + (96 if host.version == 4 else 0)
            family = host.version | (_OF_BIND if self.action == "bind" else 0)
            key = (
                32 + bits,
                family,
                self.source.proto,
                self.source.port,
                _words(host),
            )
            to: tuple[int, ...] = (0, 0, 0, 0)
            port = 0
            if self.target is not None:
                match = [other for other, _ in self.target.hosts if other.version == host.version]
                if not match:
                    continue  # said by make_rules()
                to, port = _words(match[0]), self.target.port
            found.append(
                (key, (self.number, action, error if action == DENY else 0, to, port, 32 + bits))
            )
        return found


def _words(host: IPv4Address | IPv6Address) -> tuple[int, ...]:
    """The numbers of four __be32, IPv4 as ::ffff:a.b.c.d."""
    from struct import unpack

    packed = host.packed if host.version == 6 else bytes(10) + b"\xff\xff" + host.packed
    return unpack("!4I", packed)


def parse_place(text: str) -> Place:
    """One side of a rule.

    :raises InputError: it is none; the host is not known.
    """
    place = Place(text)
    if text.startswith("unix:"):
        _unix_path(place, text[5:])
        return place
    rest = text
    for name, number in _PROTOCOLS.items():
        if rest.startswith(f"{name}/"):
            place.proto, rest = number, rest[len(name) + 1 :]
    host, port = _split(text, rest)
    if port not in ("", "*"):
        if not (port.isascii() and port.isdigit() and 0 < int(port) < _PORTS):
            raise InputError(f"{text!r}: {port!r} is not a port", why="1 to 65535, or * for any")
        place.port = int(port)
    _hosts(place, host)
    return place


def _split(text: str, rest: str) -> tuple[str, str]:
    """HOST and PORT; the port is "" where there is none."""
    if rest.startswith("["):
        host, closed, port = rest[1:].partition("]")
        # The length of a prefix stands inside the brackets or behind them.
        if port.startswith("/"):
            length, _, behind = port[1:].partition(":")
            host, port = f"{host}/{length}", f":{behind}" if behind else ""
        if not closed or (port and not port.startswith(":")):
            raise InputError(f"{text!r} is not an address", why="write [ADDRESS]:PORT for IPv6")
        return host, port[1:]
    if rest.count(":") > 1:  # an IPv6 address alone
        return rest, ""
    host, _, port = rest.rpartition(":") if ":" in rest else (rest, "", "")
    return host, port


def _hosts(place: Place, host: str) -> None:
    from ipaddress import ip_address, ip_network

    address, slash, _ = host.partition("/")
    if not host or not address:
        raise InputError(f"{place.text!r} names no host", why="write HOST:PORT")
    try:
        ip_address(address)
    except ValueError:
        if slash:
            raise InputError(f"{place.text!r}: {address!r} is not an address") from None
        place.hosts = [(one, one.max_prefixlen) for one in _addresses(host)]
        place.is_name = True
        return
    try:
        network = ip_network(host, strict=False)
    except ValueError as error:
        raise InputError(f"{place.text!r} is not a prefix", why=str(error)) from None
    first, length = network.network_address, network.prefixlen
    mapped = getattr(first, "ipv4_mapped", None)
    if mapped is not None and length >= 96:
        first, length = mapped, length - 96
    place.hosts = [(first, length)]


def _addresses(name: str) -> Iterable[IPv4Address | IPv6Address]:
    """The addresses of a name, each once."""
    import socket
    from ipaddress import ip_address

    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "it cannot be resolved"
        raise InputError(f"no host {name}", why=str(why)) from None
    return [ip_address(text) for text in dict.fromkeys(str(one[4][0]) for one in found)]


def _unix_path(place: Place, path: str) -> None:
    import os

    data = os.fsencode(path)
    abstract = data.startswith(b"@")
    if abstract:
        data = b"\0" + data[1:]
    if not data or data == b"\0":
        raise InputError(f"{place.text!r} names no path", why="write unix:/PATH or unix:@NAME")
    if len(data) > PATH_LEN - (not abstract):
        raise InputError(
            f"{place.text!r}: the path is too long",
            why=f"sun_path of a UNIX socket has {PATH_LEN} bytes",
        )
    place.path = data.ljust(PATH_LEN, b"\0")
    # The kernel's own addresses count the zero byte behind a path, and none behind a name.
    place.path_len = len(data) + (not abstract)


def error_number(name: str) -> int:
    """The number of ``ECONNREFUSED``, ``EHOSTUNREACH``, ….

    :raises InputError: there is no such error.
    """
    import errno

    number = getattr(errno, name.upper(), None) if name.upper().startswith("E") else None
    if not isinstance(number, int):
        raise InputError(f"no error {name}", why="write its name, such as ECONNREFUSED or EACCES")
    return number


def make_rules(
    redirect: Iterable[str], deny: Iterable[str], allow: Iterable[str], bind: Iterable[str]
) -> list[Rule]:
    """The rules of the command line, numbered from 0.

    :raises UsageError: an option is not of its form, or two rules are for the same.
    :raises InputError: a host, port or path is none.
    """
    rules: list[Rule] = []
    for action, texts in (("redirect", redirect), ("bind", bind)):
        for text in texts:
            option = f"--{action} {text}"
            # A path may hold "=".
            cut = "=unix:" if text.startswith("unix:") else "="
            source, equals, target = text.partition(cut)
            if not equals or not target:
                raise UsageError(option, why="write FROM=TO, such as 192.0.2.1:80=127.0.0.1:8080")
            target = cut[1:] + target
            rule = Rule(len(rules), action, parse_place(source), parse_place(target))
            _check_target(rule, option)
            rules.append(rule)
    for action, texts in (("deny", deny), ("allow", allow)):
        for text in texts:
            rule = Rule(len(rules), action, parse_place(text))
            if action == "allow" and rule.is_unix:
                raise UsageError(f"--allow {text}", why="rules for UNIX sockets have no exceptions")
            rules.append(rule)
    _check_all(rules)
    return rules


def _check_target(rule: Rule, option: str) -> None:
    source, target = rule.source, rule.target
    assert target is not None
    if (source.path is None) != (target.path is None):
        raise UsageError(option, why="a UNIX socket stays one, and an IP socket, too")
    if rule.is_unix:
        if rule.action == "bind":
            raise UsageError(option, why="the kernel has no bind hook for UNIX sockets")
        return
    if target.proto:
        raise UsageError(option, why="the protocol stands in front of FROM only")
    if any(length != host.max_prefixlen for host, length in target.hosts):
        raise UsageError(option, why=f"{target.text} is a prefix, not one address")
    versions = {host.version for host, _ in target.hosts}
    lost = [host for host, _ in source.hosts if host.version not in versions]
    if len(lost) == len(source.hosts):
        raise UsageError(
            option,
            why=f"{target.text} has no IPv{lost[0].version} address, and the socket is of IPv"
            f"{lost[0].version}",
        )
    rule.escapes = [str(host) for host in lost]


def _check_all(rules: list[Rule]) -> None:
    if len(rules) > MAX_RULES:
        raise UsageError(f"{count_of(len(rules), 'rule')}", why=f"up to {MAX_RULES} are possible")
    keys: dict[Any, Rule] = {}
    for rule in rules:
        for key in [rule.source.path] if rule.is_unix else [e[0] for e in rule.entries(0)]:
            if key in keys:
                raise UsageError(
                    f"two rules for {rule.source.text}",
                    why=f"--{keys[key].action} {keys[key].source.text} is there, too",
                )
            keys[key] = rule
    if sum(len(rule.source.hosts) for rule in rules) > MAX_RULES:
        raise UsageError("too many addresses", why=f"up to {MAX_RULES} are possible")
