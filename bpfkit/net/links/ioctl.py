# SPDX-License-Identifier: Apache-2.0
"""Interface ioctls (netdevice(7)) that namespaces and interfaces both need."""

from __future__ import annotations

import _socket
import fcntl
import os
import struct

__all__ = ["open_socket", "set_up"]

_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_IFF_UP = 0x1


def open_socket() -> _socket.socket:
    """A socket for these ioctls, in the calling thread's namespace."""
    return _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)


def set_up(sock: _socket.socket, name: str, up: bool = True) -> int:
    """``ip link set NAME up|down`` in the namespace of ``sock``; the new IFF_* flags.

    :raises OSError: no such interface, or not permitted.
    """
    raw = os.fsencode(name)
    answer = fcntl.ioctl(sock.fileno(), _SIOCGIFFLAGS, struct.pack("16s24x", raw))
    flags: int = struct.unpack_from("=H", answer, 16)[0]
    flags = flags | _IFF_UP if up else flags & ~_IFF_UP
    fcntl.ioctl(sock.fileno(), _SIOCSIFFLAGS, struct.pack("16sH22x", raw, flags))
    return flags
