# SPDX-License-Identifier: Apache-2.0
"""python -m bpfkit.tc_drop_tcp: no TCP gets out (or in).  The C side: bpf_c/tc/tc_drop_tcp.bpf.c.

See also container_lab, where it stands beside xdp_drop_tcp.
"""

from __future__ import annotations

from bpfkit.app import main
from bpfkit.hookapp import TcApp
from bpfkit.xdp_drop_tcp import DropTcp


class TcDropTcp(DropTcp, TcApp):
    """tc, by clsact or tcx, that drops the TCP packets an interface sends (or receives)."""

    name = "tc_drop_tcp"
    source = "tc/tc_drop_tcp.bpf.c"


if __name__ == "__main__":
    raise SystemExit(main(TcDropTcp))
