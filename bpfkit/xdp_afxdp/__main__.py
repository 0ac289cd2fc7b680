# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.xdp_afxdp."""

from bpfkit.app.lifecycle import main
from bpfkit.xdp_afxdp.program import XdpAfxdp

if __name__ == "__main__":
    raise SystemExit(main(XdpAfxdp))
