# SPDX-License-Identifier: Apache-2.0
"""SEC() as the compiler sees it: behind macros, in #if branches, missing, on what is no program.

Many of the texts come from public reports; each stands for a kind.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from bcctools import no_compiler

from bpfkit.core.compile.compiler import compile_source
from bpfkit.core.compile.source import Source
from bpfkit.core.errors import CompileError, InputError
from bpfkit.core.kernel.sections import likely, resolve
from bpfkit.core.object import Object, _Options

pytestmark = pytest.mark.skipif(bool(no_compiler()), reason=no_compiler())

HEAD = "#include <bpfkit/bpfkit.h>\n#include <uapi/linux/bpf.h>\n"
OPTIONS = _Options(None, None, None, None, None, None)


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BPFKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def sections(text: str, head: str = HEAD) -> list[tuple[str, str, int]]:
    """What a text's programs are; lines count from the text's own first line."""
    artifact = compile_source(Source.from_text(head + text, "t.bpf.c"))
    assert not artifact["unnamed"]
    found: list[tuple[str, str, int]] = artifact["sections"]
    return [(name, section, line - head.count("\n")) for name, section, line in found]


XDP = "struct xdp_md *ctx"
COMPILES = {
    "a name behind a macro": (
        f'#define HOOK "xdp"\nSEC(HOOK)\nint a({XDP}) {{ return 1; }}\n',
        [("a", "xdp", 3)],
    ),
    "SEC behind a macro": (
        f'#define INGRESS SEC("xdp")\nINGRESS int b({XDP}) {{ return 2; }}\n',
        [("b", "xdp", 2)],
    ),
    "a name of several literals": (
        f'SEC("xdp" "/devmap")\nint a({XDP}) {{ return 2; }}\n',
        [("a", "xdp/devmap", 2)],
    ),
    "programs made by a macro": (
        '#define DIR(name, ret) SEC("tc") int tc_##name(struct __sk_buff *skb) { return ret; }\n'
        "BPF_HASH(cnt, u32, u64);\nDIR(in, 0)\nDIR(out, 2)\n",
        [("tc_in", "tc", 3), ("tc_out", "tc", 4)],
    ),
    "a macro with the head only": (
        f'#define PROG(name) SEC("xdp") int name({XDP})\n\nPROG(p)\n{{\n\treturn 2;\n}}\n',
        [("p", "xdp", 3)],
    ),
    "a section made of a macro's argument": (
        '#define ON(what) SEC("cgroup/" #what) int at_##what(struct bpf_sock_addr *ctx)\n'
        "ON(bind4) { return 1; }\nON(bind6) { return 1; }\n",
        [("at_bind4", "cgroup/bind4", 2), ("at_bind6", "cgroup/bind6", 3)],
    ),
    "two branches of one name": (
        f'#define USE_XDP\n#ifdef USE_XDP\nSEC("xdp")\nint prog({XDP}) {{ return 1; }}\n#else\n'
        'SEC("tc")\nint prog(struct __sk_buff *ctx) { return 2; }\n#endif\n',
        [("prog", "xdp", 3)],
    ),
    "the second branch": (
        f'#if 0\nSEC("xdp")\nint prog({XDP}) {{ return 1; }}\n#else\n'
        'SEC("tc")\nint prog(struct __sk_buff *ctx) { return 2; }\n#endif\n',
        [("prog", "tc", 6)],
    ),
    "only the section in branches": (
        f'#if 0\nSEC("xdp")\n#else\nSEC("xdp/cpumap")\n#endif\nint prog({XDP}) {{ return 1; }}\n',
        [("prog", "xdp/cpumap", 6)],
    ),
    "libbpf's syntax in a branch for libbpf": (
        "#ifdef BCC_SEC\nBPF_HASH(m, u32, u32);\n#else\nBPF_HASH(m, u32, u64);\n#endif\n"
        '#if 0\nstruct { int (*type)[1]; } m SEC(".maps");\nint counter SEC(".data") = 1;\n'
        'SEC("xdp") static int s(void *c) { return 0; }\n#endif\n'
        f'SEC("xdp")\nint p({XDP}) {{ u32 k = 0; m.increment(k); return 2; }}\n',
        [("p", "xdp", 11)],
    ),
    "a pinned map in a branch that is left out": (
        '#if 0\nBPF_TABLE_PINNED("hash", u32, u32, m, 1, "/sys/fs/bpf/p");\n#endif\n'
        f'SEC("xdp")\nint p({XDP}) {{ return 2; }}\n',
        [("p", "xdp", 4)],
    ),
    "BCC's own names, behind a macro": (
        "#include <linux/ptrace.h>\n#define K(what) int kprobe__##what(struct pt_regs *ctx)\n"
        "K(tcp_connect) { return 0; }\n",
        [("kprobe__tcp_connect", "kprobe/tcp_connect", 3)],
    ),
    "a list of programs": (
        "#define LIST X(a) X(b) X(c)\n"
        f'#define X(n) SEC("xdp") int p_##n({XDP}) {{ return 2; }}\nLIST\n',
        [("p_a", "xdp", 3), ("p_b", "xdp", 3), ("p_c", "xdp", 3)],
    ),
    "a macro of several lines": (
        f'#define MK(n, r) \\\n\tSEC("xdp") \\\n\tint n({XDP}) \\\n\t{{ return r; }}\n'
        "MK(one, 1)\nMK(two,\n\t2)\n",
        [("one", "xdp", 5), ("two", "xdp", 6)],
    ),
    "after a byte order mark": (f'SEC("xdp")\nint p({XDP}) {{ return 2; }}\n', [("p", "xdp", 1)]),
}


@pytest.mark.parametrize("kind", COMPILES)
def test_the_compiler_says_what_a_program_is(kind: str) -> None:
    text, expected = COMPILES[kind]
    head = "\ufeff" + HEAD if "byte order" in kind else HEAD
    assert sections(text, head) == expected


def test_sec_of_libbpf() -> None:
    """A source may bring libbpf's SEC(), which is a section attribute."""
    head = "#include <uapi/linux/bpf.h>\n#define SEC(NAME) __attribute__((section(NAME), used))\n"
    text = f'SEC("xdp/devmap")\nint p({XDP}) {{ return 2; }}\n'
    text += 'char _license[] SEC("license") = "MIT";\n'
    assert sections(text, head) == [("p", "xdp/devmap", 1)]
    text = '__attribute__((section("tc"))) int t(struct __sk_buff *skb) { return 2; }\n'
    assert sections(text, "#include <uapi/linux/bpf.h>\n") == [("t", "tc", 1)]


