# SPDX-License-Identifier: Apache-2.0
"""A routed lab with a probe at every hook, and one packet sent through it.

::

    client eth0 ──── left router right ──── eth0 server
      place 0            place 1              place 2

The C program is bpf_c/misc/hooks.bpf.c.  The probes are attached to devices, routes and sockets of
unnamed namespaces, except for cgroup_skb, which is attached to the cgroup of this process: it sees
all packets of that cgroup and can drop only the one that is sent here.
"""

from __future__ import annotations

import os
import time
from struct import pack, unpack_from

from bpfkit.core.cgroups import own_cgroup
from bpfkit.core.closing import Closing
from bpfkit.core.errors import BpfkitError, UnsupportedError
from bpfkit.hooks.journey import (
    DEVICES,
    HOOKS,
    PATHS,
    PLACES,
    XDP,
    Journey,
    Sighting,
)
from bpfkit.net.packets.addresses import packed

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from typing import Any

    from bpfkit.core.object import Object
    from bpfkit.core.types.btf import Btf
    from bpfkit.net.links.lab import Lab
    from bpfkit.net.packets.capture import Capture

__all__ = ["PacketPath"]

SOURCE = "misc/hooks.bpf.c"
#: The lowest destination port, or identifier of echo requests.  Each lab uses another one, because
#: the cgroup_skb probes see the packets of all labs in the same cgroup.
PORT = 5201
PAYLOAD = b"bpfkit hooks: one packet".ljust(64, b".")

PROTOS = {
    ("tcp", 4): 6,
    ("udp", 4): 17,
    ("icmp", 4): 1,
    ("tcp", 6): 6,
    ("udp", 6): 17,
    ("icmp", 6): 58,
}
_ADDRESS = {
    ("client", 4): "10.77.1.1",
    ("router", 4): "10.77.1.254",
    ("server", 4): "10.77.2.1",
    ("client", 6): "fd77:1::1",
    ("router", 6): "fd77:1::fe",
    ("server", 6): "fd77:2::1",
}
#: The server's second address, for packets that the router itself sends.
_SECOND = {4: "10.77.2.3", 6: "fd77:2::3"}

_NETFILTER = ("prerouting", "input", "forward", "output", "postrouting")
_TCX = ("tcx_ingress", "tcx_egress")
_SK_LOOKUP = ("sk_lookup",)
_LWT = ("lwt_in", "lwt_out", "lwt_xmit")
_OTHERS = (
    *("xdp_native", "xdp_generic", "tap", "tc_ingress", "tc_egress", "push_tag", *_LWT),
    *("cgroup_ingress", "cgroup_egress", "socket_filter"),
)
_NF_HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}
_UNDECIDED_S = 2.0  # without a sighting and without an end of the journey
_QUIET_S = 0.05  # after the end of the journey


