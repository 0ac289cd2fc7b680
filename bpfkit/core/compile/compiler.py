# SPDX-License-Identifier: Apache-2.0
"""C text to artifact: the front end's side of the compile worker (cache misses only)."""

from __future__ import annotations

import errno
import marshal
import os
import sys

from bpfkit.core.compile.artifact import FORMAT
from bpfkit.core.errors import (
    BpfkitError,
    CompileError,
    UnsupportedError,
    errno_text,
    resource_error,
)
from bpfkit.core.log import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from bpfkit.core.compile.artifact import Artifact
    from bpfkit.core.compile.headers import Tree
    from bpfkit.core.compile.source import Source

__all__ = ["ask_interpreter", "compile_source", "interpreters"]

_MARSHAL_VERSION = 2
_NO_BCC = 3
_TIME_LIMIT = 120.0
#: Runs a file by its path like a module, so that Python keeps it compiled (10 ms).
_RUN = """import sys, _frozen_importlib as a, _frozen_importlib_external as b
spec = b.spec_from_file_location("bpfkit_worker", sys.argv[1])
module = a.module_from_spec(spec)
spec.loader.exec_module(module)
module.main()
"""
#: bpfkit.h's word for a clang that cannot tag functions.
_NO_TAGS = "bpfkit: no btf_decl_tag"
#: clang optimises as if for this machine, which has vectors; BPF has none.  A run of bitfields (the
#: padding of mm_struct and others) would become one integer of hundreds of bits, which BPF aligns
#: to 16 bytes and this machine to 8: all fields behind it would be read 16 bytes off.
_FLAGS = (
    "-Wno-macro-redefined",
    "-fno-vectorize",
    "-fno-slp-vectorize",
    "-ffine-grained-bitfield-accesses",
)


def compile_source(source: Source, cflags: Sequence[str] = (), verbose: bool = False) -> Artifact:
    """Compile a source; see :mod:`bpfkit.core.compile.artifact` for the result.

    Nothing is created in the kernel, and no privilege is needed.

    :param cflags: further options for clang ("-DNAME=value").
    :param verbose: keep all of clang's text in "diagnostics", not only warnings about the source.
    :raises CompileError: the source does not compile, or uses what BCC cannot carry.
    :raises UnsupportedError: BCC is missing, or headers that the source needs.
    """
    workers = _Workers()
    try:
        return _compile(source, cflags, verbose, workers)
    finally:
        workers.close()


#: Types of tracepoints, which the kernel's build makes; no header has them.
_ONLY_IN_BTF = "trace_event_raw_"


def _compile(source: Source, cflags: Sequence[str], verbose: bool, workers: _Workers) -> Artifact:
    workers.start()  # it loads LLVM while the text is put together
    from itertools import chain

    from bpfkit.core.compile.headers import module_routes, routes
    from bpfkit.core.compile.scan import flatten

    text = flatten(source)
    first: BpfkitError | None = None
    refusal: BpfkitError | None = None
    names: list[str] = []
    ask = workers.ask
    try:
        for route in chain(routes(source, cflags, ask), module_routes(source, names, ask)):
            tree = route.make()
            try:
                answer, log, status = workers.run(_request(source, text, cflags, tree))
            finally:
                tree.close()
            if answer is not None and "refused" not in answer:
                say(f"compiled {source.name} with the {route.name} headers")
                return _artifact(source, answer, log, verbose)
            from bpfkit.core.compile import diagnostics

            if answer is not None:
                missing = diagnostics.missing_function(answer["refused"])
                if route.name == "uapi" and missing and _kernel_knows([missing]):
                    first = diagnostics.refused(source, answer["refused"], log)
                    continue
                raise _problem(source, diagnostics.refused(source, answer["refused"], log))
            error = _problem(source, diagnostics.explain(source, log, status))
            if first is None or _count(error) <= _count(first):
                first = error
            names[:] = diagnostics.missing_types(log)
            if not isinstance(error, CompileError) or not _kernel_knows(names):
                break
            say(f"the {route.name} headers lack {names[0]}")
        else:
            if first is not None:
                from bpfkit.core.compile.headers import btf_problem, describe

                why = [text for route, fine, text in describe() if not fine and route != "uapi"]
                first.hint = "\n".join(part for part in (first.hint, "; ".join(why)) if part)
                if btf_problem() and any(_ONLY_IN_BTF in name for name in names):
                    raise UnsupportedError(
                        f"{source.name} cannot be compiled here",
                        why=f"{names[0]} comes from BTF; {btf_problem()}",
                        hint="Use a kernel with CONFIG_DEBUG_INFO_BTF=y.",
                        log=first.log,
                    )
    except UnsupportedError as error:
        refusal = error
    if first is None or (refusal is not None and refusal.log == first.log):
        assert refusal is not None
        raise refusal
    if refusal is not None and isinstance(first, CompileError):
        refusal.log = first.log
        first.hint = "\n".join(part for part in (first.hint, refusal.why) if part)
    raise first


