# SPDX-License-Identifier: Apache-2.0
"""Names, addresses, numbers, tables and the live view."""

from __future__ import annotations

import io
import ipaddress
import json
import os
import pty
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpfkit.show.address import address_text
from bpfkit.show.jsonl import json_lines
from bpfkit.show.layout import Column
from bpfkit.show.live import Frame, LiveView, render
from bpfkit.show.protocols import protocol_name, protocol_number
from bpfkit.show.text import cell, clip, human, table, width_of
from bpfkit.sockex3 import flow_rows as flows


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (0, "hopopt"),
        (1, "icmp"),
        (2, "igmp"),
        (4, "ipv4"),
        (6, "tcp"),
        (17, "udp"),
        (33, "dccp"),
        (41, "ipv6"),
        (47, "gre"),
        (50, "esp"),
        (51, "ah"),
        (58, "ipv6-icmp"),
        (61, "61"),
        (84, "iptm"),
        (89, "ospfigp"),
        (94, "ipip"),
        (99, "99"),
        (103, "pim"),
        (108, "ipcomp"),
        (112, "vrrp"),
        (114, "114"),
        (115, "l2tp"),
        (124, "isis over ipv4"),
        (132, "sctp"),
        (135, "mobility header"),
        (136, "udplite"),
        (138, "manet"),
        (143, "ethernet"),
        (147, "bit-emu"),
        (148, "148"),
        (254, "254"),
        (255, "reserved"),
    ],
)
def test_protocol_names_are_ianas(number: int, name: str) -> None:
    assert protocol_name(number) == name


def test_every_protocol_has_one_name_and_it_leads_back() -> None:
    names = [protocol_name(number) for number in range(256)]
    assert len(set(names)) == 256
    assert [protocol_number(name) for name in names] == list(range(256))
    assert protocol_number("TCP") == 6
    assert protocol_number("icmpv6") == 58
    for bad in ("256", "-1", "nope", ""):
        with pytest.raises(ValueError, match="not in list"):
            protocol_number(bad)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("0.0.0.0", "0.0.0.0"),
        ("192.0.2.1", "192.0.2.1"),
        ("2001:DB8:0:0:0:0:0:1", "2001:db8::1"),
        ("2001:db8:0:0:1:0:0:1", "2001:db8::1:0:0:1"),
        ("2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1"),
        ("::", "::"),
        ("::1", "::1"),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.1"),
    ],
)
def test_addresses_are_rfc5952(text: str, shown: str) -> None:
    assert address_text(ipaddress.ip_address(text).packed) == shown


@given(st.binary(min_size=16, max_size=16))
def test_addresses_lead_back(raw: bytes) -> None:
    text = address_text(raw)
    assert ipaddress.ip_address(text).packed == raw
    assert text == text.lower()


def test_an_address_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="length"):
        address_text(b"12345")


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0, "", "0"),
        (7, "B", "7 B"),
        (0.5, "", "0.5"),
        (999, "B", "999 B"),
        (999.6, "B", "1.00 kB"),
        (1000, "B", "1.00 kB"),
        (1499, "", "1.50 k"),
        (99_960, "", "100 k"),
        (123_456, "", "123 k"),
        (999_499, "", "999 k"),
        (999_500, "", "1.00 M"),
        (12_345_678, "bit/s", "12.3 Mbit/s"),
        (2**64, "B", "18.4 EB"),
        (-1500, "B", "-1.50 kB"),
    ],
)
def test_human_numbers(value: float, unit: str, shown: str) -> None:
    assert human(value, unit) == shown


@given(st.floats(min_value=0, max_value=1e20))
def test_human_numbers_are_short_and_near(value: float) -> None:
    number, _, prefix = human(value).partition(" ")
    assert len(number.replace(".", "")) <= 4
    scale = 1000 ** ["", "k", "M", "G", "T", "P", "E"].index(prefix)
    assert float(number) * scale == pytest.approx(value, rel=0.0051, abs=0.051)


