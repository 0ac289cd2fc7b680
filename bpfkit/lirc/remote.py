# SPDX-License-Identifier: Apache-2.0
"""What a remote control sends: pulses and spaces of NEC and RC-5, in µs, a pulse first.

The last pulse ends the list: the silence behind it is not sent.
Sources: the data sheets of NEC µPD6121 and Philips SAA3010.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "NEC_REPEAT",
    "PROTOCOLS",
    "nec",
    "nec_extended",
    "nec_frame",
    "protocol_name",
    "rc5",
    "scancode_text",
    "stretched",
]

_UNIT = 562.5
_HALF = 889

#: What is sent every 108 ms while a key is held.
NEC_REPEAT = [round(16 * _UNIT), round(4 * _UNIT), round(_UNIT)]

#: Names of ``enum rc_proto``, as in /sys/class/rc/rcN/protocols.
PROTOCOLS = (
    "unknown other rc-5 rc-5x-20 rc-5-sz jvc sony-12 sony-15 sony-20 nec nec-x nec-32 sanyo "
    "mce_kbd mce-mouse rc-6-0 rc-6-6a-20 rc-6-6a-24 rc-6-6a-32 rc-6-mce sharp xmp cec imon "
    "rc-mm-12 rc-mm-24 rc-mm-32 xbox-dvd"
).split()


def protocol_name(number: int) -> str:
    """The name of a protocol; the number as text where it has none here."""
    return PROTOCOLS[number] if number < len(PROTOCOLS) else str(number)


def scancode_text(protocol: str, scancode: int) -> str:
    """A scancode as keymaps write it: ``0x0402``."""
    digits = {"nec-x": 6, "nec-32": 8}.get(protocol, 4)
    return f"0x{scancode:0{digits}x}"


def nec_frame(bits: int) -> list[int]:
    """A frame of 32 bits, the lowest first."""
    units = [16, 8]
    for at in range(32):
        units += [1, 3 if bits >> at & 1 else 1]
    return [round(unit * _UNIT) for unit in [*units, 1]]


def nec(address: int, command: int) -> list[int]:
    """A frame of NEC: an address and a command of 8 bits, each followed by its inverse."""
    return nec_frame(address | (address ^ 0xFF) << 8 | command << 16 | (command ^ 0xFF) << 24)


def nec_extended(address: int, command: int) -> list[int]:
    """A frame with an address of 16 bits, whose high byte is sent first."""
    return nec_frame(address >> 8 | (address & 0xFF) << 8 | command << 16 | (command ^ 0xFF) << 24)


def rc5(address: int, command: int, toggle: int) -> list[int]:
    """A frame of RC-5.

    :param address: 5 bits.
    :param command: 7 bits; the seventh is sent inverted, as the second start bit.
    """
    bits = 1 << 13 | (not command >> 6 & 1) << 12 | toggle << 11 | address << 6 | command & 0x3F
    halves = []
    for at in reversed(range(14)):
        halves += [0, 1] if bits >> at & 1 else [1, 0]
    lengths: list[int] = []
    level = 0
    for half in halves[1:]:  # the first is silence anyway
        if half == level:
            lengths[-1] += _HALF
        else:
            lengths.append(_HALF)
            level = half
    return lengths if len(lengths) % 2 else lengths[:-1]


def stretched(lengths: Sequence[int], by: int) -> list[int]:
    """As a receiver hears it that stretches pulses by ``by`` µs, and shortens the spaces."""
    return [length + (-by if at % 2 else by) for at, length in enumerate(lengths)]
