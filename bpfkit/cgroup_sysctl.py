# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.cgroup_sysctl: which kernel parameters a cgroup's processes read and write.

The C side is bpf_c/cgroup/cgroup_sysctl.bpf.c.  A denied access fails with EPERM; a write to a
parameter of ``--set`` succeeds and writes that value instead.  What a read returns cannot be
changed: the kernel has no such hook.
"""

from __future__ import annotations

import os

from bpfkit.app.cgroup import CgroupApp
from bpfkit.app.lifecycle import main
from bpfkit.core.errors import InputError, UnsupportedError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable
    from typing import Any

    from bpfkit.app.events import EventSource
    from bpfkit.core.object import Object
    from bpfkit.show.rows import Event, Row, Verdict

#: enum action and enum flag of the C side.
DENY_READ, DENY_WRITE, SET = 1, 2, 4
NAME_TRUNCATED, OLD_TRUNCATED, NEW_TRUNCATED, OLD_UNKNOWN = 1, 2, 4, 8
NAME_LEN, VALUE_LEN = 128, 256

#: What the demo does, where there are no rules.
DENIED, REPLACED, VALUE = "net/ipv4/ip_forward", "net/ipv4/ip_default_ttl", "42"


def kernel_name(text: str) -> str:
    """``net/ipv4/ip_forward`` for that, ``net.ipv4.ip_forward`` or its path below /proc/sys.

    As in sysctl(8) the first separator decides: behind a slash, dots belong to names
    (``net/ipv4/conf/eth0.7/forwarding``), behind a dot slashes do.  A name that ends in a separator
    or in ``*`` is a directory and ends in a slash.
    """
    name = text.removeprefix("/proc/sys/").strip().removesuffix("*")
    first = next((char for char in name if char in "./"), "/")
    if first == ".":
        name = name.translate(str.maketrans("./", "/."))
    return name.lstrip("/")


def check_name(text: str) -> str:
    """The kernel's name of a parameter or directory that is there.

    :raises InputError: there is none, or the name is too long for a rule.
    """
    name = kernel_name(text)
    if os.path.isdir(f"/proc/sys/{name}") and name:
        name = name.rstrip("/") + "/"
    if not name or not os.path.exists(f"/proc/sys/{name}"):
        raise InputError(f"no kernel parameter {text}", hint=_nearest(name))
    if len(os.fsencode(name)) >= NAME_LEN:
        raise InputError(f"the name {text} is too long", why=f"a rule takes {NAME_LEN - 1} bytes")
    return name


def _nearest(name: str) -> str:
    import difflib

    directory, _, last = name.rstrip("/").rpartition("/")
    try:
        there = os.listdir(f"/proc/sys/{directory}")
    except OSError:
        return "`sysctl -a` lists them"
    near = difflib.get_close_matches(last, there, n=3, cutoff=0.5)
    if not near:
        return "`sysctl -a` lists them"
    prefix = directory.replace("/", ".")
    return "nearest: " + ", ".join(f"{prefix}.{word}" if prefix else word for word in near)


def shown(name: str) -> str:
    """A kernel's name with dots, as sysctl(8) prints it."""
    return name.translate(str.maketrans("./", "/."))


def takes_new_values() -> bool:
    """Whether the kernel writes what a program sets, and not what the process gave.

    Tried on a parameter of a network namespace of its own.  Linux 6.1, for one, does not: there an
    allowing program is 0 to __cgroup_bpf_run_filter_sysctl(), which takes the value only for 1.
    """
    from bpfkit.core.cgroups import Cgroup
    from bpfkit.core.kernel.asm import add, assemble, call, exit_, mov, r0, r2, r3, r10, st, u32
    from bpfkit.core.kernel.constants import attach_type
    from bpfkit.core.program import Program
    from bpfkit.net.links.netns import NetNS

    text = VALUE.encode() + b"\n"
    insns = assemble(
        st(u32, r10 - 8, int.from_bytes(text, "little")),
        mov(r2, r10),
        add(r2, -8),
        mov(r3, len(text)),
        call("sysctl_set_new_value"),  # on a read: -EINVAL
        mov(r0, 1),
        exit_(),
    )
    with (
        Program.from_insns("CGROUP_SYSCTL", insns, name="set_value") as program,
        Cgroup.new("sysctl-probe") as group,
        NetNS.new() as ns,
        program.attach_cgroup(group.path, attach_type=attach_type("CGROUP_SYSCTL")),
    ):
        ns.run(group.run, ["tee", f"/proc/sys/{REPLACED}"], input="99\n")
        return ns.sysctl(shown(REPLACED)) == VALUE


