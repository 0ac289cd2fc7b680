# SPDX-License-Identifier: Apache-2.0
"""Base of the programs that are attached to an interface: by XDP (xdp.py) or tc (tc.py).

::

    wire ─▶ [XDP program] ─▶ tap ─▶ [tc ingress] ─▶ IP … IP ─▶ [tc egress] ─▶ tap ─▶ wire
                 │                       │                           │
                 └──── a verdict per packet; maps ──▶ rows() ────────┘

Without ``-i`` a program works in a lab of its own and never touches the machine's interfaces.
``--pcap`` prints the verdict on every packet of a capture.
"""

from __future__ import annotations

from bpfkit.app.base import App
from bpfkit.app.place import add_interface, add_netns, add_pcap, check_pcap
from bpfkit.app.watch import InterfaceWatch
from bpfkit.core.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable
    from typing import ClassVar

    from bpfkit.core.attach.link import Link
    from bpfkit.core.program import Program
    from bpfkit.net.links.interfaces import Interface
    from bpfkit.net.links.lab import Lab
    from bpfkit.show.rows import Row

__all__ = ["ETHERNET", "InterfaceApp"]

ETHERNET = 14  # bytes of header
_PRIORITY_TAG = b"\x81\x00\x00\x00"  # 802.1Q with VLAN id 0: no VLAN, only a priority


class InterfaceApp(App):
    """Attached to an interface; returns a verdict on each packet."""

    needs: tuple[str, ...] = ("NET_ADMIN", "BPF")
    demo_rounds = 3
    takes_capture = takes_netns = True
    #: Return value -> the kernel's constant.
    actions: ClassVar[dict[int, str]] = {}
    #: The lab's device that the program is attached to, ``namespace:device``.
    lab_device = "server:eth0"
    #: Does the program have a LOAD_CONST ``l2_len``?
    knows_l2_len = True
    #: False: frames shorter than an IP header cannot be run unchanged (see :meth:`frame_of`).
    runs_cut_ip = True

    interface: Interface

    def __init__(self, options: Namespace) -> None:
        super().__init__(options)
        #: The interface's links; empty while the program is detached.
        self.links: list[Link] = []
        self.watch = InterfaceWatch(self.note)
        self.check_regularly(self.watch.check)

    # -- command line

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        """Interface, namespace, capture."""
        add_interface(parser, "interface (default: a demo in a lab)")
        add_netns(parser)
        add_pcap(parser, "print the verdict on each packet of a capture")

    def check_options(self) -> None:
        """Captures exclude everything live; ``--check`` and the demo are for a lab only."""
        options = self.options
        if options.pcap is not None:
            check_pcap(options)
        if options.check and (options.interface or options.netns):
            raise UsageError(
                "--check makes a lab of its own", why="it takes neither --interface nor --netns"
            )
        if options.interface is None and options.pcap is None:
            if options.netns is not None:
                raise UsageError(
                    "--netns needs --interface", why="the demo has namespaces of its own"
                )
            if options.no_demo:
                raise UsageError("--no-demo needs --interface", why="a lab has no other traffic")

    # -- life cycle

    def build_lab(self) -> Lab:
        """The lab of the demo."""
        from bpfkit.net.links.lab import pair_lab

        return pair_lab()

    def enter(self) -> None:
        """Enter the namespace and find the interface: the given one, or the lab's."""
        from bpfkit.net.links.interfaces import Interface

        self.interface = Interface.find(self.enter_place())

    def enter_place(self) -> str:
        """Enter the lab's namespace, or that of ``--netns``; returns the interface's name."""
        options = self.options
        if options.interface is None:
            self.place.use_lab(self.keep(self.build_lab()))
            name, _, device = self.lab_device.partition(":")
            self.enter_namespace(self.lab[name].dup())
            return device
        namespace = self.place.open_namespace()
        if namespace is not None:
            self.enter_namespace(namespace)
        return str(options.interface)

    def setup(self) -> None:
        """Load and attach, and say how; watch the interface from then on."""
        self.attach(self.load_program(**self.link_consts(self.interface.l2_len)))
        self.start_watch()

    def start_watch(self) -> None:
        """Watch the interface, and run all checks for the first time."""
        self.watch.add(self.interface)
        self.check_target()

    def link_consts(self, l2_len: int) -> dict[str, int]:
        """The LOAD_CONST for interfaces with ``l2_len`` bytes of link header."""
        return {"l2_len": l2_len} if self.knows_l2_len else {}

    def attach(self, program: Program) -> None:
        """Attach the program, and say how."""
        for interface, link in self.attach_program(program):
            self.links.append(self.keep(link))
            self.watch.links.setdefault(interface.index, []).append(link)
        jit = "jited" if program.jited else "interpreted"
        kind, target = self.attach_mode(), self.describe_target()
        self.note(f"{kind} on {target} (program {program.id}, tag {program.tag}, {jit})")

    def detach(self) -> None:
        """Detach the program; :meth:`attach` may follow."""
        self.watch.links.clear()
        while self.links:
            link = self.links.pop()
            self._keep.remove(link)
            link.close()

    def attach_program(self, program: Program) -> list[tuple[Interface, Link]]:
        """Attach by XDP or tc."""
        raise NotImplementedError

    def attach_mode(self) -> str:
        """How the program is attached: ``XDP native``, ``tc egress by tcx``."""
        raise NotImplementedError

    def describe_target(self) -> str:
        """Interface and namespace."""
        return self.place.describe(self.interface.name)

    def wants_demo(self) -> bool:
        """The demo runs only in the lab."""
        return super().wants_demo() and self.place.has_lab

    # -- captures

    def frame_of(self, frame: bytes) -> bytes:
        """``frame`` as BPF_PROG_TEST_RUN takes it.

        The kernel runs nothing shorter than an Ethernet header, and no such frame reaches a
        program; missing bytes of that header become zeros, which are no ethertype.
        """
        frame = frame.ljust(ETHERNET, b"\0")
        if not self.runs_cut_ip and frame[12:14] in (b"\x08\x00", b"\x86\xdd") and len(frame) < 54:
            # The kernel does not run a tc program on an Ethernet header with an IP ethertype and
            # less than an IP header behind it.  With a priority tag in between it does, and to the
            # program that is the same frame.
            frame = frame[:12] + _PRIORITY_TAG + frame[12:]
        return frame

    def capture_rows(self) -> list[Row]:
        """The figures, for people only: in JSON a capture has one row per packet and no other."""
        return [] if self.options.json else self.rows()

    def run_capture(self, path: str) -> None:
        """Print the verdict on each packet of a capture."""
        from bpfkit.app.captures import Verdicts, run_packets

        verdicts = Verdicts(self, self.actions)

        def load() -> Callable[[bytes, int], int]:
            run = self.runner()
            return lambda frame, length: run(self.frame_of(frame), length)

        run_packets(self, path, load, verdicts.add, verdicts.flush)
        verdicts.note_sums()

    def runner(self) -> Callable[[bytes, int], int]:
        """Load the program; returns a function (frame, original length) -> return value."""
        return self.load_program(**self.link_consts(ETHERNET)).runner()
