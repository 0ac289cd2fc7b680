# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.sockex3."""

from bpfkit.app.lifecycle import main
from bpfkit.sockex3.program import Sockex3

if __name__ == "__main__":
    raise SystemExit(main(Sockex3))
