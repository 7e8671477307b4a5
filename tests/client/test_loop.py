"""The background loop: any thread gives it coroutines, and it ends without a sound."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import os
import socket
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress

import pytest
from scripted_server import CERTIFICATE, ScriptedServer, answering
from striking import Strike
from waiting import eventually

from hindsight_exec.client import loop as loop_module
from hindsight_exec.client.api import HindsightClient
from hindsight_exec.client.loop import BackgroundLoop, background_loop

TIMEOUT = 60

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

RETAINED = (200, {"success": True, "operation_id": "op", "api_version": "1"})

# What the programs below begin with.
PRELUDE = """
import asyncio, atexit, logging, os, sys, threading, time
from hindsight_exec.client.api import HindsightClient
from hindsight_exec.errors import ExecutorClosed
from hindsight_exec.executor import DrainingExecutor
from hindsight_exec.client.loop import background_loop
import hindsight_exec.client.session
hindsight_exec.client.session._KEEP_ALIVE = 300  # on a slow machine too

url = sys.argv[1]
loop = background_loop()
client = HindsightClient(url, api_key="key")
loop.add_closer(client.close)

def retain(text):
    return loop.run(client.retain("b", [{"content": str(text)}])).result(60)

"""


def program(code, url="http://127.0.0.1:1", resource_warnings=True, **environ):
    """Run a program; return what it printed. It must end well, with nothing on stderr."""
    # 3.12 and later warn of a fork beside threads, which is what is tested here.
    warnings = ["-W", "default"] if resource_warnings else []
    done = subprocess.run(
        [
            *(sys.executable, *warnings, "-W", "ignore::DeprecationWarning"),
            *("-c", PRELUDE + textwrap.dedent(code), url),
        ],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.split()


@pytest.fixture
def certificate(tmp_path):
    file = tmp_path / "ca.pem"
    file.write_text(CERTIFICATE)
    return str(file)


@pytest.fixture
def loop():
    """Give a loop of the test's own, closed as exit would do it."""
    loop = BackgroundLoop()
    yield loop
    loop._close_at_exit()


# --- in a running program ----------------------------------------------------


def test_there_is_one_loop_for_the_process():
    """Whoever asks gets the same object."""
    assert background_loop() is background_loop()


def test_any_thread_gives_coroutines(loop):
    """Coroutines of many threads run on one loop, each in its caller's context."""
    name = contextvars.ContextVar("name")
    results = []

    async def where():
        return name.get(), asyncio.get_running_loop()

    def ask(number):
        name.set(number)
        results.append(loop.run(where()).result(TIMEOUT))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for number, _ in results) == list(range(20))
    assert len({id(found) for _, found in results}) == 1


def test_exceptions_and_cancellation_reach_both_sides(loop):
    """A future carries its coroutine's exception, and cancelling it cancels the coroutine."""
    cancelled = threading.Event()
    running = threading.Event()

    async def fail():
        raise LookupError("no")

    async def wait():
        running.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(LookupError, match="no"):
        loop.run(fail()).result(TIMEOUT)
    future = loop.run(wait())
    assert running.wait(TIMEOUT)
    assert future.cancel()
    assert cancelled.wait(TIMEOUT)


def test_start_starts_all_threads_at_once(loop):
    """The loop and its resolvers are daemon threads that start() leaves running."""
    before = set(threading.enumerate())
    loop.start()
    loop.start()
    started = [thread for thread in threading.enumerate() if thread not in before]
    assert sorted(thread.name for thread in started) == [
        "hindsight-loop",
        *(f"hindsight-resolver_{number}" for number in range(2)),
    ]
    assert all(thread.daemon for thread in started)
    assert repr(loop) == "<BackgroundLoop running>"


def test_hanging_lookups_delay_no_other(loop):
    """A name that does not resolve leaves a thread for one that does."""
    gate = threading.Event()

    async def lookup():
        running = asyncio.get_running_loop()
        hanging = running.run_in_executor(None, gate.wait)
        found = await running.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)
        gate.set()
        await hanging
        return found

    assert loop.run(lookup()).result(TIMEOUT)


async def stop():
    asyncio.get_running_loop().stop()


async def leave():
    raise SystemExit(3)


@pytest.mark.parametrize("end", [stop, leave])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_loop_that_ended_is_replaced(loop, end):
    """When the loop's thread has ended, its clients are closed and the next use goes on."""
    closed = threading.Event()

    async def hang():
        await asyncio.Event().wait()

    with ScriptedServer(answering(RETAINED)) as server:
        client = HindsightClient(server.url)

        async def close():
            await client.close()
            closed.set()

        loop.add_closer(close)
        assert loop.run(client.version()).result(TIMEOUT) == "1"
        left = loop.run(hang())
        first = loop._run
        loop.run(end())
        assert first.ended.wait(TIMEOUT)
        assert closed.is_set()
        with pytest.raises(CancelledError):
            left.result(TIMEOUT)
        assert loop.run(client.version()).result(TIMEOUT) == "1"
        assert loop._run is not first
        assert server.connections == 2


