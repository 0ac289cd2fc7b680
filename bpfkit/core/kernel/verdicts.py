# SPDX-License-Identifier: Apache-2.0
"""What programs return, by name.

Source: include/uapi/linux/{bpf,pkt_cls,lwtunnel}.h.
"""

from __future__ import annotations

from bpfkit.core.kernel.constants import prog_type

__all__ = ["TC_ACTIONS", "XDP_ACTIONS", "verdict_name"]

XDP_ACTIONS = {
    0: "XDP_ABORTED",
    1: "XDP_DROP",
    2: "XDP_PASS",
    3: "XDP_TX",
    4: "XDP_REDIRECT",
}
TC_ACTIONS = {
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
_LWT = {0: "BPF_OK", 2: "BPF_DROP", 7: "BPF_REDIRECT", 128: "BPF_LWT_REROUTE"}
_BY_TYPE = {
    "XDP": XDP_ACTIONS,
    "SCHED_CLS": TC_ACTIONS,
    "SCHED_ACT": TC_ACTIONS,
    "LWT_IN": _LWT,
    "LWT_OUT": _LWT,
    "LWT_XMIT": _LWT,
    "LWT_SEG6LOCAL": _LWT,
    "NETFILTER": {0: "NF_DROP", 1: "NF_ACCEPT"},
    "SK_LOOKUP": {0: "SK_DROP", 1: "SK_PASS"},
}


def verdict_name(type_number: int, retval: int) -> str:
    """The kernel's constant for a return value; the number where it has none.

    :param retval: as BPF_PROG_TEST_RUN returns it: unsigned 32 bit.
    """
    signed = retval - (1 << 32) if retval >> 31 else retval
    for name, actions in _BY_TYPE.items():
        if prog_type(name) == type_number:
            return actions.get(signed, str(signed))
    return str(signed)
