# SPDX-License-Identifier: Apache-2.0
"""python -m bpfkit.usdt: see program.py."""
