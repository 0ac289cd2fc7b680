# SPDX-License-Identifier: Apache-2.0
"""The packets that every program which judges packets is shown, and how it is asked.

::

    frames()         one of each kind, well-formed or with a wrong length; the same in every run
    truncated(...)   every prefix of them
    random_frames()  scapy's (headers_oracle.built, oracle.random_frame) and frames(), mutated
          │
          └─▶ pcap_verdicts("xdp_drop_tcp", frames): python3 -m bpfkit.NAME --pcap FILE --json

What the verdicts must be is not said here: each test asks an oracle of its own.
"""

from __future__ import annotations

import functools
import json
import os
import random
import struct
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from headers_oracle import ETH, EXTENSIONS, V4, V6, built, mutated
from oracle import random_frame
from running import run
from scapy.contrib.mpls import MPLS
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP, IPOption_Router_Alert
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.ipsec import AH, ESP
from scapy.layers.l2 import ARP, GRE, STP, Dot1Q, Dot3, Ether
from scapy.layers.ppp import PPPoED
from scapy.layers.sctp import SCTP
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

#: The addresses that xdp_afxdp answers for by default.
OWN4, OWN6 = "10.77.0.55", "fd77::55"
BODY = bytes(range(64))
_STOCK = 300  # frames by scapy, of each of two kinds, that the random ones are made from
_BLIND = 0.02  # share of the random frames that were never a packet


def _both() -> list[Packet]:
    return [V4.copy(), V6.copy()]


def _transports() -> Iterator[Packet]:
    for ip in _both():
        echo = ICMP() if ip.version == 4 else ICMPv6EchoRequest()
        for above in (
            TCP(sport=40000, dport=80, flags="S"),
            TCP(sport=80, dport=40000, flags="SA", options=[("MSS", 1460), ("Timestamp", (1, 2))]),
            UDP(sport=40000, dport=53),
            echo,
            SCTP(sport=1, dport=2),
        ):
            yield ip / above
            yield ip / above / Raw(BODY)
    yield V4 / ICMP(type=0) / Raw(BODY)
    yield V4 / ICMP(type=3, code=4) / IP() / UDP()
    yield V6 / ICMPv6EchoReply() / Raw(BODY)
    yield V6 / ICMPv6PacketTooBig() / IPv6() / TCP()
    yield IP(src=V4.src, dst="224.0.0.22", proto=2, options=[IPOption_Router_Alert()]) / Raw(BODY)
    yield V4 / ESP(data=BODY)
    yield V6 / ESP(data=BODY)
    for proto in (1, 6, 17, 58, 59, 103, 132, 136, 255):
        yield IP(src=V4.src, dst=V4.dst, proto=proto) / Raw(BODY)
        yield IPv6(src=V6.src, dst=V6.dst, nh=proto) / Raw(BODY)
    yield IP(src=V4.src, dst=V4.dst, tos=46 << 2 | 3) / UDP()
    yield IPv6(src=V6.src, dst=V6.dst, tc=46 << 2 | 3, fl=0xFFFFF) / UDP()


def _options() -> Iterator[Packet]:
    for count in (1, 4, 12, 40):
        for above in (TCP(), UDP(), ICMP()):
            yield IP(src=V4.src, dst=V4.dst, options=[IPOption_NOP()] * count) / above / Raw(BODY)


def _fragments() -> Iterator[Packet]:
    for proto in (1, 6, 17, 58, 132):
        for flags, offset in (("MF", 0), ("MF", 1), (0, 1), (0, 185), (0, 0x1FFF), ("DF", 0)):
            ip = IP(src=V4.src, dst=V4.dst, proto=proto, flags=flags, frag=offset, id=7)
            yield ip / Raw(BODY)
        for more, offset in ((0, 0), (1, 0), (1, 1), (0, 1), (0, 0x1FFF)):
            piece = IPv6ExtHdrFragment(nh=proto, m=more, offset=offset, id=7)
            yield V6 / piece / Raw(BODY)
            yield V6 / IPv6ExtHdrHopByHop() / piece / Raw(BODY)
    for nh in (0, 43, 44, 51, 60):  # later fragments whose first header is an extension header
        yield V6 / IPv6ExtHdrFragment(nh=nh, offset=9) / Raw(bytes([6] * 64))
        yield V6 / IPv6ExtHdrFragment(nh=nh, m=1) / Raw(bytes([6, 0] + [0] * 62))
    yield V6 / IPv6ExtHdrFragment(m=1) / IPv6ExtHdrDestOpt() / TCP()
    yield V6 / IPv6ExtHdrFragment() / IPv6ExtHdrFragment() / UDP()


