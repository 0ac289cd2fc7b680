# SPDX-License-Identifier: Apache-2.0
"""The library's everyday calls: interfaces by name, attach(), names that do not exist, and that
nothing stays open when nothing refers to it.

What is attached is read from iproute2 and bpftool; what is open from /proc/self/fd.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
import warnings

import pytest

import bpfkit
from bpfkit.core.errors import AttachError, BpfkitError, InputError, UnsupportedError
from bpfkit.core.kernel.constants import prog_type
from bpfkit.core.kernel.sections import SECTIONS, Section
from bpfkit.core.program import Program
from bpfkit.net.links.lab import pair_lab
from bpfkit.net.links.netns import NetNS

XDP = """
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>
BPF_ARRAY(seen, u64, 1);
SEC("xdp")
int pass_all(struct xdp_md *ctx)
{
	u32 zero = 0;
	u64 *n = seen.lookup(&zero);

	count_one(n);
	return XDP_PASS;
}
"""
TC = """
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>
SEC("tc/ingress")
int look(struct __sk_buff *skb) { return -1; }
"""


def program_on(ns: NetNS, device: str) -> int | None:
    """The id of the XDP program that iproute2 shows."""
    (link,) = json.loads(ns.check_output(["ip", "-j", "link", "show", device]))
    found = link.get("xdp")
    return None if found is None else int(found["prog"]["id"])


def descriptors() -> list[str]:
    """What the descriptors of this process stand for."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue
    return sorted(found)


@pytest.fixture
def host():
    """The server's namespace of a pair of hosts, entered, with its interface eth0."""
    with pair_lab() as lab, lab["server"].entered():
        yield lab["server"]


# ---------------------------------------------------------------- interfaces


def test_interfaces_are_named_or_numbered(host) -> None:
    index = socket.if_nametoindex("eth0")
    for interface in ("eth0", index):
        with bpfkit.load(XDP) as obj, obj.programs["pass_all"].attach_xdp(interface) as link:
            assert link.target == "eth0"
            assert program_on(host, "eth0") == obj.programs["pass_all"].id
        with bpfkit.load(TC) as obj:
            for how in ("tcx", "clsact"):
                with obj.programs["look"].attach_tc(interface, how=how) as link:
                    assert link.target.split()[0] == "eth0"
            with obj.programs["look"].attach_tcx(interface, "egress") as link:
                assert link.is_attached()
    assert program_on(host, "eth0") is None


@pytest.mark.parametrize("method", ["attach_xdp", "attach_tc", "attach_tcx", "attach_netkit"])
def test_a_name_that_no_interface_has_offers_the_nearest(host, method: str) -> None:
    with bpfkit.load(TC) as obj, pytest.raises(InputError) as caught:
        getattr(obj.programs["look"], method)("eht0")
    assert "no such interface" in str(caught.value)
    assert "nearest: eth0" in str(caught.value)


# ---------------------------------------------------------------- replace


def test_replace_takes_the_place_of_an_own_link_in_one_step(host) -> None:
    with bpfkit.load(XDP) as first, bpfkit.load(XDP) as second:
        old = first.programs["pass_all"].attach_xdp("eth0")
        number = old.id
        new = second.programs["pass_all"].attach_xdp("eth0", replace=True)
        assert program_on(host, "eth0") == second.programs["pass_all"].id
        assert new.id == number, "the kernel's link stays: no packet passed without a program"
        assert old.closed and not first.programs["pass_all"].links
        first.close()
        assert program_on(host, "eth0") == second.programs["pass_all"].id
        new.close()
        assert program_on(host, "eth0") is None


def test_replace_in_another_mode_attaches_anew(host) -> None:
    with bpfkit.load(XDP) as first, bpfkit.load(XDP) as second:
        first.programs["pass_all"].attach_xdp("eth0", "generic")
        second.programs["pass_all"].attach_xdp("eth0", "native", replace=True)
        shown = host.check_output(["ip", "link", "show", "eth0"])
        assert "xdpgeneric" not in shown
        assert program_on(host, "eth0") == second.programs["pass_all"].id


def test_replace_detaches_what_netlink_attached(host) -> None:
    with bpfkit.load(XDP) as first, bpfkit.load(XDP) as second:
        number = first.programs["pass_all"].id
        host.check_output(["bpftool", "net", "attach", "xdp", "id", str(number), "dev", "eth0"])
        with pytest.raises(AttachError) as caught:
            second.programs["pass_all"].attach_xdp("eth0")
        assert f"program {number} 'pass_all'" in str(caught.value)
        with second.programs["pass_all"].attach_xdp("eth0", replace=True):
            assert program_on(host, "eth0") == second.programs["pass_all"].id


