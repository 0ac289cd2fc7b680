# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.cgroup_skb: see program.py."""
