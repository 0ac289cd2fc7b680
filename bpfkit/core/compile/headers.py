# SPDX-License-Identifier: Apache-2.0
"""Header trees, so that no linux-headers package is needed (compiles only).

BCC wants a kernel's source tree; the one file that it insists on is ``include/linux/kconfig.h``.
bpfkit makes such trees, small ones, and takes for each program the first that has what it needs:

1. the user's: ``BPFKIT_HEADERS`` or ``BCC_KERNEL_SOURCE``;
2. **UAPI**: the installed user-space API headers (linux-libc-dev) and a handful of stubs, when
   every include of the source is there.  Kernel-internal types do not exist in it, so a program
   that needs them does not compile, rather than compile wrongly;
3. **BTF, trimmed**: the running kernel's own types, as many of them as the source names;
4. **BTF**: all of them;
5. the installed headers below /lib/modules, if they are exactly the running kernel's.

Headers of another kernel are never used for kernel-internal structs: such a program loads, and
reads garbage.
"""

from __future__ import annotations

import errno
import os
import re

from bpfkit.core.compile.cache import cache_dir, sha256
from bpfkit.core.compile.headertext import (
    ALL_MACROS,
    INCLUDE,
    INLINES,
    KERNEL,
    MACROS,
    PACK,
    TYPEDEFS,
    common,
    extras,
    macros_only,
    names,
    typedefs,
    unguarded,
)
from bpfkit.core.compile.vmlinux import SEEDS, WORD, Types, own_types
from bpfkit.core.errors import BpfkitError, InputError, UnsupportedError, errno_text
from bpfkit.core.kernel.helpers import HELPERS
from bpfkit.core.log import say
from bpfkit.core.trust import UntrustedError, is_trusted, open_trusted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from bpfkit.core.compile.source import Source

__all__ = [
    "Route",
    "Tree",
    "btf_problem",
    "describe",
    "module_routes",
    "modules_with",
    "remove_leftovers",
    "routes",
    "uapi_problem",
    "uapi_tree",
]

_BTF_DIR = "/sys/kernel/btf"
_BTF = f"{_BTF_DIR}/vmlinux"
#: Full, quota, read-only, forbidden: another place may do.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
_KEEP_TREES = 48
_STALE = 3600.0


class Tree:
    """A directory for BCC; ``generated`` when bpfkit made it, ``env`` what BCC is told."""

    __slots__ = ("env", "generated", "module", "path", "route", "temporary")

    def __init__(self, path: str, route: str, generated: bool, temporary: str = "") -> None:
        self.path = path
        self.route = route
        self.generated = generated
        self.temporary = temporary
        #: BTF file of the module whose types are in it.
        self.module = ""
        self.env = {} if route == "modules" else {"BCC_KERNEL_SOURCE": path}

    def close(self) -> None:
        """Remove a tree that could not be kept."""
        if self.temporary:
            import shutil

            shutil.rmtree(self.temporary, ignore_errors=True)
            self.temporary = ""


class Route:
    """One way to headers: ``make()`` gives the tree."""

    __slots__ = ("make", "name")

    def __init__(self, name: str, make: Callable[[], Tree]) -> None:
        self.name = name
        self.make = make


# --- which tree --------------------------------------------------------------------------------


