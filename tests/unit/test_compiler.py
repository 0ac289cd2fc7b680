# SPDX-License-Identifier: Apache-2.0
"""C text to artifact, through the real worker: no privilege, nothing in the kernel."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from struct import iter_unpack, unpack_from
from typing import TYPE_CHECKING

import pytest
from bcctools import no_compiler

from bpfkit.core.compile import compiler, headers
from bpfkit.core.compile.artifact import check
from bpfkit.core.compile.compiler import compile_source
from bpfkit.core.compile.source import Source, c_root
from bpfkit.core.errors import CompileError, UnsupportedError

if TYPE_CHECKING:
    from bpfkit.core.compile.artifact import Artifact

pytestmark = pytest.mark.skipif(bool(no_compiler()), reason=no_compiler())
needs_btf = pytest.mark.skipif(bool(headers.btf_problem()), reason="no kernel BTF")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def environment(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BPFKIT_CACHE", str(cache))
    for name in ("BPFKIT_HEADERS", "BCC_KERNEL_SOURCE", "BPFKIT_BCC_PYTHON"):
        monkeypatch.delenv(name, raising=False)


HEAD = "#include <bpfkit/bpfkit.h>\n#include <bpfkit/maps.h>\n"


def build(text: str, **kw: tuple[str, ...]) -> Artifact:
    artifact = check(compile_source(Source.from_text(HEAD + text, "t.bpf.c"), **kw))
    assert not artifact["diagnostics"]
    return artifact


def program(body: str, section: str = "socket", context: str = "struct __sk_buff *skb") -> str:
    return f'SEC("{section}")\nint f({context})\n{{\n{body}\n}}\n'


def insns(artifact: Artifact, index: int = 0) -> list[tuple[int, int, int, int, int]]:
    """(opcode, destination, source, offset, immediate) of each instruction slot."""
    return [
        (op, regs & 15, regs >> 4, off, imm)
        for op, regs, off, imm in iter_unpack("<BBhi", artifact["progs"][index][1])
    ]


def lines(artifact: Artifact, index: int = 0) -> list[tuple[str, int, str]]:
    """(file, line, text) of the line records."""
    blob = artifact["btf"]
    head, str_off, str_len = unpack_from("<I8xII", blob, 4)
    strings = blob[head + str_off : head + str_off + str_len]

    def string(at: int) -> str:
        return strings[at : strings.index(b"\0", at)].decode()

    size = artifact["progs"][index][7]
    data = artifact["progs"][index][6]
    found = []
    for at in range(0, len(data), size):
        _, file, text, place = unpack_from("<IIII", data, at)
        found.append((string(file), place >> 10, string(text)))
    return found


def test_a_minimal_program() -> None:
    artifact = build(program("\treturn skb->len;"))
    assert artifact["sections"] == [("f", "socket", 3)]
    assert artifact["license"] == b"GPL" and artifact["maps"] == []
    assert insns(artifact)[-1][0] == 0x95


def test_maps_and_their_references() -> None:
    artifact = build(
        "BPF_HASH(first, u32, u64, 64);\nBPF_ARRAY(a_name_of_more_than_fifteen, u64, 4);\n"
        + program(
            "\tu32 k = 1;\n\tint i = 0;\n\tfirst.increment(k);\n"
            "\tu64 *v = a_name_of_more_than_fifteen.lookup(&i);\n\treturn v ? *v : 0;"
        )
    )
    assert [m[:6] for m in artifact["maps"]] == [
        ("first", 1, 4, 8, 64, 0),
        ("a_name_of_more_than_fifteen", 2, 4, 8, 4, 0),
    ]
    assert all(m[7] and m[8] for m in artifact["maps"])  # BTF types of key and value
    code = insns(artifact)
    relocs = artifact["progs"][0][2]
    assert {index for _, index in relocs} == {0, 1}
    for offset, _ in relocs:
        op, _, source, _, imm = code[offset // 8]
        assert (op, source, imm) == (0x18, 1, 0) and code[offset // 8 + 1][4] == 0


MAPS = {
    "BPF_PERCPU_HASH(x, u32, u64, 64);": (5, 4, 8, 64),
    'BPF_TABLE("lru_hash", u32, u64, x, 64);': (9, 4, 8, 64),
    "BPF_PERCPU_ARRAY(x, u64, 4);": (6, 4, 8, 4),
    "struct k { u32 p; u32 a; };\nBPF_LPM_TRIE(x, struct k, u64, 10);": (11, 8, 8, 10),
    "BPF_STACK_TRACE(x, 16);": (7, 4, 1016, 16),
    "BPF_PROG_ARRAY(x, 4);": (3, 4, 4, 4),
    "BPF_CGROUP_ARRAY(x, 2);": (8, 4, 4, 2),
    "BPF_RINGBUF_OUTPUT(x, 8);": (27, 0, 0, 8 * os.sysconf("SC_PAGESIZE")),
    "BPF_QUEUE(x, u64, 8);": (22, 0, 8, 8),
    "BPF_STACK(x, u64, 8);": (23, 0, 8, 8),
    "BPF_DEVMAP(x, 8);": (14, 4, 4, 8),
    "BPF_CPUMAP(x, 2);": (16, 4, 4, 2),
    "BPF_XSKMAP(x, 4);": (17, 4, 4, 4),
    "BPF_SK_STORAGE(x, u64);": (24, 4, 8, 0),
    "BPF_SOCKMAP(x, 4);": (15, 4, 4, 4),
    "BPF_SOCKHASH(x, u32, 4);": (18, 4, 4, 4),
    "BPF_CGROUP_STORAGE(x, u64);": (19, 16, 8, 0),
    "BPFKIT_MAP(0, BPF_MAP_TYPE_BLOOM_FILTER, x, void, u64, 100, 0, 3);": (30, 0, 8, 100),
    "BPFKIT_MAP(0, BPF_MAP_TYPE_DEVMAP_HASH, x, u32, u64, 8, 0, 0);": (25, 4, 8, 8),
    "BPFKIT_MAP(0, BPF_MAP_TYPE_USER_RINGBUF, x, void, void, 8192, 0, 0);": (31, 0, 0, 8192),
    "BPFKIT_MAP(0, 9, x, struct { u8 a[5]; }, u64, 7, BPF_F_NO_COMMON_LRU, 0);": (9, 5, 8, 7),
}


def test_every_kind_of_map() -> None:
    """All in one object: kinds, sizes, order of declaration."""
    names, text = [], HEAD
    own = 0
    for n, declaration in enumerate(MAPS):
        name = f"map_{n}"
        names.append(name)
        one = declaration.replace("(x", f"({name}").replace(" x,", f" {name},")
        if "BPFKIT_MAP(0" in one:
            one = one.replace("BPFKIT_MAP(0", f"BPFKIT_MAP({own}")
            own += 1
        text += one + "\n"
    artifact = compile_source(Source.from_text(text + program("\treturn 1;"), "t.bpf.c"))
    assert [m[0] for m in artifact["maps"]] == names
    assert [m[1:5] for m in artifact["maps"]] == list(MAPS.values())
    assert artifact["maps"][-4][6] == 3  # the bloom filter's hashes, in map_extra
    assert artifact["maps"][-1][5] == 2


def test_map_in_map() -> None:
    artifact = build(
        "BPF_HASH(before, u32, u32, 3);\nBPF_ARRAY(inner, u64, 4);\n"
        'BPF_ARRAY_OF_MAPS(outer, "inner", 4);\nBPF_HASH(after, u32, u32, 3);\n'
        + program(
            "\tint k = 0;\n\tu32 n = 1;\n\tvoid *in = outer.lookup(&k);\n"
            "\tafter.increment(n);\n"
            "\tu64 *v = in ? bpf_map_lookup_elem(in, &k) : 0;\n\treturn v ? *v : 0;"
        )
    )
    names = [m[0] for m in artifact["maps"]]
    assert names == ["inner", "before", "outer", "after"]
    assert artifact["maps"][2][9] == 0 and artifact["maps"][0][9] == -1
    assert {names[i] for _, i in artifact["progs"][0][2]} == {"outer", "after"}


def test_constants_are_marked() -> None:
    artifact = build(
        "LOAD_CONST(0, direction, 2);\nLOAD_CONST(3, port, 0xffffffffffff);\n"
        + program("\treturn direction() == 1 ? (int)port() : 0;")
    )
    assert artifact["consts"] == [("direction", 0, 2), ("port", 3, 0xFFFFFFFFFFFF)]
    relocs = artifact["progs"][0][3]
    assert sorted({index for _, index in relocs}) == [0, 3]
    code = insns(artifact)
    for offset, _ in relocs:
        op, _, source, _, imm = code[offset // 8]
        assert (op, source, imm) == (0x18, 0, 0)


def test_subprograms_and_callbacks_are_linked() -> None:
    artifact = build(
        "BPF_HASH(m, u32, u64, 8);\n"
        "static __noinline int sub(u32 k)\n{\n\tu64 *v = m.lookup(&k);\n\treturn v ? 7 : 8;\n}\n"
        "static int each(u32 i, void *ctx)\n{\n\treturn 0;\n}\n"
        + program("\tbpf_loop(4, each, 0, 0);\n\treturn sub(skb->len) + sub(skb->mark);")
    )
    code = insns(artifact)
    starts = [record[0] for record in iter_unpack("<II", artifact["progs"][0][4])]
    assert len(starts) == 3 and starts[0] == 0
    calls = [i + 1 + insn[4] for i, insn in enumerate(code) if insn[0] == 0x85 and insn[2] == 1]
    assert len(calls) == 2 and set(calls) <= set(starts)
    loads = [i + 1 + insn[4] for i, insn in enumerate(code) if insn[0] == 0x18 and insn[2] == 4]
    assert len(loads) == 1 and loads[0] in starts and loads[0] not in calls
    assert artifact["progs"][0][2]  # the subprogram's map


def test_lines_are_exact(tmp_path: Path) -> None:
    """Every line record quotes the line it names, in whichever file that is."""
    header = tmp_path / "h.h"
    header.write_text("#pragma once\n\nstatic int twice(int a)\n{\n\treturn a *\n\t\t2;\n}\n")
    main = tmp_path / "m.bpf.c"
    main.write_text(
        '#include <bpfkit/bpfkit.h>\n#include "h.h"\nBPF_HASH(m,\n\tu32, u64);\n\n'
        'SEC("socket")\nint f(struct __sk_buff *skb)\n{\n\tu32 k = twice(skb->len);\n'
        "\tm.update(&k,\n\t\t&(u64){\n\t\t\t1\n\t\t});\n\n\tif (skb->mark)\n\t\tm.increment(k);\n"
        '\treturn skb->hash;\n}\n\nSEC("xdp") int g(struct xdp_md *x) { return x->data_end > 9; }\n'
    )
    texts = {"m.bpf.c": main.read_text().split("\n"), "h.h": header.read_text().split("\n")}
    artifact = compile_source(Source.find(str(main)))
    seen = set()
    for index in range(2):
        for file, line, text in lines(artifact, index):
            assert file in texts
            assert texts[file][line - 1].strip() == text
            seen.add(text)
    assert "return skb->hash;" in seen and "m.increment(k);" in seen
    assert 'SEC("xdp") int g(struct xdp_md *x) { return x->data_end > 9; }' in seen


def test_the_license() -> None:
    assert (
        build('LICENSE("Dual BSD/GPL");\n' + program("\treturn 0;"))["license"] == b"Dual BSD/GPL"
    )
    text = 'char _license[] SEC("license") = "GPL v2";\n' + program("\treturn 0;")
    assert build(text)["license"] == b"GPL v2"


def test_cflags() -> None:
    artifact = build(program("\treturn ANSWER;"), cflags=("-DANSWER=42",))
    assert insns(artifact)[0][4] == 42


@needs_btf
def test_kernel_types_come_from_btf() -> None:
    artifact = build(
        "#include <net/sock.h>\n"
        + program(
            "\tstruct sock *sk = (void *)ctx->args[0];\n\treturn sk->sk_family == AF_INET6;",
            "raw_tp/inet_sock_set_state",
            "struct bpf_raw_tracepoint_args *ctx",
        )
    )
    assert artifact["progs"]


@needs_btf
def test_a_type_that_uapi_lacks_is_looked_up_in_btf() -> None:
    text = program("\tstruct sock *sk = 0;\n\treturn sk->sk_mark;")
    assert build(text)["progs"]


def test_dependencies_are_recorded(tmp_path: Path) -> None:
    (tmp_path / "extra.h").write_text("#define EXTRA 1\n")
    artifact = build(
        "#include <linux/ip.h>\n#include <extra.h>\n" + program("\treturn EXTRA;"),
        cflags=(f"-I{tmp_path}",),
    )
    deps = {os.path.basename(path): rest for path, *rest in artifact["deps"]}
    assert {"ip.h", "extra.h"} <= set(deps)
    assert any(name.startswith("libbcc") for name in deps)
    assert any(name.startswith("libLLVM") for name in deps)
    s = os.stat(tmp_path / "extra.h")
    assert deps["extra.h"] == [s.st_size, s.st_mtime_ns, s.st_ino]
    assert "bpfkit.h" not in deps  # in the key already


def test_a_generated_tree_is_a_dependency() -> None:
    """Who could change a file of the tree once must not be believed in the cache afterwards."""
    from bpfkit.core.compile.cache import _changed

    for text in ("", "#include <linux/sched.h>\n"):
        artifact = build(text + program("\treturn 0;"))
        mine = [path for path, *_ in artifact["deps"] if "/headers/" in path]
        assert any(path.endswith("include/linux/kconfig.h") for path in mine)
        assert not _changed(artifact["deps"])
        for path in mine:
            times = os.stat(path)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
            assert _changed(artifact["deps"]) == path
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize(
    ("body", "where", "words"),
    [
        ("\treturn lenn;", "t.bpf.c:8:9", "undeclared identifier 'lenn'"),
        ("\tu32 k = 1\n\treturn k;", "t.bpf.c:8:11", "expected ';'"),
        ("\tu32 k = 1;\n\tm.lokup(&k);\n\treturn 0;", "t.bpf.c:9:4", "no method lokup"),
        ("\tu32 k = 0;\n\treturn !!bpf_map_lookup_elem(&m, &k);", "t.bpf.c:9", "as if it were"),
        ("\tcounter++;\n\treturn 0;", "t.bpf.c:8", "global variable counter"),
        ('\treturn "a longer text"[skb->len & 7];', "t.bpf.c:8", "constant table"),
        ("\treturn frobnicate(skb);", "t.bpf.c:8", "frobnicate"),
        ("\tstruct nowhere n = {};\n\treturn n.x;", "t.bpf.c:8", "incomplete type"),
    ],
)
def test_errors_name_the_users_line(body: str, where: str, words: str) -> None:
    with pytest.raises(CompileError) as caught:
        build("BPF_HASH(m, u32, u64, 8);\nint counter;\n" + program(body))
    text = str(caught.value)
    assert text.startswith(where) and words in text
    assert len(text.split("\n")) <= 3
    assert "Traceback" not in text and "/virtual" not in text


def test_an_error_in_an_include(tmp_path: Path) -> None:
    (tmp_path / "inc.h").write_text("#pragma once\nstatic int q(void)\n{\n\treturn zork;\n}\n")
    main = tmp_path / "m.bpf.c"
    main.write_text('#include "inc.h"\nint f(struct __sk_buff *skb) { return q(); }\n')
    with pytest.raises(CompileError, match=r"^inc\.h:4:9: use of undeclared identifier 'zork'"):
        compile_source(Source.find(str(main)))


def test_pinned_maps_are_refused_without_a_trace(tmp_path: Path) -> None:
    path = f"/sys/fs/bpf/bpfkit-test-{os.getpid()}/deep"
    text = f'#define P BPF_F_TABLE("hash:{path}", u32, u32, p, 10, 0)\nP;\n'
    with pytest.raises(CompileError, match="pinned"):
        build(text + program("\treturn 0;"))
    assert not os.path.exists(os.path.dirname(path))


def test_warnings_are_kept() -> None:
    text = "static int f2(void)\n{\n#warning look here\n\treturn 1;\n}\n" + program(
        "\treturn f2();"
    )
    artifact = compile_source(Source.from_text(HEAD + text, "t.bpf.c"))
    assert artifact["diagnostics"].startswith("t.bpf.c:5:2: look here")


# --- interpreters --------------------------------------------------------------------------------


def script(tmp_path: Path, text: str) -> str:
    path = tmp_path / "python"
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    "text", ["#!/bin/sh\nexit 0\n", "#!/bin/sh\necho broken >&2\nexit 127\n", "#!/bin/sh\nexit 1\n"]
)
def test_a_broken_interpreter_is_named(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = script(tmp_path, text)
    monkeypatch.setenv("BPFKIT_BCC_PYTHON", path)
    with pytest.raises(UnsupportedError) as caught:
        build(program("\treturn 0;"))
    assert path in str(caught.value) and caught.value.exit_status == 77


def test_a_missing_interpreter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BPFKIT_BCC_PYTHON", "/nonexistent/python")
    with pytest.raises(UnsupportedError, match=r"/nonexistent/python.*ENOENT"):
        build(program("\treturn 0;"))


def test_no_bcc_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "interpreters", list)
    with pytest.raises(UnsupportedError, match="BCC is not installed") as caught:
        build(program("\treturn 0;"))
    assert "bcc" in caught.value.hint or "bpfcc" in caught.value.hint


def test_the_next_interpreter_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = next(p for p in compiler.interpreters())
    bad = script(tmp_path, "#!/bin/sh\nexit 3\n")
    monkeypatch.setattr(compiler, "interpreters", lambda: [bad, good])
    assert build(program("\treturn 0;"))["progs"]


def test_the_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BPFKIT_BCC_PYTHON", script(tmp_path, "#!/bin/sh\nexec sleep 60\n"))
    monkeypatch.setenv("BPFKIT_COMPILE_TIMEOUT", "0.3")
    with pytest.raises(CompileError, match="come to an end"):
        build(program("\treturn 0;"))


def test_nothing_is_left_open() -> None:
    before = set(os.listdir("/proc/self/fd"))
    build(program("\treturn 0;"))
    with pytest.raises(CompileError):
        build(program("\treturn x;"))
    assert set(os.listdir("/proc/self/fd")) == before


def test_the_front_end_does_not_import_bcc() -> None:
    build(program("\treturn 0;"))
    assert "bcc" not in sys.modules and "subprocess" not in vars(compiler)


def test_shipped_sources_compile() -> None:
    for path in sorted(Path(c_root()).rglob("*.bpf.c")):
        artifact = check(compile_source(Source.find(str(path))))
        assert artifact["progs"] and artifact["sections"], path
