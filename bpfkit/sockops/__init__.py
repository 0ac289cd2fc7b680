# SPDX-License-Identifier: Apache-2.0
"""python -m bpfkit.sockops: see program.py."""
