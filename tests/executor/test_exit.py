"""The end of a process, seen from outside: each program is a child, and its stderr is read."""

from __future__ import annotations

import signal
import sys
import textwrap

import pytest

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

ENDS = {
    "the end of main": "pass",
    "sys.exit": "sys.exit(3)",
    "an exception": "raise LookupError('the end')",
    "Ctrl-C": "os.kill(os.getpid(), signal.SIGINT); signal.pause()",
    "SystemExit of a SIGTERM handler": """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))
        os.kill(os.getpid(), signal.SIGTERM); signal.pause()""",
}


def ended_by(end: str) -> str:
    return "\n" + textwrap.dedent(ENDS[end]) + "\n"


@posix
@pytest.mark.parametrize("end", ENDS)
def test_accepted_jobs_are_done(run, end):
    """However the program ends, its jobs are done, and status and errors are what they were."""
    program = textwrap.dedent(
        """
        import os, signal, sys, threading
        from concurrent.futures import ThreadPoolExecutor
        from hindsight_exec import DrainingExecutor
        executor = {}(1)
        ending = threading.Event()
        executor.submit(ending.wait, 0.2)
        for n in range(20):
            executor.submit(say, n)
        """
    )
    ours = run(program.format("DrainingExecutor") + ended_by(end))
    theirs = run(program.format("ThreadPoolExecutor") + ended_by(end))
    assert ours.out.split() == [str(n) for n in range(20)]
    assert ours.status == theirs.status
    # The same traceback, but for the number of the line.
    assert ours.err == theirs.err


def test_executor_out_of_scope(run):
    """An executor that went out of scope with 20 jobs queued still runs them at exit."""
    ended = run(
        """
        import gc, threading
        from hindsight_exec import DrainingExecutor
        go = threading.Event()
        def give():
            executor = DrainingExecutor(on_closing=go.set)
            executor.submit(go.wait)  # until exit begins
            for n in range(20):
                executor.submit(say, n)
        give()
        gc.collect()
        """
    )
    assert ended == (0, "".join(f"{n}\n" for n in range(20)), "")


LOOKUPS = """
    import asyncio, sys, threading
    from concurrent.futures import ThreadPoolExecutor
    from hindsight_exec import DrainingExecutor

    class Resolvers(DrainingExecutor):
        exit_phase = 1  # while the executors drain, they are needed

    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    done = []
    def lookup():
        asyncio.run_coroutine_threadsafe(loop.getaddrinfo("localhost", 80), loop).result(60)
        done.append(1)
        if len(done) == 100:
            say("100 done")

    if "resolvers" in sys.argv:
        loop.set_default_executor(Resolvers(4))
    lookup()  # starts a thread, which cannot be done at exit on 3.12.0 to 3.12.2
    ending = threading.Event()
    threading._register_atexit(ending.set)  # the last one registered is called first
    executor = {}(1)
    executor.submit(ending.wait)
    for _ in range(99):
        executor.submit(lookup)
"""


@pytest.mark.parametrize("pool", ["default", "resolvers"])
def test_host_names_at_exit(run, pool):
    """Jobs that resolve host names on an event loop are done at exit: 100 of 100."""
    if pool == "default" and (3, 12) <= sys.version_info < (3, 12, 3):
        pytest.skip("the loop's own pool starts threads, which 3.12.0 to 3.12.2 cannot at exit")
    assert run(LOOKUPS.format("DrainingExecutor"), pool) == (0, "100 done\n", "")


def test_host_names_at_exit_without_us(run):
    """With the standard library's executor the loop refuses the look-ups of the same jobs."""
    assert run(LOOKUPS.format("ThreadPoolExecutor"), "default").out == ""


WEDGED = {
    "busy loop": "while True: pass",
    "lock": "lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "sleep": "time.sleep(3600)",
}


