# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.sk_lookup: see program.py."""
