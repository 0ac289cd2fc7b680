# SPDX-License-Identifier: Apache-2.0
"""Sockets for traffic and servers: opened in a namespace, with numeric addresses."""

from __future__ import annotations

import _socket

from bpfkit.core.errors import BpfkitError, InputError, PrivilegeError, errno_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket as socket_module
    from collections.abc import Callable
    from typing import Any

    from bpfkit.net.links.netns import NetNS

__all__ = ["failure", "listen", "open_socket", "resolve"]


def _in(ns: NetNS | None, function: Callable[..., Any], *args: Any) -> Any:
    return function(*args) if ns is None else ns.run(function, *args)


def open_socket(ns: NetNS | None, family: int, kind: int, protocol: int = 0) -> _socket.socket:
    try:
        socket: _socket.socket = _in(
            ns, _socket.socket, family, kind | _socket.SOCK_CLOEXEC, protocol
        )
        return socket
    except PermissionError as error:
        raise PrivilegeError(
            "cannot open a raw socket", why="not permitted", hint="run as root (CAP_NET_RAW)"
        ) from error


def resolve(ns: NetNS | None, host: str, port: int = 0) -> tuple[int, Any]:
    """(family, sockaddr) of a numeric address."""
    try:
        found = _in(
            ns, _socket.getaddrinfo, host, port, 0, _socket.SOCK_DGRAM, 0, _socket.AI_NUMERICHOST
        )
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"not an IP address: {host!r}",
            hint="examples: 10.0.0.1, fd00::1, fe80::1%eth0",
        ) from error
    return found[0][0], found[0][4]


def failure(what: str, error: OSError) -> BpfkitError:
    why = str(error) if error.errno is None else errno_text(error.errno)
    return BpfkitError(what, why=why)


def listen(
    ns: NetNS, port: int = 0, *, address: str = "", backlog: int = 64
) -> socket_module.socket:
    """A listening TCP socket in a namespace.

    :param port: 0: a free one.
    :param address: "": every address, IPv4 and IPv6.
    :raises BpfkitError: the port is in use.
    """
    import socket

    family = socket.AF_INET if address and ":" not in address else socket.AF_INET6
    with ns.entered():
        sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, bool(address))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address or "::", port))
        sock.listen(backlog)
        return sock
    except OSError as error:
        sock.close()
        what = f"cannot listen on port {port}" + (f" of {address}" if address else "")
        raise failure(what, error) from error
