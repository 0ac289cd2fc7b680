# SPDX-License-Identifier: Apache-2.0
"""CGROUP_STORAGE and PERCPU_CGROUP_STORAGE: values that come and go with an attached program."""

from __future__ import annotations

from struct import pack

from bpfkit.core.cpus import online, possible_cpus
from bpfkit.core.kernel import syscall as sc
from bpfkit.maps.tour import Trial, failure, pinned_to, stop

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from bpfkit.core.maps.base import Map


def connect(t: Trial) -> socket.socket:
    """A UDP socket that was connected within the tour's cgroup."""
    import socket

    with t.tour.group().entered():
        sock = t.keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.connect(("127.0.0.1", 9))
    return sock


def _attached(t: Trial) -> tuple[Map, int]:
    """The map with a program attached to the tour's cgroup; the cgroup's id."""
    m = t.map(8, 8, 0)
    side = t.load(m, "of_cgroup")
    group = t.tour.group()
    t.equal(m.keys(), [], "before the program is attached there is no element")
    t.keep(side.programs["of_cgroup"].attach_cgroup(group.path))
    return m, group.id


def _ends(t: Trial, m: Map, cgroup: int) -> None:
    # Not a whole walk: kernels before 6.0 give a key behind the last one that is none.
    t.equal(sc.map_next_key(m.fd, None, 8), pack("=Q", cgroup), "the key is the cgroup's id")
    t.equal(
        failure(sc.map_update, m.fd, pack("=Q", cgroup), bytes(m._value_bytes), 1),
        "EINVAL",
        "Python adds none: BPF_NOEXIST is EINVAL",
    )
    t.equal(
        failure(sc.map_lookup, m.fd, pack("=Q", 1 << 50), m._value_bytes),
        "ENOENT",
        "another cgroup has none: ENOENT",
    )
    t.equal(
        failure(sc.map_delete, m.fd, pack("=Q", cgroup)), "EINVAL", "Python deletes none: EINVAL"
    )


@stop("cgroup_storage", "a value for each attached cgroup")
def cgroup_storage(t: Trial) -> None:
    m, cgroup = _attached(t)
    for _ in range(3):
        connect(t)
    t.equal(m[cgroup], 3, "the program counted the 3 connects of its cgroup")
    m[cgroup] = 10
    connect(t)
    t.equal(m[cgroup], 11, "and goes on from the value that Python wrote")
    _ends(t, m, cgroup)


@stop("percpu_cgroup_storage", "the same with a value per CPU")
def percpu_cgroup_storage(t: Trial) -> None:
    m, cgroup = _attached(t)
    cpus = online()
    for cpu in cpus:
        with pinned_to(cpu):
            for _ in range(cpu + 1):
                connect(t)
    values = m[cgroup]
    t.equal(
        [values[cpu] for cpu in cpus],
        [cpu + 1 for cpu in cpus],
        f"connects on CPU {cpus[0]} to {cpus[-1]} counted by CPU",
    )
    t.equal(len(values), possible_cpus(), f"a value for each of {possible_cpus()} possible CPUs")
    _ends(t, m, cgroup)
