# SPDX-License-Identifier: Apache-2.0
"""The host's end of a container's veth pair: attaches and detaches two programs, and checks what
``ip``, ``tc`` and ``bpftool`` show of them.

Other programs stay attached: a device with another XDP program is refused, existing tc filters stay
in front of ours, and clsact is removed only if bpfkit added it.
"""

from __future__ import annotations

import _socket
import errno
import struct

from bpfkit.core.closing import Closing
from bpfkit.core.errors import AttachError, BpfkitError, UnsupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from bpfkit.core.attach.link import Link
    from bpfkit.core.program import Program
    from bpfkit.net.links.interfaces import Interface
    from bpfkit.net.links.netns import NetNS

__all__ = ["Cable"]

_SO_PEERCRED = 17


class Cable(Closing):
    """The host's end of a veth pair and the programs attached to it.

    :param device: the device, in ``ns``.
    :param programs: ``xdp`` and ``tc`` -> the program of that kind.
    :param how: ``clsact`` or ``tcx``.
    :param mode: ``auto``, ``native``, ``generic`` or ``offload``.
    :ivar mode: the mode that XDP was attached in, "" before.
    :ivar notes: notes for the user.
    :raises AttachError: another XDP program is attached, or another process uses the device.
    """

    def __init__(
        self,
        device: Interface,
        ns: NetNS,
        programs: dict[str, Program],
        *,
        how: str = "clsact",
        mode: str = "auto",
    ) -> None:
        self.device, self.ns, self.programs = device, ns, programs
        self.how, self.mode = how, ""
        self.notes: list[str] = []
        self._wanted = mode
        self._links: dict[str, Link] = {}
        self._lock = _lock_device(ns, device)
        try:
            self._refuse_occupied()
            self._clsact = "clsact" in (self._run(f"tc qdisc show dev {device.name}") or "")
            if mode != "auto":  # fail now if the driver lacks the mode
                self.switch("xdp")
                self.switch("none")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Detach both programs."""
        while self._links:
            self._links.popitem()[1].close()
        self._lock.close()

    def switch(self, state: str) -> None:
        """Attach the programs that ``state`` names, and detach the others."""
        for kind in ("xdp", "tc"):
            if kind in state and kind not in self._links:
                self._links[kind] = self.ns.run(self._xdp if kind == "xdp" else self._tc)
            elif kind not in state and kind in self._links:
                self._links.pop(kind).close()

    def _tc(self) -> Link:
        return self.programs["tc"].attach_tc(self.device.index, "egress", self.how)

    def _xdp(self) -> Link:
        from bpfkit.net.attach.xdp import attached

        program, index = self.programs["xdp"], self.device.index
        try:
            link = program.attach_xdp(index, self._wanted)
        except BpfkitError as error:
            if error.errno in (errno.EBUSY, errno.EEXIST):
                self._refuse_occupied()
            # Veth: ERANGE if the MTU is too large.  Generic XDP takes packets of any size.
            if error.errno in (errno.ERANGE, errno.EINVAL) and self._wanted == "auto":
                link = program.attach_xdp(index, "generic")
            elif error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                what = f"cannot attach to {self.device.name} in mode {self._wanted}"
                why = "the driver does not support this mode"
                raise UnsupportedError(what, why=why, hint="use --mode generic") from None
            else:
                raise
        mode = next((one.mode for one in attached(index) if one.prog_id == program.id), "?")
        if self.mode != mode:
            self.notes.append(f"XDP runs {mode} on {self.device.name}")
            self.mode = mode
        return link

    def _refuse_occupied(self) -> None:
        from bpfkit.net.attach.xdp import attached

        if there := self.ns.run(attached, self.device.index):
            raise AttachError(
                f"cannot attach XDP to {self.device.name}",
                why="already attached: " + " and ".join(map(str, there)),
                hint=f"its owner can detach it: ip link set {self.device.name} xdp off",
            )

    # -- what tools show

    def _run(self, command: str) -> str | None:
        """The output of a command; None if it is not installed."""
        try:
            return self.ns.check_output(command.split()).strip()
        except UnsupportedError:
            return None
        except BpfkitError as error:
            return f"({error.why or error})"

    def view(self) -> dict[str, str]:
        """What tools show: command -> its output, or "(not installed)"."""
        name = self.device.name
        commands = [
            f"ip link show dev {name}",
            f"tc qdisc show dev {name}",
            f"tc filter show dev {name} egress",
            f"bpftool net show dev {name}",
            *(f"bpftool prog show id {self.programs[kind].id}" for kind in self._links),
            # bpftool before 7.3 does not know tcx, but shows the link
            *(f"bpftool link show id {link.id}" for link in self._links.values() if link.id),
        ]
        outputs = {command: self._run(command) for command in commands}
        return {
            command: "(not installed)" if text is None else text
            for command, text in outputs.items()
        }

    def verify(self, state: str, view: dict[str, str]) -> Iterator[tuple[bool, str]]:
        """Compare the tools' output with the state: a verdict per fact; none for missing tools."""
        link, qdisc, filters, net, *_ = view.values()
        tools = {"xdp": ("ip link", link), "tc": ("tc filter", filters)}
        for kind, program in self.programs.items():
            words = [f"id {program.id}", f"tag {program.tag}"] + ["jited"] * program.jited
            tool, text = tools[kind]
            there = kind in state
            checks = [(tool, text, words)]
            if kind == "tc" and self.how == "tcx":  # tc-filter(8) does not show tcx
                checks = []
            if not (there and self.how == "tcx" and "tcx" not in net):
                checks.append(("bpftool net", net, [f"id {program.id}"]))
            if there:
                detail = view[f"bpftool prog show id {program.id}"]
                checks.append(("bpftool prog", detail, words[1:]))
                if number := self._links[kind].id:
                    detail = view[f"bpftool link show id {number}"]
                    checks.append(("bpftool link", detail, [f"prog {program.id}"]))
            for tool, text, wanted in checks:
                if text == "(not installed)":
                    continue
                shown = set(_phrases(text))
                if there:
                    missing = [word for word in wanted if word not in shown]
                    says = f"shows {', '.join(wanted)}"
                    says += f" (not: {', '.join(missing)})" * bool(missing)
                    yield not missing, f"{state}: {tool} {says}"
                else:
                    yield wanted[0] not in shown, f"{state}: {tool} does not show {wanted[0]}"
        if qdisc != "(not installed)":
            has = "clsact" in qdisc
            good = has == (self._clsact or (self.how == "clsact" and "tc" in state))
            yield good, f"{state}: the interface has {'' if has else 'no '}clsact"


def _phrases(text: str) -> Iterator[str]:
    """Words and pairs of words: ``jited``, ``id 7``; ``prog_id 7`` also counts as ``id 7``."""
    before = ""
    for word in text.split():
        yield word
        yield f"{before.removeprefix('prog_')} {word}"
        before = word


def _lock_device(ns: NetNS, device: Interface) -> _socket.socket:
    """A lock on the device: an abstract socket whose name other processes cannot bind, too.

    :raises AttachError: another process has the lock.
    """
    name = f"\0bpfkit/cable/{device.index}"
    sock = ns.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        sock.bind(name)
        sock.listen(1)
        return sock
    except OSError:
        other = ns.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            other.connect(name)
            creds = other.getsockopt(_socket.SOL_SOCKET, _SO_PEERCRED, 12)
            who = f"process {struct.unpack('=iII', creds)[0]}"
        except OSError:
            who = "another process"
        finally:
            other.close()
            sock.close()
        raise AttachError(
            f"cannot use {device.name}", why=f"{who} is using it", hint="wait until it ends"
        ) from None
