# SPDX-License-Identifier: Apache-2.0
"""xdp_firewall's lists are swapped and edited under a flood that each of them denies.

What got in is what the kernel of the receiving side counts (/proc/net/snmp).  Editors are killed at
random moments: always a whole list is in force, the old one or the new one.
"""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfkit.net.links.lab import Lab
from bpfkit.xdp_firewall.control import Firewall, find
from bpfkit.xdp_firewall.demo import firewall_lab
from bpfkit.xdp_firewall.rules import Rule, RuleSet, parse_rule

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "bpfkit.xdp_firewall"]
FILLERS = [f"198.18.{i >> 8 & 255}.{i & 255}" for i in range(2000)]
#: Each denies UDP from 10.77.0.1 to port 9, each by another kind of rule.
LISTS = {
    "port": ["udp/9"],
    "range": ["udp/1-100", "tcp/80"],
    "protocol": ["proto udp", "allow tcp/80"],
    "host": ["10.77.0.1", "allow udp/9"],
    "network": ["10.77.0.0/16", "allow proto udp"],
}
#: With the list "port" in force: half of one of these would let the flood in.
EDITS = (
    ["allow 10.77.0.0/16", "10.77.0.1"],
    ["allow 10.77.0.0/16", "allow 10.0.0.0/8", "2001:db8::/32", "10.77.0.0/24", "tcp/5"],
    ["allow udp/1-9", "allow 10.77.0.0/16", "10.77.0.1"],
)
FLOOD = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect(("10.77.0.2", 9))
data = bytes(18)
while True:
    try:
        s.send(data)
    except OSError:
        pass
"""
EDITOR = """
import json, sys
from bpfkit.net.links.netns import NetNS
from bpfkit.xdp_firewall.control import find
from bpfkit.xdp_firewall.rules import RuleSet, parse_rule
with NetNS.open(sys.argv[1]) as ns:
    wall = ns.run(find, "eth0")
first, second = ([parse_rule(text) for text in texts] for texts in json.loads(sys.argv[3]))
one, two = RuleSet(first), RuleSet(second)
print("ready", flush=True)
while True:
    if sys.argv[2] == "load":
        wall.load(two)
        wall.load(one)
    else:
        wall.add(second)
        wall.delete(second)
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with firewall_lab() as made:
        yield made


def received() -> int:
    """IPv4 packets that this thread's namespace has received, by its own count."""
    lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    names, values = [line.split() for line in lines if line.startswith("Ip:")]
    return int(values[names.index("InReceives")])


class Flooded:
    """A firewall, a flood that it has to keep out, and a way to its rules."""

    def __init__(self, lab: Lab, texts: list[str]) -> None:
        self.lab = lab
        self.path = f"/proc/{os.getpid()}/fd/{lab['server'].fd}"
        args = [word for text in texts for word in ("--rule", text)]
        self.process = subprocess.Popen(
            [*COMMAND, "-i", "eth0", "--netns", self.path, "--events", "none", *args],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stderr is not None
        assert any("(program " in line for line in self.process.stderr)
        self.wall: Firewall = lab["server"].run(find, "eth0")
        self.before = lab["server"].run(received)
        inside = f"/proc/{os.getpid()}/fd/{lab['client'].fd}"
        self.flood = subprocess.Popen(["nsenter", f"--net={inside}", sys.executable, "-c", FLOOD])
        while self.dropped < 100:
            time.sleep(0.01)

    @property
    def dropped(self) -> int:
        return sum(packets for packets, _ in self.wall.totals()[5:10])

    @property
    def got_in(self) -> int:
        return self.lab["server"].run(received) - self.before

    def rules(self) -> set[str]:
        found = {
            str(Rule(action, address, length))
            for _, address, length, action, _, _ in self.wall.prefixes()
        }
        return found | {str(rule) for rule, _, _ in self.wall.others()}

    def __enter__(self) -> Flooded:
        return self

    def __exit__(self, *_: object) -> None:
        self.wall.close()
        for process in (self.flood, self.process):
            process.kill()
            process.communicate()


def rules(texts: list[str]) -> list[Rule]:
    return [parse_rule(text) for text in texts]


def names(texts: list[str]) -> set[str]:
    return {str(rule) for rule in rules(texts)}


def test_a_hundred_swaps_let_no_packet_in(lab: Lab) -> None:
    pairs = list(itertools.permutations(LISTS, 2))
    with Flooded(lab, LISTS[pairs[0][0]]) as flooded:
        for old, new in pairs * 2:
            flooded.wall.load(RuleSet(rules([*FILLERS, *LISTS[old]])))
            before = flooded.dropped
            flooded.wall.load(RuleSet(rules([*FILLERS, *LISTS[new]])))
            assert flooded.got_in == 0, (old, new)
            assert flooded.rules() == names([*FILLERS, *LISTS[new]])
            while flooded.dropped == before:  # the flood goes on
                time.sleep(0.001)
        swaps = 2 * 2 * len(pairs)
        for old, new in pairs:  # the same by edits
            flooded.wall.load(RuleSet(rules(LISTS[old])))
            flooded.wall.add(rules(LISTS[new]))
            swaps += 2
        assert swaps >= 100 and flooded.got_in == 0 and flooded.dropped > 10_000


def test_an_edit_of_several_rules_is_in_force_at_once(lab: Lab) -> None:
    with Flooded(lab, LISTS["port"]) as flooded:
        for edit in EDITS * 20:
            flooded.wall.add(rules(edit))
            flooded.wall.delete(rules(edit))
            assert flooded.rules() == names(LISTS["port"])
            assert flooded.got_in == 0, edit


@pytest.mark.parametrize("kind", ["load", "edit"])
def test_killed_editors_leave_a_whole_list(lab: Lab, kind: str) -> None:
    """A hundred kills, half of them of editors that load, half of editors that add and delete."""
    import json

    rng = random.Random(13)
    seen: dict[str, int] = {"old": 0, "new": 0}
    pairs = list(itertools.permutations(LISTS, 2))
    with Flooded(lab, LISTS["port"]) as flooded:
        for i in range(50):
            if kind == "load":
                first, second = (LISTS[name] for name in pairs[i % len(pairs)])
                first, second = [*FILLERS, *first], [*FILLERS[:1000], *second]
                allowed = [names(first), names(second)]
            else:
                first, second = LISTS["port"], EDITS[i % len(EDITS)]
                allowed = [names(first), names([*first, *second])]
            flooded.wall.load(RuleSet(rules(first)))
            editor = subprocess.Popen(
                [sys.executable, "-c", EDITOR, flooded.path, kind, json.dumps([first, second])],
                cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert editor.stdout is not None
            if editor.stdout.readline() != "ready\n":
                raise AssertionError(editor.communicate()[1])
            time.sleep(rng.random() * 0.1)
            assert editor.poll() is None, editor.communicate()[1]
            editor.kill()
            editor.communicate()
            there = flooded.rules()
            assert there in allowed, there ^ allowed[0]
            prefixes = sum("." in text or ":" in text for text in there)
            assert flooded.wall.count == prefixes
            seen["old" if there == allowed[0] else "new"] += 1
            assert flooded.got_in == 0, i
            flooded.wall.add(rules(["2001:db8:9::/48"]))  # the next editor undoes what was begun
            flooded.wall.delete(rules(["2001:db8:9::/48"]))
            assert flooded.rules() == there and flooded.wall.count == prefixes
        assert min(seen.values()) > 5, seen
        assert flooded.dropped > 10_000
