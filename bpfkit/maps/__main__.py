# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.maps."""

from bpfkit.app.lifecycle import main
from bpfkit.maps.program import Maps

if __name__ == "__main__":
    raise SystemExit(main(Maps))
