# SPDX-License-Identifier: Apache-2.0
"""The event channel, with sources that need no kernel."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bpfkit.app.base import App
from bpfkit.app.events import Channel, EventQueue, EventSource, from_buffer
from bpfkit.show.rows import Event, report, stamp

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = '''
import os, sys, threading, time
from bpfkit.app.base import App
from bpfkit.app.events import EventQueue, EventSource
from bpfkit.app.lifecycle import main
from bpfkit.show.rows import Event

WHAT = os.environ.get("WHAT", "")

class Stream(App):
    """Opens that were seen."""

    name = "stream"
    needs = ()
    demo_in_background = "turn" not in WHAT

    def setup(self):
        self.count = 0
        self.queue = self.keep(EventQueue(3 if WHAT == "flood" else 100))

    def events(self):
        if WHAT == "pipe":
            reader, self.writer = os.pipe2(os.O_NONBLOCK)
            os.write(self.writer, b"ab")
            os.close(self.writer)
            def read():
                try:
                    data = os.read(reader, 100)
                except BlockingIOError:
                    return []
                return [Event("byte", 1.0, {"value": value}) for value in data]
            return EventSource(read, [reader])
        if WHAT == "unannounced":
            return EventSource(lambda: [Event("tick", time.time(), {})], [])
        if WHAT == "endless":
            import bpfkit.app.events
            bpfkit.app.events._LAST_OLD = 0.2
            return EventSource(lambda: [Event("tick", 1.0, {})], [])
        return self.queue

    def demo(self):
        for _ in range(50 if WHAT == "flood" else 2):
            self.count += 1
            self.queue.put(Event("open", 1700000000.5, {"pid": 1200 + self.count, "path": "/x y"}))

    def verify(self):
        seen = self.channel.wait(lambda: len(self.channel.waiting) == self.count)
        yield seen, f"{self.channel.seen} of {self.count} events"

class Both(Stream):
    """Figures and events."""

    counters = ("opens",)

    def rows(self):
        return [{"user": "root", "opens": self.count}]

raise SystemExit(main(Both if "rows" in WHAT else Stream))
'''


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("events") / "stream.py"
    path.write_text(PROGRAM)
    return path


def env(what: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "WHAT": what, "TZ": "UTC", "TERM": "dumb"}


def run(program: Path, *args: str, what: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(program), *args],
        env=env(what),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def started(program: Path, *args: str, what: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(program), *args],
        env=env(what),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def event(number: int) -> Event:
    return Event("open", float(number), {"pid": number})


def numbers(events: list[Event]) -> list[int]:
    return [one.fields["pid"] for one in events]


# ---------------------------------------------------------------- sources


def readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def test_a_queue_is_readable_until_everything_is_taken() -> None:
    queue = EventQueue()
    (fd,) = queue.filenos
    assert not readable(fd)
    for number in range(3):
        queue.put(event(number))
    channel = Channel(queue)
    assert channel.read(limit=2) == 2 and readable(fd)
    assert channel.read() == 1 and not readable(fd)
    assert numbers(channel.take()) == [0, 1, 2]
    queue.close()
    queue.close()


def test_a_full_queue_counts_what_is_lost() -> None:
    queue = EventQueue(limit=2)
    for number in range(5):
        queue.put(event(number))
    channel = Channel(queue)
    channel.read()
    assert numbers(channel.take()) == [0, 1]
    assert (channel.seen, channel.lost) == (2, 3)
    queue.close()


def test_a_thread_fills_the_queue_and_nothing_is_missing() -> None:
    queue = EventQueue(limit=10_000, decode=event)
    channel = Channel(queue)
    thread = threading.Thread(target=lambda: [queue.put(number) for number in range(5000)])
    thread.start()
    assert channel.wait(lambda: channel.seen == 5000, timeout=10)
    thread.join()
    assert numbers(channel.take()) == list(range(5000)) and not channel.lost
    queue.close()


def test_a_limited_read_goes_on_where_it_was() -> None:
    """Else the first CPU's buffer, always full, would be the only one that is read."""
    cpus = [[event(n) for n in range(10)], [event(100)]]

    def read() -> Iterator[Event]:
        for waiting in cpus:
            for _ in range(len(waiting)):
                yield waiting.pop(0)

    channel = Channel(EventSource(read))
    for _ in range(3):
        channel.read(limit=4)
        cpus[0] += [event(n) for n in range(4)]
    assert 100 in numbers(channel.take())


def test_a_read_ends_in_time_where_each_event_takes_long() -> None:
    """A flood must not keep the life cycle from its rounds."""

    def read() -> Iterator[Event]:
        for number in range(400):
            time.sleep(0.01)
            yield event(number)

    channel = Channel(EventSource(read))
    began = time.monotonic()
    count = channel.read()
    assert time.monotonic() - began < 2 and 0 < count < 400
    channel.read()
    found = numbers(channel.take())
    assert found == list(range(len(found))) and len(found) > count