def _request(source: Source, text: str, cflags: Sequence[str], tree: Tree) -> dict[str, Any]:
    flags = []
    for _, path, _ in source.files:
        if path is not None:
            flags.append(f"-I{os.path.dirname(path)}")
    environ = os.environ
    return {
        "op": "compile",
        "text": text.encode(errors="surrogateescape"),
        "cflags": [os.fsencode(flag) for flag in (*dict.fromkeys(flags), *_FLAGS, *cflags)],
        "tree": tree.path,
        "throwaway": bool(tree.temporary),
        "also": [tree.module] if tree.module else [],
        "env": tree.env,
        "files": [(name, content) for name, _, content in source.files],
        "paths": [path for _, path, _ in source.files if path is not None],
        "consts": [(name, *value) for name, value in source.scanned().consts.items()],
        "heads": list(source.scanned().heads.values()),
        "untagged": not any(name == "bpfkit/bpfkit.h" for name, _, _ in source.files),
        "nohook": bool(environ.get("BPFKIT_WORKER_NOHOOK")),
        "noelf": bool(environ.get("BPFKIT_WORKER_NOELF")),
    }


def _artifact(source: Source, answer: dict[str, Any], log: str, verbose: bool) -> Artifact:
    scan = source.scanned()
    untagged = not answer["linked"] or _NO_TAGS in log
    if untagged and scan.problems:
        raise scan.problems[0][1]
    for name, section, function in answer["strays"]:
        raise _stray(source, name, section, function)
    sections, unnamed = _sections(source, answer, untagged)
    text = log.replace("bpfkit worker: tracefs mounted\n", "").strip()
    if text and not verbose:
        from bpfkit.core.compile.diagnostics import warnings

        text = warnings(source, log)
        text = "\n".join(line for line in text.split("\n") if _NO_TAGS not in line)
    if not answer["linked"] and answer["progs"]:
        say("this libbcc keeps LLVM's objects to itself: no subprograms, no exact C lines")
    license = scan.license
    if answer["linked"] and not scan.license_by_sec:
        license = answer["own_license"]
    return {
        "v": FORMAT,
        "license": license or answer["license"],
        "kern_version": answer["kern_version"],
        "btf": answer["btf"],
        "maps": answer["maps"],
        "progs": answer["progs"],
        "sections": sections,
        "unnamed": unnamed,
        "consts": answer["consts"],
        "deps": answer["deps"],
        "diagnostics": text,
        "formats": answer["formats"],
    }


def _sections(
    source: Source, answer: dict[str, Any], untagged: bool
) -> tuple[list[tuple[str, str, int]], list[tuple[str, str, int, str, str]]]:
    """The artifact's "sections" and "unnamed": the text is asked only where clang says nothing."""
    from bpfkit.core.compile.scan import definitions, named

    written = {name: (section, line) for name, section, line in source.scanned().sections}
    order = list(written)
    compiled = {prog[0]: ("", "", 0, "") for prog in answer["progs"]}
    compiled.update((entry[0], entry[1:]) for entry in answer["sections"])
    sections = []
    unnamed = []
    for name, (section, file, line, context) in compiled.items():
        text, at = written.get(name, ("", 0))
        if not section:
            section = text if untagged else named(name)
        if section != text:
            at = 0
        if not at:
            places = definitions(source, name)
            if places:
                file, line = min(places, key=lambda place: (place[0] != file, abs(place[1] - line)))
            at = line
        if section:
            sections.append((name, section, at))
            continue
        from bpfkit.core.kernel.sections import likely

        content = next((text for other, _, text in source.files if other == file), "").split("\n")
        code = content[at - 1].strip() if 0 < at <= len(content) else ""
        unnamed.append((name, file or source.name, at, code, likely(context, name)))
    sections.sort(key=lambda entry: order.index(entry[0]) if entry[0] in order else len(order))
    return sections, unnamed


