# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.cgroup_sock: which sockets the processes of a cgroup create, which ports they
bind; marks and priorities for their sockets.

The C side is bpf_c/cgroup/cgroup_sock.bpf.c.  A socket or a bind that is denied fails with EPERM.
The kernel has these hooks for IPv4 and IPv6 sockets only.
"""

from __future__ import annotations

from bpfkit.app.cgroup import CgroupApp
from bpfkit.app.lifecycle import main
from bpfkit.core.errors import InputError
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable
    from typing import Any

    from bpfkit.app.events import EventSource
    from bpfkit.core.object import Object
    from bpfkit.show.rows import Event, Row, Verdict

#: Names of AF_INET and AF_INET6, as options and rows have them.
FAMILIES = {"inet": 2, "inet6": 10}
_FAMILY_ALIASES = {"ipv4": "inet", "ip": "inet", "ipv6": "inet6", "ip6": "inet6"}
TYPES = {"stream": 1, "dgram": 2, "raw": 3, "seqpacket": 5}
#: enum why of the C side.
WHY = {1: "family", 2: "type", 3: "port"}
_PORTS = 65536
_MPTCP = 262  # IPPROTO_MPTCP is no number of IANA's

#: What the demo's child tries, and prints as JSON: {what: errno, or 0}.
CHILD = """
import json, socket
results = {}

def attempt(what, function):
    try:
        results[what] = function() or 0
    except OSError as error:
        results[what] = error.errno

def bind(family, host, port):
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))

def option(number):
    with socket.socket() as sock:
        return sock.getsockopt(socket.SOL_SOCKET, number)

