# SPDX-License-Identifier: Apache-2.0
"""Fields of the kernel's structs are read where the kernel's BTF says that they are.

``offsetof`` would not tell: the compiler's idea of a layout and the code that it generates differ
where x86-64 and BPF align integers differently.  The instructions are looked at.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bpfkit.core.compile.artifact import prog_defs
from bpfkit.core.kernel.disasm import disassemble
from bpfkit.core.object import compiled
from bpfkit.core.types.btf import STRUCT, UNION, Btf, vmlinux

STRUCTS = {
    "sched": ["task_struct", "signal_struct"],
    "mm_types": ["mm_struct", "vm_area_struct", "page"],
    "fs": ["file", "inode", "super_block"],
    "dcache": ["dentry"],
    "cred": ["cred"],
    "netdevice": ["net_device", "netdev_queue"],
    "skbuff": ["sk_buff"],
    "tcp": ["tcp_sock"],
    "cgroup-defs": ["cgroup", "css_set"],
    "blk-mq": ["request"],
}


def fields(btf: Btf, number: int, base: int = 0) -> list[tuple[str, int]]:
    """(name, byte offset) of the members, and of those of unnamed structs; no bitfields."""
    found = []
    for member in btf.members(number):
        kind = btf.resolve(member.type_id)
        at = base + member.bit_offset
        if not member.name and kind.kind in (STRUCT, UNION):
            found += fields(btf, kind.id, at)
        elif member.name and not member.bit_size and at % 8 == 0:
            found.append((member.name, at // 8))
    return found


CASES = [(header, struct) for header, structs in STRUCTS.items() for struct in structs]


@pytest.mark.parametrize(("header", "struct"), CASES, ids=[struct for _, struct in CASES])
def test_generated_code_reads_fields_at_the_offsets_of_btf(
    header: str, struct: str, tmp_path: Path
) -> None:
    btf = vmlinux()
    if btf is None:
        pytest.skip("this kernel has no BTF (CONFIG_DEBUG_INFO_BTF)")
    number = btf.find(struct, "struct")
    assert number is not None
    wanted = fields(btf, number)
    reads = "".join(f"\tx = *(volatile u8 *)&s->{name};\n" for name, _ in wanted)
    path = tmp_path / "reads.bpf.c"
    path.write_text(
        f"""#include <bpfkit/bpfkit.h>
#include <linux/{header}.h>
SEC("tp_btf/sched_switch")
int reads(u64 *ctx)
{{
	struct {struct} *s = (void *)ctx[1];
	volatile u8 x;

{reads}	return 0;
}}
"""
    )
    code = disassemble(prog_defs(compiled(str(path)))[0].insns)
    loads = [re.search(r"= \*\(u8 \*\)\(r\d+ \+(\d+)\)", line) for line in code]
    read = [int(load[1]) for load in loads if load]
    assert len(wanted) >= 10
    assert list(zip([name for name, _ in wanted], read, strict=True)) == wanted
