# SPDX-License-Identifier: Apache-2.0
"""Programs that answer a packet by ICMP, where the kernel can: the kfunc bpf_icmp_send (Linux 7.3).

BCC's C cannot call kernel functions, so these few instructions are assembled; cgroup_skb.bpf.c
reaches them by a tail call.  The application then gets ECONNREFUSED, as from a closed port.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.core.program import Program

__all__ = ["senders"]

_CGROUP_INET_EGRESS = 1
#: (type, code) of "port unreachable": RFC 792; RFC 4443, 3.1.
_UNREACHABLE = ((3, 3), (1, 4))


def senders() -> tuple[Program, Program] | None:
    """The programs for IPv4 and IPv6, which drop the packet as well; the caller closes them.

    None: the kernel has no such function, or does not let these programs call it.
    """
    from bpfkit.core.errors import BpfkitError
    from bpfkit.core.kernel.asm import assemble, call_kfunc, exit_, mov, r0, r2, r3
    from bpfkit.core.program import Program
    from bpfkit.core.types.btf import vmlinux

    types = vmlinux()
    number = types.find("bpf_icmp_send", "FUNC") if types is not None else None
    if number is None:
        return None
    made: list[Program] = []
    try:
        for kind, code in _UNREACHABLE:
            insns = assemble(mov(r2, kind), mov(r3, code), call_kfunc(number), mov(r0, 0), exit_())
            made.append(
                Program.from_insns(
                    "CGROUP_SKB",
                    insns,
                    name="send_unreachable",
                    expected_attach_type=_CGROUP_INET_EGRESS,
                )
            )
    except BpfkitError:
        for program in made:
            program.close()
        return None
    return made[0], made[1]
