"""Borrowed worlds: gevent, frozen clocks, process pools, lazy imports, forks in C, subinterpreters."""

from __future__ import annotations

import os
import sys
import textwrap
from importlib.util import find_spec

import pytest


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"needs {package}")


GREEN = {
    "before the import": "{patch}\nfrom hindsight_exec import DrainingExecutor",
    "after the import": "from hindsight_exec import DrainingExecutor\n{patch}",
    "after an executor was made": """
from hindsight_exec import DrainingExecutor
early = DrainingExecutor()
early.submit(int).result()
early.shutdown()
{patch}""",
}


@needs("gevent")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("when", GREEN)
@pytest.mark.parametrize("ending", ["pass", "executor.shutdown()", "executor.drain()"])
def test_gevent(run, when, ending):
    """Under gevent's patch_all, before or after our import, jobs run and exit drains them."""
    patch = "import gevent.monkey; gevent.monkey.patch_all()"
    program = GREEN[when].format(patch=patch) + textwrap.dedent(
        f"""
        import time
        executor = DrainingExecutor(2)
        def job(n):
            time.sleep(0.001)
            say(n)
        for n in range(20):
            executor.submit(job, n)
        assert executor.submit(pow, 2, 3).result(30) == 8
        {ending}
        say("end")
        """
    )
    ended = run(program)
    assert ended.status == 0, ended.err
    assert sorted(ended.out.split()) == sorted([*map(str, range(20)), "end"])


FROZEN = """
from hindsight_exec import DrainingExecutor
import datetime, threading
{freeze}
never = threading.Event()
executor = DrainingExecutor(drain_timeout=0.2, thread_name_prefix="stuck")
executor.submit(never.wait)
with frozen:
    say(executor.drain(0.1))
    other = DrainingExecutor(thread_name_prefix="other")
    other.submit(never.wait)
    other.shutdown(timeout=0.1)
frozen.start()
"""


@needs("freezegun")
def test_freezegun(run):
    """drain(), shutdown() and exit keep their bounds while freezegun holds the clock."""
    ended = run(
        FROZEN.format(freeze="import freezegun; frozen = freezegun.freeze_time('2020-01-01')")
    )
    assert (ended.status, ended.out) == (0, "False\n")
    assert ended.err.splitlines() == [
        "other: shutdown(timeout=0.1) expired; 1 job abandoned",
        "stuck: drain_timeout (0.2 s) expired; 1 job abandoned",
    ]


@needs("time_machine")
def test_time_machine(run):
    """So they do while time-machine holds it."""
    freeze = "import time_machine; frozen = time_machine.travel('2020-01-01', tick=False)"
    ended = run(FROZEN.format(freeze=freeze))
    assert (ended.status, ended.out) == (0, "False\n")
    assert ended.err.count("expired; 1 job abandoned\n") == 2


@pytest.mark.parametrize("first", ["ours", "theirs", "theirs, after a job"])
def test_process_pools(start, tmp_path, first):
    """Jobs may use a process pool at exit, if its module was imported before the worker's start."""
    imports = {
        "theirs": "import concurrent.futures.process, hindsight_exec",
        "ours": "import hindsight_exec.executor, concurrent.futures.process",
        "theirs, after a job": "import hindsight_exec.executor, concurrent.futures.process",
    }
    (tmp_path / "with_pool.py").write_text(
        textwrap.dedent(
            f"""
            import threading
            {imports[first]}
            from concurrent.futures import ProcessPoolExecutor
            from hindsight_exec import DrainingExecutor

            def main():
                pool = ProcessPoolExecutor(1)
                assert pool.submit(pow, 2, 2).result() == 4
                closing = threading.Event()
                executor = DrainingExecutor(on_closing=closing.set)
                def job():
                    closing.wait()
                    print(pool.submit(pow, 2, 3).result(), flush=True)
                executor.submit(job)

            if __name__ == "__main__":
                main()
            """
        )
    )
    ended = start("import with_pool; with_pool.main()", PYTHONPATH=str(tmp_path)).end()
    assert ended.out == "8\n", ended.err
    assert ended.status == 0


