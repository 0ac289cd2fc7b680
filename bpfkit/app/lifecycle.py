# SPDX-License-Identifier: Apache-2.0
"""The life of a program, from the command line to the exit status.

::

    options ─▶ enter() ─▶ setup() ─┬─▶ rounds:  rows() every interval, events() as they come,
                                   │            demo() again and again in a thread
                                   ├─▶ --check: demo(), verify(), rows(), in a private namespace
                                   └─▶ run():   a sequence of the program's own
            └─▶ --pcap: run_capture(), capture_rows()

Exit status: 0 done · 1 failed or not verified · 2 bad usage or input · 77 this kernel or machine
cannot.
"""

from __future__ import annotations

import os
import sys
from time import monotonic, perf_counter

from bpfkit.app.options import parser_of
from bpfkit.app.signals import (
    Interrupted,
    OutputLosses,
    Signals,
    Stopped,
    discard_output,
    open_standard_streams,
    say,
    tolerate_losses,
)
from bpfkit.core.errors import (
    BpfkitError,
    InputError,
    PrivilegeError,
    UnsupportedError,
    VerifierError,
    resource_error,
)
from bpfkit.core.log import set_verbose
from bpfkit.core.records import reap
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from bpfkit.app.base import App
    from bpfkit.app.sinks import Sink
    from bpfkit.show.rows import Row, Verdict

__all__ = ["conclude", "guarded", "main"]

_STARTED = perf_counter()

#: Longest sleep in seconds, after which the target is looked at.
_SLICE = 1.0
#: Different failures of side matters that are printed; each once.
_TOLD = 20


# ---------------------------------------------------------------- from the outside in


def main(cls: type[App], argv: Sequence[str] | None = None) -> int:
    """Run the program ``cls`` with the arguments ``argv``; returns the exit status."""

    def work(signals: Signals) -> int:
        options = parser_of(cls).parse_args(argv)
        signals.verbose = options.verbose
        set_verbose(options.verbose)
        reap()
        app = cls(options)
        try:
            if options.log:
                _follow_programs(app)
            return _run(app, signals)
        except VerifierError as error:
            if not error.refused:
                raise
            # Newer kernels have what bpfkit's own programs call.
            raise UnsupportedError(
                error.what, why=f"this kernel has no {error.refused} for it", log=error.log
            ) from None
        finally:
            tolerate_losses(None)
            signals.gentle = True  # a first signal does not interrupt the clean-up
            app.close()

    return guarded(cls.name, work)


def _follow_programs(app: App) -> None:
    """``--log``: what the BPF programs, and the kernel about them, write becomes notes."""
    from bpfkit.core.printable import printable
    from bpfkit.core.streams import STDERR, Follower, require_streams

    def show(program: str, stream: int, line: str) -> None:
        mark = " (standard error)" if stream == STDERR else ""
        app.note(f"[{program}]{mark} {printable(line)}")

    _require(("BPF",))
    require_streams()
    app.keep(Follower(show))  # before everything else, so it is closed last


def guarded(name: str, work: Callable[[Signals], int]) -> int:
    """Call ``work`` with signals handled; an exception becomes a message and an exit status."""
    open_standard_streams()
    signals = Signals()
    try:
        status = work(signals)
    except SystemExit as error:  # argparse: 0 after --help, 2 after a mistake
        status = error.code if isinstance(error.code, int) else 1
    except (Interrupted, Stopped):
        discard_output()
        status = 0
    except BaseException as error:
        status = _report_error(error, name, signals.verbose)
    finally:
        signals.restore()
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        discard_output()
    return status


def _report_error(error: BaseException, name: str, verbose: bool) -> int:
    """Say what went wrong, in one or two lines; returns the exit status."""
    if isinstance(error, OSError):
        error = resource_error(error) or error
    if isinstance(error, BpfkitError):
        say(f"{name}: {error}")
        if verbose and error.log:
            say(error.log.rstrip())
        return error.exit_status
    if isinstance(error, MemoryError):
        say(f"{name}: out of memory")
        return 1
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = f" ({frame.tb_frame.f_code.co_filename}:{frame.tb_lineno})" if frame else ""
    text = str(error) or "no details"
    say(f"{name}: internal error: {type(error).__name__}: {text}{place}")
    if verbose:
        from traceback import format_exception

        say("".join(format_exception(error)).rstrip())
    else:
        say("This is a bug in bpfkit; -v shows the traceback.")
    return 1


