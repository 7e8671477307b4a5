"""The processes of the demo: each is given turns, and then ends as it is told.

python -m hindsight_exec.cli.demo_child ours|theirs URL SESSION TURNS END STATE
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Callable

from hindsight_exec.conversation.turns import turn_messages

BANK = "demo"

Give = Callable[[int], object]


def turn(number: int) -> list[dict[str, str]]:
    return turn_messages(
        f"Question number {number}: where do I keep the bicycle?",
        f"Answer number {number}: behind the house, beside the lemon tree.",
        at=datetime.now(timezone.utc),
    )


def ours(url: str, session: str, state: Path) -> Give:
    from hindsight_exec import RetainWriter, Settings  # noqa: PLC0415 - the others need it not

    writer = RetainWriter(Settings(api_url=url), state=state)
    return lambda number: writer.put(turn(number), session=session, bank=BANK)


def theirs(url: str, session: str, _state: Path) -> Give:
    """What one would write without us: a thread pool, and a request in each job."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    import aiohttp  # noqa: PLC0415

    executor = ThreadPoolExecutor(1)
    # By its name, as servers are reached.
    target = f"{url.replace('127.0.0.1', 'localhost')}/v1/default/banks/{BANK}/memories"

    async def send(number: int) -> None:
        item = {
            "content": json.dumps(turn(number)),
            "document_id": f"{session}/{number:06}",
            "tags": [f"session:{session}"],
        }
        async with (
            aiohttp.ClientSession() as client,
            client.post(target, json={"items": [item], "async": True}) as answer,
        ):
            answer.raise_for_status()

    return lambda number: executor.submit(lambda: asyncio.run(send(number)))


def main(kind: str, url: str, session: str, turns: str, end: str, state: str) -> None:
    # A shell that starts us in the background has SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    give = {"ours": ours, "theirs": theirs}[kind](url, session, Path(state))
    for number in range(int(turns)):
        give(number)
    print("given", flush=True)
    if end == "raise":
        raise ZeroDivisionError("an exception nobody catches")
    while end == "wait":  # until somebody ends it
        # Short: a signal that comes just before a sleep does not end it.
        time.sleep(0.05)


if __name__ == "__main__":
    main(*sys.argv[1:])
