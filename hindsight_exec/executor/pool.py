"""The executor that users see: a ``ThreadPoolExecutor`` that drains at exit.

Its workers are daemon threads of our own. The standard library joins its own
without a bound, and non-daemon threads again: one job that hangs would hold
exit for ever. Nothing private of ``ThreadPoolExecutor`` is used; its constructor
runs so that ``isinstance`` and ``loop.set_default_executor`` accept the class.
"""

from __future__ import annotations

import contextvars
import functools
import itertools
import os
from concurrent.futures.thread import BrokenThreadPool, ThreadPoolExecutor

from hindsight_exec.errors import ExecutorClosed
from hindsight_exec.executor import closing, process, worker
from hindsight_exec.executor.closing import DrainableWork
from hindsight_exec.executor.futures import JobFuture
from hindsight_exec.executor.phases import DRAIN, PHASES
from hindsight_exec.executor.waiting import check_seconds, check_timeout, now

TYPE_CHECKING = False  # as in `typing`, whose import would be a third of ours

if TYPE_CHECKING:
    from concurrent.futures import Future
    from typing import Any, Callable, Optional, TypeVar

    from typing_extensions import ParamSpec

    P = ParamSpec("P")
    T = TypeVar("T")


def _code_file(function: Any) -> object:
    return getattr(getattr(function, "__code__", None), "co_filename", None)


_mark = process.mark
_numbers = itertools.count().__next__

# To be compared with; None if it is patched already. Told by the file it is in.
_UNPATCHED_SUBMIT: Any = ThreadPoolExecutor.submit
if _code_file(_UNPATCHED_SUBMIT) != _code_file(ThreadPoolExecutor.shutdown):
    _UNPATCHED_SUBMIT = None


