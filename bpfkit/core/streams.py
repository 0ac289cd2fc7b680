# SPDX-License-Identifier: Apache-2.0
"""The standard output and error of all programs of this process (BPF streams; kernel 6.17).

A program writes by BPFKIT_LOG() of ``bpfkit/log.h``; to its standard error the kernel writes, too.
The kernel wakes nobody when there is something to read: a thread looks five times a second, and a
program that is closed is read once more.
"""

from __future__ import annotations

from threading import Event, Lock, Thread

from bpfkit.core.closing import Closing
from bpfkit.core.errors import BpfkitError, UnsupportedError, errno_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bpfkit.core.program import Program

    #: Called with a program's name, 1 or 2 for output or error, and a line.
    Sink = Callable[[str, int, str], object]

__all__ = ["STDERR", "STDOUT", "Follower", "require_streams"]

STDOUT, STDERR = 1, 2
_PERIOD_S = 0.2


def require_streams() -> None:
    """Let a program write a line, and read it.

    :raises UnsupportedError: this kernel has no streams, or no memory for them: some machines'
        kernels cannot allocate where bpf_stream_vprintk() must (ENOMEM).
    """
    import os

    from bpfkit.core.features.kfuncs import kfunc_id
    from bpfkit.core.kernel import asm
    from bpfkit.core.kernel.asm import r1, r2, r3, r4, r5, r10
    from bpfkit.core.object import frozen_map
    from bpfkit.core.program import Program

    what = "cannot show what programs write"
    function = kfunc_id("bpf_stream_vprintk")
    if function is None:
        raise UnsupportedError(
            what, why="this kernel has no BPF streams (bpf_stream_vprintk: Linux 6.17)"
        )
    text = frozen_map("log", b"log\0")
    try:
        insns = asm.assemble(
            asm.st(asm.u64, r10 - 8, 0),
            asm.mov(r1, STDOUT),
            asm.ld_map_value(r2, text),
            asm.mov(r3, r10),
            asm.add(r3, -8),
            asm.mov(r4, 0),
            asm.mov(r5, 0),
            asm.call_kfunc(function),
            asm.exit_(),
        )
        with Program.from_insns("xdp", insns, name="write") as program:
            result = program.run(bytes(64)).retval
            if program.read_stream(STDOUT) == "log":
                return
    finally:
        os.close(text)
    number = (1 << 32) - result if result >> 31 else 0
    why = errno_text(number) if number else "what was written does not come back"
    raise UnsupportedError(what, why=f"bpf_stream_vprintk() fails on this machine: {why}")


class Follower(Closing):
    """Passes on what programs write, of all that are loaded from now on.

    :param sink: gets every line; called by a thread, and by those that close programs.
    """

    def __init__(self, sink: Sink) -> None:
        from bpfkit.core import program

        self._sink = sink
        self._programs: dict[int, Program] = {}
        self._rests: dict[tuple[int, int], str] = {}
        self._lock = Lock()
        self._end = Event()
        program.follower = self
        self._thread = Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def add(self, program: Program) -> None:
        """Follow a program, too."""
        with self._lock:
            self._programs[id(program)] = program

    def remove(self, program: Program) -> None:
        """Read a program for the last time: it is about to be closed."""
        with self._lock:
            if self._programs.pop(id(program), None) is not None:
                self._read(program, last=True)

    def close(self) -> None:
        from bpfkit.core import program

        if program.follower is self:
            program.follower = None
        self._end.set()
        self._thread.join()
        for followed in list(self._programs.values()):
            self.remove(followed)

    def _run(self) -> None:
        while not self._end.wait(_PERIOD_S):
            with self._lock:
                for program in self._programs.values():
                    self._read(program)

    def _read(self, program: Program, *, last: bool = False) -> None:
        for stream in (STDOUT, STDERR):
            key = id(program), stream
            try:
                text = self._rests.pop(key, "") + program.read_stream(stream)
            except (OSError, BpfkitError):
                continue
            *lines, rest = text.split("\n")
            if rest and last:
                lines.append(rest)
            elif rest:
                self._rests[key] = rest  # the rest of the line may be under way
            for line in lines:
                if line:
                    self._sink(program.name, stream, line)
