# SPDX-License-Identifier: Apache-2.0
"""cwnd over time: as the program noted it, and as TCP_INFO had it."""

from __future__ import annotations

from bisect import bisect_right

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["INFINITE", "Change", "Sample", "Series"]

#: TCP_INFINITE_SSTHRESH: no loss so far.
INFINITE = 0x7FFFFFFF


class Change:
    """cwnd and ssthresh (segments) from ``time_ns`` on (CLOCK_MONOTONIC).

    ``state`` is the number of an ``enum tcp_ca_state``.
    """

    __slots__ = ("cwnd", "ssthresh", "state", "time_ns")

    def __init__(self, time_ns: int, cwnd: int, ssthresh: int, state: int = 0) -> None:
        self.time_ns = time_ns
        self.cwnd = cwnd
        self.ssthresh = ssthresh
        self.state = state

    def __repr__(self) -> str:
        return f"Change({self.time_ns}, {self.cwnd}, {self.ssthresh}, {self.state})"


class Sample:
    """cwnd and ssthresh by TCP_INFO, read between two moments (CLOCK_MONOTONIC).

    ``state`` is the number of an ``enum tcp_ca_state``.
    """

    __slots__ = ("after_ns", "before_ns", "cwnd", "ssthresh", "state")

    def __init__(
        self, before_ns: int, after_ns: int, cwnd: int, ssthresh: int, state: int = 0
    ) -> None:
        self.before_ns = before_ns
        self.after_ns = after_ns
        self.cwnd = cwnd
        self.ssthresh = ssthresh
        self.state = state

    def __repr__(self) -> str:
        values = f"{self.cwnd}, {self.ssthresh}, {self.state}"
        return f"Sample({self.before_ns}, {self.after_ns}, {values})"


class Series:
    """The changes of one connection, in the order of time.

    :param limit: changes that are kept; the oldest quarter goes when there are more.
    """

    def __init__(self, limit: int = 20_000) -> None:
        self.changes: list[Change] = []
        self._limit = limit

    def add(self, change: Change) -> None:
        """Append a change."""
        changes = self.changes
        # Two CPUs write the ring buffer in the order of their reservations.
        if changes and change.time_ns < changes[-1].time_ns:
            at = bisect_right([c.time_ns for c in changes], change.time_ns)
            changes.insert(at, change)
        else:
            changes.append(change)
        if len(changes) > self._limit:
            del changes[: self._limit // 4]

    def has(self, sample: Sample) -> bool:
        """Whether TCP_INFO's values are those of the series at that moment.

        The values may be any from the one in force before the reading to the first after it: what
        the kernel changes by itself (in fast recovery) is noted at the next ACK.
        """
        times = [change.time_ns for change in self.changes]
        first = max(bisect_right(times, sample.before_ns) - 1, 0)
        last = bisect_right(times, sample.after_ns)
        return any(
            (change.cwnd, change.ssthresh) == (sample.cwnd, sample.ssthresh)
            for change in self.changes[first : last + 1]
        )

    def missing(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples that the series does not have."""
        return [sample for sample in samples if not self.has(sample)]
