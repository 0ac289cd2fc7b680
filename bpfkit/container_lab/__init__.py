# SPDX-License-Identifier: Apache-2.0
"""python -m bpfkit.container_lab: see program.py."""
