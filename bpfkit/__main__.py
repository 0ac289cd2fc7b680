# SPDX-License-Identifier: Apache-2.0
"""``bpfkit COMMAND``, also ``python3 -m bpfkit COMMAND``: each command is a file in
``bpfkit/commands/``.

``bpfkit PROGRAM`` runs a program; they are modules of their own: ``python3 -m bpfkit.sockex3``.
"""

from __future__ import annotations

import os
import sys

from bpfkit.app.lifecycle import guarded
from bpfkit.commands.catalog import is_program, no_such

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Sequence
    from types import ModuleType

    from bpfkit.app.signals import Signals

__all__ = ["commands", "main"]


def commands() -> dict[str, ModuleType]:
    """Name -> module of every file in ``bpfkit/commands/`` that has a ``run(options)``."""
    from importlib import import_module

    import bpfkit.commands

    found = {}
    for directory in bpfkit.commands.__path__:
        for entry in sorted(os.listdir(directory)):
            name, dot, end = entry.partition(".")
            if dot and end == "py" and not name.startswith("_"):
                module = import_module(f"bpfkit.commands.{name}")
                if hasattr(module, "run"):
                    found[name] = module
    return found


def _parser(known: dict[str, ModuleType]) -> ArgumentParser:
    from argparse import ArgumentParser

    from bpfkit import __version__
    from bpfkit.commands.catalog import TAGLINE

    parser = ArgumentParser(
        prog="bpfkit",
        description=TAGLINE,
        epilog="bpfkit PROGRAM runs a program, as root: sudo bpfkit sockex3 -i eth0; "
        "`bpfkit list` names them, `bpfkit PROGRAM --help` shows the options of one. "
        "Without the command: sudo python3 -m bpfkit.sockex3",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"bpfkit {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in known.items():
        command = subparsers.add_parser(name, help=module.HELP, description=module.HELP)
        command.add_argument("--json", action="store_true", help="print JSON lines")
        if hasattr(module, "add_options"):
            module.add_options(command)
    return parser


def _run_program(name: str, words: list[str]) -> int:
    """Run a program as ``python3 -m bpfkit.NAME`` does."""
    from runpy import run_module

    from bpfkit.app.options import call_as_command

    call_as_command()
    sys.argv[1:] = words
    run_module(f"bpfkit.{name}", run_name="__main__", alter_sys=True)
    return 0  # not reached: a program ends by SystemExit


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command or a program; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if "_ARGCOMPLETE" in os.environ:
        from bpfkit.commands.completion import complete

        complete(lambda: _parser(commands()))
    name = words[0] if words else ""
    if is_program(name):
        return _run_program(name, words[1:])

    def work(signals: Signals) -> int:
        known = commands()
        if name and not name.startswith("-") and name not in known:
            raise no_such(name, known)
        options = _parser(known).parse_args(words)
        status: int = known[options.command].run(options)
        return status

    return guarded("bpfkit", work)


if __name__ == "__main__":
    raise SystemExit(main())
