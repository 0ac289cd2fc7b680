# SPDX-License-Identifier: Apache-2.0
"""Signals, and standard streams that may be closed, full or without a reader."""

from __future__ import annotations

import os
import signal
import sys
from io import TextIOWrapper

from bpfkit.core.errors import BpfkitError
from bpfkit.core.printable import printable
from bpfkit.core.words import count_of
from bpfkit.show.encoding import encoded, use_ascii_forms

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

__all__ = [
    "Interrupted",
    "OutputLosses",
    "Signals",
    "Stopped",
    "discard_output",
    "open_standard_streams",
    "output",
    "say",
    "tolerate_losses",
]


#: Control characters that texts of our own consist of.
_LAYOUT = "\n\t"
_NEWLINE = 10
#: Characters that fit on a line of every terminal.
_NARROW = 20


class Interrupted(BaseException):
    """A signal asked for the end before there was anything to show, or for the second time."""


class Stopped(BaseException):
    """Standard output has no reader any more."""


class Signals:
    """SIGINT, SIGTERM and SIGHUP ask for the end; a pipe ends the wait under way.

    While :attr:`gentle` is false (there is nothing to show yet), and when a second signal comes
    (the output is blocked), the signal raises :class:`Interrupted` in the main thread.

    :ivar gentle: the first signal only sets :attr:`asked`.
    :ivar asked: a signal asked for the end.
    :ivar number: the signal that asked; 0: none did.
    :ivar verbose: ``-v`` was given: errors are reported with their traceback or log.
    :ivar reader: a descriptor that becomes readable on a signal and by :meth:`wake`.
    """

    def __init__(self) -> None:
        self.gentle = False
        self.asked = False
        self.number = 0
        self.verbose = False
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._before: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            try:
                before = signal.getsignal(number)
                if before == signal.SIG_IGN and number == signal.SIGHUP:
                    continue  # nohup
                signal.signal(number, self._handle)
                self._before[number] = before
            except ValueError:
                pass  # not the main thread (a notebook's worker): its owner handles signals

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked or not self.gentle:
            raise Interrupted
        self.asked = True
        self.number = number
        self.wake()

    def wake(self) -> None:
        """End the wait that is under way; may be called from any thread."""
        try:
            os.write(self.writer, b"!")
        except BlockingIOError:
            pass

    def restore(self) -> None:
        """Put the previous handlers back and close the pipe."""
        for number, before in self._before.items():
            signal.signal(number, before)
        os.close(self.reader)
        os.close(self.writer)


def say(text: str) -> None:
    """Write ``text`` and a newline to standard error; a closed one is no error.

    Names in it that others chose (interfaces, processes) are made printable.  On a terminal, lines
    that are longer than it is wide are broken between words.
    """
    text = printable(text, keep=_LAYOUT)
    try:
        if len(text) > _NARROW and sys.stderr.isatty():
            from bpfkit.show.layout import wrap

            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            text = "\n".join([part for line in text.split("\n") for part in wrap(line, width)])
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        pass


def output(text: str) -> None:
    """Write ``text`` to standard output and flush.

    :raises Stopped: the reader went away.
    :raises BpfkitError: it cannot be written, such as to a full disk.
    """
    losses = _tolerated
    try:
        _write_all("\n" + text if losses is not None and losses.torn and text else text)
    except OSError as error:
        if losses is not None:
            losses.add(text, error)
            return
        if isinstance(error, BrokenPipeError):
            raise Stopped from None
        discard_output()
        raise BpfkitError("cannot write to standard output", why=str(error.strerror)) from None


class OutputLosses:
    """What a program that goes on without its standard output could not write there.

    :param note: prints a line on standard error.
    :ivar torn: the last line that was written is not complete.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self.lines = 0
        self.torn = False
        self._note = note
        self._said = False

    def add(self, text: str, error: OSError) -> None:
        """Count the lines of ``text``; the first time, say why they are lost."""
        self.lines += text.count("\n")
        self.say(f"cannot write to standard output: {error.strerror}")

    def say(self, text: str) -> None:
        """Say once that output fails, and that the program goes on."""
        if not self._said:
            self._said = True
            self._note(f"{text}; the program stays attached, lost output is counted")

    def finish(self) -> None:
        """Say how much was lost."""
        if self.lines:
            self._note(f"lost output: {count_of(self.lines, 'line')}")


_tolerated: OutputLosses | None = None


def tolerate_losses(losses: OutputLosses | None) -> None:
    """From now on :func:`output` counts in ``losses`` what cannot be written; None: it raises."""
    global _tolerated
    _tolerated = losses


def _write_all(text: str) -> None:
    """Write to standard output by write(2) until everything is written.

    Python's unbuffered output (PYTHONUNBUFFERED) loses the rest of a short write, which a full pipe
    and a signal cause.  What the encoding lacks: :func:`bpfkit.show.encoding.encoded`.
    """
    stream = sys.stdout
    if type(stream) is not TextIOWrapper:  # a notebook's, or a test's
        stream.write(text)
        stream.flush()
        return
    stream.flush()
    descriptor = stream.fileno()
    data = encoded(text, stream.encoding)
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
            if _tolerated is not None:
                _tolerated.torn = data[len(data) - len(left) - 1] != _NEWLINE
        except BlockingIOError:  # somebody made the terminal's descriptor non-blocking
            from select import POLLOUT, poll

            poller = poll()
            poller.register(descriptor, POLLOUT)
            poller.poll()


def discard_output() -> None:
    """Drop what is still buffered, so that the interpreter's last flush does not complain."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError, AttributeError):
        pass


def open_standard_streams() -> None:
    """Occupy descriptors 0 to 2, or the next map or socket would become standard output; let
    characters that the output's encoding lacks be written in ASCII."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    use_ascii_forms(sys.stdout, sys.stderr)
