# SPDX-License-Identifier: Apache-2.0
"""xdp_redirect, frame by frame: verdicts and bytes against a router and a switch in plain Python.

The programs run by BPF_PROG_TEST_RUN in a namespace with routes and neighbours, as if the frames
had come in by one of its ports; nothing is sent.  Checksums are recomputed from nothing by scapy,
where the program has changed them by a difference.
"""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import NamedTuple

import pytest
from corpus import frames, pcap_verdicts, random_frames, truncated
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum

import bpfkit
from bpfkit.core.kernel import syscall
from bpfkit.core.object import Object
from bpfkit.core.program import MAX_RUN_DATA
from bpfkit.net.links.lab import Lab, star_lab

RANDOM = 200_000
DROP, PASS, REDIRECT = 1, 2, 4
OURS = "02:00:00:00:00:02"  # the corpus's destination
#: next hop -> its MAC address, in which the last but one octet is the port's number
HOPS = {"10.77.2.1": "02:00:00:00:02:01", "10.77.3.1": "02:00:00:00:03:01"}
HOPS |= {"fd77:2::1": "02:00:00:00:02:06", "fd77:3::1": "02:00:00:00:03:06"}
BLACKHOLE, REFUSED = "blackhole", "refused"
#: prefix -> (port, next hop, MTU), or what becomes of it
ROUTES = {
    "0.0.0.0/0": ("p3", "10.77.3.1", 1500),
    "192.0.2.0/24": ("p2", "10.77.2.1", 1500),
    "192.0.3.0/24": ("p2", "10.77.2.1", 600),
    "198.18.0.0/16": BLACKHOLE,
    "198.19.0.0/16": REFUSED,
    "203.0.113.0/24": REFUSED,
    "::/0": ("p3", "fd77:3::1", 1500),
    "2001:db8::/32": ("p2", "fd77:2::1", 1500),
    "2001:db9::/32": ("p2", "fd77:2::1", 1300),
    "2001:dba::/32": BLACKHOLE,
    "2001:dbb::/32": REFUSED,
}
KINDS = {"198.19.0.0/16": "unreachable", "203.0.113.0/24": "prohibit", "2001:dbb::/32": "prohibit"}


class Runner:
    """Frames through a program as if they had come in by ``ifindex``; verdict and bytes."""

    def __init__(self, loaded: Object, ifindex: int) -> None:
        (program,) = loaded.programs.values()
        self._run = syscall.TestRun(program.fd, MAX_RUN_DATA, MAX_RUN_DATA, 24)
        self._ifindex = ifindex
        self._in = memoryview(self._run.data_in).cast("B")
        self._out = memoryview(self._run.data_out).cast("B")

    def __call__(self, frame: bytes, ifindex: int = 0) -> tuple[int, bytes]:
        frame = frame[:MAX_RUN_DATA].ljust(14, b"\0")
        self._in[: len(frame)] = frame
        assert self._run.ctx_in is not None
        struct.pack_into(
            "=6I", self._run.ctx_in, 0, 0, len(frame), 0, ifindex or self._ifindex, 0, 0
        )
        verdict, _, size, _ = self._run.run(len(frame))
        return verdict, bytes(self._out[:size])


class Routed(NamedTuple):
    """What becomes of a frame: verdict, and the frame afterwards."""

    verdict: int
    frame: bytes


