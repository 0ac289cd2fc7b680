# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.sk_skb: see program.py."""
