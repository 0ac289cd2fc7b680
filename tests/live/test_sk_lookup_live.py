# SPDX-License-Identifier: Apache-2.0
"""sk_lookup on servers that others started: steered, edited, restarted, and what goes wrong."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from running import ROOT, Running, path_of, run

from bpfkit.net.links.lab import Lab, pair_lab
from bpfkit.net.links.netlink import with_iproute
from bpfkit.net.links.netns import NetNS

PREFIXES = ("192.0.2.0/24", "2001:db8::/64")
SERVER = {4: "10.77.0.2", 6: "fd77::2"}

#: A server that knows nothing of steering: it answers with the port it sees and the text.
ECHO = r"""
import select, socket, sys
kinds, address, port, more = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
socks = []
for kind in kinds.split(","):
    sock = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, "v6only" in more)
    if "reuseport" in more:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((address, port))
    if kind == "tcp":
        sock.listen(128)
    socks.append(sock)
print(*(sock.fileno() for sock in socks), flush=True)
while True:
    for sock in select.select(socks, [], [])[0]:
        if sock.type == socket.SOCK_DGRAM:
            data, client = sock.recvfrom(65536)
            sock.sendto(data, client)
        else:
            connection, _ = sock.accept()
            connection.settimeout(2)
            try:
                connection.sendall(connection.recv(65536))
            except OSError:
                pass
            connection.close()
"""


class Echo:
    """The server as a process in a namespace."""

    def __init__(
        self, ns: NetNS, kinds: str = "tcp,udp", address: str = "::", port: int = 5201, *more: str
    ) -> None:
        argv = [sys.executable, "-c", ECHO, kinds, address, str(port), *more]
        self.process = ns.popen(argv, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.fds = [int(word) for word in self.process.stdout.readline().split()]
        assert self.fds

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Echo:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        assert self.process.stdout is not None
        self.process.stdout.close()


def ask(
    ns: NetNS, kind: str, host: str, port: int, size: int = 20, timeout: float = 2, tries: int = 1
) -> str:
    """ "" if the answer came, whole, from where the request went; else what went wrong."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    text = os.urandom(size)
    why = ""
    for _ in range(tries):
        raw = ns.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
        with socket.socket(fileno=raw.detach()) as sock:
            sock.settimeout(timeout)
            try:
                if kind == "udp":
                    sock.sendto(text, (host, port))
                    answer, source = sock.recvfrom(65536)
                else:
                    sock.connect((host, port))
                    sock.send(text)
                    answer, source = sock.recv(65536), sock.getpeername()
            except OSError as error:
                why = errno.errorcode.get(error.errno or 0, str(error))
                time.sleep(0.05)
                continue
        if source[:2] != (host, port):
            return f"from {source[:2]}"
        return "" if answer == text else f"{len(answer)} bytes"
    return why


@pytest.fixture
def lab() -> Iterator[Lab]:
    """client – server; two prefixes are addresses of the server's."""
    with pair_lab() as lab:
        for prefix in PREFIXES:
            family = 10 if ":" in prefix else 2
            more = {"type": "local", "table": 255, "scope": 254, "oif": 1}
            with_iproute(
                lab["server"],
                "route",
                lambda ipr, prefix=prefix, family=family, more=more: ipr.route(
                    "add", dst=prefix, family=family, **more
                ),
            )
            lab.route("client", prefix, via=SERVER[6 if family == 10 else 4])
        yield lab.ready()


def steer(lab: Lab, *args: str, **more: Any) -> Running:
    ready = more.pop("ready", lambda row: "rule" in row or row.get("summary"))
    if callable(ready):
        args = ("--json", *args)
    where = ("--netns", path_of(lab["server"]), "-t", "0.2")
    return Running("sk_lookup", *where, *args, ready=ready, **more)


def edit(lab: Lab, *args: str, status: int = 0) -> str:
    done = run("sk_lookup", *args, "--netns", path_of(lab["server"]))
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if args[0] == "list" and not status else done.stderr


