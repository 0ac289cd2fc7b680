# SPDX-License-Identifier: Apache-2.0
"""What every program module inherits: command line, life cycle, signals, rendering, exit status.

A program is a class deriving from :class:`App` (or from :class:`bpfkit.app.tap.SocketApp`, for
those that watch the packets of an interface) and two lines at the end of its module::

    class Sockex1(SocketApp):
        \"\"\"Bytes per IP protocol of the packets that leave an interface.\"\"\"

        name = "sockex1"
        source = "socket/sockex1.bpf.c"

        def rows(self): ...

    if __name__ == "__main__":
        raise SystemExit(main(Sockex1))

The life of a program::

    parse ─▶ setup() ─▶ [demo() again and again, in a thread] ─▶ rows() ─▶ shown, every interval
                    └─▶ --check: demo(), rows(), verify(), in a private namespace
                    └─▶ --pcap:  judge(), rows()

Exit status: 0 done · 1 failed or not verified · 2 bad usage or input · 77 this kernel or machine
cannot.
"""

from __future__ import annotations

import os
import sys
from time import monotonic, perf_counter
from time import time as unix_time

from bpfkit.core.errors import BpfkitError, InputError, PrivilegeError
from bpfkit.core.log import set_verbose
from bpfkit.core.records import reap

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from argparse import ArgumentParser, HelpFormatter, Namespace
    from collections.abc import Callable, Iterable, Sequence
    from types import FrameType
    from typing import Any, NoReturn, Protocol, TypeAlias, TypeVar

    from bpfkit.core.object import Object
    from bpfkit.net.links.netns import NetNS
    from bpfkit.show.live import Frame, LiveView

    class Closable(Protocol):
        """Whatever is closed at the end."""

        def close(self) -> object: ...

    C = TypeVar("C", bound=Closable)

    #: A line of output: field name to value (int, str, None, list, dict).
    Row: TypeAlias = dict[str, Any]
    #: (is it true, what was looked at, with the numbers).
    Verdict: TypeAlias = tuple[bool, str]
else:
    import _signal  # what it is made of; signal itself brings enum, milliseconds

__all__ = [
    "App",
    "Interrupted",
    "Signals",
    "Stopped",
    "guarded",
    "main",
    "output",
    "parser_of",
    "port",
    "positive",
]

_STARTED = perf_counter()

#: Longest sleep, seconds: an interface that vanished is noticed after this time at the latest.
_SLICE = 1.0

#: Shorter names where a column has little room.
_SHORT = {"packets": "pkt"}


class Interrupted(BaseException):
    """A signal asked for the end before there was anything to show, or for the second time."""


class Stopped(BaseException):
    """Nobody reads standard output any more."""


# ---------------------------------------------------------------- command line


def positive(text: str) -> int:
    """A whole number from 1 on, of at most 31 bits (argparse type)."""
    from argparse import ArgumentTypeError

    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number < 1 << 31:
        raise ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return number


def port(text: str) -> int:
    """A port number, 0 to 65535 (argparse type)."""
    from argparse import ArgumentTypeError

    if text.isascii() and text.isdigit() and int(text) < 65536:
        return int(text)
    raise ArgumentTypeError(f"{text!r} is not a port (0 to 65535)")


def _seconds(text: str) -> float:
    from argparse import ArgumentTypeError

    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1e6:  # refuses nan too
        raise ArgumentTypeError(f"{text!r} is not a time in seconds greater than 0")
    return number


