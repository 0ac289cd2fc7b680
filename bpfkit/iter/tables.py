# SPDX-License-Identifier: Apache-2.0
"""What the iterators write, as rows."""

from __future__ import annotations

import os
from struct import pack

from bpfkit.core.attach.iter import read_iter
from bpfkit.core.errors import BpfkitError, InputError, errno_text
from bpfkit.core.kernel import syscall
from bpfkit.core.kernel.constants import link_type_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from bpfkit.core.object import Object
    from bpfkit.net.links.netns import NetNS
    from bpfkit.show.rows import Row

__all__ = ["TCP_STATES", "Tables"]

#: include/net/tcp_states.h
TCP_STATES = (
    "NONE ESTABLISHED SYN_SENT SYN_RECV FIN_WAIT1 FIN_WAIT2 TIME_WAIT CLOSE CLOSE_WAIT LAST_ACK "
    "LISTEN CLOSING NEW_SYN_RECV BOUND_INACTIVE"
).split()


class Tables:
    """Reads the iterators.

    :param objects: table -> the object with its program.
    :ivar skipped: network namespaces that could not be read.
    """

    def __init__(self, objects: Mapping[str, Object]) -> None:
        self._objects = objects
        self.skipped = 0

    def tasks(self) -> list[Row]:
        """Processes: ``pid, ppid, threads, started_s`` (since boot), ``comm``."""
        return [
            {
                "pid": row.tgid,
                "ppid": row.ppid,
                "threads": row.threads,
                "started_s": round(row.start_ns / 1e9, 3),
                "comm": row.comm,
            }
            for row in self._read("task")
        ]

    def tcp(self) -> list[Row]:
        """TCP sockets of all network namespaces: ``netns`` (inode), ``state``, ends, ``uid``."""
        rows: list[Row] = []
        self.skipped = 0
        for namespace in self._namespaces():
            with namespace:
                try:
                    found = namespace.run(lambda: list(self._read("tcp")))
                except (OSError, BpfkitError):
                    self.skipped += 1
                    continue
                rows += [self._socket(row, namespace.inode) for row in found]
        return rows

    @staticmethod
    def _socket(row: Any, netns: int) -> Row:
        from _socket import AF_INET, AF_INET6, inet_ntop

        def text(address: bytes) -> str:
            if row.family == AF_INET:
                return inet_ntop(AF_INET, address[:4])
            return inet_ntop(AF_INET6, address)

        return {
            "netns": netns,
            "state": TCP_STATES[row.state] if row.state < len(TCP_STATES) else str(row.state),
            "src": text(row.saddr),
            "sport": row.sport,
            "dst": text(row.daddr),
            "dport": row.dport,
            "uid": row.uid,
        }

    def _namespaces(self) -> Iterator[NetNS]:
        """Every network namespace that a process or a name holds, once; the caller closes it."""
        from bpfkit.net.links.netns import NetNS

        seen: set[int] = set()
        paths = ["/proc/self/ns/net"]
        paths += [f"/proc/{name}/ns/net" for name in os.listdir("/proc") if name.isdigit()]
        paths += [f"/run/netns/{name}" for name in NetNS.names()]
        for path in paths:
            try:
                inode = os.stat(path).st_ino
            except OSError:
                continue  # the process ended, or may not be inspected
            if inode in seen:
                continue
            seen.add(inode)
            try:
                yield NetNS.from_path(path)
            except BpfkitError:
                self.skipped += 1

    def links(self) -> list[Row]:
        """BPF links: ``id, type``, and of the program ``prog_id, prog_type, prog_name``."""
        from bpfkit.core.kernel.constants import prog_type_name

        return [
            {
                "id": row.id,
                "type": link_type_name(row.type),
                "prog_id": row.prog_id,
                "prog_type": prog_type_name(row.prog_type).removeprefix("BPF_PROG_TYPE_").lower(),
                "prog_name": row.prog_name,
            }
            for row in self._read("link")
        ]

    def elements(self, map_id: int) -> list[Row]:
        """The elements of a map: ``key``, ``value``, the first 64 bytes of each in hexadecimal.

        :raises InputError: there is no such map, or its type cannot be walked.
        """
        try:
            fd = syscall.map_get_fd_by_id(map_id)
        except OSError as error:
            raise InputError(f"no map {map_id}", why=errno_text(error.errno or 0)) from None
        try:
            # union bpf_iter_link_info: map_fd.
            rows = list(self._read("map", pack("<I12x", fd)))
        except BpfkitError as error:
            raise InputError(f"cannot walk map {map_id}", why=error.why or str(error)) from None
        finally:
            os.close(fd)
        return [
            {
                "key": bytes(row.key)[: row.key_size].hex(),
                "value": bytes(row.value)[: row.value_size].hex(),
            }
            for row in rows
        ]

    def _read(self, name: str, info: bytes = b"") -> Iterator[Any]:
        """The records that an iterator writes."""
        from ctypes import addressof, create_string_buffer

        loaded = self._objects[name]
        btf = loaded.btf
        layout = None if btf is None else btf.record_layout(name)
        assert layout is not None
        buffer = create_string_buffer(info, len(info)) if info else None
        extra = pack("<QI4x", addressof(buffer), len(info)) if buffer is not None else b""
        with loaded.programs[name].attach_iter(extra) as link:
            data = read_iter(link)
        for at in range(0, len(data), layout.size):
            yield layout.decode(data[at : at + layout.size])
