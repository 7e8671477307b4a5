"""What the writers of one state folder share in a process.

The process's own outbox, the worker that delivers it, and the files that dead
processes left. :mod:`.registry` makes an engine for the first writer of a
folder and closes it with the last, or at exit.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Callable, Iterator, Optional, TypeVar

from hindsight_exec.client.loop import background_loop
from hindsight_exec.client.registry import Lease, lease
from hindsight_exec.client.session import import_aiohttp
from hindsight_exec.errors import OutboxCorrupt, OutboxFull, OutboxUnavailable
from hindsight_exec.executor import DrainingExecutor
from hindsight_exec.outbox import spool
from hindsight_exec.outbox.store import MAX_SOURCES, Outbox
from hindsight_exec.settings.credentials import resolve_credential

from .backlog import Backlog
from .files import Files
from .progress import counted
from .worker import Delivery

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path
    from typing import Protocol

    from hindsight_exec.conversation.turns import Source
    from hindsight_exec.settings.config import Settings

    class Handle(Protocol):
        """A writer, as the engine knows it."""

        settings: Settings
        folder: Path
        on_trouble: Optional[Callable[[str], None]]


T = TypeVar("T")

_logger = logging.getLogger("hindsight_exec")

#: Seconds that closing the sessions may take.
_CLOSE_SESSIONS = 2.0


class Engine:
    """The outbox, the worker and the adopted files of one state folder.

    Safe from any thread. ``settings`` are those of the folder's first writer:
    they bound the exit and choose how durable the file is.

    Lock order: ``lock``, then those of the files, of an outbox, of the
    delivery's progress.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = settings
        self.pid = os.getpid()
        self.lock = threading.RLock()  # guards all that follows but the delivery
        # Weak: some hosts drop writers without closing them.
        self.handles: weakref.WeakSet[Handle] = weakref.WeakSet()
        self.listeners: weakref.WeakSet[Handle] = weakref.WeakSet()
        self.closed = False
        self.delivery = Delivery(
            lease=self._lease,
            key=self._key,
            adopt=self._adopt,
            prepare=import_aiohttp,
            retire=self._retire,
            notify=self._notify,
        )
        self.executor = DrainingExecutor(
            thread_name_prefix="hindsight-writer",
            drain_timeout=settings.drain_timeout,
            on_closing=self.delivery.close,
            on_deadline=self.delivery.cancel,
        )
        self.files = Files(
            folder,
            settings.durability,
            self.delivery.progress,
            key=self._key,
            own=self._own_backlog,
        )
        self._keys: dict[tuple[str, str], str] = {}
        self._own: Optional[Backlog] = None
        self._spare: Optional[Backlog] = None  # in memory, while the disk fails
        self._runs = 0  # jobs of the executor that have not ended
        self._abandoned: dict[Backlog, Optional[spool.Claim]] = {}  # for the last run to close
        self._numbers: dict[str, int] = {}  # of each session's last turn
        self._last_at = 0.0
        self._late: Optional[Path] = None  # the file of the last turn after closing

    def add(self, handle: Handle) -> None:
        settings = handle.settings
        with self.lock:
            self.handles.add(handle)
            self.listeners.add(handle)
            if settings.api_key:
                self._keys[settings.credential, settings.api_url] = settings.api_key

    def next_turn(self, source: Source, *, counts: bool = True) -> tuple[float, int]:
        """Return time and number of a new turn.

        Documents sort by the times, so they grow even if the clock is set back.
        """
        with self.lock:
            self._last_at = at = max(time.time(), self._last_at + 1e-6)
            number = self._numbers.pop(source.session, 0) + counts
            if len(self._numbers) >= MAX_SOURCES:  # a gateway may live for a year
                del self._numbers[next(iter(self._numbers))]  # the least recently used
            self._numbers[source.session] = number
        return at, number

    def wake(self) -> None:
        """Have the worker look at what there is to do."""
        if not self.delivery.start():
            return
        try:
            # Start the threads here, on the caller's: 3.12.0 to 3.12.2 can
            # start none at exit.
            background_loop().start()
            with self.lock:
                self._runs += 1
            try:
                run = self.executor.submit(self.delivery.run)
            except BaseException:
                self._run_ended(None)
                raise
            run.add_done_callback(self._run_ended)
        except RuntimeError as error:
            self.delivery.ended()
            _logger.debug("Turns are kept, but not delivered now: %s", error)

    def _run_ended(self, run: Optional[Future[None]]) -> None:
        """A run has ended, perhaps after settle(), which then left the files to it."""
        if run is not None and (run.cancelled() or run.exception() is not None):
            self.delivery.ended()
        with self.lock:
            self._runs -= 1
            if self._runs:
                return
            abandoned, self._abandoned = self._abandoned, {}
        self.files.close(abandoned)

    # --- keeping ----------------------------------------------------------

    def keep(self, put: Callable[[Outbox], T]) -> tuple[Backlog, T]:
        """Put something into the outbox; into memory if the disk does not take it."""
        for _ in range(3):
            backlog = None
            try:
                backlog = self._own_backlog()
                return backlog, put(backlog.outbox)
            except OutboxFull:
                with self.delivery.progress:
                    self.delivery.progress.counters.refused += 1
                raise
            except OutboxCorrupt as error:
                if backlog is None:  # a new file, and damaged
                    return self._keep_in_memory(put, error)
                self._replace(backlog)
            except OutboxUnavailable as error:
                return self._keep_in_memory(put, error)
            except ValueError:
                # Another thread closed the outbox between the two steps; the
                # next round makes a new one.
                if backlog is not None and backlog is self._own and not backlog.broken:
                    raise
        return self._keep_in_memory(put, OutboxUnavailable("the outbox is damaged again and again"))

    def keep_for_later(self, put: Callable[[Outbox], object]) -> bool:
        """Keep something for the next process, and leave the file to it; whether that worked."""
        claim = None
        try:
            if self.settings.durability == "memory":
                raise OutboxUnavailable("durability is memory, and the writer is closed")
            # One file for all of them, unless another process has it by now.
            claim = spool.adopt(self._late) if self._late else None
            claim = claim or spool.create(self.folder)
            outbox = self.files.open(claim.path)
            try:
                put(outbox)
                self._late = claim.path
                return True
            finally:
                outbox.close()
        except OutboxUnavailable as error:
            _logger.error("A turn given after close() is lost: %s", error)
            return False
        finally:
            if claim is not None:
                claim.release()

    def _own_backlog(self) -> Backlog:
        backlog = self._own
        if backlog is not None and backlog.outbox.is_there():
            return backlog
        with self.lock:
            if self._own is None or not self._own.outbox.is_there():
                # This process goes on delivering a file that was removed, as
                # far as it gets; new turns go where the next process finds them.
                self._own = self.files.create()
                self._add(self._own)
            return self._own

    def _add(self, backlog: Backlog) -> None:
        with self.delivery.progress:
            self.delivery.backlogs.append(backlog)

    def _keep_in_memory(
        self, put: Callable[[Outbox], T], error: OutboxUnavailable
    ) -> tuple[Backlog, T]:
        with self.lock:
            if self._spare is None:
                self._spare = Backlog(Outbox(None), self.delivery.progress)
                self._add(self._spare)
                text = f"Turns are kept in memory only and are not safe on disk: {error}"
                _logger.error("%s", text)
                self._notify(text)
            spare = self._spare
        return spare, put(spare.outbox)

    def _replace(self, backlog: Backlog) -> None:
        """Use another backlog; the worker sets this one, which is damaged, aside."""
        with self.lock:
            backlog.broken = True
            if self._own is backlog:
                self._own = None
        self.wake()

    # --- what the delivery asks for ---------------------------------------

    def _lease(self, url: str, key: str) -> Lease:
        import_aiohttp()  # on the worker, not on the loop
        return lease(url, key, self.settings.timeout)

    def _key(self, credential: str, url: str) -> Optional[str]:
        key = resolve_credential(credential, url)
        return key or self._keys.get((credential, url)) or key

    def _adopt(self, room: int) -> list[Backlog]:
        return self.files.adopt(room)

    def _retire(self, backlog: Backlog) -> None:
        with self.lock:
            if self._own is backlog:
                self._own = None
        self.files.retire(backlog)

    def _notify(self, text: str) -> None:
        with self.lock:
            listeners = list(self.listeners)
        for listener in listeners:
            if listener.on_trouble is not None:
                try:
                    listener.on_trouble(text)
                except BaseException:  # SystemExit is the caller's, not the worker's
                    _logger.exception("on_trouble failed")

    # --- looking ----------------------------------------------------------

    def oldest(self) -> Optional[float]:
        """Return when the oldest waiting turn of this process was given."""
        own = [backlog for backlog in (self._own, self._spare) if backlog is not None]
        times = [summary.oldest_at for summary in _ask_all(own, Outbox.summary)]
        return min((at for at in times if at is not None), default=None)

    def unopened(self) -> bool:
        """Whether dead processes left files that this process has not opened yet."""
        return self.files.unopened()

    def waiting(self) -> int:
        """Return how many turns wait in the files that this process delivers."""
        return sum(summary.waiting for summary in _ask_all(self.open_backlogs(), Outbox.summary))

    def is_waiting(self) -> bool:
        """Whether any turn does, or may: a file is being opened."""
        with self.delivery.progress:
            adopting = self.delivery.adopting
        return adopting or any(_ask_all(self.open_backlogs(), Outbox.is_waiting))

    def open_backlogs(self) -> list[Backlog]:
        with self.delivery.progress:
            return list(self.delivery.backlogs)

    # --- closing ----------------------------------------------------------

    def shut(self, timeout: float) -> None:
        """Deliver what can be delivered within ``timeout`` seconds, and close everything."""
        self.executor.shutdown(timeout=timeout)
        self.delivery.servers.release(_CLOSE_SESSIONS)
        self.settle()

    def settle(self) -> None:
        """Close the files, remove the empty ones, say what is left. Idempotent."""
        with self.lock:
            if self.closed:
                return
            self.closed = True
            self._own = self._spare = None
            is_stuck = self._runs > 0 and self.executor.pending > 0
            if is_stuck:
                self._abandoned = self.files.take_claims()
        if is_stuck:
            # The worker hangs, perhaps inside a file: leave all of them to it.
            if self._abandoned and self.delivery.progress.acquire(timeout=1.0):
                try:
                    _warn_of_waiting(sum(self.delivery.progress.waiting.values()))
                finally:
                    self.delivery.progress.release()
            return
        on_disk = in_memory = 0
        for backlog in self.delivery.backlogs:
            for summary in _ask_all([backlog], Outbox.summary):
                if self.files.is_on_disk(backlog):
                    on_disk += summary.waiting
                else:
                    in_memory += summary.waiting
        claims = self.files.take_claims()
        self.files.close({one: claims.get(one) for one in self.delivery.backlogs})
        _warn_of_waiting(on_disk)
        if in_memory:
            _logger.error(
                "%s lost: kept in memory only, and not accepted in time", counted(in_memory)
            )


def _ask_all(backlogs: list[Backlog], ask: Callable[[Outbox], T]) -> Iterator[T]:
    for backlog in backlogs:
        with contextlib.suppress(OutboxUnavailable, ValueError):  # closed meanwhile
            yield ask(backlog.outbox)


def _warn_of_waiting(turns: int) -> None:
    if turns:
        _logger.warning(
            "%s %s saved on disk and will be sent at the next start, or by 'hindsight-exec flush'",
            counted(turns),
            "is" if turns == 1 else "are",
        )
