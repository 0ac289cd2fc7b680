# SPDX-License-Identifier: Apache-2.0
"""Programs on a socket: filters (SO_ATTACH_BPF) and SO_REUSEPORT selection."""

from __future__ import annotations

import os

from bpfkit.core.attach.link import Link, attach_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket as socket_module

    from bpfkit.core.program import Program

__all__ = ["attach_filter", "attach_reuseport"]

_SOL_SOCKET = 1
_SO_ATTACH_BPF = 50
_SO_DETACH_FILTER = 27
_SO_ATTACH_REUSEPORT_EBPF = 52
_SO_DETACH_REUSEPORT_BPF = 68


def attach_filter(program: Program, sock: socket_module.socket | int) -> Link:
    """See :meth:`bpfkit.core.program.Program.attach_socket`."""
    return _set_option(program, sock, _SO_ATTACH_BPF, _SO_DETACH_FILTER, "socket")


def attach_reuseport(program: Program, sock: socket_module.socket | int) -> Link:
    """See :meth:`bpfkit.core.program.Program.attach_reuseport`."""
    return _set_option(
        program, sock, _SO_ATTACH_REUSEPORT_EBPF, _SO_DETACH_REUSEPORT_BPF, "reuseport"
    )


def _set_option(
    program: Program, sock: socket_module.socket | int, attach: int, detach: int, kind: str
) -> Link:
    import _socket

    fd = sock if isinstance(sock, int) else sock.fileno()

    def option(number: int, value: int) -> None:
        copy = _socket.socket(fileno=os.dup(fd))
        try:
            copy.setsockopt(_SOL_SOCKET, number, value)
        finally:
            copy.close()

    def undo() -> None:
        # A socket that is closed already has taken the filter with it.
        if isinstance(sock, int) or sock.fileno() == fd:
            try:
                option(detach, 0)
            except OSError:
                pass

    try:
        option(attach, program.fd)
    except OSError as error:
        raise attach_error(program, f"socket fd {fd}", error) from None
    return Link(program, kind, f"socket fd {fd}", undo=undo)