def rules(lab: Lab) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in edit(lab, "list", "--json").splitlines()]
    return {row["rule"]: row for row in rows}


# ---------------------------------------------------------------- what is steered


@pytest.mark.parametrize("kind", ["tcp", "udp", "connected"])
@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("10.77.0.2", 5202),
        ("fd77::2", 5202),
        ("10.77.0.2", 6789),
        ("192.0.2.77", 80),
        ("2001:db8::77", 443),
    ],
)
def test_every_kind_of_client_is_answered_from_where_it_asked(
    lab: Lab, kind: str, host: str, port: int
) -> None:
    """From another host; the server is bound to every address and chooses none."""
    texts = ("5202:5201", "6000-6999:5201", *(f"[{one}]:1-65535:5201" for one in PREFIXES))
    with Echo(lab["server"]):
        assert ask(lab["client"], kind, host, port, timeout=0.3)  # nobody answers before
        with steer(lab, *(word for text in texts for word in ("--steer", text))):
            assert ask(lab["client"], kind, host, port) == ""
            # the port that nothing steers is refused, and the server's own answers as before
            assert ask(lab["client"], kind, "10.77.0.2", 5199, timeout=0.3)
            assert ask(lab["client"], kind, "10.77.0.2", 5201) == ""
        assert ask(lab["client"], kind, host, port, timeout=0.3)


@pytest.mark.parametrize("host", ["192.0.2.9", "2001:db8::9"])
def test_a_udp_answer_of_many_fragments_arrives_whole(lab: Lab, host: str) -> None:
    """Later fragments have no ports: their address is chosen before, by the sendmsg hook."""
    with (
        Echo(lab["server"]),
        steer(lab, "--steer", f"[{PREFIXES[':' in host]}]:1-65535:5201") as program,
    ):
        for kind in ("udp", "connected"):
            for size in (1, 1472, 9000, 60000):
                assert ask(lab["client"], kind, host, 53, size) == "", (kind, size)
        row = next(row for row in reversed(program.rows()) if "rule" in row)
    assert row["replies"] == row["assigned"] == 8


def test_the_checksum_of_a_rewritten_reply_is_right(lab: Lab) -> None:
    """A receiver that verifies: the client's kernel counts errors, with offloads off."""
    lab.offloads("server:eth0", **{"tx-checksum-ip-generic": False})
    with Echo(lab["server"]), steer(lab, "--steer", "5202:5201"):
        for host in SERVER.values():
            for size in (0, 1, 2, 1001):
                assert ask(lab["client"], "connected", host, 5202, size or 3) == ""
        text = lab["client"].check_output(["cat", "/proc/net/snmp", "/proc/net/snmp6"])
    found = [line.split() for line in text.splitlines()]
    udp = [line for line in found if line[0] == "Udp:"]
    assert udp[1][udp[0].index("InCsumErrors")] == "0"
    assert dict(line for line in found if line[0] == "Udp6InCsumErrors") in (
        {},
        {"Udp6InCsumErrors": "0"},
    )


def test_a_client_that_asks_two_ports_hears_from_the_one_it_asked_last(lab: Lab) -> None:
    with Echo(lab["server"]), steer(lab, "--steer", "5202-5203:5201"):
        raw = lab["client"].socket(socket.AF_INET, socket.SOCK_DGRAM)
        with socket.socket(fileno=raw.detach()) as sock:
            sock.settimeout(2)
            for port in (5202, 5203, 5201, 5202):
                sock.sendto(b"x", (SERVER[4], port))
                assert sock.recvfrom(10)[1] == (SERVER[4], port)


def test_an_interface_that_comes_later_rewrites_replies_too(lab: Lab) -> None:
    with Echo(lab["server"]), steer(lab, "--steer", "5202:5201"):
        assert ask(lab["client"], "udp", SERVER[4], 5202) == ""
        addresses = (["10.88.0.1/24"], ["10.88.0.2/24"])
        lab.veth("client:eth1", "server:eth1", addresses=addresses)
        lab.ready()
        deadline = time.monotonic() + 2
        while ask(lab["client"], "udp", "10.88.0.2", 5202) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert ask(lab["client"], "udp", "10.88.0.2", 5202) == ""


