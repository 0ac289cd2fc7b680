# SPDX-License-Identifier: Apache-2.0
"""Which header tree a source gets, and that trees on disk are not trusted blindly."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from bpfkit.core.compile import compiler, headers
from bpfkit.core.compile.headertext import macros_only
from bpfkit.core.compile.source import Source
from bpfkit.core.compile.vmlinux import Types
from bpfkit.core.errors import CompileError, InputError, UnsupportedError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BPFKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BPFKIT_HEADERS", raising=False)
    monkeypatch.delenv("BCC_KERNEL_SOURCE", raising=False)


def names(text: str, cflags: tuple[str, ...] = ()) -> list[str]:
    def ask(_: dict[str, Any]) -> dict[str, Any]:
        raise AssertionError("not needed to choose")

    return [r.name for r in headers.routes(Source.from_text(text + "\n"), cflags, ask)]


needs_uapi = pytest.mark.skipif(bool(headers.uapi_problem()), reason="no linux-libc-dev")
needs_btf = pytest.mark.skipif(bool(headers.btf_problem()), reason="no kernel BTF")


@needs_uapi
def test_uapi_first() -> None:
    assert names("#include <linux/ip.h>\n#include <uapi/linux/tcp.h>")[0] == "uapi"
    assert names("int x;")[0] == "uapi"


@needs_uapi
@needs_btf
def test_kernel_internal_headers_take_btf() -> None:
    assert names("#include <net/sock.h>")[:2] == ["btf-trimmed", "btf"]


@needs_uapi
def test_conditional_includes_do_not_decide() -> None:
    assert names("#ifdef OLD\n#include <net/sock.h>\n#endif")[0] == "uapi"


def test_include_directories_count(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/own.h").write_text("")
    if not headers.uapi_problem():
        assert names("#include <mine/own.h>", (f"-I{tmp_path}",))[0] == "uapi"
        assert names("#include <mine/own.h>", ("-I", str(tmp_path)))[0] == "uapi"


@needs_uapi
@pytest.mark.parametrize(
    ("include", "words"),
    [
        ("<linux/if_eth.h>", "linux/if_ether.h"),
        ("<net/sok.h>", "net/sock.h"),
        ("<bpfkit/bpfki.h>", "bpfkit/bpfkit.h"),
        ('"nowhere.h"', "file not found"),
        ("<bpf/bpf_helpers.h>", "not for BCC"),
    ],
)
def test_typing_errors(include: str, words: str) -> None:
    with pytest.raises(CompileError, match=words):
        names(f"int a;\n#include {include}")


def test_without_btf_the_reasons_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "_BTF", "/nonexistent/btf")
    monkeypatch.setattr(headers, "_modules", lambda: (None, "no kernel headers in /lib/modules"))
    with pytest.raises(UnsupportedError) as caught:
        names("#include <net/sock.h>")
    text = str(caught.value)
    assert "net/sock.h" in text and "CONFIG_DEBUG_INFO_BTF" in text and "/lib/modules" in text
    assert caught.value.exit_status == 77
    if not headers.uapi_problem():
        assert names("#include <linux/ip.h>") == ["uapi"]


def test_without_anything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(headers, "_UAPI", str(tmp_path))
    monkeypatch.setattr(headers, "_BTF", "/nonexistent/btf")
    monkeypatch.setattr(headers, "_modules", lambda: (None, "none"))
    with pytest.raises(UnsupportedError, match="linux-libc-dev"):
        names("#include <linux/ip.h>")


def test_headers_of_another_kernel_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tree = tmp_path / "build/include/generated"
    tree.mkdir(parents=True)
    (tree / "utsrelease.h").write_text('#define UTS_RELEASE "1.2.3-other"\n')
    real = os.path.isdir
    release = os.uname().release

    def moved(path: str) -> str:
        return str(path).replace(f"/lib/modules/{release}", str(tmp_path))

    monkeypatch.setattr(headers.os.path, "isdir", lambda p: real(moved(p)))
    read = headers._read
    monkeypatch.setattr(headers, "_read", lambda p: read(moved(p)))
    tree_found, why = headers._modules()
    assert tree_found is None and "1.2.3-other" in why
    (tree / "utsrelease.h").write_text(f'#define UTS_RELEASE "{release}"\n')
    tree_found, _ = headers._modules()
    assert tree_found is not None and tree_found.env == {}


def test_override(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BPFKIT_HEADERS", str(tmp_path))
    with pytest.raises(InputError, match=r"kconfig\.h"):
        names("int x;")
    (tmp_path / "include/linux").mkdir(parents=True)
    (tmp_path / "include/linux/kconfig.h").write_text("")
    assert names("#include <net/sock.h>") == ["override"]


def test_describe() -> None:
    routes = {name: (ok, why) for name, ok, why in headers.describe()}
    assert {"uapi", "btf", "modules"} <= set(routes)
    assert all(why for ok, why in routes.values() if not ok)


def test_a_tree_is_made_once_and_kept(tmp_path: Path) -> None:
    made = []

    def write(root: str) -> None:
        made.append(root)
        headers._write(root, {"linux/kconfig.h": "x\n"})

    one = headers._kept("t", "1", write)
    two = headers._kept("t", "1", write)
    assert one.path == two.path and len(made) == 1 and not one.temporary
    assert os.stat(tmp_path / "cache/headers").st_mode & 0o777 == 0o700
    assert sorted(os.listdir(tmp_path / "cache/headers")) == ["t-1"]


def test_a_tree_that_others_may_write_is_not_used(tmp_path: Path) -> None:
    def write(root: str) -> None:
        headers._write(root, {"linux/kconfig.h": "good\n"})

    tree = headers._kept("t", "1", write)
    Path(tree.path, "include/linux/kconfig.h").write_text("bad\n")
    os.chmod(tree.path, 0o777)
    again = headers._kept("t", "1", write)
    assert again.path != tree.path
    assert Path(again.path, "include/linux/kconfig.h").read_text() == "good\n"
    again.close()
    assert not os.path.exists(again.path)


def test_without_a_cache_a_tree_lasts_for_one_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BPFKIT_CACHE", "/proc/nothing")
    tree = headers._kept("t", "1", lambda root: headers._write(root, {"a.h": ""}))
    assert os.path.isdir(tree.path) and tree.temporary
    tree.close()
    assert not os.path.exists(tree.path)


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def write(root: str) -> None:
        raise UnsupportedError("no")

    with pytest.raises(UnsupportedError):
        headers._kept("t", "1", write)
    assert os.listdir(tmp_path / "cache/headers") == []


def test_trimming() -> None:
    types = Types.of(
        """
