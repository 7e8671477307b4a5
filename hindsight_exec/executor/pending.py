"""Which jobs are accepted and not done, and how to wait for them."""

from __future__ import annotations

import contextlib
import threading

from hindsight_exec.executor.waiting import acquire

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Optional


class Pending(set):  # type: ignore[type-arg]
    """A token for each job that is accepted and not done.

    Tokens rather than futures: a worker forgets a job before it counts as done.

    Locks: none. The operations of a set are atomic, and an interrupt between
    two of them, in ``wait``, leaves nothing behind.
    """

    def __init__(self) -> None:
        super().__init__()
        self._waiters: set[_Waiter] = set()

    def finish(self, token: object) -> None:
        """Count a job as done. Idempotent."""
        self.discard(token)
        if self._waiters:
            for waiter in self._waiters.copy():
                waiter.tokens.discard(token)
                if not waiter.tokens:
                    self._waiters.discard(waiter)
                    with contextlib.suppress(RuntimeError):  # by another worker already
                        waiter.lock.release()

    def wait(self, timeout: Optional[float]) -> bool:
        """Wait for the jobs that are pending now; return whether they are done."""
        if not self:
            return True
        if timeout is not None and timeout <= 0:
            return False
        # A job may end at any point here. Until the waiter is registered, the
        # intersection takes it off; from then on, its worker does.
        waiter = _Waiter(set(self))
        try:
            self._waiters.add(waiter)
            waiter.tokens &= self
            return not waiter.tokens or acquire(waiter.lock, timeout)
        finally:
            self._waiters.discard(waiter)


class _Waiter:
    """Waits for jobs, on a lock that is released when the last of them is done.

    Not on a Condition: Ctrl-C can make its wait() return without its lock.
    """

    def __init__(self, tokens: set[object]) -> None:
        self.tokens = tokens
        self.lock = threading.Lock()
        self.lock.acquire()
