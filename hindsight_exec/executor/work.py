"""What an executor, its workers and the exit hook share: queue, counts and threads.

None of them holds on to the executor itself, which may go out of scope while
jobs wait: they are run all the same.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import os
import threading
import time
import weakref
from concurrent.futures.thread import BrokenThreadPool
from queue import Empty, SimpleQueue
from types import FunctionType

from hindsight_exec.errors import ExecutorClosed
from hindsight_exec.executor.exit_hook import DRAIN, PHASES, Phase, guarded
from hindsight_exec.executor.futures import UnseenFailure, cancel_all

TYPE_CHECKING = False

if TYPE_CHECKING:
    from concurrent.futures import Future
    from typing import Any, Callable, Optional

    from hindsight_exec.executor.pool import DrainingExecutor

_logger = logging.getLogger("hindsight_exec")

#: Seconds that a wait lasts before signals are looked for again.
_SLICE = 0.5

AFTER_SHUTDOWN = "cannot schedule new futures after shutdown"
AFTER_EXIT = "cannot schedule new futures after interpreter shutdown"

# PyPy's SimpleQueue is written in Python: its put() waits for a plain lock, and
# the collector may strike while the same thread holds that.
_QUEUE_LOCKS = isinstance(SimpleQueue.put, FunctionType)

# Counts the forks that led here; work of another generation is the parent's.
generation = 0
renewal = threading.Lock()  # held while an executor starts afresh in a child


class _Wave:
    """Counts the jobs accepted between two calls of ``drain``."""

    __slots__ = ("pending",)

    def __init__(self) -> None:
        self.pending = 0


class Work:
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
        self.generation = generation
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

    def for_child(self) -> Work:
        """The same executor as a forked child sees it: without the jobs."""
        child = Work(
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
                raise ExecutorClosed(AFTER_EXIT)
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

    def close(self, message: str = AFTER_EXIT, *, cancel: bool = False) -> None:
        """Refuse submissions; the first call tells ``on_closing``."""
        with self.lock:
            first = not self.closed
            self.closed = True
            if self.refusal is None:
                self.refusal = lambda: ExecutorClosed(message)
            futures = self.take_queue() if cancel else []
            if first or cancel:
                self.queue.put(None)
        cancel_all(futures)
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
        self.undone = cancel_all(futures)
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


def _run(work: Work) -> None:
    """Be a worker."""
    if work.initializer is not None:
        try:
            work.initializer(*work.initargs)
        except BaseException:
            _logger.critical("Exception in initializer:", exc_info=True)
            work.fail()
            work.leave()
            return
    mine, queue, lock = work.generation, work.queue, work.lock
    while (job := queue.get()) is not None:
        future, fn, args, kwargs, wave = job
        del job
        if future.set_running_or_notify_cancel():
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:
                future.report = UnseenFailure(work.name, error)  # before anybody can look
                future.set_exception(error)
                # The traceback refers to this frame: drop what it would keep
                # alive, the future above all.
                del future, fn, args, kwargs
            else:
                future.set_result(result)
                del future, fn, args, kwargs, result
        else:
            del future, fn, args, kwargs
        if mine != generation:
            return  # the job forked and this is the child: the rest is the parent's
        with lock:
            work.done(wave)
    work.leave()


def _after_fork_in_child() -> None:
    global generation, renewal
    generation += 1
    renewal = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
