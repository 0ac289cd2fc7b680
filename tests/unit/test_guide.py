# SPDX-License-Identifier: Apache-2.0
"""``python3 -m bpfkit info``: the five questions, for every program type and map type."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import pytest

from bpfkit.__main__ import main
from bpfkit.commands.catalog import programs
from bpfkit.commands.glossary import GLOSSARY
from bpfkit.commands.guide import CHECKS, MAPS, PROGRAMS, first_stock
from bpfkit.core.features import calls
from bpfkit.core.features import maps as map_features
from bpfkit.core.features import programs as program_features
from bpfkit.core.kernel.constants import ATTACH_TYPES, MAP_TYPES, PROG_TYPES
from bpfkit.core.kernel.sections import SECTIONS, resolve
from bpfkit.core.maps.base import map_class
from bpfkit.core.program import Program

UAPI = [Path("/usr/include/linux/bpf.h"), Path("/usr/include/linux/bpf_perf_event.h")]
# contexts that are not in the UAPI headers of BPF
ELSEWHERE = {"pt_regs", "trace_event_raw_NAME", "bpf_iter__TARGET", "bpf_nf_ctx", "tcp_sock"}
KERNEL_TREES = ("tools/testing/selftests/bpf/", "samples/bpf/", "tools/sched_ext/")
FIVE = ("1 what for", "2 section", "3 may change", "4 examples", "5 runs")


@pytest.fixture(autouse=True)
def _no_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are about the texts; test_info_live.py loads programs."""
    unknown = calls.Calls()
    unknown.why = unknown.why_no_kfuncs = "not tried"
    monkeypatch.setattr(calls, "calls_of", lambda name, progress=None: unknown)
    monkeypatch.setattr(calls, "types_that_may_call", lambda name, progress=None: (["xdp"], {}))


