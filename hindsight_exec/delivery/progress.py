"""Counts what became of this process's turns, and wakes the threads that wait for them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Callable, Iterable, Optional

from hindsight_exec.executor.waiting import acquire, now

if TYPE_CHECKING:
    from hindsight_exec.conversation.turns import Source

    TurnsBySource = list[tuple[Source, int]]


@dataclass
class Counters:
    """What became of the turns given in this process, in turns.

    Attributes:
        given: Taken from callers.
        accepted: Accepted by the server, adopted turns included.
        completed: Processed by the server, adopted turns included.
        waiting: Given and not accepted yet.
        dead: Refused for good and kept as dead letters, adopted turns included.
        own_completed, own_dead: As completed and dead, of the given turns only.
        refused: Not taken, because the outbox was full.
        oldest_age: Seconds since the oldest waiting turn was given.
        last_success: POSIX time in seconds.
        last_error: The text of the last error.
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


class Progress:
    """Counts turns by source, and wakes waiting threads when one advances or a server fails.

    Guarantees:
        ``lock`` is the engine's only lock: it guards everything here, the hints
        of each backlog, and what else the classes of the engine say. Nobody
        holds it during a request, a callback or a big transaction. It is
        re-entrant, as a finalizer may come in anywhere.
        Threads that wait hold no lock, and what wakes each is a lock of its own:
        a Ctrl-C cannot leave one in a wrong state.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.counters = Counters()
        self.waiting: dict[Source, int] = {}  # turns not accepted
        self.unfinished: dict[Source, int] = {}  # turns not completed
        # Failed requests by URL and credential, for the threads that wait.
        self.failures: dict[tuple[str, str], int] = {}
        self.watchers = 0  # threads that wait for completion
        self.advanced_at = now()  # when a turn advanced or began to wait
        self.changes = 0
        self._waiters: deque[threading.Lock] = deque()
        self._processed: deque[tuple[float, str]] = deque(maxlen=4096)

    def notify_all(self) -> None:
        """Wake the waiting threads. Called with the lock held, after the change."""
        self.changes += 1
        for _ in range(len(self._waiters)):
            with contextlib.suppress(IndexError):  # one has just given up
                self._waiters.popleft().release()

    def wait_for(self, condition: Callable[[], bool], timeout: Optional[float]) -> bool:
        """Wait until the condition is true; return it. Called without the lock."""
        deadline = None if timeout is None else now() + timeout
        while True:
            woken = threading.Lock()
            woken.acquire()
            # Before the look: a change that comes after it finds us here.
            self._waiters.append(woken)
            try:
                left = None if deadline is None else max(0.0, deadline - now())
                if condition() or left == 0:
                    return condition()
                acquire(woken, left)
            finally:
                # It is gone if it was woken; without the GIL, others may come and go.
                with contextlib.suppress(ValueError, IndexError, RuntimeError):
                    self._waiters.remove(woken)

    def wait_for_change(self, timeout: float) -> None:
        """Wait for the next change, so many seconds at most."""
        changes = self.changes
        self.wait_for(lambda: self.changes != changes, timeout)

    def processed_within(self, seconds: float) -> set[str]:
        """Ids of documents that the server has processed in so many seconds."""
        since = now() - seconds
        with self.lock:
            return {name for at, name in self._processed if at >= since}

    def given(self, source: Source, turns: int = 1) -> None:
        """Count turns that the outbox has taken. Called with the lock held."""
        if not self.waiting:
            self.advanced_at = now()
        self.counters.given += turns
        self.waiting[source] = self.waiting.get(source, 0) + turns
        self.unfinished[source] = self.unfinished.get(source, 0) + turns

    def accepted(self, turns: TurnsBySource, *, own: bool) -> None:
        """Count turns that the server has; ``own`` if this process was given them."""
        with self.lock:
            self.counters.accepted += _total(turns)
            self.counters.last_success = time.time()
            self.advanced_at = now()
            if own:
                _subtract(self.waiting, turns)
            self.notify_all()

    def completed(
        self, turns: TurnsBySource, *, own: bool, document_ids: Iterable[str] = ()
    ) -> None:
        """Count turns that the server has processed, and note their documents for a while."""
        with self.lock:
            self._processed.extend((now(), name) for name in document_ids)
            self.counters.completed += _total(turns)
            if own:
                self.counters.own_completed += _total(turns)
                _subtract(self.unfinished, turns)
                # After an error of the disk, it may not have been told that they were accepted.
                for source, _ in turns:
                    excess = self.waiting.get(source, 0) - self.unfinished.get(source, 0)
                    if excess > 0:
                        _subtract(self.waiting, [(source, excess)])
            self.notify_all()

    def counts(self) -> list[dict[Source, int]]:
        """Return copies of the numbers of turns not accepted and not completed, for :meth:`limit`."""
        with self.lock:
            return [self.waiting.copy(), self.unfinished.copy()]

    def limit(
        self, before: list[dict[Source, int]], unfinished: Iterable[tuple[Source, int, int]]
    ) -> None:
        """Take off what the rows do not have: (source, not accepted, not completed).

        For a change that was made on disk and not here. ``before`` are the counts
        from before the rows were read, as turns may have been given since then.
        Called on the worker; nobody else takes turns off.
        """
        rows: dict[Source, tuple[int, int]] = {}
        for source, waiting, turns in unfinished:
            known = rows.get(source, (0, 0))
            rows[source] = (known[0] + waiting, known[1] + turns)
        with self.lock:
            for place, counts in enumerate((self.waiting, self.unfinished)):
                for source, count in before[place].items():
                    excess = count - rows.get(source, (0, 0))[place]
                    if excess > 0:
                        _subtract(counts, [(source, excess)])
            self.notify_all()

    def forgotten(self, turns: TurnsBySource) -> None:
        """Count accepted turns as waiting again: the server does not have them after all."""
        with self.lock:
            for source, count in turns:
                self.waiting[source] = self.waiting.get(source, 0) + count

    def dead(
        self, turns: TurnsBySource, reason: str, detail: str, *, own: bool, accepted: bool
    ) -> None:
        """Count turns that have become dead letters."""
        with self.lock:
            self.counters.dead += _total(turns)
            reasons = self.counters.dead_by_reason
            reasons[reason] = reasons.get(reason, 0) + _total(turns)
            self.counters.last_error = detail
            if own and not accepted:
                _subtract(self.waiting, turns)
            if own:
                self.counters.own_dead += _total(turns)
                _subtract(self.unfinished, turns)
            self.notify_all()

    def failed(self, server: tuple[str, str], error: str) -> None:
        """Count a failed request."""
        with self.lock:
            self.counters.last_error = error
            self.failures[server] = self.failures.get(server, 0) + 1
            self.notify_all()

    def count(self) -> Counters:
        """Return a copy of the counters."""
        with self.lock:
            return replace(
                self.counters,
                waiting=sum(self.waiting.values()),
                dead_by_reason=dict(self.counters.dead_by_reason),
            )


def counted(turns: int) -> str:
    """Return `1 turn` or `2 turns`."""
    return f"{turns} turn" if turns == 1 else f"{turns} turns"


def _total(turns: TurnsBySource) -> int:
    return sum(count for _, count in turns)


def _subtract(counts: dict[Source, int], turns: TurnsBySource) -> None:
    for source, count in turns:
        remaining = counts.get(source, 0) - count
        if remaining > 0:
            counts[source] = remaining
        else:
            counts.pop(source, None)
