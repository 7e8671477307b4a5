"""Takes turns and documents into the outbox, and tells the delivery of them."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Callable, Optional, Sequence, TypeVar

from hindsight_exec.errors import OutboxCorrupt, OutboxFull, OutboxUnavailable
from hindsight_exec.executor.waiting import now
from hindsight_exec.outbox.forks import is_inside
from hindsight_exec.outbox.store import MAX_SOURCES, Outbox

from .backlog import Backlog
from .progress import counted

if TYPE_CHECKING:
    from hindsight_exec.conversation.turns import Source, Turn

    from .files import Files
    from .schedule import Hold
    from .worker import Delivery

T = TypeVar("T")

_logger = logging.getLogger("hindsight_exec")

#: Seconds without a turn after which exit takes it that no more will come; and
#: those after the start, for a host that has only begun to give them.
_PAUSE, _FIRST_PAUSE = 0.05, 0.25


class Intake:
    """The outbox that takes this process's turns. Safe from any thread.

    Guarantees:
        A turn is on disk when it has been taken, also after the engine has
        closed: then in a file for the next process, one for all such turns.
        If the disk fails, the turn is in memory.
        A finalizer may give a turn while its thread is inside the outbox. That
        turn is taken as soon as the thread has left, by the worker.

    Args:
        files: Makes the file.
        delivery: Delivers what is taken.
        notify: Tells the user of trouble.
        wake: Has the worker look at what there is to do.
        on_late: Called when a file was made after closing.
    """

    def __init__(
        self,
        files: Files,
        delivery: Delivery,
        *,
        notify: Callable[[str], None],
        wake: Callable[[], None],
        on_late: Callable[[], None],
    ) -> None:
        self._files = files
        self._delivery = delivery
        self._notify = notify
        self._wake = wake
        self._on_late = on_late
        self._lock = delivery.progress.lock  # guards all that follows but the last four
        self._closed = False
        self._creating = False  # the own outbox, by the thread that holds the lock
        self._own: Optional[Backlog] = None
        self._spare: Optional[Backlog] = None  # in memory, while the disk fails
        self._numbers: dict[str, int] = {}  # of each session's last turn
        self._last_at = 0.0
        self._putting: set[int] = set()  # threads other than the main one
        self._paused_at = now() + _FIRST_PAUSE  # if no such thread puts before
        self._is_used = False
        self._deferred: deque[Callable[[], object]] = deque()
        self._trouble: deque[str] = deque()  # that the user has not been told of

    def next_turn(self, source: Source, *, counts: bool = True) -> tuple[float, int]:
        """Return time and number of a new turn.

        Documents sort by the times, so they grow even if the clock is set back.
        """
        with self._lock:
            self._last_at = at = max(time.time(), self._last_at + 1e-6)
            number = self._numbers.pop(source.session, 0) + counts
            if len(self._numbers) >= MAX_SOURCES:  # a gateway may live for a year
                del self._numbers[next(iter(self._numbers))]  # the least recently used
            self._numbers[source.session] = number
        return at, number

    def put(self, sources: Sequence[Source], turn: Turn, hold: Hold) -> bool:
        """Take a turn for each source, all or none, and hold it; return whether it is on disk."""

        def note(backlog: Backlog, numbers: list[int]) -> bool:
            wakes = [backlog.hold(number, turn.chars, hold) for number in numbers]
            return any(wakes)

        return self._take(sources, 1, lambda outbox: outbox.put_for(sources, turn), note)

    def put_document(
        self,
        sources: Sequence[Source],
        document_id: str,
        item: bytes,
        given_at: float,
        turns: int,
    ) -> bool:
        """Take a closed document, to be sent at once; return whether it is on disk."""

        def note(backlog: Backlog, known: list[tuple[int, int]]) -> bool:
            backlog.ready.update(destination for _, destination in known)
            return True

        return self._take(
            sources,
            turns,
            lambda outbox: outbox.put_document_for(sources, document_id, item, given_at, turns),
            note,
        )

    def seconds_to_pause(self) -> float:
        """Return how long no other thread than the main one must give a turn; 0.0 if none has.

        A put in progress counts, and so does a start that no turn has followed.
        """
        return _PAUSE if self._putting else max(0.0, self._paused_at - now())

    def take_deferred(self) -> None:
        """Take what finalizers gave while their thread was inside the outbox."""
        for _ in range(len(self._deferred)):
            try:
                self._deferred.popleft()()
            except IndexError:
                return  # another thread was faster
            except Exception:
                _logger.exception("A turn that a finalizer gave is lost")

    def tell(self) -> None:
        """Tell the user of what a put met: on the worker, as the user's code may block, or at close."""
        with contextlib.suppress(IndexError):
            while True:
                self._notify(self._trouble.popleft())

    def oldest(self) -> Optional[float]:
        """Return when the oldest waiting turn of this process was given."""
        own = [backlog for backlog in (self._own, self._spare) if backlog is not None]
        times = [summary.oldest_at for backlog in own for summary in backlog.ask(Outbox.summary)]
        return min((at for at in times if at is not None), default=None)

    def own(self) -> Backlog:
        """Return the backlog of this process's turns, made if need be."""
        backlog = self._own
        if backlog is not None and backlog.outbox.is_there():
            return backlog
        with self._lock:
            if self._creating:
                raise OutboxUnavailable("a finalizer interrupted the creation of the outbox")
            if self._own is None or not self._own.outbox.is_there():
                # This process goes on delivering a file that was removed, as
                # far as it gets; new turns go where the next process finds them.
                self._creating = True
                try:
                    self._own = self._files.create()
                finally:
                    self._creating = False
                self._delivery.add(self._own)
                if self._closed:
                    self._on_late()
            return self._own

    def save(self) -> bool:
        """Move what is in memory to disk, if that takes it now; return whether some is left.

        Called on the worker. Turns become documents, whose ids follow from them:
        whatever comes in between, the server stores them once.
        """
        spare = self._spare
        if spare is None or spare.outbox.is_empty():
            return False
        try:
            own = self.own()
            spare.close_documents(now(), everything=True, should_close=lambda *_: True)
            batches = [batch for resend in spare.resend.values() for batch in resend]
            spare.resend.clear()
            found = spare.outbox.move_documents(own.outbox, batches)
        except (OutboxUnavailable, OutboxFull):
            spare.stale = True
            return True
        with self._lock:
            own.ready.update(found)
        return False

    def drop(self, backlog: Backlog) -> None:
        """Put nothing into this backlog any longer."""
        with self._lock:
            if self._own is backlog:
                self._own = None

    def close(self) -> None:
        """Let go of the backlogs: what is put from here on is for the next process."""
        with self._lock:
            self._closed = True
            self._own = self._spare = None

    # --- taking -----------------------------------------------------------

    def _take(
        self,
        sources: Sequence[Source],
        turns: int,
        put: Callable[[Outbox], T],
        note: Callable[[Backlog, T], bool],
        *,
        is_counted: bool = False,
    ) -> bool:
        """Put it, count it, and note it in the backlog, which tells whether to wake the worker."""
        progress = self._delivery.progress
        thread = threading.get_ident()
        try:
            if thread != threading.main_thread().ident:
                self._putting.add(thread)
            elif not self._is_used:
                self._paused_at = 0.0
            self._is_used = True
            kept = self._keep(put)
        finally:
            if thread in self._putting:
                self._paused_at = now() + _PAUSE
                self._putting.discard(thread)
        with progress.lock:
            if not is_counted:
                for source in sources:
                    progress.given(source, turns)
            should_wake = kept is None or note(*kept)
        if kept is None:
            self._deferred.append(lambda: self._take(sources, turns, put, note, is_counted=True))
        elif self._deferred:
            self.take_deferred()
        if should_wake:
            self._wake()
        is_on_disk = kept is not None and kept[0].outbox.path is not None
        if kept is not None and self._closed and not is_on_disk:
            _logger.error(
                "%s given after close() will be lost: kept in memory only", counted(turns)
            )
        return is_on_disk

    def _keep(self, put: Callable[[Outbox], T]) -> Optional[tuple[Backlog, T]]:
        """Put it on disk, or into memory; None in a finalizer that interrupted one."""
        for _ in range(3):
            backlog = None
            try:
                backlog = self.own()
                return backlog, put(backlog.outbox)
            except OutboxFull:
                with self._delivery.progress.lock:
                    self._delivery.progress.counters.refused += 1
                raise
            except OutboxCorrupt as error:
                if backlog is None:  # a new file, and damaged
                    return self._keep_in_memory(put, error)
                # Use another; the worker sets this one aside.
                backlog.broken = True
                self.drop(backlog)
                self._wake()
            except OutboxUnavailable as error:
                if self._creating or is_inside():
                    return None
                return self._keep_in_memory(put, error)
            except ValueError:
                # Another thread closed the outbox between the two steps; the
                # next round makes a new one.
                if backlog is not None and backlog is self._own and not backlog.broken:
                    raise
        return self._keep_in_memory(put, OutboxUnavailable("the outbox is damaged again and again"))

    def _keep_in_memory(
        self, put: Callable[[Outbox], T], error: OutboxUnavailable
    ) -> tuple[Backlog, T]:
        text = f"Turns are kept in memory only and are not safe on disk: {error}"
        with self._lock:
            spare, is_new = self._spare, self._spare is None
            if spare is None:
                spare = self._spare = Backlog(Outbox(None), self._delivery.progress)
                self._delivery.add(spare)
        if is_new:
            _logger.error("%s", text)
            self._trouble.append(text)
            self._wake()
        return spare, put(spare.outbox)