def parser_of(cls: type[App]) -> ArgumentParser:
    """What reads the options of a program."""
    from argparse import ArgumentParser, HelpFormatter

    class Parser(ArgumentParser):
        """Says what is wrong in two lines instead of the whole list of options."""

        def error(self, message: str) -> NoReturn:
            sys.stderr.write(f"usage: {self.prog} [options], see --help\n{cls.name}: {message}\n")
            raise SystemExit(2)

    def formatter(prog: str) -> HelpFormatter:
        # With a width given, argparse does not import shutil (milliseconds) per option.
        return HelpFormatter(prog, max_help_position=28, width=96)

    parser = Parser(
        prog=f"python -m bpfkit.{cls.name}",
        description=cls.summary(),
        epilog=cls.epilog,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-t", "--interval", metavar="S", type=_seconds, default=1.0, help="seconds between rounds")
    add("-c", "--count", metavar="N", type=positive, help="end after N rounds")
    add("--no-demo", action="store_true", help="only observe, make no traffic")
    add("--json", action="store_true", help="JSON lines, and nothing else on standard output")
    add("--check", action="store_true", help="run the demo, verify the figures, say what was")
    add("--no-cache", action="store_true", help="compile even if the result is in the cache")
    add("-v", "--verbose", action="store_true", help="say more on standard error")
    cls.add_options(parser)
    return parser


# ---------------------------------------------------------------- what a program derives from


class App:
    """Base of every program; what a program says about itself comes first."""

    #: ``python -m bpfkit.NAME``.
    name = ""
    #: The C file, relative to ``bpf_c``; "" where no C is involved.
    source = ""
    #: Fields of a row that only ever grow: the live view adds their rate per second.
    counters: tuple[str, ...] = ()
    #: Text under ``--help``.
    epilog: str | None = None
    #: Are the rows a table of figures that grow?  Else a terminal gets plain lines too.
    has_live_view = True
    #: Rounds that the demo lasts where ``-c`` does not say.
    demo_rounds = 5
    #: Capabilities without which there is no use in starting.
    needs: tuple[str, ...] = ("BPF",)

    def __init__(self, options: Namespace) -> None:
        self.options = options
        #: True while the demo makes traffic of its own.
        self.demonstrates = False
        #: Packets of a capture that went through the program.
        self.judged = 0
        self._keep: list[Closable] = []

    # -- to be said by the program

    @classmethod
    def summary(cls) -> str:
        """First line of the docstring."""
        return (cls.__doc__ or "").strip().partition("\n")[0]

    @classmethod
    def types(cls) -> list[str]:
        """The kernel's names of the program types involved: from the SEC()s of the source."""
        from bpfkit.core.compile.source import Source
        from bpfkit.core.kernel.constants import prog_type_name
        from bpfkit.core.kernel.sections import resolve

        sections = Source.find(cls.source).sections
        return list(dict.fromkeys(prog_type_name(resolve(s[1]).prog_type) for s in sections))

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        """Options of this program beside those that all have."""

    def check_options(self) -> None:
        """Raise :class:`~bpfkit.core.errors.UsageError` for options that do not go together."""

    def enter(self) -> None:
        """Go where the program works (a network namespace); ``--check`` goes to a private one."""

    def setup(self) -> None:
        """Load and attach.  Whatever must be closed at the end goes through :meth:`keep`."""
        raise NotImplementedError

    def wants_demo(self) -> bool:
        """Should traffic of its own be made?"""
        return not self.options.no_demo

    def demo(self) -> None:
        """Make one round's worth of traffic; runs in a thread while the figures are shown."""

    def rows(self) -> list[Row]:
        """The figures as they are now: totals since the start."""
        raise NotImplementedError

    def judged_rows(self) -> list[Row]:
        """What is shown at the end of a capture."""
        return self.rows()

    def lines(self, rows: list[Row]) -> Iterable[str]:
        """The rows as plain text, for pipes and files."""
        from bpfkit.show.text import cell, table

        if not rows:
            return []
        titles = list(rows[0])
        right = [isinstance(rows[0][title], (int, float)) for title in titles]
        body = [
            # Plain digits: what reads a pipe takes a blank for the end of a field.
            [str(row[t]) if type(row[t]) is int else cell(row[t]) for t in titles]
            for row in rows
        ]
        return table(titles, body, right=right)

    def verify(self) -> Iterable[Verdict]:
        """After the demo: compare what was counted with what is known from elsewhere."""
        return []

    def judge(self, path: str) -> None:
        """``--pcap``: send every packet of the capture through the program."""
        raise NotImplementedError

    def watch(self) -> list[int]:
        """File descriptors on which an error is a reason to call :meth:`look`."""
        return []

    def look(self) -> None:
        """Is what is observed still there?  Called at least once a second; may raise."""

    def conduct(self, signals: Signals) -> int:
        """From attached to the end; returns the exit status.  For programs with a play of their
        own: ``signals.asked`` says that a signal asked for the end."""
        return _check(self, signals) if self.options.check else _observe(self, signals)

    def where(self) -> str:
        """What the program is attached to, for people."""
        return ""

    def words(self, row: Row) -> dict[str, str]:
        """What the live view shows of a row beside its counters: column title -> text."""
        from bpfkit.show.text import cell

        return {field: cell(row[field]) for field in row if field not in self.counters}

    def frame(self, rows: list[Row], rates: dict[int, list[float]], round_: int) -> Frame:
        """The live view of a round; ``rates[i]`` are row i's counters per second."""
        from bpfkit.show.live import Frame
        from bpfkit.show.text import cell, human

        body = []
        words: list[dict[str, str]] = []
        for i, row in enumerate(rows):
            if "summary" in row:
                continue
            words.append(self.words(row))
            figures = []
            for field, rate in zip(self.counters, rates[i], strict=True):
                figures += [cell(row[field]), human(rate, "B" if field == "bytes" else "")]
            body.append(figures)
        # A column in which nobody has anything to say takes no room.
        titles = [title for title in (words[0] if words else ()) if any(w[title] for w in words)]
        body = [[*map(w.__getitem__, titles), *row] for w, row in zip(words, body, strict=True)]
        right = [False] * len(titles) + [True] * (2 * len(self.counters))
        for field in self.counters:
            titles += [field, f"{_SHORT.get(field, field)}/s"]
        return Frame(self.title(round_), titles, body, right=right, notes=self.notes(rows))

    def title(self, round_: int) -> str:
        """First line of the live view."""
        text = " · ".join(filter(None, (self.name, self.where())))
        if self.demonstrates:
            text += f" · demo, round {round_ + 1} of {self.options.count or self.demo_rounds}"
        return text

    def notes(self, rows: list[Row]) -> list[str]:
        """Lines under the live view's table."""
        return []

    # -- offered to the program

    def keep(self, closable: C) -> C:
        """``closable.close()`` is called at the end, the latest first; returns its argument."""
        self._keep.append(closable)
        return closable

    def load(self, **consts: int) -> Object:
        """The program's object, loaded into the kernel and closed at the end."""
        from bpfkit import load

        options = self.load_options()
        return self.keep(
            load(self.source, consts=consts, cache=not self.options.no_cache, **options)
        )

    def load_options(self) -> dict[str, Any]:
        """More arguments for :func:`bpfkit.load` (map sizes, map types)."""
        return {}

    def enter_namespace(self, namespace: NetNS) -> None:
        """Move to ``namespace`` until the end; closes it then.  Threads started later follow."""
        self.keep(namespace)
        self.keep(_Inside(namespace))

    def note(self, text: str) -> None:
        """One line on standard error."""
        _say(f"{self.name}: {text}")

    def close(self) -> None:
        """Undo everything, the latest first."""
        while self._keep:
            self._keep.pop().close()


class _Inside:
    """The main thread inside a network namespace; closing leaves it."""

    def __init__(self, namespace: NetNS) -> None:
        self._entered = namespace.entered()
        self._entered.__enter__()

    def close(self) -> None:
        self._entered.__exit__(None, None, None)


# ---------------------------------------------------------------- signals, standard streams


class Signals:
    """SIGINT, SIGTERM and SIGHUP ask for the end; a pipe wakes whoever waits.

    Until :attr:`gentle` is set (nothing to show yet), and when a signal comes twice (output that
    nobody reads), the work under way is broken off by :class:`Interrupted`.
    """

    def __init__(self) -> None:
        self.gentle = False
        self.asked = False
        self.verbose = False
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._before: dict[int, Any] = {}
        for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP):
            try:
                before = _signal.getsignal(number)
                if before == _signal.SIG_IGN and number == _signal.SIGHUP:
                    continue  # nohup
                _signal.signal(number, self._handle)
                self._before[number] = before
            except ValueError:
                pass  # not the main thread (a notebook's worker): its owner handles signals

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked or not self.gentle:
            raise Interrupted
        self.asked = True
        self.wake()

    def wake(self) -> None:
        """End the wait that is under way."""
        try:
            os.write(self.writer, b"!")
        except BlockingIOError:
            pass

    def restore(self) -> None:
        """As it was before."""
        for number, before in self._before.items():
            _signal.signal(number, before)
        os.close(self.reader)
        os.close(self.writer)