def test_a_read_ends_in_time_where_no_record_makes_an_event() -> None:
    """Samples of `profile` make none; draining reads them to the end all the same."""
    left = iter(range(1000))

    def read() -> Iterator[Event | None]:
        for _ in left:
            time.sleep(0.001)
            yield None

    channel = Channel(EventSource(read))
    began = time.monotonic()
    assert 0 < channel.read() < 1000
    assert time.monotonic() - began < 0.9
    assert list(channel.drain()) == []
    assert next(left, None) is None and channel.seen == 0 and not channel.unread


def test_what_is_kept_is_limited_and_the_rest_is_lost() -> None:
    source = EventSource(lambda: [event(n) for n in range(7)], lost=lambda: 10)
    channel = Channel(source, kept=5)
    channel.read(limit=7)
    assert len(channel.waiting) == 5 and channel.seen == 7 and channel.lost == 12


def test_draining_ends_though_events_never_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bpfkit.app.events._LAST", 0.1)
    channel = Channel(EventSource(lambda: [Event("open", time.time() + 1, {})]))
    began = time.monotonic()
    assert list(channel.drain())
    assert time.monotonic() - began < 5
    assert not channel.unread, "all of them are newer than the end"


def test_draining_reads_all_that_happened_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slower than what a second reads: events from before the end have more time."""
    monkeypatch.setattr("bpfkit.app.events._LAST", 0.1)
    left = iter([event(n) for n in range(2000)])
    newer = Event("open", time.time() + 1000, {"pid": -1})

    def read() -> Iterator[Event]:
        for old in left:
            time.sleep(0.0005)
            yield old
        yield newer

    channel = Channel(EventSource(read))
    found = [n for batch in channel.drain() for n in numbers(batch)]
    assert found[:2000] == list(range(2000)) and not channel.unread


def test_what_draining_leaves_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bpfkit.app.events._LAST", 0.1)
    monkeypatch.setattr("bpfkit.app.events._LAST_OLD", 0.2)
    channel = Channel(EventSource(lambda: [event(0)]))
    assert list(channel.drain()) and channel.unread


def test_the_end_says_that_events_are_left(program: Path) -> None:
    done = run(program, "-c", "1", "-t", "0.1", "--no-demo", what="endless")
    assert done.returncode == 0 and "events are left unread" in done.stderr


def test_a_ring_buffer_has_one_descriptor_and_the_program_counts_the_losses() -> None:
    ring = SimpleNamespace(fileno=lambda: 7, drain=lambda: iter([b"1", b"skip", b"2"]))

    def decode(record: bytes) -> Event | None:
        return None if record == b"skip" else event(int(record))

    source = from_buffer(cast(Any, ring), decode, lost=lambda: 4)
    assert list(source.filenos) == [7] and source.lost == 4
    assert numbers([found for found in source.read() if found]) == [1, 2]
    assert from_buffer(cast(Any, ring), decode).lost == 0


def test_a_perf_buffer_has_a_descriptor_per_cpu_and_counts_its_own_losses() -> None:
    perf = SimpleNamespace(filenos=lambda: [7, 9], drain=lambda: iter([3]), lost=5)
    source = from_buffer(cast(Any, perf), event, lost=lambda: 1)
    assert list(source.filenos) == [7, 9] and source.lost == 6
    assert numbers([found for found in source.read() if found]) == [3]


# ---------------------------------------------------------------- a program of events only


def test_events_are_lines_with_the_time(program: Path) -> None:
    done = run(program, "-c", "1", "-t", "0.1", what="in turn")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "22:13:20.500 open pid 1201 path /x y",
        "22:13:20.500 open pid 1202 path /x y",
    ]


def test_events_as_json(program: Path) -> None:
    done = run(program, "-c", "1", "-t", "0.1", "--json", what="in turn")
    first, second = map(json.loads, done.stdout.splitlines())
    assert list(first.items()) == [
        ("ts", 1700000000.5), ("round", 0), ("event", "open"), ("pid", 1201), ("path", "/x y")
    ]  # fmt: skip
    assert second["pid"] == 1202


def test_events_come_at_once_and_not_with_the_next_round(program: Path) -> None:
    child = started(program, "-t", "60", "--json")
    assert child.stdout is not None
    began = time.monotonic()
    assert json.loads(child.stdout.readline())["pid"] == 1201
    assert time.monotonic() - began < 20
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=10)
    assert child.returncode == 0


def test_what_is_left_at_the_end_is_shown(program: Path) -> None:
    done = run(program, "-c", "1", "-t", "0.3", "--no-demo", what="pipe")
    assert [line.split()[1:] for line in done.stdout.splitlines()] == [
        ["byte", "value", "97"],
        ["byte", "value", "98"],
    ]


def test_a_source_that_ended_does_not_keep_the_processor_busy(program: Path) -> None:
    child = started(program, "-t", "60", "--no-demo", what="pipe")
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(0.3)
    before = cpu_time(child.pid)
    time.sleep(1)
    assert cpu_time(child.pid) - before < 0.3
    child.terminate()
    child.communicate(timeout=10)


def cpu_time(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_source_without_descriptors_is_read_as_well(program: Path) -> None:
    done = run(program, "-c", "2", "-t", "0.05", "--no-demo", "--json", what="unannounced")
    kinds = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert len(kinds) >= 2 and set(kinds) == {"tick"}


def test_losses_are_said(program: Path) -> None:
    done = run(program, "--check", "-c", "1", what="flood")
    assert "stream: 47 events lost" in done.stderr
    done = run(program, "--check", "-c", "1", "--json", what="flood")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["event"] for row in rows] == ["open"] * 3 + ["lost"]
    assert rows[-1]["lost"] == 47 and rows[-1]["ts"] > 1.7e9


def test_losses_are_said_while_it_runs(program: Path) -> None:
    done = run(program, "-c", "2", "-t", "0.3", what="flood")
    assert "events lost: they came faster than they could be read" in done.stderr


# ---------------------------------------------------------------- events beside figures


def test_check_has_the_events(program: Path) -> None:
    done = run(program, "--check", "-c", "1", what="rows")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "22:13:20.500 open pid 1201 path /x y",
        "22:13:20.500 open pid 1202 path /x y",
        "user  opens",
        "root      2",
        "ok      2 of 2 events",
        "stream: 1 of 1 verified",
    ]


def test_events_come_before_the_figures_of_their_round(program: Path) -> None:
    done = run(program, "-c", "1", "-t", "0.3", "--json", what="rows in turn")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row.get("event") for row in rows] == ["open", "open", None]
    assert list(rows[-1]) == ["ts", "round", "user", "opens"] and rows[-1]["opens"] == 2


def test_the_live_view_has_the_latest_events_below_the_table(program: Path) -> None:
    parent, child = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, str(program), "-c", "6", "-t", "0.2"],
        env=env("rows") | {"TERM": "xterm"},
        stdout=child,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(child)
    text = b""
    while True:
        try:
            data = os.read(parent, 65536)
        except OSError:  # the last writer is gone
            break
        text += data
    os.close(parent)
    _, errors = done.communicate(timeout=10)
    assert done.returncode == 0, errors
    last = re.sub(r"\x1b\[[0-9;]*m", "", text.decode().rpartition("\x1b[J")[2]).splitlines()
    assert last[0].startswith("stream") and last[1].split() == ["user", "opens", "opens/s"]
    assert last[2].startswith("root")
    shown = [int(line.split()[3]) for line in last[3:]]
    assert len(shown) == 8 and shown == list(range(shown[0], shown[0] + 8))


# ---------------------------------------------------------------- rows, verdicts


def test_the_stamp_and_the_report() -> None:
    before = time.time()
    first = stamp(3)
    assert list(first) == ["ts", "round"] and first["round"] == 3
    assert before - 1e-6 <= first["ts"] <= time.time()
    assert report("x", [(True, "a"), (False, "b")]) == (
        ["ok      a", "FAILED  b", "x: 1 of 2 verified: FAILED"],
        False,
    )
    assert report("x", [(True, "a")])[1] and not report("x", [])[1]


def test_the_base_class_does_not_bring_the_life_cycle() -> None:
    script = "import sys, bpfkit.app.base; print('bpfkit.app.lifecycle' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], env=env(""), capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
    assert "lifecycle import" not in Path(sys.modules[App.__module__].__file__ or "").read_text()


def test_asking_for_rows_or_lines_changes_nothing() -> None:
    from bpfkit.hooks.program import Hooks
    from bpfkit.xdp_drop_world import XdpDropWorld

    options = cast(Any, SimpleNamespace(check=False, json=False, netns=None))
    hooks = Hooks(options)
    hooks.found = [{"event": "application"}]
    # Without a lab nothing can be sent.
    assert hooks.rows() == hooks.rows() == [{"event": "application"}]

    world = XdpDropWorld(options)
    row = {"state": "on", "sent": 3, "received": 0, "packets": 3, "bytes": 294}
    assert list(world.lines([row])) == list(world.lines([row]))
    assert len(list(world.lines([row]))) == 2