#ifndef __VMLINUX_H__
typedef unsigned int __u32;

enum kind {
	KIND_A = 0,
	KIND_B = 1,
};

struct leaf {
	__u32 x;
};

struct big {
	struct leaf in;
	struct other *follow;
	struct far *ignored;
};

struct other {
	enum kind kind;
};

struct far {
	__u32 unused;
};
"""
    )
    text = Types.load(types.dump()).trim({"big", "follow"}, set())
    assert "struct leaf {" in text and "struct other {" in text and "enum kind {" in text
    assert "struct far;" in text and "struct far {" not in text
    assert text.index("struct leaf {") < text.index("struct big {")
    assert "KIND_B" in types.trim({"KIND_A"}, set())
    assert "struct leaf {" not in types.trim({"big"}, {"leaf"})


def test_macros_only() -> None:
    text = macros_only("/* a\n * #define NO */\n#define A 1\\\n\t+ 2\nstruct s { int x; };\n")
    assert "#define A 1\\\n\t+ 2" in text and "struct" not in text and "NO" not in text


def test_with_btf_but_without_the_api_headers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Types would come from BTF, but no macros: the package is named, and nothing breaks down."""
    monkeypatch.setattr(headers, "_UAPI", str(tmp_path))
    monkeypatch.setattr(headers, "btf_problem", lambda: "")
    monkeypatch.setattr(headers, "_modules", lambda: (None, "none"))
    with pytest.raises(UnsupportedError, match="linux-libc-dev") as caught:
        names("#include <uapi/linux/if_packet.h>")
    assert "no user-space API header" not in str(caught.value)
    assert caught.value.exit_status == 77


@needs_uapi
def test_a_kernel_struct_without_btf_says_that_btf_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(headers, "btf_problem", lambda: "the kernel has no BTF")
    monkeypatch.setattr(headers, "_modules", lambda: (None, "no headers of this kernel"))
    monkeypatch.setattr(compiler, "_kernel_knows", bool)
    text = (
        "#include <bpfkit/bpfkit.h>\n#include <linux/sched.h>\n"
        'SEC("raw_tp/sched_switch")\n'
        "int x(struct bpf_raw_tracepoint_args *ctx)\n{\n"
        "\treturn ((struct task_struct *)ctx->args[1])->pid;\n}\n"
    )
    with pytest.raises(CompileError) as caught:
        compiler.compile_source(Source.from_text(text))
    assert "task_struct" in str(caught.value)
    assert "the kernel has no BTF; no headers of this kernel" in caught.value.hint
