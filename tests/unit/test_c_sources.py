# SPDX-License-Identifier: Apache-2.0
"""Rules of bpf_c that a compiler does not check: where headers stand and what they may hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bpfkit.core.compile.source import Source, c_root

ROOT = Path(c_root())
SHARED = ROOT / "include" / "bpfkit"
PROGRAMS = sorted(ROOT.glob("*/*.bpf.c"))
HEADERS = sorted(ROOT.rglob("*.h"))


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _families(header: Path) -> set[str]:
    """The folders of the programs that include ``header``, directly or not."""
    return {
        program.parent.name
        for program in PROGRAMS
        if str(header) in {path for path, _ in Source.find(str(program)).user_includes}
    }


@pytest.mark.parametrize("header", HEADERS, ids=_name)
def test_a_shared_header_has_programs_of_two_families(header: Path) -> None:
    families = _families(header)
    if header.parent != SHARED:
        assert families == {header.parent.name}
    elif header.name not in ("maps.h", "log.h"):  # of the loader: for the programs of users, too
        assert len(families) > 1, f"{header.name} belongs beside its programs: {families}"


@pytest.mark.parametrize("header", HEADERS, ids=_name)
def test_headers_define_no_maps(header: Path) -> None:
    code = re.sub(r"/\*.*?\*/|^#.*?(?<!\\)$", "", header.read_text(), flags=re.S | re.M)
    assert not re.search(r"\b((?!BPF_KFUNC)BPF_[A-Z_]+|BPFKIT_MAP)\((?!name)", code)


@pytest.mark.parametrize("program", PROGRAMS, ids=_name)
def test_the_header_comment_says_hook_context_and_what_may_be_changed(program: Path) -> None:
    """Programs that see packets say what they do to them; others, what they may do."""
    comment = program.read_text().split("*/")[1]
    for word in ("hook", "context", "(?:packets|may)"):
        assert re.search(rf"^ \* {word} +\S", comment, re.M), f"no line that says {word!r}"
    assert "->" in comment or "─▶" in comment or "-->" in comment, "no data path is drawn"


def test_private_headers_are_part_of_the_cache_key() -> None:
    source = Source.find("xdp/xdp_firewall.bpf.c")
    text = (ROOT / "xdp" / "xdp_firewall.h").read_text()
    assert text.encode() in list(source.key_material())
    assert "xdp/xdp_firewall.h" in [name for name, _, _ in source.files]
