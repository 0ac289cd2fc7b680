# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.execs: which programs processes execute, with all their arguments.

The C side is bpf_c/trace/execs.bpf.c: an exec comes in one or several pieces, which are put
together here.
"""

from __future__ import annotations

from bpfkit.app.lifecycle import main
from bpfkit.app.trace import TraceApp
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable
    from typing import Any

    from bpfkit.app.events import EventSource
    from bpfkit.show.rows import Event, Row, Verdict

#: enum kind of the C side.
MEMORY, NAME, ARGUMENT = 1, 2, 3
#: Execs that may be incomplete at the same time; the oldest beyond are given up.
_OPEN = 4096
ABSENT = "/nonexistent/bpfkit"


class _Exec:
    """An exec that is being put together."""

    __slots__ = ("argv", "memory", "path")

    def __init__(self) -> None:
        self.memory: list[bytes] = []
        self.argv: list[bytes] = []
        self.path = b""


def words(memory: bytes) -> list[bytes]:
    """The arguments in a process's memory: strings, each with its 0."""
    if not memory:
        return []
    return memory.removesuffix(b"\0").split(b"\0")


class Execs(TraceApp):
    """Which programs processes execute, with all their arguments."""

    name = "execs"
    source = "trace/execs.bpf.c"

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        parser.add_argument("-x", "--failed", action="store_true", help="only execs that fail")

    def setup(self) -> None:
        self.load_traced()
        for name, program in self.object.programs.items():
            if name == "executed":
                self.keep(program.attach_raw_tracepoint())
            else:
                self.keep(program.attach_tracepoint())
        self._open: dict[tuple[int, int], _Exec] = {}
        self.tried: list[tuple[str, ...]] = self.for_check([])

    def demo(self) -> None:
        """A shell that runs a program with a long argument, and one that does not exist."""
        if self.is_first_demo():
            self.note(f"sh runs env with an argument of 20,000 bytes, then {ABSENT}: ENOENT")
        word = f"X={'x' * 20_000}"
        script = f'/usr/bin/env "$1" /bin/true; exec {ABSENT} "two words" ""'
        done = self.run_traced(["/bin/sh", "-c", script, "sh", word])
        self.tried.append((word, done.stderr))

    def events(self) -> EventSource:
        lost = self.object["lost"]
        return self.source_of("pieces", self._piece, lambda: sum(lost.values()))

    def _piece(self, record: Any) -> Event | None:
        """A record; an event once it is the last of its exec."""
        key = (record.pid, record.time_ns)
        known = self._open.pop(key, None) or _Exec()
        text = bytes(record.text)[: record.size]
        if record.kind == MEMORY:
            known.memory.append(text)
        elif record.kind == NAME:
            known.path = text.removesuffix(b"\0")
        elif not record.last:
            known.argv.append(text.removesuffix(b"\0"))
        if not record.last:
            self._open[key] = known
            while len(self._open) > _OPEN:
                del self._open[next(iter(self._open))]
            return None
        if self.options.failed and not record.ret:
            return None
        return self._event(record, known)

    def _event(self, record: Any, known: _Exec) -> Event:
        from os import fsdecode

        from bpfkit.app.events import unix_seconds
        from bpfkit.show.rows import Event

        argv = words(b"".join(known.memory)) if record.kind == MEMORY else known.argv
        fields = {
            "pid": record.pid,
            "ppid": record.ppid,
            "comm": record.comm,
            "argv": [fsdecode(word) for word in argv],
            "ret": record.ret,
        }
        if record.kind != MEMORY:
            fields["path"] = fsdecode(known.path)
        if record.last == 2:
            fields["truncated"] = True
        return Event("exec", unix_seconds(record.time_ns), fields)

    def event_line(self, event: Event) -> str:
        """An exec as text: the command as a shell would take it, cut at 200 characters."""
        import errno
        from shlex import join

        from bpfkit.show.rows import Event

        fields = event.fields
        ret = fields["ret"]
        command = join(fields["argv"])
        shown = {
            "pid": fields["pid"],
            "ppid": fields["ppid"],
            "comm": fields["comm"],
            "ret": ret if ret >= 0 else errno.errorcode.get(-ret, ret),
            "argv": command if len(command) <= 200 else f"{command[:200]}…",
        }
        if ret:
            shown = {**shown, "path": fields["path"]}
        return super().event_line(Event(event.kind, event.time, shown))

    def conclusion(self, rows: list[Row]) -> str:
        return "seen: a program that does not exist is an exec too: it fails with ENOENT"

    def verify(self) -> Iterable[Verdict]:
        """The words that were passed, and what the shell said."""
        assert self.channel is not None
        channel = self.channel
        wanted = len(self.tried)

        def of(argv: list[str], ret: int) -> int:
            fields = [event.fields for event in channel.waiting]
            return sum(f["argv"] == argv and f["ret"] == ret for f in fields)

        missing = [ABSENT, "two words", ""]
        channel.wait(lambda: of(missing, -2) >= wanted)
        refused = sum("not found" in said for _, said in self.tried)
        failed = of(missing, -2)
        yield (
            failed == refused == wanted,
            f"{ABSENT}: ENOENT {count_of(failed, 'time')}, sh says {refused}",
        )
        if not self.options.failed:
            for word, _ in self.tried[:1]:
                ran = of(["/usr/bin/env", word, "/bin/true"], 0)
                yield (
                    ran == wanted,
                    f"env with all {len(word)} bytes of its argument: {ran}",
                )
            ran = of(["/bin/true"], 0)
            yield ran == wanted, f"env ran true {count_of(ran, 'time')} of {wanted}"
        yield channel.lost == 0, f"{count_of(channel.lost, 'event')} lost"


if __name__ == "__main__":
    raise SystemExit(main(Execs))
