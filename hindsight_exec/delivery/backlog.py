"""An outbox that is being delivered: what is known of it in memory."""

from __future__ import annotations

import heapq
import itertools
import time
import uuid
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, Optional

from hindsight_exec.conversation.turns import document_id, document_item
from hindsight_exec.errors import OutboxUnavailable
from hindsight_exec.outbox.store import MAX_SOURCES

from .schedule import BATCH_ITEMS, Hold, first_batch, first_document

if TYPE_CHECKING:
    from hindsight_exec.conversation.turns import Destination, Source
    from hindsight_exec.outbox.schema import Batch
    from hindsight_exec.outbox.store import Outbox

    from .progress import Progress

#: Held turns read at once. A transaction of 100 000 rows would make a
#: concurrent put wait for 0.65 s.
_ROWS = 500

#: Failed sends after which a batch lets others go first: it may be the batch
#: that a server cannot take, and not the server that is away.
_STUBBORN = 3


@dataclass
class Holding:
    """A source's held turns: a hint when to look, while the rows are what counts.

    ``last`` is when the last one was given (monotonic seconds).
    """

    hold: Hold
    last: float
    turns: int = 0
    chars: int = 0
    looked: int = 0  # so many turns were there when no document could be made
    ended: bool = False
    told: bool = False  # the worker knows that it is due

    def due_at(self) -> float:
        """When to look for a document; 0.0 for now."""
        if self.ended or (
            self.chars >= self.hold.chars
            and self.turns >= self.hold.turns
            and self.turns > self.looked
        ):
            return 0.0
        return self.last + self.hold.idle


