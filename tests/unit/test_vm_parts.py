# SPDX-License-Identifier: Apache-2.0
"""The parts of tools/vm.py that need no VM: archive, modules, kernel search, messages."""

from __future__ import annotations

import gzip
import lzma
import os
import platform
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))
from vm_guest import image  # noqa: E402

DEP = """\
kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/drivers/virtio/virtio.ko.xz
kernel/net/9p/9pnet.ko.xz:
kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs/netfs.ko.xz
kernel/fs/netfs/netfs.ko.xz:
kernel/drivers/virtio/virtio.ko.xz:
"""


@pytest.mark.skipif(not shutil.which("cpio"), reason="no cpio")
def test_cpio_as_cpio_reads_it(tmp_path: Path) -> None:
    files = {
        "bin": (0o40755, b""),
        "bin/busybox": (0o100755, b"\x7fELF" + bytes(7)),
        "bin/sh": (0o120777, b"busybox"),
        "a name": (0o100644, "äöü\n".encode()),
        "empty": (0o100600, b""),
    }
    archive = image.cpio(files)
    assert len(archive) % 4 == 0
    subprocess.run(
        ["cpio", "-idm", "--quiet", "--no-preserve-owner"], input=archive, cwd=tmp_path, check=True
    )
    for name, (mode, data) in files.items():
        path = tmp_path / name
        assert path.lstat().st_mode == mode, name
        if path.is_symlink():
            assert os.readlink(path) == data.decode()
        elif path.is_file():
            assert path.read_bytes() == data


def test_cpio_header() -> None:
    archive = image.cpio({"abc": (0o100644, b"12345")})
    fields = [archive[6 + 8 * n : 14 + 8 * n] for n in range(13)]
    assert archive[:6] == b"070701"
    assert int(fields[1], 16) == 0o100644 and int(fields[6], 16) == 5 and int(fields[11], 16) == 4
    assert archive[110:116] == b"abc\0\0\0"
    assert archive[116:124] == b"12345\0\0\0"  # the header and the name are padded together
    assert b"TRAILER!!!\0" in archive


def test_modules_come_after_what_they_need() -> None:
    order = image.module_order(["9pnet_virtio", "9p"], DEP, "")
    names = [image.module_name(path) for path in order]
    assert sorted(names) == ["9p", "9pnet", "9pnet_virtio", "netfs", "virtio"]
    for line in DEP.splitlines():
        name, _, needs = line.partition(":")
        for need in needs.split():
            assert order.index(need) < order.index(name)


def test_built_in_and_missing_modules() -> None:
    builtin = "kernel/drivers/virtio/virtio-pci.ko\n"
    assert image.module_order(["virtio_pci"], DEP, builtin) == []
    with pytest.raises(image.VmError, match="no module overlay"):
        image.module_order(["overlay"], DEP, builtin)


def make_kernel(root: Path, release: str, *, dep: bool = True, when: int = 0) -> Path:
    (root / "boot").mkdir(exist_ok=True)
    folder = root / "lib/modules" / release
    folder.mkdir(parents=True)
    if dep:
        (folder / "modules.dep").write_text(DEP)
    path = root / "boot" / f"vmlinuz-{release}"
    path.write_bytes(b"MZ")
    os.utime(path, (when, when))
    return path


def test_find_kernel(tmp_path: Path) -> None:
    with pytest.raises(image.VmError, match="apt-get install linux-image"):
        image.find_kernel("", tmp_path)
    old = make_kernel(tmp_path, "5.10.0-1-amd64", when=1000)
    new = make_kernel(tmp_path, "6.1.0-2-amd64", when=2000)
    make_kernel(tmp_path, "6.12.0-3-amd64", dep=False, when=3000)
    assert image.find_kernel("", tmp_path).image == new
    assert image.find_kernel("5.10.0-1-amd64", tmp_path) == image.Kernel(
        "5.10.0-1-amd64", old, tmp_path / "lib/modules/5.10.0-1-amd64"
    )
    with pytest.raises(image.VmError, match=r"depmod -b .* 6\.12\.0-3-amd64"):
        image.find_kernel("6.12.0-3-amd64", tmp_path)
    with pytest.raises(image.VmError, match="no kernel none-such"):
        image.find_kernel("none-such", tmp_path)
    running = make_kernel(tmp_path, platform.release(), when=1)
    assert image.find_kernel("", tmp_path).image == running


