# SPDX-License-Identifier: Apache-2.0
"""The one header walk (bpfkit/headers.h): direct access and bpf_skb_load_bytes() find the same.

A frame goes through an XDP, a tc and a socket program that report everything the walk found.  What
must come out is said by how the frame was built, by headers_oracle, and by tshark.
"""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import NamedTuple

import pytest
from headers_oracle import ETH, EXTENSIONS, V4, V6, built, look, mutated
from running import run
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import AH
from scapy.packet import Packet, Raw
from scapy.utils import rdpcap, wrpcap

import bpfkit
from bpfkit.core.object import Object

SOURCE = """
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>
#include <bpfkit/headers.h>

struct report {
	u64 network, payload, limit;
	u8 outcome, family, proto, tags, fragment, later;
	u16 zero;
};

BPF_ARRAY(reports, struct report, 3);

static __always_inline void tell(u32 who, enum outcome outcome, const struct headers *h)
{
	struct report r = {
		.network = h->network, .payload = h->payload, .limit = h->limit,
		.outcome = outcome, .family = h->family, .proto = h->proto, .tags = h->tags,
		.fragment = h->fragment, .later = h->later_fragment,
	};

	reports.update(&who, &r);
}

SEC("xdp")
int by_xdp(struct xdp_md *ctx)
{
	struct headers h = {};
	struct window w;

	tell(0, direct_xdp(ctx, &h, &w, 14), &h);
	return XDP_PASS;
}

SEC("tc")
int by_tc(struct __sk_buff *skb)
{
	struct headers h = {};
	struct window w;

	tell(1, direct_skb_pulled(skb, &h, &w, 14), &h);
	return 0;
}

SEC("socket")
int by_socket(struct __sk_buff *skb)
{
	struct headers h = {};
	union ip_header ip;
	struct window w;

	tell(2, load_skb(skb, &h, &ip, &w, 14), &h);
	return 0;
}
"""
NOT_IP, FOUND, CUT, TOO_DEEP = range(4)
CASE = Path(__file__).parents[1] / "data" / "p15_ah.pcap"


class Report(NamedTuple):
    network: int
    payload: int
    limit: int
    outcome: int
    family: int
    proto: int
    tags: int
    fragment: int
    later: int


class Walk:
    """The three programs; the report that all of them give."""

    def __init__(self, loaded: Object) -> None:
        self.reports = loaded["reports"]
        self.programs = [loaded.programs[name] for name in ("by_xdp", "by_tc", "by_socket")]

    def __call__(self, frame: bytes) -> Report:
        found = []
        for number, program in enumerate(self.programs):
            program.run(frame)
            raw = bytes(self.reports[number])
            found.append(Report(*struct.unpack("=QQQBBBBBB2x", raw)))
        assert found[0] == found[1] == found[2], frame.hex()
        return found[0]


@pytest.fixture(scope="module")
def walk() -> Iterator[Walk]:
    with bpfkit.load(SOURCE) as loaded:
        yield Walk(loaded)


def chain(kinds: list[int], last: int, words: int = 0, frag: int = 0) -> bytes:
    """Extension headers ``kinds``, then protocol ``last``; ``words``: their length field."""
    out = b""
    for kind, after in pairwise([*kinds, last]):
        if kind == 44:
            out += struct.pack("!BBHI", after, 0, frag, 1)
        elif kind == 51:
            out += struct.pack("!BBHII", after, 4, 0, 1, 1) + bytes(12)
        else:
            out += bytes([after, words]) + bytes(6 + 8 * words)
    return out


def ipv6(kinds: list[int], last: int = 6, words: int = 0, frag: int = 0) -> bytes:
    body = chain(kinds, last, words, frag) + bytes(TCP(sport=1, dport=2))
    return bytes(ETH / IPv6(src=V6.src, dst=V6.dst, nh=[*kinds, last][0]) / Raw(body))


def ipv4(ahs: int, last: int = 6) -> bytes:
    packet: Packet = ETH / IP(src=V4.src, dst=V4.dst, proto=51 if ahs else last)
    return bytes(packet / Raw(chain([51] * ahs, last) + bytes(TCP(sport=1, dport=2))))


@pytest.mark.parametrize("kind", EXTENSIONS)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 8, 9, 31, 32, 33, 40])
def test_chains_of_one_kind(walk: Walk, kind: int, count: int) -> None:
    found = walk(ipv6([kind] * count))
    assert (found.outcome, found.family) == (TOO_DEEP if count > 32 else FOUND, 6)
    if count <= 32:
        assert found.proto == 6
        assert found.payload == 54 + count * (24 if kind == 51 else 8)


@pytest.mark.parametrize("kinds", product(EXTENSIONS, repeat=2))
@pytest.mark.parametrize("words", [0, 1, 7])
def test_chains_of_two_kinds(walk: Walk, kinds: tuple[int, int], words: int) -> None:
    found = walk(ipv6(list(kinds), words=words))
    assert (found.outcome, found.proto, found.limit) == (FOUND, 6, found.payload + 20)


@pytest.mark.parametrize("count", [0, 1, 2, 8, 31, 32, 33])
def test_ipv4_behind_authentication_headers(walk: Walk, count: int) -> None:
    found = walk(ipv4(count))
    assert (found.outcome, found.family) == (TOO_DEEP if count > 32 else FOUND, 4)
    if count <= 32:
        assert (found.proto, found.payload) == (6, 34 + 24 * count)


