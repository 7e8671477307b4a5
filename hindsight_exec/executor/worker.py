"""A worker thread, from its start to its end."""

from __future__ import annotations

import contextvars
import functools
import itertools
import logging
import threading
from concurrent.futures.thread import ThreadPoolExecutor

from hindsight_exec.executor import process
from hindsight_exec.executor.exit_hook import stay_first
from hindsight_exec.executor.waiting import SLICE, Background, acquire, guarded, log

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any, Callable, Optional

    from hindsight_exec.executor.work import Work


class Context:
    """What a worker does before and after its jobs.

    The methods are those of ``concurrent.futures.thread.WorkerContext``, which
    ``ThreadPoolExecutor.prepare_context`` makes from CPython 3.14 on. That has
    ``run`` for tasks, too; here there are none, and jobs are called directly.
    """

    def __init__(
        self, initializer: Optional[Callable[..., object]], initargs: tuple[Any, ...]
    ) -> None:
        self._initializer = initializer
        self._initargs = initargs

    def initialize(self) -> None:
        if self._initializer is not None:
            self._initializer(*self._initargs)

    def finalize(self) -> None:
        pass


def start(work: Work) -> None:
    """Start a worker; raise if there is none then."""
    stay_first()
    enlisted = threading.Lock()
    enlisted.acquire()
    try:
        work.register.add(work)
        options: dict[str, Any] = {
            "target": _serve,
            "args": (work, work.create_context(), enlisted),
            "name": f"{work.name}_{len(work.workers)}",
        }
        try:
            thread = threading.Thread(**options, daemon=True)
        except RuntimeError:
            # An isolated subinterpreter allows no daemon threads.
            thread = threading.Thread(**options, daemon=False)
        # In the caller's context, which some Pythons let a new thread inherit.
        starting = Background(functools.partial(contextvars.copy_context().run, thread.start))
        starting.wait(None)
        if starting.error is not None:
            raise starting.error
        # Not for ever: a finalizer may have struck a worker that enlists.
        acquire(enlisted, SLICE)
    except BaseException as error:
        if work.register.remove(work) or not isinstance(error, Exception):
            raise
        # A worker less. Those that live take the job.


def _serve(work: Work, context: Any, enlisted: threading.Lock) -> None:
    """Be a worker, until the queue ends. ``enlisted`` is released when it is known as one."""
    is_needed = work.enlist()
    enlisted.release()
    if not is_needed:
        return
    try:
        context.initialize()
    except BaseException:
        log(logging.CRITICAL, "Exception in initializer:", exc_info=True)
        work.break_down()
        work.leave()
        return
    while work.mark == process.mark[0]:  # else a job or the initializer has forked
        try:
            _run_jobs(work, context)
            break
        except BaseException:
            # Injected by another thread (PyThreadState_SetAsyncExc).
            log(logging.CRITICAL, "%s: exception in worker", work.name, exc_info=True)
    guarded(context.finalize, f"finalize() of a worker of {work.name!r}", catch=BaseException)
    if work.mark == process.mark[0]:
        work.leave()


def _run_jobs(work: Work, context: Any) -> None:
    finish = work.pending.finish
    # From 3.10 on nothing can be injected from the end of get() to the first
    # jump, if this is a `for` statement. `True` is its argument `block`.
    # (iter(get, None) in a subinterpreter crashes 3.12.1.)
    for job in map(work.queue.get, itertools.repeat(True)):
        try:
            if job is None:
                return
            future, fn, args, kwargs, _ = job
            if future.set_running_or_notify_cancel():
                try:
                    result = context.run(args) if fn is None else fn(*args, **kwargs)
                except BaseException as error:
                    future.fail(work.name, error)
                else:
                    future.set_result(result)
        except BaseException as error:
            # A done callback raised SystemExit, for example: only an Exception
            # is caught for it. Or another thread injected it. The worker is for
            # all jobs, so it goes on.
            log(logging.CRITICAL, "%s: exception in worker", work.name, exc_info=True)
            if job is None:
                return
            if not job[0].done():
                job[0].set_exception(error)
        finally:
            if job is not None:
                job[0].finished = True
                token = job[4]
                # Forget the job before it counts as done. A traceback may keep
                # this frame alive.
                job = future = fn = args = kwargs = result = None  # noqa: PLW2901
                finish(token)
        if work.stopping or work.mark != process.mark[0]:
            return  # out of time; or the job has forked, and the rest is the parent's


def contexts(
    cls: Any, initializer: Any, initargs: tuple[Any, ...], options: dict[str, Any]
) -> tuple[Callable[[], Context], Optional[Callable[..., Any]]]:
    """Return what makes a worker's context and what makes a task of a call.

    Subclasses decide both from CPython 3.14 on, by ``prepare_context``.
    Without that there are no tasks: the worker calls the function itself.
    """
    prepare = getattr(cls, "prepare_context", None)
    usual: Any = getattr(ThreadPoolExecutor, "prepare_context", None)
    if prepare is None or getattr(prepare, "__func__", None) is usual.__func__:
        return lambda: Context(initializer, initargs), None
    create_context, resolve_task = prepare(initializer, initargs, **options)
    return create_context, resolve_task
