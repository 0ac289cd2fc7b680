# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.sk_skb: a TCP proxy whose bytes the kernel forwards.

The C side is bpf_c/sock/sk_skb.bpf.c.  The proxy is a process of its own (proxy.py), which accepts,
connects and forwards; after a few messages it puts both sockets of a connection into a SOCKHASH,
and from there on the kernel forwards::

    python3 -m bpfkit.sk_skb                                       the demo
    python3 -m bpfkit.sk_skb --listen 8080 --to 192.0.2.7:80       a proxy, until a signal

Every byte is delivered, or both connections are reset: connection.py says how.
"""

from __future__ import annotations

from bpfkit.app.options import positive, seconds
from bpfkit.app.sockets import SocketsApp
from bpfkit.core.errors import InputError, UnsupportedError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable, Iterator
    from socket import socket as Socket
    from typing import Any

    from bpfkit.app.events import EventSource
    from bpfkit.app.signals import Signals
    from bpfkit.show.rows import Event, Row, Verdict
    from bpfkit.sk_skb.child import ProxyChild

PORT, BACKEND = 5201, 5202
ROOM = 4096  # CONNECTIONS of the C side
#: Pieces that the proxy of the demo forwards: three messages and their answers.
DEMO_AFTER = 6
_HOWS = ("verdict", "parser")


def split_port(text: str) -> tuple[str | None, int]:
    """``PORT``, ``HOST:PORT`` or ``[ADDRESS]:PORT`` -> (host or None, port).

    :raises UsageError: the text is neither.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise UsageError(f"{text!r} is ambiguous", why="write an IPv6 address as [ADDRESS]:PORT")
    if not (port.isascii() and port.isdigit() and int(port) < 65536) or (colon and not host):
        raise UsageError(f"{text!r} is not PORT or HOST:PORT")
    return host or None, int(port)


