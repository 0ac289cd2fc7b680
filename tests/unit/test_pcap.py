# SPDX-License-Identifier: Apache-2.0
"""Capture files: ours against scapy, tshark, editcap, mergecap, text2pcap; and damaged ones."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from bpfkit.core.errors import InputError
from bpfkit.net.packets import pcap
from bpfkit.net.packets.pcap import PcapngWriter, PcapReader, PcapWriter, Record, to_ethernet

scapy = pytest.importorskip("scapy.all", reason="scapy is not installed")


def needs(*tools: str) -> pytest.MarkDecorator:
    missing = [tool for tool in tools if not shutil.which(tool)]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


# Addresses are given: scapy would ask the network for them.
ETHER = scapy.Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")


def packets() -> list[object]:
    made = []
    for i in range(40):
        ip = (
            scapy.IP(src="10.0.0.1", dst="10.0.0.2")
            if i % 2
            else scapy.IPv6(src="2001:db8::2", dst="2001:db8::1")
        )
        packet = ETHER / ip / scapy.UDP(sport=i, dport=53) / (b"x" * (7 * i))
        packet.time = 1_700_000_000 + i + i / 1000
        made.append(packet)
    return made


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    path = tmp_path / "plain.pcap"
    scapy.wrpcap(str(path), packets())
    return path


def run(*argv: str | Path) -> str:
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def tshark(path: Path) -> list[tuple[int, int, str]]:
    """(captured length, length, time in nanoseconds as text) of every frame."""
    out = run(
        *("tshark", "-n", "-r", path, "-T", "fields", "-E", "separator=,"),
        *("-e", "frame.cap_len", "-e", "frame.len", "-e", "frame.time_epoch"),
    )
    rows = []
    for line in out.splitlines():
        caplen, length, when = line.split(",")
        rows.append((int(caplen), int(length), when))
    return rows


def ours(path: Path | str) -> list[Record]:
    with PcapReader(path) as reader:
        return list(reader)


def same_as_tshark(path: Path) -> list[Record]:
    records = ours(path)
    judged = tshark(path)
    assert [(len(r.data), r.orig_len) for r in records] == [row[:2] for row in judged]
    for record, (_, _, when) in zip(records, judged, strict=True):
        seconds, _, fraction = when.partition(".")
        assert record.ts_ns == int(seconds or 0) * 10**9 + int(fraction.ljust(9, "0")[:9] or 0)
    assert [r.number for r in records] == list(range(1, len(records) + 1))
    return records


def frames(records: list[Record]) -> list[bytes]:
    return [to_ethernet(record) for record in records]


# -- reading what others write ------------------------------------------------------------------


def test_scapy_writes_we_read(capture: Path) -> None:
    records = ours(capture)
    assert frames(records) == [bytes(p) for p in packets()]  # type: ignore[call-overload]


@needs("editcap", "tshark")
@pytest.mark.parametrize("kind", ["pcap", "nsecpcap", "modpcap", "pcapng"])
@pytest.mark.parametrize("snaplen", [0, 60])
def test_editcap_formats(capture: Path, tmp_path: Path, kind: str, snaplen: int) -> None:
    path = tmp_path / "converted"
    run("editcap", "-F", kind, *(["-s", str(snaplen)] if snaplen else []), capture, path)
    records = same_as_tshark(path)
    expected = [bytes(p)[: snaplen or None] for p in packets()]  # type: ignore[call-overload]
    assert frames(records) == expected
    zipped = tmp_path / "converted.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert frames(ours(zipped)) == expected


@needs("mergecap", "editcap", "tshark")
def test_mergecap_of_different_link_types(capture: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw.pcap"
    with PcapWriter(raw, linktype=101) as writer:
        for i in range(10):
            data = bytes(scapy.IP(src="10.0.0.8", dst="10.0.0.9") / scapy.TCP(dport=i))
            writer.write(data, 1_700_000_000_500_000_001 + i * 10**9)
    merged = tmp_path / "merged.pcapng"
    run("mergecap", "-F", "pcapng", "-w", merged, capture, raw)
    records = same_as_tshark(merged)
    assert len(records) == 50
    assert {r.linktype for r in records} == {1, 101}
    assert {r.interface for r in records} == {0, 1}
    for record in records:
        if record.linktype == 101:
            assert scapy.Ether(to_ethernet(record))[scapy.IP].dst == "10.0.0.9"


@needs("editcap", "tshark")
def test_two_sections_of_both_byte_orders(capture: Path, tmp_path: Path) -> None:
    first = tmp_path / "a.pcapng"
    run("editcap", "-F", "pcapng", "-r", capture, first, "1-10")
    both = tmp_path / "both.pcapng"
    both.write_bytes(first.read_bytes() + big_endian_section())
    records = same_as_tshark(both)
    assert len(records) == 13


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    total = len(body) + 12
    return struct.pack(order + "II", kind, total) + body + struct.pack(order + "I", total)


def option(order: str, code: int, value: bytes) -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)


FRAME = bytes(ETHER / scapy.IP(src="10.0.0.1", dst="10.0.0.2") / scapy.UDP(dport=9) / b"payload")


def big_endian_section(unknown: int = 4) -> bytes:
    """Enhanced, obsolete and simple packet blocks; binary time resolution; unknown blocks."""
    order = ">"
    out = block(order, 0x0A0D0D0A, struct.pack(">IHHq", 0x1A2B3C4D, 1, 0, -1))
    options = option(order, 2, b"eth7") + option(order, 9, b"\x8a") + option(order, 0, b"")
    out += block(order, 1, struct.pack(">HHI", 1, 0, 50) + options)
    out += block(order, unknown, bytes(8))
    out += block(order, 5, bytes(12))
    ticks = 1_700_000_000 << 10 | 512
    out += block(
        order,
        6,
        struct.pack(">IIIII", 0, ticks >> 32, ticks & 0xFFFFFFFF, 41, len(FRAME)) + FRAME[:41],
    )
    out += block(
        order,
        2,
        struct.pack(">HHIIII", 0, 0xFFFF, ticks >> 32, ticks & 0xFFFFFFFF, 43, 900) + FRAME[:43],
    )
    return out + block(order, 3, struct.pack(">I", len(FRAME)) + FRAME[:50])


@pytest.mark.parametrize("unknown", [0x0BAD, 0x80000001, 9])
def test_big_endian_blocks(unknown: int) -> None:
    records = list(PcapReader(io.BytesIO(big_endian_section(unknown))))
    assert [(len(r.data), r.orig_len) for r in records] == [
        (41, len(FRAME)),
        (43, 900),
        (min(50, len(FRAME)), len(FRAME)),
    ]
    assert records[0].ts_ns == 1_700_000_000_500_000_000
    assert records[2].ts_ns == 0
    assert records[0].data == FRAME[:41]


@needs("tshark")
def test_timestamp_offset(tmp_path: Path) -> None:
    order = "<"
    out = block(order, 0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
    options = option(order, 14, struct.pack("<q", 1_600_000_000)) + option(order, 9, b"\x03")
    out += block(order, 1, struct.pack("<HHI", 1, 0, 0) + options)
    out += block(order, 6, struct.pack("<IIIII", 0, 0, 1234, len(FRAME), len(FRAME)) + FRAME)
    path = tmp_path / "offset.pcapng"
    path.write_bytes(out)
    assert same_as_tshark(path)[0].ts_ns == 1_600_000_001_234_000_000


def test_big_endian_pcap_of_version_2_2_with_swapped_lengths() -> None:
    header = struct.pack(">IHHiIII", 0xA1B2C3D4, 2, 2, 0, 0, 65535, 1)
    record = struct.pack(">IIII", 1, 2, 900, len(FRAME)) + FRAME
    (got,) = PcapReader(io.BytesIO(header + record))
    assert (got.data, got.orig_len, got.ts_ns) == (FRAME, 900, 1_000_002_000)


# -- link types ---------------------------------------------------------------------------------

IP4 = bytes(scapy.IP(src="10.1.1.1", dst="10.1.1.2") / scapy.UDP(sport=1, dport=2) / b"abc")
IP6 = bytes(scapy.IPv6(src="2001:db8::1", dst="2001:db8::2") / scapy.TCP(sport=3, dport=4))


def record(linktype: int, data: bytes) -> Record:
    return Record(data, len(data), 0, linktype, 1)


def ethertype(frame: bytes) -> int:
    return int.from_bytes(frame[12:14], "big")


@pytest.mark.parametrize("linktype", [101, 12, 14])
def test_raw_ip(linktype: int) -> None:
    assert to_ethernet(record(linktype, IP4)) == bytes(12) + b"\x08\x00" + IP4
    assert to_ethernet(record(linktype, IP6)) == bytes(12) + b"\x86\xdd" + IP6
    assert ethertype(to_ethernet(record(linktype, b""))) == 0
    assert ethertype(to_ethernet(record(linktype, b"\x00"))) == 0


def test_raw_ip_of_one_version() -> None:
    assert ethertype(to_ethernet(record(228, IP4))) == 0x0800
    assert ethertype(to_ethernet(record(229, IP6))) == 0x86DD


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("family", "expected"),
    [(2, 0x0800), (24, 0x86DD), (28, 0x86DD), (30, 0x86DD), (7, 0), (0, 0)],
)
def test_null(order: str, family: int, expected: int) -> None:
    frame = to_ethernet(record(0, struct.pack(order + "I", family) + IP6))
    assert ethertype(frame) == expected
    assert frame[14:] == IP6


def test_loop_is_in_network_order_only() -> None:
    assert ethertype(to_ethernet(record(108, struct.pack(">I", 2) + IP4))) == 0x0800
    assert ethertype(to_ethernet(record(108, struct.pack("<I", 2) + IP4))) == 0


def sll(kind: int, arphrd: int, address: bytes, protocol: int) -> bytes:
    return struct.pack("!HHH8sH", kind, arphrd, len(address), address, protocol)


def sll2(kind: int, arphrd: int, address: bytes, protocol: int) -> bytes:
    return struct.pack("!HHIHBB8s", protocol, 0, 3, arphrd, kind, len(address), address)


@pytest.mark.parametrize(("linktype", "header"), [(113, sll), (276, sll2)])
def test_cooked(linktype: int, header: object) -> None:
    assert callable(header)
    mac = bytes.fromhex("020406080a0c")
    frame = to_ethernet(record(linktype, header(4, 1, mac, 0x86DD) + IP6))
    assert frame == bytes(6) + mac + b"\x86\xdd" + IP6
    # tagged: the tag follows the cooked header as it follows an Ethernet header
    frame = to_ethernet(record(linktype, header(0, 1, mac, 0x8100) + b"\x00\x64\x08\x00" + IP4))
    assert scapy.Ether(frame)[scapy.Dot1Q].vlan == 100
    assert scapy.Ether(frame)[scapy.UDP].dport == 2
    # unknown protocols keep their ethertype; devices without addresses have none
    frame = to_ethernet(record(linktype, header(0, 0xFFFE, b"", 0x88B5) + b"zz"))
    assert frame == bytes(12) + b"\x88\xb5zz"
    assert ethertype(to_ethernet(record(linktype, header(0, 824, b"", 0x0800) + b"zz"))) == 0
    for cut in range(len(header(0, 1, mac, 0x0800))):
        assert len(to_ethernet(record(linktype, header(0, 1, mac, 0x0800)[:cut]))) == 14


@needs("text2pcap", "tshark")
@pytest.mark.parametrize("linktype", sorted(pcap.LINKTYPES))
def test_text2pcap_link_types(tmp_path: Path, linktype: int) -> None:
    """tshark sees the same protocols and lengths under our Ethernet as under the original."""
    prefix = {
        0: struct.pack("<I", 2),
        1: bytes(12) + b"\x08\x00",
        108: struct.pack(">I", 2),
        113: sll(0, 1, b"\2" * 6, 0x0800),
        276: sll2(0, 1, b"\2" * 6, 0x0800),
    }.get(linktype, b"")
    data = prefix + (IP6 if linktype == 229 else IP4)
    dump = tmp_path / "dump.txt"
    lines = [f"{at:06x} {data[at : at + 16].hex(' ')}" for at in range(0, len(data), 16)] + [
        f"{len(data):06x}"
    ]
    dump.write_text("\n".join(lines) + "\n")
    path = tmp_path / "original.pcapng"
    run("text2pcap", "-q", "-l", str(linktype), dump, path)
    (got,) = same_as_tshark(path)
    assert (got.data, got.orig_len) == (data, len(data))
    # text2pcap maps these
    assert got.linktype == {12: 101, 14: 101, 50: 9}.get(linktype, linktype)
    ethernet = tmp_path / "ethernet.pcap"
    with PcapWriter(ethernet) as writer:
        writer.write(to_ethernet(got))
    fields = ["-T", "fields", "-e", "udp.srcport", "-e", "tcp.dstport", "-e", "ip.dst"]
    assert run("tshark", "-r", path, *fields) == run("tshark", "-r", ethernet, *fields)


def test_frame_check_sequence_is_not_counted() -> None:
    header = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1 | 0x04000000 | 2 << 28)
    body = struct.pack("<IIII", 1, 0, len(FRAME) + 4, len(FRAME) + 4) + FRAME + b"FCS!"
    cut = struct.pack("<IIII", 1, 0, 30, len(FRAME) + 4) + FRAME[:30]
    whole, short = PcapReader(io.BytesIO(header + body + cut))
    assert (whole.data, whole.orig_len) == (FRAME, len(FRAME))
    assert (short.data, short.orig_len) == (FRAME[:30], len(FRAME))


# -- what we write ------------------------------------------------------------------------------


@needs("tshark")
@pytest.mark.parametrize("nanoseconds", [True, False])
def test_pcap_writer(tmp_path: Path, nanoseconds: bool) -> None:
    path = tmp_path / "ours.pcap"
    with PcapWriter(path, nanoseconds=nanoseconds) as writer:
        for i in range(20):
            writer.write(FRAME, 1_700_000_000_123_456_789 + i, 2000 + i)
    records = same_as_tshark(path)
    assert [r.orig_len for r in records] == list(range(2000, 2020))
    assert records[0].ts_ns == (
        1_700_000_000_123_456_789 if nanoseconds else 1_700_000_000_123_456_000
    )


@needs("tshark")
def test_pcapng_writer(tmp_path: Path) -> None:
    path = tmp_path / "ours.pcapng"
    with PcapngWriter(path) as writer:
        a, b = writer.interface("client"), writer.interface("tun0", 101)
        writer.write(FRAME, 1_700_000_000_123_456_789, outgoing=True, interface=a)
        writer.write(IP4, 1_700_000_000_123_456_790, outgoing=False, interface=b)
        writer.write(FRAME[:20], 1_700_000_000_123_456_791, 9000, interface=a)
    records = same_as_tshark(path)
    assert [r.linktype for r in records] == [1, 101, 1]
    names = run("tshark", "-r", path, "-T", "fields", "-e", "frame.interface_name")
    assert names.split() == ["client", "tun0", "client"]


def test_pcapng_writer_without_interfaces() -> None:
    file = io.BytesIO()
    with PcapngWriter(file) as writer:
        writer.write(FRAME)
    file.seek(0)
    (got,) = PcapReader(file)
    assert got.data == FRAME


# -- what is wrong with a file -------------------------------------------------------------------


def refused(path: Path | str, *words: str) -> InputError:
    with pytest.raises(InputError) as caught, PcapReader(path) as reader:
        for _ in reader:
            pass
    text = str(caught.value)
    assert str(path) in text or path == "-"
    for word in words:
        assert word in text
    assert caught.value.exit_status == 2
    return caught.value


def test_no_such_file(tmp_path: Path) -> None:
    refused(tmp_path / "none.pcap", "No such file")


def test_a_directory(tmp_path: Path) -> None:
    refused(tmp_path, "directory")


def test_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    refused(tmp_path / "empty", "empty")


def test_not_a_capture(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello world, this is not a capture file\n")
    refused(tmp_path / "text", "neither")


def test_no_packets_is_not_an_error(tmp_path: Path) -> None:
    PcapWriter(tmp_path / "none").close()
    assert ours(tmp_path / "none") == []


@pytest.mark.parametrize("linktype", [147, 189, 195])
def test_unsupported_link_type(tmp_path: Path, linktype: int) -> None:
    path = tmp_path / "wifi.pcap"
    with PcapWriter(path, linktype=linktype) as writer:
        writer.write(b"x" * 50)
    refused(path, str(linktype), "not supported")
    with PcapReader(path, any_linktype=True) as reader:
        (got,) = reader
    with pytest.raises(InputError, match="not supported"):
        to_ethernet(got)


def test_records_of_an_unsupported_link_type_in_pcapng_are_stepped_over(tmp_path: Path) -> None:
    path = tmp_path / "mixed.pcapng"
    with PcapngWriter(path) as writer:
        writer.interface("eth0")
        writer.interface("wpan0", 195)  # a description alone is no error
        writer.write(FRAME)
        writer.write(FRAME, interface=1)
        writer.write(FRAME)
    with PcapReader(path) as reader:
        records = list(reader)
        assert reader.remarks() == [
            "1 record of link type 195, which is not supported: counted as not IP"
        ]
    assert [r.number for r in records] == [1, 2, 3]
    assert [ethertype(to_ethernet(r)) for r in records] == [0x0800, 0, 0x0800]
    assert [r.orig_len for r in records] == [len(FRAME)] * 3
    assert len(run("tshark", "-r", path).splitlines()) == 3


def test_a_pcapng_file_of_unsupported_link_types_only_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "wpan.pcapng"
    with PcapngWriter(path) as writer:
        writer.interface("wpan0", 195)
        writer.write(FRAME)
    with PcapReader(path) as reader, pytest.raises(InputError, match="195 is not supported"):
        list(reader)


def test_more_captured_bytes_than_the_original_length_is_a_packet(tmp_path: Path) -> None:
    path = tmp_path / "longer"
    header = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    one = struct.pack("<IIII", 1, 2, len(FRAME), 40) + FRAME
    path.write_bytes(header + one + struct.pack("<IIII", 1, 2, len(FRAME), len(FRAME)) + FRAME)
    with PcapReader(path) as reader:
        assert [(r.data, r.orig_len) for r in reader] == [(FRAME, 40), (FRAME, len(FRAME))]
        assert reader.remarks() == ["1 record with more captured bytes than the packet's length"]
    lengths = run("tshark", "-r", path, "-T", "fields", "-e", "frame.len", "-e", "frame.cap_len")
    assert lengths.split() == ["40", str(len(FRAME)), str(len(FRAME)), str(len(FRAME))]


def test_an_empty_record_is_a_packet_of_no_bytes(tmp_path: Path) -> None:
    path = tmp_path / "empty.pcap"
    with PcapWriter(path) as writer:
        writer.write(b"")
        writer.write(FRAME)
    with PcapReader(path) as reader:
        assert [(r.data, r.orig_len) for r in reader] == [(b"", 0), (FRAME, len(FRAME))]
        assert reader.remarks() == ["1 record without any captured byte"]


def test_interface_descriptions_cannot_fill_the_memory() -> None:
    """70 MB of interface descriptions in 300 kB of gzip: refused at the 65537th."""
    section = block("<", 0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
    description = block("<", 1, struct.pack("<HHI", 1, 0, 0))
    file = io.BytesIO(gzip.compress(section + description * (70_000_000 // len(description))))
    script = (
        "import sys; from bpfkit.net.packets.pcap import PcapReader\n"
        "try: list(PcapReader(sys.stdin.buffer))\n"
        "except Exception as error: print(error)\n"
        "print(*[l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=file.getvalue(), capture_output=True, check=True
    )
    text, peak = done.stdout.decode().rsplit("\n", 2)[:2]
    assert "more than 65536 interfaces" in text
    assert int(peak) < 100_000  # kB


WIFI = bytes.fromhex("0801") + bytes(22)
SNAP = bytes.fromhex("aaaa030000000800")
RADIOTAP_FCS_PAD = bytes.fromhex("0000190003000000") + bytes(8) + b"\x30" + bytes(8)


@pytest.mark.parametrize(
    ("linktype", "header", "trailer"),
    [
        pytest.param(9, "0021", "", id="PPP"),
        pytest.param(9, "21", "", id="PPP, protocol field compressed"),
        pytest.param(9, "ff0321", "", id="PPP, HDLC framing, compressed"),
        pytest.param(50, "ff030021", "", id="PPP in HDLC framing"),
        pytest.param(50, "0f000800", "", id="Cisco HDLC in a PPP capture"),
        pytest.param(104, "0f000800", "", id="Cisco HDLC"),
        pytest.param(107, "184103cc", "", id="Frame Relay, NLPID"),
        pytest.param(107, "18404103cc", "", id="Frame Relay, 3 bytes of address"),
        pytest.param(107, "18410300800000000800", "", id="Frame Relay, SNAP"),
        pytest.param(107, "18410800", "", id="Frame Relay, Cisco"),
        pytest.param(109, "02000000" + "00" * 8, "", id="ENC, little endian"),
        pytest.param(109, "00000002" + "00" * 8, "", id="ENC, big endian"),
        pytest.param(117, "3d020000" + "00" * 60, "", id="PFLOG, 61 bytes"),
        pytest.param(117, "45020000" + "00" * 68, "", id="PFLOG, 69 bytes"),
        pytest.param(239, "020000000800010008000000", "", id="NFLOG"),
        pytest.param(242, "00" * 40 + "08000000", "", id="IPoIB"),
        pytest.param(105, (WIFI + SNAP).hex(), "", id="802.11 data"),
        pytest.param(105, "8803" + "00" * 30 + SNAP.hex(), "", id="802.11 QoS, 4 addresses"),
        pytest.param(127, "0000080000000000" + (WIFI + SNAP).hex(), "", id="radiotap"),
        pytest.param(
            127,
            (RADIOTAP_FCS_PAD + b"\x88" + WIFI[1:] + bytes(2) + bytes(2) + SNAP).hex(),
            "00000000",
            id="radiotap: TSFT, FCS, padded QoS header",
        ),
    ],
)
def test_link_types_that_carry_ip(tmp_path: Path, linktype: int, header: str, trailer: str) -> None:
    """tshark reads the same packet behind the original link header as we do behind ours."""
    ip = IP4
    if linktype == 239:
        header += f"{len(ip) + 4:02x}000900"  # NFULA_PAYLOAD and its length
    original, ethernet = tmp_path / "original.pcap", tmp_path / "ethernet.pcap"
    with PcapWriter(original, linktype=linktype) as writer:
        writer.write(bytes.fromhex(header) + ip + bytes.fromhex(trailer))
    with PcapReader(original) as reader, PcapWriter(ethernet) as writer:
        for got in reader:
            writer.write(to_ethernet(got))
    fields = ["-T", "fields", "-e", "ip.src", "-e", "ip.dst", "-e", "udp.srcport"]
    ours = run("tshark", "-r", ethernet, *fields)
    assert run("tshark", "-r", original, *fields) == ours
    assert ours.strip()


@pytest.mark.parametrize(
    ("linktype", "data"),
    [
        pytest.param(105, bytes.fromhex("4000") + bytes(40), id="802.11 management"),
        pytest.param(105, bytes.fromhex("0841") + WIFI[2:] + SNAP + IP4, id="802.11 protected"),
        pytest.param(105, bytes.fromhex("4801") + WIFI[2:], id="802.11 null data"),
        pytest.param(9, bytes.fromhex("c021") + bytes(20), id="PPP LCP"),
        pytest.param(239, bytes.fromhex("02010000") + IP4, id="NFLOG of another version"),
    ],
)
def test_frames_without_a_readable_ip_packet_are_not_ip(linktype: int, data: bytes) -> None:
    assert ethertype(to_ethernet(record(linktype, data))) == 0


@pytest.mark.parametrize("linktype", sorted(pcap.LINKTYPES))
def test_a_cut_link_header_is_never_an_error(linktype: int) -> None:
    whole = bytes.fromhex("0000190003000000") + bytes(range(60)) + IP4
    for size in range(len(whole)):
        to_ethernet(record(linktype, whole[:size]))


def test_truncated_says_what_precedes(capture: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.pcap"
    path.write_bytes(capture.read_bytes()[:-3])
    seen: list[Record] = []
    with pytest.raises(InputError, match=r"truncated.*39 whole records precede"):
        seen.extend(PcapReader(path))
    assert len(seen) == 39  # nothing of what is whole is lost


@pytest.mark.parametrize("kind", ["pcap", "pcapng", "gzip"])
def test_every_truncation(kind: str) -> None:
    plain = pcapng_bytes() if kind == "pcapng" else pcap_bytes()
    whole = gzip.compress(plain) if kind == "gzip" else plain
    accepted = []
    for cut in range(len(whole)):
        try:
            for _ in PcapReader(io.BytesIO(whole[:cut])):
                pass
            accepted.append(cut)
        except InputError:
            pass
    # Only where a record or block ends can a shorter file be taken for a whole one.
    if kind == "gzip":
        assert accepted == []
    elif kind == "pcap":
        assert accepted == [24 + i * (16 + len(FRAME)) for i in range(3)]
    else:
        ends, at = [], 0
        for _ in range(12):
            order = "<" if at < len(pcapng_bytes()) - len(big_endian_section()) else ">"
            total = struct.unpack_from(order + "I", plain, at + 4)[0]
            at += total
            ends.append(at)
            if at == len(plain):
                break
        assert accepted == ends[:-1]


def pcap_bytes() -> bytes:
    file = io.BytesIO()
    with PcapWriter(file) as writer:
        for i in range(3):
            writer.write(FRAME, i)
    return file.getvalue()


def pcapng_bytes() -> bytes:
    file = io.BytesIO()
    with PcapngWriter(file) as writer:
        for i in range(3):
            writer.write(FRAME, i, outgoing=True)
    return file.getvalue() + big_endian_section()


def test_absurd_lengths(tmp_path: Path) -> None:
    path = tmp_path / "absurd"
    header = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    path.write_bytes(header + struct.pack("<IIII", 1, 2, 0xFFFFFFF0, 0xFFFFFFF0) + FRAME)
    refused(path, "byte 24", "4294967280")
    path.write_bytes(header + struct.pack("<IIII", 1, 2, 300_000, 300_000) + FRAME)
    refused(path, "byte 24", "300000")
    section = block("<", 0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
    path.write_bytes(section + struct.pack("<II", 6, 0xFFFFFFF0) + bytes(100))
    refused(path, "byte 28")
    path.write_bytes(section + struct.pack("<II", 6, 5) + bytes(100))
    refused(path, "5 bytes long")
    path.write_bytes(section + block("<", 6, struct.pack("<IIIII", 4, 0, 0, 1, 1) + b"x"))
    refused(path, "interface 4")
    refused_trailer = bytearray(section)
    refused_trailer[-1] ^= 1
    path.write_bytes(refused_trailer)
    refused(path, "at its end")
    path.write_bytes(block("<", 0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 2, 0, -1)))
    refused(path, "version 2.0")


def test_damaged_gzip(capture: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.gz"
    whole = bytearray(gzip.compress(capture.read_bytes()))
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, "compressed file is truncated")
    whole[len(whole) // 2] ^= 0x55
    path.write_bytes(whole)
    refused(path)


def test_damage_never_raises_anything_else() -> None:
    hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
    st = hypothesis.strategies
    wholes = [pcap_bytes(), pcapng_bytes(), gzip.compress(pcap_bytes())]

    @hypothesis.settings(max_examples=400, deadline=None, database=None)
    @hypothesis.given(
        st.sampled_from(wholes),
        st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=8),
        st.integers(0, 2000),
        st.binary(max_size=20),
    )
    def damaged(whole: bytes, changes: list[tuple[int, int]], cut: int, tail: bytes) -> None:
        data = bytearray(whole[: cut if cut % 3 == 0 else None])
        for at, value in changes:
            if data:
                data[at % len(data)] = value
        try:
            for got in PcapReader(io.BytesIO(bytes(data) + tail)):
                assert len(to_ethernet(got)) >= 0
                assert got.orig_len >= 0
        except InputError:
            pass

    damaged()


# -- streaming ----------------------------------------------------------------------------------


def test_a_pipe(capture: Path) -> None:
    code = (
        "import sys; from bpfkit.net.packets.pcap import PcapReader; "
        "print(sum(r.orig_len for r in PcapReader('-')))"
    )
    with capture.open("rb") as file:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdin=file,
            stdout=subprocess.PIPE,
            check=True,
            text=True,
            cwd=Path(pcap.__file__).parents[2],
        )
    assert int(done.stdout) == sum(r.orig_len for r in ours(capture))


def test_constant_memory(tmp_path: Path) -> None:
    path = tmp_path / "big.pcapng.gz"
    with gzip.open(path, "wb", compresslevel=1) as zipped, PcapngWriter(zipped) as writer:  # type: ignore[arg-type]
        for i in range(20_000):
            writer.write(bytes(1000), i)
        # a block to be skipped that is larger than what may be held
        writer._block(10, bytes(32 << 20))
        writer.write(FRAME)
    tracemalloc.start()
    with PcapReader(path) as reader:
        count = sum(1 for _ in reader)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_001
    assert peak < 4 << 20


def test_files_are_closed(capture: Path, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    ours(capture)
    (tmp_path / "bad").write_bytes(b"\x1f\x8b nonsense")
    refused(tmp_path / "bad")
    assert len(os.listdir("/proc/self/fd")) == before