def test_what_was_there_comes_back_when_the_kernel_refuses_the_new_one() -> None:
    with (
        pair_lab() as lab,
        lab["server"].entered(),
        bpfkit.load(XDP) as first,
        bpfkit.load(XDP) as second,
    ):
        first.programs["pass_all"].attach_xdp("eth0", "generic")
        # Native XDP on veth takes no frame of the other end that is larger than a page.
        for end in ("client", "server"):
            lab[end].check_output(["ip", "link", "set", "eth0", "mtu", "9000"])
        with pytest.raises(BpfkitError):
            second.programs["pass_all"].attach_xdp("eth0", "native", replace=True)
        assert program_on(lab["server"], "eth0") == first.programs["pass_all"].id
        assert not second.programs["pass_all"].links


def test_ebusy_names_the_own_link_that_is_in_the_way(host) -> None:
    with bpfkit.load(XDP) as first, bpfkit.load(XDP) as second:
        first.programs["pass_all"].attach_xdp("eth0")
        with pytest.raises(AttachError) as caught:
            second.programs["pass_all"].attach_xdp("eth0")
        assert "another link of this process" in str(caught.value)
        assert "<Link xdp pass_all on eth0>" in str(caught.value)
        assert "replace=True" in str(caught.value)
    with bpfkit.load(TC) as obj:
        obj.programs["look"].attach_tcx("eth0")
        with pytest.raises(AttachError) as caught:
            obj.programs["look"].attach_tcx("eth0")
        assert "<Link tcx look on eth0>" in str(caught.value)


# ---------------------------------------------------------------- attach()


def test_attach_does_what_sec_says(host) -> None:
    with bpfkit.load(XDP) as obj, obj.programs["pass_all"].attach("eth0", mode="generic") as link:
        assert link.kind == "xdp"
        assert "xdpgeneric" in host.check_output(["ip", "link", "show", "eth0"])
    with bpfkit.load(TC) as obj, obj.programs["look"].attach("eth0") as link:
        assert link.kind in ("tcx", "clsact")


CONTEXT = {
    "raw_tp/sys_enter": "struct bpf_raw_tracepoint_args",
    "tp/syscalls/sys_enter_getuid": "void",
    "iter/task": "void",
}


@pytest.mark.parametrize("section", CONTEXT)
def test_attach_goes_to_the_target_that_the_section_names(section: str) -> None:
    source = f"""
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>
BPF_ARRAY(runs, u64, 1);
SEC("{section}")
int probe({CONTEXT[section]} *ctx)
{{
	u32 zero = 0;

	count_one(runs.lookup(&zero));
	return 0;
}}
"""
    try:
        obj = bpfkit.load(source)
    except UnsupportedError as error:
        pytest.skip(str(error))
    with obj:
        try:
            link = obj.programs["probe"].attach()
        except UnsupportedError as error:
            pytest.skip(str(error))
        with link:
            if section.startswith("iter"):
                from bpfkit.core.kernel import syscall

                with os.fdopen(syscall.iter_create(link.fd)) as file:
                    file.read()
            os.getuid()
            assert obj["runs"][0] > 0


def test_attach_to_a_cgroup_and_a_socket(tmp_path) -> None:
    from bpfkit.core.cgroups import Cgroup

    source = """
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>
SEC("cgroup_skb/egress")
int out(struct __sk_buff *skb) { return 1; }
SEC("socket")
int keep(struct __sk_buff *skb) { return 0; }
"""
    try:
        group = Cgroup.new("attach")
    except UnsupportedError as error:
        pytest.skip(str(error))
    with group, bpfkit.load(source) as obj:
        with obj.programs["out"].attach(group.path) as link:
            assert link.kind == "cgroup" and link.is_attached()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            assert obj.programs["keep"].attach(sock).kind == "socket"


def some_section(name: str) -> Section:
    kind, attach, flags, _ = SECTIONS[name]
    return Section(name, kind, attach, flags)


LOADED_FOR = ("tp_btf", "fentry", "fexit", "fmod_ret", "fsession", "lsm", "iter")


@pytest.mark.parametrize("name", [n for n in SECTIONS if n.removesuffix(".s") not in LOADED_FOR])
def test_attach_without_a_target_says_what_to_call(name: str) -> None:
    """No section is left out: the error names the way."""
    program = Program("f", some_section(name), -1)
    with pytest.raises(InputError) as caught:
        program.attach()
    text = str(caught.value)
    assert f'SEC("{name}")' in text
    method = next((w for w in text.replace("(", " ").split() if w.startswith("attach_")), "")
    if method.startswith("attach_") and hasattr(Program, method):
        return
    assert any(
        way in text
        for way in (
            "DEVMAP",
            "CPUMAP",
            "program.run()",
            "attach_struct_ops",
            "a route runs it",
            "tc filter",
            "program.attach_",
            "attach_lirc",
        )
    ), text


def test_an_assembled_program_has_no_section_to_go_by() -> None:
    program = Program("f", Section("", prog_type("XDP")), -1)
    with pytest.raises(InputError, match=r"loaded without SEC\(\)"):
        program.attach("lo")


# ---------------------------------------------------------------- names


