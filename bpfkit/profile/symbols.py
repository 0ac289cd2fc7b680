# SPDX-License-Identifier: Apache-2.0
"""Names of addresses: of the kernel, of programs and libraries, of code made at run time.

::

    kernel address ─▶ /proc/kallsyms
    user address ─▶ /proc/PID/maps ─▶ file and offset ─▶ .symtab, else .dynsym
                        └─▶ no file: /tmp/perf-PID.map (Python -X perf, node --perf-basic-prof)

No debug information is needed.  An address without a name is
``[file]``, in a file without symbols, or ``[unknown]``.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from itertools import islice
from operator import gt
from time import monotonic

from bpfkit.core.errors import BpfkitError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["UNKNOWN", "KernelSymbols", "ProcessSymbols"]

UNKNOWN = "[unknown]"
#: Types of /proc/kallsyms that are code.
_CODE = (b"t", b"T", b"w", b"W")
_LARGEST = 0xFFFFFFFF
#: Bytes that are read from /proc at once; by itself Python would read 1024.
_BUFFER = 1 << 16
#: Addresses of user code.
_LOWEST, _HIGHEST = 1 << 12, 1 << 56
#: Seconds before a process's mappings are read again: after a read that helped, and at the most.
_PAUSE, _LONGEST = 0.05, 5.0
#: Shared memory without a file, which has a name all the same.
_NO_FILE = ("/dev/zero (deleted)", "/memfd:", "//anon", "/anon_hugepage", "/SYSV")


class _Table:
    """Functions sorted by where they begin.

    Kept in arrays: the kernel alone has over a hundred thousand, which as objects take 20 MB.
    """

    def __init__(self, functions: Iterable[tuple[int, int, bytes]]) -> None:
        starts, sizes, places = array("Q"), array("I"), array("I")
        names = bytearray()
        for start, size, name in functions:
            starts.append(start)
            sizes.append(min(size, _LARGEST))
            places.append(len(names))
            names += name
            names += b"\n"
        if any(map(gt, starts, islice(starts, 1, None))):
            order = sorted(range(len(starts)), key=lambda i: starts[i] << 32 | sizes[i])
            starts = array("Q", map(starts.__getitem__, order))
            sizes = array("I", map(sizes.__getitem__, order))
            places = array("I", map(places.__getitem__, order))
        self._starts, self._sizes, self._places, self._names = starts, sizes, places, names

    def find(self, place: int) -> str | None:
        """The function that ``place`` is in; one without a size ends where the next begins."""
        at = bisect_right(self._starts, place) - 1
        if at < 0:
            return None
        size = self._sizes[at]
        if size and place >= self._starts[at] + size:
            return None
        name = self._places[at]
        text = self._names[name : self._names.index(b"\n", name)]
        return text.decode(errors="surrogateescape")


class KernelSymbols:
    """Names of the kernel's functions, read when the first is asked for."""

    def __init__(self) -> None:
        self._table: _Table | None = None

    @staticmethod
    def hidden() -> bool:
        """Does the kernel show no addresses (kernel.kptr_restrict)?"""
        with open("/proc/kallsyms", "rb") as file:
            return all(line.startswith(b"0000000000000000 ") for line in file)

    def name(self, address: int) -> str:
        """The function at an address, with the mark ``_[k]`` that flame graphs know."""
        if self._table is None:
            self._table = _Table(self._read())
        return f"{self._table.find(address) or UNKNOWN}_[k]"

    @staticmethod
    def _read() -> Iterator[tuple[int, int, bytes]]:
        with open("/proc/kallsyms", "rb", buffering=_BUFFER) as file:
            for line in file:
                # Address, type, name, and a module's name in brackets.
                fields = line.split()
                if fields[1] in _CODE:
                    start = int(fields[0], 16)
                    if start:
                        yield start, 0, fields[2]


class _Mapping:
    __slots__ = ("end", "functions", "offset", "path", "start", "was_read")

    def __init__(self, start: int, end: int, offset: int, path: str) -> None:
        self.start = start
        self.end = end
        self.offset = offset
        self.path = path
        self.was_read = False
        self.functions: _Table | None = None


#: (device, inode) of a file -> its functions by offset, for all processes.
_files: dict[tuple[int, int], _Table] = {}


