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
from bisect import bisect_right

from bpfkit.core.errors import BpfkitError

__all__ = ["KernelSymbols", "ProcessSymbols"]

_UNKNOWN = "[unknown]"
#: Shared memory without a file, which has a name all the same.
_NO_FILE = ("/dev/zero (deleted)", "/memfd:", "//anon", "/anon_hugepage", "/SYSV")


class _Table:
    """Functions sorted by where they begin."""

    def __init__(self, functions: list[tuple[int, int, str]]) -> None:
        functions.sort()
        self._starts = [start for start, _, _ in functions]
        self._functions = functions

    def find(self, place: int) -> str | None:
        """The function that ``place`` is in; one without a size ends where the next begins."""
        at = bisect_right(self._starts, place) - 1
        if at < 0:
            return None
        start, size, name = self._functions[at]
        return name if not size or place < start + size else None

    def __len__(self) -> int:
        return len(self._starts)


class KernelSymbols:
    """Names of the kernel's functions, read once.

    :ivar hidden: the kernel shows no addresses (kernel.kptr_restrict).
    """

    def __init__(self) -> None:
        functions = []
        with open("/proc/kallsyms", encoding="utf-8", errors="replace") as file:
            for line in file:
                fields = line.split(None, 3)
                if fields[1] in "tTwW":
                    functions.append((int(fields[0], 16), 0, fields[2].strip()))
        self._table = _Table([entry for entry in functions if entry[0]])
        self.hidden = not len(self._table)

    def name(self, address: int) -> str:
        """The function at an address, with the mark ``_[k]`` that flame graphs know."""
        return f"{self._table.find(address) or _UNKNOWN}_[k]"


class _Mapping:
    __slots__ = ("end", "offset", "path", "start")

    def __init__(self, start: int, end: int, offset: int, path: str) -> None:
        self.start = start
        self.end = end
        self.offset = offset
        self.path = path


#: (device, inode) of a file -> its functions by offset, for all processes.
_files: dict[tuple[int, int], _Table] = {}


class ProcessSymbols:
    """Names of the code of one process, which should be running when it is first asked."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._names: dict[int, str] = {}
        self._mappings: list[_Mapping] = []
        self._jit: _Table | None = None
        self._read_maps()

    def name(self, address: int) -> str:
        """The function at an address."""
        known = self._names.get(address)
        if known is None:
            known = self._names[address] = self._find(address)
        return known

    def _find(self, address: int) -> str:
        mapping = self._mapping(address)
        if mapping is None:
            self._read_maps()  # a library that was loaded since, or exec(2)
            mapping = self._mapping(address)
        if mapping is None:
            return _UNKNOWN
        if not mapping.path.startswith("/") or mapping.path.startswith(_NO_FILE):
            return self._made_at_run_time(address) or mapping.path or _UNKNOWN
        offset = address - mapping.start + mapping.offset
        table = self._functions_of(mapping)
        name = table.find(offset) if table is not None else None
        return name or f"[{os.path.basename(mapping.path)}]"

    def _mapping(self, address: int) -> _Mapping | None:
        return next((m for m in self._mappings if m.start <= address < m.end), None)

    def _read_maps(self) -> None:
        found = []
        try:
            with open(f"/proc/{self.pid}/maps", errors="surrogateescape") as file:
                for line in file:
                    fields = line.split(None, 5)
                    if "x" not in fields[1]:
                        continue
                    start, _, end = fields[0].partition("-")
                    path = fields[5].rstrip("\n") if len(fields) > 5 else ""
                    found.append(_Mapping(int(start, 16), int(end, 16), int(fields[2], 16), path))
        except OSError:
            return  # the process has ended: what is known stays
        self._mappings = found

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
                    _files[key] = _Table([(f.offset, f.size, f.name) for f in functions])
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
            functions = []
            path = f"/proc/{self.pid}/root/tmp/perf-{inner}.map"
            with open(path, encoding="utf-8", errors="replace") as file:
                for line in file:
                    start, size, name = line.rstrip("\n").split(" ", 2)
                    functions.append((int(start, 16), int(size, 16), name))
        except (OSError, ValueError):
            return
        self._jit = _Table(functions)
