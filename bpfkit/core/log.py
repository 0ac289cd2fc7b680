# SPDX-License-Identifier: Apache-2.0
"""What ``-v`` shows: one line on stderr per thing worth knowing, nothing otherwise."""

from __future__ import annotations

import sys

__all__ = ["say", "set_verbose"]

_verbose = False


def set_verbose(on: bool) -> None:
    """Switch the notes on or off for this process."""
    global _verbose
    _verbose = on


def say(text: str) -> None:
    """Write a note where it was asked for."""
    if _verbose:
        print(f"bpfkit: {text}", file=sys.stderr, flush=True)
