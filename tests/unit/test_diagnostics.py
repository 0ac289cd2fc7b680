# SPDX-License-Identifier: Apache-2.0
"""Clang's words turned into the user's lines."""

from __future__ import annotations

import pytest

from bpfkit.core.compile import diagnostics
from bpfkit.core.compile.source import Source
from bpfkit.core.errors import CompileError, PrivilegeError

TEXT = """#include <bpfkit/bpfkit.h>
BPF_HASH(m, u32, u64);
SEC("socket")
int f(struct __sk_buff *skb)
{
	return lenn;
}
"""


@pytest.fixture
def source() -> Source:
    return Source.from_text(TEXT, "x.bpf.c")


def test_an_error_in_the_source(source: Source) -> None:
    log = (
        "x.bpf.c:6:9: error: use of undeclared identifier 'lenn'\n"
        "\treturn lenn;\n1 error generated.\n"
    )
    error = diagnostics.explain(source, log, 4)
    assert isinstance(error, CompileError)
    assert str(error) == "x.bpf.c:6:9: use of undeclared identifier 'lenn'\n    return lenn;"
    assert error.diagnostics == [("x.bpf.c", 6, 9, "use of undeclared identifier 'lenn'")]
    assert error.log == log


def test_a_name_below_the_tree_is_the_users_file(source: Source) -> None:
    error = diagnostics.explain(source, "/tree/x.bpf.c:6:9: error: bad\n", 4)
    assert str(error).startswith("x.bpf.c:6:9: bad")


def test_an_error_in_a_system_header_points_at_the_include(source: Source) -> None:
    log = (
        "In file included from x.bpf.c:1:\ninclude/linux/foo.h:3:1: error: unknown type name 'z'\n"
    )
    error = diagnostics.explain(source, log, 4)
    assert str(error).startswith("x.bpf.c:1: unknown type name 'z'\n    #include <bpfkit/bpfkit.h>")


def test_the_backend(source: Source) -> None:
    log = (
        "error: /t/x.bpf.c:6:2: in function f i32 (%struct.__sk_buff*): Looks like the BPF stack "
        "limit of 512 bytes is exceeded. Please move ...\n"
    )
    error = diagnostics.explain(source, log, 1)
    assert str(error).startswith("x.bpf.c:6:2: more than 512 bytes of stack\n")
    assert "BPF_PERCPU_ARRAY" in error.hint
    fatal = "LLVM ERROR: Cannot select: 0x1: i64 = sdiv 0x2, 0x3, x.bpf.c:6:11\n  stack dump\n"
    assert "signed division" in str(diagnostics.explain(source, fatal, -6))


@pytest.mark.parametrize(
    ("text", "why", "hint"),
    [
        ("no member named 'lokup' in 'struct m_table_t'", "map m has no method lokup()", "lookup"),
        ("cannot use map function inside a macro", "inside a macro", "static function"),
        ("cannot call non-static helper function", "non-static", "make the helper static"),
        ("incomplete definition of type 'struct zork'", "struct zork", "Define struct zork"),
        ("redefinition of '_license'", "BCC defines _license itself", "LICENSE"),
        ("A call to built-in function 'memset' is not supported.", "memset", "__builtin_memset"),
        ("A call to built-in function '__adddf3' is not supported.", "no floating point", "Scale"),
    ],
)
def test_rules(source: Source, text: str, why: str, hint: str) -> None:
    error = diagnostics.explain(source, f"x.bpf.c:6:1: error: {text}\n", 4)
    assert why in error.why and hint in error.hint


def test_several_errors_are_counted(source: Source) -> None:
    log = "".join(f"x.bpf.c:{n}:1: error: bad {n}\n" for n in (4, 5, 6))
    error = diagnostics.explain(source, log, 4)
    assert str(error).count("\n") <= 2 and "(2 more errors)" in error.hint


def test_nothing_understood(source: Source) -> None:
    assert "SIGSEGV" in str(diagnostics.explain(source, "", -11))
    assert "odd" in str(diagnostics.explain(source, "something\nodd\n", 4))
    denied = "could not open bpf map: m, error: Operation not permitted\n"
    assert isinstance(diagnostics.explain(source, denied, 4), PrivilegeError)


def test_missing_types() -> None:
    log = (
        "a.c:1:1: error: incomplete definition of type 'struct sock'\n"
        "a.c:2:1: error: unknown type name 'uintptr_t'\n"
        "a.c:3:1: error: no member named 'ip' in 'struct pt_regs'\n"
        "a.c:4:1: error: no member named 'lokup' in 'struct m_table_t'\n"
        "a.c:5:1: error: 'net/x.h' file not found\n"
        "a.c:6:1: warning: unknown type name 'no'\n"
    )
    assert diagnostics.missing_types(log) == ["sock", "uintptr_t", "ip", "net/x.h"]


def test_warnings_are_the_users_only(source: Source) -> None:
    log = "x.bpf.c:6:9: warning: odd\ninclude/linux/y.h:1:1: warning: header\n"
    assert diagnostics.warnings(source, log) == "x.bpf.c:6:9: odd"


def test_find_c_line(source: Source) -> None:
    find = diagnostics.find_c_line
    assert find(source, "; return lenn; @ x.bpf.c:6") == ("x.bpf.c", 6)
    assert find(source, "return  lenn;", 30) == ("x.bpf.c", 6)
    assert find(source, "; nothing of the kind") is None
    twice = Source.from_text("a;\nb;\na;\n", "y.c")
    assert find(twice, "a;", 3) == ("y.c", 3)
    assert find(twice, "a;", 1) == ("y.c", 1)


def test_refused_names_the_line(source: Source) -> None:
    error = diagnostics.refused(source, ("global variable g", "x.bpf.c", 6, "Use a map."), "")
    assert str(error) == "x.bpf.c:6: global variable g\n    return lenn;\nUse a map."
