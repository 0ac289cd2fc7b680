# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.xdp_cpumap: see program.py."""
