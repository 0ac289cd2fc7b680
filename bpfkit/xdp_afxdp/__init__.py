# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.xdp_afxdp: see program.py."""
