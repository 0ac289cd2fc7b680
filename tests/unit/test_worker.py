# SPDX-License-Identifier: Apache-2.0
"""The worker process itself: no privilege, no bpf(2), and the ways around its hooks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bcctools import no_compiler

from bpfkit.core.compile import compiler, worker
from bpfkit.core.compile.compiler import compile_source
from bpfkit.core.compile.source import Source
from bpfkit.core.errors import CompileError

pytestmark = pytest.mark.skipif(bool(no_compiler()), reason=no_compiler())

TEXT = """#include <bpfkit/bpfkit.h>
BPF_HASH(m, u32, u64, 8);
LOAD_CONST(0, c, 1);
SEC("socket")
int f(struct __sk_buff *skb)
{
	u32 k = c();
	m.increment(k);
	return 0;
}
"""


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BPFKIT_CACHE", str(tmp_path / "cache"))
    for name in ("BPFKIT_WORKER_NOHOOK", "BPFKIT_WORKER_NOELF", "BPFKIT_BCC_PYTHON"):
        monkeypatch.delenv(name, raising=False)


def source() -> Source:
    return Source.from_text(TEXT, "w.bpf.c")


def test_it_stands_alone() -> None:
    """Isolated mode, standard library only, no bpfkit and no bcc."""
    text = Path(worker.__file__).read_text()
    imports = [
        line.split()[1] for line in text.split("\n") if line.startswith(("import ", "from "))
    ]
    assert set(imports) <= {"__future__", "ctypes", "marshal", "os", "sys", "struct"}


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_it_makes_no_bpf_call(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    code = (
        "from bpfkit.core.compile.source import Source\n"
        "from bpfkit.core.compile.compiler import compile_source\n"
        f"compile_source(Source.from_text({TEXT!r}, 'w.bpf.c'))\n"
    )
    root = Path(worker.__file__).parents[3]
    subprocess.run(
        ["strace", "-f", "-e", "trace=bpf", "-o", str(trace), sys.executable, "-c", code],
        check=True,
        cwd=root,
    )
    calls = [line for line in trace.read_text().split("\n") if "bpf(" in line]
    assert not calls


@pytest.mark.skipif(os.geteuid() != 0, reason="dropping privileges takes root")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")
def test_it_needs_no_privilege(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from bpfkit.core.compile.source import Source\n"
        "from bpfkit.core.compile.compiler import compile_source\n"
        f"a = compile_source(Source.from_text({TEXT!r}, 'w.bpf.c'))\n"
        "print(len(a['maps']), len(a['progs']))\n"
    )
    root = Path(worker.__file__).parents[3]
    done = subprocess.run(
        [
            "setpriv",
            "--reuid=65534",
            "--clear-groups",
            "/usr/bin/python3",
            "-B",
            "-c",
            code,
            str(root),
        ],
        capture_output=True,
        text=True,
        env={
            "PATH": os.environ["PATH"],
            "BPFKIT_CACHE": "/nonexistent/cache",
            "HOME": "/nonexistent",
        },
        cwd="/",
    )
    assert done.stdout.strip() == "1 1", done.stderr


def test_without_llvms_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """A libbcc with LLVM inside: what BCC hands out, with what its own load call carries."""
    linked = compile_source(source())
    monkeypatch.setenv("BPFKIT_WORKER_NOELF", "1")
    plain = compile_source(source())
    assert plain["progs"][0][:4] == linked["progs"][0][:4]
    assert plain["maps"] == linked["maps"]
    assert plain["progs"][0][4] and plain["progs"][0][6] and plain["btf"]


def test_without_llvms_object_globals_are_still_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BPFKIT_WORKER_NOELF", "1")
    text = "int total;\n" + TEXT.replace("return 0;", "return total++;")
    with pytest.raises(CompileError, match="global variable"):
        compile_source(Source.from_text(text, "w.bpf.c"))
    sub = TEXT.replace(
        'SEC("socket")',
        "static __noinline int h(int a)\n{\n"
        '\tasm volatile("" : "+r"(a));\n\treturn a;\n}\nSEC("socket")',
    )
    with pytest.raises(CompileError, match="subprograms"):
        compile_source(Source.from_text(sub.replace("return 0;", "return h(skb->len);"), "w.bpf.c"))


@pytest.mark.loads
@pytest.mark.skipif(os.geteuid() != 0, reason="without hooks BCC makes its maps: takes root")
def test_without_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    hooked = compile_source(source())
    monkeypatch.setenv("BPFKIT_WORKER_NOHOOK", "1")
    plain = compile_source(source())
    assert plain["maps"] == hooked["maps"]
    assert plain["progs"][0][:4] == hooked["progs"][0][:4]
    assert plain["btf"] and plain["progs"][0][6]


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    """Without a request (the front end is gone) it does nothing."""
    done = subprocess.run(
        [compiler.interpreters()[-1], "-I", str(Path(worker.__file__))],
        input=b"",
        capture_output=True,
    )
    assert done.returncode == 1 and not done.stdout


def test_sizes_of_types() -> None:
    """BTF sizes through typedefs, arrays and pointers (a hand-made blob)."""
    from struct import pack

    types = b"".join(
        [
            pack("<IIII", 1, 1 << 24, 4, 32),  # 1: int
            pack("<III", 0, 2 << 24, 1),  # 2: int *
            pack("<IIIIII", 0, 3 << 24, 0, 1, 1, 5),  # 3: int[5]
            pack("<III", 1, 8 << 24, 3),  # 4: typedef of it
            pack("<IIIIII", 1, 4 << 24 | 1, 12, 1, 1, 0),  # 5: struct of 12
            pack("<IIII", 1, 14 << 24, 1, 1),  # 6: variable
            pack("<III", 1, 12 << 24 | 1, 0),  # 7: global function
        ]
    )
    strings = b"\0x\0"
    blob = pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    btf = worker.Btf(blob + types + strings, "<")
    assert [btf.size_of(n) for n in range(6)] == [0, 4, 8, 20, 20, 12]
    assert btf.add("C line") == 3 and btf.add("C line") == 3 and btf.string(3) == "C line"
    out = btf.blob()
    kinds = [out[24 + at + 7] & 31 for at in (92 - 16 + 0,)]
    assert kinds and b"C line\0" in out
