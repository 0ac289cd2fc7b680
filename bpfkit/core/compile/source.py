# SPDX-License-Identifier: Apache-2.0
"""A C source and everything of the user's that it includes.

The warm path needs only the texts (they make the cache key), so creating a :class:`Source` does
nothing but read files and follow ``#include`` lines.  What a compile needs to know beyond that
(programs by ``SEC()``, constants, the licence) is worked out when it is asked for.

User-level files are those that belong to the program: quoted includes beside the including file,
and anything under ``bpf_c`` and ``bpf_c/include``.  Every other include names a kernel header and
is found in a header tree (see :mod:`bpfkit.core.compile.headers`).
"""

from __future__ import annotations

import os

from bpfkit.core.errors import CompileError, InputError, errno_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from bpfkit.core.compile.scan import Scan

__all__ = ["Include", "Source", "c_root"]

_MAX_BYTES = 4 << 20
_MAX_FILES = 256

_root: str | None = None


def c_root() -> str:
    """The directory of the C programs: ``bpf_c`` beside the package, or inside it as installed.

    :raises InputError: when the installation lacks it.
    """
    global _root
    if _root is None:
        package = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
        for home in (package, os.path.dirname(package)):
            path = os.path.join(home, "bpf_c")
            if os.path.isdir(os.path.join(path, "include", "bpfkit")):
                _root = path
                break
        else:
            raise InputError(
                "cannot find bpf_c",
                why=f"neither in {package} nor beside it",
                hint="Reinstall bpfkit: its C programs are missing.",
            )
    return _root


class Include:
    """One ``#include`` line.

    ``name`` as written, ``quoted`` for ``"..."``; ``file`` (an index of :attr:`Source.files`),
    ``line`` and ``start:end`` (of the whole line) where it stands; ``target`` the index of the
    user-level file it names, or -1.
    """

    __slots__ = ("end", "file", "line", "name", "quoted", "start", "target")

    def __init__(self, name: str, quoted: bool, file: int, start: int, end: int, line: int) -> None:
        self.name = name
        self.quoted = quoted
        self.file = file
        self.start = start
        self.end = end
        self.line = line
        self.target = -1


class Source:
    """C text with all its user-level includes.

    ``files`` is a list of (display name, path or None, text), the program itself first, in the
    order in which they are met.  Display names are short and unique; they are what clang, the
    BTF line info and so the verifier's log call these files.
    """

    __slots__ = ("_scan", "files", "includes", "name", "path", "text")

    def __init__(self, name: str, path: str | None, text: str) -> None:
        # A byte order mark, which some editors write, is no part of C.
        text = text.removeprefix("\ufeff")
        self.name = name
        self.path = path
        self.text = text
        self.files: list[tuple[str, str | None, str]] = [(name, path, text)]
        self.includes: list[Include] = []
        self._scan: Scan | None = None
        self._follow()

    # --- making one ---------------------------------------------------------------------------

    @classmethod
    def from_text(cls, text: str, name: str = "text.bpf.c") -> Source:
        """A source that is no file; quoted includes are looked up under ``bpf_c`` only."""
        return cls(name, None, text)

    @classmethod
    def find(cls, source: str) -> Source:
        """A source by what the user calls it.

        :param source: C text (anything with a newline in it), a path, or a name relative to
            ``bpf_c`` ("socket/sockex3.bpf.c").
        :raises InputError: for a file that is missing, unreadable or not text.
        """
        if "\n" in source:
            return cls.from_text(source)
        path = source
        if not os.path.isabs(source):
            inside = os.path.join(c_root(), source)
            if os.path.isfile(inside) or not os.path.exists(source):
                path = inside
        text = _read(path, source)
        path = os.path.abspath(path)
        return cls(_display(path), path, text)

    # --- what the cache key needs -------------------------------------------------------------

    @property
    def user_includes(self) -> list[tuple[str, str]]:
        """(path, text) of every user-level file but the program itself."""
        return [(path or name, text) for name, path, text in self.files[1:]]

    @property
    def system_includes(self) -> list[str]:
        """Names that have to be found in a header tree, each once, in order."""
        return list(dict.fromkeys(i.name for i in self.includes if i.target < 0))

    def key_material(self) -> Iterator[bytes]:
        """Names and texts of all user-level files, in order."""
        for name, _, text in self.files:
            yield name.encode(errors="surrogateescape")
            yield text.encode(errors="surrogateescape")

    def _follow(self) -> None:
        """Read what is included, breadth first, each file once."""
        index = {self.path: 0} if self.path else {}
        at = 0
        while at < len(self.files):
            _, path, text = self.files[at]
            for include in _includes(text, at):
                self.includes.append(include)
                found = _resolve(include, path)
                if found is None:
                    continue
                if found not in index:
                    if len(self.files) >= _MAX_FILES:
                        raise InputError(
                            f"cannot read {self.name}", why=f"more than {_MAX_FILES} included files"
                        )
                    index[found] = len(self.files)
                    self.files.append((self._unique(_display(found)), found, _read(found, found)))
                include.target = index[found]
            at += 1

    def _unique(self, name: str) -> str:
        taken = {other for other, _, _ in self.files}
        candidate, n = name, 2
        while candidate in taken:
            candidate, n = f"{n}/{name}", n + 1
        return candidate

    # --- what a compile needs -----------------------------------------------------------------

    @property
    def sections(self) -> list[tuple[str, str, int]]:
        """(function, section name, line) of every program, in order of appearance.

        Functions that BCC's own macros declare (``TRACEPOINT_PROBE`` …) get the section that the
        macro stands for.

        Only the text is read: a name behind a macro is not seen, and of several ``#if`` branches
        the first counts.  What a compile yields has the compiler's own view.

        :raises CompileError: for a ``SEC()`` that belongs to no function, or libbpf map syntax.
        """
        from bpfkit.core.compile.scan import EXPRESSION

        scan = self.scanned()
        for name, problem in scan.problems:
            if name != EXPRESSION:
                raise problem
        return scan.sections

    @property
    def consts(self) -> dict[str, tuple[int, int]]:
        """``LOAD_CONST(index, name, default)``: {name: (index, default)}."""
        return self.scanned().consts

    @property
    def license(self) -> bytes | None:
        """``LICENSE("…")`` or libbpf's ``SEC("license")``; None where BCC's default applies."""
        return self.scanned().license

    def scanned(self) -> Scan:
        """The result of :func:`bpfkit.core.compile.scan.scan`, made once."""
        if self._scan is None:
            from bpfkit.core.compile.scan import scan

            self._scan = scan(self)
        return self._scan

    def error(self, file: int, line: int, text: str, hint: str = "") -> CompileError:
        """A :class:`CompileError` at a line of one of the user's files."""
        name = self.files[file][0]
        lines = self.files[file][2].split("\n")
        code = lines[line - 1].strip() if 0 < line <= len(lines) else ""
        out = f"    {code}" if code else ""
        return CompileError(
            f"{name}:{line}",
            why=text,
            hint="\n".join(part for part in (out, hint) if part),
            diagnostics=[(name, line, 0, text)],
        )


