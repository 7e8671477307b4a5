"""What the standard library's newest class has, and what others add to it, holds for ours."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from waiting import collect

from hindsight_exec import DrainingExecutor

LIMIT = 60  # seconds to fail after, never reached

contexts = pytest.mark.skipif(
    not hasattr(ThreadPoolExecutor, "prepare_context"), reason="since CPython 3.14"
)


def test_default_names_are_numbered():
    """Executors without a name can be told apart, as the standard library's."""
    first, second = DrainingExecutor(), DrainingExecutor()
    names = [re.search("'(.*)'", repr(executor)).group(1) for executor in (first, second)]
    assert all(re.fullmatch(r"DrainingExecutor-\d+", name) for name in names)
    assert len({*names}) == 2
    with first:
        assert first.submit(lambda: threading.current_thread().name).result() == f"{names[0]}_0"


def test_number_in_the_name_of_a_subclass():
    """A subclass gives its own name."""

    class Writer(DrainingExecutor):
        pass

    assert re.search(r"<Writer 'Writer-\d+'", repr(Writer()))


# --- contexts of workers (CPython 3.14) -----------------------------------------


@contexts
def test_prepare_context():
    """A subclass prepares its workers and runs its jobs as ThreadPoolExecutor's subclasses do."""
    done: list[Any] = []

    class Context:
        def __init__(self, label: str) -> None:
            self.label = label

        def initialize(self) -> None:
            done.append(("initialize", self.label))

        def run(self, task: Any) -> Any:
            fn, args, kwargs = task
            return self.label, fn(*args, **kwargs)

        def finalize(self) -> None:
            done.append(("finalize", self.label))

    class Labelled(DrainingExecutor):
        @classmethod
        def prepare_context(cls, initializer, initargs, *, label):
            return lambda: Context(label), lambda fn, args, kwargs: (fn, args, kwargs)

    with Labelled(label="ours") as executor:
        assert executor.submit(pow, 2, 8).result(LIMIT) == ("ours", 256)
        assert executor.submit(divmod, 1, b=0).exception(LIMIT) is not None
    assert done == [("initialize", "ours"), ("finalize", "ours")]


@contexts
def test_prepare_context_of_any_kind():
    """It may be a static method, too."""

    class Static(DrainingExecutor):
        @staticmethod
        def prepare_context(initializer, initargs):
            return ThreadPoolExecutor.prepare_context(initializer, initargs)

    with Static() as executor:
        assert executor.submit(pow, 2, 8).result(LIMIT) == 256


@contexts
def test_context_that_cannot_be_created():
    """`submit` raises what creating a context raises, and the executor stays usable."""
    failures = [OSError("no more of these")]

    class Limited(DrainingExecutor):
        @classmethod
        def prepare_context(cls, initializer, initargs):
            create, resolve = ThreadPoolExecutor.prepare_context(initializer, initargs)

            def limited() -> Any:
                if failures:
                    raise failures.pop()
                return create()

            return limited, resolve

    with Limited() as executor:
        with pytest.raises(OSError, match="no more of these"):
            executor.submit(int)
        assert executor.submit(pow, 2, 8).result(LIMIT) == 256


@contexts
@pytest.mark.parametrize("inherits", ["0", "1"])
def test_workers_inherit_a_context_where_threads_do(inherits):
    """Workers see the context that started them, or none, as the standard library's do."""
    program = (
        "import contextvars, concurrent.futures, hindsight_exec\n"
        "variable = contextvars.ContextVar('variable', default='unset')\n"
        "variable.set('set')\n"
        "for kind in concurrent.futures.ThreadPoolExecutor, hindsight_exec.DrainingExecutor:\n"
        "    with kind() as executor:\n"
        "        print(executor.submit(variable.get).result())\n"
    )
    command = [sys.executable, "-X", f"thread_inherit_context={inherits}", "-c", program]
    found = subprocess.check_output(command, text=True, timeout=LIMIT).split()
    assert found == (["set"] * 2 if inherits == "1" else ["unset"] * 2)


@contexts
def test_broken_type():
    """The error of a broken executor is the class's BROKEN."""

    class Broken(RuntimeError):
        pass

    class Breaking(DrainingExecutor):
        BROKEN = Broken

    executor = Breaking(initializer=divmod, initargs=(1, 0))
    with pytest.raises(Broken):
        executor.submit(int).result(LIMIT)
    executor.shutdown()


def test_unknown_options_are_refused():
    """An option that no prepare_context takes is a TypeError, on every version."""
    with pytest.raises(TypeError, match="labell"):
        DrainingExecutor(labell="x")


# --- asyncio ----------------------------------------------------------------------