class PacketPath(Closing):
    """The lab with its probes; sends packets through them.

    :param xdp: a key of :data:`XDP`.
    :ivar missing: hook -> why this kernel can have no probe there.
    :ivar port: destination port of the packets, or identifier of echo requests.
    """

    def __init__(self, xdp: str = "both", *, cache: bool = True) -> None:
        self.missing: dict[str, str] = {}
        self.port = PORT + int.from_bytes(os.urandom(2), "big") % (1 << 15)
        self._cache = cache
        self._keep: list[Any] = []
        self._objects: list[Object] = []
        try:
            self._build(xdp)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Detach the probes and remove the lab."""
        while self._keep:
            self._keep.pop().close()

    # -- building

    def _build(self, xdp: str) -> None:
        from bpfkit.net.links.lab import router_lab

        self.lab: Lab = router_lab()
        self._keep.append(self.lab)
        for address, size in ((_SECOND[4], 24), (_SECOND[6], 64)):
            self.lab.address("server:eth0", f"{address}/{size}")
        self.lab.neighbours("client:eth0", "router:left")
        self.lab.neighbours("router:right", "server:eth0")
        self.indexes = {name: self.lab.interface(name).index for name in DEVICES}
        self.devices = {index: name.partition(":")[2] for name, index in self.indexes.items()}
        for name in DEVICES:  # VLAN tags are in the frame, as on a wire
            self.lab.offloads(name, txvlan=False)
        modes = dict(zip(DEVICES, XDP[xdp], strict=True))
        maps: dict[str, Any] = {}
        self._filters: dict[str, Any] = {}
        for number, place in enumerate(PLACES):
            probes = self._load(number, maps)
            self._attach(place, probes, modes)
        self._control = maps["control"]
        self._ring = maps["sightings"].open()
        self._keep.append(self._ring)

    def _load(self, place: int, maps: dict[str, Any]) -> dict[str, Any]:
        """The programs of one namespace that the kernel supports, by name."""
        from bpfkit.core.object import load
        from bpfkit.core.types.btf import vmlinux

        probes: dict[str, Any] = {}
        consts = {"place": place}
        groups = [_OTHERS, _TCX]
        btf = vmlinux()
        if btf is None:
            why = "the kernel has no BTF (CONFIG_DEBUG_INFO_BTF)"
            self.missing.update(dict.fromkeys(_NETFILTER, why))
        else:
            consts |= _offsets(btf)
            groups.append(_NETFILTER)
        if btf is not None and not _has_member(btf, "bpf_sk_lookup", "ingress_ifindex"):
            why = "the kernel's struct bpf_sk_lookup has no ingress_ifindex (Linux 5.17)"
            self.missing.update(dict.fromkeys(_SK_LOOKUP, why))
        else:
            groups.append(_SK_LOOKUP)
        for group in groups:
            try:
                loaded = load(
                    SOURCE, consts=consts, programs=group, reuse_maps=maps, cache=self._cache
                )
            except UnsupportedError as error:
                if group is _OTHERS:
                    raise
                self.missing.update(dict.fromkeys(group, error.why))
                continue
            self._keep.append(loaded)
            if not maps:
                maps.update(loaded.maps)
            probes |= loaded.programs
        return probes

    def _attach(self, place: str, probes: dict[str, Any], modes: dict[str, str]) -> None:
        keep = self._keep.append
        ns = self.lab[place]
        for name in DEVICES:
            if not name.startswith(place):
                continue
            index = self.indexes[name]
            mode = modes[name]
            keep(ns.run(probes[f"xdp_{mode}"].attach_xdp, index, mode))
            self._tap(name, probes["tap"])
            for direction in ("ingress", "egress"):
                self._attach_tcx(ns, probes, index, direction)
                program = probes[f"tc_{direction}"]
                keep(ns.run(program.attach_tc, index, direction, how="clsact"))
            if name in ("client:eth0", "router:right"):
                keep(ns.run(probes["push_tag"].attach_tc, index, "egress", how="clsact"))
        for hook, number in _NF_HOOKS.items():
            for family in (2, 10) if hook in probes else ():
                keep(ns.run(probes[hook].attach_netfilter, family, number, 0))
        if "sk_lookup" in probes:
            keep(probes["sk_lookup"].attach_netns(ns.fd))
        if place == PLACES[0]:  # once for all namespaces: the sockets belong to one cgroup
            cgroup = own_cgroup()
            keep(probes["cgroup_ingress"].attach_cgroup(cgroup))
            keep(probes["cgroup_egress"].attach_cgroup(cgroup))
        self._filters[place] = probes["socket_filter"]
        self._routes(place, probes)

    def _attach_tcx(self, ns: Any, probes: dict[str, Any], index: int, direction: str) -> None:
        """Attach by tcx; a kernel before 6.6 loads the program and refuses that."""
        hook = f"tcx_{direction}"
        if hook in probes and hook not in self.missing:
            try:
                self._keep.append(ns.run(probes[hook].attach_tcx, index, direction))
            except UnsupportedError as error:
                self.missing[hook] = error.why

    def _tap(self, name: str, program: Any) -> None:
        from bpfkit.net.packets.packet_socket import PacketSocket

        self._keep.append(PacketSocket(self.lab.interface(name), program, counting=True))

    def _routes(self, place: str, probes: dict[str, Any]) -> None:
        """Routes with programs at the three hooks of a lightweight tunnel.

        Forwarded and locally sent packets take different routes: the kernel stores the input
        function behind an ``in`` program once per route, and a locally sent packet sets it to
        discard (lwtunnel_set_redirect()); forwarded packets of that route would then be lost.
        """
        from bpfkit.net.links.netlink import with_iproute

        lwt = {hook[4:]: {"fd": probes[hook].fd, "name": hook} for hook in _LWT}
        out = {"type": "bpf", "out": lwt["out"], "xmit": lwt["xmit"]}
        every = {**out, "in": lwt["in"]}
        inward = {"type": "bpf", "in": lwt["in"]}
        for family in (4, 6):
            to = _ADDRESS["server", family]
            size = 32 if family == 4 else 128
            routes: list[dict[str, Any]] = []
            if place == "client":
                gateway = _ADDRESS["router", family]
                oif = self.indexes["client:eth0"]
                routes.append({"dst": f"{to}/{size}", "gateway": gateway, "oif": oif, "encap": out})
                routes.append({"dst": f"{gateway}/{size}", "oif": oif, "encap": out})
            else:
                if place == "router":
                    oif = self.indexes["router:right"]
                    routes.append({"dst": f"{to}/{size}", "oif": oif, "encap": every})
                    own = f"{_SECOND[family]}/{size}"
                    routes.append({"dst": own, "oif": oif, "encap": out})
                    to = _ADDRESS["router", family]
                device = "router:left" if place == "router" else "server:eth0"
                # Replaces the kernel's route in the local table.
                local = {"dst": f"{to}/{size}", "type": "local", "table": 255}
                local["oif"] = self.indexes[device]
                if family == 4:
                    local["scope"] = 254
                routes.append({**local, "encap": inward})
            for route in routes:

                def change(ipr: Any, route: dict[str, Any] = route, family: int = family) -> None:
                    number = 2 if family == 4 else 10
                    if route.get("type") == "local":
                        plain = {k: v for k, v in route.items() if k != "encap"}
                        ipr.route("del", family=number, **plain)
                    ipr.route("add", family=number, **route)

                with_iproute(self.lab[place], f"cannot route to {route['dst']} by BPF", change)

    # -- sending

    def send(
        self,
        proto: str = "udp",
        path: str = "all",
        *,
        family: int = 4,
        vlan: int | None = None,
        drop: Sighting | None = None,
    ) -> Journey:
        """Send one packet.

        :param proto: ``tcp`` (a SYN), ``udp`` or ``icmp`` (an echo request).
        :param path: a key of :data:`PATHS`; other namespaces' sightings are left out.
        :param vlan: VLAN id of a tag that is added at the sender's device.
        :param drop: the sighting of an earlier journey where the packet is to be dropped.
        :raises BpfkitError: the packet was seen at no hook.
        """
        sender, receiver, places = PATHS[path]
        address = _SECOND[family] if path == "out" else _ADDRESS[receiver, family]
        number = PROTOS[proto, family]
        destination = packed(address)
        list(self._ring.drain())
        journey = Journey(receiver)
        listening = self._receiver(receiver, proto, address, family)
        captures = self._captures()
        source = None
        try:
            self._control[0] = {
                "proto": number,
                "dst": unpack_from("=I", destination, len(destination) - 4)[0],
                "port": self.port,
                "drop_hook": HOOKS.index(drop.hook) + 1 if drop else 0,
                "drop_ifindex": drop.ifindex if drop else 0,
                "drop_place": self._loaded_as(drop) if drop else 0,
                "push": 0 if vlan is None else PLACES.index(sender) + 1,
                "vlan": vlan or 0,
            }
            source = self._emit(sender, proto, address, family)
            seen = self._watch(journey, listening, proto)
            self._control[0] = dict.fromkeys(
                "proto dst port drop_hook drop_ifindex drop_place push vlan".split(), 0
            )
            for name, capture in captures.items():
                if name.partition(":")[0] in places:
                    for way in ("in", "out"):
                        journey.captures[f"{name} {way}"] = any(
                            packet.outgoing == (way == "out")
                            and _is_ours(packet.data, destination, number, self.port)
                            for packet in capture.packets
                        )
        finally:
            if source is not None:
                source.close()
            listening.close()
            for capture in captures.values():
                capture.stop()
        self._place(seen)
        journey.sightings = [s for s in sorted(seen, key=lambda s: s.ns) if s.place in places]
        return journey

    @staticmethod
    def _loaded_as(where: Sighting) -> int:
        """``place`` of the probe's object; the cgroup_skb probes belong to the first."""
        return 0 if where.hook.startswith("cgroup_") else PLACES.index(where.place)

    def _place(self, seen: list[Sighting]) -> None:
        """Set the namespace of cgroup_skb sightings, which comes from their device."""
        for sighting in seen:
            for name, index in self.indexes.items():
                if sighting.ifindex == index:
                    sighting.place = name.partition(":")[0]

    def _captures(self) -> dict[str, Capture]:
        from bpfkit.net.packets.capture import Capture

        return {
            name: Capture(self.lab.interface(name), buffer=1 << 20, promiscuous=True)
            for name in DEVICES
        }

    def _open_socket(self, place: str, proto: str, family: int) -> _socket.socket:
        import _socket

        af = _socket.AF_INET if family == 4 else _socket.AF_INET6
        if proto == "icmp":
            return self.lab[place].socket(af, _socket.SOCK_RAW, PROTOS["icmp", family])
        kind = _socket.SOCK_STREAM if proto == "tcp" else _socket.SOCK_DGRAM
        return self.lab[place].socket(af, kind)

    def _receiver(self, place: str, proto: str, address: str, family: int) -> _socket.socket:
        """The application's socket, with the socket filter probe attached."""
        import _socket

        sock = self._open_socket(place, proto, family)
        if proto != "icmp":
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        self._filters[place].attach_socket(sock)
        sock.setblocking(False)
        if proto != "icmp":
            sock.bind((address, self.port))
        if proto == "tcp":
            sock.listen(1)
        return sock

    def _emit(self, place: str, proto: str, address: str, family: int) -> _socket.socket:
        """Send; the socket, to be closed afterwards (else a SYN is retransmitted)."""
        from bpfkit.net.packets.frames import icmp_message

        sock = self._open_socket(place, proto, family)
        sock.setblocking(False)
        try:
            if proto == "tcp":
                sock.connect((address, self.port))
            elif proto == "udp":
                sock.sendto(PAYLOAD, (address, self.port))
            else:
                kind = 8 if family == 4 else 128
                rest = pack("!HH", self.port, 1) + PAYLOAD
                sock.sendto(icmp_message(kind, rest), (address, 0))
        except OSError:
            # EINPROGRESS (TCP), or a drop on the way out, which the sightings show.
            pass
        return sock

    def _watch(self, journey: Journey, listening: _socket.socket, proto: str) -> list[Sighting]:
        """The sightings until the packet is received or dropped."""
        seen: list[Sighting] = []
        deadline = time.monotonic() + _UNDECIDED_S
        over = False
        while time.monotonic() < deadline:
            new = [Sighting(r, self.devices) for r in self._ring.poll(0.01)]
            seen += new
            if not journey.received:
                journey.received = _arrived(listening, proto)
            if journey.received or any(s.dropped for s in seen):
                if not over or new:
                    deadline = time.monotonic() + _QUIET_S
                over = True
            elif new:
                deadline = time.monotonic() + _UNDECIDED_S
        if not seen:
            raise BpfkitError("the packet was seen at no hook", why="the kernel did not send it")
        return seen


