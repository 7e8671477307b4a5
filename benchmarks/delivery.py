"""Turns that wait are delivered: how many a second, and with how much memory.

The server is our embedded one, in memory and in a process of its own.  Turns were given while it
was away; the clock runs from the start of the delivery to the server's last answer.  Hermes' own
provider keeps its turns in memory and sends one a request, so it is given few and hurries at once:
it is its rate that counts.  How busy the server was is measured, too: where it is busy all the
time, a faster one would have got more.

Where ``HINDSIGHT_API_PYTHON`` names one, ours is measured with a real server, too: until it has
accepted everything, with no worker that processes it beside.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Callable

from .delivery_child import BANK
from .measure import (
    BUNDLED,
    OURS,
    Figures,
    Goal,
    Result,
    arrived,
    environment,
    free_port,
    hermes_python,
    rows,
    server,
    side_by_side,
    versions,
)

if TYPE_CHECKING:
    from tests.hindsight.server import Hindsight

WAITING = (10_000, 100_000)
#: Turns for the bundled provider, which gives up 10 s after `shutdown()`.
FEW = 500

RATE, MEMORY = "turns a second", "memory above the imports, MB"


def _child(python: str, what: str, port: int, folder: Path, turns: int = 0) -> str:
    program = [python, "-m", "benchmarks.delivery_child", what]
    arguments = [f"http://127.0.0.1:{port}", str(folder), str(turns)]
    return subprocess.run(
        [*program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=environment(python), check=True,
    ).stdout  # fmt: skip


def _deliver(
    python: str, what: str, port: int, folder: Path, turns: int
) -> tuple[dict[str, float], int]:
    with server(0, port):
        idle = arrived(port, BANK)["cpu"]
        began, memory, cpu = map(float, _child(python, what, port, folder, turns).split())
        found = arrived(port, BANK)
    seconds = found["last"] - began
    return {
        RATE: found["turns"] / seconds,
        "ms of CPU a turn": 1e3 * cpu / found["turns"],
        "server busy, % of the time": 100 * (found["cpu"] - idle) / seconds,
        MEMORY: memory,
    }, found["turns"]


def ours(port: int, filled: dict[int, Path]) -> Figures:
    figures = {}
    for turns, state in filled.items():
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(shutil.copytree(state, Path(folder) / "state"))
            measured, came = _deliver(sys.executable, "deliver", port, copy, turns)
        assert came == turns, f"{came} of {turns}"
        figures.update({f"{turns:,} waiting: {line}": value for line, value in measured.items()})
    return figures


def bundled(python: str, port: int) -> Figures:
    with tempfile.TemporaryDirectory() as home:
        measured, _ = _deliver(python, "bundled", port, Path(home), FEW)
    del measured[MEMORY]  # of few turns
    return {f"{n:,} waiting: {line}": value for n in WAITING for line, value in measured.items()}


def _real(hindsight: Hindsight) -> Figures:
    figures = {}
    for turns in WAITING:
        port = free_port()
        with tempfile.TemporaryDirectory() as folder:
            _child(sys.executable, "give", port, Path(folder), turns)
            with hindsight.server(port=port, worker_enabled=False) as server:
                began = time.time()
                _child(sys.executable, "deliver", port, Path(folder), turns)
                seconds = time.time() - began
                # The server makes an operation of each request, and several others of that.
                (made,) = server.sql(
                    "SELECT count(*) FILTER (WHERE operation_type = 'batch_retain') AS requests,"
                    " sum(length(task_payload::text)) / 1e6 AS megabytes FROM async_operations"
                )
        line = f"{turns:,} waiting"
        figures[f"{line}: s"] = seconds
        figures[f"{line}: {RATE}"] = turns / seconds
        figures[f"{line}: requests"] = float(made["requests"])
        figures[f"{line}: MB queued by the server"] = float(made["megabytes"])
    return figures


def run_real(*, rounds: int = 5) -> Result:
    from tests.hindsight.server import Hindsight

    with Hindsight() as hindsight:
        taken = {OURS: [_real(hindsight) for _ in range(rounds)]}
    return Result(
        "delivery-real",
        "Turns that wait are accepted by a real server",
        "turns a second and other figures",
        "",
        rows(taken, ""),
        rounds=rounds,
        versions=versions(),
    )


def run(*, rounds: int = 5) -> list[Result]:
    results = [_run(rounds=rounds)]
    if os.environ.get("HINDSIGHT_API_PYTHON"):
        results.append(run_real(rounds=rounds))
    return results


def _run(*, rounds: int) -> Result:
    port = free_port()
    with contextlib.ExitStack() as stack:
        filled = {}
        for turns in WAITING:
            filled[turns] = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            _child(sys.executable, "give", port, filled[turns], turns)
        contestants: dict[str, Callable[[], Figures]] = {OURS: partial(ours, port, filled)}
        python = hermes_python()
        if python:
            contestants[BUNDLED] = partial(bundled, python, port)
        taken = side_by_side(contestants, rounds=rounds, warm=False)
    result = Result(
        "delivery",
        "Turns that wait are delivered",
        "turns a second and other figures",
        BUNDLED if python else "",
        rows(taken, BUNDLED if python else ""),
        rounds=rounds,
        versions=versions(),
    )
    few, many = (f"{turns:,} waiting" for turns in WAITING)
    for line in (f"{few}: {RATE}", f"{many}: {RATE}"):
        ratio = result.row(line).ratio
        if ratio is not None:
            text = f"{line}: at least 20 times the bundled provider's"
            result.goals.append(Goal(text, ratio >= 20, f"{ratio:.0f} times"))
    memory = result.row(f"{many}: {MEMORY}").high
    result.goals.append(Goal(f"{many}: at most 30 MB more", memory <= 30, f"{memory:.1f} MB"))
    factor = 10 * result.row(f"{few}: {RATE}").median / result.row(f"{many}: {RATE}").median
    text = "ten times the turns take at most 13 times as long"
    result.goals.append(Goal(text, factor <= 13, f"{factor:.1f} times"))
    return result
