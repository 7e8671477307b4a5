"""What is due: documents, batches, backoff and lanes, against a model."""

from __future__ import annotations

from collections import deque
from typing import Any, Optional

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hindsight_exec.delivery.schedule import (
    BATCH_BYTES,
    BATCH_ITEMS,
    CHUNK,
    Backoff,
    Hold,
    Lane,
    chunks,
    first_batch,
    first_document,
    next_poll,
    next_retry,
)

# Machines that run this may be slow; nothing here depends on it.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

sizes = st.one_of(st.integers(1, 900), st.integers(900, 3100), st.integers(3000, 40_000))
turns = st.lists(sizes, min_size=1, max_size=4)
holds = st.builds(
    Hold,
    chars=st.one_of(st.just(0), st.integers(1, 12_000)),
    turns=st.integers(1, 6),
    idle=st.one_of(st.just(0.0), st.floats(0.1, 1000)),
)


def documents_of(held: list[list[int]], hold: Hold) -> list[list[list[int]]]:
    """Give the turns one by one, as they come; end the hold after the last."""
    waiting: list[list[int]] = []
    made = []
    for one in held:
        waiting.append(one)
        while count := first_document(waiting, hold, ended=False):
            made.append(waiting[:count])
            del waiting[:count]
    while count := first_document(waiting, hold, ended=True):
        made.append(waiting[:count])
        del waiting[:count]
    assert not waiting
    return made


def chars(held: list[list[int]]) -> int:
    return sum(map(sum, held))