def test_replies_leave_by_a_device_without_a_link_header(lab: Lab) -> None:
    """A tun device: its packets start with the IP header."""
    from scapy.layers.inet import IP, UDP
    from scapy.packet import Raw

    def make() -> int:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"t0", 0x1001))  # IFF_TUN | IFF_NO_PI
        return fd

    ns = lab["server"]
    try:
        tun = ns.run(make)
    except OSError as error:
        pytest.skip(f"no tun devices here (CONFIG_TUN): {error}")
    try:
        ns.check_output(["ip", "addr", "add", "10.99.0.2/24", "dev", "t0"])
        ns.check_output(["ip", "link", "set", "t0", "up"])
        with Echo(ns), steer(lab, "--steer", "5202:5201"):
            request = IP(src="10.99.0.1", dst="10.99.0.2") / UDP(sport=4000, dport=5202) / Raw(b"?")
            os.write(tun, bytes(request))
            while (answer := IP(os.read(tun, 2000))).version != 4:
                pass  # IPv6's own packets
    finally:
        os.close(tun)
    assert (answer.dst, answer[UDP].sport, answer[UDP].dport) == ("10.99.0.1", 5202, 4000)
    checksum = answer[UDP].chksum
    del answer[UDP].chksum
    assert IP(bytes(answer))[UDP].chksum == checksum


