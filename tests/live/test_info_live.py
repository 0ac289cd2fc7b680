# SPDX-License-Identifier: Apache-2.0
"""``info`` about the running kernel: its answers against bpftool's, which come from elsewhere."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from typing import Any

import pytest
from running import ROOT

from bpfkit.__main__ import main

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to load programs"),
    pytest.mark.skipif(not shutil.which("bpftool"), reason="no bpftool"),
    pytest.mark.skipif(not os.path.exists("/sys/kernel/btf/vmlinux"), reason="no kernel BTF"),
]

#: bpftool does not say what these are attached to, so it misses what only that allows.
UNKNOWN_TO_BPFTOOL = {
    "cgroup_device": {"bpf_get_retval", "bpf_set_retval"},
    "cgroup_sysctl": {"bpf_get_retval", "bpf_set_retval"},
}
#: Never tried by bpftool, lest they print or write.
NOT_TRIED = {"bpf_trace_printk", "bpf_trace_vprintk", "bpf_probe_write_user"}
#: Helpers that an old bpftool's list lacks.
TOO_NEW = {"bpf_cgrp_storage_get", "bpf_cgrp_storage_delete", "bpf_user_ringbuf_drain"}


def info(*words: str) -> list[dict[str, Any]]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["info", "--json", *words])
    assert (status, err.getvalue()) == (0, "")
    return [json.loads(line) for line in out.getvalue().splitlines()]


def one(what: str, *words: str) -> dict[str, Any]:
    (row,) = [row for row in info(*words) if row["what"] == what]
    return row


@pytest.fixture(scope="module")
def btf() -> str:
    """The kernel's types as bpftool prints them."""
    return subprocess.run(
        ["bpftool", "btf", "dump", "file", "/sys/kernel/btf/vmlinux", "format", "raw"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def members(btf: str, name: str) -> dict[str, int]:
    """Member -> offset in bytes, of a struct; unnamed ones are left out."""
    found = re.search(rf"^\[\d+\] STRUCT '{name}' size=\d+ vlen=\d+\n((?:\t.*\n)+)", btf, re.M)
    assert found, name
    lines = re.findall(r"\t'(.+?)' type_id=\d+ bits_offset=(\d+)", found[1])
    return {member: int(bits) // 8 for member, bits in lines if member != "(anon)"}


@pytest.mark.parametrize(
    ("name", "struct"),
    [
        ("BPF_PROG_TYPE_SCHED_CLS", "__sk_buff"),
        ("xdp", "xdp_md"),
        ("cgroup/connect4", "bpf_sock_addr"),
        ("BPF_PROG_TYPE_CGROUP_SOCKOPT", "bpf_sockopt"),
        ("BPF_PROG_TYPE_SK_MSG", "sk_msg_md"),
        ("BPF_PROG_TYPE_SK_LOOKUP", "bpf_sk_lookup"),
        ("kprobe", "pt_regs"),
        ("BPF_PROG_TYPE_NETFILTER", "bpf_nf_ctx"),
        ("tp/sched/sched_switch", "trace_event_raw_sched_switch"),
    ],
)
def test_context_fields_are_those_of_the_kernels_btf(btf: str, name: str, struct: str) -> None:
    row = one("program type", name)
    (context,) = [part for part in row["context_fields"] if part.get("struct") == struct]
    ours = {field["name"]: field["offset"] for field in context["fields"]}
    theirs = members(btf, struct)
    assert theirs
    assert {name: ours.get(name) for name in theirs} == theirs
    size = re.search(rf"^\[\d+\] STRUCT '{struct}' size=(\d+)", btf, re.M)
    assert size
    assert context["size"] == int(size[1])


def test_kfuncs_are_those_that_btf_tags(btf: str) -> None:
    """The list that is tried: functions with the declaration tag bpf_kfunc."""
    from bpfkit.core.features.kfuncs import kernel_kfuncs

    tagged = re.findall(r"^\[\d+\] DECL_TAG 'bpf_kfunc' type_id=(\d+) ", btf, re.M)
    assert sorted(kernel_kfuncs().values()) == sorted(map(int, tagged))
    for name, number in list(kernel_kfuncs().items())[:20]:
        assert f"\n[{number}] FUNC '{name}' " in btf


def test_helpers_are_those_that_bpftool_finds() -> None:
    """Equal with a bpftool that knows how kernels from 6.9 on refuse; an older one takes their
    refusals for agreement, so that ours must be among its."""
    done = subprocess.run(
        ["bpftool", "-j", "feature", "probe", "kernel"], capture_output=True, text=True, check=True
    )
    version = subprocess.run(["bpftool", "version"], capture_output=True, text=True, check=True)
    found = re.search(r"v(\d+)\.(\d+)", version.stdout)
    assert found
    knows_the_words = (int(found[1]), int(found[2])) >= (7, 5)
    for kind in ("xdp", "cgroup_skb", "sk_msg", "cgroup_sysctl", "syscall"):
        theirs = set(json.loads(done.stdout)["helpers"][f"{kind}_available_helpers"])
        ours = set(one("program type", f"BPF_PROG_TYPE_{kind.upper()}")["helpers"])
        ours -= UNKNOWN_TO_BPFTOOL.get(kind, set()) | NOT_TRIED
        assert ours - TOO_NEW <= theirs, kind
        if knows_the_words:
            assert ours == theirs - NOT_TRIED, kind
        assert 40 < len(ours) < 200


def test_a_helper_names_the_types_that_may_call_it() -> None:
    row = one("helper", "bpf_redirect_map")
    assert (row["number"], row["types"]) == (51, ["xdp"])
    every = one("helper", "bpf_map_lookup_elem")
    assert len(every["types"]) + len(every["unknown"]) == 32


def test_a_kfunc_of_xdp_is_for_no_other_type() -> None:
    from bpfkit.core.features.kfuncs import kernel_kfuncs

    if "bpf_dynptr_from_xdp" not in kernel_kfuncs():
        pytest.skip("the kernel's BTF does not mark kfuncs, or this one is missing (6.4)")
    row = one("kfunc", "bpf_dynptr_from_xdp")
    assert row["types"] == ["xdp"]
    assert "struct xdp_md *" in row["prototype"]
    assert "bpf_dynptr_from_xdp" in one("program type", "BPF_PROG_TYPE_XDP")["kfuncs"]
    assert "bpf_dynptr_from_xdp" not in one("program type", "BPF_PROG_TYPE_SK_MSG")["kfuncs"]


def test_arguments_of_a_function_and_a_tracepoint() -> None:
    row = one("program type", "fentry/tcp_connect")
    assert row["context_fields"][0]["prototype"] == "int tcp_connect(struct sock *sk)"
    row = one("program type", "tp_btf/sched_switch")
    assert "struct task_struct *" in row["context_fields"][0]["prototype"]
    row = one("program type", "fentry/tcp_connectt")
    assert "tcp_connectt" in row["context_fields"][0]["unknown"]


def test_without_privilege_it_says_what_is_missing_and_tells_the_rest() -> None:
    if not shutil.which("setpriv"):
        pytest.skip("no setpriv (util-linux)")
    drop = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", sys.executable]
    can = subprocess.run([*drop, "-c", "import bpfkit.commands.info"], cwd=ROOT, check=False)
    if can.returncode:
        pytest.skip("another user cannot read this folder")
    done = subprocess.run(
        [*drop, "-m", "bpfkit", "info", "BPF_PROG_TYPE_XDP"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "helpers: not known: missing privilege: CAP_BPF" in done.stdout
    assert "ingress_ifindex" in done.stdout
