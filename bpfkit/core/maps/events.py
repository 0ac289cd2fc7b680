# SPDX-License-Identifier: Apache-2.0
"""Events as people and JSON see them: the records of a ring buffer or perf buffer, field by field.

::

    for event in obj.events("connects", timeout=5):
        print(event.pid, event.comm)

A record is a value of the struct that ``EVENT_TYPE(map, struct)`` names in C.  Its fields are
numbers, text and bytes; :meth:`Events.row` shows them as what they are: as the caller says
(``forms={"daddr": "ip"}``, or a function of the value), else in the forms that
:mod:`bpfkit.core.types.forms` finds.
"""

from __future__ import annotations

from bpfkit.core.closing import Held
from bpfkit.core.errors import InputError
from bpfkit.core.types.forms import FORMS, family_of, fits, form_of, shown
from bpfkit.core.types.layout import StructValue
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any, TypeAlias

    from bpfkit.core.maps.base import Map
    from bpfkit.core.maps.buffers import PerfBuffer, RingBuffer
    from bpfkit.core.types.layout import Field

    #: A form's name, or a function of the value.
    Form: TypeAlias = str | Callable[[Any], Any]

__all__ = ["Events"]


class Events(Held):
    """The events of one map, until it is closed: an iterator of typed records.

    :param m: a ring buffer or a perf event array.
    :param timeout: the iteration ends when no event has come for so many seconds; None: it waits
        for ever.
    :param lost: the map in which the program counts what the ring buffer refused (element 0; the
        sum over CPUs); a perf buffer's losses are the kernel's count.
    :param forms: field -> form, or a function of the value.
    :ivar fields: names of a record's fields; () where the records have no type, and are bytes.
    :raises InputError: the map sends no events, or a form does not fit its field.
    """

    __slots__ = ("_buffer", "_forms", "_lost", "fields", "timeout")

    def __init__(
        self,
        m: Map,
        *,
        timeout: float | None = None,
        lost: Map | None = None,
        forms: Mapping[str, Form] | None = None,
    ) -> None:
        if m.type not in ("ringbuf", "perf_event_array"):
            raise InputError(
                f"map '{m.name}' sends no events",
                why=f"it is a {m.type}",
                hint="ring buffers (ringbuf) and perf buffers (perf_event_array) do",
            )
        self.timeout = timeout
        self._lost = lost
        chosen = dict(forms or {})
        layout = m.event_layout()
        members = layout.fields if layout is not None else ()
        self.fields = tuple(field.name for field in members)
        self._forms = [(f, _form(m.name, f, chosen.pop(f.name, ""))) for f in members]
        if chosen:
            from bpfkit.core.errors import NoSuchNameError, nearest

            name = next(iter(chosen))
            raise NoSuchNameError(
                f"the records of map '{m.name}' have no field '{name}'",
                why=f"they have {', '.join(self.fields)}" if self.fields else "they have no type",
                hint=nearest(name, self.fields, 0.6)
                if self.fields
                else f"name it in C: EVENT_TYPE({m.name}, struct …)",
            )
        self._buffer: RingBuffer | PerfBuffer = m.open()  # type: ignore[attr-defined]

    # --- reading ----------------------------------------------------------------------------

    def poll(self, timeout: float | None = None) -> Iterator[Any]:
        """Wait at most ``timeout`` seconds for events, and yield those that are there."""
        return self._buffer.poll(timeout)

    def __iter__(self) -> Iterator[Any]:
        while self._is_open():
            some = False
            for event in self._buffer.poll(self.timeout):
                some = True
                yield event
                if not self._is_open():
                    return
            if not some and self.timeout is not None:
                return

    @property
    def lost(self) -> int:
        """Events that were lost since the start, as far as somebody counts them."""
        count = 0
        if self._lost is not None and self._lost.fd >= 0:
            value = self._lost[0]
            count = value if isinstance(value, int) else sum(value)
        return count + int(getattr(self._buffer, "lost", 0))

    # --- showing ----------------------------------------------------------------------------

    def row(self, event: Any) -> dict[str, Any]:
        """A record's fields by name, each in its form: plain data, as JSON has it."""
        if not isinstance(event, StructValue):
            return {"data": bytes(event).hex() if isinstance(event, (bytes, memoryview)) else event}
        return _row(self._forms, event)

    def json_lines(self) -> Iterator[str]:
        """Each event as a line of JSON, without the line's end; after a loss
        ``{"event": "lost", "lost": N}``, N since the start.  Ends as the iteration does."""
        import json

        said = 0
        for event in self:
            lost = self.lost
            if lost > said:
                said = lost
                yield json.dumps({"event": "lost", "lost": lost})
            yield json.dumps(self.row(event), ensure_ascii=False)
        if self._is_open() and self.lost > said:
            yield json.dumps({"event": "lost", "lost": self.lost})

    # --- end --------------------------------------------------------------------------------

    def fileno(self) -> int:
        """A descriptor that becomes readable; of a perf buffer, the first CPU's."""
        return self._buffer.fileno()

    def filenos(self) -> list[int]:
        """The descriptors that become readable, for an event loop of one's own."""
        if hasattr(self._buffer, "filenos"):
            return list(self._buffer.filenos())
        return [self._buffer.fileno()]

    def _is_open(self) -> bool:
        return self._buffer._is_open()

    def close(self) -> None:
        """Stop reading; the map stays open."""
        self._buffer.close()

    def __repr__(self) -> str:
        return f"<Events of {self._buffer.map.name}: {', '.join(self.fields) or 'bytes'}>"


def _form(where: str, field: Field, given: Form) -> Form:
    """The form of a field: the caller's, else its own."""
    name = given or field.form
    if not callable(name) and name and not fits(name, field.layout):
        raise InputError(
            f"field '{field.name}' of map '{where}' cannot be shown as {name!r}",
            why=f"it is a {field.layout.name} of {count_of(field.layout.size, 'byte')}"
            if name in FORMS
            else f"the forms are {', '.join(FORMS)}",
        )
    return given or form_of(field)


def _row(forms: Sequence[tuple[Field, Form]], values: Sequence[Any]) -> dict[str, Any]:
    family = family_of([field for field, _ in forms], values)
    return {
        field.name: form(value)
        if callable(form)
        else _plain(shown(form, field.layout, value, family))
        for (field, form), value in zip(forms, values, strict=True)
    }


def _plain(value: Any) -> Any:
    """A value as JSON has it: structs by name, bytes as hex digits."""
    if isinstance(value, StructValue):
        return _row([(field, form_of(field)) for field in value._layout.fields], value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    # An enumerator is its name.
    return (
        str(value)
        if type(value) is not int and isinstance(value, int) and not isinstance(value, bool)
        else value
    )
