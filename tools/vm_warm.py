#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compile bpfkit's programs here for the kernel of a VM, into a cache that the VM shares.

    tools/vm_warm.py KERNEL CACHE

Without KVM a compile in a VM takes 15 times as long as here.  The compile itself needs nothing of
the kernel but its BTF, its build id, its version and the number of CPUs: so it runs in a mount
namespace in which /sys shows those of KERNEL (a folder with an unpacked package), and with a
uname(2) that names it.  An artifact that the guest cannot use has another key there, and the guest
compiles anew: nothing here decides what a program does.

Programs whose C asks tracefs for a tracepoint's fields (TRACEPOINT_PROBE) are left to the guest.
Needs root, gcc and BCC.

exit status: 0; 77 something is missing, and stderr says what
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from vm_guest.cells import adopt
from vm_guest.image import Kernel, VmError, find_kernel, vmlinux_of

TOP = Path(__file__).resolve().parents[1]
SHIM = TOP / "tools/vm_guest/uname.c"
_CLONE_NEWNS = 0x20000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
#: A program whose compile depends on more than its text: (end of its path, flags it may get).
VARIANTS = {"sockops.bpf.c": ("-DHAS_MPTCP",), "iter.bpf.c": ("-DNO_LINK_ITER",)}


def elf_sections(data: bytes) -> dict[str, bytes]:
    """The sections of a 64-bit little-endian ELF file.

    Source: elf(5).
    """
    if data[:6] != b"\x7fELF\x02\x01":
        raise VmError("the kernel's image holds no 64-bit ELF file")
    (offset,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    heads = [struct.unpack_from("<IIQQQQ", data, offset + n * size) for n in range(count)]
    if not heads:
        return {}
    strings = data[heads[names][4] :][: heads[names][5]]
    found = {}
    for name, kind, _, _, start, length in heads:
        text = strings[name : strings.find(b"\0", name)].decode(errors="replace")
        found[text] = b"" if kind == 8 else data[start : start + length]  # 8: SHT_NOBITS
    return found


def identity(kernel: Kernel) -> dict[str, bytes]:
    """What a compile depends on: ``btf``, ``notes``, ``version`` (uname -v) of a kernel.

    :raises VmError: the image does not tell.
    """
    data = kernel.image.read_bytes()
    vmlinux = data if data[:4] == b"\x7fELF" else vmlinux_of(data, str(kernel.image))
    if vmlinux is None:
        raise VmError(f"{kernel.image} holds no ELF file that QEMU could start")
    sections = elf_sections(vmlinux)
    version = re.search(rb"#\d+ SMP[^\0\n]*", vmlinux)
    if version is None or not sections.get(".BTF") or not sections.get(".notes"):
        raise VmError(f"{kernel.image} tells no version, BTF or notes")
    return {"btf": sections[".BTF"], "notes": sections[".notes"], "version": version[0]}


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = [text.encode() for text in (source, target, kind)]
    if libc.mount(*arguments, ctypes.c_ulong(flags), data.encode() or None):
        number = ctypes.get_errno()
        raise VmError(f"cannot mount over {target}: {os.strerror(number)}")


def enter(kernel: Kernel, cpus: int, folder: Path) -> None:
    """From here on /sys tells this process what it would tell under ``kernel``."""
    known = identity(kernel)
    for name, data in (("btf", known["btf"]), ("notes", known["notes"])):
        (folder / name).write_bytes(data)
    (folder / "possible").write_text(f"0-{cpus - 1}\n" if cpus > 1 else "0\n")
    shim = folder / "uname.so"
    done = subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", "-o", str(shim), str(SHIM)], capture_output=True
    )
    if done.returncode:
        raise VmError("gcc cannot compile uname.c: " + done.stderr.decode(errors="replace"))
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS):
        raise VmError(f"no mount namespace: {os.strerror(ctypes.get_errno())}")
    _mount("none", "/", "none", _MS_REC | _MS_PRIVATE)
    _mount("btf", "/sys/kernel/btf", "tmpfs", 0)
    Path("/sys/kernel/btf/vmlinux").write_bytes(known["btf"])
    _mount(str(folder / "notes"), "/sys/kernel/notes", "none", _MS_BIND)
    _mount(str(folder / "possible"), "/sys/devices/system/cpu/possible", "none", _MS_BIND)
    if os.path.isdir(f"/lib/modules/{kernel.release}"):
        _mount("none", f"/lib/modules/{kernel.release}", "tmpfs", 0)
    os.environ["UNAME_RELEASE"] = kernel.release
    os.environ["UNAME_VERSION"] = known["version"].decode()
    ours = os.uname()
    answer = os.uname_result(
        (ours.sysname, ours.nodename, kernel.release, known["version"].decode(), ours.machine)
    )
    os.uname = lambda: answer
    from bpfkit.core.compile import compiler

    plain = compiler._environment

    def environment() -> dict[str, str]:
        names = ("UNAME_RELEASE", "UNAME_VERSION")
        return plain() | {name: os.environ[name] for name in names} | {"LD_PRELOAD": str(shim)}

    compiler._environment = environment


def compile_all() -> tuple[int, int]:
    """Compile every C source of bpfkit; (how many did, how many did not)."""
    from bpfkit.core.errors import BpfkitError
    from bpfkit.core.object import compiled

    good = bad = 0
    for path in sorted((TOP / "bpf_c").rglob("*.bpf.c")):
        if "TRACEPOINT_PROBE" in path.read_text():
            continue
        flags = VARIANTS.get(path.name, ())
        for cflags in [[], list(flags)] if flags else [[]]:
            try:
                compiled(str(path.relative_to(TOP / "bpf_c")), cflags=cflags)
                good += 1
            except BpfkitError as error:
                bad += 1
                print(f"vm_warm: {path.name}: {error.what}: {error.why}", file=sys.stderr)
    return good, bad


def main() -> int:
    if len(sys.argv) not in (3, 4):
        print(__doc__, file=sys.stderr)
        return 2
    if os.geteuid():
        print("vm_warm: needs root for a mount namespace", file=sys.stderr)
        return 77
    cpus = int(sys.argv[3]) if len(sys.argv) > 3 else 2
    os.environ["BPFKIT_CACHE"] = os.path.abspath(sys.argv[2])
    sys.path.insert(0, str(TOP))
    try:
        with tempfile.TemporaryDirectory(prefix="bpfkit-warm-") as folder:
            enter(find_kernel(sys.argv[1]), cpus, Path(folder))
            adopt(os.environ["BPFKIT_CACHE"])  # those of an earlier run: the guest changed them
            good, bad = compile_all()
    except VmError as error:
        print(f"vm_warm: {error}", file=sys.stderr)
        return 77
    print(f"{good} compiled, {bad} not")
    return 0


if __name__ == "__main__":
    sys.exit(main())
