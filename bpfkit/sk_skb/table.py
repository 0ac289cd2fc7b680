# SPDX-License-Identifier: Apache-2.0
"""The maps that the proxy and the program in the kernel share; see bpf_c/sock/sk_skb.bpf.c."""

from __future__ import annotations

import errno
import mmap
import os
import struct
import sys

from bpfkit.core.errors import errno_text
from bpfkit.core.kernel import syscall
from bpfkit.sk_skb.side import flow_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.sk_skb.side import Side

__all__ = ["DIRECTION_SIZE", "NEVER", "DirectionState", "Full", "Refused", "Table"]

#: resume_at of a direction of which nothing is redirected.
NEVER = (1 << 64) - 1
#: struct direction: eight u64.
DIRECTION_SIZE = 64
_RESUME_AT, _WRITTEN, _NEVER_PASS, _REDIRECTED, _REDIRECTS, _PASSED, _FULL, _DROPPED = range(8)
_NOEXIST = 1


class Full(Exception):
    """The map has no room for another connection."""


class Refused(Exception):
    """The kernel does not take a socket into the map; the text says why."""


class DirectionState:
    """A struct direction, in the memory that the kernel's program uses too."""

    __slots__ = ("_at", "_words")

    def __init__(self, words: memoryview, key: int) -> None:
        self._words = words
        self._at = key * (DIRECTION_SIZE // 8)

    def clear(self, written: int, redirects: bool) -> None:
        """Of a new connection: everything is redirected, or nothing yet."""
        self._words[self._at + _RESUME_AT] = 0 if redirects else NEVER
        for word in range(_WRITTEN, _DROPPED + 1):
            self._words[self._at + word] = 0
        self._words[self._at + _WRITTEN] = written

    def allow_redirects(self, passed: int) -> None:
        """Redirect from now on, unless more than ``passed`` bytes were passed by now."""
        self._words[self._at + _RESUME_AT] = passed

    def pass_everything(self) -> None:
        """Redirect nothing any more."""
        self._words[self._at + _RESUME_AT] = NEVER

    def set_written(self, count: int) -> None:
        """Bytes that the proxy wrote to the target."""
        self._words[self._at + _WRITTEN] = count

    def set_never_pass(self, value: bool) -> None:
        """While data is redirected, redirect it whatever waits for the target."""
        self._words[self._at + _NEVER_PASS] = value

    @property
    def redirects(self) -> bool:
        """Is data that arrives now redirected?"""
        words, at = self._words, self._at
        return words[at + _RESUME_AT] == words[at + _PASSED]

    @property
    def redirected(self) -> int:
        """Bytes that went to the target without the proxy."""
        return self._words[self._at + _REDIRECTED]

    @property
    def passed(self) -> int:
        """Bytes that were left to the proxy."""
        return self._words[self._at + _PASSED]

    @property
    def full(self) -> int:
        """How often too much waited for the target."""
        return self._words[self._at + _FULL]

    @property
    def dropped(self) -> int:
        """Bytes that were lost."""
        return self._words[self._at + _DROPPED]


class Table:
    """Who is in the map.

    :param sockets, flows, directions: descriptors of the maps.
    :param room: connections that the maps have room for.
    """

    def __init__(self, sockets: int, flows: int, directions: int, room: int) -> None:
        self._sockets = sockets
        self._flows = flows
        self._memory = mmap.mmap(directions, 2 * room * DIRECTION_SIZE)
        self._words = memoryview(self._memory).cast("Q")
        self._free = list(range(room - 1, -1, -1))

    def reserve(self) -> int:
        """A number for a connection.

        :raises Full: all are taken.
        """
        if not self._free:
            raise Full
        return self._free.pop()

    def release(self, number: int) -> None:
        """The connection's sockets are closed, or out of the map."""
        self._free.append(number)

    def state(self, key: int) -> DirectionState:
        """The direction whose source has this key."""
        return DirectionState(self._words, key)

    def name(self, key: int, side: Side) -> bytes:
        """Make the socket known to the program in the kernel; returns its struct flow.

        :raises Refused: a socket with the same addresses and ports is known.
        """
        flow = flow_key(side.sock)
        try:
            syscall.map_update(self._flows, flow, _u32(key), _NOEXIST)
        except OSError as error:
            raise Refused(errno_text(error.errno or 0)) from None
        return flow

    def forget(self, flow: bytes) -> None:
        """Undo :meth:`name`."""
        try:
            syscall.map_delete(self._flows, flow)
        except OSError:
            pass

    def enter(self, key: int, side: Side) -> None:
        """Put the socket into the map.

        :raises Refused: the kernel does not take it.
        """
        try:
            syscall.map_update(self._sockets, _u32(key), struct.pack("=Q", side.fd))
        except OSError as error:
            reasons = {
                errno.EOPNOTSUPP: "the kernel takes no socket of this kind or state",
                errno.EINVAL: "the kernel takes no socket of this kind",
                errno.EBUSY: "another program's map has the socket",
            }
            number = error.errno or 0
            raise Refused(reasons.get(number) or errno_text(number)) from None

    def leave(self, key: int) -> None:
        """Take the socket out of the map; what was passed to it and not read is lost."""
        try:
            syscall.map_delete(self._sockets, _u32(key))
        except OSError:
            pass  # closed or reset meanwhile: out of the map

    def close(self) -> None:
        """Unmap the directions and close the descriptors."""
        self._words.release()
        self._memory.close()
        os.close(self._sockets)
        os.close(self._flows)


def _u32(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)