def info(*arguments: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(["info", *arguments])
        except SystemExit as end:
            status = int(end.code or 0)
    return status, out.getvalue(), err.getvalue()


def rows(*arguments: str) -> list[dict[str, object]]:
    status, out, err = info("--json", *arguments)
    assert (status, err) == (0, "")
    return [json.loads(line) for line in out.splitlines()]


def one_type(name: str) -> dict[str, object]:
    found = [row for row in rows(name) if row["what"] == "program type"]
    assert len(found) == 1
    return found[0]


def one_map(name: str) -> dict[str, object]:
    found = [row for row in rows(name) if row["what"] == "map type"]
    assert len(found) == 1
    return found[0]


# ---------------------------------------------------------------- the texts


def test_every_type_has_its_answers() -> None:
    assert list(PROGRAMS) == PROG_TYPES[1:]
    assert list(MAPS) == MAP_TYPES[1:]
    for guide in (*PROGRAMS.values(), *MAPS.values()):
        for field, answer in guide._asdict().items():
            if field == "method":
                continue
            assert answer, (guide, field)
            for text in (answer,) if isinstance(answer, str) else answer:
                assert text == text.strip()
                assert "  " not in text
                assert len(text) <= 240, text
        assert re.fullmatch(r"\d\.\d+", guide.since)


def test_the_versions_are_those_of_the_probes() -> None:
    for name, guide in PROGRAMS.items():
        assert guide.since == program_features._PROGRAMS[name][0], name
    for name, entry in MAPS.items():
        assert entry.since == map_features._MAPS[name][0], name


def test_names_of_structs_exist() -> None:
    headers = [path.read_text() for path in UAPI if path.exists()]
    if len(headers) != len(UAPI):
        pytest.skip("no UAPI headers (linux-libc-dev)")
    text = "\n".join(headers)
    for name, guide in (*PROGRAMS.items(), *MAPS.items()):
        for struct in re.findall(r"struct (\w+)", " ".join(map(str, guide))):
            if struct not in ELSEWHERE and not struct.startswith("bpf_struct_ops_"):
                if struct not in text and struct == "bpf_lpm_trie_key_u8":
                    continue  # 6.8; struct bpf_lpm_trie_key before
                if struct not in text and struct == "bpf_insn_array_value":
                    continue  # 6.19
                assert re.search(rf"\bstruct {struct} {{", text), (name, struct)


def test_constants_exist() -> None:
    if not UAPI[0].exists():
        pytest.skip("no UAPI headers (linux-libc-dev)")
    text = UAPI[0].read_text()
    ours = ("XDP_", "SK_PASS", "SK_DROP", "BPF_OK", "BPF_DROP", "BPF_REDIRECT", "BPF_LWT_REROUTE")
    for guide in PROGRAMS.values():
        for name, number in re.findall(r"\b([A-Z][A-Z0-9_]+) \((-?\d+)", guide.returns):
            if name.startswith(ours):
                found = re.search(rf"\b{name}( = (\d+))?,", text)
                assert found, name
                if found[2]:
                    assert found[2] == number, name
    known = {"XDP_ABORTED": 0, "XDP_DROP": 1, "XDP_PASS": 2, "XDP_TX": 3, "XDP_REDIRECT": 4}
    said = dict(re.findall(r"\b(XDP_[A-Z]+) \((\d)\)", PROGRAMS["XDP"].returns))
    assert said == {name: str(number) for name, number in known.items()}


def test_helpers_exist() -> None:
    from bpfkit.core.kernel.helpers import HELPERS, find_helper

    # functions of the kernel that are not helpers by number
    kfuncs = {"bpf_sock_addr_set_sun_path", "bpf_arena_alloc_pages", "bpf_dynptr_from_skb"}
    assert HELPERS
    for guide in (*PROGRAMS.values(), *MAPS.values()):
        text = " ".join(v for k, v in guide._asdict().items() if isinstance(v, str) and k != "runs")
        text = re.sub(r"struct \w+", "", text)
        for name in re.findall(r"\bbpf_[a-z0-9_]+\b", text):
            if name in kfuncs or name in ("bpf_test_finish", "bpf_lsm_"):
                continue
            assert find_helper(name.removeprefix("bpf_")) is not None, name


def test_the_methods_exist() -> None:
    for name, guide in PROGRAMS.items():
        if guide.method:
            assert callable(getattr(Program, guide.method)), name


def test_the_classes_are_those_that_open_the_map() -> None:
    for name, guide in MAPS.items():
        assert guide.handled_by == map_class(MAP_TYPES.index(name)).__name__


def test_examples_of_the_kernel() -> None:
    for guide in PROGRAMS.values():
        for path in guide.examples:
            assert path.startswith(KERNEL_TREES)
            assert path.endswith(".c")


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize("name", PROG_TYPES[1:])
def test_info_about_a_program_type(name: str) -> None:
    row = one_type(f"BPF_PROG_TYPE_{name}")
    number = PROG_TYPES.index(name)
    assert (row["name"], row["number"]) == (name.lower(), number)
    sections = row["sections"]
    assert isinstance(sections, list)
    said = [section["section"] for section in sections]
    assert said == [known for known, entry in SECTIONS.items() if entry[0] == number]
    assert said
    for section in sections:
        text = section["section"] + ("/x" if section["target"] else "")
        meant = resolve(text)
        assert meant.prog_type == number
        if section["attach_type"]:
            attach = ATTACH_TYPES[meant.expected_attach_type]
            assert section["attach_type"] == f"BPF_{attach}"
        assert section["sleepable"] == bool(meant.prog_flags & 16)
    known_programs = {cls.name: cls for cls in programs()}
    for example in row["programs"]:  # type: ignore[attr-defined]
        assert f"BPF_PROG_TYPE_{name}" in known_programs[example].types()
    status, out, err = info(f"BPF_PROG_TYPE_{name}")
    assert (status, err) == (0, "")
    for label in FIVE:
        assert f"\n{label}  " in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("name", MAP_TYPES[1:])
def test_info_about_a_map_type(name: str) -> None:
    row = one_map(f"BPF_MAP_TYPE_{name}")
    assert (row["name"], row["number"]) == (name.lower(), MAP_TYPES.index(name))
    assert {"purpose", "key", "value", "operations", "since", "handled_by"} <= set(row)
    assert one_map(name.lower()) == row
    status, out, err = info(f"BPF_MAP_TYPE_{name}")
    assert (status, err) == (0, "")
    for label in ("what for", "key", "value", "user space", "since", "in bpfkit"):
        assert f"\n{label} " in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_name_leads_to_its_type(section: str) -> None:
    names = {cls.name for cls in programs()}
    if section in names:
        pytest.skip("a program has this name")
    assert one_type(section)["number"] == SECTIONS[section][0]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("BPF_PROG_TYPE_XDP", "xdp"),
        ("Sched-Cls", "sched_cls"),
        ("cgroup_skb", "cgroup_skb"),
        ("tp_btf", "tracing"),
        ("tp/sched/sched_switch", "tracepoint"),
        ('SEC("kprobe/tcp_connect")', "kprobe"),
        ("BPF_CGROUP_INET4_CONNECT", "cgroup_sock_addr"),
        ("BPF_XDP_DEVMAP", "xdp"),
        ("BPF_TRACE_ITER", "tracing"),
    ],
)
def test_other_names_of_types(name: str, kind: str) -> None:
    if name not in {cls.name for cls in programs()}:
        assert one_type(name)["name"] == kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("HashMap", "hash"),
        ("LruHashMap", "lru_hash"),
        ("LpmTrie", "lpm_trie"),
        ("RingBuf", "ringbuf"),
    ],
)
def test_other_names_of_maps(name: str, kind: str) -> None:
    assert one_map(name)["name"] == kind


