# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.lwt_in: a program on the input of a route.

The C side is bpf_c/lwt/lwt_in.bpf.c.  In the demo a router has it on its routes to the server: it
counts what is forwarded, and drops UDP.
"""

from __future__ import annotations

from bpfkit.app.lifecycle import main
from bpfkit.app.route import SERVERS, DropApp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from bpfkit.show.rows import Verdict


class LwtIn(DropApp):
    """A program on a route's input: counts what is forwarded, drops one protocol."""

    name = "lwt_in"
    expects = (
        "pings, TCP and UDP go to the server by routes with the program, which drops one protocol"
    )
    source = "lwt/lwt_in.bpf.c"
    lab_namespace = "router"
    drops = "udp"

    def routes(self) -> list[tuple[str, str, str]]:
        # Longer than the connected networks' own: those are never touched.
        return [(f"{host}/{128 if ':' in host else 32}", "right", "") for host in SERVERS]

    def verify(self) -> Iterable[Verdict]:
        yield from self.verify_drops()


if __name__ == "__main__":
    raise SystemExit(main(LwtIn))
