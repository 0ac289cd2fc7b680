# SPDX-License-Identifier: Apache-2.0
"""``--where``: where messages wait inside the host, by TX timestamping callbacks (Linux 6.15)."""

from __future__ import annotations

from bpfkit.core.errors import UnsupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.show.rows import Row
    from bpfkit.sockops.program import Sockops

__all__ = ["STAGES", "Where", "middle_of", "quantile", "where_cells", "where_lines"]

#: enum stage.
STAGES = ("socket", "qdisc", "network", "whole")
_KFUNC = "bpf_sock_ops_enable_tx_tstamp"


class Where:
    """The second program of the cgroup, and its histograms.

    :raises UnsupportedError: the kernel has no TX timestamping callbacks.
    """

    def __init__(self, app: Sockops) -> None:
        from bpfkit import load
        from bpfkit.core.features.kfuncs import has_kfunc

        if not has_kfunc(_KFUNC):
            raise UnsupportedError(
                "cannot follow messages",
                why=f"the kernel has no TX timestamping callbacks ({_KFUNC}: Linux 6.15)",
            )
        self.object = app.keep(
            load("sock/sockops_where.bpf.c", cache=not app.options.no_cache),
        )
        app.attach(self.object.programs["sockops_where"])

    def histograms(self) -> dict[tuple[str, str], dict[int, int]]:
        """(peer, stage) -> bucket -> messages."""
        from bpfkit.sockops.show import address_of

        found: dict[tuple[str, str], dict[int, int]] = {}
        for step, count in self.object["steps"].items():
            place = address_of(bytes(step.peer)), STAGES[step.stage]
            found.setdefault(place, {})[step.bucket] = count
        return found

    def rows(self) -> list[Row]:
        """A row per peer and stage, in the order of the stages."""
        rows = []
        found = self.histograms()
        for peer, stage in sorted(found, key=lambda place: (place[0], STAGES.index(place[1]))):
            buckets = found[peer, stage]
            rows.append(
                {
                    "peer": peer,
                    "stage": stage,
                    "messages": sum(buckets.values()),
                    "p50_us": quantile(buckets, 0.50) / 1e3,
                    "p99_us": quantile(buckets, 0.99) / 1e3,
                    "max_us": quantile(buckets, 1.0) / 1e3,
                }
            )
        return rows

    @property
    def missed(self) -> int:
        """Messages that could not be followed."""
        return int(self.object["missed"][0])


def middle_of(bucket: int) -> float:
    """The middle of a bucket's durations in nanoseconds; see bucket_of() in the C file."""
    if bucket < 8:
        return bucket
    width = 1 << bucket // 8 - 1
    return (8 + bucket % 8) * width + width / 2


def quantile(buckets: dict[int, int], share: float) -> float:
    """The duration in nanoseconds that this share of the messages does not exceed, ± 6 %."""
    wanted = share * sum(buckets.values())
    passed = 0
    for bucket in sorted(buckets):
        passed += buckets[bucket]
        if passed >= wanted:
            return middle_of(bucket)
    return 0.0


def where_cells(row: Row) -> dict[str, str]:
    """The columns of a row."""
    return {
        "peer": row["peer"],
        "stage": row["stage"],
        "messages": str(row["messages"]),
        "p50 us": f"{row['p50_us']:.1f}",
        "p99 us": f"{row['p99_us']:.1f}",
        "max us": f"{row['max_us']:.1f}",
    }


def where_lines(rows: list[Row]) -> list[str]:
    """The rows as a table."""
    from bpfkit.show.text import table

    body = [where_cells(row) for row in rows]
    right = [False, False, True, True, True, True]
    return list(table(list(body[0]), [list(row.values()) for row in body], right=right))
