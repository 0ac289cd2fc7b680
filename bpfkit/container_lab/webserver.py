# SPDX-License-Identifier: Apache-2.0
"""A web server with one page, in a namespace: nginx if it is installed, else Python's.

::

    with WebServer(lab["container"]) as server:
        print(server.software, server.port)          # nginx/1.22.1 34567
        print(http_answers("10.77.3.2", server.port, ns=lab["host"]))

It leaves no files: nginx reads its configuration from memory and runs as nobody, in one process,
without a directory of its own.  It ends when this process ends for any reason (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import os
import sys
import time

from bpfkit.core.closing import Closing
from bpfkit.core.errors import InputError, UnsupportedError
from bpfkit.net.traffic.sockets import listen

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket as socket_module
    import subprocess

    from bpfkit.net.links.netns import NetNS

__all__ = ["PAGE", "WebServer"]

#: The page, text/plain.
PAGE = "bpfkit: a page from the container\n"
_NOBODY = 65534
_READY_S = 10.0

# nginx must not write files: it does not create a temporary path that exists, and nobody can create
# files in /proc.  The pid file is in memory, too.
_CONFIG = """\
daemon off;
master_process off;
pid /proc/self/fd/{pid};
error_log stderr crit;
events {{ worker_connections 64; }}
http {{
access_log off;
default_type text/plain;
{paths}
server {{ {listen} location / {{ return 200 "{page}"; }} }}
}}
"""
_TEMP_PATHS = ("proxy", "fastcgi", "uwsgi", "scgi")

# A Python process that becomes nginx: it takes nobody's user id, then requests SIGKILL at the end
# of its parent (a change of user id would clear that), then calls exec.  So nothing has to run
# between fork and exec of a threaded process.
_BECOME = """\
import ctypes, os, signal, sys
parent, user = int(sys.argv[1]), int(sys.argv[2])
if user:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != parent:
    sys.exit("the parent is gone")
os.execv(sys.argv[3], sys.argv[3:])
"""


class WebServer(Closing):
    """Answers ``GET /`` with :data:`PAGE`.

    The thread that creates a server must live as long as the server: the kernel takes the end of
    that thread for the end of nginx's parent.

    :param address: address to listen on; "": every address, IPv4 and IPv6.
    :param port: at least 1024; 0: a free port.
    :param kind: ``nginx``, ``python``, or ``auto``: the first of them that works.
    :ivar port: the port that it listens on.
    :ivar software: its Server header: ``nginx/1.22.1``, ``BaseHTTP/0.6 Python/3.11.2``.
    :ivar why: why it is not nginx; "" if it is nginx, or nginx was not requested.
    :raises BpfkitError: the port is in use.
    :raises UnsupportedError: nginx was requested and does not run.
    """

    def __init__(self, ns: NetNS, port: int = 0, *, address: str = "", kind: str = "auto") -> None:
        if kind not in ("auto", "nginx", "python"):
            raise InputError(f"no web server '{kind}'", why="there are nginx, python and auto")
        self._server: _Nginx | _Python | None = None
        self.why = ""
        sock = listen(ns, port, address=address)
        self.port = int(sock.getsockname()[1])
        if kind != "python":
            sock.close()
            try:
                self._server = _Nginx(ns, address, self.port)
            except UnsupportedError as error:
                if kind == "nginx":
                    raise
                self.why = error.why
                sock = listen(ns, self.port, address=address)
        if self._server is None:
            self._server = _Python(sock)
        self.software = self._server.software

    def close(self) -> None:
        """Stop the server."""
        server, self._server = self._server, None
        if server is not None:
            server.close()


class _Nginx:
    """nginx as a child process in the namespace."""

    def __init__(self, ns: NetNS, address: str, port: int) -> None:
        import subprocess
        from shutil import which

        program = which("nginx") or which("nginx", path="/usr/sbin:/usr/local/sbin:/sbin")
        if program is None:
            raise UnsupportedError("cannot start nginx", why="nginx is not installed")
        built = subprocess.run([program, "-V"], capture_output=True, text=True, check=False).stderr
        self.software = built.partition("\n")[0].rpartition(" ")[2]
        user = 0 if os.geteuid() else _NOBODY
        config = os.memfd_create("nginx.conf", 0)
        pid = os.memfd_create("nginx.pid", 0)
        try:
            for fd in (config, pid):
                os.fchmod(fd, 0o666)
            os.write(config, _configured(built, address, port, pid).encode())
            python = [sys.executable or "python3", "-I", "-S", "-c", _BECOME]
            path = f"/proc/self/fd/{config}"
            self._child: subprocess.Popen[str] = ns.popen(
                [*python, str(os.getpid()), str(user), program, "-c", path, "-p", "/proc/"],
                pass_fds=(config, pid),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        finally:
            os.close(config)
            os.close(pid)
        try:
            self._wait(port)
        except BaseException:
            self.close()
            raise

    def _wait(self, port: int) -> None:
        """Wait until it listens."""
        deadline = time.monotonic() + _READY_S
        while not _listens(self._child.pid, port):
            if self._child.poll() is not None:
                assert self._child.stderr is not None
                said = self._child.stderr.read().strip().splitlines()
                raise UnsupportedError(
                    "cannot start nginx", why=said[-1] if said else "it exited at once"
                )
            if time.monotonic() > deadline:
                raise UnsupportedError("cannot start nginx", why=f"not up after {_READY_S:.0f} s")
            time.sleep(0.01)

    def close(self) -> None:
        self._child.kill()
        self._child.wait()
        if self._child.stderr is not None:
            self._child.stderr.close()


def _configured(built: str, address: str, port: int, pid: int) -> str:
    """nginx.conf; ``built`` is the output of ``nginx -V``: paths of missing modules are errors."""
    paths = ["client_body"]
    paths += [name for name in _TEMP_PATHS if f"--without-http_{name}_module" not in built]
    listen = [f"listen {address or '0.0.0.0'}:{port};"]
    if ":" in address or not address:
        listen[0 if address else 1 :] = [f"listen [{address or '::'}]:{port} ipv6only=on;"]
    if not address and not os.path.exists("/proc/net/if_inet6"):
        del listen[1:]
    return _CONFIG.format(
        pid=pid,
        paths="\n".join(f"{name}_temp_path /proc;" for name in paths),
        listen=" ".join(listen),
        page=PAGE.replace("\n", "\\n"),
    )


def _listens(pid: int, port: int) -> bool:
    """Whether a socket in the namespace of ``pid`` listens on ``port``."""
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/{pid}/net/{name}") as table:
                for line in table:
                    fields = line.split()
                    if fields[3] == "0A" and fields[1].endswith(f":{port:04X}"):
                        return True
        except OSError:
            continue
    return False


class _Python:
    """http.server in a thread."""

    def __init__(self, sock: socket_module.socket) -> None:
        from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
        from threading import Thread

        class Handler(BaseHTTPRequestHandler):
            timeout = 5

            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/plain")
                self.send_header("Content-Length", str(len(PAGE)))
                self.end_headers()
                self.wfile.write(PAGE.encode())

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                pass  # the client closed the connection

        self.software = f"{Handler.server_version} {Handler.sys_version}"
        self._server = Server(("", 0), Handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = sock
        self._thread = Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(2)
