# SPDX-License-Identifier: Apache-2.0
"""Every XDP and tc program over the corpus: verdicts, counters, and what lies behind the end.

One capture for all of them: every prefix of every frame of the corpus, and RANDOM random and
mutated frames.  Each program judges it as the user lets it, ``python3 -m bpfkit.NAME --pcap FILE``,
and each verdict is compared with what an oracle in plain Python says, which is compared with what
scapy and tshark say.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import struct
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from socket import AF_INET6, inet_aton, inet_pton
from typing import Any, NamedTuple

import pytest
from corpus import (
    OWN4,
    OWN6,
    differing,
    frames,
    pcap_file_verdicts,
    random_frames,
    stock,
    truncated,
    write_pcap,
)
from headers_oracle import EXTENSIONS, VLAN, drops_icmp, drops_tcp, look

import bpfkit
from bpfkit.app.interface import InterfaceApp
from bpfkit.app.options import parser_of
from bpfkit.app.tc import TcApp
from bpfkit.core.object import Object
from bpfkit.tc_classifier import TcClassifier
from bpfkit.tc_drop_tcp import TcDropTcp
from bpfkit.xdp_afxdp.program import XdpAfxdp
from bpfkit.xdp_drop_icmp import XdpDropIcmp
from bpfkit.xdp_drop_tcp import XdpDropTcp
from bpfkit.xdp_drop_world import XdpDropWorld

RANDOM = 200_000  # random and mutated frames, for each program
COUNTED = 30_000  # of them whose counters are looked at as well

NO_TYPE4, NO_TYPE6, TOO_DEEP, PASSED = 512, 513, 514, 515  # rows of xdp_drop_icmp
NO_PROTO = 256
XDP = ("XDP_PASS", "XDP_DROP")
TC = ("TC_ACT_UNSPEC", "TC_ACT_SHOT")
UNSPEC = 0xFFFFFFFF


# --- what must come out ---------------------------------------------------------------------------


def icmp_row(frame: bytes, keep_nd: bool = False) -> int:
    """The row of xdp_drop_icmp's map that a frame is counted in."""
    found = look(frame)
    if found.deep:
        return TOO_DEEP
    if (found.family, found.proto) not in ((4, 1), (6, 58)):
        return PASSED
    if found.later or found.first is None:
        return NO_TYPE4 if found.family == 4 else NO_TYPE6
    if found.family == 4:
        return found.first
    return PASSED if keep_nd and 133 <= found.first <= 137 else 256 + found.first


def tcp_row(frame: bytes) -> int:
    """The row of xdp_drop_tcp's and tc_drop_tcp's map."""
    found = look(frame)
    if found.deep:
        return 4
    if not found.family or found.proto != 6:
        return 5
    return (found.family == 6) + 2 * found.later


def afxdp_kind(frame: bytes) -> int:
    """0 ARP, 1 neighbour solicitation, 2 IPv4, 3 IPv6: for the socket; 4: for the kernel."""
    at, kind, tags = 14, frame[12:14], 0
    while int.from_bytes(kind, "big") in VLAN and len(kind) == 2:
        if tags == 8 or len(frame) < at + 4:
            return 4
        kind, at, tags = frame[at + 2 : at + 4], at + 4, tags + 1
    body = frame[at:]
    own4, own6 = inet_aton(OWN4), inet_pton(AF_INET6, OWN6)
    if kind == b"\x08\x06":
        asks = len(body) >= 28 and body[2:8] == bytes.fromhex("080006040001")
        return 0 if asks and body[24:28] == own4 else 4
    if kind == b"\x08\x00":
        return 2 if len(body) >= 20 and body[0] >> 4 == 4 and body[16:20] == own4 else 4
    if kind != b"\x86\xdd" or len(body) < 40 or body[0] >> 4 != 6:
        return 4
    if body[6] == 58 and len(body) >= 64 and body[40] == 135:
        return 1 if body[48:64] == own6 else 4
    return 3 if body[24:40] == own6 else 4


def traffic_class(frame: bytes) -> tuple[int, int]:
    """(protocol, DSCP) as tc_classifier has it: it looks through four tags and 32 headers."""
    found = look(frame, 4)
    return (found.proto, found.dscp) if found.family else (NO_PROTO, 0)


