# SPDX-License-Identifier: Apache-2.0
"""The environment of bpfkit: kernel, BTF, mounts, privileges, memory accounting, JIT."""

from __future__ import annotations

import os

from bpfkit.core.errors import errno_text
from bpfkit.core.features import privileges, system
from bpfkit.core.features.answer import INCONCLUSIVE, NOT_SUPPORTED, WORKS, Feature
from bpfkit.core.features.privileges import RETURN_0
from bpfkit.core.kernel import syscall
from bpfkit.core.kernel.constants import map_type, prog_type

__all__ = ["environment"]


def environment() -> list[Feature]:
    """The environment of bpfkit: kernel, BTF, mounts, privileges, memory accounting, JIT."""
    return [
        _env_kernel(),
        _env_config(),
        _env_privileges(),
        _env_unprivileged(),
        _env_btf(),
        _env_mount("tracefs", "TRACING", "mount -t tracefs tracefs /sys/kernel/tracing"),
        _env_mount("bpf", "BPF_SYSCALL", "mount -t bpf bpf /sys/fs/bpf", "bpffs"),
        _env_mount("cgroup2", "CGROUPS", "mount -t cgroup2 cgroup2 /sys/fs/cgroup"),
        _env_memlock(),
        _env_jit(),
        _env_lockdown(),
    ]


def _env_kernel() -> Feature:
    name = os.uname()
    return Feature("kernel", WORKS, f"Linux {name.release} {name.machine}", value=name.release)


def _env_config() -> Feature:
    path = system.config_path()
    if path:
        return Feature("config", WORKS, path, value=path)
    why = "the kernel's configuration cannot be read; missing options are guesses"
    return Feature("config", INCONCLUSIVE, why)


def _env_privileges() -> Feature:
    held = privileges.capabilities()
    wanted = ["CAP_BPF", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_PERFMON", "CAP_SYS_ADMIN"]
    missing = [name for name in wanted if name not in held]
    value = {name: name in held for name in wanted}
    if not missing:
        return Feature("privileges", WORKS, "all capabilities bpfkit uses", value=value)
    what = f"without {', '.join(missing)}"
    hint = "run it with sudo"
    return Feature("privileges", NOT_SUPPORTED, what, hint=hint, value=value)


def _env_unprivileged() -> Feature:
    text = system.read("/proc/sys/kernel/unprivileged_bpf_disabled")
    words = {
        "0": "users without CAP_BPF may load socket filters and cgroup_skb",
        "1": "bpf(2) is for privileged users, until the next boot",
        "2": "bpf(2) is for privileged users (an administrator can change it)",
    }
    if text is None:
        return Feature(
            "unprivileged_bpf", INCONCLUSIVE, "no unprivileged_bpf_disabled in /proc/sys"
        )
    return Feature("unprivileged_bpf", WORKS, words.get(text, text), value=text)


def _env_btf() -> Feature:
    path = "/sys/kernel/btf/vmlinux"
    try:
        with open(path, "rb") as file:
            magic = file.read(2)
    except FileNotFoundError:
        why = "no kernel BTF: CONFIG_DEBUG_INFO_BTF (programs that read kernel structs cannot run)"
        return Feature("btf", NOT_SUPPORTED, why)
    except OSError as error:
        return Feature("btf", INCONCLUSIVE, errno_text(error.errno or 0))
    if magic != b"\x9f\xeb":
        return Feature("btf", NOT_SUPPORTED, f"{path} is not BTF of this byte order")
    return Feature("btf", WORKS, path, value=path)


def _env_mount(kind: str, option: str, command: str, name: str = "") -> Feature:
    name = name or kind
    paths = system.mounts(kind)
    if paths:
        return Feature(name, WORKS, f"at {', '.join(paths)}", value=paths[0])
    known = system.filesystem(kind)
    if known is False:
        return Feature(name, NOT_SUPPORTED, f"this kernel has no {kind}: CONFIG_{option}")
    return Feature(name, NOT_SUPPORTED, "not mounted", hint=command)


def _env_memlock() -> Feature:
    """Maps are charged to the memory cgroup (5.11), or to RLIMIT_MEMLOCK: try with limit 0."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    try:
        os.close(syscall.map_create(map_type("ARRAY"), 4, 4, 1))
    except OSError as error:
        return Feature(
            "memlock", INCONCLUSIVE, f"no map can be made: {errno_text(error.errno or 0)}"
        )
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, hard))
    try:
        os.close(syscall.map_create(map_type("ARRAY"), 4, 4, 1, keep_limit=True))
    except OSError:
        limit = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft} bytes"
        state = WORKS if soft == resource.RLIM_INFINITY or soft >= 1 << 26 else NOT_SUPPORTED
        return Feature(
            "memlock", state, f"maps count against RLIMIT_MEMLOCK ({limit})",
            hint="" if state == WORKS else "ulimit -l unlimited", value="rlimit",
        )  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))
    return Feature("memlock", WORKS, "maps are charged to the memory cgroup", value="memcg")


def _env_jit() -> Feature:
    text = system.read("/proc/sys/net/core/bpf_jit_enable")
    if text is None:
        try:
            fd = syscall.prog_load(prog_type("SOCKET_FILTER"), RETURN_0)
        except OSError as error:
            return Feature("jit", INCONCLUSIVE, errno_text(error.errno or 0))
        try:
            on = bool(syscall.prog_info(fd)["jited_prog_len"])
        finally:
            os.close(fd)
    else:
        on = text != "0"
    if on:
        return Feature("jit", WORKS, "programs become machine code", value=text)
    hint = "sysctl net.core.bpf_jit_enable=1"
    return Feature("jit", NOT_SUPPORTED, "programs are interpreted", hint=hint, value=text)


def _env_lockdown() -> Feature:
    mode = system.lockdown()
    if mode is None:
        if system.kernel_config().get("SECURITY_LOCKDOWN_LSM", "n") == "n" and system.config_path():
            return Feature("lockdown", WORKS, "this kernel has no lockdown", value="none")
        why = "securityfs is not mounted: cannot tell whether lockdown is on"
        return Feature("lockdown", INCONCLUSIVE, why)
    if mode == "confidentiality":
        why = "kernel lockdown is 'confidentiality': programs may not read kernel memory"
        return Feature("lockdown", NOT_SUPPORTED, why, value=mode)
    return Feature("lockdown", WORKS, f"lockdown is '{mode}'", value=mode)