def test_a_byte_order_mark_in_files(tmp_path: Path) -> None:
    (tmp_path / "a.h").write_bytes(b"\xef\xbb\xbf#define RET 2\n")
    main = tmp_path / "m.bpf.c"
    main.write_bytes(
        b"\xef\xbb\xbf" + HEAD.encode() + b'#include "a.h"\r\nSEC("xdp")\r\n'
        b"int p(struct xdp_md *ctx) { return RET; }\r\n"
    )
    assert compile_source(Source.find(str(main)))["sections"] == [("p", "xdp", 4)]
    main.write_bytes(main.read_text(encoding="utf-8-sig").encode("utf-16"))
    with pytest.raises(InputError, match="UTF-16"):
        Source.find(str(main))


def test_what_the_preprocessor_keeps_counts_for_constants_and_the_licence() -> None:
    text = (
        '#if 1\n#define N 7\nLOAD_CONST(0, a, N + 1);\nLICENSE("MIT");\n#else\n'
        'LOAD_CONST(0, a, 2);\nLICENSE("Dual BSD/GPL");\n#endif\nLOAD_CONST(3, b, sizeof(u64));\n'
        f'SEC("xdp")\nint p({XDP}) {{ return a() + b(); }}\n'
    )
    artifact = compile_source(Source.from_text(HEAD + text, "t.bpf.c"))
    assert artifact["consts"] == [("a", 0, 8), ("b", 3, 8)]
    assert artifact["license"] == b"MIT"


MISSING = {
    "no SEC at all": (
        "BPF_HASH(n, u32, u64);\nint xdp_count(struct xdp_md *ctx)\n"
        "{\n\tu32 k = 0;\n\tn.increment(k);\n\treturn XDP_PASS;\n}\n",
        ("t.bpf.c:4: xdp_count() has no SEC()", 'SEC("xdp")'),
    ),
    "one leftover": (
        f'SEC("xdp")\nint a({XDP}) {{ return 2; }}\nint leftover({XDP}) {{ return 1; }}\n',
        ("t.bpf.c:5: leftover() has no SEC()", 'SEC("xdp")'),
    ),
    "left over in the branch that counts": (
        f'#if 0\nSEC("xdp")\nint a({XDP}) {{ return 2; }}\n#else\n'
        f"int a({XDP}) {{ return 2; }}\n#endif\n"
        f'SEC("xdp") int b({XDP}) {{ return 1; }}\n',
        ("t.bpf.c:7: a() has no SEC()", 'SEC("xdp")'),
    ),
    "made by a macro": (
        "#define F(n) int tc_##n(struct __sk_buff *skb) { return 0; }\nF(egress)\n",
        ("t.bpf.c:4: tc_egress() has no SEC()", 'SEC("tc/egress")'),
    ),
    "a kretprobe": (
        "#include <linux/ptrace.h>\nint do_return(struct pt_regs *ctx)\n{\n\treturn 0;\n}\n",
        ("t.bpf.c:4: do_return() has no SEC()", 'SEC("kretprobe/FUNCTION")'),
    ),
}


