# SPDX-License-Identifier: Apache-2.0
"""One network interface, asked about by ioctls (netdevice(7)): no netlink, no ``/sys``.

``/sys/class/net`` shows the namespace it was mounted in, not the caller's; an ioctl on a socket
shows the namespace of the socket.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import struct

from bpfkit.core.errors import BpfkitError, InputError, UnsupportedError, errno_text
from bpfkit.core.printable import printable
from bpfkit.net.links.rtnetlink import attribute, attributes, request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.net.links.netns import NetNS

__all__ = ["Interface"]

_SIOCGIFNAME = 0x8910
_SIOCGIFFLAGS = 0x8913
_SIOCGIFMTU = 0x8921
_SIOCGIFHWADDR = 0x8927
_SIOCGIFINDEX = 0x8933

_ALTIFNAMSIZ = 128
_RTM_GETLINK = 18
_IFINFOMSG = struct.Struct("=BxHiII")
_IFLA_ALT_IFNAME, _IFLA_LINKINFO, _IFLA_INFO_KIND, _IFLA_INFO_DATA = 53, 18, 1, 2
_IFLA_GRE_REMOTE, _IFLA_GRE_COLLECT_METADATA = 7, 18
_GRE = (778, 823)  # ARPHRD_IPGRE, ARPHRD_IP6GRE

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
    answer = fcntl.ioctl(sock.fileno(), request, struct.pack("16s24x", os.fsencode(name)))
    number: int = struct.unpack_from(form, answer, 16)[0]
    return number


def _name_of(sock: _socket.socket, index: int) -> str:
    """The name that the interface has now.

    :raises OSError: ENODEV: it is gone.
    """
    answer = fcntl.ioctl(sock.fileno(), _SIOCGIFNAME, struct.pack("16xi20x", index))
    return os.fsdecode(answer[:16].rstrip(b"\0"))


def _index_of(raw: bytes) -> int:
    """The index of the interface with a long alternative name, in the thread's namespace.

    :raises OSError: ENODEV: there is none.
    """
    kind = _IFLA_ALT_IFNAME
    answer = request(_RTM_GETLINK, _IFINFOMSG.pack(0, 0, 0, 0, 0) + attribute(kind, raw + b"\0"), 0)
    index: int = _IFINFOMSG.unpack_from(answer)[2]
    return index


def _gre_header(name: str, index: int) -> int:
    """Bytes of link header of a GRE tunnel, from its settings.

    With a fixed remote address (or metadata instead of one) there is none.  Else the tunnel's
    packets are seen with the outer header as their link header: RFC 2784, RFC 2890.
    """
    what = f"cannot read packets of {name}"
    answer = request(_RTM_GETLINK, _IFINFOMSG.pack(0, 0, index, 0, 0), 0)
    found = dict(attributes(answer[_IFINFOMSG.size :]))
    about = dict(attributes(found.get(_IFLA_LINKINFO, b"")))
    kind = about.get(_IFLA_INFO_KIND, b"").rstrip(b"\0")
    given = dict(attributes(about.get(_IFLA_INFO_DATA, b"")))
    if kind not in (b"gre", b"ip6gre"):
        raise UnsupportedError(
            what, why=f"the link header of a {kind.decode()} tunnel is not known"
        )
    if _IFLA_GRE_COLLECT_METADATA in given:
        return 0
    remote = given.get(_IFLA_GRE_REMOTE, b"")
    multicast = remote[:1] == b"\xff" if kind == b"ip6gre" else remote[:1] and remote[0] >> 4 == 14
    if any(remote) and not multicast:
        return 0
    if kind == b"ip6gre":
        raise UnsupportedError(
            what,
            why="without a fixed remote address its link headers have several lengths",
            hint=f"watch the interface below, or give {name} a remote address",
        )
    flags = [int.from_bytes(given.get(n, b"\0\0")[:2], "big") for n in (2, 3)]  # in, out
    lengths = {24 + sum(4 for bit in (0x8000, 0x2000, 0x1000) if flag & bit) for flag in flags}
    if len(lengths) > 1:
        raise UnsupportedError(
            what,
            why="its link header is longer in one direction than in the other",
            hint=f"watch the interface below, or give {name} the same key, csum and seq both ways",
        )
    return lengths.pop()


class Interface:
    """What programs need to know about an interface; a snapshot, except for the ``is_…`` methods.

    :ivar name: its name when it was looked up, also where it was looked up by an alternative name;
        bytes that are no UTF-8 are surrogate escapes, as in file names.
    :ivar index: its ifindex, never 0; stays the same under renaming and is not reused soon.
    :ivar ns: the namespace it is in; None: the one of the thread that asks.
    :ivar link_type: ARPHRD_* number.
    :ivar link_name: the same in words.
    :ivar l2_len: bytes of link header before the network header: 14, 0, or those of a GRE tunnel
        without a fixed remote address, whose link header is the outer packet's.
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
        if link_type in _GRE:
            self.l2_len = _gre_header(name, index)
        self.mtu = mtu
        self.ns: NetNS | None = None

    @classmethod
    def find(cls, name: str, ns: NetNS | None = None) -> Interface:
        """Look ``name`` up in ``ns`` (default: the calling thread's namespace).

        :param name: a name, or an alternative name (``ip link property add altname``).
        :raises InputError: there is none of that name (the message lists those that exist), or
            its link type is one that the programs cannot parse.
        :raises UnsupportedError: the length of its link header cannot be known.
        """
        if ns is not None:
            with ns.entered():
                found = cls.find(name)
            found.ns = ns
            return found
        what = f"no network interface named '{printable(name)}'"
        try:
            raw = os.fsencode(name)
        except UnicodeEncodeError:
            raw = b""
        # ioctls take "eth0:1", an address label, for eth0.
        if not 0 < len(raw) < _ALTIFNAMSIZ or b"\0" in raw or b":" in raw:
            raise InputError(what, why=_existing(ns))
        sock = ioctl_socket(ns)
        try:
            # IFNAMSIZ with its NUL: an ioctl cuts a longer name, and could then find another one.
            index = _ask(sock, _SIOCGIFINDEX, name, "=i") if len(raw) < 16 else _index_of(raw)
            name = _name_of(sock, index)
            flags = _ask(sock, _SIOCGIFFLAGS, name, "=H")
            link_type = _ask(sock, _SIOCGIFHWADDR, name, "=H")
            mtu = _ask(sock, _SIOCGIFMTU, name, "=i")
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise InputError(what, why=_existing(ns)) from error
            raise BpfkitError(
                f"cannot look at network interface '{printable(name)}'",
                why=errno_text(error.errno or 0),
            ) from error
        finally:
            sock.close()
        if link_type not in _LINK_HEADER:
            raise InputError(
                f"network interface '{printable(name)}' has link type {link_type}",
                why="only Ethernet, loopback, PPP, tun and IP tunnels are supported",
            )
        return cls(name, index, flags, link_type, mtu)

    @staticmethod
    def names(ns: NetNS | None = None) -> list[str]:
        """The names of all interfaces, in the order of their indexes."""
        pairs = ns.run(_socket.if_nameindex) if ns is not None else _socket.if_nameindex()
        return [name for _, name in sorted(pairs)]  # fsdecode()d by Python

    @property
    def is_loopback(self) -> bool:
        """lo shows every frame twice: once outgoing, once incoming."""
        return bool(self.flags & IFF_LOOPBACK)

    def current_flags(self) -> int | None:
        """The IFF_* bits now; None when the interface is gone.  Follows renaming."""
        sock = ioctl_socket(self.ns)
        try:
            return _ask(sock, _SIOCGIFFLAGS, _name_of(sock, self.index), "=H")
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
            request = struct.pack("16s24x", os.fsencode(_name_of(sock, self.index)))
            return fcntl.ioctl(sock.fileno(), _SIOCGIFHWADDR, request)[18:24].hex(":")
        finally:
            sock.close()

    def current_mtu(self) -> int:
        """The MTU now, in bytes.

        :raises OSError: ENODEV: the interface is gone.
        """
        sock = ioctl_socket(self.ns)
        try:
            return _ask(sock, _SIOCGIFMTU, _name_of(sock, self.index), "=i")
        finally:
            sock.close()

    def set_up(self, up: bool = True) -> None:
        """``ip link set NAME up|down``."""
        from bpfkit.net.links.ioctl import set_up

        sock = ioctl_socket(self.ns)
        try:
            self.flags = set_up(sock, _name_of(sock, self.index), up)
        finally:
            sock.close()

    def __repr__(self) -> str:
        state = "up" if self.flags & IFF_UP else "down"
        return f"<Interface {self.index} {self.name} {self.link_name} mtu {self.mtu} {state}>"


def _existing(ns: NetNS | None) -> str:
    return "there are " + (", ".join(map(printable, Interface.names(ns))) or "none")
