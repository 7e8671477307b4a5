"""What closes when, as the process exits: one callback, and phases in order.

CPython 3.9 to 3.15 end a process in this order: callbacks that were registered
with ``threading._register_atexit``, the last one first; non-daemon threads are
joined; ``atexit``.  ``concurrent.futures.thread`` registers such a callback
when it is imported: it refuses new futures and joins its workers.  Ours is
registered after it, so that jobs which drain may use the standard library's
pools.  It is the only one of this package: of two, the later would run first.

Where non-daemon threads may still be at work after main, a server for example,
exit has not come yet.  Accepted jobs are waited for all the same, as the
standard library's pools are about to close; but everything stays open, and is
closed by ``atexit``, when CPython has joined these threads.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import logging
import queue
import sys
import threading
from concurrent.futures import Future, as_completed, wait

from hindsight_exec.executor import process
from hindsight_exec.executor.phases import DRAIN, PHASES
from hindsight_exec.executor.waiting import log, now

TYPE_CHECKING = False

if TYPE_CHECKING:
    from types import CodeType, FrameType
    from typing import Optional

# Its callback has to be registered before ours. `import concurrent.futures` does
# not load it, nor does an import statement under `-X lazy_imports=all` (3.15).
_stdlib = importlib.import_module("concurrent.futures.thread")


def close_all() -> None:
    """Close all phases, in order. Another thread that does so is waited for.

    Nothing may leave this function: CPython would skip the callbacks of
    others, the standard library's among them.
    """
    try:
        with _closer:
            _close_phases(patient=True)
    except BaseException as error:
        # Ctrl-C, or what a signal handler raised. Whoever sent it does not
        # want to wait; all that is left is ended, or cancelled, or abandoned.
        try:
            _log_interrupt(error)
            _close_phases(patient=False)
        except BaseException as again:
            with contextlib.suppress(BaseException):
                _log_interrupt(again)
                _close_phases(patient=False)


def _close_phases(*, patient: bool) -> None:
    for phase in PHASES:
        if not phase.finished:
            phase.close(patient=patient)


def _before_cutoff() -> None:
    """Drain while the standard library's pools still work; close if this is the end."""
    global _cutoff_passed
    if _cutoff_passed:
        return  # registered twice
    try:
        _cutoff_passed = True
        process.renew_if_forked()
        _drain_beside_threads()
    except BaseException as error:
        _log_interrupt(error)
    try:
        if _living_threads():
            # Registered now rather than at import: multiprocessing clears
            # atexit's list in its children from CPython 3.14 on.
            atexit.register(close_all)
            return
    except BaseException as error:
        _log_interrupt(error)
    close_all()


def _drain_beside_threads() -> None:
    """Wait for what is pending, within its bounds and while threads live on."""
    began = now()
    for work in sorted(PHASES[DRAIN].works.copy(), key=lambda work: work.drain_timeout):
        while work.pending and (threads := _living_threads()):
            if now() >= began + work.drain_timeout:
                if _FOR_FUTURES.issuperset(threads):
                    # Else CPython's join would wait for them, and they for a
                    # job behind one that hangs.
                    work.expire()
                break
            work.pending.wait(0.05)  # not longer, to notice that the last thread has ended


def _living_threads() -> list[Optional[CodeType]]:
    """What the threads that may go on after main are at: the code that runs, or that waits.

    They are non-daemon, and neither idle workers of the standard library's
    pools nor managers of its process pools: its callbacks, which follow ours,
    end those.
    """
    ours = {threading.main_thread(), threading.current_thread()}
    for phase in PHASES:
        ours.update(*(work.workers for work in phase.works.copy()))
    threads = [
        one
        for one in threading.enumerate()
        if not (one.daemon or one in ours or type(one).__module__ == _PROCESSES)
    ]
    if not threads:
        return []  # 3.12.1 crashes if a subinterpreter asks for frames
    frames = sys._current_frames()
    codes = [_code_that_waits(frames.get(thread.ident or 0)) for thread in threads]
    return [code for code in codes if code is None or code is not _IDLE]


def _code_that_waits(frame: Optional[FrameType]) -> Optional[CodeType]:
    while frame is not None and frame.f_code.co_filename in _WAITS:
        frame = frame.f_back
    return None if frame is None else frame.f_code


def _log_interrupt(error: BaseException) -> None:
    try:  # noqa: SIM105 - a `with` would have points outside of it at which a signal strikes
        log(logging.WARNING, "Exit does not wait any longer: %s", type(error).__name__)
    except BaseException:
        pass  # Ctrl-C again: some parents send it twice at once


def _register() -> None:
    """Have exit call us before the standard library's own callback."""
    # Once more at the end: eventlet's patches make CPython skip the callbacks
    # of `threading`.
    atexit.register(close_all)
    try:
        threading._register_atexit(_before_cutoff)  # type: ignore[attr-defined]
    except AttributeError:
        pass  # not in every implementation
    except RuntimeError:
        # The shutdown has begun. Then `atexit` is yet to come, unless it is
        # what imports us: it calls nothing that is registered meanwhile. What
        # could not be drained is better refused.
        if threading.current_thread() is threading.main_thread():
            for phase in PHASES:
                phase.closed = phase.finished = True


def stay_first() -> None:
    """Register again if process pools, whose module has such a callback too, came after us."""
    global _before_processes
    if not _before_processes and _PROCESSES in sys.modules:
        _before_processes = True
        with contextlib.suppress(AttributeError, RuntimeError):
            threading._register_atexit(_before_cutoff)  # type: ignore[attr-defined]


def _start_afresh() -> None:
    global _cutoff_passed, _closer
    _cutoff_passed = False  # that was the parent's exit
    _closer = threading.RLock()


# The files of what a thread waits with, and the code that waits with it for a future.
_WAITS = {threading.Condition.wait.__code__.co_filename, queue.Queue.get.__code__.co_filename}
_FOR_FUTURES = {f.__code__ for f in (Future.result, Future.exception, wait, as_completed)}
_PROCESSES = "concurrent.futures.process"
_IDLE = getattr(getattr(_stdlib, "_worker", None), "__code__", None)
_cutoff_passed = False
# Re-entrant, as an interrupt may leave it held by the main thread.
_closer = threading.RLock()
_before_processes = _PROCESSES in sys.modules
process.call_in_child(_start_afresh)
_register()
