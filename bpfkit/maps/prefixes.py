# SPDX-License-Identifier: Apache-2.0
"""LPM_TRIE: the longest prefix that matches."""

from __future__ import annotations

from struct import pack

from bpfkit.core.kernel import syscall as sc
from bpfkit.maps.tour import Trial, failure, stop

_NO_PREALLOC = 1
ROUTES = {
    "0.0.0.0/0": 1,
    "10.0.0.0/8": 8,
    "10.1.0.0/16": 16,
    "10.1.2.0/24": 24,
    "10.1.2.3/32": 32,
}
ADDRESSES = ("10.1.2.3", "10.1.2.4", "10.1.3.1", "10.2.0.1", "192.0.2.1", "10.1.255.255")


def trie_key(address: str, length: int = 32) -> bytes:
    """struct bpf_lpm_trie_key with an IPv4 address."""
    from socket import AF_INET, inet_pton

    return pack("=I", length) + inet_pton(AF_INET, address)


def longest(address: str, routes: dict[str, int]) -> int | None:
    """What Python's own ipaddress finds, by trying all."""
    from ipaddress import ip_address, ip_network

    found = [ip_network(text) for text in routes if ip_address(address) in ip_network(text)]
    return routes[str(max(found, key=lambda n: n.prefixlen))] if found else None


@stop("lpm_trie", "routes: the longest prefix")
def lpm_trie(t: Trial) -> None:
    m = t.map(8, 8, len(ROUTES) + 1, flags=_NO_PREALLOC)
    side = t.load(m, "lookup", "update", "erase")
    (first, value), *rest = ROUTES.items()
    m[first] = value
    for text, value in rest:
        address, _, length = text.partition("/")
        side.run("update", trie_key(address, int(length)), value)
    t.equal(
        sorted(map(m.prefix, m.keys())),  # type: ignore[attr-defined]
        sorted(ROUTES),
        f"a walk finds the {len(ROUTES)} prefixes, added from both sides",
    )
    wanted = [longest(address, ROUTES) for address in ADDRESSES]
    t.equal(
        [side.value("lookup", trie_key(address)) for address in ADDRESSES],
        wanted,
        f"the program's longest matches of {len(ADDRESSES)} addresses are those of ipaddress",
    )
    t.equal([m[address] for address in ADDRESSES], wanted, "and so are Python's")
    t.equal(
        side.value("lookup", trie_key("10.1.2.0", 20)),
        16,
        "a key of 20 bits matches prefixes of at most 20: /16, not /24",
    )
    there = trie_key("10.1.0.0", 16)
    again = failure(sc.map_update, m.fd, there, bytes(8), 1), side.error("update", there, 0, 1)
    if again == ("", ""):
        t.partly("this kernel's trie ignores BPF_NOEXIST, as all did before Linux 6.13")
    else:
        both = "EEXIST", "EEXIST"
        t.equal(again, both, "BPF_NOEXIST on a prefix that is there: EEXIST")
    m["172.16.0.0/12"] = 12
    more = trie_key("172.32.0.0", 12)
    t.equal(
        (failure(sc.map_update, m.fd, more, bytes(8)), side.error("update", more)),
        ("ENOSPC", "ENOSPC"),
        "full: ENOSPC, from Python and the program",
    )
    t.equal(
        failure(sc.map_update, m.fd, pack("=I", 33) + bytes(4), bytes(8)),
        "EINVAL",
        "a prefix of 33 bits: EINVAL",
    )
    t.equal(side.error("erase", there), "", "10.1.0.0/16 deleted by the program")
    left = {text: value for text, value in ROUTES.items() if text != "10.1.0.0/16"}
    t.equal(
        [side.value("lookup", trie_key(address)) for address in ADDRESSES],
        [longest(address, left) for address in ADDRESSES],
        "now the next shorter prefix matches",
    )
    t.equal(side.error("erase", there), "ENOENT", "deleting it again: ENOENT")
    del m["0.0.0.0/0"]
    t.equal(side.value("lookup", trie_key("192.0.2.1")), None, "without 0.0.0.0/0 no match")
