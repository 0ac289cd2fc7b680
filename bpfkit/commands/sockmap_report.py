# SPDX-License-Identifier: Apache-2.0
"""The report of ``python3 -m bpfkit doctor sockmap``: the answers, and what they mean."""

from __future__ import annotations

from bpfkit.app.signals import output, say
from bpfkit.core.errors import PrivilegeError, UnsupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from bpfkit.core.features.answer import Feature
    from bpfkit.core.features.sockmap.redirect import Cell

__all__ = ["report"]

_WIDTH = 80

#: answer: (where it is as without a sockmap, where it is not, what bpfkit does about it).
_MEANING = {
    "fionread": (
        "Applications that size their reads by FIONREAD (nginx, Java's available(), .NET) work.",
        "nginx, Java and .NET, which size reads by FIONREAD, stall or cut bodies short: {where}.",
        "sk_msg enters a socket only if its peer enters, too, and refuses `--ports all` where "
        "redirected data is not counted; the sockets of sk_skb are those of its own proxy.",
    ),
    "splice": (
        "Programs that move data by splice() (Go's io.Copy, HAProxy, docker-proxy) work.",
        "Go's io.Copy, HAProxy and docker-proxy, which read by splice(), miss the data, and a "
        "blocking splice() hangs: {where}.",
        "sk_msg takes only the ports that it is told; the proxy of sk_skb uses recv().",
    ),
    "poll and select": (
        "Servers on poll() or select() are woken for redirected data.",
        "Servers on poll() or select() miss redirected data and stall.",
        "",
    ),
    "epoll, edge-triggered": (
        "nginx, Go and Netty get an edge for each redirected message.",
        "nginx, Go and Netty, which wait for edges, can sleep while data waits.",
        "",
    ),
    "MSG_PEEK": (
        "Servers that peek at the first bytes (TLS or HTTP on one port) see redirected data.",
        "Servers that peek at the first bytes (TLS or HTTP on one port) decide on wrong data.",
        "",
    ),
    "SO_RCVLOWAT": (
        "A low-water mark delays the wake-up for redirected data, too.",
        "A low-water mark does not count redirected data: expect wake-ups too early or none, "
        "so read in a loop.",
        "",
    ),
    "queued at entry": (
        "Data that is waiting when a socket enters goes through the verdict at once.",
        "A request that is waiting when its socket enters is not forwarded by itself: client and "
        "server wait for each other.",
        "whoever enters a socket (sk_skb's proxy) forwards what is queued before and after entry.",
    ),
    "end of stream, sk_msg": (
        "A close after redirected data arrives after the data; nothing is lost.",
        "A close after redirected data cuts the stream or never arrives.",
        "",
    ),
    "end of stream, sk_skb": (
        "The proxy sees the client's close; the kernel does not forward it, the proxy must.",
        "The proxy does not see the client's close: connections hang half-open.",
        "",
    ),
    "leaving with unread data": (
        "Stopping keeps redirected data that the application has not read.",
        "Stopping loses redirected data that the application has not read yet.",
        "sk_skb and sk_msg drain: they stop redirecting, and a socket leaves once nothing in it is "
        "unread.",
    ),
    "a gap is visible": (
        "An application is told when redirected data was lost.",
        "An application is not told of that loss: later bytes follow the gap.",
        "sk_skb resets both connections where it cannot drain.",
    ),
    "kTLS after entering": (
        "nginx and OpenSSL can switch a socket in a map to kTLS; a verdict then sees plain text.",
        "OpenSSL falls back on user-space TLS in silence; an application that insists fails.",
        "",
    ),
    "entering with kTLS": (
        "A kTLS socket can enter: test with your TLS library before you rely on that.",
        "A connection with kTLS stays outside the map and works as before.",
        "sk_msg and sk_skb treat it like any socket that cannot enter: it stays with its process.",
    ),
}
_ENTERING = (
    "A socket that is refused works on outside the map. Enter sockets once they are",
    "connected, into one place with a verdict program; MPTCP applications stay out.",
)
_MATRIX = (
    "yes: arrived, byte for byte · drop: the redirect helper refuses (SK_DROP) ·",
    "none: that kind never runs the program · lost: taken, never arrived ·",
    "bad: other bytes arrived · -: no such sockets here",
)
_SHORT = {
    "ok": "yes",
    "refused": "drop",
    "not run": "none",
    "lost": "lost",
    "corrupt": "bad",
    "absent": "-",
}


def report(json: bool) -> int:
    """Make all experiments in a network namespace of their own and print what they say.

    :raises UnsupportedError: no sockmap here, or no privilege.
    """
    from bpfkit.core.features.sockmap.behaviour import behaviours
    from bpfkit.core.features.sockmap.entering import entering
    from bpfkit.core.features.sockmap.redirect import matrix
    from bpfkit.net.links.netns import NetNS

    _require_sockmap()
    with NetNS.new("sockmap") as namespace, namespace.entered():
        answers, entrants, cells = list(behaviours()), list(entering()), list(matrix())
    if json:
        from bpfkit.show.jsonl import json_lines

        output(json_lines(rows(answers, entrants, cells)))
    else:
        output("\n".join(text(answers, entrants, cells)) + "\n")
    unknown = _undetermined([*answers, *entrants])
    for answer in unknown:
        say(f"bpfkit: {answer.name} could not be determined: {answer.why}")
    return 1 if unknown else 0


