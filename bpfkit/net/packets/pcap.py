# SPDX-License-Identifier: Apache-2.0
"""Capture files: pcap and pcapng, read as a stream and written.

Formats: draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng; link types: see ``linktypes.py``.
Microseconds and nanoseconds, both byte orders, pcapng with several sections and interfaces, and
gzip around either are read.  A file is read record by record, in constant memory, from a pipe too:
a block of at most 16 MiB and 65536 interface descriptions are held at a time.

Broken framing (a header or a length that leaves no way to find the next record) is an
:class:`InputError` that names the file, the byte offset in it (after decompression), and how many
whole records precede; those were all handed out.  A record that is odd but can be stepped over is
handed out as well, and :meth:`PcapReader.remarks` tells how many there were.
"""

from __future__ import annotations

import os
import struct
import sys

from bpfkit.core.closing import Closing
from bpfkit.core.errors import InputError
from bpfkit.net.packets.linktypes import LINKTYPES, made_ethernet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, BinaryIO


__all__ = ["LINKTYPES", "PcapReader", "PcapWriter", "PcapngWriter", "Record", "to_ethernet"]

#: The first bytes of a file -> (byte order, units a second, bytes of a record header).
_PCAP_MAGIC = {
    b"\xd4\xc3\xb2\xa1": ("<", 1_000_000, 16),
    b"\xa1\xb2\xc3\xd4": (">", 1_000_000, 16),
    b"\x4d\x3c\xb2\xa1": ("<", 1_000_000_000, 16),
    b"\xa1\xb2\x3c\x4d": (">", 1_000_000_000, 16),
    # libpcap patched by A. Kuznetsov: ifindex, protocol and packet type after the usual header
    b"\x34\xcd\xb2\xa1": ("<", 1_000_000, 24),
    b"\xa1\xb2\xcd\x34": (">", 1_000_000, 24),
}
_PCAPNG_MAGIC = b"\n\r\r\n"
_GZIP_MAGIC = b"\x1f\x8b"
_MAGIC_HINTS = {
    b"\x28\xb5\x2f": "it is compressed with zstd: decompress it first, `zstdcat FILE | … --pcap -`",
    b"BZh": "it is compressed with bzip2: decompress it first, `bzcat FILE | … --pcap -`",
    b"\xfd7z": "it is compressed with xz: decompress it first, `xzcat FILE | … --pcap -`",
    b"\x04\x22\x4d": "it is compressed with lz4: decompress it first, `lz4cat FILE | … --pcap -`",
}

_MAX_SNAPLEN = 262144  # libpcap's, and what Wireshark takes a longer record for: damage
_MAX_BLOCK = 16 << 20  # of packet and header blocks; others are skipped piecewise

#: Interface descriptions in one section: a short compressed file must not fill the memory.
_MAX_INTERFACES = 65536


class Record:
    """One packet of a capture.

    :ivar data: the captured bytes.
    :ivar orig_len: length of the packet on the wire, in bytes, as the file says (a frame check
        sequence that is part of the capture is not counted and not in ``data``).
    :ivar ts_ns: UNIX time in nanoseconds; 0 where the file has none (pcapng simple packets).
    :ivar linktype: LINKTYPE_* number of its interface.
    :ivar number: its place in the file, from 1, as Wireshark counts.
    :ivar interface: index of its interface in the section, 0 for pcap.
    """

    __slots__ = ("data", "interface", "linktype", "number", "orig_len", "ts_ns")

    def __init__(
        self, data: bytes, orig_len: int, ts_ns: int, linktype: int, number: int, interface: int = 0
    ) -> None:
        self.data = data
        self.orig_len = orig_len
        self.ts_ns = ts_ns
        self.linktype = linktype
        self.number = number
        self.interface = interface

    @property
    def ts(self) -> float:
        """UNIX time in seconds."""
        return self.ts_ns / 1e9

    def __repr__(self) -> str:
        return (
            f"<Record {self.number} linktype {self.linktype} "
            f"{len(self.data)} of {self.orig_len} bytes>"
        )


def to_ethernet(record: Record) -> bytes:
    """The packet as an Ethernet frame: of another link type, with a header made up in front.

    The made-up header has the ethertype that the capture's own header says, addresses 0 (the
    sender's where a cooked header has one), and ethertype 0 where nothing says what follows: a
    family that is not IP, or a header that the snap length cut.  ``record.orig_len`` still is the
    length of the packet as captured.

    :raises InputError: the link type is not one of :data:`LINKTYPES`.
    """
    if record.linktype not in LINKTYPES:
        raise _unsupported("", record.linktype, record.number)
    return made_ethernet(record.data, record.linktype)


