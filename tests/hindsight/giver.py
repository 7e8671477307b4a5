"""A program that gives turns, as a user's would: started, watched and killed by the tests.

Its argument is JSON: `sessions`, `first` and `turns` say what is given, `size` how much text a
turn has, `pause` how many seconds lie between two, and `then` what follows: "exit", "flush"
(wait until all is processed) or "adopt" (wait until the state directory holds nothing more).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from dataclasses import asdict
from datetime import datetime, timezone

from hindsight_exec import RetainWriter, Settings
from hindsight_exec.conversation.turns import turn_messages
from hindsight_exec.delivery import schedule
from hindsight_exec.outbox import spool


def say(*words: object) -> None:
    """Print a line whole, and at once."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def text(session: str, number: int, size: int) -> str:
    """What is said in a turn; its mark is found nowhere else."""
    filling = " ".join(f"word{(number * 31 + k) % 997}" for k in range(size // 8))
    return f"Turn <{session}#{number}> {filling}"


def main() -> None:
    task = json.loads(sys.argv[1])
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)d %(message)s")
    if "retries" in task:  # seconds; the real ones add up to a quarter of an hour
        schedule._RETRIES = tuple(task["retries"])
    writer = RetainWriter(Settings.load(), on_trouble=lambda words: say("trouble", words))
    first = task.get("first", 0)
    for number in range(first, first + task.get("turns", 0)):
        for session in task["sessions"]:
            said = text(session, number, task.get("size", 200))
            at = datetime.now(timezone.utc)
            writer.put(turn_messages(said, f"Noted, {number}.", at=at), session=session)
            say("given", session, number)
        time.sleep(task.get("pause", 0))
    then = task["then"]
    if then == "flush":
        say("flushed", writer.flush(task["seconds"], completed=True))
    while then == "adopt" and spool.files(writer.folder):
        time.sleep(0.02)
    say("counters", json.dumps(asdict(writer.counters())))


if __name__ == "__main__":
    main()
