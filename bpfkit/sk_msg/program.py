# SPDX-License-Identifier: Apache-2.0
"""sk_msg: sendmsg(2) between two local sockets of a cgroup, past TCP.

The C side, and how the two ends of a connection find each other, is bpf_c/sock/sk_msg.bpf.c; how
the program ends without losing a byte is drain.py; the demo and what ``--check`` compares is
demo.py.
"""

from __future__ import annotations

from bpfkit.app.cgroup import CgroupApp
from bpfkit.app.lifecycle import main
from bpfkit.core.errors import UnsupportedError, UsageError
from bpfkit.core.words import count_of, thousands
from bpfkit.sk_msg.options import ALL_PORTS, EPILOG, add_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable
    from typing import Any

    from bpfkit.app.signals import Signals
    from bpfkit.core.object import Object
    from bpfkit.show.rows import Row, Verdict
    from bpfkit.sk_msg.demo import Demo

__all__ = ["SkMsg", "main"]

#: PLAIN_* of sk_msg.bpf.c: (field, what it means).
PLAIN = (
    ("elsewhere", "the other end is not in the cgroup and namespace"),
    ("early", "data was sent before both ends were there"),
    ("full", "the map had no room (--max)"),
    ("refused", "the kernel does not let the socket in (MPTCP, kTLS, another sockmap)"),
    ("ktls", "kTLS, which stays off: setsockopt(TCP_ULP) failed with EINVAL"),
)
#: Fields of struct port_count; each has its _bytes.
VERDICTS = ("redirected", "passed", "denied")
#: What the demo refuses where --deny-prefix does not say.
DEMO_DENIES = b"GET /secret"