@pytest.mark.parametrize("how", WEDGED)
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "collected"])
def test_wedged_job(run, how, kept):
    """A job that never ends does not hold exit; one warning says how many jobs were left."""
    ended = run(
        f"""
        import threading, time
        from hindsight_exec import DrainingExecutor
        executor = DrainingExecutor(thread_name_prefix="stuck", drain_timeout=0.5)
        began = threading.Event()
        def job():
            began.set()
            {WEDGED[how]}
        executor.submit(job)
        for _ in range(4):
            executor.submit(say, "ran")
        began.wait()
        {"" if kept else "del executor"}
        """
    )
    assert (ended.status, ended.out) == (0, "")
    assert ended.err == "stuck: drain_timeout (0.5 s) expired; 5 jobs abandoned\n"


def test_drained_at_once(run):
    """All executors close before any is waited for; each keeps its bound and warns for itself."""
    ended = run(
        """
        import threading
        from hindsight_exec import DrainingExecutor
        closing, never = threading.Event(), threading.Event()
        def meet():
            closing.wait(60)
            say("met")
        executors = [
            DrainingExecutor(drain_timeout=60 - n, on_closing=None if n else closing.set)
            for n in range(10)
        ]
        for executor in executors:
            executor.submit(meet)
        for name in ("one", "two"):
            stuck = DrainingExecutor(thread_name_prefix=name, drain_timeout=0.1)
            executors.append(stuck)
            stuck.submit(never.wait)
        """
    )
    assert (ended.status, ended.out) == (0, "met\n" * 10)
    lines = sorted(ended.err.splitlines())
    expired = "drain_timeout (0.1 s) expired; 1 job abandoned"
    assert lines == [f"one: {expired}", f"two: {expired}"]


def test_time_to_end_is_one_for_all(run):
    """At the deadline all executors are told before any is waited for: their jobs end together."""
    ended = run(
        """
        import threading
        from hindsight_exec import DrainingExecutor
        from hindsight_exec.executor import closing
        closing.GRACE = 60.0  # so that only the order counts
        told = [threading.Event() for _ in range(3)]
        def wait_for_all(n):
            for event in told:
                event.wait()
            say(n)
        for n in range(3):
            DrainingExecutor(drain_timeout=0.1, on_deadline=told[n].set).submit(wait_for_all, n)
        """
    )
    assert (ended.status, sorted(ended.out.split()), ended.err) == (0, ["0", "1", "2"], "")


def test_nobody_waits_for_ever(run):
    """At the deadline queued futures are cancelled: a thread that waits for one goes on."""
    ended = run(
        """
        import threading
        from concurrent.futures import CancelledError
        from hindsight_exec import DrainingExecutor
        executor = DrainingExecutor(drain_timeout=0.1)
        executor.submit(threading.Event().wait)
        future = executor.submit(int)
        def waiter():
            try:
                future.result()
            except CancelledError:
                say("cancelled")
        threading.Thread(target=waiter).start()
        """
    )
    assert (ended.status, ended.out) == (0, "cancelled\n")
    assert ended.err.count("\n") == 1


def test_bound_is_not_waited_twice(run):
    """A bound that ran out in shutdown() is not waited, and not reported, again at exit."""
    ended = run(
        """
        import threading
        from hindsight_exec import DrainingExecutor
        executor = DrainingExecutor(drain_timeout=3600)
        executor.submit(threading.Event().wait)
        executor.shutdown(timeout=0.1)
        say("went on")
        """
    )
    assert (ended.status, ended.out) == (0, "went on\n")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    "who",
    [
        pytest.param(
            "a finalizer",
            marks=pytest.mark.skipif(
                sys.implementation.name != "cpython", reason="runs no finalizers at exit"
            ),
        ),
        "atexit",
    ],
)
def test_jobs_that_exit_gave_up_are_not_waited_for(run, who):
    """Whoever waits after exit has given a job up would wait for ever: its thread is frozen."""
    ended = run(
        """
        import atexit, os, sys, threading
        from hindsight_exec import DrainingExecutor
        class Ender:
            def __init__(self):
                self.executor = DrainingExecutor(drain_timeout=0.1, thread_name_prefix="stuck")
            def __del__(self, write=os.write):
                found = self.executor.drain(), self.executor.shutdown(), self.executor.pending
                write(1, f"{found}\\n".encode())
        ender = Ender()
        if sys.argv[1] == "atexit":
            atexit.register(ender.__del__)
        ender.executor.submit(threading.Event().wait)
        """,
        who,
    )
    assert ended.status == 0
    assert set(ended.out.splitlines()) == {"(False, None, 1)"}
    assert ended.err == "stuck: drain_timeout (0.1 s) expired; 1 job abandoned\n"


