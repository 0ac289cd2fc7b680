# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.hooks: see program.py."""