def test_a_lookup_that_nobody_waits_for_fails_in_silence(loop, own_log):
    """A name that turns out not to exist after its request was given up is not logged."""
    began, gate = threading.Event(), threading.Event()

    def lookup():
        began.set()
        gate.wait()
        raise socket.gaierror(socket.EAI_NONAME, "no such host")

    async def give_up():
        waiting = asyncio.get_running_loop().run_in_executor(None, lookup)
        await asyncio.get_running_loop().run_in_executor(None, began.wait)
        waiting.cancel()

    loop.run(give_up()).result(TIMEOUT)
    gate.set()
    assert loop._run.resolvers.drain(TIMEOUT)
    assert own_log.records == []


def test_closers_can_be_taken_back(loop):
    """A removed closer is not awaited, and removing it twice is no error."""
    called = []

    async def one():
        called.append(1)

    async def two():
        called.append(2)

    loop.add_closer(one)
    loop.add_closer(two)
    loop.remove_closer(one)
    loop.remove_closer(one)
    loop.start()
    loop._close_at_exit()
    assert called == [2]


def test_a_closed_loop_refuses(loop):
    """After exit has closed it, the loop takes no coroutine and leaves none unawaited."""
    loop.start()
    loop._close_at_exit()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after interpreter"):
        loop.run(stop())
    assert repr(loop) == "<BackgroundLoop closed>"


@contextmanager
def told(what):
    """Say what there was when the block failed."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(repr(what())) from error


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")  # nor taken
@pytest.mark.parametrize("use", ["start", "run"])
def test_ctrl_c_anywhere_in_a_start_leaks_nothing(use):
    """Wherever Ctrl-C strikes, the next use has one loop with its resolvers, and exit closes it."""

    async def where():
        return asyncio.get_running_loop()

    def ours():
        """The threads that run; an interrupted start may leave one that never does."""
        threads = [one for one in threading.enumerate() if one.name.startswith("hindsight-")]
        return {one for one in threads if one.ident is not None} - before

    def interrupt():
        raise KeyboardInterrupt

    def begin(loop):
        if use == "start":
            loop.start()
        else:
            loop.run(where()).result(TIMEOUT)

    before = set(threading.enumerate())
    for number in itertools.count(1):
        loop = BackgroundLoop()
        strike = Strike(number, interrupt, loop_module.__file__, threading.__file__)
        sys.settrace(strike.trace)
        # The standard library may make another error of it, "release unlocked lock".
        with suppress(KeyboardInterrupt, RuntimeError):
            begin(loop)
        sys.settrace(None)
        assert loop.run(where()).result(TIMEOUT)
        first = loop._run
        assert loop.run(where()).result(TIMEOUT) is first.loop
        with told(ours):
            eventually(lambda: len(ours()) == 3)  # a loop and its two resolvers
        loop._close_at_exit()
        eventually(lambda: not ours())
        if not strike.struck:
            break
        del loop, first, strike
    gc.collect()  # a loop or socket that was not closed is a ResourceWarning, thus an error
    assert number > 10


# --- exits -------------------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_the_first_job_in_the_last_line_of_main(host, tls, certificate):
    """A job given as main ends imports aiohttp, connects by name, sends, and closes in silence."""
    with ScriptedServer(answering(RETAINED), tls=tls) as server:
        program(
            "loop.start(); DrainingExecutor().submit(retain, 1)",
            server.url.replace("127.0.0.1", host),
            # Old versions of aiohttp leave TLS transports half closed.
            resource_warnings=not tls,
            SSL_CERT_FILE=certificate,
        )
        assert len(server.requests) == 1


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_jobs_left_at_the_end_of_main_are_done(host):
    """Jobs that wait when main ends, one after the other or many at once, all arrive."""
    with ScriptedServer(answering(RETAINED)) as server:
        program(
            """
            retain("first")
            one, many = DrainingExecutor(), DrainingExecutor(8)
            for number in range(30):
                one.submit(retain, number)
                many.submit(retain, number)
            """,
            server.url.replace("127.0.0.1", host),
        )
        assert len(server.requests) == 61


@pytest.mark.parametrize(
    "end", ["sys.exit(0)", "raise KeyboardInterrupt", "os.kill(os.getpid(), signal.SIGINT)"]
)
def test_other_ends_of_main(end):
    """sys.exit and Ctrl-C end as quietly, jobs done, as falling off the end."""
    with ScriptedServer(answering(RETAINED)) as server:
        program(
            f"""
            import signal
            signal.signal(signal.SIGINT, signal.default_int_handler)
            executor = DrainingExecutor()
            loop.start()
            executor.submit(retain, 1)
            executor.submit(retain, 2)
            try:
                {end}
                time.sleep(60)
            except KeyboardInterrupt:
                sys.exit()
            """,
            server.url,
        )
        assert len(server.requests) == 2


def test_a_hundred_lookups_at_exit():
    """Name lookups work until the last job is done."""
    assert program(
        """
        done = []
        async def lookup():
            await asyncio.get_running_loop().getaddrinfo("localhost", 80)
            done.append(1)
        executor = DrainingExecutor()
        atexit.register(lambda: print(len(done)))
        loop.start()
        for _ in range(100):
            executor.submit(lambda: loop.run(lookup()).result(60))
        """
    ) == ["100"]


def test_what_still_runs_at_exit_is_cancelled():
    """Coroutines without end, and a request without an answer, neither hold exit nor complain."""
    with ScriptedServer(lambda c: (c.request(), c.request())) as server:
        assert program(
            """
            async def endless():
                while True:
                    await asyncio.sleep(3600)
            futures = [loop.run(endless()), loop.run(client.version()), loop.run(client.health())]
            async def tasks():
                for _ in range(10):
                    asyncio.ensure_future(asyncio.sleep(3600))
            loop.run(tasks()).result(60)
            atexit.register(lambda: print([future.cancelled() for future in futures]))
            """,
            server.url,
        ) == ["[True,", "True,", "True]"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "job",
    [
        "time.sleep(3600)",
        "await stubborn()",
        "loop.add_closer(lambda: asyncio.sleep(3600))",
        "loop.add_closer(lambda: 1 / 0)",
        "asyncio.ensure_future(lookups())",
        "asyncio.get_running_loop().run_in_executor(None, time.sleep, 3600)",
    ],
)
def test_nothing_holds_the_loop_open(job):
    """A blocked loop, a stubborn task, lookups that hang or never end: exit is quiet."""
    program(
        f"""
        started = threading.Event()
        async def lookups():
            while True:
                await asyncio.get_running_loop().getaddrinfo("localhost", 80)
        async def stubborn():
            while True:
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    pass
        async def job():
            started.set()
            {job}
        future = loop.run(job())
        started.wait(60)
        """
    )


def test_a_client_that_nobody_closes_is_quiet():
    """Connections without a closer end with the process, in silence."""
    with ScriptedServer(answering(RETAINED)) as server:
        program("loop.remove_closer(client.close); retain(1)", server.url, resource_warnings=False)


def test_use_after_exit_is_refused():
    """In atexit the loop refuses with the standard library's error."""
    assert program(
        """
        async def late(): pass
        def use():
            try:
                loop.run(late())
            except ExecutorClosed:
                print("refused")
        atexit.register(use)
        loop.start()
        """
    ) == ["refused"]