def test_shutdown_without_waiting_is_drained(run):
    """Jobs that shutdown(wait=False) left to the background are done at exit."""
    ended = run(
        """
        from hindsight_exec import DrainingExecutor
        executor = DrainingExecutor(2)
        for n in range(20):
            executor.submit(say, n)
        executor.shutdown(wait=False)
        """
    )
    assert sorted(ended.out.split(), key=int) == [str(n) for n in range(20)]
    assert (ended.status, ended.err) == (0, "")


def test_given_in_the_last_line(run):
    """An executor made in the last line of main runs its job."""
    program = "import hindsight_exec; hindsight_exec.DrainingExecutor().submit(say, 'done')"
    assert run(program) == (0, "done\n", "")


def test_callbacks_at_exit(run):
    """on_closing and on_deadline are called at exit; a job they end is not reported."""
    ended = run(
        """
        import threading
        from hindsight_exec import DrainingExecutor
        from hindsight_exec.executor import closing
        closing.GRACE = 60.0  # so that only the order counts
        stop = threading.Event()
        def deadline():
            say("deadline")
            stop.set()
        executor = DrainingExecutor(
            drain_timeout=0.1, on_closing=lambda: say("closing"), on_deadline=deadline
        )
        executor.submit(lambda: say("job", stop.wait()))
        """
    )
    assert ended == (0, "closing\ndeadline\njob True\n", "")


# --- refusals ----------------------------------------------------------------


def test_refusals_at_exit(run):
    """While it drains, an executor refuses its own jobs; in atexit, all refuse everything."""
    ended = run(
        """
        import atexit, threading
        from hindsight_exec import DrainingExecutor, ExecutorClosed
        closing = threading.Event()
        used = DrainingExecutor(on_closing=closing.set)
        unused = DrainingExecutor()
        def attempt(executor):
            try:
                executor.submit(say, "ran")
            except ExecutorClosed as error:
                say(error)
        def job():
            closing.wait()
            attempt(used)
        used.submit(job)
        @atexit.register
        def late():
            say(used.closing, unused.closing)
            attempt(used)
            attempt(unused)
            attempt(DrainingExecutor())
        """
    )
    refusal = "cannot schedule new futures after interpreter shutdown\n"
    assert ended == (0, f"{refusal}True True\n{refusal * 3}", "")


@pytest.mark.parametrize("kind", ["ValueError", "SystemExit", "KeyboardInterrupt"])
def test_nothing_escapes_the_hook(run, kind):
    """A callback that raises anything skips no other executor, callback or thread."""
    if kind != "ValueError" and (3, 12) <= sys.version_info < (3, 12, 3):
        pytest.skip("the exiting thread has to call them itself, and takes this for a Ctrl-C")
    ended = run(
        f"""
        import atexit, threading
        from concurrent.futures import ThreadPoolExecutor
        from hindsight_exec import DrainingExecutor
        from hindsight_exec.executor import call_at_exit
        def fail():
            raise {kind}("from a callback")
        theirs = ThreadPoolExecutor(1)
        theirs.submit(int).result()
        atexit.register(say, "atexit")
        call_at_exit(fail)
        call_at_exit(lambda: say("callback"))
        failing = DrainingExecutor(on_closing=fail, drain_timeout=60)
        failing.submit(say, "failing")
        other = DrainingExecutor(drain_timeout=61)
        other.submit(lambda: theirs.submit(say, "theirs"))
        """
    )
    assert ended.status == 0
    assert {*ended.out.split()} == {"failing", "theirs", "callback", "atexit"}
    assert ended.err.count(f"{kind}: from a callback") == 2


