# SPDX-License-Identifier: Apache-2.0
"""Ping, TCP and UDP to each of several addresses."""

from __future__ import annotations

from bpfkit.net.traffic.ping import ping
from bpfkit.net.traffic.tcp import tcp
from bpfkit.net.traffic.udp import udp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.net.links.netns import NetNS
    from bpfkit.net.traffic.report import Report

__all__ = ["mixed"]


def mixed(
    *hosts: str,
    ns: NetNS | None = None,
    server_ns: NetNS | None = None,
    pings: int = 3,
    requests: int = 3,
    datagrams: int = 5,
) -> list[Report]:
    """Ping, TCP and UDP to each address (default: 127.0.0.1 and ::1).

    :returns: the reports; ``sum(r.packets for r in reports if r.proto == "udp")``, for example, is
        the number of UDP packets that must have crossed the wire.
    """
    reports: list[Report] = []
    for host in hosts or ("127.0.0.1", "::1"):
        reports.append(ping(host, count=pings, ns=ns))
        reports.append(tcp(host, requests=requests, ns=ns, server_ns=server_ns))
        reports.append(udp(host, count=datagrams, ns=ns, server_ns=server_ns))
    return reports
