# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.raw_tracepoint_writable: a program changes what packet runs return.

The C side is bpf_c/misc/raw_tracepoint_writable.bpf.c.  While it is attached, packet runs of this
process fail with the errno of ``--errno``; those of other processes are left as they are.
"""

from __future__ import annotations

import errno
import os

from bpfkit.app.base import App
from bpfkit.app.lifecycle import main
from bpfkit.core.errors import BpfkitError
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable

    from bpfkit.core.program import Program
    from bpfkit.show.rows import Row, Verdict

_RUNS = 5
#: A packet run of another process; prints its errno, or 0.
OTHER = """
import errno, sys
sys.path.insert(0, sys.argv[1])
from bpfkit.core.kernel import asm, syscall
from bpfkit.core.program import Program
code = bytes(asm.assemble(asm.mov(asm.r0, 2), asm.exit_()))
with Program.from_insns("xdp", code) as program:
    try:
        syscall.prog_test_run(program.fd, bytes(64))
        print(0)
    except OSError as error:
        print(error.errno)
"""


def _errno(text: str) -> int:
    """A name or number of an errno (argparse type)."""
    from argparse import ArgumentTypeError

    number = getattr(errno, text.upper(), None)
    if number is None and text.isdigit() and int(text) in errno.errorcode:
        number = int(text)
    if not isinstance(number, int):
        raise ArgumentTypeError(f"{text!r} is not an errno")
    return number


class RawTracepointWritable(App):
    """A program that changes what the kernel returns: packet runs of this process fail."""

    name = "raw_tracepoint_writable"
    source = "misc/raw_tracepoint_writable.bpf.c"
    counters = ("seen", "changed")
    needs = ("BPF", "PERFMON")
    demo_rounds = 2
    check_rounds = 1
    demo_in_background = False
    has_live_view = False

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--errno",
            metavar="NAME",
            type=_errno,
            default=errno.EDOM,
            help="what packet runs of this process fail with (default: EDOM)",
        )

    def setup(self) -> None:
        from bpfkit.core.kernel import asm
        from bpfkit.core.program import Program

        self.object = self.load(tgid=os.getpid(), error=self.options.errno)
        code = bytes(asm.assemble(asm.mov(asm.r0, 2), asm.exit_()))
        self.subject: Program = self.keep(Program.from_insns("xdp", code))
        self.before = self.run_subject()
        self.link = self.keep(self.object.programs["finish"].attach_raw_tracepoint())
        self.results: list[int] = self.for_check([])

    def run_subject(self) -> int:
        """Run a packet; returns the errno, or 0."""
        from bpfkit.core.kernel import syscall

        try:
            syscall.prog_test_run(self.subject.fd, bytes(64))
        except OSError as error:
            return error.errno or 0
        return 0

    def demo(self) -> None:
        """Packet runs of this process."""
        if self.is_first_demo():
            name = errno.errorcode[self.options.errno]
            self.note(f"{_RUNS} packet runs of an XDP program that works: each fails with {name}")
        self.results += [self.run_subject() for _ in range(_RUNS)]

    def rows(self) -> list[Row]:
        seen, changed = self.object["counts"].values()
        return [{"seen": seen, "changed": changed}]

    def describe_target(self) -> str:
        return "raw tracepoint bpf_test_finish"

    def conclusion(self, rows: list[Row]) -> str:
        changed = sum(row["changed"] for row in rows)
        return (
            f"seen: {count_of(changed, 'result')} replaced by writing to the tracepoint's argument"
        )

    def verify(self) -> Iterable[Verdict]:
        """The errno of the runs, of another process's, and of those before and after."""
        name = errno.errorcode[self.options.errno]
        yield self.before == 0, "before it was attached, a packet run succeeds"
        failed = self.results.count(self.options.errno)
        yield failed == len(self.results) > 0, f"{failed} of {len(self.results)} fail with {name}"
        other = self._other()
        yield other == 0, f"a packet run of another process: errno {other}"
        self.link.close()
        after = self.run_subject()
        yield after == 0, f"after it was detached: errno {after}"

    @staticmethod
    def _other() -> int:
        import subprocess
        import sys

        from bpfkit.core.children import package_home

        words = [sys.executable, "-c", OTHER, package_home()]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BpfkitError("the other process failed", why=done.stderr.strip()[-200:])
        return int(done.stdout)


if __name__ == "__main__":
    raise SystemExit(main(RawTracepointWritable))
