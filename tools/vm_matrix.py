#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run every program's --check and the map tour on stock kernels, and print what each kernel does.

    tools/vm_matrix.py [OPTION ...] [VERSION ...]     5.10 6.1 6.12 … small; by default: all

Each kernel is one VM in which all programs run, two VMs side by side; on the small kernel (make
vm-kernel), where there is one, only those that no stock kernel can run.  Results are printed as
they come; .vm/matrix.json has them all, .vm/logs what each program said, and --page writes
tools/matrix.md, README's table and what `bpfkit info` says of kernels.  A kernel that dies is
booted again for what is left; the program of which it died has a second chance, and the page says
so.  --what-is-missing-here asks this machine first, and runs only the
programs that its kernel answers 77 to.

exit status: 0 every cell is green or names what the kernel lacks; 1 a cell failed, or no kernel
could be run; 77 there can be no VM here
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from vm_cells import (
    FAILED,
    NOT_RUN,
    UNSUPPORTED,
    VERIFIED,
    Cell,
    map_cells,
    markdown,
    parse_config,
    program_cell,
    reason,
    text_table,
    type_cell,
    version_of,
)
from vm_guest.image import UNPACKED, Kernel, VmError, find_kernel, static_busybox
from vm_kernels import VERSIONS, Archive, fetch

TOP = Path(__file__).resolve().parents[1]
VM = TOP / "tools/vm.py"
CELLS = "tools/vm_guest/cells.py"
#: What of the checkout a guest runs.
PARTS = ("bpfkit", "bpf_c", "tools")
PAGE = TOP / "tools/matrix.md"
README, BEGIN, END = TOP / "README.md", "<!-- matrix -->\n", "<!-- end of matrix -->\n"
FOUND = TOP / "bpfkit/commands/matrix.json"
#: The kernel that make vm-kernel builds, and the program type that only it can have.
SMALL, SMALL_TYPE = "small", "LIRC_MODE2"
PYTHON = "/usr/bin/python3"
#: Seconds that a guest may say nothing beyond a program's own limit before it is given up.
SILENCE_S = 120.0
#: Seconds for a boot: two VMs and what else runs here slow each other down.
BOOT_S = 600.0
#: The newest and those that most people run come first: a run that is interrupted has them.
FIRST = ("6.1", "7.3", "6.12", "5.10")


def catalog() -> dict[str, list[str]]:
    """The programs and their types, without BPF_PROG_TYPE_."""
    sys.path.insert(0, str(TOP))
    from bpfkit.commands.catalog import programs

    return {
        cls.name: [kind.removeprefix("BPF_PROG_TYPE_") for kind in cls.types()]
        for cls in programs()
    }


def command(name: str) -> str:
    """What is run of a program: its --check; of the tour the rows, whose failures fail it too."""
    return f"{PYTHON} -m bpfkit.{name} " + ("--json" if name == "maps" else "--check")


def config_of(kernel: Kernel, folder: Path) -> dict[str, str]:
    """The configuration in a kernel's package; empty if it is in none of its parts."""
    places = [kernel.modules / "config", folder / "boot" / f"config-{kernel.release}"]
    for path in places:
        if path.exists():
            return parse_config(path.read_text())
    return {}


def kernel_words(config: Mapping[str, str]) -> str:
    """What a kernel needs on its command line: LSM programs, where its own list lacks them."""
    lsms = config.get("CONFIG_LSM", "")
    if lsms and "bpf" not in lsms.split(",") and config.get("CONFIG_BPF_LSM") == "y":
        return f"lsm={lsms},bpf"
    return ""


