# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit clean: remove what killed runs left behind."""

from __future__ import annotations

from bpfkit.app.signals import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


HELP = "remove what killed runs left behind"


def add_options(parser: ArgumentParser) -> None:
    """The command's options, beside ``--json``."""
    parser.add_argument("--cache", action="store_true", help="empty the compile cache, too")


def run(options: Namespace) -> int:
    """Print it; returns the exit status."""
    from bpfkit.core.compile.headers import remove_leftovers
    from bpfkit.core.records import reap

    removed = [*reap(), *remove_leftovers()]
    if options.cache:
        from bpfkit.core.compile.cache import Cache

        count = Cache().clear()
        removed += [f"{count} compiled programs from the cache"] if count else []
    if options.json:
        from bpfkit.show.jsonl import json_lines

        output(json_lines([{"removed": what} for what in removed]))
    else:
        output("".join(f"removed {what}\n" for what in removed) or "nothing to clean up\n")
    return 0
