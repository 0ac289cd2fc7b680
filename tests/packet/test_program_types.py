# SPDX-License-Identifier: Apache-2.0
"""Every section name loads a program of its type, or the kernel is named as the reason why not."""

from __future__ import annotations

import os

import pytest

import bpfkit
from bpfkit.core.errors import InputError, PrivilegeError, UnsupportedError, VerifierError
from bpfkit.core.kernel.constants import PROG_TYPES
from bpfkit.core.kernel.sections import SECTIONS

#: What stands for the target where a name needs one that the kernel looks up at load time.
TARGETS = {
    "tp_btf": "sched_switch",
    "iter": "task",
    "iter.s": "task",
    "lsm": "file_open",
    "lsm.s": "file_open",
    "lsm_cgroup": "socket_bind",
    "struct_ops": "tcp_congestion_ops.ssthresh",
    "struct_ops.s": "tcp_congestion_ops.ssthresh",
    "fmod_ret": "security_file_open",
    # Sleepable programs go where the kernel may sleep: system calls.
    "fentry.s": "__x64_sys_getpgid",
    "fexit.s": "__x64_sys_getpgid",
    "fmod_ret.s": "__x64_sys_getpgid",
}
#: Return values that the verifier accepts where it does not accept 0.
RETURNS = {"cgroup/bind4": 1, "cgroup/recvmsg4": 1, "cgroup/recvmsg6": 1, "netfilter": 1}
#: Refused on purpose by some kernels (programs that patch kernel text): see `bpfkit doctor`.
POLICY = {"fentry", "fexit", "fmod_ret", "lsm", "lsm_cgroup", "freplace"}


def source(name: str) -> str:
    target = TARGETS.get(name, "vfs_read" if SECTIONS[name][3] & 1 else "")
    section = f"{name}/{target}" if target else name
    value = 1 if name.startswith("cgroup/") or name in RETURNS else 0
    return (
        "#include <bpfkit/bpfkit.h>\n#include <uapi/linux/bpf.h>\n"
        f'SEC("{section}")\nint probe(void *ctx)\n{{\n\treturn {value};\n}}\n'
    )


@pytest.mark.parametrize("name", [name for name in SECTIONS if name != "freplace"])
def test_section_loads_a_program_of_its_type(name):
    try:
        obj = bpfkit.load(source(name))
    except VerifierError as error:
        if "is not sleepable" in error.log:
            pytest.skip("no traced function may sleep: needs CONFIG_FUNCTION_ERROR_INJECTION")
        raise
    except (UnsupportedError, PrivilegeError) as error:
        text = str(error)
        base = name.removesuffix(".s")
        assert os.geteuid() == 0
        # The answer names the type and gives a reason.
        assert f"BPF_PROG_TYPE_{PROG_TYPES[SECTIONS[name][0]]}" in text
        assert error.why
        if base not in POLICY and SECTIONS[name][0] not in (20,):
            pytest.skip(text.partition("\n")[0])
        return
    with obj:
        program = obj.programs["probe"]
        assert program.info["type"] == SECTIONS[name][0]


def test_freplace_without_a_target_program_says_what_to_pass():
    with pytest.raises(InputError) as caught:
        bpfkit.load(source("freplace"))
    assert "attach_targets" in str(caught.value)


def test_target_that_the_kernel_does_not_have_is_named():
    text = source("tp_btf").replace("sched_switch", "no_such_tracepoint")
    with pytest.raises(InputError) as caught:
        bpfkit.load(text)
    assert "btf_trace_no_such_tracepoint" in str(caught.value)
