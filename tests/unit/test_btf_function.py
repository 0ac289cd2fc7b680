# SPDX-License-Identifier: Apache-2.0
"""Values of a kernel function's slots, by the running kernel's BTF; linkage of functions."""

from __future__ import annotations

import os

import pytest

from bpfkit.core.attach.function import Function
from bpfkit.core.errors import InputError
from bpfkit.core.types.btf import FUNC, Btf
from bpfkit.core.types.btf_writer import xdp_btf

needs_btf = pytest.mark.skipif(
    not os.path.exists("/sys/kernel/btf/vmlinux"), reason="the kernel has no BTF"
)


@needs_btf
def test_a_function_is_written_as_in_the_source() -> None:
    """include/linux/net.h: int __sock_create(struct net *net, int family, …)."""
    function = Function("__sock_create")
    assert [p.name for p in function.parameters][1:3] == ["family", "type"]
    assert str(function).startswith("int __sock_create(struct net *net, int family, int type,")
    assert (function.slots, function.texts) == (6, 0)


@needs_btf
def test_values_have_their_sign_and_size() -> None:
    function = Function("__sock_create")
    net, family = function.parameters[:2]
    assert family.value([0xDEAD0000FFFFFF9F]) == -97  # the upper half of an int is not its own
    assert net.value([0xFFFF888000000000]) == "0xffff888000000000"
    assert function.result.result(2**64 - 97) == -97
    opened = Function("filp_open")
    assert opened.texts == 1
    assert opened.result.result(2**64 - 2) == "ENOENT"


@needs_btf
def test_the_nearest_names_are_offered() -> None:
    with pytest.raises(InputError, match="vfs_unlink"):
        Function("vfs_unlinkk")


def test_functions_become_global_and_nothing_else_changes() -> None:
    """Linkage is the vlen of BTF_KIND_FUNC: 0 static, 1 global (Documentation/bpf/btf.rst)."""
    data = xdp_btf()[0]
    static = bytearray(data)
    before = Btf(data)
    functions = [t for t in before.types() if t.kind == FUNC]
    assert functions
    for found in functions:
        at = before._types + 4 * (found.position - 2)
        static[at : at + 2] = b"\0\0"
    patched = Btf(bytes(static)).with_global_functions()
    assert [t.vlen for t in Btf(patched).types() if t.kind == FUNC] == [1] * len(functions)
    assert sum(a != b for a, b in zip(static, patched, strict=True)) == len(functions)