def routes(
    source: Source, cflags: Sequence[str], interpreter: Callable[[dict[str, Any]], dict[str, Any]]
) -> Iterator[Route]:
    """The trees worth trying for a source, best first.

    :param interpreter: runs a request in the worker (for vmlinux.h).
    :raises UnsupportedError: when the source needs kernel-internal headers and there are none.
    :raises CompileError: for an include that exists nowhere.
    """
    override = _override()
    if override is not None:
        yield Route("override", lambda: override)
        return
    uapi = uapi_problem()
    directories = _include_dirs(cflags)
    extra = [
        name
        for name in source.system_includes
        if not _in_dirs(name, directories) and name not in _EVERYWHERE
    ]
    missing = [name for name in extra if uapi or not _in_uapi(name)]
    required = [name for name in missing if _is_required(source, name)]
    if not uapi and not required:
        yield Route("uapi", uapi_tree)
    problems = [f"the user-space API headers {uapi}"] if uapi else []
    # Without the API headers nothing is known about names like theirs.
    internal = [name for name in required if not (uapi and _in_uapi_namespace(name))]
    if required:
        _check_spelling(source, required)
    if internal:
        problems.append(f"{internal[0]} is no user-space API header")
    btf = btf_problem()
    has_types = False
    if btf:
        problems.append(btf)
    elif uapi and any(_in_uapi_namespace(name) for name in extra):
        problems.append("macros come from the user-space API headers, which are not installed")
    else:
        has_types = True
        yield Route("btf-trimmed", lambda: _btf_tree(source, interpreter, trimmed=True))
        yield Route("btf", lambda: _btf_tree(source, interpreter, trimmed=False))
    modules, problem = _modules()
    if modules is not None:
        tree = modules
        yield Route("modules", lambda: tree)
    else:
        problems.append(problem)
    if (uapi or required) and not has_types and modules is None:
        raise UnsupportedError(
            f"{source.name} cannot be compiled here",
            why="; ".join(problems),
            hint="Use a kernel with CONFIG_DEBUG_INFO_BTF=y, install linux-headers-"
            f"{os.uname().release}, or set BPFKIT_HEADERS to a tree of this kernel."
            if internal
            else "Install linux-libc-dev (kernel-headers on Fedora, linux-api-headers on Arch).",
        )


def describe() -> list[tuple[str, bool, str]]:
    """(route, available, why or where) for each route, for ``bpfkit doctor``."""
    out = []
    try:
        override = _override()
        if override is not None:
            out.append(("override", True, override.path))
    except InputError as error:
        out.append(("override", False, error.why))
    problem = uapi_problem()
    out.append(("uapi", not problem, problem or f"{_UAPI}/linux"))
    problem = btf_problem()
    out.append(("btf", not problem, problem or _BTF))
    tree, problem = _modules()
    out.append(("modules", tree is not None, problem if tree is None else tree.path))
    return out


def _override() -> Tree | None:
    for name in ("BPFKIT_HEADERS", "BCC_KERNEL_SOURCE"):
        path = os.environ.get(name)
        if path:
            if not os.path.isfile(os.path.join(path, "include/linux/kconfig.h")):
                raise InputError(
                    f"{name}={path} is no header tree",
                    why="include/linux/kconfig.h is not there",
                    hint="Name a kernel's build directory, or unset it.",
                )
            return Tree(os.path.realpath(path), "override", False)
    return None


def _include_dirs(cflags: Sequence[str]) -> list[str]:
    found = []
    flags = iter(cflags)
    for flag in flags:
        for option in ("-I", "-isystem", "-iquote", "-idirafter"):
            if flag == option:
                found.append(next(flags, ""))
            elif flag.startswith(option):
                found.append(flag[len(option) :])
    return found


def _in_dirs(name: str, directories: Sequence[str]) -> bool:
    return any(os.path.isfile(os.path.join(d, name)) for d in directories)


def _is_required(source: Source, name: str) -> bool:
    """Is there an include of this name outside every ``#if``?"""
    return any(
        not _is_conditional(source.files[i.file][2], i.start)
        for i in source.includes
        if i.name == name and i.target < 0
    )


def _is_conditional(text: str, at: int) -> bool:
    from bpfkit.core.compile.scan import mask

    depth = 0
    first = True
    for line in mask(text[:at]).split("\n"):
        bare = line.strip()
        if bare[:1] != "#":
            continue
        word = bare[1:].lstrip()
        if word.startswith("if"):
            # The guard around a whole header is no condition.
            depth += not (first and word.startswith("ifndef"))
        elif word.startswith("endif"):
            depth -= 1
        first = False
    return depth > 0


