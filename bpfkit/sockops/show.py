# SPDX-License-Identifier: Apache-2.0
"""From the C side's records to events and rows, and their form for people."""

from __future__ import annotations

from functools import lru_cache

from bpfkit.app.events import unix_seconds
from bpfkit.show.rows import Event

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpfkit.show.rows import Row

__all__ = [
    "CAUSES",
    "STATES",
    "address_of",
    "cells",
    "connection",
    "event_line",
    "event_of",
    "live_row",
    "process",
    "table_lines",
]

#: enum cause.
CAUSES = ("rto", "fast", "syn", "syn_ack", "probe")
#: enum side.
_SIDES = (None, "listener", "active", "passive")
#: BPF_TCP_ESTABLISHED (1) to BPF_TCP_BOUND_INACTIVE.
STATES = (
    "",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "NEW_SYN_RECV",
    "BOUND_INACTIVE",
)
_MAPPED = bytes(10) + b"\xff\xff"
_COUNTERS = ("bytes_sent", "bytes_received", "segs_out", "segs_in", "retransmits")


@lru_cache(4096)
def address_of(raw: bytes) -> str:
    """The text of an address of the C side: 16 bytes, IPv4 as IPv4-mapped."""
    from bpfkit.show.address import address_text

    return address_text(raw[12:] if raw[:12] == _MAPPED else raw)


def _ends(ends: Any) -> Row:
    return {
        "src": address_of(bytes(ends.local_addr)),
        "sport": ends.local_port,
        "dst": address_of(bytes(ends.remote_addr)),
        "dport": ends.remote_port,
    }


def _ms(microseconds: int) -> float | None:
    """Milliseconds; None: not known."""
    return microseconds / 1000 if microseconds else None


def _owner(conn: Any) -> Row:
    if not conn.pid:
        return {"pid": None, "comm": None}
    return {"pid": conn.pid, "comm": conn.comm}


def _rtt(conn: Any, tcp: Any) -> Row:
    known = conn.rtt_samples > 0
    return {
        "rtt_min_ms": conn.rtt_min_us / 1000 if known else None,
        "rtt_max_ms": conn.rtt_max_us / 1000 if known else None,
        "srtt_ms": _ms(tcp.srtt_us),
        "rtt_samples": conn.rtt_samples,
    }


def _options(mask: int) -> list[str]:
    from bpfkit.sockops.rules import OPTIONS

    return [name for bit, name in enumerate(OPTIONS) if mask >> bit & 1]


def event_of(record: Any, kind: str) -> Event:
    """An event of a struct event."""
    conn, ends = record.conn, record.ends
    pid = conn.pid
    fields: Row = {
        "src": address_of(bytes(ends.local_addr)),
        "sport": ends.local_port,
        "dst": address_of(bytes(ends.remote_addr)),
        "dport": ends.remote_port,
    }
    if kind == "close":
        _add_counters(fields, record)
    elif kind != "established":
        _ADD[kind](fields, record)
    fields["pid"] = pid or None
    fields["comm"] = conn.comm if pid else None
    # A request socket has no storage yet: only a repeated SYN-ACK comes from one.
    fields["side"] = _SIDES[conn.side] or "passive"
    if kind == "established" or kind == "close":
        fields["handshake_ms"] = conn.handshake_us / 1000 if conn.handshake_us else None
        if conn.applied or conn.refused:
            fields["options"] = _options(conn.applied)
            fields["refused_options"] = _options(conn.refused)
        if kind == "close":
            _add_rest(fields, record)
    if record.mptcp:
        fields["mptcp"] = True
    return Event(kind, unix_seconds(record.time_ns), fields)


def _add_counters(fields: Row, record: Any) -> None:
    """What scripts rely on, first."""
    tcp = record.tcp
    fields["bytes_sent"] = tcp.bytes_sent
    fields["bytes_received"] = tcp.bytes_received
    fields["segs_out"] = tcp.segs_out
    fields["segs_in"] = tcp.segs_in
    fields["retransmits"] = tcp.retransmits
    fields["duration_s"] = (record.time_ns - record.conn.established_ns) / 1e9


def _add_rest(fields: Row, record: Any) -> None:
    """The rest of a close event."""
    conn, tcp = record.conn, record.tcp
    fields.update(_rtt(conn, tcp))
    rto, fast, syn, syn_ack, probe = conn.retransmits
    fields["causes"] = {"rto": rto, "fast": fast, "syn": syn, "syn_ack": syn_ack, "probe": probe}
    fields["bytes_acked"] = tcp.bytes_acked
    fields["bytes_retrans"] = tcp.bytes_retrans
    closed_ns = record.time_ns - conn.zero_since_ns if conn.zero_since_ns else 0
    fields["zero_windows"] = conn.zero_windows
    fields["zero_window_s"] = (conn.zero_ns + closed_ns) / 1e9
    fields["state"] = STATES[record.old_state]
    fields["error"] = _error(record.error) if record.error else None
    fields["aborted"] = record.aborted != 0


def _add_retransmit(fields: Row, record: Any) -> None:
    fields["cause"] = CAUSES[record.cause]
    fields["segments"] = record.segments
    fields["state"] = STATES[record.old_state] if record.old_state else None


