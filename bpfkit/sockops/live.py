# SPDX-License-Identifier: Apache-2.0
"""The connections that are open: an iterator over the sockets' storage."""

from __future__ import annotations

from bpfkit.core.closing import Closing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.core.object import Object
    from bpfkit.show.rows import Row

__all__ = ["Live"]


class Live(Closing):
    """Reads the open connections, with the counters that they have now.

    Nothing is copied or counted for it while nobody reads (iterator bpf_sk_storage_map, Linux 5.9).

    :raises UnsupportedError: the kernel has no such iterator.
    """

    def __init__(self, loaded: Object) -> None:
        from ctypes import addressof, create_string_buffer
        from struct import pack

        btf = loaded.btf
        assert btf is not None
        found = btf.find("live", "struct")
        assert found is not None
        self._layout = btf.layout(found)
        # union bpf_iter_link_info, the map's descriptor: its address and length.
        target = create_string_buffer(pack("=I", loaded["conns"].fd), 16)
        extra = pack("=QI", addressof(target), 4)
        self._link = loaded.programs["live"].attach_iter(extra)

    def rows(self) -> list[Row]:
        """A row per connection, the latest first."""
        from bpfkit.core.attach.iter import read_iter
        from bpfkit.sockops.show import live_row

        rows = [live_row(record) for record in self._layout.decode_many(read_iter(self._link))]
        return sorted(rows, key=lambda row: row["age_s"])

    def close(self) -> None:
        """Detach the iterator."""
        self._link.close()
