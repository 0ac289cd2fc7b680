# SPDX-License-Identifier: Apache-2.0
"""Base of the programs that decide about the packets of an interface: XDP and tc.

::

    wire ─▶ [XDP program] ─▶ tap ─▶ [tc ingress] ─▶ IP … IP ─▶ [tc egress] ─▶ tap ─▶ wire
                 │                       │                           │
                 └──── a verdict per packet; maps ──▶ rows() ────────┘

What they share: which interface and network namespace, how the program is attached (and in which
mode it really runs), whose program is in the way, what becomes of the interface meanwhile, and
``--pcap``: the verdict on every packet of a capture, by BPF_PROG_TEST_RUN.

Without ``-i`` a program works in a lab of its own and never touches the machine's interfaces.
"""

from __future__ import annotations

import errno

from bpfkit.app.base import App
from bpfkit.app.signals import output
from bpfkit.core.errors import AttachError, BpfkitError, UnsupportedError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable
    from typing import Any, ClassVar

    from bpfkit.core.attach.link import Link
    from bpfkit.core.object import Object
    from bpfkit.core.program import Program
    from bpfkit.net.links.interfaces import Interface
    from bpfkit.net.links.lab import Lab
    from bpfkit.show.rows import Row

__all__ = ["HookApp", "TcApp", "XdpApp"]

_ETHERNET = 14
_LINK_ETHERNET = 1  # LINKTYPE_ETHERNET
_PRIORITY_TAG = b"\x81\x00\x00\x00"  # 802.1Q with VLAN id 0: no VLAN, only a priority
_CHUNK = 1024  # verdicts that are printed at once


