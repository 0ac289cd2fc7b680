# SPDX-License-Identifier: Apache-2.0
"""What this kernel and machine can do, found out by doing it.

Every answer has one of three states: :data:`WORKS`, :data:`NOT_SUPPORTED` (``why`` names the
config, version or policy) and :data:`INCONCLUSIVE` (``why`` says what stood in the way: usually
a missing privilege).  No answer comes from the kernel's version; versions and options are only
named as what is probably missing.

Probing loads programs of two instructions and creates the smallest possible maps, and closes
them again.  Attaching is tried where it is cheap and cannot be noticed: on tracepoints that
only BPF_PROG_TEST_RUN hits, on sockets of our own.  Nothing is mounted, nothing stays behind.

Minimum kernels are those of ``Documentation/bpf`` and the commits that added the types.
"""

from __future__ import annotations

import ctypes
import errno
import os
from struct import Struct, pack

from bpfkit.core.errors import errno_text
from bpfkit.core.kernel import syscall
from bpfkit.core.kernel.asm import assemble, call, exit_, mov, r0
from bpfkit.core.kernel.constants import (
    MAP_TYPES,
    PROG_TYPES,
    attach_type,
    map_type,
    map_type_name,
    prog_type,
    prog_type_name,
)
from bpfkit.core.kernel.helpers import HELPERS, find_helper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from bpfkit.core.types.btf import Btf

__all__ = [
    "CAPABILITIES",
    "INCONCLUSIVE",
    "NOT_SUPPORTED",
    "WORKS",
    "BtfBuilder",
    "Feature",
    "capabilities",
    "environment",
    "helper_functions",
    "kernel_config",
    "map_types",
    "probe_map_type",
    "probe_program_type",
    "program_types",
    "refused_by_policy",
    "tiny_btf",
    "tracefs",
]

WORKS = "works"
NOT_SUPPORTED = "not supported"
INCONCLUSIVE = "inconclusive"


class Feature:
    """One answer.

    :ivar name: short name in lower case (``xdp``, ``lru_hash``, ``tracefs``).
    :ivar kernel_name: the kernel's constant (``BPF_PROG_TYPE_XDP``), empty for the environment.
    :ivar state: :data:`WORKS`, :data:`NOT_SUPPORTED` or :data:`INCONCLUSIVE`.
    :ivar why: why it does not work, or what to know although it does; may be empty.
    :ivar hint: what to do about it; may be empty.
    :ivar value: what was found (a path, a number, a list of names), for the environment.
    :ivar parts: the ways a program type is used, where they differ (kprobe, uprobe …).
    """

    __slots__ = ("hint", "kernel_name", "name", "parts", "state", "value", "why")

    def __init__(
        self,
        name: str,
        state: str,
        why: str = "",
        *,
        kernel_name: str = "",
        hint: str = "",
        value: Any = None,
        parts: Sequence[Feature] = (),
    ) -> None:
        self.name = name
        self.kernel_name = kernel_name
        self.state = state
        self.why = why
        self.hint = hint
        self.value = value
        self.parts = tuple(parts)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; what is empty is left out."""
        row: dict[str, Any] = {"name": self.name, "state": self.state}
        for key in ("kernel_name", "why", "hint", "value"):
            found = getattr(self, key)
            if found or (key == "value" and found is not None):
                row[key] = found
        if self.parts:
            row["parts"] = [part.as_dict() for part in self.parts]
        return row

    def __repr__(self) -> str:
        return f"<{self.name}: {self.state}{f' ({self.why})' if self.why else ''}>"


# --- privileges -------------------------------------------------------------------------------

# include/uapi/linux/capability.h; the index is the number
CAPABILITIES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO "
    "SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME "
    "SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG "
    "WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
).split()


def capabilities() -> frozenset[str]:
    """Names of this thread's effective capabilities (``CAP_BPF`` …)."""
    text = _read("/proc/thread-self/status") or _read("/proc/self/status") or ""
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
    if "confidentiality" in (_lockdown() or ""):
        return "refused by kernel lockdown (confidentiality)"
    return "refused by this kernel's policy (EPERM with all capabilities): run it in the VM"


def _can_load_anything() -> bool:
    try:
        os.close(syscall.prog_load(prog_type("SOCKET_FILTER"), _RETURN_0))
    except OSError as error:
        return error.errno != errno.EPERM
    return True


# --- program types ----------------------------------------------------------------------------

_RETURN_0 = bytes(assemble(mov(r0, 0), exit_()))