def _unsupported(name: str, linktype: int, number: int = 0) -> InputError:
    where = ": ".join(part for part in (name, f"record {number}" if number else "") if part)
    return InputError(
        f"{where}: link type {linktype} is not supported",
        why="only " + ", ".join(f"{text} ({n})" for n, text in sorted(LINKTYPES.items())),
        hint="",
    )


class _Interface:
    """An interface description of a pcapng section."""

    __slots__ = ("base2", "fcs", "linktype", "offset_s", "snaplen", "units")

    def __init__(self, linktype: int, snaplen: int) -> None:
        self.linktype = linktype
        self.snaplen = snaplen
        self.units = 1_000_000  # timestamp units a second
        self.offset_s = 0
        self.fcs = 0


class PcapReader(Closing):
    """The records of a capture file, one after the other.

    ::

        with PcapReader("trace.pcapng.gz") as records:
            for record in records:
                frame = to_ethernet(record)

    :param source: a path, ``"-"`` for standard input, or a binary file object (left open).
    :param any_linktype: hand out records of link types that :func:`to_ethernet` does not know,
        instead of refusing them.
    :raises InputError: when opened: unreadable, empty, not a capture file, or (pcap) of an
        unsupported link type; while iterating: malformed, truncated; at the end: every record of
        a pcapng file has an unsupported link type.

    A pcapng record of an unsupported link type is handed out as an Ethernet frame (link type 1)
    whose payload is not IP, so that every record counts.

    :ivar name: the file, for messages.
    :ivar format: ``"pcap"`` or ``"pcapng"``.
    :ivar records: how many whole records were handed out so far.
    """

    def __init__(
        self, source: str | os.PathLike[str] | BinaryIO, *, any_linktype: bool = False
    ) -> None:
        self.records = 0
        #: What was odd about how many records, by :meth:`remarks`' texts.
        self._longer = self._empty = 0
        self._foreign: dict[int, int] = {}
        self._any_linktype = any_linktype
        self._offset = 0
        self._close: list[BinaryIO] = []
        if isinstance(source, (str, os.PathLike)):
            self.name = os.fspath(source)
            if self.name == "-":
                self.name = "standard input"
                self._file: BinaryIO = sys.stdin.buffer
            else:
                self._file = self._open(self.name)
        else:
            self.name = str(getattr(source, "name", "capture"))
            self._file = source
        try:
            magic = self._read(4)
            if magic[:2] == _GZIP_MAGIC:
                self._unzip(magic)
                magic = self._read(4)
            if not magic:
                raise self._bad("the file is empty")
            if magic in _PCAP_MAGIC:
                self.format = "pcap"
                self._start_pcap(magic)
            elif magic == _PCAPNG_MAGIC:
                self.format = "pcapng"
                self._interfaces: list[_Interface] = []
                self._order = ""
            else:
                error = self._bad("neither a pcap nor a pcapng file", 0)
                error.hint = _MAGIC_HINTS.get(
                    magic[:3], "other formats: convert with `editcap -F pcapng FILE NEW`"
                )
                raise error
        except BaseException:
            self.close()
            raise
        self._iterator = self._pcap() if self.format == "pcap" else self._pcapng()

    # -- bytes ------------------------------------------------------------------------------------

    def _open(self, path: str) -> BinaryIO:
        try:
            file = open(path, "rb", 1 << 17)  # noqa: SIM115 - closed by close()
        except (OSError, ValueError) as error:
            why = (error.strerror or "") if isinstance(error, OSError) else str(error)
            raise InputError(f"cannot read capture file {path}", why=why) from error
        self._close.append(file)
        return file

    def _unzip(self, magic: bytes) -> None:
        import gzip

        raw: Any = _Pushback(magic, self._file)
        unzipped: Any = gzip.GzipFile(fileobj=raw, mode="rb")
        self._close.append(unzipped)
        self._file = unzipped
        self._offset = 0

    def _read(self, size: int) -> bytes:
        """Up to ``size`` bytes; fewer only at the end of the file."""
        parts = []
        left = size
        while left:  # once, unless the source is a raw pipe or a claimed size is huge
            try:
                part = self._file.read(min(left, 1 << 20))
            except EOFError as error:
                raise self._bad("the compressed file is truncated") from error
            except Exception as error:
                # What gzip and zlib raise for damage, what the system raises for a directory.
                text = getattr(error, "strerror", None) or str(error)
                raise self._bad(text[:1].lower() + text[1:]) from error
            if not part:
                break
            parts.append(part)
            left -= len(part)
            self._offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _need(self, size: int, what: str) -> bytes:
        data = self._read(size)
        if len(data) < size:
            raise self._bad(f"truncated: {what} needs {size} bytes, {len(data)} are left")
        return data

    def _bad(self, why: str, at: int | None = None) -> InputError:
        whole = f"; {self.records} whole records precede" if hasattr(self, "_iterator") else ""
        offset = self._offset if at is None else at
        where = f" at byte {offset}" if offset else ""
        return InputError(f"{self.name}: bad capture file", why=f"{why}{where}{whole}")

    def close(self) -> None:
        """Close the file.  Safe to call twice."""
        while self._close:
            self._close.pop().close()

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        try:
            return next(self._iterator)
        except StopIteration:
            if self._foreign and sum(self._foreign.values()) == self.records:
                raise _unsupported(self.name, next(iter(self._foreign))) from None
            raise

    def remarks(self) -> list[str]:
        """A line for each kind of odd record that was stepped over so far."""
        kinds = [
            (count, f"of link type {number}, which is not supported: counted as not IP")
            for number, count in sorted(self._foreign.items())
        ]
        kinds += [
            (self._longer, "with more captured bytes than the packet's length"),
            (self._empty, "without any captured byte"),
        ]
        return [f"{n} record{'s' * (n != 1)} {text}" for n, text in kinds if n]

    def _record(
        self, data: bytes, orig_len: int, ts_ns: int, linktype: int, fcs: int, interface: int = 0
    ) -> Record:
        """A whole record, counted."""
        if len(data) > orig_len:
            self._longer += 1
        elif fcs:
            data = data[: max(orig_len - fcs, 0)]
        if fcs:
            orig_len = max(orig_len - fcs, 0)
        if not data:
            self._empty += 1
        self.records += 1
        if linktype not in LINKTYPES and not self._any_linktype:
            self._foreign[linktype] = self._foreign.get(linktype, 0) + 1
            linktype, data = 1, made_ethernet(data, linktype)
        return Record(data, orig_len, ts_ns, linktype, self.records, interface)

    def _check_length(self, caplen: int, snaplen: int, at: int) -> None:
        limit = max(_MAX_SNAPLEN, snaplen if snaplen <= _MAX_BLOCK else 0)
        if caplen > limit:
            raise self._bad(f"a record of {caplen} bytes (the most is {limit})", at)

    # -- pcap -------------------------------------------------------------------------------------

    def _start_pcap(self, magic: bytes) -> None:
        order, self._units, self._header_size = _PCAP_MAGIC[magic]
        header = self._need(20, "the file header")
        major, minor, _, _, snaplen, link = struct.unpack(order + "HHiIII", header)
        if (major, minor) < (2, 0) or major > 2:
            raise self._bad(f"pcap version {major}.{minor} is not known", 4)
        # Before 2.4 some writers had the two lengths the other way round.
        self._swapped_lengths = minor < 4
        self._order, self._snaplen = order, snaplen
        # The upper half: whether, and in 16-bit words how long, frames end in a check sequence.
        self.linktype = link & 0xFFFF
        self._fcs = (link >> 28) * 2 if link & 0x04000000 else 0
        if self.linktype not in LINKTYPES and not self._any_linktype:
            raise _unsupported(self.name, self.linktype)

    def _pcap(self) -> Iterator[Record]:
        unpack = struct.Struct(self._order + "IIII").unpack_from
        scale = 1_000_000_000 // self._units
        while True:
            at = self._offset
            header = self._read(self._header_size)
            if not header:
                return
            if len(header) < self._header_size:
                raise self._bad(f"truncated: {len(header)} bytes of a record header", at)
            seconds, fraction, caplen, orig_len = unpack(header)
            if self._swapped_lengths and caplen > orig_len:
                caplen, orig_len = orig_len, caplen
            self._check_length(caplen, self._snaplen, at)
            data = self._need(caplen, "a record")
            ts_ns = seconds * 1_000_000_000 + fraction * scale
            yield self._record(data, orig_len, ts_ns, self.linktype, self._fcs)

    # -- pcapng -----------------------------------------------------------------------------------

    def _pcapng(self) -> Iterator[Record]:
        kind_bytes = _PCAPNG_MAGIC  # the constructor has read these four
        at = 0
        while True:
            if kind_bytes == _PCAPNG_MAGIC:  # the same in both byte orders
                body, total = self._section(at)
                self._trailer(total, at)
            else:
                kind, total = struct.unpack(
                    self._order + "II", kind_bytes + self._need(4, "a block header")
                )
                if total < 12 or total % 4:
                    raise self._bad(f"a block says it is {total} bytes long", at)
                if kind in (1, 2, 3, 6):
                    if total > _MAX_BLOCK:
                        raise self._bad(f"a block of {total} bytes", at)
                    body = self._need(total - 12, "a block")
                    self._trailer(total, at)
                    if kind == 1:
                        if len(self._interfaces) == _MAX_INTERFACES:
                            raise self._bad(f"more than {_MAX_INTERFACES} interfaces", at)
                        self._interfaces.append(self._interface(body, at))
                    else:
                        yield self._packet_block(kind, body, at)
                else:  # names, statistics, decryption secrets, custom: nothing to count
                    self._skip(total - 12)
                    self._trailer(total, at)
            at = self._offset
            kind_bytes = self._read(4)
            if not kind_bytes:
                return
            if len(kind_bytes) < 4:
                raise self._bad(f"truncated: {len(kind_bytes)} bytes of a block header", at)

    def _skip(self, size: int) -> None:
        while size:
            part = min(size, 1 << 20)
            self._need(part, "a block")
            size -= part

    def _trailer(self, total: int, at: int) -> None:
        (again,) = struct.unpack(self._order + "I", self._need(4, "the end of a block"))
        if again != total:
            raise self._bad(f"a block says it is {total} bytes long, at its end {again}", at)

    def _section(self, at: int) -> tuple[bytes, int]:
        head = self._need(8, "a section header")
        order = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}.get(head[4:])
        if order is None:
            raise self._bad(f"byte-order magic {head[4:].hex()} of a section", at)
        self._order = order
        (total,) = struct.unpack(order + "I", head[:4])
        if total < 28 or total % 4 or total > _MAX_BLOCK:
            raise self._bad(f"a section header says it is {total} bytes long", at)
        body = self._need(total - 16, "a section header")
        major, minor = struct.unpack_from(order + "HH", body)
        if major != 1:
            raise self._bad(f"pcapng version {major}.{minor} is not known", at)
        self._interfaces = []
        return body, total

    def _interface(self, body: bytes, at: int) -> _Interface:
        order = self._order
        if len(body) < 8:
            raise self._bad("an interface description is too short", at)
        linktype, _, snaplen = struct.unpack_from(order + "HHI", body)
        found = _Interface(linktype, snaplen)
        offset = 8
        while offset + 4 <= len(body):
            code, length = struct.unpack_from(order + "HH", body, offset)
            value = body[offset + 4 : offset + 4 + length]
            if code == 0:
                break
            if len(value) < length:
                raise self._bad("an option of an interface description is too long", at)
            if code == 9 and length == 1:  # if_tsresol: negative power of 10, or of 2
                power = value[0] & 0x7F
                found.units = 2**power if value[0] & 0x80 else 10**power
            elif code == 14 and length == 8:  # if_tsoffset
                (found.offset_s,) = struct.unpack(order + "q", value)
            elif code == 13 and length == 1:  # if_fcslen: bits; some writers mean bytes
                found.fcs = value[0] // 8 if value[0] >= 8 else value[0]
            offset += 4 + (length + 3 & ~3)
        return found

    def _packet_block(self, kind: int, body: bytes, at: int) -> Record:
        order = self._order
        start = {6: 20, 2: 20, 3: 4}[kind]
        if len(body) < start:
            raise self._bad("a packet block is too short", at)
        if kind == 3:  # simple: first interface, no time, length bounded by the snap length
            number = high = low = 0
            (orig_len,) = struct.unpack_from(order + "I", body)
            caplen = orig_len
        elif kind == 6:
            number, high, low, caplen, orig_len = struct.unpack_from(order + "IIIII", body)
        else:  # the obsolete packet block: interface and drop count are 16 bits each
            number, _, high, low, caplen, orig_len = struct.unpack_from(order + "HHIIII", body)
        if number >= len(self._interfaces):
            raise self._bad(f"a packet of interface {number}, which is not described", at)
        interface = self._interfaces[number]
        if kind == 3 and interface.snaplen:
            caplen = min(caplen, interface.snaplen)
        self._check_length(caplen, interface.snaplen, at)
        if caplen > len(body) - start:
            raise self._bad(f"a packet of {caplen} bytes in a block of {len(body) + 12}", at)
        ticks = high << 32 | low
        ts_ns = ticks * 1_000_000_000 // interface.units + interface.offset_s * 1_000_000_000
        fcs = interface.fcs
        if kind != 3:
            fcs = self._packet_fcs(body, start + (caplen + 3 & ~3)) or fcs
        if kind == 3:
            ts_ns = 0
        data = body[start : start + caplen]
        return self._record(data, orig_len, ts_ns, interface.linktype, fcs, number)

    def _packet_fcs(self, body: bytes, offset: int) -> int:
        """Bytes of frame check sequence that the packet's own flags option says; else 0."""
        order = self._order
        while offset + 4 <= len(body):
            code, length = struct.unpack_from(order + "HH", body, offset)
            if code == 0:
                break
            if code == 2 and length == 4 and offset + 8 <= len(body):
                flags: int = struct.unpack_from(order + "I", body, offset + 4)[0]
                return flags >> 5 & 0xF
            offset += 4 + (length + 3 & ~3)
        return 0


