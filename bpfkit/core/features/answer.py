# SPDX-License-Identifier: Apache-2.0
"""An answer to "does this work here?", in one of three states."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

__all__ = ["INCONCLUSIVE", "NOT_SUPPORTED", "WORKS", "Feature"]

WORKS = "works"
NOT_SUPPORTED = "not supported"
INCONCLUSIVE = "inconclusive"


class Feature:
    """One answer.

    :ivar name: short name in lower case (``xdp``, ``lru_hash``, ``tracefs``).
    :ivar kernel_name: the kernel's constant (``BPF_PROG_TYPE_XDP``), empty for the environment.
    :ivar state: :data:`WORKS`, :data:`NOT_SUPPORTED` or :data:`INCONCLUSIVE`.
    :ivar why: the reason why the feature does not work, or a limitation of one that works; may be
        empty.
    :ivar hint: the remedy; may be empty.
    :ivar value: the value found (a path, a number, a list of names), for the environment.
    :ivar parts: the ways a program type is used, where they differ (kprobe, uprobe …).
    """

    __slots__ = ("hint", "kernel_name", "name", "parts", "state", "value", "why")

    def __init__(
        self,
        name: str,
        state: str,
        why: str = "",
        *,
        kernel_name: str = "",
        hint: str = "",
        value: Any = None,
        parts: Sequence[Feature] = (),
    ) -> None:
        self.name = name
        self.kernel_name = kernel_name
        self.state = state
        self.why = why
        self.hint = hint
        self.value = value
        self.parts = tuple(parts)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the empty fields."""
        row: dict[str, Any] = {"name": self.name, "state": self.state}
        for key in ("kernel_name", "why", "hint", "value"):
            found = getattr(self, key)
            if found or (key == "value" and found is not None):
                row[key] = found
        if self.parts:
            row["parts"] = [part.as_dict() for part in self.parts]
        return row

    def __repr__(self) -> str:
        return f"<{self.name}: {self.state}{f' ({self.why})' if self.why else ''}>"