def _require_sockmap() -> None:
    from bpfkit.core.features.sockmap import obstacle
    from bpfkit.core.features.sockmap.table import SK_SKB, Table

    try:
        with Table() as table:
            table.attach(SK_SKB)
    except OSError as error:
        import errno

        kind = PrivilegeError if error.errno == errno.EPERM else UnsupportedError
        raise kind("cannot test a sockmap", why=obstacle(error)) from None


def _undetermined(answers: Sequence[Feature]) -> list[Feature]:
    """Answers that should be there; what the machine does not have at all needs none."""
    from bpfkit.core.features.answer import INCONCLUSIVE
    from bpfkit.core.features.sockmap import ABSENT

    parts = [part for answer in answers for part in (answer.parts or [answer])]
    return [part for part in parts if part.state == INCONCLUSIVE and part.value != ABSENT]


def rows(
    answers: Sequence[Feature], entrants: Sequence[Feature], cells: Sequence[Cell]
) -> list[dict[str, Any]]:
    """JSON rows: ``what`` is ``behaviour``, ``entry`` or ``redirect``."""
    found: list[dict[str, Any]] = []
    for answer in answers:
        row = {"what": "behaviour", **answer.as_dict()}
        row["meaning"], row["bpfkit"] = _meaning(answer)
        found.append(row)
    found += [{"what": "entry", **answer.as_dict()} for answer in entrants]
    found += [{"what": "redirect", **cell.as_dict()} for cell in cells]
    return found


def _meaning(answer: Feature) -> tuple[str, str]:
    """What it means for applications, and what bpfkit does; empty where nothing is known."""
    from bpfkit.core.features.answer import INCONCLUSIVE, NOT_SUPPORTED

    fine, broken, ours = _MEANING[answer.name]
    if answer.state == INCONCLUSIVE:
        return "", ""
    parts = answer.parts or (answer,)
    wrong = [part.name for part in parts if part.state == NOT_SUPPORTED]
    return (broken.format(where=", ".join(wrong)), ours) if wrong else (fine, "")


def text(
    answers: Sequence[Feature], entrants: Sequence[Feature], cells: Sequence[Cell]
) -> list[str]:
    """The report's lines, 80 columns at most."""
    import os

    lines = [f"What a sockmap does to applications on this kernel ({os.uname().release})", ""]
    for answer in answers:
        lines += _finding(answer)
    lines += ["", "Entering a map", ""]
    lines += _entries(entrants)
    lines += ["", *_ENTERING, ""]
    for hook, direction in (("SK_SKB", "arrives at"), ("SK_MSG", "is sent by")):
        lines += [f"{hook.lower()}: what {direction} the source is redirected", ""]
        lines += _table([cell for cell in cells if cell.hook == hook])
        lines.append("")
    lines += ["Each cell: to ingress (the target reads it) / to egress (its peer reads it)."]
    return lines + list(_MATRIX)


def _finding(answer: Feature) -> list[str]:
    from textwrap import wrap

    lines = [f"{answer.name:26}{_state(answer)}"]
    if answer.parts:
        lines = [answer.name]
        lines += [f"  {part.name:24}{_state(part)}" for part in answer.parts]
    meaning, ours = _meaning(answer)
    lines += [] if answer.parts or not answer.why else wrap(answer.why, _WIDTH - 4)
    if not answer.parts and answer.why:
        lines[1:] = [f"    {line}" for line in lines[1:]]
    for part in answer.parts:
        if part.why:
            lines += wrap(f"{part.name}: {part.why}", _WIDTH, initial_indent="    ")
    for mark, words in (("→", meaning), ("bpfkit:", ours)):
        if words:
            indent = " " * (5 + len(mark))
            lines += wrap(
                f"{mark} {words}", _WIDTH, initial_indent="    ", subsequent_indent=indent
            )
    return lines


def _state(answer: Feature) -> str:
    """The answer in the words of this report."""
    from bpfkit.core.features.answer import INCONCLUSIVE, WORKS

    if answer.state == WORKS:
        return "as without a map"
    return "not known here" if answer.state == INCONCLUSIVE else "DIFFERS"


def _entries(entrants: Sequence[Feature]) -> list[str]:
    from bpfkit.core.features.answer import INCONCLUSIVE, WORKS

    lines = []
    for answer in entrants:
        if answer.state == INCONCLUSIVE:
            said = answer.why
        else:
            said = "enters" if answer.state == WORKS else str(answer.value)
        lines.append(f"  {answer.name:38}{said}")
    return lines


def _table(cells: Sequence[Cell]) -> list[str]:
    """Sources down, targets across; a cell is ``ingress/egress``, errnos are in the notes."""
    from bpfkit.show.text import table

    notes: dict[str, str] = {}

    def word(cell: Cell) -> str:
        if cell.result in _SHORT:
            return _SHORT[cell.result]
        why = f"{cell.result} ({cell.step})"
        return notes.setdefault(why, f"e{len(notes) + 1}")

    targets = list(dict.fromkeys(cell.target for cell in cells))
    by_place = {(cell.source, cell.target, cell.direction): word(cell) for cell in cells}
    body = []
    for source in dict.fromkeys(cell.source for cell in cells):
        pairs = [
            [by_place[source, target, side] for side in ("ingress", "egress")] for target in targets
        ]
        body.append([source, *("-" if p == ["-", "-"] else "/".join(p) for p in pairs)])
    lines = table(["source ↓  target →", *targets], body, indent="  ")
    return lines + [f"  {mark}: {why}" for why, mark in notes.items()]
