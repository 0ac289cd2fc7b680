# SPDX-License-Identifier: Apache-2.0
"""XDP programs are replaced last, when all else is there; and who is in the way, and who is not."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from running import on_server

from bpfkit.app.xdp import XdpApp
from bpfkit.core.errors import BpfkitError
from bpfkit.net.links.lab import Lab, pair_lab
from bpfkit.net.sockets.xsk import XskSocket
from bpfkit.net.traffic.ping import ping


@pytest.fixture
def lab() -> Iterator[Lab]:
    with pair_lab() as made:
        yield made


def shown(lab: Lab) -> str:
    return lab["server"].check_output(["ip", "link", "show", "dev", "eth0"])


def test_an_afxdp_queue_that_is_taken_leaves_the_other_program(lab: Lab) -> None:
    interface = lab.interface("server:eth0")
    with on_server("xdp_drop_icmp", lab) as first:
        sock = lab["server"].run(XskSocket, interface, 0, "copy")
        try:
            before = shown(lab)
            assert "prog/xdp" in before
            args = ["--address", "10.77.0.9", "--replace"]
            with on_server("xdp_afxdp", lab, *args, may_end=True) as second:
                status, _, errors = second.end()
                assert status == 1, errors
            assert shown(lab) == before
            assert not ping("10.77.0.2", ns=lab["client"], timeout=0.3).received
        finally:
            sock.close()
        with on_server("xdp_afxdp", lab, *args) as second:
            assert "replacing" in second.said
            assert second.end()[0] == 0
        assert first.wait()[0] == 1


def test_what_was_replaced_comes_back_if_attaching_fails() -> None:
    """Native XDP is refused for this MTU, after the generic program has made room."""
    with pair_lab(mtu=9000) as lab:
        with on_server("xdp_drop_icmp", lab, "--mode", "generic") as first:
            before = shown(lab)
            with on_server(
                "xdp_drop_tcp", lab, "--mode", "native", "--replace", may_end=True
            ) as second:
                status, _, errors = second.end()
                assert status == 1, errors
            there = shown(lab)
            # By a link before, by netlink now: the same program.
            assert there.split("xdp id ")[1].split()[0] == before.split("xdp id ")[1].split()[0]
            assert not ping("10.77.0.2", ns=lab["client"], timeout=0.3).received
            first.end()
        lab["server"].check_output(["ip", "link", "set", "eth0", "xdpgeneric", "off"])


class Refusing:
    """A program that a driver refuses with an errno, in every mode or only natively."""

    name, id = "refused", 0

    def __init__(self, number: int, *, generic: bool = True) -> None:
        self.number = number
        self.generic = generic
        self.modes: list[str] = []

    def attach_xdp(self, ifindex: int, mode: str) -> Any:
        self.modes.append(mode)
        if mode == "generic" and self.generic:
            return SimpleNamespace()
        error = BpfkitError("cannot attach")
        error.errno = self.number
        raise error


def app(mode: str, replace: bool = False) -> XdpApp:
    made: Any = XdpApp.__new__(XdpApp)
    made.options = SimpleNamespace(mode=mode, replace=replace)
    made.notes = []
    made.note = made.notes.append
    made._replaced = []
    return made  # type: ignore[no-any-return]


REFUSALS = (
    errno.EOPNOTSUPP,  # a bond in a mode without XDP
    errno.EBUSY,  # a bond's slave
    errno.EEXIST,  # an upper device has a program
    errno.EINVAL,
    errno.ERANGE,
    errno.ENOSPC,
    errno.ENOMEM,
    errno.EIO,
)


@pytest.mark.parametrize("number", REFUSALS, ids=errno.errorcode.get)
@pytest.mark.parametrize("replace", [False, True])
def test_auto_takes_generic_whatever_the_driver_says(lab: Lab, number: int, replace: bool) -> None:
    interface = lab.interface("server:eth0")
    made, program = app("auto", replace), Refusing(number)
    lab["server"].run(made.attach_to, interface, program)
    assert program.modes == ["auto", "generic"]
    assert "refuses native XDP" in made.notes[0]  # type: ignore[index]


@pytest.mark.parametrize("number", REFUSALS, ids=errno.errorcode.get)
def test_replace_is_not_proposed_where_nothing_is_attached(lab: Lab, number: int) -> None:
    interface = lab.interface("server:eth0")
    for mode in ("auto", "native", "generic"):
        with pytest.raises(BpfkitError) as caught:
            lab["server"].run(app(mode).attach_to, interface, Refusing(number, generic=False))
        assert "--replace" not in str(caught.value)


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENODEV])
def test_what_is_not_the_drivers_fault_is_not_tried_again(lab: Lab, number: int) -> None:
    program = Refusing(number)
    with pytest.raises(BpfkitError):
        lab["server"].run(app("auto").attach_to, lab.interface("server:eth0"), program)
    assert program.modes == ["auto"]


def test_an_upper_device_with_a_program(lab: Lab) -> None:
    """The kernel says EEXIST for a bridge's port where the bridge has a program of its own."""
    server = lab["server"]
    for line in ("link add br0 type bridge", "link set eth0 master br0", "link set br0 up"):
        server.check_output(["ip", *line.split()])
    import bpfkit

    with bpfkit.load("xdp/xdp_drop_world.bpf.c") as loaded:
        from bpfkit.net.links.interfaces import Interface

        program = loaded.programs["xdp_drop_world"]
        bridge = server.run(Interface.find, "br0")
        with server.run(program.attach_xdp, bridge.index, "generic"):
            with on_server("xdp_drop_icmp", lab, may_end=True) as second:
                _, _, errors = second.end()
            assert "--replace" not in errors
