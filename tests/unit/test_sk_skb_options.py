# SPDX-License-Identifier: Apache-2.0
"""sk_skb's command line: what is refused, and how addresses are read."""

from __future__ import annotations

import socket

import pytest

from bpfkit.core.errors import UsageError
from bpfkit.sk_skb.program import split_port
from bpfkit.sk_skb.side import flow_key, text_of


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("8080", (None, 8080)),
        ("0", (None, 0)),
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:80", ("::1", 80)),
        ("server.example:443", ("server.example", 443)),
    ],
)
def test_ports_with_and_without_a_host(text: str, found: tuple[str | None, int]) -> None:
    assert split_port(text) == found


@pytest.mark.parametrize("text", ["", "http", "65536", "-1", ":80", "::1:80", "host:", "host:x"])
def test_a_bad_port_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        split_port(text)


def test_the_flow_of_a_mapped_socket_is_that_of_its_ipv4_addresses() -> None:
    """The kernel calls an accepted socket ::ffff:a.b.c.d, and the client's is IPv4: same form."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client, server.accept()[0] as near:
            there, here = flow_key(near), flow_key(client)
            assert text_of(near.getpeername()) == client.getsockname()
    mapped = bytes(10) + b"\xff\xff" + bytes([127, 0, 0, 1])
    assert there[:16] == there[16:32] == here[:16] == mapped
    assert (there[32:34], there[34:36]) == (here[34:36], here[32:34])  # remote, local port
