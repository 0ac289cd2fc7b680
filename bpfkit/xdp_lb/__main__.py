# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.xdp_lb."""

from bpfkit.app.lifecycle import main
from bpfkit.xdp_lb.program import XdpLb

if __name__ == "__main__":
    raise SystemExit(main(XdpLb))
