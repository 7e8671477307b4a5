"""Turns that wait when the program ends: how many arrive, and how long the end takes.

A request takes 0.1 s, and the server is named by a host name, as servers are.  (By its IP the peers
lose as much: their client looks for a netrc file in a thread, too.)  Nearly all of a run is waiting,
so a peer's runs, which take up to 40 s each, go side by side; ours go one after the other.
"""

from __future__ import annotations

import math
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from .exits_child import BOUND
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
    versions,
)

EXECUTOR, DAEMON = "ThreadPoolExecutor(1) + hindsight-client", "daemon thread + atexit"
_PROGRAMS = {OURS: "ours", BUNDLED: "bundled", EXECUTOR: "executor", DAEMON: "daemon"}

LATENCY = 0.1
#: Seconds after which a program is killed that does not end.
LIMIT = 60.0
_HANGING_LIMIT = 15.0

#: How the program ends, and with how many turns.
_ENDS = ("end of main", "shutdown()", "SIGKILL")
_TURNS = (1, 5, 50, 300)

#: Chunks of 3000 characters, each an LLM call, that 300 turns of 632 fill, at least.
_CHUNKS = 64
#: A document has at most so many: it is as long as three hold.
_CHUNKS_A_DOCUMENT = 3


def _run(
    name: str, turns: int, url: str, bank: str, state: str, how: str, limit: float = LIMIT
) -> float:
    """Run the program; how many seconds it took to leave."""
    python = (hermes_python() or "") if name == BUNDLED else sys.executable
    program = [
        *(python, "-m", "benchmarks.exits_child"),
        *(_PROGRAMS[name], str(turns), url, bank, state, how),
    ]
    with subprocess.Popen(
        program,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(python),
    ) as process:
        assert process.stdout is not None
        began = float(process.stdout.readline())
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
        return time.time() - began


def _exit(port: int, name: str, how: str, turns: int, number: int) -> Figures:
    url = f"http://localhost:{port}"
    bank = f"{how.strip('()').replace(' ', '-')}-{_PROGRAMS[name]}-{turns}-{number}"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as state:
        seconds = _run(name, turns, url, bank, state, how)
        if how == "SIGKILL":
            how = "SIGKILL and the next start"
            began = time.time()
            _run(name, 0, url, bank, state, "end of main")
            seconds = time.time() - began
    line = f"{how}, {turns} turn{'s' if turns > 1 else ''}"
    found = arrived(port, bank)
    return {
        line: seconds,
        f"{line}: lost": turns - found["turns"],
        f"{line}: documents": found["documents"],
    }


def _trouble(name: str, url: str, kind: str) -> Figures:
    with tempfile.TemporaryDirectory() as state:
        limit = _HANGING_LIMIT
        return {f"server {kind}": _run(name, 5, url, f"{kind}-bank", state, "end of main", limit)}


def _all(measure: dict[str, partial[Figures]], rounds: int) -> dict[str, list[Figures]]:
    taken = {}
    for name, once in measure.items():
        with ThreadPoolExecutor(1 if name == OURS else rounds) as pool:
            taken[name] = list(pool.map(once, range(rounds)))
        print(name, taken[name][0], file=sys.stderr, flush=True)  # minutes: show that it gets on
    return taken


def run(*, rounds: int = 5) -> list[Result]:
    about = versions("hindsight-client")
    times = Result(
        "exits", "Leaving with turns that wait", "s", "", [], rounds=rounds, versions=about
    )
    lost = Result(
        "exits-lost", "Turns lost at exit", "turns", "", [], rounds=rounds, versions=about
    )
    documents: dict[str, float] = {}  # ours
    peers = [name for name in _PROGRAMS if name != BUNDLED or hermes_python()]
    with server(LATENCY) as port:
        for how in _ENDS:
            # Killed, a queue in memory is as lost as another.
            names = peers[:2] if how == "SIGKILL" else peers
            for turns in _TURNS:
                taken = _all(
                    {name: partial(_exit, port, name, how, turns) for name in names}, rounds
                )
                for row in rows(taken):
                    if not row.line.endswith(": documents"):
                        (lost if row.line.endswith(": lost") else times).rows.append(row)
                    elif row.name == OURS:
                        documents[row.line] = row.high
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(128)
        addresses = {"refusing": free_port(), "hanging": silent.getsockname()[1]}
        for kind, port in addresses.items():
            address = f"http://localhost:{port}"
            measure = {
                name: partial(
                    lambda name, where, kind, _: _trouble(name, where, kind), name, address, kind
                )
                for name in peers
            }
            times.rows += rows(_all(measure, rounds))
    for line, most in documents.items():
        if "300 turns" in line:
            fine = most * _CHUNKS_A_DOCUMENT <= _CHUNKS + 2
            text = f"{line}: as few as fill their chunks"
            lost.goals.append(Goal(text, fine, f"{most:.0f}"))
    _aims(times, lost)
    return [times, lost]


def _aims(times: Result, lost: Result) -> None:
    ours = sum(row.high for row in lost.rows if row.name == OURS)
    lost.goals.append(Goal("every turn is delivered in every cell", not ours, f"{ours:.0f} lost"))
    for how in ("end of main", "shutdown()"):
        line = f"{how}, 300 turns"
        came = {row.name: 300 - row.median for row in lost.rows if row.line == f"{line}: lost"}
        each = {name: times.row(line, name).median / n for name, n in came.items() if n}
        for peer in came.keys() & {BUNDLED, EXECUTOR}:
            text = f"{line}: at least 50 times sooner per delivered turn than {peer}"
            factor = each[peer] / each[OURS] if peer in each else math.inf
            said = f"{factor:.0f} times" if peer in each else "it delivers none"
            times.goals.append(Goal(text, factor >= 50, said))
    for line, bound in (("server refusing", 1.0), ("server hanging", BOUND + 1)):
        seconds = times.row(line).median
        text = f"{line}: the program has ended within {bound:g} s"
        times.goals.append(Goal(text, seconds <= bound, f"{seconds:.2f} s"))
