# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.sk_reuseport: which worker of an SO_REUSEPORT group gets a connection.

The C side is bpf_c/sock/sk_reuseport.bpf.c.  The demo has three workers, each a process, and
restarts one after the other while connections wait to be accepted: with ``--how migrate`` they
move to another worker, without the kernel resets them.  ``--port`` serves the group of processes
that are there.
"""

from __future__ import annotations

import os

from bpfkit.app.sockets import SocketsApp
from bpfkit.core.errors import BpfkitError, InputError, UnsupportedError, UsageError
from bpfkit.core.words import count_of
from bpfkit.sk_reuseport.demo import HOSTS, Pool, Restart
from bpfkit.sk_reuseport.group import SLOTS, Group

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable

    from bpfkit.net.sockets.listeners import Listener
    from bpfkit.show.rows import Row, Verdict

PORT = 5201
WORKERS = (1, 2, 3)
_SO_REUSEPORT, _SOL_SOCKET = 15, 1
#: How often the demo's workers look for connections, where the kernel does not wake them.
_LOOK_MS = 50
_MIGRATION_S = 0.2


def wakes_on_migration() -> bool:
    """Whether the kernel wakes a server for a connection that moves to its socket, by trying.

    Linux 6.18.15, for one, does not, 6.18.44 does.  The kernel's own migration
    (net.ipv4.tcp_migrate_req) goes the same way as that by a program.
    """
    import select
    import socket

    from bpfkit.net.links.netns import NetNS

    def listen(port: int) -> socket.socket:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", port))
        sock.listen()
        return sock

    with NetNS.new("migration") as ns:
        try:
            ns.sysctl("net.ipv4.tcp_migrate_req", 1)
        except InputError:
            return True  # before 5.14 nothing moves
        with ns.entered(), listen(0) as old:
            address = old.getsockname()
            with (
                socket.create_connection(address),
                listen(address[1]) as new,
                select.epoll() as poll,
            ):
                poll.register(new, select.EPOLLIN)
                old.close()
                return bool(poll.poll(_MIGRATION_S))


class SkReuseport(SocketsApp):
    """Which worker of an SO_REUSEPORT group gets a connection; restarts that lose none."""

    name = "sk_reuseport"
    expects = "clients connect while workers are replaced one by one: no connection may be lost"
    source = "sock/sk_reuseport.bpf.c"
    counters = ("selected", "migrated")
    _look_ms: int | None = None  # None: not tried
    details = ("pid", "generation", "errors")
    needs = (*SocketsApp.needs, "SYS_PTRACE")  # pidfd_getfd(2)
    protects = True
    demo_rounds = 3
    demo_in_background = False
    epilog = (
        "hash: by the flow's hash; a worker that comes or goes moves only its own share. content: "
        "the byte at --content-at of a datagram is a worker's number; TCP goes by the hash. "
        "migrate: as hash, and connections that wait to be accepted move when a worker's socket "
        "closes (Linux 5.14). The workers of --port are numbered 1, 2, … by the age of their "
        "sockets."
    )

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        from bpfkit.app.options import port, positive

        super().add_options(parser)
        add = parser.add_argument
        add(
            "--how",
            choices=("hash", "content", "migrate"),
            default="migrate",
            help="how a worker is chosen (default: migrate)",
        )
        add("--port", metavar="PORT", type=port, help="the group that listens on this port")
        add(
            "--pid",
            metavar="PID",
            type=positive,
            action="append",
            default=[],
            help="only the sockets of this process; repeatable",
        )
        add(
            "--content-at",
            metavar="N",
            type=int,
            default=0,
            help="offset of the byte in a datagram's payload (default: 0)",
        )
        add(
            "--connections",
            metavar="N",
            type=positive,
            default=60,
            help="connections of the demo that wait during a restart (default: 60)",
        )

    def has_target(self) -> bool:
        return self.options.port is not None

    def check_options(self) -> None:
        super().check_options()
        options = self.options
        if options.pid and options.port is None:
            raise UsageError("--pid needs --port")
        if options.netns is not None and options.port is None:
            raise UsageError("--netns needs --port", why="the demo has a namespace of its own")
        if not 0 <= options.content_at < 65500:
            raise UsageError(f"--content-at {options.content_at} is no offset in a datagram")

    # -- groups

    def _group(self, label: str) -> Group:
        """A group with an object of its own."""
        options = self.options
        loaded = self.load(by_content=options.how == "content", content_at=options.content_at)
        return Group(loaded, label)

    def load_options(self) -> dict[str, list[str]]:
        return {"programs": [self._entry]}

    def _load_first(self, label: str) -> Group:
        """A group with the program that migrates, if that is wanted and the kernel has it."""
        self._entry = "migrating" if self.options.how == "migrate" else "selecting"
        try:
            group = self._group(label)
            if self._entry == "migrating" and self._look_ms is None:
                self._look_ms = self._try_wakes()
            return group
        except UnsupportedError:
            if self._entry == "selecting":
                raise
            if self.options.check or self.has_target():
                raise
            self.note("the kernel moves no connections (Linux 5.14): --how hash instead")
            self._entry = "selecting"
            return self._group(label)

    def _try_wakes(self) -> int:
        """How often the demo's workers must look for connections, in milliseconds; 0: never."""
        if wakes_on_migration():
            return 0
        self.note(
            "this kernel moves a waiting connection and does not wake the worker that gets it: "
            + (
                "a server must look for connections by itself, or they wait for the next one"
                if self.has_target()
                else f"the demo's workers look every {_LOOK_MS} ms"
            )
        )
        return _LOOK_MS

    def setup(self) -> None:
        self._look_ms = None
        self.groups: dict[str, Group] = {}
        self.restarts: list[Restart] = self.for_check([])
        self._restarted = 0
        if self.has_target():
            self._serve_target()
        else:
            self._build_pool()

    def _build_pool(self) -> None:
        for proto in ("tcp", "udp"):
            self.groups[proto] = self._load_first(f"{proto} port {PORT}")
        self.pool = self.keep(Pool(self.groups, PORT, self._look_ms or 0))
        for number in WORKERS:
            self.pool.start(number)
        self._attach_pool(self.pool)

    def _attach_pool(self, pool: Pool) -> None:
        from bpfkit.net.sockets.listeners import borrow, find_owner, listeners

        done: set[str] = set()
        for one in listeners([pool.port]):
            if one.proto in done or one.proto not in pool.groups:
                continue
            owner = find_owner(one.inode)
            assert owner is not None
            fd = borrow(one, *owner)
            try:
                self.keep(pool.groups[one.proto].program().attach_reuseport(fd))
            finally:
                os.close(fd)
            done.add(one.proto)

    # -- a group of the user's

    def _serve_target(self) -> None:
        found = self._listeners()
        if not found:
            where = f"port {self.options.port}"
            raise InputError(f"nobody listens on {where}", hint="`ss -lntup` lists who does")
        self._attached: set[str] = set()
        self._take(found)
        if all(len(group.workers) == 1 for group in self.groups.values()):
            self.note("one socket listens: there is nothing to choose until another joins it")
        self.check_regularly(self._refresh)

    def _listeners(self) -> list[Listener]:
        from bpfkit.net.sockets.listeners import listeners, sockets_of

        found = listeners([self.options.port])
        if self.options.pid:
            mine: set[int] = set()
            for pid in self.options.pid:
                try:
                    mine |= sockets_of(pid)
                except InputError:
                    if not self.groups:
                        raise
            found = [one for one in found if one.inode in mine]
        return found

    def _take(self, found: list[Listener]) -> None:
        """Enter sockets that are not known, forget those that have closed."""
        from bpfkit.net.sockets.listeners import borrow, find_owner

        inodes = {one.inode for one in found}
        for group in self.groups.values():
            for worker in list(group.workers.values()):
                if worker.inode not in inodes:
                    group.remove(worker)
        for one in sorted(found, key=lambda one: one.inode):
            label = f"{one.proto} {one}"
            group = self.groups.get(label) or self._load_first(label)
            self.groups[label] = group
            if any(worker.inode == one.inode for worker in group.workers.values()):
                continue
            owner = find_owner(one.inode)
            if owner is None:
                continue  # closed meanwhile
            try:
                fd = borrow(one, *owner)
            except BpfkitError:
                if not self._attached:
                    raise
                continue
            try:
                self._enter(group, one, fd, owner[0])
            finally:
                os.close(fd)

    def _enter(self, group: Group, one: Listener, fd: int, pid: int) -> None:
        import _socket

        from bpfkit.net.attach.reuseport import GroupAttachment

        sock = _socket.socket(fileno=os.dup(fd))
        try:
            shared = sock.getsockopt(_SOL_SOCKET, _SO_REUSEPORT)
        finally:
            sock.close()
        if not shared:
            raise InputError(
                f"{one} of process {pid} is in no group",
                why="it was bound without SO_REUSEPORT",
                hint="nginx: listen PORT reuseport",
            )
        used = {worker.number for worker in group.workers.values()}
        number = next(n for n in range(1, SLOTS + 2) if n not in used)
        group.add(fd, number, pid)
        if group.label not in self._attached:
            program = group.program()
            self.keep(GroupAttachment(program, fd, self.options.port, one.proto))
            self._attached.add(group.label)

    def _refresh(self) -> None:
        self._take(self._listeners())

    # -- the demo

    def demo(self) -> None:
        """Connections, datagrams, then a worker is restarted while connections wait."""
        if not self._restarted and not self.options.check:
            self.note(
                f"three workers share port {PORT}; each round one is replaced while "
                f"{count_of(self.options.connections, 'connection')} wait to be accepted"
            )
        self.pool.connect(30)
        for number in WORKERS:
            self.pool.send(bytes([number]) + b" who", HOSTS[number % 2])
        number = WORKERS[self._restarted % len(WORKERS)]
        restart = self.pool.restart(number, self.options.connections)
        self.restarts.append(restart)
        self._restarted += 1
        if not self.options.check:
            self.note(
                f"worker {number} replaced: {count_of(restart.opened, 'connection')} waited, "
                f"{restart.answered} were answered, {restart.lost} lost"
            )

    def rows(self) -> list[Row]:
        rows: list[Row] = []
        for label, group in self.groups.items():
            counts = group.counts()
            for worker in group:
                selected, migrated, errors = counts.get(worker.slot, (0, 0, 0))
                rows.append(
                    {
                        "group": label,
                        "worker": worker.number,
                        "generation": worker.generation,
                        "pid": worker.pid,
                        "selected": selected,
                        "migrated": migrated,
                        "errors": errors,
                    }
                )
            selected, migrated, _ = counts.get(SLOTS, (0, 0, 0))
            if selected or migrated:
                rows.append(
                    {
                        "group": label,
                        "worker": None,
                        "generation": None,
                        "pid": None,
                        "selected": selected,
                        "migrated": migrated,
                        "errors": 0,
                    }
                )
        return rows

    def describe_target(self) -> str:
        if self.has_target():
            return f"port {self.options.port} of {super().describe_target()}"
        return super().describe_target()

    # -- the check

    def conclusion(self, rows: list[Row]) -> str:
        migrated = sum(row["migrated"] for row in rows)
        return (
            f"seen: {count_of(migrated, 'connection')} moved from a worker that ended to one "
            "that listens"
        )

    def verify(self) -> Iterable[Verdict]:
        """What clients got, with and without migration."""
        numbers = self.pool.connect(300)
        share = {number: numbers.count(number) for number in WORKERS}
        text = ", ".join(f"{number}: {count}" for number, count in share.items())
        good = len(numbers) == 300 and all(count > 20 for count in share.values())
        yield good, f"300 connections by the hash, answered by worker {text}"
        yield from self._verify_content()
        opened = sum(restart.opened for restart in self.restarts)
        lost = sum(restart.lost for restart in self.restarts)
        restarts, waited = count_of(len(self.restarts), "restart"), count_of(opened, "connection")
        text = f"{restarts}: {waited} waited, {lost} lost"
        yield (lost == 0 and opened > 0) == (self.options.how == "migrate"), text
        if self.options.how == "migrate":
            yield from self._verify_control()

    def _verify_content(self) -> Iterable[Verdict]:
        """Datagrams that name a worker, after restarts have changed the sockets' places."""
        how, self.options.how = self.options.how, "content"
        try:
            with Pool({p: self._load_first(p) for p in ("tcp", "udp")}, PORT + 1) as pool:
                for number in WORKERS:
                    pool.start(number)
                self._attach_pool(pool)
                pool.restart(1, 2)
                pool.restart(2, 2)
                for host in HOSTS:
                    got = [pool.send(bytes([n]) + b"x", host) for n in WORKERS * 4]
                    right = sum(a == b for a, b in zip(got, WORKERS * 4, strict=True))
                    yield (
                        right == len(got),
                        (f"{host}: {right} of {len(got)} datagrams went to the worker they name"),
                    )
        finally:
            self.options.how = how

    def _verify_control(self) -> Iterable[Verdict]:
        """The same restarts with a program that does not migrate."""
        how, self.options.how = self.options.how, "hash"
        try:
            with Pool({p: self._load_first(p) for p in ("tcp", "udp")}, PORT + 2) as pool:
                for number in WORKERS:
                    pool.start(number)
                self._attach_pool(pool)
                seen = [pool.restart(number, self.options.connections) for number in WORKERS]
        finally:
            self.options.how = how
        lost = sum(restart.lost for restart in seen)
        opened = sum(restart.opened for restart in seen)
        yield lost > 0, f"without migration: {count_of(opened, 'connection')} waited, {lost} lost"
