"""A thread pool whose accepted work is finished at exit, within a bound.

:class:`DrainingExecutor` is a ``concurrent.futures.ThreadPoolExecutor`` for
background work that must not be lost when the interpreter ends:

* its drain runs *before* the standard library refuses new futures, so a job
  may still resolve a host name, use an asyncio loop or another executor;
* the drain is bounded: a job that hangs never holds the process;
* work that was accepted is run, cancelled or reported, never dropped in
  silence, also when the executor object itself is gone.

When it drains is settled in :mod:`.exit_hook`.

The workers are daemon threads of our own.  The inherited ones are joined
without a bound by the standard library's callback and again as non-daemon
threads, so a wedged job would hold exit for ever.  Nothing private of
``ThreadPoolExecutor`` is used; its constructor runs so that ``isinstance`` and
``loop.set_default_executor`` accept the class.
"""

from __future__ import annotations

import os
import time
from concurrent.futures.thread import ThreadPoolExecutor

from hindsight_exec.executor import work as _work
from hindsight_exec.executor.exit_hook import DRAIN, GRACE, PHASES
from hindsight_exec.executor.futures import JobFuture
from hindsight_exec.executor.work import Work

TYPE_CHECKING = False  # as in `typing`, whose import would be a third of ours

if TYPE_CHECKING:
    from concurrent.futures import Future
    from typing import Any, Callable, Optional, TypeVar

    from typing_extensions import ParamSpec

    P = ParamSpec("P")
    T = TypeVar("T")


