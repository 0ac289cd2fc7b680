# SPDX-License-Identifier: Apache-2.0
"""How fast flows are, and when they had their last packet: compares readings of the flow table.

A rate is over the last interval.  A reading that comes too soon after the one before (a program
that is ended in the middle of an interval) is compared with an earlier one: over a few milliseconds
a single packet would look like a flood.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from bpfkit.net.packets.flows import Flow

__all__ = ["Rates", "Reading"]

#: A reading that is younger than this part of the interval is not compared with.
_TOO_SOON = 0.5


class Reading:
    """What was read of one flow last.

    :ivar bytes_per_s: bytes per second over the last interval.
    :ivar packets_per_s: packets per second over the last interval.
    :ivar active: when the flow was last seen to have had packets (clock of the caller, seconds).
    :ivar first: when it was seen first.
    """

    __slots__ = ("_newer", "_older", "active", "bytes_per_s", "first", "packets_per_s")

    def __init__(self, now: float) -> None:
        self._older = self._newer = (0, 0)  # bytes, packets at the two readings before
        self.bytes_per_s = self.packets_per_s = 0.0
        self.active = self.first = now


class Rates:
    """Compares each reading with the ones before.

    :param interval: seconds between readings, as planned.
    :param now: when nothing was counted yet (monotonic, seconds).
    """

    def __init__(self, interval: float, now: float) -> None:
        self._least = interval * _TOO_SOON
        self._older = self._newer = now
        self._flows: dict[tuple[Any, ...], Reading] = {}
        self._sum = Reading(now)

    def update(self, flows: Iterable[Flow], now: float) -> list[Reading]:
        """A reading for each flow, in their order; flows that are not among them are forgotten."""
        turn = now - self._newer >= self._least
        if turn:
            self._older = self._newer
            self._newer = now
        passed = max(now - self._older, 1e-6)
        before, self._flows = self._flows, {}
        readings = []
        for flow in flows:
            key = flow[:6] + flow[8:]
            reading = before.get(key)
            if reading is None:
                reading = Reading(now)
            self._flows[key] = reading
            _compare(reading, flow[6], flow[7], passed, now, turn)
            readings.append(reading)
        self._passed, self._turn = passed, turn
        return readings

    def update_sum(self, size: int, packets: int, now: float) -> Reading:
        """The same for everything that was counted; called after :meth:`update`."""
        _compare(self._sum, size, packets, self._passed, now, self._turn)
        return self._sum


def _compare(
    reading: Reading, size: int, packets: int, passed: float, now: float, turn: bool
) -> None:
    last = reading._newer
    if turn:
        reading._older, reading._newer = last, (size, packets)
    if packets != last[1]:
        reading.active = now
    older = reading._older
    if packets < older[1]:  # forgotten by the kernel's table, and there again
        older = reading._older = (0, 0)
    reading.bytes_per_s = (size - older[0]) / passed
    reading.packets_per_s = (packets - older[1]) / passed
