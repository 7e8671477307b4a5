"""Futures of jobs: one that failed is reported if nobody looks at it."""

from __future__ import annotations

import logging
import sys
from concurrent.futures import Future

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any, Callable, Optional

_logger = logging.getLogger("hindsight_exec")


class JobFuture(Future):  # type: ignore[type-arg]
    """A future that reports a failed job which nobody asked about.

    Whether anybody will cannot be told when the job ends: the caller may not
    even have got the future yet, or waits for it already.
    """

    report: Optional[UnseenFailure] = None

    def result(self, timeout: Optional[float] = None) -> Any:
        try:
            return super().result(timeout)
        finally:
            self._looked()

    def exception(self, timeout: Optional[float] = None) -> Optional[BaseException]:
        try:
            return super().exception(timeout)
        finally:
            self._looked()

    def _looked(self) -> None:
        if self.report is not None and self.done():
            self.report.due = False


class UnseenFailure:
    """Logs when it is collected, together with the future of a failed job.

    An object of its own, so that futures of jobs that succeed have no
    finalizer to pay for.
    """

    def __init__(self, executor: str, error: BaseException) -> None:
        self.executor = executor
        self.error = error
        self.due = True

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if self.due and not finalizing():  # logging does not work any more
            _logger.error(
                "%s: a job failed, and nobody looked at its future",
                self.executor,
                exc_info=self.error,
            )


def cancel_all(futures: list[Future[Any]]) -> int:
    """Cancel queued futures; returns how many were not cancelled before."""
    fresh = 0
    for future in futures:
        fresh += not future.cancelled()
        if future.cancel():
            # The standard library leaves this out, and as_completed() and
            # wait() then never hear of it.
            future.set_running_or_notify_cancel()
    return fresh