def _extension(kind: int, nh: int, words: int = 0) -> bytes:
    """An extension header of (words + 1) * 8 bytes; AH's and the fragment header's are 16 and 8."""
    if kind == 44:
        return bytes([nh, 0]) + bytes(6)
    if kind == 51:
        return bytes([nh, 2]) + bytes(14)
    return bytes([nh, words]) + bytes(words * 8 + 6)


def _chain(kinds: Sequence[int], last: int, words: int = 0) -> Packet:
    nhs = [*kinds[1:], last]
    body = b"".join(_extension(kind, nh, words) for kind, nh in zip(kinds, nhs, strict=True))
    upper = {6: TCP(), 17: UDP(), 58: ICMPv6EchoRequest(), 59: Raw(b"")}[last]
    first = kinds[0] if kinds else last
    return IPv6(src=V6.src, dst=V6.dst, nh=first) / Raw(body + bytes(upper) + BODY)


def _extensions() -> Iterator[Packet]:
    for kind in EXTENSIONS:
        for last in (6, 17, 58):
            yield _chain([kind], last)
            yield _chain([kind], last, words=3)
    for last in (6, 17, 58, 59):
        yield _chain(EXTENSIONS, last)
        yield _chain([0, 60, 43, 44, 51, 60], last)  # RFC 8200's order
        for count in (2, 7, 8, 9, 31, 32, 33, 60):
            yield _chain([60] * count, last)
    yield _chain([60] * 4, 6, words=30)
    yield _chain([0, 60], 6, words=255 // 4)
    yield V6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting() / IPv6ExtHdrDestOpt() / TCP()
    yield V6 / AH(payloadlen=4, icv=bytes(12)) / TCP()
    yield V4 / AH(payloadlen=4, icv=bytes(12)) / TCP()


def _tunnels() -> Iterator[Packet]:
    inner = ETH / IP(src="198.51.100.1", dst="198.51.100.2")
    for outer in _both():
        for ip in (IP(dst="198.51.100.2"), IPv6(dst="2001:db8:1::2")):
            for above in (TCP(), UDP(), ICMP() if ip.version == 4 else ICMPv6EchoRequest()):
                yield outer / ip / above
                yield outer / GRE() / ip / above
                yield outer / GRE(key_present=1, key=9, chksum_present=1) / ip / above
                yield outer / GRE() / MPLS(label=16, s=1) / ip / above
        yield outer / GRE(proto=0x6558) / inner / TCP()
        yield outer / UDP(dport=4789) / VXLAN(vni=7) / inner / TCP()
        yield (
            outer / UDP(dport=4789) / VXLAN(vni=7) / ETH / Dot1Q(vlan=3) / V6 / ICMPv6EchoRequest()
        )
        yield (
            outer / UDP(dport=6081) / Raw(bytes.fromhex("0000655800000700") + bytes(inner / TCP()))
        )
        yield outer / UDP(dport=2152) / Raw(bytes.fromhex("30ff002800000001") + bytes(V4 / TCP()))
    yield V4 / IPv6() / IP() / IPv6() / TCP()


def _neighbours() -> Iterator[Packet]:
    for address in (OWN4, "10.77.0.56"):
        for operation in (1, 2):
            yield ARP(op=operation, hwdst="02:00:00:00:00:02", psrc="10.77.0.1", pdst=address)
        yield IP(src="10.77.0.1", dst=address) / ICMP() / Raw(BODY)
        yield IP(src="10.77.0.1", dst=address) / UDP()
        yield IP(src=address, dst="10.77.0.1") / ICMP()
        yield IP(src="10.77.0.1", dst=address, frag=3, proto=1) / Raw(BODY)
    yield ARP(hwtype=6, psrc="10.77.0.1", pdst=OWN4)
    yield ARP(ptype=0x86DD, hwdst="02:00:00:00:00:02", psrc="10.77.0.1", pdst=OWN4)
    for address in (OWN6, "fd77::56"):
        host, group = IPv6(src="fd77::1", dst=address), IPv6(src="fd77::1", dst="ff02::1:ff00:55")
        for ip in (host, group):
            yield ip / ICMPv6ND_NS(tgt=address) / ICMPv6NDOptSrcLLAddr(lladdr="02:00:00:00:00:01")
            yield ip / ICMPv6ND_NA(tgt=address)
        yield host / ICMPv6EchoRequest(data=BODY)
        yield host / IPv6ExtHdrHopByHop() / ICMPv6ND_NS(tgt=address)
        yield host / IPv6ExtHdrDestOpt() / UDP()
        yield host / TCP()
    yield IPv6(src="::", dst="ff02::1:ff00:55") / ICMPv6ND_NS(tgt=OWN6)  # is the address taken?
    yield IPv6(src="fe80::1", dst="ff02::2") / ICMPv6ND_RS()
    yield IPv6(src="fe80::1", dst="ff02::1") / ICMPv6ND_RA()
    yield IPv6(src="fe80::1", dst="ff02::16") / IPv6ExtHdrHopByHop() / ICMPv6MLReport2()


def _tagged(ids: Iterable[tuple[int, int]], packet: Packet) -> bytes:
    """Ethernet, tags (TPID, TCI), and what scapy says is the ethertype of the packet."""
    kind = {IP: 0x0800, IPv6: 0x86DD, ARP: 0x0806, MPLS: 0x8847}[type(packet)]
    head = bytes(ETH)[:12]
    for tpid, tci in ids:
        head += struct.pack("!HH", tpid, tci)
    return head + struct.pack("!H", kind) + bytes(packet)


def _tags() -> Iterator[bytes]:
    uppers = [V4 / TCP(), V4 / UDP(), V4 / ICMP(), V6 / TCP(), V6 / UDP(), V6 / ICMPv6EchoRequest()]
    uppers += [V6 / IPv6ExtHdrDestOpt() / TCP(), IP(src=V4.src, dst=V4.dst, frag=9, proto=6) / BODY]
    uppers += [
        ARP(hwdst="02:00:00:00:00:02", psrc="10.77.0.1", pdst=OWN4),
        IP(dst=OWN4) / ICMP(),
        IPv6(dst=OWN6) / ICMPv6ND_NS(tgt=OWN6),
        MPLS(label=16, s=1) / V4 / TCP(),
    ]
    for upper in uppers:
        yield _tagged([(0x8100, 5)], upper)
        yield _tagged([(0x8100, 0xE000)], upper)  # priority 7, no VLAN
        yield _tagged([(0x88A8, 5), (0x8100, 6)], upper)
        yield _tagged([(0x9100, 5), (0x8100, 6)], upper)
        yield _tagged([(0x8100, 5), (0x88A8, 6), (0x9100, 7)], upper)
        for count in (4, 5, 8, 9, 40):
            yield _tagged([(0x8100, i) for i in range(count)], upper)
        yield _tagged([(0x9200, 5)], upper)  # a tag that nobody here knows


def _labels() -> Iterator[Packet]:
    for upper in (V4 / TCP(), V6 / TCP(), V4 / ICMP(), V6 / ICMPv6EchoRequest()):
        yield MPLS(label=16, s=1) / upper
        yield MPLS(label=16, s=0) / MPLS(label=17, s=0) / MPLS(label=18, s=1) / upper
        yield MPLS(label=16, s=0) / upper  # no bottom of the stack


def _others() -> Iterator[bytes]:
    yield bytes(ETH / PPPoED(code=9) / Raw(BODY))
    yield bytes(Dot3(dst="01:80:c2:00:00:00", src=ETH.src) / STP())
    for kind in (0x0000, 0x002E, 0x0805, 0x0807, 0x8035, 0x8863, 0x8864, 0x88CC, 0x88E5, 0xFFFF):
        yield bytes(Ether(src=ETH.src, dst=ETH.dst, type=kind) / V4 / TCP())
    # one version's header under the other's ethertype
    yield bytes(Ether(src=ETH.src, dst=ETH.dst, type=0x0800) / Raw(bytes(V6 / TCP())))
    yield bytes(Ether(src=ETH.src, dst=ETH.dst, type=0x86DD) / Raw(bytes(V4 / TCP() / Raw(BODY))))
    for octet in (0x00, 0xFF, 0x45, 0x60):
        yield bytes(ETH)[:12] + b"\x08\x00" + bytes([octet]) * 60
        yield bytes(ETH)[:12] + b"\x86\xdd" + bytes([octet]) * 60
    for size in (0, 1, 13, 14, 15):
        yield (bytes(ETH)[:12] + b"\x08\x00\x45")[:size]
    yield bytes(ETH / V4 / UDP() / Raw(bytes(1472)))
    yield bytes(ETH / V6 / TCP() / Raw(bytes(1440)))
    yield bytes(ETH / V4 / TCP() / Raw(bytes(3000)))  # more than a frame: a super-frame


def _wrong_lengths() -> Iterator[bytes]:
    """Lengths that are not those of the frame, in every header that has one."""
    for above in (TCP(), UDP(), ICMP()):
        whole = bytes(V4 / above / Raw(BODY))
        for total in (
            0,
            1,
            19,
            20,
            21,
            24,
            27,
            28,
            40,
            len(whole) - 1,
            len(whole) + 1,
            1500,
            65535,
        ):
            yield bytes(ETH / IP(src=V4.src, dst=V4.dst, len=total) / above / Raw(BODY))
        for ihl in (0, 1, 4, 6, 10, 15):
            yield bytes(ETH / IP(src=V4.src, dst=V4.dst, ihl=ihl) / above / Raw(BODY))
            yield bytes(ETH / IP(src=V4.src, dst=V4.dst, ihl=ihl, len=20) / above)
        for version in (0, 5, 6, 15):
            yield bytes(ETH / IP(src=V4.src, dst=V4.dst, version=version) / above)
        yield bytes(ETH / V4 / above).ljust(60, b"\x06")  # Ethernet's padding
        yield bytes(ETH / V4 / above / Raw(BODY)) + bytes(4)  # a trailer
    for above in (TCP(), UDP(), ICMPv6EchoRequest()):
        size = len(above) + len(BODY)
        for plen in (0, 1, 7, 8, 9, 20, size - 1, size + 1, 1500, 65535):
            yield bytes(ETH / IPv6(src=V6.src, dst=V6.dst, plen=plen) / above / Raw(BODY))
        for version in (0, 4, 7, 15):
            yield bytes(ETH / IPv6(src=V6.src, dst=V6.dst, version=version) / above)
    for kind in EXTENSIONS:
        for words in (0, 1, 2, 5, 7, 8, 9, 255):
            ext = bytes([6, words]) + bytes(6)
            yield bytes(
                ETH / IPv6(src=V6.src, dst=V6.dst, nh=kind) / Raw(ext + bytes(TCP()) + BODY)
            )
        for plen in (1, 7, 8, 9, 15, 16):  # the packet ends before, at, behind its header
            ext = bytes([6, 1]) + bytes(14)
            yield bytes(ETH / IPv6(src=V6.src, dst=V6.dst, nh=kind, plen=plen) / Raw(ext + BODY))
    for field in ({"dataofs": 0}, {"dataofs": 4}, {"dataofs": 15}):
        yield bytes(ETH / V4 / TCP(**field))
        yield bytes(ETH / V6 / TCP(**field))
    for size in (0, 7, 8, 9, 65535):
        yield bytes(ETH / V4 / UDP(len=size) / Raw(BODY))
        yield bytes(ETH / V6 / UDP(len=size) / Raw(BODY))


@functools.cache
def _frames() -> tuple[bytes, ...]:
    found: list[bytes] = []
    for make in (_transports, _options, _fragments, _extensions, _tunnels, _neighbours, _labels):
        found += [bytes(ETH / packet) for packet in make()]
    for more in (_tags, _others, _wrong_lengths):
        found += list(more())
    return tuple(dict.fromkeys(found))


def frames() -> list[bytes]:
    """A frame of each kind, none twice; the same in every run."""
    return list(_frames())


def truncated(whole: Iterable[bytes]) -> list[bytes]:
    """Every prefix of the frames, the empty one and the whole ones too; none twice."""
    found: dict[bytes, None] = {}
    for frame in whole:
        for size in range(len(frame) + 1):
            found[frame[:size]] = None
    return list(found)


@functools.cache
def stock() -> tuple[tuple[bytes, int, int], ...]:
    """Frames that scapy built: (frame, IP version or 0, protocol).

    Version and protocol are of the outermost IP header, known because they were chosen.
    """
    rng = random.Random(4)
    return tuple(built(rng) for _ in range(_STOCK))


@functools.cache
def _seeds() -> tuple[bytes, ...]:
    rng = random.Random(5)
    tunnels = [random_frame(rng)[0] for _ in range(_STOCK)]
    return (*(frame for frame, _, _ in stock()), *tunnels, *(f for f in _frames() if f))


def random_frames(seed: int, count: int) -> Iterator[bytes]:
    """``count`` frames: from the stock and mutated once or more often; a few are mere noise.

    About 200,000 in two or three seconds; the same for the same seed.
    """
    rng = random.Random(seed)
    seeds = _seeds()
    frame = rng.choice(seeds)
    for _ in range(count):
        luck = rng.random()
        if luck < _BLIND:
            kind = rng.choice((b"", b"\x08\x00", b"\x86\xdd", b"\x81\x00", b"\x08\x06"))
            frame = rng.randbytes(12) + kind + rng.randbytes(rng.randrange(90))
        elif luck < 0.2:  # one octet of the headers only: most of them stay whole
            whole = bytearray(rng.choice(seeds))
            whole[rng.randrange(min(len(whole), 90))] = rng.getrandbits(8)
            frame = bytes(whole)
        elif luck < 0.9 or not 14 <= len(frame) < 2000:
            frame = mutated(rng, rng.choice(seeds))
        else:
            frame = mutated(rng, frame)  # once more
        yield frame


# --- asking a program ---------------------------------------------------------------------------


def write_pcap(path: str | os.PathLike[str], packets: Iterable[bytes]) -> None:
    """An Ethernet capture; nothing is too short or too wrong for it."""
    parts = [struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)]
    for number, frame in enumerate(packets):
        parts.append(struct.pack("=IIII", number, 0, len(frame), len(frame)))
        parts.append(frame)
    Path(path).write_bytes(b"".join(parts))


