"""Turns that wait when the program ends: how many arrive, and how long the end takes.

A request takes 0.1 s, and the server is named by a host name, as servers are.  Nearly all of a
run is waiting, so the peers' runs, which take up to 30 s each, go side by side; ours go one after
the other.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from .exits_child import BOUND
from .measure import (
    OURS,
    Figures,
    Goal,
    Result,
    arrived,
    environment,
    free_port,
    rows,
    server,
    versions,
)

EXECUTOR, DAEMON = "ThreadPoolExecutor(1) + hindsight-client", "daemon thread + atexit"
_PROGRAMS = {OURS: "ours", EXECUTOR: "executor", DAEMON: "daemon"}

LATENCY = 0.1
#: Seconds after which a program is killed that does not end.
LIMIT = 60.0
_HANGING_LIMIT = 15.0

#: How the program ends, and with how many turns.
_ENDS = {"end of main": (1, 5, 50, 300), "shutdown()": (50, 300), "SIGKILL": (50, 300)}


def _run(
    name: str, turns: int, url: str, bank: str, state: str, how: str, limit: float = LIMIT
) -> float:
    """Run the program; how many seconds it took to leave."""
    program = [
        *(sys.executable, "-m", "benchmarks.exits_child"),
        *(_PROGRAMS[name], str(turns), url, bank, state, how),
    ]
    with subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        began = float(process.stdout.readline())
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
        return time.time() - began


def _exit(url: str, name: str, how: str, turns: int, number: int) -> Figures:
    bank = f"{how.strip('()').replace(' ', '-')}-{_PROGRAMS[name]}-{turns}-{number}"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as state:
        seconds = _run(name, turns, url, bank, state, how)
        if how == "SIGKILL":
            how = "SIGKILL and the next start"
            began = time.time()
            _run(name, 0, url, bank, state, "end of main")
            seconds = time.time() - began
    line = f"{how}, {turns} turn{'s' if turns > 1 else ''}"
    port = int(url.rpartition(":")[2])
    return {line: seconds, f"{line}: lost": turns - arrived(port, bank)["turns"]}


def _trouble(name: str, url: str, kind: str) -> Figures:
    with tempfile.TemporaryDirectory() as state:
        limit = _HANGING_LIMIT
        return {f"server {kind}": _run(name, 5, url, f"{kind}-bank", state, "end of main", limit)}


def _all(measure: dict[str, partial[Figures]], rounds: int) -> dict[str, list[Figures]]:
    taken = {OURS: [measure[OURS](number) for number in range(rounds)]}
    peers = [name for name in measure if name != OURS]
    with ThreadPoolExecutor(rounds * len(peers)) as pool:
        futures = {
            name: [pool.submit(measure[name], number) for number in range(rounds)] for name in peers
        }
        taken.update({name: [one.result() for one in each] for name, each in futures.items()})
    for name, each in taken.items():
        print(name, each[0], file=sys.stderr, flush=True)  # it takes minutes: show that it gets on
    return taken


def run(*, rounds: int = 5) -> list[Result]:
    about = versions("hindsight-client")
    times = Result(
        "exits", "Leaving with turns that wait", "s", "", [], rounds=rounds, versions=about
    )
    lost = Result(
        "exits-lost", "Turns lost at exit", "turns", "", [], rounds=rounds, versions=about
    )
    with server(LATENCY) as port:
        url = f"http://localhost:{port}"
        for how, counts in _ENDS.items():
            for turns in counts:
                names = [OURS] if how == "SIGKILL" else list(_PROGRAMS)
                if how == "SIGKILL":
                    names.append(EXECUTOR)
                taken = _all(
                    {name: partial(_exit, url, name, how, turns) for name in names}, rounds
                )
                for row in rows(taken):
                    (lost if row.line.endswith(": lost") else times).rows.append(row)
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
                for name in _PROGRAMS
            }
            times.rows += rows(_all(measure, rounds))
    _aims(times, lost)
    return [times, lost]


def _aims(times: Result, lost: Result) -> None:
    ours = sum(row.high for row in lost.rows if row.name == OURS)
    lost.goals.append(Goal("every turn is delivered in every cell", not ours, f"{ours:.0f} lost"))
    for how in ("end of main", "shutdown()"):
        line = f"{how}, 300 turns"
        arrived = {row.name: 300 - row.median for row in lost.rows if row.line == f"{line}: lost"}
        if not arrived[EXECUTOR]:
            times.goals.append(Goal(f"{line}: ThreadPoolExecutor delivers", True, "none at all"))
            continue
        each = {
            name: times.row(line, name).median / count for name, count in arrived.items() if count
        }
        factor = each[EXECUTOR] / each[OURS]
        text = f"{line}: at least 50 times sooner per delivered turn than {EXECUTOR}"
        times.goals.append(Goal(text, factor >= 50, f"{factor:.0f} times"))
    for line, bound in (("server refusing", 1.0), ("server hanging", BOUND + 1)):
        seconds = times.row(line).median
        text = f"{line}: the program has ended within {bound:g} s"
        times.goals.append(Goal(text, seconds <= bound, f"{seconds:.2f} s"))
