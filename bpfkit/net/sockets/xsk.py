# SPDX-License-Identifier: Apache-2.0
"""AF_XDP sockets: a queue's frames in memory shared with the kernel.

::

    UMEM: chunks of CHUNK bytes, half to receive into, half to send from
      fill ──▶ kernel writes frames ──▶ RX ──▶ recv() ──▶ fill
      send() ──▶ TX ──▶ kernel sends ──▶ completion ──▶ free for the next send()

An XDP program redirects frames to the socket through an XSKMAP.  Standard library only; the rings
are read and written through memoryviews, one machine word at a time.  The kernel needs
CONFIG_XDP_SOCKETS (Linux 4.18).
Source: Documentation/networking/af_xdp.rst, ``include/uapi/linux/if_xdp.h``.
"""

from __future__ import annotations

import _socket
import ctypes as ct
import errno
import mmap
import os
import struct
import sys
from select import POLLIN, poll
from threading import Lock

from bpfkit.core.closing import Held
from bpfkit.core.errors import BpfkitError, InputError, UnsupportedError, errno_text
from bpfkit.core.features.system import release

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from bpfkit.net.links.interfaces import Interface

__all__ = ["CHUNK", "XskSocket", "bare_socket", "queues"]

#: Bytes of a chunk; the kernel reserves 256 of them in front of the frame.
CHUNK = 4096
_RING = 256
_AF_XDP, _SOL_XDP = 44, 283
_MMAP_OFFSETS, _RX_RING, _TX_RING, _UMEM_REG, _FILL_RING, _COMPLETION_RING = 1, 2, 3, 4, 5, 6
_STATISTICS, _OPTIONS = 7, 8
_PGOFF = {"rx": 0, "tx": 0x80000000, "fill": 0x100000000, "completion": 0x180000000}
_MODES = {"copy": 2, "zerocopy": 4}
_OPTION_ZEROCOPY = 1
#: A fault that cannot be tried: a frame in copy mode, sent into a veth pair, stops the machine.
_DIES_OF_SENDING = (6, 16)
_MSG_DONTWAIT = 0x40
#: The kernel is busy or has sent its batch: the remaining frames stay queued.
_LATER = (errno.EAGAIN, errno.EBUSY, errno.ENOBUFS)
_SIOCETHTOOL, _ETHTOOL_GCHANNELS = 0x8946, 0x3C
_STATS = (
    "rx_dropped",
    "rx_invalid_descs",
    "tx_invalid_descs",
    "rx_ring_full",
    "rx_fill_ring_empty",
    "tx_ring_empty",
)


def bare_socket(what: str) -> _socket.socket:
    """An AF_XDP socket that is not bound to a queue: an XSKMAP accepts it for test runs.

    :param what: what fails without it, for the error.
    :raises UnsupportedError: the kernel has no AF_XDP.
    """
    try:
        return _socket.socket(_AF_XDP, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, 0)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            raise UnsupportedError(what, why="this kernel has no CONFIG_XDP_SOCKETS") from None
        raise BpfkitError(what, why=errno_text(error.errno or 0)) from None


def queues(interface: Interface) -> int:
    """Number of receive queues of an interface in the calling thread's namespace; at least 1."""
    import fcntl

    buffer = ct.create_string_buffer(struct.pack("=9I", _ETHTOOL_GCHANNELS, *[0] * 8), 36)
    request = bytearray(struct.pack("=16sQ16x", os.fsencode(interface.name), ct.addressof(buffer)))
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    try:
        fcntl.ioctl(sock.fileno(), _SIOCETHTOOL, request)
    except OSError:
        return 1  # the driver does not support the request
    finally:
        sock.close()
    channels = struct.unpack("=9I", buffer.raw)
    return max(1, int(channels[5]) + int(channels[8]))  # receive and combined