# name: (since, what must be configured for it to load, what for it to attach)
_PROGRAMS: dict[str, tuple[str, str, str]] = {
    "SOCKET_FILTER": ("3.19", "NET", ""),
    "KPROBE": ("4.1", "BPF_EVENTS", ""),
    "SCHED_CLS": ("4.1", "NET", "NET_CLS_BPF"),
    "SCHED_ACT": ("4.1", "NET", "NET_ACT_BPF"),
    "TRACEPOINT": ("4.7", "BPF_EVENTS", ""),
    "XDP": ("4.8", "NET", ""),
    "PERF_EVENT": ("4.9", "BPF_EVENTS", ""),
    "CGROUP_SKB": ("4.10", "CGROUP_BPF", ""),
    "CGROUP_SOCK": ("4.10", "CGROUP_BPF", ""),
    "LWT_IN": ("4.10", "NET", "LWTUNNEL_BPF"),
    "LWT_OUT": ("4.10", "NET", "LWTUNNEL_BPF"),
    "LWT_XMIT": ("4.10", "NET", "LWTUNNEL_BPF"),
    "SOCK_OPS": ("4.13", "NET", "CGROUP_BPF"),
    "SK_SKB": ("4.14", "NET", ""),
    "CGROUP_DEVICE": ("4.15", "CGROUP_BPF", ""),
    "SK_MSG": ("4.17", "NET", ""),
    "RAW_TRACEPOINT": ("4.17", "BPF_EVENTS", ""),
    "CGROUP_SOCK_ADDR": ("4.17", "CGROUP_BPF", ""),
    "LWT_SEG6LOCAL": ("4.18", "NET", "IPV6_SEG6_BPF"),
    "LIRC_MODE2": ("4.18", "BPF_LIRC_MODE2", ""),
    "SK_REUSEPORT": ("4.19", "INET", ""),
    "FLOW_DISSECTOR": ("4.20", "NET", ""),
    "CGROUP_SYSCTL": ("5.2", "CGROUP_BPF", ""),
    "RAW_TRACEPOINT_WRITABLE": ("5.2", "BPF_EVENTS", ""),
    "CGROUP_SOCKOPT": ("5.3", "CGROUP_BPF", ""),
    "TRACING": ("5.5", "BPF_EVENTS", ""),
    "STRUCT_OPS": ("5.6", "BPF_JIT", ""),
    "EXT": ("5.6", "BPF_JIT", ""),
    "LSM": ("5.7", "BPF_LSM", ""),
    "SK_LOOKUP": ("5.9", "NET", ""),
    "SYSCALL": ("5.14", "BPF_SYSCALL", ""),
    "NETFILTER": ("6.4", "NETFILTER_BPF_LINK", ""),
}

# expected_attach_type, where the type has one (mandatory for some)
_ATTACH = {
    "CGROUP_SKB": "CGROUP_INET_INGRESS",
    "CGROUP_SOCK": "CGROUP_INET_SOCK_CREATE",
    "SOCK_OPS": "CGROUP_SOCK_OPS",
    "SK_SKB": "SK_SKB_STREAM_VERDICT",
    "CGROUP_DEVICE": "CGROUP_DEVICE",
    "SK_MSG": "SK_MSG_VERDICT",
    "CGROUP_SOCK_ADDR": "CGROUP_INET4_CONNECT",
    "LIRC_MODE2": "LIRC_MODE2",
    "SK_REUSEPORT": "SK_REUSEPORT_SELECT",
    "FLOW_DISSECTOR": "FLOW_DISSECTOR",
    "CGROUP_SYSCTL": "CGROUP_SYSCTL",
    "CGROUP_SOCKOPT": "CGROUP_GETSOCKOPT",
    "SK_LOOKUP": "SK_LOOKUP",
    "NETFILTER": "NETFILTER",
}
_SLEEPABLE = 1 << 4  # BPF_F_SLEEPABLE

# Functions, tracepoints and hooks that only packet runs hit, so attaching disturbs nobody.
_QUIET_FUNCTION = "bpf_fentry_test1"
_QUIET_RETURN = "bpf_modify_return_test"
_QUIET_TRACEPOINT = "bpf_test_finish"


def program_types(names: Iterable[str] | None = None) -> list[Feature]:
    """Every program type of ``enum bpf_prog_type`` (or those named), probed."""
    chosen = PROG_TYPES[1:] if names is None else names
    probe = _Probe()
    return [probe.program(name) for name in chosen]


def probe_program_type(name: str) -> Feature:
    """One program type, by any of its names (``xdp``, ``BPF_PROG_TYPE_XDP``)."""
    return _Probe().program(name)


