# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.cgroup_sock_addr."""

from bpfkit.app.lifecycle import main
from bpfkit.cgroup_sock_addr.program import CgroupSockAddr

if __name__ == "__main__":
    raise SystemExit(main(CgroupSockAddr))
