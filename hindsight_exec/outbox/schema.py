"""What an outbox file holds: its tables, their versions, and the values that rows become.

A *turn* is held until its *document* is closed. A document goes closed -> in a
*batch* -> accepted -> gone, or becomes a dead letter (it has a ``reason``). A
*source* is what a document says about its turns; a *destination* is where it goes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Optional

from hindsight_exec.conversation.turns import Source, Turn, storable

#: Version of the schema; files of a newer one are left to newer programs.
VERSION = 1

_TABLES = """
    CREATE TABLE destinations (
        id INTEGER PRIMARY KEY AUTOINCREMENT, url TEXT NOT NULL, credential TEXT NOT NULL,
        bank TEXT NOT NULL, UNIQUE (url, credential, bank));
    CREATE TABLE sources (
        id INTEGER PRIMARY KEY AUTOINCREMENT, destination INTEGER NOT NULL,
        session TEXT NOT NULL, header TEXT NOT NULL UNIQUE);
    CREATE TABLE turns (
        id INTEGER PRIMARY KEY AUTOINCREMENT, source INTEGER NOT NULL,
        given_at REAL NOT NULL, number INTEGER NOT NULL,
        sizes TEXT NOT NULL, payload TEXT NOT NULL);
    CREATE INDEX turns_of_source ON turns (source, id);
    CREATE TABLE documents (
        id INTEGER PRIMARY KEY AUTOINCREMENT, destination INTEGER NOT NULL,
        source INTEGER NOT NULL, document_id TEXT NOT NULL,
        turns INTEGER NOT NULL, given_at REAL NOT NULL, bytes INTEGER NOT NULL,
        batch INTEGER, reason TEXT, detail TEXT, item BLOB NOT NULL);
    CREATE INDEX documents_ready ON documents (destination, id)
        WHERE batch IS NULL AND reason IS NULL;
    CREATE INDEX documents_of_batch ON documents (batch) WHERE batch IS NOT NULL;
    CREATE INDEX documents_dead ON documents (id) WHERE reason IS NOT NULL;
    CREATE TABLE batches (
        id INTEGER PRIMARY KEY AUTOINCREMENT, destination INTEGER NOT NULL,
        operation_id TEXT NOT NULL, operation TEXT NOT NULL DEFAULT '',
        accepted INTEGER NOT NULL DEFAULT 0, retries INTEGER NOT NULL DEFAULT 0,
        retry_at REAL NOT NULL DEFAULT 0, error TEXT NOT NULL DEFAULT '');
"""

#: Statements that lead from each older version to the next.
MIGRATIONS: dict[int, str] = {}

#: Years 1970 to 9999 as POSIX time: the times that have a date.
_TIMES = (0.0, 253_402_300_799.0)


def steps(version: int) -> str:
    """The statements that lead from a version to the current one; 0 is an empty file."""
    if not version:
        return _TABLES
    return "\n".join(MIGRATIONS[old] for old in range(version, VERSION))


@dataclass
class Batch:
    """One request: documents of one bank under one operation id.

    Attributes:
        operation: The server's name for the operation; servers before 0.8.6
            ignore ours and use an id of their own.
        accepted: The server has the batch and has not reported the end yet.
        retries: How many retries of the failed operation are done or planned.
        retry_at: When the next retry is due: POSIX time in seconds.
        failures: How many sends failed, as far as this process knows.
        taken: How many batches the server had taken when this one failed last.
    """

    id: int
    destination: int
    operation_id: str
    operation: str = ""
    accepted: bool = False
    retries: int = 0
    retry_at: float = 0.0
    failures: int = 0
    taken: int = 0


@dataclass(frozen=True)
class Held:
    """The turns of one source that are in no document yet."""

    source: int
    turns: int
    chars: int
    last_at: float


@dataclass(frozen=True)
class Summary:
    """What an outbox holds, in turns; ages are POSIX times in seconds."""

    held: int = 0
    queued: int = 0
    accepted: int = 0
    dead: int = 0
    dead_by_reason: tuple[tuple[str, int], ...] = ()
    oldest_at: Optional[float] = None
    last_error: str = ""
    bytes: int = 0

    @property
    def waiting(self) -> int:
        return self.held + self.queued


def source_of(header: str) -> Source:
    """Read a source. Damage raises ValueError, TypeError, KeyError or AttributeError."""
    fields = json.loads(header)
    fields["tags"] = tuple(fields["tags"])
    fields["metadata"] = tuple((key, value) for key, value in fields["metadata"])
    source = Source(**fields)
    texts = [source.url, source.credential, source.bank, source.session, source.context]
    texts += source.tags + tuple(text for pair in source.metadata for text in pair)
    if any(storable(text) != text for text in texts):
        raise ValueError("the text of a source")
    if source.observation_scopes:
        json.loads(source.observation_scopes)
    return source


def turn_of(number: int, given_at: float, index: int, payload: str, sizes: str) -> tuple[int, Turn]:
    """Read a turn and its number. Damage raises ValueError or TypeError."""
    lengths = tuple(json.loads(sizes))
    if not _TIMES[0] <= given_at <= _TIMES[1] or any(type(one) is not int for one in lengths):
        raise ValueError("the time or the sizes of a turn")
    return number, Turn(given_at, index, payload, lengths)
