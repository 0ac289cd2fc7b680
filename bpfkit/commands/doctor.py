# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit doctor: what works on this machine, and what is missing for the rest.

``doctor sockmap``: what a sockmap does to the applications whose sockets are in it.
"""

from __future__ import annotations

from bpfkit.app.signals import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterator

    from bpfkit.core.features import Feature


HELP = "check what works on this machine, and what is missing"


def add_options(parser: ArgumentParser) -> None:
    """The command's options, beside ``--json``."""
    parser.add_argument(
        "subject",
        nargs="?",
        choices=["sockmap"],
        help="sockmap: what a sockmap does to applications on this kernel",
    )


def run(options: Namespace) -> int:
    """Print it; returns the exit status."""
    if options.subject == "sockmap":
        from bpfkit.commands.sockmap_report import report

        return report(options.json)
    if options.json:
        from bpfkit.show.jsonl import json_lines

        for heading, answers in _findings():
            what = heading.removesuffix("s")
            output(json_lines([{"what": what, **answer.as_dict()} for answer in answers]))
        return 0
    from bpfkit.show.text import table

    for heading, answers in _findings():
        body = []
        for answer in answers:
            body.append([answer.name, answer.state, "" if answer.parts else _detail(answer)])
            if answer.hint:
                body.append(["", "", f"→ {answer.hint}"])
            for part in answer.parts:
                body.append([f"  {part.name}", part.state, _detail(part)])
        lines = table([heading, "", ""], body)
        output("\n".join(lines) + "\n\n")
    output("What a sockmap does to applications here: python3 -m bpfkit doctor sockmap\n")
    return 0


def _findings() -> Iterator[tuple[str, list[Feature]]]:
    """What the doctor looks at: heading, answers.  A generator, because probing takes a while."""
    from bpfkit.core import features
    from bpfkit.core.features.environment import environment

    yield "environment", [*environment(), *_compile_side(), *_python_side()]
    yield "program types", features.program_types()
    yield "map types", features.map_types()


def _compile_side() -> list[Feature]:
    """The interpreter that has bcc, and where headers can come from."""
    from bpfkit.core.compile.headers import describe
    from bpfkit.core.features import NOT_SUPPORTED, WORKS, Feature

    routes = [
        Feature(
            route,
            WORKS if fine else NOT_SUPPORTED,
            "" if fine else text,
            value=text if fine else None,
        )
        for route, fine, text in describe()
    ]
    usable = [route.name for route in routes if route.state == WORKS]
    headers = Feature(
        "headers",
        WORKS if usable else NOT_SUPPORTED,
        "" if usable else "neither UAPI headers nor BTF of the kernel nor its own headers",
        value=", ".join(usable) or None,
        hint="" if usable else "install linux-libc-dev",
        parts=routes,
    )
    return [_bcc(), headers]


def _bcc() -> Feature:
    from bpfkit.core.compile.compiler import ask_interpreter, interpreters
    from bpfkit.core.features import NOT_SUPPORTED, WORKS, Feature

    ask = "from importlib.util import find_spec as f; s = f('bcc'); print(s.origin if s else '')"
    tried = interpreters()
    for interpreter in tried:
        answer = ask_interpreter(interpreter, ask)
        if answer:
            return Feature("bcc", WORKS, value=f"{interpreter} ({answer})")
    return Feature(
        "bcc",
        NOT_SUPPORTED,
        f"no Python with bcc (tried {', '.join(tried) or 'none'})",
        hint="install python3-bpfcc, or name an interpreter with BPFKIT_BCC_PYTHON",
    )


#: What programs import if it is there: (module, what needs it).
_MODULES = (
    ("pyroute2", "demos and labs, which make networks of their own, need it"),
    ("rich", "the live view needs it; lines of text take its place"),
    ("numpy", "maps as arrays need it (items_arrays), and nothing else"),
)


def remedy(module: str) -> str:
    """How to install a Python package for the interpreter that runs this."""
    import sys

    if sys.prefix != sys.base_prefix:
        return f"in this virtualenv: {sys.prefix}/bin/pip install {module}"
    if sys.executable.startswith("/usr/bin/"):
        return f"apt install python3-{module}"
    return f"{sys.executable} -m pip install {module}"


def _python_side() -> list[Feature]:
    """The interpreter that runs this, and what it has of what programs import."""
    import sys
    from importlib import import_module

    from bpfkit.core.features import NOT_SUPPORTED, WORKS, Feature

    version = ".".join(map(str, sys.version_info[:3]))
    found = [Feature("python", WORKS, value=f"{version} ({sys.executable})")]
    for module, needs in _MODULES:
        try:
            loaded = import_module(module)
        except ImportError as error:
            why = f"{error}: {needs}"
            found.append(Feature(module, NOT_SUPPORTED, why, hint=remedy(module)))
            continue
        place = (getattr(loaded, "__file__", None) or "").removesuffix("/__init__.py")
        number = _version(module) or getattr(loaded, "__version__", "")
        found.append(Feature(module, WORKS, value=f"{number} ({place})".strip()))
    return found


def _version(module: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(module)
    except PackageNotFoundError:
        return ""


def _detail(answer: Feature) -> str:
    """Why it does not work; else what there is to know."""
    return answer.why or ("" if answer.value is None else str(answer.value))
