# SPDX-License-Identifier: Apache-2.0
"""A loaded program: how to attach it, and how to run it on a packet.

Every kind of attachment is one ``attach_*`` method and returns a
:class:`~bpfkit.core.attach.link.Link`; the code of a kind is a file in :mod:`bpfkit.core.attach`,
imported when the method is called.
"""

from __future__ import annotations

import errno
import os
from struct import pack_into

from bpfkit.core.closing import Held, warn_unclosed
from bpfkit.core.errors import BpfkitError, InputError, UnsupportedError, errno_text
from bpfkit.core.kernel import syscall
from bpfkit.core.kernel.constants import SOCKET_FILTER, SYSCALL, prog_type_name
from bpfkit.core.kernel.sections import Section
from bpfkit.core.shown import Shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket as socket_module
    from collections.abc import Mapping, Sequence
    from typing import Any

    from bpfkit.core.attach.link import Attachment, Link
    from bpfkit.core.maps.base import Map
    from bpfkit.core.streams import Follower

__all__ = ["Program", "RunResult", "Runner", "skb_context"]

_ETH_HLEN = 14
#: Where that ethertype is IP, the kernel refuses packet runs over less than an IP header (EINVAL).
_IPV6_HLEN = 40

#: ``cb[4]`` of a captured packet without any byte: CAPTURED_EMPTY of bpf_c/include/bpfkit/wire.h.
_EMPTY = 0xFFFFFFFF

#: BPF_PROG_TEST_RUN takes one page less headroom, tailroom and skb_shared_info.
MAX_RUN_DATA = 3520

# struct __sk_buff: fields BPF_PROG_TEST_RUN accepts, with their offsets
_SKB_SIZE = 192
_SKB_U32 = {
    "mark": 8,
    "priority": 32,
    "ingress_ifindex": 36,
    "ifindex": 40,
    "wire_len": 160,
    "gso_segs": 164,
    "gso_size": 176,
}
_SKB_CB = 48
_SKB_TSTAMP = 152
_SKB_HWTSTAMP = 184


def skb_context(fields: Mapping[str, Any]) -> bytes:
    """``struct __sk_buff`` as context of a packet run.

    :param fields: ``mark``, ``priority``, ``ingress_ifindex``, ``ifindex``, ``wire_len``,
        ``gso_segs``, ``gso_size``, ``tstamp``, ``hwtstamp`` (host-order integers) and ``cb``
        (up to five); the kernel accepts no others.
    :raises InputError: for a field the kernel would refuse.
    """
    ctx = bytearray(_SKB_SIZE)
    for name, value in fields.items():
        if name == "cb":
            pack_into(f"<{len(value)}I", ctx, _SKB_CB, *value)
        elif name == "tstamp":
            pack_into("<Q", ctx, _SKB_TSTAMP, value)
        elif name == "hwtstamp":
            pack_into("<Q", ctx, _SKB_HWTSTAMP, value)
        elif name in _SKB_U32:
            pack_into("<I", ctx, _SKB_U32[name], value)
        else:
            raise InputError(
                f"a packet run cannot set __sk_buff.{name}",
                why="BPF_PROG_TEST_RUN accepts " + ", ".join([*_SKB_U32, "cb", "tstamp"]),
            )
    return bytes(ctx)


class RunResult(Shown):
    """The result of a packet run.

    ``retval`` is the program's return value (unsigned 32 bit), ``data`` the packet afterwards,
    ``duration_ns`` nanoseconds per run, ``ctx`` the context afterwards (bytes; empty unless one
    was given), ``type`` the program's number in ``enum bpf_prog_type``.
    """

    __slots__ = ("ctx", "data", "duration_ns", "retval", "type")

    def __init__(
        self, retval: int, data: bytes, duration_ns: int, ctx: bytes, type: int = 0
    ) -> None:
        self.retval = retval
        self.data = data
        self.duration_ns = duration_ns
        self.ctx = ctx
        self.type = type

    @property
    def verdict(self) -> str:
        """``retval`` by the kernel's name: ``XDP_DROP``; the number where it has none."""
        from bpfkit.core.kernel.verdicts import verdict_name

        return verdict_name(self.type, self.retval)

    def __repr__(self) -> str:
        return (
            f"RunResult(retval={self.retval}, data=<{len(self.data)} bytes>, "
            f"duration_ns={self.duration_ns})"
        )


