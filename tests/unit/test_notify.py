# SPDX-License-Identifier: Apache-2.0
"""What the service manager is told, as its socket receives it."""

from __future__ import annotations

import socket

import pytest

from bpfkit.app.notify import notify


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_the_manager_gets_lines_of_name_and_value(kind, tmp_path, monkeypatch):
    place = str(tmp_path / "notify") if kind == "path" else f"@bpfkit-test-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(place.replace("@", "\0", 1) if kind == "abstract" else place)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", place)
        notify(READY="1", STATUS="attached to\neth0")
        assert manager.recv(999) == b"READY=1\nSTATUS=attached to eth0"


@pytest.mark.parametrize("place", ["", "relative", "/nonexistent/bpfkit", "@nobody-listens-here"])
def test_a_manager_that_is_not_there_is_no_error(place, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", place)
    notify(READY="1")
