# SPDX-License-Identifier: Apache-2.0
"""Header trees, so that no linux-headers package is needed (compiles only).

BCC wants a kernel's source tree; the one file that it insists on is ``include/linux/kconfig.h``.
bpfkit makes such trees, small ones, and takes for each program the first that has what it needs:

1. the user's: ``BPFKIT_HEADERS`` or ``BCC_KERNEL_SOURCE``;
2. **UAPI**: the installed user-space API headers (linux-libc-dev) and a handful of stubs, when
   every include of the source is there.  Kernel-internal types do not exist in it, so a program
   that needs them does not compile, rather than compile wrongly;
3. **BTF, trimmed**: the running kernel's own types, as many of them as the source names;
4. **BTF**: all of them;
5. the installed headers below /lib/modules, if they are exactly the running kernel's.

Headers of another kernel are never used for kernel-internal structs: such a program loads, and
reads garbage.
"""

from __future__ import annotations

import os
import re

from .cache import cache_dir
from .errors import InputError, UnsupportedError, errno_text
from .log import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from .source import Source

__all__ = ["Route", "Tree", "describe", "routes"]

#: Version of the generator; part of every tree's name.
_GENERATOR = 1
_BTF = "/sys/kernel/btf/vmlinux"
_KEEP_TREES = 48
_STALE = 3600.0


class Tree:
    """A directory for BCC; ``generated`` when bpfkit made it, ``env`` what BCC is told."""

    __slots__ = ("env", "generated", "path", "route", "temporary")

    def __init__(self, path: str, route: str, generated: bool, temporary: str = "") -> None:
        self.path = path
        self.route = route
        self.generated = generated
        self.temporary = temporary
        self.env = {} if route == "modules" else {"BCC_KERNEL_SOURCE": path}

    def close(self) -> None:
        """Remove a tree that could not be kept."""
        if self.temporary:
            import shutil

            shutil.rmtree(self.temporary, ignore_errors=True)
            self.temporary = ""


class Route:
    """One way to headers: ``make()`` gives the tree."""

    __slots__ = ("make", "name")

    def __init__(self, name: str, make: Callable[[], Tree]) -> None:
        self.name = name
        self.make = make


# --- which tree --------------------------------------------------------------------------------


def routes(
    source: Source, cflags: Sequence[str], interpreter: Callable[[dict[str, Any]], dict[str, Any]]
) -> Iterator[Route]:
    """The trees worth trying for a source, best first.

    :param interpreter: runs a request in the worker (for vmlinux.h).
    :raises UnsupportedError: when the source needs kernel-internal headers and there are none.
    :raises CompileError: for an include that exists nowhere.
    """
    override = _override()
    if override is not None:
        yield Route("override", lambda: override)
        return
    uapi = _uapi_problem()
    directories = _include_dirs(cflags)
    extra = [
        name
        for name in source.system_includes
        if not _in_dirs(name, directories) and name not in _EVERYWHERE
    ]
    missing = [name for name in extra if uapi or not _in_uapi(name)]
    required = [name for name in missing if _is_required(source, name)]
    if not uapi and not required:
        yield Route("uapi", _uapi_tree)
    problems = [f"the user-space API headers {uapi}"] if uapi else []
    if required:
        _check_spelling(source, required)
        problems.append(f"{required[0]} is no user-space API header")
    btf = _btf_problem()
    if btf:
        problems.append(btf)
    elif uapi and any(_in_uapi_namespace(name) for name in extra):
        problems.append("macros come from the user-space API headers, which are not installed")
    else:
        yield Route("btf-trimmed", lambda: _btf_tree(source, interpreter, trimmed=True))
        yield Route("btf", lambda: _btf_tree(source, interpreter, trimmed=False))
    modules, problem = _modules()
    if modules is not None:
        tree = modules
        yield Route("modules", lambda: tree)
    else:
        problems.append(problem)
    if (uapi or required) and btf and modules is None:
        raise UnsupportedError(
            f"{source.name} cannot be compiled here",
            why="; ".join(problems),
            hint="Use a kernel with CONFIG_DEBUG_INFO_BTF=y, install linux-headers-"
            f"{os.uname().release}, or set BPFKIT_HEADERS to a tree of this kernel."
            if not uapi or required
            else "Install linux-libc-dev (kernel-headers on Fedora, linux-api-headers on Arch).",
        )


def describe() -> list[tuple[str, bool, str]]:
    """(route, available, why or where) for each route, for ``bpfkit doctor``."""
    out = []
    try:
        override = _override()
        if override is not None:
            out.append(("override", True, override.path))
    except InputError as error:
        out.append(("override", False, error.why))
    problem = _uapi_problem()
    out.append(("uapi", not problem, problem or f"{_UAPI}/linux"))
    problem = _btf_problem()
    out.append(("btf", not problem, problem or _BTF))
    tree, problem = _modules()
    out.append(("modules", tree is not None, problem if tree is None else tree.path))
    return out