def test_cells() -> None:
    assert [cell(v) for v in (1234567, None, True, 0.25, [1, "x"], "y")] == [
        "1 234 567",
        "-",
        "yes",
        "0.250",
        "1 x",
        "y",
    ]


def test_tables_align_numbers_to_the_right() -> None:
    lines = table(["dst", "bytes"], [["::1", "7"], ["10.0.0.1", "1234"]], right=[False, True])
    assert lines == ["dst       bytes", "::1           7", "10.0.0.1   1234"]
    assert table(["a"], []) == ["a"]
    assert clip("abcdef", 4) == "abc…"
    assert clip("abcd", 4) == "abcd"


def test_wide_characters_take_two_columns() -> None:
    assert width_of("日本") == 4
    assert clip("日本語", 4) == "日…"
    assert table(["name", "n"], [["日本", "1"], ["ab", "2"]], right=[False, True]) == [
        "name  n",
        "日本  1",
        "ab    2",
    ]


def _columns() -> list[Column]:
    return [
        Column("source", ["a" * 20, "b"]),
        Column("destination", ["c" * 15, "d"]),
        Column("bytes", ["123456", "7"], rank=0, right=True),
        Column("state", ["open", "shut"], rank=1),
        Column("bytes/s", ["1.00 k", "0"], rank=2, right=True),
    ]


def _lines(width: int, columns: list[Column] | None = None, height: int = 20) -> list[str]:
    frame = Frame("t", columns or _columns())
    return ["".join(p.text for p in line).rstrip() for line in render(frame, width, height)][1:]


def test_figures_are_left_out_by_importance_and_names_stay_whole() -> None:
    full = "source                destination       bytes  state  bytes/s"
    assert _lines(61)[0] == full
    assert _lines(60)[0] == full.removesuffix("  bytes/s")
    assert _lines(51)[0] == full.removesuffix("  state  bytes/s")
    assert _lines(45)[1] == "a" * 20 + "  " + "c" * 15 + "  123456"


def test_rows_fold_before_the_last_figure_goes() -> None:
    assert _lines(44) == [
        "source                destination",
        "   bytes  state  bytes/s",
        "a" * 20 + "  " + "c" * 15,
        "  123456  open    1.00 k",
        "b                     d",
        "       7  shut         0",
    ]
    assert _lines(30) == [
        "source",
        "  destination       bytes",
        "a" * 20,
        "  " + "c" * 15 + "  123456",
        "b",
        "  d                     7",
    ]


def test_only_a_name_wider_than_the_window_loses_its_middle() -> None:
    lines = _lines(20)
    assert lines[3] == "a" * 9 + "…" + "a" * 8
    assert "  " + "c" * 15 in lines


def test_what_the_encoding_lacks_is_written_in_ascii_and_still_aligned() -> None:
    columns = [Column("name", ["é → b", "x" * 30]), Column("n", ["1", "22"], rank=0, right=True)]
    frame = Frame("t · u", columns, notes=["…"])
    lines = ["".join(p.text for p in line) for line in render(frame, 24, 20, "ascii")]
    assert lines[0] == "t - u"
    assert all(line.isascii() for line in lines)
    assert max(map(len, lines)) <= 24
    assert any("x~x" in line for line in lines)
    assert any("\\xe9 -> b" in line for line in lines)
    latin = ["".join(p.text for p in line) for line in render(frame, 24, 20, "latin-1")]
    assert any("é -> b" in line for line in latin)
    assert latin[0] == "t · u"


def test_json_lines_keep_their_fields_and_order() -> None:
    rows = [{"ts": 1.5, "dst": "::1", "n": 2**64 - 1, "sport": None, "vlan": []}, {"x": "é\n"}]
    text = json_lines(rows)
    assert text.count("\n") == 2
    assert [json.loads(line) for line in text.splitlines()] == rows
    assert list(json.loads(text.splitlines()[0])) == ["ts", "dst", "n", "sport", "vlan"]


