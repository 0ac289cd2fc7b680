# SPDX-License-Identifier: Apache-2.0
"""The base classes of what is closed: :class:`Closing` is a context manager, and :class:`Held`
also closes itself when nothing refers to it any more.

:func:`opened` finds what is open by asking Python's garbage collector, so that opening costs
nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, TypeVar

    T = TypeVar("T", bound="Closing")

__all__ = ["Closing", "Held", "opened", "warn_unclosed"]


class Closing:
    """A context manager that calls :meth:`close` at the end of the block."""

    __slots__ = ()

    def close(self) -> None:
        """Release the resource.  Closing twice does nothing."""
        raise NotImplementedError

    def __enter__(self: T) -> T:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Held(Closing):
    """What holds something of the kernel's and closes itself with the last reference to it.

    That comes with a ResourceWarning (``python3 -X dev`` shows it), as for Python's own files and
    sockets: when an object goes is not certain, ``with`` and ``close()`` are.
    """

    __slots__ = ()

    def _is_open(self) -> bool:
        """Whether there is something to close.  AttributeError: the constructor did not get far."""
        number: int = self.fd  # type: ignore[attr-defined]
        return number >= 0

    def __del__(self) -> None:
        try:
            if not self._is_open():
                return
        except AttributeError:
            return
        warn_unclosed(self)
        self.close()


def warn_unclosed(what: object, source: object = None) -> None:
    """The ResourceWarning for something that nobody closed.

    :param source: what tracemalloc looks up to say where it was made.
    """
    try:
        from _warnings import warn

        warn(f"unclosed {what!r}", ResourceWarning, 3, source=source or what)
    except ImportError:
        pass  # the interpreter is ending: the module that shows warnings is gone


def opened() -> list[Any]:
    """What this process holds open of bpfkit's: objects, programs, maps, links, buffers, packet
    sockets, namespaces, labs, cgroups.

    The elements are the things themselves, in no order; each has ``close()``.  A link that nobody
    refers to is among them as long as its program is open: the program keeps it.
    """
    from gc import get_objects

    found: list[Any] = []
    for one in get_objects():
        if not issubclass(type(one), Held):
            continue
        try:
            if one._is_open():
                found.append(one)
        except AttributeError:
            continue
    found += [link for one in found for link in getattr(one, "links", ())]
    return list({id(one): one for one in found}.values())
