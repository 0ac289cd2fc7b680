# SPDX-License-Identifier: Apache-2.0
"""What one compile yields: everything bpf(2) needs, nothing that lives in the kernel.

An artifact is a tree of plain values, so :mod:`marshal` can carry it from the worker and to the
cache.  The names below are the tree's only description; :func:`check` refuses anything else, so
that a damaged or foreign file is never taken for one.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, TypeAlias

    #: {"v", "license", "kern_version", "btf", "maps", "progs", "sections", "unnamed", "consts",
    #: "deps", "diagnostics", "formats"}; "sections" are (function, section name, line), "unnamed"
    #: are (function, file, line, C line, hint) of the functions for which there is no SEC()
    Artifact: TypeAlias = dict[str, Any]

__all__ = ["FORMAT", "MapDef", "ProgDef", "check", "map_defs", "prog_defs"]

#: Version of this layout; part of the cache key.
FORMAT = 4


class MapDef:
    """A map as BPF_MAP_CREATE takes it.

    ``inner`` is the index of the template map for map-in-map types, else -1.
    """

    __slots__ = (
        "btf_key_type_id",
        "btf_value_type_id",
        "inner",
        "key_size",
        "map_extra",
        "map_flags",
        "max_entries",
        "name",
        "type",
        "value_size",
    )

    def __init__(
        self,
        name: str,
        type: int,
        key_size: int,
        value_size: int,
        max_entries: int,
        map_flags: int = 0,
        map_extra: int = 0,
        btf_key_type_id: int = 0,
        btf_value_type_id: int = 0,
        inner: int = -1,
    ) -> None:
        self.name = name
        self.type = type
        self.key_size = key_size
        self.value_size = value_size
        self.max_entries = max_entries
        self.map_flags = map_flags
        self.map_extra = map_extra
        self.btf_key_type_id = btf_key_type_id
        self.btf_value_type_id = btf_value_type_id
        self.inner = inner

    def as_tuple(self) -> tuple[Any, ...]:
        """The form in which an artifact carries it."""
        return (
            self.name,
            self.type,
            self.key_size,
            self.value_size,
            self.max_entries,
            self.map_flags,
            self.map_extra,
            self.btf_key_type_id,
            self.btf_value_type_id,
            self.inner,
        )


class ProgDef:
    """A program: instructions with holes, and where the holes are.

    ``map_relocs`` and ``const_relocs`` are lists of (byte offset of a ld_imm64, index of the map
    in the artifact / number of the LOAD_CONST), ``kfunc_relocs`` of (byte offset of a call, name of
    the kernel function), ``format_relocs`` of byte offsets of a ld_imm64 into the texts of
    BPFKIT_LOG() (``formats`` of the artifact).
    """

    __slots__ = (
        "const_relocs",
        "format_relocs",
        "func_info",
        "func_info_rec_size",
        "insns",
        "kfunc_relocs",
        "line_info",
        "line_info_rec_size",
        "map_relocs",
        "name",
    )

    def __init__(
        self,
        name: str,
        insns: bytes,
        map_relocs: list[tuple[int, int]],
        const_relocs: list[tuple[int, int]],
        func_info: bytes = b"",
        func_info_rec_size: int = 8,
        line_info: bytes = b"",
        line_info_rec_size: int = 16,
        kfunc_relocs: Sequence[tuple[int, str]] = (),
        format_relocs: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.insns = insns
        self.map_relocs = map_relocs
        self.const_relocs = const_relocs
        self.func_info = func_info
        self.func_info_rec_size = func_info_rec_size
        self.line_info = line_info
        self.line_info_rec_size = line_info_rec_size
        self.kfunc_relocs = kfunc_relocs
        self.format_relocs = format_relocs


_FIELDS = {
    "v": int,
    "license": bytes,
    "kern_version": int,
    "btf": bytes,
    "maps": list,
    "progs": list,
    "sections": list,
    "unnamed": list,
    "consts": list,
    "deps": list,
    "diagnostics": str,
    "formats": bytes,
}


def check(tree: Any) -> Artifact:
    """Return ``tree`` if it is an artifact of this format, else raise :class:`ValueError`."""
    if not isinstance(tree, dict) or tree.get("v") != FORMAT:
        raise ValueError("not an artifact of this version")
    for name, kind in _FIELDS.items():
        if not isinstance(tree.get(name), kind):
            raise ValueError(f"artifact lacks {name}")
    count = len(tree["maps"])
    for prog in tree["progs"]:
        size = len(prog[1])
        if size % 8 or any(
            offset < 0 or offset + 16 > size or not 0 <= index < count for offset, index in prog[2]
        ):
            raise ValueError(f"artifact with a bad relocation in {prog[0]}")
    return tree


def map_defs(tree: Artifact) -> list[MapDef]:
    """The artifact's maps, in order."""
    return [MapDef(*fields) for fields in tree["maps"]]


def prog_defs(tree: Artifact) -> list[ProgDef]:
    """The artifact's programs, in order."""
    return [ProgDef(*fields) for fields in tree["progs"]]
