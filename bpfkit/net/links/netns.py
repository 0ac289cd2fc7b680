# SPDX-License-Identifier: Apache-2.0
"""Network namespaces held by a file descriptor.

A :class:`NetNS` is a namespace and the descriptor that keeps it alive.  :meth:`NetNS.new` makes
a namespace without a name, an entry under ``/run/netns`` or a mount: when the descriptor is closed,
or the process dies for any reason, the kernel removes the namespace and its devices.  Existing
namespaces are opened by name, by process or by path.

Namespaces belong to threads, not to processes.  :meth:`NetNS.entered` moves the calling thread
only, and moves it back; a socket stays in the namespace that it was created in, and a child
process starts in the namespace of the thread that forked it.

Programs import this module at start-up, so it imports neither netlink nor subprocess.
"""

from __future__ import annotations

import _socket
import ctypes
import errno
import fcntl
import os
import threading

from bpfkit.core.closing import Held
from bpfkit.core.errors import (
    BpfkitError,
    InputError,
    PrivilegeError,
    UnsupportedError,
    errno_text,
)
from bpfkit.net.links import ioctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Any, TypeVar

    T = TypeVar("T")

__all__ = ["NetNS"]

CLONE_NEWNET = 0x40000000
NAMED = "/run/netns"  # where ip-netns(8) keeps its names

_NS_GET_NSTYPE = 0xB703  # ioctl_ns(2)
_OWN = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)

_NEED = "run as root (CAP_SYS_ADMIN makes and enters network namespaces)"


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        number = ctypes.get_errno()
        if number == errno.EPERM:
            raise PrivilegeError(
                "cannot enter a network namespace", why="not permitted", hint=_NEED
            )
        raise OSError(number, os.strerror(number))


def _open_own() -> int:
    return os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _ipv6_defaults(dad: bool) -> None:
    """Enable IPv6 whatever the host's setting is, without router solicitations; DAD if ``dad``."""
    wanted = [("disable_ipv6", "0"), ("accept_ra", "0"), ("router_solicitations", "0")]
    if not dad:
        wanted.append(("accept_dad", "0"))
    for name, value in wanted:
        # "default" is for new devices; DAD stays on unless "all" turns it off, too.
        for scope in ("default", "all"):
            try:
                _write(f"/proc/sys/net/ipv6/conf/{scope}/{name}", value)
            except OSError:
                # A kernel without IPv6, or a container with a read-only /proc/sys: addresses then
                # become usable after DAD, about a second, for which Lab.ready() waits.
                return


class _Entered:
    """The context manager of :meth:`NetNS.entered`: moves this thread in and back."""

    __slots__ = ("_back", "_fd")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._back = -1

    def __enter__(self) -> None:
        self._back = _open_own()
        try:
            _setns(self._fd)
        except BaseException:
            os.close(self._back)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            _setns(self._back)
        finally:
            os.close(self._back)


