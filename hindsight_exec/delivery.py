"""Delivery: take what is due, send it, write down what the server said.

:meth:`Delivery.run` is the one job of the writer's executor.  It closes
documents, starts every send that is due on the background loop, waits for ANY
of them (or for the next thing to fall due) and goes on until nothing is left
to do.  All steps that change a row run on that one worker; the loop only
carries requests.  So a server in trouble delays no other, and no lock is held
while the network is waited for.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
import uuid
from collections import deque
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Awaitable, Callable, Iterable, Optional

from . import turns as turns_room
from .errors import (
    OutboxCorrupt,
    OutboxUnavailable,
    Rejected,
    ServerError,
    Unauthorized,
    Unavailable,
)
from .loop import background_loop
from .schedule import (
    BATCH_ITEMS,
    Hold,
    Lane,
    first_batch,
    first_document,
    next_poll,
    next_retry,
)

if TYPE_CHECKING:
    from .client import HindsightClient
    from .clients import Lease
    from .outbox import Batch, Destination, Outbox
    from .turns import Source

_logger = logging.getLogger("hindsight_exec")

#: Seconds after which a server that refused the key is asked again, even if
#: the key has not changed: it may have been set right over there.
_PAUSE = 600.0
#: Seconds between looks whether the key of such a server has changed.
_KEY_CHECK = 30.0
#: Seconds to wait when the disk refuses to write down what was done.
_DISK_PAUSE = 5.0
#: Seconds between polls while somebody waits for the completion.
_WATCHED_POLL = 0.25
#: Held turns read at once. A transaction of 100 000 rows would make a
#: concurrent put wait for 0.65 s.
_ROWS = 500
#: Adopted boxes open at once; more while servers are in trouble.
_ADOPTED, _ADOPTED_STUCK = 4, 64


@dataclass
class Counters:
    """What became of the turns given in this process, in turns.

    ``last_success`` is POSIX time in seconds, ``oldest_age`` seconds.
    """

    given: int = 0
    accepted: int = 0
    completed: int = 0
    waiting: int = 0
    dead: int = 0
    dead_by_reason: dict[str, int] = field(default_factory=dict)
    refused: int = 0
    oldest_age: float = 0.0
    last_success: Optional[float] = None
    last_error: str = ""


@dataclass
class _Holding:
    """What is known in memory of a source's held turns: a hint, the rows count."""

    hold: Hold
    last: float
    turns: int = 0
    chars: int = 0
    looked: int = 0  # so many turns were there when no document could be made
    ended: bool = False

    def due_at(self) -> float:
        if self.ended or (
            self.chars >= self.hold.chars
            and self.turns >= self.hold.turns
            and self.turns > self.looked
        ):
            return 0.0
        return self.last + self.hold.idle