# --- files -----------------------------------------------------------------------------------


def _read(path: str, called: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise _missing(called) from None
    except OSError as error:
        raise InputError(
            f"cannot read C source {called}", why=errno_text(error.errno or 0)
        ) from None
    if len(data) > _MAX_BYTES:
        raise InputError(f"cannot read C source {called}", why="larger than 4 MB")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(
            f"cannot read C source {called}", why="UTF-16 text", hint="Save it as UTF-8."
        )
    if b"\0" in data:
        raise InputError(f"cannot read C source {called}", why="not a text file")
    text = data.decode(errors="surrogateescape").removeprefix("\ufeff")
    return text.replace("\r\n", "\n")


def _missing(called: str) -> InputError:
    from difflib import get_close_matches

    root = c_root()
    known: dict[str, str] = {}
    for directory, _, names in os.walk(root):
        for name in names:
            if name.endswith(".bpf.c"):
                relative = os.path.relpath(os.path.join(directory, name), root)
                known[relative] = relative
                known.setdefault(name, relative)
                known.setdefault(name[: -len(".bpf.c")], relative)
    near = dict.fromkeys(known[n] for n in get_close_matches(called, known, 6, 0.6))
    hint = f"Nearest: {', '.join(list(near)[:3])}." if near else ""
    return InputError(
        f"no C source {called!r}", why="neither a file nor a name in bpf_c", hint=hint
    )


def _display(path: str) -> str:
    """A short name: relative to ``bpf_c`` or ``bpf_c/include`` for what is there."""
    root = c_root()
    for base in (os.path.join(root, "include"), root):
        if path.startswith(base + "/"):
            return path[len(base) + 1 :]
    return os.path.basename(path)


def _resolve(include: Include, path: str | None) -> str | None:
    """The user-level file that an include names, or None."""
    root = c_root()
    places = [os.path.join(root, "include"), root]
    if include.quoted and path is not None:
        places.insert(0, os.path.dirname(path))
    elif not include.quoted:
        places.pop()
    for place in places:
        candidate = os.path.normpath(os.path.join(place, include.name))
        if os.path.isfile(candidate):
            return candidate
    return None


def _includes(text: str, file: int) -> Iterator[Include]:
    """Every ``#include`` of a text, comments left out.

    Plain string searches: this runs at every start, and :mod:`re` would have to be compiled.
    """
    at = 0
    lines_at, lines = 0, 1
    while True:
        at = text.find("include", at)
        if at < 0:
            return
        start = text.rfind("\n", 0, at) + 1
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        before = text[start:at].strip()
        rest = text[at + 7 : end].strip()
        here, at = at, end
        if before[:1] != "#" or before[1:].strip():
            continue
        closing = {"<": ">", '"': '"'}.get(rest[:1])
        if closing is None:
            continue
        stop = rest.find(closing, 1)
        if stop < 2:
            continue
        if text.rfind("/*", 0, here) > text.rfind("*/", 0, here) and _in_block_comment(text, here):
            continue
        lines += text.count("\n", lines_at, start)
        lines_at = start
        yield Include(rest[1:stop], closing == '"', file, start, end, lines)


def _in_block_comment(text: str, at: int) -> bool:
    """Is this place inside ``/* */``?  Exact, unlike the two searches that ask for it."""
    here = 0
    while True:
        places = [text.find(mark, here, at) for mark in ("/*", "//", '"', "'")]
        found = [place for place in places if place >= 0]
        if not found:
            return False
        here = min(found)
        mark = text[here]
        if mark == "/" and text[here + 1] == "*":
            here = text.find("*/", here + 2)
            if here < 0 or here >= at:
                return True
            here += 2
        elif mark == "/":
            here = text.find("\n", here)
            if here < 0:
                return False
        else:
            here += 1
            while here < at and text[here] not in (mark, "\n"):
                here += 2 if text[here] == "\\" else 1
            here += 1
