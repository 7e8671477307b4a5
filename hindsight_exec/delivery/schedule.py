"""Decides what is due: which turns make a document, which documents a batch, and
when to ask a server again.

Pure: no threads, no disk, no HTTP, and no clock but the time that callers pass
(monotonic seconds). ``tests/delivery/test_schedule.py`` runs it against a model.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Callable, Iterable, Iterator, Optional, Sequence

if TYPE_CHECKING:
    from hindsight_exec.settings.config import Settings

#: The server extracts in chunks of so many characters, cut between messages,
#: and each chunk costs the user one LLM call (Hindsight 1.1.0, measured).
CHUNK = 3000

#: A document is closed early only if its chunks are filled this well.
_WELL_FILLED = 0.75

#: Seconds: 46 days, as long as threads can wait everywhere.
_NEVER = 4_000_000.0

#: Bounds of a batch: bytes of its items, and their number.
BATCH_BYTES = 1_000_000
BATCH_ITEMS = 100


@dataclass(frozen=True)
class Hold:
    """How long turns are held for a document.

    Attributes:
        chars: Characters (of the messages' JSON) that make a document; 0 sends
            each turn at once.
        turns: Above 1: so many turns make a document, whatever their length.
        idle: Seconds without a new turn after which the hold ends; 0 at once.
    """

    chars: int = 3000
    turns: int = 1
    idle: float = 60.0

    @classmethod
    def of(cls, settings: Settings) -> Hold:
        """Return the hold that the settings ask for."""
        if settings.retain_every_n_turns > 1:
            return cls(chars=0, turns=settings.retain_every_n_turns, idle=_NEVER)
        return cls(chars=settings.retain_document_chars, idle=settings.retain_idle_seconds)

    @property
    def at_once(self) -> bool:
        return self.turns <= 1 and (self.chars <= 0 or self.idle <= 0)


class _Chunks:
    """Counts the chunks into which the server cuts a sequence of messages."""

    def __init__(self) -> None:
        self.count = 0
        self.chars = 0
        self._room = 0

    def add(self, sizes: Iterable[int]) -> None:
        for size in sizes:
            self.chars += size
            if size > self._room:
                # The server cuts a message that is longer than a chunk by itself.
                self.count += max(1, -(-size // CHUNK))
                self._room = CHUNK - size if size < CHUNK else 0
            else:
                self._room -= size

    @property
    def fill(self) -> float:
        return self.chars / (CHUNK * self.count) if self.count else 0.0


def chunks(turns: Iterable[Sequence[int]]) -> int:
    """Return the chunks of a document of turns with messages of these sizes."""
    counted = _Chunks()
    for sizes in turns:
        counted.add(sizes)
    return counted.count


def first_document(turns: Sequence[Sequence[int]], hold: Hold, *, ended: bool) -> int:
    """Return how many of the held turns, from the oldest, make the next document.

    Each chunk costs an LLM call, so the cut matters. Of the cuts that reach
    ``hold.chars``, and the one right before, this chooses the one that fills its
    chunks best. With turns of two messages, 680 and 980 characters, that is
    three turns (two chunks) and never two (two chunks as well).

    Args:
        turns: The message sizes of each held turn, oldest first.
        hold: How long the turns are held.
        ended: The hold has ended: all turns are due.

    Returns:
        The number of turns; 0 if they stay held.
    """
    if turns and hold.at_once:
        return 1
    if hold.turns > 1:  # the user chose the size
        if len(turns) >= hold.turns:
            return hold.turns
        return len(turns) if ended else 0
    limit = 3 * max(hold.chars, CHUNK)
    chunked = _Chunks()
    best, best_fill, before = 0, 0.0, 0.0
    for count, sizes in enumerate(turns, 1):
        chunked.add(sizes)
        if best and chunked.chars > limit:
            break
        if chunked.chars >= hold.chars:
            if not best and count > 1:
                best, best_fill = count - 1, before
            if chunked.fill >= best_fill:
                best, best_fill = count, chunked.fill
        before = chunked.fill
    if not best:
        return len(turns) if ended else 0
    # Whoever sets documents smaller than a chunk does not want chunks filled.
    if ended or best_fill >= _WELL_FILLED or chunked.chars >= limit or hold.chars < CHUNK:
        return best
    return 0


def documents(turns: Sequence[Sequence[int]], hold: Hold) -> Iterator[int]:
    """Yield the number of turns of each document of a conversation that is over."""
    start = 0
    while start < len(turns):
        count = first_document(turns[start:], hold, ended=True)
        start += count
        yield count


def first_batch(sizes: Sequence[int]) -> int:
    """Return how many of the documents of these sizes (bytes) go into one request."""
    total = 0
    for count, size in enumerate(sizes):
        total += size
        if count and (total > BATCH_BYTES or count == BATCH_ITEMS):
            return count
    return len(sizes)


@dataclass
class Backoff:
    """When to retry after failures: doubling, with full jitter.

    ``base`` and ``cap`` are seconds. Full jitter (a uniform draw between 0 and
    the bound) keeps many clients from coming back at once.
    """

    base: float = 0.5
    cap: float = 60.0
    uniform: Callable[[float, float], float] = random.uniform
    failures: int = 0
    not_before: float = 0.0

    def failed(self, now: float, retry_after: Optional[float] = None) -> None:
        """Note a failure; ``retry_after`` of the server is the minimum wait."""
        bound = min(self.cap, self.base * 2 ** min(self.failures, 32))
        self.failures += 1
        self.not_before = now + max(self.uniform(0, bound), retry_after or 0.0)

    def succeeded(self) -> None:
        self.failures = 0
        self.not_before = 0.0

    def hurry(self) -> None:
        """Retry at once, because a thread waits; the count of failures stays."""
        self.not_before = 0.0


@dataclass
class Lane:
    """The requests in flight to a server, and its backoff.

    Attributes:
        width: Concurrent requests; a server in trouble gets one.
        paused: The server refused the key; nothing is sent until ``not_before``
            or until the key changes.
    """

    width: int = 4
    backoff: Backoff = field(default_factory=Backoff)
    in_flight: set[object] = field(default_factory=set)
    paused: bool = False

    def open_at(self, now: float) -> Optional[float]:
        """Return when the next request may start; None while the lane is full."""
        width = 1 if self.backoff.failures else self.width
        if len(self.in_flight) >= width:
            return None
        return max(now, self.backoff.not_before)

    def may_send(self, now: float) -> bool:
        start = self.open_at(now)
        return start is not None and start <= now


#: Seconds between the polls of an accepted operation.
_POLLS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
#: Seconds before the retries of a failed operation. The server itself tried four
#: times within some 210 s before it reported "failed" (1.1.0).
_RETRIES = (0.0, 30.0, 120.0, 300.0, 600.0)
LONGEST_RETRY = max(_RETRIES)


def next_poll(polls: int) -> float:
    """Return the seconds to wait before the next poll, after so many."""
    return _POLLS[min(polls, len(_POLLS) - 1)]


def next_retry(retries: int) -> Optional[float]:
    """Return the seconds to wait before the next retry, after so many; None to give up."""
    return _RETRIES[retries] if retries < len(_RETRIES) else None
