# SPDX-License-Identifier: Apache-2.0
"""Reads and changes the rules of a running xdp_firewall, from any process.

::

    interface ─▶ XDP program ─▶ ids of its maps ─▶ the maps      (nothing is pinned)

    state.generation & 1 ─▶ fronts, blooms: pre-filter: is there such a prefix at all?
                         ─▶ v4, v6:         prefix ─▶ action, packets, bytes
    cells: port or protocol ─▶ number ─▶ specs, hits

:meth:`Firewall.load` builds a new list in new maps and activates it by one store: there always is
an active list, and a process that is killed earlier leaves the old list unchanged.
:meth:`Firewall.add` and :meth:`Firewall.delete` change the active list.  The pre-filter may have
false positives but no false negatives, so a prefix is entered there before its rule is, and stays
until the next load.

Editors exclude each other by flock on the directory of the ownership records; the kernel releases
the lock when a process dies.
"""

from __future__ import annotations

import _socket
import errno
import os
import sys
import time
from array import array
from struct import Struct

from bpfkit.core.closing import Closing
from bpfkit.core.errors import BpfkitError, InputError, MapError, PrivilegeError, errno_text
from bpfkit.core.kernel import syscall as sc
from bpfkit.core.maps.base import Map, MapFullError
from bpfkit.core.records import records_dir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from bpfkit.xdp_firewall.rules import Rule, RuleSet

__all__ = ["ALLOW", "DENY", "FRONTS", "MAPS", "Firewall", "find", "templates"]

#: The program's name, and the maps that an editor uses.
PROGRAM = "xdp_firewall"
MAPS = ("state", "fronts", "v4", "v6", "blooms", "cells", "specs", "hits", "totals")
ALLOW, DENY = 1, 2
#: The kinds of pre-filter: FRONT_* of bpf_c/xdp/xdp_firewall.h.
FRONTS = {"none": 0, "bits": 1, "bloom": 2}
_BLOOM = FRONTS["bloom"]

_STATE = Struct("=QQQ")
_RULE = Struct("=IIQQ")
_SPEC = Struct("=BBBBHH")
_LENGTHS, _END = 192, 255  # struct front
_COUNTS = {4: 2 * _LENGTHS, 6: 2 * _LENGTHS + 8}
_FRONT_SIZE = 2 * _LENGTHS + 64 + (1 << 21)
_MMAPABLE = 1 << 10
_KEY_SIZES = {4: 8, 6: 24}
_SMALLEST = 1 << 10
_AT_ONCE = 128  # MOST of xdp_firewall_fill.bpf.c
_NUMBERS = 1024
_CELLS = 256 + 5 * 65536
_BLOCK = 4096  # cells compared at once
_WAIT = 20.0  # seconds to wait for another editor

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


