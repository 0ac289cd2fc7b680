# SPDX-License-Identifier: Apache-2.0
"""The one loading path: C text → artifact (from the cache or a compile) → maps and programs.

An *object* is what one source yields, as in libbpf: it has programs and maps, and closing it
closes them.  Instructions and maps come from an artifact and are created by bpf(2) in the same
way whether the artifact was just compiled or found in the cache.
"""

from __future__ import annotations

import errno
import os
from struct import pack_into

from bpfkit.core.closing import Held, warn_unclosed
from bpfkit.core.compile.artifact import MapDef, map_defs, prog_defs
from bpfkit.core.compile.cache import Cache, digest
from bpfkit.core.compile.source import Source
from bpfkit.core.errors import (
    BpfkitError,
    CompileError,
    InputError,
    LoadError,
    NoSuchNameError,
    PrivilegeError,
    UnsupportedError,
    errno_text,
    lacking,
    nearest,
)
from bpfkit.core.kernel import syscall
from bpfkit.core.kernel.constants import map_type, map_type_name, prog_type
from bpfkit.core.kernel.sections import Section, resolve
from bpfkit.core.loading import load_program, needs_root
from bpfkit.core.log import say
from bpfkit.core.program import Program
from bpfkit.core.shown import Shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from bpfkit.core.attach.link import Link
    from bpfkit.core.compile.artifact import Artifact, ProgDef
    from bpfkit.core.maps.base import Map
    from bpfkit.core.maps.events import Events
    from bpfkit.core.types.btf import Btf
__all__ = ["Object", "compiled", "frozen_map", "load"]

_RDONLY_PROG = 1 << 7  # BPF_F_RDONLY_PROG


def load(
    source: str | Source,
    *,
    cflags: Sequence[str] = (),
    consts: Mapping[str, int] | None = None,
    max_entries: Mapping[str, int] | None = None,
    map_types: Mapping[str, str] | None = None,
    reuse_maps: Mapping[str, Map] | None = None,
    attach_targets: Mapping[str, tuple[int, int]] | None = None,
    programs: Sequence[str] | None = None,
    artifact: Artifact | None = None,
    global_functions: bool = False,
    cache: bool = True,
) -> Object:
    """Compile (or fetch from the cache) and load a C source.

    :param source: a file of bpfkit's own (``"socket/sockex3.bpf.c"``), a path, or C text; or a
        :class:`~bpfkit.core.compile.source.Source`, for text with a name of its own.
    :param cflags: more flags for clang (``-D…``, ``-I…``).
    :param consts: values of the source's ``LOAD_CONST`` constants, by name.  They are put into
        the instructions, so another value costs no compile.
    :param max_entries: sizes of maps that differ from the source's.
    :param map_types: types of maps that differ from the source's (``{"flows": "lru_hash"}``);
        the program's code must suit both.
    :param reuse_maps: maps that exist already and take the place of the source's.
    :param attach_targets: per program (attach_btf_id, attach_prog_fd), for targets outside the
        kernel's own BTF.
    :param programs: load only these functions.
    :param artifact: what :func:`compiled` returned for this source, to load it several times.
    :param global_functions: functions become global, as EXT programs and their targets must be.
    :param cache: False compiles anew and keeps nothing.
    :raises CompileError: with the user's file and line.
    :raises VerifierError: with the cause in a sentence, the C line and a hint.
    :raises UnsupportedError: this kernel or machine cannot (what is missing is named).
    """
    src = source if isinstance(source, Source) else Source.find(source)
    options = _Options(consts, max_entries, map_types, reuse_maps, attach_targets, programs)
    options.global_functions = global_functions
    if artifact is not None:
        return Object(src, artifact, options)
    store = Cache() if cache else None
    key, artifact, hit = _artifact(src, cflags, store)
    try:
        return Object(src, artifact, options)
    except LoadError as error:
        if store is None:
            raise
        # The cache is only believed while it works.
        store.drop(key)
        if not hit:
            raise
        say(f"{src.name}: the cached program does not load ({error.what}); compiling anew")
    return Object(src, _artifact(src, cflags, store)[1], options)


def compiled(source: str, *, cflags: Sequence[str] = (), cache: bool = True) -> Artifact:
    """The artifact of a source, from the cache or a compile; nothing is loaded, no privilege
    is needed."""
    return _artifact(Source.find(source), cflags, Cache() if cache else None)[1]


