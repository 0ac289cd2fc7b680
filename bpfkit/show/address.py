# SPDX-License-Identifier: Apache-2.0
"""Addresses as people write them."""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, inet_ntop

__all__ = ["address_text"]


def address_text(raw: bytes) -> str:
    """The text of an IPv4 (4 bytes) or IPv6 (16 bytes) address, both in network byte order.

    IPv6 is written as RFC 5952 says (lower case, the longest run of zero groups as ``::``);
    IPv4-mapped addresses end in dotted decimals.  Other lengths raise :class:`ValueError`.
    """
    return inet_ntop(AF_INET if len(raw) == 4 else AF_INET6, raw)
