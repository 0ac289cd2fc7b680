# SPDX-License-Identifier: Apache-2.0
"""xdp_lb, packet by packet: which backend, and every byte that goes to it.

What must come out is said by lb_oracle, and by scapy, which builds the outer header anew.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from corpus import frames, pcap_verdicts, random_frames
from headers_oracle import ETH, mutated
from lb_oracle import DROP, PASS, TX, Oracle, maglev
from running import run
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, IPOption_NOP, TCPerror, fragment
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    fragment6,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

import bpfkit
from bpfkit.core.errors import InputError
from bpfkit.core.kernel.syscall import TestRun
from bpfkit.xdp_lb.balancer import Balancer, Service
from bpfkit.xdp_lb.program import RESULTS

VIP4, VIP6 = "192.0.2.2", "2001:db8::2"
SERVICES = [f"{VIP4}:80/tcp", f"{VIP4}:53/udp", f"[{VIP6}]:80/tcp", f"[{VIP6}]:53/udp"]
BACKENDS = {
    "10.0.0.11": ("10.0.0.1", bytes.fromhex("0200000000b1")),
    "10.0.0.12": ("10.0.0.1", bytes.fromhex("0200000000b2")),
    "fd00::13": ("fd00::1", bytes.fromhex("0200000000b3")),
    "fd00::14": ("fd00::1", bytes.fromhex("0200000000b4")),
}
SIZE = 4093
FRAMES = 120_000  # random ones, of each of the two kinds


class Loaded:
    """The program with its services and backends."""

    def __init__(self, size: int = SIZE, **consts: int) -> None:
        self.object = bpfkit.load("xdp/xdp_lb.bpf.c", consts={"slots": size, **consts})
        self.balancer = Balancer(self.object, size)
        for text in SERVICES:
            self.balancer.add_service(Service.parse(text))
        self.want(dict.fromkeys(BACKENDS, 1))
        self._run = TestRun(self.object.programs["xdp_lb"].fd, 4096, 4096)
        self._in = memoryview(self._run.data_in).cast("B")
        self._out = memoryview(self._run.data_out).cast("B")  # type: ignore[arg-type]

    def want(self, wanted: dict[str, int]) -> dict[str, int]:
        for one in self.balancer.set_backends(wanted):
            one.source, one.mac = BACKENDS[one.address]
            one.down_reason = ""
        return self.balancer.apply()

    def __call__(self, frame: bytes) -> tuple[int, bytes]:
        frame = frame.ljust(14, b"\0")
        self._in[: len(frame)] = frame
        verdict, _, size, _ = self._run.run(len(frame))
        return verdict, bytes(self._out[:size])

    def to(self, packet: Packet | bytes) -> str:
        """The backend that it goes to, by the MAC address."""
        verdict, out = self(bytes(packet))
        assert verdict == TX
        return next(name for name, (_, mac) in BACKENDS.items() if mac == out[:6])

    def results(self) -> dict[str, int]:
        return {
            RESULTS[i]: sums.packets for i, sums in self.object["results"].sums() if sums.packets
        }


def oracle(names: list[str] | None = None, size: int = SIZE, **more: bool | int) -> Oracle:
    services = set()
    for text in SERVICES:
        one = Service.parse(text)
        services.add((ip_address(one.address).packed, one.port, {"tcp": 6, "udp": 17}[one.proto]))
    chosen = {name: BACKENDS[name] for name in (BACKENDS if names is None else names)}
    return Oracle(services, chosen, size, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def shared() -> Iterator[Loaded]:
    made = Loaded()
    yield made
    made.object.close()


@pytest.fixture
def fresh() -> Iterator[Loaded]:
    made = Loaded()
    yield made
    made.object.close()


def client(rng: random.Random, six: bool) -> Packet:
    number = rng.getrandbits(16)
    if six:
        return IPv6(src=f"2001:db8:1::{number:x}", dst=VIP6)
    return IP(src=f"198.18.{number >> 8}.{number & 255}", dst=VIP4)


def packets(count: int, seed: int = 1) -> list[Packet]:
    """Frames for the services, of all kinds that go to a backend."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        link = ETH
        for tag in rng.choice(((), (), (Dot1Q,), (Dot1AD, Dot1Q))):
            link = link / tag(vlan=rng.randrange(4095))
        ip = client(rng, rng.random() < 0.5)
        six = ip.version == 6
        ip.setfieldval("tc" if six else "tos", rng.getrandbits(8))
        if not six and rng.random() < 0.3:
            ip.options = [IPOption_NOP()] * rng.choice((4, 40))
        if six:
            ip.fl = rng.getrandbits(20)
            for _ in range(rng.choice((0, 0, 0, 1, 3))):
                ip = ip / rng.choice((IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt))()
        upper = TCP(sport=rng.randrange(65536), dport=80, flags=rng.choice(("S", "A", "FA")))
        if rng.random() < 0.4:
            upper = UDP(sport=rng.randrange(65536), dport=53)
        size = rng.choice((0, 1, 5, 100, 1300))
        made.append(Ether(bytes(link / ip / upper / Raw(rng.randbytes(size)))))
    return made


