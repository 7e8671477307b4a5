"""An open outbox that is being delivered, and what the worker knows of it in memory."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import uuid
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Iterator, Optional, TypeVar

from hindsight_exec.conversation.turns import document_id, document_item
from hindsight_exec.errors import OutboxUnavailable
from hindsight_exec.executor.waiting import now
from hindsight_exec.outbox.store import MAX_SOURCES

from .schedule import BATCH_ITEMS, Hold, first_batch, first_document

if TYPE_CHECKING:
    from hindsight_exec.conversation.turns import Destination, Source
    from hindsight_exec.outbox.schema import Batch
    from hindsight_exec.outbox.store import Outbox

    from .progress import Progress

T = TypeVar("T")

#: Held turns read in one transaction. With 100 000 rows a concurrent put would
#: wait for 0.65 s.
_ROWS = 500

#: Failed sends after which a batch lets others go first: the server may be
#: fine, and this batch the one that it cannot take.
_KEEPS_FAILING = 3


@dataclass
class Holding:
    """A hint about a source's held turns; the rows on disk are the truth.

    Attributes:
        last: When the last turn was given (monotonic seconds).
        looked: So many turns were looked at, and no document could be made of them.
        ended: The turns are due, however few they are.
        noticed: The worker has been told that they are due.
    """

    hold: Hold
    last: float
    turns: int = 0
    chars: int = 0
    looked: int = 0
    ended: bool = False
    noticed: bool = False

    def due_at(self) -> float:
        """When the worker should look at the turns; 0.0 for now."""
        if self.ended or (
            self.chars >= self.hold.chars
            and self.turns >= self.hold.turns
            and self.turns > self.looked
        ):
            return 0.0
        return self.last + self.hold.idle


class Backlog:
    """An outbox, and what remains to be done with it.

    ``holding`` and ``ready`` are hints from callers, guarded by the lock of
    ``progress``; everything else belongs to the worker.

    Args:
        outbox: The open outbox.
        progress: Its lock guards the hints.
        adopted: A dead process left the outbox: all its turns are due now.
    """

    _order = itertools.count()  # keeps polls of the same time in order

    def __init__(self, outbox: Outbox, progress: Progress, *, adopted: bool = False) -> None:
        self.outbox = outbox
        self.progress = progress
        self.adopted = adopted
        self.broken = False  # its file is damaged
        self.stale = False  # something failed unexpectedly: only the rows are right
        self.in_flight: dict[Any, Batch] = {}  # by request
        self.sending: dict[Any, Destination] = {}  # those of them that are retains
        self.holding: dict[int, Holding] = {}  # by source
        self.ready: set[int] = set()  # destinations that may have documents
        self.resend: dict[int, deque[Batch]] = {}  # by destination
        # By destination: a heap of due time, order, polls so far, batch.
        self.polls: dict[int, list[tuple[float, int, int, Batch]]] = {}
        self._destinations: dict[int, Destination] = {}
        self._sources: dict[int, Source] = {}
        if adopted:
            self.reload()

    def reload(self) -> None:
        """Read from the rows what remains to be done, and make all of it due now."""
        self.take_all()
        self._destinations = self.outbox.destinations()
        self.resend.clear()
        self.polls.clear()
        in_flight = {batch.id for batch in self.in_flight.values()}
        for batch in self.outbox.batches():
            if batch.id in in_flight:
                continue
            if batch.accepted:
                self.poll(batch, now(), 0)
            else:
                self.send_again(batch)
        self.stale = False

    def take_all(self) -> None:
        """Make all held turns and all closed documents due now."""
        # Read before the lock is taken: a finalizer may wait for it inside SQLite.
        # What is put meanwhile is noted by its own thread.
        rows, destinations = self.outbox.held(), self.outbox.destinations()
        with self.progress.lock:
            for held in rows:
                self.holding[held.source] = Holding(
                    Hold(), now(), turns=held.turns, chars=held.chars, ended=True
                )
            self.ready.update(destinations)

    def hold(self, number: int, chars: int, hold: Hold) -> bool:
        """Note a held turn; return whether to wake the worker. Called with the lock held."""
        at = now()
        held = self.holding.get(number)
        if held is None:
            held = self.holding[number] = Holding(hold, at)
        should_wake = not held.turns
        held.turns += 1
        held.chars += chars
        held.last = at
        if not held.noticed and held.due_at() <= at:
            held.noticed = should_wake = True
        return should_wake

    def destination(self, number: int) -> Destination:
        if number not in self._destinations:
            self._destinations = self.outbox.destinations()
        return self._destinations[number]

    def destinations(self) -> list[Destination]:
        """Return the known destinations: all of them if the backlog is adopted."""
        return list(self._destinations.values())

    def source(self, number: int) -> Source:
        if number not in self._sources:
            if len(self._sources) >= MAX_SOURCES:  # a gateway may live for a year
                self._sources.clear()
            self._sources[number] = self.outbox.source(number)
        return self._sources[number]

    def ask(self, question: Callable[[Outbox], T]) -> Iterator[T]:
        """Yield the outbox's reply; nothing if it cannot be read or was closed meanwhile."""
        with contextlib.suppress(OutboxUnavailable, ValueError):
            yield question(self.outbox)

    def turns_of(self, batch: Batch) -> list[tuple[Source, int]]:
        """Return how many turns of which sources a batch has."""
        return [(self.source(number), turns) for number, turns in self.outbox.turns_of(batch)]

    def unfinished(self) -> list[tuple[Source, int, int]]:
        """Return each source with its number of turns not accepted and not completed."""
        rows = self.outbox.unfinished()
        return [(self.source(number), waiting, turns) for number, waiting, turns in rows]

    # --- documents --------------------------------------------------------

    def close_documents(
        self, at: float, *, everything: bool, should_close: Callable[[Source, int], Optional[bool]]
    ) -> list[float]:
        """Close the documents that are due; return when others will be.

        Args:
            at: The time now (monotonic seconds).
            everything: Held turns are due, too.
            should_close: Whether to close documents of a source with so many
                characters held now; None to stop looking at all. The caller
                knows when to ask again.
        """
        due = []
        with self.progress.lock:
            holding = list(self.holding.items())
        for number, held in holding:
            ended = everything or held.ended or held.last + held.hold.idle <= at
            if ended or held.due_at() <= at:
                close = should_close(self.source(number), held.chars)
                if close is None:
                    break
                if not close:
                    continue
                self._close_documents(number, held, ended=ended)
            if number in self.holding:
                due.append(held.due_at())
        return due

    def _close_documents(self, number: int, held: Holding, *, ended: bool) -> None:
        source = self.source(number)
        with self.progress.lock:
            held.noticed = False  # a turn that arrives from here on wakes the worker again
            held.ended = held.ended and not ended
            turns_before, chars_before = held.turns, held.chars
        limit = _ROWS
        while True:
            rows = self.outbox.held_turns(number, limit)
            documents, start = [], 0
            while start < len(rows):
                sizes = [turn.sizes for _, turn in rows[start:]]
                count = first_document(sizes, held.hold, ended=ended)
                if not count:
                    break
                members = rows[start : start + count]
                turns = [turn for _, turn in members]
                given_at = turns[0].given_at
                name = document_id(source.session, given_at, turns[0].payload)
                item = document_item(source, name, turns)
                documents.append(([row for row, _ in members], name, given_at, item))
                start += count
            if documents:
                self.ready.add(self.outbox.close_documents(number, documents))
            if len(rows) < limit:
                break
            if not documents:
                limit *= 2  # a document may be longer
        with self.progress.lock:
            # Turns that were noted meanwhile count beside those that are left. One
            # that was in the file already counts twice, until the next look. The
            # file is not asked again here: a finalizer may wait for this lock
            # inside SQLite.
            left = [turn.chars for _, turn in rows[start:]]
            held.turns += len(left) - turns_before
            held.chars += sum(left) - chars_before
            held.looked = len(left)  # others arrived since: look again
            if not held.turns:
                self.holding.pop(number, None)

    # --- batches ----------------------------------------------------------

    def to_send(self) -> tuple[list[int], list[int]]:
        """Return the destinations that have something to send, and those where it keeps failing."""
        resends = [(number, keeps_failing(batches[0])) for number, batches in self.resend.items()]
        first = dict.fromkeys(
            [*(number for number, failing in resends if not failing), *self.ready]
        )
        return list(first), [number for number, _ in resends if number not in first]

    def next_batch(self, number: int) -> Optional[Batch]:
        """Return the oldest batch for a destination: one to send again, or a new one."""
        resend = self.resend.get(number)
        batch = None
        if not resend or keeps_failing(resend[0]):
            batch = self._make_batch(number)
        if batch is None and resend:
            batch = resend.popleft()
            if not resend:
                del self.resend[number]
        return batch

    def _make_batch(self, number: int) -> Optional[Batch]:
        if number not in self.ready:
            return None
        # Before the look: a document that is closed meanwhile adds it again.
        self.ready.discard(number)
        try:
            found = self.outbox.ready(number, BATCH_ITEMS + 1)
            count = first_batch([size for _, size in found])
            full = count < len(found)
            # A batch that is not full waits for the response to the one before:
            # documents go together under load, and at once otherwise.
            wait = not full and self.destination(number) in self.sending.values()
            if full or wait:
                self.ready.add(number)
            if wait or not count:
                return None
            documents = [document for document, _ in found[:count]]
            return self.outbox.make_batch(number, documents, str(uuid.uuid4()))
        except BaseException:
            self.ready.add(number)
            raise

    def send_again(self, *batches: Batch) -> None:
        """Queue batches of one destination again: first, unless they keep failing."""
        resend = self.resend.setdefault(batches[0].destination, deque())
        if keeps_failing(batches[0]):
            resend.extend(batches)
        else:
            resend.extendleft(reversed(batches))

    def poll(self, batch: Batch, due: float, polls: int) -> None:
        """Ask for the outcome of an accepted batch at ``due`` (monotonic seconds)."""
        # Last of the destinations: one whose polls fail holds up no other.
        heap = self.polls.pop(batch.destination, [])
        heapq.heappush(heap, (due, next(self._order), polls, batch))
        self.polls[batch.destination] = heap

    def next_poll(self, number: int) -> tuple[int, Batch]:
        """Take the first of a destination's polls; return polls so far and the batch."""
        heap = self.polls[number]
        _, _, polls, batch = heapq.heappop(heap)
        if not heap:
            del self.polls[number]
        return polls, batch

    def poll_now(self) -> None:
        """Make every poll due now."""
        for heap in self.polls.values():
            heap[:] = [(0.0, *rest) for _, *rest in sorted(heap)]  # type: ignore[misc]

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do, now or later."""
        return not (self.in_flight or self.holding or self.polls or self.resend or self.ready)


def keeps_failing(batch: Batch) -> bool:
    """Whether sending it failed so often that others go first."""
    return batch.failures >= _KEEPS_FAILING
