"""Drains on a signal, for hosts that a signal ends without the exit hooks of Python."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time

from hindsight_exec.executor import process
from hindsight_exec.executor.exit_hook import close_all
from hindsight_exec.executor.phases import DRAIN, PHASES
from hindsight_exec.executor.waiting import SLICE, Background, now

TYPE_CHECKING = False

if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, NoReturn, Optional


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
        # The drain that is under way, and the one that is over, as objects of
        # no other meaning: a thread may still be about to send for an earlier one.
        self._draining: object = None
        self._drained: object = None

    def __call__(self, number: int, frame: Optional[FrameType]) -> None:
        process.renew_if_forked()
        if self._drained is not None:
            self._start_afresh()
            if self._previous is signal.SIG_DFL:
                _end_by(number)
            self._previous(number, frame)
        elif self._draining is None:
            # Set first: the drain may be over before its thread is known here.
            mine = self._draining = object()
            try:
                thread = Background(
                    lambda: self._drain(number, mine), f"Draining on signal {number}"
                )
            except BaseException:
                self._draining = None  # the next signal tries again
                raise
            if self._previous is signal.SIG_DFL:
                # Main may come to its end first: uvicorn raises the signal again
                # after it has shut down, and then returns.
                atexit.register(self._end, number, mine, thread)

    def _drain(self, number: int, mine: object) -> None:
        if self._previous is signal.SIG_DFL:
            close_all()
        else:
            began = now()
            for work in sorted(PHASES[DRAIN].works.copy(), key=lambda work: work.drain_timeout):
                work.pending.wait(began + work.drain_timeout - now())
        self._drained = mine
        while self._drained is mine:  # again, as one may come just before main waits, unseen
            self._send(number)
            time.sleep(SLICE)

    @staticmethod
    def _send(number: int) -> None:
        # To the main thread, which may be in a call that only a signal interrupts.
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(threading.main_thread().ident or 0, number)
        else:
            signal.raise_signal(number)

    def _end(self, number: int, mine: object, draining: Background) -> None:
        if mine is self._draining:  # else this is a forked child
            while self._drained is None:
                draining.wait(0.05)
            _end_by(number)


def _end_by(number: int) -> NoReturn:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    # The kernel spares the first process of a container. Not by SystemExit: in
    # `atexit`, that is only printed.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, or None
            stream.flush()
    os._exit(128 + number)