def _stray(source: Source, name: str, section: str, function: bool) -> CompileError:
    """The error for a SEC() on what is no program, at its line where the text has it."""
    from bpfkit.core.compile.scan import LIBBPF_MAP, LIBBPF_MAP_HINT, NO_GLOBALS_HINT, STATIC

    for known, error in source.scanned().problems:
        if known == name and "twice" not in error.why:
            return error
    if function:
        return CompileError(source.name, why=STATIC.format(name), hint="Remove 'static'.")
    if section.startswith((".maps", "maps")):
        return CompileError(source.name, why=f"{name}: {LIBBPF_MAP}", hint=LIBBPF_MAP_HINT)
    why = f'{name}: SEC("{section}") does not belong to a function'
    return CompileError(source.name, why=why, hint=NO_GLOBALS_HINT)


def _problem(source: Source, error: BpfkitError) -> BpfkitError:
    """What the text says about the line of an error, if that says more than clang does."""
    if isinstance(error, CompileError):
        from bpfkit.core.compile.scan import PINNED

        for name, better in source.scanned().problems:
            file, line, _, _ = better.diagnostics[0]
            pinned = name == PINNED and error.why.startswith(PINNED)
            if pinned or any(
                file == other and line <= at <= line + 2 for other, at, _, _ in error.diagnostics
            ):
                better.log = error.log
                return better
    return error


def _count(error: BpfkitError) -> int:
    return len(error.diagnostics) if isinstance(error, CompileError) else 0


def _kernel_knows(names: Sequence[str]) -> bool:
    """Does the running kernel have one of these types or constants (or was it a header)?"""
    if not names:
        return False
    if any("/" in name or name.endswith(".h") for name in names):
        return True
    from bpfkit.core.compile import headertext

    if any(name in headertext.INLINES or name in headertext.names() for name in names):
        return True  # a generated tree defines it
    try:
        with open("/sys/kernel/btf/vmlinux", "rb") as file:
            data = file.read()
    except OSError:
        return True  # installed headers may know it
    if any(b"\0" + name.encode() + b"\0" in data for name in names):
        return True
    from bpfkit.core.compile.headers import modules_with

    return bool(modules_with(names))


# --- the interpreter that has BCC ---------------------------------------------------------------


def interpreters() -> list[str]:
    """Interpreters that may have BCC, best first."""
    chosen = os.environ.get("BPFKIT_BCC_PYTHON")
    if chosen:
        return [chosen]
    found = []
    if sys.executable and _has_bcc():
        found.append(sys.executable)
    system = "/usr/bin/python3"
    if os.access(system, os.X_OK) and not (
        found and os.path.realpath(found[0]) == os.path.realpath(system)
    ):
        found.append(system)
    return found


def _environment() -> dict[str, str]:
    """The environment of a child interpreter: nothing that makes Python run somebody's code."""
    keep = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH")
    environ = {name: os.environ[name] for name in keep if name in os.environ}
    environ["LC_ALL"] = "C.UTF-8"
    return environ


