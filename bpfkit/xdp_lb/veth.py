# SPDX-License-Identifier: Apache-2.0
"""Do the packets that the balancer sends by a veth device arrive?

A veth device takes packets from a native XDP program (XDP_TX) only if its other end receives by
NAPI: if there is an XDP program there, or GRO.  Else the kernel drops them, and counts that only
among the driver's own figures (``ethtool -S``: rx_queue_N_xdp_tx_errors).

Source: veth_xdp_xmit() and veth_xdp_flush_bq() in drivers/net/veth.c (kernel 5.8).
"""

from __future__ import annotations

from bpfkit.core.errors import BpfkitError
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bpfkit.net.links.interfaces import Interface

__all__ = ["VethCheck"]


class VethCheck:
    """Says once that the other end of a veth device drops what is sent.

    :param note: prints a line for the user.
    """

    def __init__(self, interface: Interface, note: Callable[[str], None]) -> None:
        self._interface = interface
        self._note = note
        self._started = self._figures()

    def _figures(self) -> tuple[int, int] | None:
        """Packets that the device sent for XDP, and that it could not; None: no such figures."""
        from bpfkit.net.links.offloads import driver, statistics

        try:
            if driver(self._interface) != "veth":
                return None
            figures = statistics(self._interface)
        except (BpfkitError, OSError):  # a driver without figures, or the interface is gone
            return None
        sent = sum(value for name, value in figures.items() if name.endswith("_xdp_tx"))
        failed = sum(value for name, value in figures.items() if name.endswith("_xdp_tx_errors"))
        return sent, failed

    def check(self) -> None:
        """Look at the figures; say it if packets were sent and none arrived."""
        if self._started is None:
            return
        now = self._figures()
        if now is None:
            return
        sent, failed = now[0] - self._started[0], now[1] - self._started[1]
        if failed and not sent:
            self._started = None
            name = self._interface.name
            self._note(
                f"{count_of(failed, 'packet')} sent, none arrived: the peer of veth {name} has no "
                "XDP program; use --mode generic, or attach a program there that returns XDP_PASS"
            )