def test_find_kernel_in_a_folder(tmp_path: Path) -> None:
    """An unpacked package (merged /usr too), and a kernel's build folder."""
    unpacked = tmp_path / "deb"
    unpacked.mkdir()
    path = make_kernel(unpacked, "6.1.0-2-amd64")
    assert image.find_kernel(str(unpacked)).image == path
    (unpacked / "usr").mkdir()
    (unpacked / "lib").rename(unpacked / "usr/lib")
    assert image.find_kernel(str(unpacked)).modules == unpacked / "usr/lib/modules/6.1.0-2-amd64"
    build = tmp_path / "build"
    (build / "include/config").mkdir(parents=True)
    (build / "include/config/kernel.release").write_text("7.0.0-rc1\n")
    (build / "vmlinux").touch()
    assert image.find_kernel(str(build)) == image.Kernel(
        "7.0.0-rc1", build / "vmlinux", build, str(build)
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_kernel(tmp_path: Path) -> None:
    make_kernel(tmp_path, "6.1.0-2-amd64").chmod(0)
    with pytest.raises(image.VmError, match="sudo chmod"):
        image.find_kernel("", tmp_path)


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress, bytes, "zstd", "lz4"])
def test_unpacked(pack: object) -> None:
    data = b"module" * 1000
    if isinstance(pack, str):
        if not shutil.which(pack):
            pytest.skip(f"no {pack}")
        extra = ["-l"] if pack == "lz4" else []  # the format of the kernel's images
        packed = subprocess.run(
            [pack, "-c", *extra], input=data, stdout=subprocess.PIPE, check=True
        ).stdout
    else:
        packed = pack(data)  # type: ignore[operator]
    assert image.unpacked(packed, "x") == data


def test_unpacking_tool_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(image.VmError, match="apt-get install zstd"):
        image.unpacked(b"\x28\xb5\x2f\xfdxxxx", "x.ko.zst")


def bzimage(payload: bytes) -> bytes:
    head = bytearray(512 * 5)
    head[0x1F1] = 4  # sectors of setup code
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, 16, len(payload))
    return bytes(head) + bytes(16) + payload + b"rest"


def test_vmlinux_of_a_bzimage() -> None:
    note = struct.pack("<III", 4, 8, 18) + b"Xen\0" + bytes(8)
    vmlinux = b"\x7fELF" + bytes(60) + note
    for packed in (lzma.compress(vmlinux), gzip.compress(vmlinux)):
        payload = packed + struct.pack("<I", len(vmlinux))
        assert image.vmlinux_of(bzimage(payload), "x") == vmlinux
    no_pvh = lzma.compress(b"\x7fELF" + bytes(60))
    assert image.vmlinux_of(bzimage(no_pvh), "x") is None
    assert image.vmlinux_of(b"MZ" + bytes(4096), "x") is None


def vm(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOLS / "vm.py"), *words],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
    )


def test_says_what_to_install(tmp_path: Path) -> None:
    done = vm("--", "true", PATH=str(tmp_path))
    assert done.returncode == 125 and done.stdout == ""
    assert done.stderr.endswith("apt-get install qemu-system-x86\n")
    assert done.stderr.count("\n") == 2


def test_usage() -> None:
    done = vm("--mem", "1G")
    assert done.returncode == 2 and "-- COMMAND" in done.stderr
    assert "--kernel" in vm("--help").stdout
