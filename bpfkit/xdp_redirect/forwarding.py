# SPDX-License-Identifier: Apache-2.0
"""Whether the kernel forwards packets, and how many it has forwarded.

Everything is read in the calling thread's network namespace.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["forwarded", "not_forwarding"]


def forwarded() -> int:
    """Number of packets that the kernel has forwarded, IPv4 and IPv6."""
    total = 0
    with open("/proc/thread-self/net/snmp") as file:
        titles, figures = [line.split() for line in file if line.startswith("Ip:")]
        total += int(figures[titles.index("ForwDatagrams")])
    try:
        with open("/proc/thread-self/net/snmp6") as file:
            total += sum(int(x.split()[1]) for x in file if x.startswith("Ip6OutForwDatagrams"))
    except FileNotFoundError:
        pass
    return total


def not_forwarding(names: Iterable[str]) -> list[tuple[str, str, str]]:
    """(IP version, interface, sysctl) where forwarding is disabled, of these interfaces."""
    found = []
    each = list(names)
    for family, word in (("ipv4", "IPv4"), ("ipv6", "IPv6")):
        for name in each:
            try:
                with open(f"/proc/sys/net/{family}/conf/{name}/forwarding") as file:
                    off = file.read().strip() == "0"
            except OSError:
                continue
            if off:
                found.append((word, name, f"net.{family}.conf.{name}.forwarding"))
    return found