class _Probe:
    """What several probes share: vmlinux BTF, the capabilities, the kernel's configuration."""

    __slots__ = ("_btf", "_config", "_no_btf")

    def __init__(self) -> None:
        self._btf: Btf | None = None
        self._no_btf = ""
        self._config: Mapping[str, str] | None = None

    def config(self, option: str) -> str | None:
        """``y``, ``m``, ``n``, or None where the kernel's configuration cannot be read."""
        if self._config is None:
            self._config = kernel_config()
        return self._config.get(option, "n") if self._config else None

    def btf(self) -> Btf | None:
        """vmlinux BTF, None where there is none (then ``_no_btf`` says why)."""
        if self._btf is None and not self._no_btf:
            from bpfkit.core.types.btf import Btf, BtfError

            try:
                self._btf = Btf.vmlinux()
            except (OSError, BtfError) as error:
                self._no_btf = f"no kernel BTF (CONFIG_DEBUG_INFO_BTF): {error}"
        return self._btf

    # --- program types

    def program(self, name: str) -> Feature:
        number = prog_type(name)
        name = PROG_TYPES[number]
        parts = self._parts(name, number)
        since, loads, attaches = _PROGRAMS.get(name, ("", "", ""))
        works = [part for part in parts if part.state == WORKS]
        others = [part for part in parts if part.state != WORKS]
        if not works:
            first = next((part for part in parts if part.state == INCONCLUSIVE), parts[0])
            state, why = first.state, first.why
            if state == NOT_SUPPORTED and not why:
                why = self._missing(since, loads)
        else:
            state = WORKS
            reasons: dict[str, list[str]] = {}
            for part in others:
                reasons.setdefault(part.why, []).append(part.name)
            why = "; ".join(f"{', '.join(ways)}: {reason}" for reason, ways in reasons.items())
            if not why and attaches and self.config(attaches) == "n":
                why = f"loads, cannot attach: CONFIG_{attaches} is not set"
        return Feature(
            name.lower(),
            state,
            why,
            kernel_name=prog_type_name(number),
            parts=parts if len(parts) > 1 else (),
        )

    def _missing(self, since: str, option: str) -> str:
        needs = []
        if option:
            found = self.config(option)
            if found == "n":
                return f"not built into this kernel: CONFIG_{option} is not set"
            if found is None:
                needs.append(f"CONFIG_{option}")
        if since and _release() < _version(since):
            needs.append(f"Linux {since}")
        return f"needs {' and '.join(needs)}" if needs else "unknown to this kernel"

    def _parts(self, name: str, number: int) -> list[Feature]:
        special = getattr(self, f"_type_{name.lower()}", None)
        if special is not None:
            parts: list[Feature] = special(number)
            return parts
        eat = attach_type(_ATTACH[name]) if name in _ATTACH else 0
        return [self._load("load", number, expected_attach_type=eat)]

    def _load(self, part: str, number: int, **how: Any) -> Feature:
        """Load ``r0 = 0; exit`` and close it again."""
        found, fd = self._open(part, number, **how)
        if fd >= 0:
            os.close(fd)
        return found

    def _open(
        self, part: str, number: int, insns: bytes = _RETURN_0, **how: Any
    ) -> tuple[Feature, int]:
        log = ctypes.create_string_buffer(4096)
        try:
            fd = syscall.prog_load(number, insns, log=log, log_level=1, **how)
        except OSError as error:
            text = log.value.decode(errors="replace").strip()
            return self._refused(part, number, error.errno or 0, text), -1
        return Feature(part, WORKS), fd

    def _refused(self, part: str, number: int, code: int, log: str) -> Feature:
        if code == errno.EPERM:
            why = refused_by_policy(number)
            policy = why.startswith("refused by")
            return Feature(part, NOT_SUPPORTED if policy else INCONCLUSIVE, why)
        if code == errno.ENOSYS:
            return Feature(part, NOT_SUPPORTED, "no bpf(2): CONFIG_BPF_SYSCALL")
        lines = [line for line in log.splitlines() if not line.startswith("processed ")]
        if lines:
            return Feature(part, INCONCLUSIVE, f"{errno_text(code)}: {lines[-1]}")
        if code in (errno.EINVAL, errno.E2BIG, errno.EOPNOTSUPP, 524):
            return Feature(part, NOT_SUPPORTED, self._missing(*_PROGRAMS[PROG_TYPES[number]][:2]))
        return Feature(part, INCONCLUSIVE, errno_text(code))

    def _target(self, part: str, kind: int, *names: str) -> tuple[int, Feature | None]:
        """BTF id of the first of ``names`` that vmlinux has, or the answer why there is none."""
        btf = self.btf()
        if btf is None:
            return 0, Feature(part, NOT_SUPPORTED, self._no_btf)
        for name in names:
            found = btf.find(name, kind)
            if found is not None:
                return found, None
        return 0, Feature(part, NOT_SUPPORTED, f"the kernel has no {names[0]}")

    # Types that differ from "load two instructions".  Each returns the ways the type is used.

    def _type_socket_filter(self, number: int) -> list[Feature]:
        import _socket

        found, fd = self._open("load", number)
        if fd < 0:
            return [found]
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
        try:
            sock.setsockopt(_socket.SOL_SOCKET, 50, fd)  # SO_ATTACH_BPF
        except OSError as error:
            found = Feature(
                "load", NOT_SUPPORTED, f"loads, cannot attach: {errno_text(error.errno or 0)}"
            )
        finally:
            sock.close()
            os.close(fd)
        return [found]

    def _type_kprobe(self, number: int) -> list[Feature]:
        load, fd = self._open("load", number)
        if fd < 0:
            return [load]
        os.close(fd)
        parts = []
        for part, option in (("kprobe", "KPROBE_EVENTS"), ("uprobe", "UPROBE_EVENTS")):
            if _read(f"/sys/bus/event_source/devices/{part}/type"):
                parts.append(Feature(part, WORKS))
            elif os.path.isdir("/sys/bus/event_source/devices"):
                why = f"loads, cannot attach: no {part}_events (CONFIG_{option})"
                parts.append(Feature(part, NOT_SUPPORTED, why))
            else:
                parts.append(Feature(part, INCONCLUSIVE, "sysfs is not mounted"))
        parts.append(self._multi("kprobe.multi", number, "TRACE_KPROBE_MULTI", b"bpfkit_no_symbol"))
        parts.append(self._multi("uprobe.multi", number, "TRACE_UPROBE_MULTI", b"/"))
        return parts

    def _multi(self, part: str, number: int, attach: str, target: bytes) -> Feature:
        """A multi link on something that cannot be probed: the errno tells who refused."""
        eat = attach_type(attach)
        found, fd = self._open(part, number, expected_attach_type=eat)
        if fd < 0:
            return found
        name = syscall.buffer(target + b"\0")
        table = (ctypes.c_uint64 * 1)(syscall.addressof(name))
        at = syscall.addressof(table)
        if attach == "TRACE_KPROBE_MULTI":  # flags, cnt, syms, addrs, cookies
            extra = pack("<IIQQQ", 0, 1, at, 0, 0)
            supported = [errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL]
        else:  # path, offsets, ref_ctr_offsets, cookies, cnt, flags, pid
            extra = pack("<QQQQIII4x", syscall.addressof(name), at, 0, 0, 1, 0, 0)
            supported = [errno.EBADF, errno.EISDIR]
        try:
            os.close(syscall.link_create(fd, 0, eat, 0, extra))
        except OSError as error:
            if error.errno in supported:
                return Feature(part, WORKS)
            why = f"loads, cannot attach: {errno_text(error.errno or 0)}"
            if part == "kprobe.multi":
                why += " (CONFIG_FPROBE)"
            state = INCONCLUSIVE if error.errno == errno.EPERM else NOT_SUPPORTED
            return Feature(part, state, why)
        finally:
            os.close(fd)
        return Feature(part, WORKS)

    def _type_sched_cls(self, number: int) -> list[Feature]:
        load, fd = self._open("clsact", number)
        if fd < 0:
            return [load]
        os.close(fd)
        if self.config("NET_CLS_BPF") == "n":
            load = Feature("clsact", NOT_SUPPORTED, "CONFIG_NET_CLS_BPF is not set")
        eat = attach_type("TCX_INGRESS")
        tcx, fd = self._open("tcx", number, expected_attach_type=eat)
        if fd >= 0:
            try:  # there is no interface -1; a kernel without tcx does not come as far
                os.close(syscall.link_create(fd, 0xFFFFFFFF, eat, 0, bytes(16)))
            except OSError as error:
                if error.errno != errno.ENODEV:
                    why = f"no tcx links: {errno_text(error.errno or 0)} (Linux 6.6)"
                    tcx = Feature("tcx", NOT_SUPPORTED, why)
            finally:
                os.close(fd)
        elif tcx.state == NOT_SUPPORTED:
            tcx = Feature("tcx", NOT_SUPPORTED, "needs Linux 6.6")
        return [load, tcx]

    def _type_tracepoint(self, number: int) -> list[Feature]:
        found = self._load("load", number)
        if found.state == WORKS and not tracefs():
            known = _filesystem("tracefs")
            why = "tracefs is not mounted" if known else "no tracefs: CONFIG_TRACING"
            state = INCONCLUSIVE if known else NOT_SUPPORTED
            return [Feature("load", WORKS), Feature("attach", state, why)]
        return [found]

    def _type_perf_event(self, number: int) -> list[Feature]:
        found = self._load("load", number)
        if found.state != WORKS:
            return [found]
        # struct perf_event_attr: type SOFTWARE, size, config CPU_CLOCK, period; disabled
        attr = pack("<IIQQQQQ", 1, 64, 0, 1 << 40, 0, 0, 1).ljust(64, b"\0")
        try:
            os.close(syscall.perf_event_open(attr, 0, -1))
        except OSError as error:
            why = f"loads, no software clock event: {errno_text(error.errno or 0)}"
            found = Feature("load", NOT_SUPPORTED, why)
        return [found]

    def _type_raw_tracepoint(self, number: int) -> list[Feature]:
        return [self._attach_raw("load", number, name=_QUIET_TRACEPOINT.encode())]

    _type_raw_tracepoint_writable = _type_raw_tracepoint

    def _attach_raw(self, part: str, number: int, name: bytes | None = None, **how: Any) -> Feature:
        """Load and BPF_RAW_TRACEPOINT_OPEN, the way tracing programs attach."""
        found, fd = self._open(part, number, **how)
        if fd < 0:
            return found
        try:
            os.close(syscall.raw_tracepoint_open(fd, name))
        except OSError as error:
            if error.errno == errno.ENOENT and name:  # no test_run tracepoint: not a verdict
                return Feature(part, WORKS, f"loads; attaching not tried (no {name.decode()})")
            if error.errno == errno.EPERM:
                return Feature(
                    part, NOT_SUPPORTED, f"loads, cannot attach: {refused_by_policy(number)}"
                )
            why = f"loads, cannot attach: {errno_text(error.errno or 0)}"
            return Feature(part, NOT_SUPPORTED, why)
        finally:
            os.close(fd)
        return found

    def _type_tracing(self, number: int) -> list[Feature]:
        from bpfkit.core.types.btf import FUNC, TYPEDEF

        parts = []
        for part, attach, kind, target in (
            ("tp_btf", "TRACE_RAW_TP", TYPEDEF, f"btf_trace_{_QUIET_TRACEPOINT}"),
            ("iter", "TRACE_ITER", FUNC, "bpf_iter_task"),
            ("fentry", "TRACE_FENTRY", FUNC, _QUIET_FUNCTION),
            ("fexit", "TRACE_FEXIT", FUNC, _QUIET_FUNCTION),
            ("fmod_ret", "MODIFY_RETURN", FUNC, _QUIET_RETURN),
        ):
            btf_id, missing = self._target(part, kind, target)
            how: dict[str, Any] = {
                "expected_attach_type": attach_type(attach),
                "attach_btf_id": btf_id,
            }
            if missing is not None:
                parts.append(missing)
            elif part == "iter":
                parts.append(self._load(part, number, **how))
            else:
                parts.append(self._attach_raw(part, number, **how))
        return parts

    def _type_lsm(self, number: int) -> list[Feature]:
        from bpfkit.core.types.btf import FUNC

        parts = []
        for part, attach in (("lsm", "LSM_MAC"), ("lsm_cgroup", "LSM_CGROUP")):
            btf_id, missing = self._target(part, FUNC, "bpf_lsm_socket_bind", "bpf_lsm_file_open")
            if missing is not None:
                missing.why = self._missing("5.7", "BPF_LSM") if self.btf() else missing.why
                parts.append(missing)
                continue
            eat = attach_type(attach)
            found = self._load(part, number, expected_attach_type=eat, attach_btf_id=btf_id)
            active = _read("/sys/kernel/security/lsm")
            if found.state == WORKS and active is not None and "bpf" not in active.split(","):
                why = f"loads, but is never called: 'bpf' is not in the kernel's lsm={active}"
                found = Feature(part, NOT_SUPPORTED, why)
            parts.append(found)
        return parts

    def _type_struct_ops(self, number: int) -> list[Feature]:
        from bpfkit.core.types.btf import STRUCT

        btf_id, missing = self._target("load", STRUCT, "tcp_congestion_ops")
        btf = self.btf()
        if missing is not None or btf is None:
            return [missing or Feature("load", NOT_SUPPORTED, self._no_btf)]
        members = [member.name for member in btf.members(btf_id)]
        member = members.index("ssthresh")
        return [self._load("load", number, expected_attach_type=member, attach_btf_id=btf_id)]

    def _type_ext(self, number: int) -> list[Feature]:
        """A program that replaces the (global) function of an XDP program that has BTF."""
        blob, main = _xdp_btf()
        try:
            btf = syscall.btf_load(blob)
        except OSError as error:
            return [Feature("load", INCONCLUSIVE, f"BPF_BTF_LOAD: {errno_text(error.errno or 0)}")]
        info = pack("<II", 0, main)
        try:
            try:
                target = syscall.prog_load(prog_type("XDP"), _RETURN_0, btf_fd=btf, func_info=info)
            except OSError as error:
                why = f"no XDP program to extend: {errno_text(error.errno or 0)}"
                return [Feature("load", INCONCLUSIVE, why)]
            try:
                return [
                    self._load(
                        "load", number, btf_fd=btf, func_info=info,
                        attach_prog_fd=target, attach_btf_id=main,
                    )
                ]  # fmt: skip
            finally:
                os.close(target)
        finally:
            os.close(btf)

    def _type_syscall(self, number: int) -> list[Feature]:
        return [self._load("load", number, prog_flags=_SLEEPABLE)]

    # --- map types

    def map(self, name: str) -> Feature:
        number = map_type(name)
        name = MAP_TYPES[number]
        since, option, key, value, entries, flags, extra, special = _MAPS.get(
            name, ("", "", 4, 4, 1, 0, 0, "")
        )
        fds: list[int] = []
        how: dict[str, Any] = {"map_extra": extra}
        try:
            if special == "btf":
                fds.append(syscall.btf_load(tiny_btf()[0]))
                how.update(btf_fd=fds[0], btf_key_type_id=1, btf_value_type_id=1)
            elif special == "inner":
                fds.append(syscall.map_create(map_type("ARRAY"), 4, 4, 1))
                how["inner_map_fd"] = fds[0]
            elif special == "struct_ops":
                from bpfkit.core.types.btf import STRUCT

                target = "bpf_struct_ops_tcp_congestion_ops"
                btf_id, missing = self._target("load", STRUCT, target)
                btf = self.btf()
                if missing is not None or btf is None:
                    why = missing.why if missing else self._no_btf
                    return _map_feature(number, NOT_SUPPORTED, why)
                fds.append(syscall.btf_load(tiny_btf()[0]))
                how.update(btf_fd=fds[0], btf_vmlinux_value_type_id=btf_id)
                value = btf.sizeof(btf_id)
            elif special == "page":
                entries = os.sysconf("SC_PAGE_SIZE")
            fds.append(syscall.map_create(number, key, value, entries, flags, **how))
        except OSError as error:
            code = error.errno or 0
            if code == errno.EPERM:
                held = capabilities()
                if "CAP_SYS_ADMIN" in held or {"CAP_BPF", "CAP_NET_ADMIN"} <= held:
                    why = "EPERM with all capabilities: seccomp, or (before 5.11) RLIMIT_MEMLOCK"
                else:
                    why = "missing privilege: CAP_BPF (some types also CAP_NET_ADMIN)"
                return _map_feature(number, INCONCLUSIVE, why)
            if code in (errno.EINVAL, errno.E2BIG, errno.EOPNOTSUPP, 524):
                return _map_feature(number, NOT_SUPPORTED, self._missing(since, option))
            return _map_feature(number, INCONCLUSIVE, errno_text(code))
        finally:
            for fd in fds:
                os.close(fd)
        return _map_feature(number, WORKS)


