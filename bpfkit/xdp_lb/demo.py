# SPDX-License-Identifier: Apache-2.0
"""xdp_lb's demo: one of three backends fails and returns; and its verdicts.

Every answer names the backend that sent it; the balancer's table says which backend should have.
"""

from __future__ import annotations

import time

from bpfkit.core.errors import BpfkitError
from bpfkit.core.words import count_of
from bpfkit.net.packets.capture import Capture
from bpfkit.net.packets.frames import syn_packet
from bpfkit.xdp_lb.balancer import flow_hash
from bpfkit.xdp_lb.lab import BACKENDS, NAMES, PORT, VIP4, VIP6, BackendLab, source_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from threading import Lock

    from bpfkit.show.rows import Verdict
    from bpfkit.xdp_lb.balancer import Balancer
    from bpfkit.xdp_lb.lab import Conversation


__all__ = ["STATES", "BalancerDemo"]

VIPS = (VIP4, VIP6)
_CONNECTIONS = 30  # new ones to each VIP, in each state
_PERSISTENT = 6  # connections to each VIP that stay open
_VICTIM = "b2"
#: What follows each other, again and again.
STATES = ("all three", "without b2", "b2 is back")


class BalancerDemo(BackendLab):
    """The lab and the traffic in it.

    :param tunnel: the balancer sends packets to the backends in IP in IP.
    """

    def __init__(self, tunnel: bool = True) -> None:
        self.tunnel = tunnel
        #: State -> (VIP, backend that answered, backend in the table) of each request.
        self.answers: dict[str, list[tuple[str, str, str]]] = {}
        #: Persistent connections, and the backend of each.
        self.talks: list[tuple[Conversation, str]] = []
        #: State -> failed or misdirected requests by the persistent connections to others than b2.
        self.lost: dict[str, int] = {}
        self._steps = 0
        super().__init__(decapsulate=tunnel)

    @property
    def others(self) -> int:
        """Number of persistent connections to other backends than b2."""
        return sum(first != _VICTIM for _, first in self.talks)

    @property
    def is_down(self) -> bool:
        """Whether b2 is down, which :meth:`step` is to bring back."""
        return self._steps % len(STATES) == 2

    def step(self, balancer: Balancer, lock: Lock) -> None:
        """Requests by new and by persistent connections in the next of the three states.

        :raises BpfkitError: the balancer did not notice a change.
        """
        if not self.talks:
            for name in NAMES:
                self._until(balancer, lock, name, True)
            for vip in VIPS:
                for _ in range(_PERSISTENT):
                    talk = self.connect(vip)
                    self.talks.append((talk, talk.request()))
        number = self._steps % len(STATES)
        if number:
            (self.stop if number == 1 else self.start)(_VICTIM)
            self._until(balancer, lock, _VICTIM, number == 2)
        self._steps += 1
        self._requests(STATES[number], balancer)

    @staticmethod
    def _until(balancer: Balancer, lock: Lock, name: str, up: bool) -> None:
        one = balancer.backends[BACKENDS[name]]
        deadline = time.monotonic() + 20
        while True:
            with lock:  # not during a change
                if bool(one.state) == up:
                    return
            if time.monotonic() > deadline:
                state = "up" if up else "down"
                raise BpfkitError(f"the balancer did not notice that {name} is {state}")
            time.sleep(0.01)

    def _requests(self, state: str, balancer: Balancer) -> None:
        names = {address: name for name, address in BACKENDS.items()}
        rows = self.answers.setdefault(state, [])
        for vip, source, sport, who in self.burst(VIPS, _CONNECTIONS):
            hash_ = flow_hash(source, sport, vip, PORT, 6) if sport else 0
            rows.append((vip, who, names.get(balancer.expected(hash_), "")))
        lost = sum(talk.request() != first for talk, first in self.talks if first != _VICTIM)
        self.lost[state] = self.lost.get(state, 0) + lost

    # -- what must be true

    def verdicts(self, balancer: Balancer, too_big: Callable[[], int]) -> Iterator[Verdict]:
        """The verdicts after the demo.

        :param too_big: number of packets answered with "packet too big" so far.
        """
        from collections import Counter

        for state, rows in self.answers.items():
            for vip in VIPS:
                mine = [(who, wanted) for v, who, wanted in rows if v == vip]
                right = sum(who == wanted != "" for who, wanted in mine)
                who = Counter(who for who, _ in mine)
                words = ", ".join(f"{who[name]} by {name or 'none'}" for name in sorted(who))
                yield (
                    right == len(mine),
                    f"{state}, {vip}: {right} of {len(mine)} requests answered by the backend that "
                    f"the table has for them ({words})",
                )
            lost = self.lost[state]
            lost_text = count_of(lost, "request")
            text = f"{self.others} open connections to others continued, {lost_text} lost"
            yield lost == 0 < self.others, f"{state}: {text}"
        who = Counter(who for _, who, _ in self.answers["all three"])
        share = len(self.answers["all three"]) / len(NAMES)
        words = ", ".join(f"{who[name]} by {name}" for name in NAMES)
        yield (
            all(share / 2 <= who[name] <= share * 2 for name in NAMES),
            f"all three: each answered between half and twice its share of {share:.0f} ({words})",
        )
        slots = sorted(Counter(balancer.table).values())
        even = len(slots) == len(NAMES) and slots[-1] - slots[0] <= 1
        yield (
            even,
            f"{len(balancer.table)} slots: {slots[0]} to {slots[-1]} for each backend",
        )
        yield from self._direct_return()
        yield from self._path_mtu(too_big)
        yield from self._tags(balancer)

    def _direct_return(self) -> Iterator[Verdict]:
        """Captures at the switch's ports: replies bypass the balancer."""
        captures = {
            name: Capture(name, ns=self.lab["switch"], outgoing=name == "lb")
            for name in ("lb", *NAMES)
        }
        try:
            asked = self.burst(VIPS, 5)
            time.sleep(0.05)
            seen = {
                name: [source_of(packet.data) for packet in capture.packets]
                for name, capture in captures.items()
            }
            for vip in VIPS:
                there, here = sum(seen[name].count(vip) for name in NAMES), seen["lb"].count(vip)
                answered = sum(who != "" for v, _, _, who in asked if v == vip)
                yield (
                    answered == 5 <= there and here == 0,
                    f"{vip}: {count_of(there, 'packet')} of replies left the backends, "
                    f"{here} passed lb",
                )
        finally:
            for capture in captures.values():
                capture.close()

    def _path_mtu(self, too_big: Callable[[], int]) -> Iterator[Verdict]:
        """The client learns the path MTU from "packet too big" and sends smaller packets."""
        for vip in VIPS:
            before = too_big()
            talk = self.connect(vip)
            try:
                who = talk.request(bytes(100_000))
            finally:
                talk.close()
            count = too_big() - before
            text = f"{vip}: 100 kB arrived ({count_of(count, 'packet')} answered with 'too big')"
            yield who != "" and (count > 0) == self.tunnel, text

    def _tags(self, balancer: Balancer) -> Iterator[Verdict]:
        """A tagged packet is forwarded to the right backend with its tags."""
        mac = bytes.fromhex(self.lab.lladdr("lb:eth0").replace(":", ""))
        for vip, client in ((VIP4, "10.77.1.1"), (VIP6, "fd77:1::1")):
            for tags in (b"\x81\x00\x00\x05", b"\x88\xa8\x00\x07\x81\x00\x00\x05"):
                packet = syn_packet(client, vip, ports=(4242, PORT), df=True)
                kind = b"\x86\xdd" if ":" in vip else b"\x08\x00"
                back = self.inject(mac + b"\x02\0\0\0\0\x09" + tags + kind + packet)
                name = balancer.expected(flow_hash(client, 4242, vip, PORT, 6))
                good = (
                    len(back) == 1
                    and back[0][:6] == balancer.backends[name].mac
                    and back[0][12 : 12 + len(tags)] == tags
                    and back[0].endswith(packet)
                    and len(back[0]) - len(packet) - 14 - len(tags)
                    == (0 if not self.tunnel else 40 if ":" in name else 20)
                )
                yield good, f"{vip}: a SYN with {len(tags) // 4} VLAN tags was forwarded with them"

    def close(self) -> None:
        """Close the connections and remove the lab."""
        while self.talks:
            self.talks.pop()[0].close()
        super().close()
