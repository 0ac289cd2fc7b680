# SPDX-License-Identifier: Apache-2.0
"""``python -m bpfkit COMMAND``: each command is a file in ``bpfkit/commands/``.

The programs themselves are modules of their own: ``python -m bpfkit.sockex3``.
"""

from __future__ import annotations

import os

from bpfkit.app.lifecycle import guarded

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

    parser = ArgumentParser(
        prog="python -m bpfkit",
        description="Every BPF program type and map type, live, with one command.",
        epilog="Each program is a module of its own: sudo python -m bpfkit.sockex3",
        allow_abbrev=False,
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in known.items():
        command = subparsers.add_parser(name, help=module.HELP, description=module.HELP)
        command.add_argument("--json", action="store_true", help="print JSON lines")
        if hasattr(module, "add_options"):
            module.add_options(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""

    def work(signals: Signals) -> int:
        known = commands()
        options = _parser(known).parse_args(argv)
        status: int = known[options.command].run(options)
        return status

    return guarded("bpfkit", work)


if __name__ == "__main__":
    raise SystemExit(main())
