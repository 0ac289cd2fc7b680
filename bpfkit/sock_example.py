# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.sock_example: packets per IP protocol.  No C side, no compiler: the program is
assembled here, instruction by instruction.

hook      socket filter on an AF_PACKET socket (a tap: it sees copies, the traffic goes on)
context   struct __sk_buff
packets   not changed; 0 is returned, so that nothing is queued to the socket

::

    frame ─▶ direction? ─▶ Ethernet, VLAN tags ─┬▶ IPv4 protocol ────┬▶ packets[protocol]
                                                └▶ IPv6 ─▶ extension ┘      += segments
                                                           headers

The rules are those of sockex1: for IPv6 the protocol is what the extension headers lead to, the
fragment header's for later fragments; a frame that is cut off before its IP header ends, or is no
IP at all, is not counted; a GSO/GRO super-frame counts as its segments.

Registers: r6 the context, r7 the offset of the next header, r8 what it is (ethertype, then
protocol), r9 how many more rounds a loop may do.  On the stack: at r10 - 8 where the packet ends,
below it the header that was fetched last.  Needs Linux 5.7 (loops, __sk_buff.gso_size).
"""

from __future__ import annotations

from bpfkit.app.lifecycle import main
from bpfkit.app.tap import ProtocolApp
from bpfkit.core.kernel.asm import (
    Code,
    Mem,
    Reg,
    add,
    and_,
    assemble,
    atomic_add,
    be,
    call,
    div,
    exit_,
    ja,
    jeq,
    jgt,
    jle,
    jlt,
    jne,
    jset,
    label,
    ld_imm64,
    ld_map_fd,
    ldx,
    lsh,
    mov,
    r0,
    r1,
    r2,
    r3,
    r4,
    r6,
    r7,
    r8,
    r9,
    r10,
    rsh,
    stx,
    sub,
    u8,
    u16,
    u32,
    u64,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.core.kernel.asm import Item
    from bpfkit.core.maps.base import Map
    from bpfkit.core.program import Program

# offsets in struct __sk_buff (linux/bpf.h)
LEN, PKT_TYPE, PROTOCOL, CB4, GSO_SEGS, GSO_SIZE = 0, 4, 16, 64, 164, 176
PACKET_OUTGOING = 4  # linux/if_packet.h
ETH_P_IP, ETH_P_IPV6 = 0x0800, 0x86DD
VLAN_TAGS = (0x8100, 0x88A8, 0x9100)
TCP, UDP, AH, SCTP, FRAGMENT = 6, 17, 51, 132, 44
# IPv6 extension headers; ESP is none: it hides what follows
EXTENSIONS = (0, 43, FRAGMENT, AH, 60, 135, 139, 140)
MAX_TAGS, MAX_EXTENSIONS = 8, 32
GSO_BY_FRAGS = 0xFFFF  # segments have sizes of their own, gso_segs counts them
END = r10 - 8
HEADER = r10 - 48
KEY = r10 - 4


def fetch(size: int, otherwise: str) -> list[Item]:
    """Copy ``size`` bytes at r7 to HEADER; if the frame or the packet ends before: goto."""
    return [
        mov(r2, r7),
        add(r2, size),
        ldx(u64, r1, END),
        jgt(r2, r1, otherwise),
        mov(r1, r6),
        mov(r2, r7),
        mov(r3, HEADER.reg),
        add(r3, HEADER.off),
        mov(r4, size),
        call("skb_load_bytes"),
        jne(r0, 0, otherwise),
    ]


def header(offset: int) -> Mem:
    """The byte at ``offset`` of the fetched header, as a memory operand."""
    return HEADER.reg + (HEADER.off + offset)


def link_layer(l2_len: int) -> list[Item]:
    """r8 = the ethertype behind all VLAN tags, r7 = where its packet starts."""
    if l2_len != 14:  # no Ethernet header: the kernel has put it beside the packet
        return [mov(r7, l2_len), ldx(u32, r8, r6 + PROTOCOL), be(16, r8)]
    return [
        mov(r7, l2_len - 2),
        mov(r9, MAX_TAGS),
        label("ethertype"),
        fetch(2, "done"),
        ldx(u16, r8, HEADER),
        be(16, r8),
        add(r7, 2),
        [jeq(r8, tag, "tag") for tag in VLAN_TAGS],
        ja("network layer"),
        label("tag"),  # two bytes of tag, then again an ethertype
        add(r7, 2),
        sub(r9, 1),
        jne(r9, -1, "ethertype"),
        ja("done"),
    ]


def ipv4() -> list[Item]:
    """r8 = the protocol, behind authentication headers, r7 = where its header starts."""
    return [
        label("IPv4"),
        fetch(20, "done"),
        ldx(u8, r1, HEADER),
        mov(r2, r1),
        rsh(r2, 4),
        jne(r2, 4, "done"),  # version
        and_(r1, 15),
        jlt(r1, 5, "done"),  # header length in words
        lsh(r1, 2),
        ldx(u16, r2, header(2)),
        be(16, r2),
        limit_to(r2),
        add(r7, r1),
        ldx(u8, r8, header(9)),
        ldx(u16, r2, header(6)),
        be(16, r2),
        jset(r2, 0x1FFF, "count"),  # a later fragment: its bytes are the middle of something
        mov(r9, MAX_EXTENSIONS),
        label("authenticated"),
        jne(r8, AH, "count"),
        fetch(8, "count"),
        ldx(u8, r1, header(1)),  # units of 4 bytes, the first two not counted
        jeq(r1, 0, "count"),
        add(r1, 2),
        lsh(r1, 2),
        mov(r2, r7),
        add(r2, r1),
        ldx(u64, r3, END),
        jgt(r2, r3, "count"),
        mov(r7, r2),
        ldx(u8, r8, HEADER),
        sub(r9, 1),
        jne(r9, 0, "authenticated"),
        ja("count"),
    ]


def limit_to(length: Reg) -> list[Item]:
    """The packet that starts at r7 has ``length`` bytes (0: it does not say); spoils r3, r4."""
    return [
        mov(r3, length),
        add(r3, r7),
        ldx(u64, r4, END),
        jeq(length, 0, 2),
        jle(r4, r3, 1),
        stx(u64, END, r3),
    ]


def ipv6() -> list[Item]:
    """r8 = the protocol that the extension headers lead to, r7 = where its header starts."""
    return [
        label("IPv6"),
        fetch(40, "done"),
        ldx(u8, r1, HEADER),
        rsh(r1, 4),
        jne(r1, 6, "done"),
        ldx(u8, r8, header(6)),
        add(r7, 40),
        ldx(u16, r2, header(4)),
        be(16, r2),
        limit_to(r2),
        mov(r9, MAX_EXTENSIONS),
        label("next header"),
        jgt(r8, 63, "high number"),  # is the bit of protocol r8 in this set of extensions?
        ld_imm64(r1, sum(1 << number for number in EXTENSIONS if number < 64)),
        rsh(r1, r8),
        jset(r1, 1, "extension"),
        ja("count"),
        label("high number"),
        [jeq(r8, number, "extension") for number in EXTENSIONS if number > 63],
        ja("count"),
        label("extension"),
        fetch(8, "count"),  # cut off: the extension header is all there is to tell
        ldx(u8, r1, header(1)),
        jeq(r8, FRAGMENT, "fragment"),
        jeq(r8, AH, "authentication"),
        add(r1, 1),  # units of 8 bytes, the first not counted
        lsh(r1, 3),
        ja("skip"),
        label("authentication"),  # units of 4 bytes, the first two not counted
        jeq(r1, 0, "count"),
        add(r1, 2),
        lsh(r1, 2),
        ja("skip"),
        label("fragment"),
        mov(r1, 8),
        label("skip"),
        mov(r2, r7),
        add(r2, r1),
        ldx(u64, r3, END),
        jgt(r2, r3, "count"),
        mov(r7, r2),
        mov(r1, r8),
        ldx(u8, r8, HEADER),
        jne(r1, FRAGMENT, "again"),
        ldx(u16, r2, header(2)),
        be(16, r2),
        jset(r2, 0xFFF8, "count"),  # a later fragment: its bytes are the middle of something
        label("again"),
        sub(r9, 1),
        jne(r9, 0, "next header"),
    ]


def segments() -> list[Item]:
    """r9 = how many frames on the wire this buffer is: gso_segs, or worked out from gso_size."""
    return [
        mov(r9, 1),
        ldx(u32, r1, r6 + GSO_SEGS),
        jgt(r1, 1, "told"),
        ldx(u32, r2, r6 + GSO_SIZE),
        jeq(r2, 0, "counted"),
        ldx(u32, r3, r6 + CB4),  # set when a capture is replayed: frames are as they were
        jne(r3, 0, "counted"),
        jeq(r1, 1, "counted"),
        jeq(r2, GSO_BY_FRAGS, "counted"),
        # virtio leaves gso_segs at 0: every segment repeats all headers up to the payload
        jeq(r8, TCP, "TCP"),
        jeq(r8, UDP, "UDP"),
        jne(r8, SCTP, "headers"),
        add(r7, 4),
        label("UDP"),
        add(r7, 8),
        ja("headers"),
        label("TCP"),
        add(r7, 12),
        fetch(1, "short"),
        ldx(u8, r1, HEADER),
        rsh(r1, 4),
        lsh(r1, 2),
        add(r7, -12),
        add(r7, r1),
        ja("headers"),
        label("short"),
        add(r7, 8),
        label("headers"),
        ldx(u32, r9, r6 + LEN),
        ldx(u32, r2, r6 + GSO_SIZE),
        jgt(r9, r7, "divide"),
        mov(r9, 1),
        ja("counted"),
        label("divide"),
        sub(r9, r7),
        add(r9, r2),
        sub(r9, 1),
        div(r9, r2),
        ja("counted"),
        label("told"),
        mov(r9, r1),
        label("counted"),
    ]


def assemble_program(packets_fd: int, direction: int, l2_len: int) -> Code:
    """The program.

    :param packets_fd: the map, an array of 256 u64.
    :param direction: bit 0 counts what comes in, bit 1 what goes out.
    :param l2_len: bytes of link header: 14, or 0 for interfaces without.
    """
    ways = {1: [jeq(r2, PACKET_OUTGOING, "done")], 2: [jne(r2, PACKET_OUTGOING, "done")], 3: []}
    return assemble(
        mov(r6, r1),
        ldx(u32, r2, r6 + PKT_TYPE),
        ways[direction],
        ldx(u32, r2, r6 + LEN),
        stx(u64, END, r2),
        link_layer(l2_len),
        label("network layer"),
        jeq(r8, ETH_P_IP, "IPv4"),
        jeq(r8, ETH_P_IPV6, "IPv6"),
        ja("done"),
        ipv4(),
        ipv6(),
        label("count"),
        segments(),
        stx(u32, KEY, r8),
        ld_map_fd(r1, packets_fd),
        mov(r2, KEY.reg),
        add(r2, KEY.off),
        call("map_lookup_elem"),
        jeq(r0, 0, "done"),
        atomic_add(u64, r0 + 0, r9),
        label("done"),
        mov(r0, 0),
        exit_(),
    )


class SockExample(ProtocolApp):
    """Packets per IP protocol, by a program assembled by hand, instruction by instruction."""

    name = "sock_example"
    unit = "packets"
    counters = ("packets",)
    direction = "both"
    packets: Map

    @classmethod
    def types(cls) -> list[str]:
        """There is no C source with a SEC()."""
        return ["BPF_PROG_TYPE_SOCKET_FILTER"]

    def load_program(self, **consts: int) -> Program:
        """Assemble, and show the result with ``-v``."""
        from bpfkit.core.maps.base import Map
        from bpfkit.core.program import Program

        self.packets = self.keep(Map.create("array", 4, 8, 256, name="packets"))
        code = assemble_program(self.packets.fd, **consts)
        if self.options.verbose:
            from bpfkit.core.kernel.disasm import listing

            self.note(f"{len(code) // 8} instructions\n{listing(code, code.labels)}")
        return self.keep(Program.from_insns("socket_filter", code, name=self.name))

    def values(self) -> list[int]:
        return list(self.packets.values())


if __name__ == "__main__":
    raise SystemExit(main(SockExample))
