# SPDX-License-Identifier: Apache-2.0
"""Parses xdp_lb's options: services, backends, table size, health check port.

Errors are UsageErrors that name the option.
"""

from __future__ import annotations

from bpfkit.core.errors import InputError, UsageError
from bpfkit.xdp_lb.balancer import Service, parse_backend

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from bpfkit.net.links.interfaces import Interface

__all__ = [
    "check_interface",
    "parse_backends",
    "parse_services",
    "port_to_check",
    "refuse_own",
    "table_size",
]


def parse_services(texts: Iterable[str]) -> list[Service]:
    """The services of ``--vip``."""
    services: list[Service] = []
    for text in texts:
        try:
            services.append(Service.parse(text))
        except ValueError as error:
            raise UsageError(f"--vip {text}: {error}") from None
    return services


def parse_backends(texts: Iterable[str]) -> dict[str, int]:
    """Address -> weight of ``--backend``."""
    given: dict[str, int] = {}
    for text in texts:
        try:
            name, weight = parse_backend(text)
            if name in given:
                raise ValueError("given twice")
        except ValueError as error:
            raise UsageError(f"--backend {text}: {error}") from None
        given[name] = weight
    return given


def check_interface(interface: Interface, services: list[Service], forward: str) -> list[str]:
    """Check that packets can go back out of ``interface``; returns warnings.

    :param forward: ``ipip`` or ``l2``.
    :raises InputError: the interface has no MAC addresses.
    """
    name, link = interface.name, interface.link_name
    if link != "Ethernet":
        raise InputError(
            f"{name} is not an Ethernet interface ({link})",
            why="packets are sent back by MAC address",
        )
    has_ipv6 = any(":" in service.address for service in services)
    if forward == "ipip" and interface.mtu < 1280 + 40 and has_ipv6:
        return [f"the MTU of {name}, {interface.mtu}, leaves IPv6 less than 1280"]
    return []


def refuse_own(services: list[Service], backends: set[str]) -> None:
    """Check that no service is a backend, and that none is given twice.

    :raises UsageError: one is.
    """
    for service in services:
        if service.address in backends:
            raise UsageError(
                f"{service.address} is a VIP and a backend", why="it would get its own packets"
            )
    if len({str(service) for service in services}) < len(services):
        raise UsageError("a --vip is given twice")


def port_to_check(services: list[Service], given: int | None) -> int:
    """The port of health checks: ``--health-port``, or that of the first TCP service."""
    if given == 0:
        raise UsageError("--health-port 0 is not a port to connect to")
    if given is not None:
        return given
    for service in services:
        if service.proto == "tcp":
            return service.port
    raise UsageError(
        "--health tcp needs --health-port",
        why="no service uses TCP",
        hint="or use --health none",
    )


def table_size(text: str) -> int:
    """The value of ``--table`` (argparse type)."""
    from argparse import ArgumentTypeError

    from bpfkit.xdp_lb.maglev import SIZES, is_prime

    if text.isascii() and text.isdigit() and int(text) <= SIZES[-1] and is_prime(int(text)):
        return int(text)
    sizes = ", ".join(map(str, SIZES))
    raise ArgumentTypeError(f"{text!r} is not a prime up to {SIZES[-1]} (recommended: {sizes})")
