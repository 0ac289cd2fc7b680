# SPDX-License-Identifier: Apache-2.0
"""A device's offloads, by the ethtool ioctl: what ``ethtool -k`` and ``-K`` do.

With segmentation offloads on, a packet tap and most programs see super-frames of up to 64 kB (or
more) that are single packets only behind the device; on a veth pair or a bridge they stay whole
up to the receiving socket.  Switched off, what a tap sees is what would be on a wire.

Source: ``include/uapi/linux/ethtool.h`` (ETHTOOL_GFEATURES, ETHTOOL_SFEATURES).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import struct

from bpfkit.core.errors import BpfkitError, InputError, UnsupportedError, errno_text
from bpfkit.net.links.interfaces import ioctl_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.net.links.interfaces import Interface

__all__ = ["GROUPS", "driver", "get_offloads", "set_offloads"]

#: ``ethtool -K``'s short names -> the kernel's names of the features, or beginnings of them.
GROUPS = {
    "rx": ("rx-checksum",),
    "tx": ("tx-checksum-",),
    "sg": ("tx-scatter-gather",),
    "tso": ("tx-tcp-segmentation", "tx-tcp-ecn-", "tx-tcp-mangleid-", "tx-tcp6-", "tx-tcp-accecn-"),
    "gso": ("tx-generic-segmentation",),
    "gso_tunnels": ("tx-gre-", "tx-ipxip", "tx-udp_tnl-", "tx-esp-", "tx-tunnel-", "tx-gso-"),
    "gso_udp": ("tx-udp-segmentation", "tx-sctp-segmentation"),
    "gso_list": ("tx-gso-list",),
    "gro": ("rx-gro",),
    "gro_list": ("rx-gro-list", "rx-udp-gro-forwarding"),
    "lro": ("rx-lro",),
    "rxvlan": ("rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"),
    "txvlan": ("tx-vlan-hw-insert", "tx-vlan-stag-hw-insert"),
}

_SIOCETHTOOL = 0x8946
_GDRVINFO, _GSTRINGS, _GSSET_INFO, _GFEATURES, _SFEATURES = 0x03, 0x1B, 0x37, 0x3A, 0x3B
_ETH_SS_FEATURES = 4
_ETH_GSTRING_LEN = 32
# Names of which the whole is meant, although they begin others.
_EXACT = frozenset(("rx-gro", "tx-tcp-segmentation"))


def _ethtool(interface: Interface, request: bytes) -> bytes:
    """One ethtool command; the buffer as the kernel leaves it."""
    buffer = ctypes.create_string_buffer(request, len(request))
    ifreq = struct.pack("@16sP16x", interface.name.encode(), ctypes.addressof(buffer))
    sock = ioctl_socket(interface.ns)
    try:
        fcntl.ioctl(sock.fileno(), _SIOCETHTOOL, ifreq)
    except OSError as error:
        what = f"cannot read or set the offloads of {interface.name}"
        if error.errno == errno.EOPNOTSUPP:
            raise UnsupportedError(what, why="its driver has no such setting") from error
        raise BpfkitError(what, why=errno_text(error.errno or 0)) from error
    finally:
        sock.close()
    return buffer.raw


def _names(interface: Interface) -> list[str]:
    """The kernel's names of all features, by bit."""
    request = struct.pack("=IIQI", _GSSET_INFO, 0, 1 << _ETH_SS_FEATURES, 0)
    (count,) = struct.unpack_from("=I", _ethtool(interface, request), 16)
    request = struct.pack("=III", _GSTRINGS, _ETH_SS_FEATURES, count)
    raw = _ethtool(interface, request + bytes(count * _ETH_GSTRING_LEN))
    return [
        raw[at : at + _ETH_GSTRING_LEN].split(b"\0", 1)[0].decode()
        for at in range(12, len(raw), _ETH_GSTRING_LEN)
    ]


def driver(interface: Interface) -> str:
    """The name of a device's driver (``veth``, ``virtio_net``); "" where it does not say."""
    try:
        raw = _ethtool(interface, struct.pack("=I", _GDRVINFO).ljust(196, b"\0"))
    except BpfkitError:
        return ""
    return raw[4:36].partition(b"\0")[0].decode()


def get_offloads(interface: Interface) -> dict[str, bool]:
    """All features of a device by the kernel's names (``tx-tcp-segmentation``, …): on or off."""
    names = _names(interface)
    words = (len(names) + 31) // 32
    raw = _ethtool(interface, struct.pack("=II", _GFEATURES, words) + bytes(16 * words))
    # A block of 32 features: available, requested, active, never changed.
    active = [struct.unpack_from("=I", raw, 8 + 16 * word + 8)[0] for word in range(words)]
    return {name: bool(active[bit // 32] >> bit % 32 & 1) for bit, name in enumerate(names) if name}


def set_offloads(interface: Interface, **wanted: bool) -> None:
    """Switch offloads on or off: ``set_offloads(dev, tso=False, gso=False, gro=False)``.

    :param wanted: names of :data:`GROUPS`, or the kernel's own names with ``_`` for ``-``.
        What the device cannot change stays as it is.
    :raises InputError: no offload of that name.
    """
    names = _names(interface)
    bits: dict[int, bool] = {}
    for key, value in wanted.items():
        for pattern in GROUPS.get(key, (key.replace("_", "-"),)):
            exact = pattern in _EXACT or key not in GROUPS
            found = [
                bit
                for bit, name in enumerate(names)
                if (
                    name.replace("_", "-") == pattern.replace("_", "-")
                    if exact
                    else name.startswith(pattern)
                )
            ]
            if not found and key not in GROUPS:
                raise InputError(f"no offload named {key!r}", why="there are " + ", ".join(GROUPS))
            bits.update(dict.fromkeys(found, value))
    words = (len(names) + 31) // 32
    valid, requested = [0] * words, [0] * words
    for bit, value in bits.items():
        valid[bit // 32] |= 1 << bit % 32
        requested[bit // 32] |= value << bit % 32
    body = b"".join(struct.pack("=II", *pair) for pair in zip(valid, requested, strict=True))
    _ethtool(interface, struct.pack("=II", _SFEATURES, words) + body)
