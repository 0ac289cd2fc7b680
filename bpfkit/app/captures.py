# SPDX-License-Identifier: Apache-2.0
"""``--pcap``: every packet of a capture through the loaded program, by BPF_PROG_TEST_RUN."""

from __future__ import annotations

import sys

from bpfkit.app.signals import output
from bpfkit.core.words import count_of, thousands

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bpfkit.app.base import App
    from bpfkit.show.rows import Row

    #: Runs a frame, the second number its original length in bytes; returns the return value.
    Run = Callable[[bytes, int], int]

__all__ = ["Progress", "Verdicts", "run_packets"]

_LINK_ETHERNET = 1  # LINKTYPE_ETHERNET
_CHUNK = 1024  # verdicts that are printed at once


def run_packets(
    app: App,
    path: str,
    load: Callable[[], Run],
    report: Callable[[int], None],
    finish: Callable[[], None],
) -> None:
    """Run the program on every packet of a capture, in constant memory; counts ``packets_run``.

    :param load: loads the program, once the file is known to be a capture.
    :param report: gets each return value, before the packet is counted.
    :param finish: called after the last packet.
    :raises InputError: the file is no capture, or is damaged.
    """
    from bpfkit.net.packets.pcap import PcapReader, to_ethernet

    with PcapReader(path) as records:
        run = load()
        for record in records:
            frame = record.data if record.linktype == _LINK_ETHERNET else to_ethernet(record)
            report(run(frame, record.orig_len))
            app.packets_run = record.number
        finish()
        for remark in records.remarks():
            app.note(remark)


class Verdicts:
    """Prints the verdict on each packet, then the sums.

    :param names: return value -> the kernel's constant.
    """

    def __init__(self, app: App, names: dict[int, str]) -> None:
        self._app = app
        self._names = names
        self._sums: dict[str, int] = {}
        self._rows: list[Row] = []

    def add(self, retval: int) -> None:
        """The verdict on the next packet, as BPF_PROG_TEST_RUN returns it (u32)."""
        # tc's verdicts are signed: TC_ACT_UNSPEC is -1
        signed = retval - (1 << 32) if retval >> 31 else retval
        action = self._names.get(retval) or self._names.get(signed) or str(signed)
        self._sums[action] = self._sums.get(action, 0) + 1
        self._rows.append({"index": self._app.packets_run, "action": action})
        if len(self._rows) == _CHUNK:
            self.flush()

    def flush(self) -> None:
        """Print the verdicts that were not printed yet."""
        if self._app.options.json:
            from bpfkit.show.rows import json_rows

            output(json_rows(self._rows, 0))
        else:
            output("".join([f"{row['index']:>7} {row['action']}\n" for row in self._rows]))
        self._rows.clear()

    def note_sums(self) -> None:
        """Say how many packets there were of each verdict."""
        if not self._app.options.json:
            sums = ", ".join(
                f"{action} {thousands(count)}" for action, count in sorted(self._sums.items())
            )
            self._app.note(
                f"{count_of(self._app.packets_run, 'packet')}: {sums}" if sums else "no packets"
            )


class Progress:
    """The number of packets that were run, on a terminal's standard error."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._is_shown = False
        self._on = sys.stderr.isatty()

    def add(self, retval: int) -> None:
        """Another packet was run."""
        count = self._app.packets_run
        if self._on and count and not count & 0xFFF:
            sys.stderr.write(f"\r{self._app.name}: {count_of(count, 'packet')}")
            sys.stderr.flush()
            self._is_shown = True

    def end(self) -> None:
        """Erase the line."""
        if self._is_shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
