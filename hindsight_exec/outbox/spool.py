"""The state directory: which process owns which outbox file, and what dead processes left.

Each process writes a file of its own, ``<id>.db``, while it holds the lock on
``<id>.lock`` beside it. The system drops that lock when the process ends, in
whatever way, and then the next process may adopt the file. Two owners of one
file would send everything twice; two SQLite connections that write one file can
lose committed rows (the WAL-reset bug of SQLite before 3.51.3).

The lock is a ``flock`` on a separate file because the system drops a POSIX
record lock (``lockf``, and SQLite's own) when the process closes ANY descriptor
of the file. A forked child shares the ``flock`` of its parent, so it closes the
descriptor at once (see :mod:`.forks`); otherwise the lock would outlive the parent.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
import time
from pathlib import Path
from typing import Iterator, Optional

from hindsight_exec.conversation.turns import time_ordered_id
from hindsight_exec.errors import OutboxUnavailable
from hindsight_exec.executor.waiting import now

from .forks import this_process

if sys.platform == "win32":  # declared untested
    import msvcrt

    def try_lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EDEADLK):
                return False
            raise
        return True

else:
    import fcntl

    def try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_MODE = 0o600
_FOLDER_LOCK = ".folder.lock"

#: What SQLite makes beside a file, and all that belongs to one.
_BESIDE = ("-wal", "-shm", "-journal")
_BELONGS = re.compile(r"([0-9a-f-]{36})\.(?:lock|db-wal|db-shm|db-journal)")

#: Seconds to wait for the folder's lock. Other processes hold it for
#: microseconds, but one that is stopped (SIGSTOP) must not stop us too.
_PATIENCE = 5.0
#: Folders whose lock was not to be had. Until it is, nobody waits for it again.
_stuck: set[Path] = set()


class Claim:
    """An outbox file that this process owns, until :meth:`release`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._pid = os.getpid()

    def release(self, *, remove: bool = False) -> None:
        """Give the file up; ``remove`` also deletes it, with its lock. Idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0 or self._pid != os.getpid():
            return
        try:
            with folder_lock(self.path.parent):
                if remove:
                    # The lock file goes last: while it is there, there is an owner.
                    for suffix in ("", *_BESIDE):
                        Path(f"{self.path}{suffix}").unlink(missing_ok=True)
                    self.path.with_suffix(".lock").unlink(missing_ok=True)
        except OSError:
            pass  # the folder is gone or read-only, and an empty file is harmless
        finally:
            _close(descriptor)

    def set_aside(self, reason: str) -> Path:
        """Rename the file so that no process opens it again, and give it up.

        Returns the new path: ``<id>.<reason>-<time>.aside`` in the same
        folder, with its log beside it.
        """
        aside = self.path.with_suffix(f".{reason}-{time.strftime('%Y%m%dT%H%M%S')}.aside")
        for suffix in ("", "-wal", "-journal"):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self.path}{suffix}").replace(f"{aside}{suffix}")
        with contextlib.suppress(OSError):
            sync_names(self.path.parent)
        self.release(remove=True)
        return aside


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the folder's lock while files are created, adopted or removed."""
    descriptor = _open(folder / _FOLDER_LOCK)
    try:
        deadline = now() + (0.0 if folder in _stuck else _PATIENCE)
        while not try_lock(descriptor):
            if now() > deadline:
                _stuck.add(folder)
                raise OSError(errno.EAGAIN, "another process holds its lock", str(folder))
            time.sleep(0.005)
        _stuck.discard(folder)
        yield
    finally:
        _close(descriptor)


