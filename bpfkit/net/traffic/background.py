# SPDX-License-Identifier: Apache-2.0
"""Traffic in a background thread.

::

    with Traffic(ping, "10.77.0.2", count=None, interval=0.05, ns=lab["client"]) as stream:
        ...
    print(stream.report)
"""

from __future__ import annotations

from bpfkit.core.errors import BpfkitError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any

    from bpfkit.net.traffic.report import Report

__all__ = ["Traffic"]


class Traffic:
    """A traffic function in a thread: ``Traffic(udp, "10.77.0.2", count=None, rate=100, ns=…)``.

    The function is given ``stop``; leaving the with-block stops it.

    :ivar report: the function's report, once it has ended.
    """

    def __init__(self, function: Callable[..., Report], *args: Any, **kwargs: Any) -> None:
        self.report: Any = None
        self._error: BaseException | None = None
        self._stop = False
        self._function, self._args, self._kwargs = function, args, kwargs
        self._thread: threading.Thread | None = None

    def start(self) -> Traffic:
        """Start the thread."""
        import threading

        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def _run(self) -> None:
        try:
            self.report = self._function(*self._args, stop=lambda: self._stop, **self._kwargs)
        except BaseException as error:
            self._error = error

    @property
    def running(self) -> bool:
        """Whether the function is still running."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self, timeout: float | None = None) -> Any:
        """Wait until the function has returned; its report.

        :raises BpfkitError: raised by the function, or it has not returned within ``timeout``
            seconds.
        """
        if self._thread is None:
            raise BpfkitError("traffic was not started")
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise BpfkitError(f"{self._function.__name__} has not ended within {timeout} s")
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self.report

    def stop(self) -> Any:
        """Stop the function and wait for it; its report."""
        self._stop = True
        return self.wait(60)

    def __enter__(self) -> Traffic:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop = True
        if error is None:
            self.wait(60)
        elif self._thread is not None:
            self._thread.join(60)
