"""DrainingExecutor in a running process; test_exit.py shows the end of one."""

from __future__ import annotations

import asyncio
import concurrent.futures
import ctypes
import gc
import logging
import platform
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures.thread import BrokenThreadPool
from typing import Any, Callable

import pytest
from interrupting import Strike
from waiting import collect

from hindsight_exec import DrainingExecutor, ExecutorClosed
from hindsight_exec.executor import closing as closing_module

LIMIT = 60  # seconds to fail after, never reached


@pytest.fixture
def make() -> Iterator[Callable[..., DrainingExecutor]]:
    """Make executors that are closed, and whose jobs are over, when the test ends."""
    made: list[DrainingExecutor] = []

    def make(*args: Any, **options: Any) -> DrainingExecutor:
        made.append(DrainingExecutor(*args, **options))
        return made[-1]

    yield make
    for executor in made:
        executor.shutdown(timeout=LIMIT)


class Gate:
    """A job that says when it has begun, and runs until it is let through."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self._leave = threading.Event()

    def __call__(self) -> str:
        self.entered.set()
        assert self._leave.wait(LIMIT)
        return "through"

    def open(self) -> None:
        self._leave.set()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


# --- as the standard library's -----------------------------------------------


def test_is_a_thread_pool_executor(make):
    """asyncio takes it for the loop's default executor, which has to be a ThreadPoolExecutor."""
    executor = make()
    assert isinstance(executor, ThreadPoolExecutor)

    async def main() -> str:
        asyncio.get_running_loop().set_default_executor(executor)
        return await asyncio.get_running_loop().run_in_executor(
            None, lambda: threading.current_thread().name
        )

    assert asyncio.run(main()).startswith("DrainingExecutor")
    assert executor.closing  # by asyncio.run, which shuts the default executor down


def test_futures(make):
    """Futures hand results, exceptions and callbacks on."""
    executor = make()
    seen: list[Future[int]] = []
    future = executor.submit(pow, 2, 8)
    assert future.result(LIMIT) == 256
    future.add_done_callback(seen.append)
    assert seen == [future]
    error = executor.submit(divmod, 1, 0).exception(LIMIT)
    assert isinstance(error, ZeroDivisionError)
    assert executor.submit(lambda *a, **k: (a, k), 1, self=2, fn=3).result(LIMIT) == (
        (1,),
        {"self": 2, "fn": 3},
    )


def test_job_may_raise_anything(make):
    """SystemExit and KeyboardInterrupt of a job go to its future, and the worker lives on."""
    executor = make()
    for kind in (SystemExit, KeyboardInterrupt, GeneratorExit):

        def job(kind: type[BaseException] = kind) -> None:
            raise kind("thrown")

        with pytest.raises(kind):
            executor.submit(job).result(LIMIT)
    assert executor.submit(int).result(LIMIT) == 0


def test_map_and_as_completed(make):
    """map keeps the order, as_completed and wait see every future."""
    executor = make(3)
    assert list(executor.map(pow, range(20), [2] * 20)) == [n * n for n in range(20)]
    futures = [executor.submit(abs, -n) for n in range(20)]
    assert {f.result() for f in concurrent.futures.as_completed(futures, LIMIT)} == {*range(20)}
    assert concurrent.futures.wait(futures, LIMIT).not_done == set()


def test_context_manager(make):
    """Leaving `with` waits for what was submitted, and closes."""
    done: list[int] = []
    with make() as executor:
        for n in range(50):
            executor.submit(done.append, n)
    assert done == [*range(50)]
    assert executor.closing


def test_first_in_first_out(make):
    """One worker is the default: jobs run in the order of submission, one at a time."""
    executor = make()
    done: list[tuple[int, str]] = []
    for n in range(500):
        executor.submit(lambda n=n: done.append((n, threading.current_thread().name)))
    assert executor.drain(LIMIT)
    assert [n for n, _ in done] == [*range(500)]
    assert len({thread for _, thread in done}) == 1


