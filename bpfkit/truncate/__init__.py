# SPDX-License-Identifier: Apache-2.0
"""python -m bpfkit.truncate: see program.py."""
