"""The outbox files of a state directory that this process owns.

It creates one for its own turns, adopts those that dead processes left, sets
aside the damaged ones, and gives all of them back.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from typing import TYPE_CHECKING, Callable, Iterator, Optional

from hindsight_exec.errors import OutboxCorrupt, OutboxUnavailable
from hindsight_exec.executor.waiting import now
from hindsight_exec.outbox import spool
from hindsight_exec.outbox.salvage import salvage
from hindsight_exec.outbox.store import Outbox

from .backlog import Backlog
from .progress import counted

if TYPE_CHECKING:
    from pathlib import Path

    from .progress import Progress

_logger = logging.getLogger("hindsight_exec")

#: Seconds to the next attempt to open a file.
_PAUSE = 60.0


class Files:
    """The files, and the claims on them. Safe from any thread.

    Args:
        folder: The state directory.
        durability: See `Settings`.
        progress: The lock of the backlogs' hints.
        key: Returns the key for a credential reference and URL, or None.
        own: Returns the backlog that takes what is salvaged.
    """

    def __init__(
        self,
        folder: Path,
        durability: str,
        progress: Progress,
        *,
        key: Callable[[str, str], Optional[str]],
        own: Callable[[], Backlog],
    ) -> None:
        self._folder = folder
        self._durability = durability
        self._progress = progress
        self._key = key
        self._own = own
        # Held while a file is adopted, and while files of other processes are
        # read: no file is ever open twice in a process. Taken before `_lock`.
        self.opening = threading.RLock()
        self._lock = progress.lock  # guards all that follows
        self._claims: dict[Backlog, spool.Claim] = {}
        # Files that this process could not deliver: when it tries again.
        self._skip: dict[Path, float] = {}

    def open(self, path: Path) -> Outbox:
        full = self._durability != "normal"
        return Outbox(path, synchronous="FULL" if full else "NORMAL")

    def create(self) -> Backlog:
        """Return an empty backlog for this process's turns: a new file, or memory."""
        if self._durability == "memory":
            return Backlog(Outbox(None), self._progress)
        claim = spool.create(self._folder)
        try:
            return self._claimed(Backlog(self.open(claim.path), self._progress), claim)
        except BaseException:
            claim.release(remove=True)
            raise

    def _claimed(self, backlog: Backlog, claim: spool.Claim) -> Backlog:
        with self._lock:
            self._claims[backlog] = claim
            self._skip.pop(claim.path, None)
        return backlog

    def is_on_disk(self, backlog: Backlog) -> bool:
        """Whether another process can find the backlog."""
        return backlog in self._claims and backlog.outbox.is_there()

    # --- what dead processes left -----------------------------------------

    def adopt(self, room: int) -> list[Backlog]:
        """Adopt files that dead processes left, at most so many."""
        backlogs: list[Backlog] = []
        for path in self._others():
            if len(backlogs) == room:
                break
            with self.opening:
                try:
                    claim = spool.adopt(path)
                except OutboxUnavailable as error:
                    self._leave(path, error)
                    continue
                if claim is not None and (backlog := self._adopt(claim)) is not None:
                    backlogs.append(backlog)
        return backlogs

    @contextlib.contextmanager
    def foreign(self) -> Iterator[list[Path]]:
        """The files that are not open here; none of them is opened meanwhile."""
        with self.opening:
            paths = spool.files(self._folder)
            with self._lock:
                known = {claim.path for claim in self._claims.values()}
            yield [path for path in paths if path not in known]

    def unopened(self) -> bool:
        """Whether dead processes left files that this process has not opened yet."""
        return any(not spool.is_live(path) for path in self._others())

    def failed(self) -> bool:
        """Whether dead processes left files that this process could not open so far."""
        with self._lock:
            skipped = [path for path, at in self._skip.items() if at < math.inf]
        return any(not spool.is_live(path) for path in skipped)

    def _others(self) -> list[Path]:
        """Return the files that this process neither owns nor skips for now."""
        paths = spool.files(self._folder)
        with self._lock:
            for gone in self._skip.keys() - paths:  # a gateway may live for a year
                del self._skip[gone]
            known = {claim.path for claim in self._claims.values()}
            known.update(path for path, at in self._skip.items() if at > now())
        return [path for path in paths if path not in known]

    def _leave(self, path: Path, reason: object, level: int = logging.WARNING) -> None:
        """Skip a file for a while, and say why, the first time."""
        with self._lock:
            is_known = path in self._skip
            self._skip[path] = now() + _PAUSE
        if not is_known:
            _logger.log(level, "%s", reason)

    def _adopt(self, claim: spool.Claim) -> Optional[Backlog]:
        outbox = None
        try:
            outbox = self.open(claim.path)
            unresolved = [
                destination.credential
                for destination in outbox.destinations().values()
                if self._key(destination.credential, destination.url) is None
            ]
            if unresolved:
                # A key may only go to the server it was configured for.
                reason = f"{claim.path.name} waits for a process that can resolve {unresolved}"
                self._leave(claim.path, reason, logging.INFO)
            elif outbox.is_empty():
                outbox.close()
                claim.release(remove=True)
                return None
            else:
                return self._claimed(Backlog(outbox, self._progress, adopted=True), claim)
        except OutboxCorrupt as error:
            if outbox is not None:
                outbox.close()
            return self._set_aside(claim, error, adopted=True)
        except OutboxUnavailable as error:  # or OutboxNewer: a newer program delivers it
            self._leave(claim.path, error)
        if outbox is not None:
            outbox.close()
        claim.release()
        return None

    def _set_aside(
        self, damaged: spool.Claim, error: Optional[Exception], *, adopted: bool
    ) -> Optional[Backlog]:
        """Copy what is readable in a damaged file into another one, and then rename it.

        In this order: if the process is killed meanwhile, the next one starts over.
        What callers gave to this process goes to their own backlog, which counts
        it; what it adopted goes to a backlog of its own, which is returned.
        """
        claim: Optional[spool.Claim] = None
        outbox: Optional[Outbox] = None
        try:
            if adopted:
                claim = spool.create(self._folder)
                outbox = self.open(claim.path)
                saved = salvage(damaged.path, outbox)
            else:
                backlog = self._own()
                saved = salvage(damaged.path, backlog.outbox)
                backlog.take_all()
            aside = damaged.set_aside("damaged")
        except Exception as failure:
            self._leave(
                damaged.path,
                f"{damaged.path} is damaged and stays where it is, to be tried again: {failure}",
                logging.ERROR,
            )
            damaged.release()
            if outbox is not None:
                outbox.close()
            if claim is not None:
                claim.release(remove=True)
            return None
        _logger.error(
            "%s was set aside as %s (%s); %s of it will be delivered",
            damaged.path.name,
            aside,
            error or "damaged",
            counted(saved),
        )
        if outbox is None or claim is None:
            return None
        outbox.close()
        return self._adopt(claim)

    # --- giving back ------------------------------------------------------

    def retire(self, backlog: Backlog) -> Optional[Backlog]:
        """Close a backlog that is idle or broken; return what an adopted one was salvaged into."""
        with self._lock:
            claim = self._claims.pop(backlog, None)
        if claim is not None and backlog.broken:
            with self.opening:
                backlog.outbox.close()
                return self._set_aside(claim, None, adopted=backlog.adopted)
        self._close(backlog, claim)
        return None

    def take_claims(self) -> dict[Backlog, Optional[spool.Claim]]:
        """Return the claims, no longer owned here, for :meth:`close`."""
        with self._lock:
            claims: dict[Backlog, Optional[spool.Claim]] = dict(self._claims)
            self._claims.clear()
        return claims

    def close(self, claims: dict[Backlog, Optional[spool.Claim]]) -> None:
        """Close backlogs and give their files to other processes; remove the empty ones."""
        for backlog, claim in claims.items():
            self._close(backlog, claim)

    def _close(self, backlog: Backlog, claim: Optional[spool.Claim]) -> None:
        empty = False
        with contextlib.suppress(OutboxUnavailable, ValueError):
            empty = backlog.outbox.close_empty()
        backlog.outbox.close()
        if claim is not None:
            if not empty:
                with self._lock:
                    self._skip[claim.path] = math.inf  # it is another process's from now on
            claim.release(remove=empty)
