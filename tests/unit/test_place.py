# SPDX-License-Identifier: Apache-2.0
"""Where a program works, and the watch of its interfaces."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest

from bpfkit.app.place import Place, check_pcap
from bpfkit.app.watch import InterfaceWatch
from bpfkit.core.errors import BpfkitError, UsageError


class FakeInterface:
    """An interface whose flags the test sets; None: removed."""

    def __init__(self, index: int, flags: int | None = 1) -> None:
        self.index, self.name, self.flags = index, f"if{index}", flags

    def current_flags(self) -> int | None:
        return self.flags

    def is_up(self) -> bool:
        return bool(self.flags)


def watched(*interfaces: Any, removed: Any = None) -> tuple[InterfaceWatch, list[str]]:
    said: list[str] = []
    watch = InterfaceWatch(said.append)
    if removed is not None:
        watch.report_as("port", removed)
    for interface in interfaces:
        watch.add(interface)
    return watch, said


def test_a_program_without_a_lab_says_so_when_asked_for_it() -> None:
    place = Place()
    assert not place.has_lab
    with pytest.raises(BpfkitError, match="no lab: only the demo and --check build one"):
        _ = place.lab
    lab: Any = object()
    place.use_lab(lab)
    assert place.has_lab and place.lab is lab


def test_the_description_names_the_namespace() -> None:
    assert Place().describe("eth0") == "eth0"
    assert Place("blue").describe("eth0") == "eth0 of namespace blue"
    place = Place("blue")
    place.use_lab(object())  # type: ignore[arg-type]
    assert place.describe("eth0") == "eth0 of a namespace of its own"


@pytest.mark.parametrize("name", ["interface", "netns", "check"])
def test_a_capture_excludes_what_is_live(name: str) -> None:
    options = {"interface": None, "netns": None, "check": False}
    check_pcap(Namespace(**options))
    with pytest.raises(UsageError, match=f"--pcap and --{name} do not go together"):
        check_pcap(Namespace(**{**options, name: "x"}))


def test_an_interface_goes_down_comes_back_and_is_removed() -> None:
    interface = FakeInterface(7)
    watch, said = watched(interface)
    watch.check()
    assert said == []
    interface.flags = 0
    watch.check()
    watch.check()
    interface.flags = 1
    watch.check()
    assert said == [
        "interface if7 went down, waiting for it to come back",
        "interface if7 is up again",
    ]
    interface.flags = None
    with pytest.raises(BpfkitError, match="interface if7 was removed; stopping"):
        watch.check()


def test_an_interface_that_is_down_at_the_start_is_reported_once() -> None:
    watch, said = watched(FakeInterface(7, 0))
    watch.check()
    assert said == ["interface if7 is down, waiting for it to come up"]


def test_several_interfaces_go_on_when_one_is_removed() -> None:
    gone: list[Any] = []
    one, other = FakeInterface(1), FakeInterface(2, 0)
    watch, said = watched(one, other, removed=gone.append)
    watch.check()
    assert said == ["port if2 went down"]
    one.flags = None
    watch.check()
    watch.check()
    assert gone == [one]