class SkMsg(CgroupApp):
    """Messages between two sockets of a cgroup on one host, past TCP; some of them denied."""

    name = "sk_msg"
    source = "sock/sk_msg.bpf.c"
    needs = ("BPF", "NET_ADMIN", "PERFMON", "SYS_ADMIN")
    counters = ("messages", "bytes")
    epilog = EPILOG
    check_rounds = 1

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        add_options(parser)

    def check_options(self) -> None:
        super().check_options()
        options = self.options
        if options.deny_prefix is not None and options.check:
            raise UsageError(
                "--deny-prefix and --check do not go together",
                why="--check denies a text of its own",
            )
        if options.deny_prefix and (options.cork or options.apply):
            raise UsageError(
                "--deny-prefix goes with neither --cork nor --apply",
                why="these judge several messages by the first",
            )
        if options.cgroup is not None and options.ports is None:
            raise UsageError(
                "--cgroup needs --ports",
                why="programs that splice(2) lose redirected data, so name the ports of others",
                hint="--ports 80,8000-8099, or --ports all",
            )

    # ---------------------------------------------------------------- set up

    def setup(self) -> None:
        options = self.options
        demo = options.cgroup is None and not options.command
        if demo and options.deny_prefix is None and not (options.cork or options.apply):
            options.deny_prefix = DEMO_DENIES
        if options.ports is None:
            options.ports = [range(5201, 5202)] if demo else [ALL_PORTS]
        if not demo:
            self._note_kernel()
        self.object = self.load(
            deny_size=len(options.deny_prefix or b""),
            cork_size=options.cork or 0,
            apply_size=options.apply or 0,
            write_seq=self._write_seq(),
        )
        self.prepare(self.object)
        programs = self.object.programs
        # A socket takes the programs that the map has when it enters.
        self.keep(programs["redirect"].attach_sockmap(self.object["socks"]))
        self.attach(programs["no_ktls"])
        self.attach(programs["enter"])
        self.demo_part: Demo | None = None

    @staticmethod
    def _write_seq() -> int:
        """Offset of ``tcp_sock.write_seq`` in this kernel."""
        from bpfkit.core.types.btf import vmlinux

        btf = vmlinux()
        if btf is None:
            raise UnsupportedError(
                "cannot find struct tcp_sock", why="this kernel has no BTF (CONFIG_DEBUG_INFO_BTF)"
            )
        return btf.offset("tcp_sock", "write_seq")

    def load_options(self) -> dict[str, Any]:
        limit = self.options.max
        return {"max_entries": {"socks": limit}} if limit else {}

    def prepare(self, loaded: Object) -> None:
        scope = loaded["scope"]
        for ports in self.options.ports:
            if len(ports) == 1:
                scope[ports[0]] = 1
            else:
                scope.update(dict.fromkeys(ports, 1))
        self._set(loaded, stops=0)
        loaded["ports"][0] = (0,) * len(loaded["ports"].value_layout.columns)

    def _set(self, loaded: Object, stops: int) -> None:
        loaded["settings"][0] = {"stops": stops, "deny": self.options.deny_prefix or b""}

    def _note_kernel(self) -> None:
        """Say what redirection does to some programs on this kernel, found by doing."""
        from bpfkit.sk_msg.kernel import check_kernel

        for text in check_kernel(self.options.ports == [ALL_PORTS]):
            self.note(text)

    # ---------------------------------------------------------------- figures

    def rows(self) -> list[Row]:
        """A row per port and verdict, and what was not redirected at all."""
        rows: list[Row] = []
        counts = self.object["ports"]
        connections = 0
        # Port 0: all ports that came after the map of ports was full.
        for port in sorted(counts.keys(), key=lambda port: port or 1 << 16):
            total = counts[port].sum()._asdict()
            connections += total["connections"]
            for verdict in VERDICTS:
                messages, size = total[verdict], total[f"{verdict}_bytes"]
                if messages:
                    row = {"port": port or None, "verdict": verdict}
                    rows.append({**row, "messages": messages, "bytes": size})
        plain = [value for _, value in sorted(self.object["plain"].items())]
        rows.append(
            {
                "summary": True,
                "connections": connections,
                "sockets": len(self.object["socks"]),
                **{f"plain_{name}": n for (name, _), n in zip(PLAIN, plain, strict=True)},
            }
        )
        return rows

    def lines(self, rows: list[Row]) -> Iterable[str]:
        from bpfkit.show.text import table

        titles = ["port", "verdict", "messages", "bytes"]
        body = [
            [str(row["port"] or "others"), *(str(row[title]) for title in titles[1:])]
            for row in rows
            if "summary" not in row
        ]
        if body:
            yield from table(titles, body, right=[True, False, True, True])
        yield from self.notes(rows)

    def text_cells(self, row: Row) -> dict[str, str]:
        return {"port": str(row["port"] or "others"), "verdict": row["verdict"]}

    def notes(self, rows: list[Row]) -> list[str]:
        summary = rows[-1]
        texts = [
            f"{count_of(summary['connections'], 'connection')} redirected, "
            f"{count_of(summary['sockets'], 'socket')} in the map now"
        ]
        for name, meaning in PLAIN:
            count = summary[f"plain_{name}"]
            if count:
                what = "refused" if name == "ktls" else "not redirected"
                texts.append(f"{what}, {thousands(count)}: {meaning}")
        return texts

    # ---------------------------------------------------------------- demo, end

    def demo(self) -> None:
        from bpfkit.sk_msg.demo import Demo

        if self.demo_part is None:
            self.demo_part = Demo(self)
        self.demo_part.run()

    def conclusion(self, rows: list[Row]) -> str:
        messages = sum(r["messages"] for r in rows if r.get("verdict") == "redirected")
        return (
            f"seen: {count_of(messages, 'message')} went from socket to socket: a capture on lo "
            "sees none of them"
        )

    def verify(self) -> Iterable[Verdict]:
        assert self.demo_part is not None
        yield from self.demo_part.verify()

    def finish(self, signals: Signals) -> None:
        """End the command, then take out the sockets that are left, without losing a byte."""
        from bpfkit.sk_msg.drain import drain

        super().finish(signals)
        sockets = self.object["socks"]
        self._set(self.object, stops=1)
        # What --cork holds back would be lost with the socket's place in the map, and the verdict
        # that --apply gave holds for bytes that are still to come.
        options = self.options
        option = "--cork" if options.cork else "--apply" if options.apply else ""
        if option:
            left = len(sockets)
            why = f"bytes may be under way by {option}"
        else:
            left = drain(sockets, self.group.path, options.drain)
            why = f"their data was not read in {options.drain:g} s"
        if left:
            self.note(
                f"{count_of(left, 'socket')} left in the map until they are closed, as {why}; "
                "nothing is lost, new data goes by TCP"
            )


if __name__ == "__main__":
    raise SystemExit(main(SkMsg))
