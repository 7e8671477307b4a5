"""Delivery: take what is due, send it, write down what the server said.

:meth:`Delivery.run` is the one job of the writer's executor.  It closes
documents, starts every send that is due on the background loop, waits for ANY
of them (or for the next thing to fall due) and goes on until nothing is left
to do.  All steps that change a row run on that one worker; the loop only
carries requests.  So a server in trouble delays no other, and no lock is held
while the network is waited for.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from concurrent.futures import CancelledError, Future
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Awaitable, Callable, Optional

from hindsight_exec.client.loop import background_loop
from hindsight_exec.errors import OutboxCorrupt, OutboxUnavailable, Rejected

from .backlog import keeps_failing
from .progress import Progress
from .schedule import BATCH_BYTES, LONGEST_RETRY, next_poll, next_retry
from .servers import Server, Servers

if TYPE_CHECKING:
    from hindsight_exec.client.api import HindsightClient
    from hindsight_exec.client.registry import Lease
    from hindsight_exec.conversation.turns import Destination, Source
    from hindsight_exec.outbox.schema import Batch

    from .backlog import Backlog

    Request = Callable[[HindsightClient], Awaitable[Any]]

_logger = logging.getLogger("hindsight_exec")

#: Seconds to wait when the disk refuses to write down what was done.
_DISK_PAUSE = 5.0
#: Seconds between polls while somebody waits for the completion.
_WATCHED_POLL = 0.25
#: Seconds between looks for what other processes left.
_ADOPT = 60.0
#: Adopted backlogs open at once; more while servers are in trouble.
_ADOPTED, _ADOPTED_STUCK = 4, 64
#: Marks an entry that is not a poll but a retry of a failed operation.
_RETRY = -1


class Delivery:
    """Delivers backlogs.

    Args:
        lease, key, tell: See :class:`.servers.Servers`.
        adopt: Takes over backlogs that dead processes left, at most so many.
        prepare: Gets ready for the first request, if there is time before it.
        retire: Told that a backlog is idle, or (``backlog.broken``) cannot be used.
        stall_after: Seconds without a success, while turns wait, after which
            one warning is logged.
    """

    def __init__(
        self,
        *,
        lease: Callable[[str, str], Lease],
        key: Callable[[str, str], Optional[str]],
        tell: Callable[[str], None],
        adopt: Callable[[int], list[Backlog]],
        prepare: Callable[[], None],
        retire: Callable[[Backlog], None],
        stall_after: float = 300.0,
    ) -> None:
        self._tell = tell
        self._adopt = adopt
        self._prepare = prepare
        self._retire = retire
        self._stall_after = stall_after
        self.progress = Progress()
        self.servers = Servers(lease=lease, key=key, progress=self.progress, tell=tell)
        self.thread: Optional[threading.Thread] = None  # the worker, once it ran
        # Guarded by the lock of `progress`:
        self.backlogs: list[Backlog] = []
        self.adopting = False  # a file may be open that is in no backlog yet
        self.running = False
        self._watchers = 0  # who waits for completion
        # From any thread, without a lock:
        self._wake = threading.Event()
        self._answers: SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]]] = SimpleQueue()
        self._in_flight: set[Future[Any]] = set()
        self._closing = False
        self._abandoned = False
        # The worker's own:
        self._poll_now = False
        self._prepared = False
        self._adopt_at = 0.0
        self._stalled = False
        self._disk_failed = False

    # --- from any thread --------------------------------------------------

    def end(self, wanted: Optional[Callable[[Source], bool]] = None) -> None:
        """Hold nothing back any longer, of the wanted sources or of all."""
        with self.progress:
            for backlog in self.backlogs:
                for number, held in list(backlog.holding.items()):
                    if held.ended:
                        continue
                    try:
                        held.ended = wanted is None or wanted(backlog.source(number))
                    except (OutboxUnavailable, ValueError):
                        held.ended = True  # whose they are cannot be read: early does no harm

    def watch(self, watching: bool) -> None:
        """Somebody waits for completion (or no longer): ask for it often."""
        with self.progress:
            self._watchers += 1 if watching else -1
            self._poll_now = watching or self._poll_now

    def start(self) -> bool:
        """Whether the caller must submit :meth:`run`; else the worker is woken."""
        with self.progress:
            if self.running:
                self._wake.set()
                return False
            self.running = True
            return True

    def not_started(self) -> None:
        """The run could not be submitted."""
        with self.progress:
            self.running = False
            self.progress.notify_all()

    def close(self) -> None:
        """Send what can be sent, each server's failure being final, and end."""
        self._closing = True
        self._wake.set()

    def cancel(self) -> None:
        """Give up what is under way; it stays on disk."""
        self._abandoned = True
        for future in list(self._in_flight):
            future.cancel()
        self._wake.set()

    # --- the worker -------------------------------------------------------

    def run(self) -> None:
        """Deliver until nothing is left to do. The executor's one job."""
        self.thread = threading.current_thread()
        while True:
            self._wake.clear()
            if self._closing and not self.servers.closing:
                self.servers.closing = True
                self.servers.hurry()
            try:
                due = self._pass(time.monotonic(), self.servers.closing)
            except Exception:
                _logger.exception("Delivery failed, and tries again")
                due = None if self.servers.closing else time.monotonic() + _DISK_PAUSE
            if self._abandoned or (due is None and not self._in_flight):
                with self.progress:
                    if self._abandoned or not self._wake.is_set():
                        self.running = False
                        self.progress.notify_all()
                        return
            if not self._prepared and not self.servers.closing:
                # While turns are held: exit may leave no time for it.
                self._prepared = True
                with contextlib.suppress(Exception):  # the first request tells
                    self._prepare()
            self._wake.wait(None if due is None else min(max(0.0, due - time.monotonic()), 3600.0))

    def _pass(self, now: float, closing: bool) -> Optional[float]:
        """Do all that is due; returns when the next thing is, None if nothing."""
        self._take_answers()
        if now >= self._adopt_at and not (closing and self._adopt_at):
            self._adopt_more(now)
        due: list[float] = []
        poll_now, self._poll_now = self._poll_now, False
        for backlog in list(self.backlogs):
            try:
                if poll_now:
                    backlog.poll_now()
                due += self._deliver(backlog, now, closing)
                if backlog.idle:
                    backlog.outbox.vacuum()
            except OutboxCorrupt as error:
                self._broken(backlog, error)
            except OutboxUnavailable as error:
                self._disk_trouble(error)
                due.append(now + _DISK_PAUSE)
                continue
            except Exception:
                # It must not hold up the other backlogs.
                _logger.exception("%s cannot be delivered now", backlog.outbox.path or "memory")
                due.append(now + _DISK_PAUSE)
                continue
            if backlog.broken or (backlog.adopted and backlog.idle):
                with self.progress:
                    self.backlogs.remove(backlog)
                self._retire(backlog)
                self._adopt_at = min(self._adopt_at, now)  # there may be more
                due.append(now)
        if self._abandoned:
            return None
        if closing and now not in due:
            if not any(any(backlog.sending.values()) for backlog in self.backlogs):
                # All are questions what became of turns: the next start asks them.
                for future in list(self._in_flight):
                    future.cancel()
            return None
        if not closing:
            due += self._look_for_stall(now)
        return min(due, default=None)

    def _deliver(self, backlog: Backlog, now: float, closing: bool) -> list[float]:
        """Do what is due in a backlog; returns when other things will be."""
        due: list[float] = []
        probed = {
            self.servers.get(backlog.destination(number))
            for number, batches in backlog.resend.items()
            if batches and (closing or not keeps_failing(batches[0]))
        }

        made: dict[Destination, int] = {}  # characters

        def wanted(source: Source, chars: int) -> Optional[bool]:
            """Documents are made when they can go: what gathers until then costs nothing."""
            where = source.destination
            server = self.servers.get(where)
            if not server.may_send(now):
                due.extend(server.opens_at(now))
                return False
            if server.troubled and server in probed:
                return False  # it gets a batch that it had before, to see whether it is well
            if not backlog.adopted:
                return chars >= BATCH_BYTES or not backlog.sending.get(where)
            # Nobody gives turns beside: the next request is made while one is under way.
            if made.setdefault(where, 0) >= BATCH_BYTES:
                due.append(now)
                return None
            made[where] += chars
            return True

        servers = [self.servers.get(where) for where in backlog.destinations()]
        if backlog.adopted and not any(server.may_send(now) for server in servers):
            due += (when for server in servers for when in server.opens_at(now))
        else:
            due += backlog.close_documents(now, everything=closing, wanted=wanted)
        for number in backlog.to_send():
            server = self.servers.get(backlog.destination(number))
            while server.may_send(now) and not self._abandoned:
                batch = backlog.next_batch(number)
                if batch is None:
                    break
                self._send(server, backlog, batch)
            else:
                due += server.opens_at(now)
        if not closing:
            for number in backlog.polls:
                due += self._poll(backlog, number, now)
        return due

    def _look_for_stall(self, now: float) -> list[float]:
        """Warn once if nothing gets on; when to look again."""
        with self.progress:
            waiting = sum(self.progress.waiting.values())
            stalls_at = self.progress.moved + self._stall_after
        if not waiting or now < stalls_at:
            self._stalled = False
            return [stalls_at] if waiting else []
        if not self._stalled:
            self._stalled = True
            _logger.warning(
                "Nothing was delivered for %d s while %d turns wait; last error: %s",
                self._stall_after,
                waiting,
                self.progress.counters.last_error or "none",
            )
        return []

    # --- requests and answers ---------------------------------------------

    def _ask(
        self,
        server: Server,
        backlog: Backlog,
        request: Request,
        then: Callable[..., None],
        *values: Any,
    ) -> None:
        """Run a request on the loop; ``then`` gets its future, on the worker."""
        lease = server.lease

        async def run() -> Any:
            assert lease is not None  # noqa: S101 - for the type: see Server.may_send
            return await lease.use(request)

        future = background_loop().run(run())
        server.lane.in_flight += 1
        backlog.busy += 1
        self._in_flight.add(future)

        def answered(future: Future[Any]) -> None:
            self._answers.put((then, (server, backlog, future, *values)))
            self._wake.set()

        future.add_done_callback(answered)
        if self._abandoned:
            future.cancel()  # cancel() ran while it was not noted yet

    def _take_answers(self) -> None:
        while True:
            try:
                then, (server, backlog, future, batch, *more) = self._answers.get_nowait()
            except Empty:
                return
            self._in_flight.discard(future)
            server.lane.in_flight -= 1
            backlog.busy -= 1
            if backlog.broken:
                continue
            try:
                then(server, backlog, future, batch, *more)
            except OutboxCorrupt as error:
                self._broken(backlog, error)
            except OutboxUnavailable as error:
                self._disk_trouble(error)
                server.lane.backoff.failed(time.monotonic())
                if batch.accepted:
                    self._poll_again(backlog, batch, 0)
                else:
                    backlog.send_again(batch)

    def _broken(self, backlog: Backlog, error: OutboxCorrupt) -> None:
        _logger.error("%s; it is set aside, and what can be read of it is delivered", error)
        backlog.broken = True
        self._wake.set()

    def _disk_trouble(self, error: OutboxUnavailable) -> None:
        if not self._disk_failed:
            self._disk_failed = True
            _logger.warning("Turns on disk wait until it can be written again: %s", error)

    def _note(self, backlog: Backlog, batch: Batch, error: str = "") -> None:
        try:
            backlog.outbox.note(batch, error)
        except OutboxCorrupt:
            raise
        except OutboxUnavailable as failure:
            # What the server has, it has: sent again at the next start, the
            # same bytes under the same id change nothing.
            self._disk_trouble(failure)

    # --- sending ----------------------------------------------------------

    def _send(self, server: Server, backlog: Backlog, batch: Batch) -> None:
        where = backlog.destination(batch.destination)
        try:
            items = backlog.outbox.items(batch)
        except OutboxUnavailable:
            backlog.send_again(batch)
            raise

        def retain(client: HindsightClient) -> Awaitable[Any]:
            return client.retain(
                where.bank, items, asynchronous=True, operation_id=batch.operation_id
            )

        backlog.sending[where] = backlog.sending.get(where, 0) + 1
        self._ask(server, backlog, retain, self._sent, batch, len(items))

    def _sent(
        self, server: Server, backlog: Backlog, future: Future[Any], batch: Batch, items: int
    ) -> None:
        backlog.sending[backlog.destination(batch.destination)] -= 1
        try:
            answer = future.result()
        except CancelledError:
            backlog.send_again(batch)
        except Rejected as error:
            if error.status in (404, 405):
                # Not the documents are wrong but the URL; the error names it.
                backlog.send_again(batch)
                self.servers.failed(server, error)
            elif items > 1:
                self._split(backlog, batch)
            else:
                self._mark_dead(backlog, batch, "rejected", str(error))
        except Exception as error:
            batch.failures += 1
            # Others were taken since it failed last: some document of it is what fails.
            alone = items > 1 and keeps_failing(batch) and server.taken > batch.taken
            batch.taken = server.taken
            if alone:
                self._split(backlog, batch)
            else:
                backlog.send_again(batch)
            if keeps_failing(batch):
                with self.progress:  # the other backlogs go first, too
                    self.backlogs.remove(backlog)
                    self.backlogs.append(backlog)
            self.servers.failed(server, error)
        else:
            server.taken += 1
            # Servers before 0.8.6 do not take our id and make one of theirs.
            operations = answer.get("operation_ids") or [batch.operation_id]
            batch.operation = str(answer.get("operation_id") or operations[0])
            batch.accepted = True
            self._note(backlog, batch)
            self.servers.succeeded(server)
            backlog.poll(batch, time.monotonic() + next_poll(0), 0)
            self.progress.accepted(backlog.share(batch), own=not backlog.adopted)
            if not self.progress.waiting:
                self.servers.arrived()

    def _split(self, backlog: Backlog, batch: Batch) -> None:
        halves = backlog.outbox.split(batch, (str(uuid.uuid4()), str(uuid.uuid4())))
        for half in halves:
            half.failures, half.taken = batch.failures, batch.taken
        backlog.send_again(*halves)

    def _mark_dead(self, backlog: Backlog, batch: Batch, reason: str, detail: str) -> None:
        """The server will never take it: keep it as dead letters, loudly."""
        share = backlog.share(batch)
        backlog.outbox.mark_dead(batch, reason, detail)
        total = sum(turns for _, turns in share)
        text = f"{total} turn(s) are kept as dead letters, {reason}: {detail}"
        _logger.error("%s. See 'hindsight-exec dead list'.", text)
        self._tell(text)
        # Last, as it lets those go on who wait, perhaps to close.
        self.progress.buried(
            share, reason, detail, own=not backlog.adopted, accepted=batch.accepted
        )

    # --- after acceptance -------------------------------------------------

    def _poll(self, backlog: Backlog, number: int, now: float) -> list[float]:
        """Ask whether accepted operations are done, as far as it is time."""
        heap = backlog.polls[number]
        if not heap:
            return []
        destination = backlog.destination(number)
        server = self.servers.get(destination)
        while heap and heap[0][0] <= now:
            if not server.may_send(now) or self._abandoned:
                return server.opens_at(now)
            polls, batch = backlog.next_poll(number)
            where = (destination.bank, batch.operation or batch.operation_id)
            if polls == _RETRY and batch.operation != batch.operation_id:
                # A server that made an id of its own is an old one (before
                # 0.8.6), and may retry without effect. Sent again it runs anew.
                self._forgotten(server, backlog, batch, "the operation failed")
                return [now]
            if polls == _RETRY:
                self._ask(
                    server, backlog, _call("retry_operation", *where), self._retried, batch, polls
                )
            else:
                self._ask(server, backlog, _call("operation", *where), self._polled, batch, polls)
        return [heap[0][0]] if heap else []

    def _poll_again(self, backlog: Backlog, batch: Batch, polls: int) -> None:
        wait = _WATCHED_POLL if self._watchers else next_poll(polls)
        backlog.poll(batch, time.monotonic() + wait, polls)

    def _result(
        self, server: Server, backlog: Backlog, future: Future[Any], batch: Batch, polls: int
    ) -> Any:
        """An answer; None if there is none and the question was put back.

        Raises:
            Rejected: The server does not know what it was asked.
        """
        try:
            answer = future.result()
        except Rejected:
            raise
        except CancelledError:
            backlog.poll(batch, time.monotonic(), polls)
        except Exception as error:
            self.servers.failed(server, error)
            backlog.poll(batch, time.monotonic(), polls)
        else:
            self.servers.succeeded(server)
            return answer
        return None

    def _polled(
        self, server: Server, backlog: Backlog, future: Future[Any], batch: Batch, polls: int
    ) -> None:
        try:
            answer = self._result(server, backlog, future, batch, polls)
        except Rejected:
            answer = {"status": "not_found"}  # an old server without this endpoint
        if answer is None:
            return
        status = answer.get("status")
        if status == "completed":
            self._complete(backlog, batch)
        elif status in ("failed", "cancelled"):
            self._operation_failed(backlog, batch, str(answer.get("error_message") or status))
        elif status == "not_found" and polls > 0:
            bank = backlog.destination(batch.destination).bank
            ids = backlog.outbox.document_ids(batch)
            self._ask(
                server,
                backlog,
                lambda client: _stored(client, bank, ids),
                self._looked_up,
                batch,
                polls,
            )
        else:
            self._poll_again(backlog, batch, polls + 1)

    def _operation_failed(self, backlog: Backlog, batch: Batch, detail: str) -> None:
        left = min(batch.retry_at - time.time(), LONGEST_RETRY)  # the clock may be set back
        if left > 0:
            # The process that was to tell it to run again has ended before.
            backlog.poll(batch, time.monotonic() + left, _RETRY)
            return
        wait = next_retry(batch.retries)
        if wait is None:
            self._mark_dead(backlog, batch, "failed", detail)
            return
        batch.retries += 1
        batch.retry_at = time.time() + wait
        self._note(backlog, batch, detail)
        with self.progress:
            self.progress.counters.last_error = detail
        backlog.poll(batch, time.monotonic() + wait, _RETRY)

    def _retried(
        self, server: Server, backlog: Backlog, future: Future[Any], batch: Batch, polls: int
    ) -> None:
        try:
            if self._result(server, backlog, future, batch, polls) is None:
                return
        except Rejected:
            pass  # 409: it is running already; else the next poll tells
        self._poll_again(backlog, batch, 0)

    def _looked_up(
        self, server: Server, backlog: Backlog, future: Future[Any], batch: Batch, polls: int
    ) -> None:
        stored = self._result(server, backlog, future, batch, polls)
        if stored is None:
            return
        if stored:
            self._complete(backlog, batch)
            return
        self._forgotten(server, backlog, batch, "the server does not know the operation")

    def _forgotten(self, server: Server, backlog: Backlog, batch: Batch, why: str) -> None:
        """Send it again under its own id: harmless, whatever became of the first."""
        batch.accepted = False
        self._note(backlog, batch, why)
        if not backlog.adopted:
            self.progress.lost(backlog.share(batch))
        backlog.send_again(batch)
        # Wait as after a failure, lest a server that forgets is asked for ever.
        server.lane.backoff.failed(time.monotonic())

    def _complete(self, backlog: Backlog, batch: Batch) -> None:
        self.progress.completed(backlog.share(batch), own=not backlog.adopted)
        try:
            backlog.outbox.complete(batch)
        except OutboxCorrupt:
            raise
        except OutboxUnavailable as failure:
            self._disk_trouble(failure)  # the next start asks again

    # --- adoption ---------------------------------------------------------

    def _adopt_more(self, now: float) -> None:
        # A few at a time; those that wait, for completion or for servers in
        # trouble, do not count, so that they delay no other.
        adopted = [backlog for backlog in self.backlogs if backlog.adopted]
        going = sum(not self._waits(backlog) for backlog in adopted)
        room = min(_ADOPTED - going, _ADOPTED_STUCK - len(adopted))
        if room <= 0:
            return
        with self.progress:
            self.adopting = True
        backlogs: list[Backlog] = []
        try:
            backlogs = self._adopt(room)
        finally:
            with self.progress:
                self.backlogs += backlogs
                self.adopting = False
        self._adopt_at = now if len(backlogs) == room else now + _ADOPT

    def _waits(self, backlog: Backlog) -> bool:
        """Whether all that is left are polls, or sends to servers in trouble."""
        with self.progress:
            held = list(backlog.holding)
        wheres = [backlog.source(number).destination for number in held]
        wheres += [backlog.destination(number) for number in backlog.to_send()]
        return not backlog.busy and all(self.servers.get(where).troubled for where in wheres)


def _call(name: str, *values: str) -> Request:
    def call(client: HindsightClient) -> Awaitable[Any]:
        answer: Awaitable[Any] = getattr(client, name)(*values)
        return answer

    return call


async def _stored(client: HindsightClient, bank: str, document_ids: list[str]) -> bool:
    """Whether the server has all documents of an operation it does not know.

    Servers forget operations in time, and old ones never tell of them.
    """
    for document_id in document_ids:
        try:
            await client.document(bank, document_id)
        except Rejected:
            return False
    return True