# --- map types --------------------------------------------------------------------------------

_NO_PREALLOC, _MMAPABLE = 1, 1 << 10
# name: (since, configuration, key size, value size, entries, flags, map_extra, what else it takes)
_MAPS: dict[str, tuple[str, str, int, int, int, int, int, str]] = {
    "HASH": ("3.19", "BPF_SYSCALL", 4, 4, 1, 0, 0, ""),
    "ARRAY": ("3.19", "BPF_SYSCALL", 4, 4, 1, 0, 0, ""),
    "PROG_ARRAY": ("4.2", "BPF_SYSCALL", 4, 4, 1, 0, 0, ""),
    "PERF_EVENT_ARRAY": ("4.3", "PERF_EVENTS", 4, 4, 1, 0, 0, ""),
    "PERCPU_HASH": ("4.6", "BPF_SYSCALL", 4, 4, 1, 0, 0, ""),
    "PERCPU_ARRAY": ("4.6", "BPF_SYSCALL", 4, 4, 1, 0, 0, ""),
    "STACK_TRACE": ("4.6", "PERF_EVENTS", 4, 8, 1, 0, 0, ""),
    "CGROUP_ARRAY": ("4.8", "CGROUPS", 4, 4, 1, 0, 0, ""),
    "LRU_HASH": ("4.10", "BPF_SYSCALL", 4, 4, 1, 0, 0, ""),
    "LRU_PERCPU_HASH": ("4.10", "BPF_SYSCALL", 4, 4, 1, 0, 0, ""),
    "LPM_TRIE": ("4.11", "BPF_SYSCALL", 8, 4, 1, _NO_PREALLOC, 0, ""),
    "ARRAY_OF_MAPS": ("4.12", "BPF_SYSCALL", 4, 4, 1, 0, 0, "inner"),
    "HASH_OF_MAPS": ("4.12", "BPF_SYSCALL", 4, 4, 1, 0, 0, "inner"),
    "DEVMAP": ("4.14", "NET", 4, 4, 1, 0, 0, ""),
    "SOCKMAP": ("4.14", "NET", 4, 4, 1, 0, 0, ""),
    "CPUMAP": ("4.15", "NET", 4, 4, 1, 0, 0, ""),
    "XSKMAP": ("4.18", "XDP_SOCKETS", 4, 4, 1, 0, 0, ""),
    "SOCKHASH": ("4.18", "NET", 4, 4, 1, 0, 0, ""),
    "CGROUP_STORAGE": ("4.19", "CGROUP_BPF", 16, 8, 0, 0, 0, ""),
    "REUSEPORT_SOCKARRAY": ("4.19", "INET", 4, 8, 1, 0, 0, ""),
    "PERCPU_CGROUP_STORAGE": ("4.20", "CGROUP_BPF", 16, 8, 0, 0, 0, ""),
    "QUEUE": ("4.20", "BPF_SYSCALL", 0, 4, 1, 0, 0, ""),
    "STACK": ("4.20", "BPF_SYSCALL", 0, 4, 1, 0, 0, ""),
    "SK_STORAGE": ("5.2", "NET", 4, 4, 0, _NO_PREALLOC, 0, "btf"),
    "DEVMAP_HASH": ("5.4", "NET", 4, 4, 1, 0, 0, ""),
    "STRUCT_OPS": ("5.6", "BPF_JIT", 4, 0, 1, 0, 0, "struct_ops"),
    "RINGBUF": ("5.8", "BPF_SYSCALL", 0, 0, 0, 0, 0, "page"),
    "INODE_STORAGE": ("5.10", "BPF_LSM", 4, 4, 0, _NO_PREALLOC, 0, "btf"),
    "TASK_STORAGE": ("5.11", "BPF_SYSCALL", 4, 4, 0, _NO_PREALLOC, 0, "btf"),
    "BLOOM_FILTER": ("5.16", "BPF_SYSCALL", 0, 4, 1, 0, 0, ""),
    "USER_RINGBUF": ("6.1", "BPF_SYSCALL", 0, 0, 0, 0, 0, "page"),
    "CGRP_STORAGE": ("6.2", "CGROUPS", 4, 4, 0, _NO_PREALLOC, 0, "btf"),
    "ARENA": ("6.9", "MMU", 0, 0, 1, _MMAPABLE, 0, ""),
}


