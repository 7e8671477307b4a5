"""A forked child starts clean: the parent's jobs stay the parent's, and the child has its own."""

from __future__ import annotations

import os
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

# Warnings about a fork with threads alive are what these programs are about.
PRELUDE = """
import os, sys, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from hindsight_exec import DrainingExecutor, ExecutorClosed
def wait_for(pid):
    _, status = os.waitpid(pid, 0)
    say("child", status)
"""


@pytest.fixture
def run(run):
    return lambda program, *args: run(PRELUDE + textwrap.dedent(program), *args)


def test_child_runs_its_own_jobs(run):
    """What the child submits runs in the child, and is drained when it falls off the end."""
    ended = run(
        """
        executor = DrainingExecutor()
        executor.submit(int).result()
        pid = os.fork()
        who = "in the parent" if pid else "in the child"
        for n in range(3):
            executor.submit(say, who, n)
        if pid:
            wait_for(pid)
        """
    )
    assert (ended.status, ended.err) == (0, "")
    jobs = [f"in the {who} {n}" for who in ("parent", "child") for n in range(3)]
    assert sorted(ended.out.splitlines()) == sorted([*jobs, "child 0"])


def test_child_leaves_the_parents_jobs_alone(run):
    """The child neither runs nor waits for the parent's jobs, queued or running, by any way out."""
    ended = run(
        """
        go = threading.Event()
        executor = DrainingExecutor(thread_name_prefix="writer")
        executor.submit(go.wait)
        for n in range(5):
            executor.submit(say, "job", n, os.getpid())
        for way in ("end", "shutdown", "drain", "submit", "collect"):
            pid = os.fork()
            if not pid:
                say(executor)
                if way == "shutdown":
                    executor.shutdown()
                if way == "drain":
                    assert executor.drain()
                if way == "submit":
                    assert executor.submit(int).result() == 0
                if way == "collect":
                    import gc
                    del executor
                    gc.collect()
                sys.exit()
            wait_for(pid)
        say(executor)
        go.set()
        executor.shutdown()
        """
    )
    assert (ended.status, ended.err) == (0, "")
    lines = ended.out.splitlines()
    clean = "<DrainingExecutor 'writer' 0 pending>"
    assert lines[:10] == [clean, "child 0"] * 5
    assert lines[10] == "<DrainingExecutor 'writer' 6 pending>"
    assert [line.split()[:2] for line in lines[11:]] == [["job", str(n)] for n in range(5)]
    assert len({line.split()[2] for line in lines[11:]}) == 1


def test_child_closes_its_own(run):
    """shutdown in the child closes nothing in the parent; what the parent closed stays closed."""
    ended = run(
        """
        executor, closed = DrainingExecutor(), DrainingExecutor()
        executor.submit(int).result()
        closed.shutdown()
        pid = os.fork()
        if not pid:
            executor.shutdown()
            try:
                closed.submit(int)
            except ExecutorClosed:
                sys.exit(0)
            sys.exit(1)
        wait_for(pid)
        executor.submit(say, "open")
        """
    )
    assert ended == (0, "child 0\nopen\n", "")


def test_callbacks_of_the_parent(run):
    """Exit callbacks are forgotten in the child, which may give its own."""
    ended = run(
        """
        from hindsight_exec.executor import call_at_exit
        call_at_exit(lambda: say("parent's"))
        pid = os.fork()
        if pid:
            wait_for(pid)
        else:
            call_at_exit(lambda: say("child's"))
        """
    )
    assert ended == (0, "child's\nchild 0\nparent's\n", "")


@pytest.mark.slow
def test_fork_while_others_submit(run):
    """A child works whatever lock another thread held at the moment of the fork."""
    ended = run(
        """
        executor = DrainingExecutor(2)
        stop = threading.Event()
        def busy():
            while not stop.is_set():
                executor.submit(int)
                executor.pending
                executor.drain(0)
        threads = [threading.Thread(target=busy) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(40):
            pid = os.fork()
            if not pid:
                ok = executor.submit(int).result(30) == 0 and executor.drain(30)
                os._exit(0 if ok else 1)
            assert os.waitpid(pid, 0)[1] == 0
        stop.set()
        for thread in threads:
            thread.join()
        """
    )
    assert ended == (0, "", "")


