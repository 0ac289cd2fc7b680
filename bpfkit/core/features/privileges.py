# SPDX-License-Identifier: Apache-2.0
"""Which capabilities this process has, and why the kernel refused a program with EPERM."""

from __future__ import annotations

import errno
import os

from bpfkit.core.features import system
from bpfkit.core.kernel import syscall
from bpfkit.core.kernel.asm import assemble, exit_, mov, r0
from bpfkit.core.kernel.capabilities import CAPABILITIES
from bpfkit.core.kernel.constants import PROG_TYPES, prog_type

__all__ = ["RETURN_0", "capabilities", "refused_by_policy"]

#: The smallest program: ``r0 = 0; exit``.
RETURN_0 = bytes(assemble(mov(r0, 0), exit_()))


def capabilities() -> frozenset[str]:
    """Names of this thread's effective capabilities (``CAP_BPF`` …)."""
    text = system.read("/proc/thread-self/status") or system.read("/proc/self/status") or ""
    for line in text.splitlines():
        if line.startswith("CapEff:"):
            mask = int(line.split()[1], 16)
            return frozenset(f"CAP_{n}" for i, n in enumerate(CAPABILITIES) if mask >> i & 1)
    return frozenset()


_TRACING_TYPES = (
    "KPROBE TRACEPOINT PERF_EVENT RAW_TRACEPOINT RAW_TRACEPOINT_WRITABLE TRACING EXT LSM"
)


def _needed(number: int) -> list[str]:
    """The capabilities a program type takes (5.8; CAP_SYS_ADMIN is enough for all)."""
    name = PROG_TYPES[number] if 0 <= number < len(PROG_TYPES) else ""
    if name in _TRACING_TYPES:
        return ["CAP_BPF", "CAP_PERFMON"]
    if name in ("SOCKET_FILTER", "SYSCALL", "CGROUP_SKB"):
        return ["CAP_BPF"]
    return ["CAP_BPF", "CAP_NET_ADMIN"]


def refused_by_policy(number: int) -> str:
    """Why BPF_PROG_LOAD of a program type said EPERM, in words.

    :param number: of ``enum bpf_prog_type``.
    """
    held = capabilities()
    missing = [name for name in _needed(number) if name not in held]
    if missing and "CAP_SYS_ADMIN" not in held:
        return f"missing privilege: {', '.join(missing)}"
    if not _can_load_anything():
        return (
            "bpf(2) is refused here although the capabilities are there (EPERM): "
            "a container's seccomp filter, or a user namespace"
        )
    if "confidentiality" in (system.lockdown() or ""):
        return "refused by kernel lockdown (confidentiality)"
    return "refused by this kernel's policy (EPERM with all capabilities): run it in the VM"


def _can_load_anything() -> bool:
    try:
        os.close(syscall.prog_load(prog_type("SOCKET_FILTER"), RETURN_0))
    except OSError as error:
        return error.errno != errno.EPERM
    return True
