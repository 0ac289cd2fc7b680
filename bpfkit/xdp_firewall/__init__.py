# SPDX-License-Identifier: Apache-2.0
"""python -m bpfkit.xdp_firewall: see program.py."""
