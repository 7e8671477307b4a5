"""What it costs the caller to hand a job over, beside the executors and workers in use.

Tight: one submission after the other, while the worker runs what came before.
Paced: one every two milliseconds, so that each wakes a sleeping worker.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Any, Callable

from hindsight_exec import DrainingExecutor

from .measure import OURS, Figures, Result, quantile, rows, side_by_side, versions

REFERENCE = "ThreadPoolExecutor(1)"

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


def run(*, rounds: int = 7) -> Result:
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
