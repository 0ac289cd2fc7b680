# SPDX-License-Identifier: Apache-2.0
"""``--set PREFIX:OPTION=VALUE,…``: socket options by destination.

::

    10.0.0.0/8:cc=reno,tos=16
    2001:db8::/32:initial_rto=100ms,pacing=10M
    0.0.0.0/0:iw=4

A connection takes the rule with the longest prefix that its remote address is in, and only that.
"""

from __future__ import annotations

from bpfkit.core.errors import InputError, UnsupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["OPTIONS", "Rule", "jiffies_per_second", "parse_rules"]

#: The options in the order of the C side's enum option.
OPTIONS = ("initial_rto", "cc", "tos", "sndbuf", "rcvbuf", "iw", "pacing")

_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_SIZES = {"": 1, "k": 1_000, "M": 1_000_000, "G": 1_000_000_000}
_RATES = {**_SIZES, "kbit": 125, "mbit": 125_000, "gbit": 125_000_000}
#: Option -> (least value, greatest value, what it is).
_LIMITS = {
    "tos": (0, 255, "a number from 0 to 255"),
    "sndbuf": (1, 1 << 30, "bytes, like 64k"),
    "rcvbuf": (1, 1 << 30, "bytes, like 64k"),
    "iw": (1, 65535, "segments, from 1 on"),
    "pacing": (1, (1 << 32) - 2, "bytes per second, like 10M or 80mbit"),
}
#: CONFIG_HZ of the kernel's configuration.
_HZ = (100, 250, 300, 1000)


class Rule:
    """The options of one prefix.

    :ivar version: 4 or 6.
    :ivar bits: length of the prefix in an IPv6 address; IPv4 is IPv4-mapped.
    :ivar address: 16 bytes, network byte order.
    :ivar values: option -> number; seconds for ``initial_rto``, a name for ``cc``.
    """

    def __init__(
        self, text: str, version: int, bits: int, address: bytes, values: dict[str, Any]
    ) -> None:
        self.text = text
        self.version = version
        self.bits = bits
        self.address = address
        self.values = values

    def key(self) -> tuple[int, bytes]:
        """struct prefix: (length, what follows it)."""
        from struct import pack

        return 32 + self.bits, pack("=I", self.version) + self.address

    def value(self, hz: int) -> dict[str, Any]:
        """struct rule.

        :param hz: jiffies per second.
        """
        values = {name: self.values.get(name, 0) for name in OPTIONS}
        values["cc"] = self.values.get("cc", "")
        values["initial_rto"] = max(1, round(values["initial_rto"] * hz))
        values["options"] = sum(1 << OPTIONS.index(name) for name in self.values)
        return values


def parse_rules(texts: list[str]) -> list[Rule]:
    """The rules of all ``--set``.

    :raises InputError: a text is no rule, or two have the same prefix.
    """
    rules = [_parse(text) for text in texts]
    seen: set[tuple[int, bytes]] = set()
    for rule in rules:
        if rule.key() in seen:
            raise InputError(f"two rules for {rule.text}", why="write all its options in one --set")
        seen.add(rule.key())
    return rules


def _parse(text: str) -> Rule:
    equals = text.find("=")
    colon = text.rfind(":", 0, equals if equals >= 0 else None)
    if colon <= 0 or equals < 0:
        raise InputError(f"{text!r} is no rule", why="write PREFIX:OPTION=VALUE[,OPTION=VALUE]")
    prefix, settings = text[:colon], text[colon + 1 :]
    version, bits, address = _prefix(prefix)
    values: dict[str, Any] = {}
    for setting in settings.split(","):
        name, equals_sign, value = setting.partition("=")
        if name not in OPTIONS or not equals_sign:
            raise InputError(
                f"{setting!r} is no option of a rule", why=f"the options are {', '.join(OPTIONS)}"
            )
        if name in values:
            raise InputError(f"{name} is there twice in {text!r}")
        values[name] = _value(name, value)
    return Rule(prefix, version, bits, address, values)


def _prefix(text: str) -> tuple[int, int, bytes]:
    from ipaddress import IPv4Network, ip_network

    try:
        network = ip_network(text.strip("[]") if "/" not in text else text)
    except ValueError as error:
        why = "it has bits behind its length" if "host bits" in str(error) else "like 10.0.0.0/8"
        raise InputError(f"{text!r} is not a prefix", why=why) from None
    raw = network.network_address.packed
    if isinstance(network, IPv4Network):
        return 4, network.prefixlen + 96, bytes(10) + b"\xff\xff" + raw
    return 6, network.prefixlen, raw


def _value(name: str, text: str) -> Any:
    if name == "cc":
        return _congestion_control(text)
    if name == "initial_rto":
        seconds = _number(text, _TIMES)
        if seconds is None or not 0.001 <= seconds <= 120:
            raise InputError(f"initial_rto={text}", why="a time from 1ms to 120s, with its unit")
        return seconds
    least, most, what = _LIMITS[name]
    if name == "tos" and text.startswith("0x"):
        number = int(text, 16) if _is_hex(text[2:]) else None
    else:
        units = _RATES if name == "pacing" else _SIZES if name.endswith("buf") else {"": 1}
        found = _number(text, units)
        number = None if found is None or found != int(found) else int(found)
    if number is None or not least <= number <= most:
        raise InputError(f"{name}={text}", why=what)
    return number


def _is_hex(text: str) -> bool:
    return bool(text) and not set(text) - set("0123456789abcdefABCDEF")


def _number(text: str, units: dict[str, Any]) -> float | None:
    """A decimal number with one of these units behind; None: it is none."""
    import re

    match = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]*)", text, re.ASCII)
    if match is None or match[2] not in units:
        return None
    return float(match[1]) * float(units[match[2]])


def _congestion_control(name: str) -> str:
    """The name, if the kernel has the algorithm; its module is loaded."""
    import socket

    with socket.socket() as sock:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
        except (OSError, ValueError):
            pass
        else:
            return name
    with open("/proc/sys/net/ipv4/tcp_available_congestion_control") as file:
        known = ", ".join(file.read().split())
    raise InputError(f"no congestion control {name!r}", why=f"this kernel has {known}")


def jiffies_per_second() -> int:
    """The kernel's HZ, measured: bpf_jiffies64() (5.6) before and after 60 ms.

    :raises UnsupportedError: the kernel lacks the helper.
    """
    from time import monotonic, sleep

    from bpfkit.core.errors import VerifierError
    from bpfkit.core.kernel.asm import assemble, call, exit_
    from bpfkit.core.program import Program

    try:
        program = Program.from_insns("socket_filter", assemble(call("jiffies64"), exit_()))
    except VerifierError:
        raise UnsupportedError(
            "cannot set initial_rto", why="the kernel has no bpf_jiffies64() (Linux 5.6)"
        ) from None
    try:
        frame = bytes(64)
        begun, first = monotonic(), program.run(frame).retval
        sleep(0.06)
        last, ended = program.run(frame).retval, monotonic()
    finally:
        program.close()
    rate = ((last - first) & 0xFFFFFFFF) / (ended - begun)
    return min(_HZ, key=lambda hz: abs(hz - rate) / hz)
