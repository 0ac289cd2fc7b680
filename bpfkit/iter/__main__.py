# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.iter."""

from bpfkit.app.lifecycle import main
from bpfkit.iter.program import Iter

if __name__ == "__main__":
    raise SystemExit(main(Iter))
