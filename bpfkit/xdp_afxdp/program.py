# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.xdp_afxdp: answers for addresses the kernel does not have, from user space.

The C side is bpf_c/xdp/xdp_afxdp.bpf.c, the sockets are xsk.py, and the answers are made in
answers.py.  The demo: two addresses that no interface has answer to ping.
"""

from __future__ import annotations

from bpfkit.app.xdp import XdpApp
from bpfkit.core.errors import UsageError
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable

    from bpfkit.core.object import Object
    from bpfkit.core.program import Program
    from bpfkit.net.sockets.xsk import XskSocket
    from bpfkit.net.traffic.ping import PingReport
    from bpfkit.show.rows import Row, Verdict

DEMO = ("10.77.0.55", "fd77::55")
#: The other end's addresses, IPv4 and IPv6.
_CLIENT = ("10.77.0.1", "fd77::1")
_KINDS = ("arp", "nd", "ipv4", "ipv6", "passed")
#: What is answered -> the kind of frame that asks.
_ASKED = {"arp": "arp", "nd": "nd", "ping": "ipv4", "ping6": "ipv6"}


class XdpAfxdp(XdpApp):
    """An AF_XDP socket answers ARP, ND and ping for addresses that the kernel does not have."""

    protects = False
    name = "xdp_afxdp"
    expects = (
        "a client pings addresses that no interface here has: Python answers, the kernel "
        "sees nothing"
    )
    source = "xdp/xdp_afxdp.bpf.c"
    counters = ("packets", "answered")
    knows_l2_len = False

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        add = parser.add_argument
        add(
            "--address",
            metavar="A",
            action="append",
            help="address to answer for; repeat for more",
        )
        add(
            "--bind",
            choices=("auto", "copy", "zerocopy"),
            default="auto",
            help="how frames get into user space (default: zero-copy where the driver has it)",
        )

    def check_options(self) -> None:
        super().check_options()
        from bpfkit.net.packets.addresses import packed

        options = self.options
        self.addresses = list(options.address or DEMO)
        if options.interface is not None and not options.address:
            raise UsageError("--interface needs --address", why="an address is required")
        try:
            self.owned = {packed(address) for address in self.addresses}
        except ValueError as error:
            raise UsageError(f"--address: {error}") from None

    def prepare(self, loaded: Object) -> None:
        for address in self.owned:
            mapped = address if len(address) == 16 else bytes(10) + b"\xff\xff" + address
            loaded["addresses"][mapped] = 1
        if self.options.pcap is not None:
            from bpfkit.net.sockets.xsk import bare_socket

            # Without a socket at its queue every frame would go to the kernel.
            loaded["sockets"][0] = self.keep(bare_socket("cannot judge a capture"))

    def setup(self) -> None:
        self.answered = dict.fromkeys(_ASKED, 0)
        self.pings: list[PingReport] = self.for_check([])
        self.sockets: list[XskSocket] = []
        super().setup()

    def attach(self, program: Program) -> None:
        """A socket for each queue, then attach: if a queue is taken, nothing was changed."""
        from threading import Thread

        from bpfkit.app.watch import DeviceWatch
        from bpfkit.net.sockets.xsk import XskSocket, queues

        bind = self.options.bind
        if self.options.mode == "generic" and bind == "auto":
            bind = "copy"  # zero-copy needs native mode
        for queue in range(queues(self.interface)):
            sock = self.keep(XskSocket(self.interface, queue, bind))
            self.sockets.append(sock)
            self.object["sockets"][queue] = sock
        super().attach(program)
        modes = sorted({sock.mode for sock in self.sockets})
        queues_text = count_of(len(self.sockets), "queue")
        self.note(f"AF_XDP in {' and '.join(modes)} mode on {queues_text}")
        self.thread = Thread(target=self._serve, name="afxdp", daemon=True)
        self.ended = False
        self.device = DeviceWatch(self.interface, lambda mac, mtu: None, self.note)
        self.check_regularly(self.device.check)
        self.keep(_Server(self))
        self.thread.start()

    def _serve(self) -> None:
        from select import POLLIN, poll

        from bpfkit.core.errors import BpfkitError
        from bpfkit.xdp_afxdp.answers import answer

        poller = poll()
        by_fd = {sock.fileno(): sock for sock in self.sockets}
        for fd in by_fd:
            poller.register(fd, POLLIN)
        while not self.ended:
            for fd, _ in poller.poll(50):
                replies = []
                for frame in by_fd[fd].recv():
                    found = answer(frame, self.owned, self.device.lladdr)
                    if found:
                        self.answered[found[0]] += 1
                        replies.append(found[1])
                try:
                    if replies:
                        by_fd[fd].send(replies)
                except BpfkitError:
                    return  # the interface is down or gone: the watch reports it

    def demo(self) -> None:
        """Ping the addresses, from the other end of the cable."""
        from bpfkit.net.traffic.ping import ping

        for address in self.addresses:
            self.pings.append(ping(address, count=3, ns=self.lab["client"]))

    def rows(self) -> list[Row]:
        """A row per kind of frame: how many came, how many were answered."""
        sums = dict(self.object["taken"].sums())
        if self.options.pcap is not None:  # nobody is there to answer
            return [{"kind": kind, "packets": sums[i].packets} for i, kind in enumerate(_KINDS)]
        answered = {_ASKED[word]: count for word, count in self.answered.items()}
        return [
            {"kind": kind, "packets": sums[i].packets, "answered": answered.get(kind, 0)}
            for i, kind in enumerate(_KINDS)
        ]

    def conclusion(self, rows: list[Row]) -> str:
        got = {row["kind"]: row["answered"] for row in rows if "answered" in row}
        pings = got.get("ipv4", 0) + got.get("ipv6", 0)
        asked = got.get("arp", 0) + got.get("nd", 0)
        return (
            f"seen: {count_of(asked, 'ARP or ND question')} and {count_of(pings, 'ping')} "
            "answered by this process, not by the kernel"
        )

    def verify(self) -> Iterable[Verdict]:
        from bpfkit.net.traffic.ping import ping
        from bpfkit.net.traffic.tagged_frames import TaggedRequests

        client = self.lab["client"]
        for address in self.addresses:
            yield not self._kernel_has(address), f"{address} is no address of the kernel's"
        for address in self.addresses:
            name = "ping6" if ":" in address else "ping"
            proto = "ipv6-icmp" if ":" in address else "icmp"
            done = [one for one in self.pings if one.proto == proto]
            sent, received = sum(one.sent for one in done), sum(one.received for one in done)
            yield sent == received > 0, f"{address}: {received} of {sent} pings answered"
            got = self.answered[name]
            yield got == sent, f"{address}: {got} of them by the AF_XDP socket"
        here = self.interface.lladdr()
        with_arp = client.run(_arp_table)
        yield (
            with_arp.get(DEMO[0]) == here,
            f"ARP: the client has {DEMO[0]} at {with_arp.get(DEMO[0])}",
        )
        yield (
            self.answered["nd"] > 0,
            f"ND: {count_of(self.answered['nd'], 'solicitation')} answered",
        )
        for host in ("10.77.0.2", "fd77::2"):
            yield (
                ping(host, ns=client).received == 1,
                f"{host}, the kernel's own, answers as before",
            )
        kinds = ("ARP/ND", "ping")
        ends = [(_CLIENT[":" in address], address) for address in self.addresses]
        tagged = TaggedRequests(
            self.lab, "client:eth0", "client:eth0", ends, kinds, to=self.lab_device
        )
        yield from tagged.verdicts()
        self.detach()
        # what is answered behind them: they were there
        yield from tagged.verdicts(
            kinds,
            lambda _: ping("10.77.0.2", ns=client).received == 1,
            when="without the program ",
        )
        for address in self.addresses:
            silent = ping(address, ns=client, timeout=0.2).received == 0
            yield silent, f"without the program {address} is silent"

    @staticmethod
    def _kernel_has(address: str) -> bool:
        import _socket

        family = _socket.AF_INET6 if ":" in address else _socket.AF_INET
        sock = _socket.socket(family, _socket.SOCK_DGRAM)
        try:
            sock.bind((address, 0))
        except OSError:
            return False
        finally:
            sock.close()
        return True


class _Server:
    """Stops the thread that answers."""

    def __init__(self, app: XdpAfxdp) -> None:
        self._app = app

    def close(self) -> None:
        self._app.ended = True
        self._app.thread.join()


def _arp_table() -> dict[str, str]:
    """Address -> MAC address of the calling thread's namespace."""
    with open("/proc/thread-self/net/arp", errors="surrogateescape") as table:
        next(table)
        return {line.split()[0]: line.split()[3] for line in table}
