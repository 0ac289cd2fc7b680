# SPDX-License-Identifier: Apache-2.0
"""The rules of a running sk_lookup, read and changed from any process.

::

    rules, targets   what was asked for; everything else follows from it
    places, tables   which rule is in force for a protocol, an address and a port
    sockets          the listeners' sockets; the kernel takes one out when it closes

An edit writes the rules first.  Then it builds the tables that are new in slots that nothing refers
to, and turns one place after the other (protocol, prefix) to its table by one store each: a lookup
finds either the old list of its place or the new one, whole.  An editor says by ``state[EDITING]``
that it has begun.  Where one was killed the running program, or the next editor, completes the
edit: it builds the tables from the rules again.

Editors exclude each other by a lock (:class:`bpfkit.app.editing.EditLock`).
"""

from __future__ import annotations

import struct

from bpfkit.app.editing import EditLock, close_maps
from bpfkit.core.closing import Closing
from bpfkit.core.errors import BpfkitError, InputError
from bpfkit.core.maps.base import Map
from bpfkit.core.words import count_of
from bpfkit.sk_lookup.rules import Place, Rule, tables
from bpfkit.sk_lookup.targets import Target

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket as socket_module
    from collections.abc import Callable, Iterable

__all__ = ["COUNTS", "ERRORS", "MAPS", "PROGRAM", "RULE_SIZE", "Steering", "port_table"]

PROGRAM = "sk_lookup"
MAPS = (
    *("places", "tables", "rules", "targets", "sockets"),
    *("counts", "flows", "state", "failed", "lost"),
)
#: Fields of struct count, in the words of the rows.
ERRORS = ("esocktnosupport", "eprototype", "eafnosupport", "eexist", "other")
COUNTS = ("lookups", "assigned", "misses", *ERRORS, "replies")

_GENERATION, _EDITING, _UDP_RULES, _SERIAL, _CAUGHT_UP = range(5)  # enum word
_RULE = struct.Struct("=IBBBBHHI16s")
RULE_SIZE = _RULE.size
_TARGET = struct.Struct("=IiIHBB16s")
_PLACE = struct.Struct("=IBBH16s")
_PORTS, _BLOCKS = 65536, 1024
_MMAPABLE = 1 << 10


def port_table() -> Map:
    """An empty table of ports, for ``tables``; the caller closes it."""
    size = 2 * _PORTS // _BLOCKS
    return Map.create("array", 4, size, _BLOCKS, name="ports", flags=_MMAPABLE)


class Entry:
    """A rule that is there.

    :ivar number: the rule's.
    :ivar target: the number of its target.
    :ivar serial: orders rules by when they were added.
    """

    __slots__ = ("number", "rule", "serial", "target")

    def __init__(self, number: int, rule: Rule, target: int, serial: int) -> None:
        self.number = number
        self.rule = rule
        self.target = target
        self.serial = serial


