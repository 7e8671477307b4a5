"""A gateway's process: ``gateway_child.py ours|bundled URL HOME CHATS``. Prints the figures as JSON."""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from .measure import configure

BANK = "gateway"
TURNS = 3
#: Seconds between turns, of whichever chat: people do not all talk in the same moment.
PACE = 0.01


def _sockets() -> int:
    count = 0
    for one in Path("/proc/self/fd").iterdir():
        try:
            count += str(one.readlink()).startswith("socket:")
        except OSError:  # closed meanwhile
            continue
    return count


def _memory() -> float:
    """MB."""
    gc.collect()
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


def _provider_class(who: str) -> Any:
    # The HTTP clients, too: what is imported is another benchmark's.
    if who == "ours":
        import aiohttp  # noqa: F401

        from hindsight_exec.hermes import HindsightMemoryProvider

        return HindsightMemoryProvider
    import hindsight_client  # noqa: F401
    from plugins.memory.hindsight import HindsightMemoryProvider as Bundled

    return Bundled


def main() -> None:
    who, url, home, chats = sys.argv[1:]
    configure(Path(home), url, BANK)
    made = _provider_class(who)
    threads, sockets, memory = threading.active_count(), _sockets(), _memory()
    most_threads, most_sockets = threads, sockets
    providers = {f"chat-{number}": made() for number in range(int(chats))}
    for session, provider in providers.items():
        provider.initialize(session, hermes_home=home, agent_context="primary", platform="telegram")
        provider.system_prompt_block()
    turn = 0
    for number in range(TURNS):
        for session, provider in providers.items():
            provider.on_turn_start(number, "hello")
            provider.prefetch("hello", session_id=session)
            provider.sync_turn(f"turn-{turn} {'u' * 200}", "a" * 400, session_id=session)
            provider.queue_prefetch("hello", session_id=session)
            turn += 1
            time.sleep(PACE)
            most_threads = max(most_threads, threading.active_count())
            most_sockets = max(most_sockets, _sockets())
    figures = {
        "threads": most_threads - threads,
        "sockets": most_sockets - sockets,
        "memory, MB": _memory() - memory,
    }
    began = time.perf_counter()
    for provider in providers.values():
        provider.on_session_end([])
        provider.shutdown()
    figures["shutting down, s"] = time.perf_counter() - began
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