class NetNS(Held):
    """A network namespace, kept alive by :attr:`fd`.

    Closing (or leaving the with-block, or losing the last reference) closes the descriptor; a
    namespace that nothing else holds then disappears with all its devices.

    :ivar fd: descriptor of the namespace (``/proc/PID/ns/net`` or ``/run/netns/NAME``), -1 when
        closed; the target of BPF links of the netns kind.
    :ivar name: a label for messages and drawings; the system does not know it.
    """

    __slots__ = ("__weakref__", "fd", "name")

    def __init__(self, fd: int, name: str = "") -> None:
        """Take over ``fd``, which must refer to a network namespace."""
        self.fd = fd
        self.name = name

    # -- opening ------------------------------------------------------------------------------

    @classmethod
    def new(cls, name: str = "", *, lo: bool = True, dad: bool = False) -> NetNS:
        """Make an unnamed namespace.  The caller's own namespace does not change.

        :param name: label for messages and drawings.
        :param lo: set ``lo`` up at once.
        :param dad: keep IPv6 duplicate address detection, which makes a new address unusable
            for about a second (off by default: nobody else uses the namespace).
        :raises PrivilegeError: without CAP_SYS_ADMIN.
        :raises UnsupportedError: the kernel has no CONFIG_NET_NS, or its limit is reached.
        """
        box: list[int | BaseException] = []

        def body() -> None:
            # unshare(2) moves this thread only, which ends afterwards.
            try:
                if _libc.unshare(CLONE_NEWNET):
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number))
                fd = _open_own()
                try:
                    _ipv6_defaults(dad)
                    if lo:
                        # The kernel then gives it 127.0.0.1 and ::1.
                        sock = ioctl.open_socket()
                        try:
                            ioctl.set_up(sock, "lo")
                        finally:
                            sock.close()
                except BaseException:
                    os.close(fd)
                    raise
                box.append(fd)
            except BaseException as error:
                box.append(error)

        thread = threading.Thread(target=body, name="bpfkit-netns")
        thread.start()
        try:
            thread.join()
        except BaseException:  # KeyboardInterrupt: wait for the thread, keep nothing
            thread.join()
            if isinstance(box[0], int):
                os.close(box[0])
            raise
        made = box[0]
        if isinstance(made, int):
            return cls(made, name)
        if isinstance(made, OSError):
            raise _cannot_make(made) from made
        raise made

    @classmethod
    def current(cls, name: str = "") -> NetNS:
        """The calling thread's namespace."""
        return cls(_open_own(), name)

    @classmethod
    def from_name(cls, name: str) -> NetNS:
        """A namespace made by ``ip netns add NAME``.

        :raises InputError: no namespace has that name (the message lists those that exist).
        """
        if not name or "/" in name or name in (".", ".."):
            raise InputError(f"not a network namespace name: {name!r}")
        try:
            return cls.from_path(f"{NAMED}/{name}", name)
        except _NothingThere as error:
            known = cls.names()
            raise InputError(
                f"no network namespace named '{name}'",
                why=f"{NAMED} has " + (", ".join(known) if known else "none"),
                hint="give a name that `ip netns` lists, a process id, or a path to a namespace",
            ) from error

    @classmethod
    def from_pid(cls, pid: int) -> NetNS:
        """The namespace of the main thread of process ``pid``.

        :raises InputError: no such process.
        """
        try:
            return cls.from_path(f"/proc/{pid}/ns/net", f"pid {pid}")
        except _NothingThere as error:
            raise InputError(f"no network namespace of process {pid}", why="no such process") from (
                error
            )

    @classmethod
    def from_path(cls, path: str, name: str = "") -> NetNS:
        """The namespace behind a path: ``/proc/PID/ns/net``, or a bind mount of one.

        :raises InputError: nothing there, or not a network namespace.
        :raises PrivilegeError: not permitted to access that process.
        """
        what = f"cannot open network namespace {path}"
        try:
            # O_NONBLOCK: opening a FIFO by mistake must not block.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except PermissionError as error:
            # Root is refused as well if the process belongs to another container.
            hint = _NEED if os.geteuid() else "its process is outside this container"
            raise PrivilegeError(what, why="not permitted", hint=hint) from error
        except (FileNotFoundError, ProcessLookupError) as error:
            raise _NothingThere(what, why="no such file") from error
        except (OSError, ValueError) as error:
            why = errno_text(error.errno or 0) if isinstance(error, OSError) else str(error)
            raise InputError(what, why=why) from error
        try:
            kind = fcntl.ioctl(fd, _NS_GET_NSTYPE)
        except OSError:
            kind = 0
        if kind != CLONE_NEWNET:
            os.close(fd)
            raise InputError(
                what,
                why="it is not a network namespace",
                hint="give a path like /proc/PID/ns/net or /run/netns/NAME",
            )
        return cls(fd, name or path)

    @classmethod
    def from_inode(cls, inode: int) -> NetNS | None:
        """The namespace with this inode, if it is named or held by a process; else None."""
        path = _path_of(inode)
        return cls.from_path(path) if path else None

    @classmethod
    def open(cls, spec: str | int | NetNS) -> NetNS:
        """The namespace of ``--netns NAME|PID|PATH``.

        Text with a slash is a path; a name that ``ip netns`` lists is that namespace, even if it
        consists of digits; other digits are a process id.
        """
        if isinstance(spec, NetNS):
            return spec.dup()
        if isinstance(spec, int):
            return cls.from_pid(spec)
        if "/" in spec:
            return cls.from_path(spec)
        if spec.isascii() and spec.isdigit() and not os.path.lexists(f"{NAMED}/{spec}"):
            return cls.from_pid(int(spec))
        return cls.from_name(spec)

    @staticmethod
    def names() -> list[str]:
        """The names ``ip netns`` knows, sorted."""
        try:
            return sorted(os.listdir(NAMED))
        except OSError:
            return []

    # -- state -----------------------------------------------------------------------------------

    def fileno(self) -> int:
        """The descriptor."""
        return self.fd

    @property
    def inode(self) -> int:
        """The namespace's number, as in ``net:[4026531840]``."""
        return os.fstat(self.fd).st_ino

    def dup(self) -> NetNS:
        """The same namespace by a second descriptor."""
        return type(self)(fcntl.fcntl(self.fd, fcntl.F_DUPFD_CLOEXEC, 3), self.name)

    def same_as(self, other: NetNS) -> bool:
        """Whether both are the same namespace."""
        a, b = os.fstat(self.fd), os.fstat(other.fd)
        return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)

    def close(self) -> None:
        """Close the descriptor.  Safe to call twice."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        # Running a notebook cell again must not accumulate namespaces.
        if getattr(self, "fd", -1) >= 0:
            self.close()

    def __repr__(self) -> str:
        label = f" {self.name}" if self.name else ""
        state = f"net:[{self.inode}]" if self.fd >= 0 else "closed"
        return f"<NetNS{label} {state}>"

    # -- working inside ---------------------------------------------------------------------------

    def entered(self) -> _Entered:
        """Context manager: moves the calling thread into the namespace for the with-block.

        Other threads are not moved.  ``/proc/net``, ``/proc/sys/net``, sockets, netlink and
        children started inside belong to the namespace; ``/sys/class/net`` does not (sysfs shows
        the namespace it was mounted in).
        """
        if self.fd < 0:
            raise BpfkitError("cannot enter a network namespace", why="it is closed")
        return _Entered(self.fd)

    def run(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call ``function`` in the namespace, in the calling thread; its result."""
        with self.entered():
            return function(*args, **kwargs)

    def socket(self, family: int, kind: int, protocol: int = 0) -> _socket.socket:
        """A socket in the namespace (close-on-exec; a plain ``_socket.socket``)."""
        with self.entered():
            return _socket.socket(family, kind | _socket.SOCK_CLOEXEC, protocol)

    def sysctl(self, name: str, value: str | int | None = None) -> str:
        """Read, or set and read back, a ``net.…`` setting of the namespace.

        :param name: in the form of sysctl(8): ``net.ipv4.ip_forward``.  A dot in a device name is
            written as a slash: ``net.ipv6.conf.eth0/10.accept_dad``.
        :raises InputError: the kernel has no such setting.
        """
        path = "/proc/sys/" + name.replace(".", "\0").replace("/", ".").replace("\0", "/")
        with self.entered():
            try:
                if value is not None:
                    _write(path, str(value))
                with open(path) as file:
                    return file.read().strip()
            except FileNotFoundError as error:
                raise InputError(f"no such setting: {name}") from error
            except OSError as error:
                if error.errno == errno.EROFS:
                    raise UnsupportedError(
                        f"cannot set {name} to {value!r}",
                        why="/proc/sys is read-only, as containers have it",
                        hint="run bpfkit on the host, or in a container with --privileged",
                    ) from error
                raise InputError(
                    f"cannot set {name} to {value!r}" if value is not None else f"{name}",
                    why=errno_text(error.errno or 0),
                ) from error

    def popen(self, argv: Sequence[str], **kwargs: Any) -> subprocess.Popen[Any]:
        """``subprocess.Popen(argv, **kwargs)`` with the child in the namespace.

        The child inherits the namespace of the thread that forks it: no ``preexec_fn`` and no
        helper command are needed.

        :raises UnsupportedError: the command is not installed.
        """
        import subprocess

        with self.entered():
            try:
                return subprocess.Popen(argv, **kwargs)
            except FileNotFoundError as error:
                raise UnsupportedError(
                    f"cannot run {argv[0]}", why="not installed on this machine"
                ) from error

    def check_output(
        self, argv: Sequence[str], *, input: str | None = None, timeout: float = 60
    ) -> str:
        """Run a command in the namespace and wait for it; its standard output as text.

        :raises BpfkitError: the command failed (the message has its standard error) or took longer
            than ``timeout`` seconds.
        :raises UnsupportedError: the command is not installed.
        """
        import subprocess

        what = f"`{' '.join(argv)}` in network namespace {self.name or self.inode}"
        pipe = subprocess.PIPE
        stdin = subprocess.DEVNULL if input is None else pipe
        with self.popen(argv, stdin=stdin, stdout=pipe, stderr=pipe, text=True) as child:
            try:
                out, err = child.communicate(input, timeout=timeout)
            except subprocess.TimeoutExpired as error:
                child.kill()
                child.communicate()
                raise BpfkitError(what, why=f"still running after {timeout} s") from error
            except BaseException:
                child.kill()
                raise
        if child.returncode:
            raise BpfkitError(
                what,
                why=f"exit status {child.returncode}: {err.strip() or out.strip()}",
            )
        return str(out)


