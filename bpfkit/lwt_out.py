# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.lwt_out: a program on the output of a route.

The C side is bpf_c/lwt/lwt_out.bpf.c.  In the demo a client has it on its routes to the server: it
counts what is sent, and drops ICMP and ICMPv6.
"""

from __future__ import annotations

from bpfkit.app.lifecycle import main
from bpfkit.app.route import DropApp, forwarding_client

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from bpfkit.net.links.lab import Lab
    from bpfkit.show.rows import Verdict


class LwtOut(DropApp):
    """A program on a route's output: counts what a host sends, drops one protocol."""

    name = "lwt_out"
    expects = (
        "pings, TCP and UDP go to the server by routes with the program, which drops one protocol"
    )
    source = "lwt/lwt_out.bpf.c"
    lab_namespace = "client"
    drops = "icmp"
    tagged = ("router:left", "client:eth0")

    def build_lab(self) -> Lab:
        return forwarding_client(super().build_lab())

    def verify(self) -> Iterable[Verdict]:
        yield from self.verify_drops()


if __name__ == "__main__":
    raise SystemExit(main(LwtOut))
