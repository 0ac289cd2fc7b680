# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.sockex1: bytes per IP protocol.  The C side is bpf_c/socket/sockex1.bpf.c."""

from __future__ import annotations

from bpfkit.app.lifecycle import main
from bpfkit.app.tap import ProtocolApp, sums_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.show.rows import Row


class Sockex1(ProtocolApp):
    """Bytes per IP protocol of the packets that leave (or enter) an interface."""

    name = "sockex1"
    source = "socket/sockex1.bpf.c"
    counters = ("bytes",)

    def values(self) -> list[int]:
        return [row.bytes for _, row in self.object["protocols"].sums()]

    def notes(self, rows: list[Row]) -> list[str]:
        other = self.object["nonip"].sum(0)
        if not other.packets:
            return []
        return [f"not IP: {sums_text(other.packets, other.bytes)}"]


if __name__ == "__main__":
    raise SystemExit(main(Sockex1))