def chunks_by_the_server(held: list[list[int]]) -> int:
    """Fill chunks with messages as Hindsight does; a longer message is cut by itself."""
    made: list[int] = []
    for size in (size for one in held for size in one):
        if made and made[-1] + size <= CHUNK:
            made[-1] += size
        elif size <= CHUNK:
            made.append(size)
        else:
            made += [CHUNK] * -(-size // CHUNK)  # what is left of it takes no other in
    return len(made)


# --- documents ----------------------------------------------------------------


@patient
@given(st.lists(turns, max_size=60), holds)
def test_every_turn_is_in_one_document_in_order(held: list[list[int]], hold: Hold) -> None:
    """Turns that come one by one end up in documents whole, once, and in their order."""
    made = documents_of(held, hold)
    assert [one for document in made for one in document] == held
    assert all(made)


@patient
@given(st.lists(turns, min_size=1, max_size=60), holds)
def test_no_document_is_closed_before_its_time(held: list[list[int]], hold: Hold) -> None:
    """Unless the hold ends, there are turns and characters enough, or turns go one by one."""
    count = first_document(held, hold, ended=False)
    if hold.at_once:
        assert count == 1
    elif hold.turns > 1:
        assert count in (0, hold.turns)
    elif count:
        assert chars(held) >= hold.chars


@patient
@given(st.lists(turns, min_size=1, max_size=60), holds)
def test_no_turn_waits_for_ever(held: list[list[int]], hold: Hold) -> None:
    """What is held goes when the hold ends, or when it would make three documents."""
    assert first_document(held, hold, ended=True) >= 1
    if len(held) > hold.turns and chars(held) >= 3 * max(hold.chars, CHUNK):
        assert first_document(held, hold, ended=False) >= 1


@patient
@given(st.lists(turns, min_size=1, max_size=60), holds, st.booleans())
def test_a_document_is_bounded(held: list[list[int]], hold: Hold, ended: bool) -> None:
    """But for the turn that made it long enough, it has no more than three times its size."""
    count = first_document(held, hold, ended=ended)
    if count > max(hold.turns, 1):
        assert chars(held[: count - 1]) <= 3 * max(hold.chars, CHUNK)


@patient
@given(st.lists(turns, min_size=1, max_size=20), holds)
def test_the_cut_fills_its_chunks_best(held: list[list[int]], hold: Hold) -> None:
    """Of the cuts that make a document long enough, none would fill its chunks better."""
    count = first_document(held, hold, ended=True)

    def fill(cut: int) -> float:
        return chars(held[:cut]) / (CHUNK * chunks(held[:cut]))

    long_enough = [
        cut
        for cut in range(1, len(held) + 1)
        if chars(held[:cut]) >= hold.chars and chars(held[:cut]) <= 3 * max(hold.chars, CHUNK)
    ]
    if not hold.at_once and hold.turns == 1 and long_enough:
        assert fill(count) >= max(map(fill, long_enough)) - 1e-9


def test_nothing_held_makes_no_document() -> None:
    """Without turns there is no document, ended or not."""
    assert first_document([], Hold(), ended=True) == 0
    assert first_document([], Hold(chars=0), ended=False) == 0


@patient
@given(st.lists(turns, max_size=40))
def test_chunks_are_counted_as_the_server_cuts(held: list[list[int]]) -> None:
    """Messages fill chunks of 3000 characters one after the other."""
    assert chunks(held) == chunks_by_the_server(held)


@pytest.mark.parametrize("messages,calls", [([680, 980], 67), ([160, 300], 20)])
def test_calls_for_a_hundred_turns(messages: list[int], calls: int) -> None:
    """The number of LLM calls, which is the user's cost, is what the documentation says."""
    made = documents_of([messages] * 100, Hold())
    assert sum(map(chunks, made)) <= calls


def test_long_turns_go_alone() -> None:
    """A turn that is as long as a document is one."""
    assert [len(document) for document in documents_of([[3000]] * 5, Hold())] == [1] * 5


def test_every_n_turns() -> None:
    """A document has the turns that were asked for, however long they are."""
    made = documents_of([[2000, 2000]] * 10, Hold(turns=5))
    assert [len(document) for document in made] == [5, 5]


# --- batches ------------------------------------------------------------------


@patient
@given(st.lists(st.integers(1, 3 * BATCH_BYTES), max_size=3 * BATCH_ITEMS))
def test_a_batch_is_bounded(sizes: list[int]) -> None:
    """A request takes as many documents as fit, and one even if it is too long."""
    count = first_batch(sizes)
    assert count <= BATCH_ITEMS
    assert bool(count) == bool(sizes)
    assert count <= 1 or sum(sizes[:count]) <= BATCH_BYTES
    if count < len(sizes):
        assert count == BATCH_ITEMS or sum(sizes[: count + 1]) > BATCH_BYTES


@pytest.mark.parametrize(
    "sizes,count",
    [
        ([], 0),
        ([BATCH_BYTES + 1, 1], 1),
        ([BATCH_BYTES - 1, 1, 1], 2),
        ([1] * BATCH_ITEMS, BATCH_ITEMS),
        ([1] * (BATCH_ITEMS + 1), BATCH_ITEMS),
    ],
)
def test_bounds_of_a_batch(sizes: list[int], count: int) -> None:
    """Neither the bytes nor the number of documents may be passed, by one even."""
    assert first_batch(sizes) == count


# --- backoff and lanes --------------------------------------------------------


@patient
@given(st.lists(st.one_of(st.none(), st.floats(0, 1e6)), min_size=1, max_size=80), st.data())
def test_backoff_is_within_bounds(asked: list[Optional[float]], data: Any) -> None:
    """Full jitter up to a bound that doubles to 60 s; what the server asks for is the least."""
    backoff = Backoff(uniform=lambda low, high: data.draw(st.floats(low, high)))
    for failures, retry_after in enumerate(asked):
        backoff.failed(1000.0, retry_after)
        bound = min(60.0, 0.5 * 2**failures)
        wait = backoff.not_before - 1000.0
        assert (retry_after or 0.0) - 1e-6 <= wait <= max(bound, retry_after or 0.0) + 1e-6
    assert backoff.failures == len(asked)


def test_backoff_is_drawn_at_random() -> None:
    """Clients that failed together do not come back together."""
    waits = set()
    for _ in range(20):
        backoff = Backoff(failures=10)
        backoff.failed(0.0)
        assert 0 <= backoff.not_before <= 60
        waits.add(backoff.not_before)
    assert len(waits) > 10


def test_a_success_forgets_the_failures() -> None:
    """After a success the first bound counts again, and nothing has to be waited for."""
    backoff = Backoff(uniform=lambda low, high: high)
    for _ in range(100):
        backoff.failed(0.0)
    assert backoff.not_before == 60.0
    backoff.succeeded()
    assert (backoff.failures, backoff.not_before) == (0, 0.0)
    backoff.failed(0.0)
    assert backoff.not_before == 0.5


def test_hurry_tries_once_more() -> None:
    """Somebody who waits gets a try at once, and the bound goes on growing after it."""
    backoff = Backoff(uniform=lambda low, high: high)
    backoff.failed(0.0)
    backoff.hurry()
    assert Lane(backoff=backoff).may_send(0.0)
    backoff.failed(0.0)
    assert backoff.not_before == 1.0


@patient
@given(st.integers(1, 8), st.integers(0, 10), st.integers(0, 3), st.floats(0, 100))
def test_a_lane_has_a_width(width: int, in_flight: int, failures: int, now: float) -> None:
    """So many requests at once; one while the server is in trouble, and when it is time."""
    lane = Lane(width=width, in_flight=set(range(in_flight)))
    lane.backoff.failures = failures
    lane.backoff.not_before = 50.0 if failures else 0.0
    allowed = 1 if failures else width
    assert lane.may_send(now) == (in_flight < allowed and now >= lane.backoff.not_before)
    if in_flight >= allowed:
        assert lane.open_at(now) is None
    else:
        assert lane.open_at(now) == max(now, lane.backoff.not_before)


def test_polls_grow_rare_and_retries_end() -> None:
    """An operation is asked about every minute in the end; a failed one is retried five times."""
    waits = [next_poll(polls) for polls in range(100)]
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (1.0, 60.0)
    assert [next_retry(retries) is None for retries in range(7)] == [False] * 5 + [True] * 2


# --- all of it, against a model -----------------------------------------------


class Sending(RuleBasedStateMachine):
    """Turns come, servers answer or fail, processes start again, the clock goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.hold = Hold(chars=3000, turns=2, idle=60.0)
        self.given = 0
        self.held: deque[tuple[int, list[int]]] = deque()
        self.last = 0.0
        self.closed: list[list[int]] = []  # documents, as numbers of turns
        self.waiting: deque[list[int]] = deque()
        self.flying: list[list[list[int]]] = []
        self.stored: list[int] = []
        self.lane = Lane()

    @rule(sizes=turns)
    def put(self, sizes: list[int]) -> None:
        self.held.append((self.given, sizes))
        self.given += 1
        self.last = self.now
        self.close(ended=False)

    def close(self, *, ended: bool) -> None:
        while count := first_document([sizes for _, sizes in self.held], self.hold, ended=ended):
            document = [self.held.popleft()[0] for _ in range(count)]
            self.closed.append(document)
            self.waiting.append(document)

    @rule(seconds=st.floats(0, 100))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        if self.now >= self.last + self.hold.idle:
            self.close(ended=True)
            assert not self.held

    @precondition(lambda self: self.waiting)
    @rule(size=st.integers(1, 400_000))
    def send(self, size: int) -> None:
        if self.lane.may_send(self.now):
            assert self.now >= self.lane.backoff.not_before
            count = first_batch([size] * len(self.waiting))
            self.flying.append([self.waiting.popleft() for _ in range(count)])
            self.lane.in_flight.add(id(self.flying[-1]))
        else:
            opens = self.lane.open_at(self.now)
            assert self.flying if opens is None else opens > self.now

    @precondition(lambda self: self.flying)
    @rule()
    def answer(self) -> None:
        self.lane.in_flight.discard(id(self.flying[0]))
        self.lane.backoff.succeeded()
        self.stored += [one for document in self.flying.pop(0) for one in document]

    @precondition(lambda self: self.flying)
    @rule(retry_after=st.one_of(st.none(), st.floats(0, 100)))
    def fail(self, retry_after: Optional[float]) -> None:
        self.lane.in_flight.discard(id(self.flying[0]))
        self.lane.backoff.failed(self.now, retry_after)
        self.waiting.extendleft(reversed(self.flying.pop(0)))

    @rule()
    def start_again(self) -> None:
        """What was under way waits again; what was held goes."""
        while self.flying:
            self.waiting.extendleft(reversed(self.flying.pop()))
        self.lane = Lane()
        self.close(ended=True)

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        assert [one for document in self.closed for one in document] + [
            number for number, _ in self.held
        ] == list(range(self.given))
        flying = [document for batch in self.flying for document in batch]
        kept = [one for document in [*flying, *self.waiting] for one in document]
        assert sorted(self.stored + kept) == [one for document in self.closed for one in document]

    @invariant()
    def the_lane_is_bounded(self) -> None:
        assert len(self.lane.in_flight) == len(self.flying) <= self.lane.width

    def teardown(self) -> None:
        """A server that answers gets all of it, in the end."""
        self.start_again()
        while self.waiting:
            self.send(1000)
            if self.flying:
                self.answer()
        assert sorted(self.stored) == list(range(self.given))


TestSending = Sending.TestCase
TestSending.settings = patient
