# SPDX-License-Identifier: Apache-2.0
"""Reads and changes the rules of a running xdp_firewall, from any process.

::

    interface ─▶ XDP program ─▶ ids of its maps ─▶ the maps      (nothing is pinned)

    state.active, bit 0 ─▶ fronts, blooms: pre-filter: is there such a prefix at all?
                        ─▶ v4, v6:         prefix ─▶ action, packets, bytes
                  bit 1 ─▶ cells: port or protocol ─▶ action, number ─▶ specs, hits
                  rest  ─▶ number of the last edit in force

Everything exists twice, and :meth:`Firewall.load` builds the new list (prefixes, ports, protocols)
where the active one is not.  The program reads ``active`` once per packet, and one store into it
puts the whole list in force: at every moment one whole list is, and an editor that is killed
leaves the old one.

:meth:`Firewall.add` and :meth:`Firewall.delete` change the prefixes of the active list in place.  A
rule says by which edit it was changed and what its action was before; it keeps that action until
the edit is in force, by the same store.  An editor says by ``dirty`` that it has begun; the next
one undoes what it left unfinished.  The pre-filter may have false positives but no false negatives,
so a prefix is entered there before its rule is, and stays until the next load.

Editors exclude each other by flock on the directory of the ownership records; the kernel releases
the lock when a process dies.
"""

from __future__ import annotations

import _socket
import errno
import sys
from array import array
from struct import Struct

from bpfkit.app.editing import EditLock, close_maps, maps_of, require_ids
from bpfkit.core.closing import Closing
from bpfkit.core.errors import BpfkitError, InputError, MapError, errno_text
from bpfkit.core.kernel import syscall as sc
from bpfkit.core.maps.base import Map, MapFullError
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from bpfkit.xdp_firewall.rules import Rule, RuleSet

    #: (family, key) -> the fields of _RULE.
    _Values = dict[tuple[int, bytes], tuple[int, ...]]

__all__ = ["ALLOW", "DENY", "FRONTS", "MAPS", "Firewall", "find", "templates"]

#: The program's name, and the maps that an editor uses.
PROGRAM = "xdp_firewall"
MAPS = ("state", "fronts", "v4", "v6", "blooms", "cells", "specs", "hits", "totals")
ALLOW, DENY = 1, 2
#: The kinds of pre-filter: FRONT_* of bpf_c/xdp/xdp_firewall.h.
FRONTS = {"none": 0, "bits": 1, "bloom": 2}
_BLOOM = FRONTS["bloom"]

_STATE = Struct("=QQQQ")
_ACTIVE, _MOST, _FRONT, _DIRTY = range(4)  # words of struct state
_EDITING, _SWITCHING = 1, 2  # `dirty`: rules are marked; only what is inactive is written
_RULE = Struct("=BBHIQQ")
_SPEC = Struct("=BBBBHH")
_LENGTHS, _END = 192, 255  # struct front
_COUNTS = {4: 2 * _LENGTHS, 6: 2 * _LENGTHS + 8}
_FRONT_SIZE = 2 * _LENGTHS + 64 + (1 << 21)
_MMAPABLE = 1 << 10
_KEY_SIZES = {4: 8, 6: 24}
_SMALLEST = 1 << 10
_AT_ONCE = 128  # MOST of xdp_firewall_fill.bpf.c
_OTHERS = 1023  # rules for ports and protocols
_NUMBERS = 2 * (_OTHERS + 1)  # those of the active list, and of the next one
_TABLE = 256 + 5 * 65536  # cells of a list
_CELLS = 2 * _TABLE
_BLOCK = 4096  # cells compared at once

#: ``enum reason``: (whether the packet passes, the reason).
REASONS = (
    (True, "not IP"),
    (True, "no rule"),
    (True, "address"),
    (True, "port"),
    (True, "protocol"),
    (False, "no rule"),
    (False, "address"),
    (False, "port"),
    (False, "protocol"),
    (False, "cannot be decided"),
)
LOST = len(REASONS)


