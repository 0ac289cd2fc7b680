# SPDX-License-Identifier: Apache-2.0
"""Maps as pandas data frames."""

from __future__ import annotations

from bpfkit.core.errors import UnsupportedError
from bpfkit.core.maps.base import Map
from bpfkit.core.types.forms import family_of
from bpfkit.notebook.values import columns_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["to_pandas"]


def to_pandas(m: Map) -> Any:
    """A ``pandas.DataFrame`` of a map: a column per field, addresses and protocols as text.

    :raises UnsupportedError: pandas is not installed for this interpreter.
    """
    try:
        import pandas
    except ImportError:
        raise UnsupportedError(
            "cannot make a data frame",
            why="pandas is not installed for this Python",
            hint="apt install python3-pandas, or pip install pandas in a virtual environment",
        ) from None
    columns = [*columns_of(m.key_layout, "key"), *columns_of(m.value_layout, "value")]
    titles: list[str] = []
    for column in columns:  # a key and a value may have a field of the same name
        titles.append(column.title if column.title not in titles else f"{column.title}_value")
    fields = [column.field for column in columns]
    data = []
    for row in m.rows():
        family = family_of(fields, row)
        data.append(
            [
                plain
                if type(plain := column.shown(value, family)) in (int, float, bool)
                else column.text(value, family)
                for column, value in zip(columns, row, strict=True)
            ]
        )
    return pandas.DataFrame(data, columns=titles)
