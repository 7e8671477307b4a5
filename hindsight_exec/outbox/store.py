"""The outbox: turns, documents and batches in one SQLite file.

The row on disk is the truth.  A turn is *held* until its document is closed;
a document goes closed -> in a batch -> accepted -> gone, or is *dead*.  What a
resend needs (a document's bytes, a batch's members and its operation id) is
committed before the first send.

One connection writes the file and no second one in this process may open it:
closing any descriptor of it would drop SQLite's locks.  Who may open a file is
settled in :mod:`.spool`.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, astuple, dataclass
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Iterable,
    Optional,
    Sequence,
)

from hindsight_exec.conversation.turns import Destination, Source, Turn, payload_json, storable
from hindsight_exec.errors import OutboxCorrupt, OutboxFull, OutboxNewer

from .sqlite import Database

if TYPE_CHECKING:
    from pathlib import Path

#: Version of the schema; files of a newer one are left to newer programs.
SCHEMA_VERSION = 1

#: Live payload that an outbox takes by default, in bytes.
MAX_BYTES = 1 << 30

#: Longest turn or document that is taken, in bytes. SQLite's bound for a row is
#: 1e9, and a turn's JSON may double when it is written into a document's.
MAX_ROW_BYTES = 1 << 28

#: Free bytes of a file that are worth a VACUUM.
_VACUUM_BYTES = 4 << 20

#: Sources that are known by heart, and that are left when nothing is of them.
MAX_SOURCES = 4096

#: Years 1970 to 9999, in POSIX time: what a date can be made of.
_TIMES = (0.0, 253_402_300_799.0)


@dataclass
class Batch:
    """One request: documents of one bank under one operation id.

    Attributes:
        operation: What the server calls the operation; its own id on servers
            that do not know ours (before 0.8.6).
        accepted: The server has it, and has not said yet that it is done.
        retries: How often the failed operation was told to run again, or is to be.
        retry_at: When it is told so: POSIX time in seconds.
        failures: Sends of it that failed, as far as this process knows.
        taken: How many batches the server had taken when it failed last.
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
    """Turns of one source that no document holds yet."""

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


