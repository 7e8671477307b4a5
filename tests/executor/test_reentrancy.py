"""Signal handlers, finalizers and logging handlers may call an executor that the thread is in."""

from __future__ import annotations

import gc
import logging
import os
import platform
import threading
from typing import Callable

import pytest
from interrupting import Strike, at_each_point
from waiting import collect

from hindsight_exec import DrainingExecutor, ExecutorClosed

LIMIT = 60  # seconds to fail after, never reached

pypy = pytest.mark.skipif(
    platform.python_implementation() == "PyPy", reason="its queue is written in Python, with a lock"
)

#: What a handler may call, and what it may be called within.
CALLS: dict[str, Callable[[DrainingExecutor], object]] = {
    "submit": lambda executor: executor.submit(int),
    "drain": lambda executor: executor.drain(LIMIT),
    "map": lambda executor: executor.map(int, ["1", "2"]),
    "pending": lambda executor: (executor.pending, executor.closing, repr(executor)),
    "shutdown": lambda executor: executor.shutdown(),
    "shutdown, cancelling": lambda executor: executor.shutdown(cancel_futures=True),
    "shutdown, not waiting": lambda executor: executor.shutdown(wait=False),
}


@pypy
@pytest.mark.parametrize("outer", CALLS)
@pytest.mark.parametrize("inner", CALLS)
def test_any_method_within_any_other(outer, inner):
    """At each point where a handler may strike, every method works or is refused; none hangs."""

    def attempt(call: Callable[[DrainingExecutor], object], executor: DrainingExecutor) -> None:
        try:
            call(executor)
        except ExecutorClosed:
            assert executor.closing

    def scene(strike: Strike) -> None:
        executor = DrainingExecutor(2)
        ran: list[int] = []
        futures = [executor.submit(ran.append, n) for n in range(3)]
        strike.action = lambda: attempt(CALLS[inner], executor)
        with strike:
            attempt(CALLS[outer], executor)
        assert executor.drain(LIMIT)
        assert executor.pending == 0
        assert all(future.done() for future in futures)
        assert sum(not future.cancelled() for future in futures) == len(ran)
        executor.shutdown(timeout=LIMIT)
        assert not any(worker.is_alive() for worker in executor._work.workers)

    assert at_each_point(scene) > 3


@pypy
def test_submit_within_the_first(run):
    """A signal handler submits while the first submission starts the worker: still one worker."""
    ended = run(
        """
        import signal, threading
        from hindsight_exec import DrainingExecutor
        executor = DrainingExecutor()
        done = []
        signal.signal(signal.SIGALRM, lambda *_: executor.submit(done.append, "handler"))
        start = threading.Thread.start
        def slow(self):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)
            start(self)
        threading.Thread.start = slow
        executor.submit(done.append, "main")
        executor.drain()
        say(len(executor._work.workers), done.count("main"), done.count("handler") > 0)
        """
    )
    assert ended == (0, "1 1 True\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX timers")
@pypy
def test_signal_handler_that_submits(run):
    """A handler that submits every few microseconds, and a main that does the same, lose no job."""
    ended = run(
        """
        import signal
        from hindsight_exec import DrainingExecutor
        executor = DrainingExecutor()
        done, given = [], []
        def handler(*_):
            executor.submit(done.append, 1)
            given.append(1)
            executor.pending
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.00005, 0.00005)
        for n in range(20_000):
            executor.submit(done.append, 0)
            if n % 1000 == 0:
                executor.drain()
        signal.setitimer(signal.ITIMER_REAL, 0)
        executor.shutdown()
        say(done.count(0), done.count(1) == len(given), len(given) > 100)
        """
    )
    assert ended == (0, "20000 True True\n", "")


@pytest.mark.slow
@pypy
def test_logging_handler_that_submits(own_log):
    """The report of a failed job may be handed to the same executor, wherever the collector runs."""
    executor = DrainingExecutor()
    received: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            executor.submit(received.append, record.getMessage())

    def fail_in_a_cycle() -> None:
        cycle: list[object] = [executor.submit(divmod, 1, 0)]
        cycle.append(cycle)

    def scene(strike: Strike) -> None:
        received.clear()
        fail_in_a_cycle()
        assert executor.drain(LIMIT)
        strike.action = gc.collect
        with strike:
            executor.submit(int)
        gc.collect()
        assert executor.drain(LIMIT)
        (text,) = received
        assert text.endswith("a job failed, and nobody looked at its future")

    handler = Handler()
    logging.getLogger("hindsight_exec").addHandler(handler)
    gc.disable()
    try:
        assert at_each_point(scene) > 3
    finally:
        gc.enable()
        logging.getLogger("hindsight_exec").removeHandler(handler)
        executor.shutdown()


def test_finalizer_on_the_worker(capfd):
    """A finalizer that a worker runs gets a clear error where it would wait for that worker."""
    executor = DrainingExecutor()
    outcomes: list[object] = []

    class Thing:
        def __del__(self) -> None:
            executor.submit(outcomes.append, "submitted")
            for call in (executor.drain, executor.shutdown):
                try:
                    call()
                except RuntimeError as error:
                    outcomes.append(str(error))

    def job() -> None:
        thing = [Thing()]
        thing.append(thing)  # type: ignore[arg-type]
        del thing
        collect()

    executor.submit(job).result(LIMIT)
    executor.shutdown(timeout=LIMIT)
    assert outcomes == [
        "drain() from a job of the same executor would wait for itself",
        "shutdown(wait=True) from a job of the same executor would wait for itself",
        "submitted",
    ]


@pytest.mark.slow
def test_finalizer_while_a_worker_enlists():
    """A finalizer that strikes a worker at its start may submit."""
    executor = DrainingExecutor(2)
    lock, struck = executor._work.lock, threading.Event()

    class Lock:
        def __enter__(self) -> None:
            lock.acquire()
            if not struck.is_set():
                struck.set()
                executor.submit(int)

        def __exit__(self, *_: object) -> None:
            lock.release()

    executor._work.lock = Lock()  # type: ignore[assignment]
    assert executor.submit(int).result(LIMIT) == 0
    assert struck.is_set()
    assert executor.drain(LIMIT)
    executor.shutdown(timeout=LIMIT)
