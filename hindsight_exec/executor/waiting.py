"""Waiting that a signal, a frozen clock or a callback that hangs cannot spoil."""

from __future__ import annotations

import _thread
import contextlib
import logging
import sys
import threading
import time

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any, Callable, Optional

_logger = logging.getLogger("hindsight_exec")

#: Seconds of one wait. A signal that arrives between CPython's last look and
#: the wait itself is seen only when that wait ends (measured on 3.13).
SLICE = 0.5

if sys.platform != "win32":

    def now() -> float:
        """Seconds on a clock that tests cannot freeze, as they do `time.monotonic`."""
        return time.clock_gettime(time.CLOCK_MONOTONIC)

else:

    def now() -> float:
        """Seconds on the monotonic clock."""
        return time.monotonic()  # noqa: TID251 - the only clock here


def acquire(lock: threading.Lock, timeout: Optional[float]) -> bool:
    """Acquire a lock within ``timeout`` seconds; ``None`` sets no bound."""
    deadline = None if timeout is None else now() + timeout
    while True:
        seconds = SLICE if deadline is None else min(SLICE, deadline - now())
        if lock.acquire(timeout=max(0.0, seconds)):
            return True
        if deadline is not None and now() >= deadline:
            return False


class Background:
    """A call on a thread of its own: it may hang, and no signal interrupts it.

    The thread is started by ``_thread``, in one step. A Ctrl-C within
    ``Thread.start`` can leave a lock of ``threading`` held for ever (CPython
    3.14 and 3.15), and then no thread starts any more.

    Where no thread can be started (3.12.0 to 3.12.2 at exit, ``atexit`` on
    3.12, isolated subinterpreters), the call is made at once by the caller.
    """

    def __init__(self, function: Callable[[], object], what: str = "") -> None:
        """``what`` is for the log if the call fails; without it, see ``error``."""
        self._function = function
        self._what = what
        self.error: Optional[BaseException] = None
        self._returned = False
        # Held until the call has returned, and released by its thread.
        self._running = threading.Lock()
        self._running.acquire()
        try:
            _thread.start_new_thread(self._run, ())
        except RuntimeError:
            pass  # called out of the handler, whose error is not the function's context
        else:
            return
        self._function()
        self._returned = True

    def wait(self, timeout: Optional[float]) -> bool:
        """Wait within ``timeout`` seconds; return whether the call has returned."""
        if not self._returned and acquire(self._running, timeout):
            self._running.release()
        return self._returned

    def _run(self) -> None:
        try:
            self._function()
        except BaseException as error:
            self.error = error
            if self._what:
                log(logging.ERROR, "%s failed", self._what, exc_info=True)
        finally:
            self._returned = True
            self._running.release()


def guarded(
    function: Callable[[], object], what: str, *, catch: type[BaseException] = Exception
) -> None:
    """Call it; what it raises is logged as "``what`` failed". Ctrl-C passes by default."""
    try:
        function()
    except catch:
        log(logging.ERROR, "%s failed", what, exc_info=True)


def log(level: int, message: str, *args: object, exc_info: Any = None) -> None:
    """Log, where a failure to log (a closed stderr) must not end a worker or skip exit."""
    with contextlib.suppress(Exception):
        _logger.log(level, message, *args, exc_info=exc_info)


def check_timeout(timeout: Optional[float]) -> Optional[float]:
    """Return it as a float, or None; raise TypeError or ValueError for what is neither."""
    return None if timeout is None else check_seconds("timeout", timeout, least=float("-inf"))


def check_seconds(name: str, value: float, *, least: float = 0.0) -> float:
    """Return seconds as a float; raise TypeError or ValueError if they are not from ``least`` on."""
    try:
        if value >= least:  # NaN is not
            return float(value)
    except TypeError:
        raise TypeError(f"{name} must be a number of seconds, not {value!r}") from None
    except OverflowError:
        pass
    raise ValueError(f"{name} must be a number of seconds, 0 or more, not {value!r}")
