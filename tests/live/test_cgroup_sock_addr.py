# SPDX-License-Identifier: Apache-2.0
"""cgroup_sock_addr with real peers: what they answer, what the kernel says, what an errno is.

The servers run in the namespace, outside the cgroup; the clients address others than them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import Row, Running, command, run

from bpfkit import load
from bpfkit.core.cgroups import Cgroup
from bpfkit.core.errors import UnsupportedError
from bpfkit.core.features.kfuncs import has_kfunc
from bpfkit.net.links.netns import NetNS

needs_unix = pytest.mark.skipif(
    not has_kfunc("bpf_sock_addr_set_sun_path"), reason="no hooks for UNIX sockets (Linux 6.7)"
)


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [name for name in programs if shutil.which(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")


@pytest.fixture
def ns() -> Iterator[NetNS]:
    with NetNS.new("addr") as namespace:
        yield namespace


def redirected(ns: NetNS, *words: str, timeout: float = 60) -> tuple[int, str, list[Row]]:
    """Exit status, standard error (with the command's output), and the program's rows."""
    with ns.popen(
        command("cgroup_sock_addr", "--json", *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        out, said = process.communicate(timeout=timeout)
    return process.returncode, said, [json.loads(line) for line in out.splitlines()]


def events(rows: list[Row]) -> list[Row]:
    return [row for row in rows if "event" in row]


def figures(rows: list[Row]) -> list[tuple[int, int, int]]:
    return [(r["connects"], r["datagrams"], r["binds"]) for r in rows if "rule" in r]


HEAD = """
import errno, json, sys
from socket import *
def attempt(function, *args):
    try:
        return function(*args)
    except OSError as error:
        return errno.errorcode[error.errno]
def say(value):
    print(json.dumps(value), file=sys.stderr)
"""


def seen(ns: NetNS, script: str, *options: str) -> tuple[object, list[Row]]:
    """What a Python client says, and the program's rows."""
    status, said, rows = redirected(ns, *options, "--", "/usr/bin/python3", "-c", HEAD + script)
    assert status == 0, said
    return json.loads(said.splitlines()[0]), rows


@contextlib.contextmanager
def serving(
    ns: NetNS, family: int, kind: int, address: object, answer: Callable[[socket.socket], None]
) -> Iterator[None]:
    """A server of this process, outside the cgroup; ``answer`` gets each connection, or the
    datagram socket."""
    with ns.entered():
        server = socket.socket(family, kind)
        server.bind(address)
    if kind == socket.SOCK_STREAM:
        server.listen(64)
    server.settimeout(0.1)
    end = threading.Event()

    def serve() -> None:
        while not end.is_set():
            with contextlib.suppress(TimeoutError):
                if kind == socket.SOCK_STREAM:
                    with server.accept()[0] as client:
                        client.settimeout(5)
                        answer(client)
                else:
                    answer(server)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
        server.close()


def say_hello(client: socket.socket) -> None:
    client.sendall(b"hello")


def echo(server: socket.socket) -> None:
    data, sender = server.recvfrom(2000)
    server.sendto(data, sender)


def inside(ns: NetNS) -> socket.socket:
    """A TCP socket in the namespace, outside the cgroup."""
    with ns.entered():
        return socket.socket()


def wait_for_port(ns: NetNS, port: int, host: str = "127.0.0.1") -> None:
    deadline = time.monotonic() + 15
    while True:
        with inside(ns) as sock:
            if sock.connect_ex((host, port)) == 0:
                return
        assert time.monotonic() < deadline, f"nobody listens on port {port}"
        time.sleep(0.02)


@contextlib.contextmanager
def running(ns: NetNS, *argv: str) -> Iterator[None]:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with ns.popen(list(argv), stdin=subprocess.DEVNULL, **quiet) as server:
        try:
            yield
        finally:
            server.terminate()


# -- real peers ------------------------------------------------------------------------------------


@needs("nginx", "curl")
def test_curl_gets_a_file_from_an_nginx_at_another_address(ns: NetNS, tmp_path: Path) -> None:
    """IPv4, and IPv6 to another port; curl reports the address it asked for as its peer."""
    data = bytes(range(256)) * 20_000
    (tmp_path / "file").write_bytes(data)
    tmp_path.chmod(0o755)
    conf = tmp_path / "nginx.conf"
    conf.write_text(
        f"daemon off; user root; pid {tmp_path}/pid; error_log stderr; events {{}}\n"
        "http { access_log off; server {"
        f"listen 127.0.0.1:8080; listen [::1]:8080; root {tmp_path}; }} }}\n"
    )
    options = ["--redirect", "192.0.2.0/24:80=127.0.0.1:8080"]
    options += ["--redirect", "[2001:db8::1]:443=[::1]:8080"]
    with running(ns, "nginx", "-c", str(conf), "-p", str(tmp_path)):
        wait_for_port(ns, 8080)
        for url, peer in (
            ("http://192.0.2.9/file", "192.0.2.9 80"),
            ("http://[2001:db8::1]:443/file", "2001:db8::1 443"),
        ):
            got = tmp_path / "got"
            words = ["curl", "-sS", "-o", str(got), "-w", "%{remote_ip} %{remote_port}", url]
            status, said, rows = redirected(ns, *options, "--", *words)
            assert status == 0, said
            assert said.startswith(peer)
            assert hashlib.sha256(got.read_bytes()).digest() == hashlib.sha256(data).digest()
            assert [row["comm"] for row in events(rows)] == ["curl"]


@needs("dig")
def test_dig_accepts_an_answer_that_comes_from_elsewhere(ns: NetNS) -> None:
    """dig compares the address of an answer with the server it asked."""

    def answer(server: socket.socket) -> None:
        query, sender = server.recvfrom(2000)
        end = query.index(b"\0", 12) + 5
        record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton("203.0.113.7")
        head = query[:2] + b"\x84\0\0\1\0\1\0\0\0\0"
        server.sendto(head + query[12:end] + record, sender)

    address = ("127.0.0.1", 5353)
    with serving(ns, socket.AF_INET, socket.SOCK_DGRAM, address, answer):
        words = ["dig", "@192.0.2.53", "+short", "+time=3", "+tries=1", "+noedns", "a.example"]
        rule = ["--redirect", "udp/192.0.2.53:53=127.0.0.1:5353"]
        status, said, rows = redirected(ns, *rule, "--", *words)
    assert status == 0, said
    assert said.splitlines()[0] == "203.0.113.7"
    assert events(rows)[0]["from"] == "192.0.2.53:53"
    assert events(rows)[0]["proto"] == "udp"


@needs("redis-server", "redis-cli")
def test_redis_cli_talks_to_a_redis_at_another_address(ns: NetNS, tmp_path: Path) -> None:
    words = ["redis-server", "--port", "6380", "--bind", "127.0.0.1", "--dir", str(tmp_path)]
    with running(ns, *words, "--save", ""):
        wait_for_port(ns, 6380)
        rule = ["--redirect", "192.0.2.6:6379=127.0.0.1:6380"]
        client = ["redis-cli", "-h", "192.0.2.6", "eval", "return redis.sha1hex('x')", "0"]
        status, said, _ = redirected(ns, *rule, "--", *client)
    assert status == 0
    assert said.splitlines()[0].strip('"') == hashlib.sha1(b"x").hexdigest()


@needs("openssl")
def test_openssl_does_a_handshake_with_a_server_elsewhere(ns: NetNS, tmp_path: Path) -> None:
    key, cert = str(tmp_path / "key"), str(tmp_path / "cert")
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    request += ["-nodes", "-keyout", key, "-out", cert, "-subj", "/CN=elsewhere", "-days", "2"]
    subprocess.run(request, check=True, capture_output=True, timeout=30)
    server = [
        "openssl",
        "s_server",
        "-accept",
        "127.0.0.1:4433",
        "-key",
        key,
        "-cert",
        cert,
        "-www",
    ]
    with running(ns, *server):
        wait_for_port(ns, 4433)
        client = (
            "openssl s_client -connect 192.0.2.4:443 -CAfile $0 -verify_return_error </dev/null"
        )
        rule = ["--redirect", "192.0.2.4:443=127.0.0.1:4433"]
        status, said, _ = redirected(ns, *rule, "--", "sh", "-c", client, cert)
    assert status == 0, said
    assert "Verify return code: 0 (ok)" in said


@needs("iperf3")
@pytest.mark.parametrize("udp", [False, True], ids=["tcp", "udp"])
def test_iperf3_measures_through_a_redirection(ns: NetNS, udp: bool) -> None:
    """Its control connection and its streams, of UDP connected sockets."""
    with running(ns, "iperf3", "-s", "-B", "127.0.0.1", "-p", "5202"):
        wait_for_port(ns, 5202)
        words = ["iperf3", "-c", "192.0.2.2", "-p", "5201", "-n", "4M", "-J"]
        words += ["-u", "-b", "200M"] if udp else []
        rule = ["--redirect", "192.0.2.2:5201=127.0.0.1:5202"]
        status, said, rows = redirected(ns, *rule, "--", *words)
    report, _ = json.JSONDecoder().raw_decode(said)
    assert status == 0, report.get("error")
    (stream,) = report["start"]["connected"]
    assert (stream["remote_host"], stream["remote_port"]) == ("192.0.2.2", 5201)
    if udp:
        assert report["end"]["sum"]["lost_packets"] == 0
    else:
        assert report["end"]["sum_sent"]["bytes"] == 4 << 20
    assert figures(rows) == [(2, 0, 0)]


# -- addresses -------------------------------------------------------------------------------------


ORIGINAL = """
import socket, struct, sys
server = socket.socket(socket.AF_INET6 if sys.argv[1] == "::" else socket.AF_INET)
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind((sys.argv[1], 3128))
server.listen(64)
print("ready", flush=True)
while True:
    client, _ = server.accept()
    try:
        data = client.getsockopt(0, 80, 16)
        words = f"{socket.inet_ntoa(data[4:8])} {struct.unpack('!H', data[2:4])[0]} {len(data)}"
    except OSError as error:
        words = f"errno {error.errno}"
    client.sendall(words.encode())
    client.close()
"""


@contextlib.contextmanager
def transparent_proxy(ns: NetNS, group: Cgroup, host: str = "127.0.0.1") -> Iterator[None]:
    into = 'echo $$ > "$0/cgroup.procs"; exec "$@"'
    with ns.popen(
        ["sh", "-c", into, group.path, "/usr/bin/python3", "-c", ORIGINAL, host],
        stdout=subprocess.PIPE,
        text=True,
    ) as proxy:
        assert proxy.stdout is not None
        assert proxy.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            proxy.kill()


CONNECT_MANY = """
def ask(family, *address):
    with socket(family) as sock:
        sock.connect(address)
        return sock.recv(100).decode()
say([ask(AF_INET, "192.0.2.1", port) for port in range(1000, 1300)]
    + [ask(AF_INET6, "::ffff:198.51.100.7", 443)] + [ask(AF_INET, "127.0.0.1", 3128)])
"""


@pytest.mark.parametrize("host", ["127.0.0.1", "::"])
def test_so_original_dst_tells_a_proxy_every_destination(ns: NetNS, host: str) -> None:
    """300 ports, a v4-mapped client, a dual-stack proxy; none for who came to the proxy itself."""
    with Cgroup.new("proxy") as group, transparent_proxy(ns, group, host):
        rule = ["--redirect", "tcp/0.0.0.0/0=127.0.0.1:3128", "--allow", "127.0.0.0/8"]
        got, _ = seen(ns, CONNECT_MANY, *rule, "--proxy-cgroup", group.path)
        assert isinstance(got, list)
        assert got[:300] == [f"192.0.2.1 {port} 16" for port in range(1000, 1300)]
        assert got[300] == "198.51.100.7 443 16"
        assert got[301] in (f"errno {errno.ENOPROTOOPT}", f"errno {errno.ENOENT}")


def test_a_port_that_is_used_again_has_no_original_of_the_connection_before(ns: NetNS) -> None:
    """The same four-tuple, redirected first, then by a client outside the cgroup."""
    script = (
        "s = socket()\n"
        "s.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)\n"
        "s.bind(('127.0.0.1', 45000))\n"
        "s.connect(('192.0.2.1', 80))\n"
        "say(s.recv(100).decode())\n"
        "s.setsockopt(SOL_SOCKET, SO_LINGER, b'\\1\\0\\0\\0\\0\\0\\0\\0')\n"
        "s.close()\n"
        "sys.stdin.readline()\n"
    )
    with Cgroup.new("proxy") as group, transparent_proxy(ns, group):
        words = ["--redirect", "192.0.2.1:80=127.0.0.1:3128", "--proxy-cgroup", group.path]
        with ns.popen(
            command(
                "cgroup_sock_addr", "--json", *words, "--", "/usr/bin/python3", "-c", HEAD + script
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            assert json.loads(process.stderr.readline()) == "192.0.2.1 80 16"
            time.sleep(0.2)
            with inside(ns) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("127.0.0.1", 45000))
                sock.connect(("127.0.0.1", 3128))
                assert sock.recv(100).startswith(b"errno ")
            process.communicate("\n", timeout=30)


def test_only_the_proxys_cgroup_gets_an_original_address(ns: NetNS) -> None:
    with Cgroup.new("proxy") as group, Cgroup.new("other") as other:
        with transparent_proxy(ns, group):
            rule = ["--redirect", "192.0.2.1:80=127.0.0.1:3128", "--proxy-cgroup", other.path]
            script = "s = create_connection(('192.0.2.1', 80)); say(s.recv(99).decode())"
            got, _ = seen(ns, script, *rule)
    assert isinstance(got, str)
    assert got.startswith("errno ")


@needs("sslsplit", "curl")
def test_a_transparent_proxy_for_netfilter_works_unchanged(ns: NetNS) -> None:
    """sslsplit asks SO_ORIGINAL_DST (of IPv4 only), connects there itself, and logs the address."""
    ns.check_output(["ip", "address", "add", "192.0.2.1", "dev", "lo"])

    def answer(client: socket.socket) -> None:
        client.recv(2000)
        client.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\norigin")

    into = 'echo $$ > "$0/cgroup.procs"; exec "$@"'
    split = ["sslsplit", "-D", "-e", "netfilter", "-l", "/dev/stdout", "tcp", "127.0.0.1", "3128"]
    with (
        Cgroup.new("proxy") as group,
        serving(ns, socket.AF_INET, socket.SOCK_STREAM, ("192.0.2.1", 80), answer),
        ns.popen(
            ["sh", "-c", into, group.path, *split],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as proxy,
    ):
        try:
            wait_for_port(ns, 3128)
            words = ["--redirect", "192.0.2.1:80=127.0.0.1:3128", "--proxy-cgroup", group.path]
            # On a busy machine sslsplit reset a connection once.
            curl = ["curl", "-sS", "-m", "10", "--retry", "1", "--retry-all-errors"]
            status, said, _ = redirected(ns, *words, "--", *curl, "http://192.0.2.1/")
        finally:
            proxy.terminate()
            assert proxy.stdout is not None
            log = proxy.stdout.read()
    assert status == 0, said
    assert said.startswith("origin")
    assert "192.0.2.1 80" in log or "[192.0.2.1]:80" in log, log


UDP = """
def talk(sock, *addresses):
    for n, address in enumerate(addresses):
        sock.sendto(b"%d" % n, address)
    return sorted([data.decode(), list(sender[:2])] for data, sender in
                  (sock.recvfrom(100) for _ in addresses))
four = socket(AF_INET, SOCK_DGRAM)
six = socket(AF_INET6, SOCK_DGRAM)
for sock in (four, six):
    sock.settimeout(5)
results = [talk(four, ("192.0.2.1", 53), ("192.0.2.2", 53))]
results.append(talk(four, ("127.0.0.1", 5301)))
results.append(talk(four, ("192.0.2.1", 53)))
results.append(talk(six, ("::ffff:192.0.2.1", 53), ("2001:db8::1", 53)))
six.connect(("2001:db8::1", 53))
results.append(list(six.getpeername()[:2]))
six.connect(("::1", 5301))
results.append(list(six.getpeername()[:2]))
say(results)
"""


def test_udp_answers_come_from_the_address_that_was_addressed_last(ns: NetNS) -> None:
    """One socket with two redirected servers, then the target itself, then redirected again."""
    rules = [
        "192.0.2.1:53=127.0.0.1:5301",
        "192.0.2.2:53=127.0.0.1:5302",
        "[2001:db8::1]:53=[::1]:5301",
    ]
    options = [word for rule in rules for word in ("--redirect", rule)]
    dgram = socket.SOCK_DGRAM
    with (
        serving(ns, socket.AF_INET, dgram, ("127.0.0.1", 5301), echo),
        serving(ns, socket.AF_INET, dgram, ("127.0.0.1", 5302), echo),
        serving(ns, socket.AF_INET6, dgram, ("::1", 5301), echo),
    ):
        got, rows = seen(ns, UDP, *options)
    assert got == [
        [["0", ["192.0.2.1", 53]], ["1", ["192.0.2.2", 53]]],
        [["0", ["127.0.0.1", 5301]]],
        [["0", ["192.0.2.1", 53]]],
        [["0", ["::ffff:192.0.2.1", 53]], ["1", ["2001:db8::1", 53]]],
        ["2001:db8::1", 53],
        ["::1", 5301],
    ]
    assert figures(rows) == [(0, 3, 0), (0, 1, 0), (1, 1, 0)]


def test_the_most_precise_rule_decides(ns: NetNS) -> None:
    """The longest prefix, then port before any port, then protocol; 0.0.0.0 is this host."""
    rules = [
        "192.0.2.0/24=127.0.0.1:7001",
        "192.0.2.0/24:80=127.0.0.1:7002",
        "tcp/192.0.0.0/8:80=127.0.0.1:7003",
        "192.0.2.128/25=127.0.0.1:7004",
        "udp/192.0.2.0/24:80=127.0.0.1:7006",
        "127.0.0.1:99=127.0.0.1:7005",
    ]
    options = [word for rule in rules for word in ("--redirect", rule)]
    script = """
def to(host, port):
    with socket() as sock:
        return attempt(sock.connect, (host, port))
say([to(*place) for place in [("192.0.2.1", 81), ("192.0.2.1", 80), ("192.0.2.200", 80),
                              ("0.0.0.0", 99), ("192.1.1.1", 80)]])
"""
    got, rows = seen(ns, script, *options)
    assert got == ["ECONNREFUSED"] * 5  # nobody listens on loopback; the network is unreachable
    assert [row["to"][-4:] for row in events(rows)] == ["7001", "7002", "7004", "7005", "7003"]


def test_mptcp_and_fast_open_do_not_escape(ns: NetNS) -> None:
    script = """
def mptcp():
    with socket(AF_INET, SOCK_STREAM, 262) as sock:
        sock.connect(("192.0.2.1", 80))
        return sock.recv(9).decode()
def fast_open():
    with socket() as sock:
        sock.sendto(b"x", MSG_FASTOPEN, ("192.0.2.1", 80))
        return sock.recv(9).decode()
def later():
    with socket() as sock:
        sock.setblocking(False)
        first = sock.connect_ex(("192.0.2.1", 80))
        sock.setblocking(True)
        return [errno.errorcode.get(first, first), sock.recv(9).decode()]
say([attempt(mptcp), attempt(fast_open), attempt(later)])
"""
    address = ("127.0.0.1", 8080)
    with serving(ns, socket.AF_INET, socket.SOCK_STREAM, address, say_hello):
        got, _ = seen(ns, script, "--redirect", "192.0.2.1:80=127.0.0.1:8080")
    assert isinstance(got, list)
    assert got[0] in ("hello", "EPROTONOSUPPORT", "ENOPROTOOPT")  # a kernel without MPTCP
    assert got[1:] == ["hello", ["EINPROGRESS", "hello"]]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [([], "ECONNREFUSED"), (["--errno", "EHOSTUNREACH"], "EHOSTUNREACH")],
)
def test_what_is_denied_fails_with_the_errno_of_your_choice(
    ns: NetNS, options: list[str], wanted: str
) -> None:
    script = """
say([attempt(socket(f, SOCK_STREAM).connect, (h, 8080)) for f, h in places]
    + [attempt(socket(f, SOCK_DGRAM).sendto, b"x", (h, 8080)) for f, h in places])
"""
    places = 'places = [(AF_INET, "127.0.0.1"), (AF_INET6, "::ffff:127.0.0.1"), (AF_INET6, "::1")]'
    words = ["--deny", "127.0.0.0/8:8080", "--deny", "[::1]:8080", *options]
    with serving(ns, socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 8080), say_hello):
        got, rows = seen(ns, places + script, *words)
    assert got == [wanted] * 6
    assert [row["errno"] for row in events(rows) if row["event"] == "denied"] == [wanted] * 6


def test_a_bind_goes_elsewhere_and_the_server_does_not_notice(ns: NetNS) -> None:
    """ss, outside, sees the real address."""
    script = """
import subprocess
four, six = socket(), socket(AF_INET6)
four.bind(("0.0.0.0", 80))
six.bind(("2001:db8::1", 80))
for sock in (four, six):
    sock.listen()
listed = subprocess.run(["ss", "-Htln"], capture_output=True, text=True).stdout
real = sorted(line.split()[3] for line in listed.splitlines())
say([list(four.getsockname()), list(six.getsockname()[:2]), real])
"""
    rules = ["--bind", "0.0.0.0:80=127.0.0.1:8080", "--bind", "[2001:db8::1]:80=[::1]:8080"]
    got, rows = seen(ns, script, *rules)
    assert got == [["0.0.0.0", 80], ["2001:db8::1", 80], ["127.0.0.1:8080", "[::1]:8080"]]
    assert figures(rows) == [(0, 0, 1), (0, 0, 1)]


# -- UNIX sockets ----------------------------------------------------------------------------------


@needs_unix
def test_unix_sockets_are_redirected_and_denied_by_connect_and_by_sendto(
    ns: NetNS, tmp_path: Path
) -> None:
    asked, given, denied = (str(tmp_path / name) for name in ("asked", "given", "denied"))
    stream, dgram = socket.SOCK_STREAM, socket.SOCK_DGRAM
    script = f"""
import ctypes
def stream(path):
    with socket(AF_UNIX) as sock:
        sock.connect(path)
        return sock.recv(99).decode()
def datagram(path):
    with socket(AF_UNIX, SOCK_DGRAM) as sock:
        sock.bind("\\0client")
        sock.sendto(b"ping", path)
        data, sender = sock.recvfrom(99)
        return [data.decode(), sender]
def padded(path):
    # A whole struct sockaddr_un, with rubbish behind the path's zero byte.
    with socket(AF_UNIX) as sock:
        text = (path.encode() + b"\\0").ljust(108, b"?")
        address = ctypes.create_string_buffer(b"\\1\\0" + text, 110)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.connect(sock.fileno(), address, 110):
            return errno.errorcode[ctypes.get_errno()]
        return sock.recv(99).decode()
say([attempt(stream, {asked!r}), attempt(datagram, {asked + "-d"!r}), attempt(padded, {asked!r}),
     attempt(stream, {denied!r}), attempt(datagram, {denied!r}), attempt(padded, {denied!r}),
     attempt(stream, {given!r})])
"""
    rules = [
        *("--redirect", f"unix:{asked}=unix:{given}"),
        *("--redirect", f"unix:{asked}-d=unix:{given}-d"),
        *("--deny", f"unix:{denied}", "--errno", "EACCES"),
    ]
    with (
        serving(ns, socket.AF_UNIX, stream, given, say_hello),
        serving(ns, socket.AF_UNIX, dgram, f"{given}-d", echo),
        serving(ns, socket.AF_UNIX, stream, denied, say_hello),
    ):
        got, rows = seen(ns, script, *rules)
    assert got == ["hello", ["ping", f"{asked}-d"], "hello", *["EACCES"] * 3, "hello"]
    assert figures(rows) == [(2, 0, 0), (0, 1, 0), (2, 1, 0)]


# -- beside others, and the end --------------------------------------------------------------------


ASK = "import socket; s = socket.create_connection(('192.0.2.1', 80)); print(s.getpeername()[:2])"


def kernel_orders_programs() -> bool:
    """BPF_F_BEFORE without an anchor (Linux 6.17), found by trying."""
    with Cgroup.new("order") as group:
        loaded = load("cgroup/cgroup_sock_addr.bpf.c", programs=["getpeername4"])
        with loaded, contextlib.suppress(UnsupportedError):
            loaded.programs["getpeername4"].attach_cgroup(group.path, before=0).close()
            return True
    return False


def test_two_programs_on_a_cgroup_pass_a_connection_on(ns: NetNS) -> None:
    """192.0.2.1 → 192.0.2.2 by the first, → the server by the second; getpeername undoes the
    second's first, if the kernel orders programs."""
    wanted = "192.0.2.1" if kernel_orders_programs() else "192.0.2.2"
    address = ("127.0.0.1", 8080)
    with (
        Cgroup.new("two") as group,
        serving(ns, socket.AF_INET, socket.SOCK_STREAM, address, say_hello),
        Running(
            *("cgroup_sock_addr", "--json", "--cgroup", group.path, "-t", "0.2"),
            *("--redirect", "192.0.2.1:80=192.0.2.2:81"),
            ready=lambda row: "rule" in row,
            ns=ns,
        ),
        Running(
            *("cgroup_sock_addr", "--json", "--cgroup", group.path, "-t", "0.2"),
            *("--redirect", "192.0.2.2:81=127.0.0.1:8080"),
            ready=lambda row: "rule" in row,
            ns=ns,
        ),
    ):
        with ns.entered():
            done = group.run(["/usr/bin/python3", "-c", ASK])
        assert done.stdout.startswith(f"('{wanted}', "), done.stderr


def test_after_kill_9_the_cgroup_connects_directly_and_nothing_is_left(ns: NetNS) -> None:
    with Cgroup.new("killed") as group:
        with serving(ns, socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 8080), say_hello):
            program = Running(
                *("cgroup_sock_addr", "--json", "--cgroup", group.path, "-t", "0.2"),
                *("--redirect", "192.0.2.1:80=127.0.0.1:8080"),
                ready=lambda row: "rule" in row,
                ns=ns,
            )
            with ns.entered():
                assert group.run(["/usr/bin/python3", "-c", ASK]).returncode == 0
                program.process.send_signal(signal.SIGKILL)
                program.process.wait()
                deadline = time.monotonic() + 5
                while group.run(["/usr/bin/python3", "-c", ASK]).returncode == 0:
                    assert time.monotonic() < deadline
        show = ["bpftool", "cgroup", "show", group.path]
        if shutil.which("bpftool"):
            assert "connect4" not in subprocess.run(show, capture_output=True, text=True).stdout


