# SPDX-License-Identifier: Apache-2.0
"""One SO_REUSEPORT group: its sockets in the maps, each under its own identity.

::

    add(socket) ─▶ a free slot ─▶ workers[slot] = socket ─▶ buckets
    retire(slot)  no new connections; those that wait for it move when its socket closes
    remove(slot)  the slot is free
"""

from __future__ import annotations

from hashlib import blake2b

from bpfkit.core.errors import BpfkitError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from bpfkit.core.object import Object
    from bpfkit.core.program import Program

__all__ = ["Group", "Worker"]

SLOTS, BUCKETS = 64, 1021  # of the C side
_SO_COOKIE = 57


class Worker:
    """A socket of the group.

    :ivar slot: its place in the maps.
    :ivar number: the worker's number, which a datagram's content names.
    :ivar generation: 1 for the first worker of this number.
    :ivar pid: of the process that it belongs to; 0: not known.
    :ivar cookie: the socket's, its identity.
    :ivar takes: it gets new connections.
    """

    __slots__ = ("cookie", "generation", "inode", "number", "pid", "slot", "takes")

    def __init__(
        self, slot: int, number: int, generation: int, pid: int, cookie: int, inode: int
    ) -> None:
        self.slot = slot
        self.number = number
        self.generation = generation
        self.pid = pid
        self.cookie = cookie
        self.inode = inode
        self.takes = True


class Group:
    """The workers of one address, port and protocol.

    :param loaded: the object, which is this group's alone: a socket of another group in its map
        would be refused when it is selected.
    :ivar label: what the group is, for people.
    """

    def __init__(self, loaded: Object, label: str) -> None:
        self._object = loaded
        self.label = label
        self.workers: dict[int, Worker] = {}
        self._generations: dict[int, int] = {}

    def program(self) -> Program:
        """The program to attach to one socket of the group, which is the whole group's."""
        return next(iter(self._object.programs.values()))

    def add(self, fd: int, number: int, pid: int = 0) -> Worker:
        """Enter a listening socket.

        :param fd: a descriptor of it; the map needs none after this call.
        :raises BpfkitError: all slots are taken, or the kernel refuses the socket.
        """
        import os
        import socket

        slot = next((slot for slot in range(SLOTS) if slot not in self.workers), None)
        if slot is None:
            raise BpfkitError(f"no room for a worker of {self.label}", why=f"it has {SLOTS}")
        self._object["workers"][slot] = fd
        copy = socket.socket(fileno=os.dup(fd))
        with copy:
            cookie = int.from_bytes(copy.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), "little")
        generation = self._generations[number] = self._generations.get(number, 0) + 1
        worker = Worker(slot, number, generation, pid, cookie, os.fstat(fd).st_ino)
        self.workers[slot] = worker
        self._object["slots_of"][number] = slot
        self._fill_buckets()
        return worker

    def retire(self, worker: Worker) -> None:
        """Give the worker no new connections; one of its number that came later gets them."""
        worker.takes = False
        numbers = self._object["slots_of"]
        if numbers.get(worker.number) == worker.slot:
            numbers.pop(worker.number, None)
        self._fill_buckets()

    def remove(self, worker: Worker) -> None:
        """The worker's socket is closed: free its slot."""
        if worker.takes:
            self.retire(worker)
        self._object["workers"].pop(worker.slot, None)
        self.workers.pop(worker.slot, None)

    def _fill_buckets(self) -> None:
        taking = [worker for worker in self.workers.values() if worker.takes]
        values = bytearray()
        for number in range(BUCKETS):
            best = sorted(taking, key=lambda worker: _draw(number, worker.cookie))[-2:]
            first = best[-1].slot if best else SLOTS
            second = best[0].slot if len(best) > 1 else SLOTS
            values += first.to_bytes(4, "little") + second.to_bytes(4, "little")
        keys = b"".join(number.to_bytes(4, "little") for number in range(BUCKETS))
        self._object["buckets"].update_raw(keys, bytes(values))

    def counts(self) -> dict[int, tuple[int, int, int]]:
        """Slot -> connections or datagrams selected, connections migrated to it, errors; slot 64:
        what went to no worker of ours."""
        return {
            slot: (count.selected, count.migrated, count.errors)
            for slot, count in self._object["counts"].sums()
        }

    def __iter__(self) -> Iterator[Worker]:
        return iter(sorted(self.workers.values(), key=lambda w: (w.number, w.generation)))


def _draw(bucket: int, cookie: int) -> bytes:
    return blake2b(b"%d %d" % (bucket, cookie), digest_size=8).digest()
