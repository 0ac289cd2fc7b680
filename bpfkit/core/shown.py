# SPDX-License-Identifier: Apache-2.0
"""How IPython and Jupyter show the library's objects: by the views of :mod:`bpfkit.notebook`."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["Shown", "notebook"]


def notebook(name: str) -> Callable[..., Any]:
    """The notebook's function: ``view``, ``watch``, ``watch_events``, ``to_pandas``."""
    from bpfkit.core.entries import find_entry

    found = find_entry("notebook", name)
    assert found is not None, name
    return found


class Shown:
    """An object with a view: a table in a notebook, text at an IPython prompt.

    Source: IPython's "Rich output", ``_repr_html_`` and ``_repr_pretty_``.
    """

    __slots__ = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # IPython looks class by class and takes a __repr__ before an inherited _repr_pretty_.
        if "__repr__" in cls.__dict__ and "_repr_pretty_" not in cls.__dict__:
            cls._repr_pretty_ = Shown._repr_pretty_  # type: ignore[method-assign]

    def _view(self) -> Any:
        """The object's :class:`bpfkit.show.view.View`."""
        return notebook("view")(self)

    def _repr_html_(self) -> str:
        return str(self._view().html())

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self) if cycle else self._view().text())