class _Generation(Closing):
    """The maps of one list of prefixes.

    :ivar rules: family -> hash of rules.
    """

    def __init__(self, front: Map, rules: dict[int, Map], bloom: Map | None) -> None:
        self.front = front
        self.rules = rules
        self.bloom = bloom

    @classmethod
    def make(cls, sizes: dict[int, int], with_bloom: bool) -> _Generation:
        """New, empty maps.

        :param sizes: family -> number of prefixes to make room for.
        :raises BpfkitError: not enough memory.
        """
        made: list[Map] = []
        try:
            made.append(Map.create("array", 4, _FRONT_SIZE, 1, name="front", flags=_MMAPABLE))
            for family, size in sizes.items():
                one = Map.create(
                    "hash", _KEY_SIZES[family], _RULE.size, size, name=f"rules{family}"
                )
                made.append(one)
            if with_bloom:
                # three hash functions: false positive rate of 1 in 30
                total = sum(sizes.values())
                made.append(Map.create("bloom_filter", 0, 24, total, name="bloom", map_extra=3))
        except BaseException:
            for one in made:
                one.close()
            raise
        result = cls(
            made[0], dict(zip(sizes, made[1:3], strict=True)), made[3] if with_bloom else None
        )
        result._write_lengths(0, ())
        result._write_lengths(_LENGTHS, ())
        return result

    def close(self) -> None:
        for one in (self.front, *self.rules.values(), self.bloom):
            if one is not None:
                one.close()

    # -- the pre-filter

    def _write_lengths(self, at: int, lengths: Iterable[int]) -> None:
        memory = self.front.mmap()
        text = bytes(sorted(lengths, reverse=True))
        memory[at : at + _LENGTHS] = text.ljust(_LENGTHS, bytes([_END]))
        memory.close()

    def announce(self, family: int, keys: bytes | bytearray, lengths: set[int]) -> None:
        """Enter prefixes into the pre-filter, before their rules are added."""
        from bpfkit.core.object import load

        if not keys:
            return
        kind = _BLOOM if self.bloom is not None else FRONTS["bits"]
        maps = {"front": self.front}
        if self.bloom is not None:
            maps["bloom"] = self.bloom
        consts = {"family": family, "kind": kind}
        size = _AT_ONCE * _KEY_SIZES[family]
        least = 2 * _KEY_SIZES[family]  # the kernel refuses data shorter than an Ethernet header
        with load("xdp/xdp_firewall_fill.bpf.c", consts=consts, reuse_maps=maps) as loaded:
            run = sc.TestRun(loaded.programs["xdp_firewall_fill"].fd, size, 0)
            data = memoryview(run.data_in).cast("B")
            for at in range(0, len(keys), size):
                part = keys[at : at + size]
                if len(part) < least:
                    part = part * 2
                data[: len(part)] = part
                done = run.run(len(part))[0]
                if done != len(part) // _KEY_SIZES[family]:
                    raise BpfkitError(
                        "cannot fill the pre-filter", why=f"it took {done} prefixes of a batch"
                    )
        self._add_lengths(0 if family == 4 else _LENGTHS, lengths)

    def _add_lengths(self, at: int, lengths: set[int]) -> None:
        """Add prefix lengths to a list that programs may be reading.

        It is written from its end, so that at every moment it has all lengths of the old list: one
        may be duplicate, none is missing.
        """
        memory = self.front.mmap()
        try:
            there = list(memory[at : at + _LENGTHS])
            there = there[: there.index(_END)]
            wanted = sorted({*there, *lengths}, reverse=True)
            for i in reversed(range(len(wanted))):
                memory[at + i] = wanted[i]
        finally:
            memory.close()

    def count(self, family: int) -> int:
        """Number of prefixes of a family with a rule."""
        at = _COUNTS[family]
        memory = self.front.mmap()
        number = int.from_bytes(memory[at : at + 8], sys.byteorder)
        memory.close()
        return number

    def set_count(self, family: int, number: int) -> None:
        """Set the number of prefixes of a family."""
        at = _COUNTS[family]
        memory = self.front.mmap()
        memory[at : at + 8] = number.to_bytes(8, sys.byteorder)
        memory.close()

    @property
    def total(self) -> int:
        """Number of prefixes with a rule."""
        return self.count(4) + self.count(6)


