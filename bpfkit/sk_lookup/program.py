# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.sk_lookup: ports, port ranges and prefixes steered to one listening socket.

The C side is bpf_c/sock/sk_lookup.bpf.c; how replies of UDP get their port is in
bpf_c/sock/sk_lookup_reply.bpf.c.  In one terminal, and in another::

    python3 -m bpfkit.sk_lookup --steer 5202:5201 --steer tcp/192.0.2.0/24:6000-6999:5201

    python3 -m bpfkit.sk_lookup add 7000:5201 udp/[2001:db8::/64]:53:5353 --pid 1234
    python3 -m bpfkit.sk_lookup del 7000:5201
    python3 -m bpfkit.sk_lookup list

The server is anyone's: it is found by its port, its address (--to), its process (--pid) or a
descriptor there (--fd), and needs no change.  The demo: one service on port 5201 answers on port
5202, on a range of ports and on two prefixes.
"""

from __future__ import annotations

import sys

from bpfkit.app.lifecycle import main as run
from bpfkit.app.sockets import SocketsApp
from bpfkit.core.errors import BpfkitError, UsageError
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable, Sequence
    from typing import Any

    from bpfkit.app.events import EventSource
    from bpfkit.show.rows import Event, Row, Verdict
    from bpfkit.sk_lookup.control import Steering
    from bpfkit.sk_lookup.demo import Demo
    from bpfkit.sk_lookup.rules import Rule
    from bpfkit.sk_lookup.targets import Target
    from bpfkit.sk_lookup.watcher import Watcher

COMMANDS = ("add", "del", "list")
_SHOWN = 40  # rules that a round prints as text; JSON has all


class SkLookup(SocketsApp):
    """Ports, ranges and prefixes steered to one listener, TCP and UDP; rules edited live."""

    name = "sk_lookup"
    source = "sock/sk_lookup.bpf.c"
    needs = (*SocketsApp.needs, "SYS_PTRACE")  # pidfd_getfd(2)
    counters = ("assigned",)  # each takes two columns of the live view
    details = ("misses", "errors", "replies")
    protects = True
    epilog = (
        "RULE is [tcp/|udp/][PREFIX:]PORTS:PORT: 5202:5201 | 6000-6999:5201 | "
        "tcp/192.0.2.0/24:1-65535:5201 | udp/[2001:db8::/64]:53:5353. PORT is where the server "
        "listens. The longest prefix decides, then the narrowest range, then the rule added last. "
        "Addresses of a prefix must be local: ip route add local 192.0.2.0/24 dev lo. "
        "Live: python3 -m bpfkit.sk_lookup add|del RULE, list. "
        "Established connections are never touched. A listener that closes leaves misses until "
        "a server listens on its port again, which is noticed at once in the old one's cgroup, "
        "else within half a second (with --pid: a server of the same user). UDP: the server "
        "answers from its own port, which clients do not accept, and no cgroup hook can write a "
        "source port: so a cgroup sendmsg hook chooses the source address, and a program at tc "
        "egress of every interface the source port, of what the client sent to last. For "
        "connected and unconnected clients, fragments included; not for servers that connect(2) "
        "a socket to each client (iperf3 -u, DTLS)."
    )
    steering: Steering
    watcher: Watcher
    traffic: Demo | None = None

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        from bpfkit.sk_lookup.commands import add_listener_options

        super().add_options(parser)
        parser.add_argument(
            "--steer",
            metavar="RULE",
            action="append",
            default=[],
            help="PORTS:PORT, such as 5202:5201; repeat for more",
        )
        add_listener_options(parser)

    def has_target(self) -> bool:
        return super().has_target() or bool(self.options.steer)

    def check_options(self) -> None:
        from bpfkit.sk_lookup.commands import parsed

        super().check_options()
        options = self.options
        for name in ("to", "pid", "fd"):
            if getattr(options, name) is not None and not options.steer:
                raise UsageError(f"--{name} needs --steer", why="it says which socket PORT is")
        self.rules: list[Rule] = [parsed(text, options.proto) for text in options.steer]

    # -- setting up

    def setup(self) -> None:
        from bpfkit.sk_lookup.commands import parsed, wanted_rules

        self._refuse_second()
        if self.place.is_private:
            from bpfkit.sk_lookup.demo import RULES, Demo

            self.traffic = self.keep(Demo(self.note))
            self.rules = [parsed(text, "both") for text in RULES]
        wanted = wanted_rules(self.rules, self.options)
        self._start(wanted)

    def _refuse_second(self) -> None:
        from bpfkit.net.attach.xdp import holders
        from bpfkit.sk_lookup.running import running

        for program in running():
            pids = ", ".join(str(pid) for pid, _ in holders(program))
            raise BpfkitError(
                "sk_lookup runs in this network namespace already",
                why=f"process {pids}" if pids else f"program {program}",
                hint="add rules to it: python3 -m bpfkit.sk_lookup add PORTS:PORT",
            )

    def _start(self, wanted: list[tuple[Rule, Target]]) -> None:
        """Fill the maps, then attach: the first lookup finds all rules and sockets."""
        from bpfkit.sk_lookup.binds import Binds
        from bpfkit.sk_lookup.control import MAPS, Steering
        from bpfkit.sk_lookup.replies import Replies
        from bpfkit.sk_lookup.watcher import Watcher

        program = self.load_program()
        self.steering = Steering({name: self.object[name] for name in MAPS})
        self.steering.add(wanted)
        self._texts: dict[int, str] = {}
        cache = not self.options.no_cache
        replies = self.keep(Replies(self.steering.maps, cache, self.note))
        binds = self.keep(Binds(cache))
        self.watcher = self.keep(Watcher(self.steering, replies, binds, self.note))
        self._say_neighbours()
        self.keep(program.attach_netns())

    def load_options(self) -> dict[str, Any]:
        from bpfkit.sk_lookup.control import port_table

        # Editors make tables without BTF, which Linux 6.1 takes only where the template has none.
        return {"reuse_maps": {"ports": self.keep(port_table())}}

    def _say_neighbours(self) -> None:
        """Say that another program steers here, too: the kernel takes the last selection."""
        import os

        from bpfkit.core.kernel import syscall as sc
        from bpfkit.core.kernel.constants import attach_type

        fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            others = sc.prog_query(fd, attach_type("SK_LOOKUP"))
        except OSError:
            return
        finally:
            os.close(fd)
        if others:
            numbers = ", ".join(map(str, others))
            self.note(
                f"another program steers in this namespace (BPF program {numbers}): where both "
                "select a socket, the one attached last decides, which is this one"
            )

    # -- figures

    def rows(self) -> list[Row]:
        from bpfkit.sk_lookup.commands import rule_rows

        return rule_rows(self.steering)

    def lines(self, rows: list[Row]) -> Iterable[str]:
        from bpfkit.sk_lookup.commands import rule_lines

        return rule_lines(rows, _SHOWN)

    def text_cells(self, row: Row) -> dict[str, str]:
        return {name: str(row[name]) for name in ("rule", "misses", "errors", "replies")}

    def notes(self, rows: list[Row]) -> list[str]:
        from bpfkit.sk_lookup.commands import rule_notes

        return rule_notes(rows)

    # -- lookups that found no socket, or one that does not fit

    def events(self) -> EventSource:
        from bpfkit.app.events import from_buffer

        buffer = self.keep(self.object["failed"].open())
        return from_buffer(buffer, self._failed, lost=lambda: self.object["lost"][0])

    def _failed(self, record: Any) -> Event:
        import errno
        from struct import pack

        from bpfkit.app.events import unix_seconds
        from bpfkit.show.address import address_text
        from bpfkit.show.protocols import protocol_name
        from bpfkit.show.rows import Event

        self.watcher.wake()
        size = 4 if record.family == 4 else 16
        if record.rule not in self._texts:
            entries = self.steering.entries()
            self._texts = {entry.number: str(entry.rule) for entry in entries}
        fields = {
            "rule": self._texts.get(record.rule, "deleted"),
            "proto": protocol_name(record.proto),
            "src": address_text(pack(">4I", *record.src)[:size]),
            "sport": record.sport,
            "dst": address_text(pack(">4I", *record.dst)[:size]),
            "dport": record.dport,
            "error": errno.errorcode.get(record.error) if record.error else None,
        }
        kind = "refused" if record.error else "miss"
        return Event(kind, unix_seconds(record.time_ns), fields)

    def event_row(self, event: Event, round_: int) -> Row:
        from bpfkit.show.rows import stamp

        first = {"ts": round(event.time, 6), "event": event.kind}
        return {**stamp(round_), **first, **event.fields}

    # -- the demo

    def demo(self) -> None:
        """Requests to ports and addresses that nobody listens on."""
        if self.traffic is not None:
            self.traffic.round()

    def conclusion(self, rows: list[Row]) -> str:
        assigned = sum(row["assigned"] for row in rows if "assigned" in row)
        return f"seen: {count_of(assigned, 'lookup')} steered to the one listening socket"

    def verify(self) -> Iterable[Verdict]:
        if self.traffic is None:
            return
        self.traffic.restart_service(self._all_listening)
        yield from self.traffic.verdicts(self.steering)

    def _all_listening(self) -> bool:
        if self.channel is not None:
            self.channel.read()  # a miss wakes the watcher
        return 0 in self.steering.maps["sockets"]  # the first target's first slot: TCP, IPv4


def main(argv: Sequence[str] | None = None) -> int:
    """Steer, or one of the commands that edit a running one."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words and words[0] in COMMANDS:
        from bpfkit.sk_lookup.commands import command

        return command(words)
    return run(SkLookup, words)
