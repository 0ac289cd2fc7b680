# SPDX-License-Identifier: Apache-2.0
"""The demo's workers, which are restarted one after the other, and the clients that count."""

from __future__ import annotations

import os
import signal
import socket

from bpfkit.core.children import command, die_with_parent
from bpfkit.core.closing import Closing
from bpfkit.core.errors import BpfkitError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from subprocess import Popen

    from bpfkit.sk_reuseport.group import Group, Worker

__all__ = ["Pool", "Restart"]

HOSTS = ("127.0.0.1", "::1")
_WAIT_S = 10.0


class Restart:
    """What the clients of one restart saw.

    :ivar opened: connections whose handshake was done before the old worker's socket closed.
    :ivar answered: connections that got an answer.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.opened = 0
        self.answered = 0

    @property
    def lost(self) -> int:
        """Connections without an answer: reset, or never served."""
        return self.opened - self.answered


class Pool(Closing):
    """Worker processes on one port, and their sockets in the groups.

    :param groups: protocol -> group.
    :param look_ms: how often workers look for connections that the kernel does not wake them for;
        0: never.
    """

    def __init__(self, groups: dict[str, Group], port: int, look_ms: int = 0) -> None:
        self.groups = groups
        self.port = port
        self.look_ms = look_ms
        self.generation: dict[int, int] = {}
        self._processes: dict[tuple[int, int], Popen[str]] = {}

    def start(self, number: int) -> None:
        """A new worker of this number, in the groups once it listens."""
        import subprocess

        generation = self.generation.get(number, 0) + 1
        words = map(str, (self.port, number, generation, self.look_ms))
        process = subprocess.Popen(
            command("bpfkit.sk_reuseport.worker", *words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=die_with_parent(),
        )
        self._processes[number, generation] = process
        self.generation[number] = generation
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise BpfkitError("a worker of the demo did not start")
        self._enter(number, process.pid)

    def _enter(self, number: int, pid: int) -> None:
        from bpfkit.net.sockets.listeners import borrow, find_owner, listeners, sockets_of

        inodes = sockets_of(pid)
        for one in listeners([self.port]):
            if one.inode in inodes:
                owner = find_owner(one.inode, pid)
                assert owner is not None
                fd = borrow(one, *owner)
                try:
                    self.groups[one.proto].add(fd, number, pid)
                finally:
                    os.close(fd)

    def workers(self, number: int, generation: int) -> list[tuple[Group, Worker]]:
        """A worker's sockets in the groups."""
        pid = self._processes[number, generation].pid
        return [
            (group, worker)
            for group in self.groups.values()
            for worker in list(group.workers.values())
            if worker.pid == pid
        ]

    def pause(self) -> None:
        """Stop all workers: connections wait to be accepted."""
        for process in self._processes.values():
            process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let all workers go on."""
        for process in self._processes.values():
            process.send_signal(signal.SIGCONT)

    def end(self, number: int, generation: int) -> None:
        """Retire a worker, end its process at once, free its slots."""
        sockets = self.workers(number, generation)
        for group, worker in sockets:
            group.retire(worker)
        process = self._processes.pop((number, generation))
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        for group, worker in sockets:
            group.remove(worker)

    def restart(self, number: int, connections: int) -> Restart:
        """Replace a worker while connections wait in all workers' queues."""
        seen = Restart(number)
        old = self.generation[number]
        self.pause()
        clients: list[socket.socket] = []
        for i in range(connections):
            client = self._connected(HOSTS[i % 2])
            if client is not None:
                clients.append(client)
        seen.opened = len(clients)
        self.start(number)
        self.end(number, old)
        self.resume()
        # All requests first: a worker serves one connection after the other.
        asked = [client for client in clients if _request(client)]
        seen.answered = sum(_answer(client) is not None for client in asked)
        return seen

    def _connected(self, host: str) -> socket.socket | None:
        """A connection to the workers' port; None: it was refused."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        client = socket.socket(family, socket.SOCK_STREAM)
        client.settimeout(_WAIT_S)
        try:
            client.connect((host, self.port))
        except OSError:
            client.close()
            return None
        return client

    def connect(self, count: int) -> list[int]:
        """The numbers of the workers that answered so many connections, half of them IPv6."""
        numbers = []
        for i in range(count):
            client = self._connected(HOSTS[i % 2])
            answer = _answer(client) if client is not None and _request(client) else None
            if answer is not None:
                numbers.append(answer)
        return numbers

    def send(self, data: bytes, host: str) -> int | None:
        """The number of the worker that answers a datagram."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            client.settimeout(2.0)
            try:
                client.sendto(data, (host, self.port))
                return int(client.recv(64).split()[0])
            except OSError:
                return None

    def close(self) -> None:
        """End all workers."""
        for process in self._processes.values():
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._processes.clear()


def _request(client: socket.socket) -> bool:
    """Send the request; false: the connection was reset, and is closed."""
    try:
        client.sendall(b"who\n")
    except OSError:
        client.close()
        return False
    return True


def _answer(client: socket.socket) -> int | None:
    """The number of the worker that answers; None: the connection was reset, or nobody did."""
    with client:
        try:
            answer = client.recv(64)
        except OSError:
            return None
    return int(answer.split()[0]) if answer else None