def _artifact(
    src: Source, cflags: Sequence[str], store: Cache | None
) -> tuple[str, Artifact, bool]:
    """(key, artifact, whether the cache had it)."""
    key = digest(src.key_material(), cflags) if store is not None else ""
    if store is not None:
        artifact = store.get(key)
        if artifact is not None:
            say(f"{src.name}: compiled earlier ({key[:12]})")
            return key, artifact, True
    from bpfkit.core.compile.compiler import compile_source

    artifact = compile_source(src, cflags)
    if store is not None:
        store.put(key, artifact)
    return key, artifact, False


class _Options:
    """What the caller wants different from the source."""

    __slots__ = (
        "attach_targets",
        "consts",
        "global_functions",
        "map_types",
        "max_entries",
        "programs",
        "reuse_maps",
    )

    def __init__(
        self,
        consts: Mapping[str, int] | None,
        max_entries: Mapping[str, int] | None,
        map_types: Mapping[str, str] | None,
        reuse_maps: Mapping[str, Map] | None,
        attach_targets: Mapping[str, tuple[int, int]] | None,
        programs: Sequence[str] | None,
    ) -> None:
        self.consts = consts or {}
        self.max_entries = max_entries or {}
        self.map_types = map_types or {}
        self.reuse_maps = reuse_maps or {}
        self.attach_targets = attach_targets or {}
        self.programs = programs
        self.global_functions = False


class _Types:
    """The types of one source, parsed on first use.  Maps refer to it, and not to their object,
    which so goes with the last reference to it."""

    __slots__ = ("_blob", "_btf")

    def __init__(self, blob: bytes) -> None:
        self._blob = blob
        self._btf: Btf | None = None

    def __call__(self) -> Btf | None:
        if self._btf is None and self._blob:
            from bpfkit.core.types.btf import Btf

            self._btf = Btf(self._blob)
        return self._btf


class _Named(dict):  # type: ignore[type-arg]
    """Programs or maps by name; a name that none has is answered with the nearest ones."""

    __slots__ = ("_what", "_where")

    def __init__(self, where: str, what: str) -> None:
        self._where = where
        self._what = what

    def __missing__(self, name: object) -> Any:
        raise _no_such(self._where, self._what, str(name), list(self))


