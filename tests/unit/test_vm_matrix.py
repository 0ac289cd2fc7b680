# SPDX-License-Identifier: Apache-2.0
"""The kernel matrix without a VM: package layouts, what an answer means, tables."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))
import vm_cells  # noqa: E402
import vm_kernels  # noqa: E402
import vm_matrix  # noqa: E402
import vm_warm  # noqa: E402
from vm_cells import FAILED, NOT_RUN, UNSUPPORTED, VERIFIED, Cell  # noqa: E402
from vm_guest import cells as guest  # noqa: E402
from vm_guest.image import VmError  # noqa: E402


def stanza(name: str, version: str, depends: str = "", size: int = 1000) -> str:
    more = f"Depends: {depends}\n" if depends else ""
    return f"Package: {name}\nVersion: {version}\nInstalled-Size: 12\n{more}Size: {size}\n"


OLD = "kmod, linux-base (>= 4.3~), initramfs-tools (>= 0.120+deb8u2) | linux-initramfs-tool"


def parts(release: str, version: str) -> str:
    names = (f"linux-{kind}-{release} (= {version})" for kind in ("base", "binary", "modules"))
    return "dracut | linux-initramfs-tool, " + ", ".join(names)


ARCHIVE = "\n".join(
    [
        stanza("linux-image-5.10.0-30-amd64-unsigned", "5.10.218-1", OLD),
        stanza("linux-image-5.10.0-32-amd64-unsigned", "5.10.223-1", OLD),
        stanza("linux-image-6.1.0-47-amd64", "6.1.170-3", OLD),
        stanza("linux-image-6.1.0-50-amd64-unsigned", "6.1.176-1", OLD),
        stanza("linux-image-6.1.0-50-amd64", "6.1.176-1", OLD),
        stanza("linux-image-6.1.0-50-cloud-amd64", "6.1.176-1", OLD),
        stanza("linux-image-6.1.0-50-rt-amd64", "6.1.176-1", OLD),
        stanza("linux-image-6.12.90+deb12-amd64", "6.12.90-1~bpo12+1", OLD),
        stanza("linux-image-6.12.117+deb13-amd64", "6.12.117-1", OLD),
        stanza(
            "linux-image-6.18.15+deb13-amd64",
            "6.18.15-1~bpo13+1",
            OLD + ", linux-base-6.18.15+deb13-amd64 (= 6.18.15-1~bpo13+1)",
        ),
        stanza(
            "linux-image-7.0.13+deb13-amd64",
            "7.0.13-1~bpo13+1",
            parts("7.0.13+deb13-amd64", "7.0.13-1~bpo13+1"),
        ),
        stanza("linux-binary-7.0.13+deb13-amd64", "7.0.13-1~bpo13+1"),
        stanza("linux-image-7.3-amd64", "7.3~rc7-1~exp1", parts("7.3-amd64", "7.3~rc7-1~exp1")),
        *(
            stanza(f"linux-{kind}-7.3-amd64", "7.3~rc7-1~exp1")
            for kind in ("base", "binary", "modules")
        ),
        stanza(
            "linux-image-7.3.4+deb13-amd64",
            "7.3.4-1~bpo13+1",
            parts("7.3.4+deb13-amd64", "7.3.4-1~bpo13+1"),
        ),
        *(
            stanza(f"linux-{kind}-7.3.4+deb13-amd64", "7.3.4-1~bpo13+1", size=5_000_000)
            for kind in ("base", "binary", "modules")
        ),
    ]
)
PACKAGES = list(vm_kernels.parse_packages(ARCHIVE))


@pytest.mark.parametrize(
    "version, release, names",
    [
        ("5.10", "5.10.0-32-amd64", ["linux-image-5.10.0-32-amd64-unsigned"]),
        ("6.1", "6.1.0-50-amd64", ["linux-image-6.1.0-50-amd64"]),
        ("6.12", "6.12.117+deb13-amd64", ["linux-image-6.12.117+deb13-amd64"]),
        ("6.18", "6.18.15+deb13-amd64", ["linux-image-6.18.15+deb13-amd64"]),
        (
            "7.3",
            "7.3.4+deb13-amd64",
            [f"linux-{p}-7.3.4+deb13-amd64" for p in ("image", "base", "binary", "modules")],
        ),
    ],
)
def test_the_three_package_layouts(version: str, release: str, names: list[str]) -> None:
    """Image with modules; unsigned only; parts. The newest release, no -cloud, no -rt, no rc."""
    found = vm_kernels.choose(PACKAGES, version)
    assert found.release == release
    assert [part.name for part in found.parts] == names
    assert found.missing == ()


def test_a_kernel_that_the_archive_has_in_part_says_which_part_is_missing() -> None:
    with pytest.raises(VmError, match=r"7\.0\.13.* without its .*linux-modules-7\.0\.13\+deb13"):
        vm_kernels.choose(PACKAGES, "7.0")


def test_a_kernel_that_the_archive_does_not_have() -> None:
    with pytest.raises(VmError, match=r"not in the archive.s suites bullseye.*sid"):
        vm_kernels.choose(PACKAGES, "6.16")


def test_the_newest_is_the_newest_that_is_there_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = object.__new__(vm_kernels.Archive)
    archive.suites = vm_kernels.BACKPORTS
    monkeypatch.setattr(vm_kernels.Archive, "update", lambda self: None)
    for packages, version in ((PACKAGES, "7.3"), (PACKAGES[:-8], "6.18")):
        archive._packages = packages
        assert vm_kernels.newest(archive) == version
    archive._packages = []
    with pytest.raises(VmError, match="no kernel in the archive's suites bookworm-backports"):
        vm_kernels.newest(archive)
    for version in ("6.18", "7.3", "6.1"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "packages").touch()
    monkeypatch.setattr(vm_kernels, "KERNELS", tmp_path)
    assert list(vm_kernels.unpacked()) == ["6.1", "6.18", "7.3"]


def test_sizes_are_bytes() -> None:
    found = vm_kernels.choose(PACKAGES, "7.3")
    assert sum(part.size for part in found.parts) == 15_001_000
    assert found.parts[0].installed == 12 * 1024


def test_no_room_is_said_before_anything_is_downloaded(tmp_path: Path) -> None:
    big = vm_kernels.Package("linux-image-9.9.9-amd64", "9.9.9-1", "", 1 << 60, 1 << 60)
    candidate = vm_kernels.Candidate("9.9.9-amd64", (big,), ())
    if not vm_kernels.shutil.which("apt-get"):
        pytest.skip("no apt-get")
    archive = vm_kernels.Archive(tmp_path / "apt")
    with pytest.raises(VmError, match=r"9\.9\.9-amd64 needs \d+ MB in .*, \d+ MB are free"):
        archive.unpack(candidate, tmp_path / "kernels/9.9")
    assert not (tmp_path / "kernels/9.9").exists()


CONFIG = vm_cells.parse_config(
    "CONFIG_BPF=y\nCONFIG_TLS=m\n# CONFIG_FPROBE is not set\n"
    'CONFIG_LSM="landlock,apparmor"\nCONFIG_BPF_LSM=y\n'
)


def test_parse_config() -> None:
    assert CONFIG["CONFIG_BPF"] == "y" and CONFIG["CONFIG_TLS"] == "m"
    assert "CONFIG_FPROBE" not in CONFIG
    assert CONFIG["CONFIG_LSM"] == "landlock,apparmor"


def test_lsm_programs_are_switched_on_where_the_kernel_has_them_but_does_not_list_them() -> None:
    assert vm_matrix.kernel_words(CONFIG) == "lsm=landlock,apparmor,bpf"
    assert vm_matrix.kernel_words({"CONFIG_LSM": "a,bpf", "CONFIG_BPF_LSM": "y"}) == ""
    assert vm_matrix.kernel_words({"CONFIG_LSM": "a"}) == ""


@pytest.mark.parametrize(
    "why, borne_out",
    [
        ("needs CONFIG_FPROBE", True),
        ("a module: CONFIG_TLS is not loaded", True),
        ("needs CONFIG_BPF", False),
        ("not before Linux 6.12", True),
        ("needs Linux 5.13 or newer", False),
        ("no uprobe.multi links (6.6), or a place without code", True),
        ("no multi links (5.18)", False),
        ("does not order them (BPF_F_BEFORE: Linux 6.17; BPF_F_PREORDER: 6.15)", True),
        ("the kernel has them since 5.13", False),
        ("this kernel has no function bpf_x (kfunc)", True),
        ("not verified", False),
    ],
)
def test_a_77_is_held_against_the_kernel_itself(why: str, borne_out: bool) -> None:
    answer = {"status": 77, "seconds": 2.5, "out": "", "err": f"lsm: cannot\n  {why}\n"}
    cell = vm_cells.program_cell(answer, "6.1.0-50-amd64", CONFIG)
    assert cell.state == (UNSUPPORTED if borne_out else FAILED)
    assert why in cell.why and cell.seconds == 2.5


def test_what_other_answers_mean() -> None:
    def cell(status: int, out: str = "", err: str = "") -> Cell:
        answer = {"status": status, "seconds": 300.0, "out": out, "err": err}
        return vm_cells.program_cell(answer, "6.1.0", CONFIG)

    assert cell(0).state == VERIFIED
    assert cell(1, "ok a\nFAILED b is 3\nok c").why == "exit status 1: FAILED b is 3"
    assert cell(124, "ok a").why == "time limit of 300 s; last line: ok a"
    assert cell(125, "", "the kernel died: BUG").why == "exit status 125: the kernel died: BUG"
    assert {cell(n).state for n in (1, 2, 124, 125, -9)} == {FAILED}


def test_map_rows_become_cells() -> None:
    rows = [
        {"type": "hash", "status": "verified", "why": "", "failed": []},
        {"type": "arena", "status": "unsupported", "why": "since Linux 6.9", "failed": []},
        {"type": "queue", "status": "unsupported", "why": "since Linux 4.20", "failed": []},
        {"type": "stack", "status": "failed", "why": "", "failed": ["order is wrong"]},
    ]
    cells = vm_cells.map_cells(rows, "6.1.0", CONFIG)
    assert [cell.state for cell in cells.values()] == [VERIFIED, UNSUPPORTED, FAILED, FAILED]
    assert cells["stack"].why == "order is wrong"


PROGRAMS = {"xdp_lb": ["XDP"], "hooks": ["XDP", "LSM", "SCHED_CLS"], "tc": ["SCHED_CLS"]}


def test_reasons_name_no_place_of_this_machine() -> None:
    said = "kprobe: refused\n  /srv/me/tree-7/bpf_c/trace/x.bpf.c:3: f();\n"
    assert vm_cells.reason(said) == "kprobe: refused bpf_c/trace/x.bpf.c:3: f();"
    assert vm_cells.short(said) == "bpf_c/trace/x.bpf.c:3: f();"


def test_a_type_is_what_its_most_specific_program_says() -> None:
    cells = {
        "xdp_lb": Cell(VERIFIED),
        "hooks": Cell(UNSUPPORTED, "needs CONFIG_BPF_LSM"),
        "tc": Cell(FAILED, "exit status 1"),
    }
    assert vm_cells.type_cell(PROGRAMS, cells, "XDP").state == VERIFIED
    assert vm_cells.type_cell(PROGRAMS, cells, "SCHED_CLS") == Cell(FAILED, "tc: exit status 1")
    assert vm_cells.type_cell(PROGRAMS, cells, "LSM").why == "hooks: needs CONFIG_BPF_LSM"
    assert vm_cells.type_cell(PROGRAMS, {}, "XDP").state == NOT_RUN
    assert vm_cells.type_cell(PROGRAMS, cells, "LIRC_MODE2").why == "no program shows it"


DATA = {
    "programs": PROGRAMS,
    "kernels": {
        "6.1": {
            "release": "6.1.0-50-amd64",
            "programs": {
                "xdp_lb": Cell(VERIFIED)._asdict(),
                "hooks": Cell(UNSUPPORTED, "needs CONFIG_A | b")._asdict(),
            },
            "maps": {"hash": Cell(VERIFIED)._asdict()},
        },
        "7.0": {"why": "not in the archive"},
    },
}


def test_the_page_has_each_table_and_each_reason_once() -> None:
    text = vm_matrix.page(DATA)
    assert text.count("## By ") == 3
    assert "- 7.0: not in the archive" in text
    assert "| `xdp_lb` | ✔ |" in text and "| `hooks` | – 1 |" in text
    assert "1. needs CONFIG_A \\| b" in text
    assert "| `hash` | ✔ |" in text
    assert "| `tc` |   |" in text


def test_the_pages_are_written_from_one_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """README keeps its other text; `info` gets the kernels on which a type was verified."""
    for name in ("PAGE", "README", "FOUND"):
        monkeypatch.setattr(vm_matrix, name, tmp_path / name)
    text = f"before\n{vm_matrix.BEGIN}old\n{vm_matrix.END}after\n"
    (tmp_path / "README").write_text(text)
    for _ in range(2):
        vm_matrix.write_pages(DATA)
    text = (tmp_path / "README").read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert text.count("| `hash` | ✔ |") == 1 and "| `xdp` | ✔ |" in text
    found = json.loads((tmp_path / "FOUND").read_text())
    assert found["kernels"] == {"6.1": "6.1.0-50-amd64"}
    assert found["map type"] == {"hash": ["6.1"]}
    assert found["program type"]["xdp"] == ["6.1"] and found["program type"]["netfilter"] == []


def test_the_small_kernel_runs_what_no_stock_kernel_can_and_comes_last(tmp_path: Path) -> None:
    file = tmp_path / "m.json"
    file.write_text(json.dumps(DATA))
    small = {"release": "6.1.192", "programs": {"lirc": Cell(VERIFIED)._asdict()}, "maps": {}}
    new = {"programs": PROGRAMS | {"lirc": ["LIRC_MODE2"]}, "kernels": {"small": small}}
    data = vm_matrix.merged(file, new)
    assert list(data["kernels"]) == ["6.1", "7.0", "small"]
    assert "| `lirc_mode2` |   | ✔ |" in vm_matrix.overview(data)


def test_text_table() -> None:
    lines = vm_cells.text_table(["6.1", "7.0"], {"xdp": [Cell(VERIFIED), Cell(FAILED, "x")]})
    assert lines[1].split() == ["xdp", "ok", "FAILED"]


def test_results_of_other_runs_are_kept(tmp_path: Path) -> None:
    """A run of one program or kernel changes its cells; another release starts anew."""
    file = tmp_path / "m.json"
    file.write_text(json.dumps(DATA))
    cell = Cell(FAILED, "no")._asdict()
    one = {"release": "6.1.0-50-amd64", "programs": {"tc": cell}, "maps": {}}
    kernels = vm_matrix.merged(file, {"programs": PROGRAMS, "kernels": {"6.1": one}})["kernels"]
    assert set(kernels["6.1"]["programs"]) == {"xdp_lb", "hooks", "tc"}
    assert list(kernels) == ["6.1", "7.0"]
    other = {**one, "release": "6.1.0-51-amd64"}
    kernels = vm_matrix.merged(file, {"programs": PROGRAMS, "kernels": {"6.1": other}})["kernels"]
    assert set(kernels["6.1"]["programs"]) == {"tc"}


def test_guests_run_a_copy_with_the_same_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files' times are part of the compile cache's keys."""
    for part in vm_matrix.PARTS:
        (tmp_path / "top" / part).mkdir(parents=True)
        (tmp_path / "top" / part / "a.py").write_text(part)
    os.utime(tmp_path / "top/bpfkit/a.py", ns=(1, 123456789))
    monkeypatch.setattr(vm_matrix, "TOP", tmp_path / "top")
    monkeypatch.setattr(vm_matrix, "UNPACKED", tmp_path / "vm")
    matrix = object.__new__(vm_matrix.Matrix)
    matrix.freeze()
    (tmp_path / "top/bpfkit/a.py").write_text("edited")
    assert (matrix.tree / "bpfkit/a.py").read_text() == "bpfkit"
    assert (matrix.tree / "bpfkit/a.py").stat().st_mtime_ns == 123456789
    matrix.thaw()
    assert not matrix.tree.exists()


