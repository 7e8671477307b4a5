"""The outbox files of a state directory as the commands find them. Nothing is changed or locked."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Iterable

from hindsight_exec.errors import HindsightExecError, OutboxCorrupt, OutboxNewer
from hindsight_exec.outbox import spool
from hindsight_exec.outbox.schema import Summary
from hindsight_exec.outbox.store import Outbox

from .targets import advice

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
    error: HindsightExecError | None = None

    @property
    def problem(self) -> str:
        return str(self.error or "")


@dataclass(frozen=True)
class Unread:
    """A file whose turns nobody can count: why, and what to do.

    Attributes:
        kind: ``newer``, ``damaged``, ``unreadable`` (now), or ``set aside``.
    """

    kind: str
    about: str
    remedy: str


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
                found.append(File(path, live, Summary(), error=error))
    return found


def unread(folder: Path, files: Iterable[File]) -> list[Unread]:
    """The files that this version cannot read, and those that were set aside."""
    found = []
    for file in files:
        if isinstance(file.error, OutboxNewer):
            about = f"a newer hindsight-exec wrote {file.path.name}; it is left as it is"
            found.append(Unread("newer", about, "start the newer version: it delivers the turns"))
        elif isinstance(file.error, OutboxCorrupt):
            remedy = f"run '{advice('flush')}' to deliver what can be read and set the file aside"
            found.append(Unread("damaged", file.problem, remedy))
        elif file.error is not None:
            remedy = "make the file readable for you, and the disk writable"
            found.append(Unread("unreadable", file.problem, remedy))
    for path in spool.aside(folder):
        if ".newer-" in path.name:  # earlier code renamed these, too
            about = f"a newer hindsight-exec wrote {path.name}; its turns were not sent"
            original = path.name.split(".")[0] + ".db"
            remedy = f"rename it to {original}, then start the newer version"
        else:
            about = f"{path.name} was damaged; what could be read of it was queued for delivery"
            remedy = "look at it, or delete it"
        found.append(Unread("set aside", about, remedy))
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
