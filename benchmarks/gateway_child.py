"""A gateway's process: ``gateway_child.py ours|bundled PORT HOME CHATS``.

Prints the figures as JSON.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable

from .measure import arrived, bundled_class, configure

BANK = "gateway"
TURNS = 3
#: Seconds between turns, of whichever chat: people do not all talk in the same moment.
PACE = 0.01
#: Seconds that the chats may take to come to rest.
REST = 60.0
_PROCESS = Path("/proc", str(os.getpid()))


def _sockets() -> int:
    count = 0
    for one in (_PROCESS / "fd").iterdir():
        try:
            count += str(one.readlink()).startswith("socket:")
        except OSError:  # closed meanwhile
            continue
    return count


def _memory() -> float:
    """MB."""
    gc.collect()
    status = (_PROCESS / "status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


def _provider_class(who: str) -> Any:
    # The HTTP clients, too: what is imported is another benchmark's.
    if who == "ours":
        import aiohttp  # noqa: F401

        from hindsight_exec.hermes import HindsightMemoryProvider

        return HindsightMemoryProvider
    import hindsight_client  # noqa: F401

    return bundled_class()


class _Gateway:
    """Chats, each with a provider of its own."""

    def __init__(self, made: Any, home: str, chats: int, name: str) -> None:
        self._turns = 0
        self._providers = {f"{name}-{number}": made() for number in range(chats)}
        for session, provider in self._providers.items():
            provider.initialize(
                session, hermes_home=home, agent_context="primary", platform="telegram"
            )
            provider.system_prompt_block()

    def talk(self, first: int, look: Callable[[], None]) -> None:
        """A turn of each chat, as Hermes calls its provider in one."""
        for number, (session, provider) in enumerate(self._providers.items()):
            provider.on_turn_start(first, "hello")
            provider.prefetch("hello", session_id=session)
            text = f"turn-{first + number} {'u' * 200}"
            provider.sync_turn(text, "a" * 400, session_id=session)
            provider.queue_prefetch("hello", session_id=session)
            look()

    def end_sessions(self) -> None:
        for provider in self._providers.values():
            provider.on_session_end([])

    def shut_down(self) -> float:
        """Seconds that it took, with the sessions ended right before, as Hermes does."""
        began = time.perf_counter()
        for provider in self._providers.values():
            provider.on_session_end([])
            provider.shutdown()
        return time.perf_counter() - began


def main() -> None:
    who, port, home, count = sys.argv[1:]
    chats = int(count)
    configure(Path(home), f"http://localhost:{port}", BANK)
    made = _provider_class(who)
    threads, sockets, memory = threading.active_count(), _sockets(), _memory()
    most_threads, most_sockets = threads, sockets

    def look() -> None:
        nonlocal most_threads, most_sockets
        time.sleep(PACE)
        most_threads = max(most_threads, threading.active_count())
        most_sockets = max(most_sockets, _sockets())

    gateway = _Gateway(made, home, chats, "chat")
    for number in range(TURNS):
        gateway.talk(number * chats, look)
    figures = {
        "threads": most_threads - threads,
        "sockets": most_sockets - sockets,
        "memory, MB": _memory() - memory,
    }
    gateway.end_sessions()
    limit = time.monotonic() + REST
    while arrived(int(port), BANK)["turns"] < TURNS * chats and time.monotonic() < limit:
        time.sleep(0.1)
    time.sleep(1)  # whoever sent them has heard of it
    figures["shutting down at rest, s"] = gateway.shut_down()
    gateway = _Gateway(made, home, chats, "late")
    gateway.talk(TURNS * chats, lambda: None)
    figures["shutting down after a turn of each, s"] = gateway.shut_down()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
