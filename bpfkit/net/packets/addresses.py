# SPDX-License-Identifier: Apache-2.0
"""IP addresses in text form: their family and their bytes."""

from __future__ import annotations

import _socket

__all__ = ["family_of", "host_address", "mapped", "packed"]


def family_of(address: str) -> int:
    """AF_INET or AF_INET6 of an address, which may carry a scope (``fe80::1%eth0``)."""
    return _socket.AF_INET6 if ":" in address else _socket.AF_INET


def packed(address: str) -> bytes:
    """The address in network byte order, 4 or 16 bytes; an IPv6 scope is left out.

    :raises ValueError: not an IPv4 or IPv6 address.
    """
    family = family_of(address)
    plain = address.partition("%")[0] if family == _socket.AF_INET6 else address
    try:
        return _socket.inet_pton(family, plain)
    except (OSError, UnicodeError):
        raise ValueError(f"{address!r} does not appear to be an IPv4 or IPv6 address") from None


def mapped(address: str) -> bytes:
    """The address in network byte order, 16 bytes; IPv4 as the IPv4-mapped ``::ffff:a.b.c.d``.

    :raises ValueError: not an IPv4 or IPv6 address.
    """
    raw = packed(address)
    return raw if len(raw) == 16 else bytes(10) + b"\xff\xff" + raw


def host_address(text: str) -> str:
    """The canonical text form of an IPv4 or IPv6 address that identifies one host.

    :raises ValueError: not an address, or a multicast, unspecified or link-local one.
    """
    from ipaddress import ip_address

    try:
        found = ip_address(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an IPv4 or IPv6 address") from None
    if found.is_multicast or found.is_unspecified or found.is_link_local:
        raise ValueError(f"{text} is not a routable unicast address")
    return str(found)