def _arrived(sock: _socket.socket, proto: str) -> bool:
    import select

    if not select.select([sock], [], [], 0)[0]:
        return False
    if proto == "tcp":
        return True  # a connection to be accepted
    try:
        data = sock.recv(4096)
    except OSError:
        return False
    return PAYLOAD in data


def _is_ours(frame: bytes, dst: bytes, proto: int, port: int) -> bool:
    """Whether a captured frame is the packet, judged by its bytes only."""
    at = 18 if frame[12:14] == b"\x81\x00" else 14
    six = len(dst) == 16
    where, number, payload = (24, 6, 40) if six else (16, 9, 20)
    if frame[at + where : at + where + len(dst)] != dst or frame[at + number] != proto:
        return False
    head = frame[at + payload :]
    if proto in (1, 58):
        return head[0] in (8, 128) and head[4:6] == pack("!H", port)
    return head[2:4] == pack("!H", port) and (proto == 17 or head[13] & 0x12 == 2)


def _has_member(btf: Btf, struct: str, member: str) -> bool:
    try:
        btf.offset(struct, member)
    except KeyError:
        return False
    return True


def _offsets(btf: Btf) -> dict[str, int]:
    """LOAD_CONSTs: offsets in the running kernel of the fields that the netfilter probes read."""
    wanted = {
        "skb_head": ("sk_buff", "head"),
        "skb_network_header": ("sk_buff", "network_header"),
        "skb_len": ("sk_buff", "len"),
        "state_in": ("nf_hook_state", "in"),
        "state_out": ("nf_hook_state", "out"),
        "dev_ifindex": ("net_device", "ifindex"),
    }
    found = {}
    for const, (struct, member) in wanted.items():
        try:
            found[const] = btf.offset(struct, member)
        except KeyError:
            raise UnsupportedError(
                "cannot read packets at netfilter hooks",
                why=f"the kernel's BTF has no {struct}.{member}",
            ) from None
    return found