def pcap_file_verdicts(name: str, path: str | os.PathLike[str], *args: str) -> list[str]:
    """The program's verdict on each packet of a capture, asked as the user asks."""
    done = run(name, "--pcap", os.fspath(path), "--json", *args, text=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    rows = json.loads(b"[" + b",".join(done.stdout.splitlines()) + b"]")
    assert [row["index"] for row in rows] == list(range(len(rows)))
    return [row["action"] for row in rows]


def pcap_verdicts(name: str, packets: Sequence[bytes], *args: str) -> list[str]:
    """The same for frames, each as it is: cut ones, empty ones, wrong ones."""
    with tempfile.NamedTemporaryFile(suffix=".pcap") as file:
        write_pcap(file.name, packets)
        actions = pcap_file_verdicts(name, file.name, *args)
    assert len(actions) == len(packets)
    return actions


def differing(
    packets: Sequence[bytes], actions: Sequence[str], wanted: Sequence[str]
) -> list[tuple[str, str, str]]:
    """(frame in hex, action, wanted action) where they differ, the shortest frames first."""
    found = [
        (frame.hex(), is_, should)
        for frame, is_, should in zip(packets, actions, wanted, strict=True)
        if is_ != should
    ]
    return sorted(found, key=lambda one: len(one[0]))[:10]
