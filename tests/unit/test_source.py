# SPDX-License-Identifier: Apache-2.0
"""What is read out of a C source, and how it is put together for BCC."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from bpfkit.core.compile.scan import flatten, mask
from bpfkit.core.compile.source import Source, c_root
from bpfkit.core.errors import CompileError, InputError


def source(text: str, **kw: str) -> Source:
    return Source.from_text(text + "\n", **kw)


def test_c_root_has_the_shared_headers() -> None:
    assert os.path.isfile(os.path.join(c_root(), "include/bpfkit/bpfkit.h"))


def test_find_takes_text_paths_and_names(tmp_path: Path) -> None:
    path = tmp_path / "own.bpf.c"
    path.write_text('SEC("xdp")\nint f(struct xdp_md *x)\n{\n\treturn 1;\n}\n')
    assert Source.find(str(path)).sections == [("f", "xdp", 1)]
    assert Source.find(str(path)).name == "own.bpf.c"
    assert Source.find("int a;\nint b;").path is None
    known = next(Path(c_root()).rglob("*.bpf.c"))
    name = str(known.relative_to(c_root()))
    assert Source.find(name).path == str(known)
    assert Source.find(name).name == name


def test_missing_source_names_the_nearest() -> None:
    known = next(Path(c_root()).rglob("*.bpf.c")).name
    wrong = known.replace(".bpf.c", "x.bpf.c")
    with pytest.raises(InputError) as caught:
        Source.find(wrong)
    assert known in str(caught.value)
    assert caught.value.exit_status == 2


def test_unreadable_sources(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="EISDIR"):
        Source.find(str(tmp_path))
    binary = tmp_path / "b.c"
    binary.write_bytes(b"int\0f")
    with pytest.raises(InputError, match="not a text file"):
        Source.find(str(binary))
    big = tmp_path / "big.c"
    big.write_bytes(b"/" * (5 << 20))
    with pytest.raises(InputError, match="4 MB"):
        Source.find(str(big))


def test_includes_are_followed(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.h").write_text('#include "sub/b.h"\n')
    (tmp_path / "sub/b.h").write_text('#include "c.h"\n#  include <linux/tcp.h> // why\n')
    (tmp_path / "sub/c.h").write_text('#pragma once\n#include "b.h"\n')
    main = tmp_path / "main.bpf.c"
    main.write_text(
        "/* #include <linux/not.h>\n#include <linux/neither.h>\n*/\n"
        "// linux/*.h are not a comment\n"
        '#include <linux/ip.h>\n#include "a.h"\n#include <bpfkit/bpfkit.h>\n'
        'char *s = "/*";\n#include <linux/udp.h>\n//#include <linux/no.h>\n'
    )
    found = Source.find(str(main))
    names = [os.path.basename(path) for path, _ in found.user_includes]
    assert names == ["a.h", "bpfkit.h", "b.h", "c.h"]
    assert found.system_includes == ["linux/ip.h", "linux/udp.h", "linux/tcp.h"]


def test_key_material_changes_with_every_file(tmp_path: Path) -> None:
    header = tmp_path / "a.h"
    header.write_text("#define A 1\n")
    main = tmp_path / "main.c"
    main.write_text('#include "a.h"\n')
    before = list(Source.find(str(main)).key_material())
    header.write_text("#define A 2\n")
    assert list(Source.find(str(main)).key_material()) != before


def test_reading_is_quick() -> None:
    """The warm path does this at every start."""
    name = max(Path(c_root()).rglob("*.bpf.c"), key=lambda p: p.stat().st_size)
    best = 1.0
    for _ in range(5):
        start = time.perf_counter()
        list(Source.find(str(name)).key_material())
        best = min(best, time.perf_counter() - start)
    assert best < 0.005


def test_sections() -> None:
    s = source(
        """