def _override() -> Tree | None:
    for name in ("BPFKIT_HEADERS", "BCC_KERNEL_SOURCE"):
        path = os.environ.get(name)
        if path:
            if not os.path.isfile(os.path.join(path, "include/linux/kconfig.h")):
                raise InputError(
                    f"{name}={path} is no header tree",
                    why="include/linux/kconfig.h is not there",
                    hint="Name a kernel's build directory, or unset it.",
                )
            return Tree(os.path.realpath(path), "override", False)
    return None


def _include_dirs(cflags: Sequence[str]) -> list[str]:
    found = []
    flags = iter(cflags)
    for flag in flags:
        for option in ("-I", "-isystem", "-iquote", "-idirafter"):
            if flag == option:
                found.append(next(flags, ""))
            elif flag.startswith(option):
                found.append(flag[len(option) :])
    return found


def _in_dirs(name: str, directories: Sequence[str]) -> bool:
    return any(os.path.isfile(os.path.join(d, name)) for d in directories)


def _is_required(source: Source, name: str) -> bool:
    """Is there an include of this name outside every ``#if``?"""
    return any(
        not _is_conditional(source.files[i.file][2], i.start)
        for i in source.includes
        if i.name == name and i.target < 0
    )


def _is_conditional(text: str, at: int) -> bool:
    from .scan import mask

    depth = 0
    first = True
    for line in mask(text[:at]).split("\n"):
        bare = line.strip()
        if bare[:1] != "#":
            continue
        word = bare[1:].lstrip()
        if word.startswith("if"):
            # The guard around a whole header is no condition.
            depth += not (first and word.startswith("ifndef"))
        elif word.startswith("endif"):
            depth -= 1
        first = False
    return depth > 0


def _check_spelling(source: Source, names: Sequence[str]) -> None:
    """A name that is almost one that exists is a typing error, not a kernel header."""
    from difflib import get_close_matches

    for name in names:
        if name in _KERNEL:
            continue
        include = next(i for i in source.includes if i.name == name and i.target < 0)
        directory, stem = os.path.split(name)
        known = [n for n in _KERNEL if os.path.dirname(n) == directory] + _names_in(directory)
        if include.quoted and include.file == 0 and source.path:
            known += [n for n in _listdir(os.path.dirname(source.path)) if n.endswith(".h")]
        stems = {os.path.basename(n)[:-2]: n for n in known if n.endswith(".h")}
        near = [stems[n] for n in get_close_matches(stem.removesuffix(".h"), stems, 1, 0.82)]
        if near or include.quoted or not _in_kernel_namespace(name):
            library = name.startswith("bpf/")
            hint = (
                "libbpf's headers are not for BCC: its helpers are declared already."
                if library
                else (f"Did you mean {near[0]}?" if near else "")
            )
            raise source.error(include.file, include.line, f"'{name}' file not found", hint)


