"""`hindsight-exec demo`: end processes in five ways, and count which of their turns are stored."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Iterator

from hindsight_exec.client.api import HindsightClient
from hindsight_exec.client.loop import background_loop
from hindsight_exec.errors import HindsightExecError
from hindsight_exec.executor import DrainingExecutor
from hindsight_exec.executor.waiting import now

from .console import OK, UNDONE, coloured, note, say, say_json, table
from .demo_child import BANK

if TYPE_CHECKING:
    import argparse

    from typing_extensions import Self

# The columns: what each is called in JSON and in the table.
_COLUMNS = {
    "ours": ("hindsight_exec", "hindsight-exec"),
    "aiohttp": ("pool_aiohttp", "pool, aiohttp"),
    "urllib": ("pool_urllib", "pool, urllib"),
}
_PROGRAM = (sys.executable, "-m", "hindsight_exec")

# Seconds that a request takes: about what a real server takes to accept one.
_LATENCY = 0.05

# Seconds after which a process counts as stuck. Nothing here comes near.
_STUCK = 30.0


@dataclass(frozen=True)
class Ending:
    """A way for a process to end."""

    name: str
    end: str = "return"  # what the process does
    signal: int | None = None  # what is done to it
    server: bool = True  # whether the server is there


ENDINGS = (
    Ending("falls off the end of main"),
    Ending("Ctrl-C", "wait", signal.SIGINT),
    Ending("raises an exception", "raise"),
    Ending("SIGKILL, then the next start", "wait", getattr(signal, "SIGKILL", signal.SIGTERM)),
    Ending("server down, then the next start", server=False),
)


@dataclass
class Outcome:
    """What became of the turns of one process."""

    ending: str
    given: int
    stored: int
    twice: int
    exit_seconds: float

    @property
    def right(self) -> bool:
        return self.stored == self.given and not self.twice


def run(args: argparse.Namespace) -> int:
    if not args.json:
        say(
            f"Processes accept {args.turns} turns each, and end. The server takes"
            f" {_LATENCY * 1000:.0f} ms for a request."
        )
    # One lane for each column. Leaving in the middle ends the processes first: the lanes wait.
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hindsight-exec-")))
        server = stack.enter_context(_Server(folder / "server"))
        lanes = stack.enter_context(DrainingExecutor(len(_COLUMNS)))
        processes = stack.enter_context(_Processes())
        columns = [
            [_Trial(kind, one, args.turns, server, folder, processes) for one in ENDINGS]
            for kind in _COLUMNS
        ]
        list(lanes.map(partial(_end_trials, with_server=True), columns))
        server.stop()
        list(lanes.map(partial(_end_trials, with_server=False), columns))
        server.start()
        found = lanes.map(lambda trials: [trial.outcome() for trial in trials], columns)
        outcomes = dict(zip(_COLUMNS, found))
    ours = outcomes["ours"]
    right = all(outcome.right for outcome in ours)
    if args.json:
        say_json({_COLUMNS[kind][0]: list(map(asdict, found)) for kind, found in outcomes.items()})
    else:
        _show(outcomes)
    if not right:
        lost = sum(outcome.given - outcome.stored for outcome in ours)
        note(f"hindsight-exec lost {lost} turns and stored {sum(o.twice for o in ours)} twice")
    return OK if right else UNDONE


def _show(outcomes: dict[str, list[Outcome]]) -> None:
    rows = [("turns stored, exit time", *(_COLUMNS[kind][1] for kind in outcomes))]
    for number, ending in enumerate(ENDINGS):
        found = [column[number] for column in outcomes.values()]
        cells = [f"{one.stored}  {one.exit_seconds:5.2f} s" for one in found]
        rows.append((ending.name, *cells))
    say()
    table(rows, right=(1, 2, 3))
    say()
    if all(one.right for one in outcomes["ours"]):
        say(coloured("hindsight-exec stored every accepted turn once.", "green"))


def _end_trials(trials: list[_Trial], *, with_server: bool) -> None:
    for trial in trials:
        if trial.ending.server == with_server:
            trial.end()


class _Processes:
    """The running processes, so that a demo that is left takes them along. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._left = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._left = True
            running = list(self._running)
        for process in running:
            process.kill()

    @contextlib.contextmanager
    def start(self, command: list[str]) -> Iterator[subprocess.Popen[str] | None]:
        """A process, ended with the block; None once the demo is left."""
        with self._lock:
            process = None if self._left else _start(command)
            self._running |= {process} if process else set()
        try:
            yield process
        finally:
            if process is not None:
                with self._lock:
                    self._running.discard(process)
                _end(process)


