# SPDX-License-Identifier: Apache-2.0
"""A thread that keeps the sockets in the map up to date while sk_lookup runs.

It looks twice a second, ten times a second while a listener is missing, and at once when a lookup
missed or a server has bound its port: a server that restarts is steered to again, and edits by
other processes get their sockets.
"""

from __future__ import annotations

import os
from time import monotonic

from bpfkit.core.closing import Closing
from bpfkit.core.errors import BpfkitError
from bpfkit.net.sockets.listeners import Listener, listeners
from bpfkit.sk_lookup.rules import PROTOS
from bpfkit.sk_lookup.sockets import Sockets, holder, in_use

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from bpfkit.sk_lookup.binds import Binds
    from bpfkit.sk_lookup.control import Steering
    from bpfkit.sk_lookup.replies import Replies
    from bpfkit.sk_lookup.rules import Rule
    from bpfkit.sk_lookup.targets import Target

__all__ = ["Watcher"]

_USUAL, _MISSING = 0.5, 0.1
#: After a bind(2) listen(2) is still to come: seconds between looks, and how long.
_SOON, _SOON_FOR = 0.002, 0.1
#: A listener that is missing for so long is reported; some servers open a new one for each client.
_LASTING = 0.25
#: Different troubles that are said, each once.
_TOLD = 20


class Watcher(Closing):
    """The thread; :meth:`look` is its work, and is called once before it starts.

    :param note: prints a line for the user.
    """

    def __init__(
        self, steering: Steering, replies: Replies, binds: Binds, note: Callable[[str], None]
    ) -> None:
        from threading import Thread

        self._troubles: set[str] = set()
        self._steering = steering
        self._replies = replies
        self._binds = binds
        self._note = note
        self.sockets = Sockets(steering.maps["sockets"])
        self._generation = -1
        self._rules: list[Rule] = []
        self._targets: dict[int, Target] = {}
        #: (number of a target, protocol) that there are rules for.
        self._protos: set[tuple[int, str]] = set()
        #: (target's key, protocol) -> whether anything listens.
        self._listening: dict[tuple[object, str], bool] = {}
        self._missing_since: dict[object, float] = {}
        self._said: set[object] = set()
        self._others: frozenset[int] = frozenset()
        self._taken: set[int] = set()
        self._first = True
        self._ended = False
        self._soon_until = 0.0
        self.look()
        self._first = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._bell = steering.bell()
        self._thread = Thread(target=self._run, name="watcher", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look now."""
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """End the thread."""
        self._ended = True
        self.wake()
        self._thread.join(5.0)
        os.close(self._wake)
        self._bell.close()

    def _run(self) -> None:
        from select import POLLIN, poll

        poller = poll()
        poller.register(self._wake, POLLIN)
        poller.register(self._binds.fileno(), POLLIN)
        poller.register(self._bell, POLLIN)
        while True:
            poller.poll(int(self._pause() * 1000) + 1)
            if self._ended:
                return
            try:
                os.eventfd_read(self._wake)
            except BlockingIOError:
                pass
            try:
                while self._bell.recv(1):
                    pass
            except OSError:
                pass  # no more of them
            try:
                if self._binds.drain():
                    self._soon_until = monotonic() + _SOON_FOR
                self.look()
            except Exception as error:
                self._say_trouble(error)

    def _say_trouble(self, error: Exception) -> None:
        """Say once what went wrong; what is steered stays steered."""
        text = str(error) if isinstance(error, BpfkitError) else f"{type(error).__name__}: {error}"
        if text not in self._troubles and len(self._troubles) < _TOLD:
            self._troubles.add(text)
            self._note(f"cannot bring the listeners up to date: {text}")

    def _pause(self) -> float:
        if all(self._listening.values()):
            return _USUAL
        return _SOON if monotonic() < self._soon_until else _MISSING

    def look(self) -> None:
        """Bring the sockets, and what rewrites replies, up to date."""
        from bpfkit.app.editing import EditLock

        if self._steering.unfinished:
            self._steering.finish_edit()  # waits for an editor that is at work
        with EditLock():
            generation = self._steering.generation
            if generation != self._generation:
                entries = self._steering.entries()
                self._rules = [entry.rule for entry in entries]
                self._protos = {
                    (entry.target, proto)
                    for entry in entries
                    for proto, bit in PROTOS.items()
                    if entry.rule.protos & bit
                }
                self._targets = self._steering.targets()
            self.sockets.refresh(self._targets)
        everybody = listeners()
        self._report_listeners(everybody)
        self._report_others(everybody, generation != self._generation)
        self._generation = generation
        servers = [
            one
            for number, chosen in self.sockets.chosen.items()
            for one in chosen
            if (number, one.proto) in self._protos
        ]
        self._replies.update(one for one in servers if one.proto == "udp")
        if servers:  # else stay in the cgroup where the server was
            self._binds.update(servers, {target.port for target in self._targets.values()})
        self._steering.caught_up(generation)

    def _report_listeners(self, found: list[Listener]) -> None:
        now: dict[tuple[object, str], bool] = {}
        for number, target in self._targets.items():
            chosen = self.sockets.chosen.get(number, [])
            for proto in PROTOS:
                if (number, proto) not in self._protos:
                    continue
                key = target.key, proto
                same = [one for one in chosen if one.proto == proto]
                if same or key in self._listening:
                    now[key] = bool(same)
                    self._report_change(key, same)
            self._report_refused(target, found)
        self._listening = now

    def _report_change(self, key: tuple[tuple[Any, ...], str], same: list[Listener]) -> None:
        """Say that nobody listens, if that lasts, and that somebody does again."""
        if not same:
            since = self._missing_since.setdefault(key, monotonic())
            if key not in self._said and monotonic() >= since + _LASTING:
                self._said.add(key)
                self._note(
                    f"nobody listens on {key[1]} port {key[0][0]} any more: "
                    "lookups miss until a server does"
                )
            return
        self._missing_since.pop(key, None)
        if key in self._said:
            self._said.discard(key)
            self._note(f"{holder(same[0])} listens on {same[0]}: steered to again")

    def _report_refused(self, target: Target, found: list[Listener]) -> None:
        for one in found:
            why = self.sockets.refusal(one) if one.port == target.port else ""
            if why and one.cookie not in self._taken:
                self._taken.add(one.cookie)
                self._note(f"cannot steer to {one} of {holder(one)}: {why}")

    def _report_others(self, found: list[Listener], edited: bool) -> None:
        """Say who listens, in vain, on a port that is steered away."""
        there = frozenset(one.inode for one in found)
        if there == self._others and not edited:
            return
        self._others = there
        own = {one.inode for chosen in self.sockets.chosen.values() for one in chosen}
        own |= {one.inode for one in self.sockets.found}
        used = list(in_use(self._rules, own, found))
        if not self._first:
            for rule, one in used:
                if one.inode not in self._taken:
                    self._note(
                        f"{holder(one)} listens on {one} and gets nothing new: "
                        f"'{rule}' steers it away"
                    )
        self._taken |= {one.inode for _, one in used}
