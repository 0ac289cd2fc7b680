# SPDX-License-Identifier: Apache-2.0
"""BPF_KFUNC: kernel functions called from C, by the ids of the running kernel's BTF."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import bpfkit
from bpfkit.core.errors import BpfkitError, UnsupportedError
from bpfkit.core.features.kfuncs import has_kfunc

HEAD = """
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>
BPF_KFUNC(void, bpf_rcu_read_lock);
BPF_KFUNC(void, bpf_rcu_read_unlock);
BPF_KFUNC(int, bpf_no_such_kfunc, u64 number);
BPF_KFUNC(void, bpf_preempt_disable);
BPF_KFUNC(void, bpf_preempt_enable);
LOAD_CONST(0, wanted, 0);
"""
SOURCE = (
    HEAD
    + """
static __noinline int guarded(u32 number)
{
	bpf_preempt_disable();
	number += 2;
	bpf_preempt_enable();
	return number;
}

SEC("tc")
int both(struct __sk_buff *skb)
{
	bpf_rcu_read_lock();
	bpf_rcu_read_unlock();
	if (wanted())
		return bpf_no_such_kfunc(7);
	return guarded(skb->len);
}
"""
)

pytestmark = pytest.mark.skipif(
    not has_kfunc("bpf_preempt_disable"), reason="this kernel has no bpf_preempt_disable (6.10)"
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "kfuncs.bpf.c"
    path.write_text(SOURCE)
    return path


def test_the_kernel_runs_the_functions_that_c_calls(source: Path) -> None:
    """From the program and from a function of its own; bpftool names them in the loaded code."""
    with bpfkit.load(str(source)) as obj:
        program = obj.programs["both"]
        assert program.run(bytes(64)).retval == 66
        dump = subprocess.run(
            ["bpftool", "prog", "dump", "xlated", "id", str(program.id)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    # The kernel inlines some of them; the calls that are left carry their names.
    assert "bpf_no_such_kfunc" not in dump
    assert dump.count("call") >= 3


def test_a_missing_function_is_named_only_where_its_call_can_be_reached(source: Path) -> None:
    assert not has_kfunc("bpf_no_such_kfunc")
    with pytest.raises(UnsupportedError, match=r"no function bpf_no_such_kfunc \(kfunc\)"):
        bpfkit.load(str(source), consts={"wanted": 1})


def test_a_kernel_function_that_is_no_kfunc_is_refused_by_the_verifier(tmp_path: Path) -> None:
    path = tmp_path / "plain.bpf.c"
    path.write_text(
        HEAD
        + """
BPF_KFUNC(int, vprintk, u64 text);
SEC("tc")
int plain(struct __sk_buff *skb)
{
	return vprintk(0);
}
"""
    )
    with pytest.raises(BpfkitError) as caught:
        bpfkit.load(str(path))
    assert "vprintk" in str(caught.value) + caught.value.log


def test_the_cached_object_finds_its_functions_again(source: Path) -> None:
    for _ in range(2):
        with bpfkit.load(str(source)) as obj:
            assert obj.programs["both"].run(bytes(20)).retval == 22
