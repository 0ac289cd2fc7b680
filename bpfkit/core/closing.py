# SPDX-License-Identifier: Apache-2.0
"""The base class that makes a class with ``close()`` a context manager."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import TypeVar

    T = TypeVar("T", bound="Closing")

__all__ = ["Closing"]


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
