# SPDX-License-Identifier: Apache-2.0
"""The demo's lab, a router with a slow link, and a transfer through it, sampled by TCP_INFO."""

from __future__ import annotations

import socket
from struct import pack
from time import monotonic, monotonic_ns

from bpfkit.core.errors import BpfkitError
from bpfkit.tcp_cc.series import INFINITE, Sample

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.net.links.lab import Lab
    from bpfkit.net.links.netns import NetNS

__all__ = ["HOSTS", "Fall", "Transfer", "bottleneck_lab", "dropped", "goodput_share"]

#: The server's addresses, by IP version.
HOSTS = {4: "10.77.2.1", 6: "fd77:2::1"}
MTU_FRAME = 1514
_BLOCK = bytes(1 << 16)
_SAMPLE_S = 0.002
#: TCP_CA_Recovery; above is TCP_CA_Loss.
RECOVERY = 3


def bottleneck_lab(mbit: int = 20, packets: int = 40) -> Lab:
    """client – router – server; the router sends ``mbit`` Mbit/s to the server.

    Its queue holds ``packets`` full packets and drops what comes then (a token bucket filter).
    Without offloads: what is dropped is one segment.

    :raises UnsupportedError: the kernel has no CONFIG_NET_SCH_TBF.
    """
    from bpfkit.net.links.lab import router_lab

    lab = router_lab(offloads=False)
    try:
        _shape(lab, mbit, packets)
    except BaseException:
        lab.close()
        raise
    return lab


def _shape(lab: Lab, mbit: int, packets: int) -> None:
    from errno import EOPNOTSUPP
    from os import strerror

    from bpfkit.core.errors import UnsupportedError
    from bpfkit.net.links.netlink import with_iproute

    index = lab.interface("router:right").index
    what = "cannot slow down the router's link"
    burst = 4 * MTU_FRAME
    try:
        with_iproute(
            lab["router"],
            what,
            lambda ipr: ipr.tc(
                "add",
                "tbf",
                index=index,
                handle="1:",
                rate=f"{mbit}mbit",
                burst=burst,
                limit=packets * MTU_FRAME,
            ),
        )
    except BpfkitError as error:
        if error.why and ("ENOENT" in error.why or strerror(EOPNOTSUPP) in error.why):
            raise UnsupportedError(
                what, why="the kernel has no CONFIG_NET_SCH_TBF (or its module is not loaded)"
            ) from None
        raise


def dropped(lab: Lab) -> int:
    """Packets that the router's queue has dropped, as the kernel counts them."""
    from bpfkit.net.links.netlink import with_iproute

    index = lab.interface("router:right").index

    def read(ipr: object) -> int:
        for qdisc in ipr.get_qdiscs(index=index):  # type: ignore[attr-defined]
            if qdisc.get_attr("TCA_KIND") == "tbf":
                return int(qdisc.get_attr("TCA_STATS2").get_attr("TCA_STATS_QUEUE")["drops"])
        return 0

    return with_iproute(lab["router"], "cannot read the router's queue", read)


def goodput_share(family: int) -> float:
    """Payload of a full packet as a share of its bytes on the wire (TCP timestamps on)."""
    return (1500 - (40 if family == 6 else 20) - 32) / MTU_FRAME


class Fall:
    """A loss, by TCP_INFO alone.

    :ivar cwnd: in the last sample before.
    :ivar ssthresh: in the first sample after it.
    :ivar passed_ns: between the two.
    """

    def __init__(self, before: Sample, after: Sample) -> None:
        self.cwnd = before.cwnd
        self.ssthresh = after.ssthresh
        self.passed_ns = after.after_ns - before.before_ns


class Transfer:
    """As much as goes through in ``seconds``, over one connection, and what TCP_INFO said.

    :ivar algorithm: what getsockopt(TCP_CONGESTION) says of the connection.
    :ivar port: the client's.
    :ivar sent, received: bytes written by the client, and read by the server up to the end.
    :ivar samples: cwnd and ssthresh by TCP_INFO, every two milliseconds.
    :ivar retransmitted: segments, by TCP_INFO.
    :ivar seconds: of sending, and of what was in flight then.
    """

    def __init__(
        self, client: NetNS, server: NetNS, family: int, algorithm: str, seconds: float
    ) -> None:
        import threading

        self.family = family
        self.sent = self.received = self.retransmitted = 0
        self.samples: list[Sample] = []
        self._error: OSError | None = None
        kind = socket.AF_INET6 if family == 6 else socket.AF_INET
        with server.entered():
            listener = socket.create_server((HOSTS[family], 0), family=kind)
        with client.entered():
            sock = socket.socket(kind, socket.SOCK_STREAM)
        with listener, sock:
            listener.settimeout(10)
            # If the program ends meanwhile, the connection is reset, and gone at once.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, pack("ii", 1, 0))
            if algorithm:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, algorithm.encode())
            reader = threading.Thread(target=self._read, args=(listener,), daemon=True)
            reader.start()
            try:
                sock.settimeout(10)
                sock.connect(listener.getsockname())
                self.port = sock.getsockname()[1]
                name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
                self.algorithm = name.rstrip(b"\0").decode()
                began = monotonic()
                self._send(sock, began + seconds)
                sock.settimeout(10)
                sock.shutdown(socket.SHUT_WR)
                sock.recv(1)  # the server's FIN: everything has arrived
                self.seconds = monotonic() - began
                self._sample(sock)
            except OSError as error:
                raise BpfkitError(
                    f"cannot send to {HOSTS[family]}", why=error.strerror or str(error)
                ) from None
            finally:
                listener.close()
                reader.join(10)
        if self._error is not None:
            raise BpfkitError("the transfer's server failed", why=str(self._error))

    def falls(self) -> list[Fall]:
        """The losses after slow start.

        Outside of recovery the kernel also changes ssthresh, after the sender had nothing to send.
        """
        pairs = zip(self.samples, self.samples[1:], strict=False)
        return [
            Fall(before, after)
            for before, after in pairs
            if INFINITE > before.ssthresh != after.ssthresh
            and before.state < RECOVERY <= after.state
        ]

    @property
    def mbit(self) -> float:
        """Goodput in Mbit/s."""
        return self.received * 8 / self.seconds / 1e6

    def _read(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
            with sock:
                sock.settimeout(10)
                buffer = bytearray(1 << 18)
                while count := sock.recv_into(buffer):
                    self.received += count
        except OSError as error:
            self._error = error

    def _send(self, sock: socket.socket, until: float) -> None:
        from select import POLLOUT, poll

        poller = poll()
        poller.register(sock, POLLOUT)
        sock.settimeout(0)
        due = 0.0
        while (now := monotonic()) < until:
            if now >= due:
                self._sample(sock)
                due = now + _SAMPLE_S
            poller.poll(2)
            try:
                self.sent += sock.send(_BLOCK)
            except BlockingIOError:
                pass

    def _sample(self, sock: socket.socket) -> None:
        from bpfkit.net.traffic.tcp import tcp_info

        before = monotonic_ns()
        info = tcp_info(sock)
        after = monotonic_ns()
        self.retransmitted = info.total_retrans
        self.samples.append(Sample(before, after, info.snd_cwnd, info.snd_ssthresh, info.ca_state))