class DrainingExecutor(ThreadPoolExecutor):
    """A ``ThreadPoolExecutor`` whose accepted jobs are finished at exit, within a bound.

    Args:
        max_workers: Number of threads. With 1, the default, jobs run one after
            the other, in the order of submission. ``None`` stands for the
            standard library's default.
        thread_name_prefix: Name of the threads, and of the executor in
            ``repr`` and in warnings.
        initializer: Called with ``initargs`` at the start of each worker. If
            it raises, the executor is broken: waiting jobs and further
            submissions get ``BrokenThreadPool``.
        initargs: Arguments of ``initializer``.
        drain_timeout: Seconds that exit waits for accepted jobs. It bounds the
            exit only: :meth:`shutdown` has a bound of its own, ``with`` none.
        on_closing: Called once, without arguments, when the executor begins
            to close and before anything waits: the place to cut a sleep short.
        on_deadline: Called once, without arguments, when a bound has run out
            while a job was running: the place to cancel that job, which gets
            half a second to end. At exit, callbacks are called on threads of
            their own. What they raise is logged. A callback that refers to the
            executor keeps it alive as long as it has workers.
        ctxkwargs: Further arguments of ``prepare_context`` (CPython 3.14).

    Raises:
        ValueError: ``max_workers`` or ``drain_timeout`` is out of range.
        TypeError: An argument is of the wrong type.

    All methods are safe from any thread. On CPython, once the workers have
    started, signal handlers and finalizers may call them, too. There, give
    :meth:`drain` and :meth:`shutdown` a timeout: if they interrupt a method of
    a job's future, the job cannot end before they return.
    A forked child starts with an empty executor; the parent's jobs are its own.
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
        **ctxkwargs: Any,
    ) -> None:
        if max_workers is None:
            cpus: Callable[[], Optional[int]] = getattr(os, "process_cpu_count", os.cpu_count)
            max_workers = min(32, (cpus() or 1) + 4)
        drain_timeout = check_seconds("drain_timeout", drain_timeout)
        super().__init__(max_workers, thread_name_prefix, initializer, initargs, **ctxkwargs)
        create_context, resolve_task = worker.contexts(type(self), initializer, initargs, ctxkwargs)
        self._children: dict[int, DrainableWork] = {}
        self._work = DrainableWork(
            name=thread_name_prefix or f"{type(self).__name__}-{_numbers()}",
            register=PHASES[self.exit_phase],
            max_workers=max_workers,
            create_context=create_context,
            resolve_task=resolve_task,
            broken=getattr(type(self), "BROKEN", BrokenThreadPool),
            drain_timeout=drain_timeout,
            callbacks={"on_closing": on_closing, "on_deadline": on_deadline},
            warns=self.exit_phase == DRAIN,
        )
        self._work.close_when_collected(self)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Schedule ``fn(*args, **kwargs)`` and return its future.

        If a job fails and its future is dropped before anybody looked at the
        exception, that is logged, once.

        Raises:
            ExecutorClosed: After :meth:`shutdown`, or when exit has drained
                all executors; for the executor's own jobs as soon as it is
                closing. A ``RuntimeError`` in the standard library's words.
            BrokenThreadPool: The initializer failed.
            RuntimeError: The system can start no thread; nothing was taken.
        """
        work = self._work
        if work.mark != _mark[0]:  # this is a forked child
            work = self._renewed()
        if work.gated:
            work.admit()
        if ThreadPoolExecutor.submit is not _UNPATCHED_SUBMIT:
            # Tracing (OpenTelemetry, Sentry) wraps that one, for a job to run
            # in the context of its submission.
            fn = functools.partial(contextvars.copy_context().run, fn)
        if work.resolve_task is not None:
            fn, args, kwargs = None, work.resolve_task(fn, args, kwargs), None  # type: ignore[assignment]
        pending = work.pending
        future = JobFuture()
        token = object()
        try:
            work.queue.put((future, fn, args, kwargs, token))
            if not work.capacity:
                worker.start(work)
            # Counted when a worker has it in reach: what interrupts this thread
            # before, and drains, would wait for a job that nobody can begin.
            pending.add(token)
            if future.finished:
                pending.finish(token)  # the worker was faster
            if work.gated:
                work.confirm(future, token)
            if len(pending) > work.capacity:
                worker.start(work)
        except BaseException:
            work.withdraw(future, token)
            raise
        return future

    def drain(self, timeout: Optional[float] = None) -> bool:
        """Wait for the jobs that were accepted before this call.

        Args:
            timeout: Seconds to wait at most; ``None`` for no bound.

        Returns:
            Whether all of them are done, or cancelled.

        Raises:
            RuntimeError: Called by a job of this executor.
        """
        timeout = check_timeout(timeout)
        work = self._renewed()
        if work.is_own_thread():
            raise RuntimeError("drain() from a job of the same executor would wait for itself")
        return work.pending.wait(0.0 if work.is_given_up() else timeout)

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
            cancel_futures: Cancel the jobs that are still queued. Their done
                callbacks are called on another thread: hold no lock of theirs.
            timeout: Seconds to wait at most; ``None`` waits for as long as it
                takes, as the standard library does. When the bound runs out,
                ``on_deadline`` is called, queued jobs are cancelled, and one
                warning says how many are abandoned. Exit does not wait again.

        Raises:
            RuntimeError: ``wait`` is true in a job of this executor. It is closed all the same.
            ValueError: ``timeout`` without ``wait``.
        """
        timeout = check_timeout(timeout)
        if timeout is not None and not wait:
            raise ValueError(f"timeout={timeout!r} bounds the waiting, so it needs wait=True")
        work = self._renewed()
        deadline = None if timeout is None else now() + timeout
        work.close(lambda: ExecutorClosed("cannot schedule new futures after shutdown"))
        if cancel_futures:
            work.cancel_queued(None if timeout is None else timeout + closing.GRACE)
        work.call("on_closing")
        if not wait or work.is_given_up():
            return
        if work.is_own_thread():
            raise RuntimeError(
                "shutdown(wait=True) from a job of the same executor would wait for itself"
            )
        if work.pending.wait(deadline and deadline - now()):
            # The workers have found the end of the queue, or are about to.
            work.join(deadline and max(0.0, deadline - now()))
        else:
            work.expire(f"shutdown(timeout={timeout:g}) expired")
            work.give_up(now() + closing.GRACE)

    @property
    def closing(self) -> bool:
        """Whether it has begun to close, by ``shutdown`` or as exit drains it."""
        work = self._renewed()
        return work.gated or work.register.closed

    @property
    def pending(self) -> int:
        """Number of jobs accepted and not done, the running ones included."""
        return len(self._renewed().pending)

    def __repr__(self) -> str:
        state = ", closing" if self.closing else ""
        return f"<{type(self).__name__} {self._work.name!r} {self.pending} pending{state}>"

    def _renewed(self) -> DrainableWork:
        """Our work; a new one in a forked child, where queue and threads are the parent's."""
        process.renew_if_forked()
        if self._work.mark != _mark[0]:
            child = self._work.for_child()
            child.close_when_collected(self)
            # Of two threads that come here at once, one wins.
            self._work = self._children.setdefault(child.mark, child)
        return self._work
