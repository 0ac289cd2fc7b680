# SPDX-License-Identifier: Apache-2.0
"""What --check compares: the program's figures with TCP_INFO, the receiver and the router."""

from __future__ import annotations

import errno

from bpfkit.core.errors import AttachError
from bpfkit.core.words import count_of, thousands
from bpfkit.tcp_cc.series import Series

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from bpfkit.show.rows import Row, Verdict
    from bpfkit.tcp_cc.program import TcpCc
    from bpfkit.tcp_cc.transfer import Fall, Transfer

__all__ = ["verify"]

#: Of the demo's path, at least: cwnd grows at most once in a round trip.
_ROUND_TRIP_NS = 10_000_000
_LEAST_SAMPLES = 100
#: Shares of the samples and of the losses that must be right.  On a busy machine with Linux 6.18
#: some were not, because the kernel did not run ssthresh(): see repair() in the C source.
_SAMPLES_RIGHT = 0.95
_LOSSES_RIGHT = 0.6
#: Shares of the link's goodput, and of reno's on a machine that does not reach that.
_LINK_FILLED, _OF_RENO = 0.7, 0.8


def _verify_goodput(app: TcpCc, transfer: Transfer, label: str) -> Verdict:
    """The link is filled, or reno fills it no better: an emulated CPU may be what is slow."""
    from bpfkit.tcp_cc.program import MBIT, TRANSFER_S
    from bpfkit.tcp_cc.transfer import Transfer, goodput_share

    share = transfer.mbit / (MBIT * goodput_share(transfer.family))
    text = f"{label}: {transfer.mbit:.1f} Mbit/s arrived, {share:.0%} of what the link has"
    if share > _LINK_FILLED:
        return share < 1.05, text
    ends = app.lab["client"], app.lab["server"]
    reno = Transfer(*ends, transfer.family, "reno", TRANSFER_S).mbit
    return transfer.mbit > _OF_RENO * reno, f"{text}; reno: {reno:.1f} Mbit/s"


def verify(app: TcpCc) -> Iterable[Verdict]:
    """The verdicts, once every change has been read."""
    from bpfkit.tcp_cc.program import AVAILABLE

    name = app.options.name
    with open(AVAILABLE) as file:
        yield name in file.read().split(), f"the kernel lists {name} in {AVAILABLE}"
    yield _refuses_twice(app), f"a second {name} is refused with EEXIST"
    lost = app.channel.lost if app.channel is not None else -1
    yield lost == 0, f"{count_of(lost, 'change')} of cwnd were lost"
    by_port = {row["sport"]: row for row in app.rows()}
    for transfer, drops in zip(app.transfers, app.dropped, strict=True):
        label = f"IPv{transfer.family}"
        yield from _verify_transfer(app, transfer, by_port.get(transfer.port))
        yield _verify_goodput(app, transfer, label)
        # An ACK of the handshake or of the end may be among those dropped; TCP may also send
        # again what was only late.
        again = transfer.retransmitted
        dropped = count_of(drops, "packet")
        text = f"{label}: the router dropped {dropped}, TCP_INFO has {again} sent again"
        yield 0 < drops <= again + 1, text
    for other in app.others:
        free = other.algorithm != name and other.port not in by_port
        text = f"IPv{other.family}: a connection that did not ask for it has {other.algorithm}"
        yield free, text


def _verify_transfer(app: TcpCc, transfer: Transfer, row: Row | None) -> Iterable[Verdict]:
    label = f"IPv{transfer.family}"
    yield transfer.algorithm == app.options.name, f"{label}: getsockopt: {transfer.algorithm}"
    text = f"{label}: {thousands(transfer.received)} of {count_of(transfer.sent, 'byte')} arrived"
    yield transfer.received == transfer.sent, text
    yield row is not None, f"{label}: the program knows the connection from {transfer.port}"
    if row is None:
        return
    missing = app.series.get(row["connection"], Series()).missing(transfer.samples)
    count = len(transfer.samples)
    text = f"{label}: {count - len(missing)} of {count} samples of TCP_INFO have the same cwnd"
    enough = count - len(missing) >= count * _SAMPLES_RIGHT
    yield count > _LEAST_SAMPLES and enough, f"{text} and ssthresh"
    falls = transfer.falls()
    if not falls:
        # An emulated guest may sample too rarely to see one.
        app.note(f"{label}: TCP_INFO showed no loss between two samples: not verified")
        return
    right = sum(_kept(app, fall) for fall in falls)
    text = f"{label}: by TCP_INFO, {right} of {len(falls)} losses took {app.options.decrease} %"
    yield right >= max(1, len(falls) * _LOSSES_RIGHT), f"{text} off cwnd"


def _kept(app: TcpCc, fall: Fall) -> bool:
    """Whether ssthresh is what the algorithm says, for a cwnd that may have grown meanwhile."""
    grown = app.options.increase * (1 + fall.passed_ns // _ROUND_TRIP_NS)
    least = max(2, fall.cwnd * app.kept >> 10)
    most = max(2, (fall.cwnd + grown) * app.kept >> 10)
    return bool(least <= fall.ssthresh <= most)


def _refuses_twice(app: TcpCc) -> bool:
    try:
        app.object.attach_struct_ops("tcp_congestion_ops", name=app.options.name).close()
    except AttachError as error:
        return error.errno == errno.EEXIST
    return False
