# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.tcpconnect: who connects where by TCP, how long it takes, with what result.

The C side is bpf_c/trace/tcpconnect.bpf.c, which has the hooks of every way; the program loads
those of one.
"""

from __future__ import annotations

from bpfkit.app.lifecycle import main
from bpfkit.app.trace import TraceApp, listed_refusals
from bpfkit.core.errors import BpfkitError, UnsupportedError
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable
    from typing import Any

    from bpfkit.app.events import EventSource
    from bpfkit.show.rows import Event, Row, Verdict

#: Way -> the programs of it, the newest way first.
WAYS = {
    "fentry": ("fentry_v4", "fentry_v6", "fexit_v4", "fexit_v6"),
    "kprobe.multi": ("multi_entry", "multi_return"),
    "kprobe": ("kprobe_v4", "kprobe_v6", "kretprobe_v4", "kretprobe_v6"),
    "tracepoint": ("enter_connect", "exit_connect"),
}
FUNCTIONS = ("tcp_v4_connect", "tcp_v6_connect")
#: Where the demo connects: a listener, and a port without one.
HOSTS = ("127.0.0.1", "::1")

#: The demo's client: connects to each (host, port) of its arguments, prints the errno or 0.
CLIENT = """
import socket, sys
for word in sys.argv[1:]:
    host, port = word.rsplit("/", 1)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as client:
        print(client.connect_ex((host, int(port))), client.getsockname()[1])
"""


class TcpConnect(TraceApp):
    """Who connects where by TCP, how long the handshake takes, with what result."""

    name = "tcpconnect"
    source = "trace/tcpconnect.bpf.c"

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        parser.add_argument(
            "--via",
            choices=WAYS,
            help="hook of the connecting call (default: the first of these that works here)",
        )

    def enter(self) -> None:
        super().enter()
        if self.wants_demo():
            self.enter_namespace(self.place.new_namespace(self.name))

    def setup(self) -> None:
        self.way = self._attach_first()
        if self.options.via is None:
            self.note(
                f"hooks tcp_v4_connect and tcp_v6_connect by {self.way}"
                if self.way != "tracepoint"
                else "hooks connect(2) by tracepoints"
            )
        self.made: list[tuple[str, int, int, int]] = self.for_check([])
        self._servers: list[Any] = []

    def _attach_first(self) -> str:
        """Load and attach by the way that is asked for, or the first that works; returns it."""
        refusals = {}
        for way in [self.options.via] if self.options.via else WAYS:
            try:
                self._attach(way)
                return way
            except BpfkitError as error:
                if self.options.via:
                    raise
                refusals[way] = error.why or error.what
        raise UnsupportedError("no way to hook connects works here", why=listed_refusals(refusals))

    def _attach(self, way: str) -> None:
        self._programs = [*WAYS[way], "set_state"]
        programs = self.load_traced().programs
        # The handshake's end first: an end without a beginning is ignored.
        self.keep(programs["set_state"].attach_raw_tracepoint())
        for name in WAYS[way]:
            program = programs[name]
            if way == "fentry":
                self.keep(program.attach_trace())
            elif way == "kprobe.multi":
                self.keep(program.attach_kprobe_multi(FUNCTIONS))
            elif way == "kprobe":
                self.keep(program.attach_kprobe())
            else:
                self.keep(program.attach_tracepoint())

    def load_options(self) -> dict[str, Any]:
        return {"programs": self._programs}

    def demo(self) -> None:
        """Connects of a child to a listener and to a port without one, over IPv4 and IPv6."""
        import socket
        import sys

        if not self._servers:
            for host in HOSTS:
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                server = self.keep(socket.socket(family, socket.SOCK_STREAM))
                server.bind((host, 0))
                server.listen(64)
                self._servers.append(server)
            if not self.options.check:
                self.note("a client connects to a listener (0) and to port 1 (ECONNREFUSED)")
        targets = []
        for host, server in zip(HOSTS, self._servers, strict=True):
            targets += [(host, server.getsockname()[1]), (host, 1)]
        words = [f"{host}/{port}" for host, port in targets]
        said = self.run_traced([sys.executable, "-I", "-S", "-c", CLIENT, *words]).stdout
        for (host, port), line in zip(targets, said.splitlines(), strict=True):
            result, sport = map(int, line.split())
            self.made.append((host, port, sport, result))

    def events(self) -> EventSource:
        lost = self.object["lost"]
        return self.source_of("attempts", self._event, lambda: sum(lost.values()))

    def _event(self, record: Any) -> Event:
        import errno
        from _socket import AF_INET, AF_INET6, inet_ntop

        from bpfkit.app.events import unix_seconds
        from bpfkit.show.rows import Event

        def text(address: bytes) -> str:
            if record.family == AF_INET:
                return inet_ntop(AF_INET, address[:4])
            return inet_ntop(AF_INET6, address)

        result = record.result
        fields = {
            "pid": record.pid,
            "comm": record.comm,
            "src": text(record.saddr),
            "sport": record.sport or None,
            "dst": text(record.daddr),
            "dport": record.dport,
            "latency_us": round(record.took_ns / 1000, 1),
            "result": errno.errorcode.get(result, str(result)) if result else 0,
        }
        return Event("connect", unix_seconds(record.time_ns), fields)

    def conclusion(self, rows: list[Row]) -> str:
        return (
            "seen: a connect to a port without a listener fails at once: the kernel there "
            "answers RST"
        )

    def verify(self) -> Iterable[Verdict]:
        """What the client's connect() returned, and its ports, against the events."""
        import errno

        assert self.channel is not None
        channel = self.channel
        channel.wait(lambda: len(channel.waiting) >= len(self.made))
        seen = [event.fields for event in channel.waiting]
        for host in HOSTS:
            for refused in (False, True):
                wanted = [m for m in self.made if m[0] == host and bool(m[3]) == refused]
                found = 0
                for _, port, sport, result in wanted:
                    name = errno.errorcode[result] if result else 0
                    found += [
                        f["result"] == name and f["latency_us"] > 0
                        for f in seen
                        if (f["dst"], f["dport"]) == (host, port)
                        and (refused or f["sport"] == sport)
                    ].count(True) >= 1
                text = "refused" if refused else "established"
                yield found == len(wanted) > 0, f"{host}: {found} of {len(wanted)} {text}"
        total = len(seen)
        yield (
            total == len(self.made),
            f"{count_of(total, 'event')} for {count_of(len(self.made), 'connect')}",
        )
        yield channel.lost == 0, f"{count_of(channel.lost, 'event')} lost"


if __name__ == "__main__":
    raise SystemExit(main(TcpConnect))