@pytest.mark.parametrize("kind", sorted({*EXTENSIONS, 50} - {51}))
def test_ipv4_has_no_other_extension_header(walk: Walk, kind: int) -> None:
    packet = ETH / IP(proto=kind) / Raw(bytes([6, 0]) + bytes(40))
    assert walk(bytes(packet))[3:6] == (FOUND, 4, kind)
    found = walk(ipv4(1, last=kind))
    assert (found.proto, found.payload) == (kind, 58), "nor behind AH"


@pytest.mark.parametrize("kinds", [[44], [60, 44], [44, 60], [51, 44, 51]])
def test_fragments(walk: Walk, kinds: list[int]) -> None:
    at = kinds.index(44)
    after = [*kinds, 6][at + 1]
    whole, first, later = (walk(ipv6(kinds, frag=frag)) for frag in (0, 1, 8))
    assert (whole.proto, whole.fragment, whole.later) == (6, 0, 0), "an atomic fragment"
    assert (first.proto, first.fragment, first.later) == (6, 1, 0)
    assert (later.proto, later.fragment, later.later) == (after, 1, 1)


def test_ipv4_fragments_with_ah(walk: Walk) -> None:
    body = Raw(chain([51], 6) + bytes(20))
    first, later = (
        walk(bytes(ETH / IP(proto=51, flags=flags, frag=frag) / body))
        for flags, frag in (("MF", 0), (0, 3))
    )
    assert (first.proto, first.fragment, first.later) == (6, 1, 0)
    assert (later.proto, later.fragment, later.later) == (51, 1, 1)


def test_esp_ends_the_walk(walk: Walk) -> None:
    assert walk(ipv6([60], last=50))[3:6] == (FOUND, 6, 50)
    assert walk(ipv6([50]))[3:6] == (FOUND, 6, 50)


@pytest.mark.parametrize(
    "frame", [ipv6([0, 43, 44, 60, 51]), ipv6([135, 139, 140], words=2), ipv4(2)]
)
def test_every_cut(walk: Walk, frame: bytes) -> None:
    # the kernel refuses to run tc and socket programs on less than an IP header
    for size in range(34 if frame[12:14] == b"\x08\0" else 54, len(frame)):
        found, expected = walk(frame[:size]), look(frame[:size])
        if found.outcome == FOUND:
            assert (found.family, found.proto) == (expected.family, expected.proto)
        else:
            assert expected.family == 0, "cut"
            assert found.outcome == CUT
    assert walk(frame).outcome == FOUND


def test_a_wrong_ah_length_is_cut(walk: Walk) -> None:
    for frame in (ipv4(1), ipv6([51])):
        at = 14 + (20 if frame[12:14] == b"\x08\0" else 40)
        assert walk(frame[: at + 1] + b"\0" + frame[at + 2 :]).outcome == CUT
        assert walk(frame[: at + 1] + b"\xff" + frame[at + 2 :]).outcome == CUT


def test_random_frames(walk: Walk) -> None:
    rng = random.Random(8)
    for _ in range(1500):
        frame, version, proto = built(rng)
        found = walk(frame)
        assert (found.family, found.proto) == (version, proto)
        for _ in range(2):
            changed = mutated(rng, frame)
            if len(changed) < 54:
                continue
            found, expected = walk(changed), look(changed)
            assert (found.outcome == TOO_DEEP) == expected.deep, changed.hex()
            if found.outcome == FOUND:
                assert (found.family, found.proto, bool(found.later)) == expected[:3]


@pytest.mark.skipif(not shutil.which("tshark"), reason="tshark is not installed")
def test_tshark_agrees(walk: Walk, tmp_path: Path) -> None:
    frames = [ipv4(count) for count in range(4)]
    frames += [ipv6([kind] * n) for kind in (0, 43, 44, 51, 60) for n in range(4)]
    frames += [bytes(ETH / V4 / UDP(sport=1, dport=2)), *map(bytes, rdpcap(str(CASE)))]
    wrpcap(str(tmp_path / "all.pcap"), [Raw(frame) for frame in frames], linktype=1)
    said = subprocess.run(
        ["tshark", "-nr", str(tmp_path / "all.pcap"), "-T", "fields", "-e", "tcp.srcport"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    ).stdout.split("\n")[: len(frames)]
    assert [walk(frame).proto == 6 for frame in frames] == [bool(line) for line in said]
    for frame, line in zip(frames, said, strict=True):
        if line:
            at = walk(frame).payload
            assert int.from_bytes(frame[at : at + 2], "big") == int(line)


@pytest.mark.parametrize("program", ["xdp_drop_tcp", "tc_drop_tcp"])
def test_tcp_behind_ah_is_dropped(program: str) -> None:
    done = run(program, "--pcap", str(CASE), check=True)
    drop = "XDP_DROP" if program.startswith("xdp") else "TC_ACT_SHOT"
    assert [line.split()[1] for line in done.stdout.splitlines()[:2]] == [drop, drop]


@pytest.mark.parametrize("program", ["sockex1", "sockex3"])
def test_tcp_behind_ah_is_counted_as_tcp(program: str) -> None:
    done = run(program, "--pcap", str(CASE), "--json", check=True)
    assert done.stdout.count('"tcp"') == (1 if program == "sockex1" else 2)
    if program == "sockex3":
        assert done.stdout.count('"dport": 443, "proto": "tcp"') == 2


def test_scapy_builds_the_same_ah() -> None:
    assert bytes(AH(nh=6, payloadlen=4, spi=1, seq=1, icv=bytes(12))) == chain([51], 6)
