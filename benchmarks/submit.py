"""What it costs the caller to hand a job over, beside the executors and workers in use.

Tight: one submission after the other, while the worker runs what came before.
Paced: one every two milliseconds, so that each wakes a sleeping worker.
Crowded: the same with 4 and with 32 workers.
Waiting: a million jobs behind one that blocks: bytes of memory a job, and seconds to run them all.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Callable

from hindsight_exec import DrainingExecutor

from .measure import (
    OURS,
    Figures,
    Result,
    environment,
    quantile,
    rows,
    side_by_side,
    versions,
)

REFERENCE = "ThreadPoolExecutor(1)"
LIBRARY = "ThreadPoolExecutor"

#: Jobs that wait at once.
WAITING = 1_000_000

#: Submissions in a run, tight and paced, and the seconds between paced ones.
TIGHT, PACED, PACE = 10_000, 200, 0.002

Submit = Callable[[Callable[[], object]], object]


def _job() -> None:
    pass


def _time(submit: Submit, count: int, pace: float) -> list[int]:
    """Nanoseconds of each submission."""
    clock, sleep = time.perf_counter_ns, time.sleep
    taken = []
    for _ in range(count):
        if pace:
            sleep(pace)
        start = clock()
        submit(_job)
        taken.append(clock() - start)
    return taken


def _figures(submit: Submit, finish: Callable[[], object]) -> Figures:
    done = threading.Event()
    submit(done.set)
    done.wait()  # the worker has started
    start = time.perf_counter_ns()
    tight = _time(submit, TIGHT, 0)
    done.clear()
    submit(done.set)
    done.wait()
    whole = time.perf_counter_ns() - start
    paced = _time(submit, PACED, PACE)
    finish()
    return {
        "tight, p50": quantile(tight, 0.5) / 1e3,
        "tight, p99": quantile(tight, 0.99) / 1e3,
        "tight, until all jobs are done, per job": whole / TIGHT / 1e3,
        "paced, p50": quantile(paced, 0.5) / 1e3,
        "paced, p99": quantile(paced, 0.99) / 1e3,
    }


def _executor(make: Callable[[], Any]) -> Figures:
    executor = make()
    return _figures(executor.submit, executor.shutdown)


def _sentry() -> Figures:
    from sentry_sdk.worker import BackgroundWorker

    # Its queue takes 100 by default and drops what is more.
    worker = BackgroundWorker(queue_size=TIGHT + PACED)
    return _figures(worker.submit, worker.kill)


def _simple_queue() -> Figures:
    queue: SimpleQueue[Any] = SimpleQueue()

    def work() -> None:
        while (job := queue.get()) is not None:
            job()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()

    def finish() -> None:
        queue.put(None)
        thread.join()

    return _figures(queue.put, finish)


def _waiting(kind: str) -> Figures:
    """In a process of its own, whose memory is its own."""
    program = [sys.executable, "-m", "benchmarks.submit", kind, str(WAITING)]
    figures: Figures = json.loads(subprocess.check_output(program, env=environment()))
    return figures


def _memory() -> int:
    """Bytes that are resident."""
    gc.collect()
    pages = int(Path(f"/proc/{os.getpid()}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def wait(kind: str, count: int) -> Figures:
    executor: Any = ThreadPoolExecutor(1) if kind == REFERENCE else DrainingExecutor()
    go = threading.Event()
    executor.submit(go.wait)
    before, start = _memory(), time.perf_counter()
    for _ in range(count):
        executor.submit(_job)
    queued, memory = time.perf_counter(), _memory()
    draining = time.perf_counter()
    go.set()
    executor.shutdown()
    end = time.perf_counter()
    return {
        "a million waiting: bytes a job": (memory - before) / count,
        "a million waiting: s to submit": queued - start,
        "a million waiting: s to drain": end - draining,
    }


def run(*, rounds: int = 7) -> list[Result]:
    return [_run_one(rounds=rounds), _run_many(rounds=rounds)]


def _run_many(*, rounds: int) -> Result:
    """Many workers, and many jobs; beside the standard library alone."""
    every = []
    for workers in (4, 32):
        taken = side_by_side(
            {
                REFERENCE: partial(_executor, partial(ThreadPoolExecutor, workers)),
                OURS: partial(_executor, partial(DrainingExecutor, workers)),
            },
            rounds=rounds,
        )
        for row in rows(taken, REFERENCE):
            row.line = f"{workers} workers: {row.line}"
            every.append(row)
    if sys.platform == "linux":
        waiting = {name: partial(_waiting, name) for name in (REFERENCE, OURS)}
        every += rows(side_by_side(waiting, rounds=min(rounds, 3), warm=False), REFERENCE)
    for row in every:
        if row.name == REFERENCE:
            row.name = LIBRARY
    result = Result(
        "submit-many",
        "Handing a job over to many workers, and a million jobs",
        "µs, bytes and s",
        LIBRARY,
        every,
        rounds=rounds,
        versions=versions(),
    )
    for line in dict.fromkeys(row.line for row in every):
        result.aim(f"not above {LIBRARY}", line, 1.0)
    return result


def _run_one(*, rounds: int) -> Result:
    taken = side_by_side(
        {
            REFERENCE: partial(_executor, partial(ThreadPoolExecutor, 1)),
            OURS: partial(_executor, DrainingExecutor),
            "sentry-sdk's worker": _sentry,
            "SimpleQueue (the limit)": _simple_queue,
        },
        rounds=rounds,
    )
    result = Result(
        "submit",
        "Handing a job over",
        "µs",
        REFERENCE,
        rows(taken, REFERENCE),
        rounds=rounds,
        versions=versions("sentry-sdk"),
    )
    for line in dict.fromkeys(row.line for row in result.rows):
        result.aim(f"not slower than {REFERENCE}", line, 1.0)
    return result


if __name__ == "__main__":
    print(json.dumps(wait(sys.argv[1], int(sys.argv[2]))))
