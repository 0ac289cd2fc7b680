# SPDX-License-Identifier: Apache-2.0
"""xdp_lb's backends file while somebody writes it: half a file is no file."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from bpfkit.core.errors import InputError
from bpfkit.xdp_lb.keeper import Keeper

GOOD = "10.0.0.1\n10.0.0.2\n"


class Kept(Keeper):
    """A keeper that only reads its file."""

    def __init__(self, path: Path) -> None:
        self.said: list[str] = []
        self.applied: list[dict[str, int]] = []
        balancer = SimpleNamespace(backends={})
        super().__init__(
            balancer, None, {}, str(path),  # type: ignore[arg-type]
            port=0, on_link=False, interval=0.01, timeout=1, health=None,  # type: ignore[arg-type]
            tell=lambda text: self.said.append(str(text)), lock=None,  # type: ignore[arg-type]
        )  # fmt: skip

    def _set_backends(self, wanted: dict[str, int]) -> None:
        self.applied.append(wanted)
        self.balancer.backends = {  # type: ignore[assignment]
            name: SimpleNamespace(weight=weight) for name, weight in wanted.items()
        }

    @property
    def names(self) -> list[str]:
        return sorted(self.balancer.backends)


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    path = tmp_path / "backends"
    path.write_text(GOOD)
    made = Kept(path)
    made._reread()
    made._reread()
    assert made.names == ["10.0.0.1", "10.0.0.2"]
    return made


def test_a_truncated_file_is_not_no_backends(kept: Kept, tmp_path: Path) -> None:
    path = tmp_path / "backends"
    for content in ("", "\n", "# nothing\n"):
        path.write_text(content)
        for _ in range(4):
            assert kept._reread() == []
        assert kept.names == ["10.0.0.1", "10.0.0.2"]
    assert sum("has no backends" in text for text in kept.said) == 3, "each is said once"
    path.write_text("10.0.0.3\n")
    assert kept._reread() == []
    assert "10.0.0.3 added" in kept._reread()


def test_a_file_that_grows_is_left_alone_until_it_stands_still(kept: Kept, tmp_path: Path) -> None:
    with open(tmp_path / "backends", "w") as file:
        for number in range(20):
            file.write(f"10.0.1.{number}\n")
            file.flush()
            assert kept._reread() == []
            time.sleep(0.002)
    assert kept.names == ["10.0.0.1", "10.0.0.2"] and not kept.said
    kept._reread()
    assert len(kept.names) == 20


def test_a_file_that_is_gone_or_bad_keeps_the_backends(kept: Kept, tmp_path: Path) -> None:
    path = tmp_path / "backends"
    path.unlink()
    for _ in range(4):
        kept._reread()
    assert len(kept.said) == 1 and "cannot read" in kept.said[0]
    path.write_text("10.0.0.1\nno address\n")
    for _ in range(4):
        kept._reread()
    assert len(kept.said) == 2 and ":2:" in kept.said[1]
    assert kept.names == ["10.0.0.1", "10.0.0.2"]
    path.write_text(GOOD + "10.0.0.9\n")
    for _ in range(2):
        kept._reread()
    assert len(kept.names) == 3


def test_an_error_of_a_check_does_not_end_the_keeper(kept: Kept) -> None:
    calls = []

    def tick() -> None:
        calls.append(1)
        raise (OSError(24, "Too many open files") if len(calls) % 2 else InputError("bad"))

    kept.tick = tick  # type: ignore[method-assign]
    import threading

    thread = threading.Thread(target=kept._run)
    thread.start()
    while len(calls) < 10:
        time.sleep(0.01)
    kept._end.set()
    thread.join()
    assert kept.error is None and len(kept.said) == 2
