# SPDX-License-Identifier: Apache-2.0
"""Names of socket options, and their values as text."""

from __future__ import annotations

from bpfkit.core.errors import InputError

__all__ = ["LEVELS", "VALUE_LEN", "find_option", "option_name", "parse_value", "shown_value"]

#: Bytes of a value that rules and events have.
VALUE_LEN = 64
#: Prefix of the names -> level.
LEVELS = {"SO": 1, "IP": 0, "TCP": 6, "UDP": 17, "IPV6": 41}
#: What Python's socket module does not have (asm-generic/socket.h, linux/tcp.h, in.h, in6.h).
_MORE = {
    "SO_ATTACH_FILTER": (1, 26),
    "SO_DETACH_FILTER": (1, 27),
    "SO_ATTACH_BPF": (1, 50),
    "SO_ATTACH_REUSEPORT_CBPF": (1, 51),
    "SO_ATTACH_REUSEPORT_EBPF": (1, 52),
    "SO_SNDBUFFORCE": (1, 32),
    "SO_RCVBUFFORCE": (1, 33),
    "SO_TIMESTAMP": (1, 29),
    "SO_RXQ_OVFL": (1, 40),
    "SO_BUSY_POLL": (1, 46),
    "SO_MAX_PACING_RATE": (1, 47),
    "SO_COOKIE": (1, 57),
    "SO_ZEROCOPY": (1, 60),
    "SO_TXTIME": (1, 61),
    "IP_MTU_DISCOVER": (0, 10),
    "IP_RECVERR": (0, 11),
    "IP_MTU": (0, 14),
    "IP_FREEBIND": (0, 15),
    "IP_MINTTL": (0, 21),
    "IP_BIND_ADDRESS_NO_PORT": (0, 24),
    "IP_MSFILTER": (0, 41),
    "IP_ORIGINAL_DST": (0, 80),
    "ICMP_FILTER": (255, 1),
    "IPV6_MTU_DISCOVER": (41, 23),
    "IPV6_RECVERR": (41, 25),
    "IPV6_ORIGINAL_DST": (41, 80),
    "TCP_ULP": (6, 31),
    "TCP_SAVED_SYN": (6, 28),
    "TCP_REPAIR": (6, 19),
    "TCP_ZEROCOPY_RECEIVE": (6, 35),
    "TCP_INQ": (6, 36),
    "TCP_TX_DELAY": (6, 37),
    "UDP_CORK": (17, 1),
    "UDP_SEGMENT": (17, 103),
    "UDP_GRO": (17, 104),
}
#: Constants of the socket module that are no options, though their names look like it.
_NONE = (
    "IP_DEFAULT_",
    "IP_MAX_",
    "IPV6_RTHDR_TYPE",
    "IP_PMTUDISC",
    "SO_VM_",
    "SO_J1939",
    "IPV6_RX",
)
#: Options whose value is text.
_TEXT = {(6, 13), (6, 31), (1, 25)}

_by_name: dict[str, tuple[int, int]] = {}


def _table() -> dict[str, tuple[int, int]]:
    if not _by_name:
        import socket

        for name in sorted(dir(socket)):
            level = LEVELS.get(name.partition("_")[0])
            number = getattr(socket, name)
            if level is not None and type(number) is int and not name.startswith(_NONE):
                _by_name[name] = (level, number)
        _by_name.update(_MORE)
    return _by_name


def find_option(text: str) -> tuple[int, int]:
    """``SO_SNDBUF``, ``TCP_CONGESTION`` or ``LEVEL:NUMBER`` -> (level, number).

    :raises InputError: there is no option of this name; offers the nearest.
    """
    known = _table().get(text.upper())
    if known is not None:
        return known
    level, _, number = text.partition(":")
    try:
        option = int(level, 0), int(number, 0)
    except ValueError:
        pass
    else:
        if not all(-(1 << 31) <= one < 1 << 31 for one in option):
            raise InputError(f"no socket option {text}", why="LEVEL and NUMBER have 32 bits")
        return option
    import difflib

    near = difflib.get_close_matches(text.upper(), _table(), n=3, cutoff=0.6)
    hint = f"nearest: {', '.join(near)}" if near else "write LEVEL:NUMBER for one without a name"
    raise InputError(f"no socket option {text}", hint=hint)


def option_name(level: int, number: int) -> str:
    """``SO_SNDBUF`` for (1, 7); ``1:999`` where there is no name."""
    for name, option in _table().items():
        if option == (level, number):
            return name
    return f"{level}:{number}"


def parse_value(text: str) -> bytes:
    """A value for the kernel: a number is an int in the machine's byte order, ``hex:00ff`` those
    bytes, else the text.

    :raises InputError: it is too long, or no hexadecimal number.
    """
    from sys import byteorder

    try:
        data = int(text, 0).to_bytes(4, byteorder, signed=text.startswith("-"))
    except OverflowError:
        raise InputError(f"{text} is no 32-bit number") from None
    except ValueError:
        try:
            data = bytes.fromhex(text[4:]) if text.startswith("hex:") else text.encode()
        except ValueError:
            raise InputError(f"{text[4:]!r} is no hexadecimal number") from None
    if not 0 < len(data) <= VALUE_LEN:
        raise InputError(f"the value {text!r} is not 1 to {VALUE_LEN} bytes long")
    return data


def shown_value(option: tuple[int, int], data: bytes) -> int | str:
    """A value for people: a number for up to four bytes, text for options that have text, else
    hexadecimal."""
    from sys import byteorder

    if option in _TEXT:
        return data.partition(b"\0")[0].decode(errors="replace")
    if data and len(data) in (1, 2, 4):
        return int.from_bytes(data, byteorder, signed=len(data) == 4)
    return data.hex()
