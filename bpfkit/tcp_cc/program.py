# SPDX-License-Identifier: Apache-2.0
"""A TCP congestion control written in C, AIMD, and cwnd of the connections that use it.

The C side is bpf_c/sock/tcp_cc.bpf.c.  The algorithm is registered under a name, for the whole
machine, as long as the program runs; a socket uses it once it asks for that name
(setsockopt(TCP_CONGESTION)), or once bpf_c/sock/tcp_cc_select.bpf.c asks for it, which happens for
the connections of a command or a cgroup.
"""

from __future__ import annotations

from bpfkit.app.cgroup import CgroupApp
from bpfkit.app.options import positive
from bpfkit.core.errors import InputError, UsageError
from bpfkit.core.words import count_of
from bpfkit.tcp_cc.plot import plot, plots_ascii
from bpfkit.tcp_cc.series import INFINITE, Change, Series

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable
    from typing import Any

    from bpfkit.app.events import EventSource
    from bpfkit.app.signals import Signals
    from bpfkit.core.attach.link import Link
    from bpfkit.core.object import Object
    from bpfkit.show.rows import Event, Row, Verdict
    from bpfkit.tcp_cc.transfer import Transfer

AVAILABLE = "/proc/sys/net/ipv4/tcp_available_congestion_control"
#: enum tcp_ca_state.
STATES = ("open", "disorder", "cwr", "recovery", "loss")
#: TCP_CONG_NON_RESTRICTED: also for processes without CAP_NET_ADMIN.
NON_RESTRICTED = 1
#: TCP_CA_NAME_MAX less the zero at the end.
LONGEST_NAME = 15
MBIT = 20
TRANSFER_S = 2.2
#: Connections whose changes are kept for the plot.
KEPT_SERIES = 16
#: Rows that text shows: the newest.
SHOWN = 6


def _percent(text: str) -> int:
    from argparse import ArgumentTypeError

    if text.isascii() and text.isdigit() and 1 <= int(text) <= 99:
        return int(text)
    raise ArgumentTypeError(f"{text!r} is not a percentage (1 to 99)")


def _name(text: str) -> str:
    from argparse import ArgumentTypeError

    if 1 <= len(text) <= LONGEST_NAME and text.isascii() and text.replace("_", "").isalnum():
        return text
    raise ArgumentTypeError(f"{text!r} is no name (1 to {LONGEST_NAME} letters, digits, _)")


