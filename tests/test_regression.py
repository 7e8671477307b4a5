"""Ratios to the standard library in the same run: they catch a loss, and measure nothing.

`benchmarks/` measures. The limits here are a third above the medians on the slowest line of CPython
(0.69 and 4.9 on 3.9, on a machine with a load of 15, as in this test), and a noisy moment gets two
more chances.
"""

from __future__ import annotations

import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import pytest

from hindsight_exec import DrainingExecutor, Outbox
from hindsight_exec.conversation.turns import source, turn

pytestmark = pytest.mark.skipif(
    sys.implementation.name != "cpython", reason="a tracing compiler's ratios are not steady"
)


def _median(action: Callable[[], object], count: int) -> float:
    taken = []
    for _ in range(count):
        start = time.perf_counter_ns()
        action()
        taken.append(time.perf_counter_ns() - start)
    return statistics.median(taken)


def _least_ratio(ratio: Callable[[], float], limit: float) -> float:
    """The least of up to three medians of five: a loss shows in all of them."""
    least = float("inf")
    for _ in range(3):
        least = min(least, statistics.median(ratio() for _ in range(5)))
        if least <= limit:
            break
    return least


def test_submit_costs_no_more_than_the_standard_librarys() -> None:
    """Handing a job over takes less than the standard library's time, by more than a tenth."""

    def once(executor: Any) -> float:
        with executor:
            return _median(lambda: executor.submit(int), 2000)

    def ratio() -> float:
        return once(DrainingExecutor()) / once(ThreadPoolExecutor(1))

    assert _least_ratio(ratio, 0.9) <= 0.9


@pytest.fixture
def raw(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(tmp_path / "raw.db", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("CREATE TABLE turns (id INTEGER PRIMARY KEY, payload TEXT NOT NULL)")
    yield db
    db.close()


def test_keeping_a_turn_costs_a_small_multiple_of_an_insert(
    tmp_path: Path, raw: sqlite3.Connection
) -> None:
    """Making a turn and keeping it takes at most six and a half times a raw INSERT of its bytes."""
    messages = [{"role": role, "content": "of some words " * 36} for role in ("user", "assistant")]
    where = source(url="http://127.0.0.1:1", credential="", bank="b", session="s")
    text = turn(messages, given_at=1.0, index=1).payload
    outbox = Outbox(tmp_path / "outbox.db", synchronous="NORMAL")

    def ratio() -> float:
        ours = _median(lambda: outbox.put(where, turn(messages, given_at=1.0, index=1)), 200)
        return ours / _median(
            lambda: raw.execute("INSERT INTO turns (payload) VALUES (?)", (text,)), 200
        )

    try:
        assert _least_ratio(ratio, 6.5) <= 6.5
    finally:
        outbox.close()


# An instruction counts when it runs in a file of the package: what the import system and the
# standard library need differs between the lines of CPython, and is no loss of ours.
COUNT = """
import os, sys
counted = 0
def count(code):
    global counted
    counted += "hindsight_exec" in code.co_filename.split(os.sep)
def trace(frame, event, _):
    frame.f_trace_opcodes, frame.f_trace_lines = True, False
    if event == "opcode":
        count(frame.f_code)
    return trace
before = set(sys.modules)
if hasattr(sys, "monitoring"):
    of = sys.monitoring
    of.use_tool_id(of.PROFILER_ID, "count")
    of.register_callback(of.PROFILER_ID, of.events.INSTRUCTION, lambda code, _: count(code))
    of.set_events(of.PROFILER_ID, of.events.INSTRUCTION)
else:
    sys.settrace(trace)
{program}
number = counted
brought = set(sys.modules) - before
print(number, *sorted(brought & {{"aiohttp", "asyncio", "sqlite3", "typing", "json", "uuid"}}))
"""


@pytest.mark.parametrize(
    "program, limit",
    [
        ("import hindsight_exec", 60),
        ("from hindsight_exec import DrainingExecutor", 2700),
    ],
)
def test_import_runs_few_instructions(program: str, limit: int, tmp_path: Path) -> None:
    """Importing the package, or its executor, runs few instructions and brings nothing slow."""
    counted, *brought = subprocess.run(
        [sys.executable, "-c", COUNT.format(program=program)],
        cwd=tmp_path,  # the sources are not beside it
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.split()
    assert brought == []
    assert int(counted) <= limit
