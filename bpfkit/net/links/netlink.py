# SPDX-License-Identifier: Apache-2.0
"""Netlink by pyroute2 (0.7 to 0.9), in any namespace and next to any event loop.

pyroute2 is imported at the first call; :mod:`bpfkit.net.links.rtnetlink` is for code that must not
wait for it.
"""

from __future__ import annotations

from bpfkit.core.errors import BpfkitError, UnsupportedError, errno_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from bpfkit.net.links.netns import NetNS

    T = TypeVar("T")

__all__ = ["with_iproute"]


def with_iproute(ns: NetNS, what: str, function: Callable[[Any], T]) -> T:
    """Call ``function`` with an IPRoute of ``ns``, in a separate thread; its result.

    The calling thread keeps its namespace and its event loop: pyroute2 0.9 runs its own event loop,
    and a notebook's thread already has one.

    :param what: what failed, for the error.
    :raises BpfkitError: the kernel refused; it has the kernel's reason, and its ``errno``.
    """
    import threading

    try:
        from pyroute2 import IPRoute, NetlinkError
    except ImportError as error:
        raise UnsupportedError(
            what,
            why="pyroute2 is not installed",
            hint="install python3-pyroute2 (Debian, Ubuntu) or `pip install pyroute2`",
        ) from error
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            with ns.entered(), IPRoute() as ipr:
                results.append(function(ipr))
        except BaseException as raised:
            errors.append(raised)

    thread = threading.Thread(target=body, name="bpfkit-netlink")
    thread.start()
    thread.join()
    if not errors:
        return results[0]
    failed = errors[0]
    if isinstance(failed, NetlinkError):
        number, why = abs(int(failed.code)), errno_text(int(failed.code))
    elif isinstance(failed, OSError):
        number = failed.errno or 0
        why = errno_text(number) if number else str(failed)
    else:
        raise failed
    refused = BpfkitError(what, why=why)
    refused.errno = number
    raise refused from failed