class Oracle:
    """A router in plain Python: RFC 1812 and RFC 8200, as far as xdp_redirect goes."""

    def __init__(
        self, lab: Lab, routes: dict[str, object], hops: dict[str, str], any_mac: bool = False
    ) -> None:
        self.hops = {int(ip_address(k)): bytes.fromhex(v.replace(":", "")) for k, v in hops.items()}
        self.any_mac = any_mac
        self.macs = {f"p{n}": _mac(lab.lladdr(f"middle:p{n}")) for n in (1, 2, 3)}
        nets = [(ip_network(prefix), way) for prefix, way in routes.items()]
        for n in (1, 2, 3):
            nets += [
                (ip_network(f"10.77.{n}.0/24"), f"p{n}"),
                (ip_network(f"fd77:{n}::/64"), f"p{n}"),
            ]
        self.table = [
            (net.version, int(net.network_address), int(net.netmask), way)
            for net, way in sorted(nets, key=lambda one: -one[0].prefixlen)
        ]

    def way(self, version: int, to: int) -> tuple[str, bytes, int] | str:
        matching = (way for v, net, mask, way in self.table if v == version and to & mask == net)
        found = next(matching, REFUSED)
        if isinstance(found, tuple):
            port, hop, mtu = found
            return port, self.hops[int(ip_address(hop))], mtu
        if found in (BLACKHOLE, REFUSED):
            return found
        # one of our own networks: who has a neighbour entry is reached
        return (found, self.hops[to], 1500) if to in self.hops else REFUSED

    def __call__(self, frame: bytes) -> Routed:
        left = Routed(PASS, frame)
        kind, body = frame[12:14], frame[14:]
        if not self.any_mac and frame[:6] != _mac(OURS):
            return left
        if kind == b"\x08\x00":
            version, length, to = 4, int.from_bytes(body[2:4], "big"), body[16:20]
            if len(body) < 20 or body[0] != 0x45 or not 20 <= length <= len(body):
                return left
            if checksum(body[:20]) or any(a in (0, 127) or a >= 224 for a in (body[12], to[0])):
                return left
            ttl = body[8]
        elif kind == b"\x86\xdd":
            version, length, to = 6, 40 + int.from_bytes(body[4:6], "big"), body[24:40]
            if len(body) < 40 or body[0] >> 4 != 6 or not length <= min(len(body), 65535):
                return left
            if body[6] == 0 or _odd6(body[8:24]) or _odd6(to):
                return left
            ttl = body[7]
        else:
            return left
        way = self.way(version, int.from_bytes(to, "big"))
        if ttl <= 1 or way == REFUSED:
            return left
        if isinstance(way, str):
            return Routed(DROP, frame)
        port, hop, mtu = way
        if length > mtu:
            return left
        out = bytearray(body)
        if version == 4:
            out[8] -= 1
            out[10:12] = b"\0\0"
            out[10:12] = checksum(bytes(out[:20])).to_bytes(2, "big")
        else:
            out[7] -= 1
        return Routed(REDIRECT, hop + self.macs[port] + kind + bytes(out))


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _odd6(address: bytes) -> bool:
    link_local = address[0] == 0xFE and address[1] & 0xC0 == 0x80
    return not any(address[:12]) or address[0] == 0xFF or link_local


@pytest.fixture(scope="module")
def middle() -> Iterator[Lab]:
    """A router's namespace with ROUTES; the thread is in it."""
    with star_lab(routed=True) as lab:
        ip = lab["middle"].check_output
        for address, mac in HOPS.items():
            lab.neighbour(f"middle:p{int(mac[12:14])}", address, mac)
        for prefix, way in ROUTES.items():
            words = ["ip", "route", "add"]
            if isinstance(way, tuple):
                port, hop, mtu = way
                words += [prefix, "via", hop, "dev", port]
                # for forwarding the kernel goes by a route's own MTU only where it is locked
                words += ["mtu", "lock", str(mtu)] if mtu < 1500 else []
            else:
                words += [KINDS.get(prefix, way), prefix]
            ip(words)
        with lab["middle"].entered():
            yield lab


def ports(lab: Lab) -> dict[str, int]:
    return {f"p{n}": lab.interface(f"middle:p{n}").index for n in (1, 2, 3)}


@pytest.fixture(scope="module")
def router(middle: Lab) -> Iterator[tuple[Object, Runner, Oracle]]:
    with bpfkit.load("xdp/xdp_redirect_router.bpf.c") as loaded:
        for index in ports(middle).values():
            loaded["ports"][index] = {"slot": 0, "mac": {"byte": _mac(OURS)}, "any_mac": 0}
            loaded["out"][index] = index
        yield loaded, Runner(loaded, ports(middle)["p1"]), Oracle(middle, ROUTES, HOPS)