class _Server:
    """The embedded server as a process of its own, at one port however often it is started."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._process: subprocess.Popen[str] | None = None
        self.url = "http://127.0.0.1:0"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        port = self.url.rpartition(":")[2]
        command = [*_PROGRAM, "serve", "--port", port, "--data", str(self._data), "--until-eof"]
        command += ["--latency", str(_LATENCY)]
        self._process = _start(command, stdin=subprocess.PIPE)
        self.url = _first_line(self._process)
        if not self.url:
            raise HindsightExecError("the demo's server did not start")

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            _end(process)


@dataclass
class _Trial:
    """One process, from its start to the count of what is stored of its turns."""

    kind: str
    ending: Ending
    turns: int
    server: _Server
    folder: Path
    processes: _Processes
    seconds: float = 0.0

    @property
    def session(self) -> str:
        return f"{self.kind}-{ENDINGS.index(self.ending)}"

    @property
    def state(self) -> Path:
        return self.folder / self.session

    def end(self) -> None:
        """Run the process to its end."""
        command = [
            *(sys.executable, "-m", "hindsight_exec.cli.demo_child"),
            *(self.kind, self.server.url, self.session, str(self.turns)),
            *(self.ending.end, str(self.state)),
        ]
        with self.processes.start(command) as child:
            if child is None:
                return
            _first_line(child)  # all turns are accepted
            began = now()
            if self.ending.signal is not None:
                child.send_signal(self.ending.signal)
            try:
                child.wait(_STUCK)
                self.seconds = now() - began
            except subprocess.TimeoutExpired:
                self.seconds = _STUCK

    def outcome(self) -> Outcome:
        if self.kind == "ours" and any(self.state.glob("*.db")):
            # What the next program that uses the directory does. On a machine under load, turns
            # may be on disk where none are expected; they are not lost.
            flush = [*_PROGRAM, "flush", "--state", str(self.state), "--timeout", str(_STUCK)]
            with self.processes.start(flush) as process:
                if process is not None:
                    process.wait()
        counts = Counter(background_loop().run(_stored(self.server.url, self.session)).result())
        twice = sum(count - 1 for count in counts.values())
        return Outcome(self.ending.name, self.turns, len(counts), twice, self.seconds)


async def _stored(url: str, session: str) -> list[str]:
    """The session's questions on the server, each as often as it is stored."""
    async with HindsightClient(url) as client:
        # Operations run in their order: when this one is done, all before it are.
        marker = await client.retain(BANK, [{"content": "marker", "document_id": "marker"}])
        while True:
            operation = await client.operation(BANK, marker["operation_id"])
            if operation["status"] not in ("pending", "processing"):
                break
        page = await client.documents(BANK, tags=[f"session:{session}"], limit=10_000)
        ids = [item["id"] for item in page["items"]]
        documents = await asyncio.gather(*(client.document(BANK, name) for name in ids))
    lists = (json.loads(document["original_text"]) for document in documents)
    return [one["content"] for messages in lists for one in messages if one["role"] == "user"]


def _start(command: list[str], stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """A process that Ctrl-C at our terminal does not reach; we end it ourselves."""
    # Without the user's configuration: the demo talks to its own server only.
    user = ("HINDSIGHT_", "HERMES_")
    environment = {name: one for name, one in os.environ.items() if not name.startswith(user)}
    return subprocess.Popen(  # noqa: S603 - our own program
        command,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # an exit without us is loud
        text=True,
        env=environment,
        start_new_session=True,
    )


def _first_line(process: subprocess.Popen[str]) -> str:
    return process.stdout.readline().strip() if process.stdout else ""


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
