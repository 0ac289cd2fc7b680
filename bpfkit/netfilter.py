# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.netfilter: a program at netfilter's hooks, beside nftables rules.

The C side is bpf_c/misc/netfilter.bpf.c.  The demo's lab is a client and a server with a router
between them; in the router's namespace the program is at every hook of IPv4 and IPv6, and drops
ICMP at one of them.  nftables chains before and after it, in the same hook, count what they see.
"""

from __future__ import annotations

from bpfkit.app.lifecycle import main
from bpfkit.app.namespace import NamespaceApp
from bpfkit.core.errors import CompileError, InputError, UnsupportedError
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable

    from bpfkit.net.links.lab import Lab
    from bpfkit.net.traffic.ping import PingReport
    from bpfkit.net.traffic.udp import UdpReport
    from bpfkit.show.rows import Row, Verdict

HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
FAMILIES = {4: 2, 6: 10}  # NFPROTO_IPV4, NFPROTO_IPV6
SERVERS = ("10.77.2.1", "fd77:2::1")
#: nft takes a distance of ten from the program, either way.
RULES = """
table inet beside {{
    chain before {{
        type filter hook {hook} priority {before};
        icmp type echo-request counter
        icmpv6 type echo-request counter
        udp dport != 0 counter
    }}
    chain after {{
        type filter hook {hook} priority {after};
        icmp type echo-request counter
        icmpv6 type echo-request counter
        udp dport != 0 counter
    }}
}}
"""


def _priority(text: str) -> int:
    from argparse import ArgumentTypeError

    try:
        number = int(text)
    except ValueError:
        number = 1 << 31
    # The kernel keeps the ends of the range for its own.
    if not -(1 << 31) < number < (1 << 31) - 1:
        raise ArgumentTypeError(f"{text!r} is not a priority (-2147483647 to 2147483646)")
    return number


class Netfilter(NamespaceApp):
    """A program at each netfilter hook, by priority beside nftables rules."""

    protects = True
    name = "netfilter"
    expects = (
        "pings and UDP cross a router: a program at each hook counts them, one drops "
        "ICMP at forward"
    )
    source = "misc/netfilter.bpf.c"
    counters = ("packets", "bytes", "dropped")
    details = ("priority",)
    importance = ("packets", "dropped", "bytes")
    lab_namespace = "router"

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        add = parser.add_argument
        names = ("icmp", "tcp", "udp", "none")
        add("--drop", choices=names, help="protocol to drop (default: icmp in the demo, else none)")
        add("--hook", choices=HOOKS, default="forward", help="where to drop (default: forward)")
        add(
            "--priority",
            metavar="N",
            type=_priority,
            default=0,
            help="priority of the program (default: 0)",
        )

    def build_lab(self) -> Lab:
        from bpfkit.net.links.lab import router_lab

        return router_lab()

    def setup(self) -> None:
        options = self.options
        if options.drop is None:
            options.drop = "none" if not self.place.has_lab else "icmp"
        drop = {"icmp": 1, "tcp": 6, "udp": 17, "none": 255}[options.drop]
        try:
            self.object = self.load(drop=drop, drop_at=HOOKS.index(options.hook))
        except CompileError:
            self.require_type()  # without the type its context is not in the kernel's BTF either
            raise
        program = self.object.programs["filter"]
        with self.namespace.entered():
            for family in FAMILIES.values():
                for hook in range(len(HOOKS)):
                    self.keep(program.attach_netfilter(family, hook, options.priority))
        self.made: list[PingReport | UdpReport] = self.for_check([])
        self.with_nft = False
        if self.place.has_lab:
            self.add_rules()

    def require_type(self) -> None:
        """Raise UnsupportedError if the kernel does not have the program type."""
        from bpfkit.core.features import NOT_SUPPORTED, probe_program_type

        found = probe_program_type("netfilter")
        if found.state == NOT_SUPPORTED:
            raise UnsupportedError("cannot load 'filter' (NETFILTER)", why=found.why)

    def add_rules(self) -> None:
        """nftables chains before and after the program."""
        from shutil import which

        if which("nft") is None:
            self.note("nft is not installed: no nftables rules beside the program")
            return
        at = self.options.priority
        if abs(at) > 1 << 30:
            raise InputError(
                f"--priority {at} leaves nftables no room",
                why="the demo adds chains before and after the program",
            )
        rules = RULES.format(hook=self.options.hook, before=at - 10, after=at + 10)
        self.namespace.check_output(["nft", "-f", "-"], input=rules)
        self.with_nft = True

    def demo(self) -> None:
        """Ping and UDP, in frames with a priority tag too, through the router."""
        from bpfkit.net.traffic.ping import ping
        from bpfkit.net.traffic.tagged import tagged_udp
        from bpfkit.net.traffic.udp import udp

        client, server = self.lab["client"], self.lab["server"]
        for host in SERVERS:
            self.made.append(ping(host, count=3, interval=0.02, timeout=0.3, ns=client))
            self.made.append(udp(host, count=3, timeout=0.3, ns=client, server_ns=server))
            source = "fd77:1::77" if ":" in host else "10.77.1.77"
            ends = ("client:eth0", "router:left")
            self.made.append(tagged_udp(self.lab, *ends, host, source, at="server"))

    def rows(self) -> list[Row]:
        rows = dict(self.object["rows"].sums())
        priority = self.options.priority
        return [
            {
                "family": family,
                "hook": name,
                "priority": priority,
                "packets": rows[number + base].packets,
                "bytes": rows[number + base].bytes,
                "dropped": rows[number + base].dropped,
            }
            for family, base in ((4, 0), (6, len(HOOKS)))
            for number, name in enumerate(HOOKS)
        ]

    def conclusion(self, rows: list[Row]) -> str:
        dropped = sum(row["dropped"] for row in rows)
        return (
            f"seen: {count_of(dropped, 'packet')} dropped at one hook: they are missing at the "
            "hooks behind it"
        )

    def verify(self) -> Iterable[Verdict]:
        drop, hook = self.options.drop, self.options.hook
        seen = {(row["family"], row["hook"]): row for row in self.rows()}
        passes = hook in ("prerouting", "forward", "postrouting")
        for report in self.made:
            gone = passes and report.proto.endswith(drop)
            wanted = 0 if gone else report.sent
            text = f"IPv{report.family} {report.what}: {report.received} of {report.sent} arrived"
            yield report.received == wanted, text
        for family in FAMILIES:
            sent = sum(report.sent for report in self.made if report.family == family)
            row = seen[family, "prerouting"]
            seen_there = count_of(row["packets"], "packet")
            text = f"IPv{family}: {sent} sent, the prerouting hook saw {seen_there}"
            yield row["packets"] >= sent, text
        yield from self.verify_order()
        links = self.links()
        yield (
            links == 2 * len(HOOKS),
            f"the kernel lists {count_of(links, 'link')} of netfilter's kind",
        )

    def verify_order(self) -> Iterable[Verdict]:
        """The counters of the nftables chains before and after the program."""
        if not self.with_nft:
            return
        import re

        drop = self.options.drop
        at = self.options.priority
        for chain, priority in (("before", at - 10), ("after", at + 10)):
            text = self.namespace.check_output(["nft", "list", "chain", "inet", "beside", chain])
            counted = [int(number) for number in re.findall(r"counter packets (\d+)", text)]
            kinds = ("icmp", "ipv6-icmp", "udp")
            for kind, number in zip(kinds, counted, strict=True):
                sent = sum(report.sent for report in self.made if report.proto == kind)
                gone = chain == "after" and kind.endswith(drop)
                text = f"nft {chain} the program, priority {priority}: {number} of {sent} {kind}"
                yield number == (0 if gone else sent), text

    def links(self) -> int:
        """The number of the program's links that are of netfilter's type (10) to the kernel."""
        from bpfkit.core.kernel import syscall

        program = self.object.programs["filter"]
        kinds = [
            int.from_bytes(syscall.obj_info(link.fd, 8)[:4], "little") for link in program.links
        ]
        return kinds.count(10)


if __name__ == "__main__":
    raise SystemExit(main(Netfilter))
