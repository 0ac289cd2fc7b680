# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.uprobe."""

from bpfkit.app.lifecycle import main
from bpfkit.uprobe.program import Uprobe

if __name__ == "__main__":
    raise SystemExit(main(Uprobe))
