#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Latency, throughput and CPU time of a proxied connection: in user space, and by sk_skb.

    sudo python3 tools/bench/sockmap.py [-n ROUNDS] [--bytes MB] [--messages N] [--markdown]
    sudo python3 tools/bench/sockmap.py --endings [--bytes MB]

    client -> proxy -> backend      a proxy: C with read and write, C with splice, sk_skb
    client -> backend               no proxy: loopback TCP, sk_msg, an AF_UNIX pair (the limit)

The ends are tools/peers/traffic.c, the C proxy is tools/peers/proxy.c; both are compiled first.
All is in a network namespace of its own; the paths take turns, ROUNDS times; medians.

`p50`, `p99` and `longest`: a message of 1 KB and its answer.  `stalls`: messages of all rounds that
took more than 40 ms.  `CPU s/GB`: time that the CPUs were busy, softirq and workqueues included
(/proc/stat), which is why the machine has to be idle otherwise.  A stream that did not arrive byte
by byte fails the run.

--endings: the digests.  A stream through sk_skb with every way to end; either all of it arrives, or
both ends see a reset after a part of it that is in order.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Sequence

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [path for path in (ROOT, HERE) if path not in sys.path]

import benchlib  # noqa: E402

from bpfkit.core.children import command  # noqa: E402
from bpfkit.core.errors import BpfkitError  # noqa: E402
from bpfkit.net.links.netns import NetNS  # noqa: E402

PEERS = os.path.join(ROOT, "tools", "peers")
FRONT, BACK = 5201, 5202
MB = 1 << 20
WAIT = 120
_CGROUP_SOCK_OPS = 3  # enum bpf_attach_type


def build(name: str, into: str) -> str:
    """Compile a program of tools/peers; returns its path."""
    compiler = next((one for one in ("cc", "gcc", "clang") if shutil.which(one)), None)
    if compiler is None:
        raise BpfkitError("no C compiler", why="cc, gcc or clang is needed for the peers")
    path = os.path.join(into, name)
    source = os.path.join(PEERS, f"{name}.c")
    subprocess.run([compiler, "-O2", "-Wall", "-o", path, source], check=True)
    return path


class Bench:
    """The namespace, the compiled peers, and processes in it."""

    def __init__(self, options: Namespace, keep: ExitStack) -> None:
        self.options = options
        self.keep = keep
        self.folder = keep.enter_context(tempfile.TemporaryDirectory(prefix="bpfkit-bench-"))
        self.traffic = build("traffic", self.folder)
        self.proxy = build("proxy", self.folder)
        self.ns = keep.enter_context(NetNS.new("sockmap"))

    def start(self, argv: Sequence[str], **more: Any) -> subprocess.Popen[str]:
        """A process in the namespace; its standard output is read."""
        process: subprocess.Popen[str] = self.ns.popen(
            list(argv), stdout=subprocess.PIPE, text=True, **more
        )
        self.keep.callback(_end, process)
        return process

    def server(self, *words: str) -> subprocess.Popen[str]:
        """traffic, once it listens."""
        process = self.start([self.traffic, *words])
        _await_ready(process)
        return process

    def client(self, *words: str) -> dict[str, Any]:
        """traffic, to its end."""
        process = self.start([self.traffic, *words])
        return _answer(process)


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _await_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise BpfkitError("a peer did not start", why=" ".join(map(str, process.args)))  # type: ignore[arg-type]


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate(timeout=WAIT)
    if process.returncode:
        raise BpfkitError("a peer failed", why=" ".join(map(str, process.args)))  # type: ignore[arg-type]
    return json.loads(out.strip().splitlines()[-1])


# ---------------------------------------------------------------- the paths


class Path:
    """A way from the client to the backend.

    :ivar server: where the backend listens.
    :ivar client: where the client connects.
    """

    def __init__(self, bench: Bench, server: str, client: str) -> None:
        self.bench = bench
        self.server = server
        self.client = client
        self.p50: list[float] = []
        self.p99: list[float] = []
        self.longest = 0.0
        self.stalls = 0
        self.rate: list[float] = []
        self.cpu: list[float] = []

    def measure(self) -> None:
        """One round."""
        options = self.bench.options
        echo = self.bench.server("echo", self.server)
        found = self.bench.client("ping", self.client, str(options.messages), "1024")
        _end(echo)
        self._remove()
        if found["wrong"]:
            raise BpfkitError(f"{found['wrong']} messages came back changed")
        self.p50.append(found["p50_us"])
        self.p99.append(found["p99_us"])
        self.longest = max(self.longest, found["max_us"])
        self.stalls += found["stalls"]
        size = options.bytes * MB
        sink = self.bench.server("sink", self.server)
        busy, began = _busy(), time.monotonic()
        self.bench.client("send", self.client, str(size))
        result = _answer(sink)
        seconds = time.monotonic() - began
        self.cpu.append((_busy() - busy) / size * 1e9)
        self._remove()
        if (result["got"], result["wrong"], result["end"]) != (size, -1, "EOF"):
            raise BpfkitError("the stream did not arrive", why=str(result))
        self.rate.append(size / seconds / 1e6)

    def _remove(self) -> None:
        if self.server.startswith("/"):
            os.unlink(self.server)


