# SPDX-License-Identifier: Apache-2.0
"""STRUCT_OPS: tables of functions that the kernel calls, such as a TCP congestion control.

Programs with ``SEC("struct_ops/STRUCT.member")`` are the members.  They go into the only element of
a map whose value is the kernel's own ``struct bpf_struct_ops_STRUCT``; its layout comes from the
kernel's BTF.  A link registers the table (BPF_F_LINK; kernel 6.4).  Before, writing the element
registers it, and the registration holds the map: it outlives the process, so there is an ownership
record.

Source: ``kernel/bpf/bpf_struct_ops.c``; libbpf's ``bpf_map__attach_struct_ops()``.
"""

from __future__ import annotations

import errno
import os
from struct import pack_into

from bpfkit.core.attach.link import Link, attach_error
from bpfkit.core.errors import AttachError, BpfkitError, InputError, UnsupportedError, errno_text
from bpfkit.core.kernel import syscall
from bpfkit.core.kernel.constants import ATTACH_TYPES, map_type

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from bpfkit.core.program import Program
    from bpfkit.core.types.btf import Btf

__all__ = ["attach", "undo_struct_ops"]

_BPF_F_LINK = 1 << 13
_KEY = bytes(4)
_ENOTSUPP = 524


def attach(
    programs: Iterable[Program], struct: str, values: Mapping[str, int | str | bytes]
) -> Link:
    """See :meth:`bpfkit.core.object.Object.attach_struct_ops`."""
    members = {
        program.section.target.partition(".")[2]: program
        for program in programs
        if program.section.target.partition(".")[0] == struct
    }
    what = f"cannot register struct {struct}"
    if not members:
        raise InputError(what, why=f'no program has SEC("struct_ops/{struct}.member")')
    btf, wrapper = _wrapper(what, struct)
    value = _value(btf, wrapper, struct, members, values)
    program = next(iter(members.values()))
    text = values.get("name", struct)
    name = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    fd, with_link = _create(program, name, wrapper, len(value))
    try:
        return _register(program, fd, struct, name, value, with_link)
    finally:
        os.close(fd)


def _wrapper(what: str, struct: str) -> tuple[Btf, int]:
    """The kernel's types, and the id of the struct that the map holds."""
    from bpfkit.core.types.btf import vmlinux

    btf = vmlinux()
    if btf is None:
        raise UnsupportedError(
            what, why="the kernel has no BTF", hint="it needs CONFIG_DEBUG_INFO_BTF"
        )
    wrapper = btf.find(f"bpf_struct_ops_{struct}", "struct")
    if wrapper is None:
        raise UnsupportedError(what, why="the kernel has no struct_ops of this kind")
    return btf, wrapper


def _value(
    btf: Btf,
    wrapper: int,
    struct: str,
    members: Mapping[str, Program],
    values: Mapping[str, int | str | bytes],
) -> bytes:
    """The map's element: program fds in the place of function pointers, and the plain members."""
    table = btf.find(struct, "struct")
    assert table is not None  # the programs were loaded by it
    value = bytearray(btf.sizeof(wrapper))
    start = btf.offset(f"bpf_struct_ops_{struct}", "data")
    known = {member.name: member for member in btf.members(table)}
    for name, program in members.items():
        pack_into("=Q", value, start + known[name].bit_offset // 8, program.fd)
    for name, given in values.items():
        if name not in known:
            raise InputError(f"struct {struct} has no member {name}", why="by the kernel's BTF")
        at = start + known[name].bit_offset // 8
        size = btf.sizeof(known[name].type_id)
        if isinstance(given, int):
            value[at : at + size] = given.to_bytes(size, "little")
            continue
        data = given.encode() if isinstance(given, str) else given
        if not 0 < len(data) < size or b"\0" in data:
            raise InputError(
                f"{given!r} cannot be the {name} of a {struct}",
                why=f"it must have 1 to {size - 1} bytes",
            )
        value[at : at + len(data)] = data
    return bytes(value)


def _create(program: Program, name: str, wrapper: int, size: int) -> tuple[int, bool]:
    """The map, and whether links are to register it."""
    from bpfkit.core.types.btf_writer import tiny_btf

    # The kernel wants an object's BTF to go with the map; no type of it is used.
    btf_fd = syscall.btf_load(tiny_btf()[0])
    try:
        for flags in (_BPF_F_LINK, 0):
            try:
                fd = syscall.map_create(
                    map_type("STRUCT_OPS"),
                    4,
                    size,
                    1,
                    flags,
                    _label(name).encode(),
                    btf_fd=btf_fd,
                    btf_vmlinux_value_type_id=wrapper,
                )
                return fd, bool(flags)
            except OSError as error:
                refused = error
                if error.errno not in (errno.EINVAL, _ENOTSUPP):
                    break
    finally:
        os.close(btf_fd)
    raise _error(program, name, refused) from None


def _label(name: str) -> str:
    """The map's name: of the characters that the kernel takes, 15 at most."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_.") else "_" for c in name)[:15]


def _register(
    program: Program, fd: int, struct: str, name: str, value: bytes, with_link: bool
) -> Link:
    if with_link:
        number = ATTACH_TYPES.index("STRUCT_OPS")
        try:
            syscall.map_update(fd, _KEY, value)
            link = syscall.link_create(fd, 0, number)
        except OSError as error:
            raise _error(program, name, error) from None
        return Link(program, "struct_ops", name, link)
    from bpfkit.core.records import Record

    own = os.dup(fd)
    data = {"struct": struct, "name": name, "map": syscall.map_info(fd)["id"]}
    record = Record("struct_ops", data)
    try:
        syscall.map_update(fd, _KEY, value)
    except OSError as error:
        os.close(own)
        record.done()
        raise _error(program, name, error) from None

    def undo() -> None:
        try:
            syscall.map_delete(own, _KEY)
        except OSError:
            pass  # somebody else has unregistered it
        os.close(own)
        record.done()

    def check() -> bool:
        return any(syscall.map_lookup(own, _KEY, len(value)))  # all zero once unregistered

    return Link(program, "struct_ops", name, undo=undo, check=check)


def _error(program: Program, name: str, error: OSError) -> BpfkitError:
    number = error.errno or 0
    if number == errno.EEXIST:
        taken = AttachError(
            f"cannot register '{name}'",
            why=f"the kernel has one of this name [{errno_text(number)}]",
            hint="choose another name",
        )
        taken.errno = number
        return taken
    return attach_error(program, f"'{name}'", error)


def undo_struct_ops(data: Mapping[str, Any]) -> None:
    """Unregister the table of a process that is gone (an ownership record's undo).

    :param data: ``name``, and ``map``, the id of the map that holds it.
    """
    try:
        fd = syscall.map_get_fd_by_id(int(data["map"]))
    except FileNotFoundError:
        return
    try:
        # Ids are used again: the map of that id may be another one by now.
        info = syscall.map_info(fd)
        ours = (map_type("STRUCT_OPS"), _label(str(data["name"])))
        if (info["type"], info["name"]) == ours:
            try:
                syscall.map_delete(fd, _KEY)
            except FileNotFoundError:
                pass  # it was not registered, or is not any more
    finally:
        os.close(fd)