def _check_spelling(source: Source, names: Sequence[str]) -> None:
    """A name that is almost one that exists is a typing error, not a kernel header."""
    from difflib import get_close_matches

    for name in names:
        if name in KERNEL:
            continue
        include = next(i for i in source.includes if i.name == name and i.target < 0)
        directory, stem = os.path.split(name)
        known = [n for n in KERNEL if os.path.dirname(n) == directory] + _names_in(directory)
        if include.quoted and include.file == 0 and source.path:
            known += [n for n in _listdir(os.path.dirname(source.path)) if n.endswith(".h")]
        stems = {os.path.basename(n)[:-2]: n for n in known if n.endswith(".h")}
        near = [stems[n] for n in get_close_matches(stem.removesuffix(".h"), stems, 1, 0.82)]
        if near or include.quoted or not _in_kernel_namespace(name):
            library = name.startswith("bpf/")
            hint = (
                "libbpf's headers are not for BCC: its helpers are declared already."
                if library
                else (f"Did you mean {near[0]}?" if near else "")
            )
            raise source.error(include.file, include.line, f"'{name}' file not found", hint)


def _listdir(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _names_in(directory: str) -> list[str]:
    from bpfkit.core.compile.source import c_root

    found = [f"{directory}/{n}" for n in _listdir(os.path.join(_UAPI, directory))]
    inside = os.path.join(c_root(), "include", directory)
    return found + [f"{directory}/{n}" for n in _listdir(inside)]


def _in_kernel_namespace(name: str) -> bool:
    return name.partition("/")[0] in (
        "linux",
        "net",
        "asm",
        "asm-generic",
        "uapi",
        "trace",
        "crypto",
        "scsi",
        "sound",
        "drm",
        "rdma",
        "media",
        "video",
        "acpi",
        "kvm",
        "vdso",
    ) and name.endswith(".h")


# --- the user-space API ------------------------------------------------------------------------


_UAPI = "/usr/include"

#: Headers that BCC or every generated tree brings.
_EVERYWHERE = frozenset(
    "bcc/proto.h bcc/helpers.h bcc/bpf.h stdarg.h linux/kconfig.h linux/types.h linux/version.h "
    "linux/log2.h linux/stddef.h asm/page.h sys/socket.h stdint.h stdbool.h stddef.h".split()
)


def _in_uapi_namespace(name: str) -> bool:
    return name.removeprefix("uapi/").partition("/")[0] in ("linux", "asm", "asm-generic")


def _in_uapi(name: str) -> bool:
    path = _uapi_file(name)
    return path is not None


def _uapi_file(name: str) -> str | None:
    name = name.removeprefix("uapi/")
    top = name.partition("/")[0]
    if top in ("linux", "asm-generic"):
        path = os.path.join(_UAPI, name)
    elif top == "asm":
        path = os.path.join(os.path.dirname(_asm()), name)
    else:
        return None
    return path if os.path.isfile(path) else None


def _asm() -> str:
    """The directory of this machine's <asm/...>: below a multiarch name on Debian."""
    machine = os.uname().machine
    for name in (f"{machine}-linux-gnu", f"{machine}-linux-gnuabi64", "."):
        path = os.path.normpath(os.path.join(_UAPI, name, "asm"))
        if os.path.isfile(os.path.join(path, "types.h")):
            return path
    return os.path.join(_UAPI, "asm")


def uapi_problem() -> str:
    """What is wrong with the user-space API headers; empty: nothing."""
    for path in (f"{_UAPI}/linux/bpf.h", f"{_UAPI}/asm-generic/types.h", f"{_asm()}/types.h"):
        if not os.path.isfile(path):
            return f"are not installed ({path}; package linux-libc-dev)"
    return ""


def uapi_tree() -> Tree:
    """A tree over the installed user-space API headers (52 KB)."""
    return _kept("uapi", _identity(btf=False), _write_uapi)


def _write_uapi(root: str) -> None:
    with open(f"{_UAPI}/linux/bpf.h", errors="replace") as file:
        guard = re.search(r"#ifndef (\w+)", file.read())
    files = common()
    # headers_install renames the guard of bpf.h; BCC brings its own and must find ours closed.
    files["linux/kconfig.h"] = f"""#pragma once
#define CONFIG_BPF_SYSCALL 1
#define CONFIG_BPF 1
#define CONFIG_NET 1
#define {guard.group(1) if guard else "__LINUX_BPF_H__"}
#include <linux/types.h>
"""
    files["linux/types.h"] = (
        "#pragma once\n#include <linux/stddef.h>\n#include <uapi/linux/types.h>\n"
        + typedefs()
        + MACROS
    )
    files["sys/socket.h"] = (
        "#pragma once\n#include <linux/socket.h>\n"
        "struct sockaddr { unsigned short sa_family; char sa_data[14]; };\n"
    )
    _write(root, files)
    uapi = os.path.join(root, "include/uapi")
    os.makedirs(uapi, exist_ok=True)
    for name, target in (
        ("linux", f"{_UAPI}/linux"),
        ("asm-generic", f"{_UAPI}/asm-generic"),
        ("asm", _asm()),
    ):
        os.symlink(os.path.realpath(target), os.path.join(uapi, name))


# --- the running kernel's types ----------------------------------------------------------------


def btf_problem() -> str:
    """What is wrong with the kernel's BTF; empty: nothing."""
    if not os.path.exists(_BTF):
        return f"the kernel has no BTF ({_BTF} is missing: CONFIG_DEBUG_INFO_BTF)"
    try:
        with open(_BTF, "rb"):
            return ""
    except OSError as error:
        return f"the kernel's BTF cannot be read: {errno_text(error.errno or 0)}"


def _btf_tree(
    source: Source,
    interpreter: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    trimmed: bool,
    module: str = "",
) -> Tree:
    """A tree of the running kernel's types; trimmed to what the source names, or whole.

    :param module: a loaded module whose types are wanted as well.
    """
    from bpfkit.core.compile.scan import mask

    identity = _identity(btf=True)
    path = os.path.join(_BTF_DIR, module) if module else ""
    if module:
        with open(path, "rb") as file:
            identity = sha256(identity.encode() + file.read()).hexdigest()[:24]
    kernel = _kept("kernel", identity, lambda root: _write_kernel(root, interpreter, path))
    try:
        tree = _program_tree(source, kernel, mask, trimmed)
        tree.module = path
        return tree
    finally:
        kernel.close()


def _program_tree(source: Source, kernel: Tree, mask: Callable[[str], str], trimmed: bool) -> Tree:
    code = "\n".join(mask(text) for _, _, text in source.files)
    words = set(WORD.findall(code))
    own = own_types(code)
    with open(os.path.join(kernel.path, "types"), "rb") as file:
        types = Types.load(file.read())
    with open(os.path.join(kernel.path, "functions"), encoding="ascii") as text_file:
        functions = text_file.read()
    bodies = dict(re.findall(r"^#define (\w+)\b(?:\([^)]*\))?[ \t]+(.*)$", ALL_MACROS, re.M))
    macros, inlines = extras(words, code)
    for word in list(words):
        if word in bodies:
            words.update(WORD.findall(bodies[word]))
    if trimmed:
        body = types.trim(words | set(SEEDS) | set(TYPEDEFS) | {"true"}, own)
    else:
        with open(os.path.join(kernel.path, "vmlinux.h")) as text_file:
            body = text_file.read()
    files = common()
    known = types.typedefs
    files["vmlinux.h"] = (
        "#pragma once\n"
        + body
        + "\n".join(
            f"typedef {kind} {name};"
            for name, kind in TYPEDEFS.items()
            if name not in known and name not in own
        )
        + ("\n" if "true" in types.enumerators else "\nenum { false = 0, true = 1 };\n")
    )
    files["linux/kconfig.h"] = f"""#pragma once
#define CONFIG_BPF_SYSCALL 1
#define BPF_NO_PRESERVE_ACCESS_INDEX 1
#include <vmlinux.h>
#include <linux/stddef.h>
#include <bpfkit_bpf_macros.h>
#define _UAPI__LINUX_BPF_H__
{functions}{MACROS}{_extra_text(macros, inlines, types)}"""
    files["bpfkit_bpf_macros.h"] = "#pragma once\n" + "".join(
        unguarded(macros_only(_read_uapi(name))) for name in ("linux/bpf_common.h", "linux/bpf.h")
    )
    files["linux/types.h"] = "#pragma once\n"
    files["sys/socket.h"] = "#pragma once\n#include <linux/socket.h>\n"
    # Headers by name: macros of the user-space API, the macro pack, or nothing but a name.
    todo = ["linux/if_packet.h", "linux/if_ether.h", "asm/byteorder.h", "linux/socket.h"]
    todo += source.system_includes
    done = set(files)
    while todo:
        name = todo.pop().removeprefix("uapi/")
        if name in done:
            continue
        done.add(name)
        text = "#pragma once\n"
        for also in KERNEL.get(name, ()):
            text += f"#include <{also}>\n"
            todo.append(also)
        text += PACK.get(name, "")
        path = _uapi_file(name)
        if name in ("linux/bpf.h", "linux/bpf_common.h"):
            pass
        elif path is not None:
            shadow = macros_only(_read(path))
            todo += INCLUDE.findall(shadow)
            files[f"uapi/{name}"] = shadow
            text += f"#include <uapi/{name}>\n"
        elif name not in KERNEL and name not in source.system_includes:
            continue
        if name in _EVERYWHERE or not _in_kernel_namespace(name):
            continue
        files[name] = text
    files["uapi/linux/bpf.h"] = "#pragma once\n"
    files["uapi/linux/types.h"] = "#pragma once\n"
    digest = sha256()
    for name in sorted(files):
        digest.update(f"{name}\0{files[name]}\0".encode(errors="surrogateescape"))
    kind = "btf-trimmed" if trimmed else "btf"
    return _kept(kind, digest.hexdigest()[:24], lambda root: _write(root, files))


def _extra_text(macros: Sequence[str], inlines: Sequence[str], types: Types) -> str:
    values = names()
    lines = [f"#define {n} {values[n]}\n" for n in macros if n not in types.enumerators]
    for name in inlines:
        head = INLINES[name].partition("{")[0]
        known = (types.tags.get(tag) for tag in re.findall(r"struct \w+", head))
        if None not in known:
            lines.append(INLINES[name])
    return "".join(lines)


def _read_uapi(name: str) -> str:
    path = _uapi_file(name)
    return _read(path) if path else ""


def _read(path: str) -> str:
    with open(path, errors="replace") as file:
        return file.read()


def modules_with(names: Sequence[str]) -> list[str]:
    """Loaded modules whose own types have one of these names."""
    found = []
    for module in sorted(_listdir(_BTF_DIR)):
        if module == "vmlinux":
            continue
        try:
            with open(os.path.join(_BTF_DIR, module), "rb") as file:
                data = file.read()
        except OSError:
            continue
        if any(b"\0%s\0" % name.encode() in data for name in names):
            found.append(module)
    return found


def module_routes(
    source: Source,
    names: Sequence[str],
    interpreter: Callable[[dict[str, Any]], dict[str, Any]],
) -> Iterator[Route]:
    """Trees of the kernel's types and those of a loaded module that knows ``names``.

    :param names: what the trees before did not have; read when the first route is asked for.
    """
    for module in modules_with(names) if not btf_problem() and _override() is None else ():
        yield Route(f"module {module}", _module_tree(source, module, interpreter))


def _module_tree(
    source: Source, module: str, interpreter: Callable[[dict[str, Any]], dict[str, Any]]
) -> Callable[[], Tree]:
    return lambda: _btf_tree(source, interpreter, trimmed=True, module=module)


def _write_kernel(
    root: str, interpreter: Callable[[dict[str, Any]], dict[str, Any]], module: str = ""
) -> None:
    """vmlinux.h of the running kernel (0.3–0.5 s), taken apart (0.5 s); once per kernel."""
    path = os.path.join(root, "vmlinux.h")
    say("reading the running kernel's types (once per kernel)")
    interpreter({"op": "vmlinux", "out": os.fsencode(path), "module": os.fsencode(module)})
    text = _read(path)
    types = Types.of(text)
    with open(os.path.join(root, "types"), "wb") as file:
        file.write(types.dump())
    with open(os.path.join(root, "functions"), "w", encoding="ascii") as text_file:
        text_file.write(_missing_functions(types))


def _missing_functions(types: Types) -> str:
    """``#define``s for helpers that BCC's headers name and this kernel does not have."""
    texts = []
    for directory in ("/usr/lib64", "/usr/lib", *_library_dirs()):
        path = os.path.join(directory, "libbcc.so.0")
        if os.path.exists(path):
            with open(path, "rb") as file:
                texts.append(file.read())
            break
    if not texts:
        return ""
    data = texts[0]
    out = []
    for name in sorted(set(re.findall(r"\(void \*\)\s*BPF_FUNC_(\w+)", data.decode("latin-1")))):
        if f"BPF_FUNC_{name}" not in types.enumerators and name in HELPERS:
            out.append(f"#define BPF_FUNC_{name} {HELPERS.index(name)}\n")
    return "".join(out)


def _library_dirs() -> list[str]:
    return [f"/usr/lib/{os.uname().machine}-linux-gnu", f"/lib/{os.uname().machine}-linux-gnu"]


# --- installed headers of the running kernel ------------------------------------------------------


def _modules() -> tuple[Tree | None, str]:
    """The tree below /lib/modules if it is this very kernel's, else why not."""
    release = os.uname().release
    base = f"/lib/modules/{release}"
    build = os.path.join(base, "build")
    if not os.path.isdir(build):
        return None, f"no kernel headers in {base}"
    try:
        found = re.search(
            r'UTS_RELEASE\s+"([^"]*)"',
            _read(os.path.join(build, "include/generated/utsrelease.h")),
        )
    except OSError:
        return None, f"{build} has no include/generated/utsrelease.h"
    if found is None or found.group(1) != release:
        other = found.group(1) if found else "an unknown kernel"
        return None, f"{build} is of {other}, not of the running {release}"
    if os.path.isdir(os.path.join(base, "source")):
        return Tree(os.path.join(base, "source"), "modules", False), ""
    return Tree(build, "modules", False), ""


# --- trees on disk -------------------------------------------------------------------------------


def _identity(*, btf: bool) -> str:
    """Digest of what a tree is made from."""
    uname = os.uname()
    parts = [uname.release, uname.machine, _UAPI]
    here = os.path.dirname(os.path.abspath(__file__))
    for name in ("headers.py", "headertext.py", "vmlinux.py"):
        with open(os.path.join(here, name), "rb") as file:
            parts.append(sha256(file.read()).hexdigest())
    for path in (f"{_UAPI}/linux/version.h", f"{_UAPI}/linux/bpf.h"):
        try:
            s = os.stat(path)
            parts.append(f"{s.st_size}.{s.st_mtime_ns}.{s.st_ino}")
        except OSError:
            parts.append("-")
    if btf:
        try:
            with open("/sys/kernel/notes", "rb") as file:
                parts.append(file.read().hex())
        except OSError:
            parts.append(uname.version)
    text: str = sha256("\0".join(parts).encode()).hexdigest()
    return text[:24]


def _kept(kind: str, identity: str, write: Callable[[str], None]) -> Tree:
    """The tree of this name in the cache, made if need be; else one for this compile only."""
    import shutil
    import tempfile

    base = os.path.join(cache_dir(), "headers")
    path = os.path.join(base, f"{kind}-{identity}")
    if is_trusted(base) and _is_ours(path):
        try:
            os.utime(path)
        except OSError:
            pass
        return Tree(path, kind, True)
    temporary = ""
    try:
        os.close(open_trusted(base, create=True))
        temporary = tempfile.mkdtemp(prefix=".new-", dir=base)
    except UntrustedError as error:
        say(f"header trees at {base} not used: {error.strerror}")
    except OSError as error:
        say(f"no header trees at {base}: {errno_text(error.errno or 0)}")
    if temporary:
        try:
            write(temporary)
            try:
                os.rename(temporary, path)
            except OSError:
                # Somebody else was as quick, or the name is taken by what is not ours.
                if _is_ours(path):
                    shutil.rmtree(temporary, ignore_errors=True)
                else:
                    return Tree(temporary, kind, True, temporary)
            _tidy(base)
            return Tree(path, kind, True)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if error.errno not in _NO_ROOM:
                raise
            say(f"cannot keep header tree: {errno_text(error.errno)}")
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    refused = []
    for directory in _temporary_places():
        temporary = ""
        try:
            temporary = tempfile.mkdtemp(prefix="bpfkit-headers-", dir=directory)
            write(temporary)
            return Tree(temporary, kind, True, temporary)
        except OSError as error:
            if temporary:
                shutil.rmtree(temporary, ignore_errors=True)
            if error.errno not in (*_NO_ROOM, errno.ENOENT, errno.ENOTDIR, errno.EPERM):
                raise
            refused.append(f"{directory}: {errno_text(error.errno or 0)}")
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    raise BpfkitError(
        "there is no room for the headers of this compile",
        why="; ".join([f"{base} is full, not writable or not trusted", *refused]),
        hint="Free 4 MB there, or set BPFKIT_CACHE or TMPDIR to a directory that has them.",
    )


def _temporary_places() -> list[str]:
    """Where a tree for one compile may be, best first."""
    places = ["/dev/shm", os.environ.get("TMPDIR") or "/tmp", "/var/tmp"]
    return list(dict.fromkeys(os.path.abspath(place) for place in places))


def _is_ours(path: str) -> bool:
    """A directory that only we can have filled."""
    try:
        s = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    return (s.st_mode & 0o170022) == 0o040000 and s.st_uid == os.geteuid()


def _tidy(base: str) -> None:
    """Remove the oldest trees, and what killed builders left."""
    import shutil
    import time

    now = time.time()
    found = []
    for name in _listdir(base):
        path = os.path.join(base, name)
        try:
            age = now - os.stat(path, follow_symlinks=False).st_mtime
        except OSError:
            continue
        if age > _STALE:
            found.append((age, name.startswith("."), path))
    keep = _KEEP_TREES
    for _, partial, path in sorted(found):
        keep -= not partial
        if partial or keep < 0:
            shutil.rmtree(path, ignore_errors=True)


def remove_leftovers() -> list[str]:
    """Remove trees that could not be kept and whose compile was killed; a line about each.

    Only our own ones, and only after :data:`_STALE` seconds: a younger one may be in use.
    """
    import shutil
    import tempfile
    import time

    removed = []
    for base in dict.fromkeys((*_temporary_places(), tempfile.gettempdir())):
        for name in _listdir(base):
            path = os.path.join(base, name)
            try:
                s = os.stat(path, follow_symlinks=False)
            except OSError:
                continue
            ours = name.startswith("bpfkit-headers-") and s.st_uid == os.geteuid()
            if ours and time.time() - s.st_mtime > _STALE:
                shutil.rmtree(path, ignore_errors=True)
                removed.append(f"header tree of a killed compile ({path})")
    return removed


def _write(root: str, files: dict[str, str]) -> None:
    made = set()
    for name, text in files.items():
        path = os.path.join(root, "include", name)
        directory = os.path.dirname(path)
        if directory not in made:
            os.makedirs(directory, exist_ok=True)
            made.add(directory)
        with open(path, "w", errors="surrogateescape") as file:
            file.write(text)
