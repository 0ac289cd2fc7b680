# SPDX-License-Identifier: Apache-2.0
"""Keeps xdp_lb's backends current: their health, their MAC addresses, and the backends file.

::

    backends file ────┐
    TCP connections ──┼─▶ backends' state ─▶ Balancer.apply() ─▶ its effect ─▶ report()
    neighbour table ──┘
"""

from __future__ import annotations

import os

from bpfkit.core.errors import BpfkitError, InputError
from bpfkit.core.words import count_of
from bpfkit.xdp_lb.balancer import read_backends
from bpfkit.xdp_lb.health import Health, connect_all
from bpfkit.xdp_lb.neighbours import neighbours, resolve, route, solicit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from threading import Lock
    from typing import Any

    from bpfkit.net.links.interfaces import Interface
    from bpfkit.xdp_lb.balancer import Balancer
    from bpfkit.xdp_lb.neighbours import Route

__all__ = ["Keeper", "change_words"]

#: Different errors that are reported; each once.
_TOLD = 20


class Keeper:
    """Keeps a balancer's backends current; in a thread from :meth:`start` on.

    :param interface: the balancer's interface, through which backends must be reachable.
    :param given: address -> weight of the backends on the command line.
    :param path: file with more backends, watched; "": none.
    :param port: TCP port for health checks; 0: no checks, all backends are up.
    :param on_link: backends must be neighbours, not behind a gateway.
    :param interval: seconds between checks.
    :param timeout: seconds to wait for connections and for MAC addresses.
    :param tell: called with a row for each change, and with a text for each error.
    :param lock: held while the balancer changes.
    """

    def __init__(
        self,
        balancer: Balancer,
        interface: Interface,
        given: Mapping[str, int],
        path: str,
        *,
        port: int,
        on_link: bool,
        interval: float,
        timeout: float,
        health: Health,
        tell: Callable[[dict[str, Any] | str], None],
        lock: Lock,
    ) -> None:
        from threading import Event

        self.balancer = balancer
        self.interface = interface
        self.given = given
        self.path = path
        self.port = port
        self.on_link = on_link
        self.interval = interval
        self.timeout = timeout
        self.health = health
        self.error: BaseException | None = None
        self._tell = tell
        self._lock = lock
        self._end = Event()
        self._thread: Any = None
        self._read: Any = None  # (inode, size, mtime) of the file when it was last read
        self._seen: Any = None  # the same, when it was last looked at
        self._told: set[str] = set()  # errors that were reported

    # -- the loop

    def start(self) -> None:
        """Check everything once, which builds the table; then start the thread.

        :raises InputError: a bad file, or an address that cannot be a backend.
        """
        from threading import Thread

        if self.path:
            self._read = self._file_state()
        self._set_backends(self._wanted())
        self._check_health()
        self._apply("start")
        self._thread = Thread(target=self._run, name="keeper", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._end.wait(self.interval):
                try:
                    self.tick()
                except (BpfkitError, OSError) as error:
                    self._fail(error)  # descriptors or memory may be there again soon
        except BaseException as error:
            self.error = error

    def _fail(self, error: BpfkitError | OSError) -> None:
        """Report an error once; the backends stay as they are."""
        text = f"cannot check the backends: {error}"
        if text not in self._told and len(self._told) < _TOLD:
            self._told.add(text)
            self._tell(text)

    def tick(self) -> None:
        """Check everything once and apply the changes."""
        words = self._reread() if self.path else []  # removed backends included
        known = neighbours(self.interface.index)
        for one in self.balancer.backends.values():
            if not known.get(one.hop):
                solicit(self.interface.index, one.hop)
        self._locate(known)
        self._check_health()
        for one in self.balancer.backends.values():
            if one.target_state != one.state and not one.removed:
                words.append(_change_of(one.address, one.target_state, one.down_reason, one.mac))
        if words:
            self._apply(", ".join(words))

    def _apply(self, words: str) -> None:
        with self._lock:
            moved = self.balancer.apply()
        self._tell({"change": words, **moved})

    # -- inputs

    def _wanted(self) -> dict[str, int]:
        """The backends of the command line and of the file."""
        wanted = dict(self.given)
        for name, weight in (read_backends(self.path) if self.path else {}).items():
            if name in wanted:
                raise InputError(f"{self.path}: {name} is also given by --backend")
            wanted[name] = weight
        return wanted

    def _set_backends(self, wanted: dict[str, int]) -> None:
        """Make them the balancer's backends, once the routes of new ones have been checked."""
        routes = {name: self._route(name) for name in wanted if name not in self.balancer.backends}
        with self._lock:
            fresh = self.balancer.set_backends(wanted)
            for one in fresh:
                one.hop = routes[one.address].hop
                one.source = routes[one.address].source or one.source
        if fresh:
            hops = [one.hop for one in fresh]
            self._locate(resolve(self.interface.index, hops, self.timeout))

    def _route(self, name: str) -> Route:
        from _socket import if_indextoname

        what = f"{name} cannot be a backend at {self.interface.name}"
        try:
            found = route(name)
        except BpfkitError as error:
            raise InputError(what, why=f"no route to {name}: {error.why}") from None
        if found.local:
            raise InputError(what, why=f"{name} is an address of this host")
        if found.ifindex != self.interface.index:
            raise InputError(
                what, why=f"the route to {name} leads out of {if_indextoname(found.ifindex)}"
            )
        if self.on_link and found.hop != name:
            raise InputError(
                what,
                why=f"{name} is behind the gateway {found.hop}, which routes by IP address",
                hint="use --forward ipip",
            )
        return found

    def _file_state(self) -> object:
        try:
            stat = os.stat(self.path)
        except OSError:
            return None
        return stat.st_ino, stat.st_size, stat.st_mtime_ns

    def _reread(self) -> list[str]:
        """Apply the file if it has changed and nobody is writing it; the changes as text.

        A file that is being replaced in place is empty or half-written for a moment: it is applied
        only if it is the same at two checks and while it is read, and it is never taken for "no
        backends": that a backend is to go must be written, as the last line or as weight 0.
        """
        state = self._file_state()
        if state == self._read:
            self._seen = state
            return []
        stable, self._seen = state == self._seen, state
        if not stable:
            return []  # look again at the next check
        before = {name: one.weight for name, one in self.balancer.backends.items()}
        try:
            wanted = self._wanted()
            if self._file_state() != state:
                return []  # it was written meanwhile
            self._read = state
            if len(wanted) == len(self.given):
                raise InputError(
                    f"{self.path} has no backends",
                    why="the last good ones stay",
                    hint="weight=0 drains a backend",
                )
            self._set_backends(wanted)
        except InputError as error:
            if self._file_state() == state:
                self._read = state
                self._tell(str(error))
            return []
        words = [f"{name} removed" for name in before if name not in wanted]
        for name, weight in wanted.items():
            if name not in before:
                words.append(f"{name} added")
            elif weight != before[name]:
                words.append(f"{name} weight {weight}" if weight else f"{name} drained")
        return words

    def _locate(self, known: Mapping[str, bytes]) -> None:
        """Apply MAC addresses.  A missing one keeps its last value; health checks decide."""
        for one in self.balancer.backends.values():
            mac = known.get(one.hop, one.mac)
            if mac != one.mac:
                one.mac = mac
                with self._lock:
                    self.balancer.refresh(one)

    def _check_health(self) -> None:
        """Check the health of all backends that are not to be removed."""
        checked = [one for one in self.balancer.backends.values() if not one.removed]
        if not self.port:
            for one in checked:
                one.down_reason = ""
            return
        self.health.update(connect_all([one.address for one in checked], self.port, self.timeout))
        for one in checked:
            one.down_reason = self.health.why[one.address]


def _change_of(name: str, state: int, ill: str, mac: bytes) -> str:
    if state:
        return f"{name} up"
    return f"{name} down ({ill or 'its MAC address is unknown'})"


def change_words(row: dict[str, Any]) -> str:
    """A change as one line of text."""
    if row["change"] == "start":
        return f"backends up: {row['backends']}"
    return (  # slots in plain digits, as the table has them
        f"{row['change']}: {row['backends']} up; {row['moved_slots']} of {row['slots']} slots "
        f"moved ({row['ideal_slots']} had to); {row['moved_flows']} of "
        f"{count_of(row['flows'], 'flow')} moved, "
        f"{row['spared_flows']} kept by the flow table only"
    )
