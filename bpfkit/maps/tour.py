# SPDX-License-Identifier: Apache-2.0
"""The tour's frame: a stop per map type, which creates a map, uses it from both sides and checks.

A stop is a function with the decorator :func:`stop`; the modules of :data:`FAMILIES` hold them.
:class:`Trial` is what a stop is given: it makes maps and loads programs of bpf_c/misc/maps.bpf.c
onto them, collects the checks, and closes everything at the end of the stop.
"""

from __future__ import annotations

import errno
import os

from bpfkit.core.errors import BpfkitError, UnsupportedError, errno_text
from bpfkit.core.kernel.constants import MAP_TYPES, map_type

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol, TypeVar

    from bpfkit.core.cgroups import Cgroup
    from bpfkit.core.compile.artifact import Artifact
    from bpfkit.core.maps.base import Map
    from bpfkit.core.object import Object
    from bpfkit.core.program import Program, RunResult
    from bpfkit.net.links.lab import Lab

    class Closable(Protocol):
        def close(self) -> object: ...

    C = TypeVar("C", bound=Closable)
    Stop = Callable[["Trial"], None]

__all__ = ["FAMILIES", "Result", "Tour", "Trial", "failure", "names", "stop", "stops"]

SOURCE = "misc/maps.bpf.c"
FAMILIES = (
    "keyed",
    "lru",
    "prefixes",
    "queues",
    "bloom",
    "buffers",
    "programs",
    "redirects",
    "sockets",
    "storages",
    "cgroup_storages",
    "arena",
    "struct_ops",
    "newer",
)
#: A packet for BPF_PROG_TEST_RUN: the shortest Ethernet frame, of no protocol.
PACKET = bytes(12) + b"\x88\xb5" + bytes(46)

#: Names that Python does not have, or has otherwise.
_ERRNOS = {524: "ENOTSUPP", errno.EOPNOTSUPP: "EOPNOTSUPP"}

_stops: dict[str, tuple[str, Stop]] = {}


def names() -> list[str]:
    """Every map type in the kernel's order, lower case."""
    return [name.lower() for name in MAP_TYPES[1:]]


def stop(name: str, purpose: str) -> Callable[[Stop], Stop]:
    """Enter a function as the stop of a map type; ``purpose`` is a line of at most 34 letters."""

    def enter(function: Stop) -> Stop:
        _stops[name] = purpose, function
        return function

    return enter


def stops() -> dict[str, tuple[str, Stop]]:
    """Type -> what it is for and its stop; all of :data:`FAMILIES`."""
    from importlib import import_module

    for family in FAMILIES:
        import_module(f"bpfkit.maps.{family}")
    return _stops


def failure(function: Callable[..., object], *args: Any) -> str:
    """The errno's name with which a call fails; "" if it succeeds."""
    try:
        function(*args)
    except OSError as error:
        return errno_name(error.errno or 0)
    return ""


def errno_name(number: int) -> str:
    """``E2BIG`` for 7 and for -7; "" for 0."""
    if abs(number) in _ERRNOS:
        return _ERRNOS[abs(number)]
    return errno.errorcode.get(abs(number), "")


class Result:
    """What a stop found.

    :ivar name: the map type, lower case.
    :ivar purpose: a line of text.
    :ivar checks: (is it so, what was compared) in order.
    :ivar why: what this kernel lacks, or what of the type it does not let be shown.
    :ivar supported: whether the kernel has the type.
    """

    def __init__(self, name: str, purpose: str) -> None:
        self.name = name
        self.purpose = purpose
        self.checks: list[tuple[bool, str]] = []
        self.why = ""
        self.supported = True

    @property
    def status(self) -> str:
        """``verified``, ``failed`` or ``unsupported``."""
        if not self.supported:
            return "unsupported"
        return "verified" if self.checks and all(ok for ok, _ in self.checks) else "failed"


class Trial:
    """One stop: maps, programs and checks; :meth:`close` lets go of all of it."""

    def __init__(self, tour: Tour, result: Result) -> None:
        self.tour = tour
        self.result = result
        self._keep: list[Closable] = []

    def keep(self, closable: C) -> C:
        """``closable.close()`` is called at the end of the stop, the latest first."""
        self._keep.append(closable)
        return closable

    def check(self, ok: bool, text: str) -> None:
        """Note whether something is as it must be."""
        self.result.checks.append((bool(ok), text))

    def equal(self, found: object, wanted: object, text: str) -> None:
        """Note whether two values are equal; both are shown if not."""
        ok = found == wanted
        self.check(ok, text if ok else f"{text}: {found!r}, not {wanted!r}")

    def partly(self, why: str) -> None:
        """A part that this kernel does not let be shown, although it has the type."""
        self.result.why = f"{self.result.why}; {why}" if self.result.why else why

    def map(
        self, key: int = 4, value: int = 8, entries: int = 8, *, type: str = "", **options: Any
    ) -> Map:
        """A map of the stop's type (or another); see :meth:`bpfkit.core.maps.base.Map.create`."""
        from bpfkit.core.maps.base import Map

        number = map_type(type or self.result.name)
        return self.keep(Map.create(number, key, value, entries, name="tour", **options))

    def load(self, subject: Map, *programs: str) -> Side:
        """Load programs of the C source onto ``subject``."""
        return Side(self.object(*programs, reuse_maps={"subject": subject}))

    def object(self, *programs: str, **options: Any) -> Object:
        """Load programs of the C source."""
        from bpfkit.core.object import load

        return self.keep(load(SOURCE, programs=programs, artifact=self.tour.artifact(), **options))

    def assembled(self, kind: str, code: bytes, name: str = "tour", **options: Any) -> Program:
        """Load assembled instructions."""
        from bpfkit.core.program import Program

        return self.keep(Program.from_insns(kind, code, name=name, **options))

    def close(self) -> None:
        while self._keep:
            self._keep.pop().close()