def _run(app: App, signals: Signals) -> int:
    """Everything between the options and the clean-up; returns the exit status."""
    app.check_options()
    path = app.capture_path()
    if path is not None:
        return _capture(app, signals, path)
    _require(app.capabilities())
    app.enter()
    app.setup()
    app.demo_runs = app.wants_demo()
    signals.gentle = True
    if app.options.verbose:
        passed = (perf_counter() - _STARTED) * 1e3
        say(f"{app.name}: attached to {app.describe_target()} in {passed:.1f} ms")
    if "NOTIFY_SOCKET" not in os.environ:
        return _attached(app, signals)
    from bpfkit.app.notify import notify

    notify(READY="1", STATUS=f"attached to {app.describe_target()}")
    try:
        return _attached(app, signals)
    finally:
        notify(STOPPING="1")


def _attached(app: App, signals: Signals) -> int:
    """The program's own work, or rounds and events, until the end; returns the exit status."""
    tells = app.demo_runs and not (app.options.check or app.options.json)
    if tells and app.expects:
        app.note(app.expects)
    status = app.run(signals)
    if status is not None:
        if tells and not (status or signals.asked):
            _conclude_demo(app, app.rows())
        return status
    side = _SideMatters(app)
    side.run(lambda: _open_channel(app))
    try:
        return _check(app, signals) if app.options.check else _observe(app, signals, side)
    finally:
        side.losses.finish()


class _SideMatters:
    """Output and events: what may fail, and for a program that protects does not end it."""

    def __init__(self, app: App) -> None:
        self.goes_on = app.goes_on()
        self.losses = OutputLosses(app.note)
        self._told: set[str] = set()
        self._note = app.note
        if self.goes_on:
            tolerate_losses(self.losses)

    def run(self, work: Callable[[], object]) -> None:
        """Call ``work``; an error is said once, and raised only where the program may end."""
        try:
            work()
        except Exception as error:
            if not self.goes_on:
                raise
            if isinstance(error, BpfkitError):
                text = str(error)
            else:
                text = f"cannot show the figures: {type(error).__name__}: {error}"
            if text not in self._told and len(self._told) < _TOLD:
                self._told.add(text)
                self._note(f"{text}; the program stays attached")


def _require(names: Iterable[str]) -> None:
    """Raise PrivilegeError if the process lacks a capability; root is assumed to have all."""
    if os.geteuid() == 0:
        return  # where root lacks some (containers), the kernel's refusal is more precise
    held = 0
    try:
        with open("/proc/self/status", "rb") as status:
            for line in status:
                if line.startswith(b"CapEff:"):
                    held = int(line.split()[1], 16)
    except OSError:
        return
    from bpfkit.core.kernel.capabilities import capability_bit

    if held & capability_bit("SYS_ADMIN"):
        held |= capability_bit("BPF") | capability_bit("PERFMON")
    wanted = dict.fromkeys(names)
    missing = [f"CAP_{name}" for name in wanted if not held & capability_bit(name)]
    if missing:
        raise PrivilegeError(f"needs root: run it with sudo (missing {', '.join(missing)})")


# ---------------------------------------------------------------- rounds


