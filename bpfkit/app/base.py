# SPDX-License-Identifier: Apache-2.0
"""The base class of every program: what a program says about itself.

A program is a class deriving from :class:`App` (or from the class of its kind of target, such as
:class:`bpfkit.app.tap.TapApp`) and two lines at the end of its module::

    class Sockex1(TapApp):
        \"\"\"Bytes per IP protocol of the packets that leave an interface.\"\"\"

        name = "sockex1"
        source = "socket/sockex1.bpf.c"

        def rows(self): ...

    if __name__ == "__main__":
        raise SystemExit(main(Sockex1))

``main`` is :func:`bpfkit.app.lifecycle.main`, which shows the life of a program.
"""

from __future__ import annotations

from bpfkit.app.place import Place
from bpfkit.app.signals import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, Protocol, TypeVar

    from bpfkit.app.command import Command
    from bpfkit.app.events import Channel, EventSource
    from bpfkit.app.signals import Signals
    from bpfkit.app.sinks import Sink
    from bpfkit.core.object import Object
    from bpfkit.core.program import Program
    from bpfkit.net.links.lab import Lab
    from bpfkit.net.links.netns import NetNS
    from bpfkit.show.rows import Event, Row, Verdict

    class Closable(Protocol):
        """An object that is closed at the end."""

        def close(self) -> object: ...

    C = TypeVar("C", bound=Closable)
    T = TypeVar("T")

__all__ = ["App"]

#: Shorter names where a column has little room.
_SHORT = {"packets": "pkt"}
#: The rank of the rates, behind all totals.
_RATE = 100