# --- forks -------------------------------------------------------------------


@needs_fork
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("end", ["pass", "sys.exit(0)", "os._exit(0)"])
@pytest.mark.parametrize("child", ["import gc; gc.collect()", "retain('child')"])
def test_a_fork_leaves_the_parents_connections_alone(child, end, tls, certificate):
    """Whatever a forked child does, the parent goes on over the connection it has."""
    with ScriptedServer(answering(RETAINED), tls=tls) as server:
        assert program(
            f"""
            executor = DrainingExecutor()
            executor.submit(retain, "before").result(60)
            parent = os.getpid()
            pid = os.fork()
            if pid == 0:
                {child}
                {end}
            else:
                assert os.waitpid(pid, 0)[1] == 0
                for number in range(3):
                    retain(number)
                executor.submit(retain, "last")
                print("parent")
            """,
            server.url,
            # Old versions of aiohttp leave TLS transports half closed.
            resource_warnings=not tls,
            SSL_CERT_FILE=certificate,
        ) == ["parent"]
        contents = [request.json["items"][0]["content"] for request in server.requests]
        assert sorted(contents) == sorted(
            ["before", "0", "1", "2", "last"] + ["child"] * ("child" in child)
        )
        assert server.connections == 1 + ("child" in child)


@needs_fork
def test_a_fork_during_requests():
    """A child forked while requests are under way drops them, and the parent ends them."""
    with ScriptedServer(answering(RETAINED)) as server:
        assert program(
            """
            # The first of these imports aiohttp, and the forks come in between.
            futures = [loop.run(client.retain("b", [{"content": "x"}])) for _ in range(20)]
            pids = []
            for _ in range(3):
                pid = os.fork()
                if pid == 0:
                    retain("child")
                    sys.exit()
                pids.append(pid)
            assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)
            print(sum(future.result(60)["success"] for future in futures))
            """,
            server.url,
        ) == ["20"]
        assert len(server.requests) == 23


@needs_fork
def test_a_multiprocessing_child_has_a_loop_of_its_own():
    """A forked multiprocessing child sends and ends on its own."""
    with ScriptedServer(answering(RETAINED)) as server:
        program(
            """
            import multiprocessing
            retain("parent")
            process = multiprocessing.get_context("fork").Process(target=retain, args=("child",))
            process.start()
            process.join(60)
            assert process.exitcode == 0
            retain("parent")
            """,
            server.url,
        )
        assert len(server.requests) == 3
