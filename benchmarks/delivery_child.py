"""The programs of `delivery`: ``delivery_child.py give|deliver|bundled URL FOLDER TURNS``."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Callable

BANK = "delivery"
_SESSION = 20  # turns


def _talk(turns: int, take: Callable[[str, str, str], object]) -> None:
    """Turns of some 600 characters, in sessions of 20."""
    for number in range(turns):
        take(f"turn-{number} {'u' * 200}", "a" * 400, f"session-{number // _SESSION}")


def _peak() -> float:
    """The most memory that the process ever had, MB."""
    # Not getrusage: its figure can be that of the process that started this one.
    status = Path("/proc", str(os.getpid()), "status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def ours(what: str, url: str, folder: Path, turns: int) -> None:
    import aiohttp  # noqa: F401 - what is imported is not what delivery takes

    from hindsight_exec import RetainWriter, Settings

    # Durability is another benchmark's; drain_timeout: those that are given wait for the next.
    settings = Settings(
        mode="local_external", api_url=url, bank_id=BANK, durability="normal", drain_timeout=0
    )
    memory, cpu, began = _peak(), time.process_time(), time.time()
    writer = RetainWriter(settings, state=folder)
    if what == "deliver":
        assert writer.deliver_all(1000)
        print(began, _peak() - memory, time.process_time() - cpu)
        return
    _talk(
        turns,
        lambda user, assistant, session: writer.put(
            [
                {"role": "user", "content": f"User: {user}"},
                {"role": "assistant", "content": f"Assistant: {assistant}"},
            ],
            session=session,
        ),
    )


def bundled(url: str, folder: Path, turns: int) -> None:
    from .measure import bundled_provider

    provider = bundled_provider(folder, url, BANK)
    cpu, began = time.process_time(), time.time()
    _talk(
        turns,
        lambda user, assistant, session: provider.sync_turn(user, assistant, session_id=session),
    )
    provider.shutdown()
    print(began, 0, time.process_time() - cpu)


def main() -> None:
    what, url, folder, turns = sys.argv[1:]
    if what == "bundled":
        bundled(url, Path(folder), int(turns))
    else:
        ours(what, url, Path(folder), int(turns))


if __name__ == "__main__":
    main()