class _Ring:
    """One of the four rings: producer index, consumer index, entries."""

    __slots__ = ("_barrier", "_consumer", "_entries", "_memory", "_producer", "_view", "_words")

    def __init__(self, fd: int, name: str, words: int, offsets: tuple[int, ...]) -> None:
        producer, consumer, entries, _ = offsets
        self._memory = mmap.mmap(
            fd,
            entries + _RING * words * 8,
            mmap.MAP_SHARED | mmap.MAP_POPULATE,
            mmap.PROT_READ | mmap.PROT_WRITE,
            offset=_PGOFF[name],
        )
        self._view = memoryview(self._memory)
        self._producer = self._view[producer : producer + 4].cast("I")
        self._consumer = self._view[consumer : consumer + 4].cast("I")
        self._entries = self._view[entries : entries + _RING * words * 8].cast("Q")
        self._words = words
        # Entries must be visible before the index.  A lock's atomic operations are a memory barrier
        # on every machine; the interpreter has nothing cheaper.
        self._barrier = Lock()

    def room(self) -> int:
        """Number of free entries (of a ring that the kernel consumes)."""
        return _RING - (self._producer[0] - self._consumer[0] & 0xFFFFFFFF)

    def put(self, entries: Iterable[tuple[int, ...]]) -> None:
        """Produce entries, for which there must be :meth:`room`."""
        at = self._producer[0]
        words = self._words
        for entry in entries:
            place = (at & _RING - 1) * words
            for i, word in enumerate(entry):
                self._entries[place + i] = word
            at += 1
        with self._barrier:
            pass
        self._producer[0] = at & 0xFFFFFFFF

    def take(self) -> list[tuple[int, ...]]:
        """Consume all entries that the kernel has produced."""
        at, end = self._consumer[0], self._producer[0]
        with self._barrier:
            pass
        words = self._words
        taken = []
        while at != end:
            place = (at & _RING - 1) * words
            taken.append(tuple([self._entries[place + i] for i in range(words)]))
            at = at + 1 & 0xFFFFFFFF
        with self._barrier:
            pass
        self._consumer[0] = at
        return taken

    def close(self) -> None:
        for view in (self._producer, self._consumer, self._entries, self._view):
            view.release()
        self._memory.close()  # its descriptor of the socket would keep the queue in use


