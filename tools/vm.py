#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run a command in a VM: a distribution's stock kernel on this machine's root file system.

    tools/vm.py [OPTION ...] -- COMMAND [ARGUMENT ...]

/ is shared read-only (9p) under a tmpfs that takes the writes: nothing has to be installed in the
guest, nothing on this machine changes, and root is not needed.  Output is passed on byte for byte.

exit status: the command's own; 124 time limit; 125 the guest died or never came up, or something
that a VM needs is missing (stderr says what and how to get it)

needs: QEMU, a static busybox and a kernel of x86-64 with its modules; on Debian and Ubuntu
    apt-get install qemu-system-x86 busybox-static linux-image-amd64  (Ubuntu: linux-image-generic)
or, for a kernel that is not installed, its package unpacked anywhere:
    dpkg -x linux-image-*.deb DIR && depmod -b DIR RELEASE && tools/vm.py --kernel DIR -- COMMAND
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import platform
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

from vm_guest.image import (
    APPLETS,
    BOOT_MODULES,
    Kernel,
    VmError,
    cpio,
    find_kernel,
    module_name,
    module_order,
    static_busybox,
    unpacked,
    vmlinux_of,
)

GUEST = Path(__file__).resolve().parent / "vm_guest"
TIMED_OUT, FAILED = 124, 125
KVM_BOOT_S, TCG_BOOT_S, POWEROFF_S = 10.0, 180.0, 10.0
COMPLAINT = re.compile(
    r"BUG:|WARNING:|Oops|Kernel panic|general protection|unable to handle|Internal error|"
    r"INFO: task .* blocked|self-detected stall|detected stalls|Out of memory: Killed|UBSAN:"
)


def memory_file(name: str, data: bytes) -> int:
    """An unnamed file: nothing stays behind whatever happens."""
    fd = os.memfd_create(name)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    return fd


def cache_folder() -> Path | None:
    """Where unpacked kernels are kept; None if it cannot be written or is not ours alone."""
    sys.path.append(str(GUEST.parent.parent))
    from bpfkit.core.compile.cache import cache_dir  # standard library only

    folder = Path(cache_dir()) / "vm"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        stat = folder.stat()
    except OSError:
        return None
    return folder if stat.st_uid == os.geteuid() and not stat.st_mode & 0o22 else None


def boot_image(kernel: Kernel, cache: Path | None) -> tuple[str, int]:
    """What QEMU boots: (path, -1) or ("", descriptor of an unnamed file)."""
    if kernel.image.name == "vmlinux":
        return str(kernel.image), -1
    stat = kernel.image.stat()
    name = f"vmlinux-{kernel.release}-{stat.st_size}-{stat.st_mtime_ns}"
    if cache and (cache / name).exists():
        return str(cache / name), -1
    vmlinux = vmlinux_of(kernel.image.read_bytes(), str(kernel.image))
    if vmlinux is None:
        return str(kernel.image), -1
    if cache:
        temporary = cache / f".{name}.{os.getpid()}"
        try:
            temporary.write_bytes(vmlinux)
            temporary.rename(cache / name)
            for old in sorted(cache.glob("vmlinux-*"), key=lambda p: p.stat().st_mtime)[:-4]:
                old.unlink()
            return str(cache / name), -1
        except OSError:  # full: it does without
            temporary.unlink(missing_ok=True)
    return "", memory_file("vmlinux", vmlinux)


def shares(options: argparse.Namespace) -> list[tuple[str, str]]:
    """(folder here, folder in the guest) of every --share."""
    found = []
    for share in options.share:
        here, _, there = share.partition(":")
        if not os.path.isdir(here):
            raise VmError(f"--share {share}: {here} is no folder")
        found.append((os.path.abspath(here), os.path.abspath(there or here)))
    return found


