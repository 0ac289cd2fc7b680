# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.cgroup_device: which devices the processes of a cgroup may open and make.

The C side is bpf_c/cgroup/cgroup_device.bpf.c.  A denied open(2) or mknod(2) fails with EPERM and
becomes an event; every access is counted per device.  A row without a device counts the accesses
to devices that the table has no room for.
"""

from __future__ import annotations

import os
import stat

from bpfkit.app.cgroup import CgroupApp
from bpfkit.app.lifecycle import main
from bpfkit.core.errors import InputError, UsageError
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable, Sequence
    from typing import Any

    from bpfkit.app.events import EventSource
    from bpfkit.core.cgroups import Cgroup
    from bpfkit.core.object import Object
    from bpfkit.show.rows import Event, Row, Verdict

#: BPF_DEVCG_ACC_MKNOD, _READ and _WRITE, in the letters of cgroup v1's devices.allow.
ACCESSES = {"m": 1, "r": 2, "w": 4}
#: BPF_DEVCG_DEV_BLOCK and _CHAR.
TYPES = {1: "block", 2: "char"}
ANY = 0xFFFFFFFF
ALL = 7
_MAX_RULES = 1024  # of the map

#: The demo's --deny; the loop devices' are never opened.
DENIED = ("/dev/zero", "/dev/full:w", "block 7:*:m")
#: What its client does, and the errno expected with these rules in its way: the demo's own cgroup,
#: and one below where an allow-list has only /dev/null and /dev/zero.
_P = 1  # EPERM
ATTEMPTS: tuple[tuple[tuple[Any, ...], int, int], ...] = (
    (("open", "/dev/null", os.O_RDWR), 0, 0),
    (("open", "/dev/zero", os.O_RDONLY), _P, _P),  # allowed below, denied above: both are asked
    (("open", "/dev/full", os.O_RDONLY), 0, _P),
    (("open", "/dev/full", os.O_WRONLY), _P, _P),
    (("mknod", stat.S_IFCHR, 1, 3), 0, 0),
    (("mknod", stat.S_IFCHR, 1, 5), _P, _P),
    (("mknod", stat.S_IFBLK, 8, 200), 0, _P),
    (("mknod", stat.S_IFBLK, 7, 200), _P, _P),
)
_CLIENT = f"""
import json, os, tempfile
def errno_of(what, first, *rest):
    try:
        if what == "open": os.close(os.open(first, *rest))
        else: os.mknod(directory + "/node", first | 0o600, os.makedev(*rest))
    except OSError as error: return error.errno
    if what == "mknod": os.unlink(directory + "/node")
    return 0
with tempfile.TemporaryDirectory() as directory:
    print(json.dumps([errno_of(*attempt) for attempt, _, _ in {ATTEMPTS!r}]))