def test_the_commands_status_becomes_the_programs(ns: NetNS) -> None:
    rule = ["--redirect", "192.0.2.1:80=127.0.0.1:8080"]
    assert redirected(ns, *rule, "--", "sh", "-c", "exit 7")[0] == 7
    assert redirected(ns, *rule, "--", "sh", "-c", "kill -9 $$")[0] == 128 + 9
    assert redirected(ns, *rule, "--", "/no/such/command")[0] == 127


def test_bad_input_is_named() -> None:
    good = ["--redirect", "192.0.2.1:80=127.0.0.1:8080"]
    for words, text in (
        (["--", "true"], "no rule"),
        (good, "need -- COMMAND or --cgroup"),
        ([*good, "--errno", "EACCES", "--", "true"], "--errno needs --deny"),
        (["--deny", "192.0.2.1", "--errno", "EWHAT", "--", "true"], "no error EWHAT"),
        (["--redirect", "192.0.2.1", "--", "true"], "write FROM=TO"),
        (["--redirect", "name.invalid:80=127.0.0.1:1", "--", "true"], "no host name.invalid"),
        ([*good, "--proxy-cgroup", "/no/such", "--", "true"], "no cgroup /no/such"),
        ([*good, "--cgroup", "/no/such"], "no cgroup /no/such"),
        ([*good, "--check"], "--check takes no rules"),
    ):
        done = run("cgroup_sock_addr", *words)
        assert done.returncode == 2, (words, done.stderr)
        assert text in done.stderr
        assert len(done.stderr.splitlines()) <= 2
