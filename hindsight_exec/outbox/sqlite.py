"""One connection to a SQLite file, with its transactions, and with its errors as ours.

:mod:`.schema` says what is in the file.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import threading
from pathlib import Path
from typing import Any, Callable, Iterator, Optional, Sequence, TypeVar
from urllib.parse import quote

from hindsight_exec.errors import OutboxCorrupt, OutboxUnavailable
from hindsight_exec.executor.locks import holds

from .forks import Inherited, this_process
from .spool import sync_names

# sqlite3 raises OperationalError for this damage, and for a full disk alike.
# Its message about text that cannot be decoded quotes that text.
_DAMAGE = re.compile(
    "no such|already exists|unsupported file format|attempt to write a readonly database|"
    "Could not decode to UTF-8"
)

#: Errors of the file or the disk. Our own mistakes pass through as they are.
_ERRORS = (sqlite3.DatabaseError, OSError, UnicodeDecodeError)

_OWNER_WAITS, _READER_WAITS = 0.25, 5.0  # seconds for another program's lock, such as a backup's

_LARGEST_PAGE = 1 << 16  # bytes, by SQLite's format
_SMALL_LOG = 100  # pages, a tenth of the usual: once a disk was full

T = TypeVar("T")


class Database:
    """An open file, safe from any thread by ``with database.access, database.step:``.

    The first takes the lock, and is a ``with`` on the lock itself because Ctrl-C
    cannot come between taking that and being inside. A finalizer can, with steps of
    its own: so it is re-entrant. The second makes SQLite's errors ours. The other
    managers are used inside these two. They are classes because a generator that
    Ctrl-C leaves behind runs its ``finally`` in another thread's transaction.

    Args:
        path: The file, or None to keep everything in memory.
        synchronous: ``FULL`` or ``NORMAL``; see SQLite's pragma.
        mode: ``rwc`` reads and writes, and makes the file if need be. ``ro``
            reads the file of another process. ``rw`` reads a damaged file; SQLite
            may have to write to replay its log.
        exclusive: Let no other process read it meanwhile. SQLite then needs no
            shared memory, which some containers and network folders lack.

    Raises:
        OutboxCorrupt: The file is not a database.
        OutboxUnavailable: The file cannot be opened, or another process opened
            it and forked this one, or this thread is using it already (a
            finalizer or a signal handler interrupted it).

    Every method raises these two, and ``ValueError`` after :meth:`close`.

    Attributes:
        bytes, known: Kept in memory beside the file. A transaction that is
            rolled back restores the number and replaces the dictionary.
        lock: Held while a thread is inside SQLite. Nothing else of ours is taken
            inside it. A fork takes it, too: see :mod:`.forks`.
    """

    def __init__(
        self,
        path: Optional[Path],
        *,
        synchronous: str = "FULL",
        mode: str = "rwc",
        exclusive: bool = False,
    ) -> None:
        self.name = str(path or "in memory")
        self.bytes = 0
        self.known: dict[Any, Any] = {}
        self.lock = threading.RLock()
        self.step = _Step(self)
        self.synced = _Level(self, "FULL")
        self.unsynced = _Level(self, "NORMAL")
        self._log = f"{path}-wal" if path and mode == "rwc" else None
        self._pid = os.getpid()
        # Guarded by `lock`:
        self.user = 0  # the thread that has the connection
        self.usual = self.level = synchronous  # of the pragma
        self.bytes_before = 0  # the transaction
        self.log_is_suspect = self.log_has_hole = False
        self.unsettled: list[Any] = []  # what a thread is committing for others
        target = f"file:{quote(os.fsencode(path))}?mode={mode}" if path else ":memory:"
        process = this_process()
        process.check()
        try:
            with process.lock:
                waits = _OWNER_WAITS if mode == "rwc" else _READER_WAITS
                self.connection = _connect(target, waits)
                process.databases.add(self)
        except _ERRORS as error:
            raise self.ours(error) from None
        with self.access, self.step:
            # What is sorted fits into memory, and perhaps no folder for temporary
            # files can be written (a read-only system).
            self.execute("PRAGMA temp_store = MEMORY")
            if exclusive:
                self.first("PRAGMA locking_mode = EXCLUSIVE")

    def prepare(self, script: str, version: int) -> None:
        """Prepare the file for writing; a script leads to the version. Called in a step."""
        self.first("PRAGMA journal_mode = WAL")
        self.execute(f"PRAGMA synchronous = {self.usual}")
        if script:
            self.connection.executescript(
                f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {version}; COMMIT"
            )
            if self._log:
                # SQLite does so, too, but does not look whether it succeeded.
                sync_names(Path(self._log).parent)

    def forget(self) -> None:
        """Continue in memory. Called in a step."""
        self.connection.close()
        self.connection = _connect(":memory:")

    def close(self, last: str = "") -> Any:
        """Close the file right after a last query; return its first row.

        Without a query it is idempotent, and nothing in a forked child.
        """
        if self._pid != os.getpid() and not last:
            return None
        with self.access, contextlib.suppress(sqlite3.Error), contextlib.closing(self.connection):
            if last:
                with self.step:
                    return self.first(last)
        return None

    # --- steps --------------------------------------------------------------

    @property
    def access(self) -> threading.RLock:
        """The lock, after a check that this thread may wait for it."""
        if self._pid != os.getpid():
            raise self.inherited()
        if self.user and self.used_by_this_thread():
            raise OutboxUnavailable(
                f"a finalizer or a signal handler interrupted this very thread in {self.name}"
            )
        return self.lock

    def used_by_this_thread(self) -> bool:
        # Another thread may have it, if Ctrl-C kept this one from saying that it left.
        return self.user == threading.get_ident() and holds(self.lock)

    def disown(self) -> object:
        """Give up and return the connection, in a forked child, perhaps inside a step."""
        # The caller keeps it: closing it would change the parent's file.
        connection, self.connection = self.connection, Inherited(self)  # type: ignore[assignment]
        return connection

    def inherited(self) -> OutboxUnavailable:
        return OutboxUnavailable(
            f"the outbox {self.name} belongs to process {self._pid}, which forked this one; "
            "open another"
        )

    def transaction(self, kind: str = "IMMEDIATE") -> _Transaction:
        """Commit everything or nothing. Called in a step."""
        return _Transaction(self, kind)

    def recover(self) -> None:
        """Set right what the last step left. Called at the start of a step."""
        if self.connection.in_transaction:
            # Ctrl-C interrupted it. Nobody was told that its rows are kept.
            self.undo()
        if self.level != self.usual:
            self.set_level(self.usual)
        if self.log_is_suspect and not self._empty_log() and self.log_has_hole:
            raise OutboxUnavailable(
                f"the disk failed to sync the outbox {self.name}, and has not recovered"
            )

    def undo(self) -> None:
        """Roll back. Called in a step."""
        # SQLite rolls back by itself after some errors (a full disk).
        if self.connection.in_transaction:
            self.execute("ROLLBACK")
        self.bytes = self.bytes_before
        self.known = {}

    def set_level(self, level: str) -> None:
        """Choose whether commits are synced. Called in a step."""
        self.level = ""  # until it is sure
        self.execute(f"PRAGMA synchronous = {level}")
        self.level = level

    def mends(self, error: Exception) -> bool:
        """Whether the file can be used after an error. Called in a step.

        A failed sync leaves two traps in the log:

        1. Its frames are in the file although SQLite does not count them; the
           next process would. The write is reported as failed, so its caller
           keeps it elsewhere, and it would be there twice.
        2. The system may have dropped earlier frames that SQLite counts and never
           writes again. After a loss of power, recovery stops at this hole, and
           everything that was acknowledged after it is gone.

        A full disk leaves a third: a log that takes what room comes free, and gives none
        back. A checkpoint writes what counts into the database and empties the log.
        """
        self.note(error)
        return self.log_is_suspect and self._empty_log()

    def note(self, error: BaseException) -> None:
        if self._log is not None:
            # The only names that sqlite3 before 3.11 gives to SQLITE_IOERR and SQLITE_FULL.
            self.log_has_hole |= "disk I/O error" in str(error)
            self.log_is_suspect |= self.log_has_hole or "disk is full" in str(error)

    def _empty_log(self) -> bool:
        try:
            self.first(f"PRAGMA wal_autocheckpoint = {_SMALL_LOG}")
            # One that truncates waits for other programs that read, which is worth a hole only.
            kind = "(TRUNCATE)" if self.log_has_hole else ""
            busy, frames, moved = self.first(f"PRAGMA wal_checkpoint{kind}")
            # SQLite does not sync that the log is empty. Closing this drops no lock of SQLite's.
            with Path(self._log or "").open("r+b") as log:
                os.fsync(log.fileno())
            if not busy and frames == moved:
                self.log_is_suspect = self.log_has_hole = False
        except (sqlite3.Error, OSError) as error:
            self.note(error)
        return not self.log_is_suspect

    @contextlib.contextmanager
    def content(self) -> Iterator[None]:
        """Report damage in rows that SQLite does not notice."""
        try:
            yield
        except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
            raise OutboxCorrupt(f"the outbox {self.name} is damaged: {error}") from error

    # --- statements ---------------------------------------------------------

    def execute(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Called in a step."""
        return self.connection.execute(sql, values)

    def first(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """The first row, or None. Called in a step."""
        # To the end: on PyPy, a statement with rows left holds up every commit.
        return next(iter(self.execute(sql, values).fetchall()), None)

    def pragma(self, name: str) -> int:
        """Called in a step."""
        value: int = self.first(f"PRAGMA {name}")[0]
        return value

    def all(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """All rows."""
        with self.access, self.step:
            return self.execute(sql, values).fetchall()

    def rows(
        self,
        make: Callable[..., T],
        types: tuple[type, ...],
        sql: str,
        values: Sequence[Any] = (),
    ) -> list[T]:
        """Call ``make`` with each row; columns of other types are damage."""
        rows = self.all(sql, values)
        with self.content():
            if not all(all(map(isinstance, row, types)) for row in rows):
                raise TypeError("a value has the wrong type")
            return [make(*row) for row in rows]

    def vacuum(self, worth: int) -> None:
        """Give free space back to the system if it is ``worth`` bytes and half of the file."""
        with self.access, self.step:
            free = self.pragma("freelist_count")
            if free * _LARGEST_PAGE <= worth:
                return  # mostly: the worker looks whenever nothing is left to do
            pages, size = map(self.pragma, ("page_count", "page_size"))
            if free * size > worth and free * 2 > pages:
                # It copies the live half of the file, which a full disk has no room for.
                try:
                    self.vacuum_now()
                except sqlite3.OperationalError as error:
                    self.note(error)

    def vacuum_now(self) -> None:
        """Called in a step."""
        try:
            self.execute("PRAGMA temp_store = FILE")  # it copies everything
            self.execute("VACUUM")
        except sqlite3.OperationalError as error:
            self.mends(error)
            self.execute("PRAGMA temp_store = MEMORY")
            self.execute("VACUUM")
        finally:
            self.execute("PRAGMA temp_store = MEMORY")

    def ours(self, error: Exception) -> Exception:
        """Our error for one of SQLite's, whose message may quote the file and is not shown."""
        if not isinstance(error, _ERRORS):
            return error
        if isinstance(error, sqlite3.ProgrammingError):
            return ValueError(f"the outbox {self.name} is closed")
        text = str(error)
        if isinstance(error, (sqlite3.OperationalError, OSError)):
            damage = _DAMAGE.search(text)
            if damage is None:
                return OutboxUnavailable(f"the outbox {self.name} cannot be used: {text}")
            text = damage[0]
        return OutboxCorrupt(f"the outbox {self.name} is damaged: {text}")


class _Step:
    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> None:
        database = self._database
        database.user = threading.get_ident()
        try:
            if (
                database.connection.in_transaction
                or database.unsettled
                or database.log_is_suspect
                or database.level != database.usual
            ):
                database.recover()
        except BaseException as error:
            self.__exit__(None, error, None)
            raise

    def __exit__(self, kind: object, error: Optional[BaseException], trace: object) -> None:
        database = self._database
        database.user = 0
        if isinstance(error, _ERRORS):
            database.note(error)
            raise database.ours(error) from None


class _Transaction:
    def __init__(self, database: Database, kind: str) -> None:
        self._database = database
        self._kind = kind

    def __enter__(self) -> None:
        self._database.bytes_before = self._database.bytes
        self._database.execute(f"BEGIN {self._kind}")

    def __exit__(self, kind: object, error: Optional[BaseException], trace: object) -> None:
        try:
            if error is None:
                self._database.execute("COMMIT")
        except BaseException as failure:
            error = failure
            raise
        finally:
            if error is not None:
                self._database.undo()


class _Level:
    """``unsynced`` commits without a sync, which is half of the cost of delivery.

    A killed process keeps the commit all the same. A loss of power may take back
    what was committed since the last sync, so it is for steps only that can be
    repeated with the same result. ``synced`` takes everything before it to the
    disk, too. It is for what the server is about to be told.
    """

    def __init__(self, database: Database, level: str) -> None:
        self._database = database
        self._level = level

    def __enter__(self) -> None:
        if self._database.level != self._level:
            self._database.set_level(self._level)

    def __exit__(self, *_: object) -> None:
        if self._database.level != self._database.usual:
            self._database.set_level(self._database.usual)


def _connect(target: str, timeout: float = 0.0) -> sqlite3.Connection:
    return sqlite3.connect(
        target, timeout=timeout, isolation_level=None, check_same_thread=False, uri=True
    )