class HookApp(App):
    """Decides about packets at an interface."""

    needs: tuple[str, ...] = ("NET_ADMIN", "BPF")
    demo_rounds = 3
    takes_capture = takes_netns = True
    #: The function to attach; "" is the first of the source.
    entry = ""
    #: Return value -> the kernel's constant.
    actions: ClassVar[dict[int, str]] = {}
    #: Where the program goes in the lab, ``namespace:device``.
    spot = "server:eth0"
    #: Does the program have a LOAD_CONST ``l2_len``?
    knows_l2_len = True
    #: False: frames of less than an IP header cannot be run as they are (see :meth:`frame_of`).
    runs_cut_ip = True

    interface: Interface
    object: Object
    lab: Lab | None = None
    link: Link | None = None

    def __init__(self, options: Namespace) -> None:
        super().__init__(options)
        self._up = True

    # -- command line

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        """Interface, namespace, capture."""
        add = parser.add_argument
        add("-i", "--interface", metavar="IF", help="interface (default: a demo in a lab)")
        add("--netns", metavar="NS", help="network namespace: a name, a process id or a path")
        add("--pcap", metavar="FILE", help="the verdict on each packet of a capture")

    def check_options(self) -> None:
        """Captures exclude everything live; ``--check`` and the demo are for a lab only."""
        options = self.options
        for live in ("interface", "netns", "check"):
            if options.pcap is not None and getattr(options, live) not in (None, False):
                raise UsageError(
                    f"--pcap and --{live} do not go together", why="a capture is not live"
                )
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
                raise UsageError("--no-demo needs --interface", why="in a lab nothing else happens")

    # -- life cycle

    def make_lab(self) -> Lab:
        """Where the demo plays."""
        from bpfkit.net.links.lab import pair_lab

        return pair_lab()

    def enter(self) -> None:
        """Find the interface: the given one, or that of a lab."""
        from bpfkit.net.links.interfaces import Interface
        from bpfkit.net.links.netns import NetNS

        options = self.options
        if options.interface is None:
            self.lab = self.keep(self.make_lab())
            name, _, device = self.spot.partition(":")
            self.enter_namespace(self.lab[name].dup())
        else:
            device = options.interface
            if options.netns is not None:
                self.enter_namespace(NetNS.open(options.netns))
        self.interface = Interface.find(device)

    def setup(self) -> None:
        """Load and attach, and say how."""
        program = self.program(self.interface.l2_len)
        self.attach(program)
        self._up = self.interface.is_up()
        if not self._up:
            self.note(f"interface {self.interface.name} is down, waiting for it to come up")

    def consts(self) -> dict[str, int]:
        """More LOAD_CONSTs."""
        return {}

    def prepare(self, loaded: Object) -> None:
        """Between loading and attaching: fill maps."""

    def program(self, l2_len: int) -> Program:
        """Load, and return the program to attach.

        :param l2_len: LOAD_CONST ``l2_len``: bytes of link header.
        """
        consts = {"l2_len": l2_len} if self.knows_l2_len else {}
        self.object = self.load(**consts, **self.consts())
        self.prepare(self.object)
        programs = self.object.programs
        return programs[self.entry or next(iter(programs))]

    def attach(self, program: Program) -> None:
        """Put the program on :attr:`interface`, as :attr:`link`; says how it is attached."""
        self.link = self.keep(self.hook(program))
        jit = "jited" if program.jited else "interpreted"
        self.note(
            f"{self.how()} on {self.where()} (program {program.id}, tag {program.tag}, {jit})"
        )

    def detach(self) -> None:
        """Take it off again; :meth:`attach` may follow."""
        if self.link is not None:
            self._keep.remove(self.link)
            self.link.close()
            self.link = None

    def hook(self, program: Program) -> Link:
        """Attach by the means of the kind of hook."""
        raise NotImplementedError

    def how(self) -> str:
        """How it is attached: ``XDP native``, ``tc egress by tcx``."""
        raise NotImplementedError

    def where(self) -> str:
        """Interface and namespace."""
        options = self.options
        name = self.interface.name
        if self.lab is not None:
            return f"{name} of a namespace of its own"
        return f"{name} of namespace {options.netns}" if options.netns else name

    def wants_demo(self) -> bool:
        """Own traffic only in the lab."""
        return super().wants_demo() and self.lab is not None

    def look(self) -> None:
        """Tell once when the interface goes down and when it is back; raise when it is gone."""
        flags = self.interface.current_flags()
        name = self.interface.name
        if flags is None:
            raise BpfkitError(f"interface {name} was removed", why="the program went with it")
        if self._up != bool(flags & 1):
            self._up = not self._up
            self.note(
                f"interface {name} is up again"
                if self._up
                else f"interface {name} went down, waiting for it to come back"
            )
        if self.link is not None and self.link.fd >= 0 and not self._holds(self.link.fd):
            raise BpfkitError(
                f"the program was taken off {name}", why="somebody else has detached its link"
            )

    @staticmethod
    def _holds(fd: int) -> bool:
        """Is the link still attached?  A detached one names interface 0."""
        from bpfkit.core.kernel.syscall import obj_info

        return obj_info(fd, 24)[16:20] != bytes(4)

    # -- captures

    def frame_of(self, frame: bytes) -> bytes:
        """``frame`` as BPF_PROG_TEST_RUN takes it.

        The kernel runs nothing shorter than an Ethernet header, and no such frame reaches a
        program: what is cut off there is taken for zeros, which are no ethertype.
        """
        frame = frame.ljust(_ETHERNET, b"\0")
        if not self.runs_cut_ip and frame[12:14] in (b"\x08\x00", b"\x86\xdd") and len(frame) < 54:
            # Nor a tc program over an Ethernet header that promises IP and then less than an IP
            # header.  With a priority tag it does, and for the program that is the same frame.
            frame = frame[:12] + _PRIORITY_TAG + frame[12:]
        return frame

    def capture_rows(self) -> list[Row]:
        """For people the figures as well; in JSON a capture has a row for each packet, no other."""
        return [] if self.options.json else self.rows()

    def run_capture(self, path: str) -> None:
        """Print the verdict on each packet of a capture; in constant memory."""
        from bpfkit.net.packets.pcap import PcapReader, to_ethernet

        tally: dict[str, int] = {}
        with PcapReader(path) as records:
            run = self.runner()
            chunk: list[Row] = []
            for record in records:
                frame = record.data if record.linktype == _LINK_ETHERNET else to_ethernet(record)
                retval = run(self.frame_of(frame), record.orig_len)
                # tc's verdicts are signed: TC_ACT_UNSPEC is -1
                signed = retval - (1 << 32) if retval >> 31 else retval
                action = self.actions.get(retval) or self.actions.get(signed) or str(signed)
                tally[action] = tally.get(action, 0) + 1
                chunk.append({"index": self.packets_run, "action": action})
                self.packets_run = record.number
                if len(chunk) == _CHUNK:
                    self._print(chunk)
            self._print(chunk)
            for remark in records.remarks():
                self.note(remark)
        if not self.options.json:
            sums = ", ".join(f"{action} {count}" for action, count in sorted(tally.items()))
            self.note(f"{self.packets_run} packets: {sums}" if sums else "no packets")

    def runner(self) -> Callable[[bytes, int], int]:
        """Loads the program; a function (frame, original length) -> return value."""
        return self.program(_ETHERNET).runner()

    def _print(self, chunk: list[Row]) -> None:
        if self.options.json:
            from bpfkit.show.rows import json_rows

            output(json_rows(chunk, 0))
        else:
            output("".join([f"{row['index']:>7} {row['action']}\n" for row in chunk]))
        chunk.clear()