def test_a_guest_command_that_hangs_is_ended_and_the_next_one_runs(tmp_path: Path) -> None:
    """Each answer is a line of its own; the hanging command's children are killed too."""
    child = tmp_path / "child"
    hang = f"sh -c 'sleep 1000 & echo $! >{child}; wait'"
    done = subprocess.run(
        [sys.executable, str(TOOLS / "vm_guest/cells.py"), "3", f"a={hang}", "b=sh -c 'exit 77'"],
        capture_output=True,
        text=True,
        timeout=120,
        env={k: v for k, v in os.environ.items() if k != "BPFKIT_CACHE"},
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(a["name"], a.get("status")) for a in answers] == [
        ("a", None),
        ("a", 124),
        ("b", None),
        ("b", 77),
    ]
    assert not Path(f"/proc/{child.read_text().strip()}/exe").exists()


def test_sections_of_an_elf_file() -> None:
    """Those of this Python, against what the format says of its first bytes."""
    names = b"\0.BTF\0.shstrtab\0"
    body = b"btf!" + names
    heads = struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    heads += struct.pack("<IIQQQQIIQQ", 1, 1, 0, 0, 64, 4, 0, 0, 0, 0)
    heads += struct.pack("<IIQQQQIIQQ", 6, 3, 0, 0, 68, len(names), 0, 0, 0, 0)
    head = bytearray(64)
    head[:6] = b"\x7fELF\x02\x01"
    struct.pack_into("<Q", head, 0x28, 64 + len(body))
    struct.pack_into("<HHH", head, 0x3A, 64, 3, 2)
    found = vm_warm.elf_sections(bytes(head) + body + heads)
    assert found[".BTF"] == b"btf!" and found[".shstrtab"] == names
    with pytest.raises(VmError, match="no 64-bit ELF"):
        vm_warm.elf_sections(b"MZ" + bytes(100))


