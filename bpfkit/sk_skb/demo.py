# SPDX-License-Identifier: Apache-2.0
"""The demo's client and backend, and what ``--check`` does with a proxy."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import threading
import time

from bpfkit.core.closing import Closing
from bpfkit.core.errors import BpfkitError
from bpfkit.core.words import count_of, thousands
from bpfkit.sk_skb.child import ProxyChild, listen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpfkit.show.rows import Verdict
    from bpfkit.sk_skb.program import SkSkb

__all__ = ["Demo", "Pair", "switches"]

_HOSTS = {4: "127.0.0.1", 6: "::1"}
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_MESSAGES = 8
_PAUSE_S = 0.09
_TIMEOUT = 20.0
_MB = 1 << 20
_RESET = struct.pack("ii", 1, 0)


def switches(pid: int) -> int:
    """How often a process has waited (voluntary context switches)."""
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("voluntary_ctxt_switches:"):
                return int(line.split()[1])
    raise BpfkitError(f"no voluntary_ctxt_switches of process {pid}")


class Pair(Closing):
    """A client and a backend, connected by a proxy.

    :ivar client, backend: their sockets.
    """

    def __init__(self, proxy: tuple[str, int], server: socket.socket) -> None:
        server.settimeout(_TIMEOUT)
        self.client = socket.create_connection(proxy, _TIMEOUT)
        try:
            self.backend, _ = server.accept()
        except BaseException:
            self.client.close()
            raise
        self.backend.settimeout(_TIMEOUT)
        for sock in (self.client, self.backend):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ping_pong(self, count: int, size: int = 1024) -> int:
        """Messages to and fro; returns how many came back as they should."""
        good = 0
        for number in range(count):
            message = struct.pack("=Q", number) * (size // 8)
            self.client.sendall(message)
            got = _read(self.backend, size)
            self.backend.sendall(got[::-1])
            good += _read(self.client, size) == message[::-1]
        return good

    def close(self) -> None:
        self.client.close()
        self.backend.close()


def _read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            break
        data += piece
    return data


def _outcome(sock: socket.socket) -> tuple[int, str, str]:
    """Read to the end: (bytes, sha256, "EOF" or the errno's name)."""
    import errno

    digest = hashlib.sha256()
    count = 0
    while True:
        try:
            piece = sock.recv(_MB)
        except OSError as error:
            return count, digest.hexdigest(), errno.errorcode.get(error.errno or 0, "timeout")
        if not piece:
            return count, digest.hexdigest(), "EOF"
        digest.update(piece)
        count += len(piece)


class _Reader(threading.Thread):
    """Reads a socket to its end in a thread."""

    def __init__(self, sock: socket.socket, delay: float = 0.0) -> None:
        super().__init__(daemon=True)
        self._sock = sock
        self._delay = delay
        self.outcome: tuple[int, str, str] = (0, "", "nothing")
        self.start()

    def run(self) -> None:
        time.sleep(self._delay)
        self.outcome = _outcome(self._sock)

    def result(self) -> tuple[int, str, str]:
        """Waits for the end."""
        self.join(_TIMEOUT)
        return self.outcome


class Demo(Closing):
    """A backend on port 5202, a proxy on 5201 and clients; all in one namespace."""

    def __init__(self, app: SkSkb) -> None:
        from bpfkit.app.events import EventQueue
        from bpfkit.sk_skb.program import BACKEND, PORT

        self.app = app
        self.verdicts: list[Verdict] = []
        self.rounds = 0
        self.server = listen(None, BACKEND)
        app.demo_queue = app.keep(EventQueue())
        to = (socket.AF_INET, (_HOSTS[4], BACKEND))
        self.child = app.start(app.options.how, listen(None, PORT), to)
        if not app.options.check:
            app.note(
                f"a client sends {_MESSAGES} messages to port {PORT}; a proxy there forwards them "
                f"to a server on {BACKEND}. After {app.after} pieces the kernel takes over: the "
                "proxy prints nothing more, client and server go on."
            )
            threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self.server.accept()
            except OSError:
                return
            with sock:
                try:
                    while message := sock.recv(4096):
                        sock.sendall(message.replace(b"message", b"answer"))
                except OSError:
                    pass

    def talk(self) -> None:
        """A client's messages, one round of the demo; IPv4 and IPv6 in turn."""
        from bpfkit.show.rows import Event
        from bpfkit.sk_skb.program import BACKEND, PORT

        family = (4, 6)[self.rounds % 2]
        self.rounds += 1
        try:
            with socket.create_connection((_HOSTS[family], PORT), _TIMEOUT) as client:
                name = client.getsockname()
                ends = {"src": name[0], "sport": name[1], "dst": _HOSTS[4], "dport": BACKEND}
                for number in range(1, _MESSAGES + 1):
                    client.sendall(b"message %d" % number)
                    answer = client.recv(4096).decode()
                    fields = {**ends, "text": answer}
                    event = Event("answer", time.time(), fields)
                    time.sleep(_PAUSE_S)  # what the proxy says about it has come by now
                    assert self.app.demo_queue is not None
                    self.app.demo_queue.put(event)
        except OSError as error:
            raise BpfkitError("the demo's connection failed", why=str(error)) from None

    def close(self) -> None:
        self.server.close()

    # -- --check

    def check(self) -> None:
        """Every ending, with both ways to attach and both IP versions."""
        for how, family in (("verdict", 4), ("parser", 6), ("verdict", 6), ("parser", 4)):
            if how == "verdict" and not self.app.verdict_works:
                continue
            trial = _Trial(self.app, how, family)
            trial.talk()
            if (how, family) in (("verdict", 4), ("parser", 6)):
                trial.half_close()
                trial.slow_reader()
                trial.reset()
                trial.stop()
                trial.kill()
            else:
                trial.child.kill()
            self.verdicts += trial.verdicts
            trial.server.close()


class _Trial:
    """One way to attach, one IP version."""

    def __init__(self, app: SkSkb, how: str, family: int) -> None:
        self.app = app
        self.how = how
        self.family = family
        self.text = f"{how}, IPv{family}"
        self.verdicts: list[Verdict] = []
        self.server = listen(_HOSTS[family], 0)
        self.child = self.start()

    def start(self, **more: Any) -> ProxyChild:
        """A new proxy."""
        listener = listen(_HOSTS[self.family], 0)
        self.at = listener.getsockname()[:2]
        to = (_FAMILIES[self.family], self.server.getsockname())
        return self.app.start(self.how, listener, to, after=2, pieces=False, **more)

    def connected(self) -> Pair:
        """A connection that the kernel forwards."""
        pair = Pair(self.at, self.server)
        pair.ping_pong(2)
        port = pair.client.getsockname()[1]
        self._await(port, "kernel")
        return pair

    def _await(self, port: int, state: str) -> dict[str, Any]:
        deadline = time.monotonic() + _TIMEOUT
        while True:
            for row in self.child.rows():
                if (row["sport"], row["state"]) == (port, state):
                    return row
            if time.monotonic() > deadline:
                raise BpfkitError(f"no connection became {state}", why=self.text)
            time.sleep(0.005)

    def say(self, good: bool, text: str) -> None:
        """A verdict."""
        self.verdicts.append((good, f"{self.text}: {text}"))

    def talk(self) -> None:
        """The proxy process sleeps while messages go through."""
        with self.connected() as pair:
            time.sleep(0.05)  # its last steps on the way into the kernel
            before = switches(self.child.pid)
            good = pair.ping_pong(500)
            woken = switches(self.child.pid) - before
        text = f"500 messages and answers, {good} right; the proxy woke {count_of(woken, 'time')}"
        self.say(good == 500 and woken <= 5, text)

    def half_close(self) -> None:
        """EOF after all that was sent before it; the other direction goes on."""
        data = os.urandom(8 * _MB)
        sum_ = hashlib.sha256(data).hexdigest()
        with self.connected() as pair:
            reader = _Reader(pair.backend)
            pair.client.sendall(data)
            pair.client.shutdown(socket.SHUT_WR)
            up = reader.result()
            reader = _Reader(pair.client)
            pair.backend.sendall(data)
            pair.backend.close()
            down = reader.result()
        good = up == down == (len(data), sum_, "EOF")
        sent, back = count_of(up[0], "byte"), count_of(down[0], "byte")
        text = f"half-close: {sent}, then {up[2]}; back {back}, then {down[2]}"
        self.say(good, f"{text}; SHA-256 {'equal' if up[1] == down[1] == sum_ else 'differ'}")

    def slow_reader(self) -> None:
        """The sender has to wait, and nothing is lost."""
        data = os.urandom(48 * _MB)
        with self.connected() as pair:
            pair.client.settimeout(0.3)
            sent = 0
            try:
                while sent < len(data):
                    sent += pair.client.send(memoryview(data)[sent : sent + _MB])
            except OSError:
                pass
            early = sent
            reader = _Reader(pair.backend)
            pair.client.settimeout(_TIMEOUT)
            pair.client.sendall(memoryview(data)[sent:])
            pair.client.shutdown(socket.SHUT_WR)
            got = reader.result()
        good = got == (len(data), hashlib.sha256(data).hexdigest(), "EOF")
        if self.how == "verdict":
            good &= early < len(data)
            text = f"the sender waits after {count_of(early, 'byte')}"
        else:
            text = f"{early} bytes are sent before it reads"
        self.say(good, f"slow reader: {text}; {got[0]} of {len(data)} arrive")

    def reset(self) -> None:
        """A reset of one end resets the other."""
        with self.connected() as pair:
            pair.backend.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            pair.backend.close()
            end = _outcome(pair.client)[2]
        self.say(end == "ECONNRESET", f"reset by the backend: the client gets {end}")

    def stop(self) -> None:
        """What was on its way at the stop arrives; what ends in time ends well."""
        data = os.urandom(4 * _MB)
        with self.connected() as pair, self.connected() as idle:
            sender = threading.Thread(target=pair.client.sendall, args=(data,), daemon=True)
            sender.start()
            time.sleep(0.1)
            stopping = threading.Thread(target=self.child.stop, daemon=True)
            stopping.start()
            reader = _Reader(pair.backend)
            sender.join(_TIMEOUT)
            pair.client.shutdown(socket.SHUT_WR)
            got = reader.result()
            pair.backend.close()
            end = _outcome(pair.client)[2]
            stopping.join(_TIMEOUT)
            others = [_outcome(sock)[2] for sock in (idle.client, idle.backend)]
        good = got == (len(data), hashlib.sha256(data).hexdigest(), "EOF") and end == "EOF"
        arrived = f"{thousands(got[0])} of {count_of(len(data), 'byte')}"
        text = f"stop: {arrived} under way arrive, then {got[2]}"
        self.say(good, text)
        text = f"stop: of a connection that does not end both ends get {others[0]}, {others[1]}"
        self.say(others == ["ECONNRESET"] * 2, text)

    def kill(self) -> None:
        """SIGKILL resets both ends."""
        self.child = self.start()
        with self.connected() as pair:
            pair.client.settimeout(0.2)
            try:
                pair.client.sendall(bytes(32 * _MB))
            except TimeoutError:
                pass  # the backend does not read
            self.child.kill()
            pair.client.settimeout(_TIMEOUT)
            ends = [_outcome(sock)[2] for sock in (pair.client, pair.backend)]
        text = f"kill -9 with bytes under way: both ends get {ends[0]}, {ends[1]}"
        self.say(ends == ["ECONNRESET"] * 2, text)
