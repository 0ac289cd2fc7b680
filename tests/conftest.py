# SPDX-License-Identifier: Apache-2.0
"""What every test gets: a marker by its folder, a reason where it cannot run, a leak check.

A test fails that leaves behind a descriptor, a BPF program, map or link, a network namespace, an
interface in the namespace the tests run in, or a cgroup.  The kernel frees some of these a moment
later (RCU, workqueues), so what is left is looked at again for 5 seconds before it counts.

Other programs on the machine come and go too: BPF objects count only if a descriptor of ours or
of a child of ours, or nothing at all that can be seen, holds them; namespaces only by our own
descriptors and children; a cgroup does not count while another process that made it lives.

With pytest-xdist (``-n 2``) the live tests run one after the other in one worker, the files of the
others beside them.  What stays in the kernel is then looked at once more at the very end, by the
process that started the workers: a worker cannot know what the other one is about to remove.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent
KINDS = ("unit", "packet", "live", "vm")
_SETTLE_S = float(os.environ.get("BPFKIT_TEST_SETTLE_S", "5"))
#: One of several processes that run tests side by side.
_WORKER = os.environ.pop("PYTEST_XDIST_WORKER", "")  # not for what tests start
_NICE = 5
_MAPS_OF_MAPS = (12, 13)  # BPF_MAP_TYPE_ARRAY_OF_MAPS, HASH_OF_MAPS

# The programs of the checkout, also in the child processes that tests start.
sys.path.insert(0, str(ROOT.parent))
os.environ["PYTHONPATH"] = os.pathsep.join(
    part for part in (str(ROOT.parent), os.environ.get("PYTHONPATH", "")) if part
)
if _WORKER and os.geteuid() == 0:
    # Every start of bpfkit removes what killed processes left: not those of the other worker.
    os.environ["BPFKIT_RUN"] = f"{os.environ.get('BPFKIT_RUN') or '/run/bpfkit'}-{_WORKER}"


def _stuck_in_the_kernel() -> list[str]:
    """Tasks that wait for the memory of the kernel's BPF JIT and do not get on.

    Seen on Linux 6.18: when about a thousand programs are freed at once, the kernel's work queue
    and the JIT's mutex wait for each other, and every program load on the machine hangs in state D
    until the next boot (see bpfkit.core.kernel.syscall._pace).
    """

    def waiting() -> set[str]:
        found = set()
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError):
                    where = Path(f"/proc/{name}/wchan").read_text()
                    if where in ("bpf_prog_pack_alloc", "bpf_prog_pack_free"):
                        found.add(name)
        return found

    stuck = waiting()
    for _ in range(5):
        if not stuck:
            break
        time.sleep(1)
        stuck &= waiting()
    return sorted(stuck)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by folder; skip what needs root where there is none, or a kernel that loads programs."""
    root = os.geteuid() == 0
    no_root = pytest.mark.skip(reason="needs root (BPF programs, network namespaces)")
    stuck = _stuck_in_the_kernel() if root else []
    no_bpf = pytest.mark.skip(
        reason=f"this kernel's BPF JIT is deadlocked ({len(stuck)} tasks wait in bpf_prog_pack_*): "
        "no program can be loaded before a reboot"
    )
    for item in items:
        path = Path(item.path)
        kind = path.relative_to(ROOT).parts[0] if path.is_relative_to(ROOT) else ""
        if kind in KINDS:
            item.add_marker(kind)
        if kind in ("packet", "live") and not root:
            item.add_marker(no_root)
        if stuck and (kind in ("packet", "live") or item.get_closest_marker("loads")):
            item.add_marker(no_bpf)


def pytest_collection_finish() -> None:
    """Scapy asks the real network for MAC addresses that a test left open: it must not."""
    if "scapy.layers.l2" in sys.modules:
        from scapy.config import conf

        conf.neighbor.resolvers.clear()


# -- the leak check -------------------------------------------------------------------------------


def _descriptors() -> Counter[str]:
    """What our descriptors refer to.  Sockets and pipes are told apart by inode."""
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that listdir itself had open
            target = os.readlink(f"/proc/self/fd/{name}")
            if target not in (f"/proc/{os.getpid()}/fd", "/dev/null", "/dev/urandom"):
                found[target] += 1
    return found