class DrainingExecutor(ThreadPoolExecutor):
    """A ``ThreadPoolExecutor`` that drains at exit, within ``drain_timeout``.

    Args:
        max_workers: Number of threads. 1, the default, makes a single writer:
            jobs run one after the other, in the order of submission. ``None``
            stands for the standard library's default.
        thread_name_prefix: Name of the threads, and of the executor in
            ``repr`` and in warnings.
        initializer: Called with ``initargs`` at the start of each worker. If
            it raises, the executor is broken: waiting jobs and further
            submissions get ``BrokenThreadPool``.
        initargs: Arguments of ``initializer``.
        drain_timeout: Seconds that exit waits for accepted jobs. It bounds the
            exit only; :meth:`shutdown` and ``with`` have a bound of their own.
        on_closing: Called once, without arguments, when the executor begins
            to close and before anything waits: the place to cut a sleep short.
        on_deadline: Called once, without arguments, when a bound has run out
            while a job was running: the place to cancel that job, which gets
            half a second to end. The callbacks run on the thread that closes;
            what they raise is logged. They are kept as long as a worker lives,
            so a callback that refers to the executor keeps it alive too.

    Raises:
        ValueError: ``max_workers`` or ``drain_timeout`` is out of range.
        TypeError: ``initializer`` or a callback is not callable.

    All methods are safe from any thread. None is re-entrant: a signal handler
    may set flags only, as with the standard library's. A forked child starts
    with an empty executor of its own; the parent's jobs stay the parent's.
    """

    #: The phase of exit in which executors of this class are drained.
    exit_phase = DRAIN

    def __init__(
        self,
        max_workers: Optional[int] = 1,
        thread_name_prefix: str = "",
        initializer: Optional[Callable[..., object]] = None,
        initargs: tuple[Any, ...] = (),
        *,
        drain_timeout: float = 10.0,
        on_closing: Optional[Callable[[], object]] = None,
        on_deadline: Optional[Callable[[], object]] = None,
    ) -> None:
        if max_workers is None:
            max_workers = min(32, (os.cpu_count() or 1) + 4)
        if not drain_timeout >= 0:
            raise ValueError(f"drain_timeout must be 0 or more seconds, not {drain_timeout!r}")
        for callback in (on_closing, on_deadline):
            if callback is not None and not callable(callback):
                raise TypeError(f"on_closing and on_deadline must be callable, not {callback!r}")
        super().__init__(max_workers, thread_name_prefix, initializer, initargs)
        self._work = Work(
            name=thread_name_prefix or type(self).__name__,
            phase=PHASES[self.exit_phase],
            max_workers=max_workers,
            initializer=initializer,
            initargs=initargs,
            drain_timeout=drain_timeout,
            on_closing=on_closing,
            on_deadline=on_deadline,
        )
        self._work.wake_when_collected(self)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Schedule ``fn(*args, **kwargs)`` and return its future.

        If a job fails and its future is dropped before anybody looked at the
        exception, that is logged, once.

        Raises:
            ExecutorClosed: After :meth:`shutdown`, or once exit has begun. It
                is a ``RuntimeError`` with the standard library's wording. A
                job may not submit to its own executor either, once that is
                closing.
            BrokenThreadPool: The initializer failed.
            RuntimeError: The system can start no thread; nothing was taken.
        """
        work = self._work
        if work.generation != _work.generation:
            work = self._renewed()
        future: Future[T] = JobFuture()
        with work.lock:
            if work.refusal is not None:
                raise work.refusal()
            wave = work.waves[-1]
            # Counted before it is queued: an interrupt between two bytecodes
            # can then only strike after `put`, when both have happened.
            wave.pending += 1
            work.pending += 1
            work.queue.put((future, fn, args, kwargs, wave))
            # `pending` counts the running jobs too, so this compares what
            # there is to do with the threads that can do it.
            if work.pending > len(work.threads) < work.max_workers:
                work.start_thread()
        return future

    def drain(self, timeout: Optional[float] = None) -> bool:
        """Wait for the jobs that were accepted before this call.

        Args:
            timeout: Seconds to wait at most; ``None`` for no bound.

        Returns:
            Whether all of them are done (or cancelled). Nothing is closed or
            cancelled, and jobs submitted meanwhile are not waited for.

        Raises:
            RuntimeError: Called by a job of this executor, which would wait
                for itself.
        """
        work = self._renewed()
        work.forbid_own_threads("drain() from a job of the same executor would wait for itself")
        return work.wait(timeout)

    def shutdown(
        self,
        wait: bool = True,
        *,
        cancel_futures: bool = False,
        timeout: Optional[float] = None,
    ) -> None:
        """Refuse new jobs, and wait for those accepted.

        Args:
            wait: Wait for the jobs. Without it they go on in the background,
                and at exit have ``drain_timeout``.
            cancel_futures: Cancel the jobs that are still queued.
            timeout: Seconds to wait at most; ``None`` waits for as long as it
                takes, as the standard library does. When the bound runs out,
                ``on_deadline`` is called, queued jobs are cancelled and one
                warning says how many jobs were left; exit then does not wait
                for them again.

        Raises:
            RuntimeError: ``wait`` is true in a job of this executor. The
                executor is closed all the same.
            ValueError: ``timeout`` without ``wait``.
        """
        if timeout is not None and not wait:
            raise ValueError(f"timeout={timeout!r} bounds the waiting, so it needs wait=True")
        work = self._renewed()
        deadline = None if timeout is None else time.monotonic() + timeout
        work.close(_work.AFTER_SHUTDOWN, cancel=cancel_futures)
        if not wait:
            return
        work.forbid_own_threads("shutdown(wait=True) from a job of the same executor")
        if not work.wait(timeout):
            work.expire()
            work.give_up(GRACE)
            return
        # The jobs are done; the threads have found the end of the queue or
        # are about to, so that this is short.
        for thread in work.snapshot():
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))

    @property
    def closing(self) -> bool:
        """Whether submissions are refused."""
        work = self._renewed()
        return work.refusal is not None or work.phase.over

    @property
    def pending(self) -> int:
        """Number of jobs accepted and not done, the running ones included."""
        return self._renewed().pending

    def __repr__(self) -> str:
        state = ", closing" if self.closing else ""
        return f"<{type(self).__name__} {self._work.name!r} {self.pending} pending{state}>"

    def _renewed(self) -> Work:
        """Our work; in a forked child a new one, as the parent's lock, queue
        and threads are no use here."""
        work = self._work
        if work.generation != _work.generation:
            with _work.renewal:
                if self._work.generation != _work.generation:
                    self._work = self._work.for_child()
                    self._work.wake_when_collected(self)
                work = self._work
        return work
