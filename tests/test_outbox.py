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
from typing import TYPE_CHECKING, Any

import pytest
from filling import AT, batch_of, close_all, fill, source, turn

from hindsight_exec import outbox as outbox_room
from hindsight_exec import spool, turns
from hindsight_exec.errors import OutboxCorrupt, OutboxFull, OutboxNewer, OutboxUnavailable
from hindsight_exec.outbox import MAX_ROW_BYTES, SCHEMA_VERSION, Outbox, Summary
from hindsight_exec.salvage import salvage

if TYPE_CHECKING:
    from collections.abc import Iterator

# A program that opens the outbox and has helpers at hand.
OPEN = """\
import os, sys
from pathlib import Path
from hindsight_exec import turns
from hindsight_exec.outbox import Outbox

def source(session="s"):
    return turns.source(url="http://h", credential="", bank="b", session=session)

def turn(number):
    return turns.turn([{"content": f"turn {number}"}], given_at=1.76e9 + number, index=number)

outbox = Outbox(Path(sys.argv[1]))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "o.db"


@pytest.fixture
def box(path: Path) -> Iterator[Outbox]:
    outbox = Outbox(path)
    yield outbox
    outbox.close()


def contents(outbox: Outbox) -> list[str]:
    """What every entry says, in the order of ``entries``."""
    return [
        message["content"] for entry in outbox.entries() for message in json.loads(entry["content"])
    ]


# --- a turn is on disk when it is taken ---------------------------------------


def test_put_is_committed_when_it_returns(box: Outbox, path: Path, run: Any) -> None:
    """Another process that opens the file sees the turn at once."""
    box.put(source(), turn(1))
    program = """
        import sqlite3, sys
        db = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
        print(db.execute("SELECT payload FROM turns").fetchall())
    """
    ended = run(program, str(path))
    assert (ended.status, ended.err) == (0, "")
    assert "turn 1" in ended.out


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


def test_an_open_transaction_is_not_added_to(box: Outbox, path: Path) -> None:
    """What an interrupt left open is rolled back by the next call, which commits for itself."""
    box.put(source(), turn(1))
    box._db.execute("BEGIN IMMEDIATE")
    box._db.execute("DELETE FROM turns")
    box.put(source(), turn(2))
    box.close()
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
def test_one_connection(box: Outbox, path: Path) -> None:
    """The file is open once: closing a second descriptor would drop SQLite's locks."""
    box.put(source(), turn(1))
    box.purge()
    opened = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            opened.append(link.readlink())
    assert opened.count(path) == 1


def test_threads(box: Outbox) -> None:
    """Threads that put and look at once lose nothing, and each session keeps its order."""

    def give(session: int) -> None:
        for number in range(60):
            box.put(source(str(session)), turn(number))
            if not number % 6:
                held = box.summary().held
                assert number < held <= 8 * 60
                assert len(box.entries()) >= held

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(give, range(8)))
    assert len(box.held()) == 8
    for held in box.held():
        assert [one.index for _, one in box.held_turns(held.source, 100)] == list(range(60))


# --- held turns and documents -------------------------------------------------


def test_held_turns_come_back_as_they_were(box: Outbox) -> None:
    """Turns are held by source, the oldest first, with all that a document needs."""
    given = source(context="c", tags=["t"], metadata={"k": "v"}, observation_scopes=[["x"]])
    first, other = box.put(given, turn(1)), box.put(source("other"), turn(2))
    assert box.put(given, turn(3)) == first != other
    assert [(held.source, held.turns, held.last_at) for held in box.held()] == [
        (first, 2, AT + 3),
        (other, 1, AT + 2),
    ]
    assert [one for _, one in box.held_turns(first, 10)] == [turn(1), turn(3)]
    assert [one for _, one in box.held_turns(first, 1)] == [turn(1)]
    assert box.count_held(first) == (2, turn(1).chars + turn(3).chars)
    assert box.source(first) == given
    assert box.sources() == {first: given, other: source("other")}


def test_closing_documents(box: Outbox) -> None:
    """Held turns become documents in one step; they are ready then, the oldest first."""
    for number in range(4):
        held = box.put(source(), turn(number))
    destination = close_all(box, held, each=2)
    assert box.held() == []
    assert box.destinations()[destination].bank == "b"
    ready = box.ready(destination, 10)
    assert [size for _, size in ready] == [len(item) for item in box.items(batch_of(box, 1))]
    assert box.summary().queued == 4


