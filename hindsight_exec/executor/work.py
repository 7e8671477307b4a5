"""The work of an executor: its queue, its workers and what is pending.

An executor, its workers and the exit hook share a :class:`Work`.  None of the
latter refers to the executor: it may go out of scope with jobs in its queue,
and they are run all the same.
"""

from __future__ import annotations

import _thread
import contextlib
import functools
import queue
import sys
import threading
import weakref
from types import FunctionType

from hindsight_exec.errors import ExecutorClosed
from hindsight_exec.executor import process
from hindsight_exec.executor.pending import Pending
from hindsight_exec.executor.waiting import guarded, now

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any, Callable, Optional

    from typing_extensions import Self

    from hindsight_exec.executor.futures import JobFuture

AFTER_EXIT = "cannot schedule new futures after interpreter shutdown"


class Register:
    """The work that one phase of exit has to drain: all that has workers.

    Locks: none. ``add`` notes the work, then looks whether the register is
    closed. Exit closes it, then looks at what is noted.
    """

    def __init__(self) -> None:
        self.works: set[Any] = set()
        # The last that was noted or, while exit drains, submitted. As long as
        # it stays the same, nothing was.
        self.latest: object = None
        self.closed = False
        self.finished = False  # nothing of it is waited for any more

    def add(self, work: Work) -> None:
        """Have the work drained at exit; raise if it is too late for that."""
        self.works.add(work)
        self.latest = object()  # not the work, which would live on with its callbacks
        if self.closed:
            self.works.discard(work)
            raise ExecutorClosed(AFTER_EXIT)

    def remove(self, work: Work) -> bool:
        """Forget the work unless it has workers; return whether it has none."""
        if work.workers:
            return False
        self.works.discard(work)
        if work.workers:
            self.works.add(work)  # one has enlisted between these lines
        return not work.workers


