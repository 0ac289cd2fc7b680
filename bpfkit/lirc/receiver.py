# SPDX-License-Identifier: Apache-2.0
"""An infrared receiver: /dev/lircN, its input device, its settings, and rc-loopback.

::

    /sys/class/lirc/lirc0/device -> rc0      driver, enabled decoders
                                    rc0/inputN/eventM   the keys
    /dev/lirc0          pulses out, scancodes in, timeout    (ioctls of linux/lirc.h)
    /dev/input/eventM   keys in, keymap, grab                (ioctls of linux/input.h)

rc-loopback is a driver that receives what is written to it.  Settings outlive the process: they are
restored at the end, by an ownership record after ``kill -9``, too.
"""

from __future__ import annotations

import errno
import os
from fcntl import ioctl
from struct import Struct

from bpfkit.core.attach.lirc import open_receiver
from bpfkit.core.closing import Closing
from bpfkit.core.errors import BpfkitError, InputError, UnsupportedError, errno_text
from bpfkit.core.features import system

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any, NamedTuple

    class Scancode(NamedTuple):
        """What was decoded.  ``time_ns`` is CLOCK_MONOTONIC, ``key`` 0 without a key."""

        time_ns: int
        protocol: int
        scancode: int
        key: int
        toggle: bool
        repeat: bool

    class Input(NamedTuple):
        """An event of the input layer.  ``time_ns`` is CLOCK_MONOTONIC."""

        time_ns: int
        type: int
        code: int
        value: int

else:
    from collections import namedtuple

    Scancode = namedtuple("Scancode", "time_ns protocol scancode key toggle repeat")
    Input = namedtuple("Input", "time_ns type code value")

__all__ = ["EV_KEY", "Input", "Receiver", "Scancode", "find_loopback", "undo_settings"]

EV_KEY = 1
_SCANCODE = Struct("<QHHIQ")  # struct lirc_scancode
_INPUT = Struct("<qqHHi")  # struct input_event of 64-bit kernels
_KEYMAP = Struct("<BBHI32s")  # struct input_keymap_entry

# Requests of linux/lirc.h and linux/input.h.
_SET_SEND_MODE, _SET_REC_MODE = 0x40046911, 0x40046912
_SET_REC_TIMEOUT, _GET_REC_TIMEOUT = 0x40046918, 0x80046924
_GET_KEY, _SET_KEY = 0x80284504, 0x40284504
_GRAB, _SET_CLOCK = 0x40044590, 0x400445A0
_MODE_PULSE, _MODE_SCANCODE = 2, 8
_TOGGLE, _REPEAT = 1, 2
_CLOCK_MONOTONIC = 1


def find_loopback() -> str:
    """The path of the receiver of rc-loopback, whose module is loaded if need be.

    :raises UnsupportedError: this kernel has none.
    """
    path = _loopback()
    if path is None:
        import subprocess

        try:
            done = subprocess.run(
                ["modprobe", "rc-loopback"], capture_output=True, text=True, check=False
            )
            said = done.stderr.strip()
        except OSError as error:
            said = f"modprobe: {errno_text(error.errno or 0)}"
        path = _loopback()
    if path is None:
        option = system.kernel_config().get("RC_LOOPBACK", "n")
        why = "CONFIG_RC_LOOPBACK is not set in this kernel" if option == "n" else said
        raise UnsupportedError(
            "no rc-loopback, the receiver of the demo", why=why, hint="-i /dev/lircN: a real one"
        )
    return path


def _loopback() -> str | None:
    try:
        names = sorted(os.listdir("/sys/class/lirc"))
    except OSError:
        return None
    for name in names:
        if _uevent(f"/sys/class/lirc/{name}/device").get("DRV_NAME") == "rc-loopback":
            return f"/dev/{name}"
    return None


def _uevent(folder: str) -> dict[str, str]:
    text = system.read(f"{folder}/uevent") or ""
    return dict(line.partition("=")[::2] for line in text.splitlines())