class Runner:
    """Runs many packets through one program with buffers made once: one system call a packet.

    Made for captures.  A frame longer than the kernel's limit for packet runs
    (:data:`MAX_RUN_DATA`) is cut; its wire length is passed in ``cb[4]``, where bpfkit's own
    programs look for it (:data:`_EMPTY` for length 0: in ``cb[4]``, 0 says that nothing is passed).
    """

    __slots__ = ("_ctx", "_data", "_pad", "_run")

    def __init__(self, program: Program, skb: bool = True) -> None:
        self._pad = _ETH_HLEN if program.type == SOCKET_FILTER else 0
        self._run = syscall.TestRun(
            program.fd, MAX_RUN_DATA + self._pad, 0, _SKB_SIZE if skb else 0
        )
        self._data = memoryview(self._run.data_in).cast("B")
        self._ctx = self._run.ctx_in

    def __call__(self, frame: bytes, wire_len: int | None = None) -> int:
        """Run once and return the verdict; ``wire_len`` None means as long as ``frame``."""
        if wire_len is None:
            wire_len = len(frame)
        if not frame:
            frame = b"\0"  # the kernel runs no empty packet; one byte is no header either
        elif len(frame) > MAX_RUN_DATA:
            frame = frame[:MAX_RUN_DATA]
        pad = self._pad
        size = len(frame)
        data = self._data
        data[pad : pad + size] = frame
        if pad:
            # The kernel takes 14 bytes off and the ethertype from them.
            data[12:14] = frame[12:14] if size >= _IPV6_HLEN else b"\0\0"
        if self._ctx is not None:
            pack_into("<I", self._ctx, _SKB_CB + 16, wire_len or _EMPTY)
        return self._run.run(size + pad)[0]


#: Whom new programs are told to, where their standard output is shown.
follower: Follower | None = None


