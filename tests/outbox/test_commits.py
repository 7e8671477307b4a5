"""One commit serves all threads that wait for one, and harms none of them."""

from __future__ import annotations

import contextlib
import dis
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Callable, Optional

import pytest
from filling import source, turn
from hindsight.server import eventually

from hindsight_exec.conversation.turns import Turn
from hindsight_exec.errors import OutboxCorrupt, OutboxFull, OutboxUnavailable
from hindsight_exec.executor.locks import holds
from hindsight_exec.outbox import commits, sqlite
from hindsight_exec.outbox.store import Outbox


class Givers:
    """Threads that put at once: they gather while the test holds the database's lock."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.results: dict[Any, Any] = {}
        self.statements: list[str] = []
        self._threads: list[threading.Thread] = []

    def give(self, name: Any, put: Optional[Callable[[], Any]] = None) -> None:
        def run() -> None:
            try:
                self.results[name] = put() if put else self.outbox.put(source(), turn(name))
            except Exception as error:
                self.results[name] = error

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    @contextmanager
    def gathered(self, count: int, *, close: bool = False) -> Iterator[None]:
        """Start threads inside it; when it ends, as many wait and go on, perhaps in vain."""
        database = self.outbox._db
        with database.lock:
            database.user = -1  # some other thread
            yield
            eventually(lambda: len(database._waiting) == count)
            database.connection.set_trace_callback(self.statements.append)
            if close:
                database.connection.close()
            database.user = 0
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        assert not database._waiting

    @property
    def commits(self) -> int:
        return self.statements.count("COMMIT")


@pytest.fixture
def givers(outbox: Outbox) -> Givers:
    return Givers(outbox)


def numbers(outbox: Outbox) -> list[int]:
    """The numbers of the held turns, in the order of the file."""
    (held,) = outbox.held() or [None]
    return [one.index for _, one in outbox.held_turns(held.source, 10_000)] if held else []


def test_all_who_wait_share_a_commit(outbox: Outbox, givers: Givers, path: Path) -> None:
    """Three hundred threads that put at once are served by one commit."""
    with givers.gathered(300):
        for number in range(300):
            givers.give(number)
    assert givers.commits == 1
    assert {*givers.results.values()} == {1}
    assert sorted(numbers(outbox)) == [*range(300)]
    with closing(Outbox(path, readonly=True)) as other:
        assert other.bytes == outbox.bytes


def test_turns_and_documents_share_a_commit(outbox: Outbox, givers: Givers) -> None:
    """Documents that are put share it, too, and each caller gets its own numbers."""
    with givers.gathered(20):
        for number in range(10):
            of = source(f"session {number}")
            givers.give(number, lambda of=of, number=number: outbox.put(of, turn(number)))
            givers.give(
                f"document {number}",
                lambda of=of, number=number: outbox.put_document(of, f"d/{number}", b"{}", 1.0)[0],
            )
    assert givers.commits == 1
    for number in range(10):
        assert outbox.source(givers.results[number]) == source(f"session {number}")
        assert givers.results[f"document {number}"] == givers.results[number]


def test_one_who_is_alone_commits_at_once(outbox: Outbox) -> None:
    """A thread that is alone writes one statement, which commits itself."""
    outbox.put(source(), turn(1))
    statements: list[str] = []
    outbox._db.connection.set_trace_callback(statements.append)
    outbox.put(source(), turn(2))
    outbox._db.connection.set_trace_callback(None)
    assert len(statements) == 1
    assert statements[0].startswith("INSERT INTO turns")


def test_a_write_that_fails_harms_no_other(path: Path) -> None:
    """Of those who share a commit, one that is refused or wrong fails alone."""
    size = len(turn(1).payload)
    with closing(Outbox(path, max_bytes=4 * size)) as outbox:
        givers = Givers(outbox)
        wrong = Turn(float("nan"), 1, "x", ())
        with givers.gathered(7):
            for number in range(3):
                givers.give(number)
                eventually(lambda number=number: len(outbox._db._waiting) == number + 1)
            givers.give("wrong", lambda: outbox.put(source("w"), wrong))
            eventually(lambda: len(outbox._db._waiting) == 4)
            for number in range(3, 6):
                givers.give(number)
        assert isinstance(givers.results.pop("wrong"), OutboxCorrupt)
        full = [one for one in givers.results.values() if isinstance(one, OutboxFull)]
        assert (len(full), givers.commits) == (2, 1)
        assert len(numbers(outbox)) == 4
        assert outbox.bytes == 4 * size
        with pytest.raises(OutboxFull):
            outbox.put(source(), turn(7))


def test_a_full_disk_fails_all_who_wait(outbox: Outbox, givers: Givers) -> None:
    """If the commit fails, every thread is told, nothing of it is in the file, and later
    turns are taken."""
    outbox.put(source(), turn(0))
    before = outbox.bytes
    pages = outbox._db.pragma("page_count")
    outbox._db.first(f"PRAGMA max_page_count = {pages}")
    with givers.gathered(5):
        for number in range(5):
            long = turn(number + 1, "x" * 100_000)
            givers.give(number, lambda long=long: outbox.put(source("new"), long))
    assert {type(one) for one in givers.results.values()} == {OutboxUnavailable}
    assert (outbox.bytes, outbox.summary().held) == (before, 1)
    outbox._db.first("PRAGMA max_page_count = 1000000")
    outbox.put(source("new"), turn(9))
    assert outbox.summary().held == 2


def test_a_closed_file_fails_all_who_wait(outbox: Outbox, givers: Givers) -> None:
    """Threads that wait while the file is closed are told so."""
    with givers.gathered(5, close=True):
        for number in range(5):
            givers.give(number)
    assert {type(one) for one in givers.results.values()} == {ValueError}


class Interrupted(BaseException):
    pass


#: After these CPython 3.11 and later look for signals.
CHECKS = ("RESUME", "CALL", "JUMP_BACKWARD")


@contextmanager
def interrupted_at(place: int) -> Iterator[list[bool]]:
    """Raise in this thread at the n-th place in the package where CPython may deliver a signal;
    tells whether it did."""
    count = 0
    before: dict[int, str] = {}
    raised: list[bool] = []

    def is_ours(frame: Any) -> bool:
        return frame is not None and "hindsight_exec" in frame.f_code.co_filename

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal count
        # The managers of our `with` blocks, too, but no callbacks of the collector.
        manages = frame.f_code.co_filename == contextlib.__file__ and is_ours(frame.f_back)
        if raised or not (is_ours(frame) or manages):
            return None
        frame.f_trace_opcodes = True
        if event == "call":
            before[id(frame)] = "RESUME"
        if event == "opcode":
            previous = before[id(frame)]
            before[id(frame)] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if previous.startswith(CHECKS):
                count += 1
                if count > place:
                    raised.append(True)
                    raise Interrupted
        return trace

    sys._getframe().f_trace_opcodes = True  # 3.12 wants one before it starts
    sys.settrace(trace)
    try:
        yield raised
    finally:
        sys.settrace(None)


def lead_and_follow(outbox: Outbox, place: int, lead: int, others: range) -> tuple[bool, bool]:
    """Put in this thread, interrupted at a place, while others wait for it to commit for them.

    Returns whether it was interrupted, and whether its put returned.
    """
    database = outbox._db
    ready, gone = threading.Event(), threading.Event()
    followers = [
        threading.Thread(target=outbox.put, args=(source(), turn(number))) for number in others
    ]

    def hold() -> None:
        with database.access, database.step:
            ready.set()
            for count, follower in enumerate(followers, 1):
                eventually(
                    lambda n=count: len(database._waiting) >= n or gone.is_set(), pause=0.001
                )
                follower.start()
            eventually(lambda: len(database._waiting) > len(others) or gone.is_set(), pause=0.001)

    holder = threading.Thread(target=hold)
    if followers:
        holder.start()
        ready.wait()
    returned = False
    with interrupted_at(place) as raised, suppress(Interrupted):
        outbox.put(source(), turn(lead))
        returned = True
    gone.set()
    if followers:
        holder.join()
    for follower in followers:
        follower.join(30)
        assert not follower.is_alive()
    assert not holds(database.lock)
    assert database.lock.acquire(blocking=False)  # nor does another thread hold it
    database.lock.release()
    return bool(raised), returned


@pytest.mark.slow
@pytest.mark.skipif(
    sys.implementation.name != "cpython" or sys.version_info < (3, 11),
    reason="knows where CPython 3.11 and later look for signals",
)
@pytest.mark.parametrize("count", [0, 2])
def test_a_leader_that_is_interrupted(
    path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Wherever Ctrl-C hits the thread that commits, the others' turns are kept once, and they
    wait for nobody who has gone."""
    monkeypatch.setattr(commits, "_LOOK", 0.05)
    kept: set[int] = set()
    with closing(Outbox(path, synchronous="NORMAL")) as outbox:
        outbox.put(source(), turn(0))
        interrupted, place = True, 0
        while interrupted:
            lead = 1 + place * 10
            outbox.put(source(), turn(lead + 9))  # sets right what the one before left
            others = range(lead + 1, lead + 1 + count)
            interrupted, returned = lead_and_follow(outbox, place, lead, others)
            kept.update(others, [lead] if returned else [])
            place += 1
        found = numbers(outbox)
    assert place > 20
    assert len(found) == len(set(found))
    assert kept <= set(found)


