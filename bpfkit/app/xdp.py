# SPDX-License-Identifier: Apache-2.0
"""Base of the programs that are attached to an interface by XDP."""

from __future__ import annotations

import errno

from bpfkit.app.interface import ETHERNET, InterfaceApp
from bpfkit.core.errors import AttachError, BpfkitError, UnsupportedError, errno_text
from bpfkit.core.kernel.verdicts import XDP_ACTIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Callable
    from typing import Any, ClassVar

    from bpfkit.core.attach.link import Link
    from bpfkit.core.object import Object
    from bpfkit.core.program import Program
    from bpfkit.net.attach.xdp import Attached, Replaced
    from bpfkit.net.links.interfaces import Interface

__all__ = ["XdpApp"]

#: Errors for which another mode is no remedy; None: bpfkit's own, such as another program there.
_NOT_THE_DRIVER = (None, errno.EPERM, errno.EACCES, errno.ENODEV, errno.EBADF, errno.EMFILE)


class XdpApp(InterfaceApp):
    """Attached by XDP: verdicts on the packets an interface receives, before the kernel's stack."""

    protects = True
    actions: ClassVar[dict[int, str]] = XDP_ACTIONS
    #: The mode that the program runs in: ``native``, ``generic`` or ``offload``.
    mode = ""

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        """Mode, and whether to replace another program."""
        super().add_options(parser)
        add = parser.add_argument
        add(
            "--mode",
            choices=("auto", "native", "generic", "offload"),
            default="auto",
            help="where XDP runs: driver, kernel stack or card (default: the best available)",
        )
        add("--replace", action="store_true", help="replace another XDP program on the interface")

    def attach_mode(self) -> str:
        return f"XDP {self.mode}"

    def runner(self) -> Callable[[bytes, int], int]:
        return self.load_program(**self.link_consts(ETHERNET)).runner(skb=False)

    def count_losses(
        self, source: str, consts: Callable[[], dict[str, int]], **more: Any
    ) -> Object | None:
        """Attach raw tracepoints that count the packets lost on their way, where the kernel can.

        :param consts: returns the LOAD_CONSTs, or raises BpfkitError if they are not known.
        :param more: arguments for the loader.
        :returns: the object; None where that is impossible, after a note with the reason.
        """
        from bpfkit import load

        try:
            losses = load(source, consts=consts(), cache=not self.options.no_cache, **more)
            self.keep(losses)
            for one in losses.programs.values():
                self.keep(one.attach_raw_tracepoint())
        except BpfkitError as error:
            self.note(f"lost packets are not counted: {error.why}")
            return None
        return losses

    def attach(self, program: Program) -> None:
        """Attach; with ``--replace``, what was there comes back if any step fails."""
        self._replaced: list[Replaced] = []
        try:
            super().attach(program)
        except BaseException:
            for one in reversed(self._replaced):
                try:
                    one.restore()
                    self.note(f"restored {one.one}")
                except BpfkitError as error:
                    self.note(str(error))
            raise
        finally:
            for one in self._replaced:
                one.close()

    def attach_program(self, program: Program) -> list[tuple[Interface, Link]]:
        link, self.mode = self.attach_to(self.interface, program)
        return [(self.interface, link)]

    def attach_to(self, interface: Interface, program: Program) -> tuple[Link, str]:
        """Attach to ``interface`` in the mode of ``--mode``; (link, the mode it runs in).

        :raises AttachError: another program is there (the message names it), or the MTU is too
            large.
        :raises UnsupportedError: the driver has no such mode.
        """
        from bpfkit.net.attach.xdp import attached

        wanted = self.options.mode
        try:
            link = self._attach(interface, program, wanted)
        except BpfkitError as error:
            # Veth: ERANGE; bond: EOPNOTSUPP; its slaves: EBUSY, EINVAL; others have more.
            # Generic XDP takes packets of any size, on every interface.
            if wanted != "auto" or error.errno in _NOT_THE_DRIVER:
                raise
            try:
                link = self._attach(interface, program, "generic")
            except BpfkitError as second:
                raise second from None
            if error.errno in (errno.ERANGE, errno.EINVAL):
                why = f"MTU {interface.mtu}?"
            else:
                why = errno_text(error.errno or 0)
            self.note(f"{interface.name} refuses native XDP ({why}): generic")
        there = attached(interface.index)
        return link, next((one.mode for one in there if one.prog_id == program.id), "?")

    def _attach(self, interface: Interface, program: Program, mode: str) -> Link:
        from bpfkit.net.attach.xdp import attached

        try:
            return program.attach_xdp(interface.index, mode)
        except BpfkitError as error:
            if error.errno in (errno.EBUSY, errno.EEXIST):
                there = attached(interface.index)
                if there:
                    return self._replace(interface, program, mode, there)
            raise _explained(interface, mode, error) from None

    def _replace(
        self, interface: Interface, program: Program, mode: str, there: list[Attached]
    ) -> Link:
        """Another program is there: name it, or with ``--replace`` detach it."""
        from bpfkit.net.attach.xdp import Replaced

        if not self.options.replace:
            refused = AttachError(
                f"cannot attach '{program.name}' to {interface.name}",
                why="there is " + " and ".join(map(str, there)),
                hint="--replace detaches it and takes its place",
            )
            raise refused from None
        for one in there:
            self.note(f"replacing {one} on {interface.name}")
            self._replaced.append(Replaced(interface.index, one))
        return program.attach_xdp(interface.index, mode)


def _explained(interface: Interface, mode: str, error: BpfkitError) -> BpfkitError:
    """``error`` with the reason and the remedy."""
    name, mtu = interface.name, interface.mtu
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
    elif error.errno in (errno.EBUSY, errno.EEXIST):
        known = AttachError(
            what,
            why=f"{errno_text(error.errno)}, though {name} has no XDP program",
            hint="a bond or team above it may have one, or the device uses XDP itself",
        )
    else:
        return error
    known.errno = error.errno
    return known
