# SPDX-License-Identifier: Apache-2.0
"""truncate: how much of a TCP segment the filter keeps, by BPF_PROG_TEST_RUN."""

from __future__ import annotations

from struct import Struct

import pytest
from scapy.layers.inet import TCP

import bpfkit

SEGMENT = Struct("=QIIHHHBBII")
MESSAGE = b"hello world"


@pytest.mark.parametrize("options", [[], [("Timestamp", (1, 2)), ("NOP", None), ("NOP", None)]])
@pytest.mark.parametrize("size", [0, 1, 5, 6, 10, 11, 12, 1400])
def test_only_long_segments_are_cut_behind_their_header(
    options: list[tuple[str, object]], size: int
) -> None:
    with bpfkit.load("socket/truncate.bpf.c") as loaded:
        header = bytes(TCP(sport=1, dport=5201, seq=7, ack=9, flags="PA", options=options))
        segment = header + MESSAGE.ljust(size, b".")[:size]
        kept = 5 if size > 10 else size
        # on a TCP socket the buffer starts with the TCP header
        with loaded["segments"].open() as records:
            assert loaded.programs["truncate"].run(segment).retval == len(header) + kept
            (record,) = [SEGMENT.unpack(bytes(raw)) for raw in records.poll(0)]
        assert record[0] > 0
        assert record[1:5] == (7, 9, 1, 5201)
        assert record[6:] == (0x18, len(header), size, kept)


def test_limits_are_constants() -> None:
    consts = {"longer_than": 3, "keep": 2}
    with bpfkit.load("socket/truncate.bpf.c", consts=consts) as loaded:
        run = loaded.programs["truncate"].run
        assert [run(bytes(TCP()) + MESSAGE[:n]).retval - 20 for n in (2, 3, 4, 11)] == [2, 3, 2, 2]


def test_a_full_ring_buffer_is_counted() -> None:
    with bpfkit.load("socket/truncate.bpf.c") as loaded:
        loaded.programs["truncate"].run(bytes(TCP()), repeat=10000)
        with loaded["segments"].open() as records:
            read = len(list(records.poll(0)))
        assert 0 < read < 10000
        assert loaded["lost"][0] == 10000 - read