def test_more_workers(make):
    """max_workers jobs run at the same time, and never more."""
    executor = make(max_workers=3)
    together = threading.Barrier(3)
    running = threading.Semaphore(3)

    def job() -> bool:
        free = running.acquire(blocking=False)
        together.wait(LIMIT)
        running.release()
        return free

    assert all(executor.map(lambda _: job(), range(12)))


def test_worker_is_a_daemon_started_by_the_first_submit(make):
    """No thread before the first job; then a daemon named after the executor."""
    before = threading.active_count()
    executor = make(thread_name_prefix="writer")
    assert threading.active_count() == before
    worker = executor.submit(threading.current_thread).result(LIMIT)
    assert worker.daemon
    assert worker.name == "writer_0"


def test_cancel(make, gate):
    """A queued future can be cancelled, a running one cannot."""
    executor = make()
    running = executor.submit(gate)
    gate.entered.wait(LIMIT)
    queued = executor.submit(pytest.fail, "a cancelled job ran")
    assert queued.cancel()
    assert not running.cancel()
    gate.open()
    assert running.result(LIMIT) == "through"
    assert executor.drain(LIMIT)
    with pytest.raises(CancelledError):
        queued.result()


def test_initializer(make):
    """The initializer runs once in each worker, before its first job."""
    local = threading.local()

    def initialize(value: str) -> None:
        assert not hasattr(local, "value")
        local.value = value

    executor = make(3, initializer=initialize, initargs=("ready",))
    assert {*executor.map(lambda _: local.value, range(30))} == {"ready"}


@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_failing_initializer(make, own_log, kind):
    """After a failed initializer the jobs that wait and those that come get BrokenThreadPool."""
    begin = threading.Event()

    def initialize() -> None:
        assert begin.wait(LIMIT)
        raise kind("no")

    executor = make(2, initializer=initialize)
    futures = [executor.submit(int) for _ in range(5)]
    begin.set()
    for future in futures:
        with pytest.raises(BrokenThreadPool):
            future.result(LIMIT)
    with pytest.raises(BrokenThreadPool):
        executor.submit(int)
    assert executor.drain(LIMIT)
    assert executor.pending == 0
    executor.shutdown()
    assert "Exception in initializer" in own_log.text


def test_failing_initializer_and_a_callback_that_raises(make):
    """A done callback that raises SystemExit ends neither the others' futures nor their count."""
    begin = threading.Event()

    def initialize() -> None:
        assert begin.wait(LIMIT)
        raise ValueError("no")

    executor = make(initializer=initialize)
    futures = [executor.submit(int) for _ in range(4)]
    futures[0].add_done_callback(lambda _: sys.exit("from a callback"))
    begin.set()
    assert all(isinstance(future.exception(LIMIT), BrokenThreadPool) for future in futures)
    assert executor.drain(LIMIT)
    assert executor.pending == 0


def test_initializer_that_fails_within_the_first_submission(make, monkeypatch):
    """The broken executor has nothing pending if it broke before submit had counted the job."""
    executor = make(initializer=divmod, initargs=(1, 0))
    add = type(executor._work.pending).add

    class Slow(type(executor._work.pending)):
        def add(self, token):
            executor._work.workers[0].join(LIMIT)
            add(self, token)

    executor._work.pending = Slow()
    try:
        future = executor.submit(int)
    except BrokenThreadPool:
        pass
    else:
        with pytest.raises(BrokenThreadPool):
            future.result(LIMIT)
    assert executor.drain(LIMIT)
    assert executor.pending == 0


@pytest.mark.parametrize("workers", [0, -1])
def test_number_of_workers(workers):
    """max_workers below 1 is a ValueError, with the standard library's words."""
    with pytest.raises(ValueError) as theirs:
        ThreadPoolExecutor(workers)
    with pytest.raises(ValueError) as ours:
        DrainingExecutor(workers)
    assert str(ours.value) == str(theirs.value)