def test_a_multipath_tcp_listener_is_steered_to_or_refused_with_the_reason(lab: Lab) -> None:
    code = (
        "import socket; s = socket.socket(10, 1, 262); s.bind(('::', 5201)); s.listen(); "
        "print('up', flush=True); s.accept(); s.accept()"
    )
    argv = [sys.executable, "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with lab["server"].popen(argv, text=True, **pipes) as server:
        assert server.stdout is not None
        if server.stdout.readline() != "up\n":
            pytest.skip("this kernel has no MPTCP (CONFIG_MPTCP)")
        done = run(
            *("sk_lookup", "--netns", path_of(lab["server"]), "-c", "1", "-t", "0.1"),
            *("--steer", "5202:5201"),
        )
        server.kill()
    assert done.returncode == 2, done.stdout + done.stderr
    assert "MPTCP" in done.stderr


def test_a_reuseport_group_shares_the_connections_and_loses_none_when_one_closes(lab: Lab) -> None:
    group = [Echo(lab["server"], "tcp", "0.0.0.0", 5201, "reuseport") for _ in range(4)]
    try:
        with steer(lab, "--steer", "tcp/5202:5201"):
            for count in range(4, 0, -1):
                for _ in range(40):
                    assert ask(lab["client"], "tcp", SERVER[4], 5202) == ""
                if count > 1:
                    # the one whose socket the map has first
                    group.pop(0).__exit__()
                    time.sleep(0.6 if count == 3 else 0)  # time to enter another spare
            found = rules(lab)["tcp/5202:5201"]
            assert (found["assigned"], found["misses"]) == (160, 0)
    finally:
        for one in group:
            one.__exit__()


# ---------------------------------------------------------------- whose socket


def test_the_listener_is_found_by_its_process_and_descriptor(lab: Lab) -> None:
    ns = lab["server"]
    with Echo(ns, "tcp", "10.77.0.2") as first, Echo(ns, "tcp", "192.0.2.1") as second:
        refused = steer(lab, "--steer", "tcp/5202:5201", ready="several", may_end=True)
        with refused:
            status, _, said = refused.wait()
        assert (status, "choose one: --to 10.77.0.2" in said) == (2, True)
        for server, words in (
            (first, ["--to", "10.77.0.2"]),
            (second, ["--to", "192.0.2.1"]),
            (first, ["--pid", str(first.pid)]),
            (second, ["--pid", str(second.pid), "--fd", str(second.fds[0])]),
        ):
            other = second if server is first else first
            with steer(lab, "--steer", "tcp/5202:5201", *words):
                os.kill(other.pid, signal.SIGSTOP)  # the other one cannot answer
                try:
                    assert ask(lab["client"], "tcp", SERVER[4], 5202) == ""
                finally:
                    os.kill(other.pid, signal.SIGCONT)


def test_a_server_that_restarts_is_steered_to_again(lab: Lab) -> None:
    def answers(kind: str, tries: int = 1) -> str:
        return ask(lab["client"], kind, SERVER[4], 5202, tries=tries, timeout=0.3)

    with Echo(lab["server"]) as first:
        words = ("--steer", "5202:5201", "--pid", str(first.pid))
        with steer(lab, *words) as program:
            assert (answers("tcp"), answers("connected")) == ("", "")
            first.end()
            assert (answers("tcp"), answers("connected")) == ("ECONNREFUSED", "ECONNREFUSED")
            miss = program.row(lambda row: row.get("event") == "miss")
            assert (miss["proto"], miss["dst"], miss["dport"]) == ("tcp", SERVER[4], 5202)
            assert program.wait_for("nobody listens on tcp port 5201 any more")
            assert program.wait_for("nobody listens on udp port 5201 any more")
            assert not rules(lab)["5202:5201"]["listening"]
            with Echo(lab["server"]):
                assert program.wait_for("steered to again")
                assert (answers("tcp", 20), answers("connected", 20)) == ("", "")
                found = rules(lab)["5202:5201"]
    assert found["listening"]
    assert found["misses"] == 2


def test_a_udp_server_that_connects_its_socket_is_an_error_counted_by_its_name(lab: Lab) -> None:
    code = (
        "import socket; s = socket.socket(2, 2); s.bind(('', 5201)); print('up', flush=True); "
        "s.connect(s.recvfrom(100)[1]); print('connected', flush=True); s.recv(100)"
    )
    argv = [sys.executable, "-c", code]
    with lab["server"].popen(argv, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "up\n"
        with steer(lab, "--steer", "udp/5202:5201") as program:
            ask(lab["client"], "udp", SERVER[4], 5202, timeout=0.1)
            assert server.stdout.readline() == "connected\n"
            assert ask(lab["client"], "connected", SERVER[4], 5202, timeout=0.3) == "ECONNREFUSED"
            event = program.row(lambda row: row.get("event") in ("refused", "miss"))
            found = rules(lab)["udp/5202:5201"]
        server.kill()
    # The watcher may have taken the socket out first: a connected one listens no more.
    assert event["error"] in ("ESOCKTNOSUPPORT", None)
    assert found["esocktnosupport"] + found["misses"] == 1


def test_a_family_that_the_server_does_not_speak_is_an_error_counted_by_its_name(lab: Lab) -> None:
    with Echo(lab["server"], "tcp", "0.0.0.0"), steer(lab, "--steer", "5202:5201") as program:
        assert ask(lab["client"], "tcp", SERVER[4], 5202) == ""
        assert ask(lab["client"], "tcp", SERVER[6], 5202) == "ECONNREFUSED"
        event = program.row(lambda row: row.get("event") == "refused")
        assert event["error"] == "EAFNOSUPPORT"
        found = rules(lab)["5202:5201"]
    assert (found["assigned"], found["errors"], found["eafnosupport"]) == (1, 1, 1)


def test_a_socket_bound_to_a_steered_port_later_is_named(lab: Lab) -> None:
    with (
        Echo(lab["server"]),
        steer(lab, "--steer", "5202:5201") as program,
        Echo(lab["server"], "tcp", "::", 5202) as late,
    ):
        assert program.wait_for(f"(process {late.pid}) listens on tcp [::]:5202 and gets nothing")


# ---------------------------------------------------------------- edited live


def test_rules_are_edited_from_another_terminal_while_connections_are_made(lab: Lab) -> None:
    client = lab["client"]
    with Echo(lab["server"]), Echo(lab["server"], port=5301), steer(lab, "--steer", "5202:5201"):
        assert edit(lab, "add", "7000:5201", "udp/[2001:db8::/64]:53:5301") == (
            "sk_lookup: 2 rules added\n"
        )
        for kind in ("tcp", "udp", "connected"):
            assert ask(client, kind, SERVER[4], 7000) == ""
        assert ask(client, "connected", "2001:db8::9", 53) == ""
        assert ask(client, "tcp", "2001:db8::9", 53, timeout=0.3) == "ECONNREFUSED"
        edit(lab, "del", "7000:5201")
        assert ask(client, "tcp", SERVER[4], 7000) == "ECONNREFUSED"
        assert ask(client, "tcp", SERVER[4], 5202) == ""
        edit(lab, "add", "5202:5301")  # another listener for a rule that is there
        assert sorted(rules(lab)) == ["5202:5301", "udp/[2001:db8::/64]:53:5301"]
        assert ask(client, "tcp", SERVER[4], 5202) == ""
        assert "no rule '9:5201'" in edit(lab, "del", "9:5201", "5202:5301", status=2)
        assert len(rules(lab)) == 2
        text = edit(lab, "list")
        assert max(map(len, text.splitlines())) <= 80


def test_a_udp_rule_is_in_force_with_its_replies_when_add_returns(lab: Lab) -> None:
    """The first rule for UDP: nothing that rewrites replies was attached before."""
    with Echo(lab["server"]), steer(lab, "--steer", "tcp/5202:5201", "--take"):
        edit(lab, "del", "tcp/5202:5201")
        assert edit(lab, "list") == "no rules\n"
        edit(lab, "add", "udp/5203:5201")
        assert ask(lab["client"], "udp", SERVER[4], 5203) == ""
        assert ask(lab["client"], "connected", SERVER[6], 5203) == ""


def test_it_starts_without_rules_and_gets_them_later(lab: Lab) -> None:
    with Echo(lab["server"]), steer(lab, "-v", ready="attached to"):
        assert ask(lab["client"], "tcp", SERVER[4], 5202) == "ECONNREFUSED"
        edit(lab, "add", "5202:5201")
        for kind in ("tcp", "connected"):
            assert ask(lab["client"], kind, SERVER[4], 5202) == ""


def test_no_connection_is_lost_while_other_rules_are_edited(lab: Lab) -> None:
    """Others, and the same rule's listener: its sockets are there before it leads to them."""
    with Echo(lab["server"]), Echo(lab["server"], port=5301), steer(lab, "--steer", "5202:5201"):
        editor = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys; from bpfkit.sk_lookup.program import main\n"
                f"where = ['--netns', {path_of(lab['server'])!r}]\n"
                "for i in range(12):\n"
                "    assert main(['add', f'{7000 + i}:5201', *where]) == 0\n"
                "    assert main(['add', '192.0.2.0/24:5202:5201', *where]) == 0\n"
                "    assert main(['add', f'5202:{5301 - 100 * (i % 2)}', *where]) == 0\n"
                "    assert main(['del', '192.0.2.0/24:5202:5201', *where]) == 0\n",
            ],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
        )
        count = 0
        while editor.poll() is None:
            for host in ("192.0.2.5", SERVER[4], SERVER[6]):
                assert ask(lab["client"], "tcp", host, 5202) == ""
                count += 1
        assert editor.returncode == 0
        assert count > 9
        found = rules(lab)
        assert len(found) == 13
        assert sum(row["misses"] + row["errors"] for row in found.values()) == 0


