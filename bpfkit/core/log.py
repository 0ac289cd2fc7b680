# SPDX-License-Identifier: Apache-2.0
"""The notes that ``-v`` shows: one line on stderr each."""

from __future__ import annotations

import sys

__all__ = ["say", "set_verbose"]

_verbose = False


def set_verbose(on: bool) -> None:
    """Switch the notes on or off for this process."""
    global _verbose
    _verbose = on


def say(text: str) -> None:
    """Write a note to stderr if notes are switched on."""
    if _verbose:
        print(f"bpfkit: {text}", file=sys.stderr, flush=True)