class Box:
    """An outbox that is being delivered.

    Args:
        outbox: The open outbox.
        adopted: A dead process left it: everything held in it goes now.
    """

    def __init__(self, outbox: Outbox, *, adopted: bool = False) -> None:
        self.outbox = outbox
        self.adopted = adopted
        self.broken = False
        self.destinations: dict[int, Destination] = {}
        self.sources: dict[int, Source] = {}
        self.holding: dict[int, _Holding] = {}
        self.ready: set[int] = set()  # destinations that may have documents
        self.resend: dict[int, deque[Batch]] = {}
        # For each destination a heap of when, order, how often, what to ask.
        self.polls: dict[int, list[tuple[float, int, int, Batch]]] = {}
        self.busy = 0  # requests under way
        self.sending: dict[int, int] = {}  # retains under way, by destination
        if adopted:
            now = time.monotonic()
            self.take_all()
            for batch in outbox.batches():
                if batch.accepted:
                    self.poll(batch, now, 0)
                else:
                    self.resend.setdefault(batch.destination, deque()).append(batch)

    def take_all(self) -> None:
        """Whatever is in the outbox is due now."""
        now = time.monotonic()
        for held in self.outbox.held():
            self.holding[held.source] = _Holding(
                Hold(), now, turns=held.turns, chars=held.chars, ended=True
            )
        self.ready.update(self.outbox.destinations())

    _order = itertools.count()  # heap entries of one time keep their order

    def poll(self, batch: Batch, due: float, polls: int) -> None:
        heap = self.polls.setdefault(batch.destination, [])
        heapq.heappush(heap, (due, next(self._order), polls, batch))

    def destination(self, number: int) -> Destination:
        if number not in self.destinations:
            self.destinations.update(self.outbox.destinations())
        return self.destinations[number]

    def source(self, number: int) -> Source:
        if number not in self.sources:
            self.sources[number] = self.outbox.source(number)
        return self.sources[number]

    def next_batch(self, number: int) -> Optional[Batch]:
        """The oldest batch for a destination: one to send again, or a new one."""
        again = self.resend.get(number)
        if again:
            return again.popleft()
        if number not in self.ready:
            return None
        # Before looking: a document that comes now puts it back.
        self.ready.discard(number)
        found = self.outbox.ready(number, BATCH_ITEMS + 1)
        count = first_batch([size for _, size in found])
        full = count < len(found)
        # Less than a full batch waits for the answer to the one before: under
        # load documents then go together, and alone they go at once.
        wait = not full and self.sending.get(number)
        if full or wait:
            self.ready.add(number)
        if wait or not count:
            return None
        documents = [document for document, _ in found[:count]]
        return self.outbox.make_batch(number, documents, str(uuid.uuid4()))

    def to_send(self) -> list[int]:
        """Destinations that have something to be sent."""
        again = [number for number, batches in self.resend.items() if batches]
        return list(dict.fromkeys([*again, *self.ready]))

    @property
    def idle(self) -> bool:
        return not (self.busy or self.holding or any(self.polls.values()) or self.to_send())


class _Server:
    """A server (URL and credential) as the delivery sees it."""

    def __init__(self, where: tuple[str, str]) -> None:
        self.where = where
        self.lane = Lane()
        self.key: Optional[str] = None
        self.lease: Optional[Lease] = None
        self.given_up = False  # for this process: closing, and it failed


