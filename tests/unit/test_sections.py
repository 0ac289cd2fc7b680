# SPDX-License-Identifier: Apache-2.0
"""SEC() names mean what libbpf says they mean."""

from __future__ import annotations

import ctypes
import ctypes.util

import pytest

from bpfkit.core.errors import InputError
from bpfkit.core.kernel import constants
from bpfkit.core.kernel.sections import SECTIONS, resolve


def libbpf():
    name = ctypes.util.find_library("bpf")
    return ctypes.CDLL(name) if name else None


@pytest.mark.skipif(libbpf() is None, reason="libbpf.so is not installed")
def test_every_name_agrees_with_libbpf():
    """libbpf itself is asked; names that are newer than the installed one are counted."""
    lib = libbpf()
    prog, attach = ctypes.c_int(), ctypes.c_int()
    compared = 0
    for name, (kind, expected, _, _) in SECTIONS.items():
        text = name.encode()
        lib.libbpf_set_print(None)
        if lib.libbpf_prog_type_by_name(text, ctypes.byref(prog), ctypes.byref(attach)) < 0:
            continue
        # libbpf before 1.3 had tc/ingress without an attach type.
        if name in ("tc/ingress", "tc/egress"):
            assert prog.value == kind
            continue
        assert (prog.value, attach.value) == (kind, expected), name
        compared += 1
    assert compared >= 70


@pytest.mark.parametrize(
    ("name", "kind", "target"),
    [
        ("tp/sched/sched_switch", "TRACEPOINT", "sched/sched_switch"),
        ("kprobe/tcp_connect", "KPROBE", "tcp_connect"),
        ("raw_tp.w/bpf_test_finish", "RAW_TRACEPOINT_WRITABLE", "bpf_test_finish"),
        ("xdp", "XDP", ""),
        ("?xdp", "XDP", ""),
        ("lsm.s/file_open", "LSM", "file_open"),
        ("uprobe//usr/lib/libc.so.6:malloc", "KPROBE", "/usr/lib/libc.so.6:malloc"),
    ],
)
def test_target_is_what_follows_the_name(name, kind, target):
    section = resolve(name)
    assert constants.PROG_TYPES[section.prog_type] == kind
    assert section.target == target


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [("xpd", "xdp"), ("cgroup/conect4", "cgroup/connect4"), ("sockets", "socket"), ("tcx", "tcx/")],
)
def test_unknown_name_lists_the_nearest(wrong, nearest):
    with pytest.raises(InputError) as caught:
        resolve(wrong)
    assert nearest in caught.value.hint
    assert caught.value.exit_status == 2


def test_name_without_target_takes_none():
    with pytest.raises(InputError):
        resolve("socket/filter")


def test_every_program_type_has_a_section():
    named = {entry[0] for entry in SECTIONS.values()}
    assert named == set(range(1, len(constants.PROG_TYPES)))


def test_enumerations_agree_with_the_running_kernel():
    """Names and numbers, against the kernel's own BTF as far as it goes."""
    from bpfkit.core.types.btf import vmlinux

    btf = vmlinux()
    if btf is None:
        pytest.skip("this kernel has no BTF")
    for enum, prefix, names in (
        ("bpf_prog_type", "BPF_PROG_TYPE_", constants.PROG_TYPES),
        ("bpf_map_type", "BPF_MAP_TYPE_", constants.MAP_TYPES),
        ("bpf_attach_type", "BPF_", constants.ATTACH_TYPES),
        ("bpf_link_type", "BPF_LINK_TYPE_", constants.LINK_TYPES),
    ):
        kernel = dict(btf.enumerators(btf.find(enum, "enum")))
        last = max(number for name, number in kernel.items() if "MAX_" not in name)
        assert last < len(names), f"{enum}: this kernel has types that the list lacks"
        for number, name in enumerate(names):
            if prefix + name in kernel:
                assert kernel[prefix + name] == number, name
        # Older kernels have fewer, never other ones.
        assert all(prefix + name in kernel for name in names[: last + 1])