def test_a_second_copy_is_refused_and_says_what_to_do(lab: Lab) -> None:
    with Echo(lab["server"]), steer(lab, "--steer", "5202:5201") as first:
        second = run("sk_lookup", "--netns", path_of(lab["server"]), "--steer", "5203:5201")
        assert (second.returncode, second.stdout) == (1, "")
        lines = second.stderr.splitlines()
        assert f"runs in this network namespace already: process {first.process.pid}" in lines[0]
        assert "sk_lookup add PORTS:PORT" in lines[1]
        assert ask(lab["client"], "tcp", SERVER[4], 5202) == ""


def test_without_one_running_an_edit_says_so(lab: Lab) -> None:
    for words in (("list",), ("add", "5202:5201"), ("del", "5202:5201")):
        assert "sk_lookup is not running" in edit(lab, *words, status=1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_its_end_ends_the_steering_and_leaves_nothing(lab: Lab, number: signal.Signals) -> None:
    """What it would leave is looked for by the leak check of every test."""
    with Echo(lab["server"]), steer(lab, "--steer", "5202:5201") as program:
        assert ask(lab["client"], "udp", SERVER[4], 5202) == ""
        status, _, said = program.end(number)
        assert status == (-9 if number == signal.SIGKILL else 0), said
        deadline = time.monotonic() + 5  # the kernel lets go of a dead process's links by and by
        while not ask(lab["client"], "tcp", SERVER[4], 5202) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert ask(lab["client"], "tcp", SERVER[4], 5202) == "ECONNREFUSED"
        assert ask(lab["client"], "connected", SERVER[4], 5202, timeout=0.3) == "ECONNREFUSED"


def test_kill_9_at_any_moment_leaves_nothing(lab: Lab) -> None:
    """While it starts, and while it runs; the leak check of every test looks for what it left."""
    with Echo(lab["server"]):
        for i in range(8):
            words = ["--netns", path_of(lab["server"]), "--steer", "5202:5201"]
            argv = [sys.executable, "-m", "bpfkit.sk_lookup", *words]
            with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL) as program:
                time.sleep(0.05 + 0.04 * i)
                program.kill()
        with steer(lab, "--steer", "5202:5201"):  # nothing is in the way of the next one
            assert ask(lab["client"], "connected", SERVER[4], 5202) == ""


