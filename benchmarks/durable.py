"""What a turn costs the caller until it is on disk, beside queues that keep theirs in SQLite.

All are given the same messages and keep them in WAL mode on the same disk, at the same
``synchronous``; only the raw INSERT is given its bytes ready.  Ours runs with its worker, which
asks a server that is down meanwhile.
Tight: one turn after the other. Paced: one every ten milliseconds; people talk more slowly.

A crowd is many threads that give turns at once, as a gateway's chats do. It is measured beside the
code before its threads shared their commits, and on a disk whose syncs take 20 ms.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterator

from hindsight_exec import RetainWriter, Settings
from hindsight_exec.conversation.turns import turn

from .measure import (
    OURS,
    Figures,
    Goal,
    Result,
    Row,
    environment,
    free_port,
    quantile,
    rows,
    side_by_side,
    versions,
)

REFERENCE = "raw INSERT (the limit)"
SIZES = {"1 KiB": 1 << 10, "100 KiB": 100 << 10}

#: Turns in a run, tight and paced, and the seconds between paced ones.
TIGHT, PACED, PACE = 30, 20, 0.01

#: Seconds before a run in which our worker ends what it does with the turns of the run before: it
#: is in the same process, and would be measured with the others.
SETTLE = 0.1

Put = Callable[[list[dict[str, str]], str], object]  # the messages, and their JSON


def messages(size: int) -> list[dict[str, str]]:
    """A turn whose two messages have ``size`` bytes as JSON, together."""
    made = [{"role": role, "content": ""} for role in ("user", "assistant")]
    rest = size - len(turn(made, given_at=0, index=1).payload)
    made[0]["content"] = "a word " * (rest // 14)
    made[1]["content"] = "b" * (rest - len(made[0]["content"]))
    return made


def _figures(put: Put, size: int) -> Figures:
    given = messages(size)
    text = json.dumps(given)
    time.sleep(SETTLE)
    tight = [_time(put, given, text) for _ in range(TIGHT)]
    paced = []
    for _ in range(PACED):
        time.sleep(PACE)
        paced.append(_time(put, given, text))
    return {
        "tight, p50": quantile(tight, 0.5) / 1e3,
        "tight, p99": quantile(tight, 0.99) / 1e3,
        "paced, p50": quantile(paced, 0.5) / 1e3,
        "paced, p99": quantile(paced, 0.99) / 1e3,
    }


def _time(put: Put, given: list[dict[str, str]], text: str) -> int:
    start = time.perf_counter_ns()
    put(given, text)
    return time.perf_counter_ns() - start


@contextlib.contextmanager
def ours(folder: Path, synchronous: str) -> Iterator[Put]:
    settings = Settings(
        mode="local_external",
        api_url=f"http://127.0.0.1:{free_port()}",
        bank_id="bench",
        durability=synchronous.lower(),
        drain_timeout=0,
    )
    writer = RetainWriter(settings, state=folder)
    writer.put(messages(100), session="first", immediate=True)
    while not writer.counters().last_error:  # until it knows that the server is down
        time.sleep(0.01)
    yield lambda given, _text: writer.put(given, session="s")
    writer.close(0)


@contextlib.contextmanager
def raw(folder: Path, synchronous: str) -> Iterator[Put]:
    db = sqlite3.connect(folder / "raw.db", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute(f"PRAGMA synchronous = {synchronous}")
    db.execute("CREATE TABLE turns (id INTEGER PRIMARY KEY, payload TEXT NOT NULL)")
    yield lambda _given, text: db.execute("INSERT INTO turns (payload) VALUES (?)", (text,))
    db.close()


@contextlib.contextmanager
def _persist_queue(folder: Path, _synchronous: str) -> Iterator[Put]:
    from persistqueue import SQLiteAckQueue

    queue = SQLiteAckQueue(str(folder), multithreading=True)
    yield lambda given, _text: queue.put(given)
    queue.close()


@contextlib.contextmanager
def _litequeue(folder: Path, synchronous: str) -> Iterator[Put]:
    from litequeue import LiteQueue

    queue = LiteQueue(folder / "queue.db")
    queue.conn.execute(f"PRAGMA synchronous = {synchronous}")
    yield lambda given, _text: queue.put(json.dumps(given))  # it takes texts only
    queue.close()


@contextlib.contextmanager
def _huey(folder: Path, synchronous: str) -> Iterator[Put]:
    from huey import SqliteHuey

    huey = SqliteHuey("bench", filename=str(folder / "huey.db"), fsync=synchronous == "FULL")
    task: Any = huey.task()(len)
    yield lambda given, _text: task(given)
    huey.storage.close()


@contextlib.contextmanager
def _diskcache(folder: Path, synchronous: str) -> Iterator[Put]:
    from diskcache import Cache

    # By default it keeps 100 KiB in a file beside, which it does not sync.
    level = 2 if synchronous == "FULL" else 1
    with Cache(str(folder), sqlite_synchronous=level, disk_min_file_size=1 << 20) as cache:
        yield lambda given, _text: cache.push(given)


_PEERS = {
    REFERENCE: raw,
    OURS: ours,
    "persist-queue": _persist_queue,
    "litequeue": _litequeue,
    "huey": _huey,
    "diskcache": _diskcache,
}
#: What a peer cannot do at NORMAL, where it is marked or left out.
_AT_NORMAL = {"huey": "huey (syncs nothing)", "persist-queue": ""}


def run(*, rounds: int = 9) -> list[Result]:
    return [_run(rounds=rounds), run_crowd(rounds=rounds)]


def _run(*, rounds: int) -> Result:
    every: list[Row] = []
    for synchronous in ("FULL", "NORMAL"):
        names = {name: name for name in _PEERS}
        if synchronous == "NORMAL":
            names.update(_AT_NORMAL)
        for size_name, size in SIZES.items():
            with contextlib.ExitStack() as stack:
                contestants = {}
                for name, peer in _PEERS.items():
                    if names[name]:
                        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                        put = stack.enter_context(peer(folder, synchronous))
                        contestants[names[name]] = partial(_figures, put, size)
                taken = side_by_side(contestants, rounds=rounds)
            for row in rows(taken, REFERENCE):
                row.line = f"{synchronous}, {size_name}, {row.line}"
                every.append(row)
    result = Result(
        "durable",
        "A turn until it is on disk",
        "µs",
        REFERENCE,
        every,
        rounds=rounds,
        versions=versions("persist-queue", "litequeue", "huey", "diskcache"),
    )
    for size_name in SIZES:
        for pace in ("tight", "paced"):
            line = f"FULL, {size_name}, {pace}, p50"
            result.aim("at most 1.3 x the raw INSERT", line, 1.3)
            best = min(
                (row for row in every if row.line == line and row.name not in (REFERENCE, OURS)),
                key=lambda row: row.median,
            )
            mine = result.row(line).median
            text = f"{line}: not above {best.name}, the best peer"
            result.goals.append(Goal(text, mine <= best.median, f"{mine / best.median:.2f}"))
    return result


# --- a crowd ------------------------------------------------------------------

#: The last code in which each thread waited for a sync of its own.
BEFORE = "c19c66f"
_ROOT = Path(__file__).parent.parent


def _crowd(tree: Path, folder: Path, preload: dict[str, str]) -> Figures:
    def child(threads: int, each: int, **variables: str) -> Any:
        program = [sys.executable, str(Path(__file__).with_name("durable_child.py"))]
        program += [str(threads), str(each), str(folder)]
        variables = {**environment(), "PYTHONPATH": str(tree), **variables}
        return json.loads(subprocess.check_output(program, env=variables, cwd=folder))

    many, alone = child(300, 3), child(1, 100)
    figures = {
        "300 threads x 3, each turn": many["all"] / 900,
        "300 threads x 3, p50": quantile(many["turns"], 0.5),
        "300 threads x 3, p99": quantile(many["turns"], 0.99),
        "one thread x 100, p50": quantile(alone["turns"], 0.5),
    }
    if preload:
        figures["300 at once, a sync takes 20 ms, all"] = child(300, 1, **preload)["all"]
    return figures


def run_crowd(*, rounds: int = 9) -> Result:
    """The crowd, beside the code before; without git or a C compiler with less to compare."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        contestants, preload = {OURS: _ROOT}, {}
        archive = subprocess.run(
            ["git", "-C", str(_ROOT), "archive", BEFORE, "hindsight_exec"],
            capture_output=True,
            check=False,
        )
        if archive.returncode == 0:
            contestants[f"before ({BEFORE})"] = folder / "before"
            (folder / "before").mkdir()
            subprocess.run(["tar", "-x", "-C", folder / "before"], input=archive.stdout, check=True)
        library = folder / "slow.so"
        source = _ROOT / "tests" / "powercut" / "shim.c"
        if shutil.which("gcc") and sys.platform == "linux":
            command = [
                "gcc",
                "-shared",
                "-fPIC",
                "-O1",
                "-o",
                str(library),
                str(source),
                "-lpthread",
            ]
            subprocess.run(command, check=True)
            preload = {
                "LD_PRELOAD": str(library), "POWERCUT_ROOT": place, "POWERCUT_DELAY": "20",
            }  # fmt: skip
        taken = side_by_side(
            {name: partial(_crowd, tree, folder, preload) for name, tree in contestants.items()},
            rounds=rounds,
        )
    *_, reference = contestants
    every = rows(taken, reference)
    result = Result(
        "crowd", "A turn of a crowd until it is on disk", "µs", reference, every,
        rounds=rounds, versions=versions(),
    )  # fmt: skip
    if reference != OURS:
        result.aim("a fifth", "300 threads x 3, each turn", 0.2)
        result.aim("a tenth", "300 threads x 3, p99", 0.1)
        result.aim("not above", "one thread x 100, p50", 1.0)
    if preload:
        whole = result.row("300 at once, a sync takes 20 ms, all").median
        text = "300 turns at once are safe in 0.2 s where a sync takes 20 ms"
        result.goals.append(Goal(text, whole < 200_000, f"{whole / 1e6:.3f} s"))
    return result