def _busy() -> float:
    """CPU seconds since boot: user, nice, system, irq, softirq."""
    with open("/proc/stat") as file:
        fields = [int(word) for word in file.readline().split()[1:]]
    return sum(fields[i] for i in (0, 1, 2, 5, 6)) / os.sysconf("SC_CLK_TCK")


def loopback(bench: Bench) -> Path:
    """No proxy."""
    return Path(bench, str(BACK), f"127.0.0.1:{BACK}")


def unix(bench: Bench) -> Path:
    """A pair of AF_UNIX stream sockets."""
    place = os.path.join(bench.folder, "socket")
    return Path(bench, place, place)


def c_proxy(mode: str) -> Callable[[Bench], Path]:
    """The C proxy; rw or splice."""

    def make(bench: Bench) -> Path:
        port = FRONT + 10 * (1 + (mode == "splice"))
        process = bench.start([bench.proxy, mode, str(port), "127.0.0.1", str(port + 1)])
        _await_ready(process)
        return Path(bench, str(port + 1), f"127.0.0.1:{port}")

    return make


def start_sk_skb(bench: Bench, how: str, port: int) -> subprocess.Popen[str]:
    """A proxy from port to port + 1; returns its process."""
    words = ("--listen", str(port), "--to", f"127.0.0.1:{port + 1}", "--how", how, "--json")
    process = bench.start(command("bpfkit.sk_skb", *words, "-t", "100"), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        if f":{port:04X} " in bench.ns.check_output(["cat", "/proc/net/tcp6"]):
            return process
        time.sleep(0.02)
    raise BpfkitError("sk_skb did not start", why=f"status {process.poll()}")


def sk_skb(how: str) -> Callable[[Bench], Path]:
    """sk_skb in one of its two ways."""

    def make(bench: Bench) -> Path:
        port = FRONT + 10 * (3 + (how == "parser"))
        process = start_sk_skb(bench, how, port)
        assert process.stdout is not None
        _discard(process)
        return Path(bench, str(port + 1), f"127.0.0.1:{port}")

    return make


def _discard(process: subprocess.Popen[str]) -> None:
    """Read what a process prints, so that it never waits."""
    from threading import Thread

    def read() -> None:
        assert process.stdout is not None
        try:
            for _ in process.stdout:
                pass
        except ValueError:
            pass  # closed

    Thread(target=read, daemon=True).start()


def sk_msg(bench: Bench) -> Path:
    """sk_msg between client and backend, both in a cgroup."""
    from bpfkit.core.cgroups import Cgroup

    if not os.path.exists(os.path.join(ROOT, "bpfkit", "sk_msg")) and not os.path.exists(
        os.path.join(ROOT, "bpfkit", "sk_msg.py")
    ):
        raise BpfkitError("there is no program sk_msg")
    group = bench.keep.enter_context(Cgroup.new("bench-sockmap"))
    port = FRONT + 50
    words = ("--cgroup", group.path, "--ports", str(port), "--json", "-t", "100")
    process = bench.start(command("bpfkit.sk_msg", *words), stderr=subprocess.PIPE)
    _await_attached(process, group.path)
    _discard(process)
    path = Path(bench, str(port), f"127.0.0.1:{port}")
    plain = bench.start

    def inside(argv: Sequence[str], **more: Any) -> subprocess.Popen[str]:
        procs = group.open_procs()
        try:
            return plain(argv, preexec_fn=lambda: os.write(procs, b"0"), **more)
        finally:
            os.close(procs)

    path.bench = Bench.__new__(Bench)
    path.bench.__dict__.update(bench.__dict__)
    path.bench.start = inside  # type: ignore[method-assign]
    return path


def _await_attached(process: subprocess.Popen[str], path: str) -> None:
    """Until sk_msg's sockops program, which it attaches last, is at the cgroup."""
    from bpfkit.core.kernel import syscall

    group = os.open(path, os.O_RDONLY)
    try:
        deadline = time.monotonic() + 30
        while not syscall.prog_query(group, _CGROUP_SOCK_OPS):
            if process.poll() is not None:
                said = process.stderr.read() if process.stderr is not None else ""
                raise BpfkitError("sk_msg did not start", why=said.strip())
            if time.monotonic() > deadline:
                raise BpfkitError("sk_msg did not start", why="nothing is attached after 30 s")
            time.sleep(0.02)
    finally:
        os.close(group)


PATHS: dict[str, Callable[[Bench], Path]] = {
    "loopback TCP": loopback,
    "AF_UNIX pair": unix,
    "sk_msg": sk_msg,
    "C proxy, read and write": c_proxy("rw"),
    "C proxy, splice": c_proxy("splice"),
    "sk_skb, verdict": sk_skb("verdict"),
    "sk_skb, parser and verdict": sk_skb("parser"),
}
BASE = "C proxy, read and write"


def compare(bench: Bench) -> int:
    """All paths in turns."""
    options = bench.options
    paths: dict[str, Path] = {}
    for name, make in PATHS.items():
        try:
            paths[name] = make(bench)
        except BpfkitError as error:
            print(f"{name}: left out: {error}")
    for number in range(options.rounds):
        for name, path in paths.items():
            print(f"\rround {number + 1}: {name:40}", end="", file=sys.stderr, flush=True)
            path.measure()
    print(f"\r{'':50}\r", end="", file=sys.stderr)
    titles = ["path", "p50 us", "p99 us", "longest us", "stalls", "MB/s", "CPU s/GB", "rate", "CPU"]
    middle = statistics.median
    base = paths[BASE]
    body = [
        [
            name,
            f"{middle(path.p50):.1f}",
            f"{middle(path.p99):.1f}",
            f"{path.longest:.0f}",
            str(path.stalls),
            f"{middle(path.rate):.0f}",
            f"{middle(path.cpu):.2f}",
            f"{middle(path.rate) / middle(base.rate):.2f}",
            f"{middle(path.cpu) / middle(base.cpu):.2f}",
        ]
        for name, path in paths.items()
    ]
    print(benchlib.table(titles, body, markdown=options.markdown))
    print(
        f"\n{options.messages * options.rounds} messages and {options.rounds} x {options.bytes} MB "
        f"each. rate, CPU: as a multiple of that of the {BASE}."
    )
    return 0


# ---------------------------------------------------------------- the endings


def endings(bench: Bench) -> int:
    """A stream with every way to end."""
    options = bench.options
    size = options.bytes * MB
    rows, bad = [], 0
    port = FRONT + 100
    for how in ("verdict", "parser"):
        for ending in (
            "full",
            "half",
            "slow",
            "client resets",
            "backend resets",
            "stop",
            "kill -9",
        ):
            port += 2
            print(f"\r{how}, {ending:20}", end="", file=sys.stderr, flush=True)
            process = start_sk_skb(bench, how, port)
            _discard(process)
            words = {"half": ["half"], "slow": ["slow"], "backend resets": [str(size // 2)]}
            sink = bench.server("sink", str(port + 1), *words.get(ending, []))
            send = {"half": "half", "client resets": "reset"}.get(ending, "full")
            client = bench.start([bench.traffic, "send", f"127.0.0.1:{port}", str(size), send])
            assert sink.stdout is not None
            sink.stdout.readline()  # it is connected
            if ending in ("stop", "kill -9"):
                time.sleep(0.15)
                process.send_signal(signal.SIGTERM if ending == "stop" else signal.SIGKILL)
            sent, got = _answer(client), _answer(sink)
            _end(process)
            whole = (got["got"], got["end"]) == (size, "EOF")
            if send == "half":
                whole &= (sent["back"], sent["end"]) == (size, "EOF")
            reset = got["end"] == "ECONNRESET" or (
                ending == "backend resets" and got["end"] == "EOF"
            )
            seen = sent["end"] in ("ECONNRESET", "EPIPE") or send == "reset"
            in_order = got["wrong"] == sent["wrong"] == -1
            must = ending in ("full", "half", "slow")
            good = in_order and (whole or (not must and reset and seen))
            bad += not good
            outcome = "all of it" if whole else f"reset after {got['got']} bytes, both ends see it"
            text = outcome if good else f"FAILED: {sent} {got}"
            rows.append([how, ending, str(got["got"]), text])
    print(f"\r{'':40}\r", end="", file=sys.stderr)
    print(benchlib.table(["way", "ending", "bytes", "outcome"], rows, 2, options.markdown))
    print(f"\n{len(rows) - bad} of {len(rows)} as they should be; {size} bytes sent in each")
    return 1 if bad else 0


def main() -> int:
    """The command line."""
    from argparse import ArgumentParser

    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("-n", "--rounds", type=int, default=5)
    add("--bytes", metavar="MB", type=int, default=1024)
    add("--messages", metavar="N", type=int, default=20000)
    add("--endings", action="store_true", help="every ending instead of rates")
    add("--markdown", action="store_true")
    options = parser.parse_args()
    with ExitStack() as keep:
        try:
            bench = Bench(options, keep)
            return endings(bench) if options.endings else compare(bench)
        except BpfkitError as error:
            print(f"sockmap: {error}", file=sys.stderr)
            return error.exit_status


if __name__ == "__main__":
    raise SystemExit(main())
