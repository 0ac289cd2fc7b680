# SPDX-License-Identifier: Apache-2.0
"""python -m bpfkit.lirc: see program.py."""
