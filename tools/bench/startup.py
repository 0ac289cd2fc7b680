#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Start-up of sockex3, beside BCC's own BPF() on the same source and a libbpf C loader; and of
programs at an interface, by XDP and tc.

    sudo python3 tools/bench/startup.py [RUNS]

Every row is a whole process that compiles or finds, loads and attaches sockex3 and reads a table:
time from before its start until it says "attached" and until its end (which includes what the
kernel does on closing a packet socket).  The ratios are against bpfkit's warm start.  What goes on
an interface goes on lo of a namespace of its own.  Needs cc and libbpf-dev for the C peer.
"""

from __future__ import annotations

import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile

#: Programs at an interface, with options.
ATTACHED = (
    ("xdp_drop_world",),
    ("xdp_drop_tcp",),
    ("tc_drop_tcp",),
    ("tc_drop_tcp", "--attach", "clsact"),
)
HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
SOURCE = "socket/sockex3.bpf.c"
NONE = 0xFFFFFFFF
sys.path.insert(0, ROOT)

ENGINE = f"""
import sys
sys.path.insert(0, {ROOT!r})
from bpfkit.core.object import load
import _socket
obj = load({SOURCE!r}, cache={{cache}})
fill = obj.maps["jump"]
PROGS
s = _socket.socket(17, 3 | _socket.SOCK_CLOEXEC, 0)
obj.programs[{{entry!r}}].attach_socket(s)
s.bind(("lo", 3))
print("attached", flush=True)
obj.maps["totals"].lookup(0)
"""

BCC = f"""
import os
from bcc import BPF
text = open(os.path.join({ROOT!r}, "bpf_c", {SOURCE!r})).read()
places = [os.path.join({ROOT!r}, "bpf_c", name) for name in ("include", "socket")]
include = ["-I" + place for place in places]
b = BPF(text=text, cflags=[*include, "-w", "-DBPFKIT_NO_LOADER"])
PROGS
BPF.attach_raw_socket(b.load_func({{entry!r}}, BPF.SOCKET_FILTER), "lo")
print("attached", flush=True)
list(b["totals"].items())
"""


def image(path: str) -> str:
    """Write what libbpf_loader loads; returns the entry's name."""
    from bpfkit.core.compile.artifact import map_defs, prog_defs
    from bpfkit.core.object import compiled

    artifact = compiled(SOURCE)
    maps, progs = map_defs(artifact), prog_defs(artifact)
    consts = {number: default for _, number, default in artifact["consts"]}
    slots, entry, jump = tail_calls(artifact)
    out = bytearray(struct.pack("=I", len(maps)))
    for m in maps:
        out += struct.pack("=5I", m.type, m.key_size, m.value_size, m.max_entries, m.map_flags)
    out += struct.pack("=I", len(progs))
    for p in progs:
        insns = bytearray(p.insns)
        for offset, number in p.const_relocs:
            insns[offset + 1] &= 0x0F
            struct.pack_into("<I", insns, offset + 4, consts[number] & NONE)
            struct.pack_into("<I", insns, offset + 12, consts[number] >> 32)
        out += struct.pack("=3I", len(insns) // 8, len(p.map_relocs), slots.get(p.name, NONE))
        out += insns
        for offset, index in p.map_relocs:
            out += struct.pack("=2I", offset // 8, index)
    names = [m.name for m in maps]
    out += struct.pack("=2I", names.index(jump), [p.name for p in progs].index(entry))
    with open(path, "wb") as file:
        file.write(out)
    return entry


def tail_calls(artifact: dict) -> tuple[dict[str, int], str, str]:
    """({function: slot}, entry function, name of the tail-call array)."""
    from bpfkit.net.packets.flows import LAYERS

    slots = {layer: number for number, layer in enumerate(LAYERS)}
    entry = next(f for f, _, _ in artifact["sections"] if f not in slots)
    return slots, entry, "jump"


def measure(
    tool: str, runs: int, marker: str, argv: list[str], env: dict[str, str]
) -> tuple[float, float, float]:
    """Medians over ``runs``, after one not counted: ms to the marker, ms to the end, MB of RSS."""
    text = subprocess.run(
        [tool, str(runs + 1), marker, *argv], env=env, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    rows = [list(map(int, line.split())) for line in text.splitlines()][1:]
    if any(status for *_, status in rows):
        raise SystemExit(f"{argv} failed: {rows}")
    columns = list(zip(*rows, strict=True))
    return tuple(
        statistics.median(column) / unit
        for column, unit in zip(columns[:3], (1e3, 1e3, 1024), strict=True)
    )


def main() -> int:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    python = shutil.which("python3", path="/usr/bin") or sys.executable
    from bpfkit.net.links.lab import loopback_lab

    with tempfile.TemporaryDirectory() as work, loopback_lab() as lab:
        env = os.environ | {"BPFKIT_CACHE": f"{work}/cache", "PYTHONDONTWRITEBYTECODE": ""}
        os.environ["BPFKIT_CACHE"] = f"{work}/cache"
        tool, loader = f"{work}/measure", f"{work}/libbpf_loader"
        subprocess.run(["cc", "-O2", "-o", tool, f"{HERE}/measure.c"], check=True)
        subprocess.run(["cc", "-O2", "-o", loader, f"{HERE}/libbpf_loader.c", "-lbpf"], check=True)
        from bpfkit.net.packets.flows import LAYERS

        entry = image(f"{work}/image")
        slots = {layer: number for number, layer in enumerate(LAYERS)}
        engine = "\n".join(f"fill[{n}] = obj.programs[{f!r}]" for f, n in slots.items())
        bcc = "j = b['jump']\nimport ctypes\n" + "\n".join(
            f"j[ctypes.c_int({n})] = ctypes.c_int(b.load_func({f!r}, BPF.SOCKET_FILTER).fd)"
            for f, n in slots.items()
        )

        def script(name: str, text: str, **values: object) -> str:
            path = f"{work}/{name}.py"
            with open(path, "w") as file:
                file.write(text.format(**values))
            return path

        warm = script("warm", ENGINE.replace("PROGS", engine), cache=True, entry=entry)
        peer = script("peer", BCC.replace("PROGS", bcc), entry=entry)
        program = [python, "-m", "bpfkit.sockex3", "-i", "lo", "-c", "1", "-t", "0.000001", "-v"]
        # A cache directory of its own for each run: no artifact and no header tree is there yet.
        empty = f"BPFKIT_CACHE=$(mktemp -d -p {work}) exec {' '.join(program)}"
        from bpfkit.core.compile.headers import uapi_tree

        env["PYTHONPATH"] = ROOT
        bcc_env = env | {"BCC_KERNEL_SOURCE": uapi_tree().path}
        mark = "attached"
        rows = [
            ("sockex3, warm cache, plain", mark, program, env, runs),
            ("sockex3, warm cache, --json", mark, [*program, "--json"], env, runs),
            ("engine alone, warm cache", mark, [python, warm], env, runs),
            ("sockex3, first run (no cache, no trees)", mark, ["sh", "-c", empty], env, runs),
            ("libbpf in C, same instructions", mark, [loader, f"{work}/image", "lo"], env, runs),
            (
                "BCC's BPF(), with bpfkit's headers",
                mark,
                [python, peer],
                bcc_env,
                max(3, runs // 3),
            ),
            ("python3 -c pass", "", [python, "-c", "pass"], env, runs),
        ]
        for name, *more in ATTACHED:
            argv = [python, "-m", f"bpfkit.{name}", *program[3:], *more]
            rows.append((" ".join([name, *more]) + ", warm cache", mark, argv, env, runs))
        base = None
        print(f"{'whole process, medians':42} {'attached':>9} {'ratio':>7} {'end':>8} {'RSS':>8}")
        for title, marker, argv, environment, n in rows:
            with lab["host"].entered():
                ms, end, mb = measure(tool, n, marker, argv, environment)
            base = base or ms
            print(
                f"{title:42} {ms:6.1f} ms {ms / base:6.2f}x {end:5.1f} ms {mb:5.1f} MB", flush=True
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
