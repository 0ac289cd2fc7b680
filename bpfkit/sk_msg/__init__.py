# SPDX-License-Identifier: Apache-2.0
"""python -m bpfkit.sk_msg: see program.py."""
