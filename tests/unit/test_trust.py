# SPDX-License-Identifier: Apache-2.0
"""Directories that root relies on: who owns the way to them, whatever the umask is."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfkit.core.trust import UntrustedError, is_trusted, open_trusted

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="giving files away takes root")
NOBODY = 65534


@pytest.fixture
def umask_0() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask_0")
def test_directories_are_closed_to_others_whatever_the_umask(tmp_path: Path) -> None:
    os.close(open_trusted(str(tmp_path / "a/bpfkit/headers"), create=True))
    for name in ("a", "a/bpfkit", "a/bpfkit/headers"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o700


def test_a_umask_that_takes_everything_is_no_hindrance(tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        os.close(open_trusted(str(tmp_path / "a/b"), create=True))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a/b").stat().st_mode) == 0o700


@ROOT
@pytest.mark.parametrize("foreign", ["top", "top/middle", "top/middle/end"])
def test_every_directory_on_the_way_counts(tmp_path: Path, foreign: str) -> None:
    end = tmp_path / "top/middle/end"
    end.mkdir(parents=True)
    assert is_trusted(str(end))
    os.chown(tmp_path / foreign, NOBODY, NOBODY)
    with pytest.raises(UntrustedError, match=f"{foreign} belongs to uid {NOBODY}"):
        open_trusted(str(end))
    os.chown(tmp_path / foreign, 0, 0)
    os.chmod(tmp_path / foreign, 0o757)
    with pytest.raises(UntrustedError, match="writable by everybody"):
        open_trusted(str(end))
    os.chmod(tmp_path / foreign, 0o775)
    os.chown(tmp_path / foreign, 0, NOBODY)
    with pytest.raises(UntrustedError, match=f"writable by group {NOBODY}"):
        open_trusted(str(end))


@ROOT
def test_a_link_to_a_directory_of_somebody_else(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    os.chown(foreign, NOBODY, NOBODY)
    (tmp_path / "link").symlink_to(foreign)
    assert not is_trusted(str(tmp_path / "link"))
    assert not is_trusted(str(tmp_path / "link/below"))


def test_a_sticky_directory_of_roots_is_on_the_way(tmp_path: Path) -> None:
    assert stat.S_IMODE(os.stat("/tmp").st_mode) & stat.S_ISVTX
    inside = Path("/tmp") / f"bpfkit-trust-{os.getpid()}"
    inside.mkdir(0o700)
    try:
        assert is_trusted(str(inside))
    finally:
        inside.rmdir()


def test_our_own_directory_that_others_may_write_to_is_closed(tmp_path: Path) -> None:
    """What an umask of 0 left behind; a directory that is not bpfkit's is never changed."""
    ours, other = tmp_path / "bpfkit", tmp_path / "other"
    for directory in (ours, other):
        directory.mkdir()
        directory.chmod(0o777)
    assert is_trusted(str(ours))
    assert stat.S_IMODE(ours.stat().st_mode) == 0o700
    assert not is_trusted(str(other))
    assert stat.S_IMODE(other.stat().st_mode) == 0o777


def test_a_missing_directory_is_an_ordinary_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_trusted(str(tmp_path / "none"))
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        open_trusted(str(tmp_path / "file/below"), create=True)