def map_types(names: Iterable[str] | None = None) -> list[Feature]:
    """Every map type of ``enum bpf_map_type`` (or those named), probed by creating one."""
    chosen = MAP_TYPES[1:] if names is None else names
    probe = _Probe()
    return [probe.map(name) for name in chosen]


def probe_map_type(name: str) -> Feature:
    """One map type, by any of its names (``lru_hash``, ``BPF_MAP_TYPE_LRU_HASH``)."""
    return _Probe().map(name)


def _map_feature(number: int, state: str, why: str = "") -> Feature:
    return Feature(MAP_TYPES[number].lower(), state, why, kernel_name=map_type_name(number))


# --- helpers ----------------------------------------------------------------------------------


def helper_functions(program: str, names: Iterable[str] | None = None) -> list[Feature]:
    """Which helpers a program type may call: each is called once, with whatever is in r1-r5.

    The verifier looks at "may this type call it" before it looks at the arguments, so a complaint
    about arguments means yes.

    :param program: a program type that loads without BTF (not tracing, lsm, ext, struct_ops).
    :param names: of helpers, all by default.
    """
    number = prog_type(program)
    name = PROG_TYPES[number]
    eat = attach_type(_ATTACH[name]) if name in _ATTACH else 0
    flags = _SLEEPABLE if name == "SYSCALL" else 0
    probe = _Probe()
    base = probe._load("load", number, expected_attach_type=eat, prog_flags=flags)
    found = []
    for helper in HELPERS[1:] if names is None else names:
        which = find_helper(helper)
        full = f"bpf_{HELPERS[which]}"
        if base.state != WORKS:
            found.append(Feature(HELPERS[which], INCONCLUSIVE, base.why, kernel_name=full))
            continue
        log = ctypes.create_string_buffer(8192)
        state, why = WORKS, ""
        try:
            fd = syscall.prog_load(
                number, assemble(call(which), mov(r0, 0), exit_()), log=log, log_level=1,
                expected_attach_type=eat, prog_flags=flags,
            )  # fmt: skip
            os.close(fd)
        except OSError as error:
            text = log.value.decode(errors="replace")
            if any(words in text for words in ("invalid func", "unknown func", "cannot use helper",
                                               "cannot call helper")):  # fmt: skip
                state, why = NOT_SUPPORTED, f"not for {name.lower()} programs on this kernel"
            elif not text.strip():
                state, why = INCONCLUSIVE, errno_text(error.errno or 0)
        found.append(Feature(HELPERS[which], state, why, kernel_name=full))
    return found


