"""Executors that use each other at exit stay open for each other."""

from __future__ import annotations

import sys

import pytest

threads_at_exit = pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 3), reason="no thread can be started at exit"
)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_chain_of_executors(run, depth):
    """Jobs may submit to a second executor at exit, whose jobs submit to a third, and so on."""
    ended = run(
        f"""
        import threading
        from hindsight_exec import DrainingExecutor
        closing = threading.Event()
        executors = [DrainingExecutor() for _ in range({depth})]
        for executor in executors:
            executor.submit(int).result()  # 3.12.0 to 3.12.2 start no thread at exit
        executors.append(DrainingExecutor(on_closing=closing.set))
        def job(n, at):
            closing.wait()
            if at:
                executors[at - 1].submit(job, n, at - 1)
            else:
                say(n)
        for n in range(20):
            executors[-1].submit(job, n, {depth})
        """
    )
    assert ended == (0, "".join(f"{n}\n" for n in range(20)), "")


@threads_at_exit
def test_executor_that_is_first_used_at_exit(run):
    """So may they to one that had no job before, and to one that is made there."""
    ended = run(
        """
        import threading
        from hindsight_exec import DrainingExecutor
        closing = threading.Event()
        unused = DrainingExecutor()
        def job():
            closing.wait()
            unused.submit(lambda: DrainingExecutor().submit(say, "done"))
        DrainingExecutor(on_closing=closing.set).submit(job)
        """
    )
    assert ended == (0, "done\n", "")


def test_callback_that_submits(run):
    """on_closing may hand in a last job, also to an executor that has none to do."""
    ended = run(
        """
        from hindsight_exec import DrainingExecutor
        executor = DrainingExecutor(on_closing=lambda: executor.submit(say, "last"))
        executor.submit(int).result()
        """
    )
    if (3, 12) <= sys.version_info < (3, 12, 3):
        assert ended.status == 0
    else:
        assert ended == (0, "last\n", "")


def test_lookups_by_the_loops_default_executor(run):
    """A job that drains may look a host up on a loop whose default executor is ours."""
    ended = run(
        """
        import asyncio, threading
        from hindsight_exec import DrainingExecutor
        loop = asyncio.new_event_loop()
        loop.set_default_executor(DrainingExecutor(4, thread_name_prefix="resolver"))
        threading.Thread(target=loop.run_forever, daemon=True).start()
        def look_up():
            found = loop.getaddrinfo("localhost", 80)
            return len(asyncio.run_coroutine_threadsafe(found, loop).result(60)) > 0
        closing = threading.Event()
        executor = DrainingExecutor(on_closing=closing.set)
        executor.submit(look_up).result()
        executor.submit(closing.wait)
        for _ in range(20):
            executor.submit(lambda: say(look_up()))
        """
    )
    assert ended == (0, "True\n" * 20, "")


def test_executors_that_submit_to_each_other_for_ever(run):
    """Two that never end to hand work to each other are closed at their bounds."""
    ended = run(
        """
        import threading
        from hindsight_exec import DrainingExecutor, ExecutorClosed
        one = DrainingExecutor(drain_timeout=0.3, thread_name_prefix="one")
        other = DrainingExecutor(drain_timeout=0.3, thread_name_prefix="other")
        def play(at, to):
            try:
                to.submit(play, to, at)
            except ExecutorClosed:
                pass
        other.submit(int).result()
        one.submit(play, one, other)
        """
    )
    assert (ended.status, ended.out) == (0, "")
    assert all("drain_timeout (0.3 s) expired" in line for line in ended.err.splitlines())


def test_own_jobs_are_refused_at_once(run):
    """While the others may still submit, an executor's own jobs are refused from the beginning."""
    ended = run(
        """
        import threading
        from hindsight_exec import DrainingExecutor, ExecutorClosed
        closing, tried = threading.Event(), threading.Event()
        own = DrainingExecutor(2, on_closing=closing.set)
        other = DrainingExecutor()
        def from_itself():
            closing.wait()
            try:
                own.submit(say, "ran")
            except ExecutorClosed:
                say("refused")
            tried.set()
        def from_another():
            tried.wait()
            own.submit(say, "accepted")
        own.submit(from_itself)
        own.submit(int)
        other.submit(from_another)
        """
    )
    assert ended == (0, "refused\naccepted\n", "")


def test_executor_whose_bound_has_run_out(run):
    """Once its own bound has run out, an executor refuses the others, too: no job waits for ever."""
    ended = run(
        """
        import threading
        from hindsight_exec import DrainingExecutor, ExecutorClosed
        told = threading.Event()
        short = DrainingExecutor(
            drain_timeout=0.1, thread_name_prefix="short", on_deadline=told.set
        )
        short.submit(threading.Event().wait)
        long = DrainingExecutor()
        def job():
            told.wait()
            try:
                short.submit(int).result()
            except ExecutorClosed:
                say("refused")
        long.submit(job)
        """
    )
    assert (ended.status, ended.out) == (0, "refused\n")
    assert ended.err == "short: drain_timeout (0.1 s) expired; 1 job abandoned\n"
