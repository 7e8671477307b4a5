"""A thread pool whose accepted work is finished at exit, within a bound.

:class:`DrainingExecutor` is a ``concurrent.futures.ThreadPoolExecutor`` for
background work that must not be lost when the interpreter ends:

* its drain runs *before* the standard library refuses new futures, so a job
  may still resolve a host name, use an asyncio loop or another executor;
* the drain is bounded: a job that hangs never holds the process;
* work that was accepted is run, cancelled or reported, never dropped in
  silence, also when the executor object itself is gone.

When it drains is settled in :mod:`.exit_order`.

The workers are daemon threads of our own.  The inherited ones are joined
without a bound by the standard library's callback and again as non-daemon
threads, so a wedged job would hold exit for ever.  Nothing private of
``ThreadPoolExecutor`` is used; its constructor runs so that ``isinstance`` and
``loop.set_default_executor`` accept the class.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import os
import sys
import threading
import time
import weakref
from concurrent.futures import Future
from concurrent.futures.thread import BrokenThreadPool, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from types import FunctionType

from hindsight_exec.errors import ExecutorClosed
from hindsight_exec.exit_order import (
    CLOSE,
    DRAIN,
    GRACE,
    PHASES,
    SERVE,
    Phase,
    call_at_exit,
    guarded,
)

TYPE_CHECKING = False  # as in `typing`, whose import would be a third of ours

if TYPE_CHECKING:
    from typing import Any, Callable, Optional, TypeVar

    from typing_extensions import ParamSpec

    P = ParamSpec("P")
    T = TypeVar("T")

__all__ = ["CLOSE", "DRAIN", "SERVE", "DrainingExecutor", "call_at_exit"]

_logger = logging.getLogger("hindsight_exec")

#: Seconds that a wait lasts before signals are looked for again.
_SLICE = 0.5

_AFTER_SHUTDOWN = "cannot schedule new futures after shutdown"
_AFTER_EXIT = "cannot schedule new futures after interpreter shutdown"

# PyPy's SimpleQueue is written in Python: its put() waits for a plain lock, and
# the collector may strike while the same thread holds that.
_QUEUE_LOCKS = isinstance(SimpleQueue.put, FunctionType)

# Counts the forks that led here; work of another generation is the parent's.
_generation = 0
_renewal = threading.Lock()  # held while an executor starts afresh in a child


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
        self._work = _Work(
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
        if work.generation != _generation:
            work = self._renewed()
        future: Future[T] = _Future()
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
        work.close(_AFTER_SHUTDOWN, cancel=cancel_futures)
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

    def _renewed(self) -> _Work:
        """Our work; in a forked child a new one, as the parent's lock, queue
        and threads are no use here."""
        work = self._work
        if work.generation != _generation:
            with _renewal:
                if self._work.generation != _generation:
                    self._work = self._work.for_child()
                    self._work.wake_when_collected(self)
                work = self._work
        return work


class _Wave:
    """Counts the jobs accepted between two calls of ``drain``."""

    __slots__ = ("pending",)

    def __init__(self) -> None:
        self.pending = 0


class _Work:
    """What an executor, its threads and the exit hook share.

    The threads and the hook hold on to this, never to the executor: it may go
    out of scope while jobs wait, and they are run all the same.
    """

    def __init__(
        self,
        *,
        name: str,
        phase: Phase,
        max_workers: int,
        initializer: Optional[Callable[..., object]],
        initargs: tuple[Any, ...],
        drain_timeout: float,
        on_closing: Optional[Callable[[], object]],
        on_deadline: Optional[Callable[[], object]],
    ) -> None:
        self.name = name
        self.phase = phase
        self.max_workers = max_workers
        self.initializer = initializer
        self.initargs = initargs
        self.drain_timeout = drain_timeout
        self.on_closing = on_closing
        self.on_deadline = on_deadline
        self.generation = _generation
        # FIFO of jobs, ended by None. A SimpleQueue, because its put() is
        # re-entrant on CPython: the garbage collector may call it at any point.
        self.queue: SimpleQueue[Any] = SimpleQueue()
        # Guards all that follows; user code is never called under it.
        self.lock = threading.Lock()
        self.emptied = threading.Condition(self.lock)  # of a wave, or of all
        self.pending = 0
        self.waves = [_Wave()]  # the last one takes the new jobs
        self.threads: set[threading.Thread] = set()
        self.started = 0
        self.left = 0  # of the threads
        self.refusal: Optional[Callable[[], Exception]] = None  # of submissions
        self.closed = False
        self.expired = False
        self.given_up = False
        self.undone = 0  # jobs that were cancelled as the time was over

    def for_child(self) -> _Work:
        """The same executor as a forked child sees it: without the jobs."""
        child = _Work(
            name=self.name,
            phase=self.phase,
            max_workers=self.max_workers,
            initializer=self.initializer,
            initargs=self.initargs,
            drain_timeout=self.drain_timeout,
            on_closing=self.on_closing,
            on_deadline=self.on_deadline,
        )
        child.refusal, child.closed = self.refusal, self.closed
        return child

    def wake_when_collected(self, executor: DrainingExecutor) -> None:
        """End the queue when the executor is collected: nobody can submit."""
        put = _put_from_elsewhere if _QUEUE_LOCKS else SimpleQueue.put
        queue = self.queue
        self.owner = weakref.ref(executor, lambda _: put(queue, None))

    def start_thread(self) -> None:
        """Start one more worker. Called with the lock held, the job queued."""
        name = f"{self.name}_{self.started}"
        try:
            if not self.phase.add(self):
                raise ExecutorClosed(_AFTER_EXIT)
            try:
                thread = threading.Thread(target=_run, args=(self,), name=name, daemon=True)
            except RuntimeError:
                # An isolated subinterpreter allows no daemon threads.
                thread = threading.Thread(target=_run, args=(self,), name=name, daemon=False)
            # Noted before it runs: an interrupt while start() waits leaves a
            # live thread, and a second one would break the order of jobs.
            self.threads.add(thread)
            try:
                thread.start()
            except Exception:
                self.threads.discard(thread)
                raise
        except Exception:
            if self.threads:
                return  # a worker less; those there are will take the job
            # Nobody will take it: give it back. It is the only one, as a
            # queue without workers was empty before.
            self.phase.discard(self)
            self.pending = 0
            self.waves = [_Wave()]
            self.queue = SimpleQueue()
            if (owner := self.owner()) is not None:
                self.wake_when_collected(owner)
            raise
        self.started += 1

    def snapshot(self) -> list[threading.Thread]:
        with self.lock:
            return list(self.threads)

    def forbid_own_threads(self, message: str) -> None:
        if threading.current_thread() in self.snapshot():
            raise RuntimeError(message)

    def done(self, wave: _Wave, jobs: int = 1) -> None:
        """Count jobs as done. Called with the lock held."""
        self.pending -= jobs
        wave.pending -= jobs
        if not wave.pending:
            self.emptied.notify_all()

    def wait(self, timeout: Optional[float]) -> bool:
        """Wait until what is pending now is done."""
        with self.lock:
            waves = [wave for wave in self.waves if wave.pending]
            if not waves:
                return True
            self.waves = [*waves, _Wave()]
            deadline = None if timeout is None else time.monotonic() + timeout
            # A Condition, not Thread.join(): a join that Ctrl-C interrupts
            # marks the live thread as ended on 3.9 to 3.12. In slices, as a
            # signal that lands between CPython's last check and the wait is
            # only seen when that wait ends (measured on 3.13).
            while any(wave.pending for wave in waves):
                left = _SLICE if deadline is None else min(_SLICE, deadline - time.monotonic())
                if left <= 0:
                    return False
                self.emptied.wait(left)
            return True

    def close(self, message: str = _AFTER_EXIT, *, cancel: bool = False) -> None:
        """Refuse submissions; the first call tells ``on_closing``."""
        with self.lock:
            first = not self.closed
            self.closed = True
            if self.refusal is None:
                self.refusal = lambda: ExecutorClosed(message)
            futures = self.take_queue() if cancel else []
            if first or cancel:
                self.queue.put(None)
        _cancel(futures)
        if first and self.on_closing is not None:
            guarded(self.on_closing, "on_closing of %r", self.name)

    def take_queue(self) -> list[Future[Any]]:
        """Take what is queued off the queue. Called with the lock held."""
        futures: list[Future[Any]] = []
        while True:
            try:
                job = self.queue.get_nowait()
            except Empty:
                return futures
            if job is not None:
                futures.append(job[0])
                self.done(job[4])

    def expire(self) -> None:
        """A bound has run out: end what can be ended."""
        with self.lock:
            if self.expired:
                return
            self.expired = True
            futures = self.take_queue()
            self.queue.put(None)
        self.undone = _cancel(futures)
        if self.on_deadline is not None:
            guarded(self.on_deadline, "on_deadline of %r", self.name)

    def give_up(self, timeout: float) -> None:
        """Give what was told to end so long to do so; say what is left."""
        if not self.expired or self.given_up:
            return
        self.given_up = True
        try:
            if self.on_deadline is not None:
                self.wait(timeout)
        finally:  # also when Ctrl-C ends the wait
            left = self.undone + self.pending
            # A lookup that still hangs is nobody's work any more.
            if left and self.phase is PHASES[DRAIN]:
                _logger.warning(
                    "%s: %d job%s left undone, as the time to finish was over",
                    self.name,
                    left,
                    "s were" if left > 1 else " was",
                )

    def abandon(self) -> None:
        """Close, and end what can be ended."""
        self.close()
        if self.pending:
            self.expire()

    def fail(self) -> None:
        """The initializer raised: hand that to all who wait or will come."""

        def refusal() -> Exception:
            return BrokenThreadPool(
                "A thread initializer failed, the thread pool is not usable anymore"
            )

        with self.lock:
            self.refusal = refusal
            futures = self.take_queue()
        for future in futures:
            if future.set_running_or_notify_cancel():
                future.set_exception(refusal())

    def leave(self) -> None:
        """The calling worker ends; the others find the end of the queue too."""
        self.queue.put(None)
        with self.lock:
            # It stays in `threads`: it lives on for a moment, and shutdown()
            # joins it. No worker follows one that has left.
            self.left += 1
            if self.left == len(self.threads):
                self.phase.discard(self)


def _put_from_elsewhere(queue: SimpleQueue[Any], item: object) -> None:
    """Put it on the queue, whose lock the calling thread may hold already."""
    with contextlib.suppress(RuntimeError):  # no thread: an idle worker stays
        # Nothing of `threading`, whose locks may be held as well.
        _thread.start_new_thread(queue.put, (item,))


def _run(work: _Work) -> None:
    """Be a worker."""
    if work.initializer is not None:
        try:
            work.initializer(*work.initargs)
        except BaseException:
            _logger.critical("Exception in initializer:", exc_info=True)
            work.fail()
            work.leave()
            return
    generation, queue, lock = work.generation, work.queue, work.lock
    while (job := queue.get()) is not None:
        future, fn, args, kwargs, wave = job
        del job
        if future.set_running_or_notify_cancel():
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:
                future.report = _Report(work.name, error)  # before anybody can look
                future.set_exception(error)
                # The traceback refers to this frame: drop what it would keep
                # alive, the future above all.
                del future, fn, args, kwargs
            else:
                future.set_result(result)
                del future, fn, args, kwargs, result
        else:
            del future, fn, args, kwargs
        if generation != _generation:
            return  # the job forked and this is the child: the rest is the parent's
        with lock:
            work.done(wave)
    work.leave()


class _Future(Future):  # type: ignore[type-arg]
    """A future that reports a failed job which nobody asked about.

    Whether anybody will cannot be told when the job ends: the caller may not
    even have got the future yet, or waits for it already.
    """

    report: Optional[_Report] = None

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


class _Report:
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


def _cancel(futures: list[Future[Any]]) -> int:
    """Cancel queued futures; returns how many were not cancelled before."""
    fresh = 0
    for future in futures:
        fresh += not future.cancelled()
        if future.cancel():
            # The standard library leaves this out, and as_completed() and
            # wait() then never hear of it.
            future.set_running_or_notify_cancel()
    return fresh


def _after_fork_in_child() -> None:
    global _generation, _renewal
    _generation += 1
    _renewal = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
