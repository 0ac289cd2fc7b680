# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.xdp_redirect."""

from bpfkit.app.lifecycle import main
from bpfkit.xdp_redirect.program import XdpRedirect

if __name__ == "__main__":
    raise SystemExit(main(XdpRedirect))