class Backlog:
    """An outbox, and what is to be done with it.

    ``holding`` and ``ready`` are hints that callers give, under the lock of
    ``progress``; all else belongs to the worker.

    Args:
        outbox: The open outbox.
        progress: Whose lock guards the hints.
        adopted: A dead process left it: everything held in it goes now.
    """

    _order = itertools.count()  # entries of one time keep their order

    def __init__(self, outbox: Outbox, progress: Progress, *, adopted: bool = False) -> None:
        self.outbox = outbox
        self.progress = progress
        self.adopted = adopted
        self.broken = False
        self.busy = 0  # requests under way
        self.sending: dict[Destination, int] = {}  # retains under way
        self.holding: dict[int, Holding] = {}  # by source
        self.ready: set[int] = set()  # destinations that may have documents
        self.resend: dict[int, deque[Batch]] = {}  # by destination
        # For each destination a heap of when, order, how often, what to ask.
        self.polls: dict[int, list[tuple[float, int, int, Batch]]] = {}
        self._destinations: dict[int, Destination] = {}
        self._sources: dict[int, Source] = {}
        if adopted:
            self.take_all()
            self._destinations.update(outbox.destinations())
            now = time.monotonic()
            for batch in outbox.batches():
                if batch.accepted:
                    self.poll(batch, now, 0)
                else:
                    self.send_again(batch)

    def take_all(self) -> None:
        """Whatever is in the outbox is due now."""
        now = time.monotonic()
        with self.progress:
            for held in self.outbox.held():
                self.holding[held.source] = Holding(
                    Hold(), now, turns=held.turns, chars=held.chars, ended=True
                )
            self.ready.update(self.outbox.destinations())

    def hold(self, number: int, chars: int, hold: Hold) -> bool:
        """A turn was kept; whether the worker must look. Called with the lock held."""
        now = time.monotonic()
        held = self.holding.get(number)
        if held is None:
            held = self.holding[number] = Holding(hold, now)
        news = not held.turns
        held.turns += 1
        held.chars += chars
        held.last = now
        if not held.told and held.due_at() <= now:
            held.told = news = True
        return news

    def destination(self, number: int) -> Destination:
        if number not in self._destinations:
            self._destinations.update(self.outbox.destinations())
        return self._destinations[number]

    def destinations(self) -> list[Destination]:
        """All that are known; those of an adopted backlog are."""
        return list(self._destinations.values())

    def source(self, number: int) -> Source:
        if number not in self._sources:
            if len(self._sources) >= MAX_SOURCES:  # a gateway's life is long
                self._sources.clear()
            self._sources[number] = self.outbox.source(number)
        return self._sources[number]

    def share(self, batch: Batch) -> list[tuple[Source, int]]:
        """How many turns of which sources a batch has."""
        return [(self.source(number), turns) for number, turns in self.outbox.turns_of(batch)]

    def close_documents(
        self, now: float, *, everything: bool, wanted: Callable[[Source, int], Optional[bool]]
    ) -> list[float]:
        """Make documents of held turns as far as they are due; when others will be.

        Args:
            now: Monotonic seconds.
            everything: What is held is due, too.
            wanted: Whether documents of a source, with so many characters held,
                are to be made now; None if none at all are any more. The caller
                knows when to ask again.
        """
        due = []
        with self.progress:
            holding = list(self.holding.items())
        for number, held in holding:
            ended = everything or held.ended or held.last + held.hold.idle <= now
            if ended or held.due_at() <= now:
                make = wanted(self.source(number), held.chars)
                if make is None:
                    break
                if not make:
                    continue
                self._close_documents(number, held, ended=ended)
            if number in self.holding:
                due.append(held.due_at())
        return due

    def _close_documents(self, number: int, held: Holding, *, ended: bool) -> None:
        source = self.source(number)
        with self.progress:
            held.told = False  # what comes while we are at it, is told anew
            held.ended = held.ended and not ended
        while True:
            rows = self.outbox.held_turns(number, _ROWS)
            made, start = [], 0
            while start < len(rows):
                sizes = [turn.sizes for _, turn in rows[start:]]
                count = first_document(sizes, held.hold, ended=ended)
                if not count:
                    break
                members = rows[start : start + count]
                turns = [turn for _, turn in members]
                at = turns[0].given_at
                name = document_id(source.session, at, turns[0].payload)
                item = document_item(source, name, turns)
                made.append(([row for row, _ in members], name, at, item))
                start += count
            if made:
                self.ready.add(self.outbox.close_documents(number, made))
            if len(rows) < _ROWS or not made:
                break
        with self.progress:
            # Counted under the lock: a turn that was noted before is in the
            # file, one that is noted later counts on top.
            held.turns, held.chars = self.outbox.count_held(number)
            held.looked = held.turns
            if not held.turns:
                self.holding.pop(number, None)

    def to_send(self) -> list[int]:
        """Destinations that have something to be sent."""
        again = [
            (number, keeps_failing(batches[0]))
            for number, batches in self.resend.items()
            if batches
        ]
        first = [number for number, last in again if not last]
        return list(dict.fromkeys([*first, *self.ready, *(number for number, _ in again)]))

    def next_batch(self, number: int) -> Optional[Batch]:
        """The oldest batch for a destination: one to send again, or a new one."""
        again = self.resend.get(number)
        made = None
        if not again or keeps_failing(again[0]):
            made = self._make_batch(number)
        return made or (again.popleft() if again else None)

    def _make_batch(self, number: int) -> Optional[Batch]:
        if number not in self.ready:
            return None
        # Before looking: a document that comes now puts it back.
        self.ready.discard(number)
        try:
            found = self.outbox.ready(number, BATCH_ITEMS + 1)
            count = first_batch([size for _, size in found])
            full = count < len(found)
            # Less than a full batch waits for the answer to the one before: under
            # load documents then go together, and alone they go at once.
            wait = not full and self.sending.get(self.destination(number))
            if full or wait:
                self.ready.add(number)
            if wait or not count:
                return None
            documents = [document for document, _ in found[:count]]
            return self.outbox.make_batch(number, documents, str(uuid.uuid4()))
        except OutboxUnavailable:
            self.ready.add(number)
            raise

    def send_again(self, *batches: Batch) -> None:
        """Put batches of one destination back where they were: first, unless it is keeps_failing."""
        again = self.resend.setdefault(batches[0].destination, deque())
        if keeps_failing(batches[0]):
            again.extend(batches)
        else:
            again.extendleft(reversed(batches))

    def poll(self, batch: Batch, due: float, polls: int) -> None:
        """Ask what became of an accepted batch, at ``due`` (monotonic seconds)."""
        heap = self.polls.setdefault(batch.destination, [])
        heapq.heappush(heap, (due, next(self._order), polls, batch))

    def next_poll(self, number: int) -> tuple[int, Batch]:
        """Take the first of a destination's heap: how often it was asked, and for what."""
        _, _, polls, batch = heapq.heappop(self.polls[number])
        return polls, batch

    def poll_now(self) -> None:
        """Ask for all at once, whatever time was set."""
        for heap in self.polls.values():
            heap[:] = [(0.0, *rest) for _, *rest in sorted(heap)]  # type: ignore[misc]

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do, now or later."""
        return not (self.busy or self.holding or any(self.polls.values()) or self.to_send())


def keeps_failing(batch: Batch) -> bool:
    """Whether its sends failed so often that others go first."""
    return batch.failures >= _STUBBORN