def test_documents_are_closed_all_or_none(box: Outbox) -> None:
    """If one of several documents cannot be written, none is, and the turns are held."""
    held = box.put(source(), turn(1))
    box.put(source(), turn(2))
    (first, _), (second, _) = box.held_turns(held, 10)
    with pytest.raises(OutboxUnavailable):
        box.close_documents(
            held,
            [([first], "s/1", AT, b"{}"), ([second], None, AT, b"{}")],  # type: ignore[list-item]
        )
    assert box.count_held(held)[0] == 2
    assert box.summary() == Summary(held=2, oldest_at=AT + 1, bytes=box.bytes)


def test_purged_turns_make_no_document(box: Outbox) -> None:
    """Turns that were erased after the worker read them do not come back as a document."""
    held = box.put(source(), turn(1))
    box.put(source(), turn(2))
    rows = box.held_turns(held, 10)
    box.purge("s")
    kept = box.put(source("s"), turn(3))
    assert kept != held  # a number is never used again
    with suppress(OutboxCorrupt):
        box.close_documents(held, [([row for row, _ in rows], "s/1", AT, b"{}")])
    assert contents(box) == ["turn 3"]


def test_sources_are_told_apart(box: Outbox) -> None:
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
    assert len({box.put(one, turn(1)) for one in different}) == len(different)
    assert len(box.destinations()) == 2


# --- batches ------------------------------------------------------------------


