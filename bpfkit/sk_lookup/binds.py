# SPDX-License-Identifier: Apache-2.0
"""Tells when a server binds its port again; see bpf_c/sock/sk_lookup_bind.bpf.c.

Where that cannot be attached (no cgroup v2), servers that restart are found by looking, as before.
"""

from __future__ import annotations

from bpfkit.core.closing import Closing
from bpfkit.core.log import say
from bpfkit.sk_lookup.cgroups import ServerCgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from bpfkit.core.maps.buffers import RingBuffer
    from bpfkit.core.program import Program
    from bpfkit.net.sockets.listeners import Listener

__all__ = ["Binds"]


class Binds(Closing):
    """The programs in the servers' cgroups, and what they tell."""

    def __init__(self, cache: bool) -> None:
        from bpfkit import load

        self._object = load("sock/sk_lookup_bind.bpf.c", cache=cache)
        self._buffer: RingBuffer = self._object["binds"].open()
        self._ports: set[int] = set()
        self._cgroups = ServerCgroups(
            self._programs, lambda error: say(f"bind(2) is not watched: {error}")
        )

    def _programs(self) -> list[Program]:
        return list(self._object.programs.values())

    def fileno(self) -> int:
        """Readable after a server has bound its port."""
        return self._buffer.fileno()

    def drain(self) -> bool:
        """Whether a server has bound its port since the last call."""
        return sum(1 for _ in self._buffer.drain()) > 0  # all of them are read

    def update(self, servers: Iterable[Listener], ports: set[int]) -> None:
        """Watch the cgroups of these servers for these ports."""
        for port in ports - self._ports:
            self._object["ports"][port] = 1
        for port in self._ports - ports:
            self._object["ports"].pop(port, None)
        self._ports = set(ports)
        self._cgroups.update(servers)

    def close(self) -> None:
        """Detach."""
        self._cgroups.close()
        self._buffer.close()
        self._object.close()
