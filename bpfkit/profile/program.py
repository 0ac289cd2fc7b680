# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.profile: where processes spend their time, by samples of whole stacks.

The C side is bpf_c/trace/profile.bpf.c.  A table of functions, folded stacks (``--folded``), or a
flame graph (``--svg FILE``).
"""

from __future__ import annotations

import errno
from struct import Struct, unpack_from

from bpfkit.app.trace import TraceApp
from bpfkit.core.cpus import online
from bpfkit.core.errors import BpfkitError, InputError, UnsupportedError, UsageError, errno_text
from bpfkit.core.printable import printable
from bpfkit.core.words import count_of
from bpfkit.profile.symbols import UNKNOWN, KernelSymbols, ProcessSymbols

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable

    from bpfkit.app.events import EventSource
    from bpfkit.app.signals import Signals
    from bpfkit.show.rows import Row, Verdict

#: enum total of the C side.
TAKEN, LOST, NO_USER_STACK = 0, 1, 2
#: --event: (perf_event_attr.type, config).
EVENTS = {
    "cpu-clock": (1, 0),
    "cycles": (0, 0),
    "instructions": (0, 1),
    "cache-misses": (0, 3),
    "branch-misses": (0, 5),
}
_FREQ = 1 << 10  # perf_event_attr.freq, a bit of the flags
#: struct sample of the C side, before the addresses: pid, bytes of kernel and of user addresses,
#: padding, comm.
_SAMPLE = Struct("=IiiI16s")
_WORD = 8
_TOP = 20
#: Processes whose memory maps are kept; the oldest beyond are read again when they are seen again.
_PROCESSES = 256
#: Records whose stacks are known; names are found once for each.
_RECORDS = 4096
#: Seconds of CPU time of the demo's child.
_BUSY = 1.0
CHILD = """
import time
zero, null = open("/dev/zero", "rb", 0), open("/dev/null", "wb", 0)
buffer = bytearray(1 << 20)
end = time.process_time() + SECONDS
while time.process_time() < end:
    zero.readinto(buffer)
    null.write(buffer)
