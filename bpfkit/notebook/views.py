# SPDX-License-Identifier: Apache-2.0
"""The views of the library's objects: what a notebook shows when a cell ends with one."""

from __future__ import annotations

import time
from functools import singledispatch

from bpfkit.core.attach.link import Link
from bpfkit.core.errors import BpfkitError
from bpfkit.core.kernel import syscall
from bpfkit.core.maps.base import Map
from bpfkit.core.object import Object
from bpfkit.core.program import Program, RunResult
from bpfkit.net.links.lab import Lab
from bpfkit.net.traffic.ping import PingReport
from bpfkit.net.traffic.report import Report
from bpfkit.net.traffic.tcp import TcpReport
from bpfkit.net.traffic.udp import UdpReport
from bpfkit.notebook.topology import topology
from bpfkit.notebook.values import columns_of, texts
from bpfkit.show.text import cell, human
from bpfkit.show.view import Table, View

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["SHOWN_ROWS", "map_table", "view"]

#: Rows of a map that are shown; the rest is counted.
SHOWN_ROWS = 20
_DUMP_BYTES = 256


@singledispatch
def view(thing: Any) -> View:
    """The view of an object of the library."""
    return View(repr(thing))


@view.register
def _of_object(thing: Object) -> View:
    programs = [_program_row(program) for program in thing.programs.values()]
    maps = [_map_row(m) for m in thing.maps.values()]
    tables = []
    if programs:
        titles = ["program", "section", "id", "instructions", "runs", "ns/run", "attached to"]
        tables.append(Table(titles, programs, right=[False, False, True, True, True, True, False]))
    if maps:
        titles = ["map", "type", "key", "value", "max_entries"]
        tables.append(Table(titles, maps, right=[False, False, False, False, True]))
    return View(f"Object {thing.name}", tables=tables)