def test_job_that_ran_before_its_further_worker_could_start(run):
    """A job that the workers there are have run is not refused as exit closes in between."""
    ended = run(
        """
        import threading
        from hindsight_exec import DrainingExecutor
        from hindsight_exec.executor import exit_hook, worker
        executor = DrainingExecutor(2)
        go, starting, closed = threading.Event(), threading.Event(), threading.Event()
        executor.submit(go.wait)
        stay_first = worker.stay_first
        def slow():  # the first line of a worker's start
            starting.set()
            closed.wait()
            stay_first()
        worker.stay_first = slow
        def give():
            say("accepted", executor.submit(int, 5).result())
        giver = threading.Thread(target=give, daemon=True)
        giver.start()
        starting.wait()  # the job is queued and counted
        go.set()
        exit_hook.close_all()  # the only worker has run it
        closed.set()
        giver.join()
        """
    )
    assert ended == (0, "accepted 5\n", "")


@pytest.mark.slow
def test_job_that_begins_as_the_queue_ends(run):
    """Exit waits for a job that a worker finds behind the end of the queue."""
    ended = run(
        """
        import threading
        from hindsight_exec import DrainingExecutor
        executor = DrainingExecutor(2, drain_timeout=60, on_deadline=lambda: say("deadline"))
        both = threading.Barrier(2)
        for _ in range(2):
            executor.submit(both.wait)
        executor.drain()
        work, giving = executor._work, threading.Event()
        queue, go, begun, leaving = work.queue, threading.Event(), threading.Event(), threading.Event()
        class Queue:
            get, get_nowait = queue.get, queue.get_nowait
            def put(self, item):
                if item is not None:
                    giving.set()
                    go.wait()  # exit has closed the queue meanwhile
                elif threading.current_thread() in work.workers and not go.is_set():
                    go.set()
                    begun.wait()  # a worker that leaves is preempted here
                queue.put(item)
                if item is not None:
                    begun.wait()
        work.queue = Queue()
        def job():
            begun.set()
            leaving.wait(1.5)  # longer than exit waits for threads to end
            say("done")
        threading.Thread(target=executor.submit, args=(job,), daemon=True).start()
        giving.wait()
        """
    )
    assert ended == (0, "done\n", "")


# --- the order of exit -------------------------------------------------------


def test_phases(run):
    """Executors drain before what serves them, that before what is closed; in order of giving."""
    ended = run(
        """
        from hindsight_exec import DrainingExecutor
        from hindsight_exec.executor import CLOSE, DRAIN, SERVE, call_at_exit
        class Server(DrainingExecutor):
            exit_phase = SERVE
        def saying(text):
            return lambda: say(text)
        call_at_exit(saying("closed"))
        call_at_exit(saying("closed, too"), CLOSE)
        call_at_exit(saying("served"), SERVE)
        call_at_exit(saying("drained"), phase=DRAIN)
        server = Server(on_closing=saying("server closing"))
        server.submit(int).result()
        worker = DrainingExecutor(on_closing=saying("worker closing"))
        worker.submit(lambda: [server.submit(say, n).result() for n in range(3)])
        """
    )
    order = [
        "worker closing", "0", "1", "2", "drained", "server closing", "served", "closed",
        "closed, too",
    ]  # fmt: skip
    assert (ended.status, ended.err) == (0, "")
    assert [line for line in ended.out.splitlines() if line != "worker closing"] == order[1:]


def test_stdlib_executors_serve_the_drain(run):
    """While jobs drain, the standard library's executors still take and run what they need."""
    ended = run(
        """
        import threading
        from concurrent.futures import ThreadPoolExecutor
        from hindsight_exec import DrainingExecutor
        theirs = ThreadPoolExecutor(1)
        theirs.submit(int).result()
        closing = threading.Event()
        ours = DrainingExecutor(on_closing=closing.set)
        def job():
            closing.wait()
            for n in range(20):
                theirs.submit(say, n).result()
        ours.submit(job)
        """
    )
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.split() == [str(n) for n in range(20)]


