"""drain_on_signal: hosts that a signal ends drain first, and end as they would without it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import textwrap
import time
from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

PRELUDE = """
import os, signal, sys, threading, time
from hindsight_exec import DrainingExecutor, ExecutorClosed, drain_on_signal
from hindsight_exec.executor import call_at_exit
executor = DrainingExecutor()
def give():
    executor.submit(time.sleep, 0.6)
    for n in range(20):
        executor.submit(say, n)
    say("given")
"""
JOBS = [str(n) for n in range(20)]


@pytest.fixture
def start(start):
    return lambda program, *args: start(PRELUDE + textwrap.dedent(program), *args)


def send(child, number: signal.Signals) -> None:
    """Send a signal when main is in its wait: one just before that is seen after it (3.13)."""
    time.sleep(0.2)
    child.send(number)


@pytest.mark.parametrize(
    "main", ["signal.pause()", "time.sleep(60)", "while True: pass", "threading.Event().wait()"]
)
def test_default_action(start, main):
    """All jobs are done, everything is closed, and the process ends by the signal."""
    child = start(
        f"""
        call_at_exit(lambda: say("closed"))
        drain_on_signal()
        give()
        {main}
        """
    )
    child.wait_for("given")
    send(child, signal.SIGTERM)
    ended = child.end()
    assert ended.status == -signal.SIGTERM
    assert ended.out.splitlines() == ["given", *JOBS, "closed"]
    assert ended.err == ""


def test_without_it(start):
    """Without it the jobs are lost: this is what it is for."""
    child = start("give(); signal.pause()")
    child.wait_for("given")
    send(child, signal.SIGTERM)
    ended = child.end()
    assert ended.status == -signal.SIGTERM
    assert ended.out.splitlines() != ["given", *JOBS]


def test_bound(start):
    """A job that hangs is left at its bound, as at exit."""
    child = start(
        """
        drain_on_signal(signal.SIGTERM, signal.SIGHUP)
        stuck = DrainingExecutor(drain_timeout=0.2, thread_name_prefix="stuck")
        stuck.submit(threading.Event().wait)
        give()
        signal.pause()
        """
    )
    child.wait_for("given")
    send(child, signal.SIGHUP)
    ended = child.end()
    assert ended.status == -signal.SIGHUP
    assert ended.out.splitlines() == ["given", *JOBS]
    assert ended.err == "stuck: drain_timeout (0.2 s) expired; 1 job abandoned\n"


def test_handler_that_was_there(start):
    """A handler that was there is called after the drain, and everything stays open for it."""
    child = start(
        """
        def graceful(number, frame):
            say("handler", number == signal.SIGTERM, executor.pending, executor.closing)
            executor.submit(say, "still open")
            sys.exit(7)
        signal.signal(signal.SIGTERM, graceful)
        drain_on_signal()
        drain_on_signal()  # once is enough
        give()
        signal.pause()
        signal.pause()
        """
    )
    child.wait_for("given")
    send(child, signal.SIGTERM)
    ended = child.end()
    assert (ended.status, ended.err) == (7, "")
    assert ended.out.splitlines() == ["given", *JOBS, "handler True 0 False", "still open"]


@pytest.mark.slow
def test_handler_that_lets_the_process_live(start):
    """The next signal drains again."""
    child = start(
        """
        handled = threading.Event()
        signal.signal(signal.SIGUSR1, lambda *_: (say("handler"), handled.set()))
        drain_on_signal(signal.SIGUSR1)
        while True:
            give()
            handled.wait()
            handled.clear()
        """
    )
    for _ in range(3):
        child.wait_for("given")
        send(child, signal.SIGUSR1)
        child.wait_for("handler")
    send(child, signal.SIGTERM)
    ended = child.end()
    assert [line for line in ended.out.splitlines() if line in JOBS][:60] == JOBS * 3


def test_ctrl_c(start):
    """SIGINT is a KeyboardInterrupt after the drain."""
    child = start(
        """
        drain_on_signal(signal.SIGINT)
        give()
        try:
            signal.pause(); signal.pause()
        except KeyboardInterrupt:
            say("interrupted")
        """
    )
    child.wait_for("given")
    send(child, signal.SIGINT)
    assert child.end() == (0, "\n".join(["given", *JOBS, "interrupted", ""]), "")


def test_signals_meanwhile(start):
    """While it drains, the same signal changes nothing: some supervisors send it twice."""
    child = start(
        """
        drain_on_signal()
        executor.submit(lambda: (say("begun"), time.sleep(0.3)))
        give()
        while True: signal.pause()
        """
    )
    child.wait_for("given")
    send(child, signal.SIGTERM)
    send(child, signal.SIGTERM)
    ended = child.end()
    assert ended.status == -signal.SIGTERM
    assert [line for line in ended.out.splitlines() if line in JOBS] == JOBS


def test_ignored_signals(start):
    """A signal that is ignored (nohup) stays so."""
    ended = start(
        """
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        drain_on_signal(signal.SIGHUP)
        give()
        os.kill(os.getpid(), signal.SIGHUP)
        say(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)
        """
    ).end()
    assert (ended.status, ended.err) == (0, "")
    assert "True" in ended.out.splitlines()


def test_main_that_ends_first(start):
    """If main comes to its end while it drains, the status is the signal's all the same."""
    child = start(
        """
        drain_on_signal()
        give()
        waiting = True
        signal.raise_signal(signal.SIGTERM)
        """
    )
    ended = child.end()
    assert (ended.status, ended.err) == (-signal.SIGTERM, "")
    assert ended.out.splitlines() == ["given", *JOBS]


