# SPDX-License-Identifier: Apache-2.0
"""One network interface, asked about by ioctls (netdevice(7)): no netlink, no ``/sys``.

``/sys/class/net`` shows the namespace it was mounted in, not the caller's; an ioctl on a socket
shows the namespace of the socket.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import struct

from bpfkit.core.errors import BpfkitError, InputError, errno_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.net.links.netns import NetNS

__all__ = ["Interface"]

_SIOCGIFNAME = 0x8910
_SIOCGIFFLAGS = 0x8913
_SIOCGIFMTU = 0x8921
_SIOCGIFHWADDR = 0x8927
_SIOCGIFINDEX = 0x8933

IFF_UP = 0x1
IFF_LOOPBACK = 0x8
IFF_RUNNING = 0x40
IFF_PROMISC = 0x100

# ARPHRD_* (include/uapi/linux/if_arp.h) -> bytes of link header in front of the network header,
# as an AF_PACKET SOCK_RAW socket and XDP/tc programs see them.
_LINK_HEADER = {
    1: ("Ethernet", 14),
    772: ("loopback", 14),
    512: ("PPP", 0),
    519: ("raw IP", 0),
    768: ("IPIP tunnel", 0),
    769: ("IPv6 tunnel", 0),
    776: ("6in4 tunnel", 0),
    778: ("GRE tunnel", 0),
    823: ("GRE tunnel over IPv6", 0),
    0xFFFE: ("no link header", 0),  # tun, WireGuard
}


def ioctl_socket(ns: NetNS | None) -> _socket.socket:
    """A socket to ask the namespace about its interfaces with."""
    if ns is not None:
        return ns.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    return _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)


def _ask(sock: _socket.socket, request: int, name: str, form: str) -> int:
    """The number that ioctl ``request`` gives about ``name``, read as struct ``form``."""
    answer = fcntl.ioctl(sock.fileno(), request, struct.pack("16s24x", name.encode()))
    number: int = struct.unpack_from(form, answer, 16)[0]
    return number


class Interface:
    """What programs need to know about an interface; a snapshot, except for the ``is_…`` methods.

    :ivar name: its name when it was looked up.
    :ivar index: its ifindex, never 0; stays the same under renaming and is not reused soon.
    :ivar ns: the namespace it is in; None: the one of the thread that asks.
    :ivar link_type: ARPHRD_* number.
    :ivar link_name: the same in words.
    :ivar l2_len: bytes of link header before the network header: 14 or 0.
    :ivar mtu: bytes of network header and payload.
    :ivar flags: IFF_* bits.
    """

    __slots__ = ("flags", "index", "l2_len", "link_name", "link_type", "mtu", "name", "ns")

    def __init__(self, name: str, index: int, flags: int, link_type: int, mtu: int) -> None:
        self.name = name
        self.index = index
        self.flags = flags
        self.link_type = link_type
        self.link_name, self.l2_len = _LINK_HEADER[link_type]
        self.mtu = mtu
        self.ns: NetNS | None = None

    @classmethod
    def find(cls, name: str, ns: NetNS | None = None) -> Interface:
        """Look ``name`` up in ``ns`` (default: the calling thread's namespace).

        :raises InputError: there is none of that name (the message lists those that exist), or
            its link type is one that the programs cannot parse.
        """
        what = f"no network interface named {name!r}"
        try:
            raw = name.encode()
        except UnicodeEncodeError:
            raw = b""
        # IFNAMSIZ with its NUL: a longer name would be cut, and could then match another one.
        # ioctls take "eth0:1", an address label, for eth0.
        if not 0 < len(raw) < 16 or b"\0" in raw or b":" in raw:
            raise InputError(what, why=_existing(ns))
        sock = ioctl_socket(ns)
        try:
            index = _ask(sock, _SIOCGIFINDEX, name, "=i")
            flags = _ask(sock, _SIOCGIFFLAGS, name, "=H")
            link_type = _ask(sock, _SIOCGIFHWADDR, name, "=H")
            mtu = _ask(sock, _SIOCGIFMTU, name, "=i")
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise InputError(what, why=_existing(ns)) from error
            raise BpfkitError(
                f"cannot look at network interface {name!r}", why=errno_text(error.errno or 0)
            ) from error
        finally:
            sock.close()
        if link_type not in _LINK_HEADER:
            raise InputError(
                f"network interface {name!r} has link type {link_type}",
                why="only Ethernet, loopback, PPP, tun and IP tunnels are supported",
            )
        found = cls(name, index, flags, link_type, mtu)
        found.ns = ns
        return found

    @staticmethod
    def names(ns: NetNS | None = None) -> list[str]:
        """The names of all interfaces, in the order of their indexes."""
        pairs = ns.run(_socket.if_nameindex) if ns is not None else _socket.if_nameindex()
        return [name for _, name in sorted(pairs)]

    @property
    def is_loopback(self) -> bool:
        """lo shows every frame twice: once outgoing, once incoming."""
        return bool(self.flags & IFF_LOOPBACK)

    def current_flags(self) -> int | None:
        """The IFF_* bits now; None when the interface is gone.  Follows renaming."""
        sock = ioctl_socket(self.ns)
        try:
            request = struct.pack("16xi20x", self.index)
            name = fcntl.ioctl(sock.fileno(), _SIOCGIFNAME, request)[:16].rstrip(b"\0").decode()
            return _ask(sock, _SIOCGIFFLAGS, name, "=H")
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        finally:
            sock.close()

    def still_there(self) -> bool:
        """Whether the interface (this one, not a new one of the same name) still exists."""
        return self.current_flags() is not None

    def is_up(self) -> bool:
        """Whether it exists and is administratively up."""
        return bool((self.current_flags() or 0) & IFF_UP)

    def lladdr(self) -> str:
        """The MAC address, ``02:00:00:00:00:01``."""
        sock = ioctl_socket(self.ns)
        try:
            request = struct.pack("16s24x", self.name.encode())
            return fcntl.ioctl(sock.fileno(), _SIOCGIFHWADDR, request)[18:24].hex(":")
        finally:
            sock.close()

    def set_up(self, up: bool = True) -> None:
        """``ip link set NAME up|down``."""
        from bpfkit.net.links.ioctl import set_up

        sock = ioctl_socket(self.ns)
        try:
            self.flags = set_up(sock, self.name, up)
        finally:
            sock.close()

    def __repr__(self) -> str:
        state = "up" if self.flags & IFF_UP else "down"
        return f"<Interface {self.index} {self.name} {self.link_name} mtu {self.mtu} {state}>"


def _existing(ns: NetNS | None) -> str:
    return "there are " + (", ".join(Interface.names(ns)) or "none")