def tcp_sock_offsets() -> dict[str, int]:
    """The LOAD_CONSTs that say where the kernel's struct tcp_sock has its fields.

    :raises UnsupportedError: the kernel has no BTF.
    """
    from bpfkit.core.types.btf import vmlinux

    btf = vmlinux()
    found = btf.find("tcp_sock", "struct") if btf is not None else None
    if btf is None or found is None:
        raise UnsupportedError(
            "cannot see how much waits for a reader", why="the kernel lacks CONFIG_DEBUG_INFO_BTF"
        )
    wanted = ("bytes_acked", "write_seq", "snd_una")
    at = {one.name: one.bit_offset for one in btf.members(found) if one.name in wanted}
    return {f"{name}_at": at[name] // 8 for name in wanted}


class SkSkb(SocketsApp):
    """A TCP proxy whose bytes the kernel forwards, and what becomes of them at every end."""

    name = "sk_skb"
    source = "sock/sk_skb.bpf.c"
    counters = ("to_backend", "to_client", "by_kernel")
    details = ("state",)
    counted_in_bytes = counters
    check_rounds = 1
    epilog = (
        "States: user (the proxy process forwards), kernel, draining (leaves the kernel at a "
        "stop), closed. A signal stops the proxy: connections have --grace seconds to end, the "
        "rest is reset at both ends. The end of the process by any other cause resets all. The "
        "kernel holds no sender back: where a sender is faster than its reader by --queue "
        "bytes, the process takes that direction over for the rest of the connection (event "
        "drained), so bulk transfers run mostly in user space; messages and answers stay in the "
        "kernel. The take-over drops segments for some 10 ms, which the sender repeats, 200 ms "
        "later at worst."
    )

    protects = True

    child: ProxyChild
    #: How the proxy has ended without having been asked to.
    failure = ""

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        add = parser.add_argument
        add("--listen", metavar="PORT", help="be a proxy on PORT or ADDRESS:PORT (0: any port)")
        add("--to", metavar="HOST:PORT", help="connect clients to this server")
        text = "verdict (the verdict program alone) or parser (stream parser and verdict)"
        add("--how", choices=_HOWS, default="verdict", help=text)
        text = "pieces of data that the proxy process forwards first (default: 0; the demo: 6)"
        add("--after", metavar="N", type=int, help=text)
        text = "bytes that may wait in the kernel before the process takes over (default: 4194304)"
        add("--queue", metavar="BYTES", type=positive, default=4 << 20, help=text)
        text = f"connections that the kernel forwards at once (default, and most: {ROOM})"
        add("--connections", metavar="N", type=positive, default=ROOM, help=text)
        text = "seconds that connections have to end after a signal (default: 2)"
        add("--grace", metavar="S", type=seconds, default=2.0, help=text)
        add("--pieces", action="store_true", help="an event for each piece the process forwards")

    def has_target(self) -> bool:
        return self.options.listen is not None or self.options.to is not None

    def check_options(self) -> None:
        options = self.options
        if (options.listen is None) != (options.to is None):
            raise UsageError("--listen and --to go together")
        super().check_options()
        if options.netns is not None and not self.has_target():
            raise UsageError("--netns needs --listen and --to")
        if options.after is not None and options.after < 0:
            raise UsageError(f"--after {options.after}", why="a count is 0 or more")
        if options.connections > ROOM:
            raise UsageError(f"--connections {options.connections}", why=f"at most {ROOM}")
        if self.has_target():
            split_port(options.listen)
            if split_port(options.to)[0] is None:
                raise UsageError(f"--to {options.to}", why="write HOST:PORT")

    # -- setting up

    def setup(self) -> None:
        from bpfkit.sk_skb.child import listen
        from bpfkit.sk_skb.probe import leaves_intact

        options = self.options
        self.demo_queue = None
        with self.load(**tcp_sock_offsets()) as loaded:
            self.verdict_works = leaves_intact(loaded)
        if options.how == "verdict" and not self.verdict_works:
            if self.has_target():
                raise UnsupportedError(
                    "--how verdict does not work here",
                    why="this kernel loses its place in a stream that it redirected",
                    hint="use --how parser",
                )
            options.how = "parser"
            self.note("this kernel loses its place without a stream parser: --how parser is used")
        self.after = options.after if options.after is not None else 0
        if self.has_target():
            to = self._backend(*split_port(options.to))
            sock = listen(*split_port(options.listen))
            self.port = int(sock.getsockname()[1])
            self.child = self.start(options.how, sock, to)
            if options.listen.endswith("0") and self.port != int(options.listen.rpartition(":")[2]):
                self.note(f"listens on port {self.port}")
            return
        if options.after is None:
            self.after = DEMO_AFTER
        options.pieces = True
        from bpfkit.sk_skb.demo import Demo

        self.scene = self.keep(Demo(self))
        self.child = self.scene.child

    def _backend(self, host: str | None, port: int) -> tuple[int, Any]:
        import socket

        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise InputError(f"no server {host}", why=str(error.strerror)) from None
        return found[0][0], found[0][4]

    def start(self, how: str, listener: Socket, to: tuple[int, Any], **more: Any) -> ProxyChild:
        """Load, attach to the map in one of the two ways, and start a proxy.

        :param more: options of the proxy that differ from the command line's.
        """
        from bpfkit.sk_skb.child import ProxyChild

        options = self.options
        loaded = self.load(queue_limit=options.queue, **tcp_sock_offsets())
        names = ("verdict",) if how == "verdict" else ("parser", "stream_verdict")
        for name in names:
            # Sockets take the programs that the map has when they enter.
            self.keep(loaded.programs[name].attach_sockmap(loaded["sockets"]))
        given = {
            "after": self.after,
            "pieces": options.pieces,
            "grace": options.grace,
            "room": options.connections,
        }
        return self.keep(ProxyChild(loaded, listener, to, **{**given, **more}))

    def describe_target(self) -> str:
        options = self.options
        if not self.has_target():
            return "proxy of a network namespace of its own"
        return f"proxy {options.listen} → {options.to}"

    # -- figures

    def rows(self) -> list[Row]:
        """Open connections, and the last that have ended."""
        return self.child.rows()

    def lines(self, rows: list[Row]) -> Iterable[str]:
        from bpfkit.show.text import table

        titles = ["client", "state", "to backend", "to client", "by kernel"]
        body = [
            [_end(row["src"], row["sport"]), row["state"], *(str(row[n]) for n in self.counters)]
            for row in rows
        ]
        return table(titles, body, right=[False, False, True, True, True]) if body else []

    def text_cells(self, row: Row) -> dict[str, str]:
        return {"client": _end(row["src"], row["sport"]), "state": row["state"]}

    # -- events

    def events(self) -> EventSource | None:
        from bpfkit.app.events import EventSource

        filenos = [self.child.control.fileno()]
        if self.demo_queue is not None:
            filenos += self.demo_queue.filenos
        return EventSource(self._read, filenos, lambda: self.child.lost)

    def _read(self) -> Iterator[Event]:
        from bpfkit.show.rows import Event

        found = [_event(message) for message in self.child.read()]
        if self.demo_queue is not None:
            found += self.demo_queue.read()
        for event in sorted(found, key=lambda one: one.time):
            if event.kind == "note":
                self.note(event.fields["text"])
                continue
            yield Event(event.kind, event.time, event.fields)

    def event_line(self, event: Event) -> str:
        from bpfkit.show.text import human, time_of_day

        row = event.fields
        when = time_of_day(event.time)
        client = _end(row["src"], row["sport"])
        if event.kind == "forwarded":
            to = {"up": "backend", "down": "client"}[row["to"]]
            text = f"the proxy forwards {human(row['bytes'], 'B')} to the {to}: {row['text']!r}"
        elif event.kind == "answer":
            text = f"{client} reads {row['text']!r}"
        elif event.kind == "spliced":
            text = f"{client} is in the map: the kernel forwards, the proxy is out of it"
        elif event.kind in ("closed", "reset", "drained"):
            up, down, kernel = (
                human(row[field], "B") for field in ("to_backend", "to_client", "by_kernel")
            )
            text = (
                f"{client} {event.kind}: {up} to the backend, {down} back, {kernel} by the kernel"
            )
        else:
            text = f"{client} {event.kind}"
        return f"{when} {text}" + (f" ({row['why']})" if "why" in row else "")

    # -- the demo

    def demo(self) -> None:
        """One client, whose messages first the proxy and then the kernel forwards."""
        if self.options.check:
            self.scene.check()
        else:
            self.scene.talk()

    def conclusion(self, rows: list[Row]) -> str:
        by_kernel = sum(row["by_kernel"] for row in rows if "by_kernel" in row)
        from bpfkit.show.text import human

        return f"seen: {human(by_kernel, 'B')} forwarded by the kernel: the proxy took no part"

    def verify(self) -> Iterable[Verdict]:
        return self.scene.verdicts

    def finish(self, signals: Signals) -> None:
        """Drain and stop the proxy."""
        self.failure = self.child.failed()
        if self.failure:
            self.note(f"{self.failure}: every connection was reset")
        self.child.stop()

    def end_filenos(self) -> list[int]:
        return [self.child.pidfd]

    def exit_status(self) -> int:
        """1 if the proxy has ended by itself."""
        return int(bool(self.failure))


def _end(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _event(message: dict[str, Any]) -> Event:
    from bpfkit.show.rows import Event

    kind, time = message.pop("kind"), message.pop("time")
    message.pop("lost", None)
    return Event(kind, time, message)
