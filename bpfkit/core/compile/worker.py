# SPDX-License-Identifier: Apache-2.0
"""The compile worker: BCC in a process of its own, and nothing of it in the kernel.

Run by its path, isolated (-I), by an interpreter that has BCC, which need not be the one that
runs bpfkit; so this file uses the standard library only, imports nothing of bpfkit and keeps to
Python 3.8.  stdin: a marshalled request; stdout: a marshalled answer; stderr: what clang and
libbcc say.  Exit status 3: no BCC here; 4: it does not compile; 0: an answer.

BCC creates maps and loads BTF while it compiles.  Here its bpf(2) calls are answered by this
process: ``syscall`` in libbpf's (or a self-contained libbcc's) global offset table is replaced, so
every call arrives with the kernel's own ``union bpf_attr``; BPF_MAP_CREATE and BPF_BTF_LOAD are
written down and answered with an fd of /dev/null.  No privilege is needed and nothing is made.
Likewise ``bcc_procutils_each_ksym`` (BCC reads all of /proc/kallsyms, 135 ms, to ask for one
symbol), the code generator for printing map values, which nobody uses here, and the second round
of optimisation: clang has optimised already, and BCC's -O3 on top of it takes a fifth of the time
to make programs larger.

BCC itself does not link: it hands out the bytes of each function.  The object file that LLVM's JIT
made of them is still there, published for debuggers by GDB's JIT interface.  From it come the
relocations, so subprograms and callbacks are linked here as libbpf links them, and references to
global variables, which BCC would leave pointing at address 0, are found and named.

With ``BPFKIT_WORKER_NOHOOK=1``, or where the table cannot be changed, BCC really makes its maps
(they vanish with this process); that takes the privilege to do so.
"""

from __future__ import annotations

import ctypes as ct
import marshal
import os
import sys
from struct import iter_unpack, pack, pack_into, unpack, unpack_from

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Set, Tuple

#: Bytes of both sides' protocol: 2 is understood by every Python 3.
MARSHAL_VERSION = 2

NO_BCC, FAILED = 3, 4

_NR_BPF = {
    "x86_64": 321,
    "aarch64": 280,
    "riscv64": 280,
    "loongarch64": 280,
    "ppc64le": 361,
    "s390x": 351,
}
_MAP_CREATE, _PROG_LOAD, _OBJ_GET, _OBJ_GET_INFO, _BTF_LOAD = 0, 5, 7, 15, 18
_OF_MAPS = (12, 13)  # ARRAY_OF_MAPS, HASH_OF_MAPS
_BTF_GET_FD_BY_ID = 19
_EM_BPF = 247
_PSEUDO_MAP_FD, _PSEUDO_MAP_VALUE, _PSEUDO_FUNC, _BPFKIT_MAP, _BPFKIT_CONST = 1, 2, 4, 14, 15
#: Where BPFKIT_LOG() puts its texts.
_FORMATS = "bpfkit.formats"
_LD_IMM64, _CALL = 0x18, 0x85


class Refused(Exception):
    """The program asks for something that BCC cannot do; args: text, file, line, hint."""


# --- hooks -------------------------------------------------------------------------------------


class _LinkMap(ct.Structure):
    pass


_LinkMap._fields_ = [
    ("l_addr", ct.c_size_t),
    ("l_name", ct.c_char_p),
    ("l_ld", ct.c_size_t),
    ("l_next", ct.POINTER(_LinkMap)),
    ("l_prev", ct.POINTER(_LinkMap)),
]

_DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_RELASZ, _DT_STRSZ, _DT_JMPREL = (
    2,
    5,
    6,
    7,
    8,
    10,
    23,
)

_POPULATE = "_ZN4llvm18PassManagerBuilder25populateModulePassManagerERNS_6legacy15PassManagerBaseE"

_libc = ct.CDLL(None, use_errno=True)
_keep: List[Any] = []  # callbacks that C code holds


def _objects(library: ct.CDLL) -> List[_LinkMap]:
    """Every shared object loaded, from glibc's list."""
    entry = _LinkMap.from_address(library._handle)
    while entry.l_prev:
        entry = entry.l_prev.contents
    found = []
    while True:
        found.append(entry)
        if not entry.l_next:
            return found
        entry = entry.l_next.contents


def _patch(obj: _LinkMap, symbols: Dict[bytes, int]) -> Set[bytes]:
    """Point an object's calls of ``symbols`` to other addresses; returns those it had."""
    dynamic: Dict[int, int] = {}
    at = obj.l_ld
    while True:
        tag, value = unpack("=qQ", ct.string_at(at, 16))
        if tag == 0:
            break
        dynamic[tag] = value
        at += 16
    base = obj.l_addr

    def address(tag: int) -> int:
        value = dynamic.get(tag, 0)
        return value if value >= base else value + base  # some machines leave them relative

    if _DT_STRTAB not in dynamic or _DT_SYMTAB not in dynamic:
        return set()
    strings = ct.string_at(address(_DT_STRTAB), dynamic[_DT_STRSZ])
    wanted: Dict[int, bytes] = {}
    for name in symbols:
        place = strings.find(name + b"\0")
        while place >= 0:
            wanted[place] = name
            place = strings.find(name + b"\0", place + 1)
    if not wanted:
        return set()
    symtab = address(_DT_SYMTAB)
    page = os.sysconf("SC_PAGESIZE")
    done: Set[bytes] = set()
    for start, size in ((_DT_JMPREL, _DT_PLTRELSZ), (_DT_RELA, _DT_RELASZ)):
        if start not in dynamic or len(done) == len(symbols):
            continue
        for offset, info, addend in iter_unpack(
            "=QQq", ct.string_at(address(start), dynamic[size])
        ):
            index = info >> 32
            if not index or addend:
                continue
            found = wanted.get(ct.c_uint32.from_address(symtab + index * 24).value)
            if found is None:
                continue
            slot = base + offset
            first = slot & -page
            if _libc.mprotect(ct.c_void_p(first), ct.c_size_t(slot + 8 - first), 3):
                raise OSError(ct.get_errno(), "mprotect")
            ct.c_size_t.from_address(slot).value = symbols[found]
            done.add(found)
    return done


def _callback(prototype: Any, function: Callable[..., Any]) -> int:
    wrapped = prototype(function)
    _keep.append(wrapped)
    address = ct.cast(wrapped, ct.c_void_p).value
    assert address is not None
    return address