def policed(frame: bytes) -> bool:
    """By POLICE: TCP, and DSCP 46 of any protocol."""
    proto, dscp = traffic_class(frame)
    return proto == 6 or (proto != NO_PROTO and dscp == 46)


#: A bucket of one byte, into which no packet fits: what the rule matches is always dropped.
POLICE = ("--rule", "tcp,police=8bit,burst=1", "--rule", "dscp=46,police=8bit,burst=1")

Judge = Callable[[bytes], str]
PROGRAMS: list[tuple[str, tuple[str, ...], Judge]] = [
    ("xdp_drop_world", (), lambda _: "XDP_DROP"),
    ("xdp_drop_icmp", (), lambda f: XDP[drops_icmp(f)]),
    ("xdp_drop_icmp", ("--keep-nd",), lambda f: XDP[icmp_row(f, True) != PASSED]),
    ("xdp_drop_tcp", (), lambda f: XDP[drops_tcp(f)]),
    ("xdp_afxdp", (), lambda f: "XDP_PASS" if afxdp_kind(f) == 4 else "XDP_REDIRECT"),
    ("tc_drop_tcp", (), lambda f: TC[drops_tcp(f)]),
    ("tc_classifier", (), lambda _: "TC_ACT_UNSPEC"),
    ("tc_classifier", ("--direction", "ingress", *POLICE), lambda f: TC[policed(f)]),
    ("tc_classifier", ("--direction", "egress", *POLICE), lambda f: TC[policed(f)]),
]


# --- the oracle itself ----------------------------------------------------------------------------


def test_the_oracle_agrees_with_scapy() -> None:
    """What scapy was told to build is what the oracle finds in it."""
    for frame, version, proto in stock():
        assert drops_tcp(frame) == (proto == 6), frame.hex()
        assert drops_icmp(frame) == ((version, proto) in ((4, 1), (6, 58))), frame.hex()


#: tshark's fields of the outermost IP header's chain, and what of it is the protocol behind.
NEXT = ("ipv6.nxt", "ipv6.hopopts.nxt", "ipv6.routing.nxt", "ipv6.fraghdr.nxt", "ipv6.dstopts.nxt")


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_the_oracle_agrees_with_tshark(tmp_path: Path) -> None:
    """By Wireshark's dissectors: the protocol of the outermost IP header, where they tell it."""
    path = tmp_path / "corpus.pcap"
    shown = [frame for frame in frames() if frame]
    write_pcap(path, shown)
    command = ["tshark", "-r", str(path), "-o", "ip.defragment:FALSE", "-o"]
    command += ["ipv6.defragment:FALSE", "-T", "fields", "-E", "occurrence=f"]
    for field in ("frame.protocols", "ip.proto", *NEXT, "_ws.malformed"):
        command += ["-e", field]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    compared = {4: 0, 6: 0}
    for frame, line in zip(shown, done.stdout.splitlines(), strict=True):
        layers, proto, *nexts, malformed = line.split("\t")
        names = [name for name in layers.split(":") if name not in ("eth", "ethertype", "vlan")]
        found = look(frame)
        if malformed or found.deep or not names or names[0] not in ("ip", "ipv6"):
            continue
        if names[0] == "ip":
            # with a wrong length or version tshark goes its own ways
            if not proto or not found.family:
                continue
            assert (found.family, found.proto) == (4, int(proto)), (frame.hex(), line)
            compared[4] += 1
        elif found.family and names[1:2] != ["ipv6"] and "ah" not in names:
            chain = [int(nxt) for nxt in nexts if nxt]
            ends = [nxt for nxt in chain if nxt not in (0, 43, 44, 60)]
            # to tshark Mobility, HIP and Shim6 headers are payload
            tunnel = "ip" in names[1:] or "ipv6" in names[1:]
            if len(ends) == 1 and ends[0] not in EXTENSIONS and not tunnel:
                assert (found.family, found.proto) == (6, ends[0]), (frame.hex(), line)
                compared[6] += 1
    assert min(compared.values()) >= 100, f"tshark told too little: {compared}"


# --- through --pcap -------------------------------------------------------------------------------


