# SPDX-License-Identifier: Apache-2.0
"""The probes behind ``doctor``: here, against bpftool, and with privileges taken away."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys

import pytest

from bpfkit.core import features
from bpfkit.core.features import INCONCLUSIVE, NOT_SUPPORTED, WORKS, Feature
from bpfkit.core.features.environment import environment
from bpfkit.core.features.privileges import RETURN_0
from bpfkit.core.kernel import syscall
from bpfkit.core.kernel.constants import MAP_TYPES, PROG_TYPES
from bpfkit.core.types.btf import FUNC, Btf
from bpfkit.core.types.btf_writer import tiny_btf

needs_bpftool = pytest.mark.skipif(not shutil.which("bpftool"), reason="no bpftool")


@pytest.fixture(scope="module")
def programs() -> dict[str, Feature]:
    return {feature.name: feature for feature in features.program_types()}


@pytest.fixture(scope="module")
def maps() -> dict[str, Feature]:
    return {feature.name: feature for feature in features.map_types()}


def test_every_type_has_an_answer(programs: dict[str, Feature], maps: dict[str, Feature]) -> None:
    assert len(programs) == len(PROG_TYPES) - 1 == 32
    assert len(maps) == len(MAP_TYPES) - 1
    for feature in (*programs.values(), *maps.values()):
        assert feature.state in (WORKS, NOT_SUPPORTED, INCONCLUSIVE)
        assert feature.kernel_name.startswith("BPF_")
        if feature.state != WORKS:
            assert feature.why, feature
        # the probe knows its types: as root with a readable configuration nothing is left open
        if features.kernel_config():
            assert feature.state != INCONCLUSIVE, feature


def test_the_socket_family_works(programs: dict[str, Feature], maps: dict[str, Feature]) -> None:
    for name in (
        "socket_filter",
        "xdp",
        "sched_cls",
        "cgroup_skb",
        "sock_ops",
        "sk_msg",
        "syscall",
    ):
        assert programs[name].state == WORKS
    for name in (
        "hash",
        "array",
        "prog_array",
        "lpm_trie",
        "percpu_array",
        "ringbuf",
        "sk_storage",
    ):
        assert maps[name].state == WORKS


@needs_bpftool
@pytest.mark.parametrize("kind", ["program", "map"])
def test_bpftool_agrees(kind: str, programs: dict[str, Feature], maps: dict[str, Feature]) -> None:
    """bpftool's probes, where it has any: it knows fewer types, and no more reasons than "NOT"."""
    done = subprocess.run(
        ["bpftool", "-j", "feature", "probe", "kernel"], capture_output=True, text=True, check=True
    )
    theirs = json.loads(done.stdout)[f"{kind}_types"]
    compared = 0
    for name, feature in (programs if kind == "program" else maps).items():
        key = f"have_{name}_{'prog' if kind == 'program' else 'map'}_type"
        if key not in theirs or name == "tracing":
            continue  # bpftool tries fentry only, the type is also tp_btf and iterators
        compared += 1
        # bpftool loads and does not attach.
        loads = feature.state == WORKS or feature.why.startswith("loads, cannot attach")
        assert theirs[key] == loads, feature
    assert compared > 25


def test_the_configuration_agrees(programs: dict[str, Feature]) -> None:
    """A type whose option is off does not work; one that does not work names the reason."""
    config = features.kernel_config()
    if not config:
        pytest.skip("the kernel's configuration cannot be read")
    if config.get("BPF_LIRC_MODE2") != "y":
        assert programs["lirc_mode2"].state == NOT_SUPPORTED
        assert "CONFIG_BPF_LIRC_MODE2 is not set" in programs["lirc_mode2"].why
    if config.get("NET_ACT_BPF") is None:
        assert "CONFIG_NET_ACT_BPF" in programs["sched_act"].why
    if config.get("KPROBE_EVENTS") != "y":
        parts = {part.name: part for part in programs["kprobe"].parts}
        assert parts["kprobe"].state == NOT_SUPPORTED
        assert "loads, cannot attach" in parts["kprobe"].why
    if config.get("UPROBE_EVENTS") == "y":
        assert {part.name: part.state for part in programs["kprobe"].parts}["uprobe"] == WORKS