def by_scapy(packet: Packet, name: str, label: int) -> bytes:
    """The frame with the outer header, by scapy, which works out lengths and checksum."""
    source, mac = BACKENDS[name]
    inner = packet[IP] if IP in packet else packet[IPv6]
    tos = inner.tos if IP in packet else inner.tc
    number = 4 if IP in packet else 41
    if ":" in name:
        outer: Packet = IPv6(src=source, dst=name, tc=tos, nh=number, hlim=64, fl=label)
    else:
        outer = IP(src=source, dst=name, tos=tos, proto=number, ttl=64, id=0, flags="DF")
    kind = (0x86DD if ":" in name else 0x0800).to_bytes(2, "big")
    whole = bytes(packet)
    link = whole[: len(whole) - len(inner)]
    return mac + whole[:6] + link[12:-2] + kind + bytes(outer / Raw(bytes(inner)))


def test_every_byte_against_scapy(shared: Loaded) -> None:
    judge = oracle()
    seen: Counter[str] = Counter()
    for packet in packets(600):
        verdict, out = shared(bytes(packet))
        assert (verdict, out) == judge.judge(bytes(packet)), "the oracle"
        name = next(name for name, (_, mac) in BACKENDS.items() if mac == out[:6])
        at = 14 + 4 * sum(layer in (Dot1Q, Dot1AD) for layer in packet.layers())
        label = int.from_bytes(out[at : at + 4], "big") & 0xFFFFF if ":" in name else 0
        assert out == by_scapy(packet, name, label)
        assert label or ":" not in name
        seen[name] += 1
    assert len(seen) == 4 and min(seen.values()) > 100, seen


@pytest.mark.parametrize("size", [251, 4093])
@pytest.mark.parametrize("names", [[], ["10.0.0.11"], list(BACKENDS)[:3], list(BACKENDS)])
def test_the_table_is_the_papers(size: int, names: list[str]) -> None:
    from bpfkit.xdp_lb import maglev as ours

    table = ours.build({name: (i, 1) for i, name in enumerate(names)}, size)
    assert [names[i] if i != ours.EMPTY else "" for i in table] == maglev(names, size)


def test_cut_at_every_byte(shared: Loaded) -> None:
    judge = oracle()
    for packet in packets(60, seed=2):
        whole = bytes(packet)
        for size in range(min(len(whole), 150)):
            verdict, out = shared(whole[:size])
            wanted = judge.judge(whole[:size].ljust(14, b"\0"))
            assert (verdict, out if verdict == TX else None) == wanted, whole[:size].hex()


