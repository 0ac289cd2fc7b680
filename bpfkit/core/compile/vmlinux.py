# SPDX-License-Identifier: Apache-2.0
"""The running kernel's types as C, and one program's share of them.

The whole of vmlinux.h costs clang 0.7 s in three passes; what one program names is a few thousand
lines.  Taking it apart is done once per kernel (0.5 s); putting a share together takes 20 ms.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["SEEDS", "WORD", "Types", "own_types"]

WORD = re.compile(r"[A-Za-z_]\w*")

#: Types and enumerators that BCC's own headers use.
SEEDS = """
__u8 __u16 __u32 __u64 __s8 __s16 __s32 __s64 __be16 __be32 __be64 __le16 __le32 __le64 __sum16
__wsum bpf_func_id bpf_map_type bpf_stack_build_id bpf_cgroup_storage_key bpf_spin_lock bpf_sock
bpf_sock_tuple bpf_sysctl bpf_sock_ops __sk_buff xdp_md sk_msg_md bpf_sk_lookup sk_reuseport_md
bpf_sock_addr bpf_perf_event_data bpf_raw_tracepoint_args pt_regs bpf_dynptr bpf_timer
bpf_tunnel_key bpf_xfrm_state bpf_fib_lookup bpf_redir_neigh bpf_cgroup_dev_ctx bpf_pidns_info
bpf_perf_event_value bpf_flow_keys bpf_tcp_sock btf_ptr tcphdr iphdr ipv6hdr path
BPF_FUNC_unspec BPF_F_CURRENT_CPU BPF_F_INDEX_MASK BPF_ANY BPF_NOEXIST BPF_F_NO_PREALLOC
BPF_F_STACK_BUILD_ID BPF_F_USER_STACK BPF_F_INGRESS BPF_MAP_TYPE_HASH XDP_PASS TC_ACT_OK SK_PASS
BPF_F_ADJ_ROOM_FIXED_GSO BPF_RB_NO_WAKEUP BPF_SOCK_OPS_VOID BPF_LOCAL_STORAGE_GET_F_CREATE
BPF_SK_STORAGE_GET_F_CREATE BPF_F_PSEUDO_HDR BPF_F_RECOMPUTE_CSUM BPF_F_TUNINFO_IPV6
BPF_F_ZERO_CSUM_TX BPF_STACK_BUILD_ID_EMPTY BPF_FIB_LOOKUP_DIRECT BPF_LWT_ENCAP_SEG6
""".split()


class Types:
    """vmlinux.h taken apart once per kernel, so that one program's share is quickly put together.

    ``blocks`` are definitions; the dictionaries say in which block a struct/union/enum, a
    typedef or an enumerator is; ``needs`` which blocks a block needs whole; ``members`` which
    named pointer members lead to which blocks; ``forward`` which structs it mentions at all.
    """

    FIELDS = ("blocks", "tags", "typedefs", "enumerators", "needs", "members", "forward")
    __slots__ = FIELDS

    blocks: list[str]
    tags: dict[str, int]
    typedefs: dict[str, int]
    enumerators: dict[str, int]
    needs: list[list[int]]
    members: list[list[tuple[str, int]]]
    forward: list[list[str]]

    @classmethod
    def of(cls, text: str) -> Types:
        self = cls()
        self.blocks = [
            block for block in _blocks(text) if not re.match(r"(?:struct|union|enum) \w+;$", block)
        ]
        self.tags, self.typedefs, self.enumerators = {}, {}, {}
        for i, block in enumerate(self.blocks):
            tag = re.match(r"(struct|union|enum) (\w+)\s*\{", block)
            if tag:
                self.tags[f"{tag[1]} {tag[2]}"] = i
            if block.startswith(("enum", "typedef enum")):
                for name in re.findall(r"^\s+(\w+)(?: = [^,]+)?,", block, re.M):
                    self.enumerators[name] = i
            if block.startswith("typedef"):
                last = block.rsplit("\n", 1)[-1]
                name_match = (
                    re.search(r"\(\*(\w+)\)", block)
                    if "(*" in block and not block.startswith("typedef struct {")
                    else None
                ) or (
                    re.search(r"(\w+)\s*(?:\[[^\]]*\])*;\s*$", last) or re.search(r"(\w+)\(", last)
                )
                if name_match:
                    self.typedefs[name_match[1]] = i
        self.needs, self.members, self.forward = [], [], []
        for i, block in enumerate(self.blocks):
            needs = set()
            for kind, name, star in re.findall(r"\b(struct|union|enum) (\w+)\s*(\**)", block):
                j = self.tags.get(f"{kind} {name}")
                if j is not None and j != i and (not star or kind == "enum"):
                    needs.add(j)
            for word in set(WORD.findall(block)):
                j = self.typedefs.get(word)
                if j is not None and j != i:
                    needs.add(j)
            self.needs.append(sorted(needs))
            self.members.append(
                [
                    (member, self.tags[f"{kind} {name}"])
                    for kind, name, member in re.findall(
                        r"^\s+(?:const )?(struct|union) (\w+) \*+(\w+)", block, re.M
                    )
                    if f"{kind} {name}" in self.tags
                ]
            )
            self.forward.append(
                sorted({f"{k} {n}" for k, n in re.findall(r"\b(struct|union) (\w+)", block)})
            )
        return self

    def dump(self) -> bytes:
        import marshal

        return marshal.dumps([getattr(self, name) for name in self.FIELDS], 2)

    @classmethod
    def load(cls, data: bytes) -> Types:
        import marshal

        self = cls()
        for name, value in zip(cls.FIELDS, marshal.loads(data), strict=True):
            setattr(self, name, value)
        return self

    def trim(self, words: set[str], own: set[str]) -> str:
        """The definitions that a text with these words needs, less what it defines itself."""
        want = set()
        for word in words:
            for table in (self.enumerators, self.typedefs):
                if word in table:
                    want.add(table[word])
            for kind in ("struct", "union", "enum"):
                if f"{kind} {word}" in self.tags:
                    want.add(self.tags[f"{kind} {word}"])
        done: set[int] = set()
        while want:
            i = want.pop()
            if i in done:
                continue
            done.add(i)
            want.update(self.needs[i])
            want.update(j for member, j in self.members[i] if member in words)
        for name in own:
            for kind in ("struct", "union", "enum"):
                done.discard(self.tags.get(f"{kind} {name}", -1))
            done.discard(self.typedefs.get(name, -1))
        forward: set[str] = set()
        for i in done:
            forward.update(self.forward[i])
        lines = [f"{name};" for name in sorted(forward)]
        return "\n".join(lines + [self.blocks[i] for i in sorted(done)]) + "\n"


def _blocks(text: str) -> Iterator[str]:
    """Top-level declarations of libbpf's vmlinux.h."""
    block: list[str] = []
    depth = 0
    for line in text.split("\n"):
        if line.startswith("#") or (not line and not depth):
            continue
        block.append(line)
        depth += line.count("{") - line.count("}")
        if depth == 0 and line.endswith(";"):
            yield "\n".join(block)
            block = []


_OWN = re.compile(r"\b(?:struct|union|enum)\s+(\w+)\s*(?:__attribute__\s*\(\(.*?\)\)\s*)?\{")
_OWN_TYPEDEF = re.compile(r"\btypedef\b[^;{]*?(\w+)\s*;|\btypedef\b[^;{]*\{[^}]*\}\s*(\w+)\s*;")


def own_types(code: str) -> set[str]:
    """Names of the types that a program defines itself."""
    return set(_OWN.findall(code)) | {a or b for a, b in _OWN_TYPEDEF.findall(code)}