class Capture(NamedTuple):
    """A capture file and what is in it."""

    path: Path
    frames: list[bytes]


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Capture]:
    """Every prefix of every frame of the corpus, then the random ones."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.pcap"
    shown = truncated(frames())
    assert set(frames()) <= set(shown)
    shown += random_frames(1, RANDOM)
    write_pcap(path, shown)
    yield Capture(path, shown)
    path.unlink()


@pytest.mark.parametrize(
    ("name", "args", "judge"), PROGRAMS, ids=[" ".join([p[0], *p[1]]) for p in PROGRAMS]
)
def test_no_wrong_verdict_on_the_corpus_every_prefix_of_it_and_200000_random_frames(
    capture: Capture, name: str, args: tuple[str, ...], judge: Judge
) -> None:
    actions = pcap_file_verdicts(name, capture.path, *args)
    wanted = [judge(frame) for frame in capture.frames]
    assert len(actions) == len(wanted) >= RANDOM
    if actions != wanted:
        pytest.fail(f"wrong verdicts: {differing(capture.frames, actions, wanted)}")
    assert "XDP_ABORTED" not in actions


# --- counters -------------------------------------------------------------------------------------


@contextlib.contextmanager
def judged(cls: type[InterfaceApp], path: Path, *args: str) -> Iterator[Object]:
    """``--pcap`` in this process, to look into the maps afterwards."""
    app = cls(parser_of(cls).parse_args(["--pcap", str(path), "--json", *args]))
    try:
        app.check_options()
        with contextlib.redirect_stdout(io.StringIO()):
            app.run_capture(str(path))
        yield app.object
    finally:
        app.close()


def as_run(cls: type[InterfaceApp], frame: bytes) -> bytes:
    """The frame as a packet run can have it, see InterfaceApp.frame_of()."""
    return cls.frame_of(cls.__new__(cls), frame)


def length(cls: type[InterfaceApp], frame: bytes) -> int:
    """Bytes of it."""
    return len(as_run(cls, frame))


@pytest.fixture(scope="module")
def part(capture: Capture) -> Iterator[Capture]:
    """The capture, with fewer of the random frames."""
    path = capture.path.with_name("part.pcap")
    shown = capture.frames[: COUNTED - RANDOM]
    write_pcap(path, shown)
    yield Capture(path, shown)
    path.unlink()


COUNTERS: list[tuple[type[InterfaceApp], str, Callable[[bytes], int]]] = [
    (XdpDropWorld, "dropped", lambda _: 0),
    (XdpDropIcmp, "types", icmp_row),
    (XdpDropTcp, "rows", tcp_row),
    (XdpAfxdp, "taken", afxdp_kind),
    (TcDropTcp, "rows", tcp_row),
]


@pytest.mark.parametrize(("cls", "table", "row"), COUNTERS, ids=[c[0].name for c in COUNTERS])
def test_every_packet_and_byte_is_counted_once_and_in_its_row(
    part: Capture, cls: type[InterfaceApp], table: str, row: Callable[[bytes], int]
) -> None:
    wanted: dict[int, tuple[int, int]] = {}
    for frame in part.frames:
        packets, size = wanted.get(row(frame), (0, 0))
        wanted[row(frame)] = packets + 1, size + length(cls, frame)
    with judged(cls, part.path) as made:
        got = {key: (sums.packets, sums.bytes) for key, sums in made[table].sums() if sums.packets}
    assert got == wanted
    assert sum(packets for packets, _ in got.values()) == len(part.frames)
    assert sum(size for _, size in got.values()) == sum(length(cls, f) for f in part.frames)


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_every_packet_and_byte_is_counted_once_and_in_its_class(
    part: Capture, direction: str
) -> None:
    side = int(direction == "egress")
    wanted: dict[tuple[int, int, int], tuple[int, int, int, int]] = {}
    for frame in part.frames:
        key = (side, *traffic_class(frame))
        packets, size, *_ = wanted.get(key, (0, 0, 0, 0))
        wanted[key] = packets + 1, size + length(TcClassifier, frame), 0, 0
    with judged(TcClassifier, part.path, "--direction", direction) as made:
        got = {(key.direction, key.proto, key.dscp): tuple(v) for key, v in made["counts"].sums()}
    assert got == wanted
    assert sum(row[0] for row in got.values()) == len(part.frames)


# --- behind the end -------------------------------------------------------------------------------

#: Takes as many bytes off the end of the frame as its last two say, and goes on to the program:
#: they are still there in memory, behind data_end.
CUT = """
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>
BPF_PROG_ARRAY(next, 1);