def test_an_editor_that_is_killed_leaves_a_whole_list(lab: Lab) -> None:
    with Echo(lab["server"]), steer(lab, "--steer", "5202:5201"):
        for i in range(8):
            argv = [sys.executable, "-m", "bpfkit.sk_lookup", "add"]
            argv += [f"192.0.2.{i}:{7000 + i}:5201", "--netns", path_of(lab["server"])]
            with subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.DEVNULL) as editor:
                time.sleep(0.08 + 0.02 * i)
                editor.kill()
            assert ask(lab["client"], "tcp", SERVER[4], 5202) == ""
        edit(lab, "add", "7100:5201")
        found = rules(lab)
        assert {"5202:5201", "7100:5201"} <= found.keys()
        for text in found:
            if text.startswith("192."):
                address, port = text.split(":")[:2]
                host = address.partition("/")[0]
                assert ask(lab["client"], "tcp", host, int(port)) == ""


# ---------------------------------------------------------------- bad input


def test_bad_input_is_two_lines_that_say_what_to_do(lab: Lab) -> None:
    ns = lab["server"]
    left, right = socket.socketpair()
    dead = subprocess.Popen(["true"])
    dead.wait()
    with (
        left,
        right,
        Echo(ns, "tcp") as server,
        Echo(ns, "tcp", "::", 5555) as other,
        Running("sk_lookup", "--json", ready=lambda row: "rule" in row),
    ):
        cases = [
            (["--steer", "5202"], "PORTS:PORT"),
            (["--steer", "7000-6000:5201"], "7000 is above 6000"),
            (["--steer", "0:5201"], "'0' is not a port"),
            (["--steer", "192.0.2.1/24:80:5201"], "host bits"),
            (["--steer", "nonsense:80:5201"], "not an address or a prefix"),
            (["--steer", "5202:5299"], "nothing listens on TCP or UDP port 5299"),
            (["--steer", "udp/5202:5201"], "nothing listens on UDP port 5201"),
            (["--steer", "5555:5201"], f"(process {other.pid}) listens on tcp [::]:5555"),
            (["--steer", "1-65535:5201"], "is in use"),
            (["--steer", "5202:5201", "--pid", str(dead.pid)], f"no process {dead.pid}"),
            (["--steer", "5202:5201", "--pid", str(os.getpid())], f"--netns {os.getpid()}"),
            (["--steer", "5202:5201", "--pid", str(other.pid)], "does not listen on TCP or UDP"),
            (["--steer", "5202:5201", "--pid", str(server.pid), "--fd", "99"], "no descriptor 99"),
            (["--steer", "5202:5201", "--pid", str(server.pid), "--fd", "1"], "is not a socket"),
            (
                ["--steer", "5202:5201", "--pid", str(os.getpid()), "--fd", str(left.fileno())],
                "neither IPv4 nor IPv6",
            ),
            (["--steer", "5202:5201", "--fd", "3"], "--fd needs --pid"),
            (["--steer", "5202:5201", "--to", "localhost"], "names are not looked up"),
            (["--steer", "5202:5201", "--to", "10.9.9.9"], ""),
            (["--pid", "1"], "--pid needs --steer"),
        ]
        for words, text in cases:
            done = run("sk_lookup", "--netns", path_of(ns), "-c", "1", "-t", "0.1", *words)
            if not text:  # the wildcard socket gets the packets for every address
                assert done.returncode == 0
                continue
            assert (done.returncode, done.stdout) == (2, ""), (words, done.stderr)
            assert text in done.stderr
            assert 1 <= len(done.stderr.splitlines()) <= 2
        taken = run(
            "sk_lookup", "--netns", path_of(ns), "-c", "1", "--steer", "5555:5201", "--take"
        )
        assert taken.returncode == 0


