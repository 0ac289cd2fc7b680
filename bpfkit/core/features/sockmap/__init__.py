# SPDX-License-Identifier: Apache-2.0
"""What a sockmap does to the sockets in it, on this kernel, found by doing.

The two probes answer before a program takes sockets of others into its map; each makes its own
TCP connections over the loopback of the calling thread's network namespace and closes them.
``python3 -m bpfkit doctor sockmap`` has these and all the other answers.
"""

from __future__ import annotations

import errno
import os
import socket

from bpfkit.core.errors import errno_text
from bpfkit.core.features.answer import INCONCLUSIVE, NOT_SUPPORTED, WORKS, Feature
from bpfkit.core.features.sockmap.table import (
    INGRESS,
    SK_MSG,
    SK_SKB,
    Absent,
    Table,
    errno_name,
    pair,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["ABSENT", "obstacle", "probe_fionread", "probe_splice", "queued", "unknown"]

#: ``value`` of an INCONCLUSIVE answer about what this machine does not have.
ABSENT = "absent"

#: Sent in each experiment; any size below one segment will do.
_SIZE = 1000
#: Seconds that data may take over loopback; far more than it does.
_PATIENCE = 0.5
_CASES = ("in a map", "with an SK_PASS verdict", "redirected")


def probe_fionread() -> Feature:
    """Whether ioctl(FIONREAD) of a TCP socket in a sockmap counts the bytes that recv() would give.

    The answer is that of a socket that is merely in the map, the first of the ``parts``: ``in a
    map`` (no verdict program), ``with an SK_PASS verdict`` (an sk_skb verdict that passes all),
    ``redirected`` (data that an sk_msg program redirected to the socket).  INCONCLUSIVE: the
    experiment is impossible here, ``why`` says what is in its way.

    Kernels with commit 929e30f93125 ("Fix FIONREAD for sockmap") and without its fix 04af4efde58a
    answer 0 in the first case; kernels without both do so in the two others.
    """
    return _probe("fionread", _fionread)


def probe_splice() -> Feature:
    """Whether splice(2) reads from a TCP socket in a sockmap; ``parts`` as :func:`probe_fionread`.

    The answer is that of redirected data.  ``tcp_bpf`` has no splice_read, and
    ``tcp_splice_read()`` looks at the TCP receive queue only.
    """
    return _probe("splice", _splice, answer=2)


def _probe(
    name: str, read: Callable[[socket.socket], tuple[bool, str]], answer: int = 0
) -> Feature:
    parts = []
    for case in _CASES:
        try:
            for sock in queued(case):
                works, why = read(sock)
                parts.append(Feature(case, WORKS if works else NOT_SUPPORTED, why))
        except OSError as error:
            parts.append(Feature(case, INCONCLUSIVE, obstacle(error)))
    chosen = parts[answer]
    return Feature(name, chosen.state, chosen.why, parts=parts)


def queued(case: str, size: int = _SIZE) -> Iterator[socket.socket]:
    """Yield, once, a TCP socket in a map with ``size`` unread bytes; closed afterwards.

    :param case: ``in a map``, ``with an SK_PASS verdict`` or ``redirected``.
    :raises OSError: there is no such map, no loopback, or the data did not arrive (ETIMEDOUT).
    """
    from bpfkit.core.features.sockmap.table import readable

    sender, receiver = pair("tcp")
    with sender, receiver, Table() as table:
        if case == "redirected":
            table.attach(SK_MSG, INGRESS)
            table.enter(receiver, target=True)
            table.enter(sender)
        else:
            if case == "with an SK_PASS verdict":
                table.attach(SK_SKB)
            table.enter(receiver)
        sender.sendall(bytes(size))
        if not readable(receiver, _PATIENCE):
            raise OSError(errno.ETIMEDOUT, "the data did not arrive")
        yield receiver


def _fionread(sock: socket.socket) -> tuple[bool, str]:
    from array import array
    from fcntl import ioctl
    from termios import FIONREAD

    waiting = len(sock.recv(2 * _SIZE, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    box = array("i", [-1])
    ioctl(sock, FIONREAD, box)
    if box[0] == waiting:
        return True, ""
    return False, f"FIONREAD says {box[0]} while {waiting} bytes can be read"


def _splice(sock: socket.socket) -> tuple[bool, str]:
    # Not SPLICE_F_NONBLOCK alone: tcp_splice_read() then waits as long as a blocking recv().
    sock.setblocking(False)
    reader, writer = os.pipe()
    try:
        try:
            moved = os.splice(sock.fileno(), writer, _SIZE, flags=os.SPLICE_F_NONBLOCK)
        except OSError as error:
            return False, f"splice() says {errno_name(error)} while data is waiting"
    finally:
        os.close(reader)
        os.close(writer)
    return moved > 0, "" if moved else "splice() says end of stream while data is waiting"


def unknown(name: str, error: OSError) -> Feature:
    """The answer of an experiment that cannot be made here."""
    value = ABSENT if isinstance(error, Absent) else None
    return Feature(name, INCONCLUSIVE, obstacle(error), value=value)


def obstacle(error: OSError) -> str:
    """Why an experiment cannot be made here, in words."""
    from bpfkit.core.features import privileges, system

    code = error.errno or 0
    if isinstance(error, Absent):
        return str(error.strerror)
    if code == errno.EPERM:
        held = privileges.capabilities()
        if "CAP_SYS_ADMIN" in held or {"CAP_BPF", "CAP_NET_ADMIN"} <= held:
            return "bpf(2) is refused although the capabilities are there (EPERM): seccomp"
        return "missing privilege: CAP_BPF and CAP_NET_ADMIN"
    if code == errno.EINVAL:
        config = system.kernel_config()
        options = ("BPF_SYSCALL", "NET", "INET", "BPF_STREAM_PARSER")
        missing = [f"CONFIG_{name}" for name in options if config.get(name, "n") == "n"]
        if config and missing:
            return f"no sockmap in this kernel: {', '.join(missing)} is not set"
        return "no sockmap in this kernel (CONFIG_BPF_STREAM_PARSER)"
    return error.strerror or (errno_text(code) if code else str(error))
