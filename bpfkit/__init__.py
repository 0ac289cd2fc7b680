# SPDX-License-Identifier: Apache-2.0
"""bpfkit: every BPF program type and map type, live, with one command.

The library's front door::

    import bpfkit

    with bpfkit.load("socket/sockex1.bpf.c") as obj:
        with obj.programs["count"].attach_socket(sock):
            print(obj["bytes"].items())

Names are looked up on first use, so ``import bpfkit`` costs next to nothing.
"""

# Not even __future__ comes before this: `python3 -m` puts the current directory first on the path,
# so whoever may write to it could have any module of theirs imported.
import sys as _sys


def _check_current_directory() -> None:
    """Take the current directory off the path if anybody else may put files into it."""
    if _sys.argv[:1] != ["-m"] or getattr(_sys.flags, "safe_path", False) or not _sys.path:
        return
    first = _sys.path.pop(0)
    from bpfkit.core.trust import is_private

    package = __file__.rpartition("/")[0]
    if is_private(first or ".") or package.rpartition("/")[0] == first:
        _sys.path.insert(0, first)


_check_current_directory()

if _sys.version_info < (3, 10):  # noqa: UP036 (pip looks at requires-python, a checkout does not)
    from bpfkit.core.errors import UnsupportedError as _UnsupportedError

    class _OldPythonError(_UnsupportedError, ImportError):
        """bpfkit cannot be imported here."""

    _version = ".".join(map(str, _sys.version_info[:2]))
    _error = _OldPythonError(
        "bpfkit cannot run",
        why=f"it needs Python 3.10 or later, and this is {_version} ({_sys.executable})",
        hint="use a later one, such as the distribution's /usr/bin/python3",
    )
    if _sys.argv[:1] == ["-m"]:
        _sys.stderr.write(f"{_error}\n")
        _sys.exit(_error.exit_status)
    raise _error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpfkit.core.attach.link import Link as Link
    from bpfkit.core.closing import opened as opened
    from bpfkit.core.errors import BpfkitError as BpfkitError
    from bpfkit.core.maps.base import Map as Map
    from bpfkit.core.object import Object as Object
    from bpfkit.core.object import load as load
    from bpfkit.core.program import Program as Program

__version__ = "0.1.0"

_HOME = {
    "BpfkitError": "errors",
    "Link": "attach.link",
    "Map": "maps.base",
    "Object": "object",
    "Program": "program",
    "load": "object",
    "opened": "closing",
}

#: Functions of the layers above core and net that these call (bpfkit.core.entries finds them):
#: (role, name) -> "module:function".
ENTRIES = {
    ("attach", "clsact"): "bpfkit.net.attach.clsact:attach_clsact",
    ("find", "xdp"): "bpfkit.net.attach.xdp:attached",
    ("notebook", "to_pandas"): "bpfkit.notebook.frames:to_pandas",
    ("notebook", "view"): "bpfkit.notebook.views:view",
    ("notebook", "watch"): "bpfkit.notebook.watching:watch_map",
    ("notebook", "watch_events"): "bpfkit.notebook.watching:watch_events",
    ("replace", "xdp"): "bpfkit.net.attach.xdp:Replaced",
    ("show", "proto"): "bpfkit.show.protocols:protocol_name",
    ("undo", "cgroup"): "bpfkit.core.cgroups:undo_cgroup",
    ("undo", "clsact"): "bpfkit.net.attach.clsact:undo_clsact",
    ("undo", "lirc"): "bpfkit.core.attach.lirc:undo_lirc",
    ("undo", "lirc_settings"): "bpfkit.lirc.receiver:undo_settings",
    ("undo", "reuseport"): "bpfkit.net.attach.reuseport:undo_reuseport",
    ("undo", "route"): "bpfkit.net.attach.route:undo_route",
    ("undo", "struct_ops"): "bpfkit.core.attach.struct_ops:undo_struct_ops",
}

__all__ = ["BpfkitError", "Link", "Map", "Object", "Program", "load", "opened"]


def __getattr__(name: str) -> "Any":
    """The public names, found where they live."""
    if name not in _HOME:
        raise AttributeError(f"module 'bpfkit' has no attribute '{name}'")
    from importlib import import_module

    value = getattr(import_module(f"bpfkit.core.{_HOME[name]}"), name)
    globals()[name] = value
    return value
