"""Copy what is still readable in a damaged outbox file, so that another file delivers it."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from typing import TYPE_CHECKING, Any, Iterator
from urllib.parse import quote

from .schema import source_of, turn_of

if TYPE_CHECKING:
    from pathlib import Path

    from hindsight_exec.conversation.turns import Source

    from .store import Outbox

# What a damaged row raises: its JSON or its types are wrong.
_DAMAGED = (ValueError, TypeError, KeyError, AttributeError, RecursionError)


def salvage(path: Path, into: Outbox) -> int:
    """Copy what is still readable in a damaged file; returns how many turns.

    Documents keep their ids, so that one that was sent before is not stored
    twice. Dead letters are queued again: the server refuses them as before.
    The caller must own ``path``.

    Raises:
        OutboxFull, OutboxUnavailable: ``into`` takes no more.
        sqlite3.Error: ``path`` cannot be opened.
    """
    saved = 0
    target = f"file:{quote(os.fsencode(path))}?mode=rw"  # SQLite may have to replay its log
    with contextlib.closing(sqlite3.connect(target, isolation_level=None, uri=True)) as db:
        sources: dict[int, Source] = {}
        for number, header in _readable(db, "sources", "header"):
            with contextlib.suppress(*_DAMAGED):
                sources[number] = source_of(header)
        for _, source, document_id, item, given_at, turns in _readable(
            db, "documents", "source, document_id, item, given_at, turns"
        ):
            with contextlib.suppress(*_DAMAGED):
                # The server would refuse a damaged item for ever.
                if json.loads(item)["document_id"] == document_id and turns > 0:
                    into.put_document(
                        sources[source], document_id, bytes(item), float(given_at), turns
                    )
                    saved += turns
        for number, source, *row in _readable(
            db, "turns", "source, given_at, number, payload, sizes"
        ):
            with contextlib.suppress(*_DAMAGED):
                _, turn = turn_of(number, *row)
                if len(json.loads(f"[{turn.json}]")) == len(turn.sizes):
                    into.put(sources[source], turn)
                    saved += 1
    return saved


def _readable(db: sqlite3.Connection, table: str, columns: str) -> Iterator[tuple[Any, ...]]:
    """The readable rows of a damaged table, one by one."""
    numbers: set[int] = set()
    for order in ("ASC", "DESC"):  # from both ends, up to the damage
        with contextlib.suppress(sqlite3.Error, UnicodeDecodeError):
            query = f"SELECT rowid FROM {table} ORDER BY rowid {order}"  # noqa: S608
            for row in db.execute(query):
                numbers.add(row[0])
    query = f"SELECT rowid, {columns} FROM {table} WHERE rowid = ?"  # noqa: S608
    for number in sorted(numbers):
        with contextlib.suppress(sqlite3.Error, UnicodeDecodeError):
            yield from db.execute(query, (number,)).fetchall()
