# SPDX-License-Identifier: Apache-2.0
"""python -m bpfkit.cgroup_device: which devices the processes of a cgroup may open and make.

The C side is bpf_c/cgroup/cgroup_device.bpf.c.  A denied open(2) or mknod(2) fails with EPERM and
becomes an event; every access is counted per device.
"""

from __future__ import annotations

import os
import stat

from bpfkit.app.cgroup import CgroupApp
from bpfkit.app.lifecycle import main
from bpfkit.core.errors import InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable
    from typing import Any

    from bpfkit.app.events import EventSource
    from bpfkit.core.object import Object
    from bpfkit.show.rows import Event, Row, Verdict

#: BPF_DEVCG_ACC_MKNOD, _READ and _WRITE, in the letters of cgroup v1's devices.allow.
ACCESSES = {"m": 1, "r": 2, "w": 4}
#: BPF_DEVCG_DEV_BLOCK and _CHAR.
TYPES = {1: "block", 2: "char"}
ANY = 0xFFFFFFFF
ALL = 7


def letters(mask: int) -> str:
    """``rw`` for 6."""
    return "".join(letter for letter in "rwm" if mask & ACCESSES[letter])


def parse_rule(text: str) -> tuple[tuple[int, int, int], int]:
    """``PATH[:rwm]`` or ``char MAJOR:MINOR[:rwm]`` -> ((type, major, minor), mask).

    :raises InputError: there is no such device, or the text is no rule.
    """
    path, mask = text, ALL
    head, colon, tail = text.rpartition(":")
    if colon and tail and not set(tail) - set(ACCESSES):
        path, mask = head, sum({ACCESSES[letter] for letter in tail})
    if path.startswith(("char ", "block ")):
        kind, _, numbers = path.partition(" ")
        number = {name: value for value, name in TYPES.items()}[kind]
        try:
            major, minor = (
                ANY if word.strip() == "*" else int(word) for word in numbers.split(":")
            )
        except ValueError:
            raise InputError(
                f"{text!r} is not a device", why=f"write {kind} MAJOR:MINOR, * for any"
            ) from None
        if major == ANY and minor != ANY:
            raise InputError(f"{text!r} is not a device", why="a minor number needs its major")
        return (number, major, minor), mask
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(f"no device {path}", why=str(error.strerror)) from None
    kinds = {stat.S_IFBLK: 1, stat.S_IFCHR: 2}
    found = kinds.get(stat.S_IFMT(status.st_mode))
    if found is None:
        raise InputError(f"{path} is not a device", why="it is neither a block nor a char device")
    return (found, os.major(status.st_rdev), os.minor(status.st_rdev)), mask


class CgroupDevice(CgroupApp):
    """Which devices the processes of a cgroup may open; denied accesses as events."""

    protects = True
    name = "cgroup_device"
    source = "cgroup/cgroup_device.bpf.c"
    counters = ("allowed", "denied")
    demo_namespace = False
    epilog = (
        "A rule is PATH[:rwm] (read, write, mknod), 'char MAJOR:MINOR[:rwm]' or 'block …', with * "
        "for any number. With --allow, every device without a rule is denied."
    )

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        add = parser.add_argument
        add("--deny", metavar="RULE", action="append", default=[], help="refuse these accesses")
        add("--allow", metavar="RULE", action="append", default=[], help="refuse all but these")

    def setup(self) -> None:
        options = self.options
        demo = options.cgroup is None and not options.command
        if demo and not options.deny and not options.allow:
            options.deny = ["/dev/zero"]
        self.rules: dict[tuple[int, int, int], int] = {}
        default = 0 if options.allow else ALL
        for text in options.allow:
            device, mask = parse_rule(text)
            self.rules[device] = self.rules.get(device, default) | mask
        for text in options.deny:
            device, mask = parse_rule(text)
            self.rules[device] = self.rules.get(device, default) & ~mask
        self.attach(self.load_program(default_mask=default))
        self.tried: list[tuple[str, int]] = self.for_check([])

    def prepare(self, loaded: Object) -> None:
        for device, mask in self.rules.items():
            loaded["rules"][device] = mask

    def demo(self) -> None:
        for path in ("/dev/zero", "/dev/null"):
            done = self.run_inside(["head", "-c", "1", path])
            self.tried.append((path, done.returncode))

    def rows(self) -> list[Row]:
        rows = []
        for device, count in sorted(self.object["accesses"].items(), key=lambda item: item[0]):
            rows.append(
                {**self.device_fields(device), "allowed": count.allowed, "denied": count.denied}
            )
        return rows

    @staticmethod
    def device_fields(device: Any) -> dict[str, Any]:
        """The fields that name a device, the path in /dev if sysfs knows it."""
        kind = TYPES.get(device.type, str(device.type))
        path = None
        try:
            target = os.readlink(f"/sys/dev/{kind}/{device.major}:{device.minor}")
            path = f"/dev/{os.path.basename(target)}"
        except OSError:
            pass
        return {"type": kind, "major": device.major, "minor": device.minor, "path": path}

    def events(self) -> EventSource:
        from bpfkit.app.events import from_buffer

        buffer = self.keep(self.object["refused"].open())
        return from_buffer(buffer, self._refusal, lost=lambda: self.object["lost"][0])

    def _refusal(self, record: Any) -> Event:
        from bpfkit.app.events import unix_seconds
        from bpfkit.show.rows import Event

        fields = {
            **self.device_fields(record.device),
            "access": letters(record.access),
            "pid": record.pid,
            "comm": record.comm,
        }
        return Event("denied", unix_seconds(record.time_ns), fields)

    def verify(self) -> Iterable[Verdict]:
        for path, status in self.tried:
            yield (status != 0) == (path == "/dev/zero"), f"head {path}: status {status}"


if __name__ == "__main__":
    raise SystemExit(main(CgroupDevice))