def _add_states(fields: Row, record: Any) -> None:
    fields["old"] = STATES[record.old_state]
    fields["new"] = STATES[record.new_state]


def _add_failure(fields: Row, record: Any) -> None:
    fields["error"] = _error(record.error)
    fields["retransmits"] = record.tcp.retransmits
    fields["duration_s"] = (record.time_ns - record.conn.begun_ns) / 1e9


def _add_window(fields: Row, record: Any) -> None:
    fields["zero_windows"] = record.conn.zero_windows
    fields["zero_window_s"] = record.conn.zero_ns / 1e9


_ADD = {
    "retransmit": _add_retransmit,
    "state": _add_states,
    "failed": _add_failure,
    "zero_window": _add_window,
    "window_open": _add_window,
}


def _error(number: int) -> str | None:
    """The errno's name."""
    from errno import errorcode

    return errorcode.get(number, str(number)) if number else None


def live_row(record: Any) -> Row:
    """A row of a struct live: a connection that is open."""
    conn, tcp = record.conn, record.tcp
    row = _ends(record.ends)
    row["state"] = STATES[record.state]
    row.update((name, getattr(tcp, name)) for name in _COUNTERS)
    row.update(_rtt(conn, tcp))
    begun = conn.established_ns or conn.begun_ns
    row["age_s"] = (record.now_ns - begun) / 1e9
    row["zero_window"] = conn.zero_since_ns != 0
    row["side"] = _SIDES[conn.side]
    row.update(_owner(conn))
    return row


# -- for people -----------------------------------------------------------------------------------


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def connection(row: Row) -> str:
    """``127.0.0.1:40000 > 127.0.0.1:80``, towards the side that listens."""
    near = _endpoint(row["src"], row["sport"])
    far = _endpoint(row["dst"], row["dport"])
    return f"{near} < {far}" if row["side"] == "passive" else f"{near} > {far}"


def process(row: Row) -> str:
    """``curl[123]``."""
    return f"{row['comm']}[{row['pid']}]" if row["pid"] else ""


def event_line(event: Event) -> str:
    """An event as plain text."""
    from bpfkit.show.text import time_of_day

    words = [time_of_day(event.time), event.kind.replace("_", " "), connection(event.fields)]
    words += filter(None, _words(event.kind, event.fields))
    words.append(process(event.fields))
    return " ".join(filter(None, words))


def _words(kind: str, row: Row) -> list[str]:
    from bpfkit.show.text import human

    if kind == "established":
        handshake = row["handshake_ms"]
        return [
            row["side"],
            "" if handshake is None else f"handshake {handshake:.3f} ms",
            f"set {', '.join(row['options'])}" if row.get("options") else "",
            f"refused {', '.join(row['refused_options'])}" if row.get("refused_options") else "",
        ]
    if kind == "retransmit":
        count = "" if row["segments"] == 1 else f" {row['segments']} segments"
        return [row["cause"].replace("_", "-") + count]
    if kind == "state":
        return [f"{row['old']} -> {row['new']}"]
    if kind == "window_open":
        return [f"after {row['zero_window_s'] * 1e3:.1f} ms in all"]
    if kind == "failed":
        tries = f"after {row['retransmits']} more SYNs" if row["retransmits"] else ""
        return [row["error"] or "no reason known", tries, f"{row['duration_s']:.3f} s"]
    if kind == "close":
        sizes = f"sent {human(row['bytes_sent'], 'B')} received {human(row['bytes_received'], 'B')}"
        segments = f"segments {row['segs_out']}/{row['segs_in']}"
        again = ""
        if row["retransmits"]:
            causes = [f"{n} {c.replace('_', '-')}" for c, n in row["causes"].items() if n]
            again = f"retransmits {row['retransmits']} ({', '.join(causes)})"
        rtt = ""
        if row["rtt_samples"]:
            rtt = (
                f"rtt {row['rtt_min_ms']:.3f}/{row['srtt_ms'] or 0:.3f}/{row['rtt_max_ms']:.3f} ms"
            )
        error = row["error"] or ("aborted" if row["aborted"] else "")
        return [f"{row['duration_s']:.3f} s", sizes, segments, again, rtt, error]
    return []


def cells(row: Row) -> dict[str, str]:
    """A connection's columns."""
    from bpfkit.show.text import human

    state = row["state"].replace("ESTABLISHED", "ESTAB")
    return {
        "connection": connection(row),
        "state": state + (" win 0" if row["zero_window"] else ""),
        "sent": human(row["bytes_sent"], "B"),
        "recv": human(row["bytes_received"], "B"),
        "retr": str(row["retransmits"] or ""),
        "rtt ms": "" if row["srtt_ms"] is None else f"{row['srtt_ms']:.3f}",
        "process": process(row),
    }


def table_lines(rows: list[Row]) -> list[str]:
    """The open connections as a table."""
    from bpfkit.show.text import table

    body = [cells(row) for row in rows]
    right = [False, False, True, True, True, True, False]
    return list(table(list(body[0]), [list(row.values()) for row in body], right=right))