def _listdir(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _names_in(directory: str) -> list[str]:
    from .source import c_root

    found = [f"{directory}/{n}" for n in _listdir(os.path.join(_UAPI, directory))]
    inside = os.path.join(c_root(), "include", directory)
    return found + [f"{directory}/{n}" for n in _listdir(inside)]


def _in_kernel_namespace(name: str) -> bool:
    return name.partition("/")[0] in (
        "linux",
        "net",
        "asm",
        "asm-generic",
        "uapi",
        "trace",
        "crypto",
        "scsi",
        "sound",
        "drm",
        "rdma",
        "media",
        "video",
        "acpi",
        "kvm",
        "vdso",
    ) and name.endswith(".h")


# --- the user-space API ------------------------------------------------------------------------


def _uapi_root() -> str:
    return os.environ.get("BPFKIT_UAPI") or "/usr/include"


_UAPI = _uapi_root()

#: Headers that BCC or every generated tree brings.
_EVERYWHERE = frozenset(
    "bcc/proto.h bcc/helpers.h bcc/bpf.h stdarg.h linux/kconfig.h linux/types.h linux/version.h "
    "linux/log2.h linux/stddef.h asm/page.h sys/socket.h stdint.h stdbool.h stddef.h".split()
)


def _in_uapi_namespace(name: str) -> bool:
    return name.removeprefix("uapi/").partition("/")[0] in ("linux", "asm", "asm-generic")


def _in_uapi(name: str) -> bool:
    path = _uapi_file(name)
    return path is not None


def _uapi_file(name: str) -> str | None:
    name = name.removeprefix("uapi/")
    top = name.partition("/")[0]
    if top in ("linux", "asm-generic"):
        path = os.path.join(_UAPI, name)
    elif top == "asm":
        path = os.path.join(os.path.dirname(_asm()), name)
    else:
        return None
    return path if os.path.isfile(path) else None


def _asm() -> str:
    """The directory of this machine's <asm/...>: below a multiarch name on Debian."""
    machine = os.uname().machine
    for name in (f"{machine}-linux-gnu", f"{machine}-linux-gnuabi64", "."):
        path = os.path.normpath(os.path.join(_UAPI, name, "asm"))
        if os.path.isfile(os.path.join(path, "types.h")):
            return path
    return os.path.join(_UAPI, "asm")


def _uapi_problem() -> str:
    for path in (f"{_UAPI}/linux/bpf.h", f"{_UAPI}/asm-generic/types.h", f"{_asm()}/types.h"):
        if not os.path.isfile(path):
            return f"are not installed ({path}; package linux-libc-dev)"
    return ""


def _release() -> tuple[int, int, int]:
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", os.uname().release)
    numbers = [int(n or 0) for n in match.groups()] if match else [0, 0, 0]
    return numbers[0], numbers[1], min(numbers[2], 255)


def _common() -> dict[str, str]:
    """Stubs of both kinds of generated tree."""
    major, minor, patch = _release()
    page = os.sysconf("SC_PAGESIZE").bit_length() - 1
    return {
        "linux/version.h": f"""#pragma once
#define LINUX_VERSION_CODE {(major << 16) + (minor << 8) + patch}
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))
""",
        "linux/log2.h": """#pragma once
#define ilog2(n) (63 - __builtin_clzll(n))
#define is_power_of_2(n) ((n) != 0 && (((n) & ((n) - 1)) == 0))
#define roundup_pow_of_two(n) ((n) <= 1 ? 1UL : (1UL << (ilog2((n) - 1) + 1)))
#define rounddown_pow_of_two(n) (1UL << ilog2(n))
""",
        "asm/page.h": f"""#pragma once
#define PAGE_SHIFT {page}
#define PAGE_SIZE (1UL << PAGE_SHIFT)
#define PAGE_MASK (~(PAGE_SIZE - 1))
""",
        "linux/stddef.h": """#pragma once
#ifndef NULL
#define NULL ((void *)0)
#endif
#undef offsetof
#define offsetof(T, M) __builtin_offsetof(T, M)
#define sizeof_field(T, M) sizeof(((T *)0)->M)
#define offsetofend(T, M) (offsetof(T, M) + sizeof_field(T, M))
#ifndef __struct_group
#define __struct_group(TAG, NAME, ATTRS, MEMBERS...) \\
	union { struct { MEMBERS } ATTRS; struct TAG { MEMBERS } ATTRS NAME; } ATTRS
#endif
#ifndef __DECLARE_FLEX_ARRAY
#define __DECLARE_FLEX_ARRAY(T, N) struct { struct { } __empty_ ## N; T N[]; }
#endif
#ifndef __counted_by
#define __counted_by(m)
#endif
#ifndef __counted_by_le
#define __counted_by_le(m)
#define __counted_by_be(m)
#endif
""",
        "stdint.h": "#pragma once\n#include <linux/types.h>\n",
        "stdbool.h": "#pragma once\n#include <linux/types.h>\n",
        "stddef.h": "#pragma once\n#include <linux/types.h>\n",
    }


#: What kernel headers define everywhere.
_MACROS = """
#ifndef __user
#define __user
#define __force
#define __rcu
#define __iomem
#define __percpu
#endif
#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif
#ifndef TASK_COMM_LEN
#define TASK_COMM_LEN 16
#endif
#ifndef ARRAY_SIZE
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#endif
#ifndef likely
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#endif
#ifndef barrier
#define barrier() asm volatile("" ::: "memory")
#endif
#ifndef READ_ONCE
#define READ_ONCE(x) (*(const volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, v) (*(volatile typeof(x) *)&(x) = (v))
#endif
#ifndef min
#define min(a, b) ((a) < (b) ? (a) : (b))
#define max(a, b) ((a) > (b) ? (a) : (b))
#endif
#ifndef container_of
#define container_of(p, T, M) ((T *)((char *)(p) - __builtin_offsetof(T, M)))
#endif
#ifndef __packed
#define __packed __attribute__((packed))
#endif
#ifndef __aligned
#define __aligned(n) __attribute__((aligned(n)))
#endif
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define __bpfkit_swap16(x) ((__be16)__builtin_bswap16(x))
#define __bpfkit_swap32(x) ((__be32)__builtin_bswap32(x))
#else
#define __bpfkit_swap16(x) ((__be16)(x))
#define __bpfkit_swap32(x) ((__be32)(x))
#endif
#undef htons
#undef ntohs
#undef htonl
#undef ntohl
#define htons(x) __bpfkit_swap16(x)
#define ntohs(x) ((__u16)__bpfkit_swap16(x))
#define htonl(x) __bpfkit_swap32(x)
#define ntohl(x) ((__u32)__bpfkit_swap32(x))
"""

#: The kernel's short names; each is left out where BTF has it.
_TYPEDEFS = {
    "u8": "__u8",
    "u16": "__u16",
    "u32": "__u32",
    "u64": "__u64",
    "s8": "__s8",
    "s16": "__s16",
    "s32": "__s32",
    "s64": "__s64",
    "bool": "_Bool",
    "uintptr_t": "unsigned long",
    "size_t": "__kernel_size_t",
    "ssize_t": "__kernel_ssize_t",
    "uint8_t": "__u8",
    "uint16_t": "__u16",
    "uint32_t": "__u32",
    "uint64_t": "__u64",
    "int8_t": "__s8",
    "int16_t": "__s16",
    "int32_t": "__s32",
    "int64_t": "__s64",
    "pid_t": "__kernel_pid_t",
    "__kernel_dev_t": "__u32",
    "dev_t": "__kernel_dev_t",
    "uid_t": "__u32",
    "gid_t": "__u32",
    "loff_t": "__kernel_loff_t",
    "umode_t": "unsigned short",
    "sector_t": "__u64",
}


def _typedefs() -> str:
    lines = [f"typedef {kind} {name};" for name, kind in _TYPEDEFS.items()]
    return "\n".join(lines) + "\nenum { false = 0, true = 1 };\n"


def _uapi_tree() -> Tree:
    """A tree over the installed user-space API headers (52 KB)."""
    return _kept("uapi", _identity(btf=False), _write_uapi)


def _write_uapi(root: str) -> None:
    with open(f"{_UAPI}/linux/bpf.h", errors="replace") as file:
        guard = re.search(r"#ifndef (\w+)", file.read())
    files = _common()
    # headers_install renames the guard of bpf.h; BCC brings its own and must find ours closed.
    files["linux/kconfig.h"] = f"""#pragma once
#define CONFIG_BPF_SYSCALL 1
#define CONFIG_BPF 1
#define CONFIG_NET 1
#define {guard.group(1) if guard else "__LINUX_BPF_H__"}
#include <linux/types.h>
"""
    files["linux/types.h"] = (
        "#pragma once\n#include <linux/stddef.h>\n#include <uapi/linux/types.h>\n"
        + _typedefs()
        + _MACROS
    )
    files["sys/socket.h"] = (
        "#pragma once\n#include <linux/socket.h>\n"
        "struct sockaddr { unsigned short sa_family; char sa_data[14]; };\n"
    )
    _write(root, files)
    uapi = os.path.join(root, "include/uapi")
    os.makedirs(uapi, exist_ok=True)
    for name, target in (
        ("linux", f"{_UAPI}/linux"),
        ("asm-generic", f"{_UAPI}/asm-generic"),
        ("asm", _asm()),
    ):
        os.symlink(os.path.realpath(target), os.path.join(uapi, name))


# --- the running kernel's types ----------------------------------------------------------------


def _btf_problem() -> str:
    if not os.path.exists(_BTF):
        return f"the kernel has no BTF ({_BTF} is missing: CONFIG_DEBUG_INFO_BTF)"
    try:
        with open(_BTF, "rb"):
            return ""
    except OSError as error:
        return f"the kernel's BTF cannot be read: {errno_text(error.errno or 0)}"


_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*[<"]([^>"\n]+)[>"]', re.M)
_WORD = re.compile(r"[A-Za-z_]\w*")

#: Types and enumerators that BCC's own headers use.
_SEEDS = """
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


class _Types:
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
    def of(cls, text: str) -> _Types:
        self = cls()
        self.blocks = [
            block
            for block in _blocks(text)
            if not re.match(r"(?:struct|union|enum) \w+;$", block)
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
            for word in set(_WORD.findall(block)):
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
    def load(cls, data: bytes) -> _Types:
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


def _btf_tree(
    source: Source,
    interpreter: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    trimmed: bool,
) -> Tree:
    """A tree of the running kernel's types; trimmed to what the source names, or whole."""
    from .scan import mask

    kernel = _kept("kernel", _identity(btf=True), lambda root: _write_kernel(root, interpreter))
    try:
        return _program_tree(source, kernel, mask, trimmed)
    finally:
        kernel.close()


def _program_tree(
    source: Source, kernel: Tree, mask: Callable[[str], str], trimmed: bool
) -> Tree:
    code = "\n".join(mask(text) for _, _, text in source.files)
    words = set(_WORD.findall(code))
    own = set(_OWN.findall(code)) | {a or b for a, b in _OWN_TYPEDEF.findall(code)}
    with open(os.path.join(kernel.path, "types"), "rb") as file:
        types = _Types.load(file.read())
    with open(os.path.join(kernel.path, "functions"), encoding="ascii") as text_file:
        functions = text_file.read()
    bodies = dict(re.findall(r"^#define (\w+)\b(?:\([^)]*\))?[ \t]+(.*)$", _ALL_MACROS, re.M))
    for word in list(words):
        if word in bodies:
            words.update(_WORD.findall(bodies[word]))
    if trimmed:
        body = types.trim(words | set(_SEEDS) | set(_TYPEDEFS) | {"true"}, own)
    else:
        with open(os.path.join(kernel.path, "vmlinux.h")) as text_file:
            body = text_file.read()
    files = _common()
    known = types.typedefs
    files["vmlinux.h"] = (
        "#pragma once\n"
        + body
        + "\n".join(
            f"typedef {kind} {name};"
            for name, kind in _TYPEDEFS.items()
            if name not in known and name not in own
        )
        + ("\n" if "true" in types.enumerators else "\nenum { false = 0, true = 1 };\n")
    )
    files["linux/kconfig.h"] = f"""#pragma once
#define CONFIG_BPF_SYSCALL 1
#define BPF_NO_PRESERVE_ACCESS_INDEX 1
#include <vmlinux.h>
#include <linux/stddef.h>
#include <bpfkit_bpf_macros.h>
#define _UAPI__LINUX_BPF_H__
{functions}{_MACROS}"""
    files["bpfkit_bpf_macros.h"] = "#pragma once\n" + "".join(
        _unguarded(_macros_only(_read_uapi(name)))
        for name in ("linux/bpf_common.h", "linux/bpf.h")
    )
    files["linux/types.h"] = "#pragma once\n"
    files["sys/socket.h"] = "#pragma once\n#include <linux/socket.h>\n"
    # Headers by name: macros of the user-space API, the macro pack, or nothing but a name.
    todo = ["linux/if_packet.h", "linux/if_ether.h", "asm/byteorder.h", "linux/socket.h"]
    todo += source.system_includes
    done = set(files)
    while todo:
        name = todo.pop().removeprefix("uapi/")
        if name in done:
            continue
        done.add(name)
        text = "#pragma once\n"
        for also in _KERNEL.get(name, ()):
            text += f"#include <{also}>\n"
            todo.append(also)
        text += _PACK.get(name, "")
        path = _uapi_file(name)
        if name in ("linux/bpf.h", "linux/bpf_common.h"):
            pass
        elif path is not None:
            shadow = _macros_only(_read(path))
            todo += _INCLUDE.findall(shadow)
            files[f"uapi/{name}"] = shadow
            text += f"#include <uapi/{name}>\n"
        elif name not in _KERNEL and name not in source.system_includes:
            continue
        if name in _EVERYWHERE or not _in_kernel_namespace(name):
            continue
        files[name] = text
    files["uapi/linux/bpf.h"] = "#pragma once\n"
    files["uapi/linux/types.h"] = "#pragma once\n"
    from .cache import sha256

    digest = sha256()
    for name in sorted(files):
        digest.update(f"{name}\0{files[name]}\0".encode(errors="surrogateescape"))
    kind = "btf-trimmed" if trimmed else "btf"
    return _kept(kind, digest.hexdigest()[:24], lambda root: _write(root, files))


def _unguarded(text: str) -> str:
    """A macros-only header without its include guard and includes."""
    guard = re.search(r"^#ifndef (\w+)\n#define \1\b.*\n", text, re.M)
    if guard:
        text = text[: guard.start()] + text[guard.end() :]
        end = text.rstrip().rfind("#endif")
        text = text[:end] + text[end + len("#endif") :]
    return _INCLUDE.sub("", text)


def _read_uapi(name: str) -> str:
    path = _uapi_file(name)
    return _read(path) if path else ""


def _read(path: str) -> str:
    with open(path, errors="replace") as file:
        return file.read()


def _macros_only(text: str) -> str:
    """A header's preprocessor lines: its types come from the kernel."""
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" if "\n" in m.group() else " ", text, flags=re.S)
    out = []
    continued = False
    for line in text.split("\n"):
        if continued or line.lstrip().startswith("#"):
            out.append(line)
            continued = line.rstrip().endswith("\\")
    return "\n".join(out) + "\n"


def _write_kernel(
    root: str, interpreter: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    """vmlinux.h of the running kernel (0.3–0.5 s), taken apart (0.5 s); once per kernel."""
    path = os.path.join(root, "vmlinux.h")
    say("reading the running kernel's types (once per kernel)")
    interpreter({"op": "vmlinux", "out": os.fsencode(path)})
    text = _read(path)
    types = _Types.of(text)
    with open(os.path.join(root, "types"), "wb") as file:
        file.write(types.dump())
    with open(os.path.join(root, "functions"), "w", encoding="ascii") as text_file:
        text_file.write(_missing_functions(types))


def _missing_functions(types: _Types) -> str:
    """``#define``s for helpers that BCC's headers name and this kernel does not have."""
    texts = []
    for directory in ("/usr/lib64", "/usr/lib", *_library_dirs()):
        path = os.path.join(directory, "libbcc.so.0")
        if os.path.exists(path):
            with open(path, "rb") as file:
                texts.append(file.read())
            break
    if not texts:
        return ""
    data = texts[0]
    used = set(re.findall(rb"\(void \*\)\s*BPF_FUNC_(\w+)", data))
    numbers: dict[bytes, int] = {}
    for match in re.finditer(rb"#define __BPF_FUNC_MAPPER\(FN[^)]*\)((?:[^\n]*\\\n)+)", data):
        names = re.findall(rb"\bFN\((\w+)", match.group(1))
        for number, name in enumerate(names):
            numbers.setdefault(name, number)
    out = []
    for name in sorted(used):
        if f"BPF_FUNC_{name.decode()}" not in types.enumerators and name in numbers:
            out.append(f"#define BPF_FUNC_{name.decode()} {numbers[name]}\n")
    return "".join(out)


def _library_dirs() -> list[str]:
    return [f"/usr/lib/{os.uname().machine}-linux-gnu", f"/lib/{os.uname().machine}-linux-gnu"]


# --- installed headers of the running kernel ------------------------------------------------------


def _modules() -> tuple[Tree | None, str]:
    """The tree below /lib/modules if it is this very kernel's, else why not."""
    release = os.uname().release
    base = f"/lib/modules/{release}"
    build = os.path.join(base, "build")
    if not os.path.isdir(build):
        return None, f"no kernel headers in {base}"
    try:
        found = re.search(
            r'UTS_RELEASE\s+"([^"]*)"',
            _read(os.path.join(build, "include/generated/utsrelease.h")),
        )
    except OSError:
        return None, f"{build} has no include/generated/utsrelease.h"
    if found is None or found.group(1) != release:
        other = found.group(1) if found else "an unknown kernel"
        return None, f"{build} is of {other}, not of the running {release}"
    if os.path.isdir(os.path.join(base, "source")):
        return Tree(os.path.join(base, "source"), "modules", False), ""
    return Tree(build, "modules", False), ""


# --- trees on disk -------------------------------------------------------------------------------


def _identity(*, btf: bool) -> str:
    """Digest of what a tree is made from."""
    from .cache import sha256

    uname = os.uname()
    parts = [str(_GENERATOR), uname.release, uname.machine, _UAPI]
    with open(__file__, "rb") as file:
        parts.append(sha256(file.read()).hexdigest())
    for path in (f"{_UAPI}/linux/version.h", f"{_UAPI}/linux/bpf.h"):
        try:
            s = os.stat(path)
            parts.append(f"{s.st_size}.{s.st_mtime_ns}.{s.st_ino}")
        except OSError:
            parts.append("-")
    if btf:
        try:
            with open("/sys/kernel/notes", "rb") as file:
                parts.append(file.read().hex())
        except OSError:
            parts.append(uname.version)
    return sha256("\0".join(parts).encode()).hexdigest()[:24]


def _kept(kind: str, identity: str, write: Callable[[str], None]) -> Tree:
    """The tree of this name in the cache, made if need be; else one for this compile only."""
    import shutil
    import tempfile

    base = os.path.join(cache_dir(), "headers")
    path = os.path.join(base, f"{kind}-{identity}")
    if _is_ours(base) and _is_ours(path):
        try:
            os.utime(path)
        except OSError:
            pass
        return Tree(path, kind, True)
    temporary = ""
    try:
        os.makedirs(base, 0o700, exist_ok=True)
        if _is_ours(base):
            temporary = tempfile.mkdtemp(prefix=".new-", dir=base)
    except OSError as error:
        say(f"no header trees at {base}: {errno_text(error.errno or 0)}")
    if temporary:
        try:
            write(temporary)
            try:
                os.rename(temporary, path)
            except OSError:
                # Somebody else was as quick, or the name is taken by what is not ours.
                if _is_ours(path):
                    shutil.rmtree(temporary, ignore_errors=True)
                else:
                    return Tree(temporary, kind, True, temporary)
            _tidy(base)
            return Tree(path, kind, True)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if error.errno not in (28, 122, 30, 13):  # full, quota, read-only, forbidden
                raise
            say(f"cannot keep header tree: {errno_text(error.errno)}")
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    directory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    temporary = tempfile.mkdtemp(prefix="bpfkit-headers-", dir=directory)
    try:
        write(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Tree(temporary, kind, True, temporary)


def _is_ours(path: str) -> bool:
    """A directory that only we can have filled."""
    try:
        s = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    return (s.st_mode & 0o170022) == 0o040000 and s.st_uid == os.geteuid()


def _tidy(base: str) -> None:
    """Remove the oldest trees, and what killed builders left."""
    import shutil
    import time

    now = time.time()
    found = []
    for name in _listdir(base):
        path = os.path.join(base, name)
        try:
            age = now - os.stat(path, follow_symlinks=False).st_mtime
        except OSError:
            continue
        if age > _STALE:
            found.append((age, name.startswith("."), path))
    keep = _KEEP_TREES
    for _, partial, path in sorted(found):
        keep -= not partial
        if partial or keep < 0:
            shutil.rmtree(path, ignore_errors=True)


def _write(root: str, files: dict[str, str]) -> None:
    made = set()
    for name, text in files.items():
        path = os.path.join(root, "include", name)
        directory = os.path.dirname(path)
        if directory not in made:
            os.makedirs(directory, exist_ok=True)
            made.add(directory)
        with open(path, "w", errors="surrogateescape") as file:
            file.write(text)


# --- kernel-internal headers: macros that BTF cannot carry -------------------------------------------

_SOCK = """
#define sk_node __sk_common.skc_node
#define sk_family __sk_common.skc_family
#define sk_state __sk_common.skc_state
#define sk_num __sk_common.skc_num
#define sk_dport __sk_common.skc_dport
#define sk_addrpair __sk_common.skc_addrpair
#define sk_portpair __sk_common.skc_portpair
#define sk_daddr __sk_common.skc_daddr
#define sk_rcv_saddr __sk_common.skc_rcv_saddr
#define sk_v6_daddr __sk_common.skc_v6_daddr
#define sk_v6_rcv_saddr __sk_common.skc_v6_rcv_saddr
#define sk_net __sk_common.skc_net
#define sk_net_refcnt __sk_common.skc_net_refcnt
#define sk_prot __sk_common.skc_prot
#define sk_hash __sk_common.skc_hash
#define sk_cookie __sk_common.skc_cookie
#define sk_bound_dev_if __sk_common.skc_bound_dev_if
#define sk_reuse __sk_common.skc_reuse
#define sk_reuseport __sk_common.skc_reuseport
#define sk_ipv6only __sk_common.skc_ipv6only
#define sk_flags __sk_common.skc_flags
#define sk_refcnt __sk_common.skc_refcnt
#define sk_incoming_cpu __sk_common.skc_incoming_cpu
"""
_INET = """
#define inet_daddr sk.__sk_common.skc_daddr
#define inet_rcv_saddr sk.__sk_common.skc_rcv_saddr
#define inet_dport sk.__sk_common.skc_dport
#define inet_num sk.__sk_common.skc_num
#define inet_sk(p) ((struct inet_sock *)(p))
#define ir_num req.__req_common.skc_num
#define ir_rmt_addr req.__req_common.skc_daddr
#define ir_loc_addr req.__req_common.skc_rcv_saddr
#define ir_rmt_port req.__req_common.skc_dport
"""
_FAMILIES = "".join(
    f"#define AF_{name} {number}\n#define PF_{name} {number}\n"
    for name, number in (
        ("UNSPEC", 0),
        ("UNIX", 1),
        ("LOCAL", 1),
        ("INET", 2),
        ("BRIDGE", 7),
        ("INET6", 10),
        ("KEY", 15),
        ("NETLINK", 16),
        ("PACKET", 17),
        ("TIPC", 30),
        ("ALG", 38),
        ("VSOCK", 40),
        ("SMC", 43),
        ("XDP", 44),
        ("MCTP", 45),
    )
)
#: Macros by header.
_PACK: dict[str, str] = {
    "net/sock.h": _SOCK,
    "net/inet_sock.h": _INET,
    "linux/tcp.h": "#define tcp_sk(p) ((struct tcp_sock *)(p))\n",
    "linux/udp.h": "#define udp_sk(p) ((struct udp_sock *)(p))\n",
    "net/inet_connection_sock.h": "#define inet_csk(p) ((struct inet_connection_sock *)(p))\n",
    "net/af_unix.h": "#define unix_sk(p) ((struct unix_sock *)(p))\n",
    "net/tcp.h": "#define TCP_SKB_CB(s) ((struct tcp_skb_cb *)&((s)->cb[0]))\n",
    "linux/socket.h": _FAMILIES
    + "#define SCM_RIGHTS 1\n#define SCM_CREDENTIALS 2\n"
    "#define SOL_IP 0\n#define SOL_TCP 6\n#define SOL_UDP 17\n#define SOL_IPV6 41\n",
    "linux/in6.h": "#define s6_addr in6_u.u6_addr8\n#define s6_addr16 in6_u.u6_addr16\n"
    "#define s6_addr32 in6_u.u6_addr32\n",
    "linux/sched.h": "#define TASK_RUNNING 0\n#define TASK_INTERRUPTIBLE 1\n"
    "#define TASK_UNINTERRUPTIBLE 2\n#define PF_KTHREAD 0x00200000\n#define TASK_COMM_LEN 16\n",
    "linux/err.h": "#define MAX_ERRNO 4095\n"
    "#define IS_ERR(p) ((unsigned long)(p) >= (unsigned long)-MAX_ERRNO)\n"
    "#define IS_ERR_OR_NULL(p) (!(p) || IS_ERR(p))\n#define PTR_ERR(p) ((long)(p))\n",
    "linux/blkdev.h": "#define DISK_NAME_LEN 32\n#define REQ_OP_BITS 8\n"
    "#define REQ_OP_MASK ((1 << REQ_OP_BITS) - 1)\n",
    "linux/dcache.h": "#define DNAME_INLINE_LEN (sizeof(((struct dentry *)0)->d_shortname))\n"
    "#define d_iname d_shortname.string\n",
    "linux/fs.h": "#define FMODE_CREATED 0x100000\n",
    "linux/time.h": "#define NSEC_PER_SEC 1000000000L\n#define NSEC_PER_MSEC 1000000L\n"
    "#define NSEC_PER_USEC 1000L\n#define USEC_PER_SEC 1000000L\n#define MSEC_PER_SEC 1000L\n",
    "linux/if_vlan.h": "#define VLAN_HLEN 4\n#define VLAN_VID_MASK 0x0fff\n"
    "#define VLAN_PRIO_SHIFT 13\n",
    "net/ip.h": "#define IP_CE 0x8000\n#define IP_DF 0x4000\n#define IP_MF 0x2000\n"
    "#define IP_OFFSET 0x1FFF\n",
}
_ALL_MACROS = "\n".join(_PACK.values())

#: Kernel-internal headers that people name: what each brings besides types, which are all there.
_KERNEL: dict[str, tuple[str, ...]] = {
    name: ()
    for name in """
    linux/kernel.h linux/bug.h linux/atomic.h linux/bitops.h linux/bits.h linux/list.h linux/slab.h
    linux/rcupdate.h linux/spinlock.h linux/mutex.h linux/rwsem.h linux/kref.h linux/refcount.h
    linux/workqueue.h linux/interrupt.h linux/irq.h linux/irqdesc.h linux/hardirq.h
    linux/preempt.h linux/smp.h linux/percpu.h linux/cpumask.h linux/nodemask.h linux/mm.h linux/compaction.h
    linux/mm_types.h linux/mmzone.h linux/memcontrol.h linux/vmstat.h linux/swap.h linux/gfp.h
    linux/page-flags.h linux/highmem.h linux/pagemap.h linux/oom.h linux/pid.h
    linux/pid_namespace.h linux/nsproxy.h linux/ns_common.h linux/user_namespace.h
    linux/utsname.h linux/cred.h linux/security.h linux/lsm_hooks.h linux/cgroup.h
    linux/cgroup-defs.h linux/sched/signal.h linux/sched/task.h linux/sched/mm.h
    linux/sched/cputime.h linux/signal.h linux/wait.h linux/completion.h linux/ktime.h
    linux/hrtimer.h linux/timer.h linux/jiffies.h linux/string.h linux/ctype.h linux/uaccess.h
    linux/path.h linux/namei.h linux/mount.h linux/file.h linux/fdtable.h linux/uio.h linux/bio.h
    linux/blk_types.h linux/blk-mq.h linux/genhd.h linux/backing-dev.h linux/buffer_head.h
    linux/writeback.h linux/nfs_fs.h linux/kobject.h linux/device.h linux/module.h linux/init.h
    linux/export.h linux/errno.h linux/printk.h linux/tracepoint.h linux/trace_events.h
    linux/kprobes.h linux/ftrace.h linux/perf_event.h linux/bpf_verifier.h linux/btf.h
    linux/btf_ids.h linux/filter.h linux/skbuff.h linux/skmsg.h linux/netdevice.h
    linux/etherdevice.h linux/if_vlan.h linux/rtnetlink.h linux/inetdevice.h linux/ipv6.h
    linux/tcp.h linux/udp.h linux/icmp.h linux/icmpv6.h linux/igmp.h linux/net.h linux/netfilter.h
    linux/netfilter_ipv4.h linux/in.h linux/sockptr.h linux/phy.h linux/ethtool.h linux/tty.h
    linux/ptrace.h linux/sysctl.h linux/random.h linux/crypto.h linux/dma-mapping.h linux/pci.h
    linux/virtio.h linux/kthread.h linux/delay.h linux/idr.h linux/xarray.h linux/radix-tree.h
    linux/rbtree.h linux/rhashtable.h linux/hashtable.h linux/hash.h linux/jhash.h linux/sort.h
    linux/compiler_types.h linux/limits.h linux/minmax.h linux/math64.h linux/kdev_t.h
    linux/posix-timers.h linux/eventpoll.h linux/pipe_fs_i.h linux/shmem_fs.h linux/stat.h
    linux/statfs.h linux/types.h linux/user.h linux/vmalloc.h linux/zstd.h
    net/net_namespace.h net/ipv6.h net/udp.h net/icmp.h net/dst.h net/route.h net/ip_fib.h
    net/neighbour.h net/arp.h net/flow.h net/flow_dissector.h net/request_sock.h
    net/inet_connection_sock.h net/inet_hashtables.h net/inet_timewait_sock.h net/inet_common.h
    net/netns/generic.h net/sch_generic.h net/pkt_sched.h net/pkt_cls.h net/act_api.h
    net/cls_cgroup.h net/xdp.h net/xdp_sock.h net/af_unix.h net/scm.h net/checksum.h net/dsfield.h
    net/ip_tunnels.h net/gre.h net/vxlan.h net/geneve.h net/lwtunnel.h net/seg6.h net/mpls.h
    net/netlink.h net/genetlink.h net/page_pool.h net/busy_poll.h net/tls.h net/strparser.h
    net/netfilter/nf_conntrack.h net/netfilter/nf_tables.h net/bonding.h net/mptcp.h
    net/ip6_route.h net/ip6_fib.h net/addrconf.h net/protocol.h net/esp.h net/xfrm.h
    asm/ptrace.h asm/processor.h asm/current.h asm/syscall.h asm/unistd.h asm/pgtable.h
    trace/events/sched.h
    """.split()
}
_KERNEL.update(
    {
        "net/sock.h": ("linux/socket.h", "linux/compiler.h"),
        "net/inet_sock.h": ("net/sock.h",),
        "net/tcp.h": ("net/inet_connection_sock.h", "linux/tcp.h"),
        "net/ip.h": ("net/inet_sock.h", "linux/ip.h"),
        "net/ipv6.h": ("net/inet_sock.h", "linux/ipv6.h"),
        "net/inet_connection_sock.h": ("net/inet_sock.h",),
        "net/request_sock.h": ("net/sock.h",),
        "net/udp.h": ("net/inet_sock.h",),
        "net/af_unix.h": ("net/sock.h",),
        "linux/ipv6.h": ("linux/in6.h",),
        "linux/sched.h": ("linux/err.h", "linux/time.h", "linux/compiler.h"),
        "linux/socket.h": (),
        "linux/err.h": (),
        "linux/time.h": (),
        "linux/compiler.h": (),
        "linux/dcache.h": (),
        "linux/fs.h": ("linux/dcache.h", "linux/err.h", "linux/stat.h"),
        "linux/blkdev.h": ("linux/fs.h",),
        "linux/genhd.h": ("linux/blkdev.h",),
        "linux/blk-mq.h": ("linux/blkdev.h",),
        "linux/ktime.h": ("linux/time.h",),
        "linux/skbuff.h": ("linux/in6.h", "linux/err.h"),
        "linux/net.h": ("linux/socket.h",),
        "linux/slab.h": ("linux/err.h",),
    }
)