attempt("inet6 dgram", lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close())
attempt("inet6 stream", lambda: socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close())
attempt("inet dgram", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close())
attempt("bind 5201", lambda: bind(socket.AF_INET, "127.0.0.1", 5201))
attempt("bind 5202", lambda: bind(socket.AF_INET, "127.0.0.1", 5202))
attempt("bind [::1]:5201", lambda: bind(socket.AF_INET6, "::1", 5201))
attempt("mark", lambda: option(socket.SO_MARK))
attempt("priority", lambda: option(socket.SO_PRIORITY))
print(json.dumps(results))
"""
#: The demo's rules, and what the child must see with them.
DEMO = {"deny_type": ["dgram/udp"], "deny_bind": ["5201"], "mark": 7, "priority": 3}
SEEN = {
    "inet6 dgram": 1,
    "inet6 stream": 0,
    "inet dgram": 1,
    "bind 5201": 1,
    "bind 5202": 0,
    "bind [::1]:5201": 1,
    "mark": 7,
    "priority": 3,
}


def family(text: str) -> int:
    """The number of an address family that the hooks see.

    :raises InputError: another family, or none.
    """
    name = text.lower().removeprefix("af_")
    name = _FAMILY_ALIASES.get(name, name)
    if name in FAMILIES:
        return FAMILIES[name]
    import socket

    if hasattr(socket, f"AF_{name.upper()}"):
        raise InputError(
            f"cannot deny sockets of family {text}",
            why="the kernel has this hook for inet and inet6 sockets only",
            hint="an LSM or seccomp program can refuse the others",
        )
    raise InputError(f"no address family {text}", why="inet and inet6 can be denied")


def socket_kind(text: str) -> tuple[int, int]:
    """``stream``, ``raw/icmp``, ``/sctp`` -> (type, protocol), 0 for any."""
    from bpfkit.show.protocols import protocol_number

    kind, _, protocol = text.lower().partition("/")
    if kind not in TYPES and kind:
        raise InputError(f"no socket type {kind}", why=f"there are {', '.join(TYPES)}")
    if not kind and not protocol:
        raise InputError(f"{text!r} is neither a socket type nor a protocol")
    number = 0
    if protocol:
        try:
            number = _MPTCP if protocol == "mptcp" else protocol_number(protocol)
        except ValueError:
            raise InputError(f"no protocol {protocol}") from None
    return TYPES.get(kind, 0), number


def port_range(text: str) -> range:
    """``5201`` or ``6000-6999``.

    :raises InputError: it is neither.
    """
    first, dash, last = text.partition("-")
    words = first, last if dash else first
    # int() takes 5_201, blanks and the digits of other scripts.
    low, high = map(int, words) if all(w.isascii() and w.isdigit() for w in words) else (1, 0)
    if not 0 < low <= high < _PORTS:
        raise InputError(f"{text!r} is not a port", why="write PORT or FIRST-LAST, 1 to 65535")
    return range(low, high + 1)


class CgroupSock(CgroupApp):
    """Which sockets the processes of a cgroup create, and which ports they bind; socket marks."""

    protects = True
    rule_options = ("deny_family", "deny_type", "deny_bind", "mark", "priority", "bind_to")
    name = "cgroup_sock"
    source = "cgroup/cgroup_sock.bpf.c"
    counters = ("created", "released", "denied", "bound", "binds_denied")

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        add = parser.add_argument
        many: dict[str, Any] = {"action": "append", "default": []}
        add("--deny-family", metavar="FAMILY", **many, help="refuse inet or inet6 sockets")
        add(
            "--deny-type",
            metavar="TYPE[/PROTO]",
            **many,
            help="refuse sockets of a type (stream, dgram, raw), a protocol (/udp) or both",
        )
        add("--deny-bind", metavar="PORT[-PORT]", **many, help="refuse to bind these ports")
        add("--mark", metavar="N", type=_number, help="SO_MARK of new sockets")
        add("--priority", metavar="N", type=_number, help="SO_PRIORITY of new sockets")
        add("--bind-to", metavar="IF", help="bind new sockets to this interface")

    def setup(self) -> None:
        options = self.options
        if self.demo_rules:
            for name, value in DEMO.items():
                setattr(options, name, value)
        self.families = [family(text) for text in options.deny_family]
        self.kinds = [socket_kind(text) for text in options.deny_type]
        self.ports = [port for text in options.deny_bind for port in port_range(text)]
        self.object = self.load(
            mark=options.mark or 0,
            set_mark=options.mark is not None,
            priority=options.priority or 0,
            set_priority=options.priority is not None,
            ifindex=self._ifindex(options.bind_to),
        )
        self.prepare(self.object)
        for program in self.object.programs.values():
            self.attach(program)
        self.seen: list[dict[str, int]] = self.for_check([])

    @staticmethod
    def _ifindex(name: str | None) -> int:
        if name is None:
            return 0
        import socket

        try:
            return socket.if_nametoindex(name)
        except OSError:
            raise InputError(f"no interface {name}") from None

    def prepare(self, loaded: Object) -> None:
        for number in self.families:
            loaded["families"][number] = 1
        self.check_room(loaded["kinds"], set(self.kinds), "types of sockets")
        for kind in self.kinds:
            loaded["kinds"][kind] = 1
        if self.ports:
            keys = b"".join(port.to_bytes(4, "little") for port in self.ports)
            loaded["ports"].update_raw(keys, b"\1" * len(self.ports))

    def demo(self) -> None:
        """A child tries sockets and ports, and prints what it gets."""
        if not self.seen and not self.options.check and self.demo_rules:
            self.note(
                "a child may not create UDP sockets nor bind port 5201 (EPERM); its "
                "sockets get mark 7 and priority 3"
            )
        self.seen.append(self.python_inside(CHILD))

    def rows(self) -> list[Row]:
        families = {number: name for name, number in FAMILIES.items()}
        types = {number: name for name, number in TYPES.items()}
        rows = []
        for key, count in self.object["sockets"].items():
            rows.append(
                {
                    "family": families.get(key.family, str(key.family)),
                    "type": types.get(key.type, str(key.type)),
                    "proto": _protocol(key.protocol),
                    "created": count.created,
                    "released": count.released,
                    "denied": count.denied,
                    "bound": count.bound,
                    "binds_denied": count.binds_denied,
                }
            )
        return sorted(rows, key=lambda row: (row["family"], row["type"], row["proto"]))

    def events(self) -> EventSource:
        from bpfkit.app.events import from_buffer

        lost = self.object["lost"]
        buffer = self.keep(self.object["denials"].open())
        return from_buffer(buffer, self._denial, lost=lambda: sum(lost.values()))

    def _denial(self, record: Any) -> Event:
        from _socket import AF_INET, AF_INET6, inet_ntop

        from bpfkit.app.events import unix_seconds
        from bpfkit.show.rows import Event

        families = {number: name for name, number in FAMILIES.items()}
        types = {number: name for name, number in TYPES.items()}
        fields: dict[str, Any] = {
            "what": "bind" if record.why == 3 else "socket",
            "why": WHY[record.why],
            "family": families.get(record.family, str(record.family)),
            "type": types.get(record.type, str(record.type)),
            "proto": _protocol(record.protocol),
        }
        if record.why == 3:
            size, af = (4, AF_INET) if record.family == AF_INET else (16, AF_INET6)
            fields["address"] = inet_ntop(af, bytes(record.address)[:size])
            fields["port"] = record.port
        fields |= {"pid": record.pid, "comm": record.comm}
        return Event("denied", unix_seconds(record.time_ns), fields)

    def conclusion(self, rows: list[Row]) -> str:
        denied = sum(row["denied"] + row["binds_denied"] for row in rows)
        return (
            f"seen: {count_of(denied, 'socket or bind', 'sockets and binds')} denied, before "
            "the kernel made anything"
        )

    def verify(self) -> Iterable[Verdict]:
        """What the child got from the kernel."""
        for seen in self.seen:
            for what, wanted in SEEN.items():
                got = seen.get(what)
                if what in ("mark", "priority"):
                    text = f"the child's sockets have {what} {got}"
                else:
                    text = f"{what}: {'EPERM' if got == 1 else 'done' if got == 0 else got}"
                yield got == wanted, text
        yield bool(self.seen), f"the child ran {count_of(len(self.seen), 'time')}"


def _number(text: str) -> int:
    """A number of 32 bits, also in hexadecimal (argparse type)."""
    from argparse import ArgumentTypeError

    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 32:
        raise ArgumentTypeError(f"{text!r} is not a number from 0 to 4294967295")
    return number


def _protocol(number: int) -> str:
    from bpfkit.show.protocols import protocol_name

    return "mptcp" if number == _MPTCP else protocol_name(number) if number < 256 else str(number)


if __name__ == "__main__":
    raise SystemExit(main(CgroupSock))
