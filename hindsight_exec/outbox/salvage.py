"""Copy what is still readable in a damaged outbox file, so that another file delivers it."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any, Iterator

from hindsight_exec.conversation.turns import document_id, document_item
from hindsight_exec.errors import OutboxCorrupt, OutboxUnavailable

from .schema import source_of, turn_of
from .sqlite import Database

if TYPE_CHECKING:
    from pathlib import Path

    from hindsight_exec.conversation.turns import Source

    from .store import Outbox

# What a damaged row raises: its JSON or its types are wrong.
_DAMAGED = (ValueError, TypeError, KeyError, AttributeError, RecursionError)


def salvage(path: Path, into: Outbox) -> int:
    """Copy what is still readable in a damaged file; returns how many turns.

    Everything becomes a document whose id and bytes follow from the row alone. So
    a process may be killed meanwhile, and the next one may start over: the server
    stores a document once, however often it is sent. Dead letters are queued
    again: the server refuses them as before. The caller must own ``path``, and
    gets it out of the way when this returns, not before.

    Raises:
        OutboxFull, OutboxUnavailable: ``into`` takes no more, or ``path`` cannot
            be opened now. Try again later.
    """
    with contextlib.closing(Database(path, mode="rw")) as db:
        with contextlib.suppress(OutboxCorrupt):
            db.all("PRAGMA schema_version")  # is it there?
        saved = 0
        sources: dict[int, Source] = {}
        for number, header in _readable(db, "sources", "header"):
            with contextlib.suppress(*_DAMAGED):
                sources[number] = source_of(header)
        for _, source, name, item, given_at, turns in _readable(
            db, "documents", "source, document_id, item, given_at, turns"
        ):
            with contextlib.suppress(*_DAMAGED):
                # The server would refuse a damaged item for ever.
                if json.loads(item)["document_id"] == name and turns > 0:
                    into.put_document(sources[source], name, bytes(item), float(given_at), turns)
                    saved += turns
        for number, source, *row in _readable(
            db, "turns", "source, given_at, number, payload, sizes"
        ):
            with contextlib.suppress(*_DAMAGED):
                _, turn = turn_of(number, *row)
                if len(json.loads(f"[{turn.json}]")) == len(turn.sizes):
                    session = sources[source].session
                    name = document_id(session, turn.given_at, turn.payload)
                    item = document_item(sources[source], name, [turn])
                    into.put_document(sources[source], name, item, turn.given_at)
                    saved += 1
    into.sync()
    return saved


def _readable(db: Database, table: str, columns: str) -> Iterator[tuple[Any, ...]]:
    """The readable rows of a damaged table, one by one."""
    numbers: set[int] = set()
    for order in ("ASC", "DESC"):  # from both ends, up to the damage
        with contextlib.suppress(OutboxUnavailable), db.access, db.step:
            for row in db.execute(f"SELECT rowid FROM {table} ORDER BY rowid {order}"):  # noqa: S608
                numbers.add(row[0])
    query = f"SELECT rowid, {columns} FROM {table} WHERE rowid = ?"  # noqa: S608
    for number in sorted(numbers):
        with contextlib.suppress(OutboxUnavailable):
            yield from db.all(query, (number,))