def test_a_leader_whose_commit_is_in_doubt(outbox: Outbox, givers: Givers) -> None:
    """If a leader is interrupted just after its commit, the others learn from the file that
    their turns are there, and do not give them again."""
    database = outbox._db
    whole = type(database)._finish
    interrupts = iter([True])

    def finish(writes: Any) -> None:
        if next(interrupts, False):
            raise Interrupted
        whole(database, writes)

    outcome: list[str] = []

    def lead() -> None:
        try:
            outbox.put(source(), turn(0))
        except Interrupted:
            outcome.append("interrupted")

    database._finish = finish  # type: ignore[method-assign]
    leader = threading.Thread(target=lead)
    with givers.gathered(4):
        leader.start()
        eventually(lambda: database._waiting)
        for number in range(1, 4):
            givers.give(number)
    leader.join()
    assert outcome == ["interrupted"]
    assert sorted(numbers(outbox)) == [0, 1, 2, 3]
    assert [givers.results[number] for number in (1, 2, 3)] == [1, 1, 1]


@pytest.mark.parametrize("others", [0, 1])
def test_a_finalizer_between_the_lock_and_its_step(tmp_path: Path, others: int) -> None:
    """A put of one that comes in just there is committed, also beside threads that wait."""
    outbox = Outbox(tmp_path / "outbox.db")
    given: list[Any] = []
    waiting = [
        threading.Thread(target=lambda: outbox.put(source(), turn(3))) for _ in range(others)
    ]

    def trace(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code is sqlite._Step.__enter__.__code__:
            sys.settrace(None)
            outbox._db.user = -1  # as if it were of the moment before: the others queue
            for thread in waiting:
                thread.start()
            eventually(lambda: len(outbox._db._waiting) == others)
            outbox._db.user = 0
            given.append(outbox.put(source("finalizer"), turn(1)))

    def give() -> None:
        sys.settrace(trace)
        given.append(outbox.put(source(), turn(2)))

    thread = threading.Thread(target=give)
    thread.start()
    thread.join(60)
    assert len(given) == 2
    for one in waiting:
        one.join(60)
    assert outbox.summary().waiting == 2 + others
    outbox.close()
