"""What closes when, as the process exits: one callback, three phases.

The standard library registers its own exit callback with
``threading._register_atexit`` while ``concurrent.futures.thread`` is imported:
it forbids new futures and joins every worker.  Such callbacks run in reverse
order, before the join of non-daemon threads and before ``atexit`` (CPython 3.9
to 3.15).  So this module imports that one first and registers ONE callback
after it.  Everything of this package that must close at exit goes through its
phases: of two callbacks, the one registered later would run first.
"""

from __future__ import annotations

import atexit

# By name: `import concurrent.futures` alone does not load the module whose
# callback ours has to be registered after.
import concurrent.futures.thread  # noqa: F401
import contextlib
import logging
import os
import threading
import time

_logger = logging.getLogger("hindsight_exec")

#: The phases: executors that hold work, then what serves them while they drain
#: (a resolver pool), then what is left to be closed.
DRAIN, SERVE, CLOSE = range(3)

#: Seconds that work has to end after it was told that its bound has run out.
GRACE = 0.5

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Callable, Protocol

    class Drainable(Protocol):
        """Work to be finished at exit. ``drain_timeout`` is in seconds."""

        name: str
        drain_timeout: float
        expired: bool  # its bound has run out before

        def close(self) -> None:
            """Take no more."""

        def wait(self, timeout: float) -> bool:
            """Wait for what was taken; whether it is done."""

        def expire(self) -> None:
            """The bound has run out: end what can be ended."""

        def give_up(self, timeout: float) -> None:
            """After that: wait so long for it to end, and say what is left."""

        def abandon(self) -> None:
            """Close, and end what can be ended."""


class Phase:
    """One phase: the work that is drained in it, and what is called after."""

    def __init__(self) -> None:
        self.works: set[Drainable] = set()
        self.callbacks: list[Callable[[], object]] = []
        self.over = False  # begun, so that nothing more may join

    def add(self, work: Drainable) -> bool:
        """Have work drained; False if it is too late for that."""
        with _lock:
            if not self.over:
                self.works.add(work)
            return not self.over

    def discard(self, work: Drainable) -> None:
        with _lock:
            self.works.discard(work)

    def finish(self, *, patient: bool) -> bool:
        """Drain all work at once, each within its bound; then call back.

        Returns whether the next phase may take its time: False after Ctrl-C.
        """
        with _lock:
            self.over = True
            works = sorted(self.works, key=lambda work: work.drain_timeout)
        began = time.monotonic()
        try:
            for work in works:
                work.close()
            for work in works:
                bound = work.drain_timeout if patient and not work.expired else 0.0
                if not work.wait(max(0.0, began + bound - time.monotonic())):
                    work.expire()
            self._give_up(works)
        except BaseException as error:
            # Ctrl-C, or what a signal handler raised: whoever sent it does not
            # want to wait. Nothing may leave this callback, or those of others
            # are skipped, the standard library's too.
            patient = False
            _logger.warning("Exit does not wait any longer: %s", type(error).__name__)
            for work in works:
                with contextlib.suppress(BaseException):  # another Ctrl-C
                    guarded(work.abandon, "Closing %r", work.name)
            with contextlib.suppress(BaseException):
                self._give_up(works)
        for callback in self.callbacks:
            with contextlib.suppress(BaseException):
                guarded(callback, "Exit callback %r", callback)
        return patient

    def _give_up(self, works: list[Drainable]) -> None:
        """Their time to end is one for all: every executor adds nothing to it."""
        end = time.monotonic() + GRACE
        for work in works:
            work.give_up(max(0.0, end - time.monotonic()))


def call_at_exit(callback: Callable[[], object], phase: int = CLOSE) -> None:
    """Call ``callback()`` at exit, after all work of ``phase`` was drained.

    Callbacks of a phase run in the order in which they were given. What one
    raises is logged. Forgotten in a forked child. Safe from any thread.
    """
    with _lock:
        PHASES[phase].callbacks.append(callback)


def guarded(function: Callable[[], object], what: str, *args: object) -> None:
    """Call it; an exception is logged as "``what`` failed". Ctrl-C passes."""
    try:
        function()
    except Exception:
        _logger.exception(what + " failed", *args)


def _at_exit() -> None:
    patient = True
    for phase in PHASES:
        try:
            patient = phase.finish(patient=patient)
        except BaseException:
            patient = False  # a second Ctrl-C, while the first was dealt with


def _after_fork_in_child() -> None:
    """The lock may have been held, and none of the threads is here."""
    global _lock
    _lock = threading.Lock()
    for phase in PHASES:
        phase.works = set()
        phase.callbacks = []
        phase.over = False  # the parent's exit; the child may go on


_lock = threading.Lock()  # guards the phases; taken inside a work's lock
PHASES = (Phase(), Phase(), Phase())

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

try:
    threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
except AttributeError:
    atexit.register(_at_exit)  # later than we want, but not never
except RuntimeError:
    # Imported when the shutdown has begun. Then `atexit` is yet to come, unless
    # it is what imports us: it runs nothing that is registered meanwhile. What
    # could not be drained is better refused, as the standard library does.
    if threading.current_thread() is threading.main_thread():
        for late in PHASES:
            late.over = True
    else:
        atexit.register(_at_exit)
