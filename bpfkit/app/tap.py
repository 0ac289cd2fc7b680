# SPDX-License-Identifier: Apache-2.0
"""Base of the programs that watch the packets of one interface through an AF_PACKET socket.

::

    interface ──▶ packet tap ──▶ [program] ──▶ maps ──▶ rows()
                                     │
                                     └─▶ keeps 0 bytes: nothing is copied to user space

They share the direction, the demo's traffic over ``lo``, and what ``--check`` compares with.
"""

from __future__ import annotations

from bpfkit.app.base import App
from bpfkit.app.place import add_interface, add_netns, add_pcap, check_pcap
from bpfkit.app.watch import InterfaceWatch
from bpfkit.core.errors import UsageError
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable, Iterable

    from bpfkit.net.links.interfaces import Interface
    from bpfkit.net.packets.packet_socket import PacketSocket
    from bpfkit.net.traffic.report import Report
    from bpfkit.show.rows import Row, Verdict

__all__ = ["ProtocolApp", "TapApp", "amount", "read_error", "sums_text"]

#: LOAD_CONST direction: which packets the programs count.
INCOMING, OUTGOING = 1, 2
_DIRECTIONS = {"in": INCOMING, "out": OUTGOING, "both": INCOMING | OUTGOING}
_ETHERNET = 14
_SOL_SOCKET, _SO_ERROR = 1, 4
_CLASSIC = (6, 17, 1)  # the protocols of the classic line


