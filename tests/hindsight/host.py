"""A host that writes to Hindsight: its configuration, its state directory, its programs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Callable, Optional

from children import Process

from .server import BUSY, Server, eventually

MARK = re.compile(r"<([^<>#]+)#(\d+)>")

# Few turns make a document and nothing waits for more, so that short runs see many requests.
SETTINGS = {
    "mode": "local_external",
    "retain_document_chars": 1200,
    "retain_idle_seconds": 0.3,
    "retain_context": "a conversation",
}


class Program:
    """A child that was started; what it prints is read as it comes."""

    def __init__(self, folder: Path, arguments: list[str], environment: dict[str, str]) -> None:
        self.log = folder / f"program-{len(list(folder.glob('program-*')))}.log"
        with self.log.open("wb") as log:
            self.process = Process(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                    **environment,
                },
                cwd=folder,
            )
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def until(self, check: Callable[[list[str]], Any], seconds: float = 60.0) -> Any:
        """Wait for a true answer of `check`, which is given all lines."""
        with self._changed:
            self._changed.wait_for(lambda: check(self.lines) or self._ended, seconds)
            found = check(self.lines)
            assert found, f"{self.lines[-5:]}\n{self.log.read_text()[-3000:]}"
            return found

    def until_given(self, turns: int) -> None:
        self.until(lambda lines: sum(line.startswith("given ") for line in lines) >= turns)

    def said(self, word: str) -> list[str]:
        """The rest of each line that begins with this word."""
        return [line[len(word) + 1 :] for line in self.lines if line.startswith(f"{word} ")]

    @property
    def given(self) -> dict[str, list[int]]:
        """The turns whose `put` has returned."""
        turns = defaultdict(list)
        for line in self.said("given"):
            session, number = line.rsplit(" ", 1)
            turns[session].append(int(number))
        return turns

    @property
    def counters(self) -> dict[str, Any]:
        counters: dict[str, Any] = json.loads(self.said("counters")[-1])
        return counters

    def end(self, seconds: float = 120.0) -> None:
        """Wait until it has ended, well."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still runs:\n{self.log.read_text()[-3000:]}") from None
        self._reader.join()
        assert status == 0, self.log.read_text()[-3000:]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()

    def close(self) -> None:
        self.kill()
        self.process.close()


class Host:
    """Configured as a user would: a config.json, and the key in the environment."""

    def __init__(
        self, folder: Path, url: str, bank: str, *, api_key: str = "", **settings: object
    ) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.api_key = api_key
        self.programs: list[Program] = []
        config = folder / ".hindsight" / "config.json"
        config.parent.mkdir(parents=True)
        config.write_text(json.dumps({**SETTINGS, "api_url": url, "bank_id": bank, **settings}))

    def run(self, *arguments: str) -> Program:
        """Start a Python program on this host."""
        environment = {
            "HOME": str(self.folder),
            "HINDSIGHT_API_KEY": self.api_key,
            "HINDSIGHT_EXEC_STATE": str(self.state),
        }
        program = Program(self.folder, list(arguments), environment)
        self.programs.append(program)
        return program

    def give(self, *sessions: str, then: str = "exit", **task: object) -> Program:
        """Start a program that gives turns: see giver.py."""
        giver = str(Path(__file__).with_name("giver.py"))
        return self.run(giver, json.dumps({"sessions": sessions, "then": then, **task}))

    def deliver(self, seconds: float = 120.0) -> None:
        """Have a new process deliver what earlier ones left; all of it, to the end."""
        self.give(then="adopt").end(seconds)

    def files(self) -> list[str]:
        """What is left in the state directory of turns."""
        return sorted(path.name for path in self.state.glob("*.db"))

    def close(self) -> None:
        for program in self.programs:
            program.close()


def messages(text: str) -> list[dict[str, Any]]:
    """The messages of a document: a list, or as the bundled provider appends them.

    That is a list of turns, which are lists of messages, on each line.
    """
    found: list[dict[str, Any]] = []
    for line in text.split("\n"):
        for entry in json.loads(line):
            found += entry if isinstance(entry, list) else [entry]
    return found


def turns_of(text: str) -> list[tuple[str, int]]:
    """The turns a document holds, in its order."""
    marks = (MARK.search(message["content"]) for message in messages(text))
    return [(mark[1], int(mark[2])) for mark in marks if mark]


def check(
    server: Server,
    bank: str,
    given: Iterable[dict[str, list[int]]],
    *,
    perhaps: Optional[dict[str, set[int]]] = None,
) -> int:
    """Assert that each turn that was given is stored once, and in order; how many documents.

    Args:
        given: What programs said they gave, one after the other.
        perhaps: Turns whose program was killed before it could say that they were taken.
    """
    # What it has accepted it may still be busy with.
    busy = f"{BUSY} AND bank_id = '{bank}'"
    eventually(lambda: not server.sql(busy), seconds=120, pause=0.2)
    expected: dict[str, list[int]] = defaultdict(list)
    for turns in given:
        for session, numbers in turns.items():
            expected[session] += numbers
    rows = server.sql(f"SELECT id, original_text, tags FROM documents WHERE bank_id = '{bank}'")
    found: dict[str, list[int]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["id"]):
        session = row["id"].rpartition("/")[0]
        assert f"session:{session}" in row["tags"]
        for name, number in turns_of(row["original_text"]):
            assert name == session
            found[session].append(number)
    unsure = perhaps or {}
    for session, numbers in found.items():
        assert len(numbers) == len(set(numbers)), f"stored twice in {session}: {numbers}"
        assert numbers == sorted(numbers), f"out of order in {session}: {numbers}"
        found[session] = [
            n for n in numbers if n in expected[session] or n not in unsure.get(session, ())
        ]
    wrong = {s: set(expected[s]) ^ set(found[s]) for s in {*expected, *found}}
    assert {s: sorted(turns) for s, turns in wrong.items() if turns} == {}, "lost, or not given"
    # And what the server made of it, it made once: texts are all different here.
    units = f"FROM memory_units WHERE bank_id = '{bank}'"
    assert server.sql(f"SELECT text {units} GROUP BY text HAVING count(*) > 1") == []
    without = server.sql(
        f"SELECT id FROM documents WHERE bank_id = '{bank}'"
        f" AND id NOT IN (SELECT document_id {units} AND document_id IS NOT NULL)"
    )
    assert without == []
    return len(rows)