def ask_interpreter(path: str, code: str, limit: float = 30.0) -> str:
    """What ``code`` prints in the interpreter ``path``, isolated (-I) from directory and
    environment; an empty string where it fails."""
    import subprocess

    try:
        done = subprocess.run(
            [path, "-I", "-c", code],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=_environment(),
            timeout=limit,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return os.fsdecode(done.stdout).strip()


def _has_bcc() -> bool:
    """Could this interpreter import bcc?  Asked without importing it."""
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        try:
            spec = find("bcc", None) if find is not None else None
        except Exception:  # other people's import hooks
            spec = None
        if spec is not None and spec.origin:
            return True
    return False


def _no_bcc(tried: list[tuple[str, str]]) -> UnsupportedError:
    system: dict[str, str] = {}
    try:
        with open("/etc/os-release") as file:
            for line in file:
                key, _, value = line.strip().partition("=")
                system[key] = value.strip("\"'")
    except OSError:
        pass
    likes = [system.get("ID", ""), *system.get("ID_LIKE", "").split()]
    packages = {
        "debian": "apt install python3-bpfcc",
        "ubuntu": "apt install python3-bpfcc",
        "fedora": "dnf install python3-bcc",
        "rhel": "dnf install python3-bcc",
        "arch": "pacman -S python-bcc",
        "suse": "zypper install python3-bcc",
        "opensuse": "zypper install python3-bcc",
        "alpine": "apk add py3-bcc",
    }
    install = next((packages[like] for like in likes if like in packages), "")
    if not install:
        install = "install BCC's Python 3 package (python3-bpfcc, python3-bcc)"
    if os.environ.get("BPFKIT_BCC_PYTHON"):
        path, why = tried[0]
        return UnsupportedError(
            f"BPFKIT_BCC_PYTHON={path} is no Python with BCC",
            why=why,
            hint=f"Unset it, or {install}."
            if install.startswith("install")
            else f"Unset it, or: {install}",
        )
    why = "; ".join(f"{path}: {reason}" for path, reason in tried) or "no Python interpreter"
    broken = next((reason for _, reason in tried if _is_there(reason)), "")
    if broken:
        memory = "allocate memory" in broken or "failed to map" in broken
        return UnsupportedError(
            "BCC is installed and cannot be loaded",
            why=why,
            hint="Raise the limit on memory: ulimit -v unlimited" if memory else "",
        )
    return UnsupportedError(
        "BCC is not installed",
        why=why,
        hint=install[0].upper() + install[1:] if install.startswith("install") else install,
    )


def _is_there(reason: str) -> bool:
    """Is this why a library that exists was not loaded?"""
    return ": " in reason and ".so" in reason and "No such file" not in reason


def _resource(error: OSError) -> BpfkitError | None:
    """The error to raise where no interpreter would do better: descriptors, processes, memory."""
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM, errno.ENOSPC):
        found = resource_error(error)
        if found is not None:
            found.what = "cannot start the compile worker"
        return found
    return None


# --- worker processes ----------------------------------------------------------------------------


