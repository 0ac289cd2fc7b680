# SPDX-License-Identifier: Apache-2.0
"""Maps and events shown while they change: one output of the cell, updated in place.

No widgets: the last frame stays in the notebook when it is saved.  "Interrupt" ends a watch early
and keeps what was collected.
"""

from __future__ import annotations

import sys
import time

from bpfkit.core.errors import InputError
from bpfkit.notebook.values import columns_of, texts
from bpfkit.notebook.views import SHOWN_ROWS, map_table
from bpfkit.show.text import cell
from bpfkit.show.view import Table, View

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from bpfkit.core.maps.base import Map

__all__ = ["watch_events", "watch_map"]


def watch_map(m: Map, seconds: float = 10.0, every: float = 1.0) -> list[tuple[float, list[Any]]]:
    """Show a map for some seconds.

    :param every: seconds between two frames.
    :returns: (UNIX time, rows as :meth:`Map.rows` returns them) of each frame.
    """
    frames: list[tuple[float, list[Any]]] = []

    def frame() -> View:
        frames.append((time.time(), list(m.rows())))
        return View(f"Map {m.name}", _clock(frames[0][0], seconds), [map_table(m)])

    _watch(frame, seconds, every)
    return frames


def watch_events(stream: Any, seconds: float = 10.0, every: float = 0.5) -> list[Any]:
    """Show the newest events of a buffer for some seconds.

    :param stream: an open ring or perf buffer.
    :param every: seconds between two frames.
    :returns: all events, oldest first.
    """
    events: list[Any] = []
    start = time.time()

    def frame() -> View:
        events.extend(stream.drain())
        facts = [*_clock(start, seconds), ("events", cell(len(events)))]
        lost = getattr(stream, "lost", 0)
        if lost:
            facts.append(("lost", cell(lost)))
        return View(f"Events of {stream.map.name}", facts, [_event_table(stream.layout, events)])

    _watch(frame, seconds, every)
    return events


def _event_table(layout: Any, events: list[Any]) -> Table:
    newest = events[-SHOWN_ROWS:]
    if layout is None or not layout.fields:
        return Table(["event"], [[repr(event)] for event in newest])
    columns = columns_of(layout, "event")
    return Table(
        [column.title for column in columns],
        [texts(columns, event) for event in newest],
        right=[column.number for column in columns],
        more=f"… {cell(len(events) - SHOWN_ROWS)} before" if len(events) > SHOWN_ROWS else "",
    )


def _clock(start: float, seconds: float) -> list[tuple[str, str]]:
    return [("second", f"{min(time.time() - start, seconds):.1f} of {seconds:g}")]


def _watch(frame: Callable[[], View], seconds: float, every: float) -> None:
    """Show a frame now and every so often, until the time is up or the user interrupts."""
    if every <= 0 or seconds < 0:
        raise InputError(
            "cannot watch",
            why=f"seconds is {seconds:g} and every is {every:g}; every must be more than 0",
        )
    end = time.monotonic() + seconds
    show = _display()
    try:
        show(frame())
        while (rest := end - time.monotonic()) > 0:
            time.sleep(min(every, rest))
            show(frame())
    except KeyboardInterrupt:
        pass  # what was collected is what the caller gets


def _display() -> Callable[[View], None]:
    """A function that replaces the previous frame; without IPython it prints frame by frame."""
    if "IPython" in sys.modules:
        from IPython import get_ipython

        if get_ipython() is not None:
            from IPython.display import DisplayHandle

            handle = DisplayHandle()
            shown: list[View] = []

            def update(view: View) -> None:
                data = {"text/html": view.html(), "text/plain": view.text()}
                (handle.update if shown else handle.display)(data, raw=True)
                shown[:] = [view]

            return update
    return lambda view: print(view.text(), flush=True)
