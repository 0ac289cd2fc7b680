# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.hooks."""

from bpfkit.app.lifecycle import main
from bpfkit.hooks.program import Hooks

if __name__ == "__main__":
    raise SystemExit(main(Hooks))
