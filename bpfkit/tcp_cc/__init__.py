# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.tcp_cc: see program.py."""