@pytest.mark.parametrize("way", ["returns", "raises", "_exit"])
def test_fork_in_a_job(run, way):
    """A job may fork: the child goes on with the job alone, and can submit jobs of its own."""
    ended = run(
        """
        executor = DrainingExecutor()
        def job():
            pid = os.fork()
            if pid:
                return pid
            executor.submit(say, "in the child").result(30)
            executor.shutdown()
            if sys.argv[1] == "_exit":
                os._exit(0)
            if sys.argv[1] == "raises":
                raise LookupError("in the child")
        future = executor.submit(job)
        for n in range(3):
            executor.submit(say, "queued", n)
        wait_for(future.result())
        executor.shutdown()
        """,
        way,
    )
    assert ended.status == 0
    assert sorted(ended.out.splitlines()) == [
        "child 0",
        "in the child",
        "queued 0",
        "queued 1",
        "queued 2",
    ]


def test_fork_in_an_initializer(run):
    """The jobs that wait for a worker are the parent's, also if its initializer forks."""
    ended = run(
        """
        submitted = threading.Event()
        def initialize():
            submitted.wait()
            if child := os.fork():
                wait_for(child)
        executor = DrainingExecutor(initializer=initialize)
        parent = os.getpid()
        future = executor.submit(lambda: say("in the parent", os.getpid() == parent))
        submitted.set()
        future.result()
        """
    )
    assert ended == (0, "child 0\nin the parent True\n", "")


def test_grandchild(run):
    """A child of a child starts clean, too."""
    ended = run(
        """
        executor = DrainingExecutor()
        executor.submit(say, "parent")
        executor.drain()
        pid = os.fork()
        if not pid:
            executor.submit(say, "child")
            executor.drain()
            pid = os.fork()
            if not pid:
                executor.submit(say, "grandchild")
                sys.exit(0)
        wait_for(pid)
        """
    )
    assert ended == (0, "parent\nchild\ngrandchild\nchild 0\nchild 0\n", "")


@pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 3), reason="starts no thread once exit has begun"
)
def test_fork_while_exit_drains(run):
    """A child that is forked by a job while exit drains runs its own jobs all the same."""
    ended = run(
        """
        closing = threading.Event()
        executor = DrainingExecutor(on_closing=closing.set)
        def job():
            closing.wait()
            pid = os.fork()
            if pid:
                return wait_for(pid)
            own = DrainingExecutor()
            own.submit(say, "its own").result(30)
            own.shutdown()
            os._exit(0)
        executor.submit(job)
        """
    )
    assert ended == (0, "its own\nchild 0\n", "")


WITH_PROCESSES = """
import multiprocessing, os, sys, warnings
from hindsight_exec import DrainingExecutor

executor = DrainingExecutor()

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def target():
    own = DrainingExecutor(2)
    for n in range(20):
        executor.submit(say, "handed down", n)
        own.submit(say, "own", n)

def main(method):
    warnings.simplefilter("ignore", DeprecationWarning)
    executor.submit(say, "parent")
    executor.drain()
    process = multiprocessing.get_context(method).Process(target=target)
    process.start()
    process.join()
    say("status", process.exitcode)
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(start, tmp_path, method):
    """A multiprocessing child drains what it was given, whichever way it is started."""
    (tmp_path / "with_processes.py").write_text(WITH_PROCESSES)
    program = "import sys, with_processes; with_processes.main(sys.argv[1])"
    ended = start(program, method, PYTHONPATH=str(tmp_path)).end()
    lines = ended.out.splitlines()
    jobs = [f"{whose} {n}" for whose in ("handed down", "own") for n in range(20)]
    assert (ended.status, ended.err) == (0, "")
    assert [line for line in lines if line.startswith("handed")] == jobs[:20]
    assert sorted(lines) == sorted([*jobs, "parent", "status 0"])


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces of Linux")
def test_child_with_the_number_of_its_parent(run):
    """In a namespace of its own a child of process 1 is process 1: the number does not tell."""
    ended = run(
        """
        import ctypes
        NEW_NAMESPACE = 0x20000000
        unshare = ctypes.CDLL(None).unshare
        executor = DrainingExecutor()
        def child(do):
            pid = os.fork()
            if not pid:
                do()
                sys.stdout.flush()
                os._exit(0)
            wait_for(pid)
        def first():
            executor.submit(say, "first", os.getpid()).result()
            executor.submit(fork_apart).result()
        def fork_apart():
            assert not unshare(NEW_NAMESPACE)  # for the children of this thread
            child(second)
        def second():
            executor.submit(say, "second", os.getpid()).result(30)
        if unshare(NEW_NAMESPACE):
            say("not permitted")
        else:
            child(first)
        """
    )
    if ended.out == "not permitted\n":
        pytest.skip("cannot make a namespace of processes")
    assert ended == (0, "first 1\nsecond 1\nchild 0\nchild 0\n", "")
