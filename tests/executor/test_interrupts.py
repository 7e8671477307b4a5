"""A Ctrl-C at any bytecode leaves counts, queue, futures and threads true."""

from __future__ import annotations

import concurrent.futures
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Callable, Optional

import pytest
from interrupting import Strike, at_each_point

from hindsight_exec import DrainingExecutor, ExecutorClosed
from hindsight_exec.executor import exit_hook, phases

LIMIT = 60  # seconds to fail after, never reached


def run_in_thread(call: Callable[[], object]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join(LIMIT)


def assert_sound(executor: DrainingExecutor, workers: int = 1) -> None:
    """It counts right, runs jobs, has no more workers than it may, and ends."""
    assert executor.drain(LIMIT)
    assert executor.pending == 0
    if not executor.closing:
        order: list[int] = []
        futures = [executor.submit(order.append, n) for n in range(3)]
        assert [future.result(LIMIT) for future in futures] == [None] * 3
        assert workers > 1 or order == [0, 1, 2]
        assert executor.drain(LIMIT)
    name = executor._work.name
    threads = [one for one in threading.enumerate() if one.name.startswith(f"{name}_")]
    executor.shutdown(timeout=LIMIT)
    assert executor.pending == 0
    for thread in threads:
        while thread.ident is None:
            time.sleep(0.001)  # the interrupt came while it was being started
        thread.join(LIMIT)
        assert not thread.is_alive()
    assert len(executor._work.workers) <= workers
    with pytest.raises(ExecutorClosed):
        executor.submit(int)


@pytest.mark.parametrize("before", [0, 1], ids=["first", "later"])
@pytest.mark.parametrize("workers", [1, 2])
def test_submit(before, workers):
    """A submission that is interrupted takes the job whole or not at all."""

    def scene(strike: Strike) -> None:
        executor = DrainingExecutor(workers)
        ran: list[int] = []
        for _ in range(before):
            executor.submit(int)
        futures: list[Future[None]] = []
        try:
            with strike:
                futures.append(executor.submit(ran.append, 1))
        except KeyboardInterrupt:
            pass
        assert_sound(executor, workers)
        assert len(ran) <= 1
        assert not futures or ran == [1]

    assert at_each_point(scene) > 3


def test_submit_while_another_shuts_down():
    """Nor is a job left behind when the executor is closed in the midst of the submission."""

    def scene(strike: Strike) -> None:
        executor = DrainingExecutor()
        executor.submit(int).result(LIMIT)
        queue, ran = executor._work.queue, []
        worker = executor._work.workers[0]

        class Queue:
            get = queue.get
            get_nowait = queue.get_nowait

            def put(self, item: object) -> None:
                if item is not None:
                    # Another thread, as the interrupt is for this one.
                    run_in_thread(lambda: executor.shutdown(wait=False))
                    worker.join(LIMIT)  # nobody takes what comes now
                queue.put(item)

        executor._work.queue = Queue()  # type: ignore[assignment]
        accepted = False
        try:
            with strike:
                executor.submit(ran.append, 1)
                accepted = True
        except (KeyboardInterrupt, ExecutorClosed):
            pass
        assert not accepted
        assert executor.drain(LIMIT)
        executor.shutdown(timeout=LIMIT)
        assert executor.pending == 0

    assert at_each_point(scene) > 3


def test_map():
    """An interrupted map leaves the jobs that were accepted, and no other trace."""

    def scene(strike: Strike) -> None:
        executor = DrainingExecutor()
        ran: list[int] = []
        try:
            with strike:
                list(executor.map(ran.append, range(3)))
        except KeyboardInterrupt:
            pass
        assert_sound(executor)
        assert ran == [*range(len(ran))]

    assert at_each_point(scene) > 30


def test_drain():
    """An interrupted drain is a KeyboardInterrupt, and the next one is right."""

    def scene(strike: Strike) -> None:
        executor = DrainingExecutor()
        go = threading.Event()
        future = executor.submit(go.wait, LIMIT)
        releaser = threading.Timer(0.002, go.set)
        releaser.start()
        try:
            with strike:
                assert executor.drain(LIMIT)
        except KeyboardInterrupt:
            pass
        go.set()
        assert executor.drain(LIMIT)
        assert future.done()
        assert not executor._work.pending._waiters
        assert_sound(executor)
        releaser.join()

    assert at_each_point(scene) > 3


@pytest.mark.parametrize("cancel", [False, True])
@pytest.mark.parametrize("timeout", [None, 0])
def test_shutdown(cancel, timeout, own_log):
    """After an interrupted shutdown the next one ends, and every future is done."""

    def scene(strike: Strike) -> None:
        executor = DrainingExecutor(on_closing=int, on_deadline=int)
        entered = threading.Event()
        futures = [executor.submit(entered.set), *(executor.submit(int) for _ in range(5))]
        assert entered.wait(LIMIT)
        try:
            with strike:
                executor.shutdown(cancel_futures=cancel, timeout=timeout)
        except KeyboardInterrupt:
            pass
        executor.shutdown(timeout=LIMIT)
        assert executor.drain(LIMIT)
        assert executor.pending == 0
        for future in futures:
            assert future.cancelled() or future.exception(LIMIT) is None
        assert_sound(executor)

    assert at_each_point(scene) > 3


@pytest.fixture
def exits() -> Iterator[None]:
    """Exit may be played in this process, as often as one likes."""
    yield
    play_no_exit()


def play_no_exit() -> None:
    phases._start_afresh()
    exit_hook._start_afresh()


@pytest.mark.usefixtures("exits")
@pytest.mark.parametrize("drain_timeout", [0, LIMIT])
def test_exit(drain_timeout, own_log):
    """Whenever exit is interrupted, it goes on: futures are done and callbacks are called."""

    def scene(strike: Strike) -> None:
        play_no_exit()
        own_log.clear()
        called: list[str] = []
        executors = [
            DrainingExecutor(drain_timeout=drain_timeout, on_closing=lambda: called.append("c"))
            for _ in range(2)
        ]
        futures = [executor.submit(int) for executor in executors for _ in range(3)]
        for phase in (phases.DRAIN, phases.CLOSE):
            phases.call_at_exit(lambda phase=phase: called.append(phase), phase)
        try:
            with strike:
                exit_hook.close_all()
        except KeyboardInterrupt:
            # At the last bytecodes. CPython looks for signals there until 3.9.
            assert sys.version_info < (3, 10) or platform.python_implementation() == "PyPy"
            assert all(phase.finished for phase in phases.PHASES)
        assert not concurrent.futures.wait(futures, LIMIT).not_done
        while called.count("c") < 2:
            time.sleep(0.001)  # one was being called when the interrupt came
        assert all(phase.finished for phase in phases.PHASES)
        if "Exit callback" not in own_log.text:  # else the interrupt was taken for its own
            assert {"c", phases.DRAIN, phases.CLOSE} == {*called}
        assert called.count("c") == 2
        for executor in executors:
            assert executor.drain(LIMIT)
            with pytest.raises(ExecutorClosed):
                executor.submit(int)

    # The first point is outside of all: the entry of the function that is called.
    assert at_each_point(scene, first=1) > 50


REAL = """
import random, signal, threading, time
from hindsight_exec import DrainingExecutor

class Interrupt(BaseException):
    pass

armed = False  # a signal may be handled only after the timer was stopped

def interrupt(*_):
    if armed:
        raise Interrupt

signal.signal(signal.SIGALRM, interrupt)
interrupted = 0
for number in range(600):
    executor = DrainingExecutor()
    ran, futures = [], []
    try:
        armed = True
        signal.setitimer(signal.ITIMER_REAL, random.random() * 0.0008 + 1e-6)
        for n in range(20):
            futures.append(executor.submit(ran.append, n))
        executor.drain()
        executor.shutdown(cancel_futures=bool(number % 2))
        armed = False
    except Interrupt:
        armed = False
        interrupted += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert executor.drain(30), executor
    assert executor.pending == 0, executor
    assert all(future.done() for future in futures)
    assert ran == sorted(ran) and len(ran) >= sum(not one.cancelled() for one in futures)
    executor.shutdown(timeout=30)
say("interrupted", interrupted > 20)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX timers")
@pytest.mark.skipif(
    sys.implementation.name == "pypy", reason="its queue is not safe against interrupts"
)
def test_real_signals(run):
    """The same with signals that come when they like."""
    ended = run(REAL)
    assert (ended.status, ended.out) == (0, "interrupted True\n"), ended.err


def test_points_are_found():
    """The interrupter counts what it should: at each point once, and none outside of our code."""

    def scene(strike: Strike) -> None:
        executor: Optional[DrainingExecutor] = None
        try:
            with strike:
                executor = DrainingExecutor()
        except KeyboardInterrupt:
            assert executor is None

    assert 5 < at_each_point(scene) < 500
