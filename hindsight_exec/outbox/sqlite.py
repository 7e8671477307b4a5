"""One connection to a SQLite file, with its transactions, and with its errors as ours.

:mod:`.schema` says what is in the file.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import threading
from typing import TYPE_CHECKING, Any, Callable, Iterator, Optional, Sequence, TypeVar
from urllib.parse import quote

from hindsight_exec.errors import OutboxCorrupt, OutboxUnavailable

if TYPE_CHECKING:
    from pathlib import Path

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
        readonly: Only read; for the file of another process.

    Raises:
        OutboxCorrupt: The file is not a database.
        OutboxUnavailable: The file cannot be opened.

    Every method raises these two, and ``ValueError`` after :meth:`close`.
    """

    def __init__(self, path: Optional[Path], *, synchronous: str, readonly: bool) -> None:
        self.name = str(path or "in memory")
        self._synchronous = synchronous
        self._lock = threading.Lock()
        if path is None:
            target = ":memory:"
        elif readonly:
            target = f"file:{quote(os.fsencode(path))}?mode=ro"
        else:
            target = str(path)
        try:
            self.connection = _connect(target, uri=readonly)
        except _ERRORS as error:
            raise self._ours(error) from None

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

    def forget(self) -> None:
        """Continue in memory. Called inside :meth:`use`."""
        self.connection.close()
        self.connection = _connect(":memory:")

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            self.connection.close()

    # --- steps --------------------------------------------------------------

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        """Have the connection alone; SQLite's errors become ours."""
        with self._lock:
            try:
                if self.connection.in_transaction:
                    # Ctrl-C interrupted a transaction before its `except` could
                    # roll back. Nobody was told that its rows are kept.
                    self.execute("ROLLBACK")
                yield
            except _ERRORS as error:
                raise self._ours(error) from None

    @contextlib.contextmanager
    def transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        """Commit everything or nothing. Called inside :meth:`use`."""
        try:
            self.execute(f"BEGIN {kind}")
            yield
            self.execute("COMMIT")
        except BaseException:
            # SQLite rolls back by itself after some errors (a full disk).
            if self.connection.in_transaction:
                self.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def unsynced(self) -> Iterator[None]:
        """Commit without a sync, which is half of the cost of delivery.

        A killed process keeps the commit all the same. A loss of power may take
        back what was committed since the last sync, so use this only for steps
        that can be repeated with the same result. Called inside :meth:`use`.
        """
        full = self._synchronous == "FULL"
        if full:
            self.execute("PRAGMA synchronous = NORMAL")
        try:
            yield
        finally:
            if full:
                self.execute("PRAGMA synchronous = FULL")

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
                with contextlib.suppress(sqlite3.OperationalError):
                    self.execute("VACUUM")

    def _ours(self, error: Exception) -> Exception:
        """Our error for one of SQLite's, whose message may quote the file and is not shown."""
        if isinstance(error, sqlite3.ProgrammingError):
            return ValueError(f"the outbox {self.name} is closed")
        text = str(error)
        if isinstance(error, (sqlite3.OperationalError, OSError)):
            damage = _DAMAGE.search(text)
            if damage is None:
                return OutboxUnavailable(f"the outbox {self.name} cannot be used: {text}")
            text = damage[0]
        return OutboxCorrupt(f"the outbox {self.name} is damaged: {text}")


def _connect(target: str, *, uri: bool = False) -> sqlite3.Connection:
    return sqlite3.connect(target, isolation_level=None, check_same_thread=False, uri=uri)
