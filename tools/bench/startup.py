#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Start-up of sockex3, beside BCC's own BPF() on the same source and a libbpf C loader.

    sudo python3 tools/bench/startup.py [RUNS]

Every row is a whole process, from exec to exit, that compiles or finds, loads and attaches
sockex3 and reads its tables once.  Medians; the ratio is against bpfkit's warm start.  Needs
cc and libbpf-dev for the C peer.
"""

from __future__ import annotations

import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile

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
obj.maps["totals"].lookup(0)
"""

BCC = f"""
import os
from bcc import BPF
text = open(os.path.join({ROOT!r}, "bpf_c", {SOURCE!r})).read()
b = BPF(text=text, cflags=["-I" + os.path.join({ROOT!r}, "bpf_c", "include"), "-w"])
PROGS
BPF.attach_raw_socket(b.load_func({{entry!r}}, BPF.SOCKET_FILTER), "lo")
list(b["totals"].items())
"""


def image(path: str) -> str:
    """Write what libbpf_loader loads; returns the entry's name."""
    from bpfkit.core.artifact import map_defs, prog_defs
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
    from bpfkit.net.flows import LAYERS

    slots = {layer: number for number, layer in enumerate(LAYERS)}
    entry = next(f for f, _, _ in artifact["sections"] if f not in slots)
    return slots, entry, "jump"


def measure(tool: str, runs: int, argv: list[str], env: dict[str, str]) -> tuple[float, float]:
    """(median milliseconds, median MB of peak RSS) over ``runs``, after one that is not counted."""
    text = subprocess.run(
        [tool, str(runs + 1), *argv], env=env, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    rows = [list(map(int, line.split())) for line in text.splitlines()]
    if any(status for _, _, status in rows):
        raise SystemExit(f"{argv} failed: {rows}")
    rows = rows[1:]
    return (
        statistics.median(us for us, _, _ in rows) / 1e3,
        statistics.median(kb for _, kb, _ in rows) / 1024,
    )


def main() -> int:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    python = shutil.which("python3", path="/usr/bin") or sys.executable
    with tempfile.TemporaryDirectory() as work:
        env = os.environ | {"BPFKIT_CACHE": f"{work}/cache", "PYTHONDONTWRITEBYTECODE": ""}
        os.environ["BPFKIT_CACHE"] = f"{work}/cache"
        tool, loader = f"{work}/measure", f"{work}/libbpf_loader"
        subprocess.run(["cc", "-O2", "-o", tool, f"{HERE}/measure.c"], check=True)
        subprocess.run(["cc", "-O2", "-o", loader, f"{HERE}/libbpf_loader.c", "-lbpf"], check=True)
        from bpfkit.net.flows import LAYERS

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
        cold = script("cold", ENGINE.replace("PROGS", engine), cache=False, entry=entry)
        peer = script("peer", BCC.replace("PROGS", bcc), entry=entry)
        program = [python, "-m", "bpfkit.sockex3", "-i", "lo", "-c", "1", "-t", "0.000001"]
        from bpfkit.core.headers import uapi_tree

        env["PYTHONPATH"] = ROOT
        bcc_env = env | {"BCC_KERNEL_SOURCE": uapi_tree().path}
        rows = [
            ("sockex3, warm cache, plain", [*program], env, runs),
            ("sockex3, warm cache, --json", [*program, "--json"], env, runs),
            ("engine alone, warm cache", [python, warm], env, runs),
            ("engine alone, compiling", [python, cold], env, runs),
            ("sockex3, --no-cache (as the first run)", [*program, "--no-cache"], env, runs),
            ("libbpf in C, same instructions", [loader, f"{work}/image", "lo"], env, runs),
            (
                "BCC's BPF(), our UAPI headers",
                ["/usr/bin/python3", peer],
                bcc_env,
                max(3, runs // 3),
            ),
            ("python3 -c pass", [python, "-c", "pass"], env, runs),
        ]
        base = None
        print(f"{'whole process, median':42} {'ms':>8} {'MB':>7} {'ratio':>7}")
        for title, argv, environment, n in rows:
            ms, mb = measure(tool, n, argv, environment)
            base = base or ms
            print(f"{title:42} {ms:8.1f} {mb:7.1f} {ms / base:6.2f}x", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
