# SPDX-License-Identifier: Apache-2.0
"""obj.events(): records with named fields, shown as what they are, with time limits and losses.

The expected text of addresses and times comes from the standard library.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import time

import pytest

import bpfkit
from bpfkit.core.errors import BpfkitError, InputError
from bpfkit.notebook.values import columns_of, texts

SOURCE = """
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>
#include <uapi/linux/in6.h>

struct seen {{
	u64 ns SHOWN_AS(time);
	u32 saddr SHOWN_AS(ip);
	__be32 daddr;
	struct in6_addr v6;
	u8 mac[6];
	u8 proto SHOWN_AS(proto);
	u8 more;
	__be16 port;
	u16 plain;
	u32 length SHOWN_AS(hex);
	u32 rest;
}};
{buffer}
EVENT_TYPE(events, struct seen);
BPF_TABLE("array", u32, u64, lost, 1);
BPF_HASH(other, u32, u32);
BPF_HASH(kept, u32, struct seen);

SEC("xdp")
int look(struct xdp_md *ctx)
{{
	u32 zero = 0;
	struct seen s = {{
		.ns = bpf_ktime_get_ns(),
		.saddr = bpf_htonl(0xc0000201),
		.daddr = bpf_htonl(0xc0000202),
		.mac = {{ 2, 0, 0, 0, 0, 1 }},
		.proto = 17,
		.port = bpf_htons(53),
		.plain = 7,
		.length = ctx->data_end - ctx->data,
	}};

	s.v6.in6_u.u6_addr8[0] = 0xfe;
	s.v6.in6_u.u6_addr8[1] = 0x80;
	s.v6.in6_u.u6_addr8[15] = 1;
	{send}
		count_one(lost.lookup(&zero));
	return XDP_PASS;
}}
"""
RING = SOURCE.format(
    buffer="BPF_RINGBUF_OUTPUT(events, 1);", send="if (events.ringbuf_output(&s, sizeof(s), 0))"
)
PERF = SOURCE.format(
    buffer="BPF_PERF_OUTPUT(events);", send="if (events.perf_submit(ctx, &s, sizeof(s)))"
)
SHOWN = {
    "saddr": "192.0.2.1",
    "daddr": "192.0.2.2",
    "v6": str(ipaddress.ip_address("fe80::1")),
    "mac": "02:00:00:00:00:01",
    "proto": "udp",
    "more": 0,
    "port": 53,
    "plain": 7,
    "length": "0x64",
    "rest": 0,
}


@pytest.mark.parametrize("source", [RING, PERF], ids=["ringbuf", "perf"])
def test_records_have_named_fields_and_are_shown_as_what_they_are(source: str) -> None:
    with bpfkit.load(source) as obj, obj.events("events", timeout=0.01) as events:
        before = time.time()
        obj.programs["look"].run(bytes(100), repeat=2)
        found = list(events)
        assert [(event.plain, event.length, event.port) for event in found] == [(7, 100, 53)] * 2
        assert events.fields == ("ns", *SHOWN)
        row = events.row(found[0])
        assert before - 1 < row.pop("ns") < time.time() + 1
        assert row == SHOWN
        obj.programs["look"].run(bytes(100))
        (line,) = events.json_lines()
        assert {**json.loads(line), "ns": None} == {"ns": None, **SHOWN}
        assert list(events) == [], "each event comes once, and the time limit ends the loop"


def test_a_loop_over_events_ends_where_its_reader_leaves_it() -> None:
    with bpfkit.load(RING) as obj, obj.events("events") as events:
        obj.programs["look"].run(bytes(60), repeat=3)
        for event in events:  # without a time limit
            assert event.length == 60
            break
        assert len(list(events.poll(0))) == 2, "what was not taken stays"


def test_losses_are_counted_and_said() -> None:
    """A ring of one page has room for less than 100 records of 64 bytes and a header."""
    with bpfkit.load(RING) as obj, obj.events("events", timeout=0.01) as events:
        obj.programs["look"].run(bytes(60), repeat=100)
        lines = [json.loads(line) for line in events.json_lines()]
        shown = [line for line in lines if "plain" in line]
        lost = [line["lost"] for line in lines if line.get("event") == "lost"]
        assert lost[-1] == events.lost == obj["lost"][0] == 100 - len(shown) > 0


def test_the_caller_says_how_a_field_is_shown() -> None:
    with bpfkit.load(RING) as obj:
        forms = {"plain": lambda number: f"<{number}>", "daddr": "hex"}
        with obj.events("events", timeout=0.01, forms=forms) as events:
            obj.programs["look"].run(bytes(60))
            (event,) = events
            row = events.row(event)
            assert (row["plain"], row["daddr"]) == ("<7>", "0xc0000202")


@pytest.mark.parametrize(
    "name, forms, said",
    [
        ("events", {"plane": "hex"}, "nearest: plain"),
        ("events", {"plain": "ip"}, "2 bytes"),
        ("events", {"plain": "adress"}, "the forms are"),
        ("other", {}, "sends no events"),
        ("event", {}, "nearest: events"),
    ],
)
def test_what_cannot_be_is_said(name: str, forms: dict[str, str], said: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with bpfkit.load(RING) as obj:
        with pytest.raises(InputError) as caught:
            obj.events(name, forms=forms)
        assert said in str(caught.value)
    del caught
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_maps_table_shows_fields_as_events_do() -> None:
    """The same struct: as a record, and as the value of a map."""
    with bpfkit.load(RING) as obj, obj.events("events", timeout=0.01) as events:
        obj.programs["look"].run(bytes(100))
        (event,) = events
        columns = columns_of(obj["kept"].value_layout, "value")
        as_text = dict(zip(events.fields, texts(columns, event), strict=True))
        assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3}", as_text.pop("ns"))
        assert as_text == {name: str(value) for name, value in SHOWN.items()}


def test_what_no_form_says_is_guessed_by_name() -> None:
    source = RING.replace("u32 saddr SHOWN_AS(ip)", "u8 saddr[4]").replace(
        "u8 proto SHOWN_AS(proto)", "u8 proto"
    )
    source = source.replace(".saddr = bpf_htonl(0xc0000201)", ".saddr = { 192, 0, 2, 1 }")
    with bpfkit.load(source) as obj, obj.events("events", timeout=0.01) as events:
        obj.programs["look"].run(bytes(100))
        (event,) = events
        row = events.row(event)
        assert (row["saddr"], row["proto"]) == (SHOWN["saddr"], SHOWN["proto"])


def test_records_without_a_type_are_bytes() -> None:
    source = RING.replace("EVENT_TYPE(events, struct seen);", "")
    with bpfkit.load(source) as obj, obj.events("events", timeout=0.01) as events:
        obj.programs["look"].run(bytes(60))
        (event,) = events
        assert events.fields == ()
        assert events.row(event)["data"] == bytes(event).hex()
        with pytest.raises(BpfkitError, match="EVENT_TYPE"):
            obj.events("events", forms={"plain": "hex"})


def test_events_are_among_what_is_open_until_they_are_closed() -> None:
    with bpfkit.load(RING) as obj:
        events = obj.events("events")
        assert events in bpfkit.opened()
        events.close()
        assert events not in bpfkit.opened()
        assert list(events) == []
