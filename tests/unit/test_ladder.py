# SPDX-License-Identifier: Apache-2.0
"""The drawing of a packet's way, and the documented order that is compared with."""

from __future__ import annotations

import pytest

from bpfkit.hooks.journey import HOOKS, PATHS, expected
from bpfkit.hooks.ladder import journey, ladder, taps


def row(us, hook, namespace, device, **more):
    return {
        "us": us,
        "hook": hook,
        "namespace": namespace,
        "device": device,
        "form": "L3",
        "length": 92,
        "vlan": "none",
        "vlan_id": None,
        "seen": True,
        "dropped": False,
        **more,
    }


def test_rungs_in_lanes():
    rows = [
        row(0.0, "output", "a", None),
        row(1.5, "tap_in", "c", "eth0", form="L2", length=106, vlan="beside", vlan_id=7),
        row(20.0, "tc_ingress", "c", "eth0", form="L2", dropped=True),
        row(None, "input", "c", "eth0", seen=False),
    ]
    assert ladder(rows, ["a", "b", "c"]) == [
        "  µs  a  b  c  hook        device  data          tag",
        " 0.0  ●  │  │  output              IP 92",
        " 1.5  └─────●  tap_in      eth0    Ethernet 106  VLAN 7 in metadata",
        "20.0  │  │  ✗  tc_ingress  eth0    Ethernet 92                       "
        "the packet is dropped here",
        "      │  │  ·  input       eth0    not seen",
    ]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("proto", ["tcp", "udp", "icmp"])
def test_documented_order_names_known_hooks_of_the_places_looked_at(path, proto):
    steps = expected(path, proto)
    assert len(set(steps)) == len(steps)
    assert {hook for _, hook in steps} <= set(HOOKS)
    assert {place for place, _ in steps} == set(PATHS[path][2])
    assert ("sk_lookup" in {hook for _, hook in steps}) == (
        proto != "icmp" and path in ("in", "all")
    )


def test_documented_order_of_the_taps():
    steps = expected("forward", "udp", "generic")
    order = [hook for _, hook in steps]
    assert order.index("xdp_generic") < order.index("tap_in") < order.index("tc_ingress")
    assert order.index("tc_egress") < order.index("tap_out")


def test_text_says_what_captures_measured():
    def seen(hook, device, *, dropped=False, gone=False):
        return row(None if gone else 1.0, hook, "c", device, seen=not gone, dropped=dropped)

    def capture(direction, saw):
        return {
            "event": "capture",
            "namespace": "c",
            "device": "eth0",
            "direction": direction,
            "seen": saw,
        }

    hooks = [
        seen("tap_in", "eth0"),
        seen("tc_egress", "eth0", dropped=True),
        seen("tap_out", "eth0", gone=True),
    ]
    for each in hooks:
        each["event"] = "hook"
    end = {"event": "application", "namespace": "c", "seen": False}
    lines = journey([*hooks, capture("in", True), capture("out", False), end], "one packet")
    assert lines[0] == "one packet"
    assert "a capture on c:eth0 saw it coming in" in lines
    assert lines[-2:] == [
        "eth0: the tap on the way in is before tc_egress, so tcpdump still shows the packet",
        "eth0: the tap on the way out is after tc_egress, so tcpdump misses the packet",
    ]
    # It is the captures that say so, not the order.
    lines = journey([*hooks, capture("in", False), capture("out", True), end], "one packet")
    assert lines[-2].endswith("misses the packet") and lines[-1].endswith("still shows the packet")


def test_text_of_taps():
    answers = [
        ("xdp_native", "tap_in", "c:eth0", 2.81, False),
        ("tc_ingress", "tap_in", "c:eth0", -3.0, True),
    ]
    assert taps(answers)[2:] == [
        "  dropped at xdp_native on c:eth0, 2.8 µs before tap_in: a capture there did not see it",
        "  dropped at tc_ingress on c:eth0, 3.0 µs after tap_in: a capture there saw it",
    ]