class TapApp(App):
    """Attached to a packet socket of an interface: gets a copy of each packet."""

    needs = ("NET_RAW", "BPF")
    expects = (
        "pings, TCP requests and UDP cross lo, by IPv4 and IPv6: every packet is to be counted once"
    )
    #: What ``--direction`` is by default.
    direction = "out"
    #: False where a program has no choice of direction.
    has_direction = True
    takes_capture = True
    takes_netns = True

    interface: Interface

    def __init__(self, options: Namespace) -> None:
        super().__init__(options)
        #: What the demo's traffic makers report.
        self.made: list[Report] = self.for_check([])
        #: The packet sockets that are watched.
        self.sockets: list[PacketSocket] = []
        self._hosts: list[str] = []

    # -- command line

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        """Interface, namespace, capture, direction."""
        cls.add_interface_option(parser)
        add_netns(parser)
        if cls.takes_capture:
            add_pcap(parser, "run the program on a capture (pcap, pcapng, gzip)")
        if cls.has_direction:
            parser.add_argument(
                "--direction",
                choices=_DIRECTIONS,
                help=f"packets to count (default: {cls.direction}); lo shows each packet once",
            )

    @classmethod
    def add_interface_option(cls, parser: ArgumentParser) -> None:
        """``-i``: one interface."""
        add_interface(parser, "interface to watch (default: lo, with a demo)")

    def check_options(self) -> None:
        """Captures exclude everything live; ``--check`` is for loopback only."""
        options = self.options
        if self.capture_path() is not None:
            check_pcap(options)
            if self.has_direction and options.direction in ("in", "out"):
                raise UsageError(
                    f"--pcap and --direction {options.direction} do not go together",
                    why="a capture does not say which way its packets went",
                )

    # -- life cycle

    def enter(self) -> None:
        """Move to the namespace of ``--netns``, or of ``--check``'s own, and find the interface."""
        from bpfkit.net.links.interfaces import Interface

        options = self.options
        namespace = self.place.open_namespace()
        if options.check and options.interface is not None:
            inside = Interface.find(options.interface, namespace)
            if not inside.is_loopback:
                raise UsageError(
                    f"--check does not touch {inside.name}",
                    why="its traffic runs over a loopback interface, in a namespace of its own",
                )
        if options.check:
            if namespace is not None:
                namespace.close()
            namespace = self.place.new_namespace("check")
            # A busy machine may retransmit a segment needlessly; the SACK block of the answer has
            # bytes that no socket reports.
            namespace.sysctl("net.ipv4.tcp_sack", 0)
        if namespace is not None:
            self.enter_namespace(namespace)
        name = "lo" if options.check or options.interface is None else options.interface
        self.interface = Interface.find(name)

    def setup(self) -> None:
        """Load the program and put it on a packet socket of the interface."""
        from bpfkit.net.packets.packet_socket import PacketSocket

        interface = self.interface
        program = self.load_program(direction=self.directions(), l2_len=interface.l2_len)
        self.start_watch(self.keep(PacketSocket(interface, program, counting=True)))

    def start_watch(self, socket: PacketSocket) -> None:
        """Watch the interface; ``socket`` has an error when it goes down or is removed."""
        self.sockets.append(socket)
        watch = InterfaceWatch(self.note)
        watch.add(self.interface)
        self.check_regularly(watch.check)
        # Reading a pending ENETDOWN takes it off the socket, or poll(2) would return at once.
        self.check_regularly(lambda: read_error(socket))

    def directions(self) -> int:
        """The LOAD_CONST ``direction`` for the interface."""
        wanted = self.wanted_directions()
        if self.interface.is_loopback and wanted == INCOMING | OUTGOING:
            return OUTGOING  # lo shows every frame twice, on its way out and on its way in
        return wanted

    def wanted_directions(self) -> int:
        """``--direction``, as a LOAD_CONST."""
        return _DIRECTIONS[(self.has_direction and self.options.direction) or self.direction]

    def describe_target(self) -> str:
        """Interface and namespace."""
        return self.place.describe(self.interface.name)

    def wants_demo(self) -> bool:
        """The demo runs over lo, and only without ``--interface``."""
        return super().wants_demo() and self.options.interface is None

    def error_filenos(self) -> list[int]:
        """The packet sockets: one has an error when its interface goes down or is removed."""
        return [socket.fileno() for socket in self.sockets]

    # -- captures

    def run_capture(self, path: str) -> None:
        """Run the program on every packet of a capture; bytes follow the original length."""
        from bpfkit.app.captures import Progress, run_packets

        progress = Progress(self)

        def load() -> Callable[[bytes, int], int]:
            return self.load_program(direction=INCOMING | OUTGOING, l2_len=_ETHERNET).runner()

        run_packets(self, path, load, progress.add, progress.end)

    # -- demo

    def demo(self) -> None:
        """Ping, TCP request and response, UDP, over IPv4 and IPv6, through lo."""
        from bpfkit.net.traffic.mixed import mixed

        for host in self.hosts():
            self.made += mixed(host)

    def conclusion(self, rows: list[Row]) -> str:
        from bpfkit.show.text import human

        # A summary knows the rows, too, that --top and the like leave out.
        counted = [row for row in rows if "summary" in row] or rows
        sums = {field: sum(row.get(field, 0) for row in counted) for field in self.counters}
        size = human(sums["bytes"], "B") if "bytes" in sums else ""
        packets = count_of(sums["packets"], "packet", form=human) if "packets" in sums else ""
        seen = ", ".join(filter(None, (packets, size)))
        return f"seen: {seen}; lo has each packet going out and coming in, counted once"

    def hosts(self) -> list[str]:
        """The addresses of lo."""
        if self._hosts:
            return self._hosts
        import _socket

        self._hosts.append("127.0.0.1")
        try:
            with_six = _socket.socket(_socket.AF_INET6, _socket.SOCK_DGRAM)
        except OSError:
            return self._hosts
        try:
            with_six.bind(("::1", 0))
            self._hosts.append("::1")
        except OSError:
            self.note("lo has no IPv6 address, the demo is IPv4 only")
        finally:
            with_six.close()
        return self._hosts

    # -- what --check compares with

    def made_by_proto(self) -> dict[str, tuple[int, int]]:
        """Packets and bytes that the traffic makers' sockets report, by protocol."""
        sums: dict[str, tuple[int, int]] = {}
        for report in self.made:
            packets, size = sums.get(report.proto, (0, 0))
            sums[report.proto] = packets + report.packets, size + report.wire_bytes
        return sums

    def made_by_flow(self) -> dict[tuple[str, int | None, int | None, str], tuple[int, int]]:
        """Packets and bytes by (address, source port, destination port, protocol)."""
        from bpfkit.net.traffic.tcp import TcpReport
        from bpfkit.net.traffic.udp import UdpReport

        sums: dict[tuple[str, int | None, int | None, str], tuple[int, int]] = {}

        def add(key: tuple[str, int | None, int | None, str], packets: int, size: int) -> None:
            before = sums.get(key, (0, 0))
            sums[key] = before[0] + packets, before[1] + size

        for report in self.made:
            host, headers = ("::1", 14 + 40) if report.family == 6 else ("127.0.0.1", 14 + 20)
            if isinstance(report, TcpReport):
                for one in report.connections:
                    ports = one.client_port, one.server_port
                    for way, count, size in zip(
                        (ports, ports[::-1]), one.packets, one.header_and_payload, strict=True
                    ):
                        add((host, *way, "tcp"), count, count * headers + size)
            elif isinstance(report, UdpReport):
                key = host, report.source_port, report.port, "udp"
                add(key, report.packets, report.wire_bytes)
            else:
                add((host, None, None, report.proto), report.packets, report.wire_bytes)
        return sums

    def crossed(self) -> tuple[int, int]:
        """Packets and bytes that the interface itself counted as sent.

        lo counts its bytes behind the Ethernet header; here they include it.
        """
        with open("/proc/thread-self/net/dev", errors="surrogateescape") as counters:
            for line in counters:
                name, colon, figures = line.partition(":")
                if colon and name.strip() == self.interface.name:
                    each = figures.split()
                    packets = int(each[9])
                    return packets, int(each[8]) + packets * self.interface.l2_len
        return 0, 0

    def compare_total(self, packets: int, size: int) -> Verdict:
        """Everything that was counted against the interface's own counters."""
        crossed = self.crossed()
        text = f"in all: {amount(packets, size)} counted, {self.interface.name} itself says "
        return (packets, size) == crossed, text + amount(*crossed)


