# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.tc_classifier: both directions of an interface, by protocol and DSCP.

The C side is bpf_c/tc/tc_classifier.bpf.c.  Rules set marks and priorities, and police::

    python3 -m bpfkit.tc_classifier -i eth0 --rule egress,udp,dscp=46,mark=7,priority=6 \\
        --rule ingress,tcp,police=10mbit,burst=200000
"""

from __future__ import annotations

from bpfkit.app.lifecycle import main
from bpfkit.app.tc import TcApp
from bpfkit.core.errors import BpfkitError, UsageError
from bpfkit.core.words import count_of, thousands

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable, Sequence

    from bpfkit.core.attach.link import Link
    from bpfkit.core.object import Object
    from bpfkit.core.program import Program
    from bpfkit.net.links.interfaces import Interface
    from bpfkit.show.rows import Row, Verdict

DIRECTIONS = ("ingress", "egress")
#: #defines of the C side.
NO_PROTO, MAX_RULES, NSEC = 256, 64, 10**9
RULE_MARK, RULE_PRIORITY, RULE_POLICE = 1, 2, 4
_UNITS = (("kbit", 10**3), ("mbit", 10**6), ("gbit", 10**9), ("bit", 1))
_DEMO_RULES = ("egress,udp,dscp=46,mark=7,priority=6", "egress,udp,dscp=8,police=8kbit,burst=3000")


class Rule:
    """What to match (None: anything) and what to set; ``rate`` and ``burst`` in bytes."""

    __slots__ = ("burst", "direction", "dscp", "mark", "priority", "proto", "rate")

    def __init__(self) -> None:
        self.direction: int | None = None
        self.proto: int | None = None
        self.dscp: int | None = None
        self.mark: int | None = None
        self.priority: int | None = None
        self.rate: int | None = None
        self.burst: int | None = None

    @classmethod
    def parse(cls, text: str) -> Rule:
        """``egress,udp,dscp=46,mark=7,priority=6,police=1mbit,burst=70000``.

        :raises ValueError: with what is wrong in it.
        """
        from bpfkit.show.protocols import protocol_number

        rule = cls()
        for word in text.split(","):
            name, equals, value = word.strip().partition("=")
            if not equals and name in DIRECTIONS:
                rule.direction = DIRECTIONS.index(name)
            elif not equals:
                try:
                    rule.proto = protocol_number(name)
                except ValueError:
                    raise ValueError(f"{name!r} is neither a direction nor a protocol") from None
            elif name == "dscp":
                rule.dscp = _number(word, value, 63)
            elif name in ("mark", "priority"):
                setattr(rule, name, _number(word, value, 0xFFFFFFFF))
            elif name == "police":
                rule.rate = _rate(value)
            elif name == "burst":
                rule.burst = _number(word, value, 10**9)
            else:
                raise ValueError(f"{word!r}: dscp, mark, priority, police or burst is expected")
        if rule.rate is None and rule.burst is not None:
            raise ValueError("a burst needs police=RATE")
        if (rule.rate, rule.mark, rule.priority) == (None, None, None):
            raise ValueError("mark=, priority= or police= is required")
        return rule

    def classes(self) -> Iterable[int]:
        """The numbers of the classes that the rule matches."""
        for direction in (0, 1) if self.direction is None else (self.direction,):
            for proto in range(256) if self.proto is None else (self.proto,):
                for dscp in range(64) if self.dscp is None else (self.dscp,):
                    yield direction << 14 | proto << 6 | dscp


def _number(word: str, text: str, most: int) -> int:
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if not 0 <= number <= most:
        raise ValueError(f"{word!r}: not a number from 0 to {most}")
    return number


def _rate(text: str) -> int:
    """Bytes per second of ``8kbit``, ``10mbit``, ``1gbit``."""
    for unit, factor in _UNITS:
        digits = text.lower().removesuffix(unit)
        if digits != text.lower() and digits.isascii() and digits.isdigit():
            rate = int(digits) * factor // 8
            if 1 <= rate <= 10**11:
                return rate
    raise ValueError(f"{text!r} is not a rate such as 8kbit, 10mbit, 1gbit")


def install(loaded: Object, rules: Sequence[Rule]) -> None:
    """Write the rules into the maps; where several match, the first one applies."""
    table = bytearray(2 * 256 * 64)
    for number, rule in reversed(list(enumerate(rules, 1))):
        for one in rule.classes():
            table[one] = number
        sets = RULE_MARK if rule.mark is not None else 0
        sets |= RULE_PRIORITY if rule.priority is not None else 0
        if rule.rate is not None:
            sets |= RULE_POLICE
            # 125 ms worth of it, and room for the largest super-frame
            burst = rule.burst or max(rule.rate // 8, 70_000)
            limit = burst * NSEC
            loaded["buckets"][number] = {
                "rate": rule.rate,
                "limit": limit,
                "fill_ns": limit // rule.rate + 1,
                "tokens": limit,
                "since_ns": 0,
            }
        loaded["rules"][number] = {
            "sets": sets,
            "mark": rule.mark or 0,
            "priority": rule.priority or 0,
            "bucket": number,
        }
    loaded["classes"][0] = bytes(table)


class TcClassifier(TcApp):
    """Packets and bytes per direction, protocol and DSCP; marks, priorities, a policer."""

    name = "tc_classifier"
    expects = "UDP of DSCP 46, 8 and 0 leaves: 46 gets a mark, 8 is policed, 0 passes as it is"
    source = "tc/tc_classifier.bpf.c"
    counters = ("packets", "bytes", "policed_packets", "policed_bytes")
    importance = ("packets", "policed_packets", "bytes", "policed_bytes")
    lab_device = "client:eth0"

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        parser.add_argument(
            "--rule",
            metavar="R",
            action="append",
            default=[],
            help="[ingress|egress,][PROTO,][dscp=N,]mark=N,priority=N,police=RATE,burst=BYTES",
        )

    def check_options(self) -> None:
        super().check_options()
        texts = self.options.rule or (_DEMO_RULES if self.options.interface is None else ())
        if len(texts) >= MAX_RULES:
            raise UsageError(f"{len(texts)} rules", why=f"there is room for {MAX_RULES - 1}")
        self.rules: list[Rule] = []
        for text in texts if self.options.pcap is None or self.options.rule else ():
            try:
                self.rules.append(Rule.parse(text))
            except ValueError as error:
                raise UsageError(f"--rule {text}", why=str(error)) from None

    def prepare(self, loaded: Object) -> None:
        self.sent = 0
        install(loaded, self.rules)
        if self.options.pcap is not None:
            self.entry = f"tc_classifier_{'in' if self.options.direction == 'ingress' else 'out'}"

    def attach_program(self, program: Program) -> list[tuple[Interface, Link]]:
        """Both directions."""
        both = zip(DIRECTIONS, self.object.programs.values(), strict=True)
        return [(self.interface, self.attach_direction(one, way)) for way, one in both]

    def attach_mode(self) -> str:
        kind = self.links[0].kind if self.links else self.options.attach
        return f"tc ingress and egress by {kind}"

    def rows(self) -> list[Row]:
        """A row per direction, protocol and DSCP that was seen."""
        from bpfkit.show.protocols import protocol_name

        rows = []
        for key, sums in sorted(
            self.object["counts"].sums(), key=lambda row: (row[0].direction, row[0].proto)
        ):
            proto = None if key.proto == NO_PROTO else protocol_name(key.proto)
            row: Row = {"direction": DIRECTIONS[key.direction], "proto": proto, "dscp": key.dscp}
            row.update({name: getattr(sums, name) for name in self.counters})
            rows.append(row)
        return rows

    def demo(self) -> None:
        """DSCP 46 (marked), DSCP 8 (policed) and DSCP 0, by UDP to the server, IPv4 and IPv6."""
        import _socket

        self.sent += 1
        for family, host in ((_socket.AF_INET, "10.77.0.2"), (_socket.AF_INET6, "fd77::2")):
            for dscp in (46, 8, 0):
                sock = self.lab["client"].socket(family, _socket.SOCK_DGRAM)
                try:
                    six = family == _socket.AF_INET6
                    sock.setsockopt(41 if six else 0, 67 if six else 1, dscp << 2)
                    for _ in range(10):
                        sock.sendto(bytes(500), (host, 9))
                except OSError as error:
                    raise BpfkitError("cannot send", why=str(error)) from None
                finally:
                    sock.close()

    def conclusion(self, rows: list[Row]) -> str:
        policed = sum(row["policed_packets"] for row in rows)
        return (
            f"seen: {count_of(policed, 'packet')} of DSCP 8 beyond the policer's rate dropped, "
            "no other"
        )

    def verify(self) -> Iterable[Verdict]:
        """Compare with the number of datagrams that were sent."""
        rows = {(r["direction"], r["proto"], r["dscp"]): r for r in self.rows()}
        for dscp in (46, 8, 0):
            seen = rows.get(("egress", "udp", dscp), {"packets": 0, "policed_packets": 0})
            sent = 20 * self.sent
            yield seen["packets"] == sent, f"DSCP {dscp}: {sent} sent, {seen['packets']} counted"
            dropped = seen["policed_packets"]
            yield (dropped > 0) == (dscp == 8), f"DSCP {dscp}: {dropped} dropped by the policer"
        yield self._tagged("egress", self.lab_device, "server:eth0")
        yield self._tagged("ingress", "server:eth0", self.lab_device)

    def _tagged(self, direction: str, leaves: str, arrives: str) -> Verdict:
        """Tagged SYNs, the only TCP here: a tag's bytes count, in the frame or kept beside it."""
        from bpfkit.net.traffic.tagged_frames import PAIR, TaggedFrames

        def counted() -> tuple[int, int]:
            key = (direction, "tcp")
            rows = [r for r in self.rows() if (r["direction"], r["proto"]) == key]
            return sum(r["packets"] for r in rows), sum(r["bytes"] for r in rows)

        ends = PAIR if direction == "egress" else [(there, here) for here, there in PAIR]
        tagged = TaggedFrames(self.lab, leaves, arrives, ends, ("TCP",))
        found = tagged.round(settled=lambda sent: counted()[0] >= sent)
        wanted = len(tagged.sent), sum(map(len, tagged.sent))
        packets, size = counted()
        text = f"{direction}: {sum(found.values())} of {wanted[0]} tagged SYNs arrive, "
        text += f"{packets} counted with {thousands(size)} of {count_of(wanted[1], 'byte')}"
        return all(found.values()) and (packets, size) == wanted, text


if __name__ == "__main__":
    raise SystemExit(main(TcClassifier))