SEC("%(section)s")
int cut(struct %(context)s *ctx)
{
	u64 len = %(len)s;
	u16 off = 0;

	if (len < 16 || bpf_%(load)s_load_bytes(ctx, len - 2, &off, 2) || off > len - 14)
		return -2;
	if (%(cut)s)
		return -2;
	next.call(ctx, 0);
	return -2;
}
"""
XDP_CUT = {
    "context": "xdp_md",
    "len": "ctx->data_end - ctx->data",
    "load": "xdp",
    "cut": "bpf_xdp_adjust_tail(ctx, -(int)off)",
}
TC_CUT = {
    "context": "__sk_buff",
    "len": "ctx->len",
    "load": "skb",
    "cut": "bpf_skb_change_tail(ctx, len - off, 0)",
}


def garbage(frame: bytes, size: int, kind: int) -> bytes:
    """What is put behind the first ``size`` bytes: how the frame goes on, or what misleads most."""
    if kind == 0:
        return frame[size:] + bytes(48)
    if kind == 1:
        return b"\x06" * 64
    return bytes([58, 0, 0, 0, 0, 0, 0, 0]) + bytes.fromhex("08004500003c") + b"\xff" * 48


def owns(made: Object) -> None:
    """Give xdp_afxdp the addresses that the corpus asks for."""
    made["addresses"][bytes(10) + b"\xff\xff" + inet_aton(OWN4)] = 1
    made["addresses"][inet_pton(AF_INET6, OWN6)] = 1


class Case(NamedTuple):
    """A program; the verdict that a frame must get, and the row that it must be counted in."""

    cls: type[InterfaceApp]
    verdict: Callable[[bytes], int]
    table: str
    row: Callable[[bytes], Any]


BEHIND = [
    Case(XdpDropTcp, lambda f: 2 - drops_tcp(f), "rows", tcp_row),
    Case(XdpDropIcmp, lambda f: 2 - drops_icmp(f), "types", icmp_row),
    # no socket at the queue: the kernel gets them, the counters tell
    Case(XdpAfxdp, lambda _: 2, "taken", afxdp_kind),
    Case(TcDropTcp, lambda f: 2 if drops_tcp(f) else UNSPEC, "rows", tcp_row),
    Case(TcClassifier, lambda _: UNSPEC, "counts", traffic_class),
]


@pytest.mark.parametrize("case", BEHIND, ids=[case.cls.name for case in BEHIND])
def test_no_read_past_the_packet_whatever_lies_in_memory_behind_its_end(case: Case) -> None:
    """Every prefix of the corpus twice, with the frame's rest and with garbage behind data_end."""
    tc = issubclass(case.cls, TcApp)
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(bpfkit.load(case.cls.source))
        program = next(iter(made.programs.values()))
        words = {**(TC_CUT if tc else XDP_CUT), "section": program.section.name}
        cut = stack.enter_context(bpfkit.load(CUT % words))
        cut["next"][0] = program
        if case.cls is XdpAfxdp:
            owns(made)
        run = cut.programs["cut"].runner(skb=tc)
        wanted: Counter[Any] = Counter()
        for number, frame in enumerate(frames()):
            for size in range(14, min(len(frame), 200) + 1):
                head = frame[:size]
                verdict, row = case.verdict(head), case.row(head)
                for kind in (0, 1 + (number & 1)):
                    behind = garbage(frame, size, kind)
                    got = run(head + behind + (len(behind) + 2).to_bytes(2, "little"))
                    assert got == verdict, (head.hex(), behind.hex())
                wanted[row] += 2
        rows = made[case.table].sums()
        counted = {
            (key.proto, key.dscp) if case.cls is TcClassifier else key: sums.packets
            for key, sums in rows
            if sums.packets
        }
        assert counted == wanted
        assert sum(wanted.values()) > 100_000


