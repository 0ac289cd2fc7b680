# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.usdt."""

from bpfkit.app.lifecycle import main
from bpfkit.usdt.program import Usdt

if __name__ == "__main__":
    raise SystemExit(main(Usdt))
