"""Waiting that a signal, a frozen clock or a callback that hangs cannot spoil."""

from __future__ import annotations

import contextlib
import logging
import threading
import time

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any, Callable, Optional

_logger = logging.getLogger("hindsight_exec")

#: Seconds of one wait. A signal that arrives between CPython's last look and
#: the wait itself is seen only when that wait ends (measured on 3.13).
SLICE = 0.5

if hasattr(time, "CLOCK_MONOTONIC"):

    def now() -> float:
        """Seconds on a clock that tests cannot freeze, as they do `time.monotonic`."""
        return time.clock_gettime(time.CLOCK_MONOTONIC)

else:

    def now() -> float:
        """Seconds on the monotonic clock."""
        return time.monotonic()


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
    """A call on a daemon thread of its own, so that it can be waited for within a bound.

    The call also survives a Ctrl-C, which is raised in the main thread only.
    Where no thread can be started (3.12.0 to 3.12.2 at exit, `atexit` since
    3.12, isolated subinterpreters), the caller makes the call itself.
    """

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        # Held until the call has returned, and released by its thread.
        self._running = threading.Lock()
        self._running.acquire()
        thread = threading.Thread(target=self._run, args=(BaseException,), daemon=True)
        try:
            thread.start()
        except RuntimeError:
            started = False
        else:
            started = True
        if not started:
            self._run(Exception)

    def wait(self, timeout: Optional[float]) -> bool:
        """Wait within ``timeout`` seconds; return whether the call has returned."""
        returned = acquire(self._running, timeout)
        if returned:
            self._running.release()
        return returned

    def _run(self, catch: type[BaseException]) -> None:
        try:
            guarded(self._function, "A callback", catch=catch)
        finally:
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


def check_seconds(name: str, value: Optional[float], *, least: float = float("-inf")) -> None:
    """Raise TypeError or ValueError if the argument is no such number of seconds."""
    try:
        valid = value is None or value >= least  # NaN is not
    except TypeError:
        raise TypeError(f"{name} must be a number of seconds, not {value!r}") from None
    if not valid:
        raise ValueError(f"{name} must be a number of seconds, 0 or more, not {value!r}")