def _say(text: str) -> None:
    """To standard error; a closed one is no reason to fail."""
    try:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        pass


def output(text: str) -> None:
    """To standard output, at once."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise Stopped from None
    except OSError as error:
        _discard_output()
        raise BpfkitError("cannot write to standard output", why=str(error.strerror)) from None


def _discard_output() -> None:
    """What is still buffered goes nowhere: the interpreter's last flush must not complain."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError, AttributeError):
        pass


def _standard_streams() -> None:
    """Descriptors 0 to 2 must be taken, or the next map or socket would become "stdout"."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _require(names: Sequence[str]) -> None:
    """Raise PrivilegeError if the process lacks a capability; root is taken at its word."""
    if os.geteuid() == 0:
        return  # where root is not almighty (containers) the kernel's refusal tells more
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


# ---------------------------------------------------------------- life cycle


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
                self._end.wait(max(0.0, begun + self._interval - monotonic()))
        except BaseException as error:
            self.error = error
            self._wake()

    def end(self) -> None:
        """Ask the thread to end and give it the time of one request."""
        self._end.set()
        self._thread.join(2.0)


class _Show:
    """One way to show a round: JSON lines, plain lines, or the live view of a terminal."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.live: LiveView | None = None
        self._last: dict[tuple[str, ...], list[int]] = {}
        self._when = monotonic()
        if app.has_live_view and not app.options.json and sys.stdout.isatty():
            from bpfkit.show.live import LiveView

            self.live = LiveView()

    def round(self, number: int, rows: list[Row]) -> None:
        """Show round ``number`` (from 0)."""
        if self.live:
            self.live.draw(self.app.frame(rows, self._rates(rows), number))
        elif self.app.options.json:
            from bpfkit.show.jsonl import json_lines

            stamp = {"ts": round(unix_time(), 6), "round": number}
            output(json_lines([{**stamp, **row} for row in rows]))
        else:
            output("".join([f"{line}\n" for line in self.app.lines(rows)]))

    def _rates(self, rows: list[Row]) -> dict[int, list[float]]:
        now = monotonic()
        passed = max(now - self._when, 1e-6)
        counters = self.app.counters
        seen: dict[tuple[str, ...], list[int]] = {}
        rates: dict[int, list[float]] = {}
        for i, row in enumerate(rows):
            if "summary" in row:
                continue
            key = tuple([str(row[field]) for field in row if field not in counters])
            totals = [row[field] for field in counters]
            before = self._last.get(key, [0] * len(counters))
            seen[key] = totals
            rates[i] = [max(0, a - b) / passed for a, b in zip(totals, before, strict=True)]
        self._last, self._when = seen, now
        return rates