def create(folder: Path) -> Claim:
    """Create an empty file that this process owns.

    Raises:
        OutboxUnavailable: The folder cannot be created, written or locked.
    """
    try:
        _make(folder)
        if folder.stat().st_mode & 0o077 and _mine(folder.stat()):
            folder.chmod(0o700)
        with folder_lock(folder):
            _sweep(folder)
            path = folder / f"{time_ordered_id(time.time())}.db"
            descriptor = _open(path.with_suffix(".lock"))
            try:
                if not try_lock(descriptor):
                    raise OSError(errno.EAGAIN, "a new file's lock is taken", str(path))
                # Created here and not by SQLite: it is private from its first
                # byte on, and O_EXCL does not follow a link that waits here.
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | _NO_FOLLOW, _MODE))
            except BaseException:
                path.with_suffix(".lock").unlink(missing_ok=True)
                _close(descriptor)
                raise
        return Claim(path, descriptor)
    except OSError as error:
        raise OutboxUnavailable(f"cannot keep turns in {folder}: {error}") from error


def _make(folder: Path) -> None:
    """Make the folder and its parents; a loss of power after that takes none of them back.

    The folder's lock file is made after that, so it tells that this was done.
    """
    if not (folder / _FOLDER_LOCK).exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for parent in folder.parents:
            sync_names(parent)


def _sweep(folder: Path) -> None:
    """Remove what belongs to no file and to no process. The caller has the folder's lock.

    A loss of power may keep the log or the lock of a file that it took, and so
    may a person who removes the file.
    """
    names = {path.name for path in folder.iterdir()}
    for name in sorted(names):
        belongs = _BELONGS.fullmatch(name)
        owner = folder / f"{belongs[1]}.db" if belongs else None
        # A process that is alive uses its file on without the name.
        if owner is not None and owner.name not in names and not is_live(owner):
            (folder / name).unlink(missing_ok=True)


def adopt(path: Path) -> Optional[Claim]:
    """Own a file that a dead process left; None if its owner lives or it is gone.

    Raises:
        OutboxUnavailable: The folder cannot be locked, or the file is not a
            regular file of this user (but a link, say) and is left alone.
    """
    try:
        with folder_lock(path.parent):
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                return None
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or not _mine(status):
                raise OutboxUnavailable(
                    f"{path} is not a plain file of this user, so it is left alone and its turns "
                    "are not sent; if you trust it, replace it with a copy that you own"
                )
            descriptor = _open(path.with_suffix(".lock"))
            locked = False
            try:
                locked = try_lock(descriptor)
                if not locked:  # another process may just be asking `is_live`
                    time.sleep(0.001)
                    locked = try_lock(descriptor)
            finally:
                if not locked:
                    _close(descriptor)
            return Claim(path, descriptor) if locked else None
    except OSError as error:
        raise OutboxUnavailable(f"cannot adopt {path}: {error}") from error


def files(folder: Path) -> list[Path]:
    """The outbox files of the folder, oldest first."""
    return _named(folder, ".db")


def aside(folder: Path) -> list[Path]:
    """The files that were set aside, oldest first."""
    return _named(folder, ".aside")


def is_live(path: Path) -> bool:
    """Whether some process owns the file."""
    try:
        descriptor = _open(path.with_suffix(".lock"), 0)
    except OSError:
        return False
    try:
        return not try_lock(descriptor)
    except OSError:
        return False
    finally:
        _close(descriptor)


def _named(folder: Path, ending: str) -> list[Path]:
    try:
        # An id sorts by time, so a name does.
        return sorted(path for path in folder.iterdir() if path.name.endswith(ending))
    except OSError:
        return []


def _open(path: Path, create: int = os.O_CREAT) -> int:
    return this_process().open(path, create | os.O_RDWR | _NO_FOLLOW, _MODE)


def _close(descriptor: int) -> None:
    this_process().close(descriptor)


def sync_names(folder: Path) -> None:
    """Make the names in a folder survive a loss of power, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # The others say that this cannot be done here: not by this user, or not
        # by this system.
        if error.errno in (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT):
            raise


def _mine(status: os.stat_result) -> bool:
    return not hasattr(os, "getuid") or status.st_uid == os.getuid()
