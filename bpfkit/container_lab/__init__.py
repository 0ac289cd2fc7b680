# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.container_lab: see program.py."""
