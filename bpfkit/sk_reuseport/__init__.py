# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.sk_reuseport: see program.py."""
