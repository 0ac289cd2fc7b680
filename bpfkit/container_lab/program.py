# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.container_lab: what XDP and tc on a container's cable do, and who sees what.

::

    container eth0 ──── c0 [XDP: xdp_drop_tcp in, tc: tc_drop_tcp out] ── br0 host up0 ──── outside

Five states (nothing, XDP, XDP and tc, tc, nothing again) times seven probes: is the probe answered,
and does a capture on c0 see it?  What XDP drops on the way in and what tc drops on the way out
never reaches the tap, so a capture there misses both.  Then a stream of SYNs while the programs
are switched on and off.  With ``--container`` the cable is that of a container of yours.

The C sides are bpf_c/xdp/xdp_drop_tcp.bpf.c and bpf_c/tc/tc_drop_tcp.bpf.c.  Who asks whom is in
bpfkit/container_lab/scene.py, what is attached in bpfkit/container_lab/cable.py.
"""

from __future__ import annotations

from bpfkit.app.base import App
from bpfkit.app.lifecycle import conclude
from bpfkit.app.options import port
from bpfkit.app.place import add_netns
from bpfkit.app.signals import output
from bpfkit.container_lab.scene import STATES, expected
from bpfkit.core.errors import BpfkitError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeVar

    from bpfkit.app.signals import Signals
    from bpfkit.container_lab.scene import Found
    from bpfkit.show.rows import Row, Verdict

    T = TypeVar("T")


class ContainerLab(App):
    """A container behind a bridge: what XDP and tc let through, what a capture there sees."""

    name = "container_lab"
    expects = (
        "TCP and pings cross a container's veth: nothing attached, XDP, XDP and tc, tc, "
        "nothing again"
    )
    needs = ("NET_ADMIN", "NET_RAW", "SYS_ADMIN", "BPF")
    has_live_view = False
    takes_netns = True

    @classmethod
    def types(cls) -> list[str]:
        return ["BPF_PROG_TYPE_XDP", "BPF_PROG_TYPE_SCHED_CLS"]

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        add = parser.add_argument
        add("-6", "--ipv6", action="store_true", help="the probes use IPv6")
        add("--stream", action="store_true", help="only the stream of SYNs, not the matrix")
        text = "how the tc program is attached (default: clsact, which `tc filter` shows)"
        add("--attach", choices=("clsact", "tcx"), default="clsact", help=text)
        modes = ("auto", "native", "generic", "offload")
        add("--mode", choices=modes, default="auto", help="where XDP runs (default: the best)")
        text = "a real container instead of the lab: its process id, or a namespace (name, path). "
        text += "INTERRUPTS ITS TCP TRAFFIC for as long as programs are attached: needs --yes"
        add("--container", metavar="PID", help=text)
        text = "with --container: yes, interrupt the container's TCP traffic"
        add("--yes", action="store_true", help=text)
        text = "with --container: attach nothing; only show which probes are answered and captured"
        add("--probe-only", action="store_true", help=text)
        text = "with --container: ask this TCP server beyond the host, too ([ADDRESS]:PORT, IPv6)"
        add("--outside", metavar="ADDRESS:PORT", type=_endpoint, help=text)
        add_netns(parser, "with --container: the host's network namespace", default="this one")

    def check_options(self) -> None:
        options = self.options
        if options.no_demo:
            raise UsageError("container_lab is its demo", why="--no-demo leaves nothing to observe")
        for name in ("outside", "netns"):
            if getattr(options, name) is not None and options.container is None:
                raise UsageError(f"--{name} needs --container", why="the lab has its own")
        for name in ("yes", "probe_only"):
            if getattr(options, name) and options.container is None:
                word = name.replace("_", "-")
                raise UsageError(f"--{word} needs --container", why="the lab is nobody's")
        if options.probe_only and (options.stream or options.check or options.yes):
            raise UsageError("--probe-only attaches nothing: no --stream, no --check, no --yes")
        if options.container is not None and not (options.yes or options.probe_only):
            raise UsageError(
                "--container interrupts the TCP traffic of a container that is in use",
                why="its connections stall while programs are attached",
                hint="--yes does it; --probe-only attaches nothing and is harmless",
            )
        if options.outside is not None and (":" in options.outside[0]) != options.ipv6:
            raise UsageError(
                f"{options.outside[0]} is not an IPv{6 if options.ipv6 else 4} address",
                hint="" if options.ipv6 else "--ipv6 asks by IPv6",
            )

    def enter(self) -> None:
        from bpfkit.container_lab.container import Container
        from bpfkit.net.links.lab import bridge_lab
        from bpfkit.net.links.netns import NetNS

        spec = self.options.container
        if spec is None:
            self.place.use_lab(self.keep(bridge_lab()))
            self.enter_namespace(self.lab["host"].dup())
            return
        host = self.place.open_namespace()
        if host is not None:
            self.enter_namespace(host)
        self.container = self.keep(Container(spec, self.keep(NetNS.current("host"))))
        interrupted = "while programs are on it, its TCP is interrupted"
        nothing = "nothing is attached, its traffic is left alone"
        self.note(f"{self.container}; {nothing if self.options.probe_only else interrupted}")

    def setup(self) -> None:
        from bpfkit import load
        from bpfkit.container_lab.cable import Cable
        from bpfkit.container_lab.scene import scene_of_container, scene_of_lab

        options = self.options
        if options.container is None:
            scene = scene_of_lab(self.lab, six=options.ipv6)
        else:
            scene = scene_of_container(self.container, six=options.ipv6, outside=options.outside)
        self.scene = self.keep(scene)
        self.interruptions: list[float] = []
        self._since: float | None = None
        if options.probe_only:
            return
        programs = {}
        for kind, source in (("xdp", "xdp/xdp_drop_tcp.bpf.c"), ("tc", "tc/tc_drop_tcp.bpf.c")):
            loaded = self.keep(load(source, cache=not options.no_cache))
            programs[kind] = next(iter(loaded.programs.values()))
        how, mode = options.attach, options.mode
        self.cable = self.keep(Cable(scene.device, scene.host, programs, how=how, mode=mode))
        web = scene.web
        self.note(f"web server in the container: {web.software}{f' ({web.why})' * bool(web.why)}")
        if options.container is not None:
            self._while_there(scene.probe_unfiltered)
            for probe, why in scene.left_out.items():
                self.note(f"left out {probe}: {why}")

    def _while_there(self, work: Callable[[], T]) -> T:
        """``work()``; whatever fails in it when the cable is gone, that is why."""
        try:
            return work()
        except (BpfkitError, OSError) as error:
            device = self.scene.device
            if device.still_there():
                raise
            raise BpfkitError(f"interface {device.name} was removed") from error

    def conclusion(self, rows: list[Row]) -> str:
        return (
            "seen: a capture on the veth shows nothing dropped: it lies behind XDP on the way "
            "in, behind tc on the way out"
        )

    def run(self, signals: Signals) -> int:
        if self.options.probe_only:
            self._show(0, STATES[0], self.scene.probe_all(STATES[0]), {})
            self.note("summary: nothing was attached, no traffic was interrupted")
            return 0
        try:
            return self._while_there(lambda: self._run_states(signals))
        finally:
            if self.options.container is not None:
                self._summarize()

    def _summarize(self) -> None:
        """Say what the run meant to the container."""
        self._count_time("none")
        times = self.interruptions
        device = self.scene.device
        if len(times) > 1:
            text = (
                f"{len(times)} times, {sum(times):.1f} s in all, {max(times):.1f} s at the longest"
            )
        else:
            text = f"once, for {times[0]:.1f} s" if times else "at no time"
        self.note(
            f"summary: TCP over {device.name} was interrupted {text}; no program of this run stays"
        )

    def _count_time(self, state: str) -> None:
        """Note how long programs were attached, when they come and go."""
        from time import monotonic

        now = monotonic()
        if state.startswith("none"):
            if self._since is not None:
                self.interruptions.append(now - self._since)
            self._since = None
        elif self._since is None:
            self._since = now

    def _run_states(self, signals: Signals) -> int:
        """The matrix, then the stream; the exit status."""
        options = self.options
        verdicts: list[Verdict] = []
        if not options.stream:
            for number in range(options.count or 1):
                verdicts += self._matrix(signals, number)
            if options.check:  # the other IP version is only judged
                for version in list(self.scene.addresses)[1:]:
                    self.scene.use_ip_version(version)
                    verdicts += self._matrix(signals)
        if options.stream or options.check or not options.json:
            verdicts += self._stream(signals)
        self._switch("none")
        if not options.check:
            return 0
        if signals.asked:
            self.note("interrupted, nothing was verified")
            return 1
        return conclude(self, verdicts)

    def _switch(self, state: str) -> None:
        if not state.startswith("none"):
            self._count_time(state)
        self.cable.switch(state)
        if state.startswith("none"):
            self._count_time(state)
        while self.cable.notes:
            self.note(self.cable.notes.pop(0))

    def _matrix(self, signals: Signals, number: int | None = None) -> Iterator[Verdict]:
        """All states one after the other, judged, and with a number shown as that round."""
        for state in STATES:
            if signals.asked:
                return
            self._switch(state)
            view = self.cable.view()
            found = self.scene.probe_all(state)
            if number is not None:
                self._show(number, state, found, view)
            for probe, was in found.items():
                text = ", ".join(
                    word if is_ else f"not {word}"
                    for word, is_ in zip(("answered", "captured"), was, strict=True)
                )
                yield (
                    was == expected(state, probe),
                    f"IPv{self.scene.version} {state}: {probe} {text}",
                )
            yield from self.cable.verify(state, view)
            if self.options.check and number == 0 and self.options.container is None:
                yield from self._tagged(state)

    def _tagged(self, state: str) -> Iterator[Verdict]:
        """Tagged frames on the cable, both ways: which come out of it at the other end?"""
        from bpfkit.net.traffic.tagged_frames import TaggedFrames

        ends = [one[:2] for one in self.scene.addresses.values()]
        back = [(there, here) for here, there in ends]
        inside, device, kinds = "container:eth0", "host:c0", ("TCP", "UDP")
        coming = TaggedFrames(self.lab, inside, device, ends, kinds, to="host:br0")
        going = TaggedFrames(self.lab, device, inside, back, kinds)
        yield from coming.verdicts(("TCP",) * ("xdp" in state), when=f"{state}: to the host, ")
        yield from going.verdicts(("TCP",) * ("tc" in state), when=f"{state}: to the container, ")

    def _show(self, number: int, state: str, found: Found, view: dict[str, str]) -> None:
        wanted = {probe: expected(state, probe) for probe in found}
        if not self.options.json:
            from bpfkit.container_lab.table import matrix

            output("\n".join(matrix(state, found, wanted, view)) + "\n")
            return
        self._json(
            number,
            (
                {
                    "state": state,
                    "probe": probe,
                    "expected": wanted[probe][0],
                    "answered": answered,
                    "captured": captured,
                }
                for probe, (answered, captured) in found.items()
            ),
        )

    def _stream(self, signals: Signals) -> Iterator[Verdict]:
        """A line a second, good if nothing is lost while the programs are off, all while on."""
        if not self.options.json:
            output("SYN probes from the host to the container, a line a second\n")
        seconds = 1 if self.options.check else 2
        for row in self.scene.stream(self._switch, lambda: signals.asked, seconds):
            text = " ".join(f"{field} {value}" for field, value in row.items())
            if not self.options.json:
                output(f"  {text}\n")
            elif self.options.stream:
                self._json(0, [row])
            good = row["received"] == (0 if row["programs"] == "on" else row["sent"])
            yield good, f"stream: {text}"

    def _json(self, number: int, rows: Iterable[Row]) -> None:
        from bpfkit.show.rows import json_rows

        output(json_rows(rows, number))


def _endpoint(text: str) -> tuple[str, int]:
    """``192.0.2.1:80`` or ``[2001:db8::1]:80`` (argparse type)."""
    from argparse import ArgumentTypeError
    from ipaddress import ip_address

    host, _, number = text.rpartition(":")
    try:
        return str(ip_address(host.removeprefix("[").removesuffix("]"))), port(number)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not ADDRESS:PORT") from None
