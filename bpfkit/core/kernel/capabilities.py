# SPDX-License-Identifier: Apache-2.0
"""The capabilities of Linux, by name and number.  Importing this costs nothing.

Source: ``include/uapi/linux/capability.h``.
"""

from __future__ import annotations

__all__ = ["CAPABILITIES", "capability_bit"]

#: Names without ``CAP_``; the index is the number.
CAPABILITIES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO "
    "SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME "
    "SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG "
    "WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
).split()


def capability_bit(name: str) -> int:
    """The bit of a capability (``NET_ADMIN``) in the masks of /proc/PID/status."""
    return 1 << CAPABILITIES.index(name)