def initramfs(options: argparse.Namespace, kernel: Kernel) -> bytes:
    """The archive: busybox, boot modules, and the command as a file (no limits, no quoting)."""
    base = kernel.modules
    texts = [base / name for name in ("modules.dep", "modules.builtin")]
    dep, builtin = (path.read_text() if path.exists() else "" for path in texts)
    env = {
        name: os.environ[name] for name in ("HOME", "LANG", "PATH", "TERM") if name in os.environ
    }
    env["PATH"] = env.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
    for item in options.env:
        name, given, value = item.partition("=")
        env[name] = value if given else os.environ.get(name, "")
    command = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in env.items())
    command += f"cd {shlex.quote(options.cwd)} || exit 126\nexec {shlex.join(options.command)}\n"
    outside = base.parent.resolve() != Path("/lib/modules").resolve()
    conf = {
        "TMPFS": options.tmpfs,
        "MODPROBE": " ".join(options.modprobe),
        "RELEASE": kernel.release,
        "MODULES": str(base) if outside and not kernel.build else "",
        "BUILD": kernel.build,
        "MERGED": "1" if os.path.sameopenfile(1, 2) else "",
    }
    text = (
        "".join(f"{name}={shlex.quote(value)}\n" for name, value in conf.items()) + "shares() { :\n"
    )
    for number, (_, there) in enumerate(shares(options)):
        target = shlex.quote("/new" + there)
        text += f"mkdir -p {target} && p9 rw share{number} {target}\n"
    folder, program, plain = 0o40755, 0o100755, 0o100644
    files = dict.fromkeys("bin mods vm dev proc sys lower rw new".split(), (folder, b""))
    files["bin/busybox"] = (program, static_busybox())
    files |= {f"bin/{name}": (0o120777, b"busybox") for name in APPLETS}
    files["init"] = (program, (GUEST / "init.sh").read_bytes())
    files["vm/main"] = (plain, (GUEST / "main.sh").read_bytes())
    files["vm/conf"] = (plain, (text + "}\n").encode())
    files["vm/command"] = (plain, command.encode())
    for number, path in enumerate(module_order(BOOT_MODULES, dep, builtin)):
        data = unpacked((base / path).read_bytes(), path)
        files[f"mods/{number:02}-{module_name(path)}.ko"] = (plain, data)
    return cpio(files)


def qemu_command(
    options: argparse.Namespace, accel: str, image: str, initrd: str, ports: Mapping[str, str]
) -> list[str]:
    """QEMU's command line.  ``ports``: where console, status, out and err are written."""

    def folder(tag: str, path: str, more: str = "") -> list[str]:
        local = f"local,id={tag},path={path.replace(',', ',,')},security_model=none"
        device = f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"
        return ["-fsdev", f"{local},multidevs=remap{more}", "-device", device]

    kernel = "console=ttyS0 panic=-1 quiet rdinit=/init audit=0 no_timer_check tsc=reliable"
    # Before QEMU 8 a CPU may translate a breakpoint that another one is just removing, and keep it:
    # kernels that patch much of their code (6.16 and later) die of it now and then.
    thread = "single" if options.one_thread else "multi"
    cpu = {"kvm": ("kvm", "host"), "tcg": (f"tcg,thread={thread}", "max,-la57")}[accel]
    command = [options.qemu, "-accel", cpu[0], "-cpu", cpu[1], "-M", "q35", "-m", options.mem]
    command += ["-smp", str(options.smp), "-nodefaults", "-no-user-config", "-display", "none"]
    command += ["-no-reboot", "-kernel", image.replace(",", ",,"), "-initrd", initrd]
    command += ["-append", f"{kernel} mitigations=off {options.append}".strip()]
    for name, path in ports.items():
        command += ["-chardev", f"file,id={name},path={path}"]
    command += ["-serial", "chardev:console", "-device", "virtio-serial-pci"]
    for name in ("status", "out", "err"):
        command += ["-device", f"virtserialport,chardev={name},name=vm.{name}"]
    command += folder("root", "/", ",readonly=on")
    for number, (here, _) in enumerate(shares(options)):
        command += folder(f"share{number}", here)
    return command


