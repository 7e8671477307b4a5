"""A gateway: hundreds of chats in one process, each with a provider of its own.

Each has three turns, as Hermes calls its provider in one, all alive at once, and one of them talks
every 10 ms; a request takes 0.1 s.
Threads and sockets are the most that there ever were, memory is after the last turn, all above the
process that has imported what it needs.  All are shut down, one after the other, twice: at rest,
when the server has had every turn, and others right after a turn of each.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from functools import partial

from .exits import LATENCY
from .gateway_child import BANK, TURNS
from .measure import (
    BUNDLED,
    OURS,
    Figures,
    Goal,
    Result,
    arrived,
    environment,
    hermes_python,
    rows,
    server,
    side_by_side,
    versions,
)

#: The few show that ours does not grow with the chats.
FEW, MANY = 100, 300


def _life(python: str, who: str) -> Figures:
    figures: dict[str, float] = {}
    for chats in (FEW, MANY) if who == "ours" else (MANY,):
        with server(LATENCY) as port, tempfile.TemporaryDirectory() as home:
            program = [python, "-m", "benchmarks.gateway_child", who]
            done = subprocess.run(
                [*program, str(port), home, str(chats)],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment(python),
                check=True,
            )
            lost = chats * (TURNS + 1) - arrived(port, BANK)["turns"]
        measured = {**json.loads(done.stdout), "turns lost": lost}
        figures.update({f"{chats} chats: {line}": value for line, value in measured.items()})
    return figures


def run(*, rounds: int = 5) -> Result:
    python = hermes_python()
    # In the same interpreter, if there is one: with Hermes' base class, as in Hermes.
    contestants = {OURS: partial(_life, python or sys.executable, "ours")}
    if python:
        contestants[BUNDLED] = partial(_life, python, "bundled")
    taken = side_by_side(contestants, rounds=rounds, warm=False)
    result = Result(
        "gateway",
        "Hundreds of chats in one process",
        "above the process before",
        BUNDLED if python else "",
        rows(taken),
        rounds=rounds,
        versions=versions(),
    )
    # Sockets are as many as requests were under way in the same moment, give or take a few.
    for line, more in (("threads", 0), ("sockets", 5)):
        few, many = (result.row(f"{chats} chats: {line}").high for chats in (FEW, MANY))
        text = f"{line}: {MANY} chats have at most {more} more than {FEW}"
        result.goals.append(Goal(text, many <= few + more, f"{few:.0f} and {many:.0f}"))
    if python:
        for what in (
            *("threads", "sockets", "memory, MB"),
            *("shutting down at rest, s", "shutting down after a turn of each, s"),
        ):
            line = f"{MANY} chats: {what}"
            factor = result.row(line, BUNDLED).median / max(result.row(line).median, 1e-9)
            text = f"{line}: at most a tenth of the bundled provider's"
            result.goals.append(Goal(text, factor >= 10, f"1/{factor:.1f}"))
    return result