def _wait(app: App, signals: Signals, until: float) -> bool:
    """Sleep until ``until`` (monotonic); True when something asks for the end before."""
    from select import POLLERR, POLLHUP, POLLIN, POLLNVAL, poll

    poller = poll()
    poller.register(signals.reader, POLLIN)
    output = sys.stdout.fileno()
    poller.register(output, 0)  # a reader that went away is reported unasked
    watched = app.watch()
    for fd in watched:
        poller.register(fd, 0)
    while True:
        left = until - monotonic()
        if left <= 0 and not signals.asked:
            return False
        # Rounded up: waking a moment too early would only mean to wait once more.
        events = poller.poll(int(max(0.0, min(left, _SLICE)) * 1000) + 1)
        for fd, event in events:
            if fd == output and event & (POLLERR | POLLNVAL):
                raise Stopped
            if fd == output and event & POLLHUP:
                poller.unregister(output)
            if fd == signals.reader:
                return True
        app.look()


def _observe(app: App, signals: Signals) -> int:
    """Rounds until the count is reached or a signal comes; the last figures are always shown."""
    options = app.options
    count = options.count or (app.demo_rounds if app.demonstrates else 0)
    show = _Show(app)
    if show.live:
        app.note = show.live.note  # type: ignore[method-assign]
        show.round(0, app.rows())  # something to look at before the first round is over
    demo = _Demo(app, signals.wake, options.interval) if app.demonstrates else None
    failure: BaseException | None = None
    began = monotonic()
    number = 0
    while True:
        ended = False
        try:
            ended = _wait(app, signals, began + (number + 1) * options.interval)
        except BpfkitError as error:
            failure = error
        if demo and demo.error:
            failure = demo.error
        last = ended or failure is not None or number + 1 == count
        if last and demo and not ended:
            demo.end()
        show.round(number, app.rows())
        number += 1
        if last:
            break
        # After a stop (SIGSTOP, suspend) go on from now instead of catching up round by round.
        began = max(began, monotonic() - (number + 1) * options.interval)
    if failure is not None:
        raise failure
    return 0


