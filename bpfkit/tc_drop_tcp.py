# SPDX-License-Identifier: Apache-2.0
"""python -m bpfkit.tc_drop_tcp: no TCP gets out (or in).  The C side: bpf_c/tc/tc_drop_tcp.bpf.c.

See also container_lab, where it stands beside xdp_drop_tcp.
"""

from __future__ import annotations

from bpfkit.app.interface import TcApp
from bpfkit.app.lifecycle import main
from bpfkit.xdp_drop_tcp import DropTcp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.net.traffic.tagged_frames import TaggedFrames


class TcDropTcp(DropTcp, TcApp):
    """tc, by clsact or tcx, that drops the TCP packets an interface sends (or receives)."""

    name = "tc_drop_tcp"
    source = "tc/tc_drop_tcp.bpf.c"

    def tag_play(self) -> TaggedFrames:
        """Egress: frames to the client, captured there.  Ingress is behind the tap: answers."""
        from bpfkit.net.traffic.tagged_frames import PAIR, PriorityTaggedFrames, TaggedFrames

        assert self.lab is not None
        client, server = "client:eth0", "server:eth0"
        if self.options.direction == "egress":
            ends = [(there, here) for here, there in PAIR]
            return TaggedFrames(self.lab, server, client, ends, ("TCP", "UDP"))
        port = self.server.port
        return PriorityTaggedFrames(
            self.lab, client, client, PAIR, ("TCP", "ping"), to=server, port=port
        )


if __name__ == "__main__":
    raise SystemExit(main(TcDropTcp))
