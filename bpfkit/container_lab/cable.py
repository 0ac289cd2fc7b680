# SPDX-License-Identifier: Apache-2.0
"""The host's end of a container's cable, two programs that are put on it and taken off, and what
``ip``, ``tc`` and ``bpftool`` show of them.

Whatever else is there stays: a cable with another XDP program is refused, tc filters keep their
place in front of ours, and clsact goes only if we brought it.
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
    """One end of a veth and what sits there.

    :param device: in ``ns``.
    :param programs: ``xdp`` and ``tc`` -> the program of that kind.
    :param how: ``clsact`` or ``tcx``; :param mode: ``auto``, ``native``, ``generic``, ``offload``.
    :ivar mode: the mode that XDP really ran in, "" until it was attached.
    :ivar notes: what the user should know.
    :raises AttachError: another XDP program is there, or another process works on it.
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
        self._lock = _alone(ns, device)
        try:
            self._refuse_occupied()
            self._clsact = "clsact" in (self._run(f"tc qdisc show dev {device.name}") or "")
            if mode != "auto":  # is there such a mode?
                self.switch("xdp")
                self.switch("none")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Take both off."""
        while self._links:
            self._links.popitem()[1].close()
        self._lock.close()

    def switch(self, state: str) -> None:
        """Have those there that the state names."""
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
            # Veth: ERANGE where the MTU is too large.  Generic XDP takes packets of any size.
            if error.errno in (errno.ERANGE, errno.EINVAL) and self._wanted == "auto":
                link = program.attach_xdp(index, "generic")
            elif error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                what = f"cannot attach to {self.device.name} in mode {self._wanted}"
                why = "its driver has no such mode"
                raise UnsupportedError(what, why=why, hint="--mode generic works") from None
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
                f"cannot put XDP on {self.device.name}",
                why="there is " + " and ".join(map(str, there)),
                hint=f"it stays; whoever owns it takes it off: ip link set {self.device.name} "
                "xdp off",
            )

    # -- what others see

    def _run(self, command: str) -> str | None:
        """Its output; None: it is not installed."""
        try:
            return self.ns.check_output(command.split()).strip()
        except UnsupportedError:
            return None
        except BpfkitError as error:
            return f"({error.why or error})"

    def view(self) -> dict[str, str]:
        """What the usual tools show: command -> its output, "(not installed)" without it."""
        name = self.device.name
        commands = [
            f"ip link show dev {name}",
            f"tc qdisc show dev {name}",
            f"tc filter show dev {name} egress",
            f"bpftool net show dev {name}",
            *(f"bpftool prog show id {self.programs[kind].id}" for kind in self._links),
            # bpftool before 7.3 does not know tcx; a link's program it shows
            *(f"bpftool link show id {link.id}" for link in self._links.values() if link.id),
        ]
        outputs = {command: self._run(command) for command in commands}
        return {
            command: "(not installed)" if text is None else text
            for command, text in outputs.items()
        }

    def verify(self, state: str, view: dict[str, str]) -> Iterator[tuple[bool, str]]:
        """Do the tools show what the state says?  A verdict per fact; none of missing tools."""
        link, qdisc, filters, net, *_ = view.values()
        tools = {"xdp": ("ip link", link), "tc": ("tc filter", filters)}
        for kind, program in self.programs.items():
            words = [f"id {program.id}", f"tag {program.tag}"] + ["jited"] * program.jited
            tool, text = tools[kind]
            there = kind in state
            asked = [(tool, text, words)]
            if kind == "tc" and self.how == "tcx":  # tc-filter(8) knows nothing of it
                asked = []
            if not (there and self.how == "tcx" and "tcx" not in net):
                asked.append(("bpftool net", net, [f"id {program.id}"]))
            if there:
                detail = view[f"bpftool prog show id {program.id}"]
                asked.append(("bpftool prog", detail, words[1:]))
                if number := self._links[kind].id:
                    detail = view[f"bpftool link show id {number}"]
                    asked.append(("bpftool link", detail, [f"prog {program.id}"]))
            for tool, text, wanted in asked:
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
    """Words, and pairs of words: ``jited``, ``id 7``.  ``prog_id 7`` is ``id 7`` too."""
    before = ""
    for word in text.split():
        yield word
        yield f"{before.removeprefix('prog_')} {word}"
        before = word


def _alone(ns: NetNS, device: Interface) -> _socket.socket:
    """A socket whose name says that this process works on the device; it is no file.

    :raises AttachError: another process does.
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
            who = f"process {struct.unpack('=iII', creds)[0]} does"
        except OSError:
            who = "another process does"
        finally:
            other.close()
            sock.close()
        raise AttachError(
            f"cannot work on {device.name}", why=f"{who} already", hint="wait for its end"
        ) from None
