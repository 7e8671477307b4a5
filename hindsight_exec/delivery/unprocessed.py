"""Searches the turns that the server has not processed yet, whichever process gave them.

The reader pays for it, in time that is bounded; who gives turns does not.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from hindsight_exec.errors import OutboxUnavailable
from hindsight_exec.outbox.reader import OutboxReader
from hindsight_exec.outbox.search import search

if TYPE_CHECKING:
    from hindsight_exec.outbox.search import Found, Query

    from .writer import RetainWriter

__all__ = ["processed_lately", "search_unprocessed"]

#: Seconds after which the server has made observations of what it has processed. With
#: an LLM that answers at once it takes 0.3 (Hindsight 1.1.0), and an LLM may queue.
_LATELY = 600.0


def search_unprocessed(writer: RetainWriter, query: Query, seconds: float = 0.15) -> list[Found]:
    """Return the turns that fit best, the newest first.

    Files that this process has open are searched through their connection, the
    others read-only. Of many turns, the oldest are not found in ``seconds``.
    """
    engine = writer._joined()
    deadline = time.monotonic() + seconds
    found: list[Found] = []
    for backlog in engine.open_backlogs():
        with contextlib.suppress(OutboxUnavailable, ValueError):  # closed meanwhile
            found += search(backlog.outbox, query, deadline)
    with engine.files.foreign() as paths:
        for path in reversed(paths):
            if time.monotonic() >= deadline:
                break
            with contextlib.suppress(OutboxUnavailable, ValueError):
                outbox = OutboxReader(path, readonly=True)
                try:
                    found += search(outbox, query, deadline)
                finally:
                    outbox.close()
    return sorted(found, reverse=True)


def processed_lately(writer: RetainWriter) -> set[str]:
    """Ids of documents that the server has processed, but perhaps made no observations of."""
    return writer._joined().delivery.progress.processed_within(_LATELY)
