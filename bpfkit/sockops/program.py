# SPDX-License-Identifier: Apache-2.0
"""The program: what is loaded and attached, what is shown, what --check compares.

::

    sockops.bpf.c   sockops  every callback of the cgroup's TCP sockets ─▶ ring buffer ─▶ events
                    live     iterator over the sockets' storage         ─▶ rows
    sockops_where.bpf.c      TX timestamping callbacks (--where)        ─▶ histograms ─▶ rows
    sockops_loss.bpf.c       the demo's loss

rules.py: ``--set``; owners.py: listeners from before; live.py: open connections; show.py: records
to events and rows; where.py: ``--where``; demo.py: traffic.
"""

from __future__ import annotations

from bpfkit.app.cgroup import CgroupApp
from bpfkit.core.errors import InputError, UnsupportedError, UsageError
from bpfkit.core.words import count_of, thousands

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable
    from typing import Any

    from bpfkit.app.events import EventSource
    from bpfkit.app.signals import Signals
    from bpfkit.core.object import Object
    from bpfkit.show.rows import Event, Row, Verdict
    from bpfkit.sockops.demo import Demo
    from bpfkit.sockops.live import Live
    from bpfkit.sockops.rules import Rule
    from bpfkit.sockops.where import Where

#: enum kind of the C side.
_KINDS = (
    "established",
    "retransmit",
    "zero_window",
    "window_open",
    "state",
    "failed",
    "close",
)
_OPENED, _CLOSED, _LOST, _LOST_CLOSES = range(4)
#: Seconds that connections have to close after the command has ended.
_CLOSING_S = 2.0
#: Seconds that reading the last events may take.
_READING_S = 20.0
#: The rules of the demo.
_DEMO_RULES = ["127.0.0.0/8:initial_rto=100ms,cc=reno", "::1:initial_rto=100ms,cc=reno"]


