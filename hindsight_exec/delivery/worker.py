"""The worker: decides what is due, and starts it.

:meth:`Delivery.run` is the one job of the writer's executor. It closes
documents, starts every request that is due on the background loop, waits for
ANY response or for the next due time, and repeats until nothing is left to do.
Only the worker changes rows after they were put; the loop only carries
requests. So a server in trouble delays no other, and no lock is held while the
network is waited for.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING, Callable, Optional

from hindsight_exec.errors import ExecutorClosed, OutboxCorrupt, OutboxError, OutboxUnavailable
from hindsight_exec.executor import waiting

from .backlog import keeps_failing
from .outcomes import Outcomes
from .progress import Progress, counted
from .schedule import BATCH_BYTES
from .servers import Servers

if TYPE_CHECKING:
    from hindsight_exec.client.registry import Lease
    from hindsight_exec.conversation.turns import Destination, Source

    from .backlog import Backlog

_logger = logging.getLogger("hindsight_exec")

#: Seconds to wait after the disk refused to record what was done.
_DISK_PAUSE = 5.0
#: Seconds between looks for files that other processes left.
_ADOPT = 60.0
#: Adopted backlogs open at once; more while servers are in trouble.
_ADOPTED, _ADOPTED_STUCK = 4, 64
#: Seconds that the worker sleeps at most.
_LONGEST_SLEEP = 3600.0


class Delivery:
    """Delivers backlogs.

    Args:
        lease, key, notify: See :class:`.servers.Servers`.
        adopt: Adopts the backlogs of dead processes, at most so many.
        prepare: Prepares for the first request, if there is time before it.
        retire: Told that a backlog is idle, or that it cannot be used
            (``backlog.broken``); returns one to deliver in its place, or None.
        take_deferred, save, seconds_to_pause: See :class:`.intake.Intake`.
        stall_after: Seconds without progress, while turns are waiting, after
            which one warning is logged.
    """

    def __init__(
        self,
        *,
        lease: Callable[[str, str], Lease],
        key: Callable[[str, str], Optional[str]],
        notify: Callable[[str], None],
        adopt: Callable[[int], list[Backlog]],
        prepare: Callable[[], None],
        retire: Callable[[Backlog], Optional[Backlog]],
        take_deferred: Callable[[], None],
        save: Callable[[], bool],
        seconds_to_pause: Callable[[], float],
        stall_after: float = 300.0,
    ) -> None:
        self._adopt = adopt
        self._prepare = prepare
        self._retire = retire
        self._take_deferred = take_deferred
        self._save = save
        self._seconds_to_pause = seconds_to_pause
        self._stall_after = stall_after
        self.progress = Progress()
        self.servers = Servers(lease=lease, key=key, progress=self.progress, notify=notify)
        self.thread: Optional[threading.Thread] = None  # the worker, once it ran
        # Guarded by the lock of `progress`:
        self.backlogs: list[Backlog] = []
        self.adopting = False  # a file may be open that is in no backlog yet
        self.running = False
        # From any thread, without a lock:
        # Released to wake the worker, which a finalizer may do anywhere. Not a
        # SimpleQueue: its get() with a timeout may wait for ever (CPython 3.9 to 3.12).
        self._signal = threading.Lock()
        self._signal.acquire()
        self._closing = self._patient = False
        self._outcomes = Outcomes(
            servers=self.servers,
            progress=self.progress,
            notify=notify,
            wake=self.wake,
            postpone=self._postpone,
        )
        # The worker's own:
        self._poll_now = self._prepared = self._stalled = False
        self._adopt_at = self._save_at = 0.0

    # --- from any thread --------------------------------------------------

    def end(self, matches: Optional[Callable[[Source], bool]] = None) -> None:
        """Make the held turns of matching sources (all without it) due now."""
        with self.progress.lock:
            holding = [(one, *item) for one in self.backlogs for item in one.holding.items()]
        for backlog, number, held in holding:
            try:  # without the lock, as it may read the file: see `Backlog.take_all`
                ended = matches is None or matches(backlog.source(number))
            except (OutboxUnavailable, ValueError):
                ended = True  # the source is unreadable: early does no harm
            with self.progress.lock:
                held.ended = held.ended or ended

    def watch(self, watching: bool) -> None:
        """Poll often while a thread waits for completion."""
        with self.progress.lock:
            self.progress.watchers += 1 if watching else -1
            self._poll_now = watching or self._poll_now

    def wake(self) -> None:
        """Have the worker look at what there is to do, if it runs."""
        if self._signal.locked():
            with contextlib.suppress(RuntimeError):  # another thread was faster
                self._signal.release()

    def start(self) -> bool:
        """Wake the worker; return True if the caller must submit :meth:`run`."""
        with self.progress.lock:
            started, self.running = self.running, True
            if started:
                self.wake()  # with the lock, or it might end before it sees this
        return not started

    def ended(self) -> None:
        """Note that :meth:`run` is not running: it was not started, or came to harm."""
        with self.progress.lock:
            self.running = False
            self.progress.notify_all()

    def add(self, backlog: Backlog) -> None:
        """Deliver this backlog, too."""
        with self.progress.lock:
            self.backlogs.append(backlog)

    def close(self, *, patient: bool = False) -> None:
        """Send what can be sent, take each server's failure as final, and end.

        Args:
            patient: Not while other threads still give turns, one after the other.
        """
        if not self._closing:
            self._patient = patient
        self._closing = True
        self.wake()

    def cancel(self) -> None:
        """Cancel the requests in flight; their turns stay on disk."""
        self._outcomes.cancel()
        self.wake()

    # --- the worker -------------------------------------------------------

    def run(self) -> None:
        """Deliver until nothing is left to do. The executor's one job."""
        self.thread = threading.current_thread()
        while True:
            try:
                while not self._step():  # inside, or an exception between two steps would end it
                    pass
                return
            except BaseException:
                # SystemExit from a callback, or injected. What was being done
                # is unknown, so read anew from disk what remains to be done.
                for backlog in list(self.backlogs):
                    backlog.stale = True
                waiting.log(logging.ERROR, "Delivery was interrupted and goes on", exc_info=True)

    def _step(self) -> bool:
        """Do what is due and wait for the next; return whether nothing is left to do."""
        self._signal.acquire(blocking=False)
        if self._closing and not self.servers.closing:
            self.servers.closing = True
            self.servers.hurry()
        self._take_deferred()
        try:
            due = self._pass(waiting.now(), self.servers.closing)
        except Exception:
            _logger.exception("Delivery failed and will be tried again")
            due = None if self.servers.closing else waiting.now() + _DISK_PAUSE
        abandoned = self._outcomes.abandoned
        if due is None and self._patient and (pause := self._seconds_to_pause()):
            due = waiting.now() + pause
        if abandoned or (due is None and not self._outcomes.in_flight):
            with self.progress.lock:
                if abandoned or self._signal.locked():
                    self.running = False
                    self.progress.notify_all()
                    return True
        if not self._prepared and not self.servers.closing:
            # While turns are held: exit may leave no time for it.
            self._prepared = True
            with contextlib.suppress(Exception):  # the first request reports it
                self._prepare()
        left = _LONGEST_SLEEP if due is None else min(max(0.0, due - waiting.now()), _LONGEST_SLEEP)
        self._signal.acquire(timeout=left)
        return False

    def _pass(self, now: float, closing: bool) -> Optional[float]:
        """Do everything that is due; return when the next thing is, None if nothing is."""
        self._outcomes.take_responses()
        if now >= self._adopt_at and not (closing and self._adopt_at):
            self._adopt_more(now)
        due: list[float] = []
        if (closing or now >= self._save_at) and self._save():
            self._save_at = now + _DISK_PAUSE
            due.append(self._save_at)
        poll_now, self._poll_now = self._poll_now, False
        for backlog in list(self.backlogs):
            try:
                if backlog.stale:
                    self._reload(backlog)
                if poll_now:
                    backlog.poll_now()
                due += self._deliver(backlog, now, closing)
                if backlog.idle:
                    backlog.outbox.vacuum()
            except OutboxCorrupt as error:
                self._outcomes.broken(backlog, error)
            except OutboxUnavailable as error:
                self._outcomes.disk_failed(error)
                due.append(now + _DISK_PAUSE)
                continue
            except ExecutorClosed:
                self._outcomes.cancel()  # exit has overtaken this thread; the rest stays on disk
            except Exception:
                # This backlog must not hold up the others.
                backlog.stale = True
                _logger.exception("%s cannot be delivered now", backlog.outbox.path or "memory")
                due.append(now + _DISK_PAUSE)
                continue
            if backlog.broken or (backlog.adopted and backlog.idle):
                with self.progress.lock:
                    self.backlogs.remove(backlog)
                    self.adopting = True  # what is salvaged is in no backlog meanwhile
                rest: Optional[Backlog] = None
                try:
                    rest = self._retire(backlog)
                finally:
                    with self.progress.lock:
                        self.backlogs += [rest] if rest is not None else []
                        self.adopting = False
                self._adopt_at = min(self._adopt_at, now)  # there is room for more
                due.append(now)
        if self._outcomes.abandoned:
            return None
        if closing and now not in due:
            if not any(backlog.sending for backlog in self.backlogs):
                # Only polls are in flight; the next start asks again.
                self._outcomes.cancel_requests()
            return None
        if not closing:
            due += self._look_for_stall(now)
        return min(due, default=None)

    def _reload(self, backlog: Backlog) -> None:
        backlog.reload()
        before = self.progress.counts()
        rows: list[tuple[Source, int, int]] = []
        for one in self.backlogs:
            if one.adopted or one.broken:
                continue
            try:
                rows += one.unfinished()
            except OutboxError:
                one.stale = True  # this one may be delivered; counted when both can be read
                return
        self.progress.limit(before, rows)

    def _deliver(self, backlog: Backlog, now: float, closing: bool) -> list[float]:
        """Do what is due in a backlog; return when other things will be."""
        due = self._close_documents(backlog, now, closing)
        first, failing = backlog.to_send()
        due += self._send(backlog, first, now)
        for number in [] if closing else list(backlog.polls):
            due += self._poll(backlog, number, now)
        # Last: it would take each request that a server in trouble gets.
        return due + self._send(backlog, failing, now)

    def _send(self, backlog: Backlog, numbers: list[int], now: float) -> list[float]:
        due: list[float] = []
        for number in numbers:
            server = self.servers.get(backlog.destination(number))
            while server.may_send(now) and not self._outcomes.abandoned:
                batch = backlog.next_batch(number)
                if batch is None:
                    break
                self._outcomes.send(server, backlog, batch)
            else:
                due += server.opens_at(now)
        return due

    def _close_documents(self, backlog: Backlog, now: float, closing: bool) -> list[float]:
        """Close documents as far as they can be sent: turns that gather until then cost nothing."""
        due: list[float] = []
        if not backlog.holding:  # a poll, for example
            return due
        if backlog.adopted:
            servers = [self.servers.get(one) for one in backlog.destinations()]
            if not any(server.may_send(now) for server in servers):
                return [opens for server in servers for opens in server.opens_at(now)]
        probing = {
            self.servers.get(backlog.destination(number))
            for number, batches in backlog.resend.items()
            if closing or not keeps_failing(batches[0])
        }
        closed: dict[Destination, int] = {}  # characters

        def should_close(source: Source, chars: int) -> Optional[bool]:
            destination = source.destination
            server = self.servers.get(destination)
            if not server.may_send(now):
                due.extend(server.opens_at(now))
                return False
            if server.troubled and server in probing:
                return False  # an earlier batch finds out whether the server is well
            if not backlog.adopted:
                return chars >= BATCH_BYTES or destination not in backlog.sending.values()
            # No caller adds turns to it: prepare the next request during the last.
            if closed.setdefault(destination, 0) >= BATCH_BYTES:
                due.append(now)
                return None
            closed[destination] += chars
            return True

        return backlog.close_documents(now, everything=closing, should_close=should_close) + due

    def _poll(self, backlog: Backlog, number: int, now: float) -> list[float]:
        """Poll accepted operations that are due."""
        server = self.servers.get(backlog.destination(number))
        while (heap := backlog.polls.get(number)) and heap[0][0] <= now:
            if not server.may_send(now) or self._outcomes.abandoned:
                return server.opens_at(now)
            polls, batch = backlog.next_poll(number)
            self._outcomes.poll(server, backlog, batch, polls)
        return [heap[0][0]] if heap else []

    def _postpone(self, backlog: Backlog) -> None:
        with self.progress.lock:
            self.backlogs.remove(backlog)
            self.backlogs.append(backlog)

    def _look_for_stall(self, now: float) -> list[float]:
        """Warn once if no turn advances; return when to look again."""
        with self.progress.lock:
            turns = sum(self.progress.waiting.values())
            stalls_at = self.progress.advanced_at + self._stall_after
        stalled = turns > 0 and now >= stalls_at
        if stalled and not self._stalled:
            _logger.warning(
                "Nothing was delivered for %d s while %s waited; last error: %s",
                self._stall_after,
                counted(turns),
                self.progress.counters.last_error or "none",
            )
        self._stalled = stalled
        return [stalls_at] if turns and not stalled else []

    # --- adoption ---------------------------------------------------------

    def _adopt_more(self, now: float) -> None:
        # A few at a time. Those that wait, for completion or for servers in
        # trouble, do not count: they must delay no other.
        adopted = [backlog for backlog in self.backlogs if backlog.adopted]
        active = sum(not self._is_stuck(backlog) for backlog in adopted)
        room = min(_ADOPTED - active, _ADOPTED_STUCK - len(adopted))
        if room <= 0:
            return
        with self.progress.lock:
            self.adopting = True
        backlogs: list[Backlog] = []
        try:
            backlogs = self._adopt(room)
        finally:
            with self.progress.lock:
                self.backlogs += backlogs
                self.adopting = False
        self._adopt_at = now if len(backlogs) == room else now + _ADOPT

    def _is_stuck(self, backlog: Backlog) -> bool:
        """Whether only polls are left, or sends to servers in trouble."""
        with self.progress.lock:
            held = list(backlog.holding)
        destinations = [backlog.source(number).destination for number in held]
        first, failing = backlog.to_send()
        destinations += [backlog.destination(number) for number in [*first, *failing]]
        return not backlog.in_flight and all(self.servers.get(one).troubled for one in destinations)
