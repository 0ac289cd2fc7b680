# SPDX-License-Identifier: Apache-2.0
"""The proxy process as its parent sees it: started, asked, stopped."""

from __future__ import annotations

import os
import socket
from collections import deque

from bpfkit.core.closing import Closing
from bpfkit.core.errors import InputError, errno_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from bpfkit.core.object import Object
    from bpfkit.show.rows import Row

__all__ = ["ProxyChild", "listen"]

_PR_SET_PDEATHSIG = 1
_SO_SNDBUFFORCE = 32
_ANSWER_S = 5.0
_BUFFER = 1 << 20  # of reports that the parent has not read
_MESSAGE = 1 << 17


def listen(address: str | None, port: int) -> socket.socket:
    """A listening socket in the calling thread's namespace; without an address for both families.

    :raises InputError: the port is in use, or the address is not this machine's.
    """
    both = address is None and socket.has_dualstack_ipv6()
    host = address if address is not None else "::" if both else "0.0.0.0"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        sock.bind((host, port))
        sock.listen(1024)
    except OSError as error:
        sock.close()
        where = f"port {port}" if address is None else f"{address} port {port}"
        raise InputError(f"cannot listen on {where}", why=errno_text(error.errno or 0)) from None
    return sock


class ProxyChild(Closing):
    """The proxy process.

    :param loaded: the object whose maps it shares.
    :param listener: what it accepts from; it is the child's from now on.
    :param to: (family, sockaddr) of the backend.
    :param after: pieces that the process forwards before the kernel takes over.
    :param pieces: report every piece that the process forwards.
    :param grace: seconds that connections have to end after :meth:`stop`.
    :param room: connections that may be in the map.
    :ivar pid: its process id.
    :ivar control: readable when it has something to say, or has ended.
    :ivar pidfd: readable once it has ended.
    :ivar lost: reports that were lost because this process did not read.
    """

    def __init__(
        self,
        loaded: Object,
        listener: socket.socket,
        to: tuple[int, Any],
        *,
        after: int,
        pieces: bool,
        grace: float,
        room: int,
    ) -> None:
        import ctypes
        import json
        import signal
        import subprocess

        from bpfkit.core.children import command

        self.lost = 0
        self.messages: deque[dict[str, Any]] = deque()
        self._rows: list[Row] = []
        self._grace = grace
        self._stopped = False
        self._ended = False
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER)
        names = ("sockets", "targets", "flows", "directions", "notices")
        maps = {name: loaded[name].fd for name in names}
        config = {
            "listener": listener.fileno(),
            "control": theirs.fileno(),
            **maps,
            "parent": os.getpid(),
            "family": to[0],
            "to": to[1],
            "after": after,
            "pieces": pieces,
            "grace": grace,
            "room": room,
            "freezer": loaded.programs["freeze"].fd,
        }
        prctl = ctypes.CDLL(None).prctl
        try:
            self._process = subprocess.Popen(
                command("bpfkit.sk_skb.proxy", json.dumps(config)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[listener.fileno(), theirs.fileno(), config["freezer"], *maps.values()],
                preexec_fn=lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            listener.close()
        self.control = ours
        self.pidfd = os.pidfd_open(self._process.pid)
        ours.setblocking(False)

    @property
    def pid(self) -> int:
        """The proxy's process id."""
        return self._process.pid

    def read(self) -> Iterator[dict[str, Any]]:
        """What it reported, without waiting."""
        self._receive()
        while self.messages:
            yield self.messages.popleft()

    def rows(self) -> list[Row]:
        """Its connections now; after the end, those it last had."""
        if not self._ended:
            try:
                self.control.send(b"rows")
            except OSError:
                pass
            self._await_rows()
        return self._rows

    def failed(self) -> str:
        """How it has ended without having been asked to; empty: it runs."""
        if self._stopped or self._process.poll() is None:
            return ""
        return f"the proxy process has ended, status {self._process.returncode}"

    def stop(self) -> None:
        """Drain, and wait until every connection has ended or was reset."""
        import subprocess

        if self._stopped:
            return
        self._stopped = True
        try:
            self.control.send(b"stop")
        except OSError:
            pass
        self._await_rows(self._grace + _ANSWER_S)
        try:
            self._process.wait(_ANSWER_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """End it at once: every connection is reset."""
        self._stopped = True
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def close(self) -> None:
        if self.pidfd >= 0:
            self.kill()
            self.control.close()
            os.close(self.pidfd)
            self.pidfd = -1

    def _await_rows(self, timeout: float = _ANSWER_S) -> None:
        """Read until the table has come."""
        from select import POLLIN, poll
        from time import monotonic

        poller = poll()
        poller.register(self.control.fileno(), POLLIN)
        deadline = monotonic() + timeout
        fresh: list[Row] = []
        while (left := deadline - monotonic()) > 0 and not self._ended:
            poller.poll(int(left * 1000) + 1)
            if self._receive(fresh):
                self._rows = fresh
                return

    def _receive(self, fresh: list[Row] | None = None) -> bool:
        """Read messages; True: a table is complete."""
        import json

        while not self._ended:
            try:
                data = self.control.recv(_MESSAGE)
            except BlockingIOError:
                return False
            except OSError:
                data = b""
            if not data:
                self._ended = True
                return False
            message = json.loads(data)
            self.lost = message.get("lost", self.lost)
            if message["kind"] == "rows":
                if fresh is not None:
                    fresh += message["rows"]
            elif message["kind"] == "end":
                if fresh is not None:
                    return True
            else:
                self.messages.append(message)
        return False