class Program(Held, Shown):
    """A program in the kernel, held by an fd; closing it (and its links) unloads it.

    :ivar name: the C function's name.
    :ivar type: number in ``enum bpf_prog_type``; ``type_name`` is the kernel's name.
    :ivar section: the meaning of the ``SEC()`` name.
    """

    __slots__ = ("_attachments", "_info", "_owner", "fd", "insns", "name", "section", "type")

    def __init__(self, name: str, section: Section, fd: int, insns: bytes = b"") -> None:
        self.name = name
        self.section = section
        self.type = section.prog_type
        self.fd = fd
        self.insns = insns
        self._attachments: list[Attachment] = []
        #: The name of the object that it belongs to, which says that it was not closed.
        self._owner = ""
        self._info: dict[str, Any] | None = None
        if follower is not None:
            follower.add(self)

    @classmethod
    def from_insns(
        cls,
        type: str | int,
        insns: bytes,
        *,
        name: str = "assembled",
        license: str = "GPL",
        expected_attach_type: int = 0,
        prog_flags: int = 0,
    ) -> Program:
        """Load assembled instructions (:mod:`bpfkit.core.kernel.asm`).

        :param type: a name or number of ``enum bpf_prog_type``.
        :param insns: 8 bytes per instruction, in the machine's byte order.
        :raises VerifierError: with the reason in words, when the verifier rejects them.
        """
        from bpfkit.core.kernel.constants import prog_type
        from bpfkit.core.loading import load_program

        number = type if isinstance(type, int) else prog_type(type)
        section = Section("", number, expected_attach_type, prog_flags)
        fd = load_program(name, section, insns, license.encode())
        return cls(name, section, fd, insns)

    def read_stream(self, stream: int = 1) -> str:
        """What the program wrote since the last call, by BPFKIT_LOG() of ``bpfkit/log.h`` (6.17).

        :param stream: 1: standard output; 2: standard error, where the kernel writes, too: about
            faults in an arena (6.18), loops that may_goto ends, deadlocks of locks.
        :raises UnsupportedError: this kernel has no streams.
        """
        parts = []
        try:
            while data := syscall.prog_stream_read(self.fd, stream, 1 << 16):
                parts.append(data)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise UnsupportedError(
                f"cannot read the log of '{self.name}'",
                why="this kernel has no BPF streams (Linux 6.17)",
            ) from None
        return b"".join(parts).decode(errors="backslashreplace")

    # --- facts from the kernel --------------------------------------------------------------

    @property
    def info(self) -> dict[str, Any]:
        """The kernel's ``bpf_prog_info`` figures (read once)."""
        if self._info is None:
            self._info = syscall.prog_info(self.fd)
        return self._info

    @property
    def id(self) -> int:
        """The id that ``bpftool prog show`` prints."""
        return int(self.info["id"])

    @property
    def tag(self) -> str:
        """The instructions' digest that ``bpftool`` and ``ip link`` print."""
        return str(self.info["tag"])

    @property
    def jited(self) -> bool:
        """Whether the kernel compiled it to machine code."""
        return bool(self.info["jited_prog_len"])

    @property
    def type_name(self) -> str:
        """``BPF_PROG_TYPE_…``."""
        return prog_type_name(self.type)

    def recursion_misses(self) -> int:
        """Runs that were left out because the program, or another of its kind, was running on that
        CPU (kernel 5.12)."""
        return int(syscall.prog_info(self.fd)["recursion_misses"]) if self.fd >= 0 else 0

    @property
    def links(self) -> tuple[Link, ...]:
        """The links that attach the program at this moment, if bpfkit made them."""
        if not self._attachments:
            return ()
        from bpfkit.core.attach.link import Link

        return tuple([Link._of(self, held) for held in self._attachments])

    # --- packet runs ------------------------------------------------------------------------

    def run(
        self,
        packet: bytes = b"",
        repeat: int = 1,
        *,
        ctx: bytes = b"",
        skb: Mapping[str, Any] | None = None,
        flags: int = 0,
        cpu: int = 0,
    ) -> RunResult:
        """Run over one packet by BPF_PROG_TEST_RUN; nothing is sent or received.

        :param packet: the frame from the link header on.  For a socket filter it is the frame
            as a filter on a raw AF_PACKET socket sees it; the 14 bytes that the kernel takes off
            first are put in front here.
        :param repeat: number of runs; ``duration_ns`` is their mean.
        :param ctx: the type's context struct as bytes (``skb_context()``, ``xdp_md`` …); of a
            SYSCALL program, which takes nothing else, whatever the program says that it is.
        :param skb: the same as a mapping, for the types whose context is ``__sk_buff``.
        :raises UnsupportedError: for a type without packet runs (sock_ops, sk_msg, …).

        Source: Documentation/bpf/bpf_prog_run.rst (kernel 4.12; context 5.2).
        """
        if self.type == SYSCALL:
            return self._run_syscall(ctx)
        data = packet
        strip = 0
        if self.type == SOCKET_FILTER:
            head = packet[:_ETH_HLEN] if len(packet) >= _IPV6_HLEN else bytes(_ETH_HLEN)
            data = head + packet
            strip = _ETH_HLEN
        if skb is not None:
            ctx = skb_context(skb)
        try:
            retval, out, duration, ctx_out = syscall.prog_test_run(
                self.fd,
                data,
                repeat=repeat,
                size_out=len(data) + 512 if data else 0,
                ctx=ctx,
                flags=flags,
                cpu=cpu,
            )
        except OSError as error:
            what = f"cannot run '{self.name}' on a packet"
            if error.errno == 524:  # ENOTSUPP, which user space has no name for
                raise UnsupportedError(
                    what, why=f"the kernel has no packet runs for {self.type_name}"
                ) from None
            why = errno_text(error.errno or 0)
            if error.errno == errno.EINVAL and len(data) > MAX_RUN_DATA:
                why = f"{len(packet)} bytes exceed the limit of a packet run ({MAX_RUN_DATA})"
            raise BpfkitError(what, why=why) from None
        if strip and len(out) >= strip and out[:strip] == data[:strip]:
            out = out[strip:]
        return RunResult(retval, out, duration, ctx_out, self.type)

    def _run_syscall(self, ctx: bytes) -> RunResult:
        try:
            retval, left = syscall.prog_run_syscall(self.fd, ctx)
        except OSError as error:
            raise BpfkitError(
                f"cannot run '{self.name}'", why=errno_text(error.errno or 0)
            ) from None
        return RunResult(retval, b"", 0, left, self.type)

    def runner(self, skb: bool = True) -> Runner:
        """A :class:`Runner` for many packets."""
        return Runner(self, skb)

    # --- attaching --------------------------------------------------------------------------

    def attach_socket(self, sock: socket_module.socket | int) -> Link:
        """Filter the packets that a socket receives (SO_ATTACH_BPF; kernel 3.19).

        On an AF_PACKET socket attach before bind, so that nothing unfiltered queues up; on a
        listening TCP socket the accepted ones inherit it.
        """
        from bpfkit.core.attach.socket import attach_filter

        return attach_filter(self, sock)

    def attach_reuseport(self, sock: socket_module.socket | int) -> Link:
        """Choose among the sockets of an SO_REUSEPORT group (SO_ATTACH_REUSEPORT_EBPF; 4.5)."""
        from bpfkit.core.attach.socket import attach_reuseport

        return attach_reuseport(self, sock)

    def attach(self, target: Any = None, **options: Any) -> Link:
        """Attach to what ``SEC()`` says, as libbpf's ``bpf_program__attach()``.

        A section that names its target (``tp/sched/sched_switch``, ``kprobe/tcp_connect``,
        ``uprobe/bash:readline``, ``usdt/python3:python:gc__start``, ``fentry/…``, ``iter/…``,
        ``lsm/…``) needs nothing else; the others need one: an interface (xdp, tc, netkit), a cgroup
        (cgroup/…, sockops), a socket, a sockmap (sk_msg, sk_skb), a network namespace (sk_lookup,
        flow_dissector).

        :param target: what the section does not say.
        :param options: those of the ``attach_…`` method for this kind.
        :raises InputError: the target is missing (the method to call is named), or this kind is
            not attached by a program alone.
        """
        from bpfkit.core.attach.by_section import attach

        return attach(self, target, options)

    def attach_xdp(
        self, interface: int | str, mode: str = "auto", *, replace: bool = False
    ) -> Link:
        """Attach to an interface's receive path (BPF_LINK_CREATE; kernel 5.9).

        :param interface: its name or index.
        :param mode: ``native``, ``generic``, ``offload`` or ``auto`` (native where the driver
            has it, else generic).
        :param replace: another program that is there makes room: a link of this process in one
            step, so that no packet passes without a program; anybody else's is detached before,
            and put back if this one is refused.
        :raises AttachError: EBUSY when another program is there, EOPNOTSUPP without driver
            support.
        """
        from bpfkit.core.attach.xdp import attach

        return attach(self, interface, mode, replace)

    def attach_tcx(self, interface: int | str, direction: str = "") -> Link:
        """Attach to tc's ingress or egress by tcx (BPF_LINK_CREATE; kernel 6.6).

        :param interface: its name or index.
        :param direction: ``ingress`` or ``egress``; by default the one of ``SEC("tc/…")``.
        """
        from bpfkit.core.attach.tcx import attach_tcx

        return attach_tcx(self, interface, direction)

    def attach_tc(
        self, interface: int | str, direction: str = "", how: str = "auto", **options: Any
    ) -> Link:
        """Attach to tc by ``clsact`` or ``tcx``; ``auto`` takes tcx where the kernel has it.

        :param interface: its name or index.
        """
        from bpfkit.core.attach.tcx import attach

        return attach(self, interface, direction, how, **options)

    def attach_netkit(self, interface: int | str) -> Link:
        """Attach to a netkit device (kernel 6.7), by its name or index."""
        from bpfkit.core.attach.netkit import attach

        return attach(self, interface)

    def attach_cgroup(
        self,
        cgroup: int | str,
        *,
        attach_type: int | None = None,
        before: Link | Program | int | None = None,
        after: Link | Program | int | None = None,
        preorder: bool = False,
    ) -> Link:
        """Attach to a cgroup of the v2 hierarchy (BPF_LINK_CREATE; kernel 5.7).

        Programs that others attached with BPF_F_ALLOW_MULTI (systemd's, container runtimes') stay.

        :param cgroup: an fd of the directory, or its path.
        :param before: run before this link, program, or program id (kernel 6.17); 0: before all
            others of the cgroup.
        :param after: run after this one.  Without either the program runs last.
        :param preorder: run before the programs of inner cgroups (kernel 6.15).
        :raises AttachError: EPERM where a program on a cgroup above forbids others.
        """
        from bpfkit.core.attach.cgroup import attach

        return attach(self, cgroup, attach_type, before=before, after=after, preorder=preorder)

    def attach_sockmap(self, sockmap: Map) -> Link:
        """Attach an sk_skb or sk_msg program to a SOCKMAP or SOCKHASH.

        By a link where the kernel has it (6.10), else by BPF_PROG_ATTACH; the map's end detaches
        it either way.  Attach before sockets are entered: a socket takes the programs that the
        map has at that moment.
        """
        from bpfkit.core.attach.sockmap import attach

        return attach(self, sockmap)

    def attach_netns(self, netns: int | str = "/proc/thread-self/ns/net") -> Link:
        """Attach a flow dissector or sk_lookup program to a network namespace (kernel 5.8/5.9).

        :param netns: an fd of the namespace, or a path; by default the caller's own.
        """
        from bpfkit.core.attach.netns import attach

        return attach(self, netns)

    def attach_netfilter(self, pf: int, hook: int, priority: int, *, defrag: bool = False) -> Link:
        """Attach to a netfilter hook of the caller's network namespace (kernel 6.4).

        :param pf: NFPROTO_IPV4 (2) or NFPROTO_IPV6 (10); ``hook`` is NF_INET_* (0–4).
        """
        from bpfkit.core.attach.netfilter import attach

        return attach(self, pf, hook, priority, defrag)

    def attach_lirc(self, path: str) -> Link:
        """Attach to an infrared receiver, ``/dev/lircN`` (BPF_PROG_ATTACH; kernel 4.18).

        The receiver would keep the program after ``kill -9``; an ownership record prevents that.

        :raises InputError: there is no such receiver, or it does not receive pulses.
        """
        from bpfkit.core.attach.lirc import attach

        return attach(self, path)

    def attach_raw_tracepoint(self, name: str = "") -> Link:
        """Attach to a raw tracepoint (4.17); by default the one ``SEC("raw_tp/…")`` names.

        Programs that know their target by BTF (fentry, fexit, LSM, tp_btf) attach here as well.
        """
        from bpfkit.core.attach.raw_tracepoint import attach

        return attach(self, name)

    attach_trace = attach_raw_tracepoint

    def attach_extension(self, target: Program, function_id: int) -> Link:
        """Replace a function of ``target`` by this ``SEC("freplace")`` program (5.10).

        Both were loaded with ``global_functions``, this one with the target in ``attach_targets``.
        May be attached again after its link was closed.

        :param function_id: the function's number in the target's BTF.
        :raises AttachError: EBUSY: another program replaces the function.
        """
        from bpfkit.core.attach.extension import attach

        return attach(self, target, function_id)

    def attach_iter(self, extra: bytes = b"") -> Link:
        """Make an iterator's link (5.8); :func:`bpfkit.core.attach.iter.read_iter` reads it."""
        from bpfkit.core.attach.iter import attach

        return attach(self, extra)

    def attach_perf_event(self, event_fd: int, *, target: str = "") -> Link:
        """Attach to an open perf event and enable it (link 5.15; else the ioctl).

        The link owns ``event_fd`` from now on.
        """
        from bpfkit.core.attach.perf_event import attach

        return attach(self, event_fd, target)

    def attach_tracepoint(self, name: str = "") -> Link:
        """Attach to a tracepoint, ``category/name`` (4.7; needs tracefs to learn its number)."""
        from bpfkit.core.attach.perf_event import attach_tracepoint

        return attach_tracepoint(self, name)

    def attach_kprobe(self, function: str = "", offset: int = 0, cookie: int = 0) -> Link:
        """Attach to a kernel function: ``SEC("kprobe/…")`` at its entry or at an offset,
        ``SEC("kretprobe/…")`` at its return (4.17; CONFIG_KPROBE_EVENTS).

        :param function: by default the one that the section names.
        :param cookie: what ``bpf_get_attach_cookie()`` returns (5.15).
        :raises InputError: no such function (offers the nearest names), or it cannot be probed.
        """
        from bpfkit.core.attach.kprobe import attach

        return attach(self, function, offset, cookie)

    def attach_kprobe_multi(self, functions: Sequence[str], cookies: Sequence[int] = ()) -> Link:
        """Attach to many kernel functions by one link (5.18; CONFIG_FPROBE): ``kprobe.multi``,
        ``kretprobe.multi`` and ``kprobe.session`` (6.10).

        :param cookies: for each function what ``bpf_get_attach_cookie()`` returns.
        """
        from bpfkit.core.attach.kprobe import attach_multi

        return attach_multi(self, functions, cookies)

    def attach_trace_multi(self, functions: Sequence[str], cookies: Sequence[int] = ()) -> Link:
        """Attach to many kernel functions by one link and BTF (7.2): ``fentry.multi``,
        ``fexit.multi`` and ``fsession.multi``.

        :param cookies: for each function what ``bpf_get_attach_cookie()`` returns.
        :raises InputError: BTF lacks one of the functions.
        """
        from bpfkit.core.attach.tracing_multi import attach

        return attach(self, functions, cookies)

    def attach_uprobe(
        self, path: str, where: str | int, *, pid: int = -1, ref_ctr_offset: int = 0
    ) -> Link:
        """Attach to a function of a program or library (4.17; CONFIG_UPROBE_EVENTS).

        :param path: a path, a program in $PATH, or a library's name without lib and .so.
        :param where: a symbol, ``symbol+0x10``, or an offset in the file.
        :param pid: only in this process; -1: in all.
        :param ref_ctr_offset: offset in the file of a USDT probe's semaphore (4.20).
        :raises InputError: no such file or function, or no instruction there.
        """
        from bpfkit.core.attach.uprobe import attach

        return attach(self, path, where, pid=pid, ref_ctr_offset=ref_ctr_offset)

    def attach_uprobe_multi(
        self,
        path: str,
        offsets: Sequence[int],
        *,
        cookies: Sequence[int] = (),
        ref_ctr_offsets: Sequence[int] = (),
        pid: int = 0,
    ) -> Link:
        """Attach to many places of a file by one link (6.6).

        :param offsets: in the file; :func:`bpfkit.core.attach.uprobe.find_offset` finds them.
        :param pid: only in this process; 0: in all.
        """
        from bpfkit.core.attach.uprobe import attach_multi

        return attach_multi(
            self, path, offsets, cookies=cookies, ref_ctr_offsets=ref_ctr_offsets, pid=pid
        )

    def attach_usdt(self, path: str, probe: str, *, pid: int = -1, nop5: bool = False) -> Link:
        """Attach to a probe that a program or library has built in (USDT), at all of its places.

        :param path: a path, a program in $PATH, or a library's name without lib and .so.
        :param probe: ``PROVIDER:NAME`` or ``NAME``; patterns of the shell match several.
        :param pid: only in this process; -1: in all.
        :param nop5: probe nops of 5 bytes, too, which kernels 6.18 to 7.1 do not do safely.
        :raises InputError: no such file or probe, or no instruction there.
        """
        from bpfkit.core.attach.usdt import attach

        return attach(self, path, probe, pid=pid, nop5=nop5)

    # --- end --------------------------------------------------------------------------------

    def close(self) -> None:
        """Detach all links and close the program."""
        while self._attachments:
            self._attachments.pop().close()
        if follower is not None:
            follower.remove(self)
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        try:
            if self.fd < 0:
                return
            attachments = self._attachments
        except AttributeError:  # the constructor did not get far
            return
        if not self._owner:
            warn_unclosed(self)
        forked = os.getpid()
        for held in attachments:
            if held.pid == forked:
                warn_unclosed(held)
            else:
                held.abandon()
        self.close()

    def fileno(self) -> int:
        """The program's fd."""
        return self.fd

    def __repr__(self) -> str:
        state = f"fd {self.fd}" if self.fd >= 0 else "closed"
        return f"<Program {self.name} {self.type_name} {state}>"