class Object(Held, Shown):
    """Programs and maps of one source; a context manager.

    :ivar name: the source's name.
    :ivar programs: by function name.
    :ivar maps: by name; ``obj["flows"]`` is short for ``obj.maps["flows"]``.
    """

    def __init__(self, src: Source, artifact: Artifact, options: _Options) -> None:
        self.name = src.name
        self.programs: dict[str, Program] = _Named(src.name, "program")
        self.maps: dict[str, Map] = _Named(src.name, "map")
        self._source = src
        self._artifact = artifact
        self._types = _Types(artifact["btf"])
        self._btf_fd = self._formats_fd = -1
        self._closed = False
        self._reused = frozenset(options.reuse_maps)
        try:
            self._load(options)
        except BaseException:
            self.close()
            raise
        finally:
            for fd in (self._btf_fd, self._formats_fd):
                if fd >= 0:
                    os.close(fd)
            self._btf_fd = self._formats_fd = -1

    @property
    def btf(self) -> Btf | None:
        """The types of the source, parsed on first use; None if it was compiled without."""
        return self._types()

    # --- loading ----------------------------------------------------------------------------

    def _load(self, options: _Options) -> None:
        blob = self._artifact["btf"]
        if blob and options.global_functions:
            from bpfkit.core.types.btf import Btf

            blob = Btf(blob).with_global_functions()
        if blob:
            try:
                self._btf_fd = syscall.btf_load(blob)
            except OSError as error:
                # Only map types and C lines depend on it, unless the verifier says otherwise.
                say(f"{self.name}: the kernel refuses its BTF: {errno_text(error.errno or 0)}")
        definitions = map_defs(self._artifact)
        _known(self.name, "map", options.max_entries, [d.name for d in definitions])
        _known(self.name, "map", options.map_types, [d.name for d in definitions])
        _known(self.name, "map", options.reuse_maps, [d.name for d in definitions])
        fds = self._create_maps(definitions, options)
        values = {number: default for _, number, default in self._artifact["consts"]}
        names = {name: number for name, number, _ in self._artifact["consts"]}
        _known(self.name, "constant", options.consts, list(names))
        for name, value in options.consts.items():
            values[names[name]] = value
        sections = {
            function: _section(self.name, section, line)
            for function, section, line in self._artifact["sections"]
        }
        unnamed = self._artifact["unnamed"]
        if options.programs is not None:
            every = [*sections, *(entry[0] for entry in unnamed)]
            _known(self.name, "program", dict.fromkeys(options.programs), every)
        for entry in unnamed:
            if options.programs is None or entry[0] in options.programs:
                raise _no_section(*entry)
        for definition in prog_defs(self._artifact):
            if options.programs is None or definition.name in options.programs:
                self._load_program(definition, sections[definition.name], fds, values, options)

    def _create_maps(self, definitions: list[MapDef], options: _Options) -> list[int]:
        from bpfkit.core.maps.base import open_map

        fds = [-1] * len(definitions)
        # Templates before the maps of maps that are made after them.
        for index in sorted(range(len(definitions)), key=lambda i: definitions[i].inner >= 0):
            definition = definitions[index]
            name = definition.name
            if name in options.reuse_maps:
                existing = options.reuse_maps[name]
                fds[index] = existing.fd
                self.maps[name] = existing
                continue
            if name in options.map_types:
                definition.type = map_type(options.map_types[name])
            if name in options.max_entries:
                definition.max_entries = options.max_entries[name]
            fd = _create_map(
                definition, self._btf_fd, fds[definition.inner] if definition.inner >= 0 else 0
            )
            fds[index] = fd
            opened = self.maps[name] = open_map(definition, fd, self._types)
            opened._owner = self.name
        return fds

    def _load_program(
        self,
        definition: ProgDef,
        section: Section,
        fds: list[int],
        values: dict[int, int],
        options: _Options,
    ) -> None:
        insns = bytearray(definition.insns)
        for offset, index in definition.map_relocs:
            insns[offset + 1] = insns[offset + 1] & 0x0F | 0x10  # BPF_PSEUDO_MAP_FD
            pack_into("<i", insns, offset + 4, fds[index])
            pack_into("<i", insns, offset + 12, 0)
        for offset, number in definition.const_relocs:
            value = values[number] & 0xFFFFFFFFFFFFFFFF
            insns[offset + 1] &= 0x0F  # a plain 64-bit constant
            pack_into("<I", insns, offset + 4, value & 0xFFFFFFFF)
            pack_into("<I", insns, offset + 12, value >> 32)
        for offset in definition.format_relocs:
            if self._formats_fd < 0:
                self._formats_fd = frozen_map(self.name, self._artifact["formats"])
            pack_into("<i", insns, offset + 4, self._formats_fd)
        missing = _put_kfuncs(insns, definition)
        btf_id, prog_fd = options.attach_targets.get(definition.name, (0, 0))
        if section.attach_btf and not btf_id:
            btf_id = _attach_btf_id(f"{self.name}: '{definition.name}'", section)
        fd = load_program(
            definition.name,
            section,
            bytes(insns),
            self._artifact["license"],
            kern_version=self._artifact["kern_version"],
            btf_fd=max(self._btf_fd, 0),
            definition=definition,
            attach_btf_id=btf_id,
            attach_prog_fd=prog_fd,
            find_line=self._find_line,
            missing_kfuncs=missing,
        )
        program = Program(definition.name, section, fd, bytes(insns))
        program._owner = self.name
        self.programs[definition.name] = program

    def _find_line(self, quoted: str, approximate: int) -> tuple[str, int] | None:
        """Where a C line that the verifier quotes stands in the user's files."""
        from bpfkit.core.compile.diagnostics import find_c_line

        return find_c_line(self._source, quoted, approximate)

    # --- use --------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Any:
        """The map of this name: a :class:`Map`, of the class that its type has."""
        found = self.maps.get(name)
        if found is not None:
            return found
        error = _no_such(self.name, "map", name, list(self.maps))
        if name in self.programs:
            error.hint = f'it is a program: obj.programs["{name}"]'
        raise error

    def events(
        self,
        name: str,
        *,
        timeout: float | None = None,
        lost: str = "",
        forms: Mapping[str, str | Callable[[Any], Any]] | None = None,
    ) -> Events:
        """The events of a ring buffer or perf buffer, typed by ``EVENT_TYPE(name, struct …)``::

            for event in obj.events("connects", timeout=5):
                print(event.pid, event.comm)

        :param name: the map's name.
        :param timeout: end when no event has come for so many seconds; None: wait for ever.
        :param lost: the array in whose element 0 the program counts what the ring refused; by
            default the one called ``lost``, if there is one.
        :param forms: how fields are shown: ``{"daddr": "ip"}``, see :mod:`bpfkit.core.types.forms`.
        :raises InputError: there is no such map or field, or the map sends no events.
        """
        from bpfkit.core.maps.events import Events

        counter = self[lost] if lost else self.maps.get("lost")
        if counter is not None and not lost and "array" not in counter.type:
            counter = None
        return Events(self[name], timeout=timeout, lost=counter, forms=forms)

    def attach_struct_ops(self, struct: str, **values: int | str | bytes) -> Link:
        """Register the programs ``SEC("struct_ops/STRUCT.member")`` as one table of functions.

        By a link where the kernel has it (6.4), else (5.6) with an ownership record, because the
        registration outlives the process.  Sockets that use an algorithm keep it until they close.

        :param struct: ``tcp_congestion_ops``.
        :param values: the members that are no functions (``name="aimd"``, ``flags=1``).
        :raises AttachError: EEXIST: the kernel has one of this name.
        """
        from bpfkit.core.attach.struct_ops import attach

        return attach(self.programs.values(), struct, values)

    def close(self) -> None:
        """Detach every program and let go of everything."""
        self._closed = True
        for program in self.programs.values():
            program.close()
        for name, m in self.maps.items():
            if name not in self._reused:
                m.close()

    def _is_open(self) -> bool:
        return not self._closed

    def __del__(self) -> None:
        # Programs and maps close themselves: somebody may still use one of them.
        if not getattr(self, "_closed", True):
            warn_unclosed(self, self._types)

    def __repr__(self) -> str:
        return f"<Object {self.name}: programs {list(self.programs)}, maps {list(self.maps)}>"