class Run:
    """One start of QEMU.  ``state``: done, dead (came up, then ended), noboot or timeout."""

    def __init__(self, options: argparse.Namespace, accel: str, image: str, fds: Sequence[int]):
        self.verbose, self.limit = options.verbose, options.timeout
        self.boot_limit = KVM_BOOT_S if accel == "kvm" else options.boot_timeout
        self.state, self.status, self.came_up = "", b"", 0.0
        self.console, self.qemu = bytearray(), bytearray()
        pipes = {name: os.pipe() for name in ("console", "status", "out", "err")}
        ports = {name: f"/dev/fd/{write}" for name, (_, write) in pipes.items()}
        command = qemu_command(options, accel, image, f"/dev/fd/{fds[0]}", ports)
        if self.verbose:
            print("vm:", shlex.join(command), file=sys.stderr)
        inherited = [write for _, write in pipes.values()]
        parent = os.getpid()

        def die_with_parent() -> None:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            if os.getppid() != parent:
                os._exit(1)

        self.started = time.monotonic()
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[*fds, *inherited],
                preexec_fn=die_with_parent,
            )
        finally:
            for fd in inherited:
                os.close(fd)
        assert process.stderr is not None
        sinks = {pipes[name][0]: name for name in pipes} | {process.stderr.fileno(): "qemu"}
        try:
            self._follow(process, sinks)
        finally:
            process.kill()
            process.wait()
            process.stderr.close()
            for read, _ in pipes.values():
                os.close(read)
        if self.verbose:
            took = f"up after {self.came_up:.1f} s" if self.came_up else "never up"
            total = time.monotonic() - self.started
            print(f"vm: {accel}: {self.state}, {took}, {total:.1f} s in all", file=sys.stderr)

    def _follow(self, process: subprocess.Popen[bytes], sinks: dict[int, str]) -> None:
        """Pass output on until QEMU has closed everything or a limit is reached."""
        poll = select.poll()
        for fd in sinks:
            poll.register(fd, select.POLLIN)
        poweroff = 0.0
        while sinks and not self.state:
            for fd, _ in poll.poll(100):
                data = os.read(fd, 1 << 16)
                if not data:
                    poll.unregister(fd)
                    del sinks[fd]
                else:
                    self._take(sinks[fd], data)
            now = time.monotonic() - self.started
            if not self.came_up and b"up\n" in self.status:
                self.came_up = now
            if self.finished and not poweroff:
                poweroff = now
            if poweroff and now > poweroff + POWEROFF_S:
                break  # has said everything, does not go
            if not self.finished and self.limit and now > self.limit:
                self.state = "timeout"
            elif not self.came_up and now > self.boot_limit:
                self.state = "noboot"
        if not self.state:
            self.state = "done" if self.finished else "dead" if self.came_up else "noboot"

    @property
    def finished(self) -> bool:
        return re.search(rb"^(rc|fail) .*\n", self.status, re.M) is not None

    def _take(self, name: str, data: bytes) -> None:
        if name in ("out", "err"):
            stream: IO[bytes] = (sys.stdout if name == "out" else sys.stderr).buffer
            stream.write(data)
            stream.flush()
        elif name == "status":
            self.status += data
        else:
            kept: bytearray = getattr(self, name)
            kept += data
            del kept[: -(1 << 20)]
            if name == "console" and self.verbose:
                sys.stderr.buffer.write(data)
                sys.stderr.flush()

    def result(self) -> int:
        """The exit status; on stderr everything that went wrong."""
        console = bytes(self.console).decode(errors="replace").replace("\r", "").splitlines()
        qemu = bytes(self.qemu).decode(errors="replace").splitlines()
        rc = re.search(rb"^rc (\d+)$", self.status, re.M)
        why = re.search(rb"^fail (.*)", self.status, re.M | re.S)
        bad = next((n for n, line in enumerate(console) if COMPLAINT.search(line)), None)
        if bad is not None and (rc or bad < len(console) - 40):
            report("the guest's kernel complained:", console[bad : bad + 30])
        if self.state == "done" and rc:
            if qemu:
                report("QEMU says:", qemu)
            return int(rc[1])
        tail = [*console[-40:], *qemu[-20:]] or ["(nothing)"]
        if self.state == "timeout":
            report(f"time limit of {self.limit:g} s; console:", tail)
            return TIMED_OUT
        what = {"dead": "died", "done": "could not be set up"}.get(self.state, "never came up")
        reason = ": " + why[1].decode(errors="replace").strip() if why else ""
        report(f"the guest {what}{reason}; console:", tail)
        return FAILED


