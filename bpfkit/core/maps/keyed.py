# SPDX-License-Identifier: Apache-2.0
"""Hashes, arrays, prefix tries, stack traces and struct_ops: values found by a key."""

from __future__ import annotations

from struct import Struct

from bpfkit.core.errors import MapError
from bpfkit.core.maps.base import Map, map_memory
from bpfkit.core.types.layout import bytes_layout, int_layout, struct_layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from typing import Any, NoReturn

    from bpfkit.core.types.layout import Layout

__all__ = [
    "ArrayMap",
    "HashMap",
    "InsnArray",
    "LpmTrie",
    "ResizableHash",
    "StackTrace",
    "StructOps",
]

MMAPABLE = 1 << 10  # BPF_F_MMAPABLE


class HashMap(Map, types=("HASH", "LRU_HASH")):
    """HASH and LRU_HASH."""

    __slots__ = ()
    _taken_by_batch = True


class ResizableHash(HashMap, types=("RHASH",)):
    """RHASH (7.2): a hash whose table grows and shrinks with what is in it."""

    __slots__ = ()
    _exact_walk = False  # the table may be resized during a walk


class ArrayMap(Map, types=("ARRAY",)):
    """ARRAY: every index below ``max_entries`` exists and cannot be deleted."""

    __slots__ = ()
    _invalid = "entries of an array cannot be deleted, only overwritten"

    def __len__(self) -> int:
        return self.max_entries

    def keys(self) -> list[Any]:
        return list(range(self.max_entries))

    def _full(self, what: str, key: Any) -> NoReturn:
        raise KeyError(key) from None  # E2BIG: an index behind the end

    def clear(self) -> None:
        """Set every entry to zero."""
        zero = bytes(self._value_bytes)
        self.update([(i, zero) for i in range(self.max_entries)])

    def mmap(self, write: bool = True) -> mmap.mmap:
        if not self.flags & MMAPABLE:
            raise MapError(
                f"cannot map '{self.name}'", why="the map was created without BPF_F_MMAPABLE"
            )
        return map_memory(self, (self.value_size + 7 & ~7) * self.max_entries, write)


class InsnArray(ArrayMap, types=("INSN_ARRAY",)):
    """INSN_ARRAY (6.19): places in a program, by which it jumps.

    A value has ``orig_off``, the instruction's number when the program is loaded; the kernel adds
    ``xlated_off``, its number after the verifier's changes, and ``jitted_off``, bytes into the
    machine code.  Freeze the map before the program is loaded.  Entries are written one by one:
    the kernel has no batches for this type.
    """

    __slots__ = ()
    _invalid = "entries cannot be deleted, and only orig_off is to be written"

    def _plain_value(self) -> Layout:
        names = ("orig_off", "xlated_off", "jitted_off")
        return struct_layout(
            "bpf_insn_array_value",
            [(name, int_layout(4)) for name in names] + [("pad", bytes_layout(4))],
        )


class LpmTrie(Map, types=("LPM_TRIE",)):
    """LPM_TRIE: looking up finds the longest prefix that matches.

    Keys are also taken as text, ``"10.0.0.0/8"`` or ``"2001:db8::/32"`` (without a length: the one
    address; host bits are cleared), and as ``(prefix length, bytes)``.  In a trie of 16-byte
    addresses an IPv4 prefix stands for its IPv4-mapped form, 96 bits longer.
    """

    __slots__ = ()
    _exact_walk = False
    _invalid = "the prefix length is larger than the key"

    def _plain_key(self) -> Layout:
        return struct_layout(
            "bpf_lpm_trie_key",
            [("prefixlen", int_layout(4)), ("data", bytes_layout(self.key_size - 4))],
        )

    def _encode_key(self, key: Any) -> bytes:
        if isinstance(key, str):
            return _lpm_key(key, self.key_size - 4, self.name)
        if (
            isinstance(key, tuple)
            and len(key) == 2
            and isinstance(key[1], (bytes, bytearray, memoryview))
        ):
            length, data = key
            if len(data) > self.key_size - 4:
                raise ValueError(f"key of map '{self.name}': more than {self.key_size - 4} bytes")
            return Struct("=I").pack(length) + bytes(data).ljust(self.key_size - 4, b"\0")
        return Map._encode_key(self, key)

    def prefix(self, key: Any) -> str:
        """A key as text: ``10.0.0.0/8``."""
        raw = self._encode_key(key)
        length = Struct("=I").unpack_from(raw)[0]
        from _socket import AF_INET, AF_INET6, inet_ntop

        if len(raw) == 8:
            return f"{inet_ntop(AF_INET, raw[4:])}/{length}"
        if len(raw) == 20:
            return f"{inet_ntop(AF_INET6, raw[4:])}/{length}"
        return f"{raw[4:].hex()}/{length}"


def _lpm_key(text: str, size: int, name: str) -> bytes:
    from _socket import AF_INET, AF_INET6, inet_pton

    address, slash, digits = text.partition("/")
    if size not in (4, 16):
        raise ValueError(f"map '{name}' has keys of {size} bytes, not addresses")
    try:
        if ":" in address:
            if size == 4:
                raise ValueError(f"'{text}': map '{name}' has IPv4 addresses")
            data, extra = inet_pton(AF_INET6, address), 0
        else:
            data, extra = inet_pton(AF_INET, address), 0
            if size == 16:
                data, extra = b"\0" * 10 + b"\xff\xff" + data, 96
        bits = 8 * size - extra
        length = int(digits) if slash else bits
        if (slash and not digits.isdecimal()) or length > bits:
            raise ValueError(f"'{text}' has a prefix length that is not 0 to {bits}")
    except OSError:
        raise ValueError(f"'{text}' is not an IP address") from None
    length += extra
    number = int.from_bytes(data, "big") >> 8 * size - length << 8 * size - length
    return Struct("=I").pack(length) + number.to_bytes(size, "big")


class StackTrace(Map, types=("STACK_TRACE",)):
    """STACK_TRACE: stacks by the id that ``bpf_get_stackid`` gave; innermost address first."""

    __slots__ = ()
    _exact_walk = False

    def _plain_value(self) -> Layout:
        return bytes_layout(self.value_size)

    def _typed_value(self) -> Layout | None:
        return None  # often declared shorter than the kernel's value; see _decode_value

    def _decode_value(self, data: bytes) -> Any:
        if self.flags & 1 << 5:  # BPF_F_STACK_BUILD_ID: struct bpf_stack_build_id, 32 bytes each
            return data
        addresses = memoryview(data).cast("Q").tolist()
        while addresses and not addresses[-1]:
            addresses.pop()
        return tuple(addresses)

    def _decode_values(self, data: Any, count: int) -> list[Any]:
        size = self.value_size
        return [self._decode_value(bytes(data[i * size : (i + 1) * size])) for i in range(count)]

    def walk(self, stack_id: int) -> tuple[int, ...]:
        """The addresses of one stack; empty for the negative ids that mean an error."""
        if stack_id < 0:
            return ()
        result: tuple[int, ...] = self.lookup(stack_id)
        return result


class StructOps(Map, types=("STRUCT_OPS",)):
    """STRUCT_OPS: one kernel struct of function pointers, as bytes; setting key 0 registers it."""

    __slots__ = ()

    def _plain_value(self) -> Layout:
        return bytes_layout(self.value_size)

    def _typed_value(self) -> Layout | None:
        return None  # its type is vmlinux's, not the object's
