# SPDX-License-Identifier: Apache-2.0
"""python -m bpfkit.container_lab: what XDP and tc on a container's cable do, and who sees what.

::

    container eth0 ──── c0 [XDP: xdp_drop_tcp in, tc: tc_drop_tcp out] ── br0 host up0 ──── outside

Five states (nothing, XDP, XDP and tc, tc, nothing again) times seven probes: is the probe answered,
and does a capture on c0 see it?  What XDP drops on the way in and what tc drops on the way out
never reaches the tap, so a capture there misses both.  Then a stream of SYNs while the programs
are switched on and off.

The C sides are bpf_c/xdp/xdp_drop_tcp.bpf.c and bpf_c/tc/tc_drop_tcp.bpf.c.
"""

from __future__ import annotations

from time import monotonic, sleep
from time import time as unix_time

from bpfkit.app import App, main, output
from bpfkit.core.errors import BpfkitError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable

    from bpfkit.app import Row, Signals, Verdict
    from bpfkit.core.link import Link
    from bpfkit.core.program import Program
    from bpfkit.net.lab import Lab
    from bpfkit.net.packet_socket import Packet

STATES = ("none", "xdp", "xdp+tc", "tc", "none-again")
#: Probe -> what it asks.
PROBES = (
    "container-outside-tcp",
    "container-bridge-tcp",
    "host-container-http",
    "host-container-syn",
    "host-container-ping",
    "container-outside-ping",
    "host-itself-tcp",
)
CONTAINER, BRIDGE, OUTSIDE = (
    ("10.77.3.2", "fd77:3::2"),
    ("10.77.3.1", "fd77:3::1"),
    (
        "10.77.4.2",
        "fd77:4::2",
    ),
)
PORT = 5201
_RATE = 20  # SYNs a second of the stream
_TCP, _ICMP, _ICMP6 = 6, 1, 58


def expected(state: str, probe: str) -> tuple[bool, bool]:
    """(is it answered, does a capture on the host's end of the cable see it)."""
    xdp, tc = "xdp" in state, "tc" in state
    if probe == "host-itself-tcp":
        return True, False  # goes over lo
    if probe.endswith("-ping"):
        return True, True
    # A request is lost where it meets the program; an answer is lost just the same.
    request_lost = xdp if probe.startswith("container") else tc
    return not (xdp or tc), not request_lost


