# SPDX-License-Identifier: Apache-2.0
"""Events as people and JSON see them: the records of a ring buffer or perf buffer, field by field.

::

    for event in obj.events("connects", timeout=5):
        print(event.pid, event.comm)

A record is a value of the struct that ``EVENT_TYPE(map, struct)`` names in C.  Its fields are
numbers, text and bytes; :meth:`Events.row` shows them as what they are:

==========  ==================================================================================
``ip``      an address: 4 bytes IPv4, 16 bytes IPv6, in network byte order
``mac``     6 bytes: ``02:00:00:00:00:01``
``proto``   an IP protocol by its keyword: ``tcp``
``time``    nanoseconds of ``bpf_ktime_get_ns()`` as UNIX seconds
``hex``     ``0x1f``, bytes as hex digits
==========  ==================================================================================

The form of a field is, first, what the caller says (``forms={"daddr": "ip"}``, or a function of the
value); then the C source's ``SHOWN_AS(form)`` on the member; then what its type says: ``__be32``,
``struct in_addr`` and ``struct in6_addr`` are addresses, an array of 6 bytes is a MAC address.
"""

from __future__ import annotations

from bpfkit.core.closing import Held
from bpfkit.core.errors import InputError
from bpfkit.core.types.layout import StructValue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from bpfkit.core.maps.base import Map
    from bpfkit.core.maps.buffers import PerfBuffer, RingBuffer
    from bpfkit.core.types.btf import Btf
    from bpfkit.core.types.layout import Field, Layout

    Form = Callable[[Any, bytes], Any]

__all__ = ["FORMS", "Events"]

_ADDRESSES = ("__be32", "struct in_addr", "in_addr", "struct in6_addr", "in6_addr")


def _ip(value: Any, raw: bytes) -> str:
    from _socket import AF_INET, AF_INET6, inet_ntop

    return inet_ntop(AF_INET if len(raw) == 4 else AF_INET6, raw)


def _mac(value: Any, raw: bytes) -> str:
    return raw.hex(":")


def _proto(value: Any, raw: bytes) -> Any:
    from bpfkit.core.entries import find_entry

    name = find_entry("show", "proto")
    return value if name is None else name(value)


def _time(value: Any, raw: bytes) -> float:
    from time import monotonic_ns, time_ns

    return round((int(value) + time_ns() - monotonic_ns()) / 1e9, 6)


def _hex(value: Any, raw: bytes) -> str:
    return f"{value:#x}" if isinstance(value, int) else raw.hex()


#: Form -> function of the field's value and its bytes in memory.
FORMS: dict[str, Form] = {"hex": _hex, "ip": _ip, "mac": _mac, "proto": _proto, "time": _time}
#: The sizes in bytes that a form takes; the others take any.
_SIZES = {"ip": (4, 16), "mac": (6,)}


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

    __slots__ = ("_buffer", "_forms", "_layout", "_lost", "fields", "timeout")

    def __init__(
        self,
        m: Map,
        btf: Btf | None,
        *,
        timeout: float | None = None,
        lost: Map | None = None,
        forms: Mapping[str, str | Callable[[Any], Any]] | None = None,
    ) -> None:
        if m.type not in ("ringbuf", "perf_event_array"):
            raise InputError(
                f"map '{m.name}' sends no events",
                why=f"it is a {m.type}",
                hint="ring buffers (ringbuf) and perf buffers (perf_event_array) do",
            )
        self._layout: Layout | None = m.event_layout()
        self.timeout = timeout
        self._lost = lost
        chosen = dict(forms or {})
        members = self._layout.fields if self._layout is not None else ()
        self.fields = tuple(field.name for field in members)
        tags = {} if btf is None else btf.record_forms(m.name)
        self._forms = [_form_of(m.name, f, chosen.pop(f.name, None), tags) for f in members]
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
        raw = bytes(event)
        members = self._layout.fields if self._layout is not None else ()
        return {
            field.name: _plain(value)
            if form is None
            else form(value, raw[field.offset : field.end])
            for field, form, value in zip(members, self._forms, event, strict=True)
        }

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


def _form_of(
    where: str, field: Field, given: str | Callable[[Any], Any] | None, tags: Mapping[str, str]
) -> Form | None:
    """How a field is shown; None: as its value is."""
    if callable(given):
        show = given
        return lambda value, raw: show(value)
    name = given or tags.get(field.name) or _by_type(field)
    if not name:
        return None
    if name not in FORMS:
        raise InputError(
            f"field '{field.name}' of map '{where}' cannot be shown as {name!r}",
            why=f"the forms are {', '.join(FORMS)}",
        )
    if field.layout.size not in _SIZES.get(name, (field.layout.size,)):
        raise InputError(
            f"field '{field.name}' of map '{where}' cannot be shown as {name!r}",
            why=f"it has {field.layout.size} bytes",
        )
    return FORMS[name]


def _by_type(field: Field) -> str:
    if field.bit_size:
        return ""
    if field.layout.name in _ADDRESSES:
        return "ip"
    if field.layout.size == 6 and field.layout.name in ("u8[6]", "__u8[6]", "unsigned char[6]"):
        return "mac"
    return ""


def _plain(value: Any) -> Any:
    """A value as JSON has it: structs by name, bytes as hex digits."""
    if isinstance(value, StructValue):
        return {name: _plain(one) for name, one in zip(value._fields, value, strict=True)}
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
