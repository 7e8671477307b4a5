"""The phases of exit: what drains in one, and is closed after it."""

from __future__ import annotations

import contextlib

from hindsight_exec.errors import ExecutorClosed
from hindsight_exec.executor import closing, process
from hindsight_exec.executor.waiting import SLICE, guarded, now
from hindsight_exec.executor.work import AFTER_EXIT, Register

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Callable

    from hindsight_exec.executor.closing import DrainableWork

#: The phases: executors that hold work, then what serves them while they drain
#: (a resolver pool), then what is left to be closed.
DRAIN, SERVE, CLOSE = range(3)


class Phase(Register):
    """One phase of exit: executors to drain, and callbacks for the time after.

    Guarantees:

    * All executors begin to close before any is waited for, and each keeps its
      own bound, counted from then.
    * They refuse submissions together, when none of them has anything to do:
      until then the jobs of one may submit to the others. Whatever is accepted
      is waited for.
    * ``close`` may be repeated after an interrupt and goes on where it stopped.
    """

    def __init__(self) -> None:
        super().__init__()
        self.callbacks: list[Callable[[], object]] = []
        self._closing: list[DrainableWork] = []  # with the shortest bound first

    def close(self, *, patient: bool) -> None:
        """Drain all executors, refuse what comes then, and call the callbacks.

        Args:
            patient: Whether executors get their ``drain_timeout``.
        """
        while True:
            self._drain(patient=patient)
            deadline = now() + closing.GRACE  # one for all
            for work in self._closing:
                work.give_up(deadline)
            # A legacy subinterpreter cannot be destroyed while threads live in it.
            for work in self._closing:
                if not work.pending:
                    work.join(max(0.0, deadline - now()))
            if not any(work.is_busy() for work in self._closing):
                break  # else a worker began a job that was submitted as the queue ended
        while self.callbacks:
            callback = self.callbacks[0]
            _call_back(callback)
            if self.callbacks[:1] == [callback]:
                del self.callbacks[0]
        self.finished = True
        # What came between the last look and this line. Its caller may be about
        # to refuse it: whoever takes it out decides.
        while self.callbacks:
            with contextlib.suppress(IndexError):
                _call_back(self.callbacks.pop(0))

    def _drain(self, *, patient: bool) -> None:
        began = now()
        closed = False
        while True:
            latest = self.latest
            for work in self.works.copy():
                if work not in self._closing:
                    work.begin_closing()
                    self._closing.append(work)
            self._closing.sort(key=lambda work: work.drain_timeout)
            busy = [work for work in self._closing if work.is_busy()]
            if busy:
                first = busy[0]
                left = began + first.drain_timeout - now() if patient else 0.0
                if not first.settle(min(SLICE, max(0.0, left))) and left <= SLICE:
                    first.expire("" if patient else "interrupted")
            elif latest is self.latest:
                # Nobody was busy, and nobody has given work to another meanwhile.
                if closed:
                    return
                closed = self.closed = True
                for work in self._closing:
                    work.close(_refusal)
                # Once more around, for what was accepted until just now.


def _call_back(callback: Callable[[], object]) -> None:
    guarded(callback, f"Exit callback {callback!r}", catch=BaseException)


def _refusal() -> Exception:
    return ExecutorClosed(AFTER_EXIT)


def call_at_exit(callback: Callable[[], object], phase: int = CLOSE) -> None:
    """Call ``callback()`` at exit, after the executors of ``phase`` have drained.

    The callbacks of a phase are called in the order in which they were given,
    once; again only if a Ctrl-C strikes right after the call. What one raises
    is logged. Exit waits until it returns, so it has to be bounded by itself.
    Callbacks are forgotten in a forked child. Safe from any thread, from
    signal handlers and from finalizers.

    Raises:
        ExecutorClosed: The callbacks of this phase have been called.
    """
    process.renew_if_forked()
    at = PHASES[phase]
    at.callbacks.append(callback)
    if at.finished:
        try:
            at.callbacks.remove(callback)
        except ValueError:
            return  # it is called just now
        raise ExecutorClosed("cannot register an exit callback: this phase of exit is over")


def _start_afresh() -> None:
    for phase in PHASES:
        phase.__init__()  # type: ignore[misc]  # executors refer to it


PHASES = (Phase(), Phase(), Phase())
process.call_in_child(_start_afresh)
