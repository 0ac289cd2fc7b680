# SPDX-License-Identifier: Apache-2.0
"""The command ``bpfkit``: programs and commands by name, completion, help that shows defaults, and
what the doctor says about this Python."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import pytest

from bpfkit import __version__
from bpfkit.__main__ import commands, main
from bpfkit.app.lifecycle import main as run_program
from bpfkit.app.options import parser_of
from bpfkit.commands import doctor
from bpfkit.commands.catalog import TAGLINE, program, program_names, programs
from bpfkit.core.features.answer import NOT_SUPPORTED
from bpfkit.core.features.programs import _ProgramProbe
from bpfkit.core.kernel.constants import PROG_TYPES

ROOT = Path(__file__).resolve().parents[2]


def bpfkit(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command as pip installs it: a script that calls main()."""
    code = "import sys; sys.argv[0] = 'bpfkit'; from bpfkit.__main__ import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environ},
    )


def test_version() -> None:
    assert bpfkit("--version").stdout == f"bpfkit {__version__}\n"


def test_program_names_are_those_of_the_classes() -> None:
    """Found without importing them."""
    assert program_names() == [cls.name for cls in programs()]


@pytest.mark.parametrize("name", ["sockex3", "xdp_firewall", "sk_lookup", "tc_drop_tcp"])
def test_the_command_runs_programs(name: str) -> None:
    done = bpfkit(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: bpfkit {name} ")
    done = bpfkit(name, "--nonsense")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == f"usage: bpfkit {name} [options], see --help"
    assert done.stderr.splitlines()[1].startswith(f"{name}: ")


def test_an_unknown_word_offers_the_nearest() -> None:
    done = bpfkit("sockex33")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no command and no program named 'sockex33'" in done.stderr
    assert "sockex3" in done.stderr.splitlines()[1]
    done = bpfkit("docter")
    assert "nearest: doctor" in done.stderr


@pytest.mark.parametrize("name", ["../app", "app", "core", "__main__", "net"])
def test_a_support_package_is_no_program(name: str) -> None:
    done = bpfkit(name)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no command and no program" in done.stderr


# ---------------------------------------------------------------- texts


def shown_files() -> list[Path]:
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("tools/*.md")]
    found += [
        *ROOT.glob("bpfkit/**/*.py"),
        *ROOT.glob("bpfkit/**/*.md"),
        *ROOT.glob("bpf_c/**/*.c"),
    ]
    return found


def test_every_shown_command_calls_python3() -> None:
    """Debian and Ubuntu have no `python`."""
    wrong = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in shown_files()
        for line in path.read_text().splitlines()
        if re.search(r"(?<![\w./])python (-m|[\w./]+\.py)", line)
    ]
    assert wrong == []


@pytest.mark.parametrize("cls", programs(), ids=lambda cls: cls.name)
def test_help_shows_the_default_of_each_option_that_takes_a_value(cls) -> None:
    parser = parser_of(cls)
    formatter = parser._get_formatter()
    for action in parser._actions:
        takes_value = bool(action.option_strings) and action.nargs != 0
        if takes_value and type(action.default) in (int, float, str) and action.default:
            assert "default" in formatter._expand_help(action), action.option_strings


def test_the_tagline_is_true() -> None:
    """A program for each program type, or README says which is missing."""
    covered = {kind for cls in programs() for kind in cls.types()}
    missing = [name for name in PROG_TYPES[1:] if f"BPF_PROG_TYPE_{name}" not in covered]
    readme = (ROOT / "README.md").read_text()
    assert missing in ([], ["LIRC_MODE2"])
    if missing:
        assert "a program for LIRC follows" in readme
    line = TAGLINE.partition(". ")[0].removeprefix("The eBPF workbench: ")
    assert line in readme
    assert line in (ROOT / "pyproject.toml").read_text()
    assert "".join(TAGLINE.split()) in "".join(bpfkit("--help").stdout.split())


# ---------------------------------------------------------------- completion

needs_argcomplete = pytest.mark.skipif(
    find_spec("argcomplete") is None, reason="argcomplete is not installed (python3-argcomplete)"
)


def completions(line: str, tmp_path: Path) -> list[str]:
    """What argcomplete's protocol answers for a command line with the cursor at its end."""
    answer = tmp_path / "answer"
    bpfkit(
        _ARGCOMPLETE="1",
        _ARGCOMPLETE_STDOUT_FILENAME=str(answer),
        _ARGCOMPLETE_IFS="\n",
        COMP_LINE=line,
        COMP_POINT=str(len(line)),
        COMP_TYPE="9",
    )
    return [word.strip() for word in answer.read_text().split("\n")]