def test_a_frame_is_cut_to_the_rows_there_is_room_for() -> None:
    frame = Frame("t", [Column("a", map(str, range(10)))], notes=["note"], hidden=5)

    def shown(height: int) -> list[str]:
        return ["".join(p.text for p in line).strip() for line in render(frame, 20, height)]

    assert shown(8) == ["t", "a", "0", "1", "2", "3", "… and 11 more", "note"]
    assert shown(14) == ["t", "a", *map(str, range(10)), "… and 5 more", "note"]
    assert shown(1) == ["t"]


@pytest.mark.parametrize(("height", "rows", "notes"), [(24, 13, 4), (18, 9, 3), (60, 13, 8)])
def test_long_notes_take_a_third_of_the_window_before_rows_go(
    height: int, rows: int, notes: int
) -> None:
    """Events that fold onto two lines leave the table its rows; the latest ones are shown."""
    frame = Frame(
        "t",
        [Column("a", [f"row {n}" for n in range(13)])],
        notes=[f"event {n} " + "x " * 45 for n in range(8)],
    )
    lines = ["".join(p.text for p in line).strip() for line in render(frame, 80, height)]
    assert len(lines) <= height
    assert sum(line.startswith("row") for line in lines) == rows
    shown = [line.split()[1] for line in lines if line.startswith("event")]
    assert shown == [str(n) for n in range(8)][-notes:]


class _Screen(io.StringIO):
    """Standard output of a terminal of a given size."""

    def __init__(self, columns: int, lines: int) -> None:
        import fcntl
        import struct
        import termios

        super().__init__()
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def fileno(self) -> int:
        return self.slave

    def close(self) -> None:
        if not self.closed:
            os.close(self.master)
            os.close(self.slave)
        super().close()


@pytest.mark.parametrize("use_rich", [False, True])
def test_the_live_view_stays_inside_the_window(
    use_rich: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if use_rich:
        pytest.importorskip("rich")
    screen = _Screen(40, 12)
    try:
        monkeypatch.setattr(sys, "stdout", screen)
        view = LiveView(use_rich=use_rich)
        names = [f"2001:db8:1111:2222:3333:4444:5555:{i:04x}" for i in range(50)]
        columns = [Column("dst", names), Column("n", map(str, range(50)), rank=0, right=True)]
        frame = Frame("a title that is longer than the window is wide", columns)
        view.draw(frame)
        first = screen.getvalue()
        view.draw(frame)
        second = screen.getvalue()[len(first) :]
    finally:
        monkeypatch.undo()
        screen.close()
    plain = re.sub(r"\x1b\[[0-9;]*[mJF]", "", first).splitlines()
    assert len(plain) <= 11
    assert max(map(len, plain)) <= 40
    assert any("more" in line for line in plain)
    # The second frame goes over the first, not below it.
    assert second.startswith(f"\x1b[{len(plain)}F\x1b[J")


# ---------------------------------------------------------------- flows


def _flow(
    src: str = "10.0.0.1",
    dst: str = "10.0.0.2",
    sport: int | None = 1000,
    dport: int | None = 80,
    proto: int = 6,
    size: int = 100,
    packets: int = 1,
    outer: flows.Outer | None = None,
) -> flows.Flow:
    return (
        ipaddress.ip_address(src).packed,
        ipaddress.ip_address(dst).packed,
        sport,
        dport,
        proto,
        outer,
        size,
        packets,
        0,
    )


_TUNNEL: flows.Tunnel = ("gre", bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2]), 7)


def test_a_flow_as_a_row() -> None:
    assert flows.flow_row(_flow(outer=((5, 7), (_TUNNEL,)))) == {
        "src": "10.0.0.1",
        "sport": 1000,
        "dst": "10.0.0.2",
        "dport": 80,
        "proto": "tcp",
        "vlan": [5, 7],
        "tunnel": [{"type": "gre", "src": "192.0.2.1", "dst": "192.0.2.2", "id": 7}],
        "bytes": 100,
        "packets": 1,
    }
    row = flows.flow_row(_flow("::1", "2001:db8::2", None, None, 58))
    assert (row["sport"], row["dport"], row["proto"]) == (None, None, "ipv6-icmp")
    assert (row["vlan"], row["tunnel"]) == ([], [])


