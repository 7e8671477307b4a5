"""Everything that can be asked of an outbox file.

The command line reads the files of living processes with it; the delivery
reads its own. :class:`.store.Outbox` adds what changes a file.
"""

from __future__ import annotations

import builtins
import json
import os
from typing import TYPE_CHECKING, Any, Optional

from hindsight_exec.conversation.turns import Destination, Source, Turn, payload_json
from hindsight_exec.errors import OutboxCorrupt, OutboxNewer, OutboxUnavailable

from . import schema
from .commits import CommittingDatabase
from .schema import Batch, Held, Summary, source_of, turn_of

if TYPE_CHECKING:
    from pathlib import Path

#: Live payload in bytes.
BYTES = """SELECT (SELECT coalesce(sum(length(CAST(payload AS BLOB))), 0) FROM turns)
    + (SELECT coalesce(sum(bytes), 0) FROM documents)"""

_HELD = """SELECT source, count(*), sum(length(payload)), max(given_at)
    FROM turns GROUP BY source ORDER BY min(id)"""
_HELD_TURNS = """SELECT id, given_at, number, payload, sizes FROM turns
    WHERE source = ? ORDER BY id LIMIT ?"""
_READY = """SELECT id, bytes FROM documents
    WHERE destination = ? AND batch IS NULL AND reason IS NULL ORDER BY id LIMIT ?"""
_BATCHES = """SELECT id, destination, operation_id, operation, accepted, retries, retry_at
    FROM batches ORDER BY id"""
_TURNS_OF_BATCH = "SELECT source, sum(turns) FROM documents WHERE batch = ? GROUP BY source"
_UNFINISHED = """SELECT source, sum(waiting), sum(turns) FROM (
    SELECT source, count(*) AS waiting, count(*) AS turns FROM turns GROUP BY source
    UNION ALL
    SELECT d.source, CASE WHEN b.accepted THEN 0 ELSE d.turns END, d.turns
      FROM documents d LEFT JOIN batches b ON b.id = d.batch WHERE d.reason IS NULL)
    GROUP BY source"""
_IS_EMPTY = "SELECT NOT EXISTS (SELECT 1 FROM turns) AND NOT EXISTS (SELECT 1 FROM documents)"
_IS_WAITING = """SELECT EXISTS (SELECT 1 FROM turns) OR EXISTS (
    SELECT 1 FROM documents d LEFT JOIN batches b ON b.id = d.batch
    WHERE d.reason IS NULL AND NOT coalesce(b.accepted, 0))"""
_STATE = """CASE WHEN d.reason IS NOT NULL THEN 'dead'
    WHEN b.accepted THEN 'accepted' ELSE 'queued' END"""
_COUNTS = f"""SELECT {_STATE}, coalesce(d.reason, ''), sum(d.turns), min(d.given_at)
    FROM documents d LEFT JOIN batches b ON b.id = d.batch GROUP BY 1, 2"""  # noqa: S608
_ENTRIES = f"""
    SELECT 'held', t.id, s.session, x.url, x.bank, 1, t.given_at, '', '', t.payload
      FROM turns t JOIN sources s ON s.id = t.source
      JOIN destinations x ON x.id = s.destination
    UNION ALL
    SELECT {_STATE}, d.id, s.session, x.url, x.bank, d.turns, d.given_at, d.document_id,
           coalesce(d.reason || ': ' || d.detail, b.error, ''), d.item
      FROM documents d JOIN sources s ON s.id = d.source
      JOIN destinations x ON x.id = d.destination LEFT JOIN batches b ON b.id = d.batch
    ORDER BY 7, 2 LIMIT ?"""  # noqa: S608
_ENTRY = (
    "state", "id", "session", "url", "bank", "turns", "given_at", "document_id", "error",
)  # fmt: skip


