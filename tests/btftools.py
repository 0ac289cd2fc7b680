# SPDX-License-Identifier: Apache-2.0
"""BTF for tests: from C by clang, or put together by hand; and a few instructions."""

from __future__ import annotations

import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest

TYPES = """
typedef unsigned char u8; typedef unsigned short u16; typedef unsigned int u32;
typedef unsigned long long u64; typedef signed char s8; typedef short s16; typedef int s32;
typedef long long s64; typedef u16 __be16; typedef u32 __be32; typedef u64 __be64;
"""


def clang() -> str | None:
    """A clang that can target BPF, if there is one."""
    for name in ("clang", *[f"clang-{version}" for version in range(21, 10, -1)]):
        if path := shutil.which(name):
            return path
    return None


def section(elf: bytes, name: str) -> bytes:
    """The bytes of a section of a 64-bit little-endian ELF file."""
    (shoff,) = struct.unpack_from("<Q", elf, 0x28)
    entsize, count, strings = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, shoff + i * entsize) for i in range(count)]
    for header in headers:
        at = headers[strings][4] + header[0]
        if elf[at : elf.index(b"\0", at)].decode() == name:
            return elf[header[4] : header[4] + header[5]]
    raise KeyError(name)


def btf_from_c(text: str, *structs: str) -> bytes:
    """The BTF of C text; ``structs`` are kept alive by being parameters of functions."""
    compiler = clang()
    if compiler is None:
        pytest.skip("no clang on this machine to make BTF with")
    keep = "".join(f"int keep{i}({name} *it) {{ return 0; }}\n" for i, name in enumerate(structs))
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "t.c"), Path(folder, "t.o")
        source.write_text(f"{TYPES}{text}\n{keep}")
        subprocess.run(
            [compiler, "-target", "bpf", "-g", "-O2", "-c", "-o", out, source], check=True
        )
        return section(out.read_bytes(), ".BTF")


class Builder:
    """BTF by hand, for kinds that clang does not write."""

    def __init__(self) -> None:
        self.types = b""
        self.strings = b"\0"
        self.count = 0

    def name(self, text: str) -> int:
        if not text:
            return 0
        offset = len(self.strings)
        self.strings += text.encode() + b"\0"
        return offset

    def add(
        self, kind: int, name: str, size: int, *words: int, vlen: int = 0, flag: bool = False
    ) -> int:
        """One type; returns its id."""
        info = int(flag) << 31 | kind << 24 | vlen
        self.types += struct.pack("=III", self.name(name), info, size & 0xFFFFFFFF)
        self.types += b"".join(struct.pack("=I", word & 0xFFFFFFFF) for word in words)
        self.count += 1
        return self.count

    def blob(self) -> bytes:
        header = struct.pack(
            "=HBBIIIII",
            0xEB9F,
            1,
            0,
            24,
            0,
            len(self.types),
            len(self.types),
            len(self.strings),
        )
        return header + self.types + self.strings


def insn(op: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return struct.pack("<BBhi", op, src << 4 | dst, off, imm)


def ld_imm64(dst: int, src: int, imm: int) -> bytes:
    """src 1: imm is a map fd; src 4: imm is a function."""
    return insn(0x18, dst, src, 0, imm) + insn(0)


def call(helper: int) -> bytes:
    return insn(0x85, imm=helper)


def mov(dst: int, src: int) -> bytes:
    return insn(0xBF, dst, src)


def movi(dst: int, imm: int) -> bytes:
    return insn(0xB7, dst, 0, 0, imm)


def addi(dst: int, imm: int) -> bytes:
    return insn(0x07, dst, 0, 0, imm)


EXIT = insn(0x95)


def load_packet(size: int) -> bytes:
    """r6 = ctx; the first ``size`` bytes of the packet to the stack at r10 - size."""
    return b"".join([mov(6, 1), movi(2, 0), mov(3, 10), addi(3, -size), movi(4, size), call(26)])