class Receiver(Closing):
    """A receiver whose scancodes and keys are read.

    :param path: ``/dev/lircN``.
    :ivar driver: the name of its driver.
    :ivar filenos: descriptors that are readable while there are scancodes or keys.
    :raises InputError: it is no receiver of pulses.
    :raises UnsupportedError: it has no input device.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fds: list[int] = []
        try:
            self._open(path)
        except BaseException:
            self.close()
            raise

    def _open(self, path: str) -> None:
        self._lirc = open_receiver(path)
        self._fds.append(self._lirc)
        self._sysfs = os.path.realpath(
            f"/sys/class/lirc/{os.path.basename(os.path.realpath(path))}/device"
        )
        self.driver = _uevent(self._sysfs).get("DRV_NAME", "unknown driver")
        try:
            ioctl(self._lirc, _SET_REC_MODE, _MODE_SCANCODE.to_bytes(4, "little"))
        except OSError as error:
            raise InputError(f"{path} does not receive", why=errno_text(error.errno or 0)) from None
        event = self._event_device()
        try:
            self._input = os.open(event, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise UnsupportedError(
                f"cannot open {event}, the keys of {path}", why=errno_text(error.errno or 0)
            ) from None
        self._fds.append(self._input)
        ioctl(self._input, _SET_CLOCK, _CLOCK_MONOTONIC.to_bytes(4, "little"))
        self.filenos = [self._lirc, self._input]

    def _event_device(self) -> str:
        """The path of the input device; evdev, which makes it, is loaded if need be."""
        from glob import glob

        pattern = f"{self._sysfs}/input*/event*"
        found = glob(pattern)
        if not found:
            import subprocess

            try:
                subprocess.run(["modprobe", "evdev"], capture_output=True, check=False)
            except OSError:
                pass
            found = glob(pattern)
        if not found:
            raise UnsupportedError(
                f"{self.path} has no input device",
                why="CONFIG_INPUT_EVDEV: the module evdev is not loaded",
                hint="modprobe evdev",
            )
        return f"/dev/input/{os.path.basename(found[0])}"

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())

    # -- in

    def scancodes(self) -> Iterator[Scancode]:
        """What was decoded since the last call; the kernel keeps 32 at most."""
        for data in _records(self._lirc, _SCANCODE, 64):
            time_ns, flags, protocol, key, scancode = data
            toggle, repeat = bool(flags & _TOGGLE), bool(flags & _REPEAT)
            yield Scancode(time_ns, protocol, scancode, key, toggle, repeat)

    def inputs(self) -> Iterator[Input]:
        """The input layer's events since the last call."""
        for seconds, micros, kind, code, value in _records(self._input, _INPUT, 64):
            yield Input(seconds * 10**9 + micros * 1000, kind, code, value)

    def grab(self) -> None:
        """Keep the keys from everybody else (consoles, desktops) while this is open.

        :raises BpfkitError: somebody else has done so.
        """
        try:
            ioctl(self._input, _GRAB, 1)
        except OSError as error:
            raise BpfkitError(
                f"cannot have the keys of {self.path} alone", why=errno_text(error.errno or 0)
            ) from None

    # -- out

    def send(self, lengths: Sequence[int]) -> None:
        """Send pulses and spaces in µs; returns when they are over.

        :raises BpfkitError: it does not send.
        """
        self._write(_MODE_PULSE, b"".join(length.to_bytes(4, "little") for length in lengths))

    def send_scancode(self, protocol: int, scancode: int) -> bool:
        """Send what the kernel's own encoder makes of a scancode (4.16); False: it has none."""
        data = _SCANCODE.pack(0, 0, protocol, 0, scancode)
        try:
            self._write(_MODE_SCANCODE, data)
        except BpfkitError as error:
            if error.errno == errno.EINVAL:
                return False
            raise
        return True

    def _write(self, mode: int, data: bytes) -> None:
        try:
            ioctl(self._lirc, _SET_SEND_MODE, mode.to_bytes(4, "little"))
            os.write(self._lirc, data)
        except OSError as error:
            failed = BpfkitError(f"{self.path} cannot send", why=errno_text(error.errno or 0))
            failed.errno = error.errno or 0
            raise failed from None

    # -- settings

    def key(self, scancode: int) -> int:
        """The key of a scancode in the receiver's keymap; 0: none."""
        return _get_key(self._input, scancode)

    def protocols(self) -> list[str]:
        """The kernel's decoders that are enabled (``nec``, ``rc-5`` …)."""
        return _enabled(self._sysfs)

    def change(
        self,
        *,
        keys: Mapping[int, int] | None = None,
        protocols: Sequence[str] | None = None,
        timeout: int | None = None,
    ) -> Closing:
        """Change settings until the result is closed.

        :param keys: scancode -> key, for the keymap.
        :param protocols: the kernel's decoders to enable; others are disabled.
        :param timeout: µs of silence after which a frame is over.
        """
        return _Settings(self, keys or {}, protocols, timeout)


