# SPDX-License-Identifier: Apache-2.0
"""Keys of a terminal, one by one, without an echo; the terminal's settings are given back.

The settings are changed only while the process is in the terminal's foreground, and are restored
by :meth:`Keyboard.close` and whenever Ctrl-Z (SIGTSTP) stops the process.  A process that a
signal kills at once (SIGKILL) cannot restore them: ``stty sane`` does.
"""

from __future__ import annotations

import codecs
import os
import signal
import sys
import termios

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

__all__ = ["RESIZED", "Keyboard", "keys_of"]

#: Stands for a key: the window has another size, or the process goes on after a stop.
RESIZED = "resized"
_NAMED = {"\r": "enter", "\n": "enter", "\x7f": "backspace", "\x08": "backspace"}
_ARROWS = {"A": "up", "B": "down", "C": "right", "D": "left"}
_LFLAG, _CC = 3, 6  # tcgetattr(3)'s list


def keys_of(text: str) -> tuple[list[str], str]:
    """The keys in what a terminal sent, and the begun escape sequence at its end.

    A key is a character, or ``up``, ``down``, ``left``, ``right``, ``enter``, ``backspace``,
    ``escape``.  Other control characters and sequences (ECMA-48 CSI, SS3) are left out.
    """
    keys: list[str] = []
    at = 0
    while at < len(text):
        one = text[at]
        at += 1
        if one != "\x1b":
            if one in _NAMED or one.isprintable():
                keys.append(_NAMED.get(one, one))
            continue
        if at == len(text) or text[at] not in "[O":
            keys.append("escape")
            continue
        end = at + 1
        while end < len(text) and "\x20" <= text[end] <= "\x3f":  # parameters
            end += 1
        if end == len(text):
            return keys, text[at - 1 :]
        if end == at + 1 and text[end] in _ARROWS:
            keys.append(_ARROWS[text[end]])
        at = end + 1
    return keys, ""


class Keyboard:
    """Standard input, which is a terminal, read key by key.

    :ivar fd: readable when a key was pressed; poll it while :attr:`active`.
    :ivar reader: readable when the window changed or the process goes on after a stop.
    :ivar active: keys are read; not while the process is in the background.
    """

    @classmethod
    def open(cls) -> Keyboard | None:
        """Standard input's, or None where it is no terminal."""
        try:
            fd = sys.stdin.fileno()
            if os.isatty(fd):
                return cls(fd)
        except (OSError, ValueError, AttributeError, termios.error):
            pass  # closed, not there, or not the main thread
        return None

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.active = False
        self._before: list[Any] = termios.tcgetattr(fd)
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self._begun = ""
        self._handlers: dict[int, Any] = {}
        self.reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        handlers = {
            signal.SIGTSTP: self._stop,
            signal.SIGCONT: self._continue,
            signal.SIGWINCH: self._resize,
        }
        try:
            for number, handler in handlers.items():
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._handlers[number] = signal.signal(number, handler)
        except ValueError:
            self.close()
            raise
        self.enter()

    def enter(self) -> None:
        """Read key by key from now on, if the process is in the foreground."""
        try:
            if os.tcgetpgrp(self.fd) != os.getpgrp():
                return
            settings = [*self._before[:_CC], list(self._before[_CC])]
            settings[_LFLAG] &= ~(termios.ICANON | termios.ECHO)
            # A read never waits, not even if another process took the key.
            settings[_CC][termios.VMIN] = settings[_CC][termios.VTIME] = 0
            termios.tcsetattr(self.fd, termios.TCSANOW, settings)
        except (OSError, termios.error):
            return  # the terminal is gone
        self.active = True

    def leave(self) -> None:
        """Give the terminal its settings back."""
        if not self.active:
            return
        self.active = False
        try:
            # In the background this would stop the process, and the terminal is another's.
            if os.tcgetpgrp(self.fd) == os.getpgrp():
                termios.tcsetattr(self.fd, termios.TCSANOW, self._before)
        except (OSError, termios.error):
            pass

    def read(self) -> list[str]:
        """The keys pressed since the last call; never waits."""
        keys = []
        try:
            if os.read(self.reader, 4096):
                keys.append(RESIZED)
        except BlockingIOError:
            pass
        if not self.active:
            return keys
        try:
            if os.tcgetpgrp(self.fd) != os.getpgrp():
                self.active = False
                return keys
            text = self._decoder.decode(os.read(self.fd, 4096))
        except OSError:
            self.active = False
            return keys
        found, self._begun = keys_of(self._begun + text)
        return keys + found

    def close(self) -> None:
        """Restore the terminal and the signal handlers."""
        self.leave()
        handlers, self._handlers = self._handlers, {}
        for number, handler in handlers.items():
            signal.signal(number, handler)
        fds, self.reader, self._writer = (self.reader, self._writer), -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    # -- signals

    def _wake(self) -> None:
        try:
            os.write(self._writer, b"!")
        except OSError:
            pass

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.leave()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # stops here, until SIGCONT
        if self._handlers:
            signal.signal(signal.SIGTSTP, self._stop)
        # Where nobody could continue it (an orphaned process group), the kernel did not stop it.
        self._continue(number, frame)

    def _continue(self, number: int, frame: FrameType | None) -> None:
        self.enter()
        self._wake()

    def _resize(self, number: int, frame: FrameType | None) -> None:
        self._wake()
