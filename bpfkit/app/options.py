# SPDX-License-Identifier: Apache-2.0
"""The command line: the options that all programs have, and types of option values."""

from __future__ import annotations

import sys
from argparse import SUPPRESS, Action, ArgumentParser, ArgumentTypeError, HelpFormatter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from bpfkit.app.base import App

__all__ = [
    "Parser",
    "call_as_command",
    "call_of",
    "parser_of",
    "port",
    "positive",
    "seconds",
]

#: How help and messages call programs.
_call = "python3 -m bpfkit."


def call_of(name: str) -> str:
    """The command of a program as it was called: ``python3 -m bpfkit.NAME``, ``bpfkit NAME``."""
    return _call + name


def call_as_command() -> None:
    """The command ``bpfkit`` runs the program: from now on help and messages say so."""
    global _call
    _call = "bpfkit "


def positive(text: str) -> int:
    """A whole number from 1 to 2³¹ - 1 (argparse type)."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number < 1 << 31:
        raise ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return number


def port(text: str) -> int:
    """A port number, 0 to 65535 (argparse type)."""
    if text.isascii() and text.isdigit() and int(text) < 65536:
        return int(text)
    raise ArgumentTypeError(f"{text!r} is not a port (0 to 65535)")


def seconds(text: str) -> float:
    """A time in seconds, greater than 0, at most 10⁶ (argparse type)."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1e6:  # refuses nan too
        raise ArgumentTypeError(f"{text!r} is not a time in seconds greater than 0")
    return number


class Parser(ArgumentParser):
    """Reports an error in two lines instead of the whole list of options.

    ``prog`` is :func:`call_of` the program, for a subcommand with its name behind.
    """

    #: Are the words behind ``--`` a command, which becomes ``options.command``, and those before
    #: it something else?
    command_behind_dashes = False

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        command: list[str] = []
        if self.command_behind_dashes and "--" in words:
            at = words.index("--")
            words, command = words[:at], words[at + 1 :]
        options = super().parse_args(words, namespace)
        if command:
            options.command = command
        return options

    def error(self, message: str) -> NoReturn:
        name = self.prog.removeprefix(_call).partition(" ")[0]
        sys.stderr.write(f"usage: {self.prog} [options], see --help\n{name}: {message}\n")
        raise SystemExit(2)


class _Formatter(HelpFormatter):
    """Shows the default of an option that has one and does not say it itself."""

    def _get_help_string(self, action: Action) -> str | None:
        text = action.help
        if (
            not text
            or "default" in text
            or not action.option_strings
            or action.nargs == 0
            or action.default in (None, "", SUPPRESS)
            or isinstance(action.default, (bool, list, tuple, dict))
        ):
            return text
        return f"{text} (default: %(default)s)"


def _formatter(prog: str) -> HelpFormatter:
    # With a width given, argparse does not import shutil (milliseconds) per option.
    return _Formatter(prog, max_help_position=28, width=96)


#: What a failure of the output means, by :attr:`App.protects`.
_GOES_ON = (
    "If output, events or files cannot be written, the program reports that once, counts what is "
    "lost, and stays attached; only its demo ends."
)
_ENDS = "The program ends if its output cannot be written."


def parser_of(cls: type[App]) -> ArgumentParser:
    """The parser of a program's options: those of all programs, then its own."""
    parser = Parser(
        prog=call_of(cls.name),
        description=cls.summary(),
        epilog=" ".join(filter(None, (cls.epilog, _GOES_ON if cls.protects else _ENDS))),
        formatter_class=_formatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-t", "--interval", metavar="S", type=seconds, default=1.0, help="seconds between rounds")
    add("-c", "--count", metavar="N", type=positive, help="end after N rounds")
    add("--no-demo", action="store_true", help="only observe, generate no traffic")
    add("--json", action="store_true", help="print JSON lines, nothing else on standard output")
    add("--check", action="store_true", help="run the demo and verify the results")
    add("--log", action="store_true", help="print what the BPF programs write (Linux 6.17)")
    add("--no-cache", action="store_true", help="compile even if the result is in the cache")
    add("-v", "--verbose", action="store_true", help="print details on standard error")
    cls.add_options(parser)
    return parser