class Side:
    """The program's side of a map: helpers called with chosen arguments, by test runs.

    :ivar programs: the programs that were loaded, by name.
    """

    def __init__(self, loaded: Object) -> None:
        self.object = loaded
        self.programs = loaded.programs
        self._requests = loaded["requests"]
        self._layout = self._requests.value_layout
        self.request()

    def request(self, key: bytes = b"", **fields: int) -> None:
        """Set the request; what is not given is zero."""
        values: dict[str, Any] = dict.fromkeys(
            ("value", "flags", "result", "number", "sent", "refused"), 0
        )
        values.update(fields)
        values["key"] = tuple(key.ljust(32, b"\0"))
        self._requests[0] = values

    def answer(self) -> Any:
        """The request with what the program wrote into it."""
        return self._requests[0]

    def run(self, name: str, key: bytes | int = b"", value: int = 0, flags: int = 0) -> int:
        """Run a program once; returns the helper's result (lookup: 0, or -1 without element)."""
        data = key.to_bytes(4, "little") if isinstance(key, int) else key
        self.request(data, value=value, flags=flags)
        self.once(name)
        return int(self.answer().result)

    def once(self, name: str, repeat: int = 1) -> RunResult:
        """Run a program without a new request."""
        program = self.programs[name]
        if program.type_name == "BPF_PROG_TYPE_RAW_TRACEPOINT":
            return program.run(repeat=0)  # this type takes neither packet nor repetition
        return program.run(PACKET, repeat)

    def error(self, name: str, key: bytes | int = b"", value: int = 0, flags: int = 0) -> str:
        """As :meth:`run`, but the name of the errno that the helper returned."""
        return errno_name(self.run(name, key, value, flags))

    def value(self, name: str, key: bytes | int = b"") -> int | None:
        """The value that a reading program found; None: no element."""
        return None if self.run(name, key) else int(self.answer().value)


class Tour:
    """All stops, and what several of them need: a lab and a cgroup, each made at first use."""

    def __init__(self, cache: bool = True) -> None:
        self._cache = cache
        self._artifact: Artifact | None = None
        self._lab: Lab | None = None
        self._group: Cgroup | None = None

    def artifact(self) -> Artifact:
        """The C source, compiled once."""
        if self._artifact is None:
            from bpfkit.core.object import compiled

            self._artifact = compiled(SOURCE, cache=self._cache)
        return self._artifact

    def lab(self) -> Lab:
        """``client`` and ``server``, connected by a veth pair."""
        if self._lab is None:
            from bpfkit.net.links.lab import pair_lab

            self._lab = pair_lab()
        return self._lab

    def group(self) -> Cgroup:
        """A cgroup of the tour's own."""
        if self._group is None:
            from bpfkit.core.cgroups import Cgroup

            self._group = Cgroup.new("maps")
        return self._group

    def visit(self, name: str) -> Result:
        """One stop.  An error of the stop is a failed check, not an exception."""
        purpose, function = stops()[name]
        result = Result(name, purpose)
        missing = _missing(name)
        if missing:
            result.supported, result.why = False, missing
            return result
        trial = Trial(self, result)
        try:
            function(trial)
        except UnsupportedError as error:
            # The map exists, so what is missing is a part that the checks need.
            if result.checks:
                trial.partly(f"{error.what}: {error.why}")
            else:
                result.supported = False
                result.why = f"the kernel has the type, but {error.what}: {error.why}"
        except BpfkitError as error:
            trial.check(False, f"{error.what}: {error.why}")
        except OSError as error:
            trial.check(False, f"an error: {errno_text(error.errno or 0)}")
        except LookupError as error:
            trial.check(False, f"no element {error}, of those that must be there")
        finally:
            trial.close()
        return result

    def close(self) -> None:
        if self._lab is not None:
            self._lab.close()
            self._lab = None
        if self._group is not None:
            self._group.close()
            self._group = None


def _missing(name: str) -> str:
    """Why this kernel has no such map type, found by creating one; "" if it has."""
    from bpfkit.core.features.answer import WORKS
    from bpfkit.core.features.maps import probe_map_type

    feature = probe_map_type(name)
    return "" if feature.state == WORKS else feature.why or feature.state


def read_fdinfo(fd: int) -> dict[str, str]:
    """/proc/self/fdinfo of a map: the kernel's own figures."""
    with open(f"/proc/self/fdinfo/{fd}") as file:
        pairs = [line.rstrip("\n").partition(":") for line in file]
    return {name: value.strip() for name, _, value in pairs}


def pinned_to(cpu: int) -> _Pinned:
    """``with pinned_to(1):`` this thread runs on CPU 1, and so do its test runs."""
    return _Pinned(cpu)


class _Pinned:
    def __init__(self, cpu: int) -> None:
        self._cpu = cpu
        self._before: set[int] = set()

    def __enter__(self) -> None:
        self._before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {self._cpu})

    def __exit__(self, *_: object) -> None:
        os.sched_setaffinity(0, self._before)