def test_default_number_of_workers(make):
    """None stands for the standard library's default: more than one."""
    executor = make(None)
    together = threading.Barrier(2)
    futures = [executor.submit(together.wait, LIMIT) for _ in range(2)]
    assert {future.result(LIMIT) for future in futures} == {0, 1}


@pytest.mark.parametrize("bound", [-1, float("nan")])
def test_drain_timeout_out_of_range(bound):
    """A drain_timeout that is no time is a ValueError that names it."""
    with pytest.raises(ValueError, match="drain_timeout"):
        DrainingExecutor(drain_timeout=bound)


@pytest.mark.parametrize("bound", [None, "1", []])
def test_drain_timeout_of_another_type(bound):
    """A drain_timeout that is no number is a TypeError that names it."""
    with pytest.raises(TypeError, match="drain_timeout must be a number of seconds"):
        DrainingExecutor(drain_timeout=bound)


@pytest.mark.parametrize("method", ["drain", "shutdown"])
def test_timeouts_that_are_none(make, method):
    """NaN and text are refused as timeouts, before anything is closed or waited for."""
    executor = make()
    for timeout, error in ((float("nan"), ValueError), ("1", TypeError)):
        with pytest.raises(error, match="timeout"):
            getattr(executor, method)(timeout=timeout)
    assert not executor.closing


@pytest.mark.parametrize("name", ["initializer", "on_closing", "on_deadline"])
def test_callbacks_must_be_callable(name):
    """What cannot be called is refused when the executor is made, not at exit."""
    with pytest.raises(TypeError, match="callable"):
        DrainingExecutor(**{name: 5})


def test_submit_needs_a_function(make):
    """`fn` is positional only, as in the standard library."""
    executor = make()
    with pytest.raises(TypeError):
        executor.submit()
    with pytest.raises(TypeError):
        executor.submit(fn=int)
    assert executor.pending == 0


# --- closing -----------------------------------------------------------------


def test_closed(make):
    """submit after shutdown is ExecutorClosed: a RuntimeError in the standard library's words."""
    theirs = ThreadPoolExecutor(1)
    theirs.shutdown()
    with pytest.raises(RuntimeError) as expected:
        theirs.submit(int)
    executor = make()
    executor.shutdown()
    with pytest.raises(ExecutorClosed) as error:
        executor.submit(int)
    assert isinstance(error.value, RuntimeError)
    assert str(error.value) == str(expected.value)
    with pytest.raises(ExecutorClosed):
        executor.map(int, ["1"])


def test_shutdown_waits_for_what_was_accepted(make):
    """shutdown() returns when every accepted job is done and the thread is gone; again is fine."""
    executor = make()
    done: list[int] = []
    worker = executor.submit(threading.current_thread).result(LIMIT)
    for n in range(100):
        executor.submit(done.append, n)
    executor.shutdown()
    assert done == [*range(100)]
    assert not worker.is_alive()
    executor.shutdown()


def test_shutdown_waits_for_a_thread_that_is_about_to_end(make, monkeypatch):
    """A worker that has done all its work, and lives on for a moment, is waited for, too."""
    left, joined = threading.Event(), threading.Event()
    run, join = threading.Thread.run, threading.Thread.join

    def run_and_linger(self: threading.Thread) -> None:
        run(self)
        left.set()
        joined.wait(LIMIT)

    def tell_and_join(self: threading.Thread, timeout: Any = None) -> None:
        joined.set()
        join(self, timeout)

    monkeypatch.setattr(threading.Thread, "run", run_and_linger)
    executor = make()
    worker = executor.submit(threading.current_thread).result(LIMIT)
    executor.shutdown(wait=False)
    assert left.wait(LIMIT)
    monkeypatch.setattr(threading.Thread, "join", tell_and_join)
    executor.shutdown()
    try:
        assert not worker.is_alive()
    finally:
        joined.set()


