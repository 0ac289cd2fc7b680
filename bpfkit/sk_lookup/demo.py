# SPDX-License-Identifier: Apache-2.0
"""The demo: a TCP and a UDP service on port 5201, reached by ports and addresses nobody listens on.

Everything happens in a private network namespace, in which 192.0.2.0/24 and 2001:db8::/64 are local
to lo ("AnyIP": a route of type local makes every address of a prefix the machine's own).
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading

from bpfkit.core.closing import Closing
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from bpfkit.show.rows import Verdict
    from bpfkit.sk_lookup.control import Steering

__all__ = ["RULES", "Demo", "Service", "add_prefixes", "ask", "passive_opens"]

PORT = 5201
RULES = (
    f"5202:{PORT}",
    f"6000-6999:{PORT}",
    f"192.0.2.0/24:1-65535:{PORT}",
    f"[2001:db8::/64]:1-65535:{PORT}",
)
LIVE = f"7000:{PORT}"
PREFIXES = ("192.0.2.0/24", "2001:db8::/64")
#: Where clients send to: none of these ports has a socket of its own.
PLACES = (
    ("127.0.0.1", 5202),
    ("::1", 5202),
    ("127.0.0.1", 6500),
    ("::1", 6999),
    ("192.0.2.77", 80),
    ("2001:db8::77", 443),
)
_WAIT = 2.0


def add_prefixes() -> None:
    """Make :data:`PREFIXES` local addresses of the calling thread's namespace."""
    from functools import partial

    from bpfkit.net.links.netlink import with_iproute
    from bpfkit.net.links.netns import NetNS

    def add(ipr: Any, prefix: str) -> None:
        family = 10 if ":" in prefix else 2
        # table local, scope host, device lo
        ipr.route("add", dst=prefix, family=family, type="local", table=255, scope=254, oif=1)

    with NetNS.current() as here:
        for prefix in PREFIXES:
            with_iproute(here, f"cannot make {prefix} local", partial(add, prefix=prefix))


