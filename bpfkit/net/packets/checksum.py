# SPDX-License-Identifier: Apache-2.0
"""The Internet checksum."""

from __future__ import annotations

import struct

__all__ = ["checksum"]


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of ``data``; 0 if ``data`` includes a correct one."""
    data += b"\0" * (len(data) & 1)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF
