# SPDX-License-Identifier: Apache-2.0
"""Which sockets data can be redirected between, found by sending some: the redirect matrix.

::

    SK_SKB    peer ──▶ source [in the map]              what arrives at the source is redirected
    SK_MSG    source [in the map] ──▶ peer              what the source sends is redirected
    ingress   … ──▶ target's receive queue              the target's owner reads it
    egress    … ──▶ target's send queue ──▶ its peer    the target's peer reads it

The kernel's own table: ``tools/testing/selftests/bpf/prog_tests/sockmap_redir.c``.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from time import monotonic, sleep

from bpfkit.core.features.sockmap.table import (
    EGRESS,
    INGRESS,
    KINDS,
    SK_MSG,
    SK_SKB,
    Absent,
    Table,
    errno_name,
    pair,
    receive,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

__all__ = [
    "ABSENT",
    "CORRUPT",
    "DIRECTIONS",
    "LOST",
    "NOT_RUN",
    "OK",
    "REFUSED",
    "Cell",
    "matrix",
]

#: What became of the data.
OK = "ok"  #: it arrived at the target, byte for byte
REFUSED = "refused"  #: the redirect helper answered SK_DROP
LOST = "lost"  #: the helper took it, it arrived nowhere
CORRUPT = "corrupt"  #: other bytes arrived
NOT_RUN = "not run"  #: the program never saw it: this kind has no such hook
ABSENT = "absent"  #: the machine has no such sockets

DIRECTIONS = {"ingress": INGRESS, "egress": EGRESS}
_SIZE = 1000
_PATIENCE = 0.4
#: errnos of this process's limits, which say nothing about a redirection.
_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class Cell:
    """One entry of the matrix.

    :ivar hook: ``SK_SKB`` or ``SK_MSG``.
    :ivar direction: ``ingress`` or ``egress``.
    :ivar source: kind of the socket whose data is redirected; one of :data:`table.KINDS`.
    :ivar target: kind of the socket it is redirected to.
    :ivar result: a constant of this module, or the errno's name.
    :ivar step: where an errno comes from: ``attach``, ``source enters``, ``target enters``,
        ``send``; else empty.
    """

    __slots__ = (
        "_ends",
        "_stack",
        "_table",
        "data",
        "direction",
        "hook",
        "result",
        "source",
        "step",
        "target",
    )

    def __init__(self, hook: str, direction: str, source: str, target: str) -> None:
        self.hook = hook
        self.direction = direction
        self.source = source
        self.target = target
        self.result = self.step = ""
        self.data = os.urandom(_SIZE)
        self._stack = ExitStack()
        self._table: Table | None = None
        self._ends: tuple[socket.socket, ...] = ()

    def send(self) -> None:
        """Set everything up and send; sets :attr:`result` where that already decides."""
        try:
            sender, target, reader, bypass = self._build()
            sender.settimeout(0.2)
            self.step = "send"
            sender.send(self.data)
            self.step = ""
            self._ends = (target, reader, bypass)
        except Absent:
            self.result, self.step = ABSENT, ""
        except TimeoutError:
            self.result = "ETIMEDOUT"
        except OSError as error:
            if error.errno in _RESOURCES:
                raise
            self.result = errno_name(error)
            dropped = self._table is not None and self._table.verdicts()[0]
            if self.step == "send" and dropped:
                self.result, self.step = REFUSED, ""

    def _build(self) -> tuple[socket.socket, socket.socket, socket.socket, socket.socket]:
        """(sender, target, where redirected data is read, where it goes if it is not)."""
        keep = self._stack.enter_context
        source, peer = map(keep, pair(self.source))
        target, its_peer = map(keep, pair(self.target))
        self._table = table = keep(Table())
        self.step = "attach"
        table.attach(self.hook, DIRECTIONS[self.direction])
        self.step = "target enters"
        table.enter(target, target=True)
        self.step = "source enters"
        table.enter(source)
        reader = target if self.direction == "ingress" else its_peer
        if self.hook == SK_MSG:
            return source, target, reader, peer
        return peer, target, reader, source

    def judge(self, deadline: float) -> None:
        """Wait for the data until ``deadline`` (of ``monotonic()``); sets :attr:`result`."""
        if self.result or self._table is None:
            return
        _, reader, bypass = self._ends
        while True:
            dropped, passed = self._table.verdicts()
            if dropped:
                self.result = REFUSED
                return
            if passed or monotonic() >= deadline or receive(bypass, 1, 0):
                break
            sleep(0.001)
        if not passed:
            self.result = NOT_RUN
            return
        got = receive(reader, _SIZE, max(0.05, deadline - monotonic()))
        self.result = OK if got == self.data else CORRUPT if got else LOST

    def close(self) -> None:
        """Close the sockets and maps."""
        self._stack.close()

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        row: dict[str, object] = {
            "hook": self.hook,
            "direction": self.direction,
            "source": self.source,
            "target": self.target,
            "result": self.result,
        }
        if self.step:
            row["step"] = self.step
        return row


def matrix(kinds: tuple[str, ...] = KINDS) -> Iterator[Cell]:
    """Every source × target × direction × hook, judged.

    The cells of one hook and direction wait for their data together.

    :raises OSError: too many open files (some 250 are needed), or out of memory.
    """
    for hook in (SK_SKB, SK_MSG):
        for direction in DIRECTIONS:
            cells = [Cell(hook, direction, a, b) for a in kinds for b in kinds]
            try:
                for cell in cells:
                    cell.send()
                deadline = monotonic() + _PATIENCE
                for cell in cells:
                    cell.judge(deadline)
            finally:
                for cell in cells:
                    cell.close()
            yield from cells