def test_sources_that_nothing_is_left_of(box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that sees sessions without end keeps those it has something of."""
    monkeypatch.setattr("hindsight_exec.outbox.MAX_SOURCES", 5)
    kept = box.put(source("kept"), turn(0))
    for number in range(50):
        destination = fill(box, 1, f"session {number}")
        box.complete(batch_of(box, destination, str(number)))
        assert len(box.sources()) <= 7
    assert box.put(source("kept"), turn(1)) == kept
    assert box.source(kept) == source("kept")
    assert len(box.held_turns(kept, 10)) == 2


def test_a_batch_is_bound_before_its_first_send(path: Path) -> None:
    """Members, order, bytes and operation id are the same after the file was opened again."""
    with closing(Outbox(path)) as box:
        destination = fill(box)
        batch = batch_of(box, destination, "op-1")
        items, ids = box.items(batch), box.document_ids(batch)
        assert box.ready(destination, 10) == []
        assert box.turns_of(batch) == [(1, 4)]
        batch.operation, batch.accepted, batch.retries = "theirs", True, 2
        box.note(batch, "was slow")
    with closing(Outbox(path)) as box:
        assert box.batches() == [batch]
        assert box.items(batch) == items
        assert box.document_ids(batch) == ids
        assert [json.loads(item)["document_id"] for item in items] == ids
        assert box.summary().accepted == 4
        assert box.summary().last_error == "was slow"
        box.complete(batch)
        assert box.is_empty()
        assert (box.batches(), box.bytes) == ([], 0)


def test_what_is_taken_next_is_synced(box: Outbox) -> None:
    """The steps that need no sync of their own leave the file set to sync the next turn."""
    destination = fill(box)
    assert box._db.pragma("synchronous") == 2
    batch = batch_of(box, destination)
    batch.accepted = True
    box.note(batch)
    assert box._db.pragma("synchronous") == 2
    box.complete(batch)
    assert box._db.pragma("synchronous") == 2
    with pytest.raises(OutboxCorrupt):
        box.close_documents(99, [])
    assert box._db.pragma("synchronous") == 2


def test_splitting(box: Outbox) -> None:
    """A batch becomes two, under ids of their own, with its documents in their order."""
    destination = fill(box, 5)
    batch = batch_of(box, destination, "whole")
    ids = box.document_ids(batch)
    first, second = box.split(batch, ("left", "right"))
    assert [one.operation_id for one in box.batches()] == ["left", "right"]
    assert box.document_ids(first) + box.document_ids(second) == ids
    assert len(box.document_ids(first)) == 2


def test_dead_letters(box: Outbox) -> None:
    """What the server refused is kept with the reason until somebody says what becomes of it."""
    destination = fill(box, 3)
    box.bury(batch_of(box, destination), "rejected", "too odd")
    assert box.batches() == box.ready(destination, 10) == []
    summary = box.summary()
    assert (summary.dead, summary.waiting) == (3, 0)
    assert summary.dead_by_reason == (("rejected", 3),)
    assert not box.is_empty()
    entries = box.entries()
    assert {(one["state"], one["error"]) for one in entries} == {("dead", "rejected: too odd")}
    assert box.revive([entries[0]["id"], 999]) == 1
    assert len(box.ready(destination, 10)) == 1
    assert box.discard([entries[1]["id"]]) == 1
    assert box.discard([entries[0]["id"]]) == 0  # it waits; it is no dead letter
    assert box.revive() == 1
    assert box.discard() == 0
    assert box.summary().queued == 2


def test_documents_that_are_closed_already(box: Outbox) -> None:
    """A document may be put as one, for instance a text to be remembered."""
    item = turns.text_item(source(), "s/1", "remember", AT)
    held, destination = box.put_document(source(), "s/1", item, AT)
    assert box.source(held) == source()
    assert [size for _, size in box.ready(destination, 10)] == [len(item)] == [box.bytes]
    assert box.entries()[0]["content"] == "remember"


# --- erasing ------------------------------------------------------------------


def test_purging_a_session(box: Outbox, path: Path) -> None:
    """All that waits of it is gone for good, from the files too, and nothing else is."""
    for session, secret in (("mine", " hunter2"), ("other", "")):
        held = box.put(source(session, tags=[f"tag{secret}"]), turn(1, secret))
        close_all(box, held)
        box.put(source(session, tags=[f"tag{secret}"]), turn(2, secret))
    batch_of(box, 1)
    assert box.purge("mine") == 2
    assert contents(box) == ["turn 1", "turn 2"]
    assert all(b"hunter2" not in one.read_bytes() for one in path.parent.iterdir())
    assert box.bytes == sum(row[0] for row in box._db.all(Outbox._BYTES))
    assert len(box.batches()) == 1


def test_purging_all(box: Outbox, path: Path) -> None:
    """Held, queued, accepted and dead: nothing is left, and turns are taken as before."""
    box.bury(batch_of(box, fill(box, 2, " secret")), "failed", "")
    batch_of(box, fill(box, 3, " secret"))
    box.put(source(" secret"), turn(9))
    assert box.purge() == 6
    assert box.is_empty()
    assert (box.bytes, box.batches(), box.sources(), box.destinations()) == (0, [], {}, {})
    assert all(b" secret" not in one.read_bytes() for one in path.parent.iterdir())
    box.put(source(" secret"), turn(1))
    assert contents(box) == ["turn 1"]


def test_vacuum(box: Outbox, path: Path) -> None:
    """Space that was delivered is given back when there is enough of it."""
    for number in range(30):
        held = box.put(source(), turn(number, "x" * 300_000))
    batch = batch_of(box, close_all(box, held))
    full = path.stat().st_size
    box.vacuum()
    assert path.stat().st_size >= full
    box.complete(batch)
    box.vacuum()
    box.close()
    assert path.stat().st_size < 100_000


# --- bounds -------------------------------------------------------------------


def test_the_bound(path: Path) -> None:
    """Beyond its bound nothing is taken and nothing is evicted; what goes makes room."""
    size = len(turn(1).payload.encode())
    with closing(Outbox(path, max_bytes=2 * size)) as box:
        box.put(source(), turn(1))
        held = box.put(source(), turn(2))
        with pytest.raises(OutboxFull, match=f"{2 * size} of {2 * size} bytes"):
            box.put(source(), turn(3))
        with pytest.raises(OutboxFull):
            box.put_document(source(), "s/1", b"{}", AT)
        assert contents(box) == ["turn 1", "turn 2"]
        box.complete(batch_of(box, close_all(box, held)))
        box.put(source(), turn(3))
    with closing(Outbox(path, max_bytes=2 * size)) as box:
        box.put(source(), turn(4))
        with pytest.raises(OutboxFull):
            box.put(source(), turn(5))


def test_the_bound_counts_bytes(path: Path) -> None:
    """A character may be several bytes, in memory and in a file that is opened again."""
    with closing(Outbox(path)) as box:
        box.put(source(), turn(1, "ü" * 100))
        assert box.bytes == len(turn(1, "ü" * 100).payload.encode())
        kept = box.bytes
    with closing(Outbox(path)) as box:
        assert box.bytes == kept


def test_a_turn_that_no_row_can_hold(box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused as such, and is no damage to the outbox."""
    assert MAX_ROW_BYTES < 1_000_000_000 / 2  # SQLite's own bound, and a turn may double
    monkeypatch.setattr(outbox_room, "MAX_ROW_BYTES", 1000)
    with pytest.raises(ValueError, match="1000"):
        box.put(source(), turn(1, "x" * 1000))
    with pytest.raises(ValueError, match="1000"):
        box.put_document(source(), "s/1", b"x" * 1001, AT)
    assert box.is_empty()


# --- opening ------------------------------------------------------------------


def test_opening_again(path: Path) -> None:
    """All states survive, and numbers go on where they were."""
    with closing(Outbox(path)) as box:
        box.bury(batch_of(box, fill(box, 1)), "failed", "why")
        batch = batch_of(box, fill(box, 2))
        batch.accepted = True
        box.note(batch)
        fill(box, 3)
        for number in range(4):
            box.put(source(), turn(number))
        before = box.summary()
        entries = box.entries()
    with closing(Outbox(path)) as box:
        assert box.summary() == before
        assert box.entries() == entries
        assert (before.dead, before.accepted, before.queued, before.held) == (1, 2, 3, 4)
        assert before.oldest_at == AT
        box.put(source(), turn(9))
        assert len(box.sources()) == 1


def test_a_newer_schema(path: Path) -> None:
    """A file of a newer version is left as it is, and the message says what to do."""
    Outbox(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    before = path.read_bytes()
    for readonly in (False, True):
        with pytest.raises(OutboxNewer, match=f"schema {SCHEMA_VERSION + 1}.*newer"):
            Outbox(path, readonly=readonly)
    assert path.read_bytes() == before


def test_migration(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older file is led to the current schema step by step, and keeps what it holds."""
    with closing(Outbox(path)) as box:
        box.put(source(), turn(1))
    monkeypatch.setattr(outbox_room, "SCHEMA_VERSION", SCHEMA_VERSION + 2)
    steps = {
        SCHEMA_VERSION: "ALTER TABLE turns ADD COLUMN mood TEXT;",
        SCHEMA_VERSION + 1: "UPDATE turns SET mood = 'fine';",
    }
    monkeypatch.setattr(Outbox, "_MIGRATIONS", steps)
    with closing(Outbox(path)) as box:
        assert contents(box) == ["turn 1"]
        assert box._db.all("SELECT mood FROM turns") == [("fine",)]
        assert box._db.pragma("user_version") == SCHEMA_VERSION + 2


def test_a_migration_that_fails(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It changes nothing: all its steps are one transaction."""
    with closing(Outbox(path)) as box:
        box.put(source(), turn(1))
    monkeypatch.setattr(outbox_room, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    steps = {SCHEMA_VERSION: "DELETE FROM turns; INSERT INTO nowhere VALUES (1);"}
    monkeypatch.setattr(Outbox, "_MIGRATIONS", steps)
    with pytest.raises(OutboxUnavailable):
        Outbox(path)
    monkeypatch.undo()
    with closing(Outbox(path)) as box:
        assert contents(box) == ["turn 1"]


def no_database(path: Path) -> None:
    path.write_bytes(b"what is this" * 1000)


def foreign_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript("CREATE TABLE turns (a); PRAGMA user_version = 0")


def foreign_database_of_our_version(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript(f"CREATE TABLE a (a); PRAGMA user_version = {SCHEMA_VERSION}")


def negative_version(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript("CREATE TABLE a (a); PRAGMA user_version = -3")


def cut_off(path: Path) -> None:
    with closing(Outbox(path)) as box:
        fill(box, 50)
    os.truncate(path, 6000)


@pytest.mark.parametrize(
    "make",
    [no_database, foreign_database, foreign_database_of_our_version, negative_version, cut_off],
)
def test_what_is_no_outbox(path: Path, make: Any) -> None:
    """A file that is none, or none any more, is OutboxCorrupt, whichever way SQLite says so."""
    make(path)
    with pytest.raises(OutboxCorrupt), closing(Outbox(path)) as box:
        box.summary()
        box.entries()


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
    box = Outbox(path)
    batch = batch_of(box, fill(box, 1))
    box.close()
    box.close()
    calls: list[Any] = [
        lambda: box.put(source(), turn(1)),
        lambda: box.put(source("new"), turn(1)),
        lambda: box.put_document(source(), "s/1", b"{}", AT),
        box.held,
        lambda: box.held_turns(1, 1),
        lambda: box.count_held(1),
        lambda: box.close_documents(1, []),
        box.sources,
        box.batches,
        lambda: box.items(batch),
        lambda: box.note(batch),
        lambda: box.complete(batch),
        lambda: box.split(batch, ("a", "b")),
        lambda: box.bury(batch, "", ""),
        box.revive,
        box.discard,
        box.purge,
        box.is_empty,
        box.summary,
        box.entries,
        box.vacuum,
    ]
    for call in calls:
        with pytest.raises(ValueError, match="is closed"):
            call()


# --- in memory, read only, modes ----------------------------------------------


def test_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outbox in memory does all the same and leaves no file."""
    monkeypatch.chdir(tmp_path)
    with closing(Outbox(None)) as box:
        batch = batch_of(box, fill(box, 3))
        assert len(box.items(batch)) == 3
        box.vacuum()
        box.complete(batch)
        assert box.is_empty()
        assert box.purge() == 0
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
    with closing(Outbox(path, readonly=True)) as box:
        assert contents(box) == ["turn 1"]
        assert box.summary().held == 1
        with pytest.raises(OutboxUnavailable):
            box.put(source(), turn(3))
        child.send(signal.SIGUSR1)
        ended = child.end()
        assert (ended.status, ended.out.split()[-1], ended.err) == (0, "2", "")
    with closing(Outbox(path, readonly=True)) as box:
        assert contents(box) == ["turn 1", "turn 2"]


def test_looking_at_a_file_that_is_just_made(path: Path) -> None:
    """A file whose owner has not made its tables yet holds nothing, and stays as it is."""
    path.touch()
    with closing(Outbox(path, readonly=True)) as box:
        assert box.is_empty()
        assert box.summary() == Summary()
    assert path.read_bytes() == b""
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL").fetchall()  # the owner's first step
        with closing(Outbox(path, readonly=True)) as box:
            assert box.summary() == Summary()
    with pytest.raises(OutboxUnavailable):
        Outbox(path.with_name("missing.db"), readonly=True)
    assert not path.with_name("missing.db").exists()


def test_looking_while_a_document_is_made(path: Path) -> None:
    """A turn that becomes a document between two looks is counted once."""
    with closing(Outbox(path)) as owner, closing(Outbox(path, readonly=True)) as box:
        number = owner.put(source(), turn(1))

        def make(statement: str) -> None:
            if "FROM documents" in statement and owner.held():
                ((held, _),) = owner.held_turns(number, 1)
                owner.close_documents(number, [([held], "d", 1.0, b"{}")])

        box._db.connection.set_trace_callback(make)
        assert box.summary().waiting == 1
        box._db.connection.set_trace_callback(None)
        assert (box.summary().held, box.summary().queued) == (0, 1)


@pytest.mark.parametrize("name", ["a b", "100%?x=1#y", "ü", "a\udcffb"])
def test_odd_folders(tmp_path: Path, name: str) -> None:
    """A path may have any characters, also those that mean something in a URL."""
    folder = tmp_path / name
    folder.mkdir()
    with closing(Outbox(folder / "o.db")) as box:
        box.put(source(), turn(1))
    with closing(Outbox(folder / "o.db", readonly=True)) as box:
        assert contents(box) == ["turn 1"]
    with closing(Outbox(None)) as into:
        assert salvage(folder / "o.db", into) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX modes")
def test_modes(tmp_path: Path) -> None:
    """The folder is the user's alone, and so is every file in it, whatever the umask."""
    folder = tmp_path / "state"
    before = os.umask(0)
    try:
        claim = spool.create(folder)
        with closing(Outbox(claim.path)) as box:
            box.put(source(), turn(1))
            modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in folder.iterdir()}
    finally:
        os.umask(before)
    claim.release()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(modes) == 5  # the database, its log and index, its lock, the folder's
    assert set(modes.values()) == {0o600}


def test_whether_the_file_is_there(box: Outbox, path: Path) -> None:
    """An outbox knows that its file was removed or replaced; it works on all the same."""
    assert box.is_there()
    moved = path.rename(path.with_name("moved"))
    assert not box.is_there()
    box.put(source(), turn(1))
    path.touch()
    assert not box.is_there()
    moved.replace(path)
    assert box.is_there()
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
    with closing(Outbox(path)) as box:
        fill(box, 2)
        batch_of(box, 1)
        fill(box, 1)
        box.put(source(), turn(1))
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA ignore_check_constraints = 1")
        db.execute(damage)
        db.commit()
    with closing(Outbox(path)) as box, suppress(OutboxCorrupt) as caught:
        box.entries()
        box.summary()
        for held in box.held():
            box.source(held.source)
            rows = box.held_turns(held.source, 10)
            box.close_documents(held.source, [([row for row, _ in rows], "s/1", AT, b"{}")])
        box.sources()
        for destination in box.destinations():
            batch_of(box, destination)
        for batch in box.batches():
            box.turns_of(batch)
            box.items(batch)
            box.document_ids(batch)
            box.complete(batch)
        box.purge()
    assert caught is None
    with closing(Outbox(None)) as into:
        salvage(path, into)
        for entry in into.entries():
            json.loads(entry["content"])


def test_messages_about_damage_show_no_conversation(path: Path) -> None:
    """SQLite's message about broken text holds that text; ours does not."""
    with closing(Outbox(path)) as box:
        held = box.put(source(), turn(1))
        box._db.execute("UPDATE turns SET payload = CAST(x'ff736563726574ff' AS TEXT)")
        with pytest.raises(OutboxCorrupt) as caught:
            box.held_turns(held, 10)
    assert "secret" not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_long_contents_are_shown_and_salvaged(path: Path) -> None:
    """Contents that are kept beside their message are read as what they are, also out of damage."""
    long = '"quoted", \\ and\n\tü🎈 ' * 500
    given = turns.turn([{"content": long}, {"content": "short"}], given_at=AT, index=1)
    with closing(Outbox(path)) as box:
        box.put(source(), given)
        assert contents(box) == [long, "short"]
    with closing(Outbox(None)) as into:
        assert salvage(path, into) == 1
        assert contents(into) == [long, "short"]


def test_salvage_takes_everything(path: Path) -> None:
    """Held turns, documents with their ids, sent or not, and dead letters: all of it goes over."""
    with closing(Outbox(path)) as box:
        box.bury(batch_of(box, fill(box, 1)), "failed", "why")
        batch = batch_of(box, fill(box, 2))
        batch.accepted = True
        box.note(batch)
        fill(box, 3)
        for number in range(4):
            box.put(source("held"), turn(number))
        before = box.entries()
    with closing(Outbox(None)) as into:
        assert salvage(path, into) == 10
        after = into.entries()
        assert (into.summary().held, into.summary().queued) == (4, 6)
    names = ("session", "url", "bank", "turns", "given_at", "document_id", "content")
    assert sorted([one[name] for name in names] for one in after) == sorted(
        [one[name] for name in names] for one in before
    )


def test_salvage_passes_over_the_damage(path: Path) -> None:
    """Rows that can be read are saved, those that cannot are left, wherever they are."""
    with closing(Outbox(path)) as box:
        fill(box, 9)
        for number in range(9):
            box.put(source(), turn(number))
        for table, column in (("documents", "item"), ("turns", "payload")):
            box._db.execute(f"UPDATE {table} SET {column} = x'ff' WHERE id % 9 = 1")
            box._db.execute(f"UPDATE {table} SET {column} = '{{' WHERE id % 9 = 5")
    with closing(Outbox(None)) as into:
        assert salvage(path, into) == 14
        assert len(contents(into)) == 14


def test_salvage_of_nothing(tmp_path: Path, path: Path) -> None:
    """A file that is no database gives nothing; one that is gone is not made."""
    no_database(path)
    with closing(Outbox(None)) as into:
        assert salvage(path, into) == 0
        with pytest.raises(sqlite3.Error):
            salvage(tmp_path / "gone", into)
    assert not (tmp_path / "gone").exists()