class _Lock(Closing):
    """A lock for editors: waits for another one, and is released on close."""

    def __init__(self) -> None:
        import fcntl

        directory = records_dir()
        try:
            os.makedirs(directory, 0o700, exist_ok=True)
            self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            why = errno_text(error.errno or 0)
            raise BpfkitError(f"cannot lock {directory}", why=why) from None
        deadline = time.monotonic() + _WAIT
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    self.close()
                    raise BpfkitError(
                        "cannot change the rules",
                        why=f"another editor has held the lock for {_WAIT} s",
                    ) from None
                time.sleep(0.01)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


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
        self._set_state(0, most, FRONTS[front])
        sizes = self._sizes(rules)
        numbers = self._numbers(rules.others)
        with self._built(rules, sizes, FRONTS[front]) as first:
            self._fill(1, first)
        self._set_state(1, most, FRONTS[front])
        self._replace_others(rules.others, numbers)

    def _state(self) -> tuple[int, int, int]:
        raw = sc.map_lookup(self.maps["state"].fd, bytes(4), _STATE.size)
        generation, most, front = _STATE.unpack(raw)
        return generation, most, front

    def _set_state(self, generation: int, most: int, front: int) -> None:
        sc.map_update(self.maps["state"].fd, bytes(4), _STATE.pack(generation, most, front))

    @property
    def most(self) -> int:
        """Maximum number of prefixes."""
        return self._state()[1]

    def _inner(self, name: str, slot: int) -> Map:
        return Map.from_id(int(self.maps[name].lookup(slot)))

    def _current(self) -> _Generation:
        """The maps of the active list, to be closed by the caller."""
        for _ in range(100):
            generation, _, front = self._state()
            names = ["fronts", "v4", "v6"] + (["blooms"] if front == _BLOOM else [])
            made: list[Map] = []
            try:
                for name in names:
                    made.append(self._inner(name, generation & 1))
            except (KeyError, MapError):  # an editor has just activated another list
                for one in made:
                    one.close()
                continue
            rules = {4: made[1], 6: made[2]}
            return _Generation(made[0], rules, made[3] if front == _BLOOM else None)
        raise BpfkitError("cannot read the rules", why="they change too often")

    def _publish(self, new: _Generation) -> None:
        """Activate a list and free the previous one."""
        generation, most, front = self._state()
        slot = generation & 1
        self._fill(1 - slot, new)
        self._set_state(generation + 1, most, front)
        sc.grace_period()  # programs that read the old number have finished
        self._forget(slot)

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
        with _Lock():
            self._forget(1 - (self._state()[0] & 1))  # left by an editor that was killed
            sizes = self._sizes(rules)
            numbers = self._numbers(rules.others)
            with self._built(rules, sizes, self._state()[2]) as new:
                count = new.total
                self._publish(new)
            self._replace_others(rules.others, numbers)
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
                    new.rules[family].update_raw(keys, _RULE.pack(action, 0, 0, 0))
            for family, one in new.rules.items():
                new.set_count(family, len(one))
        except BaseException:
            new.close()
            raise
        return new

    def add(self, rules: Iterable[Rule]) -> int:
        """Add rules, or change the action of existing ones; returns the number of new and changed.

        :raises MapFullError: no room; the preceding rules have been added.
        """
        from bpfkit.xdp_firewall.rules import RuleSet

        wanted = list(rules)
        self.known = []
        with _Lock():
            prefixes = [rule for rule in wanted if rule.address]
            others = [rule for rule in wanted if not rule.address]
            numbers = self._numbers(others)
            if prefixes:
                packed = RuleSet(prefixes)
                with self._with_room(len(prefixes)) as now:
                    for family in (4, 6):
                        now.announce(family, packed.keys(family), packed.lengths(family))
                    for rule in prefixes:
                        self._add_prefix(now, rule)
            self._add_others(others, numbers)
        return len(wanted) - len(self.known)

    def _add_prefix(self, now: _Generation, rule: Rule) -> None:
        family = 4 if len(rule.address) == 4 else 6
        rules = now.rules[family]
        before = _lookup(rules, rule.key)
        if before is not None and before[0] == rule.action:
            self.known.append(rule)
            return
        packets, size = before[2:] if before is not None else (0, 0)
        if before is None and now.total >= self.most:
            raise self._full(rule)
        rules.update_raw(rule.key, _RULE.pack(rule.action, 0, packets, size))
        if before is None:
            now.set_count(family, now.count(family) + 1)

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
        with _Lock():
            specs = self._specs()
            by_match = {rule.match: number for number, rule in specs.items()}
            with self._current() as now:
                for rule in wanted:
                    if rule.address:
                        there = _lookup(now.rules[4 if len(rule.address) == 4 else 6], rule.key)
                        missing = there is None
                    else:
                        missing = rule.match not in by_match
                    if missing:
                        raise InputError(
                            f"no rule about {rule.match} on {self.interface}",
                            why="nothing was deleted",
                            hint="`list` shows all rules",
                        )
                for rule in wanted:
                    if rule.address:
                        family = 4 if len(rule.address) == 4 else 6
                        sc.map_delete(now.rules[family].fd, rule.key)
                        now.set_count(family, now.count(family) - 1)
            gone = [by_match[rule.match] for rule in wanted if not rule.address]
            if gone:
                left = {n: rule for n, rule in specs.items() if n not in gone}
                self._write_cells(left)
                self._free(gone)

    def prefixes(self, hit_only: bool = False) -> Iterator[tuple[int, bytes, int, int, int, int]]:
        """(family, address, length, action, packets, bytes) of each prefix with a rule."""
        with self._current() as now:
            for family, one in now.rules.items():
                count, keys, values = one.items_raw()
                packets = values.cast("B").cast("Q")[1::3].tolist()
                size = _KEY_SIZES[family]
                width = 4 if family == 4 else 16
                for i in range(count):
                    if hit_only and not packets[i]:
                        continue
                    action, _, number, octets = _RULE.unpack_from(values, i * _RULE.size)
                    at = i * size
                    length = int.from_bytes(keys[at + width : at + size], sys.byteorder)
                    yield family, bytes(keys[at : at + width]), length, action, number, octets

    @property
    def count(self) -> int:
        """Number of prefixes with a rule."""
        with self._current() as now:
            return now.total

    # -- ports and protocols

    def _specs(self) -> dict[int, Rule]:
        """Number -> rule for ports or a protocol."""
        from bpfkit.xdp_firewall.rules import Rule

        found = {}
        _, _, values = self.maps["specs"].items_raw()
        for number in range(1, _NUMBERS):
            action, proto, ports, _, low, high = _SPEC.unpack_from(values, number * _SPEC.size)
            if action:
                found[number] = Rule(action, proto=proto, ports=(low, high) if ports else None)
        return found

    def numbered(self, number: int) -> Rule | None:
        """The rule for ports or a protocol with this number, which the program reports."""
        return self._specs().get(number)

    def _numbers(self, others: list[Rule]) -> list[int]:
        """Free numbers for new rules.

        :raises MapFullError: too few are free.
        """
        specs = self._specs()
        there = {rule.match for rule in specs.values()}
        new = {rule.match for rule in others} - there
        free = [number for number in range(1, _NUMBERS) if number not in specs]
        if len(new) > len(free):
            raise MapFullError(
                f"{len(new)} more rules for ports and protocols are too many",
                why=f"at most {_NUMBERS - 1}",
                hint="no rule was changed",
            )
        return free

    def _write_spec(self, number: int, rule: Rule) -> None:
        low, high = rule.ports or (0, 0)
        raw = _SPEC.pack(rule.action, rule.proto, rule.ports is not None, 0, low, high)
        sc.map_update(self.maps["specs"].fd, number.to_bytes(4, sys.byteorder), raw)

    def _add_others(self, others: list[Rule], free: list[int]) -> None:
        if not others:
            return
        specs = self._specs()
        by_match = {rule.match: number for number, rule in specs.items()}
        for rule in others:
            number = by_match.get(rule.match)
            if number is None:
                number = by_match[rule.match] = free.pop(0)
            elif specs[number].action == rule.action:
                self.known.append(rule)
                continue
            self._write_spec(number, rule)
            specs[number] = rule
        self._write_cells(specs)

    def _replace_others(self, others: list[Rule], free: list[int]) -> None:
        """Replace all rules for ports and protocols; each cell changes in one store."""
        before = self._specs()
        if not others and not before:
            return
        final: dict[str, Rule] = {}
        for rule in others:  # deny wins
            if final.get(rule.match) is None or rule.action == DENY:
                final[rule.match] = rule
        self._add_others(list(final.values()), free)
        keep = {n: rule for n, rule in self._specs().items() if rule.match in final}
        self._write_cells(keep)
        gone = [number for number in before if number not in keep]
        if gone:
            self._free(gone)

    def _free(self, numbers: list[int]) -> None:
        sc.grace_period()  # programs that read the number from a cell have finished
        zero = bytes(_SPEC.size)
        hits = self.maps["hits"]
        for number in numbers:
            key = number.to_bytes(4, sys.byteorder)
            sc.map_update(self.maps["specs"].fd, key, zero)
            sc.map_update(hits.fd, key, bytes(hits._value_bytes))

    def _write_cells(self, specs: dict[int, Rule]) -> None:
        """Write the table of ports and protocols.

        Of overlapping ranges the narrowest applies; of equal ones, the one that denies.
        """
        from bpfkit.xdp_firewall.rules import PORT_PROTOCOLS

        first = {proto: 256 + i * 65536 for i, proto in enumerate(PORT_PROTOCOLS.values())}
        wanted = array("I", bytes(4 * _CELLS))

        def width(entry: tuple[int, Rule]) -> tuple[int, int]:
            low, high = entry[1].ports or (0, 0)
            return low - high, entry[1].action

        for number, rule in sorted(specs.items(), key=width):
            if rule.ports is None:
                wanted[rule.proto] = number
            else:
                low, high = rule.ports
                base = first[rule.proto]
                wanted[base + low : base + high + 1] = array("I", [number]) * (high - low + 1)
        memory = self.maps["cells"].mmap()
        there = memoryview(memory).cast("I")  # every second word: elements are 8 bytes apart
        target = memoryview(wanted)
        for at in range(0, _CELLS, _BLOCK):
            part = target[at : at + _BLOCK]
            place = slice(2 * at, 2 * (at + len(part)), 2)
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


