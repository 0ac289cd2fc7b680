# SPDX-License-Identifier: Apache-2.0
"""Network interfaces, read and set by ioctls (netdevice(7)): no netlink, no ``/sys``.

``/sys/class/net`` shows the namespace it was mounted in, not the caller's; an ioctl on a socket
shows the namespace of the socket.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import struct

from bpfkit.core.errors import BpfkitError, InputError, errno_text
from bpfkit.net.links import ioctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.net.links.netns import NetNS

__all__ = ["Interface"]

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
    """A socket for ioctls about the interfaces of ``ns`` (default: of the thread's namespace)."""
    return ioctl.open_socket() if ns is None else ns.run(ioctl.open_socket)


class Interface:
    """An interface as it was when it was looked up; the methods read or set its current state.

    :ivar name: its name at that time.
    :ivar index: its ifindex, never 0; it survives renaming and is not soon reused.
    :ivar ns: its namespace; None: the calling thread's.
    :ivar link_type: ARPHRD_* number.
    :ivar link_name: the name of the link type.
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

        :raises InputError: no interface has that name (the message lists those that exist), or
            the programs cannot parse its link type.
        """
        what = f"no network interface named {name!r}"
        try:
            raw = name.encode()
        except UnicodeEncodeError:
            raw = b""
        # IFNAMSIZ includes the NUL: a longer name would be cut and could match another interface.
        # ioctls take "eth0:1", an address label, for eth0.
        if not 0 < len(raw) < 16 or b"\0" in raw or b":" in raw:
            raise InputError(what, why=_existing(ns))
        sock = ioctl_socket(ns)
        try:
            index = ioctl.get(sock, ioctl.SIOCGIFINDEX, name, "=i")
            flags = ioctl.get(sock, ioctl.SIOCGIFFLAGS, name, "=H")
            link_type = ioctl.get(sock, ioctl.SIOCGIFHWADDR, name, "=H")
            mtu = ioctl.get(sock, ioctl.SIOCGIFMTU, name, "=i")
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise InputError(what, why=_existing(ns)) from error
            raise BpfkitError(
                f"cannot read network interface {name!r}", why=errno_text(error.errno or 0)
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
        """Whether it is ``lo``, where every frame is seen twice: outgoing, then incoming."""
        return bool(self.flags & ioctl.IFF_LOOPBACK)

    def current_flags(self) -> int | None:
        """The IFF_* bits now; None if the interface no longer exists.  Follows renaming."""
        sock = ioctl_socket(self.ns)
        try:
            request = struct.pack("16xi20x", self.index)
            raw = fcntl.ioctl(sock.fileno(), ioctl.SIOCGIFNAME, request)[:16]
            return ioctl.get(sock, ioctl.SIOCGIFFLAGS, raw.rstrip(b"\0").decode(), "=H")
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        finally:
            sock.close()

    def still_there(self) -> bool:
        """Whether this interface, not another one of its name, still exists."""
        return self.current_flags() is not None

    def is_up(self) -> bool:
        """Whether it exists and is administratively up."""
        return bool((self.current_flags() or 0) & ioctl.IFF_UP)

    def lladdr(self) -> str:
        """The MAC address, ``02:00:00:00:00:01``."""
        sock = ioctl_socket(self.ns)
        try:
            return ioctl.get_raw(sock, ioctl.SIOCGIFHWADDR, self.name)[2:8].hex(":")
        finally:
            sock.close()

    def set_up(self, up: bool = True) -> None:
        """``ip link set NAME up|down``."""
        sock = ioctl_socket(self.ns)
        try:
            self.flags = ioctl.set_up(sock, self.name, up)
        finally:
            sock.close()

    def __repr__(self) -> str:
        state = "up" if self.flags & ioctl.IFF_UP else "down"
        return f"<Interface {self.index} {self.name} {self.link_name} mtu {self.mtu} {state}>"


def _existing(ns: NetNS | None) -> str:
    return "there are " + (", ".join(Interface.names(ns)) or "none")