ETH = Ether(src="02:00:00:00:00:01", dst=OURS)
A4, A6 = {"src": "10.77.1.1"}, {"src": "fd77:1::1"}
#: packet -> what bpf_fib_lookup() or the program says, verdict
CASES: list[tuple[Packet, int, int]] = [
    (IP(dst="192.0.2.9", **A4) / UDP(), 0, REDIRECT),
    (IP(dst="192.0.2.9", tos=184, id=7, flags="DF", **A4) / TCP(), 0, REDIRECT),
    (IP(dst="192.0.2.9", ttl=2, **A4) / ICMP(), 0, REDIRECT),
    (IP(dst="192.0.2.9", frag=5, proto=17, **A4) / Raw(bytes(40)), 0, REDIRECT),
    (IP(dst="8.8.8.8", **A4) / UDP(), 0, REDIRECT),
    (IP(dst="192.0.3.1", **A4) / UDP() / Raw(bytes(572)), 0, REDIRECT),
    (IP(dst="192.0.3.1", **A4) / UDP() / Raw(bytes(573)), 8, PASS),
    (IP(dst="192.0.2.9", ttl=1, **A4) / UDP(), 26, PASS),
    (IP(dst="192.0.2.9", ttl=0, **A4) / UDP(), 26, PASS),
    (IP(dst="192.0.2.9", options=[IPOption_NOP()] * 4, **A4) / UDP(), 25, PASS),
    (IP(dst="192.0.2.9", chksum=1, **A4) / UDP(), 25, PASS),
    (IP(dst="192.0.2.9", len=2000, **A4) / UDP(), 25, PASS),
    (IP(dst="192.0.2.9", src="127.0.0.1") / UDP(), 25, PASS),
    (IP(dst="224.0.0.5", **A4) / UDP(), 25, PASS),
    (IP(dst="255.255.255.255", **A4) / UDP(), 25, PASS),
    (IP(dst="198.18.5.5", **A4) / UDP(), 1, DROP),
    (IP(dst="198.19.5.5", **A4) / UDP(), 2, PASS),
    (IP(dst="203.0.113.5", **A4) / UDP(), 3, PASS),
    (IP(dst="10.77.1.254", **A4) / UDP(), 4, PASS),
    (IP(dst="10.77.2.77", **A4) / UDP(), 7, PASS),
    (IPv6(dst="2001:db8::9", **A6) / UDP(), 0, REDIRECT),
    (IPv6(dst="2001:db8::9", tc=184, fl=99, **A6) / TCP(), 0, REDIRECT),
    (IPv6(dst="2001:db8::9", hlim=2, **A6) / IPv6ExtHdrDestOpt() / UDP(), 0, REDIRECT),
    (IPv6(dst="2001:4860::8", **A6) / ICMPv6EchoRequest(), 0, REDIRECT),
    (IPv6(dst="2001:db9::1", **A6) / UDP() / Raw(bytes(1252)), 0, REDIRECT),
    (IPv6(dst="2001:db9::1", **A6) / UDP() / Raw(bytes(1253)), 8, PASS),
    (IPv6(dst="2001:db8::9", hlim=1, **A6) / UDP(), 26, PASS),
    (IPv6(dst="2001:db8::9", **A6) / IPv6ExtHdrHopByHop() / UDP(), 25, PASS),
    (IPv6(dst="2001:db8::9", plen=900, **A6) / UDP(), 25, PASS),
    (IPv6(dst="ff02::1", **A6) / UDP(), 25, PASS),
    (IPv6(dst="fe80::1", **A6) / UDP(), 25, PASS),
    (IPv6(dst="2001:db8::9", src="fe80::1") / UDP(), 25, PASS),
    (IPv6(dst="2001:db8::9", src="::") / UDP(), 25, PASS),
    (IPv6(dst="2001:dba::1", **A6) / UDP(), 1, DROP),
    (IPv6(dst="2001:dbb::1", **A6) / UDP(), 3, PASS),
    (IPv6(dst="fd77:1::fe", **A6) / UDP(), 4, PASS),
    (IPv6(dst="fd77:2::77", **A6) / UDP(), 7, PASS),
    (Dot1Q(vlan=5) / IP(dst="192.0.2.9", **A4) / UDP(), 23, PASS),
    (Dot1Q(vlan=5) / IPv6(dst="2001:db8::9", **A6) / UDP(), 23, PASS),
    (ARP(hwdst=OURS, psrc="10.77.1.1", pdst="10.77.1.254"), 24, PASS),
]