class Steering(Closing):
    """The maps of an sk_lookup.

    :param maps: at least :data:`MAPS`.
    :param owned: close them on :meth:`close`.
    """

    def __init__(self, maps: dict[str, Map], *, owned: bool = False) -> None:
        self.maps = maps
        self._owned = owned

    def close(self) -> None:
        if self._owned:
            close_maps(self.maps)

    # -- what is there

    def _state(self, word: int) -> int:
        value: int = self.maps["state"][word]
        return value

    @property
    def generation(self) -> int:
        """Grows with every edit."""
        return self._state(_GENERATION)

    @property
    def unfinished(self) -> bool:
        """Whether an editor has begun and not ended."""
        return bool(self._state(_EDITING))

    def caught_up(self, generation: int) -> None:
        """The running program has seen this edit: what rewrites UDP replies is attached."""
        if self._state(_CAUGHT_UP) != generation:
            self.maps["state"][_CAUGHT_UP] = generation

    def bell(self) -> socket_module.socket:
        """A socket that is readable when an editor wants to be seen; abstract names are per
        network namespace."""
        import socket

        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        sock.bind(self._bell_name)
        return sock

    @property
    def _bell_name(self) -> str:
        return f"\0bpfkit.{PROGRAM}.{self.maps['state'].id}"

    def wait_until_seen(self, timeout: float = 3.0) -> bool:
        """Wait until the running program has seen the last edit; False: it did not."""
        import socket
        from time import monotonic, sleep

        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            try:
                sock.sendto(b"!", self._bell_name)
            except OSError:
                pass  # it looks twice a second anyway
        wanted, deadline = self.generation, monotonic() + timeout
        while self._state(_CAUGHT_UP) < wanted:
            if monotonic() > deadline:
                return False
            sleep(0.005)
        return True

    def entries(self) -> list[Entry]:
        """The rules, in the order they were added."""
        found = []
        raw = self.maps["rules"].items_raw()[2].cast("B")
        for number in range(1, self.maps["rules"].max_entries):
            data = bytes(raw[number * _RULE.size : (number + 1) * _RULE.size])
            target, used, protos, family, length, first, last, serial, address = _RULE.unpack(data)
            if used:
                rule = Rule(protos, family, length, address, (first, last, 0))
                found.append(Entry(number, rule, target, serial))
        targets = self.targets()
        for entry in found:
            if entry.target in targets:
                entry.rule.port = targets[entry.target].port
        found.sort(key=lambda entry: entry.serial)
        return found

    def targets(self) -> dict[int, Target]:
        """The targets, by number."""
        found = {}
        raw = self.maps["targets"].items_raw()[2].cast("B")
        for number in range(self.maps["targets"].max_entries):
            data = bytes(raw[number * _TARGET.size : (number + 1) * _TARGET.size])
            pid, fd, uid, port, family, used, address = _TARGET.unpack(data)
            if used:
                size = {0: 0, 4: 4, 6: 16}[family]
                found[number] = Target(port, address[:size], pid, fd, uid)
        return found

    def counts(self, number: int) -> dict[str, int]:
        """What happened to the lookups of a rule: :data:`COUNTS`, summed over the CPUs."""
        total = self.maps["counts"].lookup(number).sum()
        return dict(zip(COUNTS, total, strict=False))

    # -- edits

    def add(
        self,
        wanted: Iterable[tuple[Rule, Target]],
        fill: Callable[[dict[int, Target]], None] = lambda targets: None,
    ) -> list[int]:
        """Add rules; one with the same match as a rule that is there gets a new target.

        :param fill: enters the targets' sockets; called before a rule leads to them.
        :returns: the numbers of their targets.
        :raises BpfkitError: there is no room; nothing was changed.
        """
        wanted = list(wanted)
        with EditLock():
            there = {entry.rule.match: entry for entry in self.entries()}
            numbers = self._target_numbers([target for _, target in wanted])
            taken = {entry.number for entry in there.values()}
            free = (n for n in range(1, self.maps["rules"].max_entries) if n not in taken)
            fresh = dict.fromkeys(rule.match for rule, _ in wanted if rule.match not in there)
            places = dict(zip(fresh, free, strict=False))
            if len(places) < len(fresh):
                raise BpfkitError(
                    f"no room for {count_of(len(fresh), 'rule')}",
                    why=f"{len(taken)} of {self.maps['rules'].max_entries - 1} are there already",
                    hint="a range of ports is one rule: 6000-6999:5201",
                )
            entries = {entry.number: (entry.serial, entry.rule) for entry in there.values()}
            serial = self._state(_SERIAL)
            for rule, _ in wanted:
                serial += 1
                number = places[rule.match] if rule.match in places else there[rule.match].number
                entries[number] = (serial, rule)
            self._built(entries)  # too many tables: say so before anything is changed
            self._begin()
            for (_, target), number in zip(wanted, numbers, strict=True):
                self._write_target(number, target)
            fill(self.targets())
            zero = bytes(self.maps["counts"].value_size)
            for (rule, _), number in zip(wanted, numbers, strict=True):
                place = places.get(rule.match)
                if place is None:
                    place = there[rule.match].number
                else:
                    self.maps["counts"][place] = zero
                self._write_rule(place, rule, number, entries[place][0])
            self.maps["state"][_SERIAL] = serial
            self._complete()
        return numbers

    def delete(self, rules: Iterable[Rule]) -> None:
        """Delete rules, by what they match.

        :raises InputError: one of them is not there; none is deleted then.
        """
        with EditLock():
            there = {entry.rule.match: entry for entry in self.entries()}
            doomed = []
            for rule in rules:
                entry = there.get(rule.match)
                if entry is None or entry.rule.port != rule.port:
                    raise InputError(f"no rule '{rule}'", why="'list' shows the rules")
                doomed.append(entry)
            self._begin()
            for entry in doomed:
                self.maps["rules"][entry.number] = bytes(_RULE.size)
            self._complete()

    def finish_edit(self) -> None:
        """Complete what a killed editor began."""
        with EditLock():
            if self.unfinished:
                self._complete()

    def _target_numbers(self, wanted: list[Target]) -> list[int]:
        known = {target.key: number for number, target in self.targets().items()}
        used = {entry.target for entry in self.entries()}
        known = {key: number for key, number in known.items() if number in used}
        free = (n for n in range(self.maps["targets"].max_entries) if n not in used)
        numbers = []
        for target in wanted:
            if target.key not in known:
                number = next(free, None)
                if number is None:
                    most = self.maps["targets"].max_entries
                    raise BpfkitError("no room for another listener", why=f"{most} are there")
                known[target.key] = number
            numbers.append(known[target.key])
        return numbers

    def _write_target(self, number: int, target: Target) -> None:
        size = len(target.address)
        self.maps["targets"][number] = _TARGET.pack(
            target.pid,
            target.fd,
            target.uid,
            target.port,
            {0: 0, 4: 4, 16: 6}[size],
            1,
            target.address,
        )

    def _write_rule(self, number: int, rule: Rule, target: int, serial: int) -> None:
        words = (rule.protos, rule.family, rule.length, rule.first, rule.last, serial)
        self.maps["rules"][number] = _RULE.pack(target, 1, *words, rule.address)

    def _begin(self) -> None:
        self.maps["state"][_EDITING] = 1

    def _complete(self) -> None:
        """Make the tables agree with the rules; the sockets of targets without rules go."""
        entries = self.entries()
        wanted = self._built({entry.number: (entry.serial, entry.rule) for entry in entries})
        self.maps["state"][_UDP_RULES] = sum(entry.rule.protos >> 1 & 1 for entry in entries)
        self._write_tables(wanted)
        used = {entry.target for entry in entries}
        each = self.maps["sockets"].max_entries // self.maps["targets"].max_entries
        for number in self.targets():
            if number not in used:
                self.maps["targets"][number] = bytes(_TARGET.size)
                for slot in range(number * each, (number + 1) * each):
                    self.maps["sockets"].pop(slot, None)
        self.maps["state"][_GENERATION] = self.generation + 1
        self.maps["state"][_EDITING] = 0

    def _built(self, entries: dict[int, tuple[int, Rule]]) -> dict[Place, bytes]:
        ordered = sorted(entries.items(), key=lambda item: item[1][0])
        wanted = tables([(number, rule) for number, (_, rule) in ordered])
        most = self.maps["tables"].max_entries // 2  # two generations of them fit
        if len(set(wanted.values())) > most:
            raise BpfkitError(
                "too many prefixes with ports of their own", why=f"{most} different lists fit"
            )
        if len(wanted) > self.maps["places"].max_entries // 2:
            raise BpfkitError("too many prefixes", why=f"{len(wanted)} do not fit")
        return wanted

    def _write_tables(self, wanted: dict[Place, bytes]) -> None:
        there = {bytes(key): value for key, value in self._places().items()}
        known: dict[bytes, int] = {}
        for number, inner in self.maps["tables"].items():
            with Map.from_id(inner) as one:
                memory = one.mmap(write=False)
                known.setdefault(bytes(memory[: 2 * _PORTS]), number)
                memory.close()
        taken = set(known.values()) | set(there.values())
        free = (n for n in range(self.maps["tables"].max_entries) if n not in taken)
        keys = {}
        for (proto, family, length, address), cells in wanted.items():
            if cells not in known:
                with port_table() as one:
                    memory = one.mmap()
                    memory[: 2 * _PORTS] = cells
                    memory.close()
                    number = next(free)
                    self.maps["tables"][number] = one
                known[cells] = number
            keys[_PLACE.pack(32 + length, proto, family, 0, address)] = known[cells]
        # Longer prefixes first: until a new one is there its addresses follow the old, shorter one.
        for key in sorted(keys, key=lambda key: -_PLACE.unpack(key)[0]):
            if there.get(key) != keys[key]:
                self.maps["places"][key] = keys[key]
        for key in there.keys() - keys.keys():
            del self.maps["places"][key]
        used = set(keys.values())
        for number in set(self.maps["tables"].keys()) - used:
            del self.maps["tables"][number]

    def _places(self) -> dict[bytes, int]:
        count, keys, values = self.maps["places"].items_raw()
        flat = keys.cast("B")
        numbers = values.cast("B")
        return {
            bytes(flat[i * _PLACE.size : (i + 1) * _PLACE.size]): int.from_bytes(
                numbers[4 * i : 4 * i + 4], "little"
            )
            for i in range(count)
        }
