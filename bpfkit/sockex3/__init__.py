# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.sockex3: see program.py."""
