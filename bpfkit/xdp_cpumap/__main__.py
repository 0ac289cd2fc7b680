# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.xdp_cpumap."""

from bpfkit.app.lifecycle import main
from bpfkit.xdp_cpumap.program import XdpCpumap

if __name__ == "__main__":
    raise SystemExit(main(XdpCpumap))