def report(what: str, lines: Iterable[str]) -> None:
    print("\n".join([f"vm: {what}", *(f"    {line}" for line in lines)]), file=sys.stderr)


def kvm_memory(cache: Path | None, kernel: Kernel, qemu: str) -> tuple[Path | None, str, str]:
    """(file, its text, line) that remember until the next boot that KVM does not boot this."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    file = cache / "no-kvm" if cache else None
    text = file.read_text() if file and file.exists() else ""
    return file, text if text.startswith(boot) else boot, f"{kernel.image} {qemu}\n"


def run(options: argparse.Namespace) -> int:
    """Find what is needed, boot, pass on."""
    if platform.machine() != "x86_64":
        raise VmError(f"knows x86-64 only, this is {platform.machine()}")
    qemu = shutil.which(options.qemu)
    if qemu is None:
        raise VmError(f"no {options.qemu} here\napt-get install qemu-system-x86")
    kernel = find_kernel(options.kernel)
    cache = cache_folder()
    archive = memory_file("initramfs", initramfs(options, kernel))
    image, fd = boot_image(kernel, cache)
    fds = [archive] if image else [archive, fd]
    accels = [options.accel]
    no_kvm, known, line = kvm_memory(cache, kernel, qemu)
    if options.accel == "auto":
        usable = os.access("/dev/kvm", os.R_OK | os.W_OK) and line not in known
        accels = ["kvm", "tcg"] if usable else ["tcg"]
    guest = Run(options, accels[0], image or f"/dev/fd/{fd}", fds)
    if guest.state == "noboot" and len(accels) > 1:
        said = bytes(guest.qemu).decode(errors="replace").splitlines()[-3:]
        report("KVM does not boot this kernel here; emulating it, which is slow", said)
        guest = Run(options, accels[1], image or f"/dev/fd/{fd}", fds)
        if guest.came_up and no_kvm:  # so it was not the kernel's fault
            with contextlib.suppress(OSError):
                no_kvm.write_text(known + line)
    return guest.result()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, usage=argparse.SUPPRESS, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add(
        "--kernel",
        default="",
        help="a release, a folder with an unpacked package or a built kernel",
    )
    add("--accel", default="auto", choices=["auto", "kvm", "tcg"], help="auto: KVM if it boots")
    add("--one-thread", action="store_true", help="emulate all CPUs in one thread: no races")
    add("--mem", default="1536M", help="the guest's memory (default 1536M)")
    add("--smp", type=int, default=2, help="CPUs (default 2)")
    add(
        "--tmpfs",
        default="60%",
        help="size limit of what the guest writes (default 60%% of memory)",
    )
    add("--timeout", type=float, default=0, metavar="S", help="limit for boot and command")
    add(
        "--boot-timeout",
        type=float,
        default=TCG_BOOT_S,
        metavar="S",
        help=f"limit for the boot without KVM (default {TCG_BOOT_S:.0f}; more on a busy machine)",
    )
    add("--share", action="append", default=[], metavar="DIR[:GUESTDIR]", help="share writable")
    add("--modprobe", action="append", default=[], metavar="MODULE", help="load a module first")
    add("--env", action="append", default=[], metavar="NAME[=VALUE]", help="pass a variable on")
    add("--cwd", default=os.getcwd(), help="where to run the command (default: here)")
    add("--append", default="", help="more for the kernel's command line")
    add("--qemu", default="qemu-system-x86_64", help=argparse.SUPPRESS)
    add("-v", "--verbose", action="store_true", help="QEMU's command, the console, times")
    add("command", nargs=argparse.REMAINDER, metavar="-- COMMAND ...")
    options = parser.parse_args()
    options.command = options.command[options.command[:1] == ["--"] :]
    if not options.command:
        parser.error("no command: tools/vm.py -- COMMAND [ARGUMENT ...]")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return run(options)
    except VmError as error:
        print(f"vm: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python's own flush at exit
        return 128 + signal.SIGPIPE


if __name__ == "__main__":
    sys.exit(main())
