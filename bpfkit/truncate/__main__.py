# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.truncate."""

from bpfkit.app.lifecycle import main
from bpfkit.truncate.program import Truncate

if __name__ == "__main__":
    raise SystemExit(main(Truncate))
