# SPDX-License-Identifier: Apache-2.0
"""The probes' verdicts on kernels and machines that are not here: their answers are made up."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from typing import Any

import pytest

from bpfkit.core import features
from bpfkit.core.features import INCONCLUSIVE, NOT_SUPPORTED, WORKS, privileges, system
from bpfkit.core.features import environment as env
from bpfkit.core.features.environment import environment
from bpfkit.core.kernel import syscall
from bpfkit.core.kernel.capabilities import CAPABILITIES

ALL = frozenset(f"CAP_{name}" for name in CAPABILITIES)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the kernel answer as told; nothing reaches the real one."""

    def pretend(
        prog: int | Callable[[int], int] = 0,
        *,
        maps: int = 0,
        log: str = "",
        caps: frozenset[str] = ALL,
        config: dict[str, str] | None = None,
        release: tuple[int, ...] = (6, 1),
        files: dict[str, str] | None = None,
    ) -> None:
        def answer(code: int) -> int:
            if code:
                raise OSError(code, os.strerror(code))
            return os.open(os.devnull, os.O_RDONLY)

        def prog_load(number: int, *args: Any, **how: Any) -> int:
            if how.get("log") is not None:
                how["log"].value = log.encode()
            return answer(prog(number) if callable(prog) else prog)

        monkeypatch.setattr(syscall, "prog_load", prog_load)
        monkeypatch.setattr(syscall, "map_create", lambda *a, **k: answer(maps))
        monkeypatch.setattr(syscall, "btf_load", lambda *a: answer(0))
        for name in ("raw_tracepoint_open", "perf_event_open", "link_create"):
            monkeypatch.setattr(syscall, name, lambda *a, **k: answer(0))
        monkeypatch.setattr(privileges, "capabilities", lambda: caps)
        monkeypatch.setattr(system, "kernel_config", lambda: config or {})
        monkeypatch.setattr(system, "config_path", lambda: "x" if config else "")
        monkeypatch.setattr(system, "release", lambda: release)
        if files is not None:
            monkeypatch.setattr(system, "read", files.get)

    return pretend


def test_unknown_to_the_kernel(kernel: Callable[..., None]) -> None:
    """EINVAL without a word from the verifier: what is missing is named as far as it is known."""
    kernel(errno.EINVAL, release=(5, 10))
    found = features.probe_program_type("netfilter")
    assert (found.state, found.why) == (
        NOT_SUPPORTED,
        "needs CONFIG_NETFILTER_BPF_LINK and Linux 6.4",
    )
    kernel(errno.EINVAL, config={"NET": "y"})
    assert "CONFIG_BPF_LIRC_MODE2 is not set" in features.probe_program_type("lirc_mode2").why
    kernel(errno.EINVAL, config={"NET": "y"}, release=(6, 18))
    assert features.probe_program_type("xdp").why == "unknown to this kernel"
    kernel(errno.ENOSYS)
    assert "CONFIG_BPF_SYSCALL" in features.probe_program_type("xdp").why


def test_the_verifiers_refusal_is_no_verdict(kernel: Callable[..., None]) -> None:
    kernel(errno.EACCES, log="R0 !read_ok\nprocessed 1 insns\n")
    found = features.probe_program_type("xdp")
    assert found.state == INCONCLUSIVE and found.why.endswith("R0 !read_ok")
    kernel(errno.ENOMEM)
    assert features.probe_program_type("xdp").state == INCONCLUSIVE


def test_who_refuses(kernel: Callable[..., None]) -> None:
    """EPERM: privilege, seccomp or namespace, lockdown, or the kernel's own policy."""
    kernel(errno.EPERM, caps=frozenset({"CAP_BPF"}))
    found = features.probe_program_type("kprobe")
    assert (found.state, found.why) == (INCONCLUSIVE, "missing privilege: CAP_PERFMON")
    kernel(errno.EPERM)
    found = features.probe_program_type("xdp")
    assert found.state == INCONCLUSIVE and "seccomp" in found.why
    some = lambda number: errno.EPERM if number == 29 else 0  # noqa: E731
    kernel(some, files={"/sys/kernel/security/lockdown": "none integrity [confidentiality]"})
    assert "lockdown (confidentiality)" in features.refused_by_policy(29)
    kernel(some, files={})
    assert "this kernel's policy (EPERM with all capabilities)" in features.refused_by_policy(29)


