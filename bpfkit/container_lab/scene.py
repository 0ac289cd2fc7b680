# SPDX-License-Identifier: Apache-2.0
"""Seven probes between a container, its host and the outside: which are answered, which captured.

::

    container eth0 ──── c0 [XDP in, tc out] ── br0 host up0 ──── outside

A :class:`Scene` has the addresses and runs the servers.  :meth:`Scene.probe_all` runs all probes at
once, with a capture at the host's end of the veth pair: a probe was captured if one of its own
packets was (TCP by its source port, pings by their identifier).
"""

from __future__ import annotations

from time import monotonic, sleep

from bpfkit.core.closing import Closing
from bpfkit.core.errors import BpfkitError, InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TypeAlias

    from bpfkit.container_lab.container import Container
    from bpfkit.container_lab.webserver import WebServer
    from bpfkit.net.links.interfaces import Interface
    from bpfkit.net.links.lab import Lab
    from bpfkit.net.links.netns import NetNS
    from bpfkit.net.packets.packet_socket import Packet

    #: Probe -> (it was answered, the capture saw it).
    Found: TypeAlias = dict[str, tuple[bool, bool]]
    Addresses: TypeAlias = tuple[str, str, tuple[str, int] | None]

__all__ = ["PROBES", "STATES", "Scene", "expected", "scene_of_container", "scene_of_lab"]

#: Which of the two programs are attached.
STATES = ("none", "xdp", "xdp+tc", "tc", "none-again")
#: The probes, named by source, destination and protocol.
PROBES = (
    "container-outside-tcp",
    "container-bridge-tcp",
    "host-container-http",
    "host-container-syn",
    "host-container-ping",
    "container-outside-ping",
    "host-itself-tcp",
)
PORT = 5201  # port of the servers in the lab
_LAB: dict[int, Addresses] = {
    4: ("10.77.3.2", "10.77.3.1", ("10.77.4.2", PORT)),
    6: ("fd77:3::2", "fd77:3::1", ("fd77:4::2", PORT)),
}
_TCP, _ICMP, _ICMP6 = 6, 1, 58
_PATIENCE_S = 3.0  # to wait for an expected answer: a SYN is retransmitted after one second
_LOST_S = 0.5  # to wait for an answer that must not arrive
_RATE = 20  # SYNs per second in the stream


def expected(state: str, probe: str) -> tuple[bool, bool]:
    """(whether the probe is answered, whether a capture at the host's end sees it)."""
    xdp, tc = "xdp" in state, "tc" in state
    if probe == "host-itself-tcp":
        return True, False  # goes over lo
    if probe.endswith("-ping"):
        return True, True
    # The program drops requests in its direction, and equally the answers to others.
    request_lost = xdp if probe.startswith("container") else tc
    return not (xdp or tc), not request_lost


