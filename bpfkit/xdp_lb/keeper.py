# SPDX-License-Identifier: Apache-2.0
"""The loop beside xdp_lb: who is well, where they are, and what the file of backends says now.

::

    file of backends ─┐
    TCP connections ──┼─▶ backends' state ─▶ Balancer.apply() ─▶ what it moved ─▶ tell()
    neighbour table ──┘
"""

from __future__ import annotations

import os

from bpfkit.core.errors import BpfkitError, InputError
from bpfkit.xdp_lb.balancer import read_backends
from bpfkit.xdp_lb.health import Health, connect_all
from bpfkit.xdp_lb.neighbours import neighbours, provoke, resolve, route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from threading import Lock
    from typing import Any

    from bpfkit.net.links.interfaces import Interface
    from bpfkit.xdp_lb.balancer import Balancer
    from bpfkit.xdp_lb.neighbours import Route

__all__ = ["Keeper", "change_words"]


class Keeper:
    """Keeps the backends of a balancer as they are; in a thread of its own from :meth:`start` on.

    :param interface: where the balancer is: backends must be reached by it.
    :param given: address -> weight of the backends that the command line names.
    :param path: file with more of them, watched; "" for none.
    :param port: TCP port that well backends answer on; 0: all are well.
    :param on_link: backends must be neighbours, not behind a gateway.
    :param tell: gets a row for each change, and a text for each complaint.
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
        self._read: Any = None  # what the file looked like when it was read last

    # -- the loop

    def start(self) -> None:
        """A first look at everything, which puts the table in place; then the loop.

        :raises InputError: a bad file, or a backend that cannot be one.
        """
        from threading import Thread

        if self.path:
            self._read = self._look_of_file()
        self._want(self._wanted())
        self._examine()
        self._apply("start")
        self._thread = Thread(target=self._run, name="keeper", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the loop."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._end.wait(self.interval):
                self.tick()
        except BaseException as error:
            self.error = error

    def tick(self) -> None:
        """Look at everything once."""
        words = self._reread() if self.path else []  # also those that are removed
        known = neighbours(self.interface.index)
        for one in self.balancer.backends.values():
            if not known.get(one.hop):
                provoke(self.interface.index, one.hop)
        self._locate(known)
        self._examine()
        for one in self.balancer.backends.values():
            if one.wanted_state != one.state and not one.removed:
                words.append(_change_of(one.address, one.wanted_state, one.ill, one.mac))
        if words:
            self._apply(", ".join(words))

    def _apply(self, words: str) -> None:
        with self._lock:
            moved = self.balancer.apply()
        self._tell({"change": words, **moved})

    # -- what there is to look at

    def _wanted(self) -> dict[str, int]:
        """The command line's backends and the file's."""
        wanted = dict(self.given)
        for name, weight in (read_backends(self.path) if self.path else {}).items():
            if name in wanted:
                raise InputError(f"{self.path}: {name} is given by --backend as well")
            wanted[name] = weight
        return wanted

    def _want(self, wanted: dict[str, int]) -> None:
        """Make them the balancer's, after a look at the routes of those that are new."""
        routes = {name: self._route(name) for name in wanted if name not in self.balancer.backends}
        with self._lock:
            fresh = self.balancer.want(wanted)
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
            raise InputError(what, why=f"no route to it: {error.why}") from None
        if found.local:
            raise InputError(what, why="it is an address of this host")
        if found.ifindex != self.interface.index:
            raise InputError(what, why=f"it is reached by {if_indextoname(found.ifindex)}")
        if self.on_link and found.hop != name:
            raise InputError(
                what,
                why=f"it is behind the gateway {found.hop}, which looks at the IP address",
                hint="--forward ipip reaches it",
            )
        return found

    def _look_of_file(self) -> object:
        try:
            stat = os.stat(self.path)
        except OSError:
            return None
        return stat.st_ino, stat.st_size, stat.st_mtime_ns

    def _reread(self) -> list[str]:
        """Take over what the file says, if it has changed; the changes in words."""
        look = self._look_of_file()
        if look == self._read:
            return []
        self._read = look
        before = {name: one.weight for name, one in self.balancer.backends.items()}
        try:
            wanted = self._wanted()
            self._want(wanted)
        except InputError as error:
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
        """Take over MAC addresses.  One that is not known any more stays: health decides."""
        for one in self.balancer.backends.values():
            mac = known.get(one.hop, one.mac)
            if mac != one.mac:
                one.mac = mac
                with self._lock:
                    self.balancer.refresh(one)

    def _examine(self) -> None:
        """Who is well?  Those that are removed are not asked."""
        asked = [one for one in self.balancer.backends.values() if not one.removed]
        if not self.port:
            for one in asked:
                one.ill = ""
            return
        self.health.learn(connect_all([one.address for one in asked], self.port, self.timeout))
        for one in asked:
            one.ill = self.health.why[one.address]


def _change_of(name: str, state: int, ill: str, mac: bytes) -> str:
    if state:
        return f"{name} up"
    return f"{name} down ({ill or 'no answer to the question for its MAC address'})"


def change_words(row: dict[str, Any]) -> str:
    """A change in a line."""
    if row["change"] == "start":
        return f"backends up: {row['backends']}"
    return (
        f"{row['change']}: {row['backends']} up; {row['moved_slots']} of {row['slots']} slots "
        f"moved ({row['ideal_slots']} had to); {row['moved_flows']} of {row['flows']} flows moved, "
        f"{row['spared_flows']} stay only because they are remembered"
    )
