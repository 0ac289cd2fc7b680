# SPDX-License-Identifier: Apache-2.0
"""lirc on the small kernel of `make vm-kernel`, watched by a script that knows no bpfkit."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = Path(os.environ.get("BPFKIT_SMALL_KERNEL", ROOT / ".vm/small"))

if not (SMALL / "lib/modules").is_dir():
    WHY_NOT = f"no kernel with CONFIG_BPF_LIRC_MODE2 in {SMALL}: make vm-kernel"
elif not shutil.which("qemu-system-x86_64"):
    WHY_NOT = "no qemu-system-x86_64: apt-get install qemu-system-x86"
else:
    WHY_NOT = ""
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

#: Prints what the kernel does with a scancode that its own encoder sends through rc-loopback: while
#: the program decodes, after the program was killed, and after `bpfkit clean`.
WATCH = r"""
import fcntl, glob, json, os, signal, struct, subprocess, sys, time

NEC, SCANCODE, KEY = 9, 0x0402, 115
lirc = os.open("/dev/lirc0", os.O_RDWR)
fcntl.ioctl(lirc, 0x40046911, struct.pack("<I", 8))  # LIRC_SET_SEND_MODE: LIRC_MODE_SCANCODE
event = glob.glob("/sys/class/rc/rc0/input*/event*")[0]
keys = os.open("/dev/input/" + os.path.basename(event), os.O_RDONLY | os.O_NONBLOCK)

def programs():
    out = subprocess.run(["bpftool", "-j", "prog"], capture_output=True, text=True).stdout
    return [p["name"] for p in json.loads(out) if p.get("type") == "lirc_mode2"]

def mapped():
    entry = struct.pack("<BBHI32s", 0, 8, 0, 0, SCANCODE.to_bytes(8, "little"))
    return struct.unpack("<BBHI32s", fcntl.ioctl(keys, 0x80284504, entry))[3]

def send(seconds, enough):
    os.write(lirc, struct.pack("<QHHIQ", 0, 0, NEC, 0, SCANCODE))
    seen, end = [], time.monotonic() + seconds
    while len(seen) < enough and time.monotonic() < end:
        try:
            data = os.read(keys, 24 * 64)
        except BlockingIOError:
            time.sleep(0.02)
            continue
        for _, _, kind, code, value in struct.iter_unpack("<qqHHi", data):
            if kind == 1:
                seen.append([code, value])
    return seen

said = {"before": [programs(), mapped(), send(1, 1)]}
words = [sys.executable, "-m", "bpfkit.lirc", "--no-demo", "--key", f"{SCANCODE}={KEY}"]
child = subprocess.Popen(words, stdout=subprocess.DEVNULL)
end = time.monotonic() + 120
while not (programs() and mapped()) and time.monotonic() < end:
    time.sleep(0.2)
said["decoding"] = [programs(), mapped(), send(30, 2)]
child.kill()
child.wait()
said["killed"] = [programs(), mapped()]
subprocess.run([sys.executable, "-m", "bpfkit", "clean"], stdout=2)
said["cleaned"] = [programs(), mapped(), send(1, 1)]
print("@", json.dumps(said), flush=True)
"""


def test_the_kernels_input_layer_reports_the_keys() -> None:
    """``--check`` passes; keys come while the program is attached, and nothing survives ``clean``.

    rc-core holds the program itself, so that it survives ``kill -9`` is the kernel's doing.
    """
    words = [sys.executable, str(ROOT / "tools/vm.py"), "--kernel", str(SMALL), "--mem", "1024M"]
    guest = '"$0" -m bpfkit.lirc --check; echo status $?; exec "$0" -c "$1"'
    done = subprocess.run(
        [*words, "--timeout", "540", "--", "sh", "-c", guest, sys.executable, WATCH],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    said = done.stdout + done.stderr
    assert "status 0\n" in done.stdout, said
    assert re.search(r"lirc: (\d+) of \1 verified", done.stdout), said
    found = json.loads(re.findall(r"^@ (.*)$", done.stdout, re.M)[0])
    assert found["before"] == [[], 0, []]
    assert found["decoding"] == [["decode"], 115, [[115, 1], [115, 0]]]
    assert found["killed"] == [["decode"], 115]
    assert found["cleaned"] == [[], 0, []]
    assert "complained" not in done.stderr
