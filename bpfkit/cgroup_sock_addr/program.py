# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.cgroup_sock_addr: connections of a cgroup go to another address, or fail.

The C side is bpf_c/cgroup/cgroup_sock_addr.bpf.c, and cgroup_sock_addr_unix.bpf.c beside it::

    python3 -m bpfkit.cgroup_sock_addr --redirect 192.0.2.1:80=127.0.0.1:8080 -- curl 192.0.2.1
    python3 -m bpfkit.cgroup_sock_addr --redirect tcp/0.0.0.0/0=127.0.0.1:3128 \\
        --proxy-cgroup system.slice/proxy.service --cgroup user.slice
"""

from __future__ import annotations

from bpfkit.app.cgroup import CgroupApp
from bpfkit.core.errors import UnsupportedError, UsageError
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable, Iterator
    from typing import Any

    from bpfkit.app.events import EventSource
    from bpfkit.cgroup_sock_addr.rules import Rule
    from bpfkit.core.cgroups import Cgroup
    from bpfkit.core.object import Object
    from bpfkit.core.program import Program
    from bpfkit.show.rows import Event, Row, Verdict

#: enum what of the C side.
WHAT = ("connect", "sendmsg", "bind")
_UNIX_SOURCE = "cgroup/cgroup_sock_addr_unix.bpf.c"
#: Programs in the order of attachment: what answers comes before what redirects.
_ANSWERS = ("recvmsg4", "recvmsg6", "getpeername4", "getpeername6")
_SENDS = ("sendmsg4", "sendmsg6", "connect4", "connect6")
_BINDS = ("getsockname4", "getsockname6", "bind4", "bind6")
_UNIX = ("recvmsg_unix", "sendmsg_unix", "connect_unix")
_KFUNC = "bpf_sock_addr_set_sun_path"


class CgroupSockAddr(CgroupApp):
    """Connections, datagrams and binds of a cgroup go to another address, or fail as you say."""

    protects = True
    name = "cgroup_sock_addr"
    source = "cgroup/cgroup_sock_addr.bpf.c"
    counters = ("connects", "datagrams", "binds")
    epilog = (
        "FROM is [tcp/|udp/]HOST[/LENGTH][:PORT] or unix:PATH (unix:@NAME: an abstract one), TO is "
        "HOST[:PORT] or unix:PATH. The longest prefix decides; among rules for the same prefix the "
        "one with the port, then the one with the protocol. The client's getpeername() and "
        "recvfrom() say FROM. A proxy in --proxy-cgroup gets it by getsockopt(SO_ORIGINAL_DST). "
        "The proxy itself must not be in the cgroup whose connections are redirected. A socket "
        "that is connected already stays as it is; UNIX paths are compared as written. "
        "getpeername() of UNIX and MPTCP sockets says TO."
    )
    proxy_group: Cgroup | None = None
    unix: Object | None = None
    _failed = 0

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        add = parser.add_argument
        many: dict[str, Any] = {"action": "append", "default": []}
        add("--redirect", metavar="FROM=TO", **many, help="connect and send to TO instead of FROM")
        add("--deny", metavar="FROM", **many, help="connect and send to FROM fails")
        add("--allow", metavar="FROM", **many, help="an exception to wider rules")
        add("--bind", metavar="FROM=TO", **many, help="bind TO instead of FROM")
        add("--errno", metavar="NAME", help="how --deny fails (default: ECONNREFUSED)")
        add(
            "--proxy-cgroup",
            metavar="PATH",
            help="SO_ORIGINAL_DST answers the proxies of this cgroup",
        )

        add("--no-events", action="store_true", help="count only")

    def check_options(self) -> None:
        from bpfkit.cgroup_sock_addr.rules import error_number, make_rules

        super().check_options()
        options = self.options
        words = (options.redirect, options.deny, options.allow, options.bind)
        given = any(words)
        observed = options.cgroup is not None or bool(options.command)
        if options.check and (given or options.errno or options.proxy_cgroup):
            raise UsageError("--check takes no rules", why="it verifies those of the demo")
        if not given and (observed or options.errno or options.proxy_cgroup):
            raise UsageError("no rule", why="say --redirect FROM=TO or --deny FROM")
        if options.errno and not options.deny:
            raise UsageError("--errno needs --deny", why="only what is denied fails with it")
        self.error = error_number(options.errno or "ECONNREFUSED")
        self.is_demo = not given
        if self.is_demo:
            from bpfkit.cgroup_sock_addr import demo

            words = (demo.REDIRECT, demo.DENY, demo.ALLOW, demo.BIND)
            self.has_unix = _has_unix()
            if self.has_unix:
                words = (demo.REDIRECT + demo.UNIX, demo.DENY + demo.UNIX_DENY, *words[2:])
        elif not observed:
            raise UsageError("rules need -- COMMAND or --cgroup PATH", why="whom are they for?")
        self.rules = make_rules(*words)

    def setup(self) -> None:
        unix = [rule for rule in self.rules if rule.is_unix]
        ip = [rule for rule in self.rules if not rule.is_unix]
        if unix and not _has_unix():
            raise UnsupportedError(
                "cannot redirect or deny UNIX sockets",
                why=f"this kernel has no hooks for them (no {_KFUNC}(): Linux 6.7)",
            )
        for rule in self.rules:
            for address in rule.escapes:
                assert rule.target is not None
                self.note(
                    f"{address} is not redirected: {rule.target.text} has no address of its family"
                )
        self._find_proxy()
        self.load_ip(ip)
        if unix:
            self.load_unix(unix)
        for name in (*_ANSWERS, *_BINDS, "client_state", *_SENDS):
            if name in self.object.programs:
                self.attach_in_order(self.object.programs[name])
        if self.proxy_group is not None:
            program = self.object.programs["original_dst"]
            self.keep(program.attach_cgroup(self.proxy_group.path))
        if self.unix is not None:
            for name in _UNIX:
                self.attach_in_order(self.unix.programs[name])
        if self.is_demo:
            from bpfkit.cgroup_sock_addr.demo import Proxy

            assert self.proxy_group is not None
            self.keep(Proxy(self.proxy_group))
        self.seen: list[dict[str, Any]] = self.for_check([])

    def attach_in_order(self, program: Program) -> None:
        """Attach behind the programs that are there, or in front of them if it undoes a
        redirection: the last one is undone first (kernel 6.17; before that, behind them)."""
        if program.name.startswith(("recvmsg", "getpeername", "getsockname")):
            try:
                self.keep(program.attach_cgroup(self.group.path, before=0))
                return
            except UnsupportedError:
                pass
        self.attach(program)

    def _find_proxy(self) -> None:
        from bpfkit.core.cgroups import Cgroup

        if self.is_demo:
            self.proxy_group = self.keep(Cgroup.new("proxy"))
        elif self.options.proxy_cgroup is not None:
            self.proxy_group = self.keep(Cgroup.open(self.options.proxy_cgroup))
            if f"{self.proxy_group.path}/".startswith(f"{self.group.path}/"):
                self.note(
                    f"the proxies of {self.proxy_group.path} are redirected, too: they come back "
                    "to themselves unless --allow lists where they connect to"
                )

    def load_options(self) -> dict[str, Any]:
        """Only the programs that the rules need."""
        names: list[str] = []
        ip = [rule for rule in self.rules if not rule.is_unix]
        if any(rule.action != "bind" for rule in ip):
            names += _ANSWERS + _SENDS
        if any(rule.action == "bind" for rule in ip):
            names += _BINDS
        if self.proxy_group is not None:
            names += ["client_state", "original_dst"]
        return {"programs": names}

    def load_ip(self, rules: list[Rule]) -> None:
        """Load the programs for IP and fill their rules in."""
        entries = [entry for rule in rules for entry in rule.entries(self.error)]
        shapes = {(bool(key[3]), bool(key[2])) for key, _ in entries}
        self.object = self.load(
            with_port_and_protocol=(True, True) in shapes,
            with_port=(True, False) in shapes,
            with_protocol=(False, True) in shapes,
            with_neither=(False, False) in shapes,
            with_events=not self.options.no_events,
        )
        for key, value in entries:
            self.object["rules"][key] = value

    def load_unix(self, rules: list[Rule]) -> None:
        """Load the programs for UNIX sockets; figures are shared with those for IP."""
        from bpfkit import load
        from bpfkit.cgroup_sock_addr.rules import DENY, PATH_LEN, REDIRECT
        from bpfkit.core.types.btf import vmlinux

        btf = vmlinux()
        assert btf is not None  # the kfunc was found in it
        loaded = load(
            _UNIX_SOURCE,
            consts={
                "uaddr_offset": btf.offset("bpf_sock_addr_kern", "uaddr"),
                "uaddrlen_offset": btf.offset("bpf_sock_addr_kern", "uaddrlen"),
                "with_events": not self.options.no_events,
            },
            reuse_maps={name: self.object[name] for name in ("counts", "lost")},
            cache=not self.options.no_cache,
        )
        self.unix = self.keep(loaded)
        for rule in rules:
            source, target = rule.source, rule.target
            assert source.path is not None
            to, to_len = bytes(PATH_LEN), 0
            if target is not None and target.path is not None:
                to, to_len = target.path, target.path_len
            words = [rule.number, DENY, self.error, to_len]
            if rule.action == "redirect":
                words = [rule.number, REDIRECT, 0, to_len]
            value = b"".join(word.to_bytes(4, "little") for word in words)
            value += source.path + source.path_len.to_bytes(4, "little") + to
            loaded["rules"].update_raw(source.path, value)

    def demo(self) -> None:
        import json
        import sys

        from bpfkit.cgroup_sock_addr.demo import CLIENT

        if not self.seen and not self.options.check:
            self.note(
                "a client talks to 192.0.2.1, 2001:db8::1 and 192.0.2.53, which do not exist; a "
                "proxy on loopback answers, and says where the client wanted to go"
            )
        done = self.run_inside([sys.executable or "python3", "-I", "-S", "-c", CLIENT])
        if done.returncode:
            self.note(f"the client failed: {done.stderr.strip().splitlines()[-1:]}")
            return
        self.seen.append(json.loads(done.stdout))
        if not self.options.check:
            self.note(_story(self.seen[-1]))

    def rows(self) -> list[Row]:
        counts = self.object["counts"]
        failed = self.object["lost"][1]
        if failed > self._failed:
            self._failed = failed
            self.note(f"no memory for original addresses: {failed} system calls failed")
        rows = []
        for rule in self.rules:
            hits = counts.sum(rule.number).hits
            rows.append(
                {
                    "rule": rule.source.text,
                    "action": rule.action,
                    "to": rule.target.text if rule.target is not None else None,
                    "connects": hits[0],
                    "datagrams": hits[1],
                    "binds": hits[2],
                }
            )
        return rows

    def events(self) -> EventSource:
        from bpfkit.app.events import EventSource, from_buffer

        sources = [from_buffer(self.keep(self.object["events"].open()), self._event)]
        if self.unix is not None:
            buffer = self.keep(self.unix["unix_events"].open())
            sources.append(from_buffer(buffer, self._unix_event))

        def read() -> Iterator[Event | None]:
            for source in sources:
                yield from source.read()

        filenos = [fd for source in sources for fd in source.filenos]
        return EventSource(read, filenos, lambda: self.object["lost"][0])

    def _event(self, record: Any) -> Event:
        from bpfkit.show.protocols import protocol_name

        target = None if record.error else _end(record.to)
        return self._made(
            record, protocol_name(record.proto), _end(getattr(record, "from")), target
        )

    def _unix_event(self, record: Any) -> Event:
        rule = self.rules[record.rule]
        target = rule.target.text if rule.target is not None else None
        return self._made(record, "unix", rule.source.text, target)

    def _made(self, record: Any, proto: str, source: str, target: str | None) -> Event:
        import errno

        from bpfkit.app.events import unix_seconds
        from bpfkit.show.rows import Event

        fields: dict[str, Any] = {"what": WHAT[record.what], "proto": proto, "from": source}
        if record.error:
            fields["errno"] = errno.errorcode.get(record.error, str(record.error))
        else:
            fields["to"] = target
        fields |= {"pid": record.pid, "comm": record.comm}
        kind = "denied" if record.error else "redirected"
        return Event(kind, unix_seconds(record.time_ns), fields)

    def event_line(self, event: Event) -> str:
        """``12:00:00.123 connect tcp 192.0.2.1:80 -> 127.0.0.1:8080 by curl (17)``."""
        from bpfkit.show.text import cell, time_of_day

        fields = event.fields
        when = time_of_day(event.time)
        target = fields["errno"] if event.kind == "denied" else fields["to"]
        return (
            f"{when} {fields['what']} {fields['proto']} {cell(fields['from'])} -> {cell(target)} "
            f"by {cell(fields['comm'])} ({fields['pid']})"
        )

    def conclusion(self, rows: list[Row]) -> str:
        moved = sum(r["connects"] + r["datagrams"] for r in rows if r.get("action") == "redirect")
        return (
            f"seen: {count_of(moved, 'call')} redirected by the kernel: the client noticed nothing"
        )

    def verify(self) -> Iterable[Verdict]:
        """What the client got from the kernel and from the proxy."""
        from bpfkit.cgroup_sock_addr.demo import SEEN, UNIX_SEEN

        wanted = {**SEEN, **UNIX_SEEN} if self.has_unix else SEEN
        for seen in self.seen:
            for what, value in wanted.items():
                got = seen.get(what)
                yield got == value, f"{what}: {_words(got)}"
        yield bool(self.seen), f"the client ran {count_of(len(self.seen), 'time')}"


def _has_unix() -> bool:
    from bpfkit.core.features.kfuncs import has_kfunc

    return has_kfunc(_KFUNC)


def _end(end: Any) -> str:
    """``192.0.2.1:80`` of a struct end."""
    from _socket import AF_INET, AF_INET6, inet_ntop
    from struct import pack

    data = pack("!4I", *end.addr)
    if data.startswith(bytes(10) + b"\xff\xff"):
        return f"{inet_ntop(AF_INET, data[12:])}:{end.port}"
    return f"[{inet_ntop(AF_INET6, data)}]:{end.port}"


def _words(value: Any) -> str:
    """What the client saw, for people."""
    import errno

    if isinstance(value, int):
        return errno.errorcode.get(value, str(value))
    if isinstance(value, list):
        return " from ".join(
            ":".join(map(str, part)) if isinstance(part, list) else str(part).replace("\0", "@")
            for part in value
        )
    return str(value)


def _story(seen: dict[str, Any]) -> str:
    """One line on what the demo's client saw."""
    parts = [f"{what}: {_words(seen.get(what))}" for what in ("tcp4", "udp4", "denied")]
    return f"the client saw {' · '.join(parts)}"
