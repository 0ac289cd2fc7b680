# SPDX-License-Identifier: Apache-2.0
"""The programs of bpfkit, found by looking: everything in ``bpfkit/`` that is no support package.

A program is ``bpfkit/NAME.py``, or ``bpfkit/NAME/program.py`` where one file is not enough.
"""

from __future__ import annotations

import os

from bpfkit.app.base import App
from bpfkit.core.errors import InputError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


__all__ = [
    "TAGLINE",
    "is_program",
    "no_such",
    "program",
    "program_in",
    "program_names",
    "programs",
    "row",
]

#: What bpfkit is, in one sentence; pyproject.toml and README.md say the same.
TAGLINE = (
    "The eBPF workbench: every BPF program type and map type, live, with one command. "
    "Program types: `bpfkit list` has a program for each; map types: `bpfkit maps`; what this "
    "kernel has of them: `bpfkit doctor`."
)

#: What is in bpfkit/ and is no program.
_SUPPORT = ("app", "bpf_c", "commands", "core", "net", "notebook", "show")


def program_names() -> list[str]:
    """The names of all programs; none is imported."""
    import bpfkit

    found = []
    for directory in bpfkit.__path__:
        for entry in os.listdir(directory):
            name, _, end = entry.partition(".")
            if end in ("", "py") and is_program(name):
                found.append(name)
    return sorted(found)


def is_program(name: str) -> bool:
    """Whether a program has this name; none is imported."""
    import bpfkit

    if name in _SUPPORT or not name.isidentifier() or name.startswith("_"):
        return False
    return any(
        os.path.exists(f"{directory}/{name}{end}")
        for directory in bpfkit.__path__
        for end in (".py", "/program.py")
    )


def no_such(name: str, commands: Iterable[str]) -> UsageError:
    """The error for a word that is neither a command nor a program."""
    from bpfkit.core.errors import nearest

    known = [*commands, *program_names()]
    hint = nearest(name, known, 0.5) or f"commands: {', '.join(commands)}"
    return UsageError(
        f"no command and no program named {name!r}", hint=f"{hint}; `bpfkit list` shows programs"
    )


def programs() -> Iterator[type[App]]:
    """The class of every program module, by name."""
    import bpfkit

    for directory in bpfkit.__path__:
        for entry in sorted(os.listdir(directory)):
            module, _, end = entry.partition(".")
            if end in ("", "py") and not module.startswith("_") and module not in _SUPPORT:
                found = program_in(module if end else f"{module}.program")
                if found is not None:
                    yield found


def program(name: str) -> type[App]:
    """The class of the program ``name``.

    :raises InputError: there is no such program (the nearest names are given).
    """
    name = name.removeprefix("bpfkit.").removesuffix(".py")
    for found in programs():
        if found.name == name:
            return found
    from difflib import get_close_matches

    known = [found.name for found in programs()]
    near = get_close_matches(name, known, n=3, cutoff=0.5) or known
    raise InputError(f"no program named {name!r}", why="there is " + ", ".join(near))


def program_in(module: str) -> type[App] | None:
    """The program class that the module ``bpfkit.MODULE`` defines."""
    from importlib import import_module

    loaded = import_module(f"bpfkit.{module}")
    for value in vars(loaded).values():
        if (
            isinstance(value, type)
            and issubclass(value, App)
            and value.__module__ == loaded.__name__
            and value.name
        ):
            return value
    return None


def row(cls: type[App]) -> dict[str, object]:
    """What ``list --json`` prints of a program."""
    return {
        "name": cls.name,
        "types": cls.types(),
        "summary": cls.summary(),
        "source": f"bpf_c/{cls.source}" if cls.source else cls.__module__.replace(".", "/") + ".py",
    }
