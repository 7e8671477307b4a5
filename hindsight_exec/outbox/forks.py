"""What this process has open, so that no fork catches it halfway.

SQLite's mutexes do not survive a fork:

1. Thread A is inside SQLite and holds a mutex of its memory allocator.
2. Thread B forks. The child has thread B only, and a mutex that stays locked.
3. The child opens a database and hangs for ever.

A lock file has the same problem:

1. Thread A opens the file and locks it, but has not noted the descriptor yet.
2. Thread B forks. The child inherits a descriptor that nobody closes, so the
   lock outlives its process.

So a fork first takes the lock of every open database, and the one under which
databases and descriptors are opened. It waits for :data:`FORK_WAIT` seconds at
most, for instance while a large file is vacuumed. If that is not enough, the
fork goes on, and the child refuses to use SQLite: its ``put`` raises
:class:`~hindsight_exec.OutboxUnavailable`. The parent loses nothing.

Some hosts fork without Python's hooks (uWSGI does by default). Then only the pid
tells, so everything here compares it first and starts afresh in a new process.
Whether another thread was inside SQLite at such a fork cannot be known.

Only the outbox takes part. SQLite connections of the host (Hermes' ``state.db``)
are out of reach. The embedded server and the import of Hermes' sessions run in
processes of the command line, whose children execute another program at once
and use no SQLite, so they need no lock.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any

from hindsight_exec.errors import OutboxUnavailable
from hindsight_exec.executor import process
from hindsight_exec.executor.locks import holds
from hindsight_exec.executor.waiting import now
from hindsight_exec.executor.weak import WeakObjects

if TYPE_CHECKING:
    from pathlib import Path

#: Seconds that a fork waits for threads that are inside SQLite.
FORK_WAIT = 5.0


class Process:
    """The databases and the lock files that one process has open.

    Attributes:
        databases: Those of :mod:`.sqlite`.
        lock: Held while something is opened or closed. The lock of a database
            may be taken inside it, never the other way round.
        unsafe: A thread of the parent was inside SQLite when it forked.
    """

    def __init__(self, *, unsafe: bool = False) -> None:
        self.unsafe = unsafe
        # Re-entrant: a finalizer that runs under it may open a file, too.
        self.lock = threading.RLock()
        self.databases = WeakObjects()
        self._descriptors: dict[int, os.stat_result] = {}

    def check(self) -> None:
        """Raise OutboxUnavailable if this process must not use SQLite."""
        if self.unsafe:
            raise OutboxUnavailable(
                f"process {os.getpid()} was forked while another thread was inside SQLite, so "
                "SQLite could hang in it: nothing is kept or sent here; fork before turns are "
                "given, or start processes by 'spawn'"
            )

    def open(self, path: Path, flags: int, mode: int) -> int:
        """Open a file whose descriptor forked children close."""
        with self.lock:
            descriptor = os.open(path, flags, mode)
            self._descriptors[descriptor] = os.fstat(descriptor)
        return descriptor

    def close(self, descriptor: int) -> None:
        with self.lock:
            self._descriptors.pop(descriptor, None)
            os.close(descriptor)

    def close_inherited(self) -> None:
        """Close the parent's descriptors, in the child."""
        for descriptor, status in self._descriptors.items():
            with contextlib.suppress(OSError):
                # Without hooks this may be late, and the number be another file's by now.
                if os.path.samestat(os.fstat(descriptor), status):
                    os.close(descriptor)

    @property
    def descriptors(self) -> set[int]:
        return set(self._descriptors)


class Inherited:
    """What a forked child has in place of its parent's connection."""

    def __init__(self, database: Any) -> None:
        self._database = database

    def __getattr__(self, name: str) -> Any:
        raise self._database.inherited()


_process = Process()
# A child keeps the connections of its parent referenced, as closing one would
# change the parent's file.
_inherited: list[object] = []
# What the forking thread holds during a fork, and whether that is everything.
_forking = threading.local()


def this_process() -> Process:
    """What this process has open; in a new process nothing, hooks or not."""
    process.renew_if_forked()
    return _process


def _renew() -> None:
    global _process
    parent = _process
    parent.close_inherited()
    _inherited.append([database.disown() for database in parent.databases.all()])
    # Without a hook before the fork nobody can tell: uWSGI runs none, or with
    # py-call-osafterfork those of the child only.
    _process = Process(unsafe=not getattr(_forking, "complete", True))


def is_inside() -> bool:
    """Whether a finalizer or a signal handler interrupted this thread inside an outbox."""
    process = this_process()
    return holds(process.lock) or any(holds(database.lock) for database in process.databases.all())


def _before_fork() -> None:
    own = this_process()
    deadline = now() + FORK_WAIT
    held: list[Any] = []
    _forking.held = held
    _forking.complete = False
    if not own.lock.acquire(timeout=FORK_WAIT):
        return
    held.append(own.lock)
    for database in own.databases.all():
        if database.used_by_this_thread():
            continue  # a signal handler or a finalizer forks, between two statements
        if not database.lock.acquire(timeout=max(0.0, deadline - now())):
            return
        held.append(database.lock)
    _forking.complete = True


def _after_in_parent() -> None:
    for lock in reversed(_forking.held):
        lock.release()
    del _forking.held, _forking.complete


process.call_in_child(_renew)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent)