@pytest.mark.parametrize(("packet", "result", "verdict"), CASES, ids=lambda x: str(x)[:50])
def test_router(
    router: tuple[Object, Runner, Oracle], packet: Packet, result: int, verdict: int
) -> None:
    loaded, run, oracle = router
    loaded["results"].clear()
    frame = bytes(ETH / packet)
    assert run(frame) == oracle(frame)
    assert run(frame)[0] == verdict
    counted = {key.result: sums.packets for key, sums in loaded["results"].sums()}
    assert counted == {result: 2}
    if verdict == REDIRECT:
        # the whole packet by scapy, which fills in the checksum
        after = Ether(run(frame)[1])
        wanted = ETH / packet.copy()
        ip = wanted[IP] if IP in wanted else wanted[IPv6]
        if IP in wanted:
            ip.ttl -= 1
        else:
            ip.hlim -= 1
        assert bytes(after)[14:] == bytes(wanted)[14:]


def test_router_takes_only_what_is_addressed_to_the_port(
    router: tuple[Object, Runner, Oracle],
) -> None:
    loaded, run, _ = router
    loaded["results"].clear()
    packet = IP(dst="192.0.2.9", **A4) / UDP()
    for mac in ("02:00:00:00:00:03", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01"):
        assert run(bytes(Ether(dst=mac) / packet))[0] == PASS
    assert {key.result: sums.packets for key, sums in loaded["results"].sums()} == {22: 3}


def test_router_leaves_to_the_kernel_what_would_leave_by_another_interface(
    router: tuple[Object, Runner, Oracle], middle: Lab
) -> None:
    loaded, run, _ = router
    frame = bytes(ETH / IP(dst="192.0.2.9", **A4) / UDP())
    index = ports(middle)["p2"]
    del loaded["out"][index]
    try:
        loaded["results"].clear()
        assert run(frame) == (PASS, frame), "not changed either"
        assert {key.result: sums.packets for key, sums in loaded["results"].sums()} == {20: 1}
    finally:
        loaded["out"][index] = index


def test_router_says_that_forwarding_is_off(
    router: tuple[Object, Runner, Oracle], middle: Lab
) -> None:
    loaded, run, _ = router
    middle.sysctl("middle", "net.ipv4.conf.p1.forwarding", 0)
    try:
        loaded["results"].clear()
        assert run(bytes(ETH / IP(dst="192.0.2.9", **A4) / UDP()))[0] == PASS
        assert {key.result: sums.packets for key, sums in loaded["results"].sums()} == {5: 1}
    finally:
        middle.sysctl("middle", "net.ipv4.conf.p1.forwarding", 1)


POOL4 = [ip_address(a).packed for a in ("192.0.2.5", "192.0.3.5", "198.18.0.1", "198.19.0.1")]
POOL4 += [
    ip_address(a).packed for a in ("203.0.113.9", "9.9.9.9", "10.77.2.1", "10.77.2.9", "240.0.0.1")
]
POOL6 = [ip_address(f"2001:{x}::5").packed for x in ("db8", "db9", "dba", "dbb", "1")]
POOL6 += [ip_address(a).packed for a in ("fd77:2::1", "fd77:2::9", "fe80::9", "ff0e::1", "::1")]


def routable(rng: random.Random, frame: bytes) -> bytes:
    """Most random frames are no good for a router: some of them get what it needs."""
    out = bytearray(frame)
    if out[12:14] == b"\x08\x00" and len(out) >= 34:
        if rng.random() < 0.7:
            out[14] = 0x45
            out[16:18] = (len(out) - 14 - rng.choice((0, 0, 0, 1, -1))).to_bytes(2, "big")
        if rng.random() < 0.7:
            out[30:34] = rng.choice(POOL4)
            out[22] = rng.choice((0, 1, 2, 64, 255))
        if rng.random() < 0.9:
            out[24:26] = b"\0\0"
            out[24:26] = checksum(bytes(out[14:34])).to_bytes(2, "big")
    elif out[12:14] == b"\x86\xdd" and len(out) >= 54 and rng.random() < 0.8:
        out[38:54] = rng.choice(POOL6)
        out[21] = rng.choice((0, 1, 2, 64, 255))
    return bytes(out)


def test_router_random_and_mutated_frames(router: tuple[Object, Runner, Oracle]) -> None:
    _, run, oracle = router
    rng = random.Random(7)
    seen: Counter[int] = Counter()
    for number, frame in enumerate(random_frames(7, RANDOM)):
        if number % 4:
            frame = routable(rng, frame.ljust(14, b"\0"))
        frame = frame[:MAX_RUN_DATA].ljust(14, b"\0")
        got = run(frame)
        assert got == oracle(frame), frame.hex()
        seen[got[0]] += 1
    assert sum(seen.values()) == RANDOM and min(seen[v] for v in (DROP, PASS, REDIRECT)) > 1000, (
        seen
    )


def test_router_truncated_at_every_byte(router: tuple[Object, Runner, Oracle]) -> None:
    _, run, oracle = router
    whole = [bytes(ETH / packet) for packet, _, _ in CASES]
    for frame in truncated([frame[:120] for frame in whole]):
        frame = frame.ljust(14, b"\0")
        assert run(frame) == oracle(frame), frame.hex()


# --- switch, hub, wire ----------------------------------------------------------------------------

STATIONS = [f"02:00:00:00:01:{n:02x}" for n in range(12)]
ODD = ["ff:ff:ff:ff:ff:ff", "01:80:c2:00:00:00", "01:80:c2:00:00:0f", "01:80:c2:00:00:10"]
ODD += ["33:33:00:00:00:01", "00:00:00:00:00:00", "01:00:5e:00:00:01"]


class Bridge:
    """A learning switch in plain Python; the numbers are the results that are counted."""

    def __init__(self, macs: dict[int, bytes]) -> None:
        self.macs = macs
        self.table: dict[tuple[bytes, int], int] = {}

    def __call__(self, frame: bytes, port: int) -> tuple[int, int]:
        to, by, kind = frame[:6], frame[6:12], frame[12:14]
        if (to[:5] == b"\x01\x80\xc2\0\0" and to[5] < 16) or to == self.macs[port]:
            return PASS, 21
        if by[0] & 1 or not any(by):
            return DROP, 19
        tagged = kind in (b"\x81\0", b"\x88\xa8", b"\x91\0") and len(frame) >= 18
        vlan = int.from_bytes(frame[14:16], "big") & 4095 if tagged else 0
        self.table[by, vlan] = port
        known = None if to[0] & 1 else self.table.get((to, vlan))
        if known == port:
            return DROP, 18
        return REDIRECT, 17 if known is None else 16


def test_switch_random_and_mutated_frames(middle: Lab) -> None:
    rng = random.Random(3)
    indexes = list(ports(middle).values())
    macs = {index: _mac(f"02:00:00:00:02:{index:02x}") for index in indexes}
    bridge = Bridge(macs)
    everybody = [_mac(one) for one in (*STATIONS, *ODD)] + list(macs.values())
    wanted: Counter[tuple[int, int]] = Counter()
    with bpfkit.load("xdp/xdp_redirect_switch.bpf.c") as loaded:
        for index in indexes:
            loaded["ports"][index] = {"slot": 0, "mac": {"byte": macs[index]}, "any_mac": 0}
            loaded["out"][index] = index
        run = Runner(loaded, indexes[0])
        for frame in random_frames(8, RANDOM):
            frame = rng.choice(everybody) + rng.choice(everybody) + frame[12:MAX_RUN_DATA]
            frame = frame.ljust(14, b"\0")
            port = rng.choice(indexes)
            verdict, result = bridge(frame, port)
            assert run(frame, port) == (verdict, frame), (port, frame.hex())
            wanted[port, result] += 1
        counted = {(k.ifindex, k.result): sums.packets for k, sums in loaded["results"].sums()}
        assert counted == wanted and len(wanted) == 5 * len(indexes)
        learned = {(bytes(k.mac.byte), k.vlan): port for k, port in loaded["stations"].items()}
        assert learned == bridge.table


def test_switch_floods_what_was_at_a_port_that_is_gone(middle: Lab) -> None:
    p1, p2, _ = ports(middle).values()
    a, b = "02:00:00:00:01:01", "02:00:00:00:01:02"
    with bpfkit.load("xdp/xdp_redirect_switch.bpf.c") as loaded:
        for index in ports(middle).values():
            loaded["ports"][index] = {"slot": 0, "mac": {"byte": bytes(6)}, "any_mac": 0}
            loaded["out"][index] = index
        run = Runner(loaded, p1)
        assert run(bytes(Ether(src=b, dst=a) / IP()), p2)[0] == REDIRECT
        assert run(bytes(Ether(src=a, dst=b) / IP()), p1)[0] == REDIRECT
        del loaded["out"][p2]
        assert run(bytes(Ether(src=a, dst=b) / IP()), p1)[0] == REDIRECT
        counted = {(k.ifindex, k.result): sums.packets for k, sums in loaded["results"].sums()}
        assert counted == {(p2, 17): 1, (p1, 16): 1, (p1, 17): 1}


def test_wire_and_hub_redirect_everything(middle: Lab) -> None:
    p1, p2, p3 = ports(middle).values()
    with (
        bpfkit.load("xdp/xdp_redirect.bpf.c") as wire,
        bpfkit.load("xdp/xdp_redirect_switch.bpf.c", consts={"learns": 0}) as hub,
    ):
        wire["ports"][p1] = {"slot": 0, "mac": {}, "any_mac": 0}
        wire["ports"][p3] = {"slot": 2, "mac": {}, "any_mac": 0}
        wire["wires"][0] = p2
        runs = [Runner(wire, p1), Runner(hub, p1)]
        for frame in frames():
            for run in runs:
                cut = frame[:MAX_RUN_DATA].ljust(14, b"\0")
                assert run(frame) == (REDIRECT, cut)
        # a wire without its other end, and an interface that is no port
        assert runs[0](bytes(60), p3)[0] == PASS
        assert runs[0](bytes(60), p2)[0] == PASS


# --- as the user asks -----------------------------------------------------------------------------


def test_pcap_verdicts() -> None:
    whole = [*frames(), *(routable(random.Random(1), f.ljust(14, b"\0")) for f in frames())]
    whole = [frame[:MAX_RUN_DATA] for frame in whole]
    with star_lab(routed=True) as lab:
        routes = {"0.0.0.0/0": ("p2", "10.77.2.1", 1500), "::/0": ("p2", "fd77:2::1", 1500)}
        hops = {"10.77.2.1": "02:00:00:00:00:02", "fd77:2::1": "02:00:00:00:00:02"}
        oracle = Oracle(lab, routes, hops, any_mac=True)
    words = {DROP: "XDP_DROP", PASS: "XDP_PASS", REDIRECT: "XDP_REDIRECT"}
    got = pcap_verdicts("xdp_redirect", whole, "--how", "router")
    assert got == [words[oracle(frame.ljust(14, b"\0")).verdict] for frame in whole]
    assert len(set(got)) == 2
    for how in ("patch", "hub"):
        assert set(pcap_verdicts("xdp_redirect", whole, "--how", how)) == {"XDP_REDIRECT"}
    bridge = Bridge({1: bytes(6)})
    wanted = [words[bridge(frame.ljust(14, b"\0"), 1)[0]] for frame in whole]
    assert pcap_verdicts("xdp_redirect", whole, "--how", "switch") == wanted
