#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a redirected connect costs: cgroup_sock_addr beside a plain connect and nft.

    sudo python3 tools/bench/cgroup_sock_addr.py [-n TURNS] [--markdown]

Clients take turns; each turn is 500 connections over loopback (connect, then a reset) and one
transfer of 64 MB.  p50 is the median time of connect(2), the rest connections per second of
socket, connect and close, and bytes per second; medians of the turns.

plain           a client of another cgroup, to the server itself
redirected      --redirect 192.0.2.1:80=127.0.0.1:PORT --no-events
events          the same with an event for each connection, read by the program
SO_ORIGINAL_DST the same as "redirected" with --proxy-cgroup: the proxy can ask for the original
nft redirect    a rule of nftables (NAT, connection tracking) in a namespace of its own
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from statistics import median

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [path for path in (ROOT, HERE) if path not in sys.path]

from benchlib import table  # noqa: E402

from bpfkit.core.cgroups import Cgroup  # noqa: E402
from bpfkit.core.children import command  # noqa: E402
from bpfkit.net.links.netns import NetNS  # noqa: E402

PORT = 8080
CONNECTS = 500
BYTES = 64 << 20

SERVER = f"""
import socket, threading
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("127.0.0.1", {PORT}))
server.listen(4096)
print("ready", flush=True)
room = bytearray(1 << 20)
while True:
    client, _ = server.accept()
    try:
        while client.recv_into(room):
            pass
    except OSError:
        pass
    client.close()
"""

CLIENT = """
import json, socket, struct, sys, time
place = sys.argv[1], int(sys.argv[2])
reset = struct.pack("ii", 1, 0)
data = bytes(1 << 20)
print("ready", flush=True)
for line in sys.stdin:
    kind, number = line.split()
    begun = time.perf_counter()
    if kind == "connect":
        times = []
        for _ in range(int(number)):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            before = time.perf_counter_ns()
            sock.connect(place)
            times.append(time.perf_counter_ns() - before)
            sock.close()
        took = time.perf_counter() - begun
        times.sort()
        print(json.dumps([times[len(times) // 2] / 1000, len(times) / took]), flush=True)
    else:
        with socket.create_connection(place) as sock:
            for _ in range(int(number) >> 20):
                sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            sock.recv(1)
        print(json.dumps(int(number) / (time.perf_counter() - begun)), flush=True)
"""

NFT = f"""
table ip bench {{
  chain output {{
    type nat hook output priority -100; policy accept;
    ip daddr 192.0.2.1 tcp dport 80 redirect to :{PORT}
  }}
}}
"""


class Child:
    """A Python child, ready, in a namespace and a cgroup."""

    def __init__(self, ns: NetNS, group: Cgroup | None, script: str, *words: str) -> None:
        into = [] if group is None else [group.path]
        shell = ["sh", "-c", 'echo $$ > "$0/cgroup.procs"; exec "$@"'] if group else []
        self.process = ns.popen(
            [*shell, *into, sys.executable, "-c", script, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, text: str) -> object:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


def program(stack: ExitStack, ns: NetNS, group: Cgroup, *words: str) -> None:
    """cgroup_sock_addr at work on the cgroup, its rows thrown away."""
    argv = command("bpfkit.cgroup_sock_addr", "--json", "-t", "0.5", "--cgroup", group.path)
    process = ns.popen(
        [*argv, "--redirect", f"192.0.2.1:80=127.0.0.1:{PORT}", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline(), "the program does not start"
    # It goes on writing; somebody must read.
    sink = subprocess.Popen(["cat"], stdin=process.stdout, stdout=subprocess.DEVNULL)
    process.stdout.close()

    def end() -> None:
        process.terminate()
        process.wait()
        sink.wait()

    stack.callback(end)


def nft_works(ns: NetNS) -> bool:
    """Load the NAT rule; false where the kernel or nft cannot."""
    try:
        with ns.popen(
            ["nft", "-f", "-"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as nft:
            nft.communicate(NFT)
        ns.check_output(["ip", "route", "add", "local", "192.0.2.0/24", "dev", "lo"])
        return nft.returncode == 0
    except OSError:
        return False


def main() -> int:
    from argparse import ArgumentParser

    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-n", "--turns", type=int, default=40)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    with ExitStack() as stack:
        enter = stack.enter_context
        ns, other = enter(NetNS.new("bench")), enter(NetNS.new("nft"))
        proxy = enter(Cgroup.new("bench"))
        groups: dict[str, Cgroup] = {}
        places = {"plain": (ns, "127.0.0.1", str(PORT))}
        for name, words in (
            ("redirected", ["--no-events"]),
            ("events", []),
            ("SO_ORIGINAL_DST", ["--no-events", "--proxy-cgroup", proxy.path]),
        ):
            group = enter(Cgroup.new("bench"))
            program(stack, ns, group, *words)
            places[name] = (ns, "192.0.2.1", "80")
            groups[name] = group
        if nft_works(other):
            places["nft redirect"] = (other, "192.0.2.1", "80")
        else:
            print("nft redirect: this kernel has no NAT", file=sys.stderr)
        for where in (ns, other):
            stack.callback(Child(where, proxy, SERVER).close)
        clients = {}
        for name, (where, *place) in places.items():
            clients[name] = Child(where, groups.get(name), CLIENT, *place)
            stack.callback(clients[name].close)
        figures: dict[str, list[list[float]]] = {name: [] for name in clients}
        for turn in range(options.turns + 1):
            for name, client in clients.items():
                latency, rate = client.ask(f"connect {CONNECTS}")  # type: ignore[misc]
                goodput = client.ask(f"send {BYTES}")
                if turn:  # the first one warms up
                    figures[name].append([latency, rate, goodput])  # type: ignore[list-item]
    show(figures, options.markdown)
    return 0


def show(figures: dict[str, list[list[float]]], markdown: bool) -> None:
    """Medians, and ratios to the plain client of the same turn."""
    rows = []
    for name, turns in figures.items():
        row = [name]
        for number, scale in ((0, 1.0), (1, 1.0), (2, 1e-9)):
            value = median(turn[number] for turn in turns)
            pairs = zip(turns, figures["plain"], strict=True)
            ratio = median(turn[number] / plain[number] for turn, plain in pairs)
            text = f"{value * scale:.2f}" if number != 1 else f"{value:.0f}"
            row += [text, f"{ratio:.3f}"]
        rows.append(row)
    titles = ["client", "connect p50 µs", "ratio", "connects/s", "ratio", "GB/s", "ratio"]
    print(table(titles, rows, markdown=markdown))
    if "nft redirect" in figures:
        pairs = zip(figures["redirected"], figures["nft redirect"], strict=True)
        print(f"redirected / nft, connects/s: {median(a[1] / b[1] for a, b in pairs):.2f}")


if __name__ == "__main__":
    raise SystemExit(main())