def test_shutdown_without_waiting(make, gate):
    """shutdown(wait=False) returns at once, and the accepted jobs are run all the same."""
    executor = make()
    running, queued = executor.submit(gate), executor.submit(int)
    executor.shutdown(wait=False)
    assert not running.done()
    gate.open()
    assert running.result(LIMIT) == "through"
    assert queued.result(LIMIT) == 0


def test_cancel_futures(make, gate):
    """cancel_futures cancels what is queued; who waits for it hears of it."""
    executor = make()
    running = executor.submit(gate)
    gate.entered.wait(LIMIT)
    queued = [executor.submit(pytest.fail, "a cancelled job ran") for _ in range(5)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert concurrent.futures.wait(queued, LIMIT).not_done == set()
    assert [*concurrent.futures.as_completed(queued, LIMIT)]
    assert all(future.cancelled() for future in queued)
    assert executor.pending == 1
    gate.open()
    assert running.result(LIMIT) == "through"
    assert executor.drain(LIMIT)


def test_not_done_before_it_is_cancelled(make, gate):
    """While another thread cancels, drain waits for each future to be cancelled."""
    executor = make()
    executor.submit(gate)
    gate.entered.wait(LIMIT)
    cancelling, go_on = threading.Event(), threading.Event()

    def callback(_: Future[int]) -> None:
        cancelling.set()
        assert go_on.wait(LIMIT)

    queued = [executor.submit(int) for _ in range(3)]
    queued[0].add_done_callback(callback)
    closer = threading.Thread(
        target=executor.shutdown, kwargs={"wait": False, "cancel_futures": True}
    )
    closer.start()
    assert cancelling.wait(LIMIT)
    assert executor.pending == 4
    gate.open()
    assert not executor.drain(0.05)
    go_on.set()
    assert executor.drain(LIMIT)
    assert all(future.done() for future in queued)
    closer.join(LIMIT)


def test_cancelling_survives_its_callbacks(make, gate, own_log):
    """What a done callback of a cancelled future raises keeps no other from being cancelled."""
    executor = make()
    executor.submit(gate)
    gate.entered.wait(LIMIT)
    queued = [executor.submit(int) for _ in range(3)]
    queued[0].add_done_callback(lambda _: sys.exit("from a callback"))
    executor.shutdown(wait=False, cancel_futures=True)
    assert concurrent.futures.wait(queued, LIMIT).not_done == set()
    assert executor.pending == 1
    assert "done callback" in own_log.text


def test_shutdown_timeout(make, gate, own_log):
    """When its bound runs out, shutdown tells on_deadline, cancels, and warns once of all it left."""
    calls: list[str] = []
    executor = make(
        thread_name_prefix="slow",
        on_closing=lambda: calls.append("closing"),
        on_deadline=lambda: calls.append("deadline"),
    )
    executor.submit(gate)
    gate.entered.wait(LIMIT)
    queued = [executor.submit(int) for _ in range(4)]
    executor.shutdown(timeout=0.01)
    assert calls == ["closing", "deadline"]
    assert all(future.cancelled() for future in queued)
    executor.shutdown(timeout=0.01)
    warnings = [record.getMessage() for record in own_log.records]
    assert len(warnings) == 1
    assert "slow" in warnings[0]
    assert "5 jobs" in warnings[0]
    assert calls == ["closing", "deadline"]


def test_on_closing_takes_from_the_bound_of_shutdown(make, gate, monkeypatch):
    """The seconds that on_closing took are not waited for the jobs again."""
    clock, waits = [100.0], []
    monkeypatch.setattr("hindsight_exec.executor.pool.now", lambda: clock[0])
    executor = make(on_closing=lambda: clock.__setitem__(0, 107.0), on_deadline=gate.open)

    class Noted(type(executor._work.pending)):
        def wait(self, timeout):
            waits.append(timeout)
            return super().wait(timeout)

    executor._work.pending = Noted()
    executor.submit(gate)
    executor.shutdown(timeout=5)
    assert waits[0] == -2


def test_on_deadline_saves_the_job(make, own_log, monkeypatch):
    """A job that ends because on_deadline told it to is not left, and nothing warns."""
    monkeypatch.setattr(closing_module, "GRACE", LIMIT)
    stop = threading.Event()
    executor = make(on_deadline=stop.set)
    future = executor.submit(stop.wait, LIMIT)
    executor.shutdown(timeout=0.01)
    assert future.result(LIMIT) is True
    assert own_log.records == []


def test_shutdown_timeout_in_time(make, own_log):
    """on_deadline is not called, and nothing is logged, when all is done in time."""
    executor = make(on_deadline=lambda: pytest.fail("called"))
    executor.submit(int)
    executor.shutdown(timeout=LIMIT)
    assert own_log.records == []


def test_timeout_without_wait(make):
    """A timeout bounds the waiting, so it makes no sense without."""
    executor = make()
    with pytest.raises(ValueError, match="wait"):
        executor.shutdown(wait=False, timeout=1)
    assert not executor.closing


def test_on_closing(make):
    """on_closing is called once, before anything waits: it can cut a job's sleep short."""
    woken = threading.Event()
    calls: list[bool] = []

    def on_closing() -> None:
        calls.append(executor.closing)
        woken.set()

    executor = make(on_closing=on_closing)
    future = executor.submit(woken.wait, LIMIT)
    executor.shutdown()
    executor.shutdown()
    assert future.result() is True
    assert calls == [True]


def test_callbacks_may_raise(make, gate, own_log):
    """What a callback raises is logged, and keeps nothing from closing."""

    def fail() -> None:
        raise LookupError("from a callback")

    executor = make(on_closing=fail, on_deadline=fail)
    executor.submit(gate)
    executor.shutdown(timeout=0.01)
    raised = [record.exc_info[0] for record in own_log.records if record.exc_info]
    assert raised == [LookupError, LookupError]
    assert executor.closing


def test_no_submit_to_a_closing_executor_from_its_job(make):
    """A job may submit to its own executor, but not once that is closing."""
    submitted, closing = threading.Event(), threading.Event()
    executor = make(on_closing=closing.set)

    def job() -> Any:
        accepted = executor.submit(int)
        submitted.set()
        assert closing.wait(LIMIT)
        with pytest.raises(ExecutorClosed):
            executor.submit(int)
        return accepted

    future = executor.submit(job)
    assert submitted.wait(LIMIT)
    executor.shutdown()
    assert future.result().result() == 0


def test_shutdown_from_a_job(make):
    """A job that waits for its own executor gets a RuntimeError; the executor is closed."""
    executor = make()
    with pytest.raises(RuntimeError):
        executor.submit(executor.shutdown).result(LIMIT)
    assert executor.closing
    executor.shutdown()


# --- drain, pending, repr ----------------------------------------------------


def test_drain(make, gate):
    """drain waits for the accepted jobs, within its bound, and closes nothing."""
    executor = make()
    assert executor.drain(0)
    future = executor.submit(gate)
    assert not executor.drain(0.01)
    assert not executor.drain(0)
    gate.open()
    assert executor.drain()
    assert future.done()
    assert executor.submit(int).result(LIMIT) == 0


def test_drain_waits_for_what_was_accepted_before(make):
    """drain returns although jobs keep coming: each submits the next."""
    executor = make()
    stop = threading.Event()

    def again() -> None:
        if not stop.is_set():
            executor.submit(again)

    executor.submit(again)
    for _ in range(20):
        assert executor.drain(LIMIT)
    stop.set()


def test_drain_counts_cancelled_jobs_as_done(make, gate):
    """A future that its holder cancels is not waited for once the worker has passed it."""
    executor = make()
    executor.submit(gate)
    executor.submit(int).cancel()
    gate.open()
    assert executor.drain(LIMIT)
    assert executor.pending == 0


def test_drain_from_a_job(make):
    """drain in a job would wait for itself: RuntimeError."""
    executor = make()
    with pytest.raises(RuntimeError, match="job"):
        executor.submit(executor.drain).result(LIMIT)
    other = make()
    assert other.submit(executor.drain, LIMIT).result(LIMIT)


def test_drain_costs_the_same_with_many_jobs(make, gate):
    """A drain that does not wait takes no longer with more jobs, however often it was called."""
    executor = make()
    executor.submit(gate)

    def points() -> int:
        with Strike(1_000_000, int) as count:
            assert not executor.drain(0)
        return 1_000_000 - count.left

    few = points()
    for _ in range(1000):
        executor.submit(int)
        assert not executor.drain(0)
    assert points() == few


def test_pending_and_repr(make, gate):
    """pending counts the running job; repr tells name, count and whether it is closing."""
    executor = make(thread_name_prefix="hindsight-writer")
    assert repr(executor) == "<DrainingExecutor 'hindsight-writer' 0 pending>"
    executor.submit(gate)
    gate.entered.wait(LIMIT)
    executor.submit(int)
    executor.submit(int)
    assert executor.pending == 3
    assert not executor.closing
    executor.shutdown(wait=False)
    assert executor.closing
    assert repr(executor) == "<DrainingExecutor 'hindsight-writer' 3 pending, closing>"
    gate.open()
    assert executor.drain(LIMIT)
    assert executor.pending == 0


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("closed", [False, True])
def test_from_many_threads(make, workers, closed):
    """Everything is safe from any thread: a job is run once, cancelled or refused, and told so."""
    executor = make(workers)
    done: list[int] = []
    accepted: dict[int, Future[None]] = {}
    begin = threading.Barrier(8)

    def submitter(first: int) -> None:
        begin.wait(LIMIT)
        for n in range(first, first + 250):
            try:
                accepted[n] = executor.submit(done.append, n)
            except ExecutorClosed:
                assert closed
                return
            if not n % 3:
                accepted[n].cancel()
            if not n % 50:
                assert executor.drain(LIMIT)
                assert executor.pending <= 2000
            if closed and n == 900:
                executor.shutdown(wait=False, cancel_futures=True)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(submitter, range(0, 2000, 250)))
    assert executor.drain(LIMIT)
    assert executor.pending == 0
    assert sorted(done) == sorted(n for n, one in accepted.items() if not one.cancelled())
    assert all(future.done() for future in accepted.values())
    assert executor.closing == closed
    assert closed or len(accepted) == 2000