"""


def letters(mask: int) -> str:
    """``rw`` for 6."""
    return "".join(letter for letter in "rwm" if mask & ACCESSES[letter])


def parse_rule(text: str) -> tuple[tuple[int, int, int], int]:
    """``PATH[:rwm]`` or ``char MAJOR:MINOR[:rwm]`` -> ((type, major, minor), mask).

    :raises InputError: there is no such device, or the text is no rule.
    """
    path, mask = text, ALL
    head, colon, tail = text.rpartition(":")
    letters_only = colon and tail and not set(tail) - set(ACCESSES)
    # A file's name may end like a rule.
    if letters_only and not os.path.exists(text):
        path, mask = head, sum({ACCESSES[letter] for letter in tail})
    if path.startswith(("char ", "block ")):
        kind, _, numbers = path.partition(" ")
        number = {name: value for value, name in TYPES.items()}[kind]
        try:
            words = [word.strip() for word in numbers.split(":")]
            # int() takes 1_0 and the digits of other scripts.
            if not all(word == "*" or (word.isascii() and word.isdigit()) for word in words):
                raise ValueError
            major, minor = (ANY if word == "*" else int(word) for word in words)
            if max(major, minor) > ANY:
                raise ValueError
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
        hint = ""
        if colon and os.path.exists(head):
            hint = f"accesses are letters of rwm, not {tail!r}"
        raise InputError(f"no device {path}", why=str(error.strerror), hint=hint) from None
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

    def check_options(self) -> None:
        super().check_options()
        options = self.options
        if options.check and (options.deny or options.allow):
            raise UsageError(
                "rules and --check do not go together", why="--check has rules of its own"
            )

    def setup(self) -> None:
        options = self.options
        own = bool(options.deny or options.allow)
        self._default = 0 if options.allow else ALL
        deny = options.deny if own or not self.wants_demo() else DENIED
        self.rules = make_rules(deny, options.allow, self._default)
        self.attach(self.load_program(default_mask=self._default, wide_rules=_wide(self.rules)))
        self._tried: list[tuple[int, list[int]]] = self.for_check([])
        self._below: Cgroup | None = None
        if self.wants_demo():
            words = [("deny", text) for text in deny] + [("allow", text) for text in options.allow]
            rules = " ".join(f"--{word} '{text}'" for word, text in words)
            self.note(f"the demo opens and makes devices with {rules}")
            if not own:
                self._make_allow_list()

    def _make_allow_list(self) -> None:
        """A cgroup below, where a second program has an allow-list."""
        from bpfkit import load
        from bpfkit.core.cgroups import Cgroup

        self._below = self.keep(Cgroup.new("allow-list", parent=self.group.path))
        loaded = self.keep(load(self.source, consts={"default_mask": 0, "wide_rules": 0}))
        for device, mask in make_rules((), ("/dev/null", "/dev/zero"), 0).items():
            loaded["rules"][device] = mask
        self.keep(loaded.programs["cgroup_device"].attach_cgroup(self._below.path))

    def prepare(self, loaded: Object) -> None:
        for device, mask in self.rules.items():
            loaded["rules"][device] = mask

    def demo(self) -> None:
        groups = [self.group, *filter(None, [self._below])]
        for number, group in enumerate(groups):
            found = self._attempt(group)
            self._tried.append((number, found))
            refused = sum(errno == _P for errno in found)
            where = "a cgroup below, with an allow-list," if number else "the cgroup"
            self.note(f"{refused} of {count_of(len(found), 'attempt')} from {where} got EPERM")

    def _attempt(self, group: Cgroup) -> list[int]:
        """The errno of each of ATTEMPTS in a cgroup."""
        import sys
        from json import loads

        from bpfkit.core.errors import BpfkitError

        done = group.run([sys.executable, "-I", "-S", "-c", _CLIENT])
        try:
            return [int(errno) for errno in loads(done.stdout)]
        except ValueError:
            raise BpfkitError("the demo's client failed", why=done.stderr[-200:]) from None

    def rows(self) -> list[Row]:
        rows = []
        for device, count in sorted(self.object["accesses"].items(), key=lambda item: item[0]):
            rows.append(
                {**self.device_fields(device), "allowed": count.allowed, "denied": count.denied}
            )
        # What was counted for the whole cgroup and not for a device: the table was full.
        total = self.object["total"].get(self.group.id)  # None: the cgroup was removed
        rest = {
            name: getattr(total, name, 0) - sum(row[name] for row in rows) for name in self.counters
        }
        if len(rows) >= self.object["accesses"].max_entries and any(rest.values()):
            rows.append({"type": None, "major": None, "minor": None, "path": None, **rest})
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

    def conclusion(self, rows: list[Row]) -> str:
        denied = sum(row["denied"] for row in rows)
        return (
            f"seen: {count_of(denied, 'access', 'accesses')} denied: the program is asked "
            "before the device's driver"
        )

    def verify(self) -> Iterable[Verdict]:
        refused = 0
        for number, found in self._tried:
            where = "below" if number else "here"
            for (attempt, *expected), errno in zip(ATTEMPTS, found, strict=True):
                # What the program below refuses is not this one's: it is asked all the same.
                refused += expected[0] == _P
                good = errno == expected[number]
                yield good, f"{where}: {_words(attempt)}: errno {errno}"
        denied = sum(row["denied"] for row in self.rows())
        yield denied == refused, f"{denied} denied accesses counted, {refused} were attempted"
        # The client opens more: what it prints on, for one.
        total = self.object["total"][self.group.id]
        allowed = sum(row["allowed"] for row in self.rows())
        good = (total.allowed, total.denied) == (allowed, denied)
        yield good, f"the cgroup's own total: {total.allowed} allowed, {total.denied} denied"


def make_rules(
    deny: Sequence[str], allow: Sequence[str], default: int
) -> dict[tuple[int, int, int], int]:
    """(type, major, minor) -> mask of the accesses allowed; a denial goes before an allowance.

    :raises InputError: a text is no rule, or there are more than the map can hold.
    """
    rules: dict[tuple[int, int, int], int] = {}
    for text in allow:
        device, mask = parse_rule(text)
        rules[device] = rules.get(device, default) | mask
    for text in deny:
        device, mask = parse_rule(text)
        rules[device] = rules.get(device, default) & ~mask
    if len(rules) > _MAX_RULES:
        raise InputError(f"{len(rules)} devices have rules", why=f"there is room for {_MAX_RULES}")
    return rules


def _wide(rules: dict[tuple[int, int, int], int]) -> bool:
    """Whether a rule is about more than one device."""
    return any(ANY in device for device in rules)


def _words(attempt: tuple[Any, ...]) -> str:
    """An attempt, for people."""
    if attempt[0] == "open":
        ways = {os.O_RDONLY: "read", os.O_WRONLY: "write", os.O_RDWR: "read, write"}
        return f"open {attempt[1]} to {ways[attempt[2]]}"
    kind = "block" if attempt[1] == stat.S_IFBLK else "char"
    return f"mknod {kind} {attempt[2]}:{attempt[3]}"


if __name__ == "__main__":
    raise SystemExit(main(CgroupDevice))
