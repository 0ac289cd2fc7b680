# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.lirc: see program.py."""
