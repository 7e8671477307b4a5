"""What memory costs its user: the server's LLM calls for a conversation of 100 turns.

A real server, whose LLM is a stub that counts.  A turn comes every 20 seconds of simulated time:
the clock that turns are dated by is moved on, and the server has processed one before the next
comes, as it would have.  Hermes' own provider is a
process of its own, which is told the time.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterator
from unittest import mock

from hindsight_exec import RetainWriter, Settings
from hindsight_exec.conversation.turns import turn_messages
from tests.hindsight.server import BUSY, Hindsight, Server, eventually

from .measure import (
    BUNDLED,
    OURS,
    Figures,
    Goal,
    Result,
    environment,
    hermes_python,
    rows,
    versions,
)

TURNS, EVERY = 100, 20.0

#: Characters that user and assistant say in a turn, and at most so many calls.
TALKS = {"long turns": (600, 900, 70), "short turns": (80, 220, 25)}

Sync = Callable[[str, str], object]


@contextlib.contextmanager
def ours(url: str, bank: str) -> Iterator[Sync]:
    with tempfile.TemporaryDirectory() as state:
        writer = RetainWriter(Settings(api_url=url, bank_id=bank), state=Path(state))

        def sync(user: str, assistant: str) -> None:
            # As the provider gives it, with the time in each message.
            at = datetime.fromtimestamp(time.time()).astimezone()
            writer.put(turn_messages(user, assistant, at=at), session="s")

        yield sync
        writer.close(60)


@contextlib.contextmanager
def bundled(url: str, bank: str) -> Iterator[Sync]:
    python = hermes_python()
    assert python is not None
    with tempfile.TemporaryDirectory() as home, subprocess.Popen(
        [python, "-m", "benchmarks.extraction_child", url, bank, home],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=environment(python),
    ) as child:  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None

        def sync(user: str, assistant: str) -> None:
            assert child.stdin is not None
            assert child.stdout is not None
            print(json.dumps([time.time(), user, assistant]), file=child.stdin, flush=True)
            assert child.stdout.readline() == "\n", "Hermes' provider has ended"

        yield sync
        child.stdin.close()
        child.wait(60)


def _words(number: int, side: str, length: int) -> str:
    """Text of its own for every turn."""
    return " ".join(f"{side}{number}w{n}" for n in range(length))[:length]


def _measure(
    peer: Callable[[str, str], contextlib.AbstractContextManager[Sync]],
    server: Server,
    hindsight: Hindsight,
    talk: str,
    number: int,
) -> Figures:
    bank = f"{peer.__name__}-{talk.split(maxsplit=1)[0]}-{number}"
    user, assistant, _ = TALKS[talk]
    models = hindsight.models
    calls, characters = models.asked, models.characters
    moved, now = 0.0, time.time
    with mock.patch("time.time", side_effect=lambda: now() + moved), peer(server.url, bank) as sync:
        for turn in range(TURNS):
            sync(_words(turn, "u", user), _words(turn, "a", assistant))
            moved += EVERY
            time.sleep(0.05)  # it is handed on in the background
            eventually(lambda: not server.sql(BUSY), seconds=300)
    eventually(lambda: not server.sql(BUSY), seconds=300)
    stored = server.sql(f"SELECT original_text FROM documents WHERE bank_id = '{bank}'")
    text = "".join(row["original_text"] for row in stored)
    once = [text.count(f"u{turn}w0 ") for turn in range(TURNS)]
    assert once == [1] * TURNS, once
    return {
        f"{talk}: LLM calls": models.asked - calls,
        f"{talk}: thousand characters of prompts": (models.characters - characters) / 1000,
    }


def run(*, rounds: int = 5) -> Result:
    peers: dict[str, Any] = {OURS: ours}
    beside = hermes_python()
    if beside:
        peers[BUNDLED] = bundled
    result = Result(
        "extraction",
        "What a conversation of 100 turns costs in extraction",
        "less is cheaper",
        BUNDLED if beside else "",
        [],
        rounds=rounds,
        versions=versions(),
    )
    with Hindsight() as hindsight, hindsight.server(llm=True) as server:
        for talk in TALKS:
            measure = {
                name: partial(_measure, peer, server, hindsight, talk)
                for name, peer in peers.items()
            }
            taken = {name: [measure[name](number) for number in range(rounds)] for name in measure}
            result.rows += rows(taken, BUNDLED if beside else "")
        result.versions["hindsight-api"] = ".".join(map(str, server.version()))
    for talk, (_, _, most) in TALKS.items():
        calls = result.row(f"{talk}: LLM calls").high
        result.goals.append(
            Goal(f"{talk}: at most {most} LLM calls", calls <= most, f"{calls:.0f}")
        )
    return result