class Recorder:
    """Answers bpf(2) in the kernel's place and remembers what was asked."""

    def __init__(self, nr: int) -> None:
        self.nr = nr
        self.maps: List[Tuple[int, bytes]] = []  # (fd, attr) in order of creation
        self.btf = b""
        self.progs: Dict[str, Tuple[bytes, int, bytes, int]] = {}
        self.elf: List[bytes] = []
        self.loading = ""
        self.library: Optional[ct.CDLL] = None

    def install(self, library: ct.CDLL) -> bool:
        """Take over; False when this machine does not let us."""
        self.library = library
        long = ct.c_long
        try:
            answer = _callback(ct.CFUNCTYPE(long, *[long] * 7, use_errno=True), self.syscall)
            symbols = {b"syscall": answer}
            mine = {
                b"bcc_procutils_each_ksym": _callback(
                    ct.CFUNCTYPE(ct.c_int, ct.c_void_p, ct.c_void_p), _each_ksym
                ),
                b"_ZN4ebpf28bpf_module_rw_engine_enabledEv": _callback(
                    ct.CFUNCTYPE(ct.c_bool), lambda: False
                ),
            }
            populate = getattr(library, _POPULATE, None)
            if populate is not None:  # BCC with LLVM up to 14
                populate.argtypes = [ct.c_void_p, ct.c_void_p]
                populate.restype = None

                def no_passes(builder: int, passes: int) -> None:
                    ct.c_uint.from_address(builder).value = 0  # PassManagerBuilder.OptLevel
                    populate(builder, passes)

                mine[_POPULATE.encode()] = _callback(
                    ct.CFUNCTYPE(None, ct.c_void_p, ct.c_void_p), no_passes
                )
            hooked = set()
            for obj in _objects(library):
                name = os.path.basename(obj.l_name or b"")
                if name.startswith(b"libbcc"):
                    mine.update(symbols)
                    hooked |= _patch(obj, mine)
                elif name.startswith(b"libbpf"):
                    hooked |= _patch(obj, symbols)
        except (OSError, AttributeError, ValueError, MemoryError) as error:
            print("bpfkit worker: cannot hook:", error, file=sys.stderr)
            return False
        return b"syscall" in hooked

    def syscall(self, nr: int, a: int, b: int, c: int, d: int, e: int, f: int) -> int:
        if nr != self.nr:
            args = [ct.c_long(value) for value in (nr, a, b, c, d, e, f)]
            return int(_libc.syscall(*args))
        cmd, size = a & 0xFFFFFFFF, c & 0xFFFFFFFF
        attr = ct.string_at(b, size).ljust(160, b"\0")
        if cmd == _OBJ_GET:
            # BCC would make directories for a pinned map next: stop before that.
            _finish({"refused": ("pinned maps are not supported", "", 0, "")})
        if cmd not in (_MAP_CREATE, _BTF_LOAD, _PROG_LOAD):
            ct.set_errno(1)
            return -1
        fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        if cmd == _MAP_CREATE:
            self.maps.append((fd, attr))
            self.grab()
        elif cmd == _BTF_LOAD:
            pointer, length = unpack_from("=Q8xI", attr)
            blob = ct.string_at(pointer, length)
            if len(blob) > len(self.btf):  # libbpf's own probes are tiny
                self.btf = blob
            self.grab()
        elif self.loading:
            self._program(attr)
        return fd

    def _program(self, attr: bytes) -> None:
        finfo_size, finfo, finfo_count, linfo_size = unpack_from("=IQII", attr, 76)
        linfo, linfo_count = unpack_from("=QI", attr, 96)
        self.progs[self.loading] = (
            ct.string_at(finfo, finfo_size * finfo_count) if finfo else b"",
            finfo_size,
            ct.string_at(linfo, linfo_size * linfo_count) if linfo else b"",
            linfo_size,
        )

    def grab(self) -> None:
        """Copy the BPF object files that LLVM has published (they are freed afterwards)."""
        try:
            first = unpack("=IIQQ", ct.string_at(_symbol(self.library), 24))[3]
        except (AttributeError, ValueError):
            return
        while first:
            entry, _, data, size = unpack("=QQQQ", ct.string_at(first, 32))
            elf = ct.string_at(data, size)
            is_bpf = elf[:4] == b"\x7fELF" and unpack_from("=H", elf, 18)[0] == _EM_BPF
            if is_bpf and elf not in self.elf:
                self.elf.append(elf)
            first = entry


def _symbol(library: Any) -> int:
    return ct.addressof(ct.c_char.in_dll(library, "__jit_debug_descriptor"))


def _has_symbol(library: Any) -> bool:
    """Does this LLVM publish its objects?"""
    try:
        return bool(_symbol(library))
    except (AttributeError, ValueError):
        return False


def _each_ksym(callback: int, payload: int) -> int:
    say = ct.CFUNCTYPE(None, ct.c_char_p, ct.c_char_p, ct.c_uint64, ct.c_void_p)(callback)
    for name in (b"bpf_probe_read_kernel", b"bpf_probe_read_user"):
        say(name, b"kernel", 1 << 40, payload)
    return 0


# --- the object file ---------------------------------------------------------------------------


