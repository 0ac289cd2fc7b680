# SPDX-License-Identifier: Apache-2.0
"""Tells the service manager what the program does: systemd's ``Type=notify``.

Source: sd_notify(3): a datagram of ``NAME=value`` lines to the socket in ``NOTIFY_SOCKET``.
"""

from __future__ import annotations

import os

__all__ = ["notify"]


def notify(**values: str) -> None:
    """Send ``NAME=value`` lines, if a service manager listens; a manager that is gone is no error.

    :param values: ``READY="1"``, ``STATUS="attached to eth0"``, ``STOPPING="1"``.
    """
    place = os.environ.get("NOTIFY_SOCKET", "")
    if not place.startswith(("/", "@")):
        return
    from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_DGRAM, socket

    text = "\n".join(f"{name}={' '.join(value.split())}" for name, value in values.items())
    sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC)
    try:
        sock.sendto(
            text.encode("utf-8", "replace"),
            "\0" + place[1:] if place.startswith("@") else place,
        )
    except OSError:
        pass
    finally:
        sock.close()
