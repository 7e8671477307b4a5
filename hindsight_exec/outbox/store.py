"""The outbox: turns, documents and batches in one SQLite file.

The row on disk is the truth. What a resend needs (a document's bytes, a
batch's members and its operation id) is committed before the first send.

One connection writes the file, and no second one in this process may open it:
closing any descriptor of it would drop SQLite's locks. :mod:`.spool` decides
which process may open a file.
"""

from __future__ import annotations

import json
from dataclasses import asdict, astuple
from typing import TYPE_CHECKING, Iterable, Optional, Sequence

from hindsight_exec.errors import OutboxFull

from .reader import BYTES, OutboxReader
from .schema import Batch, source_of

if TYPE_CHECKING:
    from pathlib import Path

    from hindsight_exec.conversation.turns import Source, Turn

#: Live payload that an outbox takes by default, in bytes.
MAX_BYTES = 1 << 30

#: Longest turn or document that is taken, in bytes. SQLite's bound for a row is
#: 1e9, and a control character of a turn has seven bytes in a document's JSON.
MAX_ROW_BYTES = 1 << 27

#: Sources whose numbers are kept in memory. Beyond it, sources without turns
#: are deleted: a gateway sees new sessions for years.
MAX_SOURCES = 4096

#: Free bytes of a file that are worth a VACUUM.
_VACUUM_BYTES = 4 << 20

_PUT = "INSERT INTO turns (given_at, number, sizes, payload, source) VALUES (?, ?, ?, ?, ?)"
_ADD_DOCUMENT = """INSERT INTO documents
    (document_id, turns, given_at, bytes, item, source, destination)
    VALUES (?, ?, ?, ?, ?, ?, ?)"""
_MOVED = """SELECT d.id, s.header, d.document_id, d.item, d.given_at, d.turns
    FROM documents d JOIN sources s ON s.id = d.source
    WHERE d.batch IS NULL AND d.reason IS NULL ORDER BY d.id LIMIT 100"""
_OF_SESSION = " WHERE source IN (SELECT id FROM sources WHERE session = ?)"
_UNUSED_SOURCES = """DELETE FROM sources WHERE id NOT IN
    (SELECT source FROM turns UNION SELECT source FROM documents)"""
_UNUSED = (
    """DELETE FROM batches WHERE id NOT IN
        (SELECT batch FROM documents WHERE batch IS NOT NULL)""",
    _UNUSED_SOURCES,
    "DELETE FROM destinations WHERE id NOT IN (SELECT destination FROM sources)",
)