def test_awaited_failure_is_not_reported(own_log):
    """A failure that is awaited was looked at (3.15 reads it by a method of its own)."""
    with DrainingExecutor() as executor:

        async def main() -> None:
            loop = asyncio.get_running_loop()
            with pytest.raises(ZeroDivisionError):
                await loop.run_in_executor(executor, divmod, 1, 0)
            failing = [loop.run_in_executor(executor, divmod, 1, 0) for _ in range(3)]
            done = await asyncio.gather(*failing, return_exceptions=True)
            assert [type(error) for error in done] == [ZeroDivisionError] * 3

        asyncio.run(main())
    gc.collect()
    assert own_log.records == []


@pytest.mark.skipif(
    sys.implementation.name != "cpython" or not getattr(sys, "_is_gil_enabled", lambda: True)(),
    reason="relies on reference counts",
)
def test_results_hold_no_cycle():
    """A failure that was looked at is freed without the collector."""

    class Thing(Exception):
        pass

    with DrainingExecutor() as executor:
        gc.collect()
        gc.disable()
        try:

            def fail() -> None:
                raise Thing

            for look in ("result", "exception"):
                future = executor.submit(fail)
                with contextlib.suppress(Thing):
                    getattr(future, look)(LIMIT)
                executor.drain(LIMIT)
                del future
            alive = [one for one in gc.get_objects() if type(one) is Thing]
            assert not alive
        finally:
            gc.enable()


# --- map ----------------------------------------------------------------------------


def test_map_with_failures_reports_none_of_them(own_log):
    """Whoever stops at the first failure of a map does not hear of the others."""
    gate = threading.Event()

    def fail(number: int) -> None:
        if number == 2:
            gate.wait(LIMIT)
        raise LookupError(number)

    with DrainingExecutor() as executor:
        with pytest.raises(LookupError, match="0"):
            list(executor.map(fail, range(4)))
        gate.set()  # the one that runs fails after its future was cancelled in vain
    gc.collect()
    assert own_log.records == []


def test_map_that_nobody_reads_reports_failures(own_log):
    """Where nobody asks for a result of a map, each failure is reported."""
    with DrainingExecutor() as executor:
        executor.map(divmod, [1, 1], [0, 0])
    collect()
    assert [record.exc_info[0] for record in own_log.records] == [ZeroDivisionError] * 2


# --- a patched ThreadPoolExecutor.submit ------------------------------------------------

trace: contextvars.ContextVar[str] = contextvars.ContextVar("trace", default="none")


@pytest.fixture
def instrumented(monkeypatch):
    """What OpenTelemetry and Sentry do to the standard library's class."""
    submit = ThreadPoolExecutor.submit

    @functools.wraps(submit)
    def patched(self, fn, /, *args, **kwargs):
        return submit(self, functools.partial(contextvars.copy_context().run, fn), *args, **kwargs)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", patched)


@pytest.mark.usefixtures("instrumented")
def test_jobs_run_in_the_context_of_their_submission_where_traced():
    """Where ThreadPoolExecutor.submit is patched, jobs see the context variables of their submission."""
    with DrainingExecutor() as executor:
        for name in ("one", "two"):
            token = trace.set(name)
            assert executor.submit(trace.get).result(LIMIT) == name
            assert executor.submit(lambda key, *, more: (key, more), 1, more=2).result() == (1, 2)
            trace.reset(token)


def test_jobs_run_in_the_context_of_their_worker_elsewhere():
    """Elsewhere a job sees the worker's context, as with the standard library's class."""
    with DrainingExecutor() as ours, ThreadPoolExecutor(1) as theirs:
        for executor in (ours, theirs):
            executor.submit(int).result(LIMIT)  # 3.14 may hand the starter's context down
        token = trace.set("one")
        assert ours.submit(trace.get).result(LIMIT) == theirs.submit(trace.get).result(LIMIT)
        trace.reset(token)


def test_patched_before_the_import(run):
    """It is noticed, too, if the patch came before our import."""
    ended = run(
        """
        import contextvars, functools
        from concurrent.futures import ThreadPoolExecutor
        trace = contextvars.ContextVar("trace", default="none")
        submit = ThreadPoolExecutor.submit
        @functools.wraps(submit)
        def patched(self, fn, /, *args, **kwargs):
            return submit(self, contextvars.copy_context().run, fn, *args, **kwargs)
        ThreadPoolExecutor.submit = patched
        from hindsight_exec import DrainingExecutor
        executor = DrainingExecutor()
        trace.set("one")
        executor.submit(int).result()
        trace.set("two")
        say(executor.submit(trace.get).result())
        ThreadPoolExecutor.submit = submit
        """
    )
    assert ended == (0, "two\n", "")
