# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.fmod_ret: a kernel function returns an error to the processes that are named.

The C side is bpf_c/trace/fmod_ret.bpf.c.
"""

from __future__ import annotations

from bpfkit.app.lifecycle import main
from bpfkit.app.trace import TraceApp
from bpfkit.core.errors import BpfkitError, InputError, UsageError
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable
    from typing import Any

    from bpfkit.app.events import EventSource
    from bpfkit.show.rows import Event, Row, Verdict

#: The demo: int security_socket_listen(struct socket *sock, int backlog) fails for one backlog.
DEMO, BACKLOG = "security_socket_listen", 77
CHILD = """
import socket
for backlog in (77, 5):
    with socket.socket() as sock:
        try:
            sock.listen(backlog)
            print(backlog, 0)
        except OSError as error:
            print(backlog, error.errno)
"""


def _errno(text: str) -> int:
    """An errno by name (argparse type)."""
    import errno
    from argparse import ArgumentTypeError

    number = getattr(errno, text.upper(), None)
    if text[:1] not in "Ee" or type(number) is not int:
        raise ArgumentTypeError(f"{text!r} is no errno's name, such as EPERM")
    return number


class FmodRet(TraceApp):
    """A kernel function (security_*) returns an error instead of running."""

    name = "fmod_ret"
    source = "trace/fmod_ret.bpf.c"
    takes_targets = True
    protects = True
    epilog = (
        "FUNCTION is one whose result may be modified: security_*, and those on the kernel's error "
        "injection list. An example: python3 -m bpfkit.fmod_ret security_socket_listen --when "
        "backlog=77 -- COMMAND. Words behind -- are a command to run."
    )

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        add = parser.add_argument
        add("function", metavar="FUNCTION", nargs="?", help="the kernel function (default: a demo)")
        add("--errno", metavar="NAME", type=_errno, default=1, help="the error (default: EPERM)")
        add("--when", metavar="ARG=N", help="only if this integer argument has this value")

    def check_options(self) -> None:
        super().check_options()
        options = self.options
        if options.check and (options.function or options.when):
            raise UsageError("--check takes no function", why=f"it verifies {DEMO}")
        if not options.function and (self.traces_one() or options.no_demo or options.when):
            raise UsageError("name a FUNCTION of the kernel", hint="an example: security_file_open")
        if options.function and not self.traces_one():
            raise UsageError(
                "say for whom: --pid, --cgroup or -- COMMAND",
                why="for all processes it would hold for this program and your shell, too",
            )

    def wants_demo(self) -> bool:
        return super().wants_demo() and not self.options.function

    def setup(self) -> None:
        from bpfkit.core.attach.function import Function
        from bpfkit.core.errors import VerifierError

        options = self.options
        self.function = function = Function(options.function or DEMO)
        when = f"backlog={BACKLOG}" if self.wants_demo() else options.when
        consts = {"slots": function.slots, "result": -options.errno}
        if when:
            consts |= self._condition(when)
        try:
            loaded = self.load_traced(**consts)
        except VerifierError as error:
            if "is not modifiable" in (error.log or ""):
                raise InputError(
                    f"the result of {function.name} cannot be modified",
                    why="the kernel allows it for security_* and functions of its error injection "
                    "list",
                ) from None
            raise
        self.keep(loaded.programs["on_call"].attach_trace())
        if not options.check:
            self.note(str(function))
        self.tried: list[dict[int, int]] = self.for_check([])
        self.outside: list[int] = self.for_check([])

    def _condition(self, text: str) -> dict[str, int]:
        """The LOAD_CONSTs of ``--when``."""
        name, _, number = text.partition("=")
        try:
            value = int(number, 0)
        except ValueError:
            raise UsageError(f"--when {text!r} is no ARG=N") from None
        slot = 0
        for parameter in self.function.parameters:
            if parameter.name == name:
                if parameter.slots != 1 or parameter.size > 8:
                    raise UsageError(f"--when {name}: it is no integer")
                mask = (1 << 8 * parameter.size) - 1
                return {"when_slot": slot, "when_mask": mask, "when_value": value & mask}
            slot += parameter.slots
        raise UsageError(f"{self.function} has no argument {name}")

    def load_options(self) -> dict[str, Any]:
        return {"attach_targets": {"on_call": (self.function.id, 0)}}

    def demo(self) -> None:
        """A child and this process, which is not of the cgroup, listen with two backlogs."""
        import socket
        import sys

        if not self.options.check:
            self.note(
                f"a child listens with a backlog of {BACKLOG}, which fails (EPERM), and of 5; this "
                "process, outside the cgroup, may do both"
            )
        done = self.run_traced([sys.executable, "-I", "-S", "-c", CHILD])
        if done.returncode:
            raise BpfkitError("the demo's child failed", why=done.stderr.strip()[-300:])
        words = list(map(int, done.stdout.split()))
        self.tried.append(dict(zip(words[::2], words[1::2], strict=True)))
        with socket.socket() as sock:
            try:
                sock.listen(BACKLOG)
                self.outside.append(0)
            except OSError as error:
                self.outside.append(error.errno or 0)
        if not self.options.check:
            got = ", ".join(f"{b}: errno {e}" for b, e in self.tried[-1].items())
            self.note(f"the child got {got}; this process errno {self.outside[-1]}")

    def events(self) -> EventSource:
        return self.source_of("calls", self._event, lambda: int(self.object["counts"][1]))

    def _event(self, record: Any) -> Event:
        import errno

        from bpfkit.app.events import unix_seconds
        from bpfkit.show.rows import Event

        args: Row = {}
        slot = 0
        for parameter in self.function.parameters:
            args[parameter.name] = parameter.value(list(record.args[slot : slot + parameter.slots]))
            slot += parameter.slots
        fields: Row = {
            "pid": record.pid,
            "comm": record.comm,
            "function": self.function.name,
            "args": args,
            "ret": errno.errorcode.get(-record.ret, record.ret),
        }
        return Event("modified", unix_seconds(record.time_ns), fields)

    def event_line(self, event: Event) -> str:
        from bpfkit.show.rows import Event

        args = ", ".join(f"{name}={value}" for name, value in event.fields["args"].items())
        return super().event_line(Event(event.kind, event.time, {**event.fields, "args": args}))

    def conclusion(self, rows: list[Row]) -> str:
        return (
            "seen: the named process gets the error and the function does not run; others do "
            "not notice"
        )

    def verify(self) -> Iterable[Verdict]:
        """The errno that listen(2) gave inside and outside the cgroup."""
        for inside, outside in zip(self.tried, self.outside, strict=True):
            got = inside[BACKLOG]
            yield got == 1, f"listen({BACKLOG}) of the child: errno {got} (1: EPERM)"
            yield inside[5] == 0, f"listen(5) of the child: errno {inside[5]}"
            yield outside == 0, f"listen({BACKLOG}) outside the cgroup: errno {outside}"
        assert self.channel is not None
        channel = self.channel
        channel.wait(lambda: len(channel.waiting) >= len(self.tried))
        seen = [event.fields["args"]["backlog"] for event in channel.waiting]
        good = seen == [BACKLOG] * len(self.tried)
        yield good, f"{count_of(len(seen), 'event')}, each of backlog {BACKLOG}"


if __name__ == "__main__":
    raise SystemExit(main(FmodRet))