@pytest.mark.parametrize(
    "packet",
    [
        ETH / ARP(hwdst="02:00:00:00:00:02", psrc="192.0.2.1", pdst=VIP4),
        ETH / IP(dst=VIP4) / ICMP(),
        ETH / IPv6(dst=VIP6) / ICMPv6EchoRequest(),
        ETH / IP(dst=VIP4) / TCP(dport=81),
        ETH / IP(dst=VIP4) / TCP(dport=0),
        ETH / IP(dst=VIP4) / UDP(dport=80),
        ETH / IP(dst="192.0.2.3") / TCP(dport=80),
        ETH / IP(dst=VIP4, proto=132) / Raw(bytes(40)),
        ETH / IP(dst=VIP4, len=2000) / TCP(dport=80),
        ETH / IP(dst=VIP4, len=19) / TCP(dport=80),
        ETH / IPv6(dst=VIP6, plen=0) / TCP(dport=80),
        Ether(dst="01:00:5e:00:00:01") / IP(dst=VIP4) / TCP(dport=80),
        ETH / Dot1Q(vlan=1) / Dot1Q(vlan=2) / Dot1Q(vlan=3) / IP(dst=VIP4) / TCP(dport=80),
        ETH / IPv6(dst=VIP6, nh=60) / Raw(bytes([60, 0] + [0] * 6) * 9) / TCP(dport=80),
        ETH / IP(dst=VIP4, proto=1) / ICMP(type=3, code=4) / IPerror(src="192.0.2.9") / TCPerror(),
    ],
    ids=lambda p: p.summary()[:40],
)
def test_what_the_kernel_gets(shared: Loaded, packet: Packet) -> None:
    frame = bytes(packet)
    assert shared(frame) == (PASS, frame)
    assert oracle().judge(frame) == (PASS, None)


def test_fragments_meet_and_are_told_from_others(shared: Loaded) -> None:
    rng = random.Random(3)
    hit = set()
    for _ in range(40):
        whole = client(rng, False) / UDP(sport=rng.randrange(65536), dport=53) / Raw(bytes(3000))
        to = {shared.to(ETH / piece) for piece in fragment(whole, fragsize=1000)}
        assert len(to) == 1
        hit |= to
        six = client(rng, True)
        datagram = six / IPv6ExtHdrFragment(id=7) / UDP(sport=9, dport=53) / Raw(bytes(3000))
        pieces = fragment6(datagram, 1000)
        assert len(pieces) > 2
        assert len({shared.to(ETH / piece) for piece in pieces}) == 1
    assert len(hit) > 1
    assert shared.results()["sent_fragment"] >= 80 * 3


def test_an_icmp_error_goes_where_its_flow_goes(shared: Loaded) -> None:
    rng = random.Random(4)
    seen = set()
    for _ in range(50):
        four, six = client(rng, False), client(rng, True)
        sport = rng.randrange(65536)
        name = shared.to(ETH / four / TCP(sport=sport, dport=80))
        reply = IP(src=VIP4, dst=four.src) / TCP(sport=80, dport=sport, flags="A")
        error = IP(src="203.0.113.1", dst=VIP4) / ICMP(type=3, code=4, nexthopmtu=1400) / reply
        assert shared.to(ETH / error) == name
        seen.add(name)
        name = shared.to(ETH / six / UDP(sport=sport, dport=53))
        reply = IPv6(src=VIP6, dst=six.src) / UDP(sport=53, dport=sport)
        for kind in (ICMPv6PacketTooBig(mtu=1400), ICMPv6TimeExceeded()):
            assert shared.to(ETH / IPv6(src="2001:db8:9::1", dst=VIP6) / kind / reply) == name
    assert len(seen) == 4


@pytest.mark.parametrize("kind", range(16))
def test_which_icmp_messages_are_about_a_flow(shared: Loaded, kind: int) -> None:
    reply4 = IP(src=VIP4, dst="198.18.0.1") / TCP(sport=80, dport=7)
    reply6 = IPv6(src=VIP6, dst="2001:db8:1::1") / TCP(sport=80, dport=7)
    four = ETH / IP(dst=VIP4, proto=1) / Raw(bytes([kind, *bytes(7)]) + bytes(reply4))
    six = ETH / IPv6(dst=VIP6, nh=58) / Raw(bytes([kind, *bytes(7)]) + bytes(reply6))
    assert shared(bytes(four))[0] == (TX if kind in (3, 11, 12) else PASS)
    assert shared(bytes(six))[0] == (TX if kind in (1, 2, 3, 4) else PASS)