def test_a_range_that_takes_from_this_machines_own_udp_clients_is_named(lab: Lab) -> None:
    low, high = lab["server"].sysctl("net.ipv4.ip_local_port_range").split()
    with Echo(lab["server"]):
        for text, named in (
            (f"{low}:5201", True),
            (f"1-{high}:5201", True),
            (f"tcp/{low}:5201", False),
            (f"192.0.2.0/24:{low}:5201", False),
            (f"{int(low) - 1}:5201", False),
        ):
            words = ("--netns", path_of(lab["server"]), "-c", "1", "-t", "0.1", "--steer", text)
            done = run("sk_lookup", *words)
            assert done.returncode == 0
            assert (f"UDP ports of this machine's own clients ({low}-{high})" in done.stderr) == (
                named
            ), text


def test_a_connected_socket_is_no_listener(lab: Lab) -> None:
    with Echo(lab["server"], "tcp") as server:
        raw = lab["server"].socket(socket.AF_INET, socket.SOCK_STREAM)
        with socket.socket(fileno=raw.detach()) as mine:
            mine.connect(("10.77.0.2", 5201))
            words = ["--steer", "5202:5201", "--pid", str(os.getpid()), "--fd", str(mine.fileno())]
            done = run("sk_lookup", "--netns", path_of(lab["server"]), *words)
    assert server.pid
    assert done.returncode == 2
    assert "the socket is connected to 10.77.0.2 port 5201" in done.stderr


def test_edits_need_root(lab: Lab) -> None:
    argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    argv += [sys.executable, "-m", "bpfkit.sk_lookup", "list"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (77, "")
    assert "needs root" in done.stderr


def test_both_programs_of_a_namespace_are_named(lab: Lab) -> None:
    """Another sk_lookup program, attached first: this one is told, and decides."""
    import bpfkit

    text = (
        "#include <bpfkit/bpfkit.h>\n#include <uapi/linux/bpf.h>\n"
        'SEC("sk_lookup")\nint other(struct bpf_sk_lookup *ctx)\n{\n\treturn SK_PASS;\n}\n'
    )
    with (
        bpfkit.load(text) as loaded,
        loaded.programs["other"].attach_netns(lab["server"].fd),
        Echo(lab["server"]),
        steer(lab, "--steer", "5202:5201") as program,
    ):
        assert program.wait_for("another program steers in this namespace")
        assert ask(lab["client"], "tcp", SERVER[4], 5202) == ""
