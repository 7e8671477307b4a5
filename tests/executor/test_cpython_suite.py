"""CPython's own tests of ThreadPoolExecutor, run against DrainingExecutor.

They are taken from the interpreter that runs the tests (`test.test_concurrent_futures`; some
distributions leave it out) and pointed at the class in three ways: `executor_type`, the name in
their bodies, and the name in the snippets they give to child processes.
"""

from __future__ import annotations

import gc
import importlib
import types
import unittest
from collections.abc import Iterator
from typing import Any

import pytest

from hindsight_exec import DrainingExecutor

suite = pytest.importorskip(
    "test.test_concurrent_futures", reason="this interpreter does not carry CPython's tests"
)

# A test of theirs forks with threads alive, on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

LEFT_OUT = {
    "test_default_workers": "the default is one worker here",
    "test_threads_terminate": "counts the private _threads",
    "test_saturation": "counts the private _threads",
    "test_idle_thread_reuse": "counts the private _threads",
    "test_thread_names_assigned": "reads names from the private _threads",
    "test_thread_names_default": "reads names from the private _threads",
    "ThreadPoolFailingInitializerTest": "polls the private _broken",
}


if hasattr(suite, "__path__"):  # a package since 3.12
    modules = [
        importlib.import_module(f"{suite.__name__}.test_{name}")
        for name in ("as_completed", "init", "shutdown", "thread_pool", "wait")
    ]
    mixin = importlib.import_module(f"{suite.__name__}.util").ThreadPoolMixin
else:
    modules = [suite]
    mixin = suite.ThreadPoolMixin


@pytest.fixture(autouse=True)
def _little_garbage() -> Iterator[None]:
    """Their cleanup counts threads that other tests left to be collected, and collects garbage a
    hundred times if it finds another number."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class _Futures(types.ModuleType):
    """`concurrent.futures` with the class exchanged."""

    ThreadPoolExecutor = DrainingExecutor

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("concurrent.futures"), name)


def _in_children(assert_python_ok: Any) -> Any:
    def with_our_class(*args: str, **kwargs: Any) -> Any:
        imports = "from concurrent.futures import "
        *options, code = args
        code = code.replace(
            f"{imports}ThreadPoolExecutor",
            "from hindsight_exec import DrainingExecutor as ThreadPoolExecutor",
        ).replace(f"{imports}DrainingExecutor", "from hindsight_exec import DrainingExecutor")
        status, out, err = assert_python_ok(*options, code, **kwargs)
        # A traceback names the subclass.
        return status, out, err.replace(b"hindsight_exec.errors.ExecutorClosed", b"RuntimeError")

    return with_our_class


def _left_out(reason: str) -> Any:
    return unittest.skip(reason)(lambda self: None)


def _ours(name: str, theirs: type[unittest.TestCase]) -> type[unittest.TestCase]:
    """Their test case with our class, and with skips for what is left out."""
    tests = LEFT_OUT.keys() & {*dir(theirs)}
    if name in LEFT_OUT:
        tests = {test for test in dir(theirs) if test.startswith("test_")}
    skips = {test: _left_out(LEFT_OUT.get(test) or LEFT_OUT[name]) for test in tests}
    return type(name, (theirs,), {"executor_type": DrainingExecutor, **skips})


for module in modules:
    module.futures = _Futures("futures")
    if hasattr(module, "assert_python_ok"):
        module.assert_python_ok = _in_children(module.assert_python_ok)
    for name, value in vars(module).items():
        if isinstance(value, type) and issubclass(value, mixin) and value is not mixin:
            globals()[name] = _ours(name, value)
# Their class is still bound to the loop's name, and pytest would collect it.
del value
