#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Reading 100 000 flows into Python, with and without NumPy, beside BCC's ways.

    sudo python3 tools/bench/map_read.py [ENTRIES]

The map is sockex3's: 44-byte keys, per-CPU {packets, bytes}, summed.  Medians of seven reads in
one process; the ratio is against BCC's ``items()`` in the same run.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from bpfkit import Map

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)

# BCC cannot open a map of somebody else's by fd with its types, so it fills one of its own.
BCC = """
import ctypes, statistics, sys, time
from bcc import BPF
n = int(sys.argv[1])
b = BPF(text='''
struct key { u32 w[11]; };
struct value { u64 packets, bytes; };
BPF_TABLE("percpu_hash", struct key, struct value, flows, %d);
int f(struct __sk_buff *skb) { return 0; }
''' % (n + n // 4), cflags=["-w"])
m = b["flows"]
keys = (m.Key * n)()
for i in range(n):
    keys[i].w[0] = i
values = (m.Leaf * n)() if not isinstance(m.Leaf, type) else (m.Leaf * n)()
m.items_update_batch(keys, values)
def median(f, times):
    took = []
    for _ in range(times):
        t = time.perf_counter(); f(); took.append(time.perf_counter() - t)
    return statistics.median(took) * 1e3
print(median(lambda: m.items(), 3))
print(median(lambda: list(m.items_lookup_batch()), 3))
"""


def median(function: Callable[[], object], times: int = 7) -> float:
    """Median milliseconds."""
    took = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        took.append(time.perf_counter() - start)
    return statistics.median(took) * 1e3


def fill(flows: Map, count: int) -> None:
    """``count`` different flows, one packet of 100 bytes each on the first CPU."""
    import ctypes

    from bpfkit.core.kernel import syscall

    with open("/sys/devices/system/cpu/possible") as file:
        cpus = int(file.read().strip().rpartition("-")[2]) + 1
    keys = bytearray(count * flows.key_size)
    for i in range(count):
        keys[i * flows.key_size : i * flows.key_size + 4] = i.to_bytes(4, "big")
    one = (1).to_bytes(8, sys.byteorder) + (100).to_bytes(8, sys.byteorder)
    values = bytearray((one + bytes(16 * (cpus - 1))) * count)
    k = (ctypes.c_char * len(keys)).from_buffer(keys)
    v = (ctypes.c_char * len(values)).from_buffer(values)
    syscall.map_update_batch(flows.fd, ctypes.addressof(k), ctypes.addressof(v), count)


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    import bpfkit

    with bpfkit.load("socket/sockex3.bpf.c", max_entries={"flows": count + count // 4}) as obj:
        flows = obj["flows"]
        fill(flows, count)
        rows = [("bpfkit, rows(), standard library", median(lambda: flows.rows()))]
        assert len(flows.rows()) == count
        try:
            import numpy as np
        except ImportError:
            print("NumPy is not installed: its row is left out", file=sys.stderr)
        else:
            arrays = flows.sums_arrays
            keys, values = arrays()
            assert len(keys) == count
            assert int(np.sum(values["bytes"])) == 100 * count
            rows.append(("bpfkit, sums_arrays(), NumPy", median(arrays)))
    env = os.environ | {"BCC_KERNEL_SOURCE": uapi()}
    text = subprocess.run(
        ["/usr/bin/python3", "-c", BCC, str(count)],
        env=env,
        capture_output=True,
        text=True,
    )
    if text.returncode == 0:
        plain, batch = map(float, text.stdout.split())
        rows += [("BCC, items()", plain), ("BCC, items_lookup_batch()", batch)]
    else:
        print(f"BCC failed: {text.stderr.strip()[-200:]}", file=sys.stderr)
        plain = rows[0][1]
    print(f"{f'{count} flows into Python, median':42} {'ms':>8} {'ratio':>7}")
    for title, ms in rows:
        print(f"{title:42} {ms:8.1f} {ms / plain:6.2f}x")
    return 0


def uapi() -> str:
    """A header tree for BCC, which finds none without linux-headers."""
    from bpfkit.core.compile.headers import uapi_tree

    return uapi_tree().path


if __name__ == "__main__":
    raise SystemExit(main())
