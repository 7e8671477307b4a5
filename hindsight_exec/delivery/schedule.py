"""What is due: which held turns make a document, which documents a batch, and
when a server is asked again.

Pure: no threads, no disk, no HTTP, and no clock but the one handed in (seconds
of any monotonic clock).  ``tests/delivery/test_schedule.py`` runs it against a model.
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
    """Counts the chunks that the server makes of messages, one after the other."""

    def __init__(self) -> None:
        self.count = 0
        self.chars = 0
        self._room = 0

    def add(self, sizes: Iterable[int]) -> None:
        for size in sizes:
            self.chars += size
            if size > self._room:
                # A message longer than a chunk is cut by itself.
                self.count += max(1, -(-size // CHUNK))
                self._room = CHUNK - size if size < CHUNK else 0
            else:
                self._room -= size

    @property
    def fill(self) -> float:
        return self.chars / (CHUNK * self.count) if self.count else 0.0


def chunks(turns: Iterable[Sequence[int]]) -> int:
    """How many chunks a document of turns with messages of these sizes costs."""
    made = _Chunks()
    for sizes in turns:
        made.add(sizes)
    return made.count


def first_document(turns: Sequence[Sequence[int]], hold: Hold, *, ended: bool) -> int:
    """How many of the held turns, from the oldest, make the next document.

    Each chunk costs an LLM call, so it matters where to cut: of the cuts that
    reach ``hold.chars``, and the one right before, that which fills its chunks
    best is taken. With turns of two messages, 680 and 980 characters, that is
    three turns (two chunks) and never two (two chunks as well).

    Args:
        turns: Sizes of the messages of each held turn, oldest first.
        hold: What the turns wait for.
        ended: The hold has ended: whatever there is goes.

    Returns:
        The number of turns, 0 if they go on waiting.
    """
    if turns and hold.at_once:
        return 1
    if hold.turns > 1:  # the user chose the size
        if len(turns) >= hold.turns:
            return hold.turns
        return len(turns) if ended else 0
    limit = 3 * max(hold.chars, CHUNK)
    made = _Chunks()
    best, best_fill, before = 0, 0.0, 0.0
    for count, sizes in enumerate(turns, 1):
        made.add(sizes)
        if best and made.chars > limit:
            break
        if made.chars >= hold.chars:
            if not best and count > 1:
                best, best_fill = count - 1, before
            if made.fill >= best_fill:
                best, best_fill = count, made.fill
        before = made.fill
    if not best:
        return len(turns) if ended else 0
    # Who wants documents smaller than a chunk does not want them filled.
    if ended or best_fill >= _WELL_FILLED or made.chars >= limit or hold.chars < CHUNK:
        return best
    return 0


def documents(turns: Sequence[Sequence[int]], hold: Hold) -> Iterator[int]:
    """Numbers of turns: how a conversation that is over is cut into documents."""
    start = 0
    while start < len(turns):
        count = first_document(turns[start:], hold, ended=True)
        start += count
        yield count


def first_batch(sizes: Sequence[int]) -> int:
    """How many of the documents of these sizes (bytes) go into one request."""
    total = 0
    for count, size in enumerate(sizes):
        total += size
        if count and (total > BATCH_BYTES or count == BATCH_ITEMS):
            return count
    return len(sizes)


def _uniform(low: float, high: float) -> float:
    return random.uniform(low, high)  # noqa: S311 - jitter, not a secret


@dataclass
class Backoff:
    """When something that failed is tried again: full jitter, doubling.

    ``base`` and ``cap`` are seconds. Full jitter (a uniform draw from nothing
    to the bound) keeps many clients from coming back all at once.
    """

    base: float = 0.5
    cap: float = 60.0
    uniform: Callable[[float, float], float] = _uniform
    failures: int = 0
    not_before: float = 0.0

    def failed(self, now: float, retry_after: Optional[float] = None) -> None:
        """Note a failure; what the server asked for is the least that is waited."""
        bound = min(self.cap, self.base * 2 ** min(self.failures, 32))
        self.failures += 1
        self.not_before = now + max(self.uniform(0, bound), retry_after or 0.0)

    def succeeded(self) -> None:
        self.failures = 0
        self.not_before = 0.0

    def hurry(self) -> None:
        """Somebody waits: try once more at once, keeping count of failures."""
        self.not_before = 0.0


@dataclass
class Lane:
    """What is known of a server: how many requests it has, and its backoff.

    Attributes:
        width: Requests at once while all is well. A server in trouble gets one.
        paused: It refused the key; nothing is sent until ``not_before`` or
            another key.
    """

    width: int = 4
    backoff: Backoff = field(default_factory=Backoff)
    in_flight: set[object] = field(default_factory=set)
    paused: bool = False

    def open_at(self, now: float) -> Optional[float]:
        """When the next request may start; None while the lane is full."""
        width = 1 if self.backoff.failures else self.width
        if len(self.in_flight) >= width:
            return None
        return max(now, self.backoff.not_before)

    def may_send(self, now: float) -> bool:
        start = self.open_at(now)
        return start is not None and start <= now


#: Seconds between acceptance and the questions whether an operation is done.
_POLLS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
#: Seconds before a failed operation is told to run again. The server itself
#: tried four times, over some 210 s, before it said "failed" (1.1.0).
_RETRIES = (0.0, 30.0, 120.0, 300.0, 600.0)
LONGEST_RETRY = max(_RETRIES)


def next_poll(polls: int) -> float:
    """Seconds to wait before the next question, after so many."""
    return _POLLS[min(polls, len(_POLLS) - 1)]


def next_retry(retries: int) -> Optional[float]:
    """Seconds to wait before the next retry, after so many; None: give up."""
    return _RETRIES[retries] if retries < len(_RETRIES) else None
