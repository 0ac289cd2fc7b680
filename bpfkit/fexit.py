# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.fexit: arguments and result of a kernel function, typed by the kernel's BTF.

The C side is bpf_c/trace/fexit.bpf.c, which knows no function: what its slots are is found here.
"""

from __future__ import annotations

from bpfkit.app.lifecycle import main
from bpfkit.app.trace import TraceApp
from bpfkit.core.errors import UsageError
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable
    from typing import Any

    from bpfkit.app.events import EventSource
    from bpfkit.show.rows import Event, Row, Verdict

#: Bytes of a text of the C side.
TEXT_SIZE = 64
#: The demo's function: int __sock_create(net, family, type, protocol, res, kern).
DEMO = "__sock_create"
#: The demo's child makes sockets: (family, type), how often; 250 is no family.
SOCKETS = ((2, 1, 7), (2, 2, 5), (1, 1, 3), (250, 1, 4))
CHILD = f"""
import errno, socket
for family, type, times in {SOCKETS!r}:
    for _ in range(times):
        try:
            socket.socket(family, type).close()
            print(family, type, 0)
        except OSError as error:
            print(family, type, -error.errno)
"""


class Fexit(TraceApp):
    """Arguments and result of each call of a kernel function, typed by the kernel's BTF."""

    name = "fexit"
    source = "trace/fexit.bpf.c"
    epilog = "An example: python3 -m bpfkit.fexit vfs_unlink -- rm FILE"
    takes_targets = True

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        add = parser.add_argument
        add("function", metavar="FUNCTION", nargs="?", help="the kernel function (default: a demo)")
        add("--failed", action="store_true", help="only calls that return an error")

    def check_options(self) -> None:
        super().check_options()
        options = self.options
        if options.check and options.function:
            raise UsageError("--check takes no function", why=f"it verifies {DEMO}")
        if not options.function and (self.traces_one() or options.no_demo):
            raise UsageError("name a FUNCTION of the kernel", hint="an example: vfs_unlink")

    def wants_demo(self) -> bool:
        return super().wants_demo() and not self.options.function

    def setup(self) -> None:
        from bpfkit.core.attach.function import Function

        self.function = function = Function(self.options.function or DEMO)
        loaded = self.load_traced(
            slots=function.slots, texts=function.texts, returns=function.result.slots
        )
        self.keep(loaded.programs["on_exit"].attach_trace())
        if not self.options.check:
            self.note(str(function))
        self.made: list[tuple[int, int, int]] = self.for_check([])

    def load_options(self) -> dict[str, Any]:
        return {"attach_targets": {"on_exit": (self.function.id, 0)}}

    def demo(self) -> None:
        """A child makes sockets, some of a family that does not exist, and prints the results."""
        import sys

        if not self.options.check:
            self.note("a child makes sockets; those of family 250 fail (EAFNOSUPPORT)")
        said = self.run_traced([sys.executable, "-I", "-S", "-c", CHILD]).stdout
        for line in said.splitlines():
            family, kind, result = map(int, line.split())
            self.made.append((family, kind, result))
        if not self.options.check:
            failed = sum(result < 0 for _, _, result in self.made)
            self.note(f"the child says: {count_of(len(self.made), 'socket')}, {failed} failed")

    def events(self) -> EventSource:
        return self.source_of("calls", self._event, lambda: int(self.object["counts"][1]))

    def _event(self, record: Any) -> Event | None:
        from bpfkit.app.events import unix_seconds
        from bpfkit.show.rows import Event

        fields: Row = {"pid": record.pid, "comm": record.comm, "function": self.function.name}
        args: Row = {}
        slot = 0
        for parameter in self.function.parameters:
            words = list(record.args[slot : slot + parameter.slots])
            value = parameter.value(words) if words else None
            if parameter.is_text:
                size = record.text_len[slot]
                data = bytes(record.text)[slot * TEXT_SIZE :][: max(0, size - 1)]
                value = data.decode(errors="backslashreplace") if size > 0 else None
            args[parameter.name] = value
            slot += parameter.slots
        result = self.function.result
        fields["args"] = args
        fields["ret"] = result.result(record.ret) if result.slots else None
        if self.options.failed and not self._has_failed(fields["ret"]):
            return None
        return Event("call", unix_seconds(record.time_ns), fields)

    @staticmethod
    def _has_failed(ret: Any) -> bool:
        """Whether a result is an error: a negative errno, or its name in place of an address."""
        return (type(ret) is int and -4095 <= ret < 0) or (
            isinstance(ret, str) and ret.startswith("E")
        )

    def event_line(self, event: Event) -> str:
        """``12:30:05.123 sh[17] vfs_unlink(dir=0xffff…, …) = -2 ENOENT``."""
        import errno

        from bpfkit.show.text import cell, time_of_day

        fields = event.fields
        when = time_of_day(event.time)
        words = [f"{name}={cell(str(value))}" for name, value in fields["args"].items()]
        line = f"{when} {cell(fields['comm'])}[{fields['pid']}] {fields['function']}"
        line += f"({', '.join(words)})"
        ret = fields["ret"]
        if ret is not None:
            line += f" = {ret}"
            if type(ret) is int and -4095 <= ret < 0:
                line += f" {errno.errorcode.get(-ret, '')}".rstrip()
        return line

    def conclusion(self, rows: list[Row]) -> str:
        return "seen: arguments and result of each call, with the types that BTF gives them"

    def verify(self) -> Iterable[Verdict]:
        """What socket(2) returned to the child, against the events."""
        assert self.channel is not None
        channel = self.channel
        channel.wait(lambda: len(channel.waiting) >= len(self.made))
        seen = [event.fields for event in channel.waiting]
        names = [parameter.name for parameter in self.function.parameters]
        good = names == ["net", "family", "type", "protocol", "res", "kern"]
        yield good, f"BTF: {self.function}"
        for family, kind, _ in SOCKETS:
            wanted = [result for f, k, result in self.made if (f, k) == (family, kind)]
            found = [
                call["ret"]
                for call in seen
                if (call["args"]["family"], call["args"]["type"]) == (family, kind)
            ]
            good = found == wanted and bool(wanted)
            yield (
                good,
                (
                    f"socket({family}, {kind}): {count_of(len(found), 'call')} of {DEMO} returned "
                    f"{sorted(set(found))}; the child saw {len(wanted)} of {sorted(set(wanted))}"
                ),
            )
        good = all(call["args"]["kern"] == 0 and call["args"]["protocol"] == 0 for call in seen)
        yield good, "protocol and kern are 0"
        yield channel.lost == 0, f"{count_of(channel.lost, 'event')} lost"


if __name__ == "__main__":
    raise SystemExit(main(Fexit))