@pytest.mark.parametrize("cls", [XdpDropTcp, XdpDropIcmp, TcDropTcp, TcClassifier])
def test_what_follows_the_ip_packet_in_the_frame_is_no_part_of_it(
    cls: type[InterfaceApp], tmp_path: Path
) -> None:
    """Frames whose IP length ends where they do: padding, whatever is in it, changes nothing."""
    whole = [frame for frame in frames() if ends_with_its_packet(frame)]
    assert len(whole) > 300
    args = POLICE if cls is TcClassifier else ()
    verdicts = []
    for padding in (b"", b"\x06" * 46, bytes([58, 0, 0, 0, 0, 0, 0, 0]) * 5):
        path = tmp_path / "padded.pcap"
        write_pcap(path, [frame + padding for frame in whole])
        verdicts.append(pcap_file_verdicts(cls.name, path, *args))
    assert verdicts[0] == verdicts[1] == verdicts[2]
    assert len(set(verdicts[0])) == 2


def ends_with_its_packet(frame: bytes) -> bool:
    """An IP packet without tags, as long as its header says."""
    if frame[12:14] == b"\x08\x00":
        return int.from_bytes(frame[16:18], "big") == len(frame) - 14
    size = int.from_bytes(frame[18:20], "big")
    return frame[12:14] == b"\x86\xdd" and size > 0 and size + 40 == len(frame) - 14


# --- programs without --pcap ----------------------------------------------------------------------


def is_the_packet(frame: bytes, short: int) -> bool:
    """What a probe of `hooks` looks for here: UDP to port 53 of 192.0.2.2, with a tag or without.

    :param short: bytes that it is content with where there are not 72.
    """
    if len(frame) < short:
        return False
    head = frame[:72] if len(frame) >= 72 else frame[:short].ljust(72, b"\0")

    def ip(at: int) -> bool:
        six = head[at] >> 4 == 6
        proto, dst, port = (6, 36, 42) if six else (9, 16, 22)
        found = head[at + proto], head[at + dst : at + dst + 4], head[at + port : at + port + 2]
        return (six or head[at] == 0x45) and found == (17, b"\xc0\0\2\2", b"\0\x35")

    kind = head[12:14]
    if kind in (b"\x08\x00", b"\x86\xdd") and ip(14):
        return True
    return (kind == b"\x81\x00" and ip(18)) or ip(0)


@pytest.mark.parametrize(
    ("name", "hook", "short", "verdicts"),
    [("xdp_native", 0, 72, (2, 1)), ("tc_ingress", 4, 40, (UNSPEC, 2))],
)
def test_a_probe_of_hooks_drops_the_packet_and_none_of_200000_others(
    capture: Capture, name: str, hook: int, short: int, verdicts: tuple[int, int]
) -> None:
    zero = dict.fromkeys("drop_ifindex drop_place push vlan".split(), 0)
    (dst,) = struct.unpack("=I", b"\xc0\0\2\2")
    with bpfkit.load("misc/hooks.bpf.c", programs=[name]) as made:
        made["control"][0] = {"proto": 17, "dst": dst, "port": 53, "drop_hook": hook + 1, **zero}
        run = made.programs[name].runner(skb=name != "xdp_native")
        dropped = 0
        for frame in capture.frames:
            given = as_run(TcDropTcp if short == 40 else XdpDropTcp, frame)
            it_is = is_the_packet(given, short)
            assert run(given) == verdicts[it_is], frame.hex()
            dropped += it_is
    assert dropped > 1000


@pytest.mark.parametrize("one_in", [0, 2, 7])
def test_the_action_drops_every_nth_of_200000_and_counts_all(capture: Capture, one_in: int) -> None:
    shown = capture.frames[-RANDOM:]
    with bpfkit.load("tc/tc_action.bpf.c", consts={"one_in": one_in}) as made:
        run = made.programs["tc_action"].runner()
        got = [run(as_run(TcDropTcp, frame)) for frame in shown]
        sums = made["sums"][0]
    wanted = [2 if one_in and n % one_in == 0 else 0 for n in range(1, len(shown) + 1)]
    assert got == wanted
    assert (sums.matched, sums.dropped) == (RANDOM, wanted.count(2))


def test_the_action_counts_exactly_on_several_cpus() -> None:
    frame = bytes(60)
    with bpfkit.load("tc/tc_action.bpf.c", consts={"one_in": 3}) as made:

        def many() -> int:
            run = made.programs["tc_action"].runner()
            return sum(run(frame) == 2 for _ in range(30_000))

        with ThreadPoolExecutor(4) as pool:
            dropped = sum(future.result() for future in [pool.submit(many) for _ in range(4)])
        sums = made["sums"][0]
    assert (sums.matched, sums.dropped) == (120_000, 40_000)
    assert dropped == 40_000
