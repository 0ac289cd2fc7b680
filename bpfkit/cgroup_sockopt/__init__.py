# SPDX-License-Identifier: Apache-2.0
"""python -m bpfkit.cgroup_sockopt: see program.py."""
