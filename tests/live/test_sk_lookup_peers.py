# SPDX-License-Identifier: Apache-2.0
"""sk_lookup between real peers: what arrives through a steered port is what was sent.

nginx and curl, iperf3, openssl, redis and DNS, from one namespace to another; the servers listen on
their own port only and are not told.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from running import Running, path_of

from bpfkit.net.links.lab import Lab, pair_lab
from bpfkit.net.links.netlink import with_iproute
from bpfkit.net.links.netns import NetNS

SIZE = 32 << 20


def needs(*names: str) -> None:
    for name in names:
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")


@pytest.fixture
def lab() -> Iterator[Lab]:
    """client – server; 192.0.2.0/24 is the server's."""
    with pair_lab() as lab:
        more = {"dst": "192.0.2.0/24", "type": "local", "table": 255, "scope": 254, "oif": 1}
        with_iproute(lab["server"], "route", lambda ipr: ipr.route("add", family=2, **more))
        lab.route("client", "192.0.2.0/24", via="10.77.0.2")
        yield lab.ready()


@contextmanager
def server(ns: NetNS, *argv: str, port: int, kind: str = "tcp", **more: Any) -> Iterator[Any]:
    """A server process, once it listens on its port."""
    process = ns.popen(
        argv,
        **{
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
            **more,
        },
    )
    try:
        deadline = time.monotonic() + 10
        while not listens(ns, kind, port):
            assert process.poll() is None, "the server has ended"
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.02)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def listens(ns: NetNS, kind: str, port: int) -> bool:
    state = "0A" if kind == "tcp" else "07"
    text = ns.check_output(["cat", f"/proc/net/{kind}", f"/proc/net/{kind}6"])
    rows = [line.split() for line in text.splitlines()]
    return any(row[1].endswith(f":{port:04X}") and row[3] == state for row in rows)


def steer(lab: Lab, *rules: str, words: tuple[str, ...] = ()) -> Running:
    where = ("--netns", path_of(lab["server"]), "-t", "0.2", "--json")
    texts = [word for rule in rules for word in ("--steer", rule)]
    return Running("sk_lookup", *where, *texts, *words, ready=lambda row: "rule" in row)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def nginx(ns: NetNS, where: Path, listen: str = "listen 8080; listen [::]:8080;") -> Iterator[Any]:
    needs("nginx")
    conf = where / "nginx.conf"
    conf.write_text(
        f"user root; daemon off; worker_processes 2; pid {where}/pid;\n"
        f"error_log {where}/error.log;\n"
        "events { worker_connections 256; }\n"
        f"http {{ access_log off; server {{ {listen} root {where}; }} }}\n"
    )
    os.chmod(where, 0o755)
    with server(ns, "nginx", "-c", str(conf), "-p", str(where), port=8080) as process:
        yield process


def test_curl_gets_nginx_files_whole_through_steered_ports(lab: Lab, tmp_path: Path) -> None:
    needs("curl", "nginx")
    body = os.urandom(SIZE)
    (tmp_path / "file").write_bytes(body)
    with (
        nginx(lab["server"], tmp_path),
        steer(lab, "80:8080", "9000-9999:8080", "192.0.2.0/24:1-65535:8080") as program,
    ):
        places = ("10.77.0.2", "[fd77::2]:80", "10.77.0.2:9123", "[fd77::2]:9999", "192.0.2.8:443")
        for place in places:
            done = lab["client"].popen(
                ["curl", "-sS", "--max-time", "30", f"http://{place}/file"], stdout=subprocess.PIPE
            )
            got, _ = done.communicate(timeout=60)
            assert (done.returncode, digest(got)) == (0, digest(body)), place
        rows = program.rows()
    assert sum(row["assigned"] for row in rows if "rule" in row) == len(places)


@pytest.mark.parametrize("listen", ["listen 8080;", "listen 8080 reuseport;"])
def test_no_request_is_lost_while_nginx_reloads(lab: Lab, tmp_path: Path, listen: str) -> None:
    """A reload replaces the workers; with reuseport every listening socket of theirs as well."""
    needs("curl", "nginx")
    (tmp_path / "file").write_bytes(b"x" * 100)
    urls = [f"http://10.77.0.2/file?[1-{150}]", "-o", "/dev/null", "-w", "%{http_code} "]
    with nginx(lab["server"], tmp_path, listen) as process, steer(lab, "80:8080") as program:
        argv = ["curl", "-s", "--no-keepalive", "-H", "Connection: close", "--rate", "100/s"]
        client = lab["client"].popen([*argv, *urls], stdout=subprocess.PIPE, text=True)
        while client.poll() is None:
            process.send_signal(signal.SIGHUP)
            time.sleep(0.3)
        said, _ = client.communicate()
        rows = program.rows()
    row = next(row for row in rows if "rule" in row)
    assert (row["misses"], row["errors"]) == (0, 0)
    assert said.split() == ["200"] * 150


