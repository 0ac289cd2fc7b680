# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.xdp_firewall."""

from bpfkit.xdp_firewall.program import main

if __name__ == "__main__":
    raise SystemExit(main())