class Scene(Closing):
    """The addresses and servers of the probes.

    :param device: the host's end of the veth pair, where programs and captures are.
    :param addresses: IP version -> (the container's address, the host's address, address and port
        of a server outside the host; None: there is none).
    :param web: the container's web server.
    :param bridge_port: port of a TCP server on the host.
    :ivar version: the IP version in use, at first that of the first address.
    :ivar probes: those of :data:`PROBES` that can run.
    :ivar left_out: the other probes -> why they cannot.
    """

    def __init__(
        self,
        container: NetNS,
        host: NetNS,
        device: Interface,
        *,
        addresses: dict[int, Addresses],
        web: WebServer,
        bridge_port: int,
    ) -> None:
        self.container, self.host, self.device = container, host, device
        self.addresses = addresses
        self.web, self.bridge_port = web, bridge_port
        self.left_out: dict[str, str] = {}
        self._keep: list[Any] = [web]
        self.use_ip_version(next(iter(addresses)))
        for probe in PROBES if self.outside is None else ():
            if "outside" in probe:
                self.left_out[probe] = "no outside address was given"

    def use_ip_version(self, version: int) -> None:
        """Use the addresses of this IP version."""
        self.version = version
        self.inside, self.bridge, self.outside = self.addresses[version]

    @property
    def probes(self) -> tuple[str, ...]:
        return tuple(probe for probe in PROBES if probe not in self.left_out)

    def probe_unfiltered(self) -> None:
        """Run all probes without programs, and leave out those that are not answered."""
        for probe, (answered, _) in self.probe_all("none").items():
            if not answered:
                self.left_out[probe] = "not answered without the programs either"

    def probe_all(self, state: str) -> Found:
        """Run all probes at once; probe -> (answered, captured)."""
        from threading import Thread

        from bpfkit.container_lab.probes import free_ports
        from bpfkit.net.packets.capture import Capture

        family = 10 if self.version == 6 else 2
        free = free_ports(self.container, self.host, family=family, count=len(PROBES))
        ports = dict(zip(PROBES, free, strict=True))
        functions = self._functions(state, ports)
        answered = dict.fromkeys(functions, False)
        errors: list[BaseException] = []

        def run(probe: str) -> None:
            try:
                answered[probe] = functions[probe]()
            except BaseException as error:
                errors.append(error)

        with Capture(self.device, ns=self.host) as capture:
            threads = [Thread(target=run, args=(probe,)) for probe in functions]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            seen = {_identify(packet) for packet in capture.packets}
        if errors:
            raise errors[0]
        return {
            probe: (
                answered[probe],
                any(ports[probe] in numbers for ping, numbers in seen if ping == _is_ping(probe)),
            )
            for probe in functions
        }

    def _functions(self, state: str, ports: dict[str, int]) -> dict[str, Callable[[], bool]]:
        """Probe -> its function; the probe's port is TCP's source port, or ping's identifier."""
        from bpfkit.container_lab.probes import SynProber, http_answers
        from bpfkit.net.traffic.ping import ping
        from bpfkit.net.traffic.probes import tcp_answers

        def tcp(probe: str, host: str, port: int, ns: NetNS) -> bool:
            limit = _PATIENCE_S if expected(state, probe)[0] else _LOST_S
            answers = http_answers if probe.endswith("-http") else tcp_answers
            return answers(host, port, ns=ns, timeout=limit, sport=ports[probe])

        def syn(probe: str) -> bool:
            limit = _PATIENCE_S if expected(state, probe)[0] else _LOST_S
            prober = SynProber(self.inside, self.web.port, ns=self.host)
            try:
                prober.sport = ports[probe]
                return prober.probe(limit)
            finally:
                prober.close()

        def echo(probe: str, host: str, ns: NetNS) -> bool:
            try:
                found = ping(host, ns=ns, timeout=_PATIENCE_S, identifier=ports[probe])
            except BpfkitError:
                return False  # no route
            return found.received == 1

        host, port = self.outside or ("", 0)
        container, bridge = self.container, self.bridge
        functions: dict[str, Callable[[str], bool]] = {
            "container-outside-tcp": lambda probe: tcp(probe, host, port, container),
            "container-bridge-tcp": lambda probe: tcp(probe, bridge, self.bridge_port, container),
            "host-container-http": lambda probe: tcp(probe, self.inside, self.web.port, self.host),
            "host-container-syn": syn,
            "host-container-ping": lambda probe: echo(probe, self.inside, self.host),
            "container-outside-ping": lambda probe: echo(probe, host, container),
            "host-itself-tcp": lambda probe: tcp(probe, bridge, self.bridge_port, self.host),
        }

        def bound(probe: str) -> Callable[[], bool]:
            return lambda: functions[probe](probe)

        return {probe: bound(probe) for probe in self.probes}

    def stream(
        self,
        switch: Callable[[str], None],
        stop: Callable[[], bool],
        seconds: int = 2,
    ) -> Iterator[dict[str, Any]]:
        """SYNs from the host to the container with the programs off, on, and off; a row per second.

        :param switch: called with each state.
        :param stop: returns True to end the stream.
        :param seconds: duration of each part.
        """
        from bpfkit.container_lab.probes import SynProber

        prober = SynProber(self.inside, self.web.port, ns=self.host)
        prober.sport = 40000
        try:
            for second, on in enumerate(on for on in (False, True, False) for _ in range(seconds)):
                switch("xdp+tc" if on else "none")
                sent, received = prober.sent, prober.received
                began = monotonic()
                for i in range(_RATE):
                    if stop():
                        return
                    prober.send()
                    prober.receive(monotonic())
                    sleep(max(0.0, began + (i + 1) / _RATE - monotonic()))
                prober.receive(monotonic() + (0.2 if on else _PATIENCE_S))
                prober.forget()
                if not self.device.still_there():
                    raise BpfkitError(f"interface {self.device.name} was removed")
                yield {
                    "second": second,
                    "programs": "on" if on else "off",
                    "sent": prober.sent - sent,
                    "received": prober.received - received,
                }
        finally:
            prober.close()

    def keep(self, closable: Any) -> None:
        """Close an object together with the scene."""
        self._keep.append(closable)

    def close(self) -> None:
        """Stop the servers."""
        while self._keep:
            self._keep.pop().close()


