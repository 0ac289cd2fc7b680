# SPDX-License-Identifier: Apache-2.0
"""Which helpers and kernel functions (kfuncs) a program type may call on the running kernel.

Found out by loading: a program whose first instruction is the call.  The verifier checks whether
the type may make the call before it checks the arguments, so every other complaint means that it
may.  One program at a time, closed at once; about 500 for a type, in some tenths of a second.

Source: check_helper_call() and check_kfunc_call() in kernel/bpf/verifier.c; Documentation/bpf/
kfuncs.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os

from bpfkit.core.errors import InputError, errno_text
from bpfkit.core.features.privileges import refused_by_policy
from bpfkit.core.kernel import syscall
from bpfkit.core.kernel.asm import assemble, call, call_kfunc, exit_, mov, r0
from bpfkit.core.kernel.constants import PROG_TYPES, attach_type, prog_type
from bpfkit.core.kernel.helpers import HELPERS, find_helper
from bpfkit.core.kernel.sections import SECTIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from bpfkit.core.types.btf import Btf

__all__ = ["Calls", "calls_of", "types_that_may_call"]

_SLEEPABLE = 1 << 4  # BPF_F_SLEEPABLE

#: Types that are loaded for a target, which BTF names: (expected attach type, kind, names).
_TARGETS = {
    "TRACING": ("TRACE_RAW_TP", "typedef", ("btf_trace_bpf_test_finish", "btf_trace_sched_switch")),
    "LSM": ("LSM_MAC", "func", ("bpf_lsm_file_open",)),
    "STRUCT_OPS": ("", "struct", ("tcp_congestion_ops",)),
}
#: What the verifier says of a call that the type may not make, in all its versions.
_NO_HELPER = ("invalid func", "unknown func", "cannot use helper", "cannot call helper")
_NO_KFUNC = ("is not allowed", "not allowed to call", "require device-bound")
#: The same answers may be asked for often in one process.
_known: dict[str, Calls] = {}


class Calls:
    """What one program type may call.

    :ivar helpers: names without ``bpf_``, in the kernel's order.
    :ivar kfuncs: names, sorted; of vmlinux, not of modules.
    :ivar sleepable: those of ``kfuncs`` that only a sleepable program may call.
    :ivar why: why nothing is known of the helpers; empty if it is.
    :ivar why_no_kfuncs: why nothing is known of the kfuncs; empty if it is.
    """

    __slots__ = ("helpers", "kfuncs", "sleepable", "why", "why_no_kfuncs")

    def __init__(self) -> None:
        self.helpers: list[str] = []
        self.kfuncs: list[str] = []
        self.sleepable: list[str] = []
        self.why = ""
        self.why_no_kfuncs = ""


class _Loader:
    """Loads programs of one type."""

    def __init__(self, name: str) -> None:
        from bpfkit.core.features.programs import attach_type_of
        from bpfkit.core.types.btf import vmlinux

        self.number = prog_type(name)
        self.btf: Btf | None = vmlinux()
        self.options: dict[str, Any] = {
            "expected_attach_type": attach_type_of(name),
            "prog_flags": _SLEEPABLE if name == "SYSCALL" else 0,
        }
        self.why = ""
        if name == "EXT":
            self.why = "those of the program that it replaces a function of"
        elif name in _TARGETS:
            self._target(*_TARGETS[name])

    def _target(self, attach: str, kind: str, names: tuple[str, ...]) -> None:
        btf = self.btf
        if btf is None:
            self.why = "the kernel has no BTF (CONFIG_DEBUG_INFO_BTF)"
            return
        number = next((found for name in names if (found := btf.find(name, kind))), None)
        if number is None:
            self.why = f"the kernel has no {names[0]}"
            return
        if kind == "struct":  # the attach type is the number of the member
            members = [member.name for member in btf.members(number)]
            self.options["expected_attach_type"] = members.index("ssthresh")
        else:
            self.options["expected_attach_type"] = attach_type(attach)
        self.options["attach_btf_id"] = number

    def load(self, code: bytes) -> tuple[int, str]:
        """(errno, what the verifier said); 0 if it loads."""
        log = ctypes.create_string_buffer(8192)
        try:
            fd = syscall.prog_load(self.number, code, log=log, log_level=1, **self.options)
        except OSError as error:
            return error.errno or errno.EINVAL, log.value.decode(errors="replace")
        os.close(fd)
        return 0, ""

    def check(self) -> str:
        """Why not even an empty program loads; empty if it does."""
        if self.why:
            return self.why
        code, log = self.load(bytes(assemble(mov(r0, 0), exit_())))
        if not code:
            return ""
        if code == errno.EPERM:
            return refused_by_policy(self.number)
        words = [line for line in log.splitlines() if not line.startswith("processed ")]
        if not words and code == errno.EINVAL:
            return "this kernel does not have the type"
        return f"{errno_text(code)}{f': {words[-1]}' if words else ''}"

    def may_call_helper(self, number: int) -> bool:
        code, log = self.load(bytes(assemble(call(number), mov(r0, 0), exit_())))
        return not code or (bool(log.strip()) and not any(words in log for words in _NO_HELPER))

    def may_call_kfunc(self, number: int) -> tuple[bool, bool]:
        """(may it, only if it is sleepable)"""
        code, log = self.load(bytes(assemble(call_kfunc(number), mov(r0, 0), exit_())))
        if not code:
            return True, False
        if not log.strip() or any(words in log for words in _NO_KFUNC):
            return False, False
        return True, "must be sleepable" in log


def calls_of(name: str, progress: Callable[[str], None] | None = None) -> Calls:
    """What a program type may call.

    :param name: any of its names (``xdp``, ``BPF_PROG_TYPE_XDP``).
    :param progress: called with a line of text now and then.
    """
    short = PROG_TYPES[prog_type(name)]
    if short not in _known:
        _known[short] = _probe(short, progress)
    return _known[short]


def _probe(name: str, progress: Callable[[str], None] | None) -> Calls:
    from bpfkit.core.features.kfuncs import kernel_kfuncs

    found = Calls()
    loader = _Loader(name)
    found.why = found.why_no_kfuncs = loader.check()
    if found.why:
        return found
    kfuncs = kernel_kfuncs()
    if not kfuncs:
        found.why_no_kfuncs = "the kernel's BTF does not mark them (6.10, and pahole 1.26)"
    # Some kfuncs are allowed for every type and then refused, because the program may not sleep.
    may_sleep = any(
        kind == loader.number and flags & _SLEEPABLE for kind, _, flags, _ in SECTIONS.values()
    )
    every = len(HELPERS) - 1 + len(kfuncs)
    for number in range(1, len(HELPERS)):
        if progress is not None and not number % 32:
            progress(f"{name.lower()}: {number} of {every} calls tried")
        if loader.may_call_helper(number):
            found.helpers.append(HELPERS[number])
    for at, (kfunc, btf_id) in enumerate(sorted(kfuncs.items()), len(HELPERS)):
        if progress is not None and not at % 32:
            progress(f"{name.lower()}: {at} of {every} calls tried")
        may, sleepable = loader.may_call_kfunc(btf_id)
        if may and (may_sleep or not sleepable):
            found.kfuncs.append(kfunc)
        if sleepable and may_sleep:
            found.sleepable.append(kfunc)
    return found


def types_that_may_call(
    name: str, progress: Callable[[str], None] | None = None
) -> tuple[list[str], dict[str, str]]:
    """The program types that may call a helper or a kfunc; and why of others nothing is known.

    :param name: with or without ``bpf_`` for a helper.
    :raises InputError: neither a helper nor a kfunc of this kernel.
    """
    from bpfkit.core.features.kfuncs import kernel_kfuncs

    kfunc = kernel_kfuncs().get(name)
    try:
        helper = 0 if kfunc is not None else find_helper(name.removeprefix("bpf_"))
    except (KeyError, LookupError, ValueError):
        helper = 0
    if kfunc is None and not helper:
        raise InputError(f"no helper or kernel function named {name!r}")
    may, unknown = [], {}
    for kind in PROG_TYPES[1:]:
        if progress is not None:
            progress(f"trying {kind.lower()}")
        loader = _Loader(kind)
        why = loader.check()
        if why:
            unknown[kind.lower()] = why
            continue
        found = loader.may_call_helper(helper) if helper else loader.may_call_kfunc(kfunc or 0)[0]
        if found:
            may.append(kind.lower())
    return may, unknown