class CgroupSysctl(CgroupApp):
    """Which kernel parameters (sysctl) the processes of a cgroup read and write; rules for them."""

    protects = True
    rule_options = ("deny", "allow", "set")
    name = "cgroup_sysctl"
    source = "cgroup/cgroup_sysctl.bpf.c"
    counters = ("reads", "writes", "denied", "replaced")
    epilog = (
        "NAME is net.ipv4.ip_forward or net/ipv4/ip_forward; a directory (net.ipv4.) stands for "
        "all below it, the innermost rule counts. --deny NAME:r or NAME:w denies only reads or "
        "writes. What reads return cannot be changed. --set is refused where the kernel ignores it."
    )

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        add = parser.add_argument
        add(
            "--deny",
            metavar="NAME[:rw]",
            action="append",
            default=[],
            help="refuse to read and to write this parameter (EPERM)",
        )
        add(
            "--allow",
            metavar="NAME[:rw]",
            action="append",
            default=[],
            help="exempt a parameter from the --deny of its directory",
        )
        add(
            "--set",
            metavar="NAME=VALUE",
            action="append",
            default=[],
            help="whatever is written to this parameter, write VALUE",
        )
        add("--no-events", action="store_true", help="count only: the values are not read")

    def setup(self) -> None:
        options = self.options
        if self.demo_rules:
            options.deny = [DENIED]
            options.set = [f"{REPLACED}={VALUE}"]
        ignored = bool(options.set) and not takes_new_values()
        why = "this kernel ignores bpf_sysctl_set_new_value() and writes what the process gave"
        if ignored and not self.demo_rules:
            raise UnsupportedError("--set has no effect here", why=why)
        #: What ip_default_ttl is behind the demo's write of 99.
        self._written = "99" if ignored else VALUE
        if ignored:
            options.set = []
            self.note(f"{why}: the demo sets no value")
        self.rules: dict[str, int] = {}
        self.values: dict[str, bytes] = {}
        for text in options.deny:
            name, flags = self._rule(text)
            self.rules[name] = self.rules.get(name, 0) | flags
        for text in options.allow:
            name, flags = self._rule(text)
            self.rules[name] = self.rules.get(name, 0) & ~flags
        for text in options.set:
            self._add_value(text)
        directories = any(name.endswith("/") for name in self.rules)
        events = not self.options.no_events
        self.attach(self.load_program(with_directories=directories, with_events=events))
        self.tried: list[tuple[str, str, str]] = self.for_check([])

    @staticmethod
    def _rule(text: str) -> tuple[str, int]:
        """``NAME[:rw]`` -> the kernel's name, DENY_READ | DENY_WRITE."""
        head, colon, tail = text.rpartition(":")
        flags = DENY_READ | DENY_WRITE
        if colon and tail in ("r", "w", "rw", "wr"):
            text = head
            flags = ("r" in tail and DENY_READ) | ("w" in tail and DENY_WRITE)
        return check_name(text), flags

    def _add_value(self, text: str) -> None:
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise UsageError(f"--set {text} has no value", why="write NAME=VALUE")
        known = check_name(name)
        if known.endswith("/"):
            raise InputError(f"{name} is a directory", why="--set takes one parameter")
        data = os.fsencode(value)
        if len(data) >= VALUE_LEN:
            raise InputError(
                f"the value of {name} is too long", why=f"a rule takes {VALUE_LEN - 1} bytes"
            )
        self.values[known] = data
        self.rules[known] = self.rules.get(known, 0) & ~DENY_WRITE | SET

    def prepare(self, loaded: Object) -> None:
        def padded(data: bytes, size: int) -> bytes:
            return data.ljust(size, b"\0")

        self.check_room(loaded["rules"], self.rules, "parameters with rules")
        self.check_room(loaded["sets"], self.values, "parameters with values")
        for name, data in self.values.items():
            value = len(data).to_bytes(4, "little") + data.ljust(VALUE_LEN, b"\n")
            loaded["sets"].update_raw(padded(os.fsencode(name), NAME_LEN), value)
        for name, flags in self.rules.items():
            key = padded(os.fsencode(name), NAME_LEN)
            loaded["rules"].update_raw(key, flags.to_bytes(4, "little"))

    def demo(self) -> None:
        """Write both parameters, read them back from outside the cgroup."""
        if self.demo_rules and self.is_first_demo():
            self.note(
                f"tee writes 1 to {shown(DENIED)}, which is denied (EPERM), and 99 to "
                f"{shown(REPLACED)}, which gets {self._written}"
            )
        for name, value in ((DENIED, "1"), (REPLACED, "99")):
            done = self.run_inside(["tee", f"/proc/sys/{name}"], input=f"{value}\n")
            with open(f"/proc/sys/{name}") as file:
                self.tried.append((name, done.stderr, file.read().strip()))
        done = self.run_inside(["cat", f"/proc/sys/{REPLACED}", f"/proc/sys/{DENIED}"])
        self.tried.append(("cat", done.stderr, done.stdout.strip()))

    def rows(self) -> list[Row]:
        rows = []
        for key, count in self.object["counts"].items():
            name = key.text if hasattr(key, "text") else str(key)
            rows.append(
                {
                    "name": shown(name),
                    "reads": count.reads,
                    "writes": count.writes,
                    "denied": count.denied,
                    "replaced": count.replaced,
                }
            )
        return sorted(rows, key=lambda row: str(row["name"]))

    def events(self) -> EventSource:
        from bpfkit.app.events import from_buffer

        lost = self.object["lost"]
        buffer = self.keep(self.object["accesses"].open())
        return from_buffer(buffer, self._access, lost=lambda: sum(lost.values()))

    def _access(self, record: Any) -> Event:
        from bpfkit.app.events import unix_seconds
        from bpfkit.show.rows import Event

        flags = record.flags
        known = not flags & OLD_UNKNOWN
        name = record.name.text if hasattr(record.name, "text") else record.name
        fields: dict[str, Any] = {
            "name": shown(name),
            "name_truncated": bool(flags & NAME_TRUNCATED),
            "old": record.old_value.rstrip("\n") if known else None,
            "old_truncated": bool(flags & OLD_TRUNCATED),
        }
        if record.is_write:
            fields["new"] = record.new_value.rstrip("\n")
            fields["new_truncated"] = bool(flags & NEW_TRUNCATED)
            if record.action == SET:
                fields["set"] = os.fsdecode(self.values[name])
        fields["result"] = {0: "allowed", SET: "replaced"}.get(record.action, "denied")
        fields |= {"pid": record.pid, "comm": record.comm}
        return Event("write" if record.is_write else "read", unix_seconds(record.time_ns), fields)

    def event_line(self, event: Event) -> str:
        """An access as text, without what is false or empty."""
        from bpfkit.show.rows import Event

        fields = {name: value for name, value in event.fields.items() if value not in (False, None)}
        return super().event_line(Event(event.kind, event.time, fields))

    def conclusion(self, rows: list[Row]) -> str:
        denied, replaced = (sum(row[field] for row in rows) for field in ("denied", "replaced"))
        return f"seen: {denied} denied, {replaced} written with another value than the process gave"

    def verify(self) -> Iterable[Verdict]:
        """What tee and cat say, and the values that the kernel has."""
        for name, said, value in self.tried:
            if name == DENIED:
                good = "not permitted" in said and value == "0"
                yield good, f"write of 1 to {shown(name)}: EPERM, the kernel has {value}"
            elif name == REPLACED:
                good = not said and value == self._written
                yield good, f"write of 99 to {shown(name)}: done, the kernel has {value}"
            else:
                good = value == self._written and "not permitted" in said
                yield good, f"reads: {shown(REPLACED)} is {value}, {shown(DENIED)} EPERM"


if __name__ == "__main__":
    raise SystemExit(main(CgroupSysctl))