def test_forked_child(start):
    """A forked child that inherits the handler drains its own jobs."""
    ended = start(
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        drain_on_signal()
        executor.submit(int).result()
        given, give_now = os.pipe()
        pid = os.fork()
        if not pid:
            give()
            os.write(give_now, b".")
            while True: signal.pause()
        os.read(given, 1)
        time.sleep(0.1)  # until it is in its pause
        os.kill(pid, signal.SIGTERM)
        say("child", os.waitpid(pid, 0)[1])
        """
    ).end()
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.splitlines() == ["given", *JOBS, f"child {int(signal.SIGTERM)}"]


def test_not_in_the_main_thread(start):
    """Another thread gets the standard library's ValueError."""
    ended = start(
        """
        def attempt():
            try:
                drain_on_signal()
            except ValueError as error:
                say(error)
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
        """
    ).end()
    assert ended.out.startswith("signal only works in main thread")
    assert (ended.status, ended.err) == (0, "")


@pytest.mark.skipif(find_spec("uvicorn") is None, reason="needs uvicorn")
@pytest.mark.parametrize("helped", [True, False])
def test_uvicorn(start, helped):
    """uvicorn raises the signal again when it has shut down; then the jobs of its app are done."""
    child = start(
        f"""
        import uvicorn
        async def app(scope, receive, send):
            if scope["type"] == "lifespan":
                await receive()
                await send({{"type": "lifespan.startup.complete"}})
                give()
                await receive()
                executor.submit(say, "of the shutdown")
                await send({{"type": "lifespan.shutdown.complete"}})
        {"drain_on_signal()" if helped else ""}
        uvicorn.run(app, port=0, log_level="critical")
        """
    )
    child.wait_for("given")
    send(child, signal.SIGTERM)
    ended = child.end()
    assert ended.status == -signal.SIGTERM
    done = ["given", *JOBS, "of the shutdown"]
    assert (ended.out.splitlines() == done) == helped


@pytest.mark.skipif(find_spec("flask") is None, reason="needs flask")
def test_flask(start):
    """Flask's development server dies at SIGTERM; with the helper, after the drain."""
    child = start(
        """
        import flask
        app = flask.Flask("app")
        drain_on_signal()
        threading.Timer(0.5, give).start()
        app.run(port=0)
        """
    )
    child.wait_for("given")
    send(child, signal.SIGTERM)
    ended = child.end()
    assert ended.status == -signal.SIGTERM
    assert [line for line in ended.out.splitlines() if line in JOBS] == JOBS


def test_exec(start):
    """Before the process becomes another program, shutdown() finishes what was accepted."""
    ended = start(
        """
        executor.submit(time.sleep, 0.1)
        for n in range(20):
            executor.submit(say, n)
        executor.shutdown(timeout=30)
        os.execv(sys.executable, [sys.executable, "-c", "print('another program')"])
        """
    ).end()
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.splitlines() == [*JOBS, "another program"]


@pytest.mark.skipif(
    sys.implementation.name == "pypy", reason="calls no handler while another one runs"
)
def test_a_drain_that_is_over_at_once(start):
    """The signal that follows a drain may arrive before the handler that began it has returned."""
    ended = start(
        """
        from hindsight_exec.executor import signals
        calls = []
        signal.signal(signal.SIGTERM, lambda *_: calls.append(1))
        drain_on_signal()
        class Fast(signals.Background):
            def __init__(self, *options):
                count = len(calls)
                super().__init__(*options)
                while len(calls) == count:
                    pass
        signals.Background = Fast
        for number in range(1, 4):
            os.kill(os.getpid(), signal.SIGTERM)
            while len(calls) < number:
                time.sleep(0.01)
        say(len(calls))
        """
    ).end()
    assert ended == (0, "3\n", "")


def test_each_drain_sends_for_itself(start):
    """A thread that goes to sleep after it has sent does not send for the drain after that."""
    ended = start(
        """
        from hindsight_exec.executor.signals import _Handler
        calls, called, senders, really = [], threading.Event(), [], _Handler._send
        def send(number):
            senders.append(threading.get_ident())
            if senders[-1] == senders[0]:
                really(number)
        _Handler._send = staticmethod(send)
        signal.signal(signal.SIGTERM, lambda *_: (calls.append(1), called.set()))
        drain_on_signal()
        os.kill(os.getpid(), signal.SIGTERM)
        called.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        while len(senders) < 5:
            time.sleep(0.01)
        say(senders.count(senders[0]), len(calls))
        """
    ).end()
    assert ended == (0, "1 1\n", "")


@pytest.mark.parametrize("end", ["", "signal.pause()"])
def test_the_first_process_of_a_container(tmp_path, end):
    """The kernel spares it; its status tells of the signal, whether main waits or has ended."""
    unshare = ["unshare", "--pid", "--fork"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], check=False).returncode:
        pytest.skip("cannot make a namespace of processes")
    program = tmp_path / "program.py"
    program.write_text(
        "def say(*words): print(*words, flush=True)\n"
        f"{PRELUDE}\n"
        "assert os.getpid() == 1\n"
        "drain_on_signal()\n"
        "give()\n"
        "os.kill(1, signal.SIGTERM)\n"
        f"{end}\n"
    )
    command = [*unshare, sys.executable, str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "")
    assert done.stdout.splitlines() == ["given", *JOBS]
