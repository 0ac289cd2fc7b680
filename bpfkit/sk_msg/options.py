# SPDX-License-Identifier: Apache-2.0
"""The command line of sk_msg."""

from __future__ import annotations

from argparse import ArgumentTypeError

from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser

__all__ = ["ALL_PORTS", "CORK_MAX", "DENY_MAX", "EPILOG", "add_options", "parse_ports"]

#: DENY_MAX of sk_msg.bpf.c.
DENY_MAX = 64
#: Bytes that --cork may hold back: what fits into one message of the kernel's (16 pages).
CORK_MAX = 65536
ALL_PORTS = range(1, 65536)
MAX_SOCKETS = 1 << 20

EPILOG = (
    "Connections that exist already stay as they are. Redirected data is not in TCP's receive "
    "queue. Programs that splice(2) from a socket (HAProxy, docker-proxy, Go's io.Copy between "
    "sockets) do not find it: leave their ports out of --ports. recv(MSG_WAITALL) may return less "
    "than asked for, SO_RCVLOWAT is not heeded, no receive window holds a sender back, and a peer "
    "that closes with unread data does not send a reset. After a denied message the kernel refuses "
    "whatever that socket sends later. --cork holds bytes back until there are BYTES of them: a "
    "program that waits for an answer to less waits for ever, and what is still held when a socket "
    "is closed is lost."
)


def parse_ports(text: str) -> list[range]:
    """``80,8000-8099`` or ``all`` (argparse type).

    :returns: ranges of ports, 1 to 65535.
    """
    if text == "all":
        return [ALL_PORTS]
    found = []
    for word in text.split(","):
        first, dash, last = word.partition("-")
        if not dash:
            last = first
        if not all(part.isascii() and part.isdigit() for part in (first, last)):
            raise ArgumentTypeError(f"{word!r} is not a port, nor a range (8000-8099)")
        low, high = int(first), int(last)
        if not 1 <= low <= high <= 65535:
            raise ArgumentTypeError(f"{word!r} is not a port, nor a range (1 to 65535)")
        found.append(range(low, high + 1))
    return found


def _prefix(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    if not 1 <= len(data) <= DENY_MAX:
        raise ArgumentTypeError(f"a text of {count_of(len(data), 'byte')} (1 to {DENY_MAX})")
    return data


def _cork(text: str) -> int:
    if text.isascii() and text.isdigit() and 2 <= int(text) <= CORK_MAX:
        return int(text)
    raise ArgumentTypeError(f"{text!r} is not a number of bytes (2 to {CORK_MAX})")


def _sockets(text: str) -> int:
    if text.isascii() and text.isdigit() and 2 <= int(text) <= MAX_SOCKETS:
        return int(text)
    raise ArgumentTypeError(f"{text!r} is not a number of sockets (2 to {MAX_SOCKETS})")


def add_options(parser: ArgumentParser) -> None:
    """The options that only sk_msg has."""
    from bpfkit.app.options import positive, seconds

    add = parser.add_argument
    text = "redirect only connections to these ports, 80,8000-8099 or all"
    add("--ports", metavar="P[,P-P]", type=parse_ports, help=text)
    text = "of redirected messages, refuse those that begin with this text (EACCES)"
    add("--deny-prefix", metavar="TEXT", type=_prefix, help=text)
    text = "hold bytes back until there are as many; see below"
    add("--cork", metavar="BYTES", type=_cork, help=text)
    text = "judge as many bytes at once, whatever the number of messages"
    add("--apply", metavar="BYTES", type=positive, help=text)
    text = "sockets that may be redirected at the same time (default: 65536)"
    add("--max", metavar="N", type=_sockets, help=text)
    text = "at the end, wait so long for redirected data to be read (default: 5)"
    add("--drain", metavar="S", type=seconds, default=5.0, help=text)
