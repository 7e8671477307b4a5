"""How far the turns of this process are: counted, and told to those who wait."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    from hindsight_exec.conversation.turns import Source

    Share = list[tuple[Source, int]]  # turns of each source


@dataclass
class Counters:
    """What became of the turns given in this process, in turns.

    Attributes:
        given: Taken from callers.
        accepted: Of those and of adopted ones, the server has so many.
        completed: It has also processed so many.
        waiting: Given and not accepted yet.
        dead: Refused for good; they are kept as dead letters.
        own_completed, own_dead: As completed and dead, of the given ones alone.
        refused: Not taken, as the outbox was full.
        oldest_age: Seconds since the oldest waiting turn was given.
        last_success: POSIX time in seconds.
        last_error: What went wrong last, in words.
    """

    given: int = 0
    accepted: int = 0
    completed: int = 0
    waiting: int = 0
    dead: int = 0
    dead_by_reason: dict[str, int] = field(default_factory=dict)
    own_completed: int = 0
    own_dead: int = 0
    refused: int = 0
    oldest_age: float = 0.0
    last_success: Optional[float] = None
    last_error: str = ""


class Progress(threading.Condition):
    """Counts turns by source, and is notified whenever one got on or a server failed.

    Its lock guards all that is in it, and the hints of each backlog; it is never
    held while a request, a callback or a big transaction runs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counters = Counters()
        self.waiting: dict[Source, int] = {}  # turns not accepted
        self.unfinished: dict[Source, int] = {}  # turns not completed
        # Failed requests by URL and credential, for those who wait.
        self.failures: dict[tuple[str, str], int] = {}
        self.moved = time.monotonic()  # when something got on, or began to wait

    def given(self, source: Source, turns: int = 1) -> None:
        """Turns were kept. Called with the lock held."""
        if not self.waiting:
            self.moved = time.monotonic()
        self.counters.given += turns
        self.waiting[source] = self.waiting.get(source, 0) + turns
        self.unfinished[source] = self.unfinished.get(source, 0) + turns

    def accepted(self, share: Share, *, own: bool) -> None:
        """The server has these turns; ``own`` if they were given in this process."""
        with self:
            self.counters.accepted += sum(turns for _, turns in share)
            self.counters.last_success = time.time()
            self.moved = time.monotonic()
            if own:
                _subtract(self.waiting, share)
            self.notify_all()

    def completed(self, share: Share, *, own: bool) -> None:
        """The server has processed them."""
        with self:
            total = sum(turns for _, turns in share)
            self.counters.completed += total
            if own:
                self.counters.own_completed += total
                _subtract(self.unfinished, share)
            self.notify_all()

    def lost(self, share: Share) -> None:
        """The server does not have them after all; they wait again."""
        with self:
            for source, turns in share:
                self.waiting[source] = self.waiting.get(source, 0) + turns

    def buried(self, share: Share, reason: str, detail: str, *, own: bool, accepted: bool) -> None:
        """They are dead letters now."""
        total = sum(turns for _, turns in share)
        with self:
            self.counters.dead += total
            reasons = self.counters.dead_by_reason
            reasons[reason] = reasons.get(reason, 0) + total
            self.counters.last_error = detail
            if own and not accepted:
                _subtract(self.waiting, share)
            if own:
                self.counters.own_dead += total
                _subtract(self.unfinished, share)
            self.notify_all()

    def failed(self, where: tuple[str, str], why: str) -> None:
        """A request failed."""
        with self:
            self.counters.last_error = why
            self.failures[where] = self.failures.get(where, 0) + 1
            self.notify_all()

    def count(self) -> Counters:
        """The counters as they stand."""
        with self:
            return replace(
                self.counters,
                waiting=sum(self.waiting.values()),
                dead_by_reason=dict(self.counters.dead_by_reason),
            )


def _subtract(left: dict[Source, int], share: Share) -> None:
    for source, turns in share:
        count = left.get(source, 0) - turns
        if count:
            left[source] = count
        else:
            left.pop(source, None)
