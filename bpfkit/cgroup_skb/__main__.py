# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.cgroup_skb."""

from bpfkit.app.lifecycle import main
from bpfkit.cgroup_skb.program import CgroupSkb

if __name__ == "__main__":
    raise SystemExit(main(CgroupSkb))