class ContainerLab(App):
    """A container behind a bridge: what XDP and tc let through, and what a capture there sees."""

    name = "container_lab"
    needs = ("NET_ADMIN", "NET_RAW", "SYS_ADMIN", "BPF")
    has_live_view = False

    def __init__(self, options: Namespace) -> None:
        super().__init__(options)
        self._links: dict[str, Link] = {}

    @classmethod
    def types(cls) -> list[str]:
        return ["BPF_PROG_TYPE_XDP", "BPF_PROG_TYPE_SCHED_CLS"]

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        add = parser.add_argument
        add("-6", "--ipv6", action="store_true", help="the probes use IPv6")
        add("--stream", action="store_true", help="only the stream of SYNs, not the matrix")

    def check_options(self) -> None:
        if self.options.no_demo:
            raise UsageError("container_lab is its demo", why="--no-demo leaves nothing to observe")

    def enter(self) -> None:
        from bpfkit.net.lab import bridge_lab

        self.lab: Lab = self.keep(bridge_lab())
        self.enter_namespace(self.lab["host"].dup())

    def setup(self) -> None:
        from bpfkit import load
        from bpfkit.net.interfaces import Interface
        from bpfkit.net.probes import Listener

        cache = not self.options.no_cache
        self.programs: dict[str, Program] = {}
        for kind, source in (("xdp", "xdp/xdp_drop_tcp"), ("tc", "tc/tc_drop_tcp")):
            loaded = self.keep(load(f"{source}.bpf.c", cache=cache))
            self.programs[kind] = next(iter(loaded.programs.values()))
        self.cable = Interface.find("c0")
        for name in ("container", "host", "outside"):
            self.keep(Listener(self.lab[name], PORT))

    # -- states

    def switch(self, state: str) -> None:
        """Attach and detach what the state wants."""
        for kind in ("xdp", "tc"):
            wanted = kind in state
            if wanted and kind not in self._links:
                self._links[kind] = self.keep(self._attach(kind))
            elif not wanted and kind in self._links:
                link = self._links.pop(kind)
                self._keep.remove(link)
                link.close()

    def _attach(self, kind: str) -> Link:
        program, index = self.programs[kind], self.cable.index
        if kind == "xdp":
            return program.attach_xdp(index)
        return program.attach_tc(index, "egress", "clsact")

    def kernel_view(self) -> dict[str, str]:
        """What the usual tools show of the cable's end: command -> its output, or what lacks."""
        commands = (
            "ip link show dev c0",
            "tc qdisc show dev c0",
            "tc filter show dev c0 egress",
            "bpftool net show dev c0",
        )
        shown = {}
        for command in commands:
            try:
                shown[command] = self.lab["host"].check_output(command.split()).strip()
            except BpfkitError as error:
                shown[command] = f"({error.why or error})"
        return shown

    # -- probes

    def probe(self, number: int) -> dict[str, tuple[bool, bool]]:
        """All probes at once, in state ``number``; probe -> (answered, captured)."""
        from threading import Thread

        from bpfkit.net.capture import Capture
        from bpfkit.net.probes import SynProber, http_answers, tcp_answers
        from bpfkit.net.traffic import ping

        six = int(self.options.ipv6)
        container, host = self.lab["container"], self.lab["host"]
        inside, bridge, outside = CONTAINER[six], BRIDGE[six], OUTSIDE[six]
        # A port for each state: late answers of the one before are not taken for this one's.
        first = 30000 + 10 * number
        syn = SynProber(inside, PORT, ns=host)
        syn.sport = first + 3
        asks: tuple[Callable[[], bool], ...] = (
            lambda: tcp_answers(outside, PORT, ns=container, sport=first),
            lambda: tcp_answers(bridge, PORT, ns=container, sport=first + 1),
            lambda: http_answers(inside, PORT, ns=host, sport=first + 2),
            syn.answers,
            lambda: ping(inside, ns=host).received == 1,
            lambda: ping(outside, ns=container).received == 1,
            lambda: tcp_answers(bridge, PORT, ns=host, sport=first + 6),
        )
        answered = [False] * len(asks)
        errors: list[BaseException] = []

        def ask(i: int) -> None:
            try:
                answered[i] = asks[i]()
            except BaseException as error:
                errors.append(error)

        try:
            with Capture("c0", ns=host) as capture:
                threads = [Thread(target=ask, args=(i,)) for i in range(len(asks))]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                seen = [_identify(packet) for packet in capture.packets]
        finally:
            syn.close()
        if errors:
            raise errors[0]
        captured = [
            any(proto == _TCP and first + i in ports for proto, ports, _ in seen)
            for i in range(len(asks))
        ]
        for i, other in ((4, bridge), (5, outside)):
            captured[i] = any(proto != _TCP and other in hosts for proto, _, hosts in seen)
        return dict(zip(PROBES, zip(answered, captured, strict=True), strict=True))

    # -- the play

    def conduct(self, signals: Signals) -> int:
        verdicts: list[Verdict] = []
        options = self.options
        rows = 0
        if not options.stream:
            for number, state in enumerate(STATES):
                if signals.asked:
                    break
                self.switch(state)
                view = self.kernel_view()
                found = self.probe(number)
                rows += len(found)
                self._show(state, found, view)
                verdicts += self._judge(state, found, view)
            self.switch("none")
        if not signals.asked and (options.stream or options.check or not options.json):
            verdicts += self._stream(signals)
        if not options.check:
            return 0
        if signals.asked:
            self.note("interrupted, nothing was verified")
            return 1
        good = sum(fine for fine, _ in verdicts)
        report = [f"{'ok' if fine else 'FAILED':8}{text}" for fine, text in verdicts]
        failed = "" if good == len(verdicts) else ": FAILED"
        report.append(f"{self.name}: {good} of {len(verdicts)} verified{failed}")
        if options.json:
            self.note("\n".join(report))
        else:
            output("\n".join(report) + "\n")
        return 1 if failed else 0

    def _show(self, state: str, found: dict[str, tuple[bool, bool]], view: dict[str, str]) -> None:
        if self.options.json:
            from bpfkit.show.jsonl import json_lines

            stamp = {"ts": round(unix_time(), 6), "round": 0, "state": state}
            output(
                json_lines(
                    {
                        **stamp,
                        "probe": probe,
                        "expected": expected(state, probe)[0],
                        "answered": answered,
                        "captured": captured,
                    }
                    for probe, (answered, captured) in found.items()
                )
            )
            return
        from bpfkit.show.text import cell, table

        body = []
        for probe, (answered, captured) in found.items():
            wanted = expected(state, probe)
            right = "" if wanted == (answered, captured) else "UNEXPECTED"
            words = (wanted[0], answered, wanted[1], captured)
            body.append([probe, *map(cell, words), right])
        titles = ["probe", "answer expected", "observed", "capture expected", "observed", ""]
        lines = [f"state {state}", *table(titles, body, indent="  ")]
        for command, text in view.items():
            lines += [f"  # {command}", *(f"    {line.strip()}" for line in text.splitlines())]
        output("\n".join(lines) + "\n\n")

    def _judge(
        self, state: str, found: dict[str, tuple[bool, bool]], view: dict[str, str]
    ) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for probe, was in found.items():
            wanted = expected(state, probe)
            words = ", ".join(
                text if is_ else f"not {text}"
                for text, is_ in zip(("answered", "captured"), was, strict=True)
            )
            verdicts.append((wanted == was, f"{state}: {probe} {words}"))
        link, qdisc, filters = list(view.values())[:3]
        for kind, text in (("xdp", link), ("tc", filters)):
            number = f"id {self.programs[kind].id} "
            is_shown = number in f"{text} ".replace("\n", " ")
            where = "ip link" if kind == "xdp" else "tc filter"
            said = "shows" if is_shown else "does not show"
            verdicts.append((is_shown == (kind in state), f"{state}: {where} {said} {number}"))
        has = "clsact" in qdisc
        said = "has" if has else "has no"
        verdicts.append((has == ("tc" in state), f"{state}: the interface {said} clsact"))
        return verdicts

    def _stream(self, signals: Signals) -> list[Verdict]:
        """SYNs to the container; the programs are off, on and off again, two seconds each."""
        from bpfkit.net.probes import SynProber

        verdicts: list[Verdict] = []
        prober = SynProber(CONTAINER[int(self.options.ipv6)], PORT, ns=self.lab["host"])
        prober.sport = 40000
        if not self.options.json:
            output("SYN probes from the host to the container, a line a second\n")
        try:
            for second, on in enumerate((False, False, True, True, False, False)):
                self.switch("xdp+tc" if on else "none")
                sent, received = prober.sent, prober.received
                began = monotonic()
                for i in range(_RATE):
                    if signals.asked:
                        return verdicts
                    prober.send()
                    prober.receive(monotonic())
                    sleep(max(0.0, began + (i + 1) / _RATE - monotonic()))
                prober.receive(monotonic() + 0.2)
                prober.forget()
                row = {
                    "second": second,
                    "programs": "on" if on else "off",
                    "sent": prober.sent - sent,
                    "received": prober.received - received,
                }
                good = row["received"] == (0 if on else row["sent"])
                text = " ".join(f"{field} {value}" for field, value in row.items())
                verdicts.append((good, f"stream: {text}"))
                self._tell(row, text)
        finally:
            prober.close()
        return verdicts

    def _tell(self, row: Row, text: str) -> None:
        if not self.options.json:
            output(f"  {text}\n")
        elif self.options.stream:
            from bpfkit.show.jsonl import json_lines

            output(json_lines([{"ts": round(unix_time(), 6), "round": 0, **row}]))


def _identify(packet: Packet) -> tuple[int, tuple[int, ...], tuple[str, ...]]:
    """(protocol, ports, addresses) of a TCP, ICMP or ICMPv6 echo packet; zeros for others."""
    import _socket

    data = packet.data
    kind = data[12:14]
    if kind == b"\x08\x00" and len(data) >= 34:
        proto, at = data[23], 14 + (data[14] & 15) * 4
        raw = (data[26:30], data[30:34])
        family = _socket.AF_INET
    elif kind == b"\x86\xdd" and len(data) >= 54:
        proto, at = data[20], 54
        raw = (data[22:38], data[38:54])
        family = _socket.AF_INET6
    else:
        return 0, (), ()
    hosts = tuple(_socket.inet_ntop(family, address) for address in raw)
    if proto == _TCP:
        ports = (
            int.from_bytes(data[at : at + 2], "big"),
            int.from_bytes(data[at + 2 : at + 4], "big"),
        )
        return proto, ports, hosts
    if proto == _ICMP or (proto == _ICMP6 and data[at : at + 1] in (b"\x80", b"\x81")):
        return proto, (), hosts
    return 0, (), ()


if __name__ == "__main__":
    raise SystemExit(main(ContainerLab))