def test_kernel_policy_is_told_from_missing_privilege(programs: dict[str, Feature]) -> None:
    """EPERM with all capabilities: fentry, LSM and EXT on kernels that patch no text."""
    try:
        btf_id = Btf.vmlinux().find("bpf_fentry_test1", FUNC)
        fd = syscall.prog_load(26, RETURN_0, expected_attach_type=24, attach_btf_id=btf_id or 0)
    except OSError as error:
        refused = error.errno == 1
    else:
        os.close(fd)
        refused = False
    parts = {part.name: part for part in programs["tracing"].parts}
    assert (parts["fentry"].state == NOT_SUPPORTED) == refused
    if refused:
        assert "this kernel's policy (EPERM with all capabilities)" in parts["fentry"].why
        assert programs["tracing"].state == WORKS  # by tp_btf and iterators
        assert "fentry, fexit, fmod_ret: refused" in programs["tracing"].why
        assert "policy" in programs["lsm"].why and "policy" in programs["ext"].why


def test_helpers() -> None:
    found = {
        feature.name: feature.state
        for feature in features.helper_functions(
            "xdp", ["map_lookup_elem", "skb_load_bytes", "xdp_load_bytes", "redirect_map"]
        )
    }
    assert found == {
        "map_lookup_elem": WORKS,
        "skb_load_bytes": NOT_SUPPORTED,
        "xdp_load_bytes": WORKS,
        "redirect_map": WORKS,
    }
    assert len(features.helper_functions("socket_filter")) == 211


# some that a type has and some that it has not, from net/core/filter.c
HELPERS_OF = {
    "socket_filter": (
        "skb_load_bytes get_socket_cookie perf_event_output",
        "skb_store_bytes xdp_adjust_head bind redirect skb_pull_data",
    ),
    "xdp": (
        "xdp_adjust_head redirect_map fib_lookup xdp_load_bytes",
        "skb_load_bytes bind skb_pull_data",
    ),
    "sched_cls": (
        "skb_pull_data redirect clone_redirect skb_vlan_push sk_lookup_tcp",
        "xdp_adjust_head bind",
    ),
    "cgroup_sock_addr": ("get_netns_cookie setsockopt bind", "skb_load_bytes redirect"),
    "sk_lookup": ("sk_assign sk_release", "skb_load_bytes bind"),
}


@pytest.mark.parametrize("kind", HELPERS_OF)
def test_helpers_of_a_type(kind: str) -> None:
    found = {feature.name: feature.state for feature in features.helper_functions(kind)}
    works, works_not = HELPERS_OF[kind]
    assert {found[name] for name in works.split()} == {WORKS}
    assert {found[name] for name in works_not.split()} == {NOT_SUPPORTED}
    assert 40 < sum(state == WORKS for state in found.values()) < 180


@needs_bpftool
def test_bpftool_knows_all_that_work() -> None:
    """Only in this direction: a bpftool older than the kernel (before "program of this type cannot
    use helper", 6.9) takes every refusal for an agreement."""
    done = subprocess.run(
        ["bpftool", "-j", "feature", "probe", "kernel"], capture_output=True, text=True, check=True
    )
    for kind in HELPERS_OF:
        theirs = set(json.loads(done.stdout)["helpers"][f"{kind}_available_helpers"])
        ours = {f.kernel_name for f in features.helper_functions(kind) if f.state == WORKS}
        newer = {"bpf_cgrp_storage_get", "bpf_cgrp_storage_delete", "bpf_user_ringbuf_drain"}
        prints = {"bpf_trace_printk", "bpf_trace_vprintk"}  # never probed by bpftool, lest it print
        assert ours - newer - prints <= theirs, kind


def test_environment() -> None:
    found = {feature.name: feature for feature in environment()}
    assert found["kernel"].value == os.uname().release
    assert found["privileges"].state == WORKS
    assert (found["btf"].state == WORKS) == os.path.exists("/sys/kernel/btf/vmlinux")
    with open("/proc/self/mounts") as file:
        mounted = {line.split()[2]: line.split()[1] for line in file}
    for name, kind in (("tracefs", "tracefs"), ("bpffs", "bpf"), ("cgroup2", "cgroup2")):
        assert (found[name].state == WORKS) == (kind in mounted)
        if kind not in mounted:
            assert found[name].hint.startswith("mount -t") or "CONFIG_" in found[name].why
    assert found["memlock"].value in ("memcg", "rlimit")
    assert all(json.dumps(feature.as_dict()) for feature in found.values())


CLONE_NEWNS = 0x00020000


_IMPORTS = """
import json
from bpfkit.core import features
from bpfkit.core.features.environment import environment
"""