def _path_of(inode: int) -> str:
    """A path of the network namespace with this inode; "" if there is none."""
    name = f"net:[{inode}]"
    with open("/proc/self/mountinfo", "rb") as mounts:
        for line in mounts:
            fields = line.split()
            if fields[3] == name.encode():
                return os.fsdecode(_unescaped(fields[4]))
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/ns/net") == name:
                return f"/proc/{pid}/ns/net"
            for fd in os.listdir(f"/proc/{pid}/fd"):
                # A namespace held by a descriptor only, like those of bpfkit's labs.
                if os.readlink(f"/proc/{pid}/fd/{fd}") == name:
                    return f"/proc/{pid}/fd/{fd}"
        except OSError:
            continue
    return ""


def _unescaped(field: bytes) -> bytes:
    """A field of mountinfo: blanks and backslashes in it are octal (proc(5))."""
    first, *others = field.split(b"\\")
    return first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in others)


class _NothingThere(InputError):
    """The path of a namespace does not exist."""


def _cannot_make(error: OSError) -> BpfkitError:
    what = "cannot make a network namespace"
    if error.errno == errno.EPERM:
        return PrivilegeError(what, why="not permitted", hint=_NEED)
    if error.errno == errno.EINVAL:
        return UnsupportedError(what, why="this kernel is built without CONFIG_NET_NS")
    if error.errno == errno.ENOSPC:
        return UnsupportedError(
            what,
            why="the limit of network namespaces is reached",
            hint="raise /proc/sys/user/max_net_namespaces",
        )
    return BpfkitError(what, why=errno_text(error.errno or 0))