def _section(name: str, section: str, line: int) -> Section:
    try:
        return resolve(section)
    except InputError as error:
        error.what = f"{name}:{line}: {error.what}"
        raise


def _no_section(name: str, file: str, line: int, code: str, near: str) -> CompileError:
    """The error for a compiled function of which nothing says what type of program it is."""
    parts = [
        f"    {code}" if code else "",
        f"Write {near} before it, or make it static if it is no program."
        if near
        else 'Write SEC("…") before it, or make it static if it is no program.',
    ]
    return CompileError(
        f"{file}:{line}" if line else file,
        why=f"{name}() has no SEC(), so its program type is not known",
        hint="\n".join(part for part in parts if part),
        diagnostics=[(file, line, 0, f"{name}() has no SEC()")],
    )


def _known(where: str, what: str, given: Mapping[str, object], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise _no_such(where, what, name, known)


def _no_such(where: str, what: str, name: str, known: Sequence[str]) -> NoSuchNameError:
    """The error for a name that no program, map or constant of the source has."""
    return NoSuchNameError(
        f"no {what} '{name}' in {where}",
        why=f"it has {', '.join(known) or 'none'}",
        hint=nearest(name, known, 0.6),
    )


# --- talking to the kernel --------------------------------------------------------------------


def _create_map(definition: MapDef, btf_fd: int, inner_fd: int) -> int:
    typed = btf_fd > 0 and definition.btf_value_type_id > 0

    def create(with_btf: bool) -> int:
        return syscall.map_create(
            definition.type,
            definition.key_size,
            definition.value_size,
            definition.max_entries,
            definition.map_flags,
            definition.name.encode(),
            btf_fd=btf_fd if with_btf else 0,
            btf_key_type_id=definition.btf_key_type_id if with_btf else 0,
            btf_value_type_id=definition.btf_value_type_id if with_btf else 0,
            inner_map_fd=inner_fd,
            map_extra=definition.map_extra,
        )

    try:
        try:
            return create(typed)
        except OSError as error:
            # As libbpf: some types take no BTF (ENOTSUPP, EINVAL); the kernel knows which.
            if not typed or error.errno not in (524, errno.EINVAL):
                raise
            return create(False)
    except OSError as error:
        raise _map_error(definition, error) from None


def _map_error(definition: MapDef, error: OSError) -> BpfkitError:
    kind = map_type_name(definition.type)
    what = f"cannot create map '{definition.name}' ({kind})"
    number = error.errno or 0
    lack = lacking(error, what)
    if lack is not None:
        return lack
    if number == errno.EPERM:
        if os.geteuid() != 0:
            return needs_root(what)
        return PrivilegeError(
            what,
            why="not permitted, or RLIMIT_MEMLOCK is too small (kernels before 5.11)",
            hint="raise it with `ulimit -l unlimited`; in a container add CAP_BPF",
        )
    if number in (errno.ENOMEM, errno.E2BIG):
        return LoadError(
            what,
            why=f"{definition.max_entries} entries of {definition.key_size} + "
            f"{definition.value_size} bytes are too much [{errno_text(number)}]",
            hint="make it smaller",
        )
    if number == errno.EINVAL:
        return LoadError(
            what,
            why=f"the kernel does not know this type, or not with key {definition.key_size}, "
            f"value {definition.value_size}, {definition.max_entries} entries, "
            f"flags {definition.map_flags:#x}",
            hint="`python3 -m bpfkit doctor` shows which types work here",
        )
    return LoadError(what, why=errno_text(number))


def frozen_map(name: str, text: bytes) -> int:
    """A map of one element that nobody changes any more, as the formats of bpf_stream_vprintk()
    must be in one (5.2); the programs keep it."""
    try:
        fd = syscall.map_create(map_type("ARRAY"), 4, len(text), 1, _RDONLY_PROG, b"formats")
        try:
            syscall.map_update(fd, bytes(4), text)
            syscall.map_freeze(fd)
        except OSError:
            os.close(fd)
            raise
    except OSError as error:
        what = f"{name}: cannot create the map of its texts"
        raise LoadError(what, why=errno_text(error.errno or 0)) from None
    return fd


def _put_kfuncs(insns: bytearray, definition: ProgDef) -> list[str]:
    """Make calls of kernel functions go to the ids of vmlinux BTF; returns the missing functions.

    A call of a missing one stays as it is, a helper with a number that no kernel has: the verifier
    refuses it if it can be reached.
    """
    if not definition.kfunc_relocs:
        return []
    from bpfkit.core.features.kfuncs import kfunc_id

    missing = []
    for offset, name in definition.kfunc_relocs:
        number = kfunc_id(name)
        if number is None:
            missing.append(name)
            continue
        insns[offset + 1] = insns[offset + 1] & 0x0F | 0x20  # BPF_PSEUDO_KFUNC_CALL
        pack_into("<h", insns, offset + 2, 0)  # vmlinux, not a module
        pack_into("<i", insns, offset + 4, number)
    return missing


def _attach_btf_id(name: str, section: Section) -> int:
    """The kernel type that a tp_btf, fentry, LSM … program names, by its id in vmlinux BTF.

    ``struct_ops/STRUCT.member`` also sets the expected attach type: the member's index.
    """
    from bpfkit.core.types.btf import vmlinux

    what = f'cannot load {name} (SEC("{section.name}"))'
    btf = vmlinux()
    if btf is None:
        raise UnsupportedError(
            what, why="the kernel has no BTF", hint="it needs CONFIG_DEBUG_INFO_BTF"
        )
    attach = section.expected_attach_type
    target = section.target
    if section.prog_type == prog_type("STRUCT_OPS"):
        struct, _, member = target.partition(".")
        found = btf.find(struct, "struct")
        names = [m.name for m in btf.members(found)] if found is not None else []
        if found is None or member not in names:
            raise InputError(
                what,
                why=f"the kernel's BTF has no {target or 'such struct'}",
                hint='say which member: SEC("struct_ops/tcp_congestion_ops.ssthresh")',
            )
        section.expected_attach_type = names.index(member)
        return found
    if section.prog_type == prog_type("EXT"):
        raise InputError(
            what, why="what it replaces is a program", hint="pass attach_targets={function: …}"
        )
    prefix, kind = {
        23: ("btf_trace_", "typedef"),
        27: ("bpf_lsm_", "func"),
        43: ("bpf_lsm_", "func"),
        28: ("bpf_iter_", "func"),
    }.get(attach, ("", "func"))
    found = btf.find(prefix + target, kind)
    if found is None:
        raise InputError(what, why=f"the kernel has no {kind} {prefix}{target} in its BTF")
    return found
