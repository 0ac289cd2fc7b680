# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.cgroup_sockopt: which socket options the processes of a cgroup set and get.

The C side is bpf_c/cgroup/cgroup_sockopt.bpf.c.  A denied call fails with EPERM.
"""

from __future__ import annotations

from bpfkit.app.cgroup import CgroupApp
from bpfkit.cgroup_sockopt.names import (
    VALUE_LEN,
    find_option,
    option_name,
    parse_value,
    shown_value,
)
from bpfkit.core.errors import InputError, UsageError
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable
    from typing import Any

    from bpfkit.app.events import EventSource
    from bpfkit.core.object import Object
    from bpfkit.show.rows import Event, Row, Verdict

#: enum rule and enum flag of the C side.
DENY_GET, DENY_SET, FORCE, FAKE = 1, 2, 4, 8
VALUE_TRUNCATED, LARGE, TOO_SHORT = 1, 2, 4

#: The demo's rules, what its child does, and what it gets with them.
DEMO = {
    "deny": ["SO_MARK"],
    "set": ["TCP_CONGESTION=reno", "SO_SNDBUF=65536"],
    "fake": ["IP_TOS=66"],
}
CHILD = """
import json, socket
s = socket.socket()
results = {}

def attempt(what, function):
    try:
        value = function()
        results[what] = value.rstrip(b"\\0").decode() if isinstance(value, bytes) else value or 0
    except OSError as error:
        results[what] = f"errno {error.errno}"

