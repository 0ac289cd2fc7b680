# SPDX-License-Identifier: Apache-2.0
"""Interface ioctls (netdevice(7)) in the network namespace of a socket."""

from __future__ import annotations

import _socket
import fcntl
import struct

__all__ = ["get", "get_raw", "open_socket", "set_up"]

SIOCGIFNAME = 0x8910
SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
SIOCGIFMTU = 0x8921
SIOCGIFHWADDR = 0x8927
SIOCGIFINDEX = 0x8933

IFF_UP = 0x1
IFF_LOOPBACK = 0x8
IFF_RUNNING = 0x40


def open_socket() -> _socket.socket:
    """A socket for these ioctls in the calling thread's namespace."""
    return _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)


def get_raw(sock: _socket.socket, request: int, name: str) -> bytes:
    """What the kernel writes into ``struct ifreq`` behind the name of interface ``name``.

    :raises OSError: ENODEV: no such interface.
    """
    return fcntl.ioctl(sock.fileno(), request, struct.pack("16s24x", name.encode()))[16:]


def get(sock: _socket.socket, request: int, name: str, form: str) -> int:
    """A number about interface ``name``, in the struct format ``form``.

    :raises OSError: ENODEV: no such interface.
    """
    number: int = struct.unpack_from(form, get_raw(sock, request, name))[0]
    return number


def set_up(sock: _socket.socket, name: str, up: bool = True) -> int:
    """``ip link set NAME up|down``; the interface's new IFF_* flags.

    :raises OSError: no such interface, or not permitted.
    """
    flags = get(sock, SIOCGIFFLAGS, name, "=H")
    flags = flags | IFF_UP if up else flags & ~IFF_UP
    request = struct.pack("16sH22x", name.encode(), flags)
    fcntl.ioctl(sock.fileno(), _SIOCSIFFLAGS, request)
    return flags