class Elf:
    """Sections, symbols and relocations of a 64-bit relocatable object."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.order = "<" if data[5] == 1 else ">"
        shoff, shentsize, shnum, shstrndx = unpack_from(self.order + "40xQ10xHHH", data)
        self.sections = [
            unpack_from(self.order + "IIQQQQIIQQ", data, shoff + i * shentsize)
            for i in range(shnum)
        ]
        names = self.content(shstrndx)
        self.names = [_cstring(names, section[0]) for section in self.sections]
        #: (name, type, section, value, size)
        self.symbols: List[Tuple[str, int, int, int, int]] = []
        #: {section: {offset: (type, symbol)}}
        self.relocations: Dict[int, Dict[int, Tuple[int, int]]] = {}
        for index, section in enumerate(self.sections):
            if section[1] == 2:  # SHT_SYMTAB
                strings = self.content(section[6])
                for name, info, _, shndx, value, size in iter_unpack(
                    self.order + "IBBHQQ", self.content(index)
                ):
                    self.symbols.append((_cstring(strings, name), info & 15, shndx, value, size))
            elif section[1] in (4, 9):  # SHT_RELA, SHT_REL
                size = 24 if section[1] == 4 else 16
                content = self.content(index)
                target = self.relocations.setdefault(section[7], {})
                for at in range(0, len(content) - size + 1, size):
                    offset, info = unpack_from(self.order + "QQ", content, at)
                    target[offset] = (info & 0xFFFFFFFF, info >> 32)

    def content(self, index: int) -> bytes:
        section = self.sections[index]
        return self.data[section[4] : section[4] + section[5]]

    def section(self, name: str) -> bytes:
        return self.content(self.names.index(name)) if name in self.names else b""

    def is_code(self, index: int) -> bool:
        return 0 < index < len(self.sections) and bool(self.sections[index][2] & 4)

    def function(self, section: int, value: int) -> Optional[Tuple[str, int]]:
        """(name, size) of the function that starts at a place."""
        for name, kind, shndx, start, size in self.symbols:
            if kind == 2 and shndx == section and start == value:
                return name, size
        return None

    def find(self, function: str) -> Optional[Tuple[int, int, int]]:
        """(section, offset, size) of a function."""
        for name, kind, section, value, size in self.symbols:
            if name == function and kind == 2 and self.is_code(section):
                return section, value, size
        return None

    def variable(self, section: int, value: int) -> str:
        """Name of the variable that covers a place, or of its section."""
        for name, kind, shndx, start, size in self.symbols:
            if kind == 1 and shndx == section and start <= value < start + max(size, 1):
                return name
        return ""


def _cstring(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode(errors="replace")


#: Bytes after the head of a type; for some kinds of each of its members.
_SEC_TAG = "bpfkit:sec:"
_SHOW_TAG = "bpfkit:show:"
_BTF_EXTRA = {1: 4, 3: 12, 4: 12, 5: 12, 6: 8, 13: 8, 14: 4, 15: 12, 17: 4, 19: 12}


class Btf:
    """The object's .BTF, made fit for any kernel, with room for the user's C lines."""

    def __init__(self, data: bytes, order: str) -> None:
        self.order = order
        #: SEC() of functions and variables: {type: (name, section name)}
        self.tags: Dict[int, Tuple[str, str]] = {}
        self.twice: List[Tuple[str, str, str]] = []
        self.valid = len(data) >= 24 and unpack_from(order + "H", data)[0] == 0xEB9F
        self.types: List[Tuple[int, int, int, int]] = [(0, 0, 0, 0)]  # name, info, size, offset
        if not self.valid:
            self.body = bytearray()
            self.strings = bytearray(b"\0")
            return
        head, type_off, type_len, str_off, str_len = unpack_from(order + "4xIIIII", data)
        self.body = bytearray(data[head + type_off : head + type_off + type_len])
        self.strings = bytearray(data[head + str_off : head + str_off + str_len])
        self.added: Dict[bytes, int] = {}
        at = 0
        while at < len(self.body):
            name, info, size = unpack_from(order + "III", self.body, at)
            self.types.append((name, info, size, at))
            kind, count = info >> 24 & 31, info & 0xFFFF
            extra = _BTF_EXTRA.get(kind, 0)
            extra *= count if kind in (4, 5, 6, 13, 15, 19) else 1
            # As BCC does: no function linkage (static, global) before 5.6, no variables before
            # 5.2; nothing refers to the latter, so they become ints and void pointers.
            if kind == 12:
                pack_into(order + "I", self.body, at + 4, info & ~0xFFFF)
            elif kind == 14:
                pack_into(order + "IIII", self.body, at, 0, 1 << 24, 4, 32)
            elif kind == 15:
                for place in range(at, at + 12 + extra, 12):
                    pack_into(order + "III", self.body, place, 0, 2 << 24, 0)
            elif kind == 17:  # SEC() and SHOWN_AS(), for us and for no kernel before 5.16
                text = self.string(name)
                label = 0
                if text.startswith(_SEC_TAG):
                    tagged = self.string(self.types[size][0])
                    section = text[len(_SEC_TAG) :]
                    if self.tags.setdefault(size, (tagged, section))[1] != section:
                        self.twice.append((tagged, self.tags[size][1], section))
                elif text.startswith(_SHOW_TAG):
                    member = unpack_from(order + "I", self.body, at + 12)[0]
                    label = self.add(f"____bpfkit_show_{size}_{member}_{text[len(_SHOW_TAG) :]}")
                pack_into(order + "IIII", self.body, at, label, 1 << 24, 4, 32)
            at += 12 + extra

    def contexts(self) -> Dict[str, str]:
        """{function: name of the struct that its first argument points to}."""
        found = {}
        for name, info, proto, _ in self.types[1:]:
            if info >> 24 & 31 != 12 or not self.types[proto][1] & 0xFFFF:
                continue
            (kind,) = unpack_from(self.order + "4xI", self.body, self.types[proto][3] + 12)
            seen = 0
            while kind and seen < 16 and self.types[kind][1] >> 24 & 31 in (2, 8, 9, 10, 11):
                kind, seen = self.types[kind][2], seen + 1
            found[self.string(name)] = self.string(self.types[kind][0]) if kind else "void"
        return found

    def string(self, at: int) -> str:
        return _cstring(bytes(self.strings), at) if at < len(self.strings) else ""

    def add(self, text: str) -> int:
        """The offset of a string, added if need be."""
        data = text.encode(errors="surrogateescape").replace(b"\0", b"") + b"\0"
        if data == b"\0":
            return 0
        if data not in self.added:
            self.added[data] = len(self.strings)
            self.strings += data
        return self.added[data]

    def blob(self) -> bytes:
        if not self.valid:
            return b""
        return (
            pack(
                self.order + "HBBIIIII",
                0xEB9F,
                1,
                0,
                24,
                0,
                len(self.body),
                len(self.body),
                len(self.strings),
            )
            + bytes(self.body)
            + bytes(self.strings)
        )

    # --- BPFKIT_MAP --------------------------------------------------------------------------

    def maps(self) -> List[Tuple[int, Tuple[Any, ...]]]:
        """(index, artifact map) of every BPFKIT_MAP."""
        found = []
        for name, info, _, at in self.types[1:]:
            if info >> 24 & 31 != 4:
                continue
            text = self.string(name)
            if not text.startswith("____bpfkit_map_"):
                continue
            fields: Dict[str, int] = {}
            for i in range(info & 0xFFFF):
                member, kind, _ = unpack_from(self.order + "III", self.body, at + 12 + i * 12)
                fields[self.string(member)] = self._pointee(kind)
            number = {
                n: self._elements(fields[n])
                for n in ("map_index", "type", "max_entries", "map_flags", "map_extra")
            }
            key, value = fields["key"], fields["value"]
            kind = number["type"]
            # A ring buffer has no keys and values as far as the kernel is concerned.
            sizes = [0, 0] if kind in (27, 31, 33) else [self.size_of(key), self.size_of(value)]
            found.append(
                (
                    number["map_index"] - 1,
                    (
                        text[len("____bpfkit_map_") :],
                        kind,
                        sizes[0],
                        sizes[1],
                        number["max_entries"] - 1,
                        number["map_flags"] - 1,
                        number["map_extra"] - 1,
                        # The kernel takes a key type only together with a value type.
                        key if value else 0,
                        value,
                        -1,
                    ),
                )
            )
        return found

    def _pointee(self, kind: int) -> int:
        return self.types[kind][2] if self.types[kind][1] >> 24 & 31 == 2 else kind

    def _elements(self, kind: int) -> int:
        count: int = unpack_from(self.order + "I", self.body, self.types[kind][3] + 20)[0]
        return count

    def size_of(self, kind: int) -> int:
        """Size of a type in bytes, 0 for void."""
        factor = 1
        while kind:
            _, info, size, at = self.types[kind]
            code = info >> 24 & 31
            if code in (1, 4, 5, 6, 15, 16, 19):
                return size * factor
            if code == 2:
                return 8 * factor
            if code == 3:
                kind, _, count = unpack_from(self.order + "III", self.body, at + 12)
                factor *= count
            elif code in (8, 9, 10, 11, 18):
                kind = size
            else:
                return 0
        return 0


class Linker:
    """Makes one array of instructions out of a function and all that it calls."""

    def __init__(self, elf: Elf, btf: Btf, request: Dict[str, Any]) -> None:
        self.elf = elf
        self.btf = btf
        self.tree: str = request["tree"]
        self.files: Dict[str, List[str]] = {
            name: text.split("\n") for name, text in request["files"]
        }
        self.fake: Dict[int, int] = {}  # BCC's number of a map -> index in the artifact
        self.own: Dict[int, int] = {}  # index of a BPFKIT_MAP -> index in the artifact
        self.consts: Set[int] = {index for _, index, _ in request["consts"]}
        self.kfuncs = _kfuncs(elf)
        self.heads: Set[str] = set(request["heads"])
        self.programs: Set[str] = set()
        self.shifts: Optional[Dict[Tuple[int, int], int]] = None
        self.func_info, self.func_size = self._ext(0)
        self.line_info, self.line_size = self._ext(8)
        self.renamed: Dict[int, Tuple[int, str]] = {}

    def _ext(self, which: int) -> Tuple[Dict[str, List[bytes]], int]:
        """{section: records} of one part of .BTF.ext."""
        data, order = self.elf.section(".BTF.ext"), self.elf.order
        if len(data) < 24 or not self.btf.valid:
            return {}, 0
        head, offset, length = (
            unpack_from(order + "I", data, 4)[0],
            *unpack_from(order + "II", data, 8 + which),
        )
        if length < 4:
            return {}, 0
        at, end = head + offset, head + offset + length
        size: int = unpack_from(order + "I", data, at)[0]
        at += 4
        found: Dict[str, List[bytes]] = {}
        while at + 8 <= end:
            name, count = unpack_from(order + "II", data, at)
            at += 8
            found.setdefault(self.btf.string(name), []).extend(
                data[at + i * size : at + (i + 1) * size] for i in range(count)
            )
            at += count * size
        return found, size

    def link(self, name: str) -> Optional[Tuple[Any, ...]]:
        """An artifact's program, or None for a function that is not in the object."""
        found = self.elf.find(name)
        if found is None:
            return None
        section, value, size = found
        order = self.elf.order
        out = bytearray()
        placed: Dict[Tuple[int, int], int] = {}
        pieces: List[Tuple[int, int, int, int]] = []  # section, offset, size, first instruction

        def place(where: int, start: int, length: int) -> int:
            if (where, start) not in placed:
                placed[where, start] = len(out) // 8
                pieces.append((where, start, length, len(out) // 8))
                out.extend(self.elf.content(where)[start : start + length])
            return placed[where, start]

        maps: List[Tuple[int, int]] = []
        consts: List[Tuple[int, int]] = []
        kfuncs: List[Tuple[int, str]] = []
        formats: List[int] = []
        place(section, value, size)
        at = 0
        while at < len(pieces):
            where, start, length, first = pieces[at]
            at += 1
            relocations = self.elf.relocations.get(where, {})
            i = 0
            while i < length // 8:
                byte = (first + i) * 8
                op, regs, imm = unpack_from(order + "BB2xi", out, byte)
                place_in_section = start + i * 8
                relocation = relocations.get(place_in_section)
                source = regs >> 4 if order == "<" else regs & 15
                if op == _LD_IMM64:
                    if relocation is not None and self._is_format(relocation[1]):
                        # The loader puts the map in that holds the section.
                        value = self.elf.symbols[relocation[1]][3] + imm
                        out[byte + 1] = regs & 15 | _PSEUDO_MAP_VALUE << 4
                        pack_into(order + "i4xi", out, byte + 4, 0, value)
                        formats.append(byte)
                    elif relocation is not None:
                        target = self._callee(relocation[1], imm, where, place_in_section)
                        sub = place(*target)
                        out[byte + 1] = regs & 15 | _PSEUDO_FUNC << 4
                        pack_into(order + "i", out, byte + 4, sub - (first + i) - 1)
                    elif source in (_PSEUDO_MAP_FD, _BPFKIT_MAP, _BPFKIT_CONST):
                        self._reference(
                            out, byte, source, imm, maps, consts, where, place_in_section
                        )
                    i += 1
                elif op == _CALL and (source == 1 or relocation is not None):
                    if relocation is not None:
                        target = self._callee(relocation[1], (imm + 1) * 8, where, place_in_section)
                    else:
                        target = self._local(where, place_in_section + (imm + 1) * 8)
                    sub = place(*target)
                    out[byte + 1] = 1 << 4
                    pack_into(order + "i", out, byte + 4, sub - (first + i) - 1)
                elif op == _CALL and source == 0 and imm in self.kfuncs:
                    kfuncs.append((byte, self.kfuncs[imm]))
                i += 1
        return (
            name,
            bytes(out),
            maps,
            consts,
            self._functions(pieces),
            self.func_size or 8,
            self._lines(pieces),
            self.line_size or 16,
            kfuncs,
            formats,
        )

    def _is_format(self, symbol: int) -> bool:
        """Is a symbol in the section of the texts of BPFKIT_LOG()?"""
        section = self.elf.symbols[symbol][2]
        return section < len(self.elf.names) and self.elf.names[section] == _FORMATS

    def _reference(
        self,
        out: bytearray,
        byte: int,
        source: int,
        imm: int,
        maps: List[Tuple[int, int]],
        consts: List[Tuple[int, int]],
        section: int,
        offset: int,
    ) -> None:
        if source == _BPFKIT_CONST:
            if imm not in self.consts:
                raise Refused(
                    "LOAD_CONST %d is not declared" % imm, *self.where(section, offset), ""
                )
            consts.append((byte, imm))
            out[byte + 1] &= 15
        else:
            index = (self.own if source == _BPFKIT_MAP else self.fake).get(imm)
            if index is None:
                what = "BPFKIT_MAP %d" % imm if source == _BPFKIT_MAP else "a map"
                raise Refused(
                    what + " is referred to but not declared", *self.where(section, offset), ""
                )
            maps.append((byte, index))
            out[byte + 1] = out[byte + 1] & 15 | _PSEUDO_MAP_FD << 4
        out[byte + 4 : byte + 8] = b"\0\0\0\0"
        out[byte + 12 : byte + 16] = b"\0\0\0\0"

    def _callee(self, symbol: int, addend: int, where: int, offset: int) -> Tuple[int, int, int]:
        """(section, offset, size) of the function that a relocation names."""
        name, _, section, value, _ = self.elf.symbols[symbol]
        file, line = self.where(where, offset)
        if section == 0:
            raise Refused(
                "%s() is called but defined nowhere" % name,
                file,
                line,
                "BCC has no extern symbols; BPF_KFUNC() declares a kernel function (kfunc).",
            )
        if not self.elf.is_code(section):
            variable = self.elf.variable(section, value + addend) or name
            home = self.elf.names[section] if section < len(self.elf.names) else ""
            self._global(variable, home, file, line)
        found = self.elf.function(section, value + addend)
        if found is None:
            raise Refused("a call goes to no function", file, line, "")
        return section, value + addend, found[1]

    def _local(self, section: int, offset: int) -> Tuple[int, int, int]:
        found = self.elf.function(section, offset)
        if found is None:
            raise Refused("a call goes to no function", *self.where(section, offset), "")
        return section, offset, found[1]

    @staticmethod
    def _global(variable: str, home: str, file: str, line: int) -> None:
        if home.startswith("maps"):
            raise Refused(
                "map %s is used as if it were a variable" % variable,
                file,
                line,
                "Use its methods: %s.lookup(&key), %s.update(&key, &value) ..."
                % (variable, variable),
            )
        if home.startswith(".rodata"):
            what = (
                "constant table %s" % variable
                if variable and not variable.startswith((".", "__const"))
                else "a string or constant table"
            )
            raise Refused(
                "%s lies outside the program (%s), where BCC cannot reach" % (what, home),
                file,
                line,
                "Put it into a BPF_ARRAY, or write it as a switch.",
            )
        raise Refused(
            "global variable %s: BCC has no global variables" % (variable or "?"),
            file,
            line,
            "Use a one-entry BPF_ARRAY, or LOAD_CONST for a value set at load time.",
        )

    # --- what the verifier's log quotes ------------------------------------------------------

    def _functions(self, pieces: List[Tuple[int, int, int, int]]) -> bytes:
        order = self.elf.order
        out = b""
        for section, start, length, first in pieces:
            for record in self.func_info.get(self.elf.names[section], ()):
                (offset,) = unpack_from(order + "I", record)
                if start <= offset < start + length:
                    out += pack(order + "I", first + (offset - start) // 8) + record[4:]
        # One record for each subprogram, or none at all.
        return out if len(out) == len(pieces) * self.func_size else b""

    def _lines(self, pieces: List[Tuple[int, int, int, int]]) -> bytes:
        order = self.elf.order
        out = []
        for section, start, length, first in pieces:
            shift = self._shift(section, start, length)
            last: Optional[bytes] = None
            for record in self.line_info.get(self.elf.names[section], ()):
                offset, file, text, place = unpack_from(order + "IIII", record)
                if not start <= offset < start + length:
                    continue
                place -= shift << 10
                file, text, known = self._line(file, text, place >> 10)
                if known:
                    last = pack(order + "III", file, text, place)
                # BCC's own lines (helpers.h) say nothing: stay on the user's that led there.
                body = last if not known and last else pack(order + "III", file, text, place)
                out.append(pack(order + "I", first + (offset - start) // 8) + body + record[16:])
        return b"".join(out)

    def _line(self, file: int, text: int, line: int) -> Tuple[int, int, bool]:
        """(name offset, text offset, is it a file of the user's?) of a line record."""
        if file not in self.renamed:
            short = self._short(file)
            if short in self.files:
                self.renamed[file] = (self.btf.add(short), short)
            else:
                self.renamed[file] = (file, "")
        offset, name = self.renamed[file]
        if not name or not line:
            return offset, text, False
        lines = self.files[name]
        code = lines[line - 1] if 0 < line <= len(lines) else ""
        return offset, self.btf.add(code.strip()), True

    def _shift(self, section: int, start: int, length: int) -> int:
        """By how many lines a function is off.

        BCC puts a line in front of a program that lacks a section.  Where a macro makes the whole
        program, or several of them, nothing in the text takes these lines back.
        """
        if self.shifts is None:
            self.shifts = self._macro_made()
        return self.shifts.get((section, start), 0)

    def _macro_made(self) -> Dict[Tuple[int, int], int]:
        """{(section, offset): lines that it is off} of programs whose text is one macro's."""
        places: Dict[Tuple[str, int], List[Tuple[int, int]]] = {}
        for name, kind, section, start, length in self.elf.symbols:
            if kind != 2 or name in self.heads or name not in self.programs:
                continue
            # Of several programs in one place, the first gets the section that BCC means for all.
            if not self.elf.names[section].startswith((".bpf.fn.", ".text")):
                continue
            lines = set()
            for record in self.line_info.get(self.elf.names[section], ()):
                at, file, _, place = unpack_from(self.elf.order + "IIII", record)
                if start <= at < start + length:
                    lines.add((self._short(file), place >> 10))
            if len(lines) == 1:
                file_name, line = lines.pop()
                text = self.files.get(file_name, [])
                if not 0 < line <= len(text) or name + "(" not in text[line - 1].replace(" ", ""):
                    places.setdefault((file_name, line), []).append((section, start))
        found = {}
        for (file_name, line), functions in places.items():
            text = self.files.get(file_name, [])
            shift = len(functions)  # all of them in front of the same place
            code = text[line - 1 - shift].strip() if shift < line <= len(text) + shift else ""
            if code.partition("(")[0].rstrip().isidentifier() and "{" not in code:
                found.update(dict.fromkeys(functions, shift))
        return found

    def _short(self, file: int) -> str:
        name = self.btf.string(file)
        return name[len(self.tree) + 1 :] if name.startswith(self.tree + "/") else name

    def start(self, function: str) -> Tuple[str, int]:
        """(file, line) where a function starts."""
        found = self.elf.find(function)
        if found is None:
            return ("", 0)
        section, value, size = found
        for record in self.line_info.get(self.elf.names[section], ()):
            at, file, _, place = unpack_from(self.elf.order + "IIII", record)
            if value <= at < value + size and self._short(file) in self.files:
                return self._short(file), (place >> 10) - self._shift(section, value, size)
        return ("", 0)

    def where(self, section: int, offset: int) -> Tuple[str, int]:
        """(file, line) of an instruction, as far as it is the user's."""
        found = ("", 0)
        for record in self.line_info.get(self.elf.names[section], ()):
            at, file, _, place = unpack_from(self.elf.order + "IIII", record)
            if at > offset:
                break
            short = self._short(file)
            if short in self.files:
                found = (short, place >> 10)
        return found


# --- compiling ---------------------------------------------------------------------------------


def _declare(library: ct.CDLL) -> None:
    pointer, size, text = ct.c_void_p, ct.c_size_t, ct.c_char_p
    for name, result, arguments in (
        (
            "bpf_module_create_c_from_string",
            pointer,
            [text, ct.c_uint, ct.POINTER(text), ct.c_int, ct.c_bool, text],
        ),
        ("bpf_num_functions", size, [pointer]),
        ("bpf_function_name", text, [pointer, size]),
        ("bpf_function_start", pointer, [pointer, text]),
        ("bpf_function_size", size, [pointer, text]),
        ("bpf_module_license", text, [pointer]),
        ("bpf_module_kern_version", ct.c_uint, [pointer]),
        ("bpf_num_tables", size, [pointer]),
        ("bpf_table_name", text, [pointer, size]),
        ("bpf_table_fd_id", ct.c_int, [pointer, size]),
    ):
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments


def compile(request: Dict[str, Any], library: ct.CDLL) -> Dict[str, Any]:
    """An artifact (see :mod:`bpfkit.core.compile.artifact`) without "sections" and "consts"."""
    _declare(library)
    recorder = Recorder(_NR_BPF.get(os.uname().machine, -1))
    recorder.library = library
    hooked = recorder.nr >= 0 and not request["nohook"] and recorder.install(library)
    if not hooked:
        recorder = Recorder(-1)
        recorder.library = library
    deps_fd = os.memfd_create("bpfkit-deps", 0)
    flags = [b"-MD", b"-MF", b"/proc/self/fd/%d" % deps_fd, *request["cflags"]]
    if not hooked or request["noelf"] or not _has_symbol(library):
        # BCC does not know declaration tags, and this time it is BCC's BTF that is used.
        flags.append(b"-DBPFKIT_NO_TAGS")
    module = library.bpf_module_create_c_from_string(
        request["text"], 0, (ct.c_char_p * len(flags))(*flags), len(flags), not hooked, None
    )
    if not module:
        sys.stderr.flush()
        os._exit(FAILED)
    if not hooked:
        recorder.grab()
    names = [library.bpf_function_name(module, i) for i in range(library.bpf_num_functions(module))]
    elves = [Elf(data) for data in recorder.elf] if not request["noelf"] else []
    elf = elves[-1] if elves else None
    tables = [
        (library.bpf_table_fd_id(module, i), library.bpf_table_name(module, i).decode())
        for i in range(library.bpf_num_tables(module))
    ]
    created = recorder.maps if hooked else _created(tables)
    maps, index_of_fd = _maps(created, tables)
    code = {
        name.decode(): ct.string_at(
            library.bpf_function_start(module, name), library.bpf_function_size(module, name)
        )
        for name in names
    }
    sections: List[Tuple[str, str, str, int, str]] = []
    strays: List[Tuple[str, str, bool]] = []
    consts = request["consts"]
    if elf is not None:
        btf = Btf(elf.section(".BTF"), elf.order)
        if not request["untagged"]:
            request["consts"] = consts = _consts(elf)
        linker = Linker(elf, btf, request)
        linker.programs.update(code)
        for index, definition in sorted(btf.maps()):
            if index in linker.own:
                raise Refused("BPFKIT_MAP %d is declared twice" % index, "", 0, "")
            if definition[1] in _OF_MAPS:
                template = linker.own.get(definition[6])
                if template is None:
                    raise Refused(
                        "the template of BPFKIT_MAP %d must have a lower index" % index, "", 0, ""
                    )
                definition = (*definition[:6], 0, *definition[7:9], template)
            linker.own[index] = len(maps)
            maps.append(definition)
        linker.fake = _fake_numbers(elf, code, created, index_of_fd)
        progs = [prog for prog in map(linker.link, code) if prog is not None]
        sections, strays = _sections(linker, [prog[0] for prog in progs])
        blob = btf.blob()
    else:
        progs = _unlinked(recorder, library, module, code, index_of_fd, request, hooked)
        blob = recorder.btf
    return {
        "v": 1,
        "license": library.bpf_module_license(module) or b"GPL",
        "own_license": _cut(elf.section("bpfkit.license")) if elf is not None else b"",
        "kern_version": library.bpf_module_kern_version(module),
        "btf": blob,
        "maps": maps,
        "progs": progs,
        "sections": sections,
        "strays": strays,
        "consts": consts,
        "deps": _deps(deps_fd, request),
        "hooked": hooked,
        "linked": elf is not None,
        "formats": elf.section(_FORMATS) if elf is not None else b"",
    }


def _sections(
    linker: Linker, names: List[str]
) -> Tuple[List[Tuple[str, str, str, int, str]], List[Tuple[str, str, bool]]]:
    """What SEC() says about programs, and where there is SEC() on what is no program.

    The former are (function, section name or "", file, line, struct of the context), the latter
    (name, section name, is it a function?).
    """
    elf, btf = linker.elf, linker.btf
    for name, first, second in btf.twice:
        raise Refused(
            'program %s has two sections: SEC("%s") and SEC("%s")' % (name, first, second),
            *linker.start(name),
            "",
        )
    known = set(names)
    tags = {}
    strays = []
    for kind, (name, section) in btf.tags.items():
        function = btf.types[kind][1] >> 24 & 31 == 12
        if function and name in known:
            tags[name] = section
        else:
            strays.append((name, section, function))
    contexts = btf.contexts()
    found = []
    for name in names:
        place = elf.find(name)
        home = elf.names[place[0]] if place is not None else ""
        if name not in tags and home and not home.startswith((".bpf.fn.", ".text")):
            tags[name] = home  # a section attribute, as libbpf's own SEC() has it
        found.append((name, tags.get(name, ""), *linker.start(name), contexts.get(name, "")))
    return found, strays


def _consts(elf: Elf) -> List[Tuple[str, int, int]]:
    """(name, index, default) of every LOAD_CONST."""
    data = elf.section("bpfkit.consts")
    found: List[Tuple[str, int, int]] = []
    for at in range(0, len(data) - 79, 80):
        index, value, text = unpack_from(elf.order + "QQ64s", data, at)
        name = _cut(text).decode(errors="replace")
        if any(index == other for _, other, _ in found):
            raise Refused("LOAD_CONST %d (%s) is declared twice" % (index, name), "", 0, "")
        found.append((name, index, value))
    return sorted(found, key=lambda const: const[1])


def _kfuncs(elf: Elf) -> Dict[int, str]:
    """{number that is called: name} of every BPF_KFUNC."""
    data = elf.section("bpfkit.kfuncs")
    found: Dict[int, str] = {}
    for at in range(0, len(data) - 71, 72):
        number, text = unpack_from(elf.order + "Q64s", data, at)
        found[number] = _cut(text).decode(errors="replace")
    return found


def _cut(data: bytes) -> bytes:
    return data.partition(b"\0")[0]


def _maps(
    created: List[Tuple[int, bytes]], tables: List[Tuple[int, str]]
) -> Tuple[List[Tuple[Any, ...]], Dict[int, int]]:
    """The artifact's maps in the order of declaration, templates of map-in-map first."""
    names: Dict[int, str] = {}
    for fd, name in tables:
        names.setdefault(fd, name)
    templates = {unpack_from("=I", attr, 20)[0] for _, attr in created} - {0}
    ordered = [entry for entry in reversed(created) if entry[0] in templates]
    ordered += [entry for entry in reversed(created) if entry[0] not in templates]
    index_of_fd = {fd: index for index, (fd, _) in enumerate(ordered)}
    maps = []
    for fd, attr in ordered:
        kind, key, value, entries, flags, inner = unpack_from("=IIIIII", attr)
        key_type, value_type = unpack_from("=II", attr, 52)
        (extra,) = unpack_from("=Q", attr, 64)
        name = names.get(fd) or attr[28:44].rstrip(b"\0").decode(errors="replace")
        maps.append(
            (
                name,
                kind,
                key,
                value,
                entries,
                flags,
                extra,
                key_type,
                value_type,
                index_of_fd[inner] if inner else -1,
            )
        )
    return maps, index_of_fd


def _created(tables: List[Tuple[int, str]]) -> List[Tuple[int, bytes]]:
    """Without hooks: what the kernel says about the maps that BCC really made."""
    found: Dict[int, bytes] = {}
    nr = _NR_BPF[os.uname().machine]
    for fd, _ in tables:
        if fd in found:
            continue
        info = ct.create_string_buffer(88)
        request = ct.create_string_buffer(pack("=IIQ", fd, 88, ct.addressof(info)), 16)
        if _libc.syscall(ct.c_long(nr), ct.c_long(_OBJ_GET_INFO), request, ct.c_long(16)) < 0:
            raise Refused("cannot read back map: errno %d" % ct.get_errno(), "", 0, "")
        kind, _, key, value, entries, flags = unpack_from("=IIIIII", info)
        key_type, value_type = unpack_from("=II", info, 68)
        (extra,) = unpack_from("=Q", info, 80)
        if kind in (12, 13):
            raise Refused("map-in-map needs the hooks that are switched off here", "", 0, "")
        found[fd] = (
            pack("=IIIIIII", kind, key, value, entries, flags, 0, 0)
            + info.raw[24:40]
            + pack("=IIIIIQ", 0, 0, key_type, value_type, 0, extra)
        ).ljust(160, b"\0")
    # BCC makes the last declared map first, and file descriptors count up.
    return sorted(found.items())


def _fake_numbers(
    elf: Elf,
    code: Dict[str, bytes],
    created: List[Tuple[int, bytes]],
    index_of_fd: Dict[int, int],
) -> Dict[int, int]:
    """{number that the object has for a map: index in the artifact}.

    BCC numbers maps -1, -2 ... as declared and creates them from the lowest number up, templates
    of map-in-map first.  Where there are templates, what BCC patched tells which is which.
    """
    found: Dict[int, int] = {}
    if not any(unpack_from("=I", attr, 20)[0] for _, attr in created):
        for position, (fd, _) in enumerate(created):
            found[position - len(created)] = index_of_fd[fd]
        return found
    for name, patched in code.items():
        place = elf.find(name)
        if place is None:
            continue
        section, value, size = place
        raw = elf.content(section)[value : value + size]
        for at in range(0, min(len(raw), len(patched)), 8):
            if raw[at] == _LD_IMM64 and raw[at + 1] >> 4 == _PSEUDO_MAP_FD:
                fd = unpack_from("=i", patched, at + 4)[0]
                if fd in index_of_fd:
                    found[unpack_from("=i", raw, at + 4)[0]] = index_of_fd[fd]
    return found


def _unlinked(
    recorder: Recorder,
    library: ct.CDLL,
    module: int,
    code: Dict[str, bytes],
    index_of_fd: Dict[int, int],
    request: Dict[str, Any],
    hooked: bool,
) -> List[Tuple[Any, ...]]:
    """Programs as BCC hands them out, for an LLVM that does not publish its objects."""
    pointer, text = ct.c_void_p, ct.c_char_p
    library.bcc_func_load.argtypes = [
        pointer,
        ct.c_int,
        text,
        pointer,
        ct.c_int,
        text,
        ct.c_uint,
        ct.c_int,
        pointer,
        ct.c_uint,
        text,
        ct.c_uint,
        ct.c_int,
    ]
    progs = []
    numbers = {index for _, index, _ in request["consts"]}
    for name, data in code.items():
        out = bytearray(data)
        maps: List[Tuple[int, int]] = []
        consts: List[Tuple[int, int]] = []
        at = 0
        while at < len(out):
            op, regs, imm = unpack_from("=BB2xi", out, at)
            source = regs >> 4
            if op == _CALL and source == 1:
                raise Refused("subprograms need a libbcc with a shared LLVM", "", 0, "")
            if op == _LD_IMM64:
                high = unpack_from("=i", out, at + 12)[0]
                if source == _PSEUDO_MAP_FD and imm in index_of_fd:
                    maps.append((at, index_of_fd[imm]))
                    out[at + 4 : at + 8] = b"\0\0\0\0"
                elif source == _BPFKIT_CONST and imm in numbers:
                    consts.append((at, imm))
                    out[at + 1] &= 15
                    out[at + 4 : at + 8] = b"\0\0\0\0"
                elif source == 0 and high == (-1 if imm < 0 else 0):
                    # clang loads such numbers with a plain mov: this is an address.
                    raise Refused(
                        "%s() uses a global variable, constant table or string" % name,
                        "",
                        0,
                        "BCC has no globals: use a map, the stack, or LOAD_CONST.",
                    )
                elif source:
                    raise Refused("BPFKIT_MAP needs a libbcc with a shared LLVM", "", 0, "")
                at += 8
            at += 8
        info = (b"", 8, b"", 16)
        if hooked:
            recorder.loading = name
            library.bcc_func_load(
                module,
                1,
                name.encode(),
                library.bpf_function_start(module, name.encode()),
                len(data),
                b"GPL",
                0,
                0,
                None,
                0,
                None,
                0,
                -1,
            )
            info = recorder.progs.get(name, info)
        progs.append((name, bytes(out), maps, consts, *info))
    return progs


def _deps(fd: int, request: Dict[str, Any]) -> List[Tuple[str, int, int, int]]:
    """(path, size, mtime_ns, inode) of every header and library that went in."""
    tree: str = request["tree"]
    skip = {os.path.realpath(path) for path in request["paths"]}
    data = os.pread(fd, 1 << 22, 0).decode(errors="surrogateescape")
    data = data.partition(":")[2].replace("\\\n", " ").replace("\\ ", "\0")
    paths: List[str] = list(request["also"])
    for name in data.split():
        name = name.replace("\0", " ")
        if name.startswith("/virtual/"):
            continue
        path = os.path.realpath(os.path.join(tree, name))
        if request["throwaway"] and path.startswith(tree + "/"):
            continue  # gone after this compile
        paths.append(path)
    with open("/proc/self/maps", errors="surrogateescape") as file:
        for line in file:
            name = line.rstrip("\n").partition("/")[2]
            base = name.rpartition("/")[2]
            if base.startswith(("libbcc", "libclang", "libLLVM", "libbpf")):
                paths.append("/" + name)
    found = []
    for path in dict.fromkeys(paths):
        if path not in skip:
            s = os.stat(path)
            found.append((path, s.st_size, s.st_mtime_ns, s.st_ino))
    return found


def _see_tracefs() -> None:
    """Have tracefs where BCC looks for a tracepoint's fields, in a mount namespace of our own."""
    if os.path.isdir("/sys/kernel/tracing/events") or os.path.isdir(
        "/sys/kernel/debug/tracing/events"
    ):
        return
    new_namespace, private, recursive = 0x20000, 1 << 18, 1 << 14
    if _libc.unshare(new_namespace) == 0:
        _libc.mount(b"none", b"/", None, ct.c_ulong(private | recursive), None)
        if not _libc.mount(b"tracefs", b"/sys/kernel/tracing", b"tracefs", ct.c_ulong(0), None):
            print("bpfkit worker: tracefs mounted", file=sys.stderr, flush=True)


# --- vmlinux.h ---------------------------------------------------------------------------------


def vmlinux(path: bytes, module: bytes, library: ct.CDLL) -> Dict[str, Any]:
    """Write the running kernel's types as C; libc's vfprintf is libbpf's print callback.

    ``module`` is the BTF of a kernel module whose types go with them, or nothing.
    """
    pointer = ct.c_void_p
    libbpf = None
    for name in ("libbpf.so.1", "libbpf.so.0", "libbcc_bpf.so.0"):
        try:
            libbpf = ct.CDLL(name, use_errno=True)
            libbpf.btf__type_cnt.argtypes = [pointer]  # libbpf 0.6: the interface used here
            break
        except (OSError, AttributeError):
            libbpf = None
    if libbpf is None:
        libbpf = library
    libbpf.btf__parse_raw.restype = pointer
    libbpf.btf__parse_raw.argtypes = [ct.c_char_p]
    libbpf.btf__type_cnt.argtypes = [pointer]
    libbpf.btf_dump__new.restype = pointer
    libbpf.btf_dump__new.argtypes = [pointer] * 4
    libbpf.btf_dump__dump_type.argtypes = [pointer, ct.c_uint32]
    _libc.fopen.restype = pointer
    _libc.fopen.argtypes = [ct.c_char_p, ct.c_char_p]
    _libc.fclose.argtypes = [pointer]
    btf = libbpf.btf__parse_raw(b"/sys/kernel/btf/vmlinux")
    if not btf or btf >= (1 << 64) - 4096:
        raise OSError("cannot parse /sys/kernel/btf/vmlinux")
    if module:
        libbpf.btf__parse_raw_split.restype = pointer
        libbpf.btf__parse_raw_split.argtypes = [ct.c_char_p, pointer]
        btf = libbpf.btf__parse_raw_split(module, btf)
        if not btf or btf >= (1 << 64) - 4096:
            raise OSError("cannot parse " + os.fsdecode(module))
    out = _libc.fopen(path, b"w")
    if not out:
        raise OSError(ct.get_errno(), "cannot write " + os.fsdecode(path))
    dump = libbpf.btf_dump__new(btf, ct.cast(_libc.vfprintf, pointer), out, None)
    one = libbpf.btf_dump__dump_type
    count = libbpf.btf__type_cnt(btf)
    for i in range(1, count):
        one(dump, i)
    if _libc.fclose(out):
        raise OSError(ct.get_errno(), "cannot write " + os.fsdecode(path))
    return {"types": count}


# --- the process -------------------------------------------------------------------------------

_answer_fd = 1


def _finish(answer: Dict[str, Any]) -> None:
    """Send the answer and leave at once: LLVM takes its time to clean up."""
    sys.stderr.flush()
    data = marshal.dumps(answer, MARSHAL_VERSION)
    view = memoryview(data)
    while view:
        view = view[os.write(_answer_fd, view) :]
    os._exit(0)


def _has_bcc() -> bool:
    """Is BCC's Python package installed here?  (It is not imported: that takes 43 ms.)"""
    version = "python%d.%d" % sys.version_info[:2]
    for path in (
        "/usr/lib/python3/dist-packages",
        "%s/lib/%s/site-packages" % (sys.prefix, version),
    ):
        # Debian's place is Debian's Python's only.
        home = path.startswith(sys.prefix) and sys.prefix == sys.base_prefix
        if home and os.path.isfile(path + "/bcc/__init__.py"):
            return True
    if "site" not in sys.modules:  # started with -S, to save its 5 ms where that was enough
        import site

        site.main()
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        spec = find("bcc", None) if find is not None else None
        if spec is not None and spec.origin:
            return True
    return False


def main() -> None:
    global _answer_fd
    _libc.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG: not a moment longer than the front end
    _answer_fd = os.dup(1)
    os.dup2(2, 1)  # whatever libbcc prints is a diagnostic
    library = None
    if _has_bcc():
        reasons = []
        for name in ("libbcc.so.0", "libbcc.so"):
            try:
                library = ct.CDLL(name, use_errno=True)
                break
            except OSError as error:
                reasons.append(str(error))
        if library is None:
            # A library that is there and cannot be loaded says more than a name that is not.
            reasons.sort(key=lambda reason: "No such file" not in reason)
            print("\n".join(reasons), file=sys.stderr)
    if library is None:
        sys.stderr.flush()
        os._exit(NO_BCC)
    data = sys.stdin.buffer.read()
    if not data:  # nobody is there any more
        os._exit(1)
    request = marshal.loads(data)
    try:
        if request["op"] == "vmlinux":
            answer = vmlinux(request["out"], request["module"], library)
        else:
            os.environ.update(request["env"])
            if b"TRACEPOINT_PROBE" in request["text"] or b"tracepoint__" in request["text"]:
                _see_tracefs()
            os.chdir(request["tree"])  # BCC puts the current directory on the include path
            answer = compile(request, library)
    except Refused as refusal:
        answer = {"refused": refusal.args}
    except OSError as error:
        name = error.filename if isinstance(error.filename, str) else ""
        answer = {"error": (error.errno or 0, str(error), name)}
    _finish(answer)


if __name__ == "__main__":
    main()