class Service(Closing):
    """Echoes over TCP and UDP, IPv4 and IPv6, until closed.

    :ivar served: connections and datagrams that were answered.
    """

    def __init__(self, port: int = PORT) -> None:
        self.served = {"tcp": 0, "udp": 0}
        self._port = port
        self._udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self._udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self._udp.bind(("::", port))
        self._tcp: socket.socket | None = None
        self._threads = [threading.Thread(target=self._serve_udp, daemon=True)]
        self._threads[0].start()
        self.open_tcp()

    def open_tcp(self) -> None:
        """Listen on TCP again."""
        sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", self._port))
        sock.listen(128)
        self._tcp = sock
        self._threads.append(threading.Thread(target=self._serve_tcp, args=[sock], daemon=True))
        self._threads[-1].start()

    def close_tcp(self) -> None:
        """Listen no more, as a server that has ended."""
        if self._tcp is not None:
            sock, self._tcp = self._tcp, None
            try:
                sock.shutdown(socket.SHUT_RDWR)  # wakes accept(2)
            except OSError:
                pass
            self._threads.pop().join(_WAIT)
            sock.close()

    def _serve_tcp(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(_WAIT)
                try:
                    connection.sendall(connection.recv(1000))
                    self.served["tcp"] += 1
                except OSError:
                    continue

    def _serve_udp(self) -> None:
        while True:
            data, client = self._udp.recvfrom(65536)
            if not data:
                return
            self._udp.sendto(data, client)
            self.served["udp"] += 1

    def close(self) -> None:
        self.close_tcp()
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as last:
            last.sendto(b"", ("::1", self._port))
        self._threads[0].join(_WAIT)
        self._udp.close()


def ask(kind: str, host: str, port: int) -> str:
    """One request; "" if the answer is the server's and comes from there, else what went wrong.

    :param kind: ``tcp``, ``udp`` (unconnected: the source of the answer is compared) or
        ``connected`` (UDP: the kernel compares it).
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    kinds = socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
    text = f"{kind} {host} {port} {os.urandom(4).hex()}".encode()
    with socket.socket(family, kinds) as sock:
        sock.settimeout(_WAIT)
        try:
            if kind == "udp":
                sock.sendto(text, (host, port))
                answer, source = sock.recvfrom(1000)
            else:
                sock.connect((host, port))
                sock.send(text)
                answer, source = sock.recv(1000), sock.getpeername()
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error))
    if source[:2] != (host, port):
        return f"the answer came from {source[0]} port {source[1]}"
    return "" if answer == text else f"the answer was {answer!r}"


def passive_opens() -> int:
    """TCP connections that the namespace's sockets accepted (/proc/net/snmp)."""
    return _snmp("Tcp", "PassiveOpens")


def datagrams() -> int:
    """UDP datagrams that the namespace's sockets received, IPv4 and IPv6."""
    with open("/proc/thread-self/net/snmp6") as file:
        six = dict(line.split() for line in file)
    return _snmp("Udp", "InDatagrams") + int(six["Udp6InDatagrams"])


def _snmp(proto: str, name: str) -> int:
    with open("/proc/thread-self/net/snmp") as file:
        lines = [line.split() for line in file if line.startswith(f"{proto}:")]
    return int(lines[1][lines[0].index(name)])


class Demo(Closing):
    """The service, its clients, and what came of them.

    :param note: prints a line for the user.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        add_prefixes()
        self.service = Service()
        self._note = note
        self._told = False
        self.results: list[tuple[str, str, int, str]] = []
        #: What a connection to a port found that no rule steers.
        self.unsteered = {"before": ask("tcp", "127.0.0.1", 5202)}
        self.edits: list[int] = []
        self.live: dict[str, str] = {}
        self.restart: dict[str, str] = {}
        self._opens = passive_opens()
        self._datagrams = datagrams()
        note(
            f"one service on port {PORT}, TCP and UDP; port 5202, a range and two prefixes are "
            "steered to it\n"
            "every request to them must be answered, UDP from the port it was sent to"
        )

    def close(self) -> None:
        self.service.close()

    def round(self) -> None:
        """Requests to every place, then a rule added and deleted by another process."""
        begun = len(self.results)
        for host, port in PLACES:
            for kind in ("tcp", "udp", "connected"):
                self.results.append((kind, host, port, ask(kind, host, port)))
        good = sum(not why for _, _, _, why in self.results[begun:])
        if not self._told:
            self._told = True
            self._note(f"{good} of {len(self.results) - begun} requests were answered as expected")
            self._edit_live()
            if not self.live["added"]:
                self._note(
                    f"another process added '{LIVE}': answered; deleted it: {self.live['deleted']}"
                )

    def _edit_live(self) -> None:
        self._edit("add")
        self.live["added"] = ask("tcp", "127.0.0.1", 7000)
        self._edit("del")
        self.live["deleted"] = ask("tcp", "127.0.0.1", 7000)

    def _edit(self, what: str) -> None:
        import subprocess

        from bpfkit.core.children import command

        where = f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net"
        argv = command("bpfkit.sk_lookup", what, LIVE, "--netns", where)
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
        self.edits.append(done.returncode)
        if done.returncode:
            sys.stderr.write(done.stderr)

    def restart_service(self, listening: Callable[[], bool]) -> None:
        """Close the TCP listener while it is steered to, and listen again."""
        from time import monotonic, sleep

        self.service.close_tcp()
        self.restart["closed"] = ask("tcp", "127.0.0.1", 5202)
        self.service.open_tcp()
        deadline = monotonic() + _WAIT
        while not listening() and monotonic() < deadline:
            sleep(0.01)
        self.restart["open"] = ask("tcp", "127.0.0.1", 5202)

    def verdicts(self, steering: Steering) -> Iterator[Verdict]:
        """What the clients saw, compared with what the kernel counted and the rules say."""
        before = self.unsteered["before"]
        yield before == "ECONNREFUSED", f"before the program, port 5202: {before or 'answered'}"
        for kind, text in (
            ("tcp", "TCP connections to steered ports and prefixes were answered"),
            ("udp", "UDP answers came from the address and port that was asked (sendto)"),
            ("connected", "connected UDP clients accepted their answers"),
        ):
            mine = [why for one, _, _, why in self.results if one == kind]
            wrong = sorted({why for why in mine if why})
            good = mine.count("")
            yield not wrong, f"{good} of {len(mine)} {text} {' '.join(wrong)}".rstrip()
        good = self.edits == [0, 0] and not self.live["added"]
        yield good, "a rule that another process added was in force at once"
        refused = self.live["deleted"]
        yield refused == "ECONNREFUSED", f"after that rule was deleted: {refused or 'answered'}"
        if self.restart:
            closed, again = self.restart["closed"], self.restart["open"]
            yield closed == "ECONNREFUSED", f"listener closed: {closed or 'answered'}"
            yield not again, f"listener back: {again or 'answered'}"
        yield from self._counts(steering)

    def _counts(self, steering: Steering) -> Iterator[Verdict]:
        rules = {str(entry.rule): steering.counts(entry.number) for entry in steering.entries()}
        assigned = sum(count["assigned"] for count in rules.values())
        opens = passive_opens() - self._opens - (not self.live["added"])  # its rule is gone
        requests = (datagrams() - self._datagrams) // 2  # each was received, and its answer
        yield (
            assigned == opens + requests,
            f"assigned {assigned} = the kernel's {count_of(opens, 'accepted connection')} "
            f"+ {count_of(requests, 'datagram')} received by the server",
        )
        replies = sum(count["replies"] for count in rules.values())
        sent = self.service.served["udp"]
        yield replies == sent, f"UDP replies rewritten {replies} = sent by the server {sent}"
        misses = sum(count["misses"] for count in rules.values())
        refused = list(self.restart.values()).count("ECONNREFUSED")
        yield misses == refused, f"misses {misses} = connections refused meanwhile {refused}"
