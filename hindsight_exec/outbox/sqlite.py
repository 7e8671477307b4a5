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

from .forks import this_process
from .spool import sync_names

# sqlite3 raises OperationalError for this damage, and for a full disk alike.
# Its message about text that cannot be decoded quotes that text.
_DAMAGE = re.compile(
    "no such|already exists|unsupported file format|attempt to write a readonly database|"
    "Could not decode to UTF-8"
)

#: Errors of the file or the disk. Our own mistakes pass through as they are.
_ERRORS = (sqlite3.DatabaseError, OSError, UnicodeDecodeError)

T = TypeVar("T")


class Database:
    """An open file. :meth:`use` makes it safe from any thread.

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
            rolled back restores the number and empties the dictionary.
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
        self.lock = threading.Lock()
        self._log = f"{path}-wal" if path and mode == "rwc" else None
        self._synchronous = synchronous
        self._pid = os.getpid()
        self._user = 0  # the thread that has the connection
        self._bytes_before = 0
        self._log_has_hole = False
        self._unsettled: list[Any] = []  # what a thread is committing; guarded by `lock`
        target = f"file:{quote(os.fsencode(path))}?mode={mode}" if path else ":memory:"
        process = this_process()
        process.check()
        try:
            with process.lock:
                self.connection = _connect(target)
                process.databases.add(self)
        except _ERRORS as error:
            raise self._ours(error) from None
        with self.use():
            # What is sorted fits into memory, and perhaps no folder for temporary
            # files can be written (a read-only system).
            self.execute("PRAGMA temp_store = MEMORY")
            if exclusive:
                self.first("PRAGMA locking_mode = EXCLUSIVE")

    def prepare(self, script: str, version: int) -> None:
        """Prepare the file for writing; a script leads to the version.

        Called inside :meth:`use`.
        """
        self.first("PRAGMA journal_mode = WAL")
        self.execute(f"PRAGMA synchronous = {self._synchronous}")
        if script:
            self.connection.executescript(
                f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {version}; COMMIT"
            )
            if self._log:
                # SQLite does so, too, but does not look whether it succeeded.
                sync_names(Path(self._log).parent)

    def forget(self) -> None:
        """Continue in memory. Called inside :meth:`use`."""
        self.connection.close()
        self.connection = _connect(":memory:")

    def close(self) -> None:
        """Close the file. Idempotent, and nothing in a forked child."""
        if self._pid == os.getpid():
            self._check_caller()
            with self.lock, contextlib.suppress(sqlite3.Error):
                self.connection.close()

    # --- steps --------------------------------------------------------------

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        """Have the connection alone; SQLite's errors become ours."""
        me = threading.get_ident()
        if self._user == me or self._pid != os.getpid():
            self._check_caller()
        with self.lock:
            try:
                self._user = me
                if self._unsettled or self.connection.in_transaction:
                    self._recover()
                if self._log_has_hole and not self._mend():
                    raise OutboxUnavailable(
                        f"the disk failed to sync the outbox {self.name}, and has not recovered"
                    )
                yield
            except _ERRORS as error:
                self._note_io_error(error)
                raise self._ours(error) from None
            finally:
                self._user = 0

    def _recover(self) -> None:
        """Roll back what Ctrl-C interrupted before its `except` could.

        Nobody was told that these rows are kept.
        """
        if self.connection.in_transaction:
            self._undo()

    def _check_caller(self) -> None:
        if self._pid != os.getpid():
            raise self._inherited()
        if self.used_by_this_thread():
            raise OutboxUnavailable(
                f"the outbox {self.name} is in use by this very thread, which a finalizer or a "
                "signal handler interrupted"
            )

    def _inherited(self) -> OutboxUnavailable:
        return OutboxUnavailable(
            f"the outbox {self.name} belongs to process {self._pid}, which forked this one; "
            "open another"
        )

    def used_by_this_thread(self) -> bool:
        # Another thread may have it, if Ctrl-C kept this one from leaving.
        return self._user == threading.get_ident() and self.lock.locked()

    @contextlib.contextmanager
    def transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        """Commit everything or nothing. Called inside :meth:`use`."""
        self._bytes_before = self.bytes
        try:
            self.execute(f"BEGIN {kind}")
            yield
            self.execute("COMMIT")
        except BaseException:
            self._undo()
            raise

    def _undo(self) -> None:
        # SQLite rolls back by itself after some errors (a full disk).
        if self.connection.in_transaction:
            self.execute("ROLLBACK")
        self.bytes = self._bytes_before
        self.known.clear()

    @contextlib.contextmanager
    def unsynced(self) -> Iterator[None]:
        """Commit without a sync, which is half of the cost of delivery.

        A killed process keeps the commit all the same. A loss of power may take
        back what was committed since the last sync, so use this only for steps
        that can be repeated with the same result. Called inside :meth:`use`.
        """
        with self._synced("NORMAL"):
            yield

    @contextlib.contextmanager
    def synced(self) -> Iterator[None]:
        """Commit with a sync, which takes everything before to the disk, too.

        For what the server is about to be told. Called inside :meth:`use`.
        """
        with self._synced("FULL"):
            yield

    @contextlib.contextmanager
    def _synced(self, synchronous: str) -> Iterator[None]:
        if synchronous == self._synchronous:
            yield
            return
        self.execute(f"PRAGMA synchronous = {synchronous}")
        try:
            yield
        finally:
            self.execute(f"PRAGMA synchronous = {self._synchronous}")

    def _mends(self, error: Exception) -> bool:
        """Whether the file can be used after an error. Called inside :meth:`use`.

        A failed sync leaves two traps in the log:

        1. Its frames are in the file although SQLite does not count them; the
           next process would. The write is reported as failed, so its caller
           keeps it elsewhere, and it would be there twice.
        2. The system may have dropped earlier frames that SQLite counts and never
           writes again. After a loss of power, recovery stops at this hole, and
           everything that was acknowledged after it is gone.

        A checkpoint writes what counts into the database and empties the log.
        """
        self._note_io_error(error)
        return self._log_has_hole and self._mend()

    def _note_io_error(self, error: Exception) -> None:
        # The only name that sqlite3 before 3.11 gives to SQLITE_IOERR.
        if self._log is not None and "disk I/O error" in str(error):
            self._log_has_hole = True

    def _mend(self) -> bool:
        with contextlib.suppress(sqlite3.Error, OSError):
            busy, *_ = self.first("PRAGMA wal_checkpoint(TRUNCATE)")
            # SQLite does not sync that the log is empty. It has no lock on the
            # log that closing this descriptor could drop.
            descriptor = os.open(self._log or "", os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self._log_has_hole = bool(busy)
        return not self._log_has_hole

    @contextlib.contextmanager
    def content(self) -> Iterator[None]:
        """Report damage in rows that SQLite does not notice."""
        try:
            yield
        except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
            raise OutboxCorrupt(f"the outbox {self.name} is damaged: {error}") from error

    # --- statements ---------------------------------------------------------

    def execute(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Called inside :meth:`use`."""
        if self._pid != os.getpid():  # a signal handler forked between two statements
            raise self._inherited()
        return self.connection.execute(sql, values)

    def first(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """The first row, or None. Called inside :meth:`use`.

        It reads to the end: on PyPy, a statement with rows left stays open,
        and no transaction can be committed beside it.
        """
        return next(iter(self.execute(sql, values).fetchall()), None)

    def pragma(self, name: str) -> int:
        """Called inside :meth:`use`."""
        value: int = self.first(f"PRAGMA {name}")[0]
        return value

    def all(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """All rows."""
        with self.use():
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
        with self.use():
            free, pages, size = map(self.pragma, ("freelist_count", "page_count", "page_size"))
            if free * size > worth and free * 2 > pages:
                # It copies the live half of the file, which a full disk has no room for.
                try:
                    self.vacuum_now()
                except sqlite3.OperationalError as error:
                    self._note_io_error(error)

    def vacuum_now(self) -> None:
        """Called inside :meth:`use`."""
        try:
            self.execute("PRAGMA temp_store = FILE")  # it copies everything
            self.execute("VACUUM")
        except sqlite3.OperationalError as error:
            self._mends(error)
            self.execute("PRAGMA temp_store = MEMORY")
            self.execute("VACUUM")
        finally:
            self.execute("PRAGMA temp_store = MEMORY")

    def _ours(self, error: Exception) -> Exception:
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


def _connect(target: str) -> sqlite3.Connection:
    return sqlite3.connect(target, isolation_level=None, check_same_thread=False, uri=True)
