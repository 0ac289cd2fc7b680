# SPDX-License-Identifier: Apache-2.0
"""%%bpf in an IPython shell: what a cell makes, what is closed, which lines errors name.

The kernel is the judge of what exists: ids of programs that bpf(2) no longer knows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from bpfkit.core.kernel import syscall

pytest.importorskip("IPython", reason="IPython is not installed (python3-ipykernel)")

CELL = """#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>

BPF_HASH(lengths, u32, u64, 4096);

SEC("xdp")
int count(struct xdp_md *ctx)
{
	u32 length = ctx->data_end - ctx->data;

	lengths.increment(length);
	return VERDICT;
}
"""


@pytest.fixture
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    os.environ.setdefault("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
    config = Config()
    config.HistoryManager.enabled = False
    config.HistoryManager.hist_file = ":memory:"
    made = InteractiveShell.instance(config=config)
    made.run_line_magic("load_ext", "bpfkit.notebook")
    yield made
    made.run_line_magic("unload_ext", "bpfkit.notebook")
    made.user_ns.clear()
    made.displayhook.flush()
    InteractiveShell.clear_instance()


def ids() -> set[int]:
    """Ids of the programs in the kernel."""
    found, number = set(), 0
    while (number := syscall.next_id(syscall.PROG_GET_NEXT_ID, number)) is not None:
        found.add(number)
    return found


def test_a_cells_programs_and_maps_become_variables(shell, capsys):
    shell.run_cell_magic("bpf", "counter -D VERDICT=XDP_DROP", CELL)
    space = shell.user_ns
    assert space["count"].run(bytes(100), repeat=3).verdict == "XDP_DROP"
    assert dict(space["lengths"].items()) == {100: 3}
    assert space["counter"].programs["count"] is space["count"]
    assert "lengths" in capsys.readouterr().out


def test_runs_are_counted_while_the_extension_is_loaded(shell):
    shell.run_cell_magic("bpf", "-D VERDICT=XDP_PASS", CELL)
    program = shell.user_ns["count"]
    program.run(bytes(100), repeat=10)
    assert syscall.prog_info(program.fd)["run_cnt"] == 10
    assert "runs" in program._repr_html_()


def test_a_cell_that_runs_again_closes_what_it_made(shell):
    shell.run_cell_magic("bpf", "one -D VERDICT=XDP_PASS", CELL)
    first = shell.user_ns["count"].id
    shell.run_cell_magic("bpf", "one -D VERDICT=XDP_DROP", CELL)
    second = shell.user_ns["count"].id
    assert second in ids()
    assert first not in ids()


def test_cells_of_different_names_live_beside_each_other(shell):
    shell.run_cell_magic("bpf", "one -D VERDICT=XDP_PASS", CELL)
    other = CELL.replace("count", "other").replace("lengths", "sizes")
    shell.run_cell_magic("bpf", "two -D VERDICT=XDP_PASS", other)
    assert {shell.user_ns["count"].id, shell.user_ns["other"].id} <= ids()


def test_close_takes_the_variables_with_it(shell):
    shell.run_cell_magic("bpf", "one -D VERDICT=XDP_PASS", CELL)
    number = shell.user_ns["count"].id
    assert "one" in repr(shell.run_line_magic("bpf_ls", ""))
    shell.run_line_magic("bpf_close", "one")
    assert number not in ids()
    assert not {"one", "count", "lengths"} & set(shell.user_ns)
    assert "No cell" in repr(shell.run_line_magic("bpf_ls", ""))


def test_compile_errors_name_the_cells_own_line(shell):
    from bpfkit import BpfkitError

    with pytest.raises(BpfkitError) as error:
        shell.run_cell_magic("bpf", "", CELL.replace("return VERDICT", "return nonsense"))
    # Line 1 is the magic's own.
    assert ":13:" in str(error.value)
    assert "nonsense" in str(error.value)


def test_verifier_errors_name_the_cells_own_line(shell):
    from bpfkit.core.errors import VerifierError

    bad = CELL.replace("return VERDICT", "return *(char *)(long)ctx->data")
    with pytest.raises(VerifierError) as error:
        shell.run_cell_magic("bpf", "", bad)
    assert ":13: return *(char *)" in str(error.value)
    assert "count" not in shell.user_ns


@pytest.mark.parametrize(
    "line, words",
    [
        ("two words", "unrecognized arguments"),
        ("3x", "cannot be the name"),
        ("-i", "expected one argument"),
        ("-i nosuchdevice0 -D VERDICT=2", "nosuchdevice0"),
    ],
)
def test_a_bad_magic_line_says_why_and_makes_nothing(shell, line, words):
    with pytest.raises(Exception, match=words):
        shell.run_cell_magic("bpf", line, CELL)
    assert "count" not in shell.user_ns
    assert "No cell" in repr(shell.run_line_magic("bpf_ls", ""))


def test_interrupting_a_watch_keeps_what_was_collected(shell, monkeypatch):
    from bpfkit.notebook import watching

    shell.run_cell_magic("bpf", "-D VERDICT=XDP_PASS", CELL)
    naps = iter([None, KeyboardInterrupt()])

    def sleep(seconds: float) -> None:
        if (outcome := next(naps)) is not None:
            raise outcome

    shell.user_ns["count"].run(bytes(70))
    monkeypatch.setattr(watching.time, "sleep", sleep)
    frames = shell.user_ns["lengths"].watch(60, 1)
    assert [rows for _, rows in frames] == [[(70, 1)]] * 2


def test_a_large_map_shows_twenty_rows_and_counts_the_rest(shell):
    shell.run_cell_magic("bpf", "-D VERDICT=XDP_PASS", CELL)
    lengths = shell.user_ns["lengths"]
    lengths.update({n: n for n in range(1000)})
    html = lengths._repr_html_()
    assert html.count("<tr>") == 21
    assert "… 980 more" in html


def test_a_data_frame_has_a_column_per_field(shell):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    shell.run_cell_magic("bpf", "-D VERDICT=XDP_PASS", CELL)
    lengths = shell.user_ns["lengths"]
    lengths.update({100: 5, 200: 7})
    frame = lengths.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == ["key", "value"]
    assert frame["value"].sum() == 12
