# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit completion: what makes the shell complete commands, programs and options.

argcomplete does the work: the shell runs ``bpfkit`` with ``_ARGCOMPLETE`` set for each <Tab>.  Only
then is argcomplete imported.
"""

from __future__ import annotations

import os

from bpfkit.app.signals import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable
    from typing import Any

HELP = "print what makes the shell complete bpfkit's commands and options"


def add_options(parser: ArgumentParser) -> None:
    """The command's options, beside ``--json``."""
    parser.add_argument(
        "shell",
        nargs="?",
        choices=["bash", "zsh", "fish"],
        default="bash",
        help='the shell that evaluates it: eval "$(bpfkit completion bash)" (default: bash)',
    )


def run(options: Namespace) -> int:
    """Print it; returns the exit status."""
    code = _argcomplete().shellcode(["bpfkit"], shell=options.shell)
    if options.json:
        from bpfkit.show.jsonl import json_lines

        output(json_lines([{"shell": options.shell, "code": code}]))
    else:
        output(code.rstrip("\n") + "\n")
    return 0


def _argcomplete() -> Any:
    try:
        import argcomplete
    except ImportError:
        from bpfkit.commands.doctor import remedy
        from bpfkit.core.errors import UnsupportedError

        raise UnsupportedError(
            "cannot complete", why="argcomplete is not installed", hint=remedy("argcomplete")
        ) from None
    return argcomplete


def complete(commands: Callable[[], ArgumentParser]) -> None:
    """Answer the shell and end the process; return if it is not the shell that asks.

    :param commands: makes the parser of the commands.
    """
    from bpfkit.commands.catalog import is_program, program, program_names

    line = os.environ.get("COMP_LINE", "")
    words = line[: int(os.environ.get("COMP_POINT", len(line)))].split()
    at_second = len(words) == 1 or (len(words) == 2 and not line.endswith(" "))
    if not at_second and len(words) > 1 and is_program(words[1]):
        from bpfkit.app.options import parser_of

        parser = parser_of(program(words[1]))
        # The program's options follow the second word.
        os.environ["_ARGCOMPLETE"] = str(int(os.environ["_ARGCOMPLETE"]) + 1)
    else:
        parser = commands()
        for action in parser._actions:
            if action.dest == "command" and isinstance(action.choices, dict):
                for name in program_names():
                    action.choices.setdefault(name, parser)
    for action in parser._actions:
        if action.dest in ("interface", "interfaces", "ports"):
            action.completer = _interfaces  # type: ignore[attr-defined]
    _argcomplete().autocomplete(parser)


def _interfaces(**_: object) -> list[str]:
    import _socket

    return [name for _, name in _socket.if_nameindex()]
