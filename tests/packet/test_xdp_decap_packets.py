# SPDX-License-Identifier: Apache-2.0
"""xdp_decap, packet by packet: what scapy has put into a tunnel comes out of it, byte for byte."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from corpus import frames, pcap_verdicts, random_frames
from headers_oracle import ETH, mutated
from lb_oracle import DROP, PASS, find
from running import run
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import Dot1AD, Dot1Q
from scapy.packet import Packet, Raw

import bpfkit
from bpfkit.core.kernel.syscall import TestRun
from bpfkit.net.packets.addresses import mapped

TUNNELS = [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")]
OUTER4, OUTER6 = IP(src="192.0.2.1", dst="192.0.2.2"), IPv6(src="2001:db8::1", dst="2001:db8::2")
FRAMES = 100_000  # random ones, of each of the two kinds


class Loaded:
    """The program with two tunnels."""

    def __init__(self) -> None:
        self.object = bpfkit.load("xdp/xdp_decap.bpf.c")
        for balancer, own in TUNNELS:
            self.object["tunnels"][mapped(balancer) + mapped(own)] = 1
        self._run = TestRun(self.object.programs["xdp_decap"].fd, 4096, 4096)
        self._in = memoryview(self._run.data_in).cast("B")
        self._out = memoryview(self._run.data_out).cast("B")  # type: ignore[arg-type]

    def __call__(self, frame: bytes) -> tuple[int, bytes]:
        self._in[: len(frame)] = frame
        verdict, _, size, _ = self._run.run(len(frame))
        return verdict, bytes(self._out[:size])


@pytest.fixture(scope="module")
def decap() -> Iterator[Loaded]:
    made = Loaded()
    yield made
    made.object.close()


def expected(frame: bytes) -> tuple[int, bytes]:
    """By the words of the program's header."""
    here = find(frame)
    if here is None or here.proto not in (4, 41) or here.fragment:
        return PASS, frame
    size = 20 if here.family == 4 else 40
    if here.payload != here.network + size:
        return PASS, frame
    at, width = here.network + (12 if here.family == 4 else 8), 4 if here.family == 4 else 16
    ends = frame[at : at + width], frame[at + width : at + 2 * width]
    if ends not in [tuple(ip_address(end).packed for end in ends) for ends in TUNNELS]:
        return PASS, frame
    if len(frame) - size < 22:
        return DROP, frame
    kind = b"\x08\x00" if here.proto == 4 else b"\x86\xdd"
    return PASS, frame[: here.network - 2] + kind + frame[here.payload :]


def inner(rng: random.Random) -> Packet:
    ip = IP(src="203.0.113.5", dst="198.51.100.1", tos=rng.getrandbits(8))
    if rng.random() < 0.5:
        ip = IPv6(src="2001:db8:9::1", dst="2001:db8:51::1", tc=rng.getrandbits(8))
    upper = rng.choice((TCP, UDP))(sport=rng.randrange(65536))
    return ip / upper / Raw(rng.randbytes(rng.choice((0, 1, 100))))


def tunnelled(count: int, seed: int) -> Iterator[tuple[bytes, bytes]]:
    """(a frame in a tunnel, the same without its outer header)."""
    rng = random.Random(seed)
    for _ in range(count):
        link = ETH
        for tag in rng.choice(((), (), (Dot1Q,), (Dot1AD, Dot1Q))):
            link = link / tag(vlan=rng.randrange(4095))
        packet = inner(rng)
        yield bytes(link / rng.choice((OUTER4, OUTER6)) / packet), bytes(link / packet)


def test_every_byte_against_scapy(decap: Loaded) -> None:
    seen: Counter[int] = Counter()
    for frame, bare in tunnelled(400, 1):
        assert decap(frame) == (PASS, bare) == expected(frame)
        seen[len(frame) - len(bare)] += 1
    assert min(seen[20], seen[40]) > 100


@pytest.mark.parametrize(
    "packet",
    [
        IP(src="192.0.2.9", dst="192.0.2.2") / IP() / TCP(),
        IP(src="192.0.2.1", dst="192.0.2.9") / IP() / TCP(),
        IPv6(src="2001:db8::1", dst="2001:db8::9") / IP() / TCP(),
        OUTER4 / TCP(),
        OUTER6 / UDP(),
        IP(src="192.0.2.1", dst="192.0.2.2", options=[IPOption_NOP()] * 4) / IP() / TCP(),
        IP(src="192.0.2.1", dst="192.0.2.2", flags="MF") / IP() / TCP(),
        IP(src="192.0.2.1", dst="192.0.2.2", frag=4, proto=4) / Raw(bytes(40)),
        OUTER6 / IPv6ExtHdrDestOpt() / IP() / TCP(),
        OUTER6 / IPv6ExtHdrFragment() / IP() / TCP(),
    ],
    ids=lambda p: p.summary()[:40],
)
def test_what_stays_as_it_is(decap: Loaded, packet: Packet) -> None:
    frame = bytes(ETH / packet)
    assert decap(frame) == (PASS, frame) == expected(frame)


def agrees(decap: Loaded, frame: bytes) -> bool:
    """Was something taken off?  Verdict and bytes must be the expected ones."""
    frame = frame[:3500].ljust(14, b"\0")
    verdict, out = decap(frame)
    wanted, data = expected(frame)
    assert verdict == wanted, frame.hex()
    assert verdict == DROP or out == data, frame.hex()
    return len(out) != len(frame)


def test_cut_at_every_byte(decap: Loaded) -> None:
    for frame, _ in tunnelled(40, 2):
        for size in range(min(len(frame), 130)):
            agrees(decap, frame[:size])


def test_random_frames_of_the_corpus(decap: Loaded) -> None:
    assert sum(agrees(decap, frame) for frame in random_frames(21, FRAMES)) > 0


def test_random_frames_in_tunnels(decap: Loaded) -> None:
    rng = random.Random(22)
    stock = [frame for frame, _ in tunnelled(300, 23)]
    taken = 0
    for _ in range(FRAMES):
        frame = rng.choice(stock)
        if rng.random() < 0.5:
            changed = bytearray(frame)
            changed[rng.randrange(min(len(changed), 64))] = rng.getrandbits(8)
            frame = bytes(changed)
        else:
            frame = mutated(rng, frame)
        taken += agrees(decap, frame)
    assert FRAMES // 10 < taken < FRAMES


def test_pcap_verdicts() -> None:
    sent = [*frames(), *(frame for frame, _ in tunnelled(20, 3))]
    sent.append(bytes(ETH / IP(src="192.0.2.1", dst="192.0.2.2", proto=4)))
    tunnels = [word for ends in TUNNELS for word in ("--tunnel", ",".join(ends))]
    words = {PASS: "XDP_PASS", DROP: "XDP_DROP"}
    actions = pcap_verdicts("xdp_decap", sent, *tunnels)
    assert actions == [words[expected(frame.ljust(14, b"\0"))[0]] for frame in sent]
    assert actions[-1] == "XDP_DROP"


@pytest.mark.parametrize(
    ("tunnel", "words"),
    [
        ("192.0.2.1", "BALANCER,OWN"),
        ("192.0.2.1,2001:db8::1", "different families"),
        ("192.0.2.1,nobody", "nobody"),
        ("192.0.2.1,192.0.2.2,192.0.2.3", "BALANCER,OWN"),
    ],
)
def test_tunnels_that_cannot_be(tunnel: str, words: str) -> None:
    done = run("xdp_decap", "-i", "lo", "--tunnel", tunnel)
    assert done.returncode == 2 and words in done.stderr
