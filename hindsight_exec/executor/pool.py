"""A thread pool whose accepted work is finished at exit, within a bound.

:class:`DrainingExecutor` is a ``concurrent.futures.ThreadPoolExecutor`` for
background work that must not be lost when the interpreter ends:

* its drain runs *before* the standard library refuses new futures, so a job
  may still resolve a host name, use an asyncio loop or another executor;
* the drain is bounded: a job that hangs never holds the process;
* accepted work is run, cancelled or reported, never dropped in silence, also
  when the executor object itself is gone.

The workers are daemon threads of our own. The standard library joins its own
without a bound, and non-daemon threads again: one wedged job would hold exit
for ever. Nothing private of ``ThreadPoolExecutor`` is used; its constructor
runs so that ``isinstance`` and ``loop.set_default_executor`` accept the class.
"""

from __future__ import annotations

import contextvars
import functools
import itertools
import os
from concurrent.futures.thread import BrokenThreadPool, ThreadPoolExecutor
from os import getpid

from hindsight_exec.errors import ExecutorClosed
from hindsight_exec.executor import closing, process
from hindsight_exec.executor.closing import Closing
from hindsight_exec.executor.futures import JobFuture
from hindsight_exec.executor.phases import DRAIN, PHASES
from hindsight_exec.executor.waiting import check_seconds, now
from hindsight_exec.executor.work import Work
from hindsight_exec.executor.worker import contexts

TYPE_CHECKING = False  # as in `typing`, whose import would be a third of ours

if TYPE_CHECKING:
    from concurrent.futures import Future
    from typing import Any, Callable, Optional, TypeVar

    from typing_extensions import ParamSpec

    P = ParamSpec("P")
    T = TypeVar("T")


def _code_file(function: Any) -> object:
    return getattr(getattr(function, "__code__", None), "co_filename", None)


_numbers = itertools.count().__next__

# To be compared with; None if it is patched already. Told by the file it is in.
_UNPATCHED_SUBMIT: Any = ThreadPoolExecutor.submit
if _code_file(_UNPATCHED_SUBMIT) != _code_file(ThreadPoolExecutor.shutdown):
    _UNPATCHED_SUBMIT = None


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
            half a second to end. What the callbacks raise is logged. At exit
            they are called on threads of their own. They are kept as long as
            a worker lives, so one that refers to the executor keeps it alive.
        ctxkwargs: Further arguments of ``prepare_context`` (CPython 3.14).

    Raises:
        ValueError: ``max_workers`` or ``drain_timeout`` is out of range.
        TypeError: An argument is of the wrong type.

    All methods are safe from any thread, and ``submit``, ``closing``,
    ``pending`` and ``repr`` from signal handlers and finalizers, too. So are
    ``drain`` and ``shutdown``, unless they would wait for the code that was
    interrupted: a ``RuntimeError`` if that is a job of the same executor. On
    PyPy, whose queue takes a lock, a handler may set flags only.

    A forked child starts with an empty executor of its own; the parent's jobs
    stay the parent's.
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
        check_seconds("drain_timeout", drain_timeout, least=0.0)
        callbacks = {"on_closing": on_closing, "on_deadline": on_deadline}
        for name, callback in callbacks.items():
            if callback is not None and not callable(callback):
                raise TypeError(f"{name} must be callable, not {callback!r}")
        super().__init__(max_workers, thread_name_prefix, initializer, initargs, **ctxkwargs)
        create_context, resolve_task = contexts(type(self), initializer, initargs, ctxkwargs)
        self._children: dict[int, Work] = {}
        self._work = Work(
            name=thread_name_prefix or f"{type(self).__name__}-{_numbers()}",
            phase=PHASES[self.exit_phase],
            max_workers=max_workers,
            create_context=create_context,
            resolve_task=resolve_task,
            broken=getattr(type(self), "BROKEN", BrokenThreadPool),
        )
        self._work.closing = Closing(
            self._work,
            drain_timeout,
            {name: callback for name, callback in callbacks.items() if callback is not None},
            warns=self.exit_phase == DRAIN,
        )
        self._work.close_when_collected(self)

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
        # A host that forks in C need not run at-fork hooks: ask for the pid.
        if work.pid != getpid():
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
        # `pending` counts the running jobs too, so this compares what there is
        # to do with the threads that can do it.
        if len(pending) >= len(work.workers) < work.max_workers:
            work.start_worker()
        future: Future[T] = JobFuture()
        token = object()
        try:
            pending.add(token)
            work.queue.put((future, fn, args, kwargs, token))
            if work.gated:
                work.confirm(future, token)
        except BaseException:
            work.withdraw(future, token)
            raise
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
        check_seconds("timeout", timeout)
        work = self._renewed()
        if work.is_own_thread():
            raise RuntimeError("drain() from a job of the same executor would wait for itself")
        return work.pending.wait(timeout)

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
        check_seconds("timeout", timeout)
        if timeout is not None and not wait:
            raise ValueError(f"timeout={timeout!r} bounds the waiting, so it needs wait=True")
        work = self._renewed()
        deadline = None if timeout is None else now() + timeout
        work.close(_refusal)
        if cancel_futures:
            work.closing.cancel_queued()
        work.closing.call("on_closing")
        if not wait:
            return
        if work.is_own_thread():
            raise RuntimeError("shutdown(wait=True) from a job of the same executor")
        if work.pending.wait(timeout):
            # The workers have found the end of the queue, or are about to.
            work.join(None if deadline is None else max(0.0, deadline - now()))
        else:
            work.closing.expire(f"shutdown(timeout={timeout:g}) expired")
            work.closing.give_up(now() + closing.GRACE)

    @property
    def closing(self) -> bool:
        """Whether submissions are refused."""
        work = self._renewed()
        return work.gated or work.phase.over

    @property
    def pending(self) -> int:
        """Number of jobs accepted and not done, the running ones included."""
        return len(self._renewed().pending)

    def __repr__(self) -> str:
        state = ", closing" if self.closing else ""
        return f"<{type(self).__name__} {self._work.name!r} {self.pending} pending{state}>"

    def _renewed(self) -> Work:
        """Our work; in a forked child a new one, as the queue, the threads and
        the jobs are the parent's."""
        process.renew_if_forked()
        if self._work.pid != process.pid:
            child = self._work.for_child()
            child.close_when_collected(self)
            # Of two threads that come here at once, one wins.
            self._work = self._children.setdefault(process.pid, child)
        return self._work


def _refusal() -> Exception:
    return ExecutorClosed("cannot schedule new futures after shutdown")