def amount(packets: int, size: int) -> str:
    """``3 packets 294 bytes``."""
    return f"{count_of(packets, 'packet')} {count_of(size, 'byte')}"


def sums_text(packets: int, size: int) -> str:
    """``1 packet, 98 B``, ``12.3 k packets, 1.50 MB``: in the units of a live view's table."""
    from bpfkit.show.text import human

    return f"{count_of(packets, 'packet', form=human)}, {human(size, 'B')}"


def read_error(socket: PacketSocket) -> None:
    """Take a pending error off the socket."""
    socket.sock.getsockopt(_SOL_SOCKET, _SO_ERROR)


class ProtocolApp(TapApp):
    """Counts per IP protocol: one number each, in ``unit``s."""

    #: The field that is counted: ``bytes`` or ``packets``.
    unit = "bytes"

    def values(self) -> list[int]:
        """256 totals, by protocol number."""
        raise NotImplementedError

    def rows(self) -> list[Row]:
        """TCP, UDP and ICMP always, others when they were seen."""
        from bpfkit.show.protocols import protocol_name

        values = self.values()
        others = [n for n, value in enumerate(values) if value and n not in _CLASSIC]
        return [{"proto": protocol_name(n), self.unit: values[n]} for n in (*_CLASSIC, *others)]

    def lines(self, rows: list[Row]) -> Iterable[str]:
        """``TCP n UDP n ICMP n bytes``, ICMP that of both IP versions; others behind it."""
        figures = {row["proto"]: row[self.unit] for row in rows}
        figures["icmp"] += figures.pop("ipv6-icmp", 0)
        tcp, udp, icmp = (figures.pop(name) for name in ("tcp", "udp", "icmp"))
        others = ", ".join(f"{name} {value}" for name, value in figures.items())
        line = f"TCP {tcp} UDP {udp} ICMP {icmp} {self.unit}"
        return [f"{line} (others: {others})" if others else line]

    def verify(self) -> Iterable[Verdict]:
        """Each protocol against the traffic makers, the sum against the interface."""
        counted = {row["proto"]: row[self.unit] for row in self.rows() if row[self.unit]}
        field = ("packets", "bytes").index(self.unit)
        made = {proto: both[field] for proto, both in self.made_by_proto().items()}
        for proto in sorted({*counted, *made}):
            was, is_ = made.get(proto, 0), counted.get(proto, 0)
            yield was == is_, f"{proto}: {was} {self.unit} made, {is_} counted"
        total, crossed = sum(counted.values()), self.crossed()[field]
        name = self.interface.name
        yield total == crossed, f"in all: {total} {self.unit} counted, {name} itself says {crossed}"
