"""The life of one process: it is started, given work, ended as its users end it, and counted."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

from serving import free_port, get, stored

from .models import ALIVE, EXIT, Model

APPS = Path(__file__).parent / "apps"
#: Seconds after which a process that does not end is killed, and its test has failed.
LIMIT = 30.0
#: What makes a line of a host that logs to standard error count as noise.
TROUBLE = re.compile(r"hindsight_exec|Traceback|Exception|Error|CRITICAL|[Ff]atal|Segmentation")
#: The line that says what waits is no noise, nor is what hosts say of how they are run.
NO_NOISE = re.compile(r"turns? .*saved on disk|MonkeyPatchWarning|SecurityWarning")


class Tally(NamedTuple):
    """What became of the turns of one life."""

    asked: int
    given: int  # `put` returned
    alive: Optional[int]  # stored while the process lived; None if it ends by itself
    exited: int  # stored when it had ended
    stored: int  # stored when the next process had delivered what was left
    twice: int
    status: Optional[int]  # None: it had to be killed
    orphans: bool
    noise: list[str]

    def problems(self, model: Model) -> list[str]:
        """What is not as it has to be."""
        found = [f"{self.asked} turns asked for, {self.given} given"] * (self.given < self.asked)
        if model.delivered == ALIVE and self.alive != self.given:
            found.append(f"{self.given} given, {self.alive} stored while it ran")
        if model.delivered == EXIT and self.exited < self.given:
            found.append(f"{self.given} given, {self.exited} stored when it had ended")
        if self.stored < self.given:
            found.append(f"{self.given} given, {self.stored} stored")
        if self.twice:
            found.append(f"{self.twice} stored twice")
        if self.status is None:
            found.append(f"it did not end within {LIMIT:.0f} s")
        elif self.status != model.status:
            found.append(f"exit status {self.status}, not {model.status}")
        if self.orphans:
            found.append("it left processes behind")
        return found + self.noise


class World(NamedTuple):
    """What stands around a process, and around the next one."""

    prefix: tuple[str, ...] = ()  # the first words of its command
    variables: Mapping[str, str] = {}  # of its environment
    program: str = ""  # what was built for it


class Life:
    """A process of a model, with a bank of its own; it may write in ``folder``."""

    def __init__(self, model: Model, world: World, folder: Path, url: str, bank: str) -> None:
        self.model = model
        self.world = world
        self.folder = folder
        self.url = url
        self.bank = bank
        self.port = free_port()
        self._given = self.folder / "given"
        self._errors = folder.with_suffix(".stderr")
        self._process: Optional[subprocess.Popen[bytes]] = None

    def live(self) -> Tally:
        """All of it; the process and what it started have ended when this returns."""
        asked = self.model.turns
        try:
            self._start()
            if self.model.workers:
                asked = self._request_turns()
            elif self.model.end is not None:
                self._wait(lambda: len(self._notes()) >= asked)
            if self.model.delivered == ALIVE:
                self._wait(lambda: self._count() == len(self._notes()))
            alive = self._count() if self.model.end and self._alive() else None
            status = self._end()
            orphans = status is not None and self._orphans()
        finally:
            self._kill()
        exited = self._count()
        self._deliver()
        notes = self._notes()
        assert len(notes) == len(set(notes)), "the program's own turns have to differ"
        contents = self._contents()
        return Tally(
            asked=asked,
            given=len(notes),
            alive=alive,
            exited=exited,
            stored=len(set(notes) & contents.keys()),
            twice=sum(times > 1 for times in contents.values()),
            status=status,
            orphans=orphans,
            noise=[line for line in self._errors.read_text().splitlines() if self._is_noise(line)],
        )

    # --- the process ------------------------------------------------------

    def _start(self) -> None:
        words = {
            "python": sys.executable,
            "bin": str(Path(sys.executable).parent),
            "prefix": sys.prefix,
            "port": str(self.port),
            "program": self.world.program,
        }
        argv = [*self.world.prefix, *(word.format_map(words) for word in self.model.argv)]
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith("PYTHON")
        }
        environment.update(
            PYTHONPATH=str(APPS),
            PYTHONDONTWRITEBYTECODE="1",
            PYTHONFAULTHANDLER="1",
            HOME=str(self.folder),  # gunicorn, IPython and Jupyter write there
            URL=self.url,
            BANK=self.bank,
            FOLDER=str(self.folder),
            STATE=str(self.folder / "state"),
            GIVEN=str(self._given),
            TURNS_OF_A_PROCESS=str(self.model.turns),
            IDLE="0.2" if self.model.delivered == ALIVE else "60",
            DRAIN="10",
        )
        environment.update(self.model.environment)
        environment.update(self.world.variables)
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                argv,
                cwd=APPS,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,  # so that all that it starts can be found
            )

    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _end(self) -> Optional[int]:
        """End it as its users do; its exit status, or None if it does not end."""
        assert self._process is not None
        if self.model.end == "GET /stop":
            self._get("/stop")
        elif self.model.end == "Ctrl-C":  # the terminal sends it to the whole group
            self._signal_all(signal.SIGINT)
        elif self.model.end is not None:
            self._process.send_signal(signal.Signals[self.model.end])
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(LIMIT)
        return None

    def _orphans(self) -> bool:
        """Whether processes that it started still live, a while after it ended."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if not self._signal_all(0):
                return False
            time.sleep(0.05)
        return True

    def _kill(self) -> None:
        if self._process is not None:
            if self._alive():
                # faulthandler writes where it hangs; the test that failed shows it.
                self._signal_all(signal.SIGABRT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(5)
            self._signal_all(signal.SIGKILL)
            self._process.wait()

    def _signal_all(self, number: int) -> bool:
        """Signal its process group; False if there is none left."""
        assert self._process is not None
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return False
        return True

    def _wait(self, condition: Callable[[], bool]) -> None:
        """Until it holds, the process ends, or the limit is over: the tally tells them apart."""
        deadline = time.monotonic() + LIMIT
        while self._alive() and time.monotonic() < deadline and not condition():
            time.sleep(0.05)

    def _deliver(self) -> None:
        """The next process: it delivers what this one has left."""
        flush = [sys.executable, "-m", "hindsight_exec", "flush", "--timeout", "60"]
        done = subprocess.run(
            [*self.world.prefix, *flush, "--state", str(self.folder / "state")],
            env={**os.environ, **self.world.variables, "HINDSIGHT_API_URL": self.url},
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == 0, done

    # --- its turns --------------------------------------------------------

    def _get(self, path: str = "/") -> Any:
        return get(f"http://127.0.0.1:{self.port}{path}")

    def _request_turns(self) -> int:
        """Send requests until the workers have given all their turns; how many were asked for."""
        deadline = time.monotonic() + LIMIT
        asked: Counter[int] = Counter()

        def wanted() -> bool:
            if self.model.recycled:
                return sum(asked.values()) < self.model.turns
            return sum(turns >= self.model.turns for turns in asked.values()) < self.model.workers

        def one(_: int) -> Optional[dict[str, int]]:
            try:
                answer: dict[str, int] = self._get()
            except (OSError, urllib.error.URLError, json.JSONDecodeError):
                time.sleep(0.05)  # it is starting, or this worker has just been replaced
                return None
            return answer

        with ThreadPoolExecutor(8) as clients:
            while wanted() and self._alive() and time.monotonic() < deadline:
                for answer in clients.map(one, range(8)):
                    if answer is not None:
                        asked[answer["pid"]] += answer["turns"]
        assert not wanted(), f"{asked}: {self._errors.read_text()}"
        # Each module gave one when it was loaded, in the master or in each worker.
        return sum(asked.values()) + 1

    def _notes(self) -> list[str]:
        return self._given.read_text().split() if self._given.exists() else []

    def _contents(self) -> Counter[str]:
        return Counter(text for texts in stored(self.url, self.bank).values() for text in texts)

    def _count(self) -> int:
        return len(set(self._notes()) & self._contents().keys())

    # --- its words --------------------------------------------------------

    def _is_noise(self, line: str) -> bool:
        if self.model.crashes or NO_NOISE.search(line) or not line.strip():
            return False
        return not self.model.logs or bool(TROUBLE.search(line))
