# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.lirc."""

from bpfkit.app.lifecycle import main
from bpfkit.lirc.program import Lirc

if __name__ == "__main__":
    raise SystemExit(main(Lirc))