class App:
    """Base of every program.

    A program sets attributes (:attr:`name`, :attr:`source`, :attr:`counters`, …) and overrides:

    - ``add_options``, ``check_options``: its command line;
    - ``enter``, ``setup``: find the target, then load and attach;
    - ``demo``: one round's worth of traffic;
    - ``rows``: the table of figures; ``lines``, ``text_cells``, ``notes``: its form for people;
    - ``events``: a stream of events; ``event_line``, ``event_row``: their form;
    - ``verify``: what ``--check`` compares;
    - ``run_capture``, ``capture_rows``: ``--pcap``, where :attr:`takes_capture` is true;
    - ``error_filenos``: descriptors that have an error when the target is gone;
    - ``run``: the whole sequence, for a program that has no rounds.

    It calls ``keep``, ``load_program`` or ``load``, ``check_regularly``, ``enter_namespace`` and
    ``note``; ``place`` and ``lab`` are where it works.
    """

    #: ``python3 -m bpfkit.NAME``.
    name = ""
    #: The C file, relative to ``bpf_c``; "" where no C is involved.
    source = ""
    #: Fields of a row that only ever grow: the live view adds their rate per second.
    counters: tuple[str, ...] = ()
    #: Columns of text that a narrow window may leave out, the most important first; the others
    #: say what a row is about and are always shown whole.
    details: tuple[str, ...] = ()
    #: Titles of figures and details that are the last to be left out, the most important first;
    #: without it: the first counter, the details, the other counters, the rates.
    importance: tuple[str, ...] = ()
    #: Counters that are bytes and whose names do not end in ``bytes``.
    counted_in_bytes: tuple[str, ...] = ()
    #: What the demo sends and what is to be seen, a line that is printed before it; "": the demo
    #: prints one itself (:meth:`is_first_demo`).
    expects = ""
    #: Text under ``--help``.
    epilog: str | None = None
    #: Does a terminal get the live view?  Else it gets plain lines, like a pipe.
    has_live_view = True
    #: Rounds that the demo lasts where ``-c`` does not say.
    demo_rounds = 5
    #: Calls of :meth:`demo` that ``--check`` makes where ``-c`` does not say.
    check_rounds = 2
    #: True: the demo runs in a thread, again and again, while rounds are shown.  False: once for
    #: each round, before the round's rows are read.
    demo_in_background = True
    #: Capabilities without which the program cannot work.
    needs: tuple[str, ...] = ("BPF",)
    #: Is there an option ``--pcap``?
    takes_capture = False
    #: Is there an option ``--netns``?
    takes_netns = False
    #: Does its end let traffic pass that it kept out, or stop traffic that it forwards?  Then no
    #: failure of output, events or recording ends it; see :meth:`goes_on`.
    protects = False
    #: The function to attach; "" is the first of the source.
    entry = ""

    object: Object
    #: The command of ``-- COMMAND``, which :meth:`enter` makes and :meth:`begin` starts.
    command: Command | None = None

    def __init__(self, options: Namespace) -> None:
        self.options = options
        #: Does the demo make traffic?  Set by the life cycle after :meth:`setup`.
        self.demo_runs = False
        #: Packets of a capture that went through the program.
        self.packets_run = 0
        #: Where rows, events and notes go, as soon as the first round is shown.
        self.sink: Sink | None = None
        #: The events of this run, where :meth:`events` returns a source.
        self.channel: Channel | None = None
        #: The namespace and the lab that the program works in.
        self.place = Place(options.netns if self.takes_netns else None)
        self._keep: list[Closable] = []
        self._checks: list[Callable[[], None]] = []
        self._results: list[list[Any]] = []
        self._demo_told = False

    # -- the program says

    @classmethod
    def summary(cls) -> str:
        """First line of the docstring."""
        return (cls.__doc__ or "").strip().partition("\n")[0]

    @classmethod
    def types(cls) -> list[str]:
        """The kernel's names of the program types involved, from the source's SEC()s."""
        from bpfkit.core.compile.source import Source
        from bpfkit.core.kernel.constants import prog_type_name
        from bpfkit.core.kernel.sections import resolve

        sections = Source.find(cls.source).sections
        return list(dict.fromkeys(prog_type_name(resolve(s[1]).prog_type) for s in sections))

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        """Add the options of this program; those that all programs have are there already."""

    def check_options(self) -> None:
        """Raise :class:`~bpfkit.core.errors.UsageError` for options that exclude each other."""

    def capture_path(self) -> str | None:
        """The file that ``--pcap`` names."""
        return self.options.pcap if self.takes_capture else None

    def capabilities(self) -> tuple[str, ...]:
        """The capabilities needed with the options given: :attr:`needs`, more for namespaces."""
        options = self.options
        if options.check or (self.takes_netns and options.netns):
            return (*self.needs, "SYS_ADMIN")
        return self.needs

    def enter(self) -> None:
        """Enter the program's network namespace; a private one for ``--check``."""

    def setup(self) -> None:
        """Load and attach.  What must be closed at the end goes through :meth:`keep`."""
        raise NotImplementedError

    def wants_demo(self) -> bool:
        """Should the demo run?"""
        return not self.options.no_demo

    def demo(self) -> None:
        """Make one round's worth of traffic; see :attr:`demo_in_background`."""

    def rows(self) -> list[Row]:
        """The figures now: totals since the start.  A program of events only has none."""
        return []

    def conclusion(self, rows: list[Row]) -> str:
        """What was seen in the demo, and why: a line that is printed behind it.

        :param rows: the last figures.
        """
        return ""

    def cycle_by(self) -> str:
        """Group the rows by something else (the key ``b`` of the live view): the next of what
        ``--by`` takes.  Returns its name; "": the program has no groups."""
        return ""

    def rows_accumulate(self) -> bool:
        """Are rows only ever appended?  Plain text then shows each once, JSON all every round."""
        return False

    def events(self) -> EventSource | None:
        """The stream of events, if there is one; called once, after :meth:`setup`."""
        return None

    def capture_rows(self) -> list[Row]:
        """The rows that are shown at the end of a capture."""
        return self.rows()

    def lines(self, rows: list[Row]) -> Iterable[str]:
        """The rows as plain text, for pipes and files."""
        from bpfkit.show.text import cell, table

        if not rows:
            return []
        titles = list(rows[0])
        right = [isinstance(rows[0][title], (int, float)) for title in titles]
        body = [
            # Plain digits: a program that reads a pipe takes a blank for the end of a field.
            [str(row[t]) if type(row[t]) is int else cell(row[t]) for t in titles]
            for row in rows
        ]
        return table(titles, body, right=right)

    def event_line(self, event: Event) -> str:
        """An event as plain text: time of day, kind, fields."""
        from bpfkit.show.text import cell, time_of_day

        when = time_of_day(event.time)
        fields = [
            f"{name} {value if type(value) is int else cell(value)}"
            for name, value in event.fields.items()
        ]
        return " ".join([when, event.kind, *fields])

    def event_row(self, event: Event, round_: int) -> Row:
        """An event as a JSON row: ``ts`` (UNIX seconds), ``round``, ``event`` (kind), fields."""
        return {
            "ts": round(event.time, 6),
            "round": round_,
            "event": event.kind,
            **event.fields,
        }

    def verify(self) -> Iterable[Verdict]:
        """After the demo: compare what was counted with what is known from other sources."""
        return []

    def run_capture(self, path: str) -> None:
        """``--pcap``: run the program on every packet of the capture; counts
        :attr:`packets_run`."""
        raise NotImplementedError

    def error_filenos(self) -> list[int]:
        """Descriptors on which an error is a reason to call :meth:`check_target` at once."""
        return []

    def check_target(self) -> None:
        """Run the checks of :meth:`check_regularly`, and see that every link is still attached.

        Called at least once a second; may raise.
        """
        for check in self._checks:
            check()
        from bpfkit.app.watch import check_links

        check_links(self._keep)

    def run(self, signals: Signals) -> int | None:
        """Everything from attached to the end, for a program with a sequence of its own.

        ``signals.asked`` says that a signal asked for the end.

        :returns: the exit status; None: ``--check`` or rounds, as for most programs.
        """
        return None

    def begin(self) -> None:
        """Called before the first round, when events are being read: start what is observed."""
        if self.command is not None:
            self.keep(self.command).start()  # closed before the links: it never runs without them

    def end_filenos(self) -> list[int]:
        """Descriptors that end the run when they become readable: what is observed has ended."""
        return [self.command.pidfd] if self.command is not None else []

    def finish(self, signals: Signals) -> None:
        """Called before the last figures are read: end what :meth:`begin` started."""
        if self.command is not None:
            self.command.end(signals)

    def exit_status(self) -> int:
        """The exit status after the last round: the command's, else 0."""
        return self.command.status if self.command is not None else 0

    def goes_on(self) -> bool:
        """Whether the program goes on when output, events or files fail: it protects, and a target
        of the user's, not its own lab."""
        return self.protects and not (self.options.check or self.place.is_private)

    def describe_target(self) -> str:
        """What the program is attached to, for people."""
        return ""

    def text_cells(self, row: Row) -> dict[str, str]:
        """The live view's columns of text, left of the counters: title -> text."""
        from bpfkit.show.text import cell

        # Not figures but names (a pid, a port): without blanks between thousands.
        return {
            field: str(value) if type(value) is int else cell(value)
            for field, value in row.items()
            if field not in self.counters and field.removesuffix("_per_s") not in self.counters
        }

    def figure_cells(self, row: Row, rates: Sequence[float]) -> list[tuple[str, str, int]]:
        """The live view's columns of figures: (title, text, rank) each.

        The texts are :func:`bpfkit.show.text.human`'s, so that one screen has one form of figures.

        :param rates: of :attr:`counters`, per second: the row's own ``…_per_s`` where it has them;
            -1: not known yet.
        :returns: where the window is too narrow, the columns with the largest rank are left out.
        """
        from bpfkit.show.text import human, unit_of

        cells = []
        for i, (field, rate) in enumerate(zip(self.counters, rates, strict=True)):
            unit = "B" if field in self.counted_in_bytes else unit_of(field)
            per_second = f"{_SHORT.get(field, field)}/s"
            cells.append((field, human(row[field], unit), i))
            cells.append((per_second, "" if rate < 0 else human(rate, unit), _RATE + i))
        return cells

    def title(self, round_: int) -> str:
        """First line of the live view."""
        text = " · ".join(filter(None, (self.name, self.describe_target())))
        if self.demo_runs:
            text += f" · demo, round {round_ + 1} of {self.options.count or self.demo_rounds}"
        return text

    def notes(self, rows: list[Row]) -> list[str]:
        """Lines under the live view's table."""
        return []

    # -- the program calls

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

    def consts(self) -> dict[str, int]:
        """LOAD_CONSTs of this program; its base class may have more."""
        return {}

    def prepare(self, loaded: Object) -> None:
        """Between loading and attaching: fill maps."""

    def load_program(self, **consts: int) -> Program:
        """Load as :attr:`object` with these and :meth:`consts`, :meth:`prepare`; returns the
        program to attach, :attr:`entry`."""
        self.object = self.load(**consts, **self.consts())
        self.prepare(self.object)
        programs = self.object.programs
        return programs[self.entry or next(iter(programs))]

    def for_check(self, results: list[T]) -> list[T]:
        """``results`` is filled by :meth:`demo` and read by :meth:`verify`; returns its argument.

        Without ``--check`` nobody reads them, and the list is emptied after each round: a demo may
        run for days.
        """
        self._results.append(results)
        return results

    def forget_results(self) -> None:
        """Empty the lists of :meth:`for_check`, unless ``--check`` is to read them."""
        if not self.options.check:
            for results in self._results:
                results.clear()

    def is_first_demo(self) -> bool:
        """True once, unless it is ``--check``: :meth:`demo` then says what it does."""
        told, self._demo_told = self._demo_told, True
        return not told and not self.options.check

    def check_regularly(self, check: Callable[[], None]) -> None:
        """Call ``check`` at least once a second; what it raises ends the program."""
        self._checks.append(check)

    @property
    def lab(self) -> Lab:
        """The lab of the demo.

        :raises BpfkitError: the program works on a target of the user's instead.
        """
        return self.place.lab

    def enter_namespace(self, namespace: NetNS) -> None:
        """Move to ``namespace`` until the end; closes it then.  Threads started later follow."""
        self.keep(namespace)
        self.keep(_Inside(namespace))

    def note(self, text: str) -> None:
        """Print a line on standard error, without spoiling the live view."""
        if self.sink is not None:
            self.sink.note(text)
        else:
            say(f"{self.name}: {text}")

    def close(self) -> None:
        """Undo everything, the latest first; the first failure is raised after that."""
        failure: Exception | None = None
        while self._keep:
            try:
                self._keep.pop().close()
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure


class _Inside:
    """The main thread inside a network namespace; closing leaves it."""

    def __init__(self, namespace: NetNS) -> None:
        self._entered = namespace.entered()
        self._entered.__enter__()

    def close(self) -> None:
        self._entered.__exit__(None, None, None)
