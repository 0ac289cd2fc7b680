# SPDX-License-Identifier: Apache-2.0
"""What happens in xdp_lb's lab: one of three backends dies and comes back; and what must be true.

Every request tells who answered it; the balancer's table told before who was to.
"""

from __future__ import annotations

import time

from bpfkit.core.errors import BpfkitError
from bpfkit.net.packets.capture import Capture
from bpfkit.net.packets.frames import syn_packet
from bpfkit.xdp_lb.balancer import flow_hash
from bpfkit.xdp_lb.lab import BACKENDS, NAMES, PORT, VIP4, VIP6, BackendLab, source_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from threading import Lock

    from bpfkit.xdp_lb.balancer import Balancer
    from bpfkit.xdp_lb.lab import Conversation

    Verdict = tuple[bool, str]

__all__ = ["BalancerDemo"]

VIPS = (VIP4, VIP6)
_ASKED = 30  # connections to each VIP, in each state
_TALKS = 6  # that stay open, to each VIP
_VICTIM = "b2"


class BalancerDemo(BackendLab):
    """The lab, and the play in it.

    :param tunnel: packets come to the backends in an IP header.
    """

    def __init__(self, tunnel: bool = True) -> None:
        self.tunnel = tunnel
        #: State -> (VIP, who answered, who was to), a row per request.
        self.asked: dict[str, list[tuple[str, str, str]]] = {}
        #: Connections that stay open, and who has them.
        self.talks: list[tuple[Conversation, str]] = []
        #: State -> how many of those to others than b2 got no answer, or one by somebody else.
        self.lost: dict[str, int] = {}
        super().__init__(decapsulate=tunnel)

    @property
    def others(self) -> int:
        """Open connections to others than b2."""
        return sum(first != _VICTIM for _, first in self.talks)

    def perform(self, balancer: Balancer, lock: Lock, pause: Callable[[], None]) -> None:
        """All three; b2 dies, which is noticed; it comes back.  In each state there are requests
        by new connections and by those that stay open.

        :raises BpfkitError: it was not noticed.
        """
        if not self.talks:
            for name in NAMES:
                self._until(balancer, lock, name, True)
            for vip in VIPS:
                for _ in range(_TALKS):
                    talk = self.talk(vip)
                    self.talks.append((talk, talk.ask()))
        self._requests("all three", balancer)
        pause()
        self.stop(_VICTIM)
        self._until(balancer, lock, _VICTIM, False)
        self._requests("without b2", balancer)
        pause()
        self.start(_VICTIM)
        self._until(balancer, lock, _VICTIM, True)
        self._requests("b2 is back", balancer)

    @staticmethod
    def _until(balancer: Balancer, lock: Lock, name: str, up: bool) -> None:
        one = balancer.backends[BACKENDS[name]]
        deadline = time.monotonic() + 20
        while True:
            with lock:  # not in the midst of a change
                if bool(one.state) == up:
                    return
            if time.monotonic() > deadline:
                raise BpfkitError(f"it was not noticed that {name} {'came' if up else 'went'}")
            time.sleep(0.01)

    def _requests(self, state: str, balancer: Balancer) -> None:
        names = {address: name for name, address in BACKENDS.items()}
        rows = self.asked.setdefault(state, [])
        for vip, source, sport, who in self.burst(VIPS, _ASKED):
            hash_ = flow_hash(source, sport, vip, PORT, 6) if sport else 0
            rows.append((vip, who, names.get(balancer.expected(hash_), "")))
        lost = sum(talk.ask() != first for talk, first in self.talks if first != _VICTIM)
        self.lost[state] = self.lost.get(state, 0) + lost

    # -- what must be true

    def verdicts(self, balancer: Balancer, told: Callable[[], int]) -> Iterator[Verdict]:
        """After the play.

        :param told: how many packets were answered with "too big" until now.
        """
        from collections import Counter

        for state, rows in self.asked.items():
            for vip in VIPS:
                mine = [(who, wanted) for v, who, wanted in rows if v == vip]
                right = sum(who == wanted != "" for who, wanted in mine)
                who = Counter(who for who, _ in mine)
                words = ", ".join(f"{who[name]} by {name or 'nobody'}" for name in sorted(who))
                yield (
                    right == len(mine),
                    f"{state}, {vip}: {right} of {len(mine)} requests answered by the backend "
                    f"that the table has for them ({words})",
                )
            lost = self.lost[state]
            text = f"{self.others} open connections to others went on, {lost} requests were lost"
            yield lost == 0 < self.others, f"{state}: {text}"
        who = Counter(who for _, who, _ in self.asked["all three"])
        share = len(self.asked["all three"]) / len(NAMES)
        words = ", ".join(f"{who[name]} by {name}" for name in NAMES)
        yield (
            all(share / 2 <= who[name] <= share * 2 for name in NAMES),
            f"all three: each between half and twice its share of {share:.0f} ({words})",
        )
        slots = sorted(Counter(balancer.table).values())
        even = len(slots) == len(NAMES) and slots[-1] - slots[0] <= 1
        yield even, f"{len(balancer.table)} slots: {slots[0]} to {slots[-1]} for each backend"
        yield from self._directness()
        yield from self._path_mtu(told)
        yield from self._tags(balancer)

    def _directness(self) -> Iterator[Verdict]:
        """Replies do not pass the balancer: seen at the switch's ports."""
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
                    f"{vip}: {there} packets of replies left the backends, {here} passed lb",
                )
        finally:
            for capture in captures.values():
                capture.close()

    def _path_mtu(self, told: Callable[[], int]) -> Iterator[Verdict]:
        """What would not fit is told to the client, who then sends less."""
        for vip in VIPS:
            before = told()
            talk = self.talk(vip)
            try:
                who = talk.ask(bytes(100_000))
            finally:
                talk.close()
            count = told() - before
            text = f"{vip}: 100 kB arrived ({count} packets were told to be too big)"
            yield who != "" and (count > 0) == self.tunnel, text

    def _tags(self, balancer: Balancer) -> Iterator[Verdict]:
        """A tagged packet goes back with its tags, to the backend that it must."""
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
                yield good, f"{vip}: a SYN with {len(tags) // 4} VLAN tags went on with them"

    def close(self) -> None:
        """Everything ends."""
        while self.talks:
            self.talks.pop()[0].close()
        super().close()
