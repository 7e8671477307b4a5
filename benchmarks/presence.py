"""What it costs a program to have us: the import, and the end of a program that did nothing.

Times are of fresh processes. The end is counted in instructions, which noise does not change:
those of a program that ends, less those of the same program with ``os._exit`` (``perf`` or
``valgrind``; without either, only the times are taken).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Optional

from .measure import OURS, Figures, Result, environment, rows, side_by_side, versions

REFERENCE = "hindsight-client"
BARE = "bare Python"

_IMPORTS = {
    REFERENCE: "import hindsight_client",
    OURS: "import hindsight_exec",
    f"{OURS}: DrainingExecutor": "from hindsight_exec import DrainingExecutor",
    f"{OURS}: RetainWriter": "from hindsight_exec import RetainWriter",
    "concurrent.futures.thread": "import concurrent.futures.thread",
}
_EXITS = {
    BARE: "pass",
    OURS: "import hindsight_exec",
    f"{OURS}: an executor": "from hindsight_exec import DrainingExecutor; e = DrainingExecutor()",
    "ThreadPoolExecutor(1)": "from concurrent.futures import ThreadPoolExecutor; "
    "e = ThreadPoolExecutor(1)",
}


def _import(program: str) -> Figures:
    timed = (
        f"import time; s = time.perf_counter(); {program}; print(1e3 * (time.perf_counter() - s))"
    )
    done = subprocess.run(
        [sys.executable, "-c", timed], stdout=subprocess.PIPE, env=environment(), check=True
    )
    return {"import, ms": float(done.stdout)}


def _perf(program: list[str]) -> Optional[int]:
    done = _counted(["perf", "stat", "-x,", "-e", "instructions:u", *program])
    found = re.search(r"^(\d+),[^,]*,instructions", done, re.MULTILINE)
    return int(found[1]) if found else None


def _valgrind(program: list[str]) -> Optional[int]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        options = ["--tool=cachegrind", "--cache-sim=no", f"--cachegrind-out-file={out}"]
        done = _counted(["valgrind", *options, *program])
    found = re.search(r"I\s+refs:\s+([\d,]+)", done)
    return int(found[1].replace(",", "")) if found else None


def _counted(program: list[str]) -> str:
    variables = {**environment(), "PYTHONHASHSEED": "0"}
    return subprocess.run(
        program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=variables,
        check=False,
    ).stderr  # fmt: skip


def _counter() -> Optional[partial[Optional[int]]]:
    for tool, count in (("perf", _perf), ("valgrind", _valgrind)):
        if shutil.which(tool) and count([sys.executable, "-c", "pass"]):
            return partial(count)
    return None


def _exit(count: partial[Optional[int]], program: str) -> Figures:
    whole = count([sys.executable, "-c", program])
    without = count([sys.executable, "-c", f"{program}\nimport os; os._exit(0)"])
    assert whole is not None
    assert without is not None
    return {
        "exit, million instructions": (whole - without) / 1e6,
        "all, million instructions": whole / 1e6,
    }


def run(*, rounds: int = 7) -> Result:
    result = Result(
        "presence",
        "The cost of being there",
        "ms and million instructions",
        f"{REFERENCE} (import), {BARE} (instructions)",
        [],
        rounds=rounds,
        versions=versions("hindsight-client"),
    )
    taken = side_by_side({name: partial(_import, p) for name, p in _IMPORTS.items()}, rounds=rounds)
    result.rows += rows(taken, REFERENCE)
    result.aim("less than 1/20 of hindsight-client's", "import, ms", 0.05)
    count = _counter()
    if count is None:
        print("neither perf nor valgrind counts instructions here: the exit is not measured")
        return result
    # Counted once, as each run under valgrind takes seconds: these rows have no spread.
    exits = {name: [_exit(count, program)] for name, program in _EXITS.items()}
    result.rows += rows(exits, BARE)
    result.aim("within 2 % of bare Python's", "exit, million instructions", 1.02)
    return result
