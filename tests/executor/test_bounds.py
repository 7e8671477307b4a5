"""Nothing but its bounds decides how long exit takes, whatever callbacks and jobs do."""

from __future__ import annotations

import sys

import pytest

#: Where no thread can be started at exit, callbacks are called by the exiting thread.
threads_at_exit = pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 3), reason="no thread can be started at exit"
)

PRELUDE = """
import threading
from hindsight_exec import DrainingExecutor
from hindsight_exec.executor import CLOSE, call_at_exit, closing
never = threading.Event()
began = threading.Event()
def hang(*_):
    never.wait()
def wedge():
    began.set()
    never.wait()
"""


@pytest.fixture
def run(run):
    import textwrap

    return lambda program: run(PRELUDE + textwrap.dedent(program))


@threads_at_exit
def test_done_callback_that_hangs(run):
    """A done callback of a cancelled future may hang: the other executors and exit go on."""
    ended = run(
        """
        stuck = DrainingExecutor(thread_name_prefix="stuck", drain_timeout=0.2)
        other = DrainingExecutor(thread_name_prefix="other", drain_timeout=0.2)
        said = threading.Event()
        call_at_exit(lambda: said.wait(60), CLOSE)
        def callback(_):
            say("cancelled")
            said.set()
        for executor in (stuck, other):
            executor.submit(wedge)
            executor.submit(int).add_done_callback(hang if executor is stuck else callback)
        began.wait()
        """
    )
    expired = "drain_timeout (0.2 s) expired; 2 jobs abandoned"
    assert (ended.status, ended.out) == (0, "cancelled\n")
    assert sorted(ended.err.splitlines()) == [f"other: {expired}", f"stuck: {expired}"]


def test_shutdown_beside_a_done_callback_that_hangs(run):
    """The bound of shutdown holds while it cancels futures whose done callbacks hang."""
    ended = run(
        """
        stuck = DrainingExecutor(thread_name_prefix="stuck")
        stuck.submit(wedge)
        began.wait()
        stuck.submit(int).add_done_callback(hang)
        stuck.shutdown(timeout=0.1, cancel_futures=True)
        say("returned")
        """
    )
    assert (ended.status, ended.out) == (0, "returned\n")
    assert ended.err == "stuck: shutdown(timeout=0.1) expired; 2 jobs abandoned\n"


@threads_at_exit
@pytest.mark.parametrize("busy", [False, True])
def test_on_closing_that_hangs(run, busy):
    """An on_closing that hangs is left alone at the end of the bound, and named."""
    ended = run(
        f"""
        call_at_exit(lambda: say("closed"))
        stuck = DrainingExecutor(thread_name_prefix="stuck", drain_timeout=0.2, on_closing=hang)
        other = DrainingExecutor(on_closing=lambda: say("closing"))
        {"stuck.submit(wedge)" if busy else "stuck.submit(int).result()"}
        other.submit(int)
        """
    )
    assert (ended.status, ended.out) == (0, "closing\nclosed\n")
    lines = ["stuck: on_closing has not returned"]
    if busy:
        lines.insert(0, "stuck: drain_timeout (0.2 s) expired; 1 job abandoned")
    assert ended.err.splitlines() == lines


@threads_at_exit
def test_on_deadline_that_hangs(run):
    """An on_deadline that hangs keeps neither exit nor another executor's."""
    ended = run(
        """
        told = threading.Event()
        stuck = DrainingExecutor(thread_name_prefix="stuck", drain_timeout=0.2, on_deadline=hang)
        other = DrainingExecutor(drain_timeout=0.2, on_deadline=told.set)
        closing.GRACE = 5.0  # a busy machine may need longer than half a second
        stuck.submit(wedge)
        other.submit(lambda: say("told", told.wait()))
        began.wait()
        """
    )
    assert (ended.status, ended.out) == (0, "told True\n")
    assert ended.err == "stuck: drain_timeout (0.2 s) expired; 1 job abandoned\n"


@pytest.mark.slow
@pytest.mark.parametrize("closing", ["pass", "executor.shutdown(timeout=0.1)"])
def test_many_jobs_are_abandoned(run, closing):
    """A queue that takes long to cancel does not hold exit, and each of its jobs is counted."""
    ended = run(
        f"""
        executor = DrainingExecutor(thread_name_prefix="long", drain_timeout=0.1)
        executor.submit(wedge)
        began.wait()
        for _ in range(60_000):
            executor.submit(int)
        {closing}
        """
    )
    assert (ended.status, ended.out) == (0, "")
    assert ended.err.startswith("long: ")
    assert ended.err.endswith(" expired; 60001 jobs abandoned\n")


