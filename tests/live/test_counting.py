# SPDX-License-Identifier: Apache-2.0
"""The counting programs on live sockets: what packet runs cannot show."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest
from counters import Counter, Flow, Sockex1, Sockex2, Sockex3
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from bpfkit.net.links.lab import Lab, loopback_lab, pair_lab
from bpfkit.net.packets.packet_socket import PacketSocket

INCOMING, OUTGOING, BOTH = 1, 2, 3
UDP_SEGMENT = 103  # setsockopt(SOL_UDP): the kernel cuts what is sent into datagrams
PACKET_VNET_HDR = 15
V4, V6 = IP(src="10.77.0.1", dst="10.77.0.2"), IPv6(src="fd77::1", dst="fd77::2")
Watch = Callable[..., Counter]


@pytest.fixture
def watch() -> Iterator[Watch]:
    """Attaches a program to an interface of a lab."""
    with contextlib.ExitStack() as stack:

        def attach(
            kind: type[Counter], lab: Lab, device: str, direction: int, **consts: int
        ) -> Counter:
            counter = kind({"direction": direction, **consts})
            stack.callback(counter.close)
            interface = lab.interface(device)
            stack.enter_context(PacketSocket(interface, counter.program, counting=True))
            return counter

        yield attach


@pytest.fixture
def pair() -> Iterator[Lab]:
    with pair_lab() as lab:
        # silent, but for what the test sends
        for name in ("client", "server"):
            lab.sysctl(name, "net.ipv6.conf.all.disable_ipv6", 1)
        yield lab


def eventually(condition: Callable[[], bool]) -> None:
    """Waits until it is so."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def settled(counter: Counter, packets: int) -> None:
    """Waits until that many packets were seen; more may not come."""
    eventually(lambda: counter.totals()["seen"][0] >= packets)
    time.sleep(0.05)
    assert counter.totals()["seen"][0] == packets


def datagrams(lab: Lab, name: str, family: int) -> contextlib.closing[socket.socket]:
    return contextlib.closing(lab[name].socket(family, socket.SOCK_DGRAM))


def frame(lab: Lab, *layers: Packet) -> bytes:
    packet: Packet = Ether(src=lab.lladdr("client:eth0"), dst=lab.lladdr("server:eth0"))
    for layer in layers:
        packet = packet / layer
    return bytes(packet)


def test_loopback_shows_each_frame_twice_and_it_is_counted_once(watch: Watch) -> None:
    with loopback_lab() as lab:
        once = watch(Sockex3, lab, "host:lo", OUTGOING)
        other = watch(Sockex3, lab, "host:lo", INCOMING)
        twice = watch(Sockex3, lab, "host:lo", BOTH)
        protocols = watch(Sockex1, lab, "host:lo", OUTGOING)
        destinations = watch(Sockex2, lab, "host:lo", OUTGOING)
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with datagrams(lab, "host", family) as server:
                server.bind((address, 0))
                with datagrams(lab, "host", family) as client:
                    for _ in range(10):
                        client.sendto(bytes(100), server.getsockname())
        settled(twice, 40)
        wire = {"127.0.0.1": 14 + 20 + 8 + 100, "::1": 14 + 40 + 8 + 100}
        for counter in (once, other):
            assert {f.dst: row for f, row in counter.rows().items()} == {
                dst: (10, 10 * size) for dst, size in wire.items()
            }
        assert destinations.rows() == {dst: (10, 10 * size) for dst, size in wire.items()}
        assert protocols.rows() == {17: (20, 10 * sum(wire.values()))}


TAGGED = [
    ((Dot1Q(vlan=5),), (5,)),
    ((Dot1AD(vlan=6),), (6,)),
    ((Dot1AD(vlan=6), Dot1Q(vlan=7)), (6, 7)),
    ((Dot1Q(vlan=7), Dot1AD(vlan=6), Dot1Q(vlan=8)), (7, 6, 8)),
]


@pytest.mark.parametrize(("tags", "ids"), TAGGED)
def test_the_tag_that_the_kernel_took_out_of_the_frame_is_counted_and_in_the_key(
    pair: Lab, watch: Watch, tags: tuple[Packet, ...], ids: tuple[int, ...]
) -> None:
    # sent with all tags in the data; received with the outermost one in skb->vlan_tci
    sent = watch(Sockex3, pair, "client:eth0", OUTGOING)
    received = watch(Sockex3, pair, "server:eth0", INCOMING)
    protocols = watch(Sockex1, pair, "server:eth0", INCOMING)
    frames = [frame(pair, *tags, ip, TCP(sport=1, dport=2), Raw(bytes(100))) for ip in (V4, V6)]
    with PacketSocket(pair.interface("client:eth0"), protocol=0) as sender:
        for data in frames:
            sender.sock.send(data)
    for counter in (sent, received):
        settled(counter, 2)
        assert counter.rows() == {
            Flow(ip.src, ip.dst, 6, 1, 2, vlan=ids): (1, len(data))
            for ip, data in zip((V4, V6), frames, strict=True)
        }
    assert protocols.rows() == {6: (2, sum(map(len, frames)))}


@pytest.mark.parametrize("size", [100, 1000, 1400])
@pytest.mark.parametrize("offloads", [True, False])
def test_udp_segmentation_offload_counts_as_its_datagrams(
    watch: Watch, size: int, offloads: bool
) -> None:
    payload = 17 * size + 1
    with pair_lab(offloads=offloads) as lab:
        lab.neighbours("client:eth0", "server:eth0")
        counters = [
            watch(kind, lab, device, direction)
            for device, direction in (("client:eth0", OUTGOING), ("server:eth0", INCOMING))
            for kind in (Sockex3, Sockex2)
        ]
        with datagrams(lab, "client", socket.AF_INET) as client:
            client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
            client.sendto(bytes(payload), ("10.77.0.2", 9))
        wire = (18, payload + 18 * 42)
        for counter in counters:
            eventually(lambda counter=counter: wire in counter.rows().values())
            rows = counter.rows().items()
            assert [row for key, row in rows if "10.77.0.2" in (key, getattr(key, "dst", 0))] == [
                wire
            ]


@pytest.mark.parametrize("gso_size", [536, 1448])
def test_super_frames_whose_segments_nobody_counted(pair: Lab, watch: Watch, gso_size: int) -> None:
    """virtio hands over TCP super-frames with gso_segs 0; a packet socket can do the same."""
    received = watch(Sockex3, pair, "server:eth0", INCOMING)
    sent = watch(Sockex3, pair, "client:eth0", OUTGOING)
    payload = 10 * gso_size + 7
    tcp = TCP(sport=1, dport=2, flags="A", options=[("Timestamp", (1, 2)), ("NOP", 0), ("NOP", 0)])
    data = frame(pair, V4, tcp, Raw(bytes(payload)))
    header = len(data) - payload
    # struct virtio_net_hdr: NEEDS_CSUM, GSO_TCPV4, header bytes, gso_size, csum_start, csum_offset
    vnet = struct.pack("=BBHHHH", 1, 1, header, gso_size, 34, 16)
    with PacketSocket(pair.interface("client:eth0"), protocol=0) as sender:
        sender.sock.setsockopt(263, PACKET_VNET_HDR, 1)
        sender.sock.send(vnet + data)
    flow = Flow("10.77.0.1", "10.77.0.2", 6, 1, 2)
    for counter in (sent, received):
        eventually(lambda counter=counter: flow in counter.rows())
        assert counter.rows()[flow] == (11, payload + 11 * header)