class ProcessSymbols:
    """Names of the code of one process, which should be running when it is first asked."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._names: dict[int, str] = {}
        self._mappings: list[_Mapping] = []
        self._jit: _Table | None = None
        self._perf_map = -1  # bytes of what was read
        self._ended = False
        #: When the mappings may be read again, and seconds between that and the time after it.
        self._next_read, self._pause = 0.0, _PAUSE
        self._read_maps()

    def name(self, address: int) -> str:
        """The function at an address."""
        known = self._names.get(address)
        if known is None:
            known = self._find(address)
            if known != UNKNOWN:
                self._names[address] = known
        return known

    def _find(self, address: int) -> str:
        mapping = self._mapping(address)
        if mapping is None and _LOWEST <= address < _HIGHEST and monotonic() >= self._next_read:
            # A library that was loaded since; or no code at all, found by a broken frame pointer,
            # which is more frequent: so the pauses grow.
            self._read_maps()
            mapping = self._mapping(address)
            self._pause = _PAUSE if mapping is not None else min(2 * self._pause, _LONGEST)
            self._next_read = monotonic() + self._pause
        if mapping is None:
            return UNKNOWN
        if not mapping.path.startswith("/") or mapping.path.startswith(_NO_FILE):
            return self._made_at_run_time(address) or mapping.path or UNKNOWN
        if not mapping.was_read:
            mapping.was_read = True
            mapping.functions = self._functions_of(mapping)
        table = mapping.functions
        offset = address - mapping.start + mapping.offset
        name = table.find(offset) if table is not None else None
        return name or f"[{os.path.basename(mapping.path)}]"

    def _mapping(self, address: int) -> _Mapping | None:
        return next((m for m in self._mappings if m.start <= address < m.end), None)

    def _read_maps(self) -> None:
        found = []
        if self._ended:
            return
        try:
            path = f"/proc/{self.pid}/maps"
            with open(path, errors="surrogateescape", buffering=_BUFFER) as file:
                for line in file:
                    fields = line.split(None, 5)
                    if "x" not in fields[1]:
                        continue
                    start, _, end = fields[0].partition("-")
                    path = fields[5].rstrip("\n") if len(fields) > 5 else ""
                    found.append(_Mapping(int(start, 16), int(end, 16), int(fields[2], 16), path))
        except OSError:
            found = []
        if found:
            self._mappings = found
        else:
            self._ended = True  # what is known stays

    def _functions_of(self, mapping: _Mapping) -> _Table | None:
        from bpfkit.core.attach.symbols import Elf

        # In the process's own mount namespace; a deleted file is still there as map_files.
        for path in (
            f"/proc/{self.pid}/root{mapping.path}",
            f"/proc/{self.pid}/map_files/{mapping.start:x}-{mapping.end:x}",
            mapping.path,
        ):
            try:
                status = os.stat(path)
                key = (status.st_dev, status.st_ino)
                if key not in _files:
                    functions = Elf(path).functions()
                    _files[key] = _Table(
                        (f.offset, f.size, f.name.encode(errors="surrogateescape"))
                        for f in functions
                    )
                return _files[key]
            except (OSError, BpfkitError):
                continue
        return None

    def _made_at_run_time(self, address: int) -> str | None:
        """The name that the program itself wrote down for its code."""
        name = self._jit.find(address) if self._jit is not None else None
        if name is None:
            self._read_perf_map()
            name = self._jit.find(address) if self._jit is not None else None
        return name

    def _read_perf_map(self) -> None:
        """Source: tools/perf/Documentation/jit-interface.txt."""
        inner = self.pid
        try:
            with open(f"/proc/{self.pid}/status") as status:
                for line in status:
                    if line.startswith("NSpid:"):
                        inner = int(line.split()[-1])
            functions: list[tuple[int, int, bytes]] = []
            path = f"/proc/{self.pid}/root/tmp/perf-{inner}.map"
            written = os.stat(path).st_size
            if written == self._perf_map:
                return
            with open(path, "rb") as code:
                for entry in code:
                    words = entry.rstrip(b"\n").split(b" ", 2)
                    functions.append((int(words[0], 16), int(words[1], 16), words[2]))
        except (OSError, ValueError, IndexError):
            return
        self._perf_map, self._jit = written, _Table(functions)
