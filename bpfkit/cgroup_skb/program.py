# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.cgroup_skb: packets and bytes of a cgroup's processes, and whom they may reach.

The C side is bpf_c/cgroup/cgroup_skb.bpf.c.  A row is a cgroup (the one attached to, or one below)
and the name of the process that created the sockets.  Packets count from the IP header on, a
super-frame as its segments.  The name is null for sockets older than the program; the cgroup is
null for packets that no row was left for.
"""

from __future__ import annotations

import errno
import os
from sys import byteorder as _BYTE_ORDER

from bpfkit.app.cgroup import CgroupApp
from bpfkit.cgroup_skb.rules import ACTIONS, ALLOW, DENY, REJECT
from bpfkit.core.errors import UsageError
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable
    from typing import Any

    from bpfkit.app.events import EventSource
    from bpfkit.cgroup_skb.demo import Server
    from bpfkit.cgroup_skb.rules import Table
    from bpfkit.core.cgroups import Cgroup
    from bpfkit.core.object import Object
    from bpfkit.show.rows import Event, Row, Verdict

__all__ = ["CgroupSkb"]

_ROWS = 2048  # MAX_ROWS
_NO_PORT = 0x10000
_HOOKS = ("ingress", "egress", "connect", "sendmsg")  # enum hook
_EVENT_RATE = 1000
_COUNTS = (
    "in_packets", "in_bytes", "out_packets", "out_bytes", "denied_packets", "denied_bytes"
)  # fmt: skip


class CgroupSkb(CgroupApp):
    """Packets and bytes per cgroup and process name; allow, deny, reject by prefix and port."""

    protects = True
    name = "cgroup_skb"
    expects = (
        "a client talks to addresses that are allowed, denied (EPERM) or rejected (ECONNREFUSED)"
    )
    source = "cgroup/cgroup_skb.bpf.c"
    counters = ("in_bytes", "out_bytes", "denied_packets")
    epilog = (
        "A rule is PREFIX[:PORT] of the remote end, IPv6 in brackets where a port follows: "
        "[2001:db8::/32]:443. The longest prefix decides, in it the port before no port. With "
        "--allow, everything without a rule is denied. A denied packet is dropped: TCP tries "
        "again, a sender of UDP gets EPERM. --reject tells the application at once: ECONNREFUSED."
    )

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        add = parser.add_argument
        for word, text in (
            ("deny", "drop packets from and to there"),
            ("reject", "the same, and connect(2) or sendmsg(2) fails at once"),
            ("allow", "deny all but these"),
        ):
            add(f"--{word}", metavar="PREFIX[:PORT]", action="append", default=[], help=text)

    def check_options(self) -> None:
        super().check_options()
        options = self.options
        if options.check and (options.deny or options.allow or options.reject):
            raise UsageError(
                "rules and --check do not go together", why="--check has rules of its own"
            )

    def setup(self) -> None:
        from bpfkit.cgroup_skb import demo
        from bpfkit.cgroup_skb.icmp import senders
        from bpfkit.cgroup_skb.rules import parse_rule, resolve

        options = self.options
        self._server: Server | None = None
        self._below: Cgroup | None = None
        self._paths: dict[int, str] = {}
        self._clients: list[dict[str, Any]] = self.for_check([])
        words = {word: list(getattr(options, word)) for word in ("allow", "reject", "deny")}
        if self.wants_demo() and not any(words.values()):
            for word, text in demo.RULES:
                words[word].append(text)
        # The order says which of two actions for the same prefix and port counts: the last.
        kinds = {"allow": ALLOW, "reject": REJECT, "deny": DENY}
        rules = [parse_rule(text, kinds[word]) for word in kinds for text in words[word]]
        default = DENY if words["allow"] else ALLOW
        self._table: Table = resolve(rules, default)
        rejects = any(rule.action == REJECT for rule in rules)
        by_icmp = senders() if rejects else None
        for program in by_icmp or ():
            self.keep(program)
        self.load_program(
            have_rules=bool(rules),
            have_ports=bool(self._table.ports),
            default_action=default,
            reject_calls=rejects,
            event_rate=_EVENT_RATE,
        )
        for index, program in enumerate(by_icmp or ()):
            self.object["senders"][index] = program
        self._by_icmp = by_icmp is not None
        if rejects:
            self.note(
                "rejects in connect(2) and sendmsg(2), other packets by ICMP (bpf_icmp_send)"
                if by_icmp
                else "rejects in connect(2) and sendmsg(2); other packets are dropped without an "
                "answer: the kernel has no bpf_icmp_send"
            )
        for name, program in self.object.programs.items():
            # A hook at every sendmsg(2) costs; it has work only where a rule rejects.
            if rejects or not name.startswith("call_sendmsg"):
                self.attach(program)
        if self.wants_demo():
            from bpfkit.core.cgroups import Cgroup

            self._server = self.keep(demo.Server())
            self._below = self.keep(Cgroup.new("below", parent=self.group.path))
            self.note(
                "the demo's clients send UDP to 127.0.0.1 and ::1, to 127.0.0.2 (denied) and to "
                "127.0.0.3 (rejected), one client from a cgroup below"
            )

    def prepare(self, loaded: Object) -> None:
        for number in range(1, _ROWS):
            loaded["free_slots"].push(number)
        for size, table in ((4, loaded["prefixes4"]), (16, loaded["prefixes6"])):
            mine = [address for address, _ in self._table.prefixes if len(address) == size]
            self.check_room(table, mine, "prefixes with rules")
        self.check_room(loaded["ports"], self._table.ports, "ports of prefixes with rules")
        for (address, length), (action, group) in self._table.prefixes.items():
            key = length.to_bytes(4, _BYTE_ORDER) + address
            value = action.to_bytes(4, _BYTE_ORDER) + group.to_bytes(4, _BYTE_ORDER)
            loaded["prefixes4" if len(address) == 4 else "prefixes6"][key] = value
        ports = loaded["ports"]
        for place, action in self._table.ports.items():
            ports[place] = action

    def demo(self) -> None:
        from json import loads

        from bpfkit.cgroup_skb.demo import CLIENT

        groups = [self.group]
        if self._below is not None:
            groups.append(self._below)
        for group in groups:
            ran = group.run(CLIENT)
            done = ran.stdout or ran.stderr
            try:
                said = loads(done)
            except ValueError:
                said = {"failed": done}
            self._clients.append({"group": group.id, **said})
            refused = said.get("denied", [0])[0]
            self.note(
                f"a client got {errno.errorcode.get(refused, 'no error')} from 127.0.0.2 and "
                + ", ".join(
                    f"{errno.errorcode.get(number, 'no error')} from {host} after {ms * 1e3:.1f} ms"
                    for host, number, ms in said.get("rejected", [])[:2]
                )
            )

    # -- figures

    def _path(self, number: int) -> str:
        """The path of a cgroup, from the hierarchy's root, by its id."""
        found = self._paths.get(number)
        if found is None:
            from bpfkit.core.cgroups import cgroup_root

            root = cgroup_root()
            for directory, _, _ in os.walk(self.group.path):
                try:
                    seen = os.stat(directory).st_ino
                except OSError:
                    continue  # removed meanwhile
                self._paths[seen] = directory[len(root) :] or "/"
            found = self._paths.setdefault(number, f"(removed, id {number})")
        return found

    def rows(self) -> list[Row]:
        rows = []
        traffic = self.object["traffic"]
        for who, slot in self.object["slots"].items():
            path = self._path(who.cgroup)
            rows.append(self._row(path, who.comm or None, traffic.sum(slot)))
        rows.sort(key=lambda row: (row["cgroup"], row["comm"] or ""))
        rest = self._row(None, None, traffic.sum(0))
        if any(rest[name] for name in _COUNTS):
            rows.append(rest)
        return rows

    @staticmethod
    def _row(path: str | None, comm: str | None, counts: Any) -> Row:
        return {"cgroup": path, "comm": comm, **{name: getattr(counts, name) for name in _COUNTS}}

    def lines(self, rows: list[Row]) -> Iterable[str]:
        from bpfkit.show.text import cell, table

        titles = ["cgroup", "process", "in", "bytes", "out", "bytes", "denied", "bytes"]
        body = [
            [self._short(row["cgroup"]), cell(row["comm"]), *(str(row[name]) for name in _COUNTS)]
            for row in rows
        ]
        return table(titles, body, right=[False] * 2 + [True] * 6) if body else []

    def _short(self, path: str | None) -> str:
        """A path as seen from the cgroup attached to."""
        if path is None:
            return "(no row left)"
        top = self._path(self.group.id)
        if path == top:
            return "."
        return "." + path[len(top.rstrip("/")) :] if path.startswith(top) else path

    def text_cells(self, row: Row) -> dict[str, str]:
        from bpfkit.show.text import cell

        return {"cgroup": self._short(row["cgroup"]), "process": cell(row["comm"])}

    # -- events

    def events(self) -> EventSource:
        from bpfkit.app.events import from_buffer

        buffer = self.keep(self.object["refused"].open())
        return from_buffer(buffer, self._refusal, lost=lambda: self.object["lost"][0])

    def _refusal(self, record: Any) -> Event:
        from bpfkit.app.events import unix_seconds
        from bpfkit.show.protocols import protocol_name
        from bpfkit.show.rows import Event

        hook = _HOOKS[record.hook]
        remote = _address(record.remote, record.family), _port(record.remote_port)
        local = (
            (_address(record.local, record.family), _port(record.local_port))
            if hook in ("ingress", "egress")
            else (None, None)
        )
        source, destination = (remote, local) if hook == "ingress" else (local, remote)
        rejected = record.action == REJECT
        fields = {
            "action": ACTIONS[record.action],
            "hook": hook,
            "answer": self._answer(hook) if rejected else None,
            "proto": protocol_name(record.proto) if record.family else None,
            "src": source[0],
            "sport": source[1],
            "dst": destination[0],
            "dport": destination[1],
            "length": record.length or None,
            "cgroup": self._path(record.who.cgroup) if record.who.cgroup else None,
            "comm": record.who.comm or None,
            "pid": record.pid or None,
        }
        return Event("denied", unix_seconds(record.time_ns), fields)

    def _answer(self, hook: str) -> str | None:
        """What the application hears of a reject at this hook."""
        if hook in ("connect", "sendmsg"):
            return "ECONNREFUSED"
        return "icmp" if hook == "egress" and self._by_icmp else None

    def event_line(self, event: Event) -> str:
        from bpfkit.show.rows import Event
        from bpfkit.show.text import cell

        get = event.fields.get

        def end(address: str | None, port: int | None) -> str:
            text = cell(address)
            if port is None:
                return text
            return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"

        fields: dict[str, Any] = {
            str(get("hook")): f"{get('proto')} {end(get('src'), get('sport'))} > "
            f"{end(get('dst'), get('dport'))}",
            "by": f"{cell(get('comm'))} ({get('pid') or '-'})",
        }
        if get("answer"):
            fields["answer"] = get("answer")
        kind = {"deny": "denied", "reject": "rejected"}[str(get("action"))]
        return super().event_line(Event(kind, event.time, fields))

    # -- --check

    def conclusion(self, rows: list[Row]) -> str:
        denied = sum(row["denied_packets"] for row in rows)
        return (
            f"seen: {count_of(denied, 'packet')} denied; who sent them is known by cgroup and "
            "process"
        )

    def verify(self) -> Iterable[Verdict]:
        from bpfkit.cgroup_skb.demo import DENIED, ECHOED, RAW, expected

        packets, size = expected()
        assert self._server is not None
        clients = self._clients
        sent = packets * len(clients)
        arrived = self._server.datagrams
        yield arrived == sent, f"{arrived} of {sent} datagrams arrived at the echo server"
        payload = len(clients) * sum(count * size for _, count, size in ECHOED)
        yield self._server.payload == payload, f"{self._server.payload} of {payload} bytes in them"
        for group in {client["group"]: None for client in clients}:
            mine = [client for client in clients if client["group"] == group]
            comm = mine[0].get("comm")
            path = self._path(group)
            (row,) = [r for r in self.rows() if (r["cgroup"], r["comm"]) == (path, comm)] or [{}]
            for way in ("out", "in"):
                got = row.get(f"{way}_packets"), row.get(f"{way}_bytes")
                want = packets * len(mine), size * len(mine)
                yield got == want, f"{self._short(path)} {comm} {way}: {got}, sent {want}"
            denied = row.get("denied_packets")
            refused = (DENIED + len(RAW)) * len(mine)
            good = denied == refused
            yield good, f"{count_of(denied or 0, 'packet')} denied, the client was denied {refused}"
        for client in clients:
            refusals = client.get("denied")
            good = refusals == [errno.EPERM] * DENIED
            yield good, f"sendto 127.0.0.2: errno {refusals}"
            for host, number, seconds in client.get("rejected", [["nobody", 0, 0]]):
                good = number == errno.ECONNREFUSED and seconds < 1
                yield good, f"connect {host}: errno {number} after {seconds * 1e3:.1f} ms"
            number = client.get("rejected_udp")
            yield number == errno.ECONNREFUSED, f"sendto 127.0.0.3: errno {number}"
            told = errno.ECONNREFUSED if self._by_icmp else 0
            for host, number, answer in client.get("rejected_raw", [["nobody", 0, -1]]):
                good = (number, answer) == (errno.EPERM, told)
                yield good, f"raw UDP packet to {host}: errno {number}, then {answer}"
        yield self._server.accepted == 0, f"{self._server.accepted} rejected connections arrived"


def _address(words: Any, family: int) -> str | None:
    """The address of a record; None where there was none to read."""
    from bpfkit.show.address import address_text

    if family not in (4, 6):
        return None
    raw = b"".join(int(word).to_bytes(4, "big") for word in words)
    return address_text(raw[:4] if family == 4 else raw)


def _port(number: int) -> int | None:
    return number if number < _NO_PORT else None