print(time.process_time())
"""


class Profile(TraceApp):
    """Where processes spend their time: samples of whole stacks, as a table or a flame graph."""

    name = "profile"
    source = "trace/profile.bpf.c"
    counters = ("samples",)
    details = ("share", "total")
    epilog = (
        "Times are measured by samples of each CPU at --hz. Frames of the kernel end in _[k]. User "
        "stacks are found by frame pointers; programs built without them show their last function "
        "only."
    )

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        from bpfkit.app.options import positive, seconds

        super().add_options(parser)
        add = parser.add_argument
        add("--hz", metavar="N", type=positive, default=99, help="samples a second (default: 99)")
        add("--seconds", metavar="S", type=seconds, help="end after S seconds")
        add(
            "--event",
            choices=EVENTS,
            default="cpu-clock",
            metavar="EVENT",
            help=f"what triggers a sample: {', '.join(EVENTS)} (default: cpu-clock)",
        )
        add(
            "--folded",
            action="store_true",
            help="print stacks as comm;frame;frame count, at the end; COMMAND's output goes to "
            "standard error",
        )
        add("--svg", metavar="FILE", help="write a flame graph at the end")
        add("--top", metavar="N", type=positive, default=_TOP, help="functions in the table")

    def check_options(self) -> None:
        options = self.options
        if options.seconds is not None:
            if options.count is not None:
                raise UsageError("--seconds and -c do not go together")
            if options.interval is None:
                options.interval, options.count = options.seconds, 1
            else:
                options.count = max(1, round(options.seconds / options.interval))
        super().check_options()
        if options.folded and options.json:
            raise UsageError("--folded and --json do not go together")

    def prints_for_machines(self) -> bool:
        return bool(self.options.folded) or super().prints_for_machines()

    def setup(self) -> None:
        if self.options.svg:
            try:
                self._svg = self.keep(open(self.options.svg, "wb", buffering=0))  # noqa: SIM115
            except OSError as error:
                raise InputError(
                    f"cannot write {self.options.svg}", why=errno_text(error.errno or 0)
                ) from None
        program = self.load_traced().programs["profile"]
        self.kernel = KernelSymbols()
        if self.kernel.hidden():
            self.note("the kernel hides its addresses (kernel.kptr_restrict): frames have no names")
        #: (comm, outermost frame, …, innermost frame) -> samples
        self.stacks: dict[tuple[str, ...], int] = {}
        #: (process, comm, which exec(2) changes) -> its symbols
        self._processes: dict[tuple[int, bytes], ProcessSymbols] = {}
        #: record -> its stack
        self._known: dict[bytes, tuple[str, ...]] = {}
        self._kernel_names: dict[int, str] = {}
        self._links = [
            self.keep(program.attach_perf_event(self._open_event(cpu), target=f"CPU {cpu}"))
            for cpu in online()
        ]
        self.burned: list[float] = self.for_check([])

    def _open_event(self, cpu: int) -> int:
        from bpfkit.core.kernel import syscall

        kind, config = EVENTS[self.options.event]
        # struct perf_event_attr: type, size, config, sample_freq, sample_type, read_format, flags.
        attr = Struct("<IIQQQQQ").pack(kind, 128, config, self.options.hz, 0, 0, _FREQ | 1)
        try:
            return syscall.perf_event_open(attr.ljust(128, b"\0"), -1, cpu)
        except OSError as error:
            raise self._refused(error) from None

    def _refused(self, error: OSError) -> BpfkitError:
        what = f"cannot sample {self.options.event}"
        if error.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.ENODEV):
            return UnsupportedError(
                what,
                why="this machine has no such counter (virtual machines often have none)",
                hint="--event cpu-clock works everywhere",
            )
        if error.errno in (errno.EACCES, errno.EPERM):
            return UnsupportedError(what, why="not permitted (kernel.perf_event_paranoid)")
        if error.errno == errno.EINVAL:
            return InputError(
                what,
                why=f"--hz {self.options.hz} is above what the kernel allows",
                hint="sysctl kernel.perf_event_max_sample_rate",
            )
        return BpfkitError(what, why=errno_text(error.errno or 0))

    def demo(self) -> None:
        """A child reads /dev/zero and writes /dev/null for a second of CPU time.

        Samples are read meanwhile: the names of its functions are found while it is there.
        """
        import sys
        from threading import Thread

        if self.is_first_demo():
            self.note(
                "a child reads /dev/zero and writes /dev/null for a second of CPU time: most "
                "samples should be in the kernel's read()"
            )
        script = CHILD.replace("SECONDS", str(_BUSY))
        argv = [sys.executable, "-I", "-S", "-c", script]
        said: list[str] = []
        child = Thread(target=lambda: said.append(self.run_traced(argv, timeout=60).stdout))
        child.start()
        assert self.channel is not None
        self.channel.wait(lambda: not child.is_alive(), 70.0)
        child.join()
        if not said:
            raise BpfkitError("the demo's child did not end within a minute")
        self.burned.append(float(said[0]))

    # -- samples

    def events(self) -> EventSource:
        return self.source_of("samples", self._sample, self._lost)

    def _lost(self) -> int:
        return int(self.object["totals"].sum(LOST))

    def _sample(self, record: bytes) -> None:
        """Count a sample; there is no event to show."""
        stack = self._known.get(record)
        if stack is None:
            if len(self._known) >= _RECORDS:
                self._known.clear()
            stack = self._stack(record)
            if UNKNOWN not in stack:  # another look at the process may find its name
                self._known[record] = stack
        self.stacks[stack] = self.stacks.get(stack, 0) + 1

    def _stack(self, record: bytes) -> tuple[str, ...]:
        """The comm and the names of the functions, the outermost first."""
        pid, kernel_size, user_size, _, comm = _SAMPLE.unpack_from(record)
        kernel = max(kernel_size, 0) // _WORD
        user = max(user_size, 0) // _WORD
        addresses = unpack_from(f"={kernel + user}Q", record, _SAMPLE.size)
        frames = [comm.partition(b"\0")[0].decode(errors="surrogateescape")]
        process = self._processes.get((pid, comm))
        if process is None:
            if len(self._processes) >= _PROCESSES:
                del self._processes[next(iter(self._processes))]
            process = self._processes[pid, comm] = ProcessSymbols(pid)
        for at in range(kernel + user - 1, kernel - 1, -1):
            frames.append(process.name(addresses[at]))
        names = self._kernel_names
        for at in range(kernel - 1, -1, -1):
            address = addresses[at]
            if address not in names:
                names[address] = self.kernel.name(address)
            frames.append(names[address])
        return tuple(frames)

    # -- output

    def rows(self) -> list[Row]:
        """Functions by the samples that they were running in: ``samples`` in the function itself,
        ``total`` with what it called."""
        own: dict[str, int] = {}
        total: dict[str, int] = {}
        for frames, count in self.stacks.items():
            own[frames[-1]] = own.get(frames[-1], 0) + count
            for name in set(frames[1:]):
                total[name] = total.get(name, 0) + count
        every = sum(self.stacks.values()) or 1
        ranked = sorted(own.items(), key=lambda item: (-item[1], item[0]))[: self.options.top]
        return [
            {
                "function": name,
                "samples": count,
                "share": round(count / every, 4),
                "total": total.get(name, count),
            }
            for name, count in ranked
        ]

    def lines(self, rows: list[Row]) -> Iterable[str]:
        if self.options.folded:
            return []
        return super().lines(rows)

    def finish(self, signals: Signals) -> None:
        super().finish(signals)
        for link in self._links:
            link.close()  # what is left in the ring is all that will be
        self._finished = True

    _finished = False

    def rows_accumulate(self) -> bool:
        return False

    def close(self) -> None:
        """Print the folded stacks and write the flame graph, then undo everything."""
        try:
            if self._finished or self.options.check:
                self._write()
        finally:
            super().close()

    def _write(self) -> None:
        self._finished = False
        if self.options.folded:
            from bpfkit.app.signals import output

            lines = sorted(f"{';'.join(map(_word, s))} {n}" for s, n in self.stacks.items())
            output("".join(f"{line}\n" for line in lines))
        if self.options.svg:
            from bpfkit.profile.flamegraph import flamegraph

            total = sum(self.stacks.values())
            title = f"{self.describe_target()}: {count_of(total, 'sample')} at {self.options.hz} Hz"
            try:
                left = memoryview(flamegraph(self.stacks, title).encode())
                while left:
                    left = left[self._svg.write(left) :]
            except OSError as error:
                why = errno_text(error.errno or 0)
                raise BpfkitError(f"cannot write {self.options.svg}", why=why) from None
            self.note(f"{count_of(total, 'sample')} in {self.options.svg}")

    def conclusion(self, rows: list[Row]) -> str:
        top = rows[0]["function"] if rows and "function" in rows[0] else "nothing"
        return f"seen: most samples in {top}: reading /dev/zero is work of the kernel"

    def verify(self) -> Iterable[Verdict]:
        """The child's own CPU time, and the functions that it spends it in."""
        assert self.channel is not None
        wanted = round(sum(self.burned) * self.options.hz)
        # The start and the end of each child are on neither side of the clock.
        slack = max(3 * len(self.burned), wanted // 50)
        self.channel.wait(lambda: sum(self.stacks.values()) >= wanted - slack, 1.0)
        taken = sum(self.stacks.values())
        burned = f"{sum(self.burned):.2f} s of CPU time at {self.options.hz} Hz"
        text = f"{burned}: {count_of(taken, 'sample')}"
        # A virtual machine whose CPU is taken away counts that as CPU time and misses the ticks.
        yield wanted // 2 <= taken <= wanted + slack + wanted // 10, text
        inside = sum(n for s, n in self.stacks.items() if "vfs_read_[k]" in s)
        loop = taken * _BUSY * len(self.burned) / sum(self.burned)  # the rest is the child's start
        yield inside > loop * 0.5, f"{inside} of {taken} samples are in the kernel's vfs_read()"
        deep = sum(n for s, n in self.stacks.items() if len(s) > 6)
        yield deep > taken * 0.6, f"{deep} of {taken} stacks have more than five frames"
        lost = self._lost() + self.missed()
        yield lost == 0, f"{count_of(lost, 'sample')} lost"


def _word(frame: str) -> str:
    """A frame as folded stacks take it: no semicolon, no line break, no control characters."""
    return printable(frame.replace(";", ":").replace("\n", " "))