class OutboxReader:
    """An open outbox file. Safe from any thread.

    See :class:`.store.Outbox` for the arguments and the errors.
    """

    def __init__(self, path: Optional[Path], *, synchronous: str = "FULL", readonly: bool) -> None:
        self.path = path
        try:
            self._open(synchronous, readonly=readonly, exclusive=False)
        except (OutboxCorrupt, OutboxNewer):
            raise
        except OutboxUnavailable:
            # Perhaps there is no shared memory here.
            self._open(synchronous, readonly=readonly, exclusive=True)

    def _open(self, synchronous: str, *, readonly: bool, exclusive: bool) -> None:
        path = self.path
        # An exclusive lock, which is what replaces shared memory, needs a file open for writing.
        mode = "rwc" if not readonly else "rw" if exclusive else "ro"
        self._db = CommittingDatabase(path, synchronous=synchronous, mode=mode, exclusive=exclusive)
        try:
            with self._db.access, self._db.step:
                version = self._db.pragma("user_version")
                if version > schema.VERSION:
                    raise OutboxNewer(
                        f"{path} has schema {version} and this version knows {schema.VERSION}; "
                        "start a newer hindsight-exec to deliver the turns in it"
                    )
                if version < 0:
                    raise OutboxCorrupt(f"{path} is not an outbox: it has schema {version}")
                if readonly and not version and self._db.pragma("page_count") <= 1:
                    # Its owner is about to make the tables: WAL alone takes a page.
                    self._db.forget()
                    readonly = False
                if not readonly:
                    self._db.prepare(schema.steps(version), schema.VERSION)
                self._db.bytes = self._db.first(BYTES)[0]
                self._file = None if path is None else (str(path), path.stat())
        except BaseException:
            self._db.close()
            raise

    @property
    def bytes(self) -> int:
        """Live payload."""
        return self._db.bytes

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._db.close()

    def close_empty(self) -> bool:
        """Close the file; return whether nobody needs anything in it, whoever puts meanwhile."""
        return bool(self._db.close(_IS_EMPTY) == (1,))

    # --- what the delivery asks -------------------------------------------

    def held(self) -> list[Held]:
        """The held turns by source, the oldest first."""
        return self._db.rows(Held, (int, int, int, float), _HELD)

    def held_turns(self, source: int, limit: int) -> list[tuple[int, Turn]]:
        """The oldest held turns of a source, with their numbers."""
        return self._db.rows(turn_of, (int, float, int, str, str), _HELD_TURNS, (source, limit))

    def sources(self) -> dict[int, Source]:
        """All sources by their number."""
        rows = self._db.rows(
            lambda number, header: (number, source_of(header)),
            (int, str),
            "SELECT id, header FROM sources",
        )
        return dict(rows)

    def source(self, number: int) -> Source:
        """The source of that number."""
        query = "SELECT header FROM sources WHERE id = ?"
        found = self._db.rows(source_of, (str,), query, (number,))
        if not found:
            raise OutboxCorrupt(f"the outbox {self._db.name} is damaged: a source is missing")
        return found[0]

    def destinations(self) -> dict[int, Destination]:
        """All destinations by their number."""
        rows = self._db.rows(
            lambda number, *names: (number, Destination(*names)),
            (int, str, str, str),
            "SELECT id, url, credential, bank FROM destinations",
        )
        return dict(rows)

    def ready(self, destination: int, limit: int) -> list[tuple[int, int]]:
        """Numbers and sizes in bytes of the oldest documents that are in no batch."""
        return self._db.rows(lambda *row: row, (int, int), _READY, (destination, limit))

    def batches(self) -> list[Batch]:
        """All batches, the oldest first."""
        return self._db.rows(
            lambda *row: Batch(row[0], row[1], row[2], row[3], bool(row[4]), row[5], row[6]),
            (int, int, str, str, int, int, float),
            _BATCHES,
        )

    def items(self, batch: Batch) -> list[builtins.bytes]:
        """The items of a batch, in their order, as they were first written."""
        query = "SELECT item FROM documents WHERE batch = ? ORDER BY id"
        return self._db.rows(builtins.bytes, (builtins.bytes,), query, (batch.id,))

    def document_ids(self, batch: Batch) -> list[str]:
        """The ids of a batch's documents, in their order."""
        query = "SELECT document_id FROM documents WHERE batch = ? ORDER BY id"
        return self._db.rows(str, (str,), query, (batch.id,))

    def turns_of(self, batch: Batch) -> list[tuple[int, int]]:
        """Each source of a batch, with the number of its turns."""
        return self._db.rows(lambda *row: row, (int, int), _TURNS_OF_BATCH, (batch.id,))

    def unfinished(self) -> list[tuple[int, int, int]]:
        """Each source, with the number of its turns not accepted and not completed."""
        return self._db.rows(lambda *row: row, (int, int, int), _UNFINISHED)

    # --- what people ask --------------------------------------------------

    def is_there(self) -> bool:
        """Whether the file is still in its place, where the next process finds it."""
        try:
            return self._file is None or os.path.samestat(os.stat(self._file[0]), self._file[1])  # noqa: PTH116 - a str, as it is on the hot path
        except OSError:
            return False

    def is_empty(self) -> bool:
        """Whether nobody needs anything in it."""
        return bool(self._db.all(_IS_EMPTY)[0][0])

    def is_waiting(self) -> bool:
        """Whether the server lacks any of it; cheap, however many turns there are."""
        return bool(self._db.all(_IS_WAITING)[0][0])

    def summary(self) -> Summary:
        """How many turns it holds, by state."""
        with self._db.access, self._db.step, self._db.transaction("DEFERRED"), self._db.content():
            # One view of it all: its owner may be closing a document meanwhile.
            held, oldest = self._db.first("SELECT count(*), min(given_at) FROM turns")
            turns = {"queued": 0, "accepted": 0, "dead": 0}
            reasons: dict[str, int] = {}
            for state, reason, count, first in self._db.execute(_COUNTS).fetchall():
                turns[state] += count
                if state == "dead":
                    reasons[reason] = reasons.get(reason, 0) + count
                elif state == "queued":
                    oldest = first if oldest is None else min(oldest, first)
            error = self._db.first(
                "SELECT error FROM batches WHERE error != '' ORDER BY id DESC LIMIT 1"
            )
        return Summary(
            held=held,
            dead_by_reason=tuple(sorted(reasons.items())),
            oldest_at=oldest,
            last_error=error[0] if error else "",
            bytes=self.bytes,
            **turns,
        )

    def entries(self, limit: int = -1) -> list[dict[str, Any]]:
        """Held turns and documents for people to read, the oldest first.

        Each has ``state`` (held, queued, accepted, dead), ``id``, ``session``,
        ``url``, ``bank``, ``turns``, ``given_at``, ``document_id``, ``error``
        and ``content`` (text).
        """
        rows = self._db.all(_ENTRIES, (limit,))
        return [dict(zip(_ENTRY, row), content=_text(row[-1])) for row in rows]


def _text(content: Any) -> str:
    if not isinstance(content, bytes):
        return f"[{payload_json(content)}]"
    try:
        return str(json.loads(content)["content"])
    except (ValueError, TypeError, KeyError):
        return content.decode(errors="replace")  # damaged
