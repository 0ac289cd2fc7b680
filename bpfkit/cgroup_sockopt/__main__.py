# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.cgroup_sockopt."""

from bpfkit.app.lifecycle import main
from bpfkit.cgroup_sockopt.program import CgroupSockopt

if __name__ == "__main__":
    raise SystemExit(main(CgroupSockopt))