# --- the environment --------------------------------------------------------------------------


def environment() -> list[Feature]:
    """What bpfkit needs around it: kernel, BTF, mounts, privileges, memory accounting, JIT."""
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
    path = _config_path()
    if path:
        return Feature("config", WORKS, path, value=path)
    why = "the kernel's configuration cannot be read: missing options are guessed, not looked up"
    return Feature("config", INCONCLUSIVE, why)


def _env_privileges() -> Feature:
    held = capabilities()
    wanted = ["CAP_BPF", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_PERFMON", "CAP_SYS_ADMIN"]
    missing = [name for name in wanted if name not in held]
    value = {name: name in held for name in wanted}
    if not missing:
        return Feature("privileges", WORKS, "all capabilities bpfkit uses", value=value)
    what = f"without {', '.join(missing)}"
    hint = "run it with sudo"
    return Feature("privileges", NOT_SUPPORTED, what, hint=hint, value=value)


def _env_unprivileged() -> Feature:
    text = _read("/proc/sys/kernel/unprivileged_bpf_disabled")
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
    paths = _mounts(kind)
    if paths:
        return Feature(name, WORKS, f"at {', '.join(paths)}", value=paths[0])
    known = _filesystem(kind)
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
        os.close(syscall.map_create(map_type("ARRAY"), 4, 4, 1))
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
    text = _read("/proc/sys/net/core/bpf_jit_enable")
    if text is None:
        try:
            fd = syscall.prog_load(prog_type("SOCKET_FILTER"), _RETURN_0)
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
    mode = _lockdown()
    if mode is None:
        if kernel_config().get("SECURITY_LOCKDOWN_LSM", "n") == "n" and _config_path():
            return Feature("lockdown", WORKS, "this kernel has no lockdown", value="none")
        why = "securityfs is not mounted: cannot tell whether lockdown is on"
        return Feature("lockdown", INCONCLUSIVE, why)
    if mode == "confidentiality":
        why = "kernel lockdown is 'confidentiality': programs may not read kernel memory"
        return Feature("lockdown", NOT_SUPPORTED, why, value=mode)
    return Feature("lockdown", WORKS, f"lockdown is '{mode}'", value=mode)


def _lockdown() -> str | None:
    text = _read("/sys/kernel/security/lockdown")
    return text.partition("[")[2].partition("]")[0] if text else None


def tracefs() -> str | None:
    """Where tracefs is mounted (also below debugfs), None if nowhere."""
    paths = _mounts("tracefs")
    if paths:
        return paths[0]
    below = [f"{path}/tracing" for path in _mounts("debugfs")]
    return next((path for path in below if os.path.isdir(f"{path}/events")), None)


def _mounts(kind: str) -> list[str]:
    """Mount points of a file system type in this mount namespace."""
    found = []
    for line in (_read("/proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        if right.split(" ", 1)[0] == kind:
            path = left.split(" ")[4]
            for code, char in (("\\040", " "), ("\\011", "\t"), ("\\134", "\\")):
                path = path.replace(code, char)
            found.append(path)
    return found


def _filesystem(kind: str) -> bool | None:
    text = _read("/proc/filesystems")
    return None if text is None else kind in text.split()


def _config_path() -> str:
    release = os.uname().release
    paths = ("/proc/config.gz", f"/boot/config-{release}", f"/lib/modules/{release}/config")
    return next((path for path in paths if os.access(path, os.R_OK)), "")


def kernel_config() -> dict[str, str]:
    """The running kernel's configuration without ``CONFIG_``; empty where it cannot be read."""
    path = _config_path()
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


def _release() -> tuple[int, ...]:
    return _version(os.uname().release)


def _version(text: str) -> tuple[int, ...]:
    """(6, 18) for ``6.18.44-cloud``."""
    numbers = []
    for part in text.split(".")[:2]:
        digits = part[: next((i for i, c in enumerate(part) if not c.isdigit()), len(part))]
        numbers.append(int(digits or 0))
    return tuple(numbers)


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None


# --- BTF of our own, for what cannot be probed without ----------------------------------------

_HEADER = Struct("<HBBIIIII")


class BtfBuilder:
    """Writes a BTF blob: enough for maps with BTF and programs with functions."""

    __slots__ = ("_count", "_strings", "_types")

    def __init__(self) -> None:
        self._types = bytearray()
        self._strings = bytearray(b"\0")
        self._count = 0

    def string(self, text: str) -> int:
        """Offset of a string in the string section."""
        at = len(self._strings)
        self._strings += text.encode() + b"\0"
        return at if text else 0

    def add(
        self, kind: int, name: str = "", size_or_type: int = 0, vlen: int = 0, data: bytes = b""
    ) -> int:
        """Append a type (``struct btf_type`` and what follows it); returns its id."""
        self._types += pack("<III", self.string(name), kind << 24 | vlen, size_or_type) + data
        self._count += 1
        return self._count

    def int_(self, name: str, size: int, signed: bool = True) -> int:
        """An integer of ``size`` bytes."""
        return self.add(1, name, size, 0, pack("<I", signed << 24 | size * 8))

    def pointer(self, to: int) -> int:
        """A pointer; 0 is void."""
        return self.add(2, "", to)

    def function(
        self, name: str, returns: int, args: Sequence[tuple[str, int]], linkage: int
    ) -> int:
        """A function (its prototype is added first); linkage 0 static, 1 global."""
        data = b"".join(pack("<II", self.string(arg), kind) for arg, kind in args)
        return self.add(12, name, self.add(13, "", returns, len(args), data), linkage)

    def blob(self) -> bytes:
        """Header, types and strings: what BPF_BTF_LOAD takes."""
        size = len(self._types)
        head = _HEADER.pack(0xEB9F, 1, 0, _HEADER.size, 0, size, size, len(self._strings))
        return head + bytes(self._types) + bytes(self._strings)


def tiny_btf() -> tuple[bytes, int, int]:
    """A blob with ``int`` (type 1) and two static functions ``int main(void *)``, ``callback``.

    Returns (blob, id of main, id of callback).
    """
    btf = BtfBuilder()
    number = btf.int_("int", 4)
    pointer = btf.pointer(0)
    main = btf.function("main", number, [("ctx", pointer)], 0)
    callback = btf.function("callback", number, [("index", number), ("ctx", pointer)], 0)
    return btf.blob(), main, callback


def _xdp_btf() -> tuple[bytes, int]:
    """A blob with a global ``int main(struct xdp_md *)``, and the id of main."""
    btf = BtfBuilder()
    number = btf.int_("int", 4)
    context = btf.add(4, "xdp_md", 4, 1, pack("<III", btf.string("data"), number, 0))
    main = btf.function("main", number, [("ctx", btf.pointer(context))], 1)
    return btf.blob(), main