def test_submit_against_shutdown():
    """While others submit, shutdown refuses or runs each job: none is lost in between."""
    for _ in range(50):
        executor = DrainingExecutor(2)
        done: list[int] = []
        accepted: list[int] = []

        def submitter(executor=executor, accepted=accepted, done=done) -> None:
            try:
                for n in range(10_000):
                    executor.submit(done.append, n)
                    accepted.append(n)
            except ExecutorClosed:
                pass

        thread = threading.Thread(target=submitter)
        thread.start()
        executor.submit(int).result(LIMIT)
        executor.shutdown()
        thread.join(LIMIT)
        assert sorted(done) == accepted


# --- the worker outlives everything ------------------------------------------------


@pytest.mark.parametrize("kind", [LookupError, SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("fails", [False, True])
def test_done_callback_may_raise_anything(make, own_log, kind, fails):
    """What a done callback raises is logged, and the worker goes on with the next job."""
    executor = make()

    def callback(_: Future[Any]) -> None:
        raise kind("from a callback")

    gate = Gate()
    future = executor.submit(lambda: gate() and (divmod(1, 0) if fails else 1))
    future.add_done_callback(callback)
    gate.open()
    assert (future.exception(LIMIT) is not None) == fails
    assert executor.submit(int).result(LIMIT) == 0
    assert len(executor._work.workers) == 1
    executor.shutdown()
    raised = [record.exc_info[0] for record in own_log.records if record.exc_info]
    assert raised == [kind]


def test_future_that_was_set_by_somebody_else(make, own_log):
    """A future whose result somebody else has set costs a line, and no worker."""
    executor = make()
    gate = Gate()
    future = executor.submit(gate)
    gate.entered.wait(LIMIT)
    future.set_result("set")
    gate.open()
    assert executor.submit(int).result(LIMIT) == 0
    assert future.result() == "set"
    assert "exception in worker" in own_log.text


@pytest.mark.skipif(
    platform.python_implementation() != "CPython" or sys.version_info < (3, 10),
    reason="CPython's C API; 3.9 drops what get() returned",
)
def test_exception_injected_into_a_worker(make, gate, own_log):
    """An exception that is injected into an idle worker does not end it."""
    executor = make()
    worker = executor.submit(threading.current_thread).result(LIMIT)
    executor.drain(LIMIT)
    inject = ctypes.pythonapi.PyThreadState_SetAsyncExc
    assert inject(ctypes.c_ulong(worker.ident), ctypes.py_object(KeyboardInterrupt)) == 1
    for _ in range(3):
        executor.submit(int)  # the first wakes it, and may fail
    assert executor.drain(LIMIT)
    assert executor.submit(int).result(LIMIT) == 0
    assert executor._work.workers == [worker]


# --- nothing in silence, nothing left behind ---------------------------------


def test_unkept_exception_is_logged_once(make, own_log):
    """The exception of a job whose future nobody holds is logged, once, with its traceback."""
    executor = make(thread_name_prefix="writer")
    executor.submit(divmod, 1, 0)
    assert executor.drain(LIMIT)
    executor.shutdown()
    collect()
    (record,) = own_log.records
    assert record.name == "hindsight_exec"
    assert record.levelno == logging.ERROR
    assert record.exc_info[0] is ZeroDivisionError
    assert "writer" in record.getMessage()


def test_exception_after_an_interrupted_submission_is_logged(make, own_log):
    """A job that began before its submission was interrupted reports its failure, too."""
    executor = make()
    began, go = threading.Event(), threading.Event()

    def job() -> None:
        began.set()
        assert go.wait(LIMIT)
        raise LookupError

    class Interrupted(type(executor._work.pending)):
        def add(self, token):
            super().add(token)
            assert began.wait(LIMIT)
            raise KeyboardInterrupt

    executor._work.pending = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        executor.submit(job)
    go.set()
    assert executor.drain(LIMIT)
    executor.shutdown()
    collect()
    (record,) = own_log.records
    assert record.exc_info[0] is LookupError


def test_kept_exception_is_not_logged(make, own_log):
    """The exception of a job whose future is held is the holder's."""
    executor = make()
    future = executor.submit(divmod, 1, 0)
    assert executor.drain(LIMIT)
    executor.shutdown()
    assert own_log.records == []
    assert isinstance(future.exception(), ZeroDivisionError)


def test_awaited_exception_is_not_logged(make, own_log):
    """Nor is one that somebody was already waiting for when the job failed."""
    executor = make()
    waiter = threading.get_ident()

    def job() -> None:
        callers = [""]
        while "result" not in callers:
            frame = sys._current_frames()[waiter]
            back = frame.f_back or frame  # without a GIL, it may return meanwhile
            callers = [frame.f_code.co_name, back.f_code.co_name]
        raise LookupError("for the waiter")

    future = executor.submit(job)
    with pytest.raises(LookupError):
        future.result(LIMIT)
    del future
    assert executor.drain(LIMIT)
    executor.shutdown()
    collect()
    assert own_log.records == []


def test_collected_executor_leaves_no_thread():
    """The worker ends when nobody holds the executor any more."""
    executor = DrainingExecutor(2)
    together = threading.Barrier(2)

    def job() -> threading.Thread:
        together.wait(LIMIT)
        return threading.current_thread()

    workers = [*executor.map(lambda _: job(), range(2))]
    assert len({*workers}) == 2
    del executor
    collect()
    for worker in workers:
        worker.join(LIMIT)
        assert not worker.is_alive()


def test_closed_executor_is_collected_with_what_its_callbacks_refer_to():
    """Nothing holds an executor without workers, not even if it was the last to start one."""

    class Owner:
        def __init__(self) -> None:
            self.executor = DrainingExecutor(on_deadline=self.stop)
            self.executor.submit(int).result(LIMIT)
            self.executor.shutdown()

        def stop(self) -> None:
            pass

    owner = weakref.ref(Owner())
    collect()
    assert owner() is None


def test_collected_executor_finishes_its_queue(gate):
    """Jobs that are queued when the executor goes out of scope are run."""
    executor = DrainingExecutor()
    executor.submit(gate)
    futures = [executor.submit(int, str(n)) for n in range(20)]
    gone = weakref.ref(executor)
    del executor
    collect()
    assert gone() is None
    gate.open()
    assert [future.result(LIMIT) for future in futures] == [*range(20)]


@pytest.mark.skipif(
    platform.python_implementation() == "CPython", reason="its queue has no lock to be held"
)
def test_collected_while_the_worker_holds_the_queue(gate):
    """The collector may find the executor in its worker, and in the middle of the queue's code."""

    def collect_under_the_lock(frame: Any, event: str, _: object) -> Any:
        if gate.entered.is_set() and frame.f_locals["self"]._cond._lock.locked():
            gc.collect()
        return collect_under_the_lock

    def trace(frame: Any, *_: object) -> Any:
        taking = frame.f_code is threading.Semaphore.acquire.__code__
        return collect_under_the_lock if taking else None

    executor = DrainingExecutor()
    threading.settrace(trace)
    try:
        executor.submit(gate)
    finally:
        threading.settrace(None)
    gate.entered.wait(LIMIT)
    worker = executor._work.workers[0]
    futures = [executor.submit(int, str(n)) for n in range(20)]
    cycle: list[Any] = [executor]
    cycle.append(cycle)
    gone = weakref.ref(executor)
    del executor, cycle
    gate.open()
    assert [future.result(LIMIT) for future in futures] == [*range(20)]
    worker.join(LIMIT)
    assert not worker.is_alive()
    assert gone() is None


def test_unused_executor_is_collected():
    """An executor that never had a job, or is closed, is held by nobody."""
    unused, closed = DrainingExecutor(), DrainingExecutor()
    closed.submit(int)
    closed.shutdown()
    gone = [weakref.ref(unused), weakref.ref(closed)]
    del unused, closed
    collect()
    assert [ref() for ref in gone] == [None, None]


@pytest.mark.skipif(
    platform.python_implementation() != "CPython", reason="counts on reference counts"
)
@pytest.mark.parametrize("fails", [False, True])
def test_idle_worker_holds_nothing(make, fails):
    """An idle worker keeps neither the last job, its arguments, its result nor its exception."""

    class Thing(Exception):
        pass

    executor = make()
    thing = Thing()
    gone = weakref.ref(thing)

    def job(argument: Thing) -> Thing:
        if fails:
            raise argument
        return argument

    future = executor.submit(job, thing)
    assert future.exception(LIMIT) is (thing if fails else None)
    assert executor.drain(LIMIT)
    del future, thing
    gc.collect()  # a traceback is part of a cycle
    assert gone() is None


def test_thread_that_cannot_start(make, monkeypatch):
    """When the system starts no thread, submit says so and has taken nothing."""

    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    executor = make()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start"):
            executor.submit(pytest.fail, "was given back")
    assert executor.pending == 0
    assert executor.drain(0)
    assert executor.submit(int).result(LIMIT) == 0


def test_further_thread_that_cannot_start(make, monkeypatch, gate):
    """When only a further thread cannot start, the ones there are take the job."""

    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    executor = make(2)
    executor.submit(gate)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        future = executor.submit(int)
    gate.open()
    assert future.result(LIMIT) == 0