class XdpApp(HookApp):
    """Decides about the packets that an interface receives, before the kernel looks at them."""

    actions: ClassVar[dict[int, str]] = {
        0: "XDP_ABORTED",
        1: "XDP_DROP",
        2: "XDP_PASS",
        3: "XDP_TX",
        4: "XDP_REDIRECT",
    }
    #: The mode that the program really runs in.
    mode = ""

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        """Mode, and what to do about a program that is there."""
        super().add_options(parser)
        add = parser.add_argument
        add(
            "--mode",
            choices=("auto", "native", "generic", "offload"),
            default="auto",
            help="where it runs: in the driver, behind it, on the card (default: the best)",
        )
        add("--replace", action="store_true", help="take off another XDP program that is there")

    def how(self) -> str:
        return f"XDP {self.mode}"

    def runner(self) -> Callable[[bytes, int], int]:
        return self.program(_ETHERNET).runner(skb=False)

    def count_losses(
        self, source: str, consts: Callable[[], dict[str, int]], **more: Any
    ) -> Object | None:
        """Attach the raw tracepoints that count what is lost on its way, where the kernel lets us.

        :param consts: gives the LOAD_CONSTs; what it raises is a reason, too.
        :param more: for the loader.
        :returns: the object; None, and the reason is told.
        """
        from bpfkit import load

        try:
            losses = load(source, consts=consts(), cache=not self.options.no_cache, **more)
            self.keep(losses)
            for one in losses.programs.values():
                self.keep(one.attach_raw_tracepoint())
        except BpfkitError as error:
            self.note(f"what is lost is not counted: {error.why}")
            return None
        return losses

    def hook(self, program: Program) -> Link:
        """Attach in the mode asked for.

        :raises AttachError: another program is there (whose, is said), or the MTU is too large.
        :raises UnsupportedError: the driver has no such mode.
        """
        from bpfkit.net.attach.xdp import attached

        index, wanted = self.interface.index, self.options.mode
        try:
            link = self._try(program, wanted)
        except BpfkitError as error:
            # Veth: ERANGE; others: EINVAL.  Generic XDP takes packets of any size.
            if wanted != "auto" or error.errno not in (errno.ERANGE, errno.EINVAL):
                raise
            link = self._try(program, "generic")
            self.note(
                f"{self.interface.name} refuses native XDP (MTU {self.interface.mtu}?): generic"
            )
        self.mode = next((one.mode for one in attached(index) if one.prog_id == program.id), "?")
        return link

    def _try(self, program: Program, mode: str) -> Link:
        interface = self.interface
        try:
            return program.attach_xdp(interface.index, mode)
        except BpfkitError as error:
            if error.errno in (errno.EBUSY, errno.EEXIST):
                return self._occupied(program, mode, error)
            raise self._explained(mode, error) from None

    def _occupied(self, program: Program, mode: str, error: BpfkitError) -> Link:
        """Another program is there: say whose, or take it off."""
        from bpfkit.net.attach.xdp import attached, detach

        there = attached(self.interface.index)
        if not self.options.replace:
            what = f"cannot attach '{program.name}' to {self.interface.name}"
            why = " and ".join(map(str, there)) or error.why
            refused = AttachError(
                what, why=f"there is {why}", hint="--replace takes it off and takes its place"
            )
            raise refused from None
        for one in there:
            self.note(f"replacing {one} on {self.interface.name}")
            detach(self.interface.index, one)
        return program.attach_xdp(self.interface.index, mode)

    def _explained(self, mode: str, error: BpfkitError) -> BpfkitError:
        name, mtu = self.interface.name, self.interface.mtu
        what = f"cannot attach to {name} in mode {mode}"
        known: BpfkitError
        if error.errno == errno.ERANGE or (error.errno == errno.EINVAL and mtu > 3400):
            known = AttachError(
                what,
                why=f"MTU {mtu} (or that of a veth's other end) is too large for native XDP",
                hint=f"lower it: ip link set {name} mtu 1500; or use --mode generic",
            )
        elif error.errno in (errno.EOPNOTSUPP, errno.EINVAL) and mode in ("native", "offload"):
            known = UnsupportedError(
                what,
                why="its driver has no native XDP"
                if mode == "native"
                else "its driver runs no XDP on the card",
                hint="--mode generic works on every interface",
            )
        else:
            return error
        known.errno = error.errno
        return known