def _descendants() -> set[int]:
    """This process and all below it (/proc/PID/task/TID/children may miss some)."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{name}/stat", "rb") as file:
                    stat = file.read()
                parents[int(name)] = int(stat.rpartition(b")")[2].split()[1])
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _children() -> set[str]:
    """Child processes that are not zombies, by number and command."""
    found = set()
    for pid in _descendants() - {os.getpid()}:
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
            if state in (b"Z", b"X"):
                continue
            # Empty for a moment after exec, when whoever waited for it already goes on.
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
            if not words:
                time.sleep(0.002)
                words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ") or b"?"
            found.add(f"{pid}: {words.decode(errors='replace').strip()[:100]}")
    return found


def _held_by_others() -> set[tuple[str, int]]:
    """(kind, id) of the BPF objects that processes which are not ours hold.

    What is in a map of maps of theirs has no descriptor of its own, and is theirs all the same.
    """
    ours = _descendants()
    found = set()
    outer: set[int] = set()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in ours:
            continue
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{name}/fd"):
                with contextlib.suppress(OSError):
                    target = os.readlink(f"/proc/{name}/fd/{fd}")
                    if not target.startswith("anon_inode:bpf") and "bpf" not in target:
                        continue
                    lines = Path(f"/proc/{name}/fdinfo/{fd}").read_text().splitlines()
                    info = dict(line.split(":", 1) for line in lines if ":" in line)
                    for key in ("prog_id", "map_id", "link_id"):
                        if key in info:
                            found.add((key[:-3], int(info[key])))
                    if int(info.get("map_type", 0)) in _MAPS_OF_MAPS:
                        outer.add(int(info["map_id"]))
    return found | {("map", number) for one in outer for number in _inside(one)}


def _inside(number: int) -> set[int]:
    """Ids of the maps in a map of maps."""
    from bpfkit.core.errors import BpfkitError
    from bpfkit.core.maps.base import Map

    with contextlib.suppress(OSError, BpfkitError):  # it may be gone by now
        with Map.from_id(number) as outer:
            return {int(inner) for _, inner in outer.items()}
    return set()


def _bpf_objects() -> set[tuple[str, int]]:
    from bpfkit.core.kernel import syscall

    found: set[tuple[str, int]] = set()
    for kind, command in (("prog", 11), ("map", 12), ("link", 31)):  # BPF_*_GET_NEXT_ID
        number: int | None = 0
        while True:
            try:
                number = syscall.next_id(command, number)
            except OSError:
                break
            if not number:
                break
            found.add((kind, number))
    return found


def _bpf_name(kind: str, number: int) -> str:
    """What to call a leftover.  Only for one that is sure to be one, see left_since()."""
    from bpfkit.core.kernel import syscall

    with contextlib.suppress(OSError, KeyError, ValueError):
        if kind == "prog":
            fd = syscall.prog_get_fd_by_id(number)
            info = syscall.prog_info
        elif kind == "map":
            fd = syscall.map_get_fd_by_id(number)
            info = syscall.map_info
        else:
            return f"BPF link {number}"
        try:
            return f"BPF {kind} {number} {info(fd).get('name', '')!r}"
        finally:
            os.close(fd)
    return f"BPF {kind} {number}"


def _interfaces() -> set[str]:
    import socket

    return {f"interface {name} ({index})" for index, name in socket.if_nameindex()}


def _cgroups() -> set[str]:
    """Those named bpfkit-…-PID-NUMBER, unless PID is a process that is not ours."""
    ours = _descendants()

    def of_others(path: Path) -> bool:
        pid = path.name.split("-")[-2:][0]
        return pid.isdigit() and int(pid) not in ours and os.path.exists(f"/proc/{pid}")

    found = set()
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            paths = Path(fields[1]).rglob("bpfkit*")
            found |= {f"cgroup {path}" for path in paths if not of_others(path)}
    return found


def _names() -> set[str]:
    with contextlib.suppress(OSError):
        return {f"/run/netns/{name}" for name in os.listdir("/run/netns")}
    return set()


class Snapshot:
    """What there is now that a test could leave behind."""

    def __init__(self, kernel: bool) -> None:
        self.kernel = kernel
        self.fds = _descriptors()
        self.own_ns = os.readlink("/proc/thread-self/ns/net")
        self.children = _children()
        self.bpf = _bpf_objects() if kernel else set()
        self.things = _interfaces() | _cgroups() | _names() if kernel else set()

    def left_since(self, before: Snapshot) -> list[str]:
        """What this process and its children have more than ``before``."""
        left = [
            f"descriptor of {target}" + (f" ({n} times)" if n > 1 else "")
            for target, n in (self.fds - before.fds).items()
        ]
        if self.own_ns != before.own_ns:
            left.append(f"the thread is in another network namespace: {self.own_ns}")
        left += [f"process {child}" for child in self.children - before.children]
        return left

    def in_kernel_since(self, before: Snapshot, named: bool = False) -> list[str]:
        """What the machine has more than ``before``.

        BPF objects go by their numbers unless ``named``: to learn a name is to open the object,
        and a prog array that is opened by its id and closed again while the kernel still clears it
        after its last owner's close stays for ever (prog_array_map_clear() takes a reference for
        work that is queued already).  Looking too early would make the leak that is looked for.
        """
        left = sorted(self.things - before.things)
        more = self.bpf - before.bpf
        if more:
            name = _bpf_name if named else "BPF {} {}".format
            left += [name(*thing) for thing in sorted(more - _held_by_others())]
        return left


@pytest.fixture(autouse=True, scope="session")
def _no_leak_of_the_session() -> object:
    """Session fixtures clean up too: looked at once more when everything has ended."""
    before = Snapshot(os.geteuid() == 0 and not _WORKER)
    yield
    left = _wait_until_clean(before)
    assert not left, "left behind by the whole run: " + "; ".join(left)


@pytest.fixture(autouse=True)
def _no_leak(request: pytest.FixtureRequest, _no_leak_of_the_session: object) -> object:
    """Fail the test that leaves something behind."""
    kernel = os.geteuid() == 0 and request.node.get_closest_marker("unit") is None
    before = Snapshot(kernel)
    yield
    left = _wait_until_clean(before)
    if left:
        pytest.fail("the test left behind: " + "; ".join(left), pytrace=False)
    if _WORKER and kernel:
        seen = request.config.workeroutput.setdefault("left", {})  # type: ignore[attr-defined]
        for thing in Snapshot(kernel).in_kernel_since(before):
            seen.setdefault(thing, request.node.nodeid)


def _wait_until_clean(before: Snapshot) -> list[str]:
    def left(named: bool = False) -> list[str]:
        now = Snapshot(before.kernel and not _WORKER)
        return now.left_since(before) + (now.in_kernel_since(before, named) if now.kernel else [])

    if not left():
        return []
    gc.collect()  # objects in a reference cycle with a traceback are not leaked
    deadline = time.monotonic() + _SETTLE_S
    while left():
        if time.monotonic() > deadline:
            return left(named=True)
        time.sleep(0.02)
    return []


# -- side by side, with pytest-xdist --------------------------------------------------------------


class _SideBySide:
    """In the process that starts the workers: who runs what, and what is left in the end."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.seen: dict[str, str] = {}  # what was there after a test, and that test
        self.before: Snapshot | None = None

    def pytest_sessionstart(self) -> None:
        self.before = Snapshot(os.geteuid() == 0)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: object) -> object:
        """The live tests are one piece of work, every other file is one."""
        from xdist.scheduler import LoadScopeScheduling

        class Scheduler(LoadScopeScheduling):
            def _split_scope(self, nodeid: str) -> str:
                path = nodeid.split("::", 1)[0]
                return "tests/live" if "live" in Path(path).parts[:-1] else path

        return Scheduler(config, log)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object, error: object) -> None:
        for thing, test in getattr(node, "workeroutput", {}).get("left", {}).items():
            self.seen.setdefault(thing, test)

    @pytest.hookimpl(hookwrapper=True, trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        yield  # the workers have ended
        assert self.before is not None
        deadline = time.monotonic() + _SETTLE_S
        while left := Snapshot(self.before.kernel).in_kernel_since(self.before):
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        if left:
            self.report(session, [f"{one} (after {self.seen.get(one, 'no test')})" for one in left])

    def report(self, session: pytest.Session, left: list[str]) -> None:
        """One error more, in the list and in the exit status."""
        name = "the whole run"
        text = "left behind: " + "; ".join(left)
        error = pytest.TestReport(name, (name, None, name), {}, "failed", text, "teardown")
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        assert reporter is not None
        reporter.stats.setdefault("error", []).append(error)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_configure(config: pytest.Config) -> None:
    """With workers, and in the process that starts them."""
    if not _WORKER and getattr(config.option, "numprocesses", None):
        config.pluginmanager.register(_SideBySide(config), "side_by_side")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Beside others, live tests get the CPU first: they have peers that wait for each other."""
    if _WORKER and os.geteuid() == 0:
        os.setpriority(os.PRIO_PROCESS, 0, 0 if item.get_closest_marker("live") else _NICE)
    yield


# -- the list at the end --------------------------------------------------------------------------


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Every skip with its reason: a test that did not run is never silent."""
    skips: dict[str, list[str]] = {}
    for report in terminalreporter.stats.get("skipped", []):
        longrepr = getattr(report, "longrepr", None)
        reason = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
        skips.setdefault(reason.removeprefix("Skipped: "), []).append(report.nodeid)
    if not skips:
        return
    total = sum(map(len, skips.values()))
    terminalreporter.section(f"{total} skipped")
    for reason, tests in sorted(skips.items()):
        terminalreporter.line(f"{reason}:")
        for test in tests:
            terminalreporter.line(f"    {test}")


# -- bpfkit as pip installs it --------------------------------------------------------------------

_SOURCES = ("bpfkit", "bpf_c", "pyproject.toml", "README.md")
_OFFLINE = (
    "Could not find a version",
    "No matching distribution",
    "Failed to establish",
    "Retrying",
)


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A virtual environment with bpfkit installed into it, from a copy of the sources."""
    import shutil

    from running import run_elsewhere

    place = tmp_path_factory.mktemp("installed")
    tree = place / "tree"
    tree.mkdir()
    for name in _SOURCES:
        source = ROOT.parent / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)
    for licence in ROOT.parent.glob("LICENSE*"):
        shutil.copy(licence, tree)
    python = place / "venv" / "bin" / "python"
    done = run_elsewhere([sys.executable, "-m", "venv", place / "venv"], place)
    if done.returncode:
        pytest.skip(f"no virtual environments here: {done.stdout.strip()[-200:]}")
    pip = [python, "-m", "pip", "install", "-q", "--retries", "1", tree]
    done = run_elsewhere(pip, place, timeout=120)
    if done.returncode and any(text in done.stderr for text in _OFFLINE):
        pytest.skip("the package index is not reachable")
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tree)
    yield python
    shutil.rmtree(place)