class Outbox(OutboxReader):
    """An outbox file, opened. Safe from any thread.

    Args:
        path: The file, or None to keep everything in memory.
        synchronous: ``FULL`` survives a loss of power; ``NORMAL`` may lose the
            last turns then. A killed process loses nothing with either.
        max_bytes: Live payload that is taken, in bytes.
        readonly: Only read; for the file of another process.

    Raises:
        OutboxNewer: A newer version of this program wrote the file.
        OutboxCorrupt: The file is damaged, or is not an outbox.
        OutboxUnavailable: The file cannot be opened or written.

    Every method raises the last two, and ``ValueError`` after :meth:`close`.
    """

    def __init__(
        self,
        path: Optional[Path],
        *,
        synchronous: str = "FULL",
        max_bytes: int = MAX_BYTES,
        readonly: bool = False,
    ) -> None:
        if synchronous not in ("FULL", "NORMAL"):
            raise ValueError(f"synchronous must be FULL or NORMAL, not {synchronous!r}")
        self.max_bytes = max_bytes
        super().__init__(path, synchronous=synchronous, readonly=readonly)

    # --- taking -----------------------------------------------------------

    def put(self, source: Source, turn: Turn) -> int:
        """Keep a turn; it is committed on return. Returns the number of its source.

        Raises:
            OutboxFull: ``max_bytes`` are held already. Nothing is evicted.
            ValueError: The turn is longer than ``MAX_ROW_BYTES``.
        """
        return self.put_for((source,), turn)[0]

    def put_for(self, sources: Sequence[Source], turn: Turn) -> list[int]:
        """Keep a turn for each source: one statement adds all rows, or none. Else as :meth:`put`."""
        payload = turn.payload
        size = len(payload) if payload.isascii() else len(payload.encode())  # spares a copy
        row = (turn.given_at, turn.index, str(list(turn.sizes)), payload)  # JSON, too
        return [number for number, _ in self._add("turns", _PUT, row, 1, sources, size)]

    def put_document(
        self, source: Source, document_id: str, item: bytes, given_at: float, turns: int = 1
    ) -> tuple[int, int]:
        """Keep a document that is closed already; returns source and destination.

        Raises:
            OutboxFull, ValueError: As :meth:`put`.
        """
        return self.put_document_for((source,), document_id, item, given_at, turns)[0]

    def put_document_for(
        self,
        sources: Sequence[Source],
        document_id: str,
        item: bytes,
        given_at: float,
        turns: int,
    ) -> list[tuple[int, int]]:
        """Keep a closed document for each source, as :meth:`put_for` keeps a turn."""
        row = (document_id, turns, given_at, len(item), item)
        return self._add("documents", _ADD_DOCUMENT, row, 2, sources, len(item))

    def _add(
        self,
        table: str,
        sql: str,
        row: tuple[object, ...],
        ids: int,
        sources: Sequence[Source],
        size: int,
    ) -> list[tuple[int, int]]:
        """Add a row of ``size`` bytes for each source; return the sources' and destinations' ids.

        In the statement, the ``ids`` first of these follow the columns of ``row``.
        """
        known: list[tuple[int, int]] = []
        if len(sources) > 1:
            sql += f", ({', '.join('?' * (len(row) + ids))})" * (len(sources) - 1)

        def insert() -> int:
            nonlocal known
            self._check_room(size, len(sources))
            known = self._sources(sources)
            values = [value for one in known for value in (*row, *one[:ids])]
            inserted = self._db.execute(sql, values).lastrowid
            self._db.bytes += size * len(sources)
            return inserted  # type: ignore[return-value]  # an INSERT sets it

        self._db.write(insert, table, single=all(map(self._db.known.__contains__, sources)))
        return known

    def _check_room(self, size: int, copies: int) -> None:
        if size > MAX_ROW_BYTES:
            raise ValueError(f"a turn may have {MAX_ROW_BYTES} bytes, not {size}")
        if self.bytes + size * copies > self.max_bytes:
            raise OutboxFull(
                f"the outbox holds {self.bytes} of {self.max_bytes} bytes and takes no more, so "
                "this turn is not kept; bring the server back, or erase what waits with "
                "'hindsight-exec outbox purge'"
            )

    def _sources(self, sources: Sequence[Source]) -> list[tuple[int, int]]:
        cache = self._db.known
        found = [self._source(one) for one in sources]
        if cache is not self._db.known:
            # To make room for one, others were deleted that have no turn yet.
            found = [self._source(one) for one in sources]
        return found

    def _source(self, source: Source) -> tuple[int, int]:
        """The numbers of a source and its destination, new or known."""
        known: Optional[tuple[int, int]] = self._db.known.get(source)
        if known is not None:
            return known
        if len(self._db.known) >= MAX_SOURCES:
            for unused in _UNUSED:
                self._db.execute(unused)
            self._db.known = {}
        where = astuple(source.destination)
        self._db.execute(
            "INSERT OR IGNORE INTO destinations (url, credential, bank) VALUES (?, ?, ?)", where
        )
        destination = self._db.first(
            "SELECT id FROM destinations WHERE url = ? AND credential = ? AND bank = ?", where
        )[0]
        header = json.dumps(asdict(source), sort_keys=True)
        self._db.execute(
            "INSERT OR IGNORE INTO sources (destination, session, header) VALUES (?, ?, ?)",
            (destination, source.session, header),
        )
        number = self._db.first("SELECT id FROM sources WHERE header = ?", (header,))[0]
        known = self._db.known[source] = number, destination
        return known

    # --- documents and batches --------------------------------------------

    def close_documents(
        self, source: int, documents: Sequence[tuple[Sequence[int], str, float, bytes]]
    ) -> int:
        """Make documents of held turns, all or none; returns their destination.

        A document is not made if any of its turns is no longer held (somebody
        purged it meanwhile).

        Args:
            source: The source of the turns.
            documents: For each the turns' numbers, the document's id, the time
                of its first turn, and the item to send.
        """
        added = 0
        with self._db.access, self._db.step:
            with self._db.unsynced, self._db.transaction(), self._db.content():
                destination: int = self._db.first(
                    "SELECT destination FROM sources WHERE id = ?", (source,)
                )[0]
                for turns, document_id, given_at, item in documents:
                    members = f"FROM turns WHERE id IN ({','.join('?' * len(turns))})"
                    found, size = self._db.first(
                        "SELECT count(*), coalesce(sum(length(CAST(payload AS BLOB))), 0) "
                        + members,
                        turns,
                    )
                    if found < len(turns):
                        continue
                    self._db.execute(f"DELETE {members}", turns)
                    self._db.execute(
                        _ADD_DOCUMENT,
                        (document_id, len(turns), given_at, len(item), item, source, destination),
                    )
                    added += len(item) - size
            self._db.bytes += added
        return destination

    def make_batch(self, destination: int, documents: Sequence[int], operation_id: str) -> Batch:
        """Bind documents into a batch: both are on disk before its first send.

        Synced at ``NORMAL``, too. Else a loss of power could take the batch back
        after the server got it, and its turns would go again in another document.
        """
        with self._db.access, self._db.step, self._db.synced, self._db.transaction():
            return self._make_batch(destination, documents, operation_id)

    def _make_batch(self, destination: int, documents: Sequence[int], operation_id: str) -> Batch:
        number = self._db.execute(
            "INSERT INTO batches (destination, operation_id) VALUES (?, ?)",
            (destination, operation_id),
        ).lastrowid
        assert number is not None  # noqa: S101 - for the type: an INSERT sets it
        self._db.connection.executemany(
            "UPDATE documents SET batch = ? WHERE id = ?", [(number, one) for one in documents]
        )
        return Batch(number, destination, operation_id)

    def note(self, batch: Batch, error: str = "") -> None:
        """Write down the state of a batch, and an error if there was one."""
        with self._db.access, self._db.step, self._db.unsynced:
            self._db.execute(
                "UPDATE batches SET operation = ?, accepted = ?, retries = ?, retry_at = ?,"
                " error = ? WHERE id = ?",
                (batch.operation, batch.accepted, batch.retries, batch.retry_at, error, batch.id),
            )

    def complete(self, batch: Batch) -> None:
        """Forget a batch: the server has processed it."""
        with self._db.access, self._db.step:
            with self._db.unsynced, self._db.transaction():
                freed = self._db.first(
                    "SELECT coalesce(sum(bytes), 0) FROM documents WHERE batch = ?", (batch.id,)
                )[0]
                self._db.execute("DELETE FROM documents WHERE batch = ?", (batch.id,))
                self._db.execute("DELETE FROM batches WHERE id = ?", (batch.id,))
            self._db.bytes -= freed

    def split(self, batch: Batch, operation_ids: tuple[str, str]) -> list[Batch]:
        """Make two batches of one, under new ids; synced as by :meth:`make_batch`."""
        with self._db.access, self._db.step, self._db.synced, self._db.transaction():
            rows = self._db.execute(
                "SELECT id FROM documents WHERE batch = ? ORDER BY id", (batch.id,)
            ).fetchall()
            documents = [row[0] for row in rows]
            middle = len(documents) // 2
            halves = (documents[:middle], documents[middle:])
            self._db.execute("DELETE FROM batches WHERE id = ?", (batch.id,))
            return [
                self._make_batch(batch.destination, half, operation_id)
                for half, operation_id in zip(halves, operation_ids)
            ]

    def move_documents(self, into: Outbox, batches: Iterable[Batch]) -> set[int]:
        """Move documents that are in no batch, or in one of these, to another outbox.

        Returns their destinations there. If it fails in between, a document may be
        in both: the server stores it once all the same.
        """
        found: set[int] = set()
        with self._db.access, self._db.step, self._db.transaction():
            for batch in batches:
                self._db.execute("UPDATE documents SET batch = NULL WHERE batch = ?", (batch.id,))
                self._db.execute("DELETE FROM batches WHERE id = ?", (batch.id,))
        while rows := self._db.all(_MOVED):
            for number, header, name, item, given_at, turns in rows:
                _, destination = into.put_document(source_of(header), name, item, given_at, turns)
                found.add(destination)
                with self._db.access, self._db.step:
                    self._db.execute("DELETE FROM documents WHERE id = ?", (number,))
                    self._db.bytes -= len(item)
        return found

    # --- dead letters, and erasing ----------------------------------------

    def mark_dead(self, batch: Batch, reason: str, detail: str) -> None:
        """Make dead letters of a batch's documents."""
        with self._db.access, self._db.step, self._db.transaction():
            self._db.execute(
                "UPDATE documents SET batch = NULL, reason = ?, detail = ? WHERE batch = ?",
                (reason, detail, batch.id),
            )
            self._db.execute("DELETE FROM batches WHERE id = ?", (batch.id,))

    def requeue(self, documents: Optional[Iterable[int]] = None) -> int:
        """Queue dead letters again, all or some; returns how many documents."""
        return self._dead("UPDATE documents SET reason = NULL, detail = NULL", documents)

    def discard(self, documents: Optional[Iterable[int]] = None) -> int:
        """Erase dead letters, all or some; returns how many documents."""
        return self._dead("DELETE FROM documents", documents)

    def _dead(self, action: str, documents: Optional[Iterable[int]]) -> int:
        action += " WHERE reason IS NOT NULL"
        with self._db.access, self._db.step:
            with self._db.transaction():
                if documents is None:
                    count = self._db.execute(action).rowcount
                else:
                    count = sum(
                        self._db.execute(f"{action} AND id = ?", (one,)).rowcount
                        for one in documents
                    )
            self._db.bytes = self._db.first(BYTES)[0]
        return count

    def purge(self, session: Optional[str] = None) -> int:
        """Erase everything that waits or is dead, of one session or of all.

        Returns how many turns. What was sent before may be on the server.
        """
        where = "" if session is None else _OF_SESSION
        values = () if session is None else (session,)
        with self._db.access, self._db.step:
            with self._db.transaction():
                turns: int = self._db.first(
                    f"SELECT coalesce(sum(turns), 0) FROM documents{where}",  # noqa: S608
                    values,
                )[0]
                self._db.execute(f"DELETE FROM documents{where}", values)  # noqa: S608
                turns += self._db.execute(f"DELETE FROM turns{where}", values).rowcount  # noqa: S608
                for unused in _UNUSED:
                    self._db.execute(unused)
                self._db.known = {}
            # Gone from the file too, not only from its index.
            self._db.vacuum_now()
            self._db.first("PRAGMA wal_checkpoint(TRUNCATE)")
            self._db.bytes = self._db.first(BYTES)[0]
        return turns

    def sync(self) -> None:
        """Take everything that is committed to the disk, at ``NORMAL``, too."""
        with self._db.access, self._db.step:
            self._db.first("PRAGMA wal_checkpoint")

    def vacuum(self) -> None:
        """Give free space back to the system, if there is enough to be worth it."""
        self._db.vacuum(_VACUUM_BYTES)
