"""Every end of a process and every state of the server: what became of the turns.

Each cell is a process that gives turns and ends, and a second one that finds the server well and
delivers what is left. From `tests/`, `python -m exit.matrix FOLDER` runs all cells and writes
`matrix.json` and `matrix.md` there.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from children import Process
from hindsight.proxy import Proxy, at_random, read_message
from serving import Serving, stored

from hindsight_exec.cli.status import look

DRAIN_TIMEOUT = 1.0
#: Seconds after which a process that does not end is killed, and its cell has failed.
LIMIT = DRAIN_TIMEOUT + 90.0
#: Cells at once: most of a cell's time is waiting.
AT_ONCE = 5

ENDS = {
    "end of main": "give()",
    "sys.exit": "give(); ending(); sys.exit(3)",
    "exception": "give(); ending(); raise LookupError",
    "Ctrl-C": "give(); kill('SIGINT')",
    "Ctrl-C twice": """
def again():
    closing.wait()
    closing.clear()
    closing.wait(0.2)  # the others are on their way
    os.kill(os.getpid(), signal.SIGINT)

# Exit waits for this job too, and so hears the signal while it drains.
closing = threading.Event()
second = DrainingExecutor(drain_timeout=60, on_closing=closing.set, on_deadline=int)
second.submit(again)
give()
kill('SIGINT')
""",
    "SIGTERM": "give(); kill('SIGTERM')",
    "SIGTERM handled": """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))
give()
kill('SIGTERM')
""",
    "SIGHUP": "give(); kill('SIGHUP')",
    "SIGKILL": "give(); kill('SIGKILL')",
    "os._exit": "give(); ending(); os._exit(5)",
    "daemon thread": """
threading.Thread(target=give, daemon=True).start()
taken.wait()  # the first turn; main ends while more are given
""",
    "atexit": "atexit.register(give)",
    "session switch": "give(half, 'before'); writer.end_session('before'); give()",
}

GIVE = """\
import atexit, os, signal, sys, threading, time
from pathlib import Path
from hindsight_exec import DrainingExecutor, RetainWriter, Settings

url, bank, state, turns, timeout = sys.argv[1:]
settings = Settings(api_url=url, bank_id=bank, drain_timeout=float(timeout))
writer = RetainWriter(settings, state=Path(state))
numbers, half, taken = iter(range(int(turns))), (int(turns) + 1) // 2, threading.Event()

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def give(count=None, session="s"):
    for number in numbers if count is None else [next(numbers) for _ in range(count)]:
        content = f"{number} was said, and some words more to make it a sentence"
        writer.put([{"role": "user", "content": content}], session=session)
        say("taken", number)
        taken.set()

def ending():
    say("ending", time.monotonic())

def kill(name):
    ending()
    os.kill(os.getpid(), getattr(signal, name))
    signal.pause()

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and so does what nohup starts
sys.excepthook = lambda *_: None  # the program's own traceback
"""

DELIVER = """\
import sys
from pathlib import Path
from hindsight_exec import RetainWriter, Settings

