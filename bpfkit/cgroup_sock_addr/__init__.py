# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.cgroup_sock_addr: see program.py."""