def templates() -> dict[str, Map]:
    """``reuse_maps`` for loading the program: templates of its inner maps; the caller closes them.

    Up to Linux 6.1 a map with BTF types does not match one without, and those made here have none.
    """
    made = _Generation.make(dict.fromkeys((4, 6), 1), True)
    assert made.bloom is not None
    return {
        "front": made.front,
        "rules4": made.rules[4],
        "rules6": made.rules[6],
        "bloom": made.bloom,
    }


class _Words(Closing):
    """``struct state`` as words; each is read and written in one piece."""

    def __init__(self, state: Map) -> None:
        self._memory = state.mmap()
        self._words = memoryview(self._memory).cast("Q")

    def __getitem__(self, word: int) -> int:
        return self._words[word]

    def __setitem__(self, word: int, value: int) -> None:
        self._words[word] = value

    def close(self) -> None:
        self._words.release()
        self._memory.close()


class Firewall(Closing):
    """The maps of a firewall.

    :param maps: at least :data:`MAPS`.
    :param owned: close them on :meth:`close`.
    :ivar interface: name of the interface, for messages.
    """

    def __init__(self, maps: dict[str, Map], interface: str = "", *, owned: bool = False) -> None:
        self.maps = maps
        self.interface = interface
        self._owned = owned
        #: Rules of the last :meth:`add` that existed already.
        self.known: list[Rule] = []

    def close(self) -> None:
        if self._owned:
            for one in self.maps.values():
                one.close()

    # -- state

    def start(self, front: str, most: int, rules: RuleSet | None = None) -> None:
        """Write the first list, before the program is attached and other processes find the maps.

        :param front: a key of :data:`FRONTS`, the program's ``front_kind``.
        :param most: maximum number of prefixes.
        :raises MapFullError: ``rules`` has more.
        """
        from bpfkit.xdp_firewall.rules import RuleSet

        rules = rules or RuleSet()
        with self._words() as words:
            for word, value in enumerate((0, most, FRONTS[front], 0)):
                words[word] = value
        final = _others_of(rules.others)
        sizes = self._sizes(rules)
        numbered = self._number_anew(final)
        with self._built(rules, sizes, FRONTS[front]) as first:
            self._fill(1, first)
        self._write_others(numbered, 1)
        self._put_in_force(prefixes=1, others=1)

    def _words(self) -> _Words:
        return _Words(self.maps["state"])

    def _state(self) -> tuple[int, int, int, int]:
        """What is active (the program's word), maximum number of prefixes, pre-filter, dirty."""
        with self._words() as words:
            active, most, front, dirty = map(words.__getitem__, range(4))
            return active, most, front, dirty

    def _put_in_force(self, prefixes: int | None = None, others: int | None = None) -> None:
        """The one store: this edit, and what was built in the inactive slots (0 or 1)."""
        with self._words() as words:
            active = words[_ACTIVE]
            edit = (active >> 2) + 1
            slot = active & 1 if prefixes is None else prefixes
            table = active >> 1 & 1 if others is None else others
            words[_ACTIVE] = edit << 2 | table << 1 | slot

    def _editing(self) -> EditLock:
        """The lock, after undoing what a killed editor left."""
        lock = EditLock()
        try:
            dirty = self._state()[_DIRTY]
            if dirty:
                sc.grace_period()  # programs that use what is inactive now have finished
            if dirty == _EDITING:
                self._undo()
            self._set_dirty(0)
        except BaseException:
            lock.close()
            raise
        return lock

    def _set_dirty(self, value: int) -> None:
        with self._words() as words:
            words[_DIRTY] = value

    def _undo(self) -> None:
        """Undo an unfinished edit: its rules get the actions that are in force."""
        edit = self._state()[_ACTIVE] >> 2
        with self._current() as now:
            for family, one in now.rules.items():
                count, keys, values = one.items_raw()
                size = _KEY_SIZES[family]
                flat = values.cast("B")
                actions = flat[0 :: _RULE.size].tobytes()
                edits = flat.cast("I")[1 :: _RULE.size // 4].tolist()
                raw = keys.cast("B")
                for i in range(count):
                    if edits[i] <= edit and actions[i]:
                        continue
                    rule = _RULE.unpack_from(values, i * _RULE.size)
                    key = bytes(raw[i * size : (i + 1) * size])
                    action = _in_force(rule, edit)
                    if action:
                        one.update_raw(key, _RULE.pack(action, 0, 0, 0, *rule[4:]))
                    else:
                        sc.map_delete(one.fd, key)
                now.set_count(family, len(one))

    @property
    def most(self) -> int:
        """Maximum number of prefixes."""
        return self._state()[_MOST]

    def _inner(self, name: str, slot: int) -> Map:
        return Map.from_id(int(self.maps[name].lookup(slot)))

    def _current(self) -> _Generation:
        """The maps of the active list, to be closed by the caller."""
        for _ in range(100):
            active, _, front, _ = self._state()
            names = ["fronts", "v4", "v6"] + (["blooms"] if front == _BLOOM else [])
            made: list[Map] = []
            try:
                for name in names:
                    made.append(self._inner(name, active & 1))
            except (KeyError, MapError):  # an editor has just activated another list
                for one in made:
                    one.close()
                continue
            rules = {4: made[1], 6: made[2]}
            return _Generation(made[0], rules, made[3] if front == _BLOOM else None)
        raise BpfkitError("cannot read the rules", why="they change too often")

    def _publish(self, new: _Generation, others: int | None = None) -> None:
        """Put a list in force and free the previous one.

        :param others: the table of ports and protocols that belongs to it; None: the active one.
        """
        slot = self._state()[_ACTIVE] & 1
        self._set_dirty(_SWITCHING)
        self._fill(1 - slot, new)
        self._put_in_force(prefixes=1 - slot, others=others)
        sc.grace_period()  # programs that read the old word have finished
        self._forget(slot)
        self._set_dirty(0)

    def _fill(self, slot: int, new: _Generation) -> None:
        names = {"fronts": new.front, "v4": new.rules[4], "v6": new.rules[6], "blooms": new.bloom}

        def put(name: str, one: Map) -> None:
            self.maps[name].update_elem(slot, one)

        _together([(put, name, one) for name, one in names.items() if one is not None])

    def _forget(self, slot: int) -> None:
        key = slot.to_bytes(4, sys.byteorder)

        def forget(name: str) -> None:
            try:
                sc.map_delete(self.maps[name].fd, key)
            except FileNotFoundError:
                pass

        _together([(forget, name) for name in ("fronts", "v4", "v6", "blooms")])

    # -- prefixes

    def load(self, rules: RuleSet) -> int:
        """Replace all rules; returns the number of prefixes.

        :raises MapFullError: more prefixes than ``most``; nothing is changed.
        """
        with self._editing():
            active, _, front, _ = self._state()
            self._forget(1 - (active & 1))  # of an editor that was killed
            final = _others_of(rules.others)
            sizes = self._sizes(rules)
            numbered = self._number_anew(final)
            with self._built(rules, sizes, front) as new:
                count = new.total
                table = 1 - (active >> 1 & 1)
                self._write_others(numbered, table)
                self._publish(new, table)
        return count

    def _sizes(self, rules: RuleSet) -> dict[int, int]:
        """Family -> number of prefixes.

        :raises MapFullError: more than :attr:`most`.
        """
        sizes = {family: rules.count(family) for family in (4, 6)}
        if sum(sizes.values()) > self.most and self._distinct(rules) > self.most:
            raise MapFullError(
                f"{sum(sizes.values())} prefixes are too many",
                why=f"the firewall was started with --max-rules {self.most}",
                hint="no rule was changed",
            )
        return sizes

    @staticmethod
    def _distinct(rules: RuleSet) -> int:
        total = 0
        for family in (4, 6):
            size = _KEY_SIZES[family]
            seen: set[bytes] = set()
            for action in (ALLOW, DENY):
                keys = bytes(rules.prefixes[family, action])
                seen.update(keys[i : i + size] for i in range(0, len(keys), size))
            total += len(seen)
        return total

    def _built(self, rules: RuleSet, sizes: dict[int, int], front: int) -> _Generation:
        """A new generation with these rules."""
        rooms = {
            family: max(size + size // 8 + _SMALLEST, _SMALLEST) for family, size in sizes.items()
        }
        new = _Generation.make(rooms, front == _BLOOM)
        try:
            for family in (4, 6):
                new.announce(family, rules.keys(family), rules.lengths(family))
                for action in (ALLOW, DENY):  # deny wins if a prefix has both
                    keys = rules.prefixes[family, action]
                    new.rules[family].update_raw(keys, _RULE.pack(action, 0, 0, 0, 0, 0))
            for family, one in new.rules.items():
                new.set_count(family, len(one))
        except BaseException:
            new.close()
            raise
        return new

    def add(self, rules: Iterable[Rule]) -> int:
        """Add rules, or change the action of existing ones; returns the number of new and changed.

        :raises MapFullError: no room; no rule was changed.
        """
        from bpfkit.xdp_firewall.rules import RuleSet

        wanted = list(rules)
        self.known = []
        with self._editing():
            prefixes = [rule for rule in wanted if rule.address]
            others = [rule for rule in wanted if not rule.address]
            numbered = self._with_others(others)
            if not prefixes:
                self._edit_others(numbered)
            else:
                with self._with_room(len(prefixes)) as now:
                    values = self._added(now, prefixes)
                    packed = RuleSet(prefixes)
                    for family in (4, 6):
                        now.announce(family, packed.keys(family), packed.lengths(family))
                    self._edit(now, values, numbered)
        return len(wanted) - len(self.known)

    def _added(self, now: _Generation, rules: list[Rule]) -> _Values:
        """The values of rules to be added; what exists goes to :attr:`known`.

        :raises MapFullError: more than ``most``.
        """
        edit = self._state()[_ACTIVE] >> 2
        values: _Values = {}
        total = now.total
        for rule in rules:
            family = _family(rule)
            known = values.get((family, rule.key))
            there = _lookup(now.rules[family], rule.key) if known is None else known
            if there is not None and there[0] == rule.action:
                self.known.append(rule)
                continue
            if known is not None:
                before = known[1]
            elif there is not None:
                before = there[0]
            else:
                before = 0
                total += 1
                if total > self.most:
                    raise self._full(rule)
            figures = there[4:] if there is not None else (0, 0)
            values[family, rule.key] = (rule.action, before, 0, edit + 1, *figures)
        return values

    def _edit(self, now: _Generation, values: _Values, others: dict[int, Rule] | None) -> None:
        """Change prefixes (action 0: delete) and ports and protocols, all of them at once.

        :param others: number -> rule, of all; None: they stay.
        """
        table = 1 - (self._state()[_ACTIVE] >> 1 & 1)
        self._set_dirty(_EDITING)
        if others is not None:
            self._write_others(others, table)
        for (family, key), value in values.items():
            now.rules[family].update_raw(key, _RULE.pack(*value))
        self._put_in_force(others=None if others is None else table)
        counts = {family: now.count(family) for family in now.rules}
        for (family, key), (action, before, *_) in values.items():
            counts[family] += bool(action) - bool(before)
            if not action:
                sc.map_delete(now.rules[family].fd, key)
        for family, number in counts.items():
            now.set_count(family, number)
        if others is not None:
            sc.grace_period()  # programs that use the other table have finished
        self._set_dirty(0)

    def _full(self, rule: Rule) -> MapFullError:
        return MapFullError(
            f"cannot add '{rule}'",
            why=f"the list is full: the firewall was started with --max-rules {self.most}",
            hint="delete rules, or start the firewall with a larger --max-rules",
        )

    def _with_room(self, wanted: int) -> _Generation:
        """The maps of the active list, replaced by larger ones if they have no room."""
        now = self._current()
        if all(one.max_entries >= now.count(f) + wanted for f, one in now.rules.items()):
            return now
        with now:
            rooms = {f: 2 * (now.count(f) + wanted) + _SMALLEST for f in now.rules}
            new = _Generation.make(rooms, now.bloom is not None)
            try:
                for family, one in now.rules.items():
                    _, keys, values = one.items_raw()
                    words = keys.cast("B").cast("I" if family == 4 else "Q")
                    lengths = set((words[1::2] if family == 4 else words[2::3]).tolist())
                    new.announce(family, bytes(keys), lengths)
                    new.rules[family].update_raw(keys, values)
                    new.set_count(family, now.count(family))
                self._publish(new)
            except BaseException:
                new.close()
                raise
        return new

    def delete(self, rules: Iterable[Rule]) -> None:
        """Delete rules, whatever their action.

        :raises InputError: one of them does not exist; nothing is deleted.
        """
        wanted = list({rule.match: rule for rule in rules}.values())
        with self._editing():
            active = self._specs()
            by_match = {rule.match: number for number, rule in active.items()}
            edit = self._state()[_ACTIVE] >> 2
            values: _Values = {}
            with self._current() as now:
                for rule in wanted:
                    if rule.address:
                        there = _lookup(now.rules[_family(rule)], rule.key)
                        missing = there is None
                        if there is not None:
                            value = (0, there[0], 0, edit + 1, *there[4:])
                            values[_family(rule), rule.key] = value
                    else:
                        missing = rule.match not in by_match
                    if missing:
                        raise InputError(
                            f"no rule about {rule.match} on {self.interface}",
                            why="nothing was deleted",
                            hint="`list` shows all rules",
                        )
                gone = {by_match[rule.match] for rule in wanted if not rule.address}
                left = {n: rule for n, rule in active.items() if n not in gone}
                self._edit(now, values, left if gone else None)

    def prefixes(self, hit_only: bool = False) -> Iterator[tuple[int, bytes, int, int, int, int]]:
        """(family, address, length, action, packets, bytes) of each prefix with a rule."""
        edit = self._state()[_ACTIVE] >> 2
        with self._current() as now:
            for family, one in now.rules.items():
                count, keys, values = one.items_raw()
                packets = values.cast("B").cast("Q")[1::3].tolist()
                size = _KEY_SIZES[family]
                width = 4 if family == 4 else 16
                for i in range(count):
                    if hit_only and not packets[i]:
                        continue
                    rule = _RULE.unpack_from(values, i * _RULE.size)
                    action, number, octets = _in_force(rule, edit), rule[4], rule[5]
                    if not action:
                        continue
                    at = i * size
                    length = int.from_bytes(keys[at + width : at + size], sys.byteorder)
                    yield family, bytes(keys[at : at + width]), length, action, number, octets

    @property
    def count(self) -> int:
        """Number of prefixes with a rule."""
        if self._state()[_DIRTY]:  # an editor is at work, or was killed
            return sum(1 for _ in self.prefixes())
        with self._current() as now:
            return now.total

    # -- ports and protocols

    def _specs(self, table: int | None = None) -> dict[int, Rule]:
        """Number -> rule for ports or a protocol, of the active table or of this one."""
        from bpfkit.xdp_firewall.rules import Rule

        if table is None:
            table = self._state()[_ACTIVE] >> 1 & 1
        found = {}
        _, _, values = self.maps["specs"].items_raw()
        for number in range(1, _NUMBERS):
            spec = _SPEC.unpack_from(values, number * _SPEC.size)
            action, (proto, ports, low, high) = spec[table], spec[2:]
            if action:
                found[number] = Rule(action, proto=proto, ports=(low, high) if ports else None)
        return found

    def numbered(self, number: int) -> Rule | None:
        """The rule for ports or a protocol with this number, which the program reports."""
        table = self._state()[_ACTIVE] >> 1 & 1
        rule = self._specs(table).get(number)
        return self._specs(1 - table).get(number) if rule is None else rule

    def _with_others(self, others: list[Rule]) -> dict[int, Rule] | None:
        """Number -> rule, once these are added; None: all exist, and are in :attr:`known`.

        :raises MapFullError: they are too many.
        """
        result = self._specs()
        by_match = {rule.match: number for number, rule in result.items()}
        new = {rule.match for rule in others} - by_match.keys()
        if len(by_match) + len(new) > _OTHERS:
            raise _too_many(len(new))
        free = iter([number for number in range(1, _NUMBERS) if number not in result])
        changed = False
        for rule in others:
            number = by_match.get(rule.match)
            if number is None:
                number = by_match[rule.match] = next(free)
                self._clear_hits(number)
            elif result[number].action == rule.action:
                self.known.append(rule)
                continue
            result[number] = rule
            changed = True
        return result if changed else None

    def _number_anew(self, others: dict[str, Rule]) -> dict[int, Rule]:
        """Number -> rule, with numbers that the active list does not use; hits start at 0.

        :raises MapFullError: they are too many.
        """
        if len(others) > _OTHERS:
            raise _too_many(len(others))
        active = self._specs()
        free = [number for number in range(1, _NUMBERS) if number not in active]
        numbered = dict(zip(free, others.values(), strict=False))
        for number in numbered:
            self._clear_hits(number)
        return numbered

    def _clear_hits(self, number: int) -> None:
        hits = self.maps["hits"]
        sc.map_update(hits.fd, number.to_bytes(4, sys.byteorder), bytes(hits._value_bytes))

    def _edit_others(self, others: dict[int, Rule] | None) -> None:
        """Put ports and protocols in force; None: they stay."""
        if others is None:
            return
        table = 1 - (self._state()[_ACTIVE] >> 1 & 1)
        self._set_dirty(_SWITCHING)
        self._write_others(others, table)
        self._put_in_force(others=table)
        sc.grace_period()  # programs that use the other table have finished
        self._set_dirty(0)

    def _write_others(self, others: dict[int, Rule], table: int) -> None:
        """Write the rules for ports and protocols to the inactive table."""
        _, _, values = self.maps["specs"].items_raw()
        new = bytearray(values)
        for number in range(1, _NUMBERS):
            at = number * _SPEC.size
            rule = others.get(number)
            new[at + table] = 0 if rule is None else rule.action
            if rule is not None:
                low, high = rule.ports or (0, 0)
                actions = new[at : at + 2]
                _SPEC.pack_into(new, at, *actions, rule.proto, rule.ports is not None, low, high)
        self.maps["specs"].update_raw(array("I", range(_NUMBERS)).tobytes(), bytes(new))
        self._write_cells(others, table)

    def _write_cells(self, specs: dict[int, Rule], table: int) -> None:
        """Write a table of ports and protocols.

        Of overlapping ranges the narrowest applies; of equal ones, the one that denies.
        """
        from bpfkit.xdp_firewall.rules import PORT_PROTOCOLS

        first = {proto: 256 + i * 65536 for i, proto in enumerate(PORT_PROTOCOLS.values())}
        wanted = array("I", bytes(4 * _TABLE))

        def width(entry: tuple[int, Rule]) -> tuple[int, int]:
            low, high = entry[1].ports or (0, 0)
            return low - high, entry[1].action

        for number, rule in sorted(specs.items(), key=width):
            cell = rule.action << 16 | number
            if rule.ports is None:
                wanted[rule.proto] = cell
            else:
                low, high = rule.ports
                base = first[rule.proto]
                wanted[base + low : base + high + 1] = array("I", [cell]) * (high - low + 1)
        memory = self.maps["cells"].mmap()
        there = memoryview(memory).cast("I")  # every second word: elements are 8 bytes apart
        target = memoryview(wanted)
        first_cell = table * _TABLE
        for at in range(0, _TABLE, _BLOCK):
            part = target[at : at + _BLOCK]
            start = 2 * (first_cell + at)
            place = slice(start, start + 2 * len(part), 2)
            if there[place].tobytes() != part.tobytes():
                there[place] = part
        there.release()
        memory.close()

    def others(self) -> list[tuple[Rule, int, int]]:
        """(rule, packets, bytes) of each rule for ports or a protocol."""
        result = []
        for number, rule in sorted(self._specs().items()):
            packets, size = self._sum("hits", number)
            result.append((rule, packets, size))
        return result

    # -- figures

    def _sum(self, name: str, key: int) -> tuple[int, int]:
        one = self.maps[name]
        raw = sc.map_lookup(one.fd, key.to_bytes(4, sys.byteorder), one._value_bytes)
        words = memoryview(raw).cast("Q")
        return sum(words[0::2]), sum(words[1::2])

    def totals(self) -> list[tuple[int, int]]:
        """(packets, bytes) for each of :data:`REASONS`, then for lost events."""
        return [self._sum("totals", reason) for reason in range(LOST + 1)]


def _together(calls: list[tuple[Any, ...]]) -> None:
    """Call each (function, arguments…) in a thread of its own, at the same time.

    Each change of a map of maps waits for an RCU grace period; simultaneous changes share one.
    """
    from threading import Thread

    errors: list[BaseException] = []

    def run(function: Callable[..., None], *arguments: Any) -> None:
        try:
            function(*arguments)
        except BaseException as error:
            errors.append(error)

    threads = [Thread(target=run, args=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _family(rule: Rule) -> int:
    return 4 if len(rule.address) == 4 else 6


def _in_force(rule: Any, edit: int) -> int:
    """The action of an unpacked rule while ``edit`` is in force; 0: it does not exist."""
    return int(rule[0] if rule[3] <= edit else rule[1])


def _others_of(rules: Iterable[Rule]) -> dict[str, Rule]:
    """Match -> rule: where both actions are given, deny wins."""
    final: dict[str, Rule] = {}
    for rule in rules:
        if rule.match not in final or rule.action == DENY:
            final[rule.match] = rule
    return final


def _too_many(count: int) -> MapFullError:
    return MapFullError(
        f"{count_of(count, 'more rule')} for ports and protocols are too many",
        why=f"at most {_OTHERS}",
        hint="no rule was changed",
    )


def _lookup(rules: Map, key: bytes) -> Any:
    """(action, action before, 0, edit, packets, bytes), or None."""
    try:
        return _RULE.unpack(sc.map_lookup(rules.fd, key, _RULE.size))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise BpfkitError("cannot read the rules", why=errno_text(error.errno or 0)) from None


# -- from another process ------------------------------------------------------------------------


def find(interface: str | None = None) -> Firewall:
    """The firewall on an interface of the calling thread's namespace; None: the only firewall.

    :raises PrivilegeError: not permitted to open other processes' maps (CAP_SYS_ADMIN).
    :raises BpfkitError: no firewall, or more than one.
    """
    require_ids()
    wanted = None
    if interface is not None:
        from bpfkit.net.links.interfaces import Interface

        wanted = Interface.find(interface).index  # by any of its names
    found: list[tuple[str, int]] = []
    for index, name in _names():
        if wanted in (None, index):
            found += [(name, program) for program in _firewalls(index)]
    if not found:
        where = f"on {interface}" if interface else "on any interface of this namespace"
        raise BpfkitError(
            "no firewall is running",
            why=f"no firewall program is attached {where}",
            hint=f"start it: python3 -m bpfkit.xdp_firewall -i {interface or 'IF'}",
        )
    if len({program for _, program in found}) > 1:
        raise InputError(
            "more than one firewall is running",
            why="firewalls run on " + ", ".join(name for name, _ in found),
            hint="choose one with -i IF",
        )
    return _open(*found[0])


def _names() -> list[tuple[int, str]]:
    return _socket.if_nameindex()


def _firewalls(index: int) -> list[int]:
    from bpfkit.net.attach.xdp import attached

    try:
        return [one.prog_id for one in attached(index) if one.name == PROGRAM]
    except OSError:
        return []  # the interface was removed


def _open(interface: str, program: int) -> Firewall:
    maps = maps_of(program, f"the firewall on {interface}")
    if not set(MAPS) <= set(maps) or maps["state"].value_size != _STATE.size:
        close_maps(maps)
        raise BpfkitError(
            f"program {program} on {interface} is not this version's firewall",
            why="it lacks maps of this version",
        )
    return Firewall(maps, interface, owned=True)
