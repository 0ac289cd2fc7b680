# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.xdp_lb: see program.py."""
