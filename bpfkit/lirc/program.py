# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.lirc: decodes the pulses of infrared remote controls, NEC and RC-5.

The C side is bpf_c/misc/lirc.bpf.c; remote.py is what a remote sends, receiver.py the device::

    python3 -m bpfkit.lirc                       a demo: rc-loopback receives what the demo sends
    python3 -m bpfkit.lirc -i /dev/lirc0         a receiver of this machine, and your remote
    python3 -m bpfkit.lirc -i /dev/lirc0 --key 0x0402=KEY_VOLUMEUP

The kernel needs CONFIG_BPF_LIRC_MODE2, which most distributions leave out; `make vm-kernel` builds
one that has it.
"""

from __future__ import annotations

import time

from bpfkit.app.base import App
from bpfkit.app.lifecycle import main
from bpfkit.core.errors import BpfkitError, UnsupportedError, UsageError
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from bpfkit.app.events import EventSource
    from bpfkit.lirc.receiver import Input, Receiver, Scancode
    from bpfkit.show.rows import Event, Row, Verdict

#: Places in the map ``figures``: protocol -> frames, repeats, rejected, stray.
FIGURES = {"nec": (0, 1, 2, 3), "rc-5": (4, None, 5, None)}
#: µs of silence after which a frame is over: longer than the 5.6 ms within which a bit must come.
TIMEOUT = 20_000
#: Seconds between the beginnings of two NEC frames.
NEC_PERIOD = 0.108

#: The remote of the demo: (protocol, scancode, key).
REMOTE = (
    ("nec", 0x0402, 115),  # KEY_VOLUMEUP
    ("rc-5", 0x0511, 114),  # KEY_VOLUMEDOWN
    ("nec-x", 0x12340D, 113),  # KEY_MUTE
)
#: Seconds that --check waits for the kernel; an emulated one is slow.
PATIENCE = 30.0


def _key(text: str) -> tuple[int, int]:
    """``SCANCODE=KEY`` (argparse type)."""
    from argparse import ArgumentTypeError

    from bpfkit.lirc.keys import key_number

    scancode, _, name = text.partition("=")
    try:
        number = int(scancode, 0)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 32:
        raise ArgumentTypeError(f"{text!r} is no SCANCODE=KEY, such as 0x0402=KEY_VOLUMEUP")
    key = key_number(name)
    if key is None:
        raise ArgumentTypeError(f"there is no key {name!r}; linux/input-event-codes.h has them")
    return number, key


class Lirc(App):
    """Decodes the pulses of infrared remote controls (NEC, RC-5) into keys."""

    name = "lirc"
    source = "misc/lirc.bpf.c"
    needs = ("BPF", "NET_ADMIN", "SYS_ADMIN")
    counters = ("frames", "repeats", "rejected", "stray")
    demo_rounds = 3
    check_rounds = 1
    epilog = (
        "rejected: frames that broke off or were no bits; stray: repeats without a frame before. A "
        "scancode without a key is in no keymap: --key enters it until the end."
    )

    receiver: Receiver

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        from bpfkit.app.place import add_once

        text = "a receiver (default: a demo)"
        add_once(parser, "-i", "--device", metavar="/dev/lircN", help=text)
        parser.add_argument(
            "--key",
            metavar="SCANCODE=KEY",
            type=_key,
            action="append",
            default=[],
            help="enter a key into the receiver's keymap (0x0402=KEY_VOLUMEUP); may be repeated",
        )

    def check_options(self) -> None:
        options = self.options
        if options.check and (options.device or options.key):
            raise UsageError(
                "--check takes neither --device nor --key", why="it has its own remote"
            )

    def wants_demo(self) -> bool:
        return super().wants_demo() and not self.options.device

    # -- attached

    def setup(self) -> None:
        from bpfkit.lirc.receiver import Receiver, find_loopback

        options = self.options
        try:
            # An emulated kernel is slow; it must not miss a repeat for that.
            loaded = self.object = self.load(**({"repeat_ms": 3_600_000} if options.check else {}))
        except UnsupportedError as error:
            raise _explained(error) from None
        receiver = self.receiver = self.keep(Receiver(options.device or find_loopback()))
        if self.wants_demo():
            # The demo's keys are nobody else's: no volume changes, no desktop wakes up.
            receiver.grab()
            keys = {scancode: key for _, scancode, key in REMOTE} | dict(options.key)
            self.keep(receiver.change(keys=keys, protocols=(), timeout=TIMEOUT))
        else:
            self.keep(receiver.change(keys=dict(options.key), timeout=TIMEOUT))
            others = receiver.protocols()
            if others:
                self.note(
                    f"the kernel's decoders for {', '.join(others)} are enabled, too, and may "
                    "report the same keys"
                )
        self.keep(loaded.programs["decode"].attach_lirc(receiver.path))
        self._inputs: list[Input] = self.for_check([])
        self._sent: list[tuple[str, int, int]] = self.for_check([])
        self._toggle = 0

    def describe_target(self) -> str:
        return f"{self.receiver.path} ({self.receiver.driver})"

    # -- out

    def demo(self) -> None:
        """Press the keys of a remote: one is held, one is pressed twice; then a spoilt frame."""
        from bpfkit.lirc.remote import NEC_REPEAT, nec, nec_extended, rc5

        if self.is_first_demo():
            self.note(
                "the demo presses NEC's VOLUMEUP for 0.4 s, RC-5's VOLUMEDOWN twice, extended "
                "NEC's MUTE; then it sends a frame without its 20th bit, and a repeat"
            )
        protocol, scancode, _ = REMOTE[0]
        self._press(protocol, scancode, [nec(scancode >> 8, scancode & 0xFF), *[NEC_REPEAT] * 3])
        protocol, scancode, _ = REMOTE[1]
        for _ in range(2):
            self._toggle ^= 1
            self._press(protocol, scancode, [rc5(scancode >> 8, scancode & 0x7F, self._toggle)])
        protocol, scancode, _ = REMOTE[2]
        self._press(protocol, scancode, [nec_extended(scancode >> 8, scancode & 0xFF)])
        spoilt = nec(4, 2)
        self.receiver.send(spoilt[:40] + spoilt[42:])
        self.receiver.send(NEC_REPEAT)

    def _press(self, protocol: str, scancode: int, frames: Sequence[Sequence[int]]) -> None:
        """Send the frames of one press, and wait until the key is released."""
        self._sent.append((protocol, scancode, len(frames)))
        for frame in frames:
            began = time.monotonic()
            self.receiver.send(frame)
            if frame is not frames[-1]:
                time.sleep(max(0.0, began + NEC_PERIOD - time.monotonic()))
        if not self.options.check:
            time.sleep(0.3)  # the kernel waits for a repeat
            return
        presses = len(self._sent)
        self.wait_for(
            lambda: sum(i.value == 0 and i.type == 1 for i in self._inputs) >= presses,
            f"a press and a release of scancode {scancode:#x}",
        )

    def wait_for(self, reached: Callable[[], bool], what: str) -> None:
        """Read events until ``reached()``.

        :raises BpfkitError: it takes longer than :data:`PATIENCE`.
        """
        assert self.channel is not None
        if not self.channel.wait(reached, PATIENCE):
            raise BpfkitError(f"{what}: the kernel does not report it within {PATIENCE:g} s")

    # -- in

    def events(self) -> EventSource:
        from bpfkit.app.events import EventSource

        return EventSource(self._read, self.receiver.filenos)

    def _read(self) -> Iterable[Event]:
        """Presses and repeats from /dev/lircN, which knows the protocol; releases from evdev."""
        from bpfkit.lirc.receiver import EV_KEY

        found: list[tuple[int, Event]] = []
        for one in self.receiver.scancodes():
            found.append((one.time_ns, self._scancode_event(one)))
        for one_input in self.receiver.inputs():
            self._inputs.append(one_input)
            if one_input.type == EV_KEY and one_input.value == 0:
                found.append((one_input.time_ns, self._release_event(one_input)))
        self.forget_results()
        found.sort(key=lambda item: item[0])
        return [event for _, event in found]

    @staticmethod
    def _scancode_event(one: Scancode) -> Event:
        from bpfkit.app.events import unix_seconds
        from bpfkit.lirc.keys import key_name
        from bpfkit.lirc.remote import protocol_name
        from bpfkit.show.rows import Event

        fields: Row = {
            "protocol": protocol_name(one.protocol),
            "scancode": one.scancode,
            "key": key_name(one.key),
            "toggle": one.toggle,
        }
        return Event("repeat" if one.repeat else "press", unix_seconds(one.time_ns), fields)

    @staticmethod
    def _release_event(one: Input) -> Event:
        from bpfkit.app.events import unix_seconds
        from bpfkit.lirc.keys import key_name
        from bpfkit.show.rows import Event

        return Event("release", unix_seconds(one.time_ns), {"key": key_name(one.code)})

    def event_line(self, event: Event) -> str:
        """``12:30:05.123 press    KEY_VOLUMEUP  nec 0x0402``."""
        from bpfkit.lirc.remote import scancode_text
        from bpfkit.show.text import time_of_day

        fields = event.fields
        line = f"{time_of_day(event.time)} {event.kind:8} {fields['key'] or '(no key)':16}"
        if event.kind != "release":
            protocol = fields["protocol"]
            line += f" {protocol} {scancode_text(protocol, fields['scancode'])}"
            line += " toggle" if fields["toggle"] else ""
        return line.rstrip()

    def rows(self) -> list[Row]:
        figures = self.object["figures"]

        def figure(at: int | None) -> int:
            return 0 if at is None else int(figures[at])

        titles = ("frames", "repeats", "rejected", "stray")
        return [
            {"protocol": name, **dict(zip(titles, map(figure, places), strict=True))}
            for name, places in FIGURES.items()
        ]

    def conclusion(self, rows: list[Row]) -> str:
        sums = {name: sum(row[name] for row in rows) for name in self.counters}
        return (
            f"seen: {count_of(sums['frames'], 'frame')} and {count_of(sums['repeats'], 'repeat')} "
            f"decoded into keys; {sums['rejected']} rejected, {sums['stray']} stray"
        )

    # -- --check

    def verify(self) -> Iterable[Verdict]:
        from bpfkit.lirc import verify

        yield from self._verify_demo()
        for check in (
            verify.tolerance,
            verify.spoilt_frames,
            verify.kernels_encoder,
            verify.kernels_decoder,
        ):
            yield from check(self)

    def decoded(self) -> list[Event]:
        """The presses and repeats that are waiting to be shown."""
        assert self.channel is not None
        return [event for event in self.channel.waiting if event.kind != "release"]

    def _verify_demo(self) -> Iterator[Verdict]:
        """What /dev/lircN and the input layer reported of the demo's presses."""
        from bpfkit.lirc.keys import key_name
        from bpfkit.lirc.receiver import EV_KEY
        from bpfkit.lirc.remote import scancode_text

        assert self.channel is not None
        keys = {scancode: key for _, scancode, key in REMOTE}
        said = [
            (e.kind, e.fields["protocol"], e.fields["scancode"], e.fields["toggle"])
            for e in self.decoded()
        ]
        wanted = []
        toggle = False
        for protocol, scancode, frames in self._sent:
            toggle = protocol == "rc-5" and not toggle
            wanted.append(("press", protocol, scancode, toggle))
            wanted += [("repeat", protocol, scancode, toggle)] * (frames - 1)
            yield (
                said[len(wanted) - frames : len(wanted)] == wanted[-frames:],
                f"{protocol} {scancode_text(protocol, scancode)}: /dev/lircN reports a press of "
                f"{key_name(keys[scancode])}, {frames - 1} repeats",
            )
        good = said == wanted
        yield good, f"{len(said)} scancodes in all; the spoilt frame and the repeat behind it: none"
        moves = [(i.code, i.value) for i in self._inputs if i.type == EV_KEY and i.value != 2]
        sent = [keys[scancode] for _, scancode, _ in self._sent]
        pressed = [(key, value) for key in sent for value in (1, 0)]
        names = ", ".join(str(key_name(key)) for key in sent)
        yield moves == pressed, f"the input device reports presses and releases of {names}"
        by_name = {row["protocol"]: row for row in self.rows()}
        nec, rc5 = by_name["nec"], by_name["rc-5"]
        rounds = len(self._sent) // 4
        good = (nec["frames"], nec["repeats"], rc5["frames"]) == (
            2 * rounds,
            3 * rounds,
            2 * rounds,
        )
        yield (
            good,
            (
                f"the program counts {nec['frames']} frames and {nec['repeats']} repeats of NEC, "
                f"{rc5['frames']} frames of RC-5"
            ),
        )
        good = (nec["rejected"], nec["stray"]) == (rounds, rounds)
        yield good, f"rejected frames: {nec['rejected']}; repeats without a frame: {nec['stray']}"


def _explained(error: UnsupportedError) -> UnsupportedError:
    """The error of a kernel without the program type: which of its options are missing."""
    from bpfkit.core.features.system import kernel_config

    config = kernel_config()
    if "does not have the type" not in error.why or config.get("BPF_LIRC_MODE2") == "y":
        return error
    if not config:
        why = "it needs CONFIG_BPF_LIRC_MODE2; this kernel's configuration cannot be read"
    else:
        why = "CONFIG_BPF_LIRC_MODE2 is not set in this kernel"
        core = config.get("RC_CORE", "n")
        if core == "m":
            why += ", and cannot be: it needs CONFIG_RC_CORE=y, and RC_CORE is a module here"
        elif core == "n":
            why += ", nor is CONFIG_RC_CORE (infrared receivers)"
    return UnsupportedError(
        error.what,
        why=why,
        hint="`make vm-kernel` builds a kernel that has it: tools/vm.md",
    )


if __name__ == "__main__":
    raise SystemExit(main(Lirc))
