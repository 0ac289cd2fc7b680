# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.usdt: see program.py."""
