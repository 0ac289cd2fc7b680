# SPDX-License-Identifier: Apache-2.0
"""Facts about the machine from /proc, /sys and /boot: mounts, configuration, lockdown, release."""

from __future__ import annotations

import os

__all__ = [
    "config_path",
    "filesystem",
    "kernel_config",
    "lockdown",
    "mounts",
    "read",
    "release",
    "tracefs",
    "version",
]


def tracefs() -> str | None:
    """Where tracefs is mounted (also below debugfs), None if nowhere."""
    paths = mounts("tracefs")
    if paths:
        return paths[0]
    below = [f"{path}/tracing" for path in mounts("debugfs")]
    return next((path for path in below if os.path.isdir(f"{path}/events")), None)


def kernel_config() -> dict[str, str]:
    """The running kernel's configuration without ``CONFIG_``; empty where it cannot be read."""
    path = config_path()
    if not path:
        return {}
    try:
        with open(path, "rb") as file:
            data = file.read()
        if path.endswith(".gz"):
            import gzip

            data = gzip.decompress(data)
    except (OSError, EOFError):
        return {}
    found = {}
    for line in data.decode(errors="replace").splitlines():
        if line.startswith("CONFIG_"):
            name, _, value = line[7:].partition("=")
            found[name] = value
    return found


def config_path() -> str:
    """The readable file with the running kernel's configuration, "" where there is none."""
    release = os.uname().release
    paths = ("/proc/config.gz", f"/boot/config-{release}", f"/lib/modules/{release}/config")
    return next((path for path in paths if os.access(path, os.R_OK)), "")


def lockdown() -> str | None:
    """The mode of kernel lockdown (``none``, ``integrity``, ``confidentiality``); None: unknown."""
    text = read("/sys/kernel/security/lockdown")
    return text.partition("[")[2].partition("]")[0] if text else None


def mounts(kind: str) -> list[str]:
    """Mount points of a file system type in this mount namespace."""
    found = []
    for line in (read("/proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        if right.split(" ", 1)[0] == kind:
            path = left.split(" ")[4]
            for code, char in (("\\040", " "), ("\\011", "\t"), ("\\134", "\\")):
                path = path.replace(code, char)
            found.append(path)
    return found


def filesystem(kind: str) -> bool | None:
    """Whether the kernel has a file system type; None where /proc does not tell."""
    text = read("/proc/filesystems")
    return None if text is None else kind in text.split()


def release() -> tuple[int, ...]:
    """(major, minor) of the running kernel."""
    return version(os.uname().release)


def version(text: str) -> tuple[int, ...]:
    """(6, 18) for ``6.18.44-cloud``."""
    numbers = []
    for part in text.split(".")[:2]:
        digits = part[: next((i for i, c in enumerate(part) if not c.isdigit()), len(part))]
        numbers.append(int(digits or 0))
    return tuple(numbers)


def read(path: str) -> str | None:
    """The text of a small file without white space around it; None where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None
