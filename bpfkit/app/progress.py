# SPDX-License-Identifier: Apache-2.0
"""A line on standard error, while something takes long, that is gone afterwards."""

from __future__ import annotations

import sys
from time import monotonic

__all__ = ["Progress"]

#: Seconds after which the line appears; what is done earlier shows none.
_PATIENCE = 0.3


class Progress:
    """``with Progress("info") as progress: progress("17 of 99")``; only on a terminal."""

    def __init__(self, who: str) -> None:
        self._who = who
        self._begin = monotonic()
        self._on = sys.stderr.isatty()
        self._shown = False

    def __call__(self, text: str) -> None:
        """Replace the line."""
        if self._on and monotonic() - self._begin >= _PATIENCE:
            sys.stderr.write(f"\r{self._who}: {text}\x1b[K")
            sys.stderr.flush()
            self._shown = True

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
