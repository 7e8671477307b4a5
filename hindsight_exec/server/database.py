"""Opens, checks and locks the embedded server's file: one connection, one thread, one server."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING, Any, Iterator, Mapping, Sequence

from hindsight_exec.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

VERSION = 2

# Seconds after which a file that another process holds counts as in use: longer than a server
# needs to end.
_BUSY = 3.0

_SCHEMA = """
CREATE TABLE banks (bank TEXT PRIMARY KEY, config TEXT NOT NULL DEFAULT '{}') WITHOUT ROWID;
CREATE TABLE operations (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, bank TEXT NOT NULL, status TEXT NOT NULL,
    count INTEGER NOT NULL, items TEXT, error TEXT, retries INTEGER NOT NULL DEFAULT 0,
    created_at TEXT NOT NULL, updated_at TEXT NOT NULL, completed_at TEXT);
CREATE INDEX operations_pending ON operations (number) WHERE status = 'pending';
CREATE TABLE documents (
    number INTEGER PRIMARY KEY, bank TEXT NOT NULL, id TEXT NOT NULL, text TEXT NOT NULL,
    content_hash TEXT NOT NULL, fields TEXT NOT NULL,
    created_at TEXT NOT NULL, updated_at TEXT NOT NULL, UNIQUE (bank, id));
CREATE INDEX documents_newest ON documents (bank, updated_at);
CREATE TABLE tags (
    document INTEGER NOT NULL REFERENCES documents ON DELETE CASCADE, tag TEXT NOT NULL,
    PRIMARY KEY (document, tag)) WITHOUT ROWID;
CREATE TABLE units (
    number INTEGER PRIMARY KEY, document INTEGER NOT NULL REFERENCES documents ON DELETE CASCADE,
    position INTEGER NOT NULL, id TEXT NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL, at TEXT);
CREATE INDEX units_of ON units (document);
CREATE VIRTUAL TABLE words USING fts5 (
    text, content='units', content_rowid='number', tokenize='unicode61 remove_diacritics 2');
CREATE TRIGGER unit_gone AFTER DELETE ON units BEGIN
    INSERT INTO words (words, rowid, text) VALUES ('delete', old.number, old.text); END;
"""

# The scripts that lead from older versions to this one.
_UPGRADES = {1: "DROP TRIGGER unit_made;\n"}


def open_database(path: Path | None) -> sqlite3.Connection:
    """Open the database, created if necessary; None keeps it in memory.

    Raises:
        ConfigError: It cannot be opened, is newer than this package, or another server uses it.
    """
    name = ":memory:" if path is None else str(path)
    try:
        if path is not None:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # We create it, as SQLite would let other users read it. An existing file is not opened:
            # closing it again would drop the locks of another server in this process.
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        sql = sqlite3.connect(name, timeout=_BUSY, isolation_level=None)
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(f"cannot open the database {name}: {error}") from error
    try:
        _prepare(sql, name)
    except sqlite3.Error as error:
        sql.close()
        if "locked" in str(error):
            raise ConfigError(
                f"the database {name} is in use by another server; name that server by --url, or use"
                " another directory"
            ) from error
        raise ConfigError(f"cannot use the database {name}: {error}") from error
    except BaseException:
        sql.close()
        raise
    return sql


def _prepare(sql: sqlite3.Connection, name: str) -> None:
    sql.row_factory = sqlite3.Row
    # One server for each file: two that write one WAL can lose rows (SQLite before 3.51.3).
    first(sql, "PRAGMA locking_mode = EXCLUSIVE")
    first(sql, "PRAGMA journal_mode = WAL")
    # An acknowledged retain must survive power loss: its client forgets it.
    sql.execute("PRAGMA synchronous = FULL")
    sql.execute("PRAGMA foreign_keys = ON")
    sql.create_function("casefold", 1, str.casefold, deterministic=True)
    with transaction(sql):
        version = first(sql, "PRAGMA user_version")[0]
        if version > VERSION:
            raise ConfigError(f"the database {name} was written by a newer hindsight-exec")
        if version < VERSION:
            for statement in _statements(_UPGRADES.get(version, _SCHEMA)):
                sql.execute(statement)
            sql.execute(f"PRAGMA user_version = {VERSION}")


def first(
    sql: sqlite3.Connection, statement: str, values: Sequence[Any] | Mapping[str, Any] = ()
) -> Any:
    """Return the first row, or None.

    It reads to the end: on PyPy, a statement with rows left stays open, and no transaction can be
    committed beside it.
    """
    return next(iter(sql.execute(statement, values).fetchall()), None)


@contextlib.contextmanager
def transaction(sql: sqlite3.Connection) -> Iterator[None]:
    """Commit all statements of the block, or none."""
    sql.execute("BEGIN IMMEDIATE")
    try:
        yield
        sql.execute("COMMIT")
    except BaseException:
        # SQLite ends the transaction itself after some errors (a full disk).
        if sql.in_transaction:
            sql.execute("ROLLBACK")
        raise


def _statements(script: str) -> Iterator[str]:
    """Yield the statements of a script: `executescript` would end our transaction."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