class Outbox:
    """An outbox file, opened. Safe from any thread.

    Args:
        path: The file, or None to keep all in memory.
        synchronous: ``FULL`` survives a loss of power, ``NORMAL`` may lose the
            last turns then; a killed process loses nothing with either.
        max_bytes: Live payload that is taken, in bytes.
        readonly: Look only; for the file of another process.

    Raises:
        OutboxNewer: A newer version of this program wrote the file.
        OutboxCorrupt: It is no outbox, or damaged.
        OutboxUnavailable: It cannot be opened or written.

    Every method raises the last two, and ``ValueError`` after :meth:`close`.
    """

    _CREATE = """
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
    _MIGRATIONS: ClassVar[dict[int, str]] = {}

    _PUT = "INSERT INTO turns (source, given_at, number, sizes, payload) VALUES (?, ?, ?, ?, ?)"
    _ADD_DOCUMENT = """INSERT INTO documents
        (destination, source, document_id, turns, given_at, bytes, item)
        VALUES (?, ?, ?, ?, ?, ?, ?)"""
    _HELD = """SELECT source, count(*), sum(length(payload)), max(given_at)
        FROM turns GROUP BY source ORDER BY min(id)"""
    _HELD_TURNS = """SELECT id, given_at, number, payload, sizes FROM turns
        WHERE source = ? ORDER BY id LIMIT ?"""
    _READY = """SELECT id, bytes FROM documents
        WHERE destination = ? AND batch IS NULL AND reason IS NULL ORDER BY id LIMIT ?"""
    _BATCHES = """SELECT id, destination, operation_id, operation, accepted, retries, retry_at
        FROM batches ORDER BY id"""
    _TURNS_OF_BATCH = "SELECT source, sum(turns) FROM documents WHERE batch = ? GROUP BY source"
    _BYTES = """SELECT (SELECT coalesce(sum(length(CAST(payload AS BLOB))), 0) FROM turns)
        + (SELECT coalesce(sum(bytes), 0) FROM documents)"""
    _OF_SESSION = " WHERE source IN (SELECT id FROM sources WHERE session = ?)"
    _UNUSED_SOURCES = """DELETE FROM sources WHERE id NOT IN
        (SELECT source FROM turns UNION SELECT source FROM documents)"""
    _UNUSED = (
        """DELETE FROM batches WHERE id NOT IN
            (SELECT batch FROM documents WHERE batch IS NOT NULL)""",
        _UNUSED_SOURCES,
        """DELETE FROM destinations WHERE id NOT IN (SELECT destination FROM sources)""",
    )
    _COUNTS = """SELECT
        CASE WHEN d.reason IS NOT NULL THEN 'dead'
             WHEN b.accepted THEN 'accepted' ELSE 'queued' END,
        coalesce(d.reason, ''), sum(d.turns), min(d.given_at)
        FROM documents d LEFT JOIN batches b ON b.id = d.batch GROUP BY 1, 2"""
    _IS_WAITING = """SELECT EXISTS (SELECT 1 FROM turns) OR EXISTS (
        SELECT 1 FROM documents d LEFT JOIN batches b ON b.id = d.batch
        WHERE d.reason IS NULL AND NOT coalesce(b.accepted, 0))"""
    _ENTRIES = """
        SELECT 'held', t.id, s.session, x.url, x.bank, 1, t.given_at, '', '', t.payload
          FROM turns t JOIN sources s ON s.id = t.source
          JOIN destinations x ON x.id = s.destination
        UNION ALL
        SELECT CASE WHEN d.reason IS NOT NULL THEN 'dead'
                    WHEN b.accepted THEN 'accepted' ELSE 'queued' END,
               d.id, s.session, x.url, x.bank, d.turns, d.given_at, d.document_id,
               coalesce(d.reason || ': ' || d.detail, b.error, ''), d.item
          FROM documents d JOIN sources s ON s.id = d.source
          JOIN destinations x ON x.id = d.destination LEFT JOIN batches b ON b.id = d.batch
        ORDER BY 7, 2"""

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
        self.path = path
        self.max_bytes = max_bytes
        self._sources: dict[Source, tuple[int, int]] = {}  # to source and destination
        self._db = Database(path, synchronous=synchronous, readonly=readonly)
        try:
            with self._db.use():
                version = self._db.pragma("user_version")
                if version > SCHEMA_VERSION:
                    raise OutboxNewer(
                        f"{path} has schema {version} and this version knows {SCHEMA_VERSION}: "
                        "start a newer hindsight-exec to deliver what it holds"
                    )
                if version < 0:
                    raise OutboxCorrupt(f"{path} is no outbox: it has schema {version}")
                if readonly and not version and self._db.pragma("page_count") <= 1:
                    # Its owner is about to make the tables: WAL alone is a page.
                    self._db.forget()
                    readonly = False
                if not readonly:
                    self._db.prepare(self._steps(version), SCHEMA_VERSION)
                self.bytes: int = self._db.first(self._BYTES)[0]
                self._file = None if path is None else (path, path.stat())
        except BaseException:
            self._db.close()
            raise

    def _steps(self, version: int) -> str:
        """The statements that lead from a version of the schema to ours; 0 is an empty file."""
        if not version:
            return self._CREATE
        return "\n".join(self._MIGRATIONS[old] for old in range(version, SCHEMA_VERSION))

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._db.close()

    # --- taking -----------------------------------------------------------

    def put(self, source: Source, turn: Turn) -> int:
        """Keep a turn; it is committed on return. Returns its source's number.

        Raises:
            OutboxFull: ``max_bytes`` are held already. Nothing is evicted.
            ValueError: The turn is longer than ``MAX_ROW_BYTES``.
        """
        payload = turn.payload
        size = len(payload) if payload.isascii() else len(payload.encode())  # spares a copy
        row = (turn.given_at, turn.index, str(list(turn.sizes)), payload)  # JSON, too
        with self._db.use():
            self._check_room(size)
            known = self._sources.get(source)
            if known is not None:
                # One statement is a transaction of its own: the usual case.
                self._db.execute(self._PUT, (known[0], *row))
            else:
                with self._db.transaction():
                    known = self._source(source)
                    self._db.execute(self._PUT, (known[0], *row))
                self._sources[source] = known
            self.bytes += size
        return known[0]

    def put_document(
        self, source: Source, document_id: str, item: bytes, given_at: float, turns: int = 1
    ) -> tuple[int, int]:
        """Keep a document that is closed already; returns source and destination.

        Raises:
            OutboxFull, ValueError: As :meth:`put`.
        """
        with self._db.use():
            self._check_room(len(item))
            with self._db.transaction():
                known = self._source(source)
                number, destination = known
                self._db.execute(
                    self._ADD_DOCUMENT,
                    (destination, number, document_id, turns, given_at, len(item), item),
                )
            self._sources[source] = known
            self.bytes += len(item)
        return known

    def _check_room(self, size: int) -> None:
        if size > MAX_ROW_BYTES:
            raise ValueError(f"{size} bytes are more than the {MAX_ROW_BYTES} that a turn may have")
        if self.bytes + size > self.max_bytes:
            raise OutboxFull(
                f"the outbox holds {self.bytes} of {self.max_bytes} bytes and takes no more: "
                "let the server come back, or erase with 'hindsight-exec outbox purge'"
            )

    def _source(self, source: Source) -> tuple[int, int]:
        """The numbers of a source and its destination, new or known."""
        if len(self._sources) >= MAX_SOURCES:
            self._db.execute(self._UNUSED_SOURCES)
            self._sources.clear()
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
        number = self._db.first(
            "SELECT id FROM sources WHERE header = ?",
            (header,),
        )[0]
        return number, destination

    # --- held turns and documents -----------------------------------------

    def held(self) -> list[Held]:
        """What is held, a row a source, the oldest first."""
        return self._db.rows(Held, (int, int, int, float), self._HELD)

    def count_held(self, source: int) -> tuple[int, int]:
        """Number and characters of a source's held turns."""
        row: tuple[int, int] = self._db.all(
            "SELECT count(*), coalesce(sum(length(payload)), 0) FROM turns WHERE source = ?",
            (source,),
        )[0]
        return row

    def held_turns(self, source: int, limit: int) -> list[tuple[int, Turn]]:
        """The oldest held turns of a source, with their numbers."""
        return self._db.rows(
            turn_of, (int, float, int, str, str), self._HELD_TURNS, (source, limit)
        )

    def close_documents(
        self, source: int, documents: Sequence[tuple[Sequence[int], str, float, bytes]]
    ) -> int:
        """Make documents of held turns, all or none; returns their destination.

        A document whose turns are not all held any more (they were purged
        meanwhile) is not made.

        Args:
            source: The source that the turns are of.
            documents: For each the turns' numbers, the document's id, the time
                of its first turn, and the item that will be sent.
        """
        added = 0
        with self._db.use():
            with self._db.unsynced(), self._db.transaction(), self._db.content():
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
                        self._ADD_DOCUMENT,
                        (destination, source, document_id, len(turns), given_at, len(item), item),
                    )
                    added += len(item) - size
            self.bytes += added
        return destination

    def sources(self) -> dict[int, Source]:
        """All sources by their number."""
        return dict(self._db.rows(_numbered_source, (int, str), "SELECT id, header FROM sources"))

    def source(self, number: int) -> Source:
        """The source of that number."""
        found = self._db.rows(
            source_of, (str,), "SELECT header FROM sources WHERE id = ?", (number,)
        )
        if not found:
            raise OutboxCorrupt(f"the outbox {self._db.name} is damaged: it lacks a source")
        return found[0]

    def destinations(self) -> dict[int, Destination]:
        """All destinations by their number."""
        return dict(
            self._db.rows(
                lambda number, *names: (number, Destination(*names)),
                (int, str, str, str),
                "SELECT id, url, credential, bank FROM destinations",
            )
        )

    # --- batches ----------------------------------------------------------

    def ready(self, destination: int, limit: int) -> list[tuple[int, int]]:
        """Numbers and sizes in bytes of the oldest documents that no batch holds."""
        return self._db.rows(_pair, (int, int), self._READY, (destination, limit))

    def make_batch(self, destination: int, documents: Sequence[int], operation_id: str) -> Batch:
        """Bind documents into a batch, on disk before its first send, with the documents."""
        with self._db.use(), self._db.transaction():
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

    def batches(self) -> list[Batch]:
        """All batches, the oldest first."""
        return self._db.rows(
            lambda *row: Batch(row[0], row[1], row[2], row[3], bool(row[4]), row[5], row[6]),
            (int, int, str, str, int, int, float),
            self._BATCHES,
        )

    def items(self, batch: Batch) -> list[bytes]:
        """The items of a batch, in their order, as they were first written."""
        query = "SELECT item FROM documents WHERE batch = ? ORDER BY id"
        return self._db.rows(bytes, (bytes,), query, (batch.id,))

    def document_ids(self, batch: Batch) -> list[str]:
        """The ids of a batch's documents, in their order."""
        query = "SELECT document_id FROM documents WHERE batch = ? ORDER BY id"
        return self._db.rows(str, (str,), query, (batch.id,))

    def note(self, batch: Batch, error: str = "") -> None:
        """Write down what became of a batch, and an error if there was one."""
        with self._db.use(), self._db.unsynced():
            self._db.execute(
                "UPDATE batches SET operation = ?, accepted = ?, retries = ?, retry_at = ?,"
                " error = ? WHERE id = ?",
                (batch.operation, batch.accepted, batch.retries, batch.retry_at, error, batch.id),
            )

    def turns_of(self, batch: Batch) -> list[tuple[int, int]]:
        """Pairs of source and number of turns in a batch."""
        return self._db.rows(_pair, (int, int), self._TURNS_OF_BATCH, (batch.id,))

    def complete(self, batch: Batch) -> None:
        """The server is done with the batch: forget it."""
        with self._db.use():
            with self._db.unsynced(), self._db.transaction():
                freed = self._db.first(
                    "SELECT coalesce(sum(bytes), 0) FROM documents WHERE batch = ?", (batch.id,)
                )[0]
                self._db.execute("DELETE FROM documents WHERE batch = ?", (batch.id,))
                self._db.execute("DELETE FROM batches WHERE id = ?", (batch.id,))
            self.bytes -= freed

    def split(self, batch: Batch, operation_ids: tuple[str, str]) -> list[Batch]:
        """Make two batches of one, under new ids."""
        with self._db.use(), self._db.transaction():
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

    # --- dead letters -----------------------------------------------------

    def mark_dead(self, batch: Batch, reason: str, detail: str) -> None:
        """Make dead letters of a batch's documents."""
        with self._db.use(), self._db.transaction():
            self._db.execute(
                "UPDATE documents SET batch = NULL, reason = ?, detail = ? WHERE batch = ?",
                (reason, detail, batch.id),
            )
            self._db.execute("DELETE FROM batches WHERE id = ?", (batch.id,))

    def requeue(self, documents: Optional[Iterable[int]] = None) -> int:
        """Queue dead letters again, all or those; returns how many documents."""
        return self._dead("UPDATE documents SET reason = NULL, detail = NULL", documents)

    def discard(self, documents: Optional[Iterable[int]] = None) -> int:
        """Erase dead letters, all or those; returns how many documents."""
        return self._dead("DELETE FROM documents", documents)

    def _dead(self, action: str, documents: Optional[Iterable[int]]) -> int:
        with self._db.use():
            with self._db.transaction():
                if documents is None:
                    count = self._db.execute(f"{action} WHERE reason IS NOT NULL").rowcount
                else:
                    count = sum(
                        self._db.execute(
                            f"{action} WHERE reason IS NOT NULL AND id = ?", (one,)
                        ).rowcount
                        for one in documents
                    )
            self.bytes = self._db.first(self._BYTES)[0]
        return count

    def purge(self, session: Optional[str] = None) -> int:
        """Erase for good all that waits or is dead, of one session or of all.

        Returns how many turns. What was sent already may be on the server.
        """
        where = "" if session is None else self._OF_SESSION
        values = () if session is None else (session,)
        with self._db.use():
            with self._db.transaction():
                turns: int = self._db.first(
                    f"SELECT coalesce(sum(turns), 0) FROM documents{where}",  # noqa: S608
                    values,
                )[0]
                self._db.execute(f"DELETE FROM documents{where}", values)  # noqa: S608
                turns += self._db.execute(f"DELETE FROM turns{where}", values).rowcount  # noqa: S608
                for unused in self._UNUSED:
                    self._db.execute(unused)
                self._sources.clear()
            # Gone from the file too, not only from its index.
            self._db.execute("VACUUM")
            self._db.first("PRAGMA wal_checkpoint(TRUNCATE)")
            self.bytes = self._db.first(self._BYTES)[0]
        return turns

    # --- looking ----------------------------------------------------------

    def is_there(self) -> bool:
        """Whether the file is still where it was, for another process to find."""
        try:
            return self._file is None or os.path.samestat(os.stat(self._file[0]), self._file[1])  # noqa: PTH116 - a str, as it is on the hot path
        except OSError:
            return False

    def is_empty(self) -> bool:
        """Whether it holds no row that anybody needs."""
        return not self._db.all(
            "SELECT 1 WHERE EXISTS (SELECT 1 FROM turns) OR EXISTS (SELECT 1 FROM documents)"
        )

    def is_waiting(self) -> bool:
        """Whether the server lacks anything; asked often, of any number of turns."""
        return bool(self._db.all(self._IS_WAITING)[0][0])

    def summary(self) -> Summary:
        """What it holds."""
        with self._db.use(), self._db.transaction("DEFERRED"), self._db.content():
            # One view of it all: its owner may be making a document of a held turn.
            held, oldest = self._db.first("SELECT count(*), min(given_at) FROM turns")
            turns = {"queued": 0, "accepted": 0, "dead": 0}
            reasons: dict[str, int] = {}
            for state, reason, count, first in self._db.execute(self._COUNTS).fetchall():
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
        """Held turns and documents, the oldest first, as somebody would read them.

        Each has ``state`` (held, queued, accepted, dead), ``id``, ``session``,
        ``url``, ``bank``, ``turns``, ``given_at``, ``document_id``, ``error``
        and ``content`` (text).
        """
        rows = self._db.all(f"{self._ENTRIES} LIMIT ?", (limit,))
        return [dict(zip(_ENTRY, row[:-1]), content=_text(row[-1])) for row in rows]

    def vacuum(self) -> None:
        """Give free space back to the system, if there is enough of it to be worth it."""
        self._db.vacuum(_VACUUM_BYTES)