def test_a_name_of_both_shows_both() -> None:
    whats = [row["what"] for row in rows("struct_ops")]
    assert whats == ["term", "program type", "map type"]


def test_a_program_shows_the_answers_of_its_types() -> None:
    (row,) = rows("sockex3")
    assert row["what"] == "program"
    assert [answer["name"] for answer in row["answers"]] == ["socket_filter"]  # type: ignore[attr-defined]
    assert "sockex3" in one_type("socket_filter")["programs"]  # type: ignore[operator]
    status, out, _ = info("sockex3")
    assert status == 0
    assert [label for label in FIVE if f"\n{label}  " not in out] == []
    assert 'SEC("socket")' in out
    assert "PERCPU_HASH" in out


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("sockex4", "sockex3"),
        ("cgroup_skbb", "cgroup_skb"),
        ("BPF_PROG_TYPE_XPD", "xdp"),
        ("BPF_MAP_TYPE_LPM_TREE", "lpm_trie"),
        ("unspec", "perf_event"),
        ("", ""),
        ("/", ""),
        ("map", ""),
        ("bpf_redirect_mapp", "bpf_redirect_map"),
        ("kprobe.mult", "kprobe.multi"),
        ("qqqqqqqq", "list"),
    ],
)
def test_unknown_names(name: str, nearest: str) -> None:
    status, out, err = info(name)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert f"no program named {name!r}" in err
    if name != "unspec":
        assert nearest in err


def test_without_a_name_there_is_an_overview() -> None:
    """Every type and word once, within 80 columns; as JSON a row for each."""
    status, out, err = info()
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    said = re.findall(r"[\w. ]+", out)
    for name in (*PROG_TYPES[1:], *MAP_TYPES[1:]):
        assert name.lower() in {word.strip() for word in said}, name
    listed = [(row["what"], row["name"]) for row in rows()]
    assert len(listed) == len(set(listed)) == 32 + len(MAP_TYPES) - 1 + len(GLOSSARY)


def test_the_glossary_has_a_paragraph_for_each_word() -> None:
    status, out, err = info("--glossary")
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    words = {
        "kprobe",
        "fentry",
        "tracepoint",
        "raw_tp",
        "tp_btf",
        "uprobe",
        "usdt",
        "clsact",
        "tcx",
    }
    assert words | {"XDP", "sockops"} <= set(GLOSSARY)
    for word, (kind, text) in GLOSSARY.items():
        assert f"\n{word}\n  " in f"\n{out}"
        assert not kind or kind in PROG_TYPES
        assert text.endswith(".")
    assert info("--glossary", "xdp")[0] == 2


def test_a_word_of_the_glossary_comes_before_the_type_it_belongs_to() -> None:
    whats = [(row["what"], row["name"]) for row in rows("tcx")]
    assert whats == [("term", "tcx"), ("program type", "sched_cls")]
    assert [row["what"] for row in rows("clsact")] == ["term"]


def test_a_helper_has_a_row_with_its_number() -> None:
    (row,) = rows("bpf_redirect_map")
    assert (row["what"], row["number"], row["types"]) == ("helper", 51, ["xdp"])
    assert "helper 51" in info("redirect_map")[1]


def test_the_check_of_a_type_is_a_program_that_has_it() -> None:
    known = {cls.name: cls for cls in programs()}
    assert sorted(CHECKS) == sorted(PROG_TYPES[1:])
    for kind, (program, _) in CHECKS.items():
        if program in known:
            assert f"BPF_PROG_TYPE_{kind}" in known[program].types()
        else:
            assert one_type(f"BPF_PROG_TYPE_{kind}")["check"] is None


@pytest.mark.parametrize(
    ("since", "stock"),
    [
        ("3.19", "5.10"),
        ("5.11", "6.1"),
        ("6.1", "6.1"),
        ("6.9", "6.12"),
        ("7.2", "7.2"),
        ("9.0", ""),
    ],
)
def test_the_first_stock_kernel_is_the_first_that_is_new_enough(since: str, stock: str) -> None:
    assert first_stock(since).partition(" ")[0] == stock