@pytest.mark.parametrize("kind", MISSING)
def test_a_function_without_sec(kind: str) -> None:
    text, words = MISSING[kind]
    source = Source.from_text(HEAD + text, "t.bpf.c")
    artifact = compile_source(source)  # BCC's sources compile as they are; loading needs a type
    with pytest.raises(CompileError) as caught:
        Object(source, artifact, OPTIONS)
    for word in words:
        assert word in str(caught.value)


STRAYS = {
    "static": (f'#define P SEC("xdp")\nP static int s({XDP}) {{ return 2; }}\n', "s is static"),
    "a variable": ('#define D SEC(".data")\nint counter D = 1;\n', "does not belong to a function"),
    "libbpf's maps": (
        '#define M SEC(".maps")\nstruct { int (*type)[1]; } m M;\n',
        "libbpf's map syntax",
    ),
    "a line of its own": ("LOAD_CONST(0, a, 1);\nLOAD_CONST(0, b, 2);\n", "declared twice"),
}


@pytest.mark.parametrize("kind", STRAYS)
def test_sec_on_what_is_no_program(kind: str) -> None:
    text, words = STRAYS[kind]
    with pytest.raises(CompileError, match=words):
        sections(text + f'SEC("xdp")\nint p({XDP}) {{ return 2; }}\n')


def test_two_sections_of_one_program() -> None:
    with pytest.raises(CompileError, match="p is defined twice"):
        sections(f'SEC("tc")\nint p({XDP});\nSEC("xdp")\nint p({XDP}) {{ return 2; }}\n')
    with pytest.raises(CompileError, match="two sections"):
        sections(f'#define X SEC("xdp")\nX int p({XDP});\nSEC("tc") int p({XDP}) {{ return 2; }}\n')


def test_sec_without_its_header() -> None:
    with pytest.raises(CompileError, match=r"t\.bpf\.c:2.*SEC\(\) is not defined\n(.*\n)?#include"):
        sections(f'SEC("xdp")\nint p({XDP}) {{ return 2; }}\n', "#include <uapi/linux/bpf.h>\n")


def test_one_name_twice() -> None:
    text = f'SEC("xdp")\nint p({XDP}) {{ return 2; }}\nSEC("tc")\nint p({XDP}) {{ return 2; }}\n'
    with pytest.raises(CompileError, match=r"t\.bpf\.c:5: program p is defined twice"):
        sections(text)


@pytest.mark.parametrize("context", ["xdp_md", "__sk_buff", "pt_regs", "bpf_sock_addr", "bpf_sock"])
def test_what_is_likely_exists(context: str) -> None:
    for function in ("f", "egress", "sock_filter", "do_ret", "bind6_check"):
        for part in likely(context, function).split(" or "):
            resolve(part.removeprefix('SEC("').removesuffix('")'))


# --- messages -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words", "not_words"),
    [
        (
            "\tu8 w[16] = { 3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3 };\n"
            "\treturn w[ctx->rx_queue_index & 15];",
            ("t.bpf.c:6: ", "constant table", " of w,", "one by one"),
            "stack",
        ),
        (
            '\tconst char *names[] = { "ab", "cd" };\n\treturn names[ctx->rx_queue_index & 1][0];',
            ("t.bpf.c:6: ", " of names,", "switch"),
            "stack",
        ),
        (
            "\tstatic const u8 w[4] = { 3, 1, 4, 9 };\n\treturn w[ctx->rx_queue_index & 3];",
            ("constant table", "w lies outside", "BPF_ARRAY"),
            "stack",
        ),
        (
            '\tbpf_trace_printk("got a packet\n");\n\treturn 2;',
            ("t.bpf.c:5:", "a line ends inside a string literal", r"\n"),
            "expected",
        ),
        (
            '\tchar *s = "abc;\n\treturn 2;',
            ("t.bpf.c:5:", "a line ends inside a string literal"),
            "expected",
        ),
    ],
)
def test_messages(body: str, words: tuple[str, ...], not_words: str) -> None:
    with pytest.raises(CompileError) as caught:
        sections(f'SEC("xdp")\nint p({XDP}) {{\n{body}\n}}\n')
    for word in words:
        assert word in str(caught.value)
    assert not_words not in str(caught.value)


def test_the_advice_for_a_local_table_works() -> None:
    assert sections(
        f'SEC("xdp")\nint p({XDP}) {{\n\tu8 w[4];\n\tw[0] = 3; w[1] = 1; w[2] = 4; w[3] = 9;\n'
        "\treturn w[ctx->rx_queue_index & 3];\n}\n"
    )