def _check(app: App, signals: Signals) -> int:
    """The demo without pauses, its figures, and what they were compared with."""
    for _ in range(app.options.count or 2):
        app.demo()
        if signals.asked:
            _say(f"{app.name}: interrupted, nothing was verified")
            return 1
    verdicts = list(app.verify())
    rows = app.rows()
    good = bool(verdicts) and all(fine for fine, _ in verdicts)
    report = [f"{'ok' if fine else 'FAILED':8}{text}" for fine, text in verdicts]
    count = sum(fine for fine, _ in verdicts)
    report.append(f"{app.name}: {count} of {len(verdicts)} verified" + ("" if good else ": FAILED"))
    show = _Show(app)
    if show.live:
        show.live = None
    show.round(0, rows)
    if app.options.json:
        _say("\n".join(report))
    else:
        output("\n".join(report) + "\n")
    return 0 if good else 1


def _live(app: App, signals: Signals) -> int:
    options = app.options
    app.check_options()
    if getattr(options, "pcap", None) is not None:
        _require(("BPF",))  # no socket is opened, no interface touched
        try:
            app.judge(options.pcap)
        except InputError as error:
            if not app.judged:
                raise
            # A capture that was cut off: what came before is right, and said to be all.
            error.hint = f"the figures are those of the {app.judged} packets before"
            failure: InputError | None = error
        else:
            failure = None
        signals.gentle = True
        show = _Show(app)
        show.live = None
        show.round(0, app.judged_rows())
        if failure is not None:
            raise failure
        return 0
    namespaces = options.check or getattr(options, "netns", None)
    _require((*app.needs, "SYS_ADMIN") if namespaces else app.needs)
    app.enter()
    app.setup()
    app.demonstrates = app.wants_demo()
    signals.gentle = True
    if options.verbose:
        passed = (perf_counter() - _STARTED) * 1e3
        _say(f"{app.name}: attached to {app.where()} in {passed:.1f} ms")
    return app.conduct(signals)


def _report(error: BaseException, name: str, verbose: bool) -> int:
    """Tell what went wrong, in one or two lines; returns the exit status."""
    if isinstance(error, BpfkitError):
        _say(f"{name}: {error}")
        if verbose and error.log:
            _say(error.log.rstrip())
        return error.exit_status
    if isinstance(error, MemoryError):
        _say(f"{name}: out of memory")
        return 1
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    place = f" ({where.tb_frame.f_code.co_filename}:{where.tb_lineno})" if where else ""
    text = str(error) or "no details"
    _say(f"{name}: internal error: {type(error).__name__}: {text}{place}")
    if verbose:
        from traceback import format_exception

        _say("".join(format_exception(error)).rstrip())
    else:
        _say("This is a bug in bpfkit; -v shows the traceback.")
    return 1


def guarded(name: str, work: Callable[[Signals], int]) -> int:
    """Do ``work`` with signals handled; whatever it raises becomes a message and an exit status."""
    _standard_streams()
    signals = Signals()
    try:
        status = work(signals)
    except SystemExit as error:  # argparse: 0 after --help, 2 after a mistake
        status = error.code if isinstance(error.code, int) else 1
    except (Interrupted, Stopped):
        _discard_output()
        status = 0
    except BaseException as error:
        status = _report(error, name, signals.verbose)
    finally:
        signals.restore()
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        _discard_output()
    return status


def main(cls: type[App], argv: Sequence[str] | None = None) -> int:
    """Run the program ``cls`` with the arguments ``argv``; returns the exit status."""

    def work(signals: Signals) -> int:
        options = parser_of(cls).parse_args(argv)
        signals.verbose = options.verbose
        set_verbose(options.verbose)
        reap()
        app = cls(options)
        try:
            return _live(app, signals)
        finally:
            signals.gentle = True  # a first signal does not break closing off
            app.close()

    return guarded(cls.name, work)
