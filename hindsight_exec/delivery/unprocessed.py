"""Searches the turns that the server has not processed yet, whichever process gave them.

The reader pays for it, in time that is bounded; who gives turns does not.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Callable, TypeVar

from hindsight_exec.errors import OutboxUnavailable
from hindsight_exec.executor.waiting import now
from hindsight_exec.outbox import spool
from hindsight_exec.outbox.reader import OutboxReader
from hindsight_exec.outbox.search import contents_of_session, search

from .registry import engine_of, without_engine

if TYPE_CHECKING:
    from pathlib import Path

    from hindsight_exec.conversation.turns import Destination
    from hindsight_exec.outbox.search import Found, Query

__all__ = ["processed_lately", "search_unprocessed", "unprocessed_contents"]

T = TypeVar("T")

#: Seconds after which the server has made observations of what it has processed. With
#: an LLM that answers at once it takes 0.3 (Hindsight 1.1.0), and an LLM may queue.
_LATELY = 600.0


def search_unprocessed(folder: Path, query: Query, seconds: float = 0.15) -> list[Found]:
    """Return the turns in a state directory that fit best, the newest first.

    Of many turns, the oldest are not found in ``seconds``.
    """
    deadline = now() + seconds
    found = _in_all(folder, lambda outbox: search(outbox, query, deadline), deadline)
    return sorted(found, reverse=True)


def unprocessed_contents(
    folder: Path, destination: Destination, session: str, seconds: float = 1.0
) -> set[str]:
    """Return what the messages of a session say that wait in a state directory, safe on disk."""
    deadline = now() + seconds

    def look(outbox: OutboxReader) -> list[str]:
        if outbox.path is None:
            return []
        return contents_of_session(outbox, destination, session, deadline)

    return set(_in_all(folder, look, deadline))


def _in_all(folder: Path, look: Callable[[OutboxReader], list[T]], deadline: float) -> list[T]:
    """What is found in the folder's files: those open here through their connection, others read-only."""
    engine = engine_of(folder)
    if engine is None:
        with without_engine(folder) as has_none_open:
            return _in_files(spool.files(folder), look, deadline) if has_none_open else []
    found: list[T] = []
    for backlog in engine.open_backlogs():
        with contextlib.suppress(OutboxUnavailable, ValueError):  # closed meanwhile
            found += look(backlog.outbox)
    with engine.files.foreign() as paths:
        return found + _in_files(paths, look, deadline)


def _in_files(
    paths: list[Path], look: Callable[[OutboxReader], list[T]], deadline: float
) -> list[T]:
    """What is in files that nobody opens in this process meanwhile."""
    found: list[T] = []
    for path in reversed(paths):
        if now() >= deadline:
            break
        with contextlib.suppress(OutboxUnavailable, ValueError):
            outbox = OutboxReader(path, readonly=True)
            try:
                found += look(outbox)
            finally:
                outbox.close()
    return found


def processed_lately(folder: Path) -> set[str]:
    """Ids of documents that this process saw processed, perhaps without observations so far."""
    engine = engine_of(folder)
    return set() if engine is None else engine.delivery.progress.processed_within(_LATELY)
