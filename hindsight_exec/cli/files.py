"""The outbox files of a state directory as the commands find them. Nothing is changed or locked."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Iterable

from hindsight_exec.errors import HindsightExecError
from hindsight_exec.outbox import spool
from hindsight_exec.outbox.schema import Summary
from hindsight_exec.outbox.store import Outbox

if TYPE_CHECKING:
    from pathlib import Path

    from hindsight_exec.conversation.turns import Destination


_NUMBERS = ("held", "queued", "accepted", "dead", "bytes")


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
        try:
            with contextlib.closing(Outbox(path, readonly=True)) as outbox:
                summary = outbox.summary()
                found.append(File(path, live, summary, tuple(outbox.destinations().values())))
        except HindsightExecError as error:
            if path.exists():  # else it was delivered and removed meanwhile
                found.append(File(path, live, Summary(), problem=str(error)))
    return found


def total(files: Iterable[File]) -> Summary:
    """What all of the files hold together."""
    found = [file.summary for file in files]
    reasons: Counter[str] = Counter()
    for one in found:
        reasons.update(dict(one.dead_by_reason))
    return Summary(
        **{name: sum(getattr(one, name) for one in found) for name in _NUMBERS},
        dead_by_reason=tuple(sorted(reasons.items())),
        oldest_at=min((one.oldest_at for one in found if one.oldest_at is not None), default=None),
        last_error=next((one.last_error for one in reversed(found) if one.last_error), ""),
    )


def held_by_others(files: Iterable[File]) -> int:
    """The waiting turns of running processes, which deliver them."""
    return sum(file.summary.waiting for file in files if file.live)
