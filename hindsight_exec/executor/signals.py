"""Drains on a signal, for hosts that a signal ends without the exit hooks of Python."""

from __future__ import annotations

import atexit
import os
import signal
import threading
import time

from hindsight_exec.executor import process
from hindsight_exec.executor.exit_hook import close_all
from hindsight_exec.executor.phases import DRAIN, PHASES
from hindsight_exec.executor.waiting import SLICE, Background, now

TYPE_CHECKING = False

if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, Optional


def drain_on_signal(*signals: int) -> None:
    """Make signals drain all executors before they take effect.

    Without arguments, the signal is SIGTERM. The handler only starts a thread,
    which waits for accepted jobs within each executor's ``drain_timeout``.
    Meanwhile the main thread goes on, and the same signal is ignored. Then:

    * If there was a handler before, the main thread calls it. The process may
      go on after that, so everything stays open.
    * If there was none, everything closes as at exit, and the signal's default
      action ends the process, with the same exit status as without this call.
      If the kernel does not apply the default action (to the first process of
      a container), the process exits with 128 plus the number of the signal.

    A signal that is ignored stays ignored. Call this in the main thread,
    before the host installs handlers of its own; they must call the previous
    handler.

    Raises:
        ValueError: This is not the main thread, or there is no such signal.
        RuntimeError: The previous handler was not installed from Python.
    """
    for number in signals or (signal.SIGTERM,):
        previous = signal.getsignal(number)
        if previous is None:
            raise RuntimeError(f"the handler of signal {number} was not installed from Python")
        if previous is not signal.SIG_IGN and not isinstance(previous, _Handler):
            signal.signal(number, _Handler(previous))


class _Handler:
    """Drains in the background, sends the signal again, and then does what was done before.

    All its methods but ``_drain`` run in the main thread.
    """

    def __init__(self, previous: Any) -> None:
        self._previous = previous
        self._start_afresh()
        process.call_in_child(self._start_afresh)

    def _start_afresh(self) -> None:
        self._draining: Optional[Background] = None
        self._drained = False

    def __call__(self, number: int, frame: Optional[FrameType]) -> None:
        process.renew_if_forked()
        if self._drained:
            self._start_afresh()
            if self._previous is signal.SIG_DFL:
                _end_by(number)
            else:
                self._previous(number, frame)
        elif self._draining is None:
            self._draining = Background(lambda: self._drain(number), f"Draining on signal {number}")
            if self._previous is signal.SIG_DFL:
                # Main may come to its end first: uvicorn raises the signal again
                # after it has shut down, and then returns.
                atexit.register(self._end, number, self._draining)

    def _drain(self, number: int) -> None:
        if self._previous is signal.SIG_DFL:
            close_all()
        else:
            began = now()
            for work in sorted(PHASES[DRAIN].works.copy(), key=lambda work: work.drain_timeout):
                work.pending.wait(began + work.drain_timeout - now())
        self._drained = True
        while self._drained:  # again, as one may come just before main waits, unseen
            self._send(number)
            time.sleep(SLICE)

    @staticmethod
    def _send(number: int) -> None:
        # To the main thread, which may be in a call that only a signal interrupts.
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(threading.main_thread().ident or 0, number)
        else:
            signal.raise_signal(number)

    def _end(self, number: int, draining: Background) -> None:
        if draining is self._draining:  # else this is a forked child
            while not self._drained:
                draining.wait(0.05)
            _end_by(number)


def _end_by(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    raise SystemExit(128 + number)  # the first process of a container is spared
