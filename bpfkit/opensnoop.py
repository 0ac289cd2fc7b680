# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.opensnoop: which files processes open, and with what result.

The C side is bpf_c/trace/opensnoop.bpf.c.
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

#: The demo opens these: what is there, and what is not.
PRESENT, ABSENT = "/etc/passwd", "/nonexistent/bpfkit"
#: O_TMPFILE and O_SYNC contain O_DIRECTORY and O_DSYNC.
_FLAGS = (
    "O_TMPFILE O_SYNC O_DSYNC O_CREAT O_EXCL O_NOCTTY O_TRUNC O_APPEND O_NONBLOCK O_DIRECTORY "
    "O_NOFOLLOW O_CLOEXEC O_DIRECT O_NOATIME O_PATH"
).split()


def flag_names(flags: int) -> list[str]:
    """``["O_WRONLY", "O_CREAT"]`` for 0o101."""
    import os

    names = [("O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE")[flags & 3]]
    for name in _FLAGS:
        bits = getattr(os, name)
        if flags & bits == bits:
            names.append(name)
            flags &= ~bits
    return names


class OpenSnoop(TraceApp):
    """Which files processes open, and with what result."""

    name = "opensnoop"
    source = "trace/opensnoop.bpf.c"

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        parser.add_argument("-x", "--failed", action="store_true", help="only opens that fail")

    def setup(self) -> None:
        from bpfkit.core.errors import InputError

        self.load_traced(only_failed=self.options.failed)
        for name, program in self.object.programs.items():
            try:
                self.keep(program.attach_tracepoint())
            except InputError:
                if name.endswith("openat"):
                    raise
                # A system call that this architecture or kernel does not have.
        self.tried: list[str] = self.for_check([])

    def demo(self) -> None:
        """A file that is there, and one that is not."""
        if self.is_first_demo():
            self.note(f"cat opens {PRESENT}, which is there, and {ABSENT}, which is not (ENOENT)")
        self.tried.append(self.run_traced(["cat", PRESENT, ABSENT]).stderr)

    def events(self) -> EventSource:
        lost = self.object["lost"]
        return self.source_of("opens", self._event, lambda: sum(lost.values()))

    def _event(self, record: Any) -> Event:
        from bpfkit.app.events import unix_seconds
        from bpfkit.show.rows import Event

        fields = {
            "pid": record.pid,
            "comm": record.comm,
            "path": record.path if record.path_len > 0 else None,
            "flags": "|".join(flag_names(record.flags)),
            "ret": record.ret,
        }
        return Event("open", unix_seconds(record.time_ns), fields)

    def event_line(self, event: Event) -> str:
        """An open as text: the errno's name instead of its number."""
        import errno

        from bpfkit.show.rows import Event

        ret = event.fields["ret"]
        shown = ret if ret >= 0 else errno.errorcode.get(-ret, ret)
        return super().event_line(Event(event.kind, event.time, {**event.fields, "ret": shown}))

    def conclusion(self, rows: list[Row]) -> str:
        return "seen: paths as the process gave them, with the result that it got"

    def verify(self) -> Iterable[Verdict]:
        """What cat said about its files, and what was seen of its opens."""
        assert self.channel is not None
        channel = self.channel
        wanted = len(self.tried)

        def of(path: str) -> list[int]:
            return [e.fields["ret"] for e in channel.waiting if e.fields["path"] == path]

        enoent = -2

        channel.wait(lambda: len(of(ABSENT)) >= wanted)
        results = of(PRESENT)
        opened = sum(ret >= 0 for ret in results)
        if not self.options.failed:
            yield opened == wanted, f"cat opened {PRESENT} {count_of(opened, 'time')} of {wanted}"
        refused = sum("No such file" in said for said in self.tried)
        missing = of(ABSENT).count(enoent)
        yield (
            missing == refused == wanted,
            f"{ABSENT}: ENOENT {count_of(missing, 'time')}, cat says {refused}",
        )
        yield channel.lost == 0, f"{count_of(channel.lost, 'event')} lost"


if __name__ == "__main__":
    raise SystemExit(main(OpenSnoop))
