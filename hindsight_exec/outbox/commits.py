"""One commit for all threads that wait for one.

A sync takes milliseconds, and each thread of a gateway would wait for those of
all others. Here the first of the threads that wait *leads*: it takes the
database's lock, which may take as long as the commit before, and then writes what
has gathered meanwhile in one transaction. A thread that is alone leads at once,
so it waits for nobody.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from typing import Any, Callable, Optional

from hindsight_exec.errors import OutboxFull
from hindsight_exec.executor.locks import holds

from .sqlite import Database

# What is wrong with one write. What a signal handler raises is not among them.
_OWN_ERRORS = (sqlite3.Error, OutboxFull, ValueError, OverflowError)

#: Seconds after which a thread that waits looks for itself. It never needs to,
#: unless Ctrl-C hit a leader twice.
_LOOK = 1.0


class _Write:
    """One thread's write: inserts a row of ``table`` and returns the row's id."""

    __slots__ = ("done", "error", "insert", "row", "table", "woken")

    def __init__(self, insert: Callable[[], int], table: str) -> None:
        self.insert = insert
        self.table = table
        self.row: Optional[int] = None
        self.error: Optional[Exception] = None
        self.done = False
        self.woken: Optional[threading.Lock] = None  # while its thread waits, or is about to

    def wake(self) -> None:
        if self.woken is not None:
            with contextlib.suppress(RuntimeError):  # it is awake
                self.woken.release()


class CommittingDatabase(Database):
    """A database whose threads share their commits.

    Guarantees, also if Ctrl-C comes between any two steps:

    - A write that returns is committed, once.
    - A write whose insert fails harms no other.
    - No thread waits for one that has gone: the first in the queue leads, and
      whoever waited too long looks for itself.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        # A list, not a deque: without the GIL, one cannot copy a deque beside an append.
        self._waiting: list[_Write] = []
        super().__init__(*arguments, **options)

    def write(self, insert: Callable[[], int], table: str, *, single: bool) -> None:
        """Call ``insert`` in a transaction, and return when that is committed.

        Args:
            insert: Runs on any thread, perhaps again after an error of the
                disk; returns the id of the row that it inserted.
            table: The table of that row.
            single: ``insert`` runs one statement only, which commits itself.
        """
        waiting = self._waiting
        if not waiting and not self.user:
            self._write_alone(insert, single=single)
            return
        mine = _Write(insert, table)
        leads = False
        try:
            waiting.append(mine)
            while not mine.done:
                # A finalizer that came in between the lock and its step can wait for nobody.
                leads = self._is_first(mine) or holds(self.lock) or self._has_waited(mine)
                if leads:
                    with self.access, self.step:
                        if not mine.done:
                            self._commit()
        finally:
            if not mine.done:
                self._remove(mine)
            if leads and waiting:
                with contextlib.suppress(IndexError):
                    waiting[0].wake()
        if mine.error is not None:
            raise self.ours(mine.error) from None

    def _write_alone(self, insert: Callable[[], int], *, single: bool) -> None:
        with self.access, self.step:
            for last_try in (False, True):
                try:
                    if single:
                        insert()
                    else:
                        with self.transaction():
                            insert()
                    return
                except sqlite3.OperationalError as error:
                    if last_try or not self.mends(error):
                        raise

    def _is_first(self, write: _Write) -> bool:
        try:
            return self._waiting[0] is write
        except IndexError:
            return False  # another thread has just finished it

    def _has_waited(self, write: _Write) -> bool:
        """Wait until the write is done or is first; whether that took too long."""
        if write.woken is None:
            write.woken = threading.Lock()
            write.woken.acquire()
            # From here on a leader wakes it. One that came before may not have,
            # so look once more.
            return False
        return not write.woken.acquire(timeout=_LOOK)

    def _commit(self) -> None:
        """Commit what waits. Called by the leader, who has the database."""
        writes = self._waiting.copy()
        for write in [write for write in writes if write.done]:
            # Its leader was interrupted before it could remove it.
            writes.remove(write)
            self._remove(write)
        for last_try in (False, True):
            try:
                with self.transaction():
                    self._insert(writes)
                    self.unsettled = writes
                break
            except sqlite3.OperationalError as error:
                self.unsettled = []
                if last_try or not self.mends(error):
                    for write in writes:
                        write.error = write.error or error
                    break
        self._finish(writes)

    def _insert(self, writes: list[_Write]) -> None:
        for write in writes:
            write.error = None
            try:
                write.row = write.insert()
            except sqlite3.OperationalError:
                raise  # the disk: no write is kept
            except _OWN_ERRORS as error:
                write.error = error

    def recover(self) -> None:
        super().recover()
        # A leader was interrupted, and may not know whether its COMMIT ran. The
        # file does.
        writes: list[_Write] = self.unsettled
        kept = [write for write in writes if write.error is None]
        if kept:
            query = f"SELECT 1 FROM {kept[-1].table} WHERE id = ?"  # noqa: S608
            if self.first(query, (kept[-1].row,)):
                self._finish(writes)
        self.unsettled = []

    def _finish(self, writes: list[_Write]) -> None:
        for write in writes:
            write.done = True
            self._remove(write)
            write.wake()
        self.unsettled = []

    def _remove(self, write: _Write) -> None:
        try:
            self._waiting.remove(write)
        except ValueError:  # it was removed already
            return
