"""Where non-daemon threads go on after main, the executors stay open for them."""

from __future__ import annotations

import sys

import pytest

PRELUDE = """
import threading, time
from concurrent.futures import ThreadPoolExecutor
from hindsight_exec import DrainingExecutor, ExecutorClosed
from hindsight_exec.executor import CLOSE, DRAIN, call_at_exit

def after_main():
    # Main has ended when CPython has called the callbacks.
    threading.main_thread().join()
"""


@pytest.fixture
def run(run):
    import textwrap

    return lambda program: run(PRELUDE + textwrap.dedent(program))


def test_thread_that_lives_on(run):
    """Its jobs run while it lives, without a sign of closing, and exit drains the last of them."""
    ended = run(
        """
        executor = DrainingExecutor(on_closing=lambda: say("closing"))
        call_at_exit(lambda: say("drained"), DRAIN)
        call_at_exit(lambda: say("closed"), CLOSE)
        def server():
            after_main()
            for n in range(50):
                executor.submit(say, n).result(60)
                time.sleep(0.002)
            say("open", not executor.closing)
            for n in range(50, 100):
                executor.submit(say, n)
            say("server ends")
        executor.submit(int).result()
        threading.Thread(target=server).start()
        """
    )
    assert (ended.status, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert [line for line in lines if line.isdigit()] == [str(n) for n in range(100)]
    words = [line for line in lines if not line.isdigit()]
    assert words == ["open True", "server ends", "closing", "drained", "closed"]


def test_pools_serve_what_was_accepted_before(run):
    """What main gave is waited for while the standard library's pools still take jobs."""
    ended = run(
        """
        theirs = ThreadPoolExecutor(1)
        theirs.submit(int).result()
        ours = DrainingExecutor()
        def job(n):
            time.sleep(0.01)
            theirs.submit(say, n).result()
        for n in range(10):
            ours.submit(job, n)
        threading.Thread(target=lambda: (after_main(), time.sleep(0.3), say("ends"))).start()
        """
    )
    assert ended == (0, "".join(f"{n}\n" for n in range(10)) + "ends\n", "")


def test_idle_pools_do_not_count(run):
    """Idle workers of the standard library's pools do not live on: executors close before them."""
    ended = run(
        """
        import atexit
        theirs = [ThreadPoolExecutor(2) for _ in range(3)]
        for pool in theirs:
            list(pool.map(time.sleep, [0.01] * 4))
        ours = DrainingExecutor(on_closing=lambda: say("closing"))
        ours.submit(lambda: theirs[0].submit(say, "by a pool").result())
        atexit.register(say, "atexit")
        """
    )
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.splitlines()[-1] == "atexit"
    assert {*ended.out.splitlines()} == {"closing", "by a pool", "atexit"}


def test_busy_pool_counts(run):
    """A pool's worker that is busy after main may give jobs as long as it runs."""
    ended = run(
        """
        theirs = ThreadPoolExecutor(1)
        ours = DrainingExecutor()
        ours.submit(int).result()
        def serve():
            time.sleep(0.3)  # its pool's own callback waits for it, so main is not over yet
            for n in range(20):
                ours.submit(say, n)
                time.sleep(0.005)
        theirs.submit(serve)
        """
    )
    assert ended == (0, "".join(f"{n}\n" for n in range(20)), "")


def test_thread_that_ends_while_exit_drains(run):
    """If the last thread ends while exit still waits, everything closes at once."""
    ended = run(
        """
        import atexit
        executor = DrainingExecutor(on_closing=lambda: say("closing"))
        thread = threading.Thread(target=time.sleep, args=(0.3,))
        thread.start()
        executor.submit(lambda: (thread.join(), time.sleep(0.1), say("job")))
        atexit.register(lambda: say("atexit", executor.closing))
        """
    )
    assert ended.status == 0
    assert ended.out.splitlines()[-1] == "atexit True"
    assert {"closing", "job"} <= {*ended.out.splitlines()}


@pytest.mark.parametrize("wait", ["result(60)", "exception(60)", "result"])
def test_thread_that_waits_for_a_job_behind_one_that_hangs(run, wait):
    """A thread that does nothing but wait for a job of ours does not hold exit beyond the bound."""
    waits = f"future.{wait}" + ("()" if wait == "result" else "")
    ended = run(
        f"""
        from concurrent.futures import CancelledError
        executor = DrainingExecutor(drain_timeout=0.3, thread_name_prefix="stuck")
        executor.submit(threading.Event().wait)
        future = executor.submit(int)
        def waiter():
            try:
                {waits}
            except CancelledError:
                say("cancelled")
        threading.Thread(target=waiter).start()
        """
    )
    assert (ended.status, ended.out) == (0, "cancelled\n")
    assert ended.err == "stuck: drain_timeout (0.3 s) expired; 2 jobs abandoned\n"


def test_daemon_threads_do_not_count(run):
    """Daemon threads end with the process: nothing stays open for them."""
    ended = run(
        """
        executor = DrainingExecutor()
        executor.submit(int).result()
        threading.Thread(target=lambda: threading.Event().wait(), daemon=True).start()
        call_at_exit(lambda: say("closed"))
        import atexit
        atexit.register(say, "atexit")
        """
    )
    assert ended == (0, "closed\natexit\n", "")


@pytest.mark.skipif(
    sys.version_info < (3, 14), reason="multiprocessing's children do not run atexit before 3.14"
)
def test_thread_that_lives_on_in_a_forked_process(run):
    """The same in a child of multiprocessing, whose list of exit callbacks is its own."""
    ended = run(
        """
        import multiprocessing, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        def target():
            executor = DrainingExecutor()
            executor.submit(int).result()
            def server():
                time.sleep(0.2)
                for n in range(20):
                    executor.submit(lambda n=n: (time.sleep(0.005), say(n)))
            threading.Thread(target=server).start()
        process = multiprocessing.get_context("fork").Process(target=target)
        process.start()
        process.join()
        say("status", process.exitcode)
        """
    )
    assert ended == (0, "".join(f"{n}\n" for n in range(20)) + "status 0\n", "")
