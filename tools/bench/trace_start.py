#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Start-up of opensnoop, execs and tcpconnect beside BCC's tools of that kind.

    sudo python3 tools/bench/trace_start.py [--runs N] [--bcc DIR]

The time from the start of a tool's process until it has printed an event: while it starts, files
are opened, programs executed and connections made, 100 of each a second.  bpfkit starts with a
filled cache, as from the second run on; its first run is a row of its own.  BCC's tools (Debian's
bpfcc-tools; DIR, where they are unpacked only) need kprobes, and the kernel's headers where their
package puts them (/lib/modules/RELEASE/build and source).  Where they do not start, that is said.

exit status: 0; 1 a tool of bpfkit printed no event
"""

from __future__ import annotations

import argparse
import os
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, HERE)
sys.path.insert(0, ROOT)
from benchlib import table  # noqa: E402

#: bpfkit's program -> BCC's tool.
PAIRS = {"opensnoop": "opensnoop", "execs": "execsnoop", "tcpconnect": "tcpconnect"}
PAUSE_S = 0.01
LIMIT_S = 120.0


def work(stop: threading.Event, folder: str) -> None:
    """Events for all three tools, and the mark by which their lines are known."""
    marked = os.path.join(folder, "traced-start")
    shutil.copy("/bin/true", marked)
    server = socket.create_server(("127.0.0.1", 0), backlog=64)
    port = server.getsockname()[1]
    while not stop.wait(PAUSE_S):
        with open(marked, "rb"):
            pass
        subprocess.run([marked])
        with socket.create_connection(("127.0.0.1", port)):
            server.accept()[0].close()


def start(argv: list[str], env: dict[str, str]) -> tuple[float | None, str]:
    """(seconds until an event was printed, "") or (None, what the tool said)."""
    began = time.monotonic()
    with subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **env},
    ) as process:
        assert process.stdout is not None
        said = b""
        try:
            while time.monotonic() < began + LIMIT_S:
                if not select.select([process.stdout], [], [], 1)[0]:
                    continue
                more = os.read(process.stdout.fileno(), 65536)
                said += more
                lines = said.split(b"\n")[:-1]
                if any(b"traced-start" in line or b"127.0.0.1" in line for line in lines):
                    return time.monotonic() - began, ""
                if not more:
                    break
        finally:
            process.kill()
    last = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
    return None, last[-1][:100] if last else "printed nothing"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5, help="the median of so many (default 5)")
    parser.add_argument("--bcc", default="/usr/sbin", metavar="DIR", help="of opensnoop-bpfcc")
    options = parser.parse_args()
    rows, status = [], 0
    stop = threading.Event()
    with tempfile.TemporaryDirectory(prefix="bpfkit-bench-") as folder:
        worker = threading.Thread(target=work, args=(stop, folder), daemon=True)
        worker.start()
        for ours, theirs in PAIRS.items():
            cache = {"BPFKIT_CACHE": os.path.join(folder, ours)}
            mine = [sys.executable, "-m", f"bpfkit.{ours}", "--json", "--no-demo"]
            peer = [sys.executable, os.path.join(options.bcc, f"{theirs}-bpfcc")]
            taken: dict[str, list[float]] = {"warm": [], "bcc": []}
            first, why = start(mine, cache)
            if first is None:
                print(f"{ours}: {why}", file=sys.stderr)
                status = 1
                continue
            refused = ""
            for _ in range(options.runs):
                for name, argv, env in (("warm", mine, cache), ("bcc", peer, {})):
                    if refused and name == "bcc":
                        continue
                    seconds, why = start(argv, env)
                    if seconds is not None:
                        taken[name].append(seconds)
                    elif name == "bcc":
                        refused = refused or why
            warm = statistics.median(taken["warm"])
            if refused:
                peer_text, ratio = refused, ""
            else:
                theirs_s = statistics.median(taken["bcc"])
                peer_text, ratio = f"{theirs_s * 1e3:.0f} ms", f"{warm / theirs_s:.3f}"
            rows.append([ours, f"{first * 1e3:.0f} ms", f"{warm * 1e3:.0f} ms", peer_text, ratio])
        stop.set()
        worker.join()
    print(table(["program", "first run", "from then on", "BCC's tool", "ratio"], rows))
    return status


if __name__ == "__main__":
    sys.exit(main())
