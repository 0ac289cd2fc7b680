# SPDX-License-Identifier: Apache-2.0
"""python -m bpfkit.tcp_cc: see program.py."""
