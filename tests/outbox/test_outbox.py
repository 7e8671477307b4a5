"""The outbox: what it took is in the file, and comes out once, whatever happens to the process."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import stat
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from filling import AT, OPEN, batch_of, close_all, fill, source, turn

from hindsight_exec.conversation import turns
from hindsight_exec.errors import OutboxCorrupt, OutboxFull, OutboxNewer, OutboxUnavailable
from hindsight_exec.outbox import schema, spool
from hindsight_exec.outbox import store as outbox_room
from hindsight_exec.outbox.reader import BYTES
from hindsight_exec.outbox.salvage import salvage
from hindsight_exec.outbox.schema import VERSION, Summary
from hindsight_exec.outbox.store import MAX_ROW_BYTES, Outbox


def contents(outbox: Outbox) -> list[str]:
    """What every entry says, in the order of ``entries``."""
    return [
        message["content"] for entry in outbox.entries() for message in json.loads(entry["content"])
    ]


# --- a turn is on disk when it is taken ---------------------------------------


def test_put_is_committed_when_it_returns(outbox: Outbox, path: Path, run: Any) -> None:
    """Another process that opens the file sees the turn at once."""
    outbox.put(source(), turn(1))
    program = """
        import sqlite3, sys
        db = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
        print(db.execute("SELECT payload FROM turns").fetchall())
    """
    ended = run(program, str(path))
    assert (ended.status, ended.err) == (0, "")
    assert "turn 1" in ended.out


def test_two_banks_in_one_statement(outbox: Outbox) -> None:
    """A turn or a document for two banks is two rows of one statement: never one without the other."""
    both = (source(), source(bank="own"))
    outbox.put_for(both, turn(1))  # makes the sources
    statements: list[str] = []
    outbox._db.connection.set_trace_callback(statements.append)
    numbers = outbox.put_for(both, turn(2))
    known = outbox.put_document_for(both, "s/1", b'{"content": "[]"}', AT, 1)
    outbox._db.connection.set_trace_callback(None)
    assert [one.split()[:3] for one in statements] == [
        ["INSERT", "INTO", "turns"],
        ["INSERT", "INTO", "documents"],
    ]
    assert [number for number, _ in known] == numbers
    assert len(set(numbers)) == 2
    assert [(entry["bank"], entry["state"]) for entry in outbox.entries()] == [
        ("b", "queued"),
        ("own", "queued"),
        *[("b", "held"), ("own", "held")] * 2,
    ]


def test_two_banks_and_room_for_one(path: Path) -> None:
    """Where the outbox has room for one of two copies, it takes none."""
    both = (source(), source(bank="own"))
    size = len(turn(1).payload.encode())
    with closing(Outbox(path, max_bytes=size + 5)) as outbox:
        with pytest.raises(OutboxFull):
            outbox.put_for(both, turn(1))
        with pytest.raises(OutboxFull):
            outbox.put_document_for(both, "s/1", b"x" * size, AT, 1)
        assert outbox.is_empty()
        outbox.put(source(), turn(1))


def test_two_banks_when_sources_are_forgotten(outbox: Outbox, monkeypatch: Any) -> None:
    """The source of the first bank is kept while that of the second makes room for itself."""
    monkeypatch.setattr(outbox_room, "MAX_SOURCES", 2)
    for number in range(5):
        both = (source(f"s{number}"), source(f"s{number}", "own"))
        held = outbox.put_for(both, turn(number))
        assert [outbox.source(one) for one in held] == list(both)


@pytest.mark.parametrize("synchronous", ["FULL", "NORMAL"])
def test_put_survives_sigkill(path: Path, start: Any, synchronous: str) -> None:
    """A process that is killed right after put() returned loses nothing."""
    program = OPEN.replace("argv[1])", f"argv[1]), synchronous={synchronous!r}") + (
        "for number in range(20):\n"
        "    outbox.put(source(str(number % 3)), turn(number))\n"
        "outbox.put_document(source(), 's/id', b'{\"content\": \"[]\"}', 1.0)\n"
        "print('given', flush=True)\n"
        "import signal; signal.pause()\n"
    )
    child = start(program, str(path))
    child.wait_for("given")
    child.close()
    with closing(Outbox(path)) as outbox:
        summary = outbox.summary()
        assert (summary.held, summary.queued) == (20, 1)


@pytest.mark.slow
def test_interrupted_at_random(path: Path, run: Any) -> None:
    """Ctrl-C at any moment of a put leaves no transaction open that takes later turns with it."""
    program = """
        import signal, threading
        from contextlib import suppress

        class Interrupted(Exception):
            pass

        def interrupt(*_):
            global allowed
            if allowed:
                allowed = False
                raise Interrupted

        signal.signal(signal.SIGUSR1, interrupt)
        main, done = threading.main_thread().ident, threading.Event()
        allowed = False

        def disturb():
            while not done.wait(0.0003):
                if allowed:
                    signal.pthread_kill(main, signal.SIGUSR1)

        thread = threading.Thread(target=disturb, daemon=True)
        thread.start()
        kept = []
        for number in range(1500):
            with suppress(Interrupted):
                try:
                    allowed = number % 4 > 0  # on a slow disk none would be kept else
                    # One new source in three: a transaction of several statements.
                    outbox.put(source(str(number // 3)), turn(number))
                    kept.append(number)
                finally:
                    allowed = False
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        done.set()
        thread.join()
        print(" ".join(map(str, kept)))
        os._exit(0)
    """
    ended = run(OPEN + textwrap.dedent(program), str(path))
    assert (ended.status, ended.err) == (0, "")
    kept = {f"turn {number}" for number in ended.out.split()}
    assert kept
    with closing(Outbox(path)) as outbox:
        found = contents(outbox)
    assert kept <= set(found)
    assert len(found) == len(set(found))


def test_an_open_transaction_is_not_added_to(outbox: Outbox, path: Path) -> None:
    """What an interrupt left open is rolled back by the next call, which commits for itself."""
    outbox.put(source(), turn(1))
    outbox._db.execute("BEGIN IMMEDIATE")
    outbox._db.execute("DELETE FROM turns")
    outbox.put(source(), turn(2))
    outbox.close()
    with closing(Outbox(path)) as outbox:
        assert contents(outbox) == ["turn 1", "turn 2"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_leaves_the_file_alone(path: Path, run: Any) -> None:
    """A child that ends, by whatever way, takes nothing from its parent's outbox."""
    program = OPEN + (
        "outbox.put(source(), turn(1))\n"
        "for number in (2, 3, 4):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        if number == 2: os._exit(0)\n"
        "        if number == 3: sys.exit(0)\n"
        "        raise SystemExit(0)\n"
        "    os.waitpid(child, 0)\n"
        "    outbox.put(source(), turn(number))\n"
        "os._exit(0)\n"
    )
    ended = run(program, str(path))
    assert (ended.status, ended.err) == (0, "")
    with closing(Outbox(path)) as outbox:
        assert contents(outbox) == ["turn 1", "turn 2", "turn 3", "turn 4"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_one_connection(outbox: Outbox, path: Path) -> None:
    """The file is open once: closing a second descriptor would drop SQLite's locks."""
    outbox.put(source(), turn(1))
    outbox.purge()
    opened = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            opened.append(link.readlink())
    assert opened.count(path) == 1


def test_threads(outbox: Outbox) -> None:
    """Threads that put and look at once lose nothing, and each session keeps its order."""

    def give(session: int) -> None:
        for number in range(60):
            outbox.put(source(str(session)), turn(number))
            if not number % 6:
                held = outbox.summary().held
                assert number < held <= 8 * 60
                assert len(outbox.entries()) >= held

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(give, range(8)))
    assert len(outbox.held()) == 8
    for held in outbox.held():
        assert [one.index for _, one in outbox.held_turns(held.source, 100)] == list(range(60))


# --- held turns and documents -------------------------------------------------


def test_held_turns_come_back_as_they_were(outbox: Outbox) -> None:
    """Turns are held by source, the oldest first, with all that a document needs."""
    given = source(context="c", tags=["t"], metadata={"k": "v"}, observation_scopes=[["x"]])
    first, other = outbox.put(given, turn(1)), outbox.put(source("other"), turn(2))
    assert outbox.put(given, turn(3)) == first != other
    assert [(held.source, held.turns, held.last_at) for held in outbox.held()] == [
        (first, 2, AT + 3),
        (other, 1, AT + 2),
    ]
    assert [one for _, one in outbox.held_turns(first, 10)] == [turn(1), turn(3)]
    assert [one for _, one in outbox.held_turns(first, 1)] == [turn(1)]
    assert outbox.held()[0].chars == turn(1).chars + turn(3).chars
    assert outbox.source(first) == given
    assert outbox.sources() == {first: given, other: source("other")}


def test_closing_documents(outbox: Outbox) -> None:
    """Held turns become documents in one step; they are ready then, the oldest first."""
    for number in range(4):
        held = outbox.put(source(), turn(number))
    destination = close_all(outbox, held, each=2)
    assert outbox.held() == []
    assert outbox.destinations()[destination].bank == "b"
    ready = outbox.ready(destination, 10)
    assert [size for _, size in ready] == [len(item) for item in outbox.items(batch_of(outbox, 1))]
    assert outbox.summary().queued == 4


def test_documents_are_closed_all_or_none(outbox: Outbox) -> None:
    """If one of several documents cannot be written, none is, and the turns are held."""
    held = outbox.put(source(), turn(1))
    outbox.put(source(), turn(2))
    (first, _), (second, _) = outbox.held_turns(held, 10)
    with pytest.raises(OutboxUnavailable):
        outbox.close_documents(
            held,
            [([first], "s/1", AT, b"{}"), ([second], None, AT, b"{}")],  # type: ignore[list-item]
        )
    assert outbox.held()[0].turns == 2
    assert outbox.summary() == Summary(held=2, oldest_at=AT + 1, bytes=outbox.bytes)


def test_purged_turns_make_no_document(outbox: Outbox) -> None:
    """Turns that were erased after the worker read them do not come back as a document."""
    held = outbox.put(source(), turn(1))
    outbox.put(source(), turn(2))
    rows = outbox.held_turns(held, 10)
    outbox.purge("s")
    kept = outbox.put(source("s"), turn(3))
    assert kept != held  # a number is never used again
    with suppress(OutboxCorrupt):
        outbox.close_documents(held, [([row for row, _ in rows], "s/1", AT, b"{}")])
    assert contents(outbox) == ["turn 3"]


def test_sources_are_told_apart(outbox: Outbox) -> None:
    """Turns that differ in anything that a document says are of different sources."""
    different = [
        source(),
        source("t"),
        source(bank="c"),
        source(context="c"),
        source(tags=["t"]),
        source(metadata={"k": "v"}),
        source(observation_scopes="combined"),
    ]
    assert len({outbox.put(one, turn(1)) for one in different}) == len(different)
    assert len(outbox.destinations()) == 2


# --- batches ------------------------------------------------------------------


def test_sources_that_nothing_is_left_of(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that sees sessions without end keeps those it has something of."""
    monkeypatch.setattr("hindsight_exec.outbox.store.MAX_SOURCES", 5)
    kept = outbox.put(source("kept"), turn(0))
    for number in range(50):
        destination = fill(outbox, 1, f"session {number}")
        outbox.complete(batch_of(outbox, destination, str(number)))
        assert len(outbox.sources()) <= 7
    assert outbox.put(source("kept"), turn(1)) == kept
    assert outbox.source(kept) == source("kept")
    assert len(outbox.held_turns(kept, 10)) == 2


def test_destinations_that_nothing_is_left_of(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that sees users without end, each with a bank of its own, keeps what it needs."""
    monkeypatch.setattr(outbox_room, "MAX_SOURCES", 5)
    for number in range(50):
        held = outbox.put(source("s", f"bank {number}"), turn(number))
        destination = close_all(outbox, held)
        outbox.complete(batch_of(outbox, destination, str(number)))
        assert len(outbox.destinations()) <= 7
        assert len(outbox._db.known) <= 5


def test_moving_documents(outbox: Outbox, tmp_path: Path) -> None:
    """Documents move with their ids and bytes, also out of batches that are not on their way;
    what is on its way, held or dead stays."""
    with closing(Outbox(None)) as memory:
        memory.mark_dead(batch_of(memory, fill(memory, 1, "dead")), "failed", "why")
        on_its_way = batch_of(memory, fill(memory, 2, "on its way"), "a")
        waits = batch_of(memory, fill(memory, 3, "waits"), "b")
        fill(memory, 4, "closed")
        memory.put(source("held"), turn(9))
        moving = [one for one in memory.entries() if one["session"] in ("waits", "closed")]
        assert len(memory.move_documents(outbox, [waits])) == 1
        assert memory.batches() == [on_its_way]
        assert {one["session"] for one in memory.entries()} == {"dead", "on its way", "held"}
        assert memory.bytes == memory._db.first(BYTES)[0]
    names = ("session", "document_id", "content", "turns", "given_at")
    assert sorted([one[name] for name in names] for one in outbox.entries()) == sorted(
        [one[name] for name in names] for one in moving
    )
    assert len(outbox.ready(1, 100)) == 7


def test_a_batch_is_bound_before_its_first_send(path: Path) -> None:
    """Members, order, bytes and operation id are the same after the file was opened again."""
    with closing(Outbox(path)) as outbox:
        destination = fill(outbox)
        batch = batch_of(outbox, destination, "op-1")
        items, ids = outbox.items(batch), outbox.document_ids(batch)
        assert outbox.ready(destination, 10) == []
        assert outbox.turns_of(batch) == [(1, 4)]
        batch.operation, batch.accepted, batch.retries = "theirs", True, 2
        outbox.note(batch, "was slow")
    with closing(Outbox(path)) as outbox:
        assert outbox.batches() == [batch]
        assert outbox.items(batch) == items
        assert outbox.document_ids(batch) == ids
        assert [json.loads(item)["document_id"] for item in items] == ids
        assert outbox.summary().accepted == 4
        assert outbox.summary().last_error == "was slow"
        outbox.complete(batch)
        assert outbox.is_empty()
        assert (outbox.batches(), outbox.bytes) == ([], 0)


def test_what_is_taken_next_is_synced(outbox: Outbox) -> None:
    """The steps that need no sync of their own leave the file set to sync the next turn."""
    destination = fill(outbox)
    assert outbox._db.pragma("synchronous") == 2
    batch = batch_of(outbox, destination)
    batch.accepted = True
    outbox.note(batch)
    assert outbox._db.pragma("synchronous") == 2
    outbox.complete(batch)
    assert outbox._db.pragma("synchronous") == 2
    with pytest.raises(OutboxCorrupt):
        outbox.close_documents(99, [])
    assert outbox._db.pragma("synchronous") == 2


def test_splitting(outbox: Outbox) -> None:
    """A batch becomes two, under ids of their own, with its documents in their order."""
    destination = fill(outbox, 5)
    batch = batch_of(outbox, destination, "whole")
    ids = outbox.document_ids(batch)
    first, second = outbox.split(batch, ("left", "right"))
    assert [one.operation_id for one in outbox.batches()] == ["left", "right"]
    assert outbox.document_ids(first) + outbox.document_ids(second) == ids
    assert len(outbox.document_ids(first)) == 2


def test_dead_letters(outbox: Outbox) -> None:
    """What the server refused is kept with the reason until somebody says what becomes of it."""
    destination = fill(outbox, 3)
    outbox.mark_dead(batch_of(outbox, destination), "rejected", "too odd")
    assert outbox.batches() == outbox.ready(destination, 10) == []
    summary = outbox.summary()
    assert (summary.dead, summary.waiting) == (3, 0)
    assert summary.dead_by_reason == (("rejected", 3),)
    assert not outbox.is_empty()
    entries = outbox.entries()
    assert {(one["state"], one["error"]) for one in entries} == {("dead", "rejected: too odd")}
    assert outbox.requeue([entries[0]["id"], 999]) == 1
    assert len(outbox.ready(destination, 10)) == 1
    assert outbox.discard([entries[1]["id"]]) == 1
    assert outbox.discard([entries[0]["id"]]) == 0  # it waits; it is no dead letter
    assert outbox.requeue() == 1
    assert outbox.discard() == 0
    assert outbox.summary().queued == 2


def test_documents_that_are_closed_already(outbox: Outbox) -> None:
    """A document may be put as one, for instance a text to be remembered."""
    item = turns.text_item(source(), "s/1", "remember", AT)
    held, destination = outbox.put_document(source(), "s/1", item, AT)
    assert outbox.source(held) == source()
    assert [size for _, size in outbox.ready(destination, 10)] == [len(item)] == [outbox.bytes]
    assert outbox.entries()[0]["content"] == "remember"


# --- erasing ------------------------------------------------------------------


def test_purging_a_session(outbox: Outbox, path: Path) -> None:
    """All that waits of it is gone for good, from the files too, and nothing else is."""
    for session, secret in (("mine", " hunter2"), ("other", "")):
        held = outbox.put(source(session, tags=[f"tag{secret}"]), turn(1, secret))
        close_all(outbox, held)
        outbox.put(source(session, tags=[f"tag{secret}"]), turn(2, secret))
    batch_of(outbox, 1)
    assert outbox.purge("mine") == 2
    assert contents(outbox) == ["turn 1", "turn 2"]
    assert all(b"hunter2" not in one.read_bytes() for one in path.parent.iterdir())
    assert outbox.bytes == sum(row[0] for row in outbox._db.all(BYTES))
    assert len(outbox.batches()) == 1


def test_purging_all(outbox: Outbox, path: Path) -> None:
    """Held, queued, accepted and dead: nothing is left, and turns are taken as before."""
    outbox.mark_dead(batch_of(outbox, fill(outbox, 2, " secret")), "failed", "")
    batch_of(outbox, fill(outbox, 3, " secret"))
    outbox.put(source(" secret"), turn(9))
    assert outbox.purge() == 6
    assert outbox.is_empty()
    assert (outbox.bytes, outbox.batches(), outbox.sources(), outbox.destinations()) == (
        0,
        [],
        {},
        {},
    )
    assert all(b" secret" not in one.read_bytes() for one in path.parent.iterdir())
    outbox.put(source(" secret"), turn(1))
    assert contents(outbox) == ["turn 1"]


def test_vacuum(outbox: Outbox, path: Path) -> None:
    """Space that was delivered is given back when there is enough of it."""
    for number in range(30):
        held = outbox.put(source(), turn(number, "x" * 300_000))
    batch = batch_of(outbox, close_all(outbox, held))
    full = path.stat().st_size
    outbox.vacuum()
    assert path.stat().st_size >= full
    outbox.complete(batch)
    outbox.vacuum()
    outbox.close()
    assert path.stat().st_size < 100_000


# --- bounds -------------------------------------------------------------------


def test_the_bound(path: Path) -> None:
    """Beyond its bound nothing is taken and nothing is evicted; what goes makes room."""
    size = len(turn(1).payload.encode())
    with closing(Outbox(path, max_bytes=2 * size)) as outbox:
        outbox.put(source(), turn(1))
        held = outbox.put(source(), turn(2))
        with pytest.raises(OutboxFull, match=f"{2 * size} of {2 * size} bytes"):
            outbox.put(source(), turn(3))
        with pytest.raises(OutboxFull):
            outbox.put_document(source(), "s/1", b"{}", AT)
        assert contents(outbox) == ["turn 1", "turn 2"]
        outbox.complete(batch_of(outbox, close_all(outbox, held)))
        outbox.put(source(), turn(3))
    with closing(Outbox(path, max_bytes=2 * size)) as outbox:
        outbox.put(source(), turn(4))
        with pytest.raises(OutboxFull):
            outbox.put(source(), turn(5))


def test_the_bound_counts_bytes(path: Path) -> None:
    """A character may be several bytes, in memory and in a file that is opened again."""
    with closing(Outbox(path)) as outbox:
        outbox.put(source(), turn(1, "ü" * 100))
        assert outbox.bytes == len(turn(1, "ü" * 100).payload.encode())
        kept = outbox.bytes
    with closing(Outbox(path)) as outbox:
        assert outbox.bytes == kept


def test_a_turn_that_no_row_can_hold(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused as such, and is no damage to the outbox."""
    # SQLite's own bound, and what a control character becomes in a document's JSON.
    assert MAX_ROW_BYTES * 7 < 1_000_000_000
    monkeypatch.setattr(outbox_room, "MAX_ROW_BYTES", 1000)
    with pytest.raises(ValueError, match="1000"):
        outbox.put(source(), turn(1, "x" * 1000))
    with pytest.raises(ValueError, match="1000"):
        outbox.put_document(source(), "s/1", b"x" * 1001, AT)
    assert outbox.is_empty()


# --- opening ------------------------------------------------------------------


def test_opening_again(path: Path) -> None:
    """All states survive, and numbers go on where they were."""
    with closing(Outbox(path)) as outbox:
        outbox.mark_dead(batch_of(outbox, fill(outbox, 1)), "failed", "why")
        batch = batch_of(outbox, fill(outbox, 2))
        batch.accepted = True
        outbox.note(batch)
        fill(outbox, 3)
        for number in range(4):
            outbox.put(source(), turn(number))
        before = outbox.summary()
        entries = outbox.entries()
    with closing(Outbox(path)) as outbox:
        assert outbox.summary() == before
        assert outbox.entries() == entries
        assert (before.dead, before.accepted, before.queued, before.held) == (1, 2, 3, 4)
        assert before.oldest_at == AT
        outbox.put(source(), turn(9))
        assert len(outbox.sources()) == 1


def test_a_newer_schema(path: Path) -> None:
    """A file of a newer version is left as it is, and the message says what to do."""
    Outbox(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
    before = path.read_bytes()
    for readonly in (False, True):
        with pytest.raises(OutboxNewer, match=f"schema {VERSION + 1}.*newer"):
            Outbox(path, readonly=readonly)
    assert path.read_bytes() == before


def test_migration(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older file is led to the current schema step by step, and keeps what it holds."""
    with closing(Outbox(path)) as outbox:
        outbox.put(source(), turn(1))
    monkeypatch.setattr(schema, "VERSION", VERSION + 2)
    steps = {
        VERSION: "ALTER TABLE turns ADD COLUMN mood TEXT;",
        VERSION + 1: "UPDATE turns SET mood = 'fine';",
    }
    monkeypatch.setattr(schema, "MIGRATIONS", steps)
    with closing(Outbox(path)) as outbox:
        assert contents(outbox) == ["turn 1"]
        assert outbox._db.all("SELECT mood FROM turns") == [("fine",)]
        assert outbox._db.pragma("user_version") == VERSION + 2


def test_a_migration_that_fails(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It changes nothing: all its steps are one transaction."""
    with closing(Outbox(path)) as outbox:
        outbox.put(source(), turn(1))
    monkeypatch.setattr(schema, "VERSION", VERSION + 1)
    steps = {VERSION: "DELETE FROM turns; INSERT INTO nowhere VALUES (1);"}
    monkeypatch.setattr(schema, "MIGRATIONS", steps)
    with pytest.raises(OutboxUnavailable):
        Outbox(path)
    monkeypatch.undo()
    with closing(Outbox(path)) as outbox:
        assert contents(outbox) == ["turn 1"]


def no_database(path: Path) -> None:
    path.write_bytes(b"what is this" * 1000)


def foreign_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript("CREATE TABLE turns (a); PRAGMA user_version = 0")


def foreign_database_of_our_version(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript(f"CREATE TABLE a (a); PRAGMA user_version = {VERSION}")


def negative_version(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript("CREATE TABLE a (a); PRAGMA user_version = -3")


def cut_off(path: Path) -> None:
    with closing(Outbox(path)) as outbox:
        fill(outbox, 50)
    os.truncate(path, 6000)


@pytest.mark.parametrize(
    "make",
    [no_database, foreign_database, foreign_database_of_our_version, negative_version, cut_off],
)
def test_what_is_no_outbox(path: Path, make: Any) -> None:
    """A file that is none, or none any more, is OutboxCorrupt, whichever way SQLite says so."""
    make(path)
    with pytest.raises(OutboxCorrupt), closing(Outbox(path)) as outbox:
        outbox.summary()
        outbox.entries()


@pytest.mark.parametrize("name", ["folder", "missing/o.db"])
def test_what_cannot_be_opened(tmp_path: Path, name: str) -> None:
    """A path that no file can be made at is OutboxUnavailable, and names itself."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutboxUnavailable, match=name):
        Outbox(tmp_path / name)


def test_synchronous_is_checked(path: Path) -> None:
    """Only the two settings that keep a killed process's turns are allowed."""
    with pytest.raises(ValueError, match="OFF"):
        Outbox(path, synchronous="OFF")


def test_a_closed_outbox(path: Path) -> None:
    """Every call is a ValueError that says so; closing twice is fine."""
    outbox = Outbox(path)
    batch = batch_of(outbox, fill(outbox, 1))
    outbox.close()
    outbox.close()
    calls: list[Any] = [
        lambda: outbox.put(source(), turn(1)),
        lambda: outbox.put(source("new"), turn(1)),
        lambda: outbox.put_document(source(), "s/1", b"{}", AT),
        outbox.held,
        lambda: outbox.held_turns(1, 1),
        lambda: outbox.close_documents(1, []),
        outbox.sources,
        outbox.batches,
        lambda: outbox.items(batch),
        lambda: outbox.note(batch),
        lambda: outbox.complete(batch),
        lambda: outbox.split(batch, ("a", "b")),
        lambda: outbox.mark_dead(batch, "", ""),
        outbox.requeue,
        outbox.discard,
        outbox.purge,
        outbox.is_empty,
        outbox.summary,
        outbox.entries,
        outbox.vacuum,
    ]
    for call in calls:
        with pytest.raises(ValueError, match="is closed"):
            call()


# --- in memory, read only, modes ----------------------------------------------


def test_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outbox in memory does all the same and leaves no file."""
    monkeypatch.chdir(tmp_path)
    with closing(Outbox(None)) as outbox:
        batch = batch_of(outbox, fill(outbox, 3))
        assert len(outbox.items(batch)) == 3
        outbox.vacuum()
        outbox.complete(batch)
        assert outbox.is_empty()
        assert outbox.purge() == 0
    assert list(tmp_path.iterdir()) == []


def test_looking_at_another_process(path: Path, start: Any) -> None:
    """The file of a process that lives can be read, cannot be written, and is not disturbed."""
    program = OPEN + (
        "outbox.put(source(), turn(1))\n"
        "print('given', flush=True)\n"
        "import signal\n"
        "signal.sigwait([signal.SIGUSR1])\n"
        "outbox.put(source(), turn(2))\n"
        "print(outbox.summary().held, flush=True)\n"
    )
    child = start(
        "import signal; signal.pthread_sigmask(0, [signal.SIGUSR1])\n" + program, str(path)
    )
    child.wait_for("given")
    with closing(Outbox(path, readonly=True)) as outbox:
        assert contents(outbox) == ["turn 1"]
        assert outbox.summary().held == 1
        with pytest.raises(OutboxUnavailable):
            outbox.put(source(), turn(3))
        child.send(signal.SIGUSR1)
        ended = child.end()
        assert (ended.status, ended.out.split()[-1], ended.err) == (0, "2", "")
    with closing(Outbox(path, readonly=True)) as outbox:
        assert contents(outbox) == ["turn 1", "turn 2"]


def test_looking_at_a_file_that_is_just_made(path: Path) -> None:
    """A file whose owner has not made its tables yet holds nothing, and stays as it is."""
    path.touch()
    with closing(Outbox(path, readonly=True)) as outbox:
        assert outbox.is_empty()
        assert outbox.summary() == Summary()
    assert path.read_bytes() == b""
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL").fetchall()  # the owner's first step
        with closing(Outbox(path, readonly=True)) as outbox:
            assert outbox.summary() == Summary()
    with pytest.raises(OutboxUnavailable):
        Outbox(path.with_name("missing.db"), readonly=True)
    assert not path.with_name("missing.db").exists()


def test_looking_while_a_document_is_made(path: Path) -> None:
    """A turn that becomes a document between two looks is counted once."""
    with closing(Outbox(path)) as owner, closing(Outbox(path, readonly=True)) as outbox:
        number = owner.put(source(), turn(1))

        def make(statement: str) -> None:
            if "FROM documents" in statement and owner.held():
                ((held, _),) = owner.held_turns(number, 1)
                owner.close_documents(number, [([held], "d", 1.0, b"{}")])

        outbox._db.connection.set_trace_callback(make)
        assert outbox.summary().waiting == 1
        outbox._db.connection.set_trace_callback(None)
        assert (outbox.summary().held, outbox.summary().queued) == (0, 1)


@pytest.mark.parametrize("name", ["a b", "100%?x=1#y", "ü", "a\udcffb"])
def test_odd_folders(tmp_path: Path, name: str) -> None:
    """A path may have any characters, also those that mean something in a URL."""
    folder = tmp_path / name
    folder.mkdir()
    with closing(Outbox(folder / "o.db")) as outbox:
        outbox.put(source(), turn(1))
    with closing(Outbox(folder / "o.db", readonly=True)) as outbox:
        assert contents(outbox) == ["turn 1"]
    with closing(Outbox(None)) as into:
        assert salvage(folder / "o.db", into) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX modes")
def test_modes(tmp_path: Path) -> None:
    """The folder is the user's alone, and so is every file in it, whatever the umask."""
    folder = tmp_path / "state"
    before = os.umask(0)
    try:
        claim = spool.create(folder)
        with closing(Outbox(claim.path)) as outbox:
            outbox.put(source(), turn(1))
            modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in folder.iterdir()}
    finally:
        os.umask(before)
    claim.release()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(modes) == 5  # the database, its log and index, its lock, the folder's
    assert set(modes.values()) == {0o600}


def test_whether_the_file_is_there(outbox: Outbox, path: Path) -> None:
    """An outbox knows that its file was removed or replaced; it works on all the same."""
    assert outbox.is_there()
    moved = path.rename(path.with_name("moved"))
    assert not outbox.is_there()
    outbox.put(source(), turn(1))
    path.touch()
    assert not outbox.is_there()
    moved.replace(path)
    assert outbox.is_there()
    with closing(Outbox(None)) as memory:
        assert memory.is_there()


# --- damage -------------------------------------------------------------------


DAMAGES = [
    "UPDATE turns SET payload = CAST(x'ff73656372657420ff' AS TEXT)",
    "UPDATE turns SET payload = x'00'",
    "UPDATE turns SET sizes = '{'",
    "UPDATE turns SET sizes = '[\"a\"]'",
    "UPDATE turns SET sizes = 'null'",
    "UPDATE turns SET given_at = 1e300",
    "UPDATE turns SET given_at = -1.0",
    "UPDATE turns SET given_at = 'now'",
    "UPDATE turns SET number = 'one'",
    "UPDATE sources SET header = 'x'",
    "UPDATE sources SET header = '[]'",
    "UPDATE sources SET header = '{\"tags\": 1}'",
    "UPDATE sources SET header = x'00'",
    """UPDATE sources SET header = replace(header, '"bank": "b"', '"bank": "\\ud800"')""",
    """UPDATE sources SET header = replace(header, '"context": ""', '"context": 5')""",
    """UPDATE sources SET header = replace(header, 'scopes": ""', 'scopes": "{"')""",
    "DELETE FROM sources",
    "UPDATE destinations SET url = x'00'",
    "UPDATE documents SET item = 'text'",
    "UPDATE documents SET turns = 'many'",
    "UPDATE documents SET bytes = 'many'",
    "UPDATE documents SET document_id = 5.5, given_at = 'x'",
    "UPDATE batches SET operation = x'00'",
    "DROP TABLE batches",
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_that_sqlite_does_not_notice(path: Path, damage: str) -> None:
    """Values that were never written are OutboxCorrupt where they are read, not a crash later;
    and the message does not show what was said."""
    with closing(Outbox(path)) as outbox:
        fill(outbox, 2)
        batch_of(outbox, 1)
        fill(outbox, 1)
        outbox.put(source(), turn(1))
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA ignore_check_constraints = 1")
        db.execute(damage)
        db.commit()
    with closing(Outbox(path)) as outbox, suppress(OutboxCorrupt) as caught:
        outbox.entries()
        outbox.summary()
        for held in outbox.held():
            outbox.source(held.source)
            rows = outbox.held_turns(held.source, 10)
            outbox.close_documents(held.source, [([row for row, _ in rows], "s/1", AT, b"{}")])
        outbox.sources()
        for destination in outbox.destinations():
            batch_of(outbox, destination)
        for batch in outbox.batches():
            outbox.turns_of(batch)
            outbox.items(batch)
            outbox.document_ids(batch)
            outbox.complete(batch)
        outbox.purge()
    assert caught is None
    with closing(Outbox(None)) as into:
        salvage(path, into)
        for entry in into.entries():
            json.loads(entry["content"])


def test_messages_about_damage_show_no_conversation(path: Path) -> None:
    """SQLite's message about broken text holds that text; ours does not."""
    with closing(Outbox(path)) as outbox:
        held = outbox.put(source(), turn(1))
        outbox._db.execute("UPDATE turns SET payload = CAST(x'ff736563726574ff' AS TEXT)")
        with pytest.raises(OutboxCorrupt) as caught:
            outbox.held_turns(held, 10)
    assert "secret" not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_long_contents_are_shown_and_salvaged(path: Path) -> None:
    """Contents that are kept beside their message are read as what they are, also out of damage."""
    long = '"quoted", \\ and\n\tü🎈 ' * 500
    given = turns.turn([{"content": long}, {"content": "short"}], given_at=AT, index=1)
    with closing(Outbox(path)) as outbox:
        outbox.put(source(), given)
        assert contents(outbox) == [long, "short"]
    with closing(Outbox(None)) as into:
        assert salvage(path, into) == 1
        assert contents(into) == [long, "short"]


def test_salvage_takes_everything(path: Path) -> None:
    """Held turns, documents with their ids, sent or not, and dead letters: all of it goes over,
    as documents that are the same when it is done again."""
    with closing(Outbox(path)) as outbox:
        outbox.mark_dead(batch_of(outbox, fill(outbox, 1)), "failed", "why")
        batch = batch_of(outbox, fill(outbox, 2))
        batch.accepted = True
        outbox.note(batch)
        fill(outbox, 3)
        for number in range(4):
            outbox.put(source("held"), turn(number))
        before = outbox.entries()
    with closing(Outbox(None)) as into:
        assert salvage(path, into) == 10
        after = into.entries()
        assert (into.summary().held, into.summary().queued) == (0, 10)
        assert salvage(path, into) == 10
        documents = {one["document_id"]: one["content"] for one in into.entries()}
        assert documents == {one["document_id"]: one["content"] for one in after}
        assert len(documents) == 3 + 4  # `fill` gives the same turns each time
    names = ("session", "url", "bank", "turns", "given_at", "content")
    assert sorted([one[name] for name in names] for one in after) == sorted(
        [one[name] for name in names] for one in before
    )
    sent = {one["document_id"] for one in before if one["document_id"]}
    assert sent < documents.keys()


def test_salvage_passes_over_the_damage(path: Path) -> None:
    """Rows that can be read are saved, those that cannot are left, wherever they are."""
    with closing(Outbox(path)) as outbox:
        fill(outbox, 9)
        for number in range(9):
            outbox.put(source(), turn(number))
        for table, column in (("documents", "item"), ("turns", "payload")):
            outbox._db.execute(f"UPDATE {table} SET {column} = x'ff' WHERE id % 9 = 1")
            outbox._db.execute(f"UPDATE {table} SET {column} = '{{' WHERE id % 9 = 5")
    with closing(Outbox(None)) as into:
        assert salvage(path, into) == 14
        assert len(contents(into)) == 14


def test_salvage_of_nothing(tmp_path: Path, path: Path) -> None:
    """A file that is no database gives nothing; one that is gone is not made."""
    no_database(path)
    with closing(Outbox(None)) as into:
        assert salvage(path, into) == 0
        with pytest.raises(OutboxUnavailable):
            salvage(tmp_path / "gone", into)
    assert not (tmp_path / "gone").exists()
