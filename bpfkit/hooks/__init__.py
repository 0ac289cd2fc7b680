# SPDX-License-Identifier: Apache-2.0
"""python -m bpfkit.hooks: see program.py."""
