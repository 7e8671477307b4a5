"""What one chat adds to a process: memory and time, import by import, up to its first turn.

Each figure is of a fresh process. The imports that a host has anyway (asyncio, sqlite3, ssl) come
first, so that they are not counted as ours. aiohttp is imported on the worker, beside the caller;
here it is imported by itself, to be seen.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .measure import OURS, Figures, Result, environment, hermes_python, rows, server, versions

_CHILD = str(Path(__file__).with_name("footprint_child.py"))


def _child(python: str, url: str, *more: str) -> Any:
    with tempfile.TemporaryDirectory() as home:
        command = [python, _CHILD, url, home, *more]
        return json.loads(subprocess.check_output(command, env=environment(python)))


def _measure(python: str, url: str) -> Figures:
    figures: dict[str, float] = {}
    steps: dict[str, list[float]] = _child(python, url)
    before = steps.pop("bare")[0]
    ours = 0.0
    for name, (memory, took) in steps.items():
        figures[f"{name}: MiB"] = memory - before
        figures[f"{name}: ms"] = took
        if name not in ("import asyncio", "import sqlite3", "import ssl"):
            ours += memory - before
        before = memory
    figures["one chat, above a process with asyncio, sqlite3 and ssl: MiB"] = ours
    for name, took in _child(python, url, "first turn").items():
        figures[f"first turn, {name}: ms"] = took
    figures["first turn, from start to delivered: ms"] = sum(
        figures[f"first turn, {name}: ms"] for name in ("imports", "put", "flush")
    )
    return figures


def run(*, rounds: int = 7) -> Result:
    python = hermes_python() or sys.executable
    with server(0.0) as port:
        url = f"http://127.0.0.1:{port}"
        taken = [_measure(python, url) for _ in range(rounds + 1)][1:]
    return Result(
        "footprint",
        "What one chat adds to a process",
        "MiB and ms",
        "",
        rows({OURS: taken}),
        rounds=rounds,
        versions=versions(),
    )