class XskSocket(Held):
    """An AF_XDP socket on one queue of an interface.

    :param mode: ``copy``, ``zerocopy`` or ``auto`` (zero-copy if the driver supports it).
    :ivar mode: ``copy`` or ``zerocopy``, as the kernel reports (XDP_OPTIONS).
    :raises UnsupportedError: no CONFIG_XDP_SOCKETS, ``zerocopy`` is not supported, or the kernel
        (6.16) would die of a frame that is sent in copy mode.
    :raises InputError: no such queue.
    :raises BpfkitError: the queue already has a socket, or another error.
    """

    __slots__ = ("_free", "_mapped", "_rings", "_umem", "mode", "queue", "sock")

    def __init__(self, interface: Interface, queue: int = 0, mode: str = "auto") -> None:
        what = f"cannot open an AF_XDP socket on {interface.name} queue {queue}"
        self.sock = bare_socket(what)
        self.queue = queue
        self._rings: dict[str, _Ring] = {}
        self._umem = mmap.mmap(
            -1, 2 * _RING * CHUNK, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        )
        self._mapped = (ct.c_char * len(self._umem)).from_buffer(self._umem)
        self._free = [i * CHUNK for i in range(_RING, 2 * _RING)]
        try:
            self._open()
            self._bind(interface, what, ("zerocopy", "copy") if mode == "auto" else (mode,))
            options = self.sock.getsockopt(_SOL_XDP, _OPTIONS, 4)
            flags = int.from_bytes(options, "little" if sys.byteorder == "little" else "big")
            self.mode = "zerocopy" if flags & _OPTION_ZEROCOPY else "copy"
            if self.mode == "copy" and release() == _DIES_OF_SENDING:
                raise UnsupportedError(
                    what,
                    why="this kernel cannot send from it without dying: xsk_destruct_skb() takes "
                    "what others wrote into a sent packet for its own (seen on 6.16.12, not on "
                    "6.17.13)",
                )
        except OSError as error:
            self.close()
            raise BpfkitError(what, why=errno_text(error.errno or 0)) from None
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        sock = self.sock
        umem = struct.pack("=QQIII4x", ct.addressof(self._mapped), len(self._umem), CHUNK, 0, 0)
        sock.setsockopt(_SOL_XDP, _UMEM_REG, umem)
        for option in (_FILL_RING, _COMPLETION_RING, _RX_RING, _TX_RING):
            sock.setsockopt(_SOL_XDP, option, _RING)
        offsets = struct.unpack("=16Q", sock.getsockopt(_SOL_XDP, _MMAP_OFFSETS, 128))
        for i, (name, words) in enumerate((("rx", 2), ("tx", 2), ("fill", 1), ("completion", 1))):
            self._rings[name] = _Ring(sock.fileno(), name, words, offsets[4 * i : 4 * i + 4])
        self._rings["fill"].put([(i * CHUNK,) for i in range(_RING)])

    def _bind(self, interface: Interface, what: str, modes: tuple[str, ...]) -> None:
        libc = ct.CDLL(None, use_errno=True)
        for mode in modes:
            address = struct.pack("=HHIII", _AF_XDP, _MODES[mode], interface.index, self.queue, 0)
            if not libc.bind(self.sock.fileno(), address, len(address)):
                return
            number = ct.get_errno()
            if number not in (errno.EOPNOTSUPP, errno.EINVAL):
                break
        if number == errno.EINVAL and self.queue >= queues(interface):
            raise InputError(what, why=f"it has {queues(interface)} queues, numbered from 0")
        if number == errno.EBUSY:
            raise BpfkitError(what, why="the queue already has an AF_XDP socket")
        if number in (errno.EOPNOTSUPP, errno.EINVAL) and modes == ("zerocopy",):
            raise UnsupportedError(
                what,
                why="the driver has no zero-copy",
                hint="copy mode works on every interface",
            )
        raise BpfkitError(what, why=errno_text(number))

    def fileno(self) -> int:
        """The descriptor: readable when frames have arrived; the value for an XSKMAP."""
        return self.sock.fileno()

    def recv(self, timeout: float = 0.0) -> list[bytes]:
        """The frames that have arrived, waiting up to ``timeout`` seconds for the first."""
        if timeout > 0:
            poller = poll()
            poller.register(self.sock.fileno(), POLLIN)
            poller.poll(timeout * 1000)
        frames, back = [], []
        for address, length in self._rings["rx"].take():
            frames.append(self._umem[address : address + (length & 0xFFFFFFFF)])
            back.append((address // CHUNK * CHUNK,))
        if back:
            self._rings["fill"].put(back)
        return frames

    def send(self, frames: list[bytes]) -> int:
        """Queue frames for sending; the number of frames for which there was room.

        :raises InputError: a frame is larger than a chunk.
        :raises BpfkitError: the interface is down or was removed.
        """
        self._free += [address for (address,) in self._rings["completion"].take()]
        count = min(len(frames), len(self._free), self._rings["tx"].room())
        entries = []
        for frame in frames[:count]:
            if len(frame) > CHUNK:
                raise InputError(f"a frame of {len(frame)} bytes", why=f"at most {CHUNK} bytes fit")
            address = self._free.pop()
            self._umem[address : address + len(frame)] = frame
            entries.append((address, len(frame)))
        self._rings["tx"].put(entries)
        self._kick()
        return count

    def _kick(self) -> None:
        """Make the kernel send: in copy mode it sends up to 32 frames per call."""
        for _ in range(_RING // 16):
            try:
                self.sock.send(b"", _MSG_DONTWAIT)
                return
            except OSError as error:
                if error.errno not in _LATER:
                    raise BpfkitError(
                        "cannot send by AF_XDP", why=errno_text(error.errno or 0)
                    ) from None

    def statistics(self) -> dict[str, int]:
        """The kernel's counters for this socket (XDP_STATISTICS), by their names in if_xdp.h."""
        raw = self.sock.getsockopt(_SOL_XDP, _STATISTICS, 48)
        return dict(zip(_STATS, struct.unpack(f"={len(raw) // 8}Q", raw), strict=False))

    def _is_open(self) -> bool:
        return self.sock.fileno() >= 0

    def close(self) -> None:
        """Close the socket and release the queue.  Safe to call twice."""
        while self._rings:
            self._rings.popitem()[1].close()
        if self.sock.fileno() >= 0:
            self.sock.close()
        if hasattr(self, "_mapped"):
            del self._mapped
            self._umem.close()
