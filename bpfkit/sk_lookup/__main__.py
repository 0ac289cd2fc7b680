# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.sk_lookup."""

from bpfkit.sk_lookup.program import main

if __name__ == "__main__":
    raise SystemExit(main())