@pytest.mark.parametrize("tags", [0, 2])
def test_too_big_is_told(shared: Loaded, tags: int) -> None:
    rng = random.Random(5)
    for _ in range(30):
        link = ETH
        for _ in range(tags):
            link = link / Dot1Q(vlan=9)
        four = client(rng, False)
        four.flags = "DF"
        packet = link / four / TCP(dport=80, sport=rng.randrange(65536)) / Raw(rng.randbytes(1460))
        verdict, out = shared(bytes(packet))
        told = Ether(out)
        assert verdict == TX and told.dst == ETH.src and told.src == ETH.dst
        assert [layer for layer in told.layers() if layer is Dot1Q] == [Dot1Q] * tags
        assert (told[IP].src, told[IP].dst) == (VIP4, four.src)
        assert (told[ICMP].type, told[ICMP].code) == (3, 4)
        assert told[ICMP].nexthopmtu in (1480, 1460)
        whole = bytes(packet)[14 + 4 * tags :]
        assert bytes(told[ICMP])[8:] == whole[:68]
        fresh = told.copy()
        del fresh[IP].chksum, fresh[ICMP].chksum
        assert bytes(fresh) == out, "checksums by scapy"

        six = client(rng, True)
        packet = link / six / UDP(dport=53, sport=rng.randrange(65536)) / Raw(rng.randbytes(1452))
        verdict, out = shared(bytes(packet))
        told = Ether(out)
        assert verdict == TX and (told[IPv6].src, told[IPv6].dst) == (VIP6, six.src)
        assert told[ICMPv6PacketTooBig].mtu in (1480, 1460)
        assert bytes(told[ICMPv6PacketTooBig])[8:] == bytes(packet)[14 + 4 * tags :][:128]
        fresh = told.copy()
        del fresh[ICMPv6PacketTooBig].cksum
        assert bytes(fresh) == out, "checksum by scapy"


def test_too_big_without_df_is_dropped(fresh: Loaded) -> None:
    frame = bytes(ETH / IP(src="198.18.0.1", dst=VIP4) / TCP(dport=80) / Raw(bytes(1460)))
    assert fresh(frame)[0] == DROP
    assert fresh.results() == {"dropped_too_big": 1}


def flows(count: int) -> list[bytes]:
    rng = random.Random(6)
    return [
        bytes(ETH / client(rng, i % 2 == 0) / TCP(sport=i, dport=80, flags="A"))
        for i in range(count)
    ]


def test_affinity_and_what_a_change_moves(fresh: Loaded) -> None:
    """One of four leaves, and comes back: nobody else's flow moves, though the table's slots do."""
    all_of_them = flows(4000)
    before = [fresh.to(frame) for frame in all_of_them]
    gone = "10.0.0.12"
    rest = {name: 1 for name in BACKENDS if name != gone}
    moved = fresh.want(rest)
    assert moved["flows"] == 4000 and moved["moved_flows"] == before.count(gone)
    after = [fresh.to(frame) for frame in all_of_them]
    assert gone not in after
    assert [a for a, b in zip(after, before, strict=True) if b != gone] == [
        b for b in before if b != gone
    ]
    table = oracle(list(rest))
    news = [table.judge(frame) for frame in all_of_them]
    assert [fresh(frame) for frame, b in zip(all_of_them, before, strict=True) if b == gone] == [
        new for new, b in zip(news, before, strict=True) if b == gone
    ]
    back = fresh.want(dict.fromkeys(BACKENDS, 1))
    assert back["moved_flows"] == 0 and back["spared_flows"] > 0
    assert [fresh.to(frame) for frame in all_of_them] == after
    old, new = maglev(list(BACKENDS), SIZE), maglev(list(rest), SIZE)
    assert moved["moved_slots"] == sum(a != b for a, b in zip(old, new, strict=True))
    assert moved["ideal_slots"] == old.count(gone)
    assert moved["moved_slots"] < 1.3 * moved["ideal_slots"]
    assert sum(row["flows"] for row in fresh.balancer.rows() if row["backend"] == gone) == 0


def test_a_place_that_is_used_again_inherits_nothing(fresh: Loaded) -> None:
    names = list(BACKENDS)
    fresh.want(dict.fromkeys(names[:3], 1))
    number = fresh.balancer.backends[names[0]].number
    known = flows(600)
    before = [fresh.to(frame) for frame in known]
    fresh.want(dict.fromkeys(names[1:3], 1))
    fresh.want(dict.fromkeys(names[1:], 1))
    assert fresh.balancer.backends[names[3]].number == number
    orphans = [frame for frame, name in zip(known, before, strict=True) if name == names[0]]
    judge = oracle(names[1:])
    assert len({judge.judge(frame) for frame in orphans}) > 100
    assert [fresh(frame) for frame in orphans] == [judge.judge(frame) for frame in orphans]


