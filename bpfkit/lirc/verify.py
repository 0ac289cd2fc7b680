# SPDX-License-Identifier: Apache-2.0
"""What ``--check`` verifies beyond the demo: tolerance, spoilt frames, and that the program agrees
with the kernel's own encoder and decoder.

A frame that gives nothing is followed by a good one: the kernel decodes in order.
"""

from __future__ import annotations

from random import Random

from bpfkit.lirc.remote import NEC_REPEAT, PROTOCOLS, nec, nec_frame, rc5, stretched

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bpfkit.lirc.program import Lirc
    from bpfkit.show.rows import Verdict

    #: Protocol and scancode.
    Said = tuple[str, int]

__all__ = ["kernels_decoder", "kernels_encoder", "spoilt_frames", "tolerance"]

#: Scancodes of each protocol that are compared with the kernel's encoder and decoder.
_COUNT = 5
#: An address whose keys are in no keymap.
_NOBODY = 0x55
_MARGINS = (-200, -100, 100, 200)


def tolerance(app: Lirc) -> Iterator[Verdict]:
    """Pulses that the receiver stretches or shortens."""
    sent: list[Said] = []
    heard: list[Said] = []
    for at, by in enumerate(_MARGINS):
        sent += [("nec", _NOBODY << 8 | at), ("rc-5", 0x1F00 | at)]
        heard += _heard(app, [stretched(nec(_NOBODY, at), by)], 1)
        heard += _heard(app, [stretched(rc5(0x1F, at, 0), by)], 1)
    yield heard == sent, f"frames whose pulses are {', '.join(map(str, _MARGINS))} µs off: decoded"


def spoilt_frames(app: Lirc) -> Iterator[Verdict]:
    """Frames that are none, of which nothing may come."""
    good, bits = nec(_NOBODY, 7), nec_frame(0xAAAA5555)
    half = list(good)
    half[21] = 1125  # between the spaces of a 0 and a 1
    phase = rc5(9, 9, 0)
    spoilt = [
        ("with 31 bits", good[:40] + good[42:]),
        ("with 33 bits", good[:40] + good[38:]),
        ("broken off", good[:31]),
        ("with a space of two units", half),
        ("with an overflow in it", [*bits[:20], 60_000, *bits[21:]]),
        ("with 13 bits of RC-5", phase[:-2]),
        ("with a half of RC-5 missing", [*phase[:5], 2667, *phase[6:]]),
    ]
    for number, (what, frame) in enumerate(spoilt):
        behind = [] if "RC-5" in what else [NEC_REPEAT]
        mark = ("nec", _NOBODY << 8 | 0x80 | number)
        heard = _heard(app, [frame, *behind, nec(_NOBODY, 0x80 | number)], 1)
        text = " and a repeat" if behind else ""
        yield heard == [mark], f"a frame {what}{text}: no scancode"


def kernels_encoder(app: Lirc) -> Iterator[Verdict]:
    """Scancodes that the kernel's own encoder turns into pulses."""
    for protocol, scancodes in _scancodes(app).items():
        heard: list[Said] = []
        for scancode in scancodes:
            before = len(app.decoded())
            if not app.receiver.send_scancode(PROTOCOLS.index(protocol), scancode):
                break  # this kernel has no encoder for the protocol
            heard += _said(app, before, 1)
        else:
            good = heard == [(protocol, scancode) for scancode in scancodes]
            yield good, f"{protocol}: {_COUNT} scancodes sent by the kernel's encoder: decoded"


def kernels_decoder(app: Lirc) -> Iterator[Verdict]:
    """The same pulses, decoded by the kernel's own decoder and by the program."""
    with app.receiver.change(protocols=("nec", "rc-5")):
        if not {"nec", "rc-5"} <= set(app.receiver.protocols()):
            return  # this kernel has no such decoders
        random = Random(1)
        for protocol in ("nec", "rc-5"):
            pairs: list[Said] = []
            before = _frames(app, protocol)
            for _ in range(_COUNT):
                if protocol == "nec":
                    frame = nec_frame(random.getrandbits(32))
                else:
                    frame = rc5(random.getrandbits(5), random.getrandbits(7), 0)
                pairs += _heard(app, [frame], 2)
            good = len(pairs) == 2 * _COUNT and pairs[::2] == pairs[1::2]
            good = good and _frames(app, protocol) - before == _COUNT
            yield good, f"{protocol}: {_COUNT} random frames: the kernel's decoder says the same"


def _heard(app: Lirc, frames: Sequence[Sequence[int]], count: int) -> list[Said]:
    """Send frames, and wait for ``count`` scancodes; returns all that came."""
    before = len(app.decoded())
    for frame in frames:
        app.receiver.send(frame)
    return _said(app, before, count)


def _said(app: Lirc, before: int, count: int) -> list[Said]:
    """Wait for ``count`` scancodes more than ``before``; returns all of them."""
    app.wait_for(lambda: len(app.decoded()) >= before + count, f"{count} scancodes")
    return [(e.fields["protocol"], e.fields["scancode"]) for e in app.decoded()[before:]]


def _frames(app: Lirc, protocol: str) -> int:
    return next(int(row["frames"]) for row in app.rows() if row["protocol"] == protocol)


def _scancodes(app: Lirc) -> dict[str, list[int]]:
    """Random scancodes of each protocol, without keys."""
    random = Random(2)

    def byte() -> int:
        return random.getrandbits(8)

    def pair(high: int) -> int:
        """Two bytes that are not each other's inverse, which would make it another protocol."""
        return high << 8 | high ^ 0xFF ^ random.randrange(1, 256)

    makers: dict[str, Callable[[], int]] = {
        "nec": lambda: byte() << 8 | byte(),
        "nec-x": lambda: pair(byte()) << 8 | byte(),
        "nec-32": lambda: byte() << 24 | byte() << 16 | pair(byte()),
        "rc-5": lambda: random.getrandbits(5) << 8 | random.getrandbits(7),
    }
    found: dict[str, list[int]] = {}
    for protocol, make in makers.items():
        chosen: list[int] = []
        while len(chosen) < _COUNT:
            scancode = make()
            if scancode not in chosen and not app.receiver.key(scancode):
                chosen.append(scancode)
        found[protocol] = chosen
    return found