def _lookup(rules: Map, key: bytes) -> Any:
    """(action, 0, packets, bytes), or None."""
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
    try:
        sc.next_id(sc.PROG_GET_NEXT_ID, 0)
    except OSError as error:
        if error.errno == errno.EPERM:
            raise PrivilegeError("needs root: run it with sudo (missing CAP_SYS_ADMIN)") from None
        raise
    if interface is not None:
        from bpfkit.net.links.interfaces import Interface

        Interface.find(interface)  # raises if there is no such interface
    found: list[tuple[str, int]] = []
    for index, name in _names():
        if interface in (None, name):
            found += [(name, program) for program in _firewalls(index)]
    if not found:
        where = f"on {interface}" if interface else "on any interface of this namespace"
        raise BpfkitError(
            "no firewall is running",
            why=f"no firewall program is attached {where}",
            hint=f"start it: python -m bpfkit.xdp_firewall -i {interface or 'IF'}",
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
    maps: dict[str, Map] = {}
    try:
        fd = sc.prog_get_fd_by_id(program)
        try:
            for number in sc.prog_map_ids(fd):
                one = Map.from_id(number)
                maps[one.name] = one
        finally:
            os.close(fd)
    except (OSError, BpfkitError) as error:
        for one in maps.values():
            one.close()
        why = errno_text(error.errno or 0) if isinstance(error, OSError) else str(error)
        raise BpfkitError(f"the firewall on {interface} has just stopped", why=why) from None
    if not set(MAPS) <= set(maps):
        for one in maps.values():
            one.close()
        raise BpfkitError(
            f"program {program} on {interface} is not this version's firewall",
            why="it lacks maps of this version",
        )
    return Firewall(maps, interface, owned=True)
