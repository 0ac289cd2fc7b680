# SPDX-License-Identifier: Apache-2.0
"""Names that sources for BCC have from kernel headers, without kernel headers.

Each text uses names the way a tool of BCC's does: inject, profile, tcprtt, ttysnoop, virtiostat.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from struct import pack

import pytest
from bcctools import no_compiler

from bpfkit.core.compile import headers
from bpfkit.core.compile.compiler import compile_source
from bpfkit.core.compile.source import Source
from bpfkit.core.errors import CompileError
from bpfkit.core.types.btf import Btf

pytestmark = [
    pytest.mark.skipif(bool(no_compiler()), reason=no_compiler()),
    pytest.mark.skipif(bool(headers.btf_problem()), reason="no kernel BTF"),
]


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BPFKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def returned(body: str, include: str = "linux/sched.h", before: str = "") -> int:
    """What ``return`` of a program without context compiles to: the immediate of its first mov."""
    text = (
        f"#include <{include}>\n{before}\nint kprobe__f(struct pt_regs *ctx)\n"
        f"{{\n\treturn {body};\n}}\n"
    )
    insns = compile_source(Source.from_text(text, "n.bpf.c"))["progs"][0][1]
    assert insns[0] in (0xB7, 0x18) and insns[-8] == 0x95 and len(insns) <= 24
    return ctypes.c_int32(int.from_bytes(insns[4:8], "little")).value


@pytest.mark.parametrize("name", ["ENOENT", "ENOMEM", "EIO", "ETIMEDOUT", "EOPNOTSUPP", "EAGAIN"])
def test_errno(name: str) -> None:
    assert returned(f"-{name}") == -getattr(errno, name)


def test_errno_that_only_the_kernel_has() -> None:
    assert returned("-ERESTARTSYS") == -512
    assert returned("-ENOTSUPP") == -524


@pytest.mark.parametrize("include", ["linux/fs.h", "linux/mm.h", "uapi/linux/bpf.h"])
def test_names_of_headers_that_come_along(include: str) -> None:
    assert returned("READ + 2 * WRITE - EPERM", include) == 1


def test_what_a_source_defines_itself_is_left_alone() -> None:
    assert returned("WRITE", before="#define WRITE 7") == 7
    assert returned("WRITE", before="enum op { READ = 3, WRITE };") == 4
    assert returned("atomic_read(5)", before="static int atomic_read(int a) { return a; }") == 5


def test_page_offset() -> None:
    five_levels = " la57" in Path("/proc/cpuinfo").read_text()
    top = returned("(u64)PAGE_OFFSET >> 48", "linux/mm.h")
    if os.uname().machine == "x86_64":
        assert top == (0xFF11 if five_levels else 0xFFFF)
    assert top


@pytest.mark.parametrize(
    "text",
    [
        "struct in6_addr *a = &sk->__sk_common.skc_v6_rcv_saddr;\n\tu8 b[16];\n"
        "\tbpf_probe_read_kernel(b, sizeof(b), &a->s6_addr);\n\treturn b[3];",
        "return sk->sk_v6_daddr.s6_addr32[1] + sk->__sk_common.skc_rcv_saddr;",
        "u32 a = 0;\n\tbpf_probe_read_kernel(&a, sizeof(a), (void *)&inet_sk(sk)->inet_daddr);\n"
        "\treturn a;",
    ],
)
def test_members_of_sockets(text: str) -> None:
    source = (
        "#include <uapi/linux/ptrace.h>\n#include <net/sock.h>\n#include <net/inet_sock.h>\n"
        f"int f(struct pt_regs *ctx, struct sock *sk)\n{{\n\t{text}\n}}\n"
    )
    assert compile_source(Source.from_text(source, "s.bpf.c"))["progs"]


def test_inline_functions() -> None:
    source = """
#include <linux/scatterlist.h>
#include <linux/skbuff.h>
int f(struct pt_regs *ctx, struct scatterlist *given, struct sk_buff *skb, struct request *rq)
{
	struct scatterlist sg;
	struct sk_buff copy;
	bpf_probe_read_kernel(&sg, sizeof(sg), given);
	if (sg_is_last(&sg) || (sg_is_chain(&sg) && sg_chain_ptr(&sg) == given))
		return 1;
	bpf_probe_read_kernel(&copy, sizeof(copy), skb);
	return skb_headlen(&copy) + (ip_hdr(&copy) == 0) + skb_is_gso(&copy) + MAJOR(copy.mark);
}
"""
    assert compile_source(Source.from_text(source, "i.bpf.c"))["progs"]


def _split_btf(name: str) -> bytes:
    """The BTF of a module with one struct: ``struct NAME { int number; };``."""
    base = Btf.vmlinux()
    number = base.find("int", "int")
    assert number is not None
    strings = f"{name}\0number\0".encode()
    at = base._strings[1]
    types = pack("=III", at, 4 << 24 | 1, 4) + pack("=III", at + len(name) + 1, number, 0)
    sizes = (24, 0, len(types), len(types), len(strings))
    return pack("=HBBIIIII", 0xEB9F, 1, 0, *sizes) + types + strings


def test_types_of_a_loaded_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").write_bytes(_split_btf("somebody_elses"))
    (tmp_path / "bpfkit_module").write_bytes(_split_btf("bpfkit_private"))
    source = (
        "#include <linux/sched.h>\nint f(struct pt_regs *ctx, struct bpfkit_private *p)\n{\n"
        "\tstruct bpfkit_private copy;\n\tbpf_probe_read_kernel(&copy, sizeof(copy), p);\n"
        "\treturn copy.number + p->number;\n}\n"
    )
    with pytest.raises(CompileError, match="loaded modules"):
        compile_source(Source.from_text(source, "m.bpf.c"))
    monkeypatch.setattr(headers, "_BTF_DIR", str(tmp_path))
    assert headers.modules_with(["bpfkit_private"]) == ["bpfkit_module"]
    artifact = compile_source(Source.from_text(source, "m.bpf.c"))
    assert artifact["progs"]
    assert str(tmp_path / "bpfkit_module") in [path for path, *_ in artifact["deps"]]
