# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.truncate: a socket filter that cuts what a TCP socket receives.

The C side is bpf_c/socket/truncate.bpf.c.  An echo server listens on port 5201 of a network
namespace of its own, with the filter on its socket; a client sends ``hello world``.  The answer
comes in two pieces, 200 ms apart, and the packets that crossed lo meanwhile explain why.
"""

from __future__ import annotations

from bpfkit.app.base import App
from bpfkit.app.place import add_netns
from bpfkit.core.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable

    from bpfkit.show.rows import Row, Verdict
    from bpfkit.truncate.echo import Exchange
    from bpfkit.truncate.tcp_trace import Segment

PORT, UNFILTERED = 5201, 5202
MESSAGE = b"hello world"
EXPLAINED = (
    "The filter kept 5 of 11 bytes, so the server got `hello`, and acknowledged no more than that.",
    "To the client the other 6 bytes are lost: it sends them again when its timer runs out. They",
    "are few enough to pass the filter.",
)


class Truncate(App):
    """A socket filter on a TCP listener cuts `hello world`: ` world` comes 200 ms later."""

    name = "truncate"
    expects = (
        "a client sends `hello world` to an echo server whose filter keeps 5 bytes of a packet"
    )
    source = "socket/truncate.bpf.c"
    needs = ("BPF", "NET_RAW", "SYS_ADMIN")
    demo_rounds = 1
    has_live_view = False
    takes_netns = True

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        add_netns(parser, "network namespace to work in", default="a new one")

    def check_options(self) -> None:
        if self.options.no_demo:
            raise UsageError("truncate is its demo", why="--no-demo leaves nothing to observe")

    def enter(self) -> None:
        given = None if self.options.check else self.place.open_namespace()
        self.enter_namespace(given or self.place.new_namespace("truncate"))

    def setup(self) -> None:
        from bpfkit.truncate.echo import EchoServer

        self.found: list[Row] = []
        self.exchanges: list[Exchange] = []
        loaded = self.load()
        server = self.keep(EchoServer(PORT))
        self.keep(loaded.programs["truncate"].attach_socket(server.sock))
        self.segments = self.keep(loaded.events("segments"))
        server.start()

    def describe_target(self) -> str:
        return self.place.describe(f"a listener on port {PORT}")

    def demo(self) -> None:
        """One exchange: connect, send, read the echo, and look at the packets."""
        from bpfkit.truncate.echo import exchange

        done = exchange(PORT, MESSAGE)
        # What the filter saw, by its own record: how much of a segment it kept, in order.
        kept = [seen.kept for seen in self.segments.poll(0) if seen.payload]
        rows = [self._segment(segment, done.sent_ns, kept) for segment in done.trace]
        rows += [_row(1e3 * at, "answer", text=text) for at, text in done.answers]
        self.exchanges.append(done)
        self.found = sorted(rows, key=lambda row: float(row["ms"]))

    def _segment(self, seg: Segment, sent_ns: int, kept: list[int]) -> Row:
        size = len(seg.payload)
        keeps = None
        why = ""
        if seg.to_server and size and kept:
            keeps = kept.pop(0)
            why = f"the filter keeps {keeps} of {size} bytes" if keeps < size else "kept whole"
            if seg.again:
                why = f"sent again, because it was not acknowledged: {why}"
        elif size:
            why = f"the echo {seg.payload.decode()!r}"
        elif seg.ack > 1 and not seg.to_server and "F" not in seg.flags:
            why = f"acknowledges {min(seg.ack - 1, len(MESSAGE))} bytes"
        return _row(
            (seg.ts_ns - sent_ns) / 1e6,
            "segment",
            sender="client" if seg.to_server else "server",
            flags=seg.flags,
            seq=seg.seq,
            ack=seg.ack,
            length=size,
            kept=keeps,
            text=why,
        )

    def rows(self) -> list[Row]:
        """The latest exchange: each segment on lo, and each piece of the answer, in order."""
        return self.found

    def lines(self, rows: list[Row]) -> Iterable[str]:
        from bpfkit.show.text import cell, table

        fields = ("sender", "flags", "seq", "ack", "length", "kept")
        body = []
        for row in rows:
            cells = ["" if row.get(field) is None else cell(row[field]) for field in fields]
            text = f"the client reads {row['text']!r}" if row["event"] == "answer" else row["text"]
            body.append([f"{row['ms']:.2f}", *cells, text])
        right = [True, False, False, True, True, True, True]
        lines = table(["ms", *fields, ""], body, right=right)
        if [row["kept"] for row in rows if row.get("kept")] == [5, 6]:
            lines += ["", *EXPLAINED]
        return lines

    def conclusion(self, rows: list[Row]) -> str:
        times = [row["ms"] for row in rows if row["event"] == "answer"]
        late = f"{times[-1] - times[0]:.0f} ms" if len(times) > 1 else "not at all"
        return f"seen: the rest came {late} after `hello`: TCP sent again what the filter cut off"

    def verify(self) -> Iterable[Verdict]:
        from bpfkit.truncate.echo import EchoServer, exchange

        for done in self.exchanges:
            texts = [text for _, text in done.answers]
            yield texts == ["hello", " world"], f"the echo of {MESSAGE!r} came as {texts}"
            times = [at * 1e3 for at, _ in done.answers]
            late = len(times) == 2 and times[0] < 100 and 150 < times[1] - times[0] < 1000
            yield late, "after " + " and ".join(f"{at:.1f} ms" for at in times)
            sent = [(s.seq, len(s.payload)) for s in done.trace if s.to_server and s.payload]
            yield sent == [(1, 11), (6, 6)], f"segments with (number, bytes) {sent} crossed lo"
        plain = self.keep(EchoServer(UNFILTERED))
        plain.start()
        texts = [text for _, text in exchange(UNFILTERED, MESSAGE).answers]
        yield texts == [MESSAGE.decode()], f"without the filter it comes as {texts}"


def _row(ms: float, event: str, **fields: object) -> Row:
    return {"ms": round(ms, 3), "event": event, **fields}