class Sockops(CgroupApp):
    """The life of a cgroup's TCP connections, with retransmissions and their causes."""

    name = "sockops"
    expects = (
        "clients and servers of a cgroup exchange messages by TCP: each event of a "
        "connection is shown"
    )
    details = (
        "state", "sent", "recv", "rtt ms", "retr", "process",
        "messages", "p99 us", "p50 us", "max us",
    )  # fmt: skip
    source = "sock/sockops.bpf.c"
    entry = "sockops"
    #: Which of the source's programs load() loads: the iterator, or the one that is attached.
    _load_live = False
    check_rounds = 1
    epilog = (
        "A rule is PREFIX:OPTION=VALUE,… with initial_rto (100ms), cc (congestion control), tos, "
        "sndbuf, rcvbuf (bytes), iw (initial window, segments) and pacing (bytes per second, or "
        "80mbit). A socket belongs to the cgroup of the process that made it, for good: --cgroup "
        "shows the connections made from now on. An accepted socket has its listener's pid."
    )

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        add = parser.add_argument
        text = "set options of the connections to a prefix (repeatable)"
        add("--set", metavar="RULE", action="append", default=[], help=text)
        text = f"kinds of events, separated by commas: {', '.join(_KINDS)} (default: all but state)"
        add("--events", metavar="KINDS", help=text)
        add(
            "--where",
            action="store_true",
            help="show where messages wait: in the socket, in the qdisc, in the network for their "
            "acknowledgement (Linux 6.15)",
        )
        add(
            "--trace-pipe",
            action="store_true",
            help="write a line for each event to the kernel's trace_pipe, too",
        )

    def check_options(self) -> None:
        super().check_options()
        if self.options.events is not None and self.options.check:
            raise UsageError("--events and --check do not go together", why="--check needs all")
        if self.options.set and self.options.check:
            raise UsageError("--set and --check do not go together", why="--check sets its own")
        if self.options.where and self.options.check:
            raise UsageError("--where and --check do not go together", why="--check verifies both")

    # -- set-up

    def setup(self) -> None:
        from bpfkit.sockops.rules import jiffies_per_second, parse_rules

        options = self.options
        demo = options.cgroup is None and not options.command
        texts = options.set or (_DEMO_RULES if demo else [])
        self.rules: list[Rule] = parse_rules(texts)
        slow = any("initial_rto" in rule.values for rule in self.rules)
        self.hz = jiffies_per_second() if slow else 0
        if options.trace_pipe:
            _require_trace_pipe()
        self._told: set[str] = set()
        self._causes: dict[str, int] = {}
        program = self.load_program(
            report=self._wanted_kinds(),
            traced=int(options.trace_pipe),
            has_rules=int(bool(self.rules)),
        )
        self.link = self.attach(program)
        if options.cgroup is not None:
            from bpfkit.sockops.owners import name_listeners

            name_listeners(self.object, self.group)
        self.live: Live | None = self._open_live()
        self.where = self._open_where()
        if demo:
            from bpfkit.sockops.demo import Demo

            self.demo_traffic: Demo = self.keep(Demo(self))

    def _wanted_kinds(self) -> int:
        """1 << enum kind for each kind of event that is shown."""
        text = self.options.events
        names = [kind for kind in _KINDS if kind != "state"] if text is None else text.split(",")
        for name in names:
            if name not in _KINDS:
                raise InputError(
                    f"no kind of event {name!r}", why=f"the kinds are {', '.join(_KINDS)}"
                )
        return sum({1 << _KINDS.index(name) for name in names})

    def _open_live(self) -> Live | None:
        """The iterator over the open connections; None where the kernel refuses it."""
        from bpfkit.sockops.live import Live

        self._load_live = True
        try:
            return self.keep(Live(self.load()))
        except UnsupportedError as error:
            self.note(f"open connections are not listed: {error}")
            return None

    def _open_where(self) -> Where | None:
        if not self.options.where and not self.options.check:
            return None
        from bpfkit.sockops.where import Where

        try:
            where = Where(self)
        except UnsupportedError as error:
            if self.options.where:
                raise
            self.note(f"--where is not verified: {error}")
            return None
        return where

    def load_options(self) -> dict[str, Any]:
        from os.path import isdir

        # struct tcp_sock has a member for MPTCP only where the kernel has MPTCP.
        options: dict[str, Any] = {
            "cflags": ["-DHAS_MPTCP"] if isdir("/proc/sys/net/mptcp") else [],
            "programs": ["live" if self._load_live else "sockops"],
        }
        if self._load_live:
            options["reuse_maps"] = dict(self.object.maps)
        return options

    def prepare(self, loaded: Object) -> None:
        for rule in self.rules:
            loaded["rules"][rule.key()] = rule.value(self.hz)

    # -- figures

    def rows(self) -> list[Row]:
        if self.options.where and self.where is not None:
            return self.where.rows()
        return [] if self.live is None else self.live.rows()

    def lines(self, rows: list[Row]) -> Iterable[str]:
        if not rows:
            return []
        if self.options.where:
            from bpfkit.sockops.where import where_lines

            return where_lines(rows)
        from bpfkit.sockops.show import table_lines

        return table_lines(rows)

    def text_cells(self, row: Row) -> dict[str, str]:
        if self.options.where:
            from bpfkit.sockops.where import where_cells

            return where_cells(row)
        from bpfkit.sockops.show import cells

        return cells(row)

    def notes(self, rows: list[Row]) -> list[str]:
        opened = self.opened()
        still = thousands(opened - self.closed())
        return [f"{count_of(opened, 'connection')} since the start, {still} of them open"]

    def opened(self) -> int:
        """Connections that were begun or accepted since the start."""
        return int(self.object["count"].sum(_OPENED))

    def closed(self) -> int:
        """Those of them that ended."""
        return int(self.object["count"].sum(_CLOSED))

    # -- events

    def events(self) -> EventSource:
        from bpfkit.app.events import from_buffer

        buffer = self.keep(self.object["events"].open())
        return from_buffer(buffer, self._event, lost=self._lost)

    def _lost(self) -> int:
        count = self.object["count"]
        return int(count.sum(_LOST) + count.sum(_LOST_CLOSES))

    def _event(self, record: Any) -> Event:
        from bpfkit.sockops.show import event_of

        event = event_of(record, _KINDS[record.kind])
        if event.kind == "retransmit":
            cause = event.fields["cause"]
            self._causes[cause] = self._causes.get(cause, 0) + event.fields["segments"]
        for name in event.fields.get("refused_options", ()):
            if name not in self._told:
                self._told.add(name)
                self.note(f"the kernel refuses {name} for {event.fields['dst']}")
        return event

    def event_line(self, event: Event) -> str:
        from bpfkit.sockops.show import event_line

        return event_line(event)

    # -- demo, check, end

    def demo(self) -> None:
        self.demo_traffic.round()

    def verify(self) -> Iterable[Verdict]:
        return self.demo_traffic.verify()

    def finish(self, signals: Signals) -> None:
        """End the command; its connections have two seconds to close."""
        from time import monotonic, sleep

        super().finish(signals)
        deadline = monotonic() + _CLOSING_S
        left = 0
        if self.command is not None:
            while (left := self.opened() - self.closed()) > 0 and monotonic() < deadline:
                sleep(0.01)
        # A burst of events may take longer to read than the life cycle waits at the end; detached,
        # so that it is the last.
        self.link.close()
        deadline = monotonic() + _READING_S
        while self.channel is not None and self.channel.read() and monotonic() < deadline:
            pass
        closes = int(self.object["count"].sum(_LOST_CLOSES))
        if closes:
            self.note(f"{thousands(closes)} of the lost events are close events")
        if self.command is not None and left > 0:
            which = count_of(left, "connection")
            self.note(f"{which} of {self.command.argv[0]} did not close: no close event")

    def conclusion(self, rows: list[Row]) -> str:
        causes = [
            f"{thousands(n)} {name.replace('_', '-')}" for name, n in self._causes.items() if n
        ]
        return (
            f"seen: {count_of(self.closed(), 'connection')} ended; segments sent again: "
            f"{', '.join(causes) or 'none'}"
        )


def _require_trace_pipe() -> None:
    """Raise UnsupportedError if there is no trace_pipe to read."""
    from bpfkit.core.features.system import tracefs

    if tracefs() is None:
        raise UnsupportedError(
            "cannot use --trace-pipe",
            why="tracefs is not mounted",
            hint="mount it: mount -t tracefs tracefs /sys/kernel/tracing",
        )
