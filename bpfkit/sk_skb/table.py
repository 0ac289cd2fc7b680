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

__all__ = ["DIRECTION_SIZE", "DirectionState", "Full", "Refused", "Table"]

#: struct direction: eight u64.
DIRECTION_SIZE = 64
_WRITTEN, _REDIRECTED, _ASKED, _OVERFULL, _HOMELESS = range(5)
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

    def clear(self) -> None:
        """Of a new connection."""
        for word in range(DIRECTION_SIZE // 8):
            self._words[self._at + word] = 0

    def start(self, written: int) -> None:
        """What arrives from now on is redirected to a target that the proxy wrote ``written``."""
        self._words[self._at + _WRITTEN] = written
        self._words[self._at + _ASKED] = 0

    @property
    def redirected(self) -> int:
        """Bytes that went to the target without the proxy."""
        return self._words[self._at + _REDIRECTED]

    @property
    def asked(self) -> bool:
        """Has the program asked the process to take over?"""
        return bool(self._words[self._at + _ASKED])

    @property
    def lost(self) -> str:
        """Why bytes were lost; empty: none were."""
        if self._words[self._at + _OVERFULL]:
            return "the reader is too slow"
        return "a target is missing" if self._words[self._at + _HOMELESS] else ""


class Table:
    """Who is in the map.

    :param sockets, targets, flows, directions: descriptors of the maps.
    :param room: connections that the maps have room for.
    """

    def __init__(self, sockets: int, targets: int, flows: int, directions: int, room: int) -> None:
        self._sockets = sockets
        self._targets = targets
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

    def make_target(self, key: int, side: Side) -> None:
        """Data may be redirected to the socket.

        :raises Refused: the kernel does not take it into a map.
        """
        _enter(self._targets, key, side)

    def make_source(self, key: int, side: Side) -> None:
        """Redirect the socket's data.

        :raises Refused: the kernel does not take it into the map.
        """
        _enter(self._sockets, key, side)

    def leave(self, key: int) -> None:
        """Run no program on the socket's data any more; it stays a target."""
        try:
            syscall.map_delete(self._sockets, _u32(key))
        except OSError:
            pass  # closed or reset meanwhile: out of the map

    def close(self) -> None:
        """Unmap the directions and close the descriptors."""
        self._words.release()
        self._memory.close()
        os.close(self._sockets)
        os.close(self._targets)
        os.close(self._flows)


def _enter(sockets: int, key: int, side: Side) -> None:
    try:
        syscall.map_update(sockets, _u32(key), struct.pack("=Q", side.fd))
    except OSError as error:
        reasons = {
            errno.EOPNOTSUPP: "the kernel takes no socket of this kind or state",
            errno.EINVAL: "the kernel takes no socket of this kind",
            errno.EBUSY: "another program's map has the socket",
        }
        number = error.errno or 0
        raise Refused(reasons.get(number) or errno_text(number)) from None


def _u32(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)
