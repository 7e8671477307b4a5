"""How an executor ends: its callbacks, and what happens when a bound runs out."""

from __future__ import annotations

import logging

from hindsight_exec.executor.waiting import Background, guarded, log, now

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Callable, Optional

    from hindsight_exec.executor.work import Work

#: Seconds that a job has to end after it was told that its bound has run out.
GRACE = 0.5


class Closing:
    """The end of an executor, by ``shutdown`` or at exit.

    Guarantees:

    * Each callback is called once at most. At exit, all that may hang (the
      callbacks, and the done callbacks of cancelled futures) runs in the
      background, so that nothing but the bounds decides how long exit takes.
    * Each step may be repeated, as exit does after an interrupt.
    """

    def __init__(
        self,
        work: Work,
        drain_timeout: float,
        callbacks: dict[str, Callable[[], object]],
        *,
        warns: bool,
    ) -> None:
        self._work = work
        self.drain_timeout = drain_timeout
        self._callbacks = callbacks  # those that have not been called
        self._warns = warns
        self._on_closing: Optional[Background] = None  # at exit
        self._on_deadline: Optional[Background] = None
        self._cancelling: Optional[Background] = None
        self.expired = ""  # the bound that has run out
        self._abandoned = 0  # jobs that were cancelled at that bound
        self._reported = False

    def for_child(self, work: Work) -> Closing:
        """The same for a forked child; what the parent has called is not called again."""
        return Closing(work, self.drain_timeout, dict(self._callbacks), warns=self._warns)

    def call(self, name: str) -> None:
        """Call a callback, unless it has been called."""
        callback = self._callbacks.pop(name, None)
        if callback is not None:
            guarded(callback, f"{name} of {self._work.name!r}")

    # --- at exit ---

    def begin(self) -> None:
        """Refuse the executor's own jobs, and call ``on_closing``."""
        self._work.refuses_own_jobs = True
        self._work.gated = True
        if "on_closing" in self._callbacks:
            self._on_closing = Background(lambda: self.call("on_closing"), "on_closing")

    def is_busy(self) -> bool:
        """Whether exit has something to wait for."""
        if self.expired:
            return False
        return bool(self._work.pending) or not self._has_closed(0.0)

    def wait(self, timeout: float) -> bool:
        """Wait for ``on_closing`` and for the jobs that are pending."""
        deadline = now() + timeout
        return self._has_closed(timeout) and self._work.pending.wait(max(0.0, deadline - now()))

    def _has_closed(self, timeout: float) -> bool:
        return self._on_closing is None or self._on_closing.wait(timeout)

    # --- at a bound ---

    def expire(self, bound: str = "") -> None:
        """A bound, ``drain_timeout`` if no other is named, has run out: cancel what is queued, and call ``on_deadline``.

        Neither is waited for here. A million futures take seconds to cancel:
        what is left of them when the grace is over is cancelled while the
        process lives on.
        """
        if self.expired:
            return
        self._work.stopping = True
        if self._work.pending:
            self._cancelling = Background(lambda: self._cancel_queued(abandon=True))
            if "on_deadline" in self._callbacks:
                self._on_deadline = Background(lambda: self.call("on_deadline"), "on_deadline")
        self.expired = bound or f"drain_timeout ({self.drain_timeout:g} s) expired"

    def give_up(self, deadline: float) -> None:
        """Wait for what was told to end, until the deadline, and say what is abandoned."""
        if not self.expired or self._reported:
            return
        try:
            self._has_closed(max(0.0, deadline - now()))
            if self._cancelling is not None:
                self._cancelling.wait(max(0.0, deadline - now()))
            # A job that nothing told to end will not.
            if self._on_deadline is not None:
                self._work.pending.wait(max(0.0, deadline - now()))
        finally:  # also when Ctrl-C ends the wait
            self._report()

    def _report(self) -> None:
        self._reported = True
        jobs = self._abandoned + len(self._work.pending)
        if jobs and self._warns:
            log(
                logging.WARNING,
                "%s: %s; %d job%s abandoned",
                self._work.name,
                self.expired,
                jobs,
                "s" if jobs > 1 else "",
            )
        if not self._has_closed(0.0):
            log(logging.WARNING, "%s: on_closing has not returned", self._work.name)

    def cancel_queued(self) -> None:
        """Cancel what is queued, for ``shutdown(cancel_futures=True)``.

        In the background, which no signal interrupts: a Ctrl-C between taking
        a job off the queue and cancelling it would leave its future pending
        for ever.
        """
        Background(lambda: self._cancel_queued(abandon=False)).wait(None)

    def _cancel_queued(self, *, abandon: bool) -> None:
        work = self._work
        while (job := work.take()) is not None:
            future, token = job
            self._abandoned += abandon and not future.cancelled()
            guarded(future.cancel, f"A done callback of {work.name!r}", catch=BaseException)
            if future.cancelled():
                # The standard library leaves this out, and as_completed() and
                # wait() then never hear of it.
                future.set_running_or_notify_cancel()
            work.pending.finish(token)
        work.queue.put(None)  # it was taken, too
