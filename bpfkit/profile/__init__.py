# SPDX-License-Identifier: Apache-2.0
"""python -m bpfkit.profile: see program.py."""