def test_flows_as_plain_lines() -> None:
    rows = [
        flows.flow_row(_flow(size=1234, packets=12)),
        flows.flow_row(_flow("::1", "::1", None, None, 58, outer=((5,), (_TUNNEL,)))),
    ]
    assert flows.plain_lines(rows) == [
        "IP src.port -> dst.port bytes packets proto",
        "10.0.0.1.1000 -> 10.0.0.2.80 1234 12 tcp",
        "::1           -> ::1          100  1 ipv6-icmp vlan 5 gre 192.0.2.1>192.0.2.2 id 7",
    ]
    assert flows.plain_lines([]) == ["IP src.port -> dst.port bytes packets proto"]
    assert flows.plain_lines([], lambda: "total")[-1] == "total"


def test_flows_sort_by_every_field() -> None:
    a = _flow("10.0.0.9", size=5, packets=9, sport=None, dport=None, proto=1)
    b = _flow("10.0.0.1", size=7, packets=1, sport=3)
    c = _flow("2001:db8::1", "::1", size=7, packets=2, sport=2, proto=17)
    expected = {
        "bytes": [b, c, a],
        "packets": [a, c, b],
        "src": [b, a, c],
        "dst": [b, a, c],
        "sport": [a, c, b],
        "dport": [a, b, c],
        "proto": [a, b, c],
    }
    assert set(expected) == set(flows.SORTS) - {"rate", "recent"}
    for by, order in expected.items():
        got = [a, b, c]
        flows.sort_flows(got, by)
        assert got == order, by
        got = [c, b, a]
        flows.sort_flows(got, by)
        assert got == order, by


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("10.0.0.0/8", True),
        ("10.0.0.1", True),
        ("10.0.0.2/32", True),
        ("11.0.0.0/8", False),
        ("0.0.0.0/0", True),
        ("::/0", False),
        ("10.0.0.4/30", False),
    ],
)
def test_flows_by_host(text: str, matches: bool) -> None:
    assert flows.Choice(hosts=[flows.prefix(text)])(_flow()) is matches


@given(st.ip_addresses(), st.ip_addresses(), st.integers(0, 128))
def test_prefixes_agree_with_ipaddress(
    a: ipaddress.IPv4Address | ipaddress.IPv6Address,
    b: ipaddress.IPv4Address | ipaddress.IPv6Address,
    length: int,
) -> None:
    length = min(length, a.max_prefixlen)
    network = ipaddress.ip_network(f"{a}/{length}", strict=False)
    choice = flows.Choice(hosts=[flows.prefix(f"{a}/{length}")])
    other = "192.0.2.77" if b.version == 6 else "::77"
    flow = _flow(str(b), str(b))
    assert choice(flow) is (b in network)
    assert choice(_flow(other, str(b))) is (b in network or ipaddress.ip_address(other) in network)


@pytest.mark.parametrize("bad", ["", "10.0.0.0/33", "10.0.0/8", "::1/129", "x", "1.2.3.4/", "/8"])
def test_bad_prefixes_are_refused(bad: str) -> None:
    with pytest.raises(ValueError, match=re.escape(bad)):
        flows.prefix(bad)


def test_flows_by_port_and_protocol() -> None:
    flow = _flow(sport=1000, dport=80, proto=6)
    assert not flows.Choice()
    assert flows.Choice()(flow)
    assert flows.Choice(ports=[80, 9])(flow)
    assert flows.Choice(ports=[1000])(flow)
    assert not flows.Choice(ports=[81])(flow)
    assert flows.Choice(protos=[6, 17])(flow)
    assert not flows.Choice(protos=[17])(flow)
    assert not flows.Choice(ports=[80], protos=[17])(flow)
    assert not flows.Choice(ports=[0])(_flow(sport=None, dport=None))