def test_names_that_do_not_exist_offer_the_nearest() -> None:
    with bpfkit.load(XDP) as obj:
        for look_up in (
            lambda: obj.programs["pas_all"],
            lambda: obj["sen"],
            lambda: obj.maps["sen"],
        ):
            with pytest.raises(BpfkitError) as caught:
                look_up()
            assert "nearest: " in str(caught.value)
            assert not str(caught.value).startswith("'")
            assert isinstance(caught.value, KeyError), "what a look-up raises elsewhere"
        with pytest.raises(InputError) as caught:
            obj["pass_all"]
        assert 'obj.programs["pass_all"]' in str(caught.value)
    for wrong in ({"max_entries": {"sene": 1}}, {"programs": ["passall"]}):
        with pytest.raises(InputError, match="nearest: "):
            bpfkit.load(XDP, **wrong)


# ---------------------------------------------------------------- nothing stays open


def test_loading_in_a_loop_keeps_the_descriptors_of_one(host) -> None:
    gc.collect()
    gc.disable()  # by counting references alone
    try:
        counts = []
        for _ in range(4):
            obj = bpfkit.load(XDP)
            obj["seen"].items()
            link = obj.programs["pass_all"].attach_xdp("eth0", replace=True)
            assert link.is_attached()
            counts.append(len(descriptors()))
        assert counts[3] == counts[1], descriptors()
        del obj, link
        assert program_on(host, "eth0") is None
    finally:
        gc.enable()


def test_what_is_still_used_stays_open() -> None:
    program = bpfkit.load(XDP).programs["pass_all"]
    assert program.run(bytes(100)).retval == 2
    seen = bpfkit.load(XDP)["seen"]
    seen[0] = 7
    assert seen.items() == [(0, 7)]
    program.close()
    seen.close()


def test_a_link_keeps_its_program(host) -> None:
    link = bpfkit.load(XDP).programs["pass_all"].attach_xdp("eth0")
    gc.collect()
    assert program_on(host, "eth0") == link.program.id
    link.program.close()
    assert program_on(host, "eth0") is None


def test_a_link_that_nobody_keeps_stays_until_its_program_is_closed(host) -> None:
    with bpfkit.load(XDP) as obj:
        obj.programs["pass_all"].attach_xdp("eth0")
        gc.collect()
        assert program_on(host, "eth0") == obj.programs["pass_all"].id
        (link,) = obj.programs["pass_all"].links
        assert link.target == "eth0"
    assert program_on(host, "eth0") is None and link.closed


def test_what_was_not_closed_is_said_once_and_closed() -> None:
    before = descriptors()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        obj = bpfkit.load(XDP)
        del obj
        lab = pair_lab()
        del lab
        gc.collect()
    texts = [str(one.message) for one in said if one.category is ResourceWarning]
    assert len(texts) == 2, texts
    assert texts[0].startswith("unclosed <Object ")
    assert texts[1].startswith("unclosed <Lab ")
    assert descriptors() == before


def test_opened_lists_what_this_process_holds(host) -> None:
    before = bpfkit.opened()
    with bpfkit.load(XDP) as obj:
        link = obj.programs["pass_all"].attach_xdp("eth0")
        mine = [one for one in bpfkit.opened() if one not in before]
        assert {obj, obj["seen"], obj.programs["pass_all"], link} <= set(mine)
        assert all(hasattr(one, "close") for one in mine)
    assert [one for one in bpfkit.opened() if one not in before] == []


def test_a_fork_that_ends_detaches_nothing(host) -> None:
    """The child's copies are closed when it ends; what its parent attached stays."""
    with bpfkit.load(XDP) as obj:
        obj.programs["pass_all"].attach_xdp("eth0")
        with bpfkit.load(TC) as tc:
            tc.programs["look"].attach_tc("eth0", how="clsact")
            child = os.fork()
            if not child:
                status = 1
                try:
                    obj = tc = None
                    gc.collect()
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert program_on(host, "eth0") == obj.programs["pass_all"].id
            assert "look" in host.check_output(["tc", "filter", "show", "dev", "eth0", "ingress"])


def test_a_script_that_closes_nothing_ends_quietly() -> None:
    """The interpreter's end takes everything down, in whatever order."""
    code = f"""
import bpfkit
obj = bpfkit.load({XDP!r})
link = obj.programs["pass_all"].attach_xdp("lo")
print(len(bpfkit.opened()) > 0)
"""
    with NetNS.new() as ns:
        child = ns.popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        out, err = child.communicate(timeout=60)
        assert (child.returncode, out, err) == (0, "True\n", "")
        assert program_on(ns, "lo") is None


# ---------------------------------------------------------------- the interpreter


@pytest.mark.parametrize("line", ["import bpfkit", "from bpfkit import load"])
def test_an_old_python_is_told_what_it_needs(line: str) -> None:
    code = f"import sys; sys.version_info = (3, 9, 2, 'final', 0)\ntry:\n    {line}\n"
    code += "except ImportError as error:\n    print(type(error).__mro__[1].__name__, error)\n"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.startswith("UnsupportedError bpfkit cannot run: it needs Python 3.10"), done
    assert "this is 3.9" in done.stdout
