# SPDX-License-Identifier: Apache-2.0
"""cwnd over time as lines of text."""

from __future__ import annotations

from bpfkit.tcp_cc.series import INFINITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from bpfkit.tcp_cc.series import Change

__all__ = ["plot", "plots_ascii"]

_ASCII = str.maketrans("•─│└", "*-|+")
_LABEL = 6


def plots_ascii() -> bool:
    """Whether standard output takes ASCII only."""
    import sys

    try:
        "•─│└".encode(sys.stdout.encoding or "ascii")
    except (LookupError, UnicodeError):
        return True
    return False


def plot(
    changes: Sequence[Change],
    *,
    width: int = 80,
    height: int = 10,
    seconds: float = 0.0,
    ascii: bool = False,
) -> list[str]:
    """cwnd (dots) and ssthresh (a line), ``height`` + 2 lines of at most ``width`` characters.

    A column is a span of time and shows every value from the least to the largest in it.

    :param seconds: the last so many seconds only; 0: everything.
    """
    if not changes or width < 20 or height < 2:
        return []
    end = changes[-1].time_ns
    begin = max(changes[0].time_ns, end - int(seconds * 1e9)) if seconds else changes[0].time_ns
    span = max(end - begin, 1)
    columns = width - _LABEL - 2
    cwnd: list[list[int]] = [[] for _ in range(columns)]
    threshold: list[list[int]] = [[] for _ in range(columns)]
    now, limit = 0, INFINITE
    at = 0
    for change in [*changes, None]:
        if change is not None and change.time_ns < begin:
            now, limit = change.cwnd, change.ssthresh
            continue
        to = columns - 1
        if change is not None:
            to = min((change.time_ns - begin) * columns // span, columns - 1)
        # The values so far stay in force up to this change.
        for column in range(at, to + 1):
            if now:
                cwnd[column].append(now)
                threshold[column].append(limit)
        if change is None:
            break
        now, limit, at = change.cwnd, change.ssthresh, to
        cwnd[to].append(now)
        threshold[to].append(limit)
    top = max(map(max, filter(None, cwnd)), default=1)
    # Round numbers on the axis: a row is a whole number of segments.
    step = -(-(top + 1) // height)
    grid = [[" "] * columns for _ in range(height)]
    for column in range(columns):
        for value in threshold[column][-1:]:
            if value // step < height:
                grid[value // step][column] = "─"
        if cwnd[column]:
            for row in range(min(cwnd[column]) // step, max(cwnd[column]) // step + 1):
                grid[row][column] = "•"
    lines = [
        f"{row * step:>{_LABEL}} │{''.join(grid[row])}".rstrip() for row in reversed(range(height))
    ]
    lines.append(f"{'':{_LABEL}} └{'─' * columns}")
    left, right = "cwnd • ssthresh ─ in segments", f"{span / 1e9:.2f} s"
    lines.append(f"{'':{_LABEL}}  {left}{right:>{max(columns - len(left), 1)}}")
    return [line.translate(_ASCII) for line in lines] if ascii else lines
