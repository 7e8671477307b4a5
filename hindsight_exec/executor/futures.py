"""The future of a job, which reports a failure that nobody looks at."""

from __future__ import annotations

import logging
import sys
from concurrent.futures import Future

from hindsight_exec.executor.waiting import log

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any, Callable, Optional


class JobFuture(Future):  # type: ignore[type-arg]
    """A future whose failure is logged if nobody looks at it.

    Whether somebody will look cannot be told when the job fails: the caller
    may not even have the future yet, or may wait for it already. So the
    failure is reported when the future is collected. Looking is to call
    ``result`` or ``exception``, to await the future, or to ``cancel`` it:
    whoever cancels does not ask how the job ends.
    """

    #: Set before the job is counted as done, as that may be before it is counted at all.
    finished = False
    _cancelled_by_holder = False
    _unseen: Optional[_UnseenFailure] = None

    def fail(self, executor: str, error: BaseException) -> None:
        """Set the exception of the job. Called by the worker."""
        self._unseen = _UnseenFailure(executor, error)  # before anybody can look
        if self._cancelled_by_holder:
            self._unseen.error = None
        self.set_exception(error)

    def result(self, timeout: Optional[float] = None) -> Any:
        try:
            return super().result(timeout)
        finally:
            self._seen()
            # The traceback refers to this frame: break the cycle, as the base class does.
            self = None  # type: ignore[assignment]  # noqa: PLW0642

    def exception(self, timeout: Optional[float] = None) -> Optional[BaseException]:
        try:
            return super().exception(timeout)
        finally:
            self._seen()

    def cancel(self) -> bool:
        self._cancelled_by_holder = True
        if self._unseen is not None:
            self._unseen.error = None
        return super().cancel()

    def take_back(self) -> bool:
        """Cancel for `submit`, which nobody asked to: if the job runs, its failure is reported."""
        return super().cancel()

    def _get_snapshot(self) -> Any:
        # asyncio reads the outcome by this method from CPython 3.15 on.
        try:
            return super()._get_snapshot()  # type: ignore[misc]
        finally:
            self._seen()

    def _seen(self) -> None:
        if self._unseen is not None and self.done():
            self._unseen.error = None


class _UnseenFailure:
    """Logs when it is collected, together with the future of a failed job.

    An object of its own, so that the futures of jobs that succeed have no
    finalizer to pay for.
    """

    def __init__(self, executor: str, error: BaseException) -> None:
        self.executor = executor
        self.error: Optional[BaseException] = error

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if self.error is not None and not finalizing():  # logging does not work any more
            log(
                logging.ERROR,
                "%s: a job failed, and nobody looked at its future",
                self.executor,
                exc_info=self.error,
            )
