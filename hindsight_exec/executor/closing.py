"""How an executor ends: its callbacks, and what happens when a bound runs out."""

from __future__ import annotations

import logging

from hindsight_exec.errors import ExecutorClosed
from hindsight_exec.executor.waiting import Background, guarded, log, now
from hindsight_exec.executor.work import AFTER_EXIT, Work

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any, Callable, Optional

    from hindsight_exec.executor.futures import JobFuture

#: Seconds that a job has to end after it was told that its bound has run out.
GRACE = 0.5


class DrainableWork(Work):
    """Work that ends within bounds, by ``shutdown`` or at exit.

    Guarantees:

    * Each callback is called once at most. At exit, all that may hang (the
      callbacks, and the done callbacks of cancelled futures) runs in the
      background, so that nothing but the bounds decides how long exit takes.
    * Each step may be repeated, as exit does after an interrupt.
    """

    def __init__(
        self,
        *,
        drain_timeout: float,
        callbacks: dict[str, Optional[Callable[[], object]]],
        warns: bool,
        **options: Any,
    ) -> None:
        self.drain_timeout = drain_timeout
        self._warns = warns  # of abandoned jobs
        for name, callback in callbacks.items():
            if callback is not None and not callable(callback):
                raise TypeError(f"{name} must be callable, not {callback!r}")
        self._uncalled = callbacks
        super().__init__(**options)

    def _start_afresh(self) -> None:
        super()._start_afresh()
        # A copy: in a child, only what the parent had not yet called is left.
        self._uncalled = {name: one for name, one in self._uncalled.items() if one is not None}
        self._on_closing: Optional[Background] = None  # at exit
        self._on_deadline: Optional[Background] = None
        self._cancelling: Optional[Background] = None
        self.expired = ""  # the bound that has run out
        self._abandoned: set[object] = set()  # jobs that were cancelled at that bound
        self._reported = False

    def call(self, name: str) -> None:
        """Call a callback, unless it has been called."""
        callback = self._uncalled.pop(name, None)
        if callback is not None:
            guarded(callback, f"{name} of {self.name!r}")

    def is_given_up(self) -> bool:
        """Whether exit is over for these jobs: whoever waited now might wait for ever."""
        return bool(self.expired) and self.register.finished

    # --- at exit ---

    def begin_closing(self) -> None:
        """Refuse the executor's own jobs, and call ``on_closing``."""
        self.refuses_own_jobs = True
        self.gated = True
        if "on_closing" in self._uncalled:
            self._on_closing = Background(lambda: self.call("on_closing"), "on_closing")

    def is_busy(self) -> bool:
        """Whether exit has something to wait for."""
        if self.expired:
            return False
        return bool(self.pending) or not self._has_closed(0.0)

    def settle(self, timeout: float) -> bool:
        """Wait for ``on_closing`` and for the jobs that are pending."""
        deadline = now() + timeout
        return self._has_closed(timeout) and self.pending.wait(max(0.0, deadline - now()))

    def _has_closed(self, timeout: float) -> bool:
        return self._on_closing is None or self._on_closing.wait(timeout)

    # --- at a bound ---

    def expire(self, bound: str = "") -> None:
        """Refuse submissions, cancel what is queued, and call ``on_deadline``.

        ``bound`` says which bound has run out; by default it is
        ``drain_timeout``. Nothing is waited for: a million futures take seconds
        to cancel, and the last of them are cancelled while the process goes on.
        """
        if self.expired:
            return
        self.close(lambda: ExecutorClosed(AFTER_EXIT))
        if self.pending:
            self._cancelling = Background(lambda: self._cancel_queued(abandon=True))
            self.stopping = True  # now that there is one who cancels what workers leave
            if "on_deadline" in self._uncalled:
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
                self.pending.wait(max(0.0, deadline - now()))
        finally:  # also when Ctrl-C ends the wait
            self._report()

    def _report(self) -> None:
        self._reported = True
        jobs = len(self._abandoned | self.pending)  # one is being cancelled, perhaps
        if jobs and self._warns:
            log(
                logging.WARNING,
                "%s: %s; %d job%s abandoned",
                self.name,
                self.expired,
                jobs,
                "s" if jobs > 1 else "",
            )
        if not self._has_closed(0.0):
            log(logging.WARNING, "%s: on_closing has not returned", self.name)

    def cancel_queued(self, timeout: Optional[float]) -> None:
        """Cancel what is queued, for ``shutdown(cancel_futures=True)``.

        In the background, which no signal interrupts: a Ctrl-C between taking
        a job off the queue and cancelling it would leave its future pending
        for ever.
        """
        Background(lambda: self._cancel_queued(abandon=False)).wait(timeout)

    def _cancel_queued(self, *, abandon: bool) -> None:
        def cancel(future: JobFuture, token: object) -> None:
            if abandon and not future.cancelled():
                self._abandoned.add(token)
            try:
                future.cancel()
            finally:
                if future.cancelled():
                    # The standard library leaves this out, and as_completed()
                    # and wait() then never hear of it.
                    future.set_running_or_notify_cancel()

        self.end_queued(cancel)
        self.queue.put(None)  # it was taken, too