// SEC("xdp") int commented(void)
#define P(x) SEC("tc") int x(void)
const char *text = "SEC(\\"tc\\")";
SEC("socket")
int one(struct __sk_buff *skb) { return 0; }
SEC("cgroup/connect4") __attribute__((used)) int *
two(void *ctx) { return 0; }
static int h(void) { return 0; } SEC("xdp") int three(struct xdp_md *x) { return h(); }
SEC("fentry/tcp_connect")
int BPF_PROG(four, struct sock *sk) { return 0; }
TRACEPOINT_PROBE(sched, sched_switch) { return 0; }
RAW_TRACEPOINT_PROBE(sys_enter) { return 0; }
KFUNC_PROBE(tcp_sendmsg, struct sock *sk) { return 0; }
int kprobe__tcp_connect(struct pt_regs *ctx) { return 0; }
"""
    )
    assert [(name, section) for name, section, _ in s.sections] == [
        ("one", "socket"),
        ("two", "cgroup/connect4"),
        ("three", "xdp"),
        ("four", "fentry/tcp_connect"),
        ("tracepoint__sched__sched_switch", "tracepoint/sched/sched_switch"),
        ("raw_tracepoint__sys_enter", "raw_tp/sys_enter"),
        ("kfunc__tcp_sendmsg", "fentry/tcp_sendmsg"),
        ("kprobe__tcp_connect", "kprobe/tcp_connect"),
    ]
    assert s.sections[0][2] == 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('SEC("socket")\nstatic int f(void *c) { return 0; }', "static"),
        ('SEC("socket")\nint f(void *c);\nSEC("xdp")\nint f(void *c);', "twice"),
        ('struct { int x; } m SEC(".maps");', "libbpf's map syntax"),
        ('int counter SEC(".data") = 1;', "does not belong to a function"),
        ('SEC("socket")\n', "does not belong"),
        ('BPF_TABLE_PINNED("hash", u32, u32, p, 1, "/sys/fs/bpf/p");', "pinned"),
        ("LOAD_CONST(0, a, 1);\nLOAD_CONST(0, b, 1);", "declared twice"),
        ("LOAD_CONST(0, a);", "takes"),
        ("LOAD_CONST(0, a, 0x1ffffffffffffffff);", "64 bits"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(CompileError, match=words) as caught:
        _ = source(text, name="bad.bpf.c").sections
    assert str(caught.value).startswith("bad.bpf.c:")


def test_consts_and_license() -> None:
    s = source(
        "LOAD_CONST(0, a, 3);\nLOAD_CONST( 7 , b , 0x10ULL );\nLOAD_CONST(2, c, -1);\n"
        'LICENSE("Dual BSD/GPL");'
    )
    assert s.consts == {"a": (0, 3), "b": (7, 16), "c": (2, (1 << 64) - 1)}
    assert s.license == b"Dual BSD/GPL"
    assert source('char _license[] SEC("license") = "GPL v2";').license == b"GPL v2"
    assert source("int x;").license is None


def test_mask_keeps_every_position() -> None:
    text = 'a /* x\ny */ "s\\"t" // z\nb'
    code = mask(text)
    assert len(code) == len(text) and code.count("\n") == text.count("\n")
    assert "x" not in code and "z" not in code and "t" not in code


def test_flatten_numbers_every_line(tmp_path: Path) -> None:
    """Each line that reaches the compiler is numbered as it is in its own file."""
    (tmp_path / "h.h").write_text("#pragma once\nstatic int help(int a)\n{\n\treturn a; // h4\n}\n")
    main = tmp_path / "m.bpf.c"
    main.write_text(
        '#include "h.h"\n#include "h.h"\n'
        'char _license[] SEC("license") = "GPL";\n'
        'SEC("socket")\nint f(struct __sk_buff *skb)\n{\n'
        "\tint a = help(1,\n\t\t2); // m8\n\treturn a; // m9\n}\n"
        "static int one(void) { return 1; } // m11\n#define X \\\n\t1 // m13\nint z; // m14\n"
    )
    text = flatten(Source.find(str(main)))
    number, file = 0, ""
    seen = []
    for line in text.split("\n"):
        if line.startswith("#line"):
            parts = line.split()
            number = int(parts[1])
            file = parts[2].strip('"')[0] if len(parts) > 2 else file
            continue
        if "// " in line:
            seen.append((line.rsplit("// ", 1)[1], f"{file}{number}"))
        number += 1
    assert seen and all(said == counted for said, counted in seen)
    assert text.count("pragma") == 0 and "license" not in text
    assert '__attribute__((section(".bpf.fn.f")))' in text
