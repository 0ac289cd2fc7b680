# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.xdp_firewall: see program.py."""