@pytest.mark.parametrize("when", ["atexit", "thread"])
def test_imported_late(run, when):
    """Imported when the shutdown has begun: what submit accepts is done, or it refuses."""
    ended = run(
        """
        import atexit, sys, threading
        def late():
            from hindsight_exec import DrainingExecutor
            executor = DrainingExecutor()
            accepted = 0
            for n in range(20):
                try:
                    executor.submit(say, "job")
                except RuntimeError:
                    break
                accepted += 1
            say("accepted", accepted)
        if sys.argv[1] == "atexit":
            import concurrent.futures.thread
            atexit.register(late)
        else:
            import concurrent.futures.thread  # refuses to be imported late itself
            def after_main():
                while not threading._SHUTTING_DOWN:
                    pass
                late()
            threading.Thread(target=after_main).start()
        """,
        when,
    )
    assert (ended.status, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert f"accepted {lines.count('job')}" in lines


# --- Ctrl-C while exit waits ---------------------------------------------------

DRAINING = """
    import signal, sys, threading, time
    from concurrent.futures import ThreadPoolExecutor
    from hindsight_exec import DrainingExecutor
    from hindsight_exec.executor import call_at_exit
    call_at_exit(lambda: say("closed"))
    stop = threading.Event()
    executor = DrainingExecutor(
        thread_name_prefix="stuck",
        drain_timeout=3600,
        on_closing=lambda: say("draining"),
        on_deadline=lambda: say("deadline"),
    )
    executor.submit({job})
    executor.submit(say, "ran")
    if "SIGTERM" in sys.argv:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
"""


@posix
@pytest.mark.parametrize(
    "job", ["stop.wait", "time.sleep, 3600", "lambda: [0 for _ in iter(int, 1)]"]
)
def test_interrupted_drain(start, job):
    """Ctrl-C ends the wait at once: no traceback, one line a reason, the rest still closes."""
    child = start(DRAINING.format(job=job))
    child.wait_for("draining")
    child.send(signal.SIGINT)
    ended = child.end()
    assert (ended.status, ended.out) == (0, "draining\ndeadline\nclosed\n")
    assert "Traceback" not in ended.err
    assert "stuck: interrupted; 2 jobs abandoned\n" in ended.err
    # Ctrl-C may come right after the line, while on_closing has yet to return.
    assert len([line for line in ended.err.splitlines() if "on_closing" not in line]) == 2


@posix
def test_interrupted_twice(start):
    """A second Ctrl-C, while the first is being dealt with, ends that too, without a traceback."""
    child = start(DRAINING.format(job="stop.wait"))
    child.wait_for("draining")
    child.send(signal.SIGINT)
    child.wait_for("deadline")
    child.send(signal.SIGINT)
    ended = child.end()
    assert ended.status in (0, -signal.SIGINT)
    assert "Traceback" not in ended.err


@posix
def test_interrupted_while_the_interrupt_is_logged(run):
    """Parents that forward Ctrl-C send it twice at once: the second skips nothing, either."""
    ended = run(
        """
        import logging, threading
        from concurrent.futures import ThreadPoolExecutor
        from hindsight_exec import DrainingExecutor
        from hindsight_exec.executor import call_at_exit
        class Again(logging.Handler):
            def emit(self, record):
                if "does not wait" in record.getMessage():
                    say("logged")
                    signal.raise_signal(signal.SIGINT)
        logging.getLogger().addHandler(Again())
        theirs = ThreadPoolExecutor(1)
        theirs.submit(int).result()
        call_at_exit(lambda: say("closed"))
        stop = threading.Event()
        def interrupt():
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        executor = DrainingExecutor(drain_timeout=60, on_closing=interrupt, on_deadline=stop.set)
        executor.submit(stop.wait)
        """
    )
    assert ended == (0, "logged\nclosed\n", "")


@posix
def test_terminated_drain(start):
    """A SIGTERM handler that exits ends the wait as Ctrl-C does."""
    child = start(DRAINING.format(job="stop.wait"), "SIGTERM")
    child.wait_for("draining")
    child.send(signal.SIGTERM)
    ended = child.end()
    assert (ended.status, ended.out) == (0, "draining\ndeadline\nclosed\n")
    assert "Traceback" not in ended.err


@posix
def test_signal_handler_that_returns(start):
    """A handler that sets a flag runs during the wait, and the wait goes on."""
    child = start(
        """
        import signal, threading
        from hindsight_exec import DrainingExecutor
        got = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: got.set())
        executor = DrainingExecutor(on_closing=lambda: say("draining"))
        executor.submit(lambda: say("got", got.wait(60)))
        """
    )
    child.wait_for("draining")
    child.send(signal.SIGTERM)
    assert child.end() == (0, "draining\ngot True\n", "")
