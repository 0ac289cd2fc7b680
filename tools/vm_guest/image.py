# SPDX-License-Identifier: Apache-2.0
"""What tools/vm.py boots: a distribution's kernel, its modules, an archive for them."""

from __future__ import annotations

import lzma
import os
import platform
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

#: What the initramfs needs to reach the root; everything else is loaded from there.
BOOT_MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay")
APPLETS = "sh cat cp grep hostname insmod ip ln mkdir mount poweroff switch_root usleep".split()

#: Where tools/bootstrap.sh unpacks a kernel's package.
UNPACKED = Path(__file__).resolve().parents[2] / ".vm"


class VmError(Exception):
    """Why there is no VM, and what to do about it."""


class Kernel(NamedTuple):
    """What to boot: release, bzImage or vmlinux, folder of modules.dep, build folder or ""."""

    release: str
    image: Path
    modules: Path
    build: str = ""


def find_kernel(wanted: str = "", root: Path = Path("/")) -> Kernel:
    """The kernel to boot.

    :param wanted: a release; a folder in which a kernel package was unpacked; a folder in which a
        kernel was built; or "" for the running release if it can be had, else the newest file,
        else what tools/bootstrap.sh has unpacked.
    """
    if os.path.isdir(wanted):
        folder = Path(wanted).resolve()
        if (folder / "vmlinux").exists():
            release = (folder / "include/config/kernel.release").read_text().strip()
            return Kernel(release, folder / "vmlinux", folder, str(folder))
        return find_kernel("", folder)
    found, reasons = [], []
    for folder in sorted({*root.glob("lib/modules/*/"), *root.glob("usr/lib/modules/*/")}):
        release = folder.name
        images = [folder / "vmlinuz", root / "boot" / f"vmlinuz-{release}"]
        image = next((path for path in images if path.exists()), None)
        if (wanted and wanted != release) or image is None:
            continue
        if not os.access(image, os.R_OK):
            reasons.append(f"{image} is not readable: sudo chmod a+r {image}")
        elif not (folder / "modules.dep").exists():
            reasons.append(f"{folder} has no modules.dep: depmod -b {root} {release}")
        else:
            found.append(Kernel(release, image, folder))
    if found:
        running = platform.release()
        return max(found, key=lambda k: (k.release == running, k.image.stat().st_mtime))
    if root == Path("/") and not wanted and UNPACKED.is_dir():
        return find_kernel("", UNPACKED)
    what = f"no kernel {wanted or 'with modules'} under {root}"
    raise VmError(f"{what}\n" + (reasons or ["install one: apt-get install linux-image-amd64"])[0])


def module_name(path: str) -> str:
    """The kernel's name of a module file: virtio_pci of kernel/.../virtio-pci.ko.xz."""
    return os.path.basename(path.strip()).split(".ko")[0].replace("-", "_")


def module_order(names: Iterable[str], dep: str, builtin: str) -> list[str]:
    """Files to load, each after what it depends on, from modules.dep and modules.builtin."""
    have = {module_name(line) for line in builtin.splitlines()}
    files: dict[str, list[str]] = {}
    for line in dep.splitlines():
        path, _, rest = line.partition(":")
        files[module_name(path)] = [path, *rest.split()]  # itself first, what needs nothing last
    order: dict[str, None] = {}
    for name in names:
        if name not in files and name not in have:
            raise VmError(f"the kernel has no module {name}: take a distribution's full kernel")
        order.update(dict.fromkeys(reversed(files.get(name, []))))
    return list(order)


def unpacked(data: bytes, what: str) -> bytes:
    """Data without its compression, which its first bytes tell."""
    if data[:6] == b"\xfd7zXZ\0":
        return lzma.LZMADecompressor().decompress(data)
    if data[:2] == b"\x1f\x8b":
        return zlib.decompressobj(31).decompress(data)
    tool = {b"\x28\xb5\x2f\xfd": "zstd", b"\x02\x21\x4c\x18": "lz4"}.get(data[:4])
    if tool is None:
        return data
    if not shutil.which(tool):
        raise VmError(f"{what} is packed with {tool}\napt-get install {tool}")
    return subprocess.run([tool, "-dc"], input=data, stdout=subprocess.PIPE, check=True).stdout


def vmlinux_of(image: bytes, name: str) -> bytes | None:
    """The ELF file in a bzImage if QEMU can enter it directly (PVH), else None.

    Booting it saves the guest from unpacking itself: 4 of 6 seconds without KVM.
    Source: Documentation/arch/x86/boot.rst (payload_offset, payload_length).
    """
    if image[0x202:0x206] == b"HdrS":
        setup = ((image[0x1F1] or 4) + 1) * 512
        offset, length = struct.unpack_from("<II", image, 0x248)
        packed = image[setup + offset :][:length]
        if packed[:4] in (b"\x28\xb5\x2f\xfd", b"\x02\x21\x4c\x18"):
            packed = packed[:-4]  # the unpacked size stands behind it
        vmlinux = unpacked(packed, name)
        entry = [struct.pack("<III", 4, size, 18) + b"Xen\0" for size in (4, 8)]
        if vmlinux[:4] == b"\x7fELF" and any(note in vmlinux for note in entry):
            return vmlinux
    return None


def cpio(files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """An archive as the kernel's initramfs wants it (newc): path -> (mode, content).

    Source: Documentation/driver-api/early-userspace/buffer-format.rst.
    """
    out = bytearray()
    for number, (path, (mode, data)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))], 1):
        name = path.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
        out += b"070701" + b"%08x" * 13 % fields + name
        out += b"\0" * (-len(out) % 4) + data
        out += b"\0" * (-len(out) % 4)
    return bytes(out)


def static_busybox() -> bytes:
    """The text of a busybox that needs no libraries."""
    hint = "\napt-get install busybox-static"
    path = shutil.which("busybox", path=os.environ.get("PATH", "") + ":/bin:/usr/bin")
    if path is None:
        raise VmError("no busybox here" + hint)
    data = Path(path).read_bytes()
    start, size, count = struct.unpack_from("<32xQ14xHH", data)[:3]
    if 3 in (struct.unpack_from("<I", data, start + n * size)[0] for n in range(count)):
        raise VmError(f"{path} is not static" + hint)  # 3: PT_INTERP
    return data