def test_iperf3_measures_through_a_steered_port(lab: Lab) -> None:
    needs("iperf3")
    import json

    with (
        server(lab["server"], "iperf3", "-s", "-p", "5201", port=5201),
        steer(lab, "5202:5201") as program,
    ):
        for host in ("10.77.0.2", "fd77::2"):
            text = lab["client"].check_output(
                ["iperf3", "-c", host, "-p", "5202", "-t", "1", "-P", "2", "-J"]
            )
            report = json.loads(text)
            assert "error" not in report, report["error"]
            assert report["end"]["sum_received"]["bytes"] > 1 << 20
            time.sleep(0.2)
        rows = program.rows()
    assert next(row["assigned"] for row in rows if "rule" in row) == 2 * 3  # control and 2 streams


def test_openssl_speaks_tls_through_a_steered_port(lab: Lab, tmp_path: Path) -> None:
    needs("openssl")
    key, cert = tmp_path / "key", tmp_path / "cert"
    words = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days"]
    words += ["1", "-subj", "/CN=steered", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(["openssl", "req", *words], check=True, capture_output=True)
    body = os.urandom(4 << 20)
    (tmp_path / "file").write_bytes(body)
    argv = ["openssl", "s_server", "-accept", "5201", "-cert", str(cert), "-key", str(key)]
    with (
        server(lab["server"], *argv, "-WWW", port=5201, cwd=tmp_path),
        steer(lab, "443:5201"),
    ):
        for host in ("10.77.0.2:443", "[fd77::2]:443"):
            client = lab["client"].popen(
                ["openssl", "s_client", "-quiet", "-CAfile", str(cert), "-connect", host],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            said, errors = client.communicate(b"GET /file HTTP/1.0\r\n\r\n", timeout=30)
            assert b"CN = steered" in errors
            assert digest(said.partition(b"\r\n\r\n")[2]) == digest(body), host


def test_redis_serves_through_a_range_of_ports(lab: Lab, tmp_path: Path) -> None:
    needs("redis-server", "redis-cli", "redis-benchmark")
    body = os.urandom(1 << 20)
    argv = ["redis-server", "--port", "6379", "--save", "", "--protected-mode", "no"]
    argv += ["--bind", "0.0.0.0", "::", "--dir", str(tmp_path)]
    with server(lab["server"], *argv, port=6379), steer(lab, "tcp/7000-7009:6379") as program:
        client = lab["client"]
        put = client.popen(
            ["redis-cli", "-h", "10.77.0.2", "-p", "7000", "-x", "set", "blob"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert put.communicate(body, timeout=20)[0] == b"OK\n"
        get = client.popen(
            ["redis-cli", "-h", "fd77::2", "-p", "7009", "--raw", "get", "blob"],
            stdout=subprocess.PIPE,
        )
        got, _ = get.communicate(timeout=20)
        assert digest(got[:-1]) == digest(body)  # redis-cli ends the value with a newline
        argv = ["redis-benchmark", "-h", "10.77.0.2", "-p", "7005", "-n", "2000", "-c", "20", "-q"]
        said = client.check_output([*argv, "-k", "0", "-t", "set,get"])
        assert "SET" in said
        assert "GET" in said
        rows = program.rows()
    row = next(row for row in rows if "rule" in row)
    assert row["assigned"] >= 4000  # a connection for every request
    assert (row["misses"], row["errors"]) == (0, 0)


@pytest.mark.parametrize("host", ["10.77.0.2", "fd77::2", "192.0.2.53"])
def test_dig_takes_the_answers_of_a_dns_server_on_another_port(
    lab: Lab, tmp_path: Path, host: str
) -> None:
    """UDP, from a client that compares the source of its answers.

    Not over TCP: dnsmasq closes connections whose local port is not the one that it listens on.
    """
    needs("dig", "dnsmasq")
    argv = ["dnsmasq", "--keep-in-foreground", "--port=5353", "--no-resolv", "--no-hosts"]
    argv += ["--address=/steered.example/198.51.100.9", f"--pid-file={tmp_path}/pid", "--user=root"]
    argv += ["--conf-file=/dev/null"]
    with server(lab["server"], *argv, port=5353, kind="udp"), steer(lab, "53:5353") as program:
        words = ["+notcp", "+time=2", "+tries=1", "+short", "steered.example"]
        assert lab["client"].check_output(["dig", f"@{host}", *words]) == "198.51.100.9\n"
        rows = program.rows()
    row = next(row for row in rows if "rule" in row)
    assert (row["misses"], row["errors"], row["replies"]) == (0, 0, 1)


@pytest.mark.parametrize("host", ["10.77.0.2", "fd77::2"])
def test_nping_connects_every_time(lab: Lab, host: str) -> None:
    needs("nping")
    from test_sk_lookup_live import Echo

    with Echo(lab["server"]), steer(lab, "5202:5201"):
        words = [
            "nping",
            *(["-6"] if ":" in host else []),
            "--tcp-connect",
            "-p",
            "5202",
            "-c",
            "3",
        ]
        said = lab["client"].check_output([*words, "--delay", "50ms", host])
        assert "Successful connections: 3" in said
