# SPDX-License-Identifier: Apache-2.0
"""xdp_firewall, frame by frame: verdicts against firewall_oracle, rules edited meanwhile."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest
from corpus import differing, frames, pcap_verdicts, random_frames, truncated
from firewall_oracle import Oracle, facts
from headers_oracle import ETH
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import GRE, Dot1Q
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

import bpfkit
from bpfkit.core.errors import InputError
from bpfkit.core.maps.base import MapFullError
from bpfkit.xdp_firewall.control import MAPS, Firewall, templates
from bpfkit.xdp_firewall.program import XdpFirewall
from bpfkit.xdp_firewall.rules import Rule, RuleSet, parse_rule

RANDOM = 200_000
PASS, DROP = 2, 1
FRONTS = ("bits", "bloom", "none")


class Loaded:
    """The program with an empty list."""

    def __init__(self, front: str = "bits", most: int = 1 << 22, **consts: int) -> None:
        kind = FRONTS.index(front)
        consts["front_kind"] = {"bits": 1, "bloom": 2, "none": 0}[front] if kind >= 0 else 0
        self.templates = templates()
        self.object = bpfkit.load(XdpFirewall.source, consts=consts, reuse_maps=self.templates)
        self.firewall = Firewall({name: self.object[name] for name in MAPS}, "test")
        self.firewall.start(front, most)
        self._run = self.object.programs["xdp_firewall"].runner(skb=False)
        self._frame_of = XdpFirewall.frame_of.__get__(XdpFirewall.__new__(XdpFirewall))

    def add(self, *texts: str) -> int:
        return self.firewall.add(parse_rule(text) for text in texts)

    def delete(self, *texts: str) -> None:
        self.firewall.delete(parse_rule(text) for text in texts)

    def load(self, *texts: str) -> int:
        return self.firewall.load(RuleSet(parse_rule(text) for text in texts))

    def drops(self, frame: bytes | Packet) -> bool:
        verdict = self._run(self._frame_of(bytes(frame)), 0)
        assert verdict in (PASS, DROP)
        return verdict == DROP

    def rules(self) -> dict[str, tuple[int, int]]:
        """Rule -> packets, bytes."""
        found = {}
        for _, address, length, action, packets, size in self.firewall.prefixes():
            found[str(Rule(action, address, length))] = packets, size
        found.update({str(rule): (packets, size) for rule, packets, size in self.firewall.others()})
        return found

    def close(self) -> None:
        self.object.close()
        for one in self.templates.values():
            one.close()


@pytest.fixture
def wall() -> Iterator[Loaded]:
    made = Loaded()
    yield made
    made.close()


def v4(source: str, payload: Packet | None = None) -> bytes:
    return bytes(
        ETH / IP(src=source, dst="10.0.0.1") / (UDP(dport=9) if payload is None else payload)
    )


def v6(source: str, payload: Packet | None = None) -> bytes:
    return bytes(
        ETH / IPv6(src=source, dst="fd00::1") / (UDP(dport=9) if payload is None else payload)
    )


def random_rules(rng: random.Random, count: int) -> list[str]:
    """Rules around the addresses of the corpus, so that they matter; no prefix twice."""
    texts: dict[str, str] = {}
    bases = {4: 0xC0000201, 6: 0x20010DB8 << 96 | 1}
    for _ in range(count):
        kind = rng.random()
        action = rng.choice(("deny ", "deny ", "allow ", ""))
        if kind < 0.7:
            family = rng.choice((4, 6))
            bits = 32 if family == 4 else 128
            length = rng.choice(
                (0, 1, 7, 8, 24, 30, 31, 32, bits, bits - 1, rng.randrange(bits + 1))
            )
            address = bases[family] ^ (rng.getrandbits(bits) >> rng.randrange(bits))
            net = ip_network((address >> bits - length << bits - length, length))
            if length == 0 and rng.random() < 0.8:
                continue
            texts[str(net)] = f"{action}{net}"
        elif kind < 0.9:
            proto = rng.choice(("tcp", "tcp", "udp", "sctp", "udplite", "dccp"))
            low = rng.choice((0, 9, 53, 80, 443, rng.randrange(65536)))
            high = rng.choice((low, low, min(65535, low + rng.randrange(2000)), 65535))
            what = f"{proto}/{low}" if low == high else f"{proto}/{low}-{high}"
            texts[what] = action + what
        else:
            proto = rng.choice(("icmp", "tcp", "gre", "esp", "ipv6-icmp", "253"))
            texts[f"proto {proto}"] = f"{action}proto {proto}"
    return list(texts.values())


# --- verdicts -----------------------------------------------------------------------------------


def test_the_longest_prefix_decides(wall: Loaded) -> None:
    wall.add("10.0.0.0/8", "allow 10.1.0.0/16", "10.1.2.0/24", "allow 10.1.2.3")
    for source, drops in (
        ("10.9.9.9", True),
        ("10.1.9.9", False),
        ("10.1.2.9", True),
        ("10.1.2.3", False),
        ("11.0.0.1", False),
    ):
        assert wall.drops(v4(source)) == drops, source
        assert wall.drops(v6(f"::ffff:{source}")) is False, "an IPv6 address is no IPv4 one"
    wall.add("2001:db8::/32", "allow 2001:db8:1::/48", "2001:db8:1:2::/64", "allow 2001:db8:1:2::3")
    for source, drops in (
        ("2001:db8:9::", True),
        ("2001:db8:1:9::1", False),
        ("2001:db8:1:2::9", True),
        ("2001:db8:1:2::3", False),
        ("2001:db9::1", False),
    ):
        assert wall.drops(v6(source)) == drops, source


def test_addresses_before_ports_before_protocols(wall: Loaded) -> None:
    wall.add("allow 10.0.0.0/8", "tcp/80", "allow tcp/443", "proto tcp", "udp/5-9", "allow udp/7")
    assert not wall.drops(v4("10.0.0.1", TCP(dport=80)))
    assert wall.drops(v4("11.0.0.1", TCP(dport=80)))
    assert not wall.drops(v4("11.0.0.1", TCP(dport=443)))
    assert wall.drops(v4("11.0.0.1", TCP(dport=22)))
    assert not wall.drops(v4("11.0.0.1", TCP(dport=443, sport=80))), "the destination's port"
    assert [wall.drops(v6("2001:db8::1", UDP(dport=port))) for port in range(4, 11)] == [
        False, True, True, False, True, True, False,
    ]  # fmt: skip
    assert not wall.drops(v4("11.0.0.1", SCTP(dport=80)))


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("default", ["pass", "drop"])
def test_the_corpus_truncated_at_every_byte(front: str, default: str) -> None:
    texts = ["192.0.2.0/24", "allow 192.0.2.1", "allow 2001:db8::/64", "2001:db8::/32"]
    texts += ["tcp/80", "udp/53-100", "proto icmp", "allow proto ipv6-icmp", "sctp/2"]
    wall = Loaded(front, drop_rest=int(default == "drop"))
    for rules in (texts, texts[4:]):
        wall.load(*rules)
        oracle = Oracle(rules, default == "drop")
        every = truncated(frames()) if front == "bits" else frames()
        wrong = [f.hex() for f in every if wall.drops(f) != oracle.drops(f)]
        assert not wrong, (len(wrong), sorted(wrong, key=len)[:3])
    wall.close()


def test_random_frames_and_rules() -> None:
    rng = random.Random(6)
    walls = [Loaded(front) for front in FRONTS]
    sets = 12
    dropped = looked = 0
    for number in range(sets):
        wall = walls[number % 3]
        texts = random_rules(rng, rng.choice((3, 15, 60)))
        oracle = Oracle(texts)
        if number < 6:
            wall.load(*texts)
        else:  # by hand, over what was there before
            wall.load()
            for at in range(0, len(texts), 20):
                wall.add(*texts[at : at + 20])
        targets = [net for net in oracle.networks if net.prefixlen]
        for frame in random_frames(number, RANDOM // sets):
            found = facts(frame)
            if found.source and targets and rng.random() < 0.6:
                net = rng.choice(targets)
                size = net.max_prefixlen // 8
                if size == len(found.source):
                    host = rng.getrandbits(net.max_prefixlen) >> net.prefixlen
                    source = int(net.network_address) | host
                    source ^= 1 << rng.randrange(8 * size) if rng.random() < 0.3 else 0
                    at = found.source_at
                    frame = frame[:at] + source.to_bytes(size, "big") + frame[at + size :]
            drops = wall.drops(frame)
            assert drops == oracle.drops(frame), (frame.hex(), texts)
            dropped += drops
            looked += 1
    assert looked >= RANDOM - sets
    assert looked / 10 < dropped < looked * 0.9, "rules that matter"
    for wall in walls:
        wall.close()


def test_ports_and_fragments(wall: Loaded) -> None:
    wall.add("udp/53")
    first = IP(src="10.0.0.1", dst="10.0.0.2", flags="MF", proto=17)
    later = IP(src="10.0.0.1", dst="10.0.0.2", frag=1, proto=17)
    looks_like = UDP(dport=53) / Raw(bytes(8))
    assert wall.drops(ETH / first / looks_like), "the first fragment has the ports"
    assert not wall.drops(ETH / later / looks_like), "a later one has none"
    six = IPv6(src="fd00::1", dst="fd00::2")
    assert wall.drops(ETH / six / IPv6ExtHdrFragment(m=1) / looks_like)
    assert wall.drops(ETH / six / IPv6ExtHdrFragment() / looks_like), "an atomic fragment is whole"
    assert not wall.drops(ETH / six / IPv6ExtHdrFragment(offset=1, nh=17) / looks_like)
    # the headers go on in the next fragment: nobody can tell what it is (RFC 7112)
    chain = Raw(bytes([17, 2]) + bytes(6))
    assert wall.drops(ETH / six / IPv6ExtHdrFragment(m=1, nh=60) / chain)
    assert not wall.drops(ETH / six / IPv6ExtHdrDestOpt(len=9)), "not a fragment: just cut off"
    wall.add("proto udp")
    assert wall.drops(ETH / later / looks_like), "a protocol applies to all of them"
    wall.add("allow 10.0.0.1", "allow fd00::1")
    assert not wall.drops(ETH / six / IPv6ExtHdrFragment(m=1, nh=60) / chain)


def test_pcap_rows(tmp_path: Path) -> None:
    texts = ["192.0.2.0/25", "allow 2001:db8::/64", "tcp/1-100", "allow tcp/80", "proto ipv6-icmp"]
    path = tmp_path / "rules"
    path.write_text("# some\n" + "\n".join(texts[:3]) + "\n")
    every = frames()
    args = ["--rules", str(path), "--rule", texts[3], "--rule", texts[4]]
    actions = pcap_verdicts("xdp_firewall", every, *args)
    oracle = Oracle(texts)
    wanted = ["XDP_DROP" if oracle.drops(frame) else "XDP_PASS" for frame in every]
    assert not differing(every, actions, wanted)
    assert set(actions) == {"XDP_DROP", "XDP_PASS"}


# --- editing ------------------------------------------------------------------------------------


def test_rules_count_what_they_match(wall: Loaded) -> None:
    wall.add("10.0.0.0/8", "allow 2001:db8::/32", "tcp/80", "proto icmp")
    ten = v4("10.1.1.1")
    for frame in (ten, ten, v6("2001:db8::9"), v4("9.9.9.9", TCP(dport=80)), v4("9.9.9.9", ICMP())):
        wall.drops(frame)
    assert wall.rules() == {
        "deny 10.0.0.0/8": (2, 2 * len(ten)),
        "allow 2001:db8::/32": (1, len(v6("2001:db8::9"))),
        "deny tcp/80": (1, len(v4("9.9.9.9", TCP()))),
        "deny proto icmp": (1, len(v4("9.9.9.9", ICMP()))),
    }
    wall.drops(v4("9.9.9.9"))
    totals = [packets for packets, _ in wall.firewall.totals()]
    assert totals == [0, 1, 1, 0, 0, 0, 2, 1, 1, 0, 0]


def test_add_change_delete(wall: Loaded) -> None:
    assert wall.add("10.0.0.7/8", "tcp/5-9") == 2
    assert wall.firewall.count == 1
    assert wall.drops(v4("10.0.0.1")) and wall.drops(v4("1.1.1.1", TCP(dport=7)))
    assert wall.add("10.0.0.0/8") == 0 and [str(r) for r in wall.firewall.known] == [
        "deny 10.0.0.0/8"
    ]
    assert wall.add("allow 10.0.0.0/8", "allow tcp/5-9") == 2
    assert not wall.drops(v4("10.0.0.1")) and not wall.drops(v4("1.1.1.1", TCP(dport=7)))
    assert wall.rules()["allow 10.0.0.0/8"][0] == 2, "the counter goes on"
    with pytest.raises(InputError, match=r"11\.0\.0\.0/8"):
        wall.delete("10.0.0.0/8", "11.0.0.0/8")
    with pytest.raises(InputError, match="tcp/5"):
        wall.delete("10.0.0.0/8", "tcp/5")
    assert len(wall.rules()) == 2, "all or nothing"
    wall.delete("10.0.0.0/8", "tcp/5-9")
    assert wall.rules() == {} and wall.firewall.count == 0
    assert not wall.drops(v4("10.0.0.1"))


def test_overlapping_ports(wall: Loaded) -> None:
    wall.add("tcp/1-1000", "allow tcp/500-600", "tcp/550", "allow tcp/1-1000")
    verdicts = [wall.drops(v4("1.1.1.1", TCP(dport=port))) for port in (1, 500, 550, 600, 601)]
    assert verdicts == [False, False, True, False, False]
    wall.add("deny tcp/1-1000")
    wall.delete("tcp/550")
    verdicts = [wall.drops(v4("1.1.1.1", TCP(dport=port))) for port in (1, 500, 550, 600, 601)]
    assert verdicts == [True, False, False, False, True]
    wall.load("udp/1-2", "allow udp/2-3")  # as narrow as each other: deny decides
    assert [wall.drops(v4("1.1.1.1", UDP(dport=port))) for port in range(5)] == [
        False, True, True, False, False,
    ]  # fmt: skip
    assert not wall.drops(v4("1.1.1.1", TCP(dport=1)))
    assert len(wall.rules()) == 2


@pytest.mark.parametrize("front", FRONTS)
def test_more_rules_than_there_was_room_for(front: str) -> None:
    wall = Loaded(front)
    room = 1024
    keys = [f"10.0.{i >> 8}.{i & 255}" for i in range(room)]
    wall.add(*keys)
    wall.drops(v4("10.0.0.1"))
    wall.add("10.1.0.0/16", "2001:db8::/32")
    assert wall.firewall.count == room + 2
    assert wall.rules()["deny 10.0.0.1"][0] == 1, "counters move with their rules"
    for source in ("10.0.0.0", "10.0.3.255", "10.1.9.9"):
        assert wall.drops(v4(source))
    assert not wall.drops(v4("10.0.4.0"))
    assert wall.drops(v6("2001:db8::1"))
    wall.close()


def test_full_list(wall: Loaded) -> None:
    small = Loaded(most=3)
    small.load("10.0.0.1", "10.0.0.2", "10.0.0.2", "10.0.0.2")
    small.add("2001:db8::1")
    with pytest.raises(MapFullError, match="--max-rules 3"):
        small.add("10.0.0.4")
    assert small.add("allow 10.0.0.1") == 1, "a change needs no room"
    with pytest.raises(MapFullError, match="--max-rules 3"):
        small.load("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4")
    assert small.firewall.count == 3
    small.delete("10.0.0.1")
    small.add("10.0.0.4")
    assert small.drops(v4("10.0.0.4"))
    small.close()
    wall.add(*(f"tcp/{port}" for port in range(1023)))
    with pytest.raises(MapFullError, match="1023"):
        wall.add("10.0.0.1", "tcp/2000")
    assert not wall.drops(v4("10.0.0.1")), "nothing was changed"


@pytest.mark.parametrize("front", ["bits", "bloom"])
def test_no_packet_gets_in_while_lists_are_replaced(front: str) -> None:
    """One thread runs packets, the other one loads, adds and deletes."""
    wall = Loaded(front)
    always = ["192.0.2.0/24", "2001:db8::/32", "tcp/80"]
    wall.load(*always)
    denied = [v4("192.0.2.77"), v6("2001:db8:7::7"), v4("9.9.9.9", TCP(dport=80))]
    slipped: list[bytes] = []
    runs = 0
    ended = threading.Event()
    program = wall.object.programs["xdp_firewall"]

    def packets() -> None:
        nonlocal runs
        while not ended.is_set():
            for frame in denied:
                runs += 1
                # many in one call: the other thread has the interpreter meanwhile
                if program.run(frame, 1).retval != DROP or wall.drops(frame) is False:
                    slipped.append(frame)

    thread = threading.Thread(target=packets)
    thread.start()
    rng = random.Random(8)
    try:
        for i in range(8):
            more = random_rules(rng, 40)
            more = [text for text in more if "allow" not in text]
            if i % 3:
                wall.load(*always, *more)
            else:
                new = [text for text in more if text not in always][:5]
                wall.add(*new)
                for text in new:
                    if parse_rule(text).match not in always:
                        wall.delete(text)
    finally:
        ended.set()
        thread.join()
    assert runs > 100
    assert not slipped, f"{len(slipped)} of {runs}"
    wall.close()


def test_vlan_gre_and_interfaces_without_link_header(wall: Loaded) -> None:
    wall.add("192.0.2.0/24", "proto gre")
    assert wall.drops(ETH / Dot1Q(vlan=5) / Dot1Q(vlan=6) / IP(src="192.0.2.1") / UDP())
    assert wall.drops(ETH / Dot1Q(vlan=5) / IP(src="10.0.0.1") / GRE() / IP() / UDP())
    assert not wall.drops(ETH / IP(src="10.0.0.1") / IP(src="192.0.2.1") / UDP()), "tunnels: outer"
    raw = Loaded(l2_len=0)
    raw.add("192.0.2.0/24", "2001:db8::/32")
    for packet, drops in (
        (IP(src="192.0.2.1") / UDP(), True),
        (IP(src="192.0.3.1") / UDP(), False),
        (IPv6(src="2001:db8::1") / UDP(), True),
        (IPv6(src="2001:db9::1") / UDP(), False),
    ):
        assert raw.drops(packet) == drops
    raw.close()


@pytest.mark.parametrize("kind", ["ring", "perf"])
@pytest.mark.parametrize("snap", [0, 1, 60, 2048])
def test_events(kind: str, snap: int) -> None:
    from bpfkit.xdp_firewall.events import Dropped

    wall = Loaded(events={"ring": 1, "perf": 2}[kind], snap=snap)
    wall.add("192.0.2.0/24", "2001:db8::/32", "tcp/80")
    sent = [
        v4("192.0.2.7", UDP(dport=9) / Raw(b"GET me")),
        v6("2001:db8::7", UDP(dport=9) / Raw(b"GET me" * 100)),
        v4("9.9.9.9", TCP(dport=80, options=[("MSS", 9)]) / Raw(b"GET me")),
    ]
    head = wall.object.btf.record_layout("dropped")
    with wall.object[kind].open() as buffer:
        for frame in sent:
            assert wall.drops(frame)
        assert not wall.drops(v4("9.9.9.9"))
        got = [Dropped(head.decode(d), bytes(d[head.size :]), 0) for d in buffer.drain()]
    got.sort(key=lambda event: event.ts_ns)
    assert [event.frame for event in got] == [frame[:snap] for frame in sent]
    assert [event.head.length for event in got] == [len(frame) for frame in sent]
    assert [event.source for event in got] == ["192.0.2.7", "2001:db8::7", "9.9.9.9"]
    assert [event.why for event in got] == ["address", "address", "port"]
    assert [event.head.prefix for event in got] == [24, 32, 0]
    rule = wall.firewall.numbered(got[2].head.number)
    assert str(rule) == "deny tcp/80"
    if snap == 2048:
        assert [event.payload for event in got] == [b"GET me", b"GET me" * 100, b"GET me"]
    assert wall.firewall.totals()[-1][0] == 0
    wall.close()


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """A CPU's perf buffer says what it lost with the next record on that CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.usefixtures("one_cpu")
@pytest.mark.parametrize("kind", ["ring", "perf"])
def test_every_event_is_there_or_counted_as_lost(kind: str) -> None:
    wall = Loaded(events={"ring": 1, "perf": 2}[kind], snap=2048)
    wall.add("192.0.2.0/24")
    frame = v4("192.0.2.7", UDP() / Raw(bytes(1400)))
    count = 3000
    with wall.object[kind].open() as buffer:
        for _ in range(count):
            wall.drops(frame)
        there = sum(1 for _ in buffer.drain())
        lost = wall.firewall.totals()[-1][0]
        assert 0 < there < count
        assert there + lost == count
        for _ in range(2):  # there is room again; the perf buffer now says what it lost
            wall.drops(frame)
        assert sum(1 for _ in buffer.drain()) == 2
        if kind == "perf":
            assert buffer.lost == lost
    wall.close()


def test_maps_are_byte_for_byte_what_python_thinks() -> None:
    """The layouts are written down twice; here the maps are made as the C side says."""
    from bpfkit.xdp_firewall import control as f

    with bpfkit.load(XdpFirewall.source) as plain:
        made = templates()
        for name, one in made.items():
            there = plain[name]
            assert (one.key_size, one.value_size) == (there.key_size, there.value_size), name
            assert (one.type, one.flags) == (there.type, there.flags), name
            one.close()
        assert plain["specs"].value_size == f._SPEC.size
        assert plain["state"].value_size == f._STATE.size
        assert plain["cells"].max_entries == f._CELLS
        assert plain["specs"].max_entries == plain["hits"].max_entries == f._NUMBERS
        head = plain.btf.record_layout("dropped")
        assert plain["scratch"].value_size == 8 + head.size + 2048