def in_a_child(code: str, *wrapper: str) -> dict[str, object]:
    """Run Python in a process of its own; it prints one JSON object."""
    done = subprocess.run(
        [*wrapper, sys.executable, "-c", f"{_IMPORTS}\n{code}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    return result


PROBE = (
    "print(json.dumps({f.name: [f.state, f.why] for f in"
    " [*features.program_types(['xdp', 'lirc_mode2', 'tracing']), *features.map_types(['hash']),"
    " *environment()]}))"
)


@pytest.mark.skipif(not shutil.which("setpriv"), reason="no setpriv (Debian: util-linux)")
def test_without_privileges_nothing_is_claimed() -> None:
    found = in_a_child(PROBE, "setpriv", "--reuid=65534", "--clear-groups")
    for name in ("xdp", "lirc_mode2", "tracing"):
        state, why = found[name]  # type: ignore[misc]
        assert state == INCONCLUSIVE and "missing privilege: CAP_BPF" in why, name
    assert found["hash"][0] == INCONCLUSIVE  # type: ignore[index]
    assert found["privileges"][0] == NOT_SUPPORTED  # type: ignore[index]
    assert "CAP_NET_ADMIN" in found["privileges"][1]  # type: ignore[index]


@pytest.mark.skipif(not shutil.which("setpriv"), reason="no setpriv (Debian: util-linux)")
def test_one_capability_missing_is_named() -> None:
    found = in_a_child(PROBE, "setpriv", "--bounding-set=-net_admin,-sys_admin", "--inh-caps=-all")
    state, why = found["xdp"]  # type: ignore[misc]
    assert state == INCONCLUSIVE and why == "missing privilege: CAP_NET_ADMIN"


def test_capabilities_of_a_user_namespace_are_not_enough() -> None:
    """Inside one, every capability is there and bpf(2) says EPERM all the same."""
    done = subprocess.run(["unshare", "-Ur", "true"], capture_output=True)
    if done.returncode:
        pytest.skip("user namespaces are not allowed here")
    found = in_a_child(PROBE, "unshare", "-Ur")
    state, why = found["xdp"]  # type: ignore[misc]
    assert state != WORKS
    if state == INCONCLUSIVE:
        assert "user namespace" in why


def test_mounts_are_found_where_they_are() -> None:
    """tracefs mounted anywhere (in a mount namespace of its own) is found there."""
    code = (
        "import os, ctypes, tempfile\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        f"assert libc.unshare({CLONE_NEWNS}) == 0\n"
        "assert libc.mount(None, b'/', None, 0x44000, None) == 0\n"  # private, recursively
        "d = tempfile.mkdtemp(prefix='bpfkit a b')\n"
        "ok = libc.mount(b'tracefs', d.encode(), b'tracefs', 0, None) == 0\n"
        "f = {f.name: f for f in environment()}['tracefs']\n"
        "t = features.probe_program_type('tracepoint')\n"
        "found = features.tracefs()\n"
        "libc.umount2(d.encode(), 2); os.rmdir(d)\n"
        "print(json.dumps([ok, f.state, f.value == d, found == d, t.state, t.why]))\n"
    )
    ok, state, at_d, found, tracepoint, why = in_a_child(code)
    if not ok:
        pytest.skip("this kernel has no tracefs (CONFIG_TRACING)")
    assert (state, at_d, found, tracepoint, why) == (WORKS, True, True, WORKS, "")


def test_nothing_is_left_behind() -> None:
    """No mount, no descriptor, no program and no map more than before; the limit as it was."""
    import resource

    def inventory() -> tuple[object, ...]:
        with open("/proc/self/mounts") as file:
            mounts = file.read()
        return (
            mounts,
            sorted(os.listdir("/proc/self/fd")),
            resource.getrlimit(resource.RLIMIT_MEMLOCK),
        )

    def objects() -> set[tuple[str, int]]:
        found = set()
        for kind, cmd in (
            ("prog", syscall.PROG_GET_NEXT_ID),
            ("map", syscall.MAP_GET_NEXT_ID),
            ("link", syscall.LINK_GET_NEXT_ID),
            ("btf", syscall.BTF_GET_NEXT_ID),
        ):
            number = 0
            while (following := syscall.next_id(cmd, number)) is not None:
                number = following
                found.add((kind, number))
        return found

    before, held = inventory(), objects()
    features.program_types(), features.map_types(), environment()
    features.helper_functions("xdp")
    assert inventory() == before
    # others may be loading things at the same time: ours would be named by what we made
    for kind, number in objects() - held:
        if kind == "prog":
            fd = syscall.prog_get_fd_by_id(number)
            assert syscall.prog_info(fd)["xlated_prog_len"] != len(RETURN_0)
            os.close(fd)


def test_btf_builder_is_what_the_parser_reads() -> None:
    blob, main, callback = tiny_btf()
    btf = Btf(blob)
    assert btf.find("main", FUNC) == main and btf.find("callback", FUNC) == callback
    os.close(syscall.btf_load(blob))
    assert ctypes.sizeof(ctypes.c_int) == btf.sizeof(1)