def test_adopted_entries_are_those_whose_files_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An inode is renumbered in the guest; another size is another file."""
    from bpfkit.core.compile import cache as module

    monkeypatch.setenv("BPFKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "check", lambda value: value)
    header = tmp_path / "a.h"
    header.write_text("x")
    s = header.stat()
    store = module.Cache(str(tmp_path))
    good, bad = "a" * 64, "b" * 64
    deps = [(str(header), s.st_size, s.st_mtime_ns, s.st_ino + 1)]
    store.put(good, {"deps": deps})  # type: ignore[typeddict-item]
    store.put(bad, {"deps": [(str(header), 99, s.st_mtime_ns, 1)]})  # type: ignore[typeddict-item]
    assert store.get(good) is None
    assert guest.adopt(str(tmp_path)) == 1
    assert store.get(good) is not None and store.get(bad) is None
    assert guest.adopt(str(tmp_path)) == 0


def tool(name: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOLS / name), *words],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        timeout=120,
    )


def test_wrong_words_and_missing_programs_are_said(tmp_path: Path) -> None:
    done = tool("vm_matrix.py", "6.2")
    assert done.returncode == 2 and "no version 6.2 in the matrix: 5.10 6.1" in done.stderr
    done = tool("vm_matrix.py", "--program", "xdp_nothing")
    assert done.returncode == 2 and "no program named xdp_nothing" in done.stderr
    file = str(tmp_path / "m.json")
    done = tool("vm_matrix.py", "--json", file, "6.1", PATH=str(tmp_path))
    assert done.returncode == 77 and "apt-get install qemu-system-x86" in done.stderr
    done = tool("vm_kernels.py", "6.1", PATH=str(tmp_path))
    assert done.returncode == 77 and "no apt-get here" in done.stderr
    done = tool("vm_kernels.py", "six")
    assert done.returncode == 2 and "six is no version such as 6.12" in done.stderr
