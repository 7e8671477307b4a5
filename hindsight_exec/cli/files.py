"""The outbox files of a state directory as the commands find them. Nothing is changed or locked."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Iterable

from hindsight_exec.errors import HindsightExecError
from hindsight_exec.outbox import spool
from hindsight_exec.outbox.schema import Summary
from hindsight_exec.outbox.store import Outbox

if TYPE_CHECKING:
    from pathlib import Path

    from hindsight_exec.conversation.turns import Destination


@dataclass(frozen=True)
class File:
    """An outbox file: whether a running process owns it, and what it holds."""

    path: Path
    live: bool
    summary: Summary
    destinations: tuple[Destination, ...] = ()
    problem: str = ""


def look(folder: Path) -> list[File]:
    """The directory's files, the oldest first."""
    found = []
    for path in spool.files(folder):
        live = spool.is_live(path)
        summary, destinations, problem = Summary(), [], ""
        try:
            with contextlib.closing(Outbox(path, readonly=True)) as outbox:
                summary = outbox.summary()
                destinations = list(outbox.destinations().values())
        except HindsightExecError as error:
            if not path.exists():
                continue  # delivered and removed meanwhile
            problem = str(error)
        found.append(File(path, live, summary, tuple(destinations), problem))
    return found


def total(files: Iterable[File]) -> Summary:
    """What all of the files hold together."""
    held = queued = accepted = dead = size = 0
    reasons: dict[str, int] = {}
    oldest: list[float] = []
    error = ""
    for one in (file.summary for file in files):
        held, queued, dead = held + one.held, queued + one.queued, dead + one.dead
        accepted, size = accepted + one.accepted, size + one.bytes
        for reason, count in one.dead_by_reason:
            reasons[reason] = reasons.get(reason, 0) + count
        oldest += [] if one.oldest_at is None else [one.oldest_at]
        error = one.last_error or error
    by_reason = tuple(sorted(reasons.items()))
    return Summary(held, queued, accepted, dead, by_reason, min(oldest, default=None), error, size)


def held_by_others(files: Iterable[File]) -> int:
    """The waiting turns of running processes, which deliver them."""
    return sum(file.summary.waiting for file in files if file.live)
