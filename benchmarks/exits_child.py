"""A program that gives turns and ends: ``exits_child.py WHO TURNS URL BANK STATE HOW``."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Callable

BOUND = 2.0

#: Gives a turn, and closes.
Peer = tuple[Callable[[str], object], Callable[[], object]]


def ours(url: str, bank: str, state: str) -> Peer:
    from hindsight_exec import RetainWriter, Settings

    settings = Settings(
        mode="local_external",
        api_url=url,
        bank_id=bank,
        # Short for the server that hangs, or there would be little to see.
        drain_timeout=BOUND if bank.startswith("hanging") else 10.0,
    )
    writer = RetainWriter(settings, state=Path(state))
    if not int(sys.argv[2]):  # the next start
        writer.deliver_all(60)

    def give(text: str) -> None:
        writer.put([{"role": "user", "content": text}], session="s")

    return give, writer.close


def _post(url: str, bank: str) -> Callable[[str], object]:
    from hindsight_client import Hindsight

    client = Hindsight(base_url=url)
    return lambda text: client.retain(bank_id=bank, content=text)


def executor(url: str, bank: str, _state: str) -> Peer:
    from concurrent.futures import ThreadPoolExecutor

    post, pool = _post(url, bank), ThreadPoolExecutor(1)
    return lambda text: pool.submit(post, text), pool.shutdown


def daemon(url: str, bank: str, _state: str) -> Peer:
    import atexit
    import threading
    from queue import SimpleQueue

    post = _post(url, bank)
    queue: SimpleQueue[str] = SimpleQueue()

    def work() -> None:
        while text := queue.get():
            try:
                post(text)
            except Exception as error:
                print(repr(error)[:200], file=sys.stderr)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()

    def close() -> None:
        queue.put("")
        thread.join()

    atexit.register(close)
    return queue.put, close


def bundled(url: str, bank: str, state: str) -> Peer:
    from .measure import bundled_provider

    provider = bundled_provider(Path(state), url, bank)  # shuts itself down by atexit
    return lambda text: provider.sync_turn(text, "yes", session_id="s"), provider.shutdown


PEERS = {"ours": ours, "executor": executor, "daemon": daemon, "bundled": bundled}


def main() -> None:
    who, turns, url, bank, state, how = sys.argv[1:]
    give, close = PEERS[who](url, bank, state)
    for number in range(int(turns)):
        give(f"turn-{number} " + "of some words " * 40)
    print(time.time(), flush=True)  # from here on it leaves
    if how == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "shutdown()":
        close()


if __name__ == "__main__":
    main()
