# SPDX-License-Identifier: Apache-2.0
"""python -m bpfkit.uprobe: see program.py."""