def test_draining_keeps_connections_but_takes_none(fresh: Loaded) -> None:
    known = flows(400)
    before = [fresh.to(frame) for frame in known]
    fresh.want({name: int(name != "fd00::13") for name in BACKENDS})
    assert [fresh.to(frame) for frame in known] == before
    rng = random.Random(8)
    others = [ETH / client(rng, False) / TCP(sport=i, dport=80) for i in range(1000, 1200)]
    assert "fd00::13" not in {fresh.to(packet) for packet in others}
    for frame, name in zip(known, before, strict=True):
        syn = Ether(frame)
        syn[TCP].flags = "S"
        if name == "fd00::13":
            assert fresh.to(bytes(syn)) != name, "a SYN is a new connection"


def test_a_change_that_cannot_be_changes_nothing(fresh: Loaded) -> None:
    before = list(fresh.balancer.table)
    for wanted in ({VIP4: 1}, {f"10.1.{i >> 8}.{i & 255}": 1 for i in range(1025)}):
        with pytest.raises(InputError):
            fresh.balancer.set_backends(wanted)
        fresh.balancer.apply()
        assert list(fresh.balancer.table) == before
    small = Loaded(size=251)
    with pytest.raises(InputError, match="too few"):
        small.balancer.set_backends({f"10.1.0.{i}": 2 for i in range(1, 200)})
    small.object.close()


def test_weights(fresh: Loaded) -> None:
    fresh.want({"10.0.0.11": 3, "10.0.0.12": 1})
    slots = {row["backend"]: row["slots"] for row in fresh.balancer.rows()}
    assert abs(slots["10.0.0.11"] - 3 * slots["10.0.0.12"]) <= 4


def test_without_backends_packets_are_dropped(fresh: Loaded) -> None:
    fresh.want({})
    frame = bytes(ETH / IP(dst=VIP4) / TCP(dport=80))
    assert fresh(frame) == (DROP, frame)
    assert fresh(bytes(ETH / IP(dst=VIP4) / TCP(dport=81)))[0] == PASS
    assert fresh.results() == {"dropped_no_backend": 1, "passed": 1}


def test_layer_2(shared: Loaded) -> None:
    made = Loaded(encap=0)
    judge = oracle(tunnel=False)
    for packet in packets(200, seed=7):
        frame = bytes(packet)
        verdict, out = made(frame)
        assert verdict == TX and out[6:12] == frame[:6] and out[12:] == frame[12:]
        assert (verdict, out) == judge.judge(frame)
    big = bytes(ETH / IP(dst=VIP4) / TCP(dport=80) / Raw(bytes(1460)))
    assert made(big)[0] == TX, "nothing is added"
    made.object.close()


def test_only_frames_for_this_interface() -> None:
    mac = int.from_bytes(bytes.fromhex("020000000002") + bytes(2), sys.byteorder)
    made = Loaded()
    made.object["device"][0] = {"lladdr": mac, "mtu": 1500, "zero": 0}
    packet = ETH / IP(dst=VIP4) / TCP(dport=80)
    assert made(bytes(packet))[0] == TX
    packet.dst = "02:00:00:00:00:03"
    assert made(bytes(packet)) == (PASS, bytes(packet))
    made.object.close()


def test_flows_that_are_forgotten_hash_to_the_same_backend() -> None:
    made = Loaded()
    known = flows(300)
    before = [made.to(frame) for frame in known]
    made.object["flows"].clear()
    assert [made.to(frame) for frame in known] == before
    made.object.close()