class Matrix:
    """The runs on all kernels; ``kernels`` is what is written to the JSON file."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.programs = catalog()
        self.kernels: dict[str, dict[str, Any]] = {}
        self.lock = threading.Lock()
        self.guests: set[subprocess.Popen[str]] = set()
        self.tree = TOP

    def say(self, text: str) -> None:
        with self.lock:
            print(text, flush=True)

    def freeze(self) -> None:
        """Copy what the guests run: an edit here during the run would show there by halves."""
        self.tree = (UNPACKED / f"tree-{os.getpid()}").resolve()
        for part in PARTS:  # with times: they are part of the cache's keys
            shutil.copytree(TOP / part, self.tree / part, symlinks=True)

    def thaw(self) -> None:
        """Remove the copy."""
        shutil.rmtree(self.tree, ignore_errors=True)

    # --- one kernel ------------------------------------------------------------------------------

    def run_kernel(self, version: str, folder: Path) -> None:
        """Every program on one kernel; fills its entry of ``kernels``."""
        kernel = find_kernel(str(folder))
        config = config_of(kernel, folder)
        started = time.monotonic()
        cache = self._warm(version, kernel, folder)
        answers: dict[str, dict[str, Any]] = {}
        entry = self.kernels[version]
        entry |= {"release": kernel.release, "boots": 0, "seconds": 0, "programs": {}, "maps": {}}
        left = [name for name in self.programs if self._wanted(name)]
        if version == SMALL:
            left = [name for name in left if SMALL_TYPE in self.programs[name]]
        while left:
            before = len(left)
            entry["boots"] += 1
            last, tail = self._boot(kernel, folder, config, cache, left, version, answers)
            left = [name for name in left if name not in answers]
            if last and last in left:
                self._died(version, last, tail, answers, config)
                if last in answers:
                    left.remove(last)
                continue
            if len(left) == before:
                self.say(f"{version:>5}  the VM does not run: {tail}")
                break
        entry["seconds"] = round(time.monotonic() - started)

    def _died(
        self,
        version: str,
        name: str,
        tail: str,
        answers: dict[str, dict[str, Any]],
        config: Mapping[str, str],
    ) -> None:
        """Note that the kernel died of a program, which has failed if that is the second time.

        Emulated CPUs that patch each other's code may die of that (see tools/vm.py).
        """
        deaths = self.kernels[version].setdefault("deaths", [])
        deaths.append([name, tail])
        if [one[0] for one in deaths].count(name) == 1:
            self.say(f"{version:>5}  {name:24} the kernel died, once more: {tail}")
            return
        why = "the kernel died twice: " + tail
        answers[name] = {"status": 125, "seconds": 0, "out": "", "err": why}
        self._take(version, name, answers[name], config)

    def _take(
        self, version: str, name: str, answer: Mapping[str, Any], config: Mapping[str, str]
    ) -> None:
        """Print a program's answer and keep its cells."""
        entry = self.kernels[version]
        cell = program_cell(answer, entry["release"], config)
        if name == "maps":
            rows = []
            for line in answer["out"].splitlines():
                row = json.loads(line) if line.startswith("{") else {}
                rows += [row] if "type" in row and "status" in row else []
            maps = map_cells(rows, entry["release"], config)
            entry["maps"] = {name: cell._asdict() for name, cell in maps.items()}
            wrong = [name for name, cell in maps.items() if cell.state == FAILED]
            if wrong:
                cell = Cell(FAILED, f"{wrong[0]}: {maps[wrong[0]].why}", cell.seconds)
        entry["programs"][name] = cell._asdict()
        mark = {VERIFIED: "ok", UNSUPPORTED: "-"}.get(cell.state, "FAILED")
        self.say(f"{version:>5}  {name:24} {mark:7} {cell.seconds:5.1f} s  {cell.why}".rstrip())

    def _wanted(self, name: str) -> bool:
        return not self.options.program or name in self.options.program

    def _warm(self, version: str, kernel: Kernel, folder: Path) -> Path:
        """The cache that the guest shares, with what this machine could compile for it."""
        cache = UNPACKED / "cache" / kernel.release
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        cache = cache.resolve()
        words = [PYTHON, str(self.tree / "tools/vm_warm.py"), str(folder), str(cache)]
        done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        said = (done.stdout + done.stderr).strip().splitlines() or ["said nothing"]
        if done.returncode:
            self.say(f"{version:>5}  the guest compiles all programs itself: {said[-1]}")
        else:
            self.say(f"{version:>5}  {kernel.release}: {said[0]} on this machine")
        return cache

    def _boot(
        self,
        kernel: Kernel,
        folder: Path,
        config: Mapping[str, str],
        cache: Path,
        left: Sequence[str],
        version: str,
        answers: dict[str, dict[str, Any]],
    ) -> tuple[str, str]:
        """One VM; returns (the program that was running when it ended, why it ended)."""
        limit = self.options.timeout
        words = [PYTHON, str(VM), "--kernel", str(folder), "--mem", self.options.mem]
        words += ["--one-thread"]  # side by side, each has about one CPU in any case
        words += [
            "--boot-timeout",
            str(BOOT_S),
            "--share",
            str(cache),
            "--env",
            f"BPFKIT_CACHE={cache}",
        ]
        append = kernel_words(config)
        if append:
            words.append(f"--append={append}")
        words += ["--cwd", str(self.tree), "--", PYTHON, str(self.tree / CELLS), str(limit)]
        words += [f"{name}={command(name)}" for name in left]
        running = ""
        logs = UNPACKED / "logs" / version
        logs.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile("w+", errors="replace") as err:
            process = subprocess.Popen(
                words,
                cwd=TOP,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                errors="replace",
            )
            self.guests.add(process)
            assert process.stdout is not None
            heard = [time.monotonic()]
            done = threading.Event()

            def watch() -> None:
                while not done.wait(1):
                    if time.monotonic() > heard[0] + max(limit, BOOT_S) + SILENCE_S:
                        process.terminate()
                        return

            watcher = threading.Thread(target=watch, daemon=True)
            watcher.start()
            for line in process.stdout:
                heard[0] = time.monotonic()
                try:
                    answer = json.loads(line)
                except ValueError:
                    continue
                if not isinstance(answer, dict) or "name" not in answer:
                    continue
                running = answer["name"]
                if "status" in answer:
                    answers[running] = answer
                    (logs / f"{running}.txt").write_text(answer["out"] + answer["err"])
                    self._take(version, running, answer, config)
                    running = ""
            done.set()
            process.wait()
            self.guests.discard(process)
            err.seek(0)
            lines = [line.strip() for line in err if line.strip()]
        if running:
            (logs / f"{running}.console.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            if "complained" in line:
                self.kernels[version].setdefault("complaints", []).extend(
                    lines[lines.index(line) : lines.index(line) + 30]
                )
                break
        bad = [line for line in lines if "panic" in line or "BUG" in line or "RIP" in line]
        bad += [line for line in lines if line.startswith("vm: ")][-1:]
        return running, (bad[:1] or lines or [f"exit status {process.returncode}"])[-1][:300]

    def missing_here(self) -> list[str]:
        """The programs whose --check answers 77 on this machine's kernel."""
        words = [PYTHON, str(TOP / CELLS), str(self.options.timeout)]
        words += [f"{name}={command(name)}" for name in self.programs if self._wanted(name)]
        found = []
        with subprocess.Popen(words, cwd=TOP, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                answer = json.loads(line)
                if answer.get("status") == 77:
                    found.append(answer["name"])
                    self.say(f" here  {answer['name']:24} -       {reason(answer['err'])}")
        return found

    # --- all kernels -----------------------------------------------------------------------------

    def run(self, versions: Sequence[str]) -> None:
        """Fetch and run all; two at a time."""
        archive = Archive()
        jobs: queue.Queue[tuple[str, Path]] = queue.Queue()
        order = sorted(versions, key=lambda v: (FIRST.index(v) if v in FIRST else 9, version_of(v)))
        threads = [
            threading.Thread(target=self._work, args=(jobs,), daemon=True)
            for _ in range(self.options.jobs)
        ]
        for thread in threads:
            thread.start()
        for version in order:
            self.kernels[version] = {}
            try:
                if self.options.kernel_dir or version == SMALL:
                    folder = Path(self.options.kernel_dir or UNPACKED / SMALL)
                    find_kernel(str(folder))
                else:
                    folder = fetch(version, archive)
            except VmError as error:
                why = " ".join(str(error).split("\n"))
                self.kernels[version]["why"] = why
                self.say(f"{version:>5}  not run: {why}")
                continue
            jobs.put((version, folder))
        for _ in threads:
            jobs.put(("", Path()))
        for thread in threads:
            thread.join()

    def _work(self, jobs: queue.Queue[tuple[str, Path]]) -> None:
        while True:
            version, folder = jobs.get()
            if not version:
                return
            try:
                self.run_kernel(version, folder)
            except (OSError, VmError, ValueError, KeyError) as error:
                self.kernels[version]["why"] = str(error)
                self.say(f"{version:>5}  not run: {error}")


def cell_of(entry: Mapping[str, Any], part: str, name: str) -> Cell:
    """A cell of the JSON file."""
    found = entry.get(part, {}).get(name)
    return Cell(**found) if found else Cell(NOT_RUN, entry.get("why", "not run"))


def tables(data: Mapping[str, Any]) -> dict[str, dict[str, list[Cell]]]:
    """The three tables of a matrix: program types, map types, programs."""
    kernels, programs = data["kernels"], data["programs"]
    from bpfkit.core.kernel.constants import PROG_TYPES

    cells = {
        version: {name: Cell(**cell) for name, cell in entry.get("programs", {}).items()}
        for version, entry in kernels.items()
    }
    types = {
        kind.lower(): [type_cell(programs, cells[version], kind) for version in kernels]
        for kind in PROG_TYPES[1:]
    }
    names = dict.fromkeys(name for entry in kernels.values() for name in entry.get("maps", {}))
    maps = {name: [cell_of(kernels[v], "maps", name) for v in kernels] for name in names}
    rows = {name: [cell_of(kernels[v], "programs", name) for v in kernels] for name in programs}
    return {"program type": types, "map type": maps, "program": rows}


def page(data: Mapping[str, Any]) -> str:
    """tools/matrix.md."""
    kernels = data["kernels"]
    shown = with_programs(data)
    ran = shown["kernels"]
    lines = [
        "# What works on which kernel",
        "",
        "Made by `make vm-matrix`: every program's `--check` and the map tour, in a VM, on stock "
        "kernels of the",
        "distribution's archive. ✔ verified · – the kernel lacks what the number says · ✘ failed · "
        "blank: not run.",
        "No list says what a kernel should lack: the program names it, and the name is held "
        "against the kernel's",
        "own configuration.",
        "",
        "Kernels: " + ", ".join(entry["release"] for entry in ran.values()) + ".",
    ]
    missing = [f"{version}: {entry['why']}" for version, entry in kernels.items() if "why" in entry]
    died = [
        f"{version}: {name}: {why}"
        for version, entry in ran.items()
        for name, why in entry.get("deaths", ())
    ]
    if died:
        lines += ["", "The emulated kernel died during these programs, and was booted again:", ""]
        lines += [f"- {text}" for text in died]
    if missing:
        lines += ["", "Not run:", ""] + [f"- {text}" for text in missing]
    for title, rows in tables(shown).items():
        lines += ["", f"## By {title}", "", *markdown(title, list(ran), rows)]
    return "\n".join(lines) + "\n"


def with_programs(data: Mapping[str, Any]) -> dict[str, Any]:
    """The matrix without the kernels that could not be run."""
    kernels = {
        version: entry for version, entry in data["kernels"].items() if entry.get("programs")
    }
    return {**data, "kernels": kernels}


def overview(data: Mapping[str, Any]) -> str:
    """README's table: program types and map types, without the reasons."""
    shown = with_programs(data)
    rows = tables(shown)
    columns = list(shown["kernels"])
    types, maps = rows["program type"], rows["map type"]
    lines = [
        "<details><summary>"
        f"{len(types)} program types and {len(maps)} map types on {len(columns)} kernels"
        "</summary>",
        "",
        *markdown("program type", columns, types, with_reasons=False),
        "",
        *markdown("map type", columns, maps, with_reasons=False),
        "",
        "</details>",
    ]
    return "\n".join(lines) + "\n"


def found(data: Mapping[str, Any]) -> dict[str, Any]:
    """For ``bpfkit info``: the kernels, and on which of them a type was verified."""
    shown = with_programs(data)
    columns = list(shown["kernels"])
    rows = tables(shown)
    verified = {
        title: {
            name: [c for c, cell in zip(columns, cells, strict=True) if cell.state == VERIFIED]
            for name, cells in rows[title].items()
        }
        for title in ("program type", "map type")
    }
    releases = {version: entry["release"] for version, entry in shown["kernels"].items()}
    return {"kernels": releases, **verified}


def write_pages(data: Mapping[str, Any]) -> None:
    """tools/matrix.md, README's table and the file of ``bpfkit info``."""
    PAGE.write_text(page(data))
    before, _, rest = README.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(before + BEGIN + overview(data) + END + after)
    FOUND.write_text(json.dumps(found(data), indent=1) + "\n")


def check_machine() -> None:
    """What a VM needs, said before anything is downloaded.

    :raises VmError: it is missing.
    """
    if not shutil.which("qemu-system-x86_64"):
        raise VmError("no qemu-system-x86_64 here\napt-get install qemu-system-x86")
    static_busybox()


def run_live(options: argparse.Namespace) -> int:
    """tests/live on the first kernel; pytest's status."""
    version = options.versions[0]
    folder = options.kernel_dir or str(fetch(version, Archive()))
    print(f"{version:>5}  tests/live", flush=True)
    words = [PYTHON, str(VM), "--kernel", folder, "--mem", "3072M", "--"]
    words += [PYTHON, "-m", "pytest", "-p", "no:cacheprovider", "tests/live"]
    return subprocess.run(words, cwd=TOP, stdin=subprocess.DEVNULL).returncode


def merged(path: Path, new: Mapping[str, Any]) -> dict[str, Any]:
    """What the file has of other kernels and programs, and the new results over it."""
    try:
        old = json.loads(path.read_text())["kernels"]
    except (OSError, ValueError, KeyError):
        old = {}
    kernels: dict[str, dict[str, Any]] = {}
    for version in sorted({*old, *new["kernels"]}, key=lambda v: (v == SMALL, version_of(v))):
        before, now = old.get(version, {}), new["kernels"].get(version)
        if now is None:
            kernels[version] = before
            continue
        kernels[version] = dict(now)
        if before.get("release") == now.get("release"):
            for part in ("programs", "maps"):
                kernels[version][part] = {**before.get(part, {}), **now.get(part, {})}
    return {**new, "kernels": kernels}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("versions", nargs="*", metavar="VERSION", help="such as 6.12")
    add("--program", action="append", default=[], metavar="NAME", help="only this program")
    add("--jobs", type=int, default=2, help="VMs side by side (default 2)")
    add("--mem", default="2048M", help="memory of each VM (default 2048M)")
    add("--timeout", type=float, default=300, metavar="S", help="limit for a program (300)")
    add("--json", type=Path, default=UNPACKED / "matrix.json", metavar="FILE", help="the results")
    add("--kernel-dir", default="", metavar="DIR", help="an unpacked kernel instead of VERSION's")
    add("--page", action="store_true", help="write the pages from the results")
    add("--what-is-missing-here", action="store_true", help="only what answers 77 on this kernel")
    add("--live", action="store_true", help="then tests/live in the VM of the first kernel")
    add("--no-run", action="store_true", help="run nothing: tables of the results that there are")
    options = parser.parse_args()
    known = [*VERSIONS, SMALL]
    wrong = [v for v in options.versions if v not in known and not options.kernel_dir]
    if wrong:
        parser.error(f"no version {wrong[0]} in the matrix: {' '.join(known)}")
    if not options.versions:
        options.versions = known if (UNPACKED / SMALL).exists() else VERSIONS
    matrix = Matrix(options)
    unknown = [name for name in options.program if name not in matrix.programs]
    if unknown:
        parser.error(f"no program named {unknown[0]}")
    started = time.monotonic()
    live = 0

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        if not options.no_run:
            check_machine()
            if options.what_is_missing_here:
                options.program = matrix.missing_here()
            if options.program or not options.what_is_missing_here:
                matrix.freeze()
                matrix.run(options.versions)
            live = run_live(options) if options.live else 0
    except VmError as error:
        print(f"vm_matrix: {error}", file=sys.stderr)
        return 77
    except KeyboardInterrupt:
        print("vm_matrix: interrupted; the results so far:", file=sys.stderr)
    finally:
        for guest in list(matrix.guests):
            guest.terminate()
            guest.wait()
        if matrix.tree != TOP:
            matrix.thaw()
    data = merged(options.json, {"programs": matrix.programs, "kernels": matrix.kernels})
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(data, indent=1) + "\n")
    ran = [version for version, entry in data["kernels"].items() if entry.get("programs")]
    for rows in tables(data).values():
        print("\n".join(["", *text_table(list(data["kernels"]), rows)]))
    if options.page:
        write_pages(data)
    cells = [
        cell["state"]
        for version in matrix.kernels
        for cell in data["kernels"][version].get("programs", {}).values()
    ]
    print(
        f"\n{cells.count(VERIFIED)} verified, {cells.count(UNSUPPORTED)} unsupported, "
        f"{cells.count(FAILED)} failed, on {len(ran)} kernels, in "
        f"{time.monotonic() - started:.0f} s"
    )
    return 1 if live or FAILED in cells or not ran else 0


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main())
