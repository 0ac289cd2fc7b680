# SPDX-License-Identifier: Apache-2.0
"""Which program types and helpers this kernel has, found out by loading programs.

Every answer has one of three states: :data:`WORKS`, :data:`NOT_SUPPORTED` (``why`` names the
config, version or policy) and :data:`INCONCLUSIVE` (``why`` names the obstacle, usually
a missing privilege).  No answer comes from the kernel's version; versions and options are only
named as what is probably missing.

Probing loads programs of two instructions and creates the smallest possible maps, and closes
them again.  Attaching is tried where it is cheap and disturbs nobody: on tracepoints that
only BPF_PROG_TEST_RUN hits and on sockets of bpfkit's own.  Nothing is mounted or left behind.

Minimum kernels are those of ``Documentation/bpf`` and the commits that added the types.
"""

from __future__ import annotations

import ctypes
import errno
import os
from struct import pack

from bpfkit.core.errors import UnsupportedError, errno_text
from bpfkit.core.features import privileges, system
from bpfkit.core.features.answer import INCONCLUSIVE, NOT_SUPPORTED, WORKS, Feature
from bpfkit.core.features.privileges import RETURN_0
from bpfkit.core.features.probe import Probe
from bpfkit.core.kernel import syscall
from bpfkit.core.kernel.asm import assemble, call, exit_, mov, r0
from bpfkit.core.kernel.constants import PROG_TYPES, attach_type, prog_type, prog_type_name
from bpfkit.core.kernel.helpers import HELPERS, find_helper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

__all__ = ["attach_type_of", "helper_functions", "probe_program_type", "program_types"]

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
_QUIET_TRACEPOINTS = (_QUIET_TRACEPOINT, "module_free")  # the first is there from 5.1 on


def attach_type_of(name: str) -> int:
    """The expected_attach_type with which a program type is probed; 0 if it takes none.

    :param name: without ``BPF_PROG_TYPE_``.
    """
    return attach_type(_ATTACH[name]) if name in _ATTACH else 0


def program_types(names: Iterable[str] | None = None) -> list[Feature]:
    """Every program type of ``enum bpf_prog_type`` (or those named), probed."""
    chosen = PROG_TYPES[1:] if names is None else names
    probe = _ProgramProbe()
    return [probe.probe(name) for name in chosen]


def probe_program_type(name: str) -> Feature:
    """One program type, by any of its names (``xdp``, ``BPF_PROG_TYPE_XDP``)."""
    return _ProgramProbe().probe(name)


class _ProgramProbe(Probe):
    """Probes one program type after the other."""

    __slots__ = ()

    def probe(self, name: str) -> Feature:
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
                state = NOT_SUPPORTED
                why = f"loads, cannot attach: CONFIG_{attaches} is not set"
        return Feature(
            name.lower(),
            state,
            why,
            kernel_name=prog_type_name(number),
            parts=parts if len(parts) > 1 else (),
        )

    def _parts(self, name: str, number: int) -> list[Feature]:
        special = getattr(self, f"_type_{name.lower()}", None)
        if special is not None:
            parts: list[Feature] = special(number)
            return parts
        eat = attach_type_of(name)
        return [self._load("load", number, expected_attach_type=eat)]

    def _load(self, part: str, number: int, **how: Any) -> Feature:
        """Load ``r0 = 0; exit`` and close it again."""
        found, fd = self._open(part, number, **how)
        if fd >= 0:
            os.close(fd)
        return found

    def _open(
        self, part: str, number: int, insns: bytes = RETURN_0, **how: Any
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
            why = privileges.refused_by_policy(number)
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
            if system.read(f"/sys/bus/event_source/devices/{part}/type"):
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
        if found.state == WORKS:
            from bpfkit.core.features.pseudofs import tracefs_entries

            try:
                tracefs_entries("events")
            except UnsupportedError as error:
                state = NOT_SUPPORTED if "CONFIG_" in error.why else INCONCLUSIVE
                return [Feature("load", state, f"loads, cannot attach: {error.why}")]
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
        for name in _QUIET_TRACEPOINTS:
            found = self._attach_raw("load", number, name=name.encode())
            if found.state == WORKS:
                break
        return [found]

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
                why = f"loads; attaching could not be tried: no tracepoint {name.decode()}"
                return Feature(part, INCONCLUSIVE, why)
            if error.errno == errno.EPERM:
                return Feature(
                    part,
                    NOT_SUPPORTED,
                    f"loads, cannot attach: {privileges.refused_by_policy(number)}",
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
            active = system.read("/sys/kernel/security/lsm")
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
        from bpfkit.core.types.btf_writer import xdp_btf

        blob, main = xdp_btf()
        try:
            btf = syscall.btf_load(blob)
        except OSError as error:
            return [Feature("load", INCONCLUSIVE, f"BPF_BTF_LOAD: {errno_text(error.errno or 0)}")]
        info = pack("<II", 0, main)
        try:
            try:
                target = syscall.prog_load(prog_type("XDP"), RETURN_0, btf_fd=btf, func_info=info)
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


def helper_functions(program: str, names: Iterable[str] | None = None) -> list[Feature]:
    """Which helpers a program type may call: each is called once with arbitrary arguments.

    The verifier checks whether the type may call the helper before it checks the arguments, so
    a complaint about arguments means that the helper is available.

    :param program: a program type that loads without BTF (not tracing, lsm, ext, struct_ops).
    :param names: of helpers, all by default.
    """
    number = prog_type(program)
    name = PROG_TYPES[number]
    eat = attach_type_of(name)
    flags = _SLEEPABLE if name == "SYSCALL" else 0
    probe = _ProgramProbe()
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
