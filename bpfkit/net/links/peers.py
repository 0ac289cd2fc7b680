# SPDX-License-Identifier: Apache-2.0
"""XDP_PASS at the peers of veth devices: a veth takes XDP_TX and redirected frames only then."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from bpfkit.core.program import Program
    from bpfkit.net.links.lab import Lab

__all__ = ["attach_pass"]

_XDP_PASS = 2


def attach_pass(lab: Lab, devices: Iterable[str]) -> Program:
    """Attach a program that returns XDP_PASS to devices of a lab (``client:eth0``).

    :returns: the program; closing it detaches it everywhere.
    """
    from bpfkit.core.kernel.asm import assemble, exit_, mov, r0
    from bpfkit.core.kernel.constants import attach_type
    from bpfkit.core.program import Program

    code = assemble(mov(r0, _XDP_PASS), exit_())
    program = Program.from_insns("XDP", code, name="pass", expected_attach_type=attach_type("xdp"))
    try:
        for device in devices:
            with lab[device.partition(":")[0]].entered():
                program.attach_xdp(lab.interface(device).index)
    except BaseException:
        program.close()
        raise
    return program
