# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.iter: tables of tasks, TCP sockets, map elements and BPF links.

The C side is bpf_c/trace/iter.bpf.c.
"""

from __future__ import annotations

import os

from bpfkit.app.base import App
from bpfkit.core.errors import UnsupportedError, UsageError
from bpfkit.core.words import count_of
from bpfkit.iter.tables import Tables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable
    from subprocess import Popen
    from typing import Any

    from bpfkit.core.maps.base import Map
    from bpfkit.core.object import Object
    from bpfkit.show.rows import Row, Verdict

KINDS = ("task", "tcp", "link", "map")
#: Rows of a table that the demo prints.
_SHORT = 6


class Iter(App):
    """Tables of tasks, TCP sockets, map elements and BPF links, by BPF iterators."""

    name = "iter"
    expects = "nothing is sent: a program in the kernel writes tables of the kernel's own objects"
    source = "trace/iter.bpf.c"
    needs = ("BPF", "PERFMON")
    demo_rounds = 1
    demo_in_background = False
    has_live_view = False
    epilog = (
        "The tables: task (processes), tcp (sockets of all network namespaces), link (BPF links), "
        "map (the elements of the map that --map names). Without a table the demo prints the "
        "beginning of each; -c 1 prints a table once, without -c it is printed each interval."
    )

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        from bpfkit.app.options import positive

        add = parser.add_argument
        add("table", nargs="?", choices=KINDS, help="the table to print (default: a demo)")
        add("--map", metavar="ID", type=positive, help="the map whose elements are printed")

    def check_options(self) -> None:
        options = self.options
        if options.map is not None and options.table is None:
            options.table = "map"
        if options.table == "map" and options.map is None:
            raise UsageError("the table map needs --map ID", why="`bpftool map` lists the ids")
        if options.map is not None and options.map >> 32:
            raise UsageError(f"no map {options.map}", why="an id has 32 bits")
        if options.map is not None and options.table != "map":
            raise UsageError(f"--map and the table {options.table} do not go together")
        if options.check and options.table is not None:
            raise UsageError("--check takes no table", why="it verifies all of them")
        if options.table is None and options.no_demo:
            raise UsageError("--no-demo needs a table")

    def wants_demo(self) -> bool:
        return super().wants_demo() and self.options.table is None

    def setup(self) -> None:
        from bpfkit.core.types.btf import vmlinux

        btf = vmlinux()
        self._flags: list[str] = []
        if btf is not None and btf.find("bpf_iter__bpf_link", "struct") is None:
            self._flags = ["-DNO_LINK_ITER"]
        self.objects: dict[str, Object] = {}
        self._only = ""
        asked = self.options.table
        for kind in KINDS if asked is None else (asked,):
            self._load_table(kind)
        self.tables = Tables(self.objects)
        if self.options.table is None:
            self._make_example()

    def _load_table(self, kind: str) -> None:
        """Load the table's program; a demo goes on without one that this kernel refuses.

        :raises UnsupportedError: the table was asked for, or the kernel refuses all.
        """
        self._only = kind
        try:
            if kind == "link" and self._flags:
                raise UnsupportedError(
                    "cannot list BPF links", why="this kernel has no iterator bpf_link (5.19)"
                )
            self.objects[kind] = self.load()
        except UnsupportedError as error:
            if self.options.table is not None or (kind == KINDS[-1] and not self.objects):
                raise
            self.note(f"no table {kind}: {error}")

    def load_options(self) -> dict[str, Any]:
        return {"programs": [self._only], "cflags": self._flags}

    def _make_example(self) -> None:
        """A map with three elements, and a namespace with a listening socket."""
        import socket

        from bpfkit.core.children import die_with_parent
        from bpfkit.core.maps.base import Map

        self.example: Map = self.keep(Map.create("hash", 4, 8, 16, name="example"))
        for key in range(3):
            self.example[key] = key * 100
        namespace = self.keep(self.place.new_namespace("iter"))
        self.netns = namespace.inode
        self.listener = self.keep(namespace.socket(socket.AF_INET, socket.SOCK_STREAM))
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen()
        # The namespace is found by a process that is in it.
        sleeper = namespace.popen(["sleep", "1000"], preexec_fn=die_with_parent())
        self.keeper = self.keep(_Child(sleeper))

    def rows(self) -> list[Row]:
        table = self.options.table
        if table is not None:
            return self._table(table)
        rows: list[Row] = []
        for kind in self.objects:
            found = self._table(kind)
            rows += found if self.options.check else found[:_SHORT]
        return rows

    def _table(self, kind: str) -> list[Row]:
        if kind == "task":
            found = self.tables.tasks()
        elif kind == "tcp":
            found = self.tables.tcp()
        elif kind == "link":
            found = self.tables.links()
        else:
            number = self.options.map
            found = self.tables.elements(self.example.id if number is None else number)
        return [{"table": kind, **row} for row in found]

    def lines(self, rows: list[Row]) -> Iterable[str]:
        """A table for each kind, with a blank line between."""
        first = True
        for kind in KINDS:
            part = [
                {name: value for name, value in row.items() if name != "table"}
                for row in rows
                if row["table"] == kind
            ]
            if not part:
                continue
            if not first:
                yield ""
            first = False
            if self.options.table is None:
                yield f"{kind}:"
            yield from super().lines(part)

    def conclusion(self, rows: list[Row]) -> str:
        return (
            f"seen: {count_of(len(rows), 'row')}, written by a program that the kernel runs "
            "once an element"
        )

    def verify(self) -> Iterable[Verdict]:
        """Against /proc, the sockets' own names, bpftool's ids, and the map's elements."""
        judges = {
            "task": self._verify_tasks,
            "tcp": self._verify_tcp,
            "link": self._verify_links,
            "map": self._verify_elements,
        }
        return [judges[kind]() for kind in self.objects]

    def _verify_tasks(self) -> Verdict:
        seen = {row["pid"] for row in self.tables.tasks()}
        pids = {int(name) for name in os.listdir("/proc") if name.isdigit()}
        # Processes come and go meanwhile, and those of a sandbox may be hidden from both.
        stable = {pid for pid in pids if os.path.exists(f"/proc/{pid}/exe") and _mine(pid)}
        missing = stable - seen
        return (
            len(seen) > 1 and not missing,
            f"task: {count_of(len(seen), 'process')}, "
            f"{len(missing)} of /proc's {len(stable)} missing",
        )

    def _verify_tcp(self) -> Verdict:
        port = self.listener.getsockname()[1]
        found = [
            row
            for row in self.tables.tcp()
            if row["netns"] == self.netns and row["sport"] == port and row["state"] == "LISTEN"
        ]
        return len(found) == 1, f"tcp: the listener of another namespace, port {port}"

    def _verify_links(self) -> Verdict:
        with self.objects["link"].programs["link"].attach_iter() as link:
            number = link.id
            ids = {row["id"] for row in self.tables.links()}
        return (
            number in ids,
            f"link: {count_of(len(ids), 'link')}, with {number}, which is one of ours",
        )

    def _verify_elements(self) -> Verdict:
        values = {row["key"]: row["value"] for row in self.tables.elements(self.example.id)}
        wanted = {
            key.to_bytes(4, "little").hex(): (key * 100).to_bytes(8, "little").hex()
            for key in range(3)
        }
        return (
            values == wanted,
            f"map: {len(values)} elements of 3, keys and values equal",
        )


class _Child:
    """A process of the demo, killed at the end."""

    def __init__(self, process: Popen[Any]) -> None:
        self._process = process

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def _mine(pid: int) -> bool:
    """Whether this process may inspect another, as a sandbox's own may not be."""
    try:
        os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return False
    return True