def _program_row(program: Program) -> list[str]:
    if program.fd < 0:
        return [program.name, program.section.name, "closed", "", "", "", ""]
    info = syscall.prog_info(program.fd)
    runs, nanoseconds = _runs(info)
    return [
        program.name,
        program.section.name,
        str(info["id"]),
        cell(len(program.insns) // 8),
        runs,
        nanoseconds,
        ", ".join(link.target for link in program.links),
    ]


def _runs(info: dict[str, Any]) -> tuple[str, str]:
    """(runs, nanoseconds per run), as the kernel counts them while statistics are on."""
    count = info["run_cnt"]
    return cell(count) if count else "", f"{info['run_time_ns'] / count:.0f}" if count else ""


def _map_row(m: Map) -> list[str]:
    if m.fd < 0:
        return [m.name, m.type, "closed", "", ""]
    return [
        m.name,
        m.type,
        m.key_layout.name if m.key_size else "",
        m.value_layout.name if m.value_size else "",
        cell(m.max_entries),
    ]


@view.register
def _of_program(thing: Program) -> View:
    title = f"Program {thing.name}"
    if thing.fd < 0:
        return View(title, [("type", thing.type_name)], note="It is closed.")
    info = syscall.prog_info(thing.fd)
    runs, nanoseconds = _runs(info)
    facts = [
        ("type", thing.type_name.removeprefix("BPF_PROG_TYPE_").lower()),
        ("section", thing.section.name),
        ("id", str(info["id"])),
        ("tag", info["tag"]),
        ("instructions", cell(len(thing.insns) // 8)),
        ("verified", cell(info["verified_insns"]) if info["verified_insns"] else ""),
        ("machine code", human(info["jited_prog_len"], "B") if info["jited_prog_len"] else ""),
        ("runs", runs),
        ("ns per run", nanoseconds),
    ]
    links = [_link_row(link) for link in thing.links]
    tables = [Table(["link", "target", "since"], links)] if links else []
    note = (
        ""
        if runs
        else "No run was counted: the program did not run, or the kernel's statistics are off "
        "(%load_ext bpfkit.notebook turns them on)."
    )
    return View(title, facts, tables, note=note)


def _link_row(link: Link) -> list[str]:
    return [link.kind, link.target, time.strftime("%H:%M:%S", time.localtime(link.since))]


@view.register
def _of_link(thing: Link) -> View:
    number = thing.id
    facts = [
        ("program", thing.program.name),
        ("on", thing.target),
        ("id", str(number) if number else ""),
        ("since", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(thing.since))),
        ("missed", cell(thing.missed()) if thing.missed() else ""),
    ]
    state = "" if thing.is_attached() else "The program is no longer attached."
    return View(f"Link {thing.kind}", facts, note=state)


@view.register
def _of_map(thing: Map) -> View:
    facts = [
        ("type", thing.type),
        ("key", thing.key_layout.name if thing.key_size else ""),
        ("value", thing.value_layout.name if thing.value_size else ""),
        ("max_entries", cell(thing.max_entries)),
    ]
    title = f"Map {thing.name or '(unnamed)'}"
    if thing.fd < 0:
        return View(title, facts, note="It is closed.")
    facts.append(("id", str(thing.id)))
    try:
        return View(title, facts, [map_table(thing)])
    except BpfkitError as error:
        return View(title, facts, note=f"Its content is not shown: {error.why or error.what}.")
    except (KeyError, OSError) as error:
        return View(title, facts, note=f"Its content cannot be read: {error}.")


def map_table(m: Map, limit: int = SHOWN_ROWS) -> Table:
    """The first entries of a map; the values of all CPUs are added up.

    :raises MapError: the map type cannot be read.
    """
    if "storage" in m.type or not m.key_size or not m.value_size:
        raise BpfkitError("cannot read it", why=f"a {m.type} has no entries to walk")
    keys = columns_of(m.key_layout, "key")
    values = columns_of(m.value_layout, "value")
    rows: list[tuple[Any, ...]] = list(m.rows())
    total = len(rows)
    note = ""
    if m.type in ("array", "percpu_array") and total > limit:
        # Elements that were never written are of no interest.
        kept = [row for row in rows if any(row[len(keys) :])]
        note = f"{cell(total - len(kept))} elements are 0; " if len(kept) < total else ""
        rows, total = kept, len(kept)
    more = f"… {cell(total - limit)} more" if total > limit else ""
    columns = [*keys, *values]
    return Table(
        [column.title for column in columns],
        [texts(columns, row) for row in rows[:limit]],
        right=[column.number for column in columns],
        more=(note + more).removesuffix("; ") or ("" if rows else "no entries"),
    )


@view.register
def _of_error(thing: BpfkitError) -> View:
    from html import escape

    body = "\n".join(part for part in (thing.why, thing.hint) if part)
    markup = f"<pre>{escape(body)}</pre>"
    if thing.log:
        lines = len(thing.log.splitlines())
        markup += (
            f"<details><summary>the whole log, {cell(lines)} lines</summary>"
            f"<pre>{escape(thing.log)}</pre></details>"
        )
    return View(f"{type(thing).__name__}: {thing.what}", drawing=(markup, body))


@view.register
def _of_lab(thing: Lab) -> View:
    if not thing.namespaces:
        return View(f"Lab {thing.title}", note="It is closed.")
    drawing = (topology(thing.devices, thing.routes), thing.describe())
    return View(f"Lab {thing.title}", drawing=drawing)


@view.register
def _of_run(thing: RunResult) -> View:
    facts = [("verdict", thing.verdict), ("ns per run", cell(thing.duration_ns))]
    if not thing.data:
        return View("Packet run", facts)
    shown = thing.data[:_DUMP_BYTES]
    lines = [
        f"{at:04x}  {shown[at : at + 16].hex(' '):47}  "
        + "".join(chr(b) if 32 <= b < 127 else "." for b in shown[at : at + 16])
        for at in range(0, len(shown), 16)
    ]
    if len(thing.data) > _DUMP_BYTES:
        lines.append(f"… {cell(len(thing.data) - _DUMP_BYTES)} more bytes")
    from html import escape

    text = "\n".join(lines)
    return View(
        f"Packet run, {cell(len(thing.data))} bytes afterwards",
        facts,
        drawing=(f"<pre>{escape(text)}</pre>", text),
    )


@view.register
def _of_report(thing: Report) -> View:
    return View(f"Traffic: {thing.what}, IPv{thing.family}", _report_facts(thing))


def _report_facts(thing: Report) -> list[tuple[str, str]]:
    return [
        ("packets", cell(thing.packets)),
        ("bytes on the wire", cell(thing.wire_bytes)),
        ("seconds", f"{thing.seconds:.3f}"),
    ]


@view.register
def _of_ping(thing: PingReport) -> View:
    facts = [("sent", cell(thing.sent)), ("answered", cell(thing.received))]
    rtts = thing.rtts
    if rtts:
        facts.append(
            ("RTT min/mean/max ms", f"{min(rtts):.3f}/{sum(rtts) / len(rtts):.3f}/{max(rtts):.3f}")
        )
    lost = thing.lost
    if lost:
        facts.append(("lost", " ".join(map(str, lost[:10])) + (" …" if len(lost) > 10 else "")))
    return View(f"Traffic: {thing.what}, IPv{thing.family}", facts + _report_facts(thing))


@view.register
def _of_udp(thing: UdpReport) -> View:
    facts = [
        ("port", f"{thing.source_port} → {thing.port}"),
        ("sent", cell(thing.sent)),
        ("received", cell(thing.received)),
        ("payload", cell(thing.bytes_sent)),
    ]
    return View(f"Traffic: {thing.what}, IPv{thing.family}", facts + _report_facts(thing))


@view.register
def _of_tcp(thing: TcpReport) -> View:
    titles = ["port", "requests", "segments →", "segments ←", "retransmitted", "RTT µs", "cwnd"]
    rows = [
        [
            f"{found.client_port} → {found.server_port}",
            cell(found.requests),
            cell(found.packets[0]),
            cell(found.packets[1]),
            cell(found.client.total_retrans + found.server.total_retrans),
            cell(found.client.rtt),
            cell(found.client.snd_cwnd),
        ]
        for found in thing.connections[:SHOWN_ROWS]
    ]
    rest = len(thing.connections) - len(rows)
    table = Table(
        titles,
        rows,
        right=[False, True, True, True, True, True, True],
        more=f"… {cell(rest)} more" if rest else "",
    )
    facts = [
        ("requests", cell(thing.requests)),
        ("payload up", cell(thing.bytes_up)),
        ("down", cell(thing.bytes_down)),
    ]
    return View(f"Traffic: {thing.what}, IPv{thing.family}", facts + _report_facts(thing), [table])
