# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.sockops."""

from bpfkit.app.lifecycle import main
from bpfkit.sockops.program import Sockops

if __name__ == "__main__":
    raise SystemExit(main(Sockops))
