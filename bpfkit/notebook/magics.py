# SPDX-License-Identifier: Apache-2.0
"""The magics: ``%%bpf``, ``%bpf_ls``, ``%bpf_close``.

An object that a cell made stays open until the cell runs again, ``%bpf_close`` closes it, or the
notebook's kernel ends.  While the extension is loaded the kernel counts the runs of all programs
(BPF_ENABLE_STATS, Linux 5.8), which costs a few nanoseconds a run.
"""

from __future__ import annotations

import os
from argparse import ArgumentParser
from shlex import split

from IPython.core.error import UsageError

from bpfkit.core.compile.source import Source
from bpfkit.core.errors import BpfkitError, InputError
from bpfkit.core.kernel import syscall
from bpfkit.core.object import load
from bpfkit.net.links.interfaces import Interface
from bpfkit.show.view import Table, View

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from bpfkit.core.object import Object

__all__ = ["BpfMagics"]


class _Parser(ArgumentParser):
    """Errors as exceptions: a notebook must not exit."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"%%bpf: {message}")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise UsageError((message or "").strip() or "%%bpf [NAME] [-i IF] [-D NAME=VALUE]")


def _parser() -> ArgumentParser:
    parser = _Parser(prog="%%bpf", add_help=False)
    parser.add_argument("name", nargs="?", default="", help="variable of the object")
    parser.add_argument("-i", "--interface", action="append", default=[], metavar="IF")
    parser.add_argument("-D", dest="defines", action="append", default=[], metavar="NAME=VALUE")
    return parser


class _Made:
    """What one cell made."""

    __slots__ = ("cell", "name", "object", "variables")

    def __init__(self, cell: str, name: str, made: Object, variables: list[str]) -> None:
        self.cell = cell
        self.name = name
        self.object = made
        self.variables = variables


class BpfMagics:
    """State of one notebook: what its cells have made."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self._made: list[_Made] = []
        self._stats = -1
        try:
            self._stats = syscall.enable_stats()
        except OSError:
            pass  # before 5.8, or without privileges: runs are not counted

    def register(self) -> None:
        """Make the magics known to the shell."""
        self.shell.register_magic_function(self.bpf, "cell", "bpf")
        self.shell.register_magic_function(self.bpf_ls, "line", "bpf_ls")
        self.shell.register_magic_function(self.bpf_close, "line", "bpf_close")

    # --- magics -----------------------------------------------------------------------------

    def bpf(self, line: str, cell: str) -> None:
        """Compile and load the cell's C; its programs and maps become variables.

        ``%%bpf [NAME] [-i IF] [-D NAME=VALUE]``: NAME becomes the object, ``-i`` attaches every
        program that an interface takes, ``-D`` defines macros.
        """
        words = _parser().parse_args(split(line))
        if words.name and not words.name.isidentifier():
            raise UsageError(f"%%bpf: {words.name!r} cannot be the name of a variable")
        indexes = [Interface.find(interface).index for interface in words.interface]
        key = self._cell_id()
        # Line 1 of the cell is the magic's own: clang counts as the notebook does.
        source = Source.from_text("\n" + cell, f"In[{self.shell.execution_count}]")
        flags = [f"-D{define}" for define in words.defines]
        # The cell's previous object goes first: it may hold the interface.
        self._close(
            [
                made
                for made in self._made
                if (key and made.cell == key) or (words.name and made.name == words.name)
            ]
        )
        found = load(source, cflags=flags)
        try:
            for interface, index in zip(words.interface, indexes, strict=True):
                _attach(found, interface, index)
        except BaseException:
            found.close()
            raise
        variables = {**found.programs, **found.maps}
        taken = {name: value for name, value in variables.items() if name.isidentifier()}
        if words.name:
            taken[words.name] = found
        # A cell without an id of its own (a terminal) replaces whatever has its variables.
        if not key:
            self._close([made for made in self._made if set(made.variables) & set(taken)])
        self._made.append(_Made(key, words.name, found, list(taken)))
        self.shell.push(taken)
        from IPython.display import display

        display(found)

    def bpf_ls(self, line: str) -> Listing:
        """What the cells of this notebook have made and not closed."""
        rows = []
        for made in self._made:
            links = [link for program in made.object.programs.values() for link in program.links]
            rows.append(
                [
                    made.name or "-",
                    made.object.name,
                    ", ".join(made.object.programs),
                    ", ".join(made.object.maps),
                    ", ".join(f"{link.kind} {link.target}" for link in links),
                ]
            )
        titles = ["name", "cell", "programs", "maps", "attached"]
        note = "" if rows else "No cell has anything open."
        return Listing(View("Objects of this notebook", tables=[Table(titles, rows)], note=note))

    def bpf_close(self, line: str) -> None:
        """Close the objects of these names, or of these programs or maps; all without a name."""
        names = line.split()
        chosen = [
            made
            for made in self._made
            if not names or set(names) & {made.name, made.object.name, *made.variables}
        ]
        for name in names:
            if not any(name in (m.name, m.object.name, *m.variables) for m in chosen):
                known = [m.name or m.object.name for m in self._made]
                raise InputError(
                    f"no cell made {name!r}", why=f"there is {', '.join(known) or 'nothing'}"
                )
        self._close(chosen)

    # --- keeping ----------------------------------------------------------------------------

    def close_all(self) -> None:
        """Close everything, and let the kernel stop counting."""
        self._close(list(self._made))
        fd, self._stats = self._stats, -1
        if fd >= 0:
            os.close(fd)

    def _close(self, chosen: list[_Made]) -> None:
        for made in chosen:
            self._made.remove(made)
            made.object.close()
            for name in made.variables:  # a closed map under a living name would only confuse
                value = self.shell.user_ns.get(name)
                if value is made.object or value in (
                    *made.object.programs.values(),
                    *made.object.maps.values(),
                ):
                    self.shell.user_ns.pop(name, None)

    def _cell_id(self) -> str:
        """The id that Jupyter gives the running cell; "" where the front end sends none."""
        parent: dict[str, Any] = getattr(self.shell, "get_parent", dict)()
        return str(parent.get("metadata", {}).get("cellId", "")) if parent else ""


class Listing:
    """A view as the result of a magic."""

    def __init__(self, view: View) -> None:
        self._view = view

    def _repr_html_(self) -> str:
        return self._view.html()

    def __repr__(self) -> str:
        return self._view.text()


def _attach(found: Object, interface: str, index: int) -> None:
    """Attach every program of an object that an interface takes."""
    attached = 0
    for program in found.programs.values():
        kind = program.type_name.removeprefix("BPF_PROG_TYPE_")
        if kind == "XDP":
            program.attach_xdp(index)
        elif kind == "SCHED_CLS":
            program.attach_tc(index)
        else:
            continue
        attached += 1
    if not attached:
        raise BpfkitError(
            f"nothing to attach to {interface}",
            why="the cell has no program of type xdp or tc",
            hint="leave out -i, and attach the program by its own method",
        )
