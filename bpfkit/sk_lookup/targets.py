# SPDX-License-Identifier: Apache-2.0
"""Which listener a rule means, and which of those that are there fit."""

from __future__ import annotations

from bpfkit.net.sockets.listeners import Listener

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["SPARES", "Target", "choose", "several"]

SPARES = 2  # sockets of each kind that a target has in the map

_PROTOS = ("tcp", "udp")
_FAMILIES = (4, 6)
_MAPPED = bytes(10) + b"\xff\xff"


class Target:
    """Which listener a rule means.

    :ivar port: its port.
    :ivar address: 4 or 16 bytes; b"": not said.
    :ivar pid: its process; 0: not said.
    :ivar fd: the descriptor in that process; -1: not said.
    :ivar uid: the user of the process, whose new listener takes the place of a closed one.
    """

    __slots__ = ("address", "fd", "pid", "port", "uid")

    def __init__(
        self, port: int, address: bytes = b"", pid: int = 0, fd: int = -1, uid: int = 0
    ) -> None:
        self.port = port
        self.address = address
        self.pid = pid
        self.fd = fd
        self.uid = uid

    @property
    def key(self) -> tuple[int, bytes, int, int, int]:
        """Equal for equal targets."""
        return self.port, self.address, self.pid, self.fd, self.uid

    def __str__(self) -> str:
        from bpfkit.show.address import address_text

        host = address_text(self.address) if self.address else ""
        text = f"{f'[{host}]' if ':' in host else host}:{self.port}"
        if self.pid:
            text += f" of process {self.pid}"
        return text if self.fd < 0 else f"{text}, descriptor {self.fd}"


def choose(
    found: Iterable[Listener], target: Target, of_process: frozenset[int] | None = None
) -> dict[tuple[str, int], list[Listener]]:
    """The listeners of a target, the best first, for each kind of packet.

    :param found: what :func:`listeners` found.
    :param of_process: inodes of the target's process; None: it has ended, or none was named.
    :returns: (``tcp`` or ``udp``, 4 or 6) -> listeners.  A family that none takes gets the other
        family's, so that the kernel says, and counts, why they do not fit.
    """
    mine = [one for one in found if one.port == target.port and _fits(one, target, of_process)]
    result: dict[tuple[str, int], list[Listener]] = {}
    for proto in _PROTOS:
        for family in _FAMILIES:
            same = [one for one in mine if one.proto == proto]
            fitting = [one for one in same if one.takes(family)] or same
            # An address before every address; the packet's family before dual stack.
            fitting.sort(key=lambda one: (one.is_wildcard == bool(target.address), one.address))
            fitting.sort(key=lambda one, family=family: one.family != family)  # type: ignore[misc]
            result[proto, family] = fitting
    return result


def _fits(one: Listener, target: Target, of_process: frozenset[int] | None) -> bool:
    if of_process is not None and one.inode not in of_process:
        return False
    if of_process is None and target.pid and one.uid != target.uid:
        return False
    if not target.address or one.is_wildcard:
        return not target.address or one.takes(4 if len(target.address) == 4 else 6)
    mapped = _MAPPED + target.address if len(target.address) == 4 else target.address
    return one.address in (target.address, mapped)


def several(found: Iterable[Listener]) -> list[str]:
    """Different addresses of listeners where no one address says which is meant; else []."""
    from bpfkit.show.address import address_text

    found = list(found)
    for proto in _PROTOS:
        for family in _FAMILIES:
            same = [one for one in found if (one.proto, one.family) == (proto, family)]
            addresses = {one.address for one in same}
            if len(addresses) > 1 and not any(one.is_wildcard for one in same):
                return sorted(map(address_text, addresses))
    return []
