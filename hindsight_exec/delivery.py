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

from .box import stubborn
from .errors import OutboxCorrupt, OutboxUnavailable, Rejected
from .loop import background_loop
from .progress import Progress
from .schedule import BATCH_BYTES, LONGEST_RETRY, next_poll, next_retry
from .servers import Server, Servers

if TYPE_CHECKING:
    from .box import Box
    from .client import HindsightClient
    from .clients import Lease
    from .outbox import Batch
    from .turns import Destination, Source

    Request = Callable[[HindsightClient], Awaitable[Any]]

_logger = logging.getLogger("hindsight_exec")

#: Seconds to wait when the disk refuses to write down what was done.
_DISK_PAUSE = 5.0
#: Seconds between polls while somebody waits for the completion.
_WATCHED_POLL = 0.25
#: Seconds between looks for what other processes left.
_ADOPT = 60.0
#: Adopted boxes open at once; more while servers are in trouble.
_ADOPTED, _ADOPTED_STUCK = 4, 64
#: Marks an entry that is not a poll but a retry of a failed operation.
_RETRY = -1


class Delivery:
    """Delivers boxes.

    Args:
        lease, key, tell: See :class:`.servers.Servers`.
        adopt: Takes over boxes that dead processes left, at most so many.
        prepare: Gets ready for the first request, if there is time before it.
        retire: Told that a box is idle, or (``box.broken``) cannot be used.
        stall_after: Seconds without a success, while turns wait, after which
            one warning is logged.
    """

    def __init__(
        self,
        *,
        lease: Callable[[str, str], Lease],
        key: Callable[[str, str], Optional[str]],
        tell: Callable[[str], None],
        adopt: Callable[[int], list[Box]],
        prepare: Callable[[], None],
        retire: Callable[[Box], None],
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
        self.boxes: list[Box] = []
        self.adopting = False  # a file may be open that is in no box yet
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
            for box in self.boxes:
                for number, held in list(box.holding.items()):
                    if held.ended:
                        continue
                    try:
                        held.ended = wanted is None or wanted(box.source(number))
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
        for box in list(self.boxes):
            try:
                if poll_now:
                    box.poll_now()
                due += self._deliver(box, now, closing)
                if box.idle:
                    box.outbox.vacuum()
            except OutboxCorrupt as error:
                self._broken(box, error)
            except OutboxUnavailable as error:
                self._disk_trouble(error)
                due.append(now + _DISK_PAUSE)
                continue
            except Exception:
                # It must not hold up the other boxes.
                _logger.exception("%s cannot be delivered now", box.outbox.path or "memory")
                due.append(now + _DISK_PAUSE)
                continue
            if box.broken or (box.adopted and box.idle):
                with self.progress:
                    self.boxes.remove(box)
                self._retire(box)
                self._adopt_at = min(self._adopt_at, now)  # there may be more
                due.append(now)
        if self._abandoned:
            return None
        if closing and now not in due:
            if not any(any(box.sending.values()) for box in self.boxes):
                # All are questions what became of turns: the next start asks them.
                for future in list(self._in_flight):
                    future.cancel()
            return None
        if not closing:
            due += self._look_for_stall(now)
        return min(due, default=None)

    def _deliver(self, box: Box, now: float, closing: bool) -> list[float]:
        """Do what is due in a box; returns when other things will be."""
        due: list[float] = []
        probed = {
            self.servers.get(box.destination(number))
            for number, batches in box.resend.items()
            if batches and (closing or not stubborn(batches[0]))
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
            if not box.adopted:
                return chars >= BATCH_BYTES or not box.sending.get(where)
            # Nobody gives turns beside: the next request is made while one is under way.
            if made.setdefault(where, 0) >= BATCH_BYTES:
                due.append(now)
                return None
            made[where] += chars
            return True

        servers = [self.servers.get(where) for where in box.destinations()]
        if box.adopted and not any(server.may_send(now) for server in servers):
            due += (when for server in servers for when in server.opens_at(now))
        else:
            due += box.close_documents(now, everything=closing, wanted=wanted)
        for number in box.to_send():
            server = self.servers.get(box.destination(number))
            while server.may_send(now) and not self._abandoned:
                batch = box.next_batch(number)
                if batch is None:
                    break
                self._send(server, box, batch)
            else:
                due += server.opens_at(now)
        if not closing:
            for number in box.polls:
                due += self._poll(box, number, now)
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
        self, server: Server, box: Box, request: Request, then: Callable[..., None], *values: Any
    ) -> None:
        """Run a request on the loop; ``then`` gets its future, on the worker."""
        lease = server.lease

        async def run() -> Any:
            assert lease is not None  # noqa: S101 - for the type: see Server.may_send
            return await lease.use(request)

        future = background_loop().run(run())
        server.lane.in_flight += 1
        box.busy += 1
        self._in_flight.add(future)

        def answered(future: Future[Any]) -> None:
            self._answers.put((then, (server, box, future, *values)))
            self._wake.set()

        future.add_done_callback(answered)
        if self._abandoned:
            future.cancel()  # cancel() ran while it was not noted yet

    def _take_answers(self) -> None:
        while True:
            try:
                then, (server, box, future, batch, *more) = self._answers.get_nowait()
            except Empty:
                return
            self._in_flight.discard(future)
            server.lane.in_flight -= 1
            box.busy -= 1
            if box.broken:
                continue
            try:
                then(server, box, future, batch, *more)
            except OutboxCorrupt as error:
                self._broken(box, error)
            except OutboxUnavailable as error:
                self._disk_trouble(error)
                server.lane.backoff.failed(time.monotonic())
                if batch.accepted:
                    self._poll_again(box, batch, 0)
                else:
                    box.send_again(batch)

    def _broken(self, box: Box, error: OutboxCorrupt) -> None:
        _logger.error("%s; it is set aside, and what can be read of it is delivered", error)
        box.broken = True
        self._wake.set()

    def _disk_trouble(self, error: OutboxUnavailable) -> None:
        if not self._disk_failed:
            self._disk_failed = True
            _logger.warning("Turns on disk wait until it can be written again: %s", error)

    def _note(self, box: Box, batch: Batch, error: str = "") -> None:
        try:
            box.outbox.note(batch, error)
        except OutboxCorrupt:
            raise
        except OutboxUnavailable as failure:
            # What the server has, it has: sent again at the next start, the
            # same bytes under the same id change nothing.
            self._disk_trouble(failure)

    # --- sending ----------------------------------------------------------

    def _send(self, server: Server, box: Box, batch: Batch) -> None:
        where = box.destination(batch.destination)
        try:
            items = box.outbox.items(batch)
        except OutboxUnavailable:
            box.send_again(batch)
            raise

        def retain(client: HindsightClient) -> Awaitable[Any]:
            return client.retain(
                where.bank, items, asynchronous=True, operation_id=batch.operation_id
            )

        box.sending[where] = box.sending.get(where, 0) + 1
        self._ask(server, box, retain, self._sent, batch, len(items))

    def _sent(
        self, server: Server, box: Box, future: Future[Any], batch: Batch, items: int
    ) -> None:
        box.sending[box.destination(batch.destination)] -= 1
        try:
            answer = future.result()
        except CancelledError:
            box.send_again(batch)
        except Rejected as error:
            if error.status in (404, 405):
                # Not the documents are wrong but the URL; the error names it.
                box.send_again(batch)
                self.servers.failed(server, error)
            elif items > 1:
                self._split(box, batch)
            else:
                self._bury(box, batch, "rejected", str(error))
        except Exception as error:
            batch.failures += 1
            # Others were taken since it failed last: some document of it is what fails.
            alone = items > 1 and stubborn(batch) and server.taken > batch.taken
            batch.taken = server.taken
            if alone:
                self._split(box, batch)
            else:
                box.send_again(batch)
            if stubborn(batch):
                with self.progress:  # the other boxes go first, too
                    self.boxes.remove(box)
                    self.boxes.append(box)
            self.servers.failed(server, error)
        else:
            server.taken += 1
            # Servers before 0.8.6 do not take our id and make one of theirs.
            operations = answer.get("operation_ids") or [batch.operation_id]
            batch.operation = str(answer.get("operation_id") or operations[0])
            batch.accepted = True
            self._note(box, batch)
            self.servers.succeeded(server)
            box.poll(batch, time.monotonic() + next_poll(0), 0)
            self.progress.accepted(box.share(batch), own=not box.adopted)
            if not self.progress.waiting:
                self.servers.arrived()

    def _split(self, box: Box, batch: Batch) -> None:
        halves = box.outbox.split(batch, (str(uuid.uuid4()), str(uuid.uuid4())))
        for half in halves:
            half.failures, half.taken = batch.failures, batch.taken
        box.send_again(*halves)

    def _bury(self, box: Box, batch: Batch, reason: str, detail: str) -> None:
        """The server will never take it: keep it as dead letters, loudly."""
        share = box.share(batch)
        box.outbox.bury(batch, reason, detail)
        total = sum(turns for _, turns in share)
        text = f"{total} turn(s) are kept as dead letters, {reason}: {detail}"
        _logger.error("%s. See 'hindsight-exec dead list'.", text)
        self._tell(text)
        # Last, as it lets those go on who wait, perhaps to close.
        self.progress.buried(share, reason, detail, own=not box.adopted, accepted=batch.accepted)

    # --- after acceptance -------------------------------------------------

    def _poll(self, box: Box, number: int, now: float) -> list[float]:
        """Ask whether accepted operations are done, as far as it is time."""
        heap = box.polls[number]
        if not heap:
            return []
        destination = box.destination(number)
        server = self.servers.get(destination)
        while heap and heap[0][0] <= now:
            if not server.may_send(now) or self._abandoned:
                return server.opens_at(now)
            polls, batch = box.next_poll(number)
            where = (destination.bank, batch.operation or batch.operation_id)
            if polls == _RETRY and batch.operation != batch.operation_id:
                # A server that made an id of its own is an old one (before
                # 0.8.6), and may retry without effect. Sent again it runs anew.
                self._forgotten(server, box, batch, "the operation failed")
                return [now]
            if polls == _RETRY:
                self._ask(
                    server, box, _call("retry_operation", *where), self._retried, batch, polls
                )
            else:
                self._ask(server, box, _call("operation", *where), self._polled, batch, polls)
        return [heap[0][0]] if heap else []

    def _poll_again(self, box: Box, batch: Batch, polls: int) -> None:
        wait = _WATCHED_POLL if self._watchers else next_poll(polls)
        box.poll(batch, time.monotonic() + wait, polls)

    def _result(
        self, server: Server, box: Box, future: Future[Any], batch: Batch, polls: int
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
            box.poll(batch, time.monotonic(), polls)
        except Exception as error:
            self.servers.failed(server, error)
            box.poll(batch, time.monotonic(), polls)
        else:
            self.servers.succeeded(server)
            return answer
        return None

    def _polled(
        self, server: Server, box: Box, future: Future[Any], batch: Batch, polls: int
    ) -> None:
        try:
            answer = self._result(server, box, future, batch, polls)
        except Rejected:
            answer = {"status": "not_found"}  # an old server without this endpoint
        if answer is None:
            return
        status = answer.get("status")
        if status == "completed":
            self._complete(box, batch)
        elif status in ("failed", "cancelled"):
            self._operation_failed(box, batch, str(answer.get("error_message") or status))
        elif status == "not_found" and polls > 0:
            bank = box.destination(batch.destination).bank
            ids = box.outbox.document_ids(batch)
            self._ask(
                server,
                box,
                lambda client: _stored(client, bank, ids),
                self._looked_up,
                batch,
                polls,
            )
        else:
            self._poll_again(box, batch, polls + 1)

    def _operation_failed(self, box: Box, batch: Batch, detail: str) -> None:
        left = min(batch.retry_at - time.time(), LONGEST_RETRY)  # the clock may be set back
        if left > 0:
            # The process that was to tell it to run again has ended before.
            box.poll(batch, time.monotonic() + left, _RETRY)
            return
        wait = next_retry(batch.retries)
        if wait is None:
            self._bury(box, batch, "failed", detail)
            return
        batch.retries += 1
        batch.retry_at = time.time() + wait
        self._note(box, batch, detail)
        with self.progress:
            self.progress.counters.last_error = detail
        box.poll(batch, time.monotonic() + wait, _RETRY)

    def _retried(
        self, server: Server, box: Box, future: Future[Any], batch: Batch, polls: int
    ) -> None:
        try:
            if self._result(server, box, future, batch, polls) is None:
                return
        except Rejected:
            pass  # 409: it is running already; else the next poll tells
        self._poll_again(box, batch, 0)

    def _looked_up(
        self, server: Server, box: Box, future: Future[Any], batch: Batch, polls: int
    ) -> None:
        stored = self._result(server, box, future, batch, polls)
        if stored is None:
            return
        if stored:
            self._complete(box, batch)
            return
        self._forgotten(server, box, batch, "the server does not know the operation")

    def _forgotten(self, server: Server, box: Box, batch: Batch, why: str) -> None:
        """Send it again under its own id: harmless, whatever became of the first."""
        batch.accepted = False
        self._note(box, batch, why)
        if not box.adopted:
            self.progress.lost(box.share(batch))
        box.send_again(batch)
        # Wait as after a failure, lest a server that forgets is asked for ever.
        server.lane.backoff.failed(time.monotonic())

    def _complete(self, box: Box, batch: Batch) -> None:
        self.progress.completed(box.share(batch), own=not box.adopted)
        try:
            box.outbox.complete(batch)
        except OutboxCorrupt:
            raise
        except OutboxUnavailable as failure:
            self._disk_trouble(failure)  # the next start asks again

    # --- adoption ---------------------------------------------------------

    def _adopt_more(self, now: float) -> None:
        # A few at a time; those that wait, for completion or for servers in
        # trouble, do not count, so that they delay no other.
        adopted = [box for box in self.boxes if box.adopted]
        going = sum(not self._waits(box) for box in adopted)
        room = min(_ADOPTED - going, _ADOPTED_STUCK - len(adopted))
        if room <= 0:
            return
        with self.progress:
            self.adopting = True
        boxes: list[Box] = []
        try:
            boxes = self._adopt(room)
        finally:
            with self.progress:
                self.boxes += boxes
                self.adopting = False
        self._adopt_at = now if len(boxes) == room else now + _ADOPT

    def _waits(self, box: Box) -> bool:
        """Whether all that is left are polls, or sends to servers in trouble."""
        with self.progress:
            held = list(box.holding)
        wheres = [box.source(number).destination for number in held]
        wheres += [box.destination(number) for number in box.to_send()]
        return not box.busy and all(self.servers.get(where).troubled for where in wheres)


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
