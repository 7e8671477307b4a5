"""Measuring side by side on a noisy machine.

Contestants take turns (A B C, A B C, …), and what counts is the ratio to the
reference within a round: a busy minute then slows both sides of it.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import socket
import sqlite3
import statistics
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Mapping, Optional, Sequence

from . import pictures

RESULTS = Path(__file__).parent / "results"
_ROOT = str(Path(__file__).parent.parent)

#: The name that our side has in every result.
OURS = "hindsight-exec"

#: Hermes' own provider, which lives in an interpreter with `hermes_python`.
BUNDLED = "bundled provider, 0.19.0"
BUNDLED_MODULE = "plugins.memory.hindsight"

#: What one run of a contestant measured: a figure for each line of the result.
Figures = Mapping[str, float]


@dataclass
class Row:
    """A contestant on one line, over all rounds; ``low`` and ``high`` are the extremes.

    ``ratio`` is the median of the ratios to the reference, round by round;
    None where there is no reference, or the figure is no cost.
    """

    line: str
    name: str
    median: float
    low: float
    high: float
    ratio: Optional[float] = None
    ratio_low: Optional[float] = None
    ratio_high: Optional[float] = None


@dataclass
class Goal:
    """What was aimed at, and what came out."""

    text: str
    met: bool
    measured: str


@dataclass
class Result:
    """A benchmark's outcome, as it is written to ``results/``."""

    benchmark: str
    title: str
    unit: str
    reference: str
    rows: list[Row]
    goals: list[Goal] = field(default_factory=list)
    rounds: int = 0
    versions: dict[str, str] = field(default_factory=dict)

    def row(self, line: str, name: str = OURS) -> Row:
        return next(row for row in self.rows if (row.line, row.name) == (line, name))

    def aim(self, text: str, line: str, bound: float, name: str = OURS) -> None:
        """Add the goal that the ratio on a line is at most ``bound``."""
        ratio = self.row(line, name).ratio
        assert ratio is not None
        self.goals.append(Goal(f"{line}: {text}", ratio <= bound, f"{ratio:.2f}"))

    def write(self, label: str = "") -> None:
        RESULTS.mkdir(exist_ok=True)
        stem = f"{self.benchmark}-{label}" if label else self.benchmark
        text = json.dumps(asdict(self), indent=1)
        (RESULTS / f"{stem}.json").write_text(text + "\n", encoding="utf-8")
        if not label:
            pictures.draw(asdict(self))

    def show(self) -> None:
        print(f"\n{self.title} ({self.unit}; median of {self.rounds}, lowest … highest)")
        line = ""
        for row in self.rows:
            if row.line != line:
                line = row.line
                print(f"  {line}")
            ratio = "" if row.ratio is None else f"{row.ratio:8.2f} x"
            if row.ratio_low is not None:
                ratio += f" ({row.ratio_low:.2f} … {row.ratio_high:.2f})"
            spread = f"{row.low:.4g} … {row.high:.4g}"
            print(f"    {row.name:32}{row.median:10.4g}   {spread:22}{ratio}")
        for goal in self.goals:
            print(f"  {'met ' if goal.met else 'MISSED'} {goal.text}: {goal.measured}")


def side_by_side(
    contestants: Mapping[str, Callable[[], Figures]], *, rounds: int, warm: bool = True
) -> dict[str, list[Figures]]:
    """Run them in turn; ``warm``: a first, uncounted round warms up what is warmed up once.

    Each round begins with another one, so that none always follows the same.
    """
    taken: dict[str, list[Figures]] = {name: [] for name in contestants}
    for number in range(not warm, rounds + 1):
        first = number % len(contestants)
        names = [*contestants][first:] + [*contestants][:first]
        for name in names:
            figures = contestants[name]()
            if number:
                taken[name].append(figures)
    return taken


def rows(
    taken: Mapping[str, Sequence[Figures]], reference: str = "", lines: Iterable[str] = ()
) -> list[Row]:
    """The rows of a result, line by line; ``lines`` are all that were measured by default."""
    lines = list(lines) or list(next(iter(taken.values()))[0])
    made = []
    for line in lines:
        for name, rounds in taken.items():
            if line not in rounds[0]:
                continue
            values = [figures[line] for figures in rounds]
            row = Row(line, name, statistics.median(values), min(values), max(values))
            if reference and line in taken[reference][0]:
                base = [figures[line] for figures in taken[reference]]
                ratios = [mine / other for mine, other in zip(values, base)]
                row.ratio = statistics.median(ratios)
                row.ratio_low, row.ratio_high = min(ratios), max(ratios)
            made.append(row)
    return made


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share of them lies (nearest rank)."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


def versions(*packages: str) -> dict[str, str]:
    """What was measured, and on what."""
    from importlib.metadata import version

    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "sqlite": sqlite3.sqlite_version,
        **{name: version(name) for name in ("hindsight-exec", *packages)},
    }


def environment(python: str = sys.executable) -> dict[str, str]:
    """Variables for children: ours, but nothing that changes how Python runs or where we write."""
    dropped = ("PYTHON", "HINDSIGHT", "HERMES")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    # Another interpreter has packages of its own, but for us and the benchmarks.
    path = [path for path in sys.path if path] if python == sys.executable else [_ROOT]
    return {**kept, "PYTHONPATH": os.pathsep.join(path)}


@cache
def hermes_python() -> Optional[str]:
    """The interpreter that has Hermes: ``HERMES_PYTHON``, else this one; None if it has not.

    It must have the client of the version that Hermes wants, or Hermes would install it.
    """
    python = os.environ.get("HERMES_PYTHON", sys.executable)
    program = (
        f"import {BUNDLED_MODULE}; from tools.lazy_deps import feature_missing;"
        "raise SystemExit(len(feature_missing('memory.hindsight')))"
    )
    asked = subprocess.run(
        [python, "-c", program], env=environment(python), stderr=subprocess.DEVNULL, check=False
    )
    if asked.returncode:
        print(f"the {BUNDLED}, is left out: {python} has no hermes-agent[hindsight]==0.19.0")
        return None
    return python


def configure(home: Path, url: str, bank: str) -> None:
    """Make ``home`` the Hermes folder, for its own provider and for ours."""
    config = home / "hindsight" / "config.json"
    config.parent.mkdir(parents=True, exist_ok=True)
    told = {"mode": "local_external", "api_url": url, "bank_id": bank, "banks": {}}
    config.write_text(json.dumps(told), encoding="utf-8")
    os.environ["HERMES_HOME"] = str(home)


def bundled_class() -> Any:
    """The class of Hermes' own provider."""
    return importlib.import_module(BUNDLED_MODULE).HindsightMemoryProvider


def bundled_provider(home: Path, url: str, bank: str, session: str = "s") -> Any:
    """Hermes' own provider in the first turn of a chat: it has imported and connected."""
    import hindsight_client  # noqa: F401 - a prefetch waits no longer than 3 s

    configure(home, url, bank)
    provider = bundled_class()()
    provider.initialize(session, hermes_home=str(home), platform="cli", agent_context="primary")
    provider.queue_prefetch("hello")
    provider.prefetch("hello")
    return provider


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@contextmanager
def server(latency: float, port: int = 0) -> Iterator[int]:
    """Our embedded server as a process, all in memory; yields its port."""
    program = [sys.executable, "-m", "benchmarks.server", str(latency), str(port)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def arrived(port: int, bank: str) -> Any:
    """What it has of a bank: turns, named documents, requests, the last one's time; its CPU time."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/arrived/{bank}") as answer:
        return json.load(answer)