def test_a_change_has_no_gap(fresh: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two steps of it every packet of a new flow finds a backend."""
    numbers = iter(range(1 << 16))
    looked = 0

    def look() -> None:
        nonlocal looked
        for _ in range(40):
            fresh.to(ETH / IP(src="198.18.0.1", dst=VIP4) / TCP(sport=next(numbers), dport=80))
        looked += 1

    def watched(name: str) -> None:
        real = getattr(Balancer, name)

        def step(*args: object) -> None:
            look()
            real(*args)
            look()

        monkeypatch.setattr(Balancer, name, step)

    watched("_write")
    watched("_swap")
    for names in (list(BACKENDS)[:3], list(BACKENDS)[2:], list(BACKENDS)):
        fresh.want(dict.fromkeys(names, 1))
    assert looked > 20 and set(fresh.results()) == {"sent"}


def test_a_twin_is_a_map_of_the_same_kind(shared: Loaded) -> None:
    for name in ("flows", "services", "served", "table"):
        old = shared.object[name]
        with old.twin() as twin:
            facts = [
                (m.name, m.type, m.key_size, m.value_size, m.max_entries, m.flags, m.columns)
                for m in (old, twin)
            ]
            assert facts[0] == facts[1] and twin.id != old.id


def agrees(loaded: Loaded, judge: Oracle, frame: bytes) -> int:
    """The verdict, which must be the oracle's, and the bytes too."""
    frame = frame[:3500].ljust(14, b"\0")
    verdict, out = loaded(frame)
    wanted, data = judge.judge(frame)
    assert verdict == wanted, frame.hex()
    if verdict == TX and data is not None:
        assert out == data, frame.hex()
    elif verdict != TX:
        assert out == frame, frame.hex()
    return verdict


def test_random_frames_of_the_corpus(shared: Loaded) -> None:
    judge = oracle()
    seen: Counter[int] = Counter()
    for frame in random_frames(11, FRAMES):
        seen[agrees(shared, judge, frame)] += 1
    assert seen[PASS] > 0 and seen[TX] > 0


def test_random_frames_for_the_services(shared: Loaded) -> None:
    rng = random.Random(12)
    judge = oracle()
    stock = [bytes(packet) for packet in packets(300, seed=13)]
    for _ in range(100):
        four, six = client(rng, False), client(rng, True)
        reply4 = IP(src=VIP4, dst=four.src) / TCP(sport=80, dport=7)
        stock.append(bytes(ETH / IP(dst=VIP4) / ICMP(type=3, code=4) / reply4))
        reply6 = IPv6(src=VIP6, dst=six.src) / TCP(sport=80, dport=7)
        stock.append(bytes(ETH / IPv6(dst=VIP6) / ICMPv6PacketTooBig() / reply6))
        stock += [bytes(ETH / p) for p in fragment(four / UDP(dport=53) / Raw(bytes(600)), 300)]
        extended = six / IPv6ExtHdrFragment(m=1, id=3) / UDP(dport=53) / Raw(bytes(16))
        stock.append(bytes(ETH / extended))
        big = rng.choice((1440, 1459, 1461, 1480, 1600))
        stock.append(bytes(ETH / IP(dst=VIP4, flags="DF") / TCP(dport=80) / Raw(bytes(big))))
    seen: Counter[int] = Counter()
    for _ in range(FRAMES):
        frame = rng.choice(stock)
        if rng.random() < 0.4:  # one octet of the headers: most of them stay whole
            changed = bytearray(frame)
            changed[rng.randrange(min(len(changed), 80))] = rng.getrandbits(8)
            frame = bytes(changed)
        elif rng.random() < 0.8:
            frame = mutated(rng, frame)
        seen[agrees(shared, judge, frame)] += 1
    assert seen[TX] > FRAMES // 4 and seen[PASS] > FRAMES // 10 and seen[DROP] > 0, seen


@pytest.mark.parametrize("forward", ["ipip", "l2"])
def test_pcap_verdicts(forward: str) -> None:
    words = {PASS: "XDP_PASS", TX: "XDP_TX", DROP: "XDP_DROP"}
    sent = [*frames(), *(bytes(packet) for packet in packets(50))]
    arguments = [word for service in SERVICES for word in ("--vip", service)]
    arguments += [word for name in BACKENDS for word in ("--backend", name)]
    actions = pcap_verdicts("xdp_lb", sent, *arguments, "--forward", forward)
    judge = oracle(size=65537, tunnel=forward == "ipip")
    assert actions == [words[judge.judge(frame.ljust(14, b"\0"))[0]] for frame in sent]
    assert set(actions) >= {"XDP_PASS", "XDP_TX"}


def test_pcap_needs_services_and_backends(tmp_path: Path) -> None:
    path = tmp_path / "empty.pcap"
    path.write_bytes(b"")
    done = run("xdp_lb", "--pcap", str(path))
    assert done.returncode == 2 and "--vip" in done.stderr