class Work:
    """What an executor, its workers and the exit hook share.

    Guarantees:

    * An accepted job is run once, or cancelled; its future says which.
    * A job is in ``pending`` from when ``submit`` returns, at the latest, until
      its future is done. Whoever finds ``pending`` empty finds all accepted
      jobs done.
    * An accepted job has a worker: one is started before the job is counted, or
      the submission is taken back.
    * A submission that races with the end of the queue is settled by
      ``Future.cancel``. If a worker has begun the job, it was accepted; if the
      job can be cancelled, it is refused.
    * An interrupt at any bytecode of ``submit``, ``drain`` or ``shutdown``
      leaves all of this true.

    Locks: submitting and closing take none, so signal handlers and finalizers
    may do both, also when they strike the same thread in the midst of it. They
    rely on single operations of ``set``, ``list``, ``dict`` and
    ``SimpleQueue``, which are atomic with and without the GIL; where several
    follow each other, every one leaves a state that is valid. ``lock`` guards
    ``workers`` and ``left``; only workers take it, and lock nothing under it.
    """

    def __init__(
        self,
        *,
        name: str,
        register: Register,
        max_workers: int,
        create_context: Callable[[], Any],
        resolve_task: Optional[Callable[..., Any]],
        broken: Callable[[str], Exception],
    ) -> None:
        self.name = name
        self.register = register
        self.max_workers = max_workers
        self.create_context = create_context
        self.resolve_task = resolve_task
        self.broken = broken
        self.refusal: Optional[Callable[[], Exception]] = None  # of submissions, for good
        self._start_afresh()

    def _start_afresh(self) -> None:
        process.renew_if_forked()
        self.mark = process.mark[0]
        # Looked up now: gevent exchanges these classes when it patches.
        self.lock = threading.Lock()
        #: First in, first out: (future, fn, args, kwargs, token), at the end None.
        self.queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.pending = Pending()
        self.workers: list[threading.Thread] = []
        self.capacity = 0  # pending jobs beyond it, the running ones included, need a worker
        self.left = 0  # workers that have left
        self.stopping = False  # workers begin no further job
        self.refuses_own_jobs = False
        self.gated = self.refusal is not None  # submissions have to ask `admit`

    def for_child(self) -> Self:
        """The same work in a forked child: as open or closed, and without the jobs."""
        child = type(self).__new__(type(self))
        child.__dict__.update(self.__dict__)
        child._start_afresh()
        return child

    # --- submissions ---

    def admit(self) -> None:
        """Raise if the calling thread may not submit. For submissions that are gated."""
        if self.refusal is not None:
            raise self.refusal()
        if self.refuses_own_jobs and self.is_own_thread():
            raise ExecutorClosed(AFTER_EXIT)

    def confirm(self, future: JobFuture, token: object) -> None:
        """Refuse a gated submission after all if the queue has ended meanwhile."""
        self.register.latest = token  # exit looks once more
        if self.refusal is not None and self.withdraw(future, token):
            raise self.refusal()

    def withdraw(self, future: JobFuture, token: object) -> bool:
        """Take a submission back; return False if its job has begun."""
        cancelled = future.take_back()
        if cancelled or future.finished:
            self.pending.finish(token)
        return cancelled

    def close(self, refusal: Callable[[], Exception]) -> None:
        """Refuse submissions for good, and end the queue. Idempotent."""
        try:
            if self.refusal is None:
                self.refusal = refusal
            self.gated = True
        finally:
            self.queue.put(None)

    def close_when_collected(self, executor: object) -> None:
        """End the queue when the executor is collected: nobody can submit."""
        put = self.queue.put
        if isinstance(getattr(type(self.queue), "put", None), FunctionType):
            # PyPy's SimpleQueue is written in Python and has a lock, and the
            # collector may strike while it is held.
            self.owner = weakref.ref(executor, lambda _: _put_elsewhere(put))
        else:
            self.owner = weakref.ref(executor, lambda _: put(None))

    # --- workers ---

    def enlist(self) -> bool:
        """Make the calling thread a worker; return False if there are enough.

        The thread enlists itself, because no signal interrupts it. Whoever
        starts it may be interrupted when it runs already, and not know it.
        """
        with self.lock:
            if len(self.workers) >= self.max_workers:
                return False
            self.workers.append(threading.current_thread())
            count = len(self.workers)
            self.capacity = count if count < self.max_workers else sys.maxsize
            self.register.works.add(self)
            return True

    def leave(self) -> None:
        """End the calling worker, and have the others find the end of the queue."""
        self.queue.put(None)
        with self.lock:
            # It stays in `workers`: join() waits for it, and no other follows.
            self.left += 1
            if self.left == len(self.workers):
                self.register.works.discard(self)

    def is_own_thread(self) -> bool:
        """Whether the calling thread is one of the workers."""
        return threading.current_thread() in self.workers

    def break_down(self) -> None:
        """The initializer failed: tell all who wait or will come."""
        message = "A thread initializer failed, the thread pool is not usable anymore"
        self.refusal = lambda: self.broken(message)
        self.gated = True

        def fail(future: JobFuture, _: object) -> None:
            if future.set_running_or_notify_cancel():
                future.set_exception(self.broken(message))

        self.end_queued(fail)

    def end_queued(self, end: Callable[[JobFuture, object], object]) -> None:
        """Take all jobs off the queue and end their futures, whatever done callbacks raise.

        Called on threads that no signal interrupts: one that struck now would
        lose a job.
        """
        what = f"A done callback of {self.name!r}"
        with contextlib.suppress(queue.Empty):
            while True:
                job = self.queue.get_nowait()
                if job is not None:
                    future, *_, token = job
                    guarded(functools.partial(end, future, token), what, catch=BaseException)
                    future.finished = True
                    self.pending.finish(token)

    def join(self, timeout: Optional[float]) -> None:
        """Wait for the workers to end, after their jobs."""
        deadline = None if timeout is None else now() + timeout
        for thread in self.workers.copy():
            left = None if deadline is None else max(0.0, deadline - now())
            thread.join(left and min(left, threading.TIMEOUT_MAX))


def _put_elsewhere(put: Callable[[None], object]) -> None:
    """Put None from another thread: this one may hold the lock of the queue.

    Uses nothing of ``threading``, whose locks may be held as well.
    """
    with contextlib.suppress(RuntimeError):  # no thread: an idle worker stays
        _thread.start_new_thread(put, (None,))