_ENTRY = (
    "state", "id", "session", "url", "bank", "turns", "given_at", "document_id", "error",
)  # fmt: skip


def source_of(header: str) -> Source:
    """Raises ValueError, TypeError, KeyError or AttributeError if no item can be made of it."""
    fields = json.loads(header)
    fields["tags"] = tuple(fields["tags"])
    fields["metadata"] = tuple((key, value) for key, value in fields["metadata"])
    source = Source(**fields)
    texts = [source.url, source.credential, source.bank, source.session, source.context]
    texts += source.tags + tuple(text for pair in source.metadata for text in pair)
    if any(storable(text) != text for text in texts):
        raise ValueError("a source's texts")
    if source.observation_scopes:
        json.loads(source.observation_scopes)
    return source


def _numbered_source(number: int, header: str) -> tuple[int, Source]:
    return number, source_of(header)


def turn_of(number: int, given_at: float, index: int, payload: str, sizes: str) -> tuple[int, Turn]:
    """Raises ValueError or TypeError if no item can be made of it."""
    lengths = tuple(json.loads(sizes))
    if not _TIMES[0] <= given_at <= _TIMES[1] or any(type(one) is not int for one in lengths):
        raise ValueError("a turn's time or its sizes")
    return number, Turn(given_at, index, payload, lengths)


def _pair(first: int, second: int) -> tuple[int, int]:
    return first, second


def _text(content: Any) -> str:
    if not isinstance(content, bytes):
        return f"[{payload_json(content)}]"
    try:
        return str(json.loads(content)["content"])
    except (ValueError, TypeError, KeyError):
        return content.decode(errors="replace")  # damaged
