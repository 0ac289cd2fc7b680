# SPDX-License-Identifier: Apache-2.0
"""How fields of events, keys and values are shown to people and in JSON.

==========  ==================================================================================
``ip``      an address: 4 bytes IPv4, 16 bytes IPv6, in network byte order
``mac``     6 bytes: ``02:00:00:00:00:01``
``proto``   an IP protocol by its keyword: ``tcp``
``time``    nanoseconds of ``bpf_ktime_get_ns()`` as UNIX seconds
``hex``     ``0x1f``, bytes as hex digits
``number``  the number that it is, whatever its type and name are
==========  ==================================================================================

A field's form is what the C source says by ``SHOWN_AS(form)``; else what its type says: ``__be32``,
``struct in_addr`` and ``struct in6_addr`` are addresses, an array of 6 bytes is a MAC address; else
a guess by its name: 4 or 16 bytes called ``src_addr`` or ``peer``, a number called ``proto``.
"""

from __future__ import annotations

from bpfkit.core.types.layout import BytesLayout, IntLayout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from bpfkit.core.types.layout import Field, Layout

__all__ = ["FORMS", "family_of", "fits", "form_of", "shown"]

_ADDRESS_TYPES = ("__be32", "struct in_addr", "in_addr", "struct in6_addr", "in6_addr")
#: Words by which bytes that hold an address are named.
_ADDRESS_WORDS = ("src", "dst", "source", "dest", "ip", "ip4", "ip6", "host", "peer", "local")


def _ip(layout: Layout, value: Any, family: int) -> str:
    from _socket import AF_INET, AF_INET6, inet_ntop

    raw = layout.encode(value)
    if len(raw) == 4 or family == 4:
        return inet_ntop(AF_INET, raw[:4])
    return inet_ntop(AF_INET6, raw)


def _mac(layout: Layout, value: Any, family: int) -> str:
    return layout.encode(value).hex(":")


def _proto(layout: Layout, value: Any, family: int) -> Any:
    from bpfkit.core.entries import find_entry

    name = find_entry("show", "proto")
    return value if name is None or not 0 <= value < 256 else name(value)


def _time(layout: Layout, value: Any, family: int) -> float:
    from time import monotonic_ns, time_ns

    return round((int(value) + time_ns() - monotonic_ns()) / 1e9, 6)


def _hex(layout: Layout, value: Any, family: int) -> str:
    return f"{value:#x}" if isinstance(value, int) else layout.encode(value).hex()


def _number(layout: Layout, value: Any, family: int) -> Any:
    return value


#: Form -> function of a field's layout and value, and the family of its struct's addresses.
FORMS: dict[str, Callable[[Layout, Any, int], Any]] = {
    "hex": _hex,
    "ip": _ip,
    "mac": _mac,
    "number": _number,
    "proto": _proto,
    "time": _time,
}
#: The sizes in bytes that a form takes; the others take any.
_SIZES = {"ip": (4, 16), "mac": (6,)}


def fits(form: str, layout: Layout) -> bool:
    """Whether values of a layout can be shown in a form."""
    if form in ("number", "proto", "time"):
        return isinstance(layout, IntLayout)
    return form in FORMS and layout.size in _SIZES.get(form, (layout.size,))


def form_of(field: Field) -> str:
    """The form of a field; "" where it is shown as its value is."""
    layout = field.layout
    if field.form and fits(field.form, layout):
        return field.form
    if field.bit_size:
        return ""
    if layout.name in _ADDRESS_TYPES and fits("ip", layout):
        return "ip"
    words = field.name.lower().split("_")
    if isinstance(layout, BytesLayout):
        if layout.size == 6:
            return "mac"
        named = any(word in _ADDRESS_WORDS or word.endswith("addr") for word in words)
        return "ip" if named and fits("ip", layout) else ""
    if field.name in ("proto", "protocol") and isinstance(layout, IntLayout):
        return "proto"
    return ""


def family_of(fields: Iterable[Field], values: Iterable[Any]) -> int:
    """4 or 6 where a struct's ``family`` or ``version`` says what its 16-byte addresses are."""
    for field, value in zip(fields, values, strict=True):
        if field.name in ("family", "version") and type(value) is int:
            return {2: 4, 10: 6}.get(value, value)
    return 0


def shown(form: str, layout: Layout, value: Any, family: int = 0) -> Any:
    """A value in a form; "": as it is.

    :param family: 4 if a value of 16 bytes is an IPv4 address.
    """
    return FORMS[form](layout, value, family) if form else value