class _Pushback:
    """A file whose first bytes were read already."""

    def __init__(self, first: bytes, file: BinaryIO) -> None:
        self._first = first
        self._file = file

    def read(self, size: int = -1) -> bytes:
        first, self._first = self._first, b""
        if not first:
            return self._file.read(size)
        if 0 <= size < len(first):
            self._first = first[size:]
            return first[:size]
        return first


class _Writer(Closing):
    """The file that both writers write to; theirs to close if they opened it."""

    def __init__(self, target: str | os.PathLike[str] | BinaryIO) -> None:
        self._owned = isinstance(target, (str, os.PathLike))
        self._file: BinaryIO = (
            open(target, "wb") if isinstance(target, (str, os.PathLike)) else target  # noqa: SIM115
        )

    def close(self) -> None:
        """Finish the file."""
        if self._owned:
            self._file.close()
        else:
            self._file.flush()


class PcapWriter(_Writer):
    """Writes a pcap file.

    :param target: a path, or a binary file object (left open).
    :param linktype: LINKTYPE_* number, 1 for Ethernet.
    :param nanoseconds: timestamps in nanoseconds (else microseconds).
    """

    def __init__(
        self,
        target: str | os.PathLike[str] | BinaryIO,
        *,
        linktype: int = 1,
        nanoseconds: bool = True,
        snaplen: int = _MAX_SNAPLEN,
    ) -> None:
        super().__init__(target)
        self._scale = 1 if nanoseconds else 1000
        magic = 0xA1B23C4D if nanoseconds else 0xA1B2C3D4
        self._file.write(struct.pack("=IHHiIII", magic, 2, 4, 0, 0, snaplen, linktype))

    def write(self, data: bytes, ts_ns: int = 0, orig_len: int | None = None) -> None:
        """Append a packet: UNIX time in nanoseconds; ``orig_len`` bytes on the wire."""
        seconds, fraction = divmod(ts_ns, 1_000_000_000)
        orig_len = len(data) if orig_len is None else orig_len
        header = struct.pack("=IIII", seconds, fraction // self._scale, len(data), orig_len)
        self._file.write(header + data)


class PcapngWriter(_Writer):
    """Writes a pcapng file of one section: several interfaces, nanoseconds, directions.

    :param target: a path, or a binary file object (left open).
    """

    def __init__(self, target: str | os.PathLike[str] | BinaryIO) -> None:
        super().__init__(target)
        self._interfaces = 0
        self._block(0x0A0D0D0A, struct.pack("=IHHq", 0x1A2B3C4D, 1, 0, -1))

    def _block(self, kind: int, body: bytes) -> None:
        body += bytes(-len(body) % 4)
        total = len(body) + 12
        self._file.write(struct.pack("=II", kind, total) + body + struct.pack("=I", total))

    @staticmethod
    def _option(code: int, value: bytes) -> bytes:
        return struct.pack("=HH", code, len(value)) + value + bytes(-len(value) % 4)

    def interface(self, name: str = "", linktype: int = 1, snaplen: int = 0) -> int:
        """Describe an interface; its number for :meth:`write`."""
        options = self._option(2, os.fsencode(name)) if name else b""
        options += self._option(9, b"\x09") + bytes(4)
        self._block(1, struct.pack("=HHI", linktype, 0, snaplen) + options)
        self._interfaces += 1
        return self._interfaces - 1

    def write(
        self,
        data: bytes,
        ts_ns: int = 0,
        orig_len: int | None = None,
        *,
        interface: int = 0,
        outgoing: bool | None = None,
    ) -> None:
        """Append a packet; without any interface described, the first is Ethernet."""
        if not self._interfaces:
            self.interface()
        orig_len = len(data) if orig_len is None else orig_len
        high, low = divmod(ts_ns, 1 << 32)
        header = struct.pack("=IIIII", interface, high, low, len(data), orig_len)
        options = b""
        if outgoing is not None:
            options = self._option(2, struct.pack("=I", 2 if outgoing else 1)) + bytes(4)
        self._block(6, header + data + bytes(-len(data) % 4) + options)
