"""A SQLite file through one connection: its transactions, and its errors as ours.

What is in the file is :mod:`.outbox`'s.
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

# Damage that sqlite3 calls an OperationalError, as it does a full disk. The
# message about text that cannot be decoded holds that text.
_DAMAGE = re.compile(
    "no such|already exists|unsupported file format|attempt to write a readonly database|"
    "Could not decode to UTF-8"
)

#: What is wrong with the file or the disk. What is wrong with us is left as it is.
_ERRORS = (sqlite3.DatabaseError, OSError, UnicodeDecodeError)

T = TypeVar("T")


class Database:
    """A file, opened; safe from any thread by :meth:`use`.

    Args:
        path: The file, or None to keep all in memory.
        synchronous: ``FULL`` or ``NORMAL``; see SQLite's pragma.
        readonly: Look only; for the file of another process.

    Raises:
        OutboxCorrupt: It is no database.
        OutboxUnavailable: It cannot be opened.

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
        """Make it ready to be written; the script, if there is one, leads to that version.

        Called inside :meth:`use`.
        """
        self.first("PRAGMA journal_mode = WAL")
        self.execute(f"PRAGMA synchronous = {self._synchronous}")
        if script:
            self.connection.executescript(
                f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {version}; COMMIT"
            )

    def forget(self) -> None:
        """Go on in memory. Called inside :meth:`use`."""
        self.connection.close()
        self.connection = _connect(":memory:")

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            self.connection.close()

    # --- for one step, or several that belong together ----------------------

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        """Have the connection alone, and SQLite's errors as ours."""
        with self._lock:
            try:
                if self.connection.in_transaction:
                    # Ctrl-C came between two statements, and even past the next
                    # `try`: what it left open was never told to be kept.
                    self.execute("ROLLBACK")
                yield
            except _ERRORS as error:
                raise self._ours(error) from None

    @contextlib.contextmanager
    def transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        """All of it or none. Called inside :meth:`use`."""
        try:
            self.execute(f"BEGIN {kind}")
            yield
            self.execute("COMMIT")
        except BaseException:
            # SQLite rolls back by itself on some errors (a full disk).
            if self.connection.in_transaction:
                self.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def unsynced(self) -> Iterator[None]:
        """Commit without a sync: half of what delivery costs, and others wait for it.

        A killed process keeps it all the same. A loss of power may take it
        back up to the last commit that was synced; who uses this can do again,
        alike, what is lost so. Called inside :meth:`use`.
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
        """Rows are read that might be damaged where SQLite does not notice."""
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

        Read to the end: on PyPy, what is left of a statement stays open and
        no transaction can be committed beside it.
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
        """What ``make`` makes of each row; columns of other types are damage."""
        rows = self.all(sql, values)
        with self.content():
            if not all(all(map(isinstance, row, types)) for row in rows):
                raise TypeError("a value of another type")
            return [make(*row) for row in rows]

    def vacuum(self, worth: int) -> None:
        """Give free space back to the system, if it is so many bytes and half of all."""
        with self.use():
            free, pages, size = map(self.pragma, ("freelist_count", "page_count", "page_size"))
            if free * size > worth and free * 2 > pages:
                # It needs as much space again, which a full disk does not have.
                with contextlib.suppress(sqlite3.OperationalError):
                    self.execute("VACUUM")

    def _ours(self, error: Exception) -> Exception:
        """Our error for one of SQLite's, which may hold text of the file and is not shown."""
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