url, bank, state = sys.argv[1:]
writer = RetainWriter(Settings(api_url=url, bank_id=bank, drain_timeout=60), state=Path(state))
assert writer.deliver_all(60)
"""


def _answer(status: str, body: str, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", body]
    return "\r\n".join(lines).encode()


DELAYS = {"slow": 0.1, "slower than the bound": 3 * DRAIN_TIMEOUT}
ANSWERS = {
    "500": [_answer("500 Broken", "{}")],
    "503": [_answer("503 Busy", "{}", "Retry-After: 120")],
    "401": [_answer("401 Who", "{}")],
    "unparseable": [_answer("200 OK", "<html>"), b"SSH-2.0-x\r\n\r\n\r\n"],
}
SERVERS = ["fine", *DELAYS, "refusing", "hanging", "cutting", *ANSWERS]
#: A quick run takes a server of each kind for every end, in turn.
KINDS = [SERVERS[:3], SERVERS[3:6], SERVERS[6:]]
HOSTS = ["localhost", "127.0.0.1"]
TURNS = [1, 5, 300]


class Cell(NamedTuple):
    end: str
    server: str
    host: str
    turns: int


class Front(Proxy):
    """Between the process and the embedded server, in the state that it is told."""

    def __init__(self, server: str, state: str, seed: int, at: socket.socket) -> None:
        self.state = state
        self._answers = itertools.cycle(ANSWERS.get(state, ()))
        plan = at_random(1.0, seed=seed)
        super().__init__(
            server, lambda exchange: plan(exchange) if self.state == "cutting" else None, at=at
        )

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answers: asyncio.StreamReader,
        upstream: asyncio.StreamWriter,
    ) -> bool:
        if self.state in ("fine", "cutting"):
            return await super()._exchange(reader, writer, answers, upstream)
        state = self.state
        raw = (await read_message(reader))[0]
        if state == "hanging":
            await reader.read()  # until the client goes
            return False
        if state in ANSWERS:
            writer.write(next(self._answers))
            return True
        await asyncio.sleep(DELAYS[state])
        upstream.write(raw)  # also if the client has gone
        writer.write((await read_message(answers))[0])
        return True

    def settle(self) -> None:
        """Wait until all connections are closed, and their requests done."""

        async def settle() -> None:
            if self._tasks:
                await asyncio.wait(self._tasks)

        asyncio.run_coroutine_threadsafe(settle(), self._loop).result(LIMIT)


#: What may be said on stderr, each once. A worker that still imports its HTTP client when the bound
#: has run out is left alone.
EXPECTED = [
    (
        r"\d+ turns? (is|are) saved on disk and will be sent at the next start, "
        r"or by 'hindsight-exec flush'"
    ),
    r"hindsight-writer: (drain_timeout .* expired|interrupted); 1 job abandoned",
    r".* HTTP 401.*\. Turns are saved on disk and will be sent once the key is correct\.",
]
EXPECTED_OF = {"Ctrl-C twice": r"Exit does not wait any longer: KeyboardInterrupt"}


def noise(text: str, expected: Iterable[str]) -> list[str]:
    """The lines but those that are expected."""
    lines = text.splitlines()
    for pattern in expected:
        found = next((line for line in lines if re.fullmatch(pattern, line)), None)
        if found is not None:
            lines.remove(found)
    return lines


def _run(program: str, folder: Path, *args: object) -> tuple[str, str, float]:
    """Run a program; what it said, what it complained of, and when it had ended."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    with Process(
        [sys.executable, "-c", program, *map(str, args)],
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            err += f"still alive after {LIMIT} s\n"
        return out, err, time.monotonic()


def run(cell: Cell, *, number: int, url: str) -> dict[str, Any]:
    """Run a cell against the embedded server at `url`, in a bank of its own."""
    bank = f"b{number}"

    def arrived() -> Counter[str]:
        sessions = stored(url, bank).values()
        return Counter(text.split()[0] for texts in sessions for text in texts)

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        state = folder / "state"
        # Bound and not listening: nobody else gets the port, and it refuses.
        at = stack.enter_context(socket.socket())
        at.bind(("127.0.0.1", 0))
        where = (f"http://{cell.host}:{at.getsockname()[1]}", bank, state)
        start = partial(Front, url, cell.server, number, at)
        front = None if cell.server == "refusing" else stack.enter_context(start())
        end = f"{ENDS[cell.end]}\nending()\n"
        began = time.monotonic()
        out, err, ended = _run(GIVE + end, folder, *where, cell.turns, DRAIN_TIMEOUT)
        said = [line.split() for line in out.splitlines()]
        taken = [words[1] for words in said if words[0] == "taken"]
        ending = [float(words[1]) for words in said if words[0] == "ending"]
        delivered = arrived()
        waiting = sum(file.summary.waiting for file in look(state))

        if front is None:
            front = stack.enter_context(start())
        front.state = "fine"
        _, complaints, _ = _run(DELIVER, folder, *where)
        front.settle()
        limit = time.monotonic() + LIMIT
        while (found := arrived()).keys() < {*taken} and time.monotonic() < limit:
            time.sleep(0.05)  # the server has yet to run what it accepted
    expected = [*EXPECTED, EXPECTED_OF.get(cell.end, "")]
    return {
        **cell._asdict(),
        "taken": len(taken),
        "delivered": sum(one in delivered for one in taken),
        "waiting": waiting,
        "lost": sum(one not in found for one in taken),
        "twice": sum(count > 1 for count in found.values()),
        "seconds": round(ended - (ending or [began])[0], 3),
        "noise": noise(err, expected) + complaints.splitlines(),
    }


