# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.uprobe: see program.py."""
