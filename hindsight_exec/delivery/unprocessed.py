"""Searches the turns that the server has not processed yet, whichever process gave them.

The reader pays for it, in time that is bounded; who gives turns does not.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from hindsight_exec.errors import OutboxUnavailable
from hindsight_exec.outbox import spool
from hindsight_exec.outbox.reader import OutboxReader
from hindsight_exec.outbox.search import search

from .registry import engine_of, without_engine

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Iterable

    from hindsight_exec.outbox.search import Found, Query

__all__ = ["processed_lately", "search_unprocessed"]

#: Seconds after which the server has made observations of what it has processed. With
#: an LLM that answers at once it takes 0.3 (Hindsight 1.1.0), and an LLM may queue.
_LATELY = 600.0


def search_unprocessed(folder: Path, query: Query, seconds: float = 0.15) -> list[Found]:
    """Return the turns in a state folder that fit best, the newest first.

    Files that this process has open are searched through their connection, the
    others read-only. Of many turns, the oldest are not found in ``seconds``.
    """
    deadline = time.monotonic() + seconds
    found: list[Found] = []
    engine = engine_of(folder)
    if engine is None:
        with without_engine(folder) as has_none_open:
            if has_none_open:
                found += _in_files(spool.files(folder), query, deadline)
        return sorted(found, reverse=True)
    for backlog in engine.open_backlogs():
        with contextlib.suppress(OutboxUnavailable, ValueError):  # closed meanwhile
            found += search(backlog.outbox, query, deadline)
    with engine.files.foreign() as paths:
        found += _in_files(paths, query, deadline)
    return sorted(found, reverse=True)


def _in_files(paths: Iterable[Path], query: Query, deadline: float) -> list[Found]:
    """What is in files that nobody opens in this process meanwhile."""
    found: list[Found] = []
    for path in reversed(list(paths)):
        if time.monotonic() >= deadline:
            break
        with contextlib.suppress(OutboxUnavailable, ValueError):
            outbox = OutboxReader(path, readonly=True)
            try:
                found += search(outbox, query, deadline)
            finally:
                outbox.close()
    return found


def processed_lately(folder: Path) -> set[str]:
    """Ids of documents that this process saw processed, perhaps without observations so far."""
    engine = engine_of(folder)
    return set() if engine is None else engine.delivery.progress.processed_within(_LATELY)
