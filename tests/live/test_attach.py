# SPDX-License-Identifier: Apache-2.0
"""Every way to attach has its effect while the link is open, and none afterwards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import bpfkit
from bpfkit.core import records
from bpfkit.core.errors import AttachError, InputError, UnsupportedError
from bpfkit.core.kernel import syscall
from bpfkit.net.links.lab import pair_lab
from bpfkit.net.links.netns import NetNS

SERVER = "10.77.0.2"
DEVICE = "eth0"
ROOT = Path(__file__).resolve().parents[2]

HEAD = """
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>
#include <uapi/linux/pkt_cls.h>
#include <uapi/linux/if_ether.h>
BPF_ARRAY(hits, u64, 1);
"""
XDP_DROP = HEAD + 'SEC("xdp")\nint drop(struct xdp_md *ctx)\n{\n\treturn XDP_DROP;\n}\n'
TC_DROP = (
    HEAD + 'SEC("tc/{}")\nint drop(struct __sk_buff *skb)\n{{\n'
    "\treturn skb->protocol == bpf_htons(ETH_P_IP) ? TC_ACT_SHOT : TC_ACT_UNSPEC;\n}}\n"
).replace("\nBPF_ARRAY(hits, u64, 1);", "")
CGROUP_DENY = (
    HEAD + 'SEC("cgroup/connect4")\nint deny(struct bpf_sock_addr *ctx)\n{\n\treturn 0;\n}\n'
)
COUNT = """
int hit(void *ctx)
{
	u32 zero = 0;
	u64 *n = hits.lookup(&zero);

	if (n)
		lock_xadd(n, 1);
	return RETURN;
}
"""


def pings(lab):
    """Does the server answer the client?  Asked of the system's own ping."""
    done = lab["client"].popen(
        ["ping", "-q", "-n", "-c", "1", "-W", "0.3", SERVER],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return done.wait() == 0


@pytest.fixture
def lab():
    with pair_lab() as lab:
        yield lab


def ifindex(ns, name):
    return ns.run(socket.if_nametoindex, name)


@pytest.mark.parametrize("mode", ["auto", "native", "generic"])
def test_xdp_drops_while_the_link_is_open(lab, mode):
    b = lab["server"]
    assert pings(lab)
    with bpfkit.load(XDP_DROP) as obj, b.entered():
        with obj.programs["drop"].attach_xdp(ifindex(b, DEVICE), mode) as link:
            assert not pings(lab)
            shown = b.check_output(["ip", "link", "show", DEVICE])
            text = shown if isinstance(shown, str) else shown.decode()
            assert f"prog/xdp id {obj.programs['drop'].id}" in text
            assert ("xdpgeneric" in text) == (mode == "generic")
            assert link.id
        assert pings(lab)


def test_native_xdp_on_lo_is_refused_in_words():
    with NetNS.new() as ns, bpfkit.load(XDP_DROP) as obj, ns.entered():
        with pytest.raises(UnsupportedError) as caught:
            obj.programs["drop"].attach_xdp(1, "native")
        assert "lo" in str(caught.value)
        assert "driver" in str(caught.value)


def test_second_xdp_program_is_told_that_one_is_there(lab):
    b = lab["server"]
    index = ifindex(b, DEVICE)
    with bpfkit.load(XDP_DROP) as obj, bpfkit.load(XDP_DROP) as other, b.entered():
        with obj.programs["drop"].attach_xdp(index):
            with pytest.raises(AttachError) as caught:
                other.programs["drop"].attach_xdp(index)
            assert "another link of this process" in str(caught.value)


def test_no_such_interface_is_named():
    with bpfkit.load(XDP_DROP) as obj, pytest.raises(InputError) as caught:
        obj.programs["drop"].attach_xdp(999999)
    assert "no such interface" in str(caught.value)


@pytest.mark.parametrize("how", ["tcx", "clsact"])
@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_tc_drops_in_its_direction_and_leaves_no_qdisc(lab, how, direction):
    b = lab["server"]
    before = b.check_output(["tc", "qdisc", "show"])
    with bpfkit.load(TC_DROP.format(direction)) as obj:
        with b.entered():
            link = obj.programs["drop"].attach_tc(ifindex(b, DEVICE), how=how)
        assert not pings(lab)
        link.close()
        assert pings(lab)
    assert b.check_output(["tc", "qdisc", "show"]) == before


@pytest.mark.parametrize("order", [1, -1])
def test_clsact_goes_with_the_last_of_bpfkits_filters(lab, order):
    """Whichever of two filters goes last: the first one's attaching had made the qdisc."""
    b = lab["server"]
    before = b.check_output(["tc", "qdisc", "show"])
    with (
        bpfkit.load(TC_DROP.format("egress")) as one,
        bpfkit.load(TC_DROP.format("ingress")) as two,
    ):
        with b.entered():
            index = ifindex(b, DEVICE)
            links = [obj.programs["drop"].attach_tc(index, how="clsact") for obj in (one, two)]
        for link in links[::order]:
            assert "clsact" in b.check_output(["tc", "qdisc", "show", "dev", DEVICE])
            link.close()
    assert b.check_output(["tc", "qdisc", "show"]) == before


def test_clsact_leaves_what_was_there(lab):
    """Somebody's clsact and filter stay, before, during and after ours."""
    b = lab["server"]
    b.check_output(["tc", "qdisc", "add", "dev", DEVICE, "clsact"])
    b.check_output(
        f"tc filter add dev {DEVICE} egress prio 7 protocol ip u32 match u32 0 0 flowid 1:1".split()
    )
    before = b.check_output(["tc", "filter", "show", "dev", DEVICE, "egress"])
    with bpfkit.load(TC_DROP.format("egress")) as obj, b.entered():
        with obj.programs["drop"].attach_tc(ifindex(b, DEVICE), how="clsact"):
            during = b.check_output(["tc", "filter", "show", "dev", DEVICE, "egress"])
            assert len(during) > len(before)
            # Ours stands behind theirs, which ends the chain: the ping is answered.
            assert pings(lab)
    assert b.check_output(["tc", "filter", "show", "dev", DEVICE, "egress"]) == before


def test_last_filter_takes_clsact_away(lab):
    """In whichever order they go."""
    b = lab["server"]
    before = b.check_output(["tc", "qdisc", "show"])
    with bpfkit.load(TC_DROP.format("egress")) as obj, b.entered():
        program, index = obj.programs["drop"], ifindex(b, DEVICE)
        for order in (1, -1):
            links = [program.attach_tc(index, "egress", "clsact") for _ in range(2)]
            for link in links[::order]:
                assert "clsact" in b.check_output(["tc", "qdisc", "show"])
                link.close()
            assert b.check_output(["tc", "qdisc", "show"]) == before


def test_killed_clsact_is_reaped_by_the_next_start(lab, tmp_path, monkeypatch):
    monkeypatch.setenv("BPFKIT_RUN", str(tmp_path))
    b = lab["server"]
    before = b.check_output(["tc", "qdisc", "show"])
    script = textwrap.dedent(
        f"""
        import os, signal, socket, sys
        sys.path.insert(0, {str(ROOT)!r})
        import bpfkit
        obj = bpfkit.load({TC_DROP.format("egress")!r})
        obj.programs["drop"].attach_tc(socket.if_nametoindex({DEVICE!r}), how="clsact")
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    child = b.popen([sys.executable, "-c", script])
    assert child.wait() == -signal.SIGKILL
    assert not pings(lab)
    (undone,) = records.reap()
    assert undone.startswith("clsact")
    assert pings(lab)
    assert b.check_output(["tc", "qdisc", "show"]) == before
    assert records.reap() == []


@pytest.fixture
def cgroup():
    for root in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
        if os.path.exists(f"{root}/cgroup.procs") and os.path.exists(f"{root}/cgroup.controllers"):
            break
    else:
        pytest.skip("no cgroup v2 hierarchy is mounted")
    path = f"{root}/bpfkit-test-{os.getpid()}"
    os.mkdir(path)
    yield path
    os.rmdir(path)


def connect_in(cgroup):
    """errno of a connect() to a listening port, made inside the cgroup."""
    script = (
        f"import os, socket; open({cgroup + '/cgroup.procs'!r}, 'w').write(str(os.getpid()))\n"
        "s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()\n"
        "print(socket.socket().connect_ex(s.getsockname()))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True)
    return int(done.stdout)


def test_cgroup_program_denies_connect_while_attached(cgroup):
    with bpfkit.load(CGROUP_DENY) as obj:
        assert connect_in(cgroup) == 0
        with obj.programs["deny"].attach_cgroup(cgroup):
            assert connect_in(cgroup) == 1  # EPERM
        assert connect_in(cgroup) == 0
        with pytest.raises(InputError):
            obj.programs["deny"].attach_cgroup(cgroup + "-missing")


def test_sk_lookup_refuses_a_port_in_its_namespace():
    drop = HEAD + (
        'SEC("sk_lookup")\nint refuse(struct bpf_sk_lookup *ctx)\n{\n'
        "\treturn ctx->local_port == 5201 ? SK_DROP : SK_PASS;\n}\n"
    )
    with NetNS.new() as ns, bpfkit.load(drop) as obj, ns.entered():
        with socket.socket() as server:
            server.bind(("127.0.0.1", 5201))
            server.listen()

            def reach():
                with socket.socket() as client:
                    client.settimeout(0.3)
                    return client.connect_ex(("127.0.0.1", 5201))

            assert reach() == 0
            with obj.programs["refuse"].attach_netns():
                assert reach() != 0
            assert reach() == 0


def test_socket_filter_lets_nothing_through():
    source = HEAD + 'SEC("socket")\nint none(struct __sk_buff *skb)\n{\n\treturn 0;\n}\n'
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with a, b, bpfkit.load(source) as obj:
        b.settimeout(0.2)
        with obj.programs["none"].attach_socket(b):
            with pytest.raises(OSError):
                a.send(b"lost")
                b.recv(10)
        a.send(b"kept")
        assert b.recv(10) == b"kept"


def test_sk_msg_redirect_bypasses_the_wire():
    """What is sent on one socket arrives at another one that it is not connected to."""
    source = HEAD.replace("BPF_ARRAY(hits, u64, 1);", "BPF_SOCKHASH(peers, u32, 2);") + (
        'SEC("sk_msg")\nint send(struct sk_msg_md *msg)\n{\n'
        "\tu32 to = 1;\n\treturn peers.msg_redirect_hash(msg, &to, BPF_F_INGRESS);\n}\n"
    )

    def pair():
        with socket.create_server(("127.0.0.1", 0)) as server:
            client = socket.create_connection(server.getsockname())
            return client, server.accept()[0]

    with NetNS.new() as ns, ns.entered():
        (a, a2), (b, b2) = pair(), pair()
    with a, a2, b, b2, bpfkit.load(source) as obj:
        peers = obj["peers"]
        b.settimeout(2)
        a2.settimeout(0.2)
        with obj.programs["send"].attach_sockmap(peers):
            peers[0] = a
            peers[1] = b
            a.send(b"hello")
            assert b.recv(10) == b"hello"
            with pytest.raises(TimeoutError):
                a2.recv(10)
        del peers[0]
        a.send(b"again")
        a2.settimeout(2)
        assert a2.recv(10) == b"again"


def test_raw_tracepoint_sees_system_calls():
    source = (
        HEAD.replace("BPF_ARRAY(hits, u64, 1);", "BPF_HASH(calls, u32, u64, 64);")
        + 'SEC("raw_tp/sys_enter")\nint enter(struct bpf_raw_tracepoint_args *ctx)\n{\n'
        "\tu32 pid = bpf_get_current_pid_tgid() >> 32;\n"
        "\tif (ctx->args[1] == 110)\n\t\tcalls.increment(pid);\n\treturn 0;\n}\n"
    )
    if os.uname().machine != "x86_64":
        pytest.skip("the number of getppid differs on this machine")
    with bpfkit.load(source) as obj:
        with obj.programs["enter"].attach_raw_tracepoint():
            for _ in range(100):
                os.getppid()
        counted = obj["calls"][os.getpid()]
        for _ in range(10):
            os.getppid()
        assert obj["calls"][os.getpid()] == counted == 100
        with pytest.raises((AttachError, UnsupportedError, InputError)):
            obj.programs["enter"].attach_raw_tracepoint("no_such_tracepoint")


def test_perf_event_runs_the_program():
    source = HEAD + 'SEC("perf_event")' + COUNT.replace("RETURN", "0")
    source = source.replace("void *ctx", "struct bpf_perf_event_data *ctx")
    # PERF_TYPE_SOFTWARE, CPU_CLOCK, every 100 microseconds of this process
    from struct import pack

    attr = pack("<IIQQ", 1, 128, 0, 100_000).ljust(128, b"\0")
    with bpfkit.load(source) as obj:
        fd = syscall.perf_event_open(attr, 0, -1)
        with obj.programs["hit"].attach_perf_event(fd):
            total = 0
            for n in range(3_000_000):
                total += n
        counted = obj["hits"][0]
        assert counted > 10
        for n in range(300_000):
            total += n
        assert obj["hits"][0] == counted


def test_netfilter_program_drops_by_protocol(lab):
    source = HEAD + 'SEC("netfilter")\nint hook(void *ctx)\n{\n\treturn 0;\n}\n'
    b = lab["server"]
    try:
        obj = bpfkit.load(source)
    except UnsupportedError as error:
        pytest.skip(str(error))
    with obj, b.entered():
        with obj.programs["hook"].attach_netfilter(2, 1, 0):  # IPv4, LOCAL_IN
            assert not pings(lab)
        assert pings(lab)


@pytest.mark.skipif(not shutil.which("bpftool"), reason="bpftool is not installed")
def test_bpftool_lists_the_link(lab):
    b = lab["server"]
    with bpfkit.load(XDP_DROP) as obj, b.entered():
        with obj.programs["drop"].attach_xdp(ifindex(b, DEVICE)) as link:
            out = subprocess.run(
                ["bpftool", "-j", "link", "show", "id", str(link.id)],
                stdout=subprocess.PIPE,
                check=True,
            )
            shown = json.loads(out.stdout)
            assert shown["prog_id"] == obj.programs["drop"].id
