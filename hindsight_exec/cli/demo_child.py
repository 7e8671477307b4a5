"""The processes of the demo: each accepts turns, and then ends as it is told.

python -m hindsight_exec.cli.demo_child KIND URL SESSION TURNS END STATE
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
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


def request(session: str, number: int) -> dict[str, object]:
    item = {
        "content": json.dumps(turn(number)),
        "document_id": f"{session}/{number:06}",
        "tags": [f"session:{session}"],
    }
    return {"items": [item], "async": True}


def pool_aiohttp(url: str, session: str, _state: Path) -> Give:
    """A thread pool whose jobs use asyncio, as programs with an asynchronous client write them."""
    import aiohttp  # noqa: PLC0415

    async def send(number: int) -> None:
        async with (
            aiohttp.ClientSession() as client,
            client.post(_memories(url), json=request(session, number)) as response,
        ):
            response.raise_for_status()

    executor = ThreadPoolExecutor(1)
    return lambda number: executor.submit(lambda: asyncio.run(send(number)))


def pool_urllib(url: str, session: str, _state: Path) -> Give:
    """A thread pool whose jobs block: the standard library runs all of them at exit."""
    from urllib.request import Request, urlopen  # noqa: PLC0415

    def send(number: int) -> None:
        body = json.dumps(request(session, number)).encode()
        headers = {"Content-Type": "application/json"}
        with urlopen(Request(_memories(url), body, headers)) as response:  # noqa: S310 # nosec B310 - our server
            response.read()

    executor = ThreadPoolExecutor(1)
    return lambda number: executor.submit(send, number)


def _memories(url: str) -> str:
    # By name, as most servers are reached.
    return f"{url.replace('127.0.0.1', 'localhost')}/v1/default/banks/{BANK}/memories"


KINDS = {"ours": ours, "aiohttp": pool_aiohttp, "urllib": pool_urllib}


def main(kind: str, url: str, session: str, turns: str, end: str, state: str) -> None:
    # A shell's background job starts with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    give = KINDS[kind](url, session, Path(state))
    for number in range(int(turns)):
        give(number)
    print("given", flush=True)
    if end == "raise":
        raise ZeroDivisionError("an exception that nothing catches")
    while end == "wait":  # for a signal
        # Short sleeps: a signal that comes just before a sleep does not end it.
        time.sleep(0.05)


if __name__ == "__main__":
    main(*sys.argv[1:])