class Delivery:
    """Delivers boxes.

    Args:
        lease: Gives a share in the client of URL and key ("" for none).
        key: The key for a credential reference and URL; None if it cannot be
            had, "" if none is needed.
        adopt: Takes over boxes that dead processes left, at most so many.
        retire: Told that a box is idle, or (``box.broken``) cannot be used.
        tell: Tells the user of trouble, and of its end.
        stall_after: Seconds without a success, while turns wait, after which
            one warning is logged.
    """

    def __init__(
        self,
        *,
        lease: Callable[[str, str], Lease],
        key: Callable[[str, str], Optional[str]],
        adopt: Callable[[int], list[Box]],
        retire: Callable[[Box], None],
        tell: Callable[[str], None],
        stall_after: float = 300.0,
    ) -> None:
        self._lease = lease
        self._key = key
        self._adopt = adopt
        self._retire = retire
        self._tell = tell
        self._stall_after = stall_after
        # Guards the counters, `waiting`, `unfinished`, the holdings and the
        # list of boxes; notified whenever a turn got on or a server failed.
        self.progress = threading.Condition()
        self.counters = Counters()
        self.waiting: dict[Source, int] = {}  # turns not accepted, of own boxes
        self.unfinished: dict[Source, int] = {}  # turns not completed
        self.boxes: list[Box] = []
        # Failed requests by URL and credential, for those who wait.
        self.failures: dict[tuple[str, str], int] = {}
        self.thread: Optional[threading.Thread] = None  # the worker, once it ran
        self.watchers = 0  # who waits for completion
        self._servers: dict[tuple[str, str], _Server] = {}
        self._answers: SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]]] = SimpleQueue()
        self._wake = threading.Event()
        self._running = False
        self._closing = False
        self._abandoned = False
        self._in_flight: set[Future[Any]] = set()
        self._adopt_at = 0.0
        self._troubled = False
        self._stalled = False
        self._moved = time.monotonic()
        self._disk_failed = False
        self._poll_now = False  # once, whatever time was set

    # --- from any thread --------------------------------------------------

    def given(self, box: Box, number: int, source: Source, chars: int, hold: Hold) -> bool:
        """A turn was kept in ``box``. Returns whether the worker must hear of it."""
        now = time.monotonic()
        with self.progress:
            self._count_given(source, now)
            held = box.holding.get(number)
            if held is None:
                held = box.holding[number] = _Holding(hold, now)
            first = not held.turns
            held.turns += 1
            held.chars += chars
            held.last = now
            return first or held.due_at() <= now

    def given_document(self, box: Box, destination: int, source: Source) -> None:
        """A closed document of one turn was kept in ``box``."""
        with self.progress:
            self._count_given(source, time.monotonic())
            box.ready.add(destination)

    def _count_given(self, source: Source, now: float) -> None:
        if not self.waiting:
            self._moved = now
        self.counters.given += 1
        self.waiting[source] = self.waiting.get(source, 0) + 1
        self.unfinished[source] = self.unfinished.get(source, 0) + 1

    def end(self, wanted: Optional[Callable[[Source], bool]] = None) -> None:
        """Hold nothing back any longer, of the wanted sources or of all."""
        with self.progress:
            for box in self.boxes:
                for number, held in list(box.holding.items()):
                    if wanted is None or wanted(box.source(number)):
                        held.ended = True

    def hurry(self) -> None:
        """Somebody waits: ask servers in trouble once more, now."""
        with self.progress:
            for server in self._servers.values():
                if not server.lane.paused:
                    server.lane.backoff.hurry()

    def watch(self, watching: bool) -> None:
        """Somebody waits for completion (or no longer): ask for it often."""
        with self.progress:
            self.watchers += 1 if watching else -1
            self._poll_now = watching or self._poll_now

    def start(self) -> bool:
        """Whether the caller must submit :meth:`run`; else the worker is woken."""
        with self.progress:
            if self._running:
                self._wake.set()
                return False
            self._running = True
            return True

    def not_started(self) -> None:
        """The run could not be submitted."""
        with self.progress:
            self._running = False
            self.progress.notify_all()

    @property
    def running(self) -> bool:
        return self._running

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

    def paused(self, url: str, credential: str) -> bool:
        """Whether the server refused the key, so that nothing is sent there."""
        server = self._servers.get((url, credential))
        return server is not None and server.lane.paused

    def release(self, wait: float) -> None:
        """Let go of the clients; their sessions close within ``wait`` seconds."""
        for server in self._servers.values():
            if server.lease is not None:
                server.lease.release(wait)

    # --- the worker -------------------------------------------------------

    def run(self) -> None:
        """Deliver until nothing is left to do. The executor's one job."""
        closing_seen = False
        self.thread = threading.current_thread()
        while True:
            self._wake.clear()
            closing = self._closing
            if closing and not closing_seen:
                closing_seen = True
                self.end()
                self.hurry()
            try:
                due = self._pass(time.monotonic(), closing)
            except Exception:
                _logger.exception("Delivery failed, and tries again")
                due = None if closing else time.monotonic() + _DISK_PAUSE
            if self._abandoned or (due is None and not self._in_flight):
                with self.progress:
                    if self._abandoned or not self._wake.is_set():
                        self._running = False
                        self.progress.notify_all()
                        return
            timeout = None if due is None else max(0.0, due - time.monotonic())
            self._wake.wait(timeout)

    def _pass(self, now: float, closing: bool) -> Optional[float]:
        """Do all that is due; returns when the next thing is, None if nothing."""
        self._take_answers()
        if now >= self._adopt_at and not (closing and self._adopt_at):
            self._adopt_more(now)
        due: list[float] = []
        for box in list(self.boxes):
            try:
                due += self._deliver(box, now, closing)
            except OutboxCorrupt as error:
                self._broken(box, error)
            except OutboxUnavailable as error:
                self._disk_trouble(error)
                if not closing:
                    due.append(now + _DISK_PAUSE)
                continue
            if box.broken or box.idle:
                self._finish(box)
                if box.adopted:
                    due.append(now)  # there may be more of them
                    self._adopt_at = min(self._adopt_at, now)
        if self._abandoned:
            return None
        self._poll_now = False
        if not closing:
            self._look_for_stall(now)
            if due and self.waiting and not self._stalled:
                due.append(self._moved + self._stall_after)
        return min(due) if due else None

    def _deliver(self, box: Box, now: float, closing: bool) -> Iterable[float]:
        due = []
        with self.progress:
            holding = list(box.holding.items())
        for number, held in holding:
            ended = closing or held.ended or held.last + held.hold.idle <= now
            if ended or held.due_at() <= now:
                self._close_documents(box, number, held, ended=ended)
            if not closing and number in box.holding:
                due.append(max(now, held.due_at()))
        for number in box.to_send():
            server = self._server(box.destination(number))
            while self._may_send(server, now):
                batch = box.next_batch(number)
                if batch is None:
                    break
                self._send(server, box, batch)
            else:
                due += self._open_at(server, now, closing)
        if not closing:
            for number, heap in box.polls.items():
                due += self._poll(box, number, heap, now)
        return due

    def _close_documents(self, box: Box, number: int, held: _Holding, *, ended: bool) -> None:
        """Make documents of a source's held turns, as far as they are due."""
        source = box.source(number)
        if ended:
            with self.progress:
                held.ended = False  # what ends while we are at it, ends anew
        while True:
            rows = box.outbox.held_turns(number, _ROWS)
            made, start = [], 0
            while start < len(rows):
                count = first_document(
                    [turn.sizes for _, turn in rows[start:]], held.hold, ended=ended
                )
                if not count:
                    break
                members = [turn for _, turn in rows[start : start + count]]
                at = members[0].given_at
                document_id = turns_room.document_id(source.session, at)
                item = turns_room.document_item(source, document_id, members)
                made.append(([row for row, _ in rows[start : start + count]], document_id, at, item))
                start += count
            if made:
                box.ready.add(box.outbox.close_documents(number, made))
            if len(rows) < _ROWS or not made:
                break
        with self.progress:
            # Counted under the lock: a turn that was noted before is in the
            # file, one that is noted later counts on top.
            held.turns, held.chars = box.outbox.count_held(number)
            held.looked = held.turns
            if not held.turns:
                box.holding.pop(number, None)

    # --- servers ----------------------------------------------------------

    def _server(self, destination: Destination) -> _Server:
        where = (destination.url, destination.credential)
        server = self._servers.get(where)
        if server is None:
            server = _Server(where)
            with self.progress:
                self._servers[where] = server
        if server.lease is None or server.lane.paused:
            key = self._key(destination.credential, destination.url)
            if key is None:
                if not server.lane.paused:
                    self._pause(server, f"no key for {destination.url} can be found")
            elif server.lease is None or key != server.key:
                if server.lease is not None:
                    server.lease.release()
                server.lease = self._lease(destination.url, key)
                server.key = key
                server.lane.paused = False
                server.lane.backoff.succeeded()
        return server

    def _may_send(self, server: _Server, now: float) -> bool:
        return (
            not (self._abandoned or server.given_up or server.lease is None)
            and server.lane.may_send(now)
        )

    def _open_at(self, server: _Server, now: float, closing: bool) -> list[float]:
        """When it can be asked again; nothing if an answer will tell, or never."""
        if closing:
            return []
        opens = server.lane.open_at(now)
        if server.lane.paused:
            return [now + _KEY_CHECK]
        return [] if opens is None else [opens]

    def _pause(self, server: _Server, why: str) -> None:
        first = not server.lane.paused
        server.lane.paused = True
        server.lane.backoff.not_before = time.monotonic() + _PAUSE
        server.given_up = self._closing
        self._failed(server, why)
        if first:
            _logger.error("%s. Turns are kept and sent once the key is right.", why)
            self._say(f"Hindsight does not accept the key; turns are kept on disk ({why})")

    def _failed(self, server: _Server, why: str) -> None:
        with self.progress:
            self.counters.last_error = why
            self.failures[server.where] = self.failures.get(server.where, 0) + 1
            self.progress.notify_all()

    def _ask(
        self,
        server: _Server,
        box: Box,
        request: Callable[[HindsightClient], Awaitable[Any]],
        then: Callable[..., None],
        *values: Any,
    ) -> None:
        """Run a request on the loop; ``then`` gets its future, on the worker."""
        lease = server.lease

        async def run() -> Any:
            assert lease is not None  # noqa: S101 - for the type: nothing is sent without
            return await request(lease.client())

        future = background_loop().run(run())
        server.lane.in_flight += 1
        box.busy += 1
        self._in_flight.add(future)

        def answered(future: Future[Any]) -> None:
            self._answers.put((then, (server, box, future, *values)))
            self._wake.set()

        future.add_done_callback(answered)
        if self._abandoned:
            future.cancel()

    def _take_answers(self) -> None:
        while True:
            try:
                then, (server, box, future, *values) = self._answers.get_nowait()
            except Empty:
                return
            self._in_flight.discard(future)
            server.lane.in_flight -= 1
            box.busy -= 1
            if box.broken:
                continue
            try:
                then(server, box, future, *values)
            except OutboxCorrupt as error:
                self._broken(box, error)
            except OutboxUnavailable as error:
                self._disk_trouble(error)
                batch = values[0]
                server.lane.backoff.failed(time.monotonic())
                if batch.accepted:
                    self._again(box, batch, 0)
                else:
                    box.resend.setdefault(batch.destination, deque()).appendleft(batch)

    @staticmethod
    def _broken(box: Box, error: OutboxCorrupt) -> None:
        _logger.error("%s; it is set aside, and what can be read of it is delivered", error)
        box.broken = True

    def _disk_trouble(self, error: OutboxUnavailable) -> None:
        if not self._disk_failed:
            self._disk_failed = True
            _logger.warning("Turns on disk wait until it can be written again: %s", error)

    def _trouble(self, server: _Server, error: BaseException) -> None:
        """A request failed in a way that may pass."""
        if isinstance(error, Unauthorized):
            self._pause(server, str(error))
            return
        if not isinstance(error, ServerError):
            _logger.error("A request failed unexpectedly", exc_info=error)
        retry_after = error.retry_after if isinstance(error, Unavailable) else None
        server.lane.backoff.failed(time.monotonic(), retry_after)
        server.given_up = self._closing
        self._failed(server, str(error) or type(error).__name__)
        # One failure is nothing to talk about: a restart, a burst.
        if server.lane.backoff.failures == 2:
            _logger.info("Turns wait on disk: %s", error)
            self._say(f"Hindsight cannot be reached; turns wait on disk ({error})")

    def _say(self, text: str) -> None:
        self._troubled = True
        self._tell(text)

    # --- sending ----------------------------------------------------------

    def _send(self, server: _Server, box: Box, batch: Batch) -> None:
        bank = box.destination(batch.destination).bank
        items = box.outbox.items(batch)

        def retain(client: HindsightClient) -> Awaitable[Any]:
            return client.retain(bank, items, asynchronous=True, operation_id=batch.operation_id)

        box.sending[batch.destination] = box.sending.get(batch.destination, 0) + 1
        self._ask(server, box, retain, self._sent, batch, len(items))

    def _sent(
        self, server: _Server, box: Box, future: Future[Any], batch: Batch, items: int
    ) -> None:
        box.sending[batch.destination] -= 1
        again = box.resend.setdefault(batch.destination, deque())
        try:
            answer = future.result()
        except CancelledError:
            again.appendleft(batch)
        except Rejected as error:
            if error.status in (404, 405):
                # Not the documents are wrong but the URL; the error names it.
                again.appendleft(batch)
                self._trouble(server, error)
            elif items > 1:
                again.extendleft(
                    reversed(box.outbox.split(batch, (str(uuid.uuid4()), str(uuid.uuid4()))))
                )
            else:
                self._bury(box, batch, "rejected", str(error))
        except Exception as error:
            again.appendleft(batch)
            self._trouble(server, error)
        else:
            operations = answer.get("operation_ids") or [batch.operation_id]
            batch.operation = str(answer.get("operation_id") or operations[0])
            batch.accepted = True
            self._note(box, batch)
            box.poll(batch, time.monotonic() + next_poll(0), 0)
            self._succeeded(server)
            self._moved_on(box, batch, self.waiting, "accepted")

    def _note(self, box: Box, batch: Batch, error: str = "") -> None:
        try:
            box.outbox.note(batch, error)
        except OutboxCorrupt:
            raise
        except OutboxUnavailable as failure:
            # What the server has, it has: sent again at the next start, the
            # same bytes under the same id change nothing.
            _logger.debug("Not written down: %s", failure)

    def _succeeded(self, server: _Server) -> None:
        server.lane.backoff.succeeded()
        server.lane.paused = False
        self._stalled = False
        with self.progress:
            self._moved = time.monotonic()
            self.counters.last_success = time.time()

    def _moved_on(self, box: Box, batch: Batch, left: dict[Source, int], counter: str) -> None:
        """Count the turns of a batch out of ``left``."""
        moved = box.outbox.turns_of(batch)
        with self.progress:
            for number, turns in moved:
                if counter:
                    setattr(self.counters, counter, getattr(self.counters, counter) + turns)
                if not box.adopted:
                    self._subtract(left, box.source(number), turns)
            self.progress.notify_all()
            over = self._troubled and not self.waiting
        if over:
            self._troubled = False
            self._tell("All turns that waited have arrived at Hindsight")

    @staticmethod
    def _subtract(left: dict[Source, int], source: Source, turns: int) -> None:
        count = left.get(source, 0) - turns
        if count:
            left[source] = count
        else:
            left.pop(source, None)

    def _bury(self, box: Box, batch: Batch, reason: str, detail: str) -> None:
        """The server will never take it: keep it as dead letters, loudly."""
        moved = box.outbox.turns_of(batch)
        box.outbox.bury(batch, reason, detail)
        total = sum(turns for _, turns in moved)
        with self.progress:
            self.counters.dead += total
            reasons = self.counters.dead_by_reason
            reasons[reason] = reasons.get(reason, 0) + total
            self.counters.last_error = detail
            for number, turns in moved if not box.adopted else ():
                if not batch.accepted:
                    self._subtract(self.waiting, box.source(number), turns)
                self._subtract(self.unfinished, box.source(number), turns)
            self.progress.notify_all()
        text = f"{total} turn(s) are kept as dead letters, {reason}: {detail}"
        _logger.error("%s. See 'hindsight-exec dead list'.", text)
        self._tell(text)

    # --- after acceptance -------------------------------------------------

    def _poll(
        self, box: Box, number: int, heap: list[tuple[float, int, int, Batch]], now: float
    ) -> list[float]:
        """Ask whether accepted operations are done, as far as it is time."""
        if not heap:
            return []
        destination = box.destination(number)
        server = self._server(destination)
        if self._poll_now:
            heap[:] = [(now, order, polls, batch) for _, order, polls, batch in heap]
            heap.sort()
        while heap and heap[0][0] <= now:
            if not self._may_send(server, now):
                return self._open_at(server, now, closing=False)
            _, _, polls, batch = heapq.heappop(heap)
            where = (destination.bank, batch.operation or batch.operation_id)
            if polls < 0:
                self._ask(server, box, _method("retry_operation", *where), self._retried, batch)
            else:
                self._ask(server, box, _method("operation", *where), self._polled, batch, polls)
        return [heap[0][0]] if heap else []

    def _again(self, box: Box, batch: Batch, polls: int) -> None:
        wait = _WATCHED_POLL if self.watchers else next_poll(polls)
        box.poll(batch, time.monotonic() + wait, polls)

    def _polled(
        self, server: _Server, box: Box, future: Future[Any], batch: Batch, polls: int
    ) -> None:
        try:
            answer = future.result()
            status = answer.get("status")
            server.lane.backoff.succeeded()
        except CancelledError:
            box.poll(batch, time.monotonic(), polls)
            return
        except Rejected:
            status = "not_found"  # an old server without this endpoint
        except Exception as error:
            self._trouble(server, error)
            box.poll(batch, time.monotonic(), polls)
            return
        if status == "completed":
            self._complete(box, batch)
        elif status in ("failed", "cancelled"):
            self._operation_failed(box, batch, str(answer.get("error_message") or status))
        elif status == "not_found" and polls > 0:
            bank = box.destination(batch.destination).bank
            ids = box.outbox.document_ids(batch)
            self._ask(
                server, box, lambda client: _stored(client, bank, ids), self._looked_up, batch, polls
            )
        else:
            self._again(box, batch, polls + 1)

    def _operation_failed(self, box: Box, batch: Batch, detail: str) -> None:
        wait = next_retry(batch.retries)
        if wait is None:
            self._bury(box, batch, "failed", detail)
            return
        batch.retries += 1
        self._note(box, batch, detail)
        with self.progress:
            self.counters.last_error = detail
        box.poll(batch, time.monotonic() + wait, -1)

    def _retried(self, server: _Server, box: Box, future: Future[Any], batch: Batch) -> None:
        try:
            future.result()
        except CancelledError:
            box.poll(batch, time.monotonic(), -1)
            return
        except Rejected:
            pass  # 409: it is running already; else the next poll tells
        except Exception as error:
            self._trouble(server, error)
            box.poll(batch, time.monotonic(), -1)
            return
        self._again(box, batch, 0)

    def _looked_up(
        self, server: _Server, box: Box, future: Future[Any], batch: Batch, polls: int
    ) -> None:
        try:
            stored = future.result()
        except CancelledError:
            box.poll(batch, time.monotonic(), polls)
            return
        except Exception as error:
            self._trouble(server, error)
            box.poll(batch, time.monotonic(), polls)
            return
        if stored:
            self._complete(box, batch)
            return
        # Sent again under its own id: harmless, whatever became of the first.
        # Wait as after a failure, lest a server that forgets is asked for ever.
        batch.accepted = False
        self._note(box, batch, "the server does not know the operation")
        if not box.adopted:
            with self.progress:
                for number, turns in box.outbox.turns_of(batch):
                    source = box.source(number)
                    self.waiting[source] = self.waiting.get(source, 0) + turns
        box.resend.setdefault(batch.destination, deque()).append(batch)
        server.lane.backoff.failed(time.monotonic())

    def _complete(self, box: Box, batch: Batch) -> None:
        self._moved_on(box, batch, self.unfinished, "completed")
        try:
            box.outbox.complete(batch)
        except OutboxCorrupt:
            raise
        except OutboxUnavailable as failure:
            _logger.debug("Not erased yet: %s", failure)  # the next start asks again

    # --- boxes ------------------------------------------------------------

    def _adopt_more(self, now: float) -> None:
        self._adopt_at = now + 60.0
        adopted = [box for box in self.boxes if box.adopted]
        going = sum(not self._stuck(box) for box in adopted)
        room = min(_ADOPTED - going, _ADOPTED_STUCK - len(adopted))
        if room > 0:
            boxes = self._adopt(room)
            with self.progress:
                self.boxes += boxes

    def _stuck(self, box: Box) -> bool:
        """Whether all that the box has to send waits for servers in trouble."""
        servers = [self._server(box.destination(number)) for number in box.to_send()]
        return bool(servers) and all(
            server.lane.paused or server.lane.backoff.failures for server in servers
        )

    def _finish(self, box: Box) -> None:
        if not (box.adopted or box.broken):
            box.outbox.vacuum()
            return
        with self.progress:
            self.boxes.remove(box)
        self._retire(box)

    def _look_for_stall(self, now: float) -> None:
        with self.progress:
            waiting = sum(self.waiting.values())
        if waiting and not self._stalled and now - self._moved >= self._stall_after:
            self._stalled = True
            _logger.warning(
                "Nothing was delivered for %d s while %d turns wait; last error: %s",
                now - self._moved,
                waiting,
                self.counters.last_error or "none",
            )

    def count(self) -> Counters:
        """The counters as they stand."""
        with self.progress:
            waiting = sum(self.waiting.values())
            return replace(
                self.counters, waiting=waiting, dead_by_reason=dict(self.counters.dead_by_reason)
            )


def _method(name: str, *values: str) -> Callable[[HindsightClient], Awaitable[Any]]:
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