class TcpCc(CgroupApp):
    """A TCP congestion control in C, and cwnd of its connections over time."""

    name = "tcp_cc"
    expects = "transfers cross a slow link by a congestion control written in C: cwnd draws a saw"
    details = ("cwnd", "state", "losses", "ssthresh", "max", "timeouts")
    source = "sock/tcp_cc.bpf.c"
    demo_namespace = False
    demo_in_background = True
    demo_rounds = 5
    epilog = (
        "With a command or --cgroup, new TCP connections of these processes use the algorithm. "
        "--no-demo alone only registers it: any program may choose it by its name "
        "(iperf3 -C NAME, setsockopt). Connections keep it until they close."
    )

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        add = parser.add_argument
        add(
            "--name",
            metavar="NAME",
            type=_name,
            default="bpfkit_aimd",
            help="the name to register (default: bpfkit_aimd)",
        )
        add(
            "--increase",
            metavar="N",
            type=positive,
            default=1,
            help="segments that cwnd grows by per round trip (default: 1, as Reno)",
        )
        add(
            "--decrease",
            metavar="PERCENT",
            type=_percent,
            default=50,
            help="what a loss takes off cwnd (default: 50, as Reno)",
        )
        text = (
            "the demo also sends by this algorithm of the kernel, over the same path (reno, cubic)"
        )
        add("--against", metavar="NAME", help=text)
        add("--series", action="store_true", help="print each change of cwnd as an event")

    def has_target(self) -> bool:
        """Whether a cgroup or a command was named."""
        return self.options.cgroup is not None or bool(self.options.command)

    def check_options(self) -> None:
        options = self.options
        alone = options.no_demo and not self.has_target()
        if alone:  # the base wants a cgroup; here the algorithm is of use without one
            options.no_demo = False
        super().check_options()
        options.no_demo = options.no_demo or alone
        if options.against is not None:
            self._check_algorithm(options.against)
        if options.increase > 1000:
            raise InputError(f"--increase {options.increase} is too much", why="1000 is the most")

    def _check_algorithm(self, name: str) -> None:
        """See that the kernel has an algorithm, as setsockopt finds (or loads) it."""
        import socket

        if self.has_target() or self.options.no_demo:
            raise UsageError("--against is for the demo", why="it makes the demo send once more")
        with socket.socket() as sock:
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
            except (OSError, UnicodeError):
                with open(AVAILABLE) as file:
                    raise InputError(
                        f"no congestion control {name!r} in this kernel",
                        why=f"there are {', '.join(file.read().split())}",
                    ) from None

    def enter(self) -> None:
        """The cgroup, the demo's lab, or neither."""
        if self.has_target():
            super().enter()
        elif not self.options.no_demo:
            from bpfkit.tcp_cc.transfer import bottleneck_lab

            self.place.use_lab(self.keep(bottleneck_lab(MBIT)))

    def setup(self) -> None:
        options = self.options
        self.kept = (100 - options.decrease) * 1024 // 100
        self.object = self.load(increase=options.increase, keep=self.kept)
        self.link = self.keep(self.register())
        self.series: dict[int, Series] = {}
        self.transfers: list[Transfer] = self.for_check([])
        self.others: list[Transfer] = self.for_check([])
        self.dropped: list[int] = self.for_check([])
        self._family = 4
        self._last: dict[str, Transfer] = {}
        self._selector: Object | None = None
        if self.has_target():
            self.select()

    def register(self) -> Link:
        """Make the algorithm known to the kernel."""
        from bpfkit.core.errors import AttachError

        try:
            return self.object.attach_struct_ops(
                "tcp_congestion_ops", name=self.options.name, flags=NON_RESTRICTED
            )
        except AttachError as error:
            error.hint = "choose another one with --name"
            raise

    def select(self) -> None:
        """Have the cgroup's new connections use the algorithm."""
        from bpfkit import load

        name = self.options.name.encode().ljust(16, b"\0")
        consts = {
            "name_low": int.from_bytes(name[:8], "little"),
            "name_high": int.from_bytes(name[8:], "little"),
        }
        cache = not self.options.no_cache
        self._selector = self.keep(load("sock/tcp_cc_select.bpf.c", consts=consts, cache=cache))
        self.attach(self._selector.programs["select_cc"])

    def begin(self) -> None:
        if self.demo_runs:
            self.note(
                f"TCP through a router that forwards {MBIT} Mbit/s and queues 40 packets. Until it "
                "drops one, cwnd grows; then it falls to "
                f"{100 - self.options.decrease} %: expect a saw."
            )
        elif not self.has_target():
            self.note(f"{self.options.name} is registered: setsockopt(TCP_CONGESTION) chooses it")
        super().begin()

    def demo(self) -> None:
        """A transfer by the algorithm, one by --against, and in --check one that asks for none."""
        from bpfkit.tcp_cc.transfer import Transfer, dropped

        client, server = self.lab["client"], self.lab["server"]
        name, family, against = self.options.name, self._family, self.options.against
        self._family = 10 - family
        before = dropped(self.lab)
        transfer = self._last[name] = Transfer(client, server, family, name, TRANSFER_S)
        self.transfers.append(transfer)
        self.dropped.append(dropped(self.lab) - before)
        if against:
            self._last[against] = Transfer(client, server, family, against, TRANSFER_S)
        if self.options.check:
            self.others.append(Transfer(client, server, family, "", 0.05))

    def finish(self, signals: Signals) -> None:
        """Say what the demo has shown."""
        super().finish(signals)
        assert self.channel is not None
        self.channel.read(1 << 20)
        for name, transfer in self._last.items():
            cwnds = [sample.cwnd for sample in transfer.samples]
            falls = len(transfer.falls())
            text = (
                f"{name}: {transfer.mbit:.1f} Mbit/s over IPv{transfer.family}, cwnd {min(cwnds)} "
                f"to {count_of(max(cwnds), 'segment')}, {count_of(falls, 'fall')} after slow start"
            )
            series = self.series_from(transfer.port) if name == self.options.name else None
            if series is not None:
                count = len(transfer.samples)
                same = count - len(series.missing(transfer.samples))
                text += f"; {same} of {count_of(count, 'sample')} of TCP_INFO agree"
            self.note(text)

    def series_from(self, port: int) -> Series | None:
        """The changes of the newest connection from a port."""
        numbers = [row["connection"] for row in self.rows() if row["sport"] == port]
        return self.series.get(numbers[-1]) if numbers else None

    # -- what the program noted

    def events(self) -> EventSource:
        from bpfkit.app.events import from_buffer

        buffer = self.keep(self.object["changes"].open())
        return from_buffer(buffer, self._change, lost=lambda: int(self.object["lost"][0]))

    def _change(self, record: Any) -> Event | None:
        number = record.number
        series = self.series.get(number)
        if series is None:
            while len(self.series) >= KEPT_SERIES:
                del self.series[next(iter(self.series))]
            series = self.series[number] = Series()
        series.add(Change(record.time_ns, record.cwnd, record.ssthresh, record.state))
        if not self.options.series:
            return None
        from bpfkit.app.events import unix_seconds
        from bpfkit.show.rows import Event

        fields = {
            "connection": number,
            "cwnd": record.cwnd,
            "ssthresh": None if record.ssthresh >= INFINITE else record.ssthresh,
            "state": STATES[record.state] if record.state < len(STATES) else str(record.state),
        }
        return Event("cwnd", unix_seconds(record.time_ns), fields)

    def rows(self) -> list[Row]:
        return [
            self._row(number, value)
            for number, value in sorted(self.object["connections"].items(), key=lambda kv: kv[0])
        ]

    @staticmethod
    def _row(number: int, value: Any) -> Row:
        from socket import AF_INET6, inet_ntop
        from struct import pack

        family = AF_INET6 if value.family == AF_INET6 else 2
        size = 16 if family == AF_INET6 else 4

        def address(words: Any) -> str:
            return inet_ntop(family, pack(">4I", *words)[:size])

        return {
            "connection": number,
            "src": address(value.src),
            "sport": value.sport,
            "dst": address(value.dst),
            "dport": value.dport,
            "open": not value.closed_ns,
            "state": STATES[value.state] if value.state < len(STATES) else str(value.state),
            "cwnd": value.cwnd,
            "ssthresh": None if value.ssthresh >= INFINITE else value.ssthresh,
            "max_cwnd": value.max_cwnd,
            "acked": value.acked,
            "reductions": value.reductions,
            "timeouts": value.timeouts,
            "undone": value.undone,
            "repaired": value.repaired,
        }

    # -- for people

    def describe_target(self) -> str:
        options = self.options
        kept = (100 - options.decrease) / 100
        text = f"{options.name}: +{options.increase} a round trip, x {kept:.2f} after a loss"
        return f"{text}, {super().describe_target()}" if self.has_target() else text

    def text_cells(self, row: Row) -> dict[str, str]:
        from bpfkit.show.text import cell

        six = ":" in row["dst"]
        return {
            "no": str(row["connection"]),
            "to": f"[{row['dst']}]:{row['dport']}" if six else f"{row['dst']}:{row['dport']}",
            "state": row["state"] if row["open"] else "closed",
            "cwnd": cell(row["cwnd"]),
            "max": cell(row["max_cwnd"]),
            "ssthresh": cell(row["ssthresh"]),
            "losses": cell(row["reductions"]),
            "timeouts": cell(row["timeouts"]),
        }

    def lines(self, rows: list[Row]) -> Iterable[str]:
        from bpfkit.show.text import table

        shown = rows[-SHOWN:]
        if not shown:
            return ["no connection uses the algorithm"]
        cells = [self.text_cells(row) for row in shown]
        titles = list(cells[0])
        right = [title not in ("to", "state") for title in titles]
        lines = table(titles, [list(c.values()) for c in cells], right=right)
        if len(rows) > len(shown):
            lines.append(f"… and {count_of(len(rows) - len(shown), 'earlier connection')}")
        return [*lines, *self.picture(rows)]

    def notes(self, rows: list[Row]) -> list[str]:
        return self.picture(rows)

    def picture(self, rows: list[Row]) -> list[str]:
        """cwnd of the newest connection that has sent something, as a plot."""
        for row in reversed(rows):
            series = self.series.get(row["connection"])
            if series is None or row["max_cwnd"] < 1 or len(series.changes) < 3:
                continue
            end = f"{row['src']} port {row['sport']}"
            lines = plot(series.changes, ascii=plots_ascii())
            return [f"connection {row['connection']}, from {end}:", *lines] if lines else []
        return []

    # -- --check

    def conclusion(self, rows: list[Row]) -> str:
        falls = sum(row["reductions"] for row in rows)
        return (
            f"seen: {count_of(falls, 'time')} a loss made the window smaller; between them it grew "
            "by a segment a round trip"
        )

    def verify(self) -> Iterable[Verdict]:
        from bpfkit.tcp_cc.verify import verify

        assert self.channel is not None
        while self.channel.read(1 << 20):
            pass
        return verify(self)