def test_no_job_begins_after_the_bound(run):
    """When the bound runs out, the worker begins no further job, however soon it is free."""
    ended = run(
        """
        go = threading.Event()
        closing.GRACE = 60.0  # so that only the order counts
        executor = DrainingExecutor(drain_timeout=0.1, on_deadline=go.set)
        executor.submit(lambda: say("ended", go.wait()))
        for _ in range(20_000):
            executor.submit(say, "began")
        """
    )
    assert (ended.status, ended.out) == (0, "ended True\n")


@pytest.mark.parametrize(
    "clock", ["time.monotonic = lambda: 0.0", "time.monotonic = iter([0]).__next__"]
)
def test_frozen_clock(run, clock):
    """Bounds hold where a test has replaced the clock."""
    ended = run(
        f"""
        import time
        executor = DrainingExecutor(thread_name_prefix="stuck", drain_timeout=0.2)
        executor.submit(wedge)
        other = DrainingExecutor()
        other.submit(wedge)
        {clock}
        say(executor.drain(0.1))
        other.shutdown(timeout=0.1)
        say("shut down")
        """
    )
    assert (ended.status, ended.out) == (0, "False\nshut down\n"), ended.err


@pytest.mark.parametrize(
    "stderr", ["sys.stderr.close()", "sys.stderr = None", "os.close(2)", "sys.stderr = Broken()"]
)
def test_stderr_that_fails(run, stderr):
    """Where nothing can be logged, failed jobs, callbacks and bounds do no more harm."""
    ended = run(
        f"""
        import os, sys
        class Broken:
            def write(self, text): raise ValueError("closed")
            def flush(self): pass
        executor = DrainingExecutor(drain_timeout=0.2, on_closing=lambda: 1 / 0)
        {stderr}
        executor.submit(divmod, 1, 0)
        added = threading.Event()
        executor.submit(added.wait).add_done_callback(lambda _: sys.exit("no"))
        added.set()  # of a job that is done, it would be called here, and end the program
        call_at_exit(lambda: 1 / 0)
        call_at_exit(lambda: say("closed"))
        say(executor.submit(int, 5).result())
        executor.submit(wedge)
        """
    )
    assert (ended.status, ended.out) == (0, "5\nclosed\n")


def test_late_exit_callback(run):
    """A callback for a phase of exit that is over is refused, not forgotten."""
    ended = run(
        """
        import atexit
        from hindsight_exec import ExecutorClosed
        from hindsight_exec.executor import DRAIN, call_at_exit
        call_at_exit(lambda: call_at_exit(lambda: say("given in the phase"), DRAIN), DRAIN)
        @atexit.register
        def late():
            try:
                call_at_exit(lambda: say("called"))
            except ExecutorClosed as error:
                say(error)
        """
    )
    refused = "cannot register an exit callback: this phase of exit is over"
    assert ended == (0, f"given in the phase\n{refused}\n", "")


def test_a_callback_that_comes_as_its_phase_ends(run):
    """Between the last look at the callbacks and the end of the phase, one is called or refused."""
    ended = run(
        """
        from hindsight_exec import ExecutorClosed
        from hindsight_exec.executor import CLOSE, call_at_exit, phases
        phase = phases.PHASES[CLOSE]
        def give(name):
            try:
                call_at_exit(lambda: say(name, "called"))
                say(name, "accepted")
            except ExecutorClosed:
                say(name, "refused")
        class Callbacks(list):
            looks = 0
            def __bool__(self):
                found = len(self) > 0
                if not found:
                    self.looks += 1
                    give(f"at look {self.looks}" ) if self.looks < 3 else None
                return found
        phase.callbacks = Callbacks()
        """
    )
    assert ended == (
        0,
        "at look 1 accepted\nat look 1 called\nat look 2 refused\n",
        "",
    )


def test_numbers_of_other_types(run):
    """A bound may be any real number, however long."""
    ended = run(
        """
        import decimal, fractions, time
        from hindsight_exec import DrainingExecutor
        for bound in (decimal.Decimal(60), fractions.Fraction(60), True, 10**9, float("inf")):
            DrainingExecutor(drain_timeout=bound).submit(say, "done")
        for bound in (1e10, float("inf"), 60, decimal.Decimal(60)):
            executor = DrainingExecutor()
            executor.submit(time.sleep, 0.05)
            executor.shutdown(timeout=bound)
            say(executor.pending)
        """
    )
    assert sorted(ended.out.split()) == ["0"] * 4 + ["done"] * 5
    assert (ended.status, ended.err) == (0, "")
