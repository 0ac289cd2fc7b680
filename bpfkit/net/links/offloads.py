# SPDX-License-Identifier: Apache-2.0
"""Reads and sets a device's offloads by the ethtool ioctl, like ``ethtool -k`` and ``-K``.

With segmentation offloads on, a packet tap and most programs see super-frames of 64 kB and more,
which the device splits into packets; on a veth pair or a bridge they reach the receiving socket
whole.  With them off, a tap sees the packets that would be on a wire.

Source: ``include/uapi/linux/ethtool.h`` (ETHTOOL_GFEATURES, ETHTOOL_SFEATURES).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

from bpfkit.core.errors import BpfkitError, InputError, UnsupportedError, errno_text
from bpfkit.net.links.interfaces import ioctl_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.net.links.interfaces import Interface

__all__ = ["GROUPS", "driver", "get_offloads", "set_offloads", "statistics"]

#: ``ethtool -K``'s short names -> the kernel's feature names, or prefixes of them.
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
_GSTATS = 0x1D
_ETH_SS_STATS, _ETH_SS_FEATURES = 1, 4
_ETH_GSTRING_LEN = 32
# Full names that are also prefixes of other names.
_EXACT = frozenset(("rx-gro", "tx-tcp-segmentation"))


def _ethtool(interface: Interface, request: bytes) -> bytes:
    """Run one ethtool command; the buffer as the kernel filled it in."""
    buffer = ctypes.create_string_buffer(request, len(request))
    ifreq = struct.pack("@16sP16x", os.fsencode(interface.name), ctypes.addressof(buffer))
    sock = ioctl_socket(interface.ns)
    try:
        fcntl.ioctl(sock.fileno(), _SIOCETHTOOL, ifreq)
    except OSError as error:
        what = f"cannot read or set the offloads of {interface.name}"
        if error.errno == errno.EOPNOTSUPP:
            raise UnsupportedError(what, why="the driver does not support it") from error
        raise BpfkitError(what, why=errno_text(error.errno or 0)) from error
    finally:
        sock.close()
    return buffer.raw


def statistics(interface: Interface) -> dict[str, int]:
    """The driver's counters by its own names, as ``ethtool -S`` prints them.

    :raises UnsupportedError: the driver has none.
    """
    names = _names(interface, _ETH_SS_STATS)
    request = struct.pack("=II", _GSTATS, len(names)) + bytes(8 * len(names))
    values = struct.unpack_from(f"={len(names)}Q", _ethtool(interface, request), 8)
    return dict(zip(names, values, strict=True))


def _names(interface: Interface, kind: int = _ETH_SS_FEATURES) -> list[str]:
    """The names of one set of strings, of all features by default, by number."""
    request = struct.pack("=IIQI", _GSSET_INFO, 0, 1 << kind, 0)
    (count,) = struct.unpack_from("=I", _ethtool(interface, request), 16)
    request = struct.pack("=III", _GSTRINGS, kind, count)
    raw = _ethtool(interface, request + bytes(count * _ETH_GSTRING_LEN))
    return [
        raw[at : at + _ETH_GSTRING_LEN].split(b"\0", 1)[0].decode()
        for at in range(12, len(raw), _ETH_GSTRING_LEN)
    ]


def driver(interface: Interface) -> str:
    """The name of a device's driver (``veth``, ``virtio_net``); "" if it reports none."""
    try:
        raw = _ethtool(interface, struct.pack("=I", _GDRVINFO).ljust(196, b"\0"))
    except BpfkitError:
        return ""
    return raw[4:36].partition(b"\0")[0].decode()


def get_offloads(interface: Interface) -> dict[str, bool]:
    """The kernel's feature names (``tx-tcp-segmentation``, …) -> whether the feature is active."""
    names = _names(interface)
    words = (len(names) + 31) // 32
    raw = _ethtool(interface, struct.pack("=II", _GFEATURES, words) + bytes(16 * words))
    # A block of 32 features: available, requested, active, never changed.
    active = [struct.unpack_from("=I", raw, 8 + 16 * word + 8)[0] for word in range(words)]
    return {name: bool(active[bit // 32] >> bit % 32 & 1) for bit, name in enumerate(names) if name}


def set_offloads(interface: Interface, **wanted: bool) -> None:
    """Switch offloads on or off: ``set_offloads(dev, tso=False, gso=False, gro=False)``.

    :param wanted: names in :data:`GROUPS`, or the kernel's own names with ``_`` for ``-``.
        Features that the device cannot change keep their state.
    :raises InputError: no offload has that name.
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