def scene_of_lab(lab: Lab, *, six: bool = False) -> Scene:
    """The scene in a :func:`bpfkit.net.links.lab.bridge_lab`, which the caller closes."""
    from bpfkit.container_lab.webserver import WebServer
    from bpfkit.net.links.interfaces import Interface
    from bpfkit.net.traffic.probes import Listener

    host = lab["host"]
    scene = Scene(
        lab["container"],
        host,
        Interface.find("c0", host),
        addresses={version: _LAB[version] for version in ((6, 4) if six else (4, 6))},
        web=WebServer(lab["container"], PORT),
        bridge_port=PORT,
    )
    try:
        for name in ("host", "outside"):
            scene.keep(Listener(lab[name], PORT))
    except BaseException:
        scene.close()
        raise
    return scene


def scene_of_container(
    container: Container, *, six: bool = False, outside: tuple[str, int] | None = None
) -> Scene:
    """The scene of an existing container, which the caller closes.

    The servers listen on free ports of the container's and the host's address.

    :raises InputError: the container has no address of that IP version, or the host no route to it.
    """
    from bpfkit.container_lab.webserver import WebServer
    from bpfkit.net.traffic.probes import Listener

    version = 6 if six else 4
    if version not in container.addresses:
        other = "--ipv6 uses the other kind" if not six and container.addresses else ""
        raise InputError(
            f"{container.inside} of the container has no IPv{version} address", hint=other
        )
    inside, bridge = container.addresses[version], container.host_address(version)
    if bridge is None:
        raise InputError(f"the host has no route to {inside} of the container")
    listener = Listener(container.host, address=bridge)
    try:
        web = WebServer(container.ns, address=inside)
    except BaseException:
        listener.close()
        raise
    scene = Scene(
        container.ns,
        container.host,
        container.device,
        addresses={version: (inside, bridge, outside)},
        web=web,
        bridge_port=listener.port,
    )
    scene.keep(listener)
    return scene


def _is_ping(probe: str) -> bool:
    return probe.endswith("-ping")


def _identify(packet: Packet) -> tuple[bool, tuple[int, ...]]:
    """(whether it is a ping, its ports or its identifier) of a TCP or echo packet."""
    data = packet.data
    kind = data[12:14]
    if kind == b"\x08\x00" and len(data) >= 34:
        proto, at = data[23], 14 + (data[14] & 15) * 4
    elif kind == b"\x86\xdd" and len(data) >= 54:
        proto, at = data[20], 54
    else:
        return False, ()

    def number(offset: int) -> int:
        return int.from_bytes(data[at + offset : at + offset + 2], "big")

    if proto == _TCP:
        return False, (number(0), number(2))
    if (proto, data[at : at + 1]) in (
        (_ICMP, b"\x08"),
        (_ICMP, b"\x00"),
        (_ICMP6, b"\x80"),
        (_ICMP6, b"\x81"),
    ):
        return True, (number(4),)
    return False, ()