@needs_argcomplete
def test_completion_knows_programs_commands_options_and_interfaces(tmp_path: Path) -> None:
    first = completions("bpfkit ", tmp_path)
    assert {"doctor", "list", "sockex3", "xdp_lb"} <= set(first)
    assert completions("bpfkit sockex", tmp_path) == ["sockex1", "sockex2", "sockex3"]
    assert "--pcap" in completions("bpfkit sockex3 --p", tmp_path)
    assert "lo" in completions("bpfkit sockex3 -i ", tmp_path)
    assert "--cache" in completions("bpfkit clean --c", tmp_path)


@needs_argcomplete
def test_the_completion_command_prints_what_the_shell_evaluates() -> None:
    done = bpfkit("completion", "bash")
    assert done.returncode == 0
    checked = subprocess.run(
        ["bash", "-c", f"{done.stdout}\ncomplete -p bpfkit"], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
    assert "bpfkit" in checked.stdout


def test_completion_without_argcomplete_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "argcomplete.py").write_text("raise ImportError('no argcomplete')")
    done = bpfkit("completion", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 77
    assert "install" in done.stderr and "argcomplete" in done.stderr


def test_argcomplete_is_imported_only_when_the_shell_asks() -> None:
    done = bpfkit("list", PYTHONPROFILEIMPORTTIME="1")
    assert "argcomplete" not in done.stderr
    assert "bpfkit.commands.catalog" in done.stderr


# ---------------------------------------------------------------- the doctor


@pytest.mark.loads
def test_doctor_says_what_this_python_has(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('a numpy for another machine')")
    done = bpfkit("doctor", "--json", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    rows = {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
    version = ".".join(map(str, sys.version_info[:3]))
    assert rows["python"]["value"] == f"{version} ({sys.executable})"
    assert rows["numpy"]["state"] == "not supported"
    assert "a numpy for another machine" in rows["numpy"]["why"]
    assert "numpy" in rows["numpy"]["hint"]
    assert {"pyroute2", "rich"} <= set(rows)


@pytest.mark.parametrize(
    "executable, prefix, expected",
    [
        ("/usr/bin/python3", "/usr", "apt install python3-rich"),
        ("/home/me/v/bin/python", "/home/me/v", "/home/me/v/bin/pip install rich"),
        ("/opt/py/bin/python3", "/opt/py", "/opt/py/bin/python3 -m pip install rich"),
    ],
)
def test_the_remedy_fits_the_interpreter(
    executable: str, prefix: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setattr(sys, "prefix", prefix)
    monkeypatch.setattr(sys, "base_prefix", "/usr" if "/v" in prefix else prefix)
    assert doctor.remedy("rich").endswith(expected)


@pytest.mark.loads
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: loads programs")
def test_what_loads_and_cannot_attach_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ProgramProbe, "config", lambda self, name: "n")
    for name in ("lwt_in", "sock_ops"):
        found = _ProgramProbe().probe(name)
        assert found.state == NOT_SUPPORTED, found
        assert found.why.startswith("loads, cannot attach: CONFIG_")


@pytest.mark.loads
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: loads programs")
def test_no_answer_works_and_says_that_it_cannot_attach() -> None:
    from bpfkit.core.features import program_types

    for found in program_types():
        for answer in (found, *found.parts):
            assert not (answer.state == "works" and answer.why.startswith("loads, ")), answer


def test_every_program_can_be_named() -> None:
    assert program("sockex3").name == "sockex3"


#: A word each of what `bpfkit info` explains: a program type, a map type, a hook's section.
_SHORT = ["list", "info", "info xdp", "info ringbuf", "info sk_msg", "completion bash"]


@pytest.mark.parametrize(
    "words",
    [["--help"], *([name, "--help"] for name in [*commands(), *program_names()])]
    + [text.split() for text in _SHORT],
    ids=" ".join,
)
def test_a_terminal_that_has_only_ascii_shows_it(
    words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The output refuses every other character; what stands for one is no escape."""
    monkeypatch.setattr(sys, "argv", ["bpfkit", *words])
    with ExitStack() as files:
        for name in ("stdout", "stderr"):
            file = files.enter_context(open(tmp_path / name, "w", encoding="ascii"))
            monkeypatch.setattr(sys, name, file)
        if words[0] in program_names():
            status = run_program(program(words[0]), words[1:])
        else:
            status = main(words)
    text, said = ((tmp_path / name).read_text() for name in ("stdout", "stderr"))
    assert (status, said) == (0, "")
    assert len(text.splitlines()) > 3
    assert re.findall(r"\\(?:x[0-9a-f]{2}|u[0-9a-f]{4})", text) == []
