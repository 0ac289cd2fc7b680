# SPDX-License-Identifier: Apache-2.0
"""What traffic functions return: the figures that the sockets themselves report.

:func:`.ping.ping`, :func:`.tcp.tcp`, :func:`.udp.udp` and :func:`.tagged.tagged_udp` send from the
calling thread, in the namespace that they are given (default: the thread's own); each returns a
:class:`Report`.  :class:`.background.Traffic` runs one of them in a thread.

Addresses are numeric; a link-local one carries its interface (``fe80::1%eth0``).
"""

from __future__ import annotations

import _socket
import time

from bpfkit.core.shown import Shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    #: Called between packets or requests; True ends the traffic early.
    Stop: TypeAlias = Callable[[], bool]

__all__ = ["Report"]


class Report(Shown):
    """What was sent and received: the base of the reports.

    :ivar family: 4 or 6.
    :ivar started: UNIX time in seconds.
    :ivar seconds: duration.
    """

    def __init__(self, family: int) -> None:
        self.family = 6 if family == _socket.AF_INET6 else 4
        self.started = time.time()
        self.seconds = 0.0

    #: IANA keyword of the protocol above IP.
    proto = ""

    @property
    def what(self) -> str:
        """A description: :attr:`proto`, and what is special about the frames."""
        return self.proto

    @property
    def packets(self) -> int:
        """IP packets of :attr:`proto` on the wire, both ways, as far as the sockets know."""
        raise NotImplementedError

    @property
    def wire_bytes(self) -> int:
        """Their bytes as Ethernet frames (on lo too), frame check sequence not included."""
        raise NotImplementedError

    def finish(self) -> None:
        """Set :attr:`seconds`: everything was sent and received."""
        self.seconds = time.time() - self.started
