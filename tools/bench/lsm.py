#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What lsm costs the processes that it is not about, and whether a race gets past it.

    sudo python3 tools/bench/lsm.py [--turns N] [--count N] [--opens N] [--markdown]

Cost: a process opens and closes /dev/null COUNT times in a turn, with the programs attached for
another cgroup and with none attached, in turns; the figures are the fastest turns.

Race: tools/bench/lsm_race.c opens denied files OPENS (1 000 000) times while their names, links and
directories are exchanged, and looks at what each open gave.  No open may give a denied file.  The
same without the programs shows that the race gives them.  Status 1: a denied file was opened.

The kernel needs `bpf` among its security modules.  Needs cc.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bpfkit.core.cgroups import Cgroup
    from bpfkit.core.object import Object

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [path for path in (ROOT, HERE) if path not in sys.path]

SOURCE = "trace/lsm.bpf.c"
#: Turns from one attachment to the next.
TURNS = 10
FIGURES = ("opens", "allowed", "denied", "absent", "leaked", "exchanges")


def loaded_for(group: Cgroup) -> Object:
    """The programs of lsm, about the processes of a cgroup."""
    import bpfkit
    from bpfkit.core.cgroups import cgroup_root

    below = group.path.removeprefix(cgroup_root()).strip("/")
    return bpfkit.load(
        SOURCE, consts={"only_cgroup": group.id, "cgroup_level": below.count("/") + 1}
    )


@contextlib.contextmanager
def attached(loaded: Object) -> Iterator[None]:
    """All programs attached."""
    with contextlib.ExitStack() as stack:
        for program in loaded.programs.values():
            stack.enter_context(program.attach_trace())
        yield


def cost(tool: str, turns: int, count: int) -> tuple[float, float]:
    """Nanoseconds of open(2) and close(2): without the programs, with them for another cgroup."""
    from cgroup_hooks import HOOKS, Caller

    from bpfkit.core.cgroups import Cgroup

    with contextlib.ExitStack() as stack:
        own, other = (stack.enter_context(Cgroup.new("bench")) for _ in range(2))
        loaded = stack.enter_context(loaded_for(other))
        caller = stack.enter_context(contextlib.closing(Caller(tool, HOOKS["device"], count, own)))
        caller.turn()
        best = [float("inf"), float("inf")]
        for _ in range(turns):
            best[0] = min(best[0], *(caller.turn() for _ in range(TURNS)))
            with attached(loaded):
                best[1] = min(best[1], *(caller.turn() for _ in range(TURNS)))
    return best[0], best[1]


def race(tool: str, opens: int, *, judged: bool) -> dict[str, int]:
    """What the opens of the race gave."""
    from bpfkit.core.cgroups import Cgroup
    from bpfkit.lsm import DENY_OPEN, place

    with contextlib.ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory())
        group = stack.enter_context(Cgroup.new("bench"))
        loaded = stack.enter_context(loaded_for(group))
        procs = group.open_procs()
        racer = subprocess.Popen(
            [tool, home, str(opens)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.write(procs, b"0"),
        )
        os.close(procs)
        assert racer.stdout is not None
        if racer.stdout.readline() != "ready\n":
            raise SystemExit("lsm: the race did not start")
        for name in ("private", "secret"):
            device, inode = place(f"{home}/{name}")
            key = device.to_bytes(4, "little") + bytes(4) + inode.to_bytes(8, "little")
            loaded["places"].update_raw(key, DENY_OPEN.to_bytes(4, "little"))
        with attached(loaded) if judged else contextlib.nullcontext():
            said = racer.communicate("go\n")[0]
    return dict(zip(FIGURES, map(int, said.split()), strict=True))


def main() -> int:
    """Print both tables."""
    from benchlib import table

    from bpfkit.core.errors import BpfkitError

    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--turns", type=int, default=40, help="default: 40")
    parser.add_argument("--count", type=int, default=500, help="opens in a turn: 500")
    parser.add_argument("--opens", type=int, default=1_000_000, help="of the race: 1 000 000")
    parser.add_argument("--markdown", action="store_true", help="Markdown tables")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        for name in ("cgroup_hooks", "lsm_race"):
            argv = ["cc", "-O2", "-pthread", "-o", f"{work}/{name}", f"{HERE}/{name}.c"]
            subprocess.run(argv, check=True)
        try:
            plain, judged = cost(f"{work}/cgroup_hooks", options.turns, options.count)
            titles = ["", "ns without", "ns with lsm on another cgroup", "ratio"]
            row = ["open(2) and close(2)", f"{plain:.0f}", f"{judged:.0f}", f"{judged / plain:.3f}"]
            print(table(titles, [row], markdown=options.markdown), end="\n\n", flush=True)
            outcomes = {
                "with lsm": race(f"{work}/lsm_race", options.opens, judged=True),
                "without": race(f"{work}/lsm_race", max(options.opens // 10, 2), judged=False),
            }
        except BpfkitError as error:
            print(f"lsm: {error}", file=sys.stderr)
            return error.exit_status
    rows = [[title, *map(str, found.values())] for title, found in outcomes.items()]
    print(table(["the race", *FIGURES], rows, markdown=options.markdown))
    found = outcomes["with lsm"]
    return 1 if found["leaked"] or not found["denied"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