class TcApp(HookApp):
    """Decides about the packets that an interface sends or receives, as the kernel's tc does."""

    actions: ClassVar[dict[int, str]] = {
        -1: "TC_ACT_UNSPEC",
        0: "TC_ACT_OK",
        1: "TC_ACT_RECLASSIFY",
        2: "TC_ACT_SHOT",
        3: "TC_ACT_PIPE",
        4: "TC_ACT_STOLEN",
        5: "TC_ACT_QUEUED",
        6: "TC_ACT_REPEAT",
        7: "TC_ACT_REDIRECT",
        8: "TC_ACT_TRAP",
    }
    runs_cut_ip = False
    #: What ``--direction`` is by default.
    direction = "egress"

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        """How to attach, and which way."""
        super().add_options(parser)
        add = parser.add_argument
        add(
            "--attach",
            choices=("auto", "clsact", "tcx"),
            default="auto",
            help="as a filter of clsact, or by tcx (default: tcx where the kernel has it, 6.6)",
        )
        add(
            "--direction",
            choices=("ingress", "egress"),
            default=cls.direction,
            help=f"packets to decide about (default: {cls.direction})",
        )
        add(
            "--priority",
            metavar="N",
            type=_priority,
            default=0,
            help="clsact: the filter's place (default: behind those there)",
        )

    def check_options(self) -> None:
        """A priority is clsact's."""
        super().check_options()
        if self.options.priority and self.options.attach != "clsact":
            raise UsageError("--priority needs --attach clsact", why="tcx has no priorities")

    def how(self) -> str:
        kind = self.link.kind if self.link else self.options.attach
        return f"tc {self.options.direction} by {kind}"

    def hook(self, program: Program) -> Link:
        options = self.options
        more = {"priority": options.priority} if options.attach == "clsact" else {}
        return program.attach_tc(self.interface.index, options.direction, options.attach, **more)


def _priority(text: str) -> int:
    from argparse import ArgumentTypeError

    if text.isascii() and text.isdigit() and 0 < int(text) < 65536:
        return int(text)
    raise ArgumentTypeError(f"{text!r} is not a priority (1 to 65535)")