def test_without_kernel_btf(kernel: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    from bpfkit.core.types.btf import Btf

    def missing(cls: type[Btf]) -> Btf:
        raise FileNotFoundError(2, "No such file or directory")

    kernel(0)
    monkeypatch.setattr(Btf, "vmlinux", classmethod(missing))
    for name in ("tracing", "struct_ops", "lsm"):
        found = features.probe_program_type(name)
        assert found.state == NOT_SUPPORTED and "CONFIG_DEBUG_INFO_BTF" in found.why
    assert "CONFIG_DEBUG_INFO_BTF" in features.probe_map_type("struct_ops").why
    assert features.probe_program_type("xdp").state == WORKS


class FakeBtf:
    """A vmlinux that has the functions and hooks it is told."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def find(self, name: str, kind: int) -> int | None:
        return 7 if name in self.names else None


def test_lsm_that_is_never_called(
    kernel: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bpfkit.core.types.btf import Btf

    btf = FakeBtf("bpf_lsm_socket_bind")
    monkeypatch.setattr(Btf, "vmlinux", classmethod(lambda cls: btf))
    kernel(0, files={"/sys/kernel/security/lsm": "lockdown,capability,yama"})
    found = features.probe_program_type("lsm")
    assert found.state == NOT_SUPPORTED
    assert "never called: 'bpf' is not in the kernel's lsm=lockdown,capability,yama" in found.why
    kernel(0, files={"/sys/kernel/security/lsm": "capability,bpf"})
    assert features.probe_program_type("lsm").state == WORKS
    kernel(0, files={})  # securityfs not mounted: nothing is known against it
    assert features.probe_program_type("lsm").state == WORKS
    btf.names = ()
    kernel(0, config={"NET": "y"})
    assert "CONFIG_BPF_LSM is not set" in features.probe_program_type("lsm").why


def test_loads_but_cannot_attach(
    kernel: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel(0, config={"NET": "y"})
    assert (
        features.probe_program_type("lwt_out").why
        == "loads, cannot attach: CONFIG_LWTUNNEL_BPF is not set"
    )
    assert "CONFIG_NET_CLS_BPF" in features.probe_program_type("sched_cls").parts[0].why

    def refuse(*args: Any, **how: Any) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    kernel(0)
    for name in ("raw_tracepoint_open", "perf_event_open", "link_create"):
        monkeypatch.setattr(syscall, name, refuse)
    for name in ("raw_tracepoint", "perf_event", "socket_filter"):
        found = features.probe_program_type(name)
        assert found.state == NOT_SUPPORTED and found.why.startswith("loads, "), name
    parts = {part.name: part for part in features.probe_program_type("sched_cls").parts}
    assert parts["tcx"].state == NOT_SUPPORTED and "6.6" in parts["tcx"].why
    parts = {part.name: part for part in features.probe_program_type("kprobe").parts}
    assert parts["uprobe.multi"].state == NOT_SUPPORTED


@pytest.mark.parametrize(
    ("code", "caps", "state", "why"),
    [
        (errno.EINVAL, ALL, NOT_SUPPORTED, "needs CONFIG_MMU and Linux 6.9"),
        (errno.EPERM, ALL, INCONCLUSIVE, "EPERM with all capabilities"),
        (errno.EPERM, frozenset(), INCONCLUSIVE, "missing privilege: CAP_BPF"),
        (errno.ENOMEM, ALL, INCONCLUSIVE, "ENOMEM"),
    ],
)
def test_maps(
    kernel: Callable[..., None], code: int, caps: frozenset[str], state: str, why: str
) -> None:
    kernel(0, maps=code, caps=caps, release=(6, 1))
    found = features.probe_map_type("arena")
    assert found.state == state and why in found.why


def test_helpers_of_a_type_that_does_not_load(kernel: Callable[..., None]) -> None:
    kernel(errno.EINVAL)
    assert {f.state for f in features.helper_functions("xdp")} == {INCONCLUSIVE}
    loads = iter([0, errno.EPERM])
    kernel(lambda number: next(loads))
    assert features.helper_functions("xdp", ["bpf_loop"])[0].state == INCONCLUSIVE


MOUNTINFO = r"""22 1 0:21 / /sys rw,nosuid - sysfs sysfs rw
30 22 0:27 / /sys/kernel/debug rw shared:5 - debugfs debugfs rw
31 22 0:28 / /mnt/with\040space rw - bpf bpf rw
32 22 0:29 / /mnt/tab\011back\134 rw - bpf bpf rw
"""


def test_environment_elsewhere(
    kernel: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "/proc/self/mountinfo": MOUNTINFO,
        "/proc/filesystems": "nodev\tbpf\nnodev\tcgroup2\n",
        "/proc/sys/kernel/unprivileged_bpf_disabled": "0",
        "/proc/sys/net/core/bpf_jit_enable": "0",
        "/sys/kernel/security/lockdown": "none [integrity] confidentiality",
    }
    kernel(0, caps=frozenset({"CAP_BPF"}), files=files)
    monkeypatch.setattr(os.path, "isdir", lambda path: False)
    found = {feature.name: feature for feature in environment()}
    assert found["bpffs"].value == "/mnt/with space"
    assert "/mnt/tab\tback\\" in found["bpffs"].why
    assert found["tracefs"].why == "this kernel has no tracefs: CONFIG_TRACING"
    assert (found["cgroup2"].why, found["cgroup2"].hint[:5]) == ("not mounted", "mount")
    assert (
        found["privileges"].why == "without CAP_NET_ADMIN, CAP_NET_RAW, CAP_PERFMON, CAP_SYS_ADMIN"
    )
    assert found["privileges"].value["CAP_BPF"] is True
    assert "users without CAP_BPF" in found["unprivileged_bpf"].why
    assert found["jit"].state == NOT_SUPPORTED and found["jit"].hint
    assert found["lockdown"].state == WORKS and found["lockdown"].value == "integrity"
    assert found["config"].state == INCONCLUSIVE
    assert features.tracefs() is None
    monkeypatch.setattr(os.path, "isdir", lambda path: path == "/sys/kernel/debug/tracing/events")
    assert features.tracefs() == "/sys/kernel/debug/tracing"
    files["/sys/kernel/security/lockdown"] = "none integrity [confidentiality]"
    found = {feature.name: feature for feature in environment()}
    assert found["lockdown"].state == NOT_SUPPORTED


def test_environment_without_proc_and_bpf(kernel: Callable[..., None]) -> None:
    """Nothing can be read and nothing made: every answer says so, none is an exception."""
    kernel(errno.EPERM, maps=errno.EPERM, caps=frozenset(), files={})
    found = {feature.name: feature for feature in environment()}
    for name in ("memlock", "jit", "lockdown", "unprivileged_bpf"):
        assert found[name].state == INCONCLUSIVE, name


def test_memory_accounting_before_5_11(
    kernel: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = [1 << 16, resource.RLIM_INFINITY]
    kernel(0)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit[0], limit[1]))
    monkeypatch.setattr(resource, "setrlimit", lambda which, to: limit.__setitem__(0, to[0]))

    def map_create(*args: Any, **how: Any) -> int:
        if limit[0] == 0:
            raise PermissionError(1, "Operation not permitted")
        return os.open(os.devnull, os.O_RDONLY)

    monkeypatch.setattr(syscall, "map_create", map_create)
    found = env._env_memlock()
    assert (found.state, found.value, found.hint) == (
        NOT_SUPPORTED,
        "rlimit",
        "ulimit -l unlimited",
    )
    assert limit[0] == 1 << 16
    limit[0] = resource.RLIM_INFINITY
    assert env._env_memlock().state == WORKS


def test_configuration_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    import gzip

    text = b'# comment\nCONFIG_NET=y\nCONFIG_X=m\n# CONFIG_Y is not set\nCONFIG_S="a=b"\n'
    plain, packed, broken = tmp_path / "config", tmp_path / "config.gz", tmp_path / "bad.gz"
    plain.write_bytes(text)
    packed.write_bytes(gzip.compress(text))
    broken.write_bytes(b"no gzip")
    for path in (plain, packed):
        monkeypatch.setattr(system, "config_path", lambda path=path: str(path))
        assert features.kernel_config() == {"NET": "y", "X": "m", "S": '"a=b"'}
    monkeypatch.setattr(system, "config_path", lambda: str(broken))
    assert features.kernel_config() == {}


def test_versions() -> None:
    assert system.version("6.18.44-cloud") == (6, 18)
    assert system.version("5.4") < system.version("5.10-rc1") < system.version("6.1.0-56")
    assert system.version("x") == (0,)


def test_as_dict_leaves_out_what_is_empty() -> None:
    part = features.Feature("a", WORKS)
    assert part.as_dict() == {"name": "a", "state": "works"}
    whole = features.Feature("b", NOT_SUPPORTED, "why", kernel_name="B", value=0, parts=[part])
    assert whole.as_dict() == {
        "name": "b", "state": "not supported", "kernel_name": "B", "why": "why", "value": 0,
        "parts": [{"name": "a", "state": "works"}],
    }  # fmt: skip
    assert "why" in repr(whole)


def test_a_policy_that_refuses_before_the_verifier_looked_is_no_verifier_error() -> None:
    from bpfkit.core.errors import PrivilegeError, VerifierError
    from bpfkit.core.kernel.sections import resolve
    from bpfkit.core.loading import _load_error

    if os.geteuid():
        pytest.skip("others are told to be root")
    section = resolve("iter/task")
    refused = OSError(errno.EPERM, "")
    log = "processed 0 insns (limit 1000000) max_states_per_insn 0\n"
    found = _load_error("task", section, 5, refused, log, None)
    assert isinstance(found, PrivilegeError)
    assert found.exit_status == 77
    log = "R1 type=scalar expected=fp\nprocessed 3 insns (limit 1000000)\n"
    assert isinstance(_load_error("task", section, 5, refused, log, None), VerifierError)
