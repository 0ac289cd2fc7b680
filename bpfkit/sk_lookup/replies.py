# SPDX-License-Identifier: Apache-2.0
"""Attaches the rewriting of UDP replies: in the servers' cgroups, and on every interface.

See bpf_c/sock/sk_lookup_reply.bpf.c for what is rewritten where.  Nothing is attached before a UDP
socket is steered to.  Interfaces and cgroups that come later are attached to within a second.
"""

from __future__ import annotations

import _socket
import sys

from bpfkit.core.closing import Closing
from bpfkit.core.errors import BpfkitError
from bpfkit.sk_lookup.cgroups import ServerCgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bpfkit.core.attach.link import Link
    from bpfkit.core.maps.base import Map
    from bpfkit.core.object import Object
    from bpfkit.core.program import Program
    from bpfkit.net.sockets.listeners import Listener

__all__ = ["Replies"]

_SO_NETNS_COOKIE = 71  # kernel 5.14
_ETHERNET = 14


class Replies(Closing):
    """What is attached.

    :param maps: ``flows`` and ``counts`` of the sk_lookup program.
    :param note: prints a line for the user.
    """

    def __init__(self, maps: dict[str, Map], cache: bool, note: Callable[[str], None]) -> None:
        self._maps = maps
        self._cache = cache
        self._note = note
        self._objects: dict[int, Object] = {}
        self._interfaces: dict[int, Link | None] = {}
        self._cgroups = ServerCgroups(self._address_programs, self._complain)

    def update(self, servers: Iterable[Listener]) -> None:
        """Attach where nothing is attached yet.

        :param servers: the UDP sockets that are steered to.
        """
        servers = list(servers)
        if not servers and not self._objects:
            return
        self._attach_interfaces()
        self._cgroups.update(servers)

    def _object(self, l2_len: int) -> Object:
        """The programs for interfaces whose frames have a link header of this length."""
        if l2_len not in self._objects:
            from bpfkit import load

            self._objects[l2_len] = load(
                "sock/sk_lookup_reply.bpf.c",
                consts={"l2_len": l2_len, "netns_cookie": _netns_cookie()},
                reuse_maps={name: self._maps[name] for name in ("flows", "counts")},
                cache=self._cache,
            )
        return self._objects[l2_len]

    def _attach_interfaces(self) -> None:
        from bpfkit.net.links.interfaces import Interface

        there = dict(_socket.if_nameindex())
        for index in self._interfaces.keys() - there.keys():
            link = self._interfaces.pop(index)
            if link is not None:
                link.close()
        for index, name in there.items():
            if index in self._interfaces:
                continue
            try:
                program = self._object(Interface.find(name).l2_len).programs["reply_port"]
                self._interfaces[index] = program.attach_tc(index, "egress")
            except BpfkitError as error:
                self._interfaces[index] = None
                self._note(f"UDP replies leave {name} with the server's port: {error}")

    def _address_programs(self) -> list[Program]:
        programs = self._object(_ETHERNET).programs
        return [programs[name] for name in ("reply_address4", "reply_address6")]

    def _complain(self, error: BpfkitError) -> None:
        self._note(f"UDP replies leave from the address that the route chooses: {error}")

    def close(self) -> None:
        """Detach everything."""
        self._cgroups.close()
        for one in self._interfaces.values():
            if one is not None:
                one.close()
        self._interfaces.clear()
        while self._objects:
            self._objects.popitem()[1].close()


def _netns_cookie() -> int:
    """The number of the calling thread's network namespace; 0 where the kernel does not tell."""
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        raw = sock.getsockopt(_socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        return int.from_bytes(raw, sys.byteorder)
    except OSError:
        return 0
    finally:
        sock.close()
