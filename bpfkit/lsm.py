# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.lsm: files below a directory may not be opened or executed; sockets are logged.

The C side is bpf_c/trace/lsm.bpf.c.  The rules hold for the processes that are traced: the demo's,
a command's, those of a cgroup.
"""

from __future__ import annotations

import os

from bpfkit.app.lifecycle import main
from bpfkit.app.trace import TraceApp
from bpfkit.core.errors import InputError, UnsupportedError, UsageError, errno_text
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable
    from typing import Any

    from bpfkit.app.events import EventSource
    from bpfkit.core.object import Object
    from bpfkit.show.rows import Event, Row, Verdict

#: enum action and enum what of the C side.
DENY_OPEN, DENY_EXEC = 1, 2
WHAT = ("open", "exec", "socket", "connect")


def place(path: str) -> tuple[int, int]:
    """(device, inode) of a file or directory in the kernel's own structures: the superblock's
    device, major << 20 | minor, and i_ino.

    On overlayfs and btrfs stat(2) answers with numbers of other devices.  Source: proc(5), fdinfo
    (``ino``: kernel 5.14) and mountinfo.

    :raises InputError: there is none.
    """
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"no file {path}", why=errno_text(error.errno or 0)) from None
    try:
        status = os.fstat(fd)
        with open(f"/proc/self/fdinfo/{fd}") as info:
            fields = dict(line.split(":", 1) for line in info)
    finally:
        os.close(fd)
    device = os.major(status.st_dev) << 20 | os.minor(status.st_dev)
    with open("/proc/self/mountinfo", errors="surrogateescape") as mounts:
        for line in mounts:
            mount, _, number = line.split(None, 3)[:3]
            if mount == fields["mnt_id"].strip():
                major, _, minor = number.partition(":")
                device = int(major) << 20 | int(minor)
    return device, int(fields.get("ino", status.st_ino))


class Lsm(TraceApp):
    """Files below a directory may not be opened or executed; sockets and connects are logged."""

    name = "lsm"
    source = "trace/lsm.bpf.c"
    needs = ("BPF", "PERFMON", "MAC_ADMIN")
    protects = True
    epilog = (
        "PATH is a file, or a directory with all that is below it. The file that is opened is "
        "checked, not its name."
    )

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        add = parser.add_argument
        many: dict[str, Any] = {"action": "append", "default": []}
        add("--deny-open", metavar="PATH", **many, help="refuse to open this (EPERM)")
        add("--deny-exec", metavar="PATH", **many, help="refuse to execute this (EPERM)")
        add("--log-opens", action="store_true", help="an event for each open, too")

    def check_options(self) -> None:
        super().check_options()
        options = self.options
        given = bool(options.deny_open or options.deny_exec)
        if options.check and given:
            raise UsageError("--check takes no rules", why="it verifies those of the demo")
        if options.no_demo and given and options.pid is None and options.cgroup is None:
            raise UsageError(
                "rules for all processes need --cgroup",
                why="they would hold for this program and for your shell, too",
                hint="--cgroup with the root of the hierarchy does it all the same",
            )

    def setup(self) -> None:
        self._require_lsm()
        options = self.options
        if self.wants_demo():
            self._make_files()
        self.rules: dict[tuple[int, int], int] = {}
        for path in options.deny_open:
            self.rules[place(path)] = self.rules.get(place(path), 0) | DENY_OPEN
        for path in options.deny_exec:
            self.rules[place(path)] = self.rules.get(place(path), 0) | DENY_EXEC
        self.prepare(self.load_traced(log_opens=options.log_opens))
        for program in self.object.programs.values():
            self.keep(program.attach_trace())
        self.tried: list[dict[str, str]] = self.for_check([])

    @staticmethod
    def _require_lsm() -> None:
        """Raise UnsupportedError if programs would load, attach and do nothing."""
        from bpfkit.core.features.pseudofs import security_modules

        try:
            active = security_modules()
        except UnsupportedError:
            return  # the kernel's answer to loading says the rest
        if "bpf" not in active:
            raise UnsupportedError(
                "LSM programs do nothing on this machine",
                why=f"bpf is not among the security modules ({','.join(active)})",
                hint=f"boot with lsm={','.join([*active, 'bpf'])} (CONFIG_BPF_LSM)",
            )

    def prepare(self, loaded: Object) -> None:
        for (device, inode), actions in self.rules.items():
            key = device.to_bytes(4, "little") + bytes(4) + inode.to_bytes(8, "little")
            loaded["places"].update_raw(key, actions.to_bytes(4, "little"))

    def _make_files(self) -> None:
        """A directory with a secret, a public file beside it, and a program that may not run."""
        import shutil
        import tempfile

        home = self.keep(_Directory(tempfile.mkdtemp(prefix="bpfkit-lsm-")))
        self.home = home.path
        os.makedirs(f"{self.home}/private/deep")
        os.mkdir(f"{self.home}/bin")
        for name in ("private/deep/secret", "public", "single"):
            with open(f"{self.home}/{name}", "w") as file:
                file.write(f"{name}\n")
        shutil.copy("/bin/true", f"{self.home}/bin/tool")
        os.symlink(f"{self.home}/private/deep/secret", f"{self.home}/link")
        self.options.deny_open = [f"{self.home}/private", f"{self.home}/single"]
        self.options.deny_exec = [f"{self.home}/bin"]

    def demo(self) -> None:
        """Processes of the cgroup, and this one, which the rules are not about, try the files."""
        if self.is_first_demo():
            self.note(
                "cat may read the public file, not the secret, by no name; the tool may not "
                "run; this process may read both"
            )
        home = self.home
        seen = {}
        for name in ("public", "private/deep/secret", "single", "link"):
            done = self.run_traced(["cat", f"{home}/{name}"])
            seen[name] = done.stdout.strip() or done.stderr.strip().rpartition(": ")[2]
        os.rename(f"{home}/private", f"{home}/renamed")
        done = self.run_traced(["cat", f"{home}/renamed/deep/secret"])
        seen["renamed"] = done.stderr.strip().rpartition(": ")[2]
        os.rename(f"{home}/renamed", f"{home}/private")
        done = self.run_traced(["sh", "-c", f"{home}/bin/tool"])
        seen["tool"] = str(done.returncode)
        with open(f"{home}/private/deep/secret") as file:
            seen["outside"] = file.read().strip()
        script = "import socket; socket.socket().connect_ex(('127.0.0.1', 9))"
        self.run_traced(["/usr/bin/python3", "-I", "-S", "-c", script])
        self.tried.append(seen)

    def events(self) -> EventSource:
        return self.source_of("events", self._event, lambda: self.object["lost"][0])

    def _event(self, record: Any) -> Event:
        from _socket import AF_INET, AF_INET6, inet_ntop

        from bpfkit.app.events import unix_seconds
        from bpfkit.show.rows import Event

        kind = WHAT[record.what]
        fields: dict[str, Any] = {"pid": record.pid, "comm": record.comm}
        if kind in ("open", "exec"):
            fields["file"] = record.name
        elif kind == "socket":
            fields |= {"family": record.family, "type": record.type, "proto": record.protocol}
        else:
            data = bytes(record.address)
            size = {AF_INET: 4, AF_INET6: 16}.get(record.family, 0)
            fields["family"] = record.family
            fields["address"] = inet_ntop(record.family, data[:size]) if size else None
            fields["port"] = record.port if size else None
        fields["result"] = "denied" if record.result else "allowed"
        return Event(kind, unix_seconds(record.time_ns), fields)

    def conclusion(self, rows: list[Row]) -> str:
        return "seen: EPERM from the program, whatever the file's permissions; only in the cgroup"

    def verify(self) -> Iterable[Verdict]:
        """What cat, sh and this process got."""
        denied = "Operation not permitted"
        for seen in self.tried:
            yield seen["public"] == "public", f"the public file: {seen['public']!r}"
            for name in ("private/deep/secret", "link", "renamed"):
                yield seen[name] == denied, f"the secret by {name}: {seen[name]}"
            yield seen["single"] == denied, f"the file that a rule names: {seen['single']}"
            yield seen["tool"] == "126", f"the tool: sh says {seen['tool']} (126: cannot execute)"
            good = seen["outside"] == "private/deep/secret"
            yield good, "a process outside the cgroup reads the secret"
        assert self.channel is not None
        channel = self.channel
        wanted = len(self.tried)

        def connects() -> int:
            return sum(e.kind == "connect" and e.fields["port"] == 9 for e in channel.waiting)

        channel.wait(lambda: connects() >= wanted)
        yield connects() == wanted, f"{count_of(connects(), 'connect')} to port 9 logged"
        yield channel.lost == 0, f"{count_of(channel.lost, 'event')} lost"


class _Directory:
    """A directory of the demo, removed at the end."""

    def __init__(self, path: str) -> None:
        self.path = path

    def close(self) -> None:
        from shutil import rmtree

        rmtree(self.path, ignore_errors=True)


if __name__ == "__main__":
    raise SystemExit(main(Lsm))