attempt("set SO_MARK", lambda: s.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 1))
attempt("get SO_MARK", lambda: s.getsockopt(socket.SOL_SOCKET, socket.SO_MARK))
attempt("set TCP_CONGESTION", lambda: s.setsockopt(6, socket.TCP_CONGESTION, b"cubic"))
attempt("get TCP_CONGESTION", lambda: s.getsockopt(6, socket.TCP_CONGESTION, 16))
attempt("set SO_SNDBUF", lambda: s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20000))
attempt("get SO_SNDBUF", lambda: s.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF))
attempt("get IP_TOS", lambda: s.getsockopt(0, socket.IP_TOS))
attempt("get SO_RCVBUF", lambda: s.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) > 0)
print(json.dumps(results))
"""
SEEN = {
    "set SO_MARK": "errno 1",
    "get SO_MARK": "errno 1",
    "set TCP_CONGESTION": 0,
    "get TCP_CONGESTION": "reno",
    "set SO_SNDBUF": 0,
    "get SO_SNDBUF": 131072,  # the kernel doubles what is set
    "get IP_TOS": 66,
    "get SO_RCVBUF": True,
}


class CgroupSockopt(CgroupApp):
    """Which socket options the processes of a cgroup set and get; denied, forced or faked ones."""

    protects = True
    rule_options = ("deny", "set", "fake")
    name = "cgroup_sockopt"
    source = "cgroup/cgroup_sockopt.bpf.c"
    counters = ("sets", "gets", "denied", "changed")
    epilog = (
        "OPTION is a name (SO_SNDBUF, TCP_CONGESTION, IP_TOS) or LEVEL:NUMBER. VALUE is a number "
        "(an int), text, or hex:BYTES. Values larger than a page can be denied, not changed."
    )

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        add = parser.add_argument
        many: dict[str, Any] = {"action": "append", "default": []}
        add("--deny", metavar="OPTION[:get|:set]", **many, help="refuse the option (EPERM)")
        add("--set", metavar="OPTION=VALUE", **many, help="whatever is set, set VALUE")
        add("--fake", metavar="OPTION=VALUE", **many, help="whatever the kernel says, return VALUE")

        add("--no-events", action="store_true", help="count only")

    def setup(self) -> None:
        from mmap import PAGESIZE

        options = self.options
        if self.demo_rules:
            for name, value in DEMO.items():
                setattr(options, name, value)
        self.rules: dict[tuple[int, int], int] = {}
        self.values: dict[tuple[int, int], bytes] = {}
        for text in options.deny:
            self._add_denial(text)
        for text in options.set:
            self._add_value(text, FORCE)
        for text in options.fake:
            self._add_value(text, FAKE)
        events = not options.no_events
        self.object = self.load(page_size=PAGESIZE, with_events=events)
        self.prepare(self.object)
        for program in self.object.programs.values():
            self.attach(program)
        self.seen: list[dict[str, Any]] = self.for_check([])

    def _add_denial(self, text: str) -> None:
        head, _, tail = text.rpartition(":")
        flags = {"get": DENY_GET, "set": DENY_SET}.get(tail, 0)
        option = find_option(head if flags else text)
        self.rules[option] = self.rules.get(option, 0) | (flags or DENY_GET | DENY_SET)

    def _add_value(self, text: str, flag: int) -> None:
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise UsageError(f"{text} has no value", why="write OPTION=VALUE")
        option = find_option(name)
        if option in self.values and self.values[option] != parse_value(value):
            raise InputError(f"two values for {name}", why="--set and --fake share one value")
        self.values[option] = parse_value(value)
        self.rules[option] = self.rules.get(option, 0) | flag

    def prepare(self, loaded: Object) -> None:
        self.check_room(loaded["rules"], self.rules, "options with rules")
        for option, flags in self.rules.items():
            loaded["rules"][option] = flags
        for option, data in self.values.items():
            key = b"".join(number.to_bytes(4, "little", signed=True) for number in option)
            value = len(data).to_bytes(4, "little") + data.ljust(VALUE_LEN, b"\0")
            loaded["values"].update_raw(key, value)

    def demo(self) -> None:
        """A child sets and gets options, and prints what it gets."""
        if self.demo_rules and not self.seen and not self.options.check:
            self.note(
                "a child may not touch SO_MARK (EPERM), sets cubic and gets reno, sets SO_SNDBUF "
                "20000 and gets twice 65536, and is told TOS 66"
            )
        self.seen.append(self.python_inside(CHILD))

    def rows(self) -> list[Row]:
        rows = [
            {
                "option": option_name(key.level, key.name),
                "sets": count.sets,
                "gets": count.gets,
                "denied": count.denied,
                "changed": count.changed,
            }
            for key, count in self.object["counts"].sums()
        ]
        return sorted(rows, key=lambda row: str(row["option"]))

    def events(self) -> EventSource:
        from bpfkit.app.events import from_buffer

        lost = self.object["lost"]
        buffer = self.keep(self.object["uses"].open())
        return from_buffer(buffer, self._use, lost=lambda: sum(lost.values()))

    def _use(self, record: Any) -> Event:
        import errno

        from bpfkit.app.events import unix_seconds
        from bpfkit.show.rows import Event

        option = (record.option.level, record.option.name)
        data = bytes(record.value)[: record.len]
        result = "denied" if record.action & (DENY_GET | DENY_SET) else "allowed"
        if record.action & (FORCE | FAKE):
            result = "changed"
        elif result == "allowed" and record.retval:
            result = errno.errorcode.get(-record.retval, str(record.retval))
        fields: dict[str, Any] = {
            "option": option_name(*option),
            "value": shown_value(option, data),
            "truncated": bool(record.flags & VALUE_TRUNCATED),
            "size": record.optlen,
        }
        if record.action & (FORCE | FAKE):
            fields["rule"] = shown_value(option, self.values[option])
        fields |= {"result": result, "pid": record.pid, "comm": record.comm}
        if record.flags & TOO_SHORT:
            fields["why"] = "the buffer has no room for the rule's value"
        return Event("set" if record.is_set else "get", unix_seconds(record.time_ns), fields)

    def event_line(self, event: Event) -> str:
        """A call as text, without what is false."""
        from bpfkit.show.rows import Event

        fields = {name: value for name, value in event.fields.items() if value is not False}
        return super().event_line(Event(event.kind, event.time, fields))

    def conclusion(self, rows: list[Row]) -> str:
        changed = sum(row["changed"] for row in rows)
        denied = sum(row["denied"] for row in rows)
        return f"seen: {denied} denied, {changed} changed on the way in or out of the kernel"

    def verify(self) -> Iterable[Verdict]:
        """What the child got from the kernel."""
        for seen in self.seen:
            for what, wanted in SEEN.items():
                yield seen.get(what) == wanted, f"{what}: {seen.get(what)}"
        yield bool(self.seen), f"the child ran {count_of(len(self.seen), 'time')}"
