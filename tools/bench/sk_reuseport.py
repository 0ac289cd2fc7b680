#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Connections that a rolling restart of workers loses, with and without migration.

    sudo python3 tools/bench/sk_reuseport.py [RESTARTS [CONNECTIONS]]

Three workers share a port in a network namespace made here.  In each restart (default: 20) all
workers stop accepting, CONNECTIONS (default: 5000) connections finish their handshake and wait, a
new worker takes the place of an old one, whose process is killed, and all go on.  A connection is
lost if its client gets no answer.  The control does the same with a program that does not migrate.
"""

from __future__ import annotations

import os
import resource
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

PORT = 5201


def rolling(entry: str, restarts: int, connections: int) -> tuple[int, int, float]:
    """(connections, lost ones, seconds) of a series of restarts."""
    import bpfkit
    from bpfkit.net.sockets.listeners import borrow, find_owner, listeners
    from bpfkit.sk_reuseport.demo import Pool
    from bpfkit.sk_reuseport.group import Group

    source = "sock/sk_reuseport.bpf.c"
    with (
        bpfkit.load(source, programs=[entry]) as tcp,
        bpfkit.load(source, programs=[entry]) as udp,
        Pool({"tcp": Group(tcp, "tcp"), "udp": Group(udp, "udp")}, PORT) as pool,
    ):
        for number in (1, 2, 3):
            pool.start(number)
        one = next(one for one in listeners([PORT]) if one.proto == "tcp")
        owner = find_owner(one.inode)
        assert owner is not None
        fd = borrow(one, *owner)
        link = pool.groups["tcp"].program().attach_reuseport(fd)
        os.close(fd)
        begun = time.monotonic()
        seen = [pool.restart(i % 3 + 1, connections) for i in range(restarts)]
        passed = time.monotonic() - begun
        link.close()
    return sum(r.opened for r in seen), sum(r.lost for r in seen), passed


def main(restarts: int = 20, connections: int = 5000) -> None:
    """Both series, and their table."""
    from bpfkit.net.links.netns import NetNS

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 16), hard))
    print(f"{restarts} restarts, {connections} connections waiting in each")
    with NetNS.new("bench") as namespace, namespace.entered():
        namespace.sysctl("net.ipv4.ip_local_port_range", "2000 65000")
        namespace.sysctl("net.core.somaxconn", "16384")
        namespace.sysctl("net.ipv4.tcp_max_syn_backlog", "16384")
        for entry, text in (("migrating", "migration"), ("selecting", "control, no migration")):
            opened, lost, passed = rolling(entry, restarts, connections)
            print(f"{text:22} {opened:7} connections, {lost:6} lost, {passed:6.1f} s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
