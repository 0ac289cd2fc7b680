# SPDX-License-Identifier: Apache-2.0
"""tools/vm_matrix.py on 6.1, which most people run, and on the newest kernel unpacked here.

Every program's --check and the map tour run there.  A cell is green, or the kernel's own
configuration or version bears out what the program says is missing.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import vm_kernels  # noqa: E402
from vm_cells import VERIFIED  # noqa: E402

HERE = list(vm_kernels.unpacked())
pytestmark = [
    pytest.mark.skipif(not HERE, reason="no kernel in .vm/kernels: tools/vm_kernels.py 6.1 newest"),
    pytest.mark.skipif(
        not shutil.which("qemu-system-x86_64"),
        reason="no qemu-system-x86_64: apt-get install qemu-system-x86",
    ),
]


def test_every_program_and_map_type_on_a_common_and_on_the_newest_kernel(tmp_path: Path) -> None:
    file = tmp_path / "matrix.json"
    versions = list(dict.fromkeys(["6.1" if "6.1" in HERE else HERE[0], HERE[-1]]))
    words = [sys.executable, "tools/vm_matrix.py", "--json", str(file), *versions]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=2700)
    said = done.stdout[-6000:] + done.stderr[-2000:]
    assert done.returncode == 0, said
    data = json.loads(file.read_text())
    for version in versions:
        kernel = data["kernels"][version]
        # An emulated CPU may die of code that another one patches; the program then ran again.
        deaths = kernel.get("deaths", [])
        assert len(deaths) <= 2, said
        assert deaths or "complaints" not in kernel, kernel["complaints"]
        assert set(kernel["programs"]) == set(data["programs"]), said
        for part, least in (("programs", 45), ("maps", 25)):
            states = [cell["state"] for cell in kernel[part].values()]
            assert states.count(VERIFIED) >= least, (version, part, said)