class _Worker:
    """One process; it starts loading at once and compiles when it gets its request."""

    __slots__ = ("_pipe", "_status", "err", "out", "path", "pid")

    def __init__(self, path: str) -> None:
        self.path = path
        self._status: int | None = None
        self.out = os.memfd_create("bpfkit-out", os.MFD_CLOEXEC)
        self.err = os.memfd_create("bpfkit-err", os.MFD_CLOEXEC)
        read, self._pipe = os.pipe()
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "worker.py")
        try:
            self.pid = os.posix_spawn(
                path,
                [
                    path,
                    "-I",
                    "-S",
                    *(["-B"] if sys.dont_write_bytecode else []),
                    "-c",
                    _RUN,
                    script,
                ],
                _environment(),
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, read, 0),
                    (os.POSIX_SPAWN_DUP2, self.out, 1),
                    (os.POSIX_SPAWN_DUP2, self.err, 2),
                ],
                setsigdef=[13],
            )
        except OSError:
            os.close(self._pipe)
            self._pipe = -1
            self._status = 127
            self.close()
            raise
        finally:
            os.close(read)

    def finish(self, request: dict[str, Any], limit: float) -> tuple[bytes, str, int]:
        """Send the request; returns (stdout, stderr, exit status or minus the signal)."""
        view = memoryview(marshal.dumps(request, _MARSHAL_VERSION))
        try:
            while view:
                view = view[os.write(self._pipe, view) :]
        except BrokenPipeError:
            pass  # its exit status says more
        os.close(self._pipe)
        self._pipe = -1
        self._wait(limit)
        assert self._status is not None
        return _contents(self.out), _contents(self.err).decode(errors="replace"), self._status

    def _wait(self, limit: float) -> None:
        import select

        try:
            fd = os.pidfd_open(self.pid)
        except (OSError, AttributeError):  # before Linux 5.3: without the limit
            fd = -1
        if fd >= 0:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            try:
                ready = poll.poll(limit * 1000)
            finally:
                os.close(fd)
            if not ready:
                os.kill(self.pid, 9)
                self._reap()
                raise CompileError(
                    "the compiler does not come to an end", why=f"stopped after {limit:.0f} s"
                )
        self._reap()

    def _reap(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        self._status = os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """End the process if it is still there, and let go of everything."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
        if self._status is None:
            try:
                os.kill(self.pid, 9)
            except ProcessLookupError:
                pass
            self._reap()
        for fd in (self.out, self.err):
            if fd >= 0:
                os.close(fd)
        self.out = self.err = -1


def _contents(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    data = b""
    while len(data) < size:
        piece = os.pread(fd, size - len(data), len(data))
        if not piece:
            break
        data += piece
    return data


class _Workers:
    """Workers one after the other, by the first interpreter that turns out to have BCC."""

    def __init__(self) -> None:
        self.paths = interpreters()
        self.tried: list[tuple[str, str]] = []
        self.current: _Worker | None = None

    def start(self) -> None:
        """Have a process at hand."""
        while self.current is None:
            if not self.paths:
                raise _no_bcc(self.tried)
            try:
                self.current = _Worker(self.paths[0])
            except OSError as error:
                lack = _resource(error)
                if lack is not None:
                    raise lack from None
                reason = f"cannot be run: {errno_text(error.errno or 0)}"
                self.tried.append((self.paths.pop(0), reason))

    def run(self, request: dict[str, Any]) -> tuple[dict[str, Any] | None, str, int]:
        """(answer or None, stderr, exit status) of a request."""
        try:
            limit = float(os.environ.get("BPFKIT_COMPILE_TIMEOUT") or _TIME_LIMIT)
        except ValueError:
            limit = _TIME_LIMIT
        while True:
            self.start()
            worker = self.current
            assert worker is not None
            try:
                out, err, status = worker.finish(request, limit)
            finally:
                self.close()
            if status == _NO_BCC:
                reason = err.strip().rpartition("\n")[2] or "has no module bcc"
                self.tried.append((self.paths.pop(0), reason))
                continue
            if status == 0:
                try:
                    answer = marshal.loads(out)
                except (ValueError, EOFError, TypeError):
                    answer = None
                if isinstance(answer, dict):
                    if "error" in answer:
                        number, text, name = answer["error"]
                        lack = resource_error(OSError(number, os.strerror(number), name or None))
                        raise lack or CompileError("the compile worker failed", why=text, log=err)
                    return answer, err, status
                self.tried.append((self.paths.pop(0), "is no Python interpreter"))
                continue
            if "SyntaxError" in err and "annotations" in err:  # of worker.py: before 3.7
                self.tried.append((self.paths.pop(0), "is too old, it takes Python 3.7"))
                continue
            if "Traceback (most recent call last)" in err or "SyntaxError" in err:
                raise CompileError(
                    f"the compile worker failed in {self.paths[0]}",
                    why=err.strip().rpartition("\n")[2],
                    log=err,
                )
            if status in (2, 126, 127) or (status > 0 and not err.strip()):
                reason = err.strip().rpartition("\n")[2] or f"ends with status {status}"
                self.tried.append((self.paths.pop(0), reason))
                continue
            return None, err, status

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """A request that has to succeed."""
        answer, err, _ = self.run(request)
        if answer is None or "refused" in answer:
            why = answer["refused"][0] if answer else err.strip().rpartition("\n")[2]
            raise UnsupportedError("cannot read the running kernel's types", why=why, log=err)
        return answer

    def close(self) -> None:
        """End what is still running."""
        if self.current is not None:
            self.current.close()
            self.current = None
