# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.sockops: see program.py."""
