# SPDX-License-Identifier: Apache-2.0
"""python -m bpfkit.sockex3: see program.py."""