class _Demo:
    """The demo's traffic, made in a thread so that attaching and showing never wait for it."""

    def __init__(self, app: App, wake: Callable[[], None], interval: float) -> None:
        from threading import Event, Thread

        self.error: BaseException | None = None
        self._app = app
        self._wake = wake
        self._interval = interval
        self._end = Event()
        self._thread = Thread(target=self._run, name="demo", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._end.is_set():
                begun = monotonic()
                self._app.demo()
                self._app.forget_results()
                self._end.wait(max(0.0, begun + self._interval - monotonic()))
        except BaseException as error:
            self.error = error
            self._wake()

    def end(self) -> None:
        """Ask the thread to end and give it the time of one request."""
        self._end.set()
        self._thread.join(2.0)


class _Waiter:
    """Waits between rounds, and shows events as they come.

    :ivar round: the round under way, from 0.
    """

    def __init__(self, app: App, signals: Signals, sink: Sink, side: _SideMatters) -> None:
        from select import POLLIN, poll

        self.round = 0
        self._app = app
        self._signals = signals
        self._sink = sink
        self._side = side
        self._lost = 0
        self._poller = poll()
        self._poller.register(signals.reader, POLLIN)
        self._output = sys.stdout.fileno()
        self._poller.register(self._output, 0)  # poll(2) reports a reader that went away anyway
        for fd in app.error_filenos():
            self._poller.register(fd, 0)
        self._end_fds = set(app.end_filenos())
        for fd in self._end_fds:
            self._poller.register(fd, POLLIN)
        self._keyboard = sink.keyboard
        self._reads_keys = False
        if self._keyboard is not None:
            self._poller.register(self._keyboard.reader, POLLIN)
            self._follow_keyboard()
        self._event_fds = set(app.channel.source.filenos) if app.channel else set()
        for fd in self._event_fds:
            self._poller.register(fd, POLLIN)

    def until(self, deadline: float) -> bool:
        """Wait until ``deadline`` (monotonic); True when something asks for the end before."""
        from select import POLLERR, POLLHUP, POLLNVAL

        looked = monotonic()
        while True:
            now = monotonic()
            left = deadline - now
            if left <= 0 and not self._signals.asked:
                return False
            # Rounded up: waking a moment too early would only mean to wait once more.
            ready = self._poller.poll(int(max(0.0, min(left, looked + _SLICE - now)) * 1000) + 1)
            only_events = bool(ready)
            for fd, event in ready:
                if fd == self._output and event & (POLLERR | POLLNVAL):
                    if not self._side.goes_on:
                        raise Stopped
                    self._poller.unregister(self._output)
                    self._side.losses.say("standard output has no reader")
                elif fd == self._output and event & POLLHUP:
                    self._poller.unregister(self._output)
                if fd == self._signals.reader or fd in self._end_fds:
                    return True
                if self._keyboard is not None and self._is_keyboard(fd):
                    if event & (POLLERR | POLLHUP | POLLNVAL):
                        self._keyboard.leave()  # the terminal is gone
                    self._side.run(self._press_keys)
                    if self._signals.asked:
                        return True
                if fd not in self._event_fds:
                    only_events = False
                elif event & (POLLERR | POLLNVAL) or event == POLLHUP:
                    self._event_fds.discard(fd)  # the source ended
                    self._poller.unregister(fd)
            self._side.run(self.show_events)
            # Thousands of events a second are no reason to look at the target as often.
            if not only_events or monotonic() >= looked + _SLICE:
                looked = monotonic()
                self._app.check_target()

    def _is_keyboard(self, fd: int) -> bool:
        return self._keyboard is not None and fd in (self._keyboard.fd, self._keyboard.reader)

    def _press_keys(self) -> None:
        """Let the sink act on the keys; the one that quits is like a signal."""
        if self._keyboard is not None and self._sink.press(self._keyboard.read()):
            self._signals.asked = True
        self._follow_keyboard()

    def _follow_keyboard(self) -> None:
        """Poll the keyboard while it may be read: not in the background."""
        from select import POLLIN

        keyboard = self._keyboard
        if keyboard is None or keyboard.active == self._reads_keys:
            return
        self._reads_keys = keyboard.active
        if keyboard.active:
            self._poller.register(keyboard.fd, POLLIN)
        else:
            self._poller.unregister(keyboard.fd)

    def show_events(self) -> None:
        """Show the events that are there."""
        channel = self._app.channel
        if channel is not None:
            channel.read()
            self._show()

    def last_events(self) -> None:
        """Show the events that are left at the end."""
        if self._app.channel is not None:
            for batch in self._app.channel.drain():
                self._sink.events(self.round, batch)
            self.say_losses()
            _say_unread(self._app)

    def say_losses(self) -> None:
        """Say how many events were lost, if there are more than before."""
        channel = self._app.channel
        if channel is not None and channel.lost > self._lost:
            self._lost = channel.lost
            self._sink.lost(self.round, self._lost)

    def _show(self) -> None:
        channel = self._app.channel
        if channel is not None and channel.waiting:
            self._sink.events(self.round, channel.take())


def _say_unread(app: App) -> None:
    """Say that the end did not wait for all events, if so."""
    if app.channel is not None and app.channel.unread:
        app.note("events are left unread: reading and printing them takes too long")


def _open_channel(app: App) -> None:
    source = app.events()
    if source is not None:
        from bpfkit.app.events import Channel

        app.channel = Channel(source)


def _observe(app: App, signals: Signals, side: _SideMatters) -> int:
    """Rounds until the count is reached or a signal comes; the last figures are always shown."""
    from bpfkit.app.sinks import sink_for

    options = app.options
    count = options.count or (app.demo_rounds if app.demo_runs else 0)
    app.begin()
    sink = app.sink = sink_for(app)
    waiter = _Waiter(app, signals, sink, side)
    if sink.is_view:
        side.run(
            lambda: sink.round(0, app.rows())
        )  # something to look at before the first round is over
    latest: list[Row] = []

    def show(number: int) -> None:
        latest[:] = app.rows()
        sink.round(number, latest[:])

    in_turn = app.demo_runs and not app.demo_in_background
    demo = _Demo(app, signals.wake, options.interval) if app.demo_runs and not in_turn else None
    failure: BaseException | None = None
    began = monotonic()
    number = 0
    while True:
        ended = False
        try:
            ended = waiter.until(began + (number + 1) * options.interval)
        except BpfkitError as error:
            failure = error
        if demo and demo.error:
            failure = demo.error
        last = ended or failure is not None or number + 1 == count
        if last and demo and not ended:
            demo.end()
        if in_turn:
            app.demo()
            app.forget_results()
        if last:
            app.finish(signals)
            side.run(waiter.last_events)
        else:
            side.run(waiter.show_events)
            side.run(waiter.say_losses)
        side.run(lambda number=number: show(number))  # type: ignore[misc]
        number += 1
        waiter.round = number
        if last:
            side.run(sink.end)
            if not ended and failure is None:
                side.run(lambda: _conclude_demo(app, latest))
            break
        # After a stop (SIGSTOP, suspend) go on from now instead of catching up round by round.
        began = max(began, monotonic() - (number + 1) * options.interval)
    if failure is not None:
        raise failure
    return app.exit_status()


def _conclude_demo(app: App, rows: list[Row]) -> None:
    """Say what was seen in a demo that ran to its end, and why."""
    if app.demo_runs and not app.options.json:
        text = app.conclusion(rows)
        if text:
            app.note(text)


# ---------------------------------------------------------------- --check, --pcap


def _check(app: App, signals: Signals) -> int:
    """The demo without pauses, its figures, and what they were compared with."""
    from bpfkit.app.sinks import sink_for

    for _ in range(app.options.count or app.check_rounds):
        app.demo()
        if app.channel is not None:
            app.channel.read()
        if signals.asked:
            say(f"{app.name}: interrupted, nothing was verified")
            return 1
    verdicts = list(app.verify())
    rows = app.rows()
    sink = sink_for(app, live=False)
    if app.channel is not None:
        for batch in app.channel.drain():
            sink.events(0, batch)
        if app.channel.lost:
            sink.lost(0, app.channel.lost)
        _say_unread(app)
    sink.round(0, rows)
    return conclude(app, verdicts)


def conclude(app: App, verdicts: Iterable[Verdict]) -> int:
    """Show the verdicts of ``--check``; returns the exit status."""
    from bpfkit.app.sinks import sink_for
    from bpfkit.show.rows import report

    lines, good = report(app.name, verdicts)
    sink_for(app, live=False).report(lines)
    return 0 if good else 1


def _capture(app: App, signals: Signals, path: str) -> int:
    """``--pcap``: every packet through the program, then the figures once."""
    from bpfkit.app.sinks import sink_for

    _require(("BPF",))  # no socket is opened, no interface touched
    failure: InputError | None = None
    try:
        app.run_capture(path)
    except InputError as error:
        if not app.packets_run:
            raise
        # A capture that was cut off: the figures up to there are right.
        error.hint = f"the figures are those of the {count_of(app.packets_run, 'packet')} before"
        failure = error
    signals.gentle = True
    sink_for(app, live=False).round(0, app.capture_rows())
    if failure is not None:
        raise failure
    return 0