@pytest.mark.skipif(sys.version_info < (3, 15), reason="since CPython 3.15")
def test_lazy_imports(run):
    """With all imports lazy, ours is still called before the standard library's pools close."""
    ended = run(
        """
        import subprocess, sys
        program = '''
        import os, threading
        from hindsight_exec.executor import DrainingExecutor, call_at_exit
        from concurrent.futures import ThreadPoolExecutor
        def say(*words):
            os.write(1, (" ".join(map(str, words)) + "\\\\n").encode())
        closing = threading.Event()
        theirs = ThreadPoolExecutor(1)
        executor = DrainingExecutor(on_closing=closing.set)
        call_at_exit(lambda: say("closed"))
        def job():
            closing.wait()
            theirs.submit(say, "theirs").result()
        executor.submit(job)
        '''
        import textwrap
        sys.exit(subprocess.run(
            [sys.executable, "-X", "lazy_imports=all", "-c", textwrap.dedent(program)]
        ).returncode)
        """
    )
    assert ended == (0, "theirs\nclosed\n", "")


# --- a process that was forked without at-fork hooks ------------------------------

FORKED_IN_C = """
import ctypes, os, sys, threading, time
from hindsight_exec import DrainingExecutor, ExecutorClosed
from hindsight_exec.executor import call_at_exit
fork = ctypes.PyDLL(None).fork  # no at-fork hooks; the caller keeps the GIL

def in_child(function):
    # Without hooks a child inherits the state of the GIL, and hangs if another
    # thread was about to take it: let them come to rest.
    time.sleep(0.3)
    pid = fork()
    if not pid:
        try:
            function()
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    say("child", os.waitpid(pid, 0)[1])
"""


@pytest.mark.skipif(
    not hasattr(os, "fork") or sys.implementation.name != "cpython" or sys.platform == "darwin",
    reason="forks as uWSGI does",
)
@pytest.mark.parametrize("told_by", ["a page", "the pid"])
@pytest.mark.parametrize("state", ["idle", "busy", "closed"])
def test_forked_without_hooks(run, state, told_by):
    """Whoever finds itself in another process starts afresh: the parent's jobs stay the parent's."""
    prepare = {
        "idle": "executor.submit(int).result()",
        "busy": "executor.submit(go.wait); executor.submit(say, 'of the parent')",
        "closed": "executor.submit(int).result(); executor.shutdown()",
    }
    ended = run(
        ("import sys; sys.modules['mmap'] = None\n" if told_by == "the pid" else "")
        + FORKED_IN_C
        + textwrap.dedent(
            f"""
            executor = DrainingExecutor(thread_name_prefix="writer")
            go = threading.Event()
            call_at_exit(lambda: say("closed in", os.getpid() == parent))
            parent = os.getpid()
            {prepare[state]}

            def child():
                say(executor, executor.pending, executor.drain(5))
                from hindsight_exec.executor.exit_hook import close_all
                try:
                    assert executor.submit(pow, 2, 3).result(30) == 8
                    say(executor._work.workers[0].name)
                except ExecutorClosed:
                    say("refused")
                fresh = DrainingExecutor()
                assert fresh.submit(pow, 2, 3).result(30) == 8
                fresh.submit(say, "of the child")
                close_all()
            in_child(child)
            go.set()
            """
        )
    )
    assert (ended.status, ended.err) == (0, "")
    lines = ended.out.splitlines()
    if state == "closed":
        assert lines[:2] == ["<DrainingExecutor 'writer' 0 pending, closing> 0 True", "refused"]
    else:
        assert lines[:2] == ["<DrainingExecutor 'writer' 0 pending> 0 True", "writer_0"]
    assert lines[2:4] == ["of the child", "child 0"]
    assert lines[4:] == ["of the parent"] * (state == "busy") + ["closed in True"]


# --- subinterpreters ---------------------------------------------------------------


@pytest.mark.skipif(
    sys.implementation.name != "cpython" or sys.version_info < (3, 12, 3),
    reason="legacy subinterpreters that can be destroyed with threads",
)
@pytest.mark.parametrize("state", ["drained", "queued"])
def test_legacy_subinterpreter(run, state):
    """A legacy subinterpreter can be destroyed: the workers have ended with the drain."""
    ended = run(
        f"""
        try:
            import _interpreters as interpreters
            legacy = interpreters.create("legacy")
            execute = interpreters.exec
        except ImportError:
            import _xxsubinterpreters as interpreters
            legacy = interpreters.create(isolated=False)
            execute = interpreters.run_string
        for _ in range(5):
            execute(legacy, "from hindsight_exec import DrainingExecutor")
            execute(legacy, "executors = [DrainingExecutor(2) for _ in range(3)]")
            execute(legacy, "for one in executors: one.submit(int)")
            if {state == "drained"}:
                execute(legacy, "for one in executors: one.drain()")
        interpreters.destroy(legacy)
        say("destroyed")
        """
    )
    assert ended == (0, "destroyed\n", "")
