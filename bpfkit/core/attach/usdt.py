# SPDX-License-Identifier: Apache-2.0
"""USDT probes: the places that the notes of an ELF file list, each a uprobe (kernel 4.17; with a
semaphore 4.20).

A note of the owner ``stapsdt``, type 3, in section ``.note.stapsdt``: the addresses of the probe's
nop, of the section ``.stapsdt.base`` at link time, and of the probe's semaphore (0: none); then
provider, name and arguments as strings.  If a tool has moved the file (prelink), the base's address
tells how far.

Source: https://sourceware.org/systemtap/wiki/UserSpaceProbeImplementation; sys/sdt.h.
"""

from __future__ import annotations

from struct import error as StructError
from struct import unpack_from

from bpfkit.core.attach.link import Link
from bpfkit.core.attach.symbols import NOP5, Elf, nearest
from bpfkit.core.attach.uprobe import attach as attach_uprobe
from bpfkit.core.attach.uprobe import find_file, require_probes
from bpfkit.core.errors import InputError
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TypeVar

    from bpfkit.core.program import Program

    P = TypeVar("P", bound="Place")

__all__ = ["Place", "attach", "matching", "places_of", "refuse_nop5"]

_TYPE = 3  # NT_STAPSDT


class Place:
    """A place of a probe.

    :ivar file: path.
    :ivar provider: with :attr:`name` the probe's name.
    :ivar address: virtual address of the nop; :attr:`offset` is that in the file.
    :ivar semaphore: offset in the file of the counter that says whether anybody watches; 0: none.
    :ivar text: where the arguments are, as text for the assembler.
    :ivar is_nop5: whether the instruction is a nop of five bytes.
    """

    __slots__ = ("address", "file", "is_nop5", "name", "offset", "provider", "semaphore", "text")

    def __init__(
        self, elf: Elf, provider: str, name: str, address: int, semaphore: int, text: str
    ) -> None:
        self.file = elf.path
        self.provider = provider
        self.name = name
        self.address = address
        self.offset = elf.offset_of(address)
        self.semaphore = _offset_of_data(elf, semaphore) if semaphore else 0
        self.text = text
        self.is_nop5 = elf.bytes_at(self.offset, 5) == NOP5

    @property
    def probe(self) -> str:
        """``provider:name``."""
        return f"{self.provider}:{self.name}"


def _offset_of_data(elf: Elf, address: int) -> int:
    for _, _, start, offset, size, _, _ in elf.sections:
        if start and start <= address < start + size:
            return address - start + offset
    raise InputError(f"{elf.path}: a probe's semaphore at {address:#x} is in no section")


def places_of(path: str, kind: type[P]) -> list[P]:
    """The places of a file's probes, in the order of the notes.

    :param kind: their class: :class:`Place`, or one that derives from it.
    :raises InputError: it is no ELF file, or its notes are damaged.
    """
    elf = Elf(path)
    try:
        return list(_places(elf, kind))
    except (StructError, IndexError, ValueError) as error:
        raise InputError(f"{path} has damaged notes of probes", why=str(error)) from None


def _places(elf: Elf, kind: type[P]) -> Iterator[P]:
    data = elf.section(".note.stapsdt")
    base_now = next((s[2] for s in elf.sections if s[0] == ".stapsdt.base"), 0)
    at = 0
    while at + 12 <= len(data):
        name_size, size, number = unpack_from("<III", data, at)
        start = at + 12 + (name_size + 3 & ~3)
        owner = data[at + 12 : at + 12 + name_size]
        at = start + (size + 3 & ~3)
        if owner != b"stapsdt\0" or number != _TYPE:
            continue
        address, base, semaphore = unpack_from("<QQQ", data, start)
        provider, name, arguments = data[start + 24 : start + size].split(b"\0")[:3]
        moved = base_now - base if base_now and base else 0
        words = [part.decode(errors="backslashreplace") for part in (provider, name, arguments)]
        yield kind(
            elf,
            words[0],
            words[1],
            address + moved,
            semaphore + moved if semaphore else 0,
            words[2],
        )


def matching(places: Sequence[P], path: str, probe: str) -> list[P]:
    """The places of a file whose probe is ``PROVIDER:NAME`` or ``NAME``, a pattern of the shell.

    :raises InputError: there is none; the text names the nearest.
    """
    from fnmatch import fnmatchcase

    if not places:
        raise InputError(f"{path} has no USDT probes")
    wanted = probe if ":" in probe else f"*:{probe}"
    found = [place for place in places if fnmatchcase(place.probe, wanted)]
    if not found:
        names = dict.fromkeys(place.probe for place in places)
        raise InputError(
            f"{path} has no probe {probe}",
            hint=nearest(probe.strip("*?"), names)
            or nearest(probe, dict.fromkeys(place.name for place in places))
            or f"`python3 -m bpfkit.usdt --list {path}` shows its {count_of(len(names), 'probe')}",
        )
    return found


def refuse_nop5(place: Place, hint: str) -> None:
    """See that a probe of all kernels is safe at a place.

    :raises InputError: its instruction is a nop of 5 bytes.
    """
    if place.is_nop5:
        raise InputError(
            f"{place.probe} of {place.file} is a nop of 5 bytes",
            why="kernels 6.18 to 7.1 overwrite data of a leaf function that has one",
            hint=hint,
        )


def attach(program: Program, path: str, probe: str, *, pid: int = -1, nop5: bool = False) -> Link:
    """See :meth:`bpfkit.core.program.Program.attach_usdt`."""
    file = find_file(path)
    places = matching(places_of(file, Place), file, probe)
    if not nop5:
        for place in places:
            refuse_nop5(place, "nop5=True probes it all the same")
    held = []
    try:
        for place in places:
            link = attach_uprobe(
                program, file, place.offset, pid=pid, ref_ctr_offset=place.semaphore
            )
            held.append(link._held)
            program._attachments.remove(link._held)  # it is a part of the one below
        if pid == -1:
            require_probes(file, [place.offset for place in places])
    except BaseException:
        for one in held:
            one.close()
        raise

    def undo() -> None:
        for one in held:
            one.close()

    return Link(program, "usdt", f"usdt {file}:{probe}", undo=undo)