def run_all(cells: Iterable[Cell]) -> Iterator[dict[str, Any]]:
    """Run cells, some at once; what became of each, as they end."""
    serving = Serving()
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        jobs = [pool.submit(run, cell, number=n, url=serving.url) for n, cell in enumerate(cells)]
        for job in as_completed(jobs):
            yield job.result()
    finally:
        pool.shutdown(cancel_futures=True)
        serving.close()


def failed(row: dict[str, Any]) -> bool:
    """Whether a cell did not end as every one must."""
    enough = row["taken"] == row["turns"] or (row["end"] == "daemon thread" and row["taken"])
    return bool(row["lost"] or row["twice"] or row["noise"] or not enough)


def whole() -> list[Cell]:
    return [Cell(*values) for values in itertools.product(ENDS, SERVERS, HOSTS, TURNS)]


def _pairs(cell: Cell) -> set[tuple[object, object]]:
    """What a cell covers: pairs of its values, of end and kind of server instead of server."""
    kind = next(number for number, servers in enumerate(KINDS) if cell.server in servers)
    pairs = {*itertools.combinations(cell, 2)} - {(cell.end, cell.server)}
    return {*pairs, (cell.end, kind)}


def pairwise() -> list[Cell]:
    """Few cells that cover all pairs, the same ones each time: of all, the one that adds most."""
    cells = whole()
    left = set().union(*map(_pairs, cells))
    chosen: list[Cell] = []
    while left:
        best = max(cells, key=lambda cell: len(_pairs(cell) & left))
        left -= _pairs(best)
        chosen.append(best)
    return chosen


def summary(rows: list[dict[str, Any]]) -> str:
    """The results by end and by server, as Markdown."""
    about = f"CPython {platform.python_version()}, {date.today()}, {os.cpu_count()} cores"
    lines = [f"{about}: {len(rows)} cells, {sum(map(failed, rows))} failed, "]
    lines[0] += f"{sum(row['taken'] for row in rows)} turns."
    for by, values in (("end", ENDS), ("server", SERVERS)):
        names = ["cells", "taken", "delivered at exit", "waiting on disk", "lost", "twice"]
        names += ["lines of noise", "exit, median s", "exit, longest s"]
        lines += ["", f"| {by} | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for value in values:
            of = [row for row in rows if row[by] == value]
            seconds = [row["seconds"] for row in of]
            sums = [sum(row[key] for row in of) for key in ("taken", "delivered", "waiting")]
            sums += [sum(row[key] for row in of) for key in ("lost", "twice")]
            figures = [len(of), *sums, sum(len(row["noise"]) for row in of)]
            times = [f"{how(seconds):.2f}" for how in (statistics.median, max)]
            lines.append(f"| {value} | " + " | ".join(map(str, [*figures, *times])) + " |")
    return "\n".join(lines) + "\n"


def main(folder: str) -> list[dict[str, Any]]:
    """Run the whole and write it down; the cells that failed."""
    rows: list[dict[str, Any]] = []
    cells = whole()
    for row in run_all(cells):
        rows.append(row)
        if failed(row):
            print(f"FAILED {row}", flush=True)
        if len(rows) % 50 == 0:
            print(f"{len(rows)} of {len(cells)} cells", flush=True)
    rows.sort(key=lambda row: cells.index(Cell(*(row[key] for key in Cell._fields))))
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    (target / "matrix.json").write_text(f"[\n{lines}\n]\n")
    (target / "matrix.md").write_text(summary(rows))
    return [row for row in rows if failed(row)]


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1]) else 0)