class _Settings(Closing):
    def __init__(
        self,
        receiver: Receiver,
        keys: Mapping[int, int],
        protocols: Sequence[str] | None,
        timeout: int | None,
    ) -> None:
        from bpfkit.core.records import Record

        fd, path = receiver._lirc, receiver.path
        data: dict[str, Any] = {"device": path}
        if keys:
            data["keys"] = [[scancode, receiver.key(scancode)] for scancode in keys]
        if protocols is not None:
            data["protocols"] = receiver.protocols()
        if timeout is not None:
            try:
                before = ioctl(fd, _GET_REC_TIMEOUT, bytes(4))
                data["timeout"] = int.from_bytes(before, "little")
            except OSError:
                timeout = None  # a receiver with a fixed one
        self._data = data
        self._record: Record | None = Record("lirc_settings", data)
        try:
            # The timeout last: the kernel sets one that suits its decoders when they change.
            for scancode, key in keys.items():
                _set_key(receiver._input, scancode, key)
            if protocols is not None:
                _enable(receiver._sysfs, protocols)
            if timeout is not None:
                ioctl(fd, _SET_REC_TIMEOUT, timeout.to_bytes(4, "little"))
        except OSError as error:
            self.close()
            raise BpfkitError(
                f"cannot change the settings of {path}", why=errno_text(error.errno or 0)
            ) from None

    def close(self) -> None:
        record, self._record = self._record, None
        if record is not None:
            undo_settings(self._data)
            record.done()


def undo_settings(data: Mapping[str, Any]) -> None:
    """Restore a receiver's settings (also an ownership record's undo).

    :param data: ``device``, and what was before: ``keys``, ``protocols``, ``timeout``.
    """
    try:
        receiver = Receiver(str(data["device"]))
    except BpfkitError:
        return  # the receiver is gone
    with receiver:
        try:
            for scancode, key in data.get("keys", ()):
                _set_key(receiver._input, scancode, key)
            if "protocols" in data:
                _enable(receiver._sysfs, data["protocols"])
            if "timeout" in data:
                ioctl(receiver._lirc, _SET_REC_TIMEOUT, data["timeout"].to_bytes(4, "little"))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise


def _records(fd: int, layout: Struct, count: int) -> Iterator[tuple[int, ...]]:
    """The records that are there to read."""
    while True:
        try:
            data = os.read(fd, layout.size * count)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise BpfkitError("the receiver is gone", why=errno_text(errno.ENODEV)) from None
            raise
        if not data:
            return
        yield from layout.iter_unpack(data)


def _get_key(fd: int, scancode: int) -> int:
    entry = _KEYMAP.pack(0, 8, 0, 0, scancode.to_bytes(8, "little"))
    return int(_KEYMAP.unpack(ioctl(fd, _GET_KEY, entry))[3])


def _set_key(fd: int, scancode: int, key: int) -> None:
    """Enter a scancode into the keymap; key 0 removes it."""
    if key or _get_key(fd, scancode):
        ioctl(fd, _SET_KEY, _KEYMAP.pack(0, 8, 0, key, scancode.to_bytes(8, "little")))


def _enabled(sysfs: str) -> list[str]:
    words = (system.read(f"{sysfs}/protocols") or "").split()
    return [word[1:-1] for word in words if word[:1] == "[" and word != "[lirc]"]


def _enable(sysfs: str, protocols: Sequence[str]) -> None:
    with open(f"{sysfs}/protocols", "w", encoding="ascii") as file:
        file.write(" ".join(["none", *(f"+{name}" for name in protocols)]))
