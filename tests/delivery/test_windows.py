"""What other threads, other programs or the server do just between two steps of the delivery."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from scripted_server import ScriptedServer
from serving import Serving, free_port, stored, texts, turn
from waiting import eventually

from hindsight_exec.delivery import files, schedule, worker
from hindsight_exec.delivery.backlog import Backlog
from hindsight_exec.errors import OutboxUnavailable
from hindsight_exec.executor.locks import holds
from hindsight_exec.outbox import spool, sqlite
from hindsight_exec.outbox.store import Outbox

pytestmark = pytest.mark.slow

LIMIT = 60

#: A program that gives turns, and ends before they are sent.
ENDS = """
import os, sys
from pathlib import Path
from hindsight_exec import RetainWriter, Settings
from serving import turn
writer = RetainWriter(Settings(api_url=sys.argv[1], bank_id="b"), state=Path(sys.argv[2]))
for number in range(3):
    assert writer.put(turn(number), session="s")
os._exit(9)
"""


def end_with_turns(url: str, state: Path) -> Path:
    """Have a process leave three turns of session "s" behind; return its file."""
    place = str(Path(__file__).parent.parent)
    variables = {**os.environ, "PYTHONPATH": place}
    command = [sys.executable, "-c", ENDS, url, str(state)]
    assert subprocess.run(command, env=variables, timeout=LIMIT, check=False).returncode == 9
    (file,) = spool.files(state)
    return file


def nobody() -> str:
    return f"http://127.0.0.1:{free_port()}"


class Answers:
    """A server that stores documents; `retain` and `operation` are what it answers."""

    def __init__(self, retain: Any = None, operation: Any = None) -> None:
        self.retain = retain or (lambda given: {"success": True, **given})
        self.operation = operation or {"status": "completed"}
        self.items: list[dict[str, Any]] = []
        self.retries = 0

    def __call__(self, connection: Any) -> None:
        while (request := connection.request()) is not None:
            if request.target.endswith("/memories"):
                given = request.json
                self.items += given["items"]
                connection.answer(200, self.retain({"operation_id": given["operation_id"]}))
            elif request.method == "POST":
                self.retries += 1
                connection.answer(200, {"status": "pending"})
            elif "/operations/" in request.target:
                connection.answer(200, self.operation)
            else:
                connection.answer(404, {})


# --- the caller's side ----------------------------------------------------------


def test_a_put_as_its_file_is_closed(write: Any, state: Path, server: Serving, monkeypatch) -> None:
    """A file that was empty a moment ago, and has a turn when it is closed, stays."""
    writer = write(server.url)
    writer.put(turn(0), session="s")
    assert writer.flush(LIMIT, completed=True)
    about_to_put, put = threading.Event(), threading.Event()
    kept: list[bool] = []
    put_for = Outbox.put_for

    def late_put(outbox: Outbox, *arguments: Any) -> Any:
        about_to_put.set()
        assert closing.wait(LIMIT)
        monkeypatch.setattr(Outbox, "put_for", put_for)
        return put_for(outbox, *arguments)

    def give() -> None:
        kept.append(writer.put(turn(1), session="s"))
        put.set()

    closing = threading.Event()
    close = Outbox.close

    def close_slowly(outbox: Outbox) -> None:
        closing.set()
        assert put.wait(LIMIT)
        close(outbox)

    close_empty = Outbox.close_empty

    def close_empty_slowly(outbox: Outbox) -> bool:
        closing.set()
        assert put.wait(LIMIT)
        return close_empty(outbox)

    monkeypatch.setattr(Outbox, "put_for", late_put)
    monkeypatch.setattr(Outbox, "close", close_slowly)
    monkeypatch.setattr(Outbox, "close_empty", close_empty_slowly)
    thread = threading.Thread(target=give)
    thread.start()
    assert about_to_put.wait(LIMIT)
    writer.close(0)
    thread.join(LIMIT)
    assert kept == [True]
    (file,) = spool.files(state)
    with contextlib.closing(Outbox(file, readonly=True)) as outbox:
        assert outbox.summary().waiting == 1


def test_a_put_while_counts_are_corrected(write: Any, monkeypatch) -> None:
    """A turn that is given after the rows were read is not taken off the counts."""
    writer = write(nobody())
    writer.put(turn(0), session="s")
    unfinished = Backlog.unfinished
    given: list[bool] = []

    def and_give(backlog: Backlog) -> Any:
        rows = unfinished(backlog)
        if not given:
            thread = threading.Thread(
                target=lambda: given.append(writer.put(turn(1), session="other"))
            )
            thread.start()
            thread.join(LIMIT)
        return rows

    monkeypatch.setattr(Backlog, "unfinished", and_give)
    (backlog,) = writer._engine.open_backlogs()
    backlog.stale = True
    writer._engine.wake()
    eventually(lambda: given and not backlog.stale)
    assert given == [True]
    assert not writer.flush(0.1, session="other")
    assert writer.counters().waiting == 2


def test_a_start_as_the_worker_ends(write: Any, server: Serving) -> None:
    """The worker is woken before it can find that nothing is left to do."""
    writer = write(server.url)
    delivery = writer._engine.delivery
    woken: list[bool] = []
    wake = delivery.wake

    def note() -> None:
        woken.append(holds(delivery.progress.lock))
        wake()

    delivery.running = True  # as it is until the worker takes the lock to say that it ends
    delivery.wake = note
    assert not delivery.start()
    assert woken == [True]
    delivery.wake = wake
    delivery.running = False


@pytest.mark.parametrize("beside", ["the worker", "end_session"])
def test_a_finalizer_inside_the_database(write: Any, monkeypatch, beside: str) -> None:
    """A finalizer that puts there takes the engine's lock: nobody reads the file under that lock."""
    writer = write(nobody())
    writer.put(turn(0), session="s")
    lock = writer._engine.delivery.progress.lock
    inside, reading = threading.Event(), threading.Event()
    check_room, source = Outbox._check_room, Outbox.source
    closing, close_documents = threading.Event(), Outbox.close_documents

    def and_collect(outbox: Outbox, *arguments: Any) -> Any:
        if threading.current_thread() is giver and not inside.is_set():
            inside.set()
            reading.wait(1)  # while another thread has the lock and needs the database
            writer.put(turn(2), session="of a finalizer")
        return check_room(outbox, *arguments)

    def note_source(outbox: Outbox, *arguments: Any) -> Any:
        if holds(lock):
            reading.set()
        return source(outbox, *arguments)

    def close_and_wait(outbox: Outbox, *arguments: Any) -> Any:
        number = close_documents(outbox, *arguments)
        if beside == "the worker" and not closing.is_set():
            closing.set()
            inside.wait(LIMIT)
        return number

    monkeypatch.setattr(Outbox, "_check_room", and_collect)
    monkeypatch.setattr(Outbox, "source", note_source)
    monkeypatch.setattr(Outbox, "close_documents", close_and_wait)
    giver = threading.Thread(target=lambda: writer.put(turn(1), session="t"), daemon=True)
    ender = threading.Thread(target=writer.end_session, args=("s",), daemon=True)
    if beside == "the worker":
        ender.start()
        assert closing.wait(LIMIT)
        giver.start()
    else:
        giver.start()
        assert inside.wait(LIMIT)
        ender.start()
    for thread in (giver, ender):
        thread.join(20)
        assert not thread.is_alive()
    assert writer.counters().given == 3


def test_an_interrupt_before_the_worker_is_submitted(
    write: Any, server: Serving, monkeypatch
) -> None:
    """A Ctrl-C there costs no more than that put's wake-up: the next one starts the worker."""
    start = worker.Delivery.start

    def interrupted(delivery: worker.Delivery) -> bool:
        monkeypatch.setattr(worker.Delivery, "start", start)
        start(delivery)
        raise KeyboardInterrupt

    writer = write(server.url)
    monkeypatch.setattr(worker.Delivery, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        writer.put(turn(0), session="s")
    writer.put(turn(1), session="s")
    assert writer.flush(LIMIT)
    assert stored(server.url)["s"] == texts(range(2))


def test_what_is_due_at_once(write: Any, monkeypatch) -> None:
    """The worker looks again when something is due, however soon that is.

    Asked so often, `SimpleQueue.get(timeout=…)` waits for ever on CPython 3.9 to 3.12.
    """
    passes = 0
    done = threading.Event()

    def due_at_once(delivery: worker.Delivery, now: float, closing: bool) -> float | None:
        nonlocal passes
        passes += 1
        if passes >= 1_000_000:
            done.set()
            return None
        if passes % 2:
            delivery.wake()
        return now

    monkeypatch.setattr(worker.Delivery, "_pass", due_at_once)
    writer = write(nobody())
    assert writer.put(turn(0), session="s")
    assert done.wait(LIMIT)


def test_an_error_of_closing_is_no_proof_of_emptiness(tmp_path: Path) -> None:
    """A file is removed only if it said that it is empty."""

    class Failing:
        def __init__(self, connection: Any) -> None:
            self.connection = connection

        def __getattr__(self, name: str) -> Any:
            return getattr(self.connection, name)

        def close(self) -> None:
            self.connection.close()
            raise sqlite3.OperationalError("the disk failed")

    for closes_well in (True, False):
        outbox = Outbox(tmp_path / f"{closes_well}.db")
        if not closes_well:
            outbox._db.connection = Failing(outbox._db.connection)
        assert outbox.close_empty() == closes_well


def test_on_trouble_is_called_on_the_worker(write: Any, tmp_path: Path) -> None:
    """A host may give a turn under a lock that its on_trouble takes."""
    (tmp_path / "file").touch()
    lock = threading.Lock()
    told: list[tuple[str, bool]] = []

    def on_trouble(text: str) -> None:
        told.append((text, lock.acquire(timeout=LIMIT)))
        lock.release()

    writer = write(nobody(), tmp_path / "file" / "state", on_trouble=on_trouble)
    with lock:
        assert not writer.put(turn(0), session="s")
        assert told == []
    eventually(lambda: told)
    assert told[0][0].startswith("Turns are kept in memory only")
    assert told[0][1]


def test_a_file_that_another_program_has_locked(write: Any, state: Path, server: Serving) -> None:
    """Turns are in memory meanwhile, and on disk and delivered afterwards."""
    port = free_port()
    writer = write(f"http://127.0.0.1:{port}")
    assert writer.put(turn(0), session="s")
    (file,) = spool.files(state)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert not writer.put(turn(1), session="s")
    other.execute("ROLLBACK")
    other.close()
    serving = Serving(port=port)
    try:
        eventually(lambda: writer.flush(5, completed=True))
        assert sorted(stored(serving.url)["s"]) == sorted(texts(range(2)))
    finally:
        writer.close(0)
        serving.close()


def test_the_owner_does_not_wait_long(tmp_path: Path) -> None:
    """SQLite's own patience is five seconds, and every put would take as long."""
    with contextlib.closing(Outbox(tmp_path / "a.db")) as outbox:
        assert outbox._db.pragma("busy_timeout") == sqlite._OWNER_WAITS * 1000 < 1000


# --- what earlier processes left -------------------------------------------------


def test_salvaged_turns_are_not_those_of_this_process(write: Any, state: Path) -> None:
    """A session goes on while turns of its earlier process are salvaged from a damaged file."""
    gate = threading.Event()

    def retain(given: dict[str, str]) -> dict[str, Any]:
        assert gate.wait(LIMIT)
        return {"success": True, **given}

    answers = Answers(retain)
    with ScriptedServer(answers) as server:
        file = end_with_turns(server.url, state)
        with contextlib.closing(sqlite3.connect(file)) as database, database:
            database.execute("UPDATE turns SET sizes = '[\"x\"]' WHERE id = 1")
        writer = write(server.url, retain_idle_seconds=900.0)
        eventually(lambda: answers.items)  # the other two are on their way
        assert writer.put(turn(9), session="s")
        gate.set()
        eventually(lambda: writer.counters().completed == 2)
        assert writer.counters().waiting == 1
        assert writer.flush(LIMIT)
        text = json.dumps(answers.items)
        assert [f"User: {number} " in text for number in (0, 1, 2, 9)] == [False, True, True, True]
        writer.close()
    assert [path.suffix for path in state.glob("*.aside")] == [".aside"]


def test_a_file_that_cannot_be_adopted_now(write: Any, state: Path, monkeypatch, caplog) -> None:
    """It is not forgotten: deliver_all() says so, and a later attempt delivers it."""
    monkeypatch.setattr(files, "_PAUSE", 0.2)
    monkeypatch.setattr(worker, "_ADOPT", 0.1)
    adopt = spool.adopt
    attempts: list[Path] = []

    def fail_at_first(path: Path) -> Any:
        attempts.append(path)
        if len(attempts) < 3:
            raise OutboxUnavailable("too many open files")
        return adopt(path)

    answers = Answers()
    with ScriptedServer(answers) as server:
        end_with_turns(server.url, state)
        monkeypatch.setattr(spool, "adopt", fail_at_first)
        writer = write(server.url)
        assert not writer.deliver_all(LIMIT)
        eventually(lambda: writer.deliver_all(LIMIT))
        assert len(answers.items) == 1
    assert caplog.text.count("too many open files") == 1


# --- the server's side ------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch) -> None:
    """Requests that fail are repeated at once."""

    def failed(backoff: Any, now: float, retry_after: float | None = None) -> None:
        backoff.failures += 1
        backoff.not_before = now + 0.01

    monkeypatch.setattr(schedule.Backoff, "failed", failed)


@pytest.mark.parametrize("status", [404, 405])
def test_a_bank_that_the_server_does_not_know(write: Any, impatient, status: int) -> None:
    """A URL that is wrong for one bank only holds up no other bank of the server."""
    posted: list[str] = []

    def answer(connection: Any) -> None:
        while (request := connection.request()) is not None:
            if request.method == "POST":
                bank = request.target.split("/")[4]
                posted.append(bank)
                given = {"success": True, "operation_id": request.json["operation_id"]}
                connection.answer(*((status, {}) if bank == "bad" else (200, given)))
            else:
                connection.answer(200, {"status": "completed"})

    with ScriptedServer(answer) as server:
        writer = write(server.url)
        writer.put(turn(0), session="s", bank="bad", immediate=True)
        eventually(lambda: posted.count("bad") > 1)
        for number in range(3):
            writer.put(turn(number), session="s", bank=f"good-{number}", immediate=True)
        eventually(lambda: writer.counters().completed == 3)
        assert writer.counters().waiting == 1
        writer.close(0)


def test_a_bank_whose_operations_cannot_be_asked_for(write: Any, impatient) -> None:
    """Two of its batches are polled in vain, and the polls of other banks go on."""
    ready = threading.Event()

    def answer(connection: Any) -> None:
        while (request := connection.request()) is not None:
            if request.method == "POST":
                given = {"success": True, "operation_id": request.json["operation_id"]}
                connection.answer(200, given)
            elif "/banks/bad/" in request.target:
                connection.answer(500, {"detail": "a broken row"})
            else:
                connection.answer(200, {"status": "completed" if ready.is_set() else "processing"})

    with ScriptedServer(answer) as server:
        writer = write(server.url)
        for bank in ("bad", "bad", "good"):
            writer.put(turn(0), session="s", bank=bank, immediate=True)
            assert writer.flush(LIMIT)
        ready.set()
        eventually(lambda: writer.counters().completed == 1)
        writer.close(0)


def test_a_completion_that_the_disk_refuses_once(write: Any, monkeypatch) -> None:
    """The batch is polled again and leaves the file, whose room it would take."""
    complete = Outbox.complete

    def refuse_once(outbox: Outbox, batch: Any) -> None:
        monkeypatch.setattr(Outbox, "complete", complete)
        raise OutboxUnavailable("disk full")

    with ScriptedServer(Answers()) as server:
        writer = write(server.url)
        monkeypatch.setattr(Outbox, "complete", refuse_once)
        writer.put(turn(0), session="s")
        assert writer.flush(LIMIT, completed=True)
        (backlog,) = writer._engine.open_backlogs()
        assert backlog.outbox.is_empty()


def test_an_acceptance_that_could_not_be_read_back(write: Any, monkeypatch) -> None:
    """The counts are right in the end, and later flushes of the session end."""
    turns_of = Outbox.turns_of
    failed: list[int] = []

    def fail_once(outbox: Outbox, batch: Any) -> Any:
        if not failed:
            failed.append(1)
            raise OutboxUnavailable("the disk failed")
        return turns_of(outbox, batch)

    monkeypatch.setattr(Outbox, "turns_of", fail_once)
    answers = Answers()
    with ScriptedServer(answers) as server:
        writer = write(server.url)
        writer.put(turn(0), session="s", immediate=True)
        assert writer.flush(LIMIT, completed=True)
        assert writer.counters().waiting == 0
        writer.put(turn(1), session="s", immediate=True)
        assert writer.flush(LIMIT, completed=True)


@pytest.fixture
def soon(monkeypatch) -> None:
    """What failed operations wait for comes at once."""
    monkeypatch.setattr(
        "hindsight_exec.delivery.outcomes.next_retry", lambda retries: None if retries >= 2 else 0.0
    )


def test_half_a_character_in_a_message(write: Any, state: Path, soon: None) -> None:
    """An error message that was cut within a character is kept, and the turn ends as a dead letter."""
    answers = Answers(
        operation={"status": "failed", "error_message": "LLM said \ud83d" + "x" * 9999}
    )
    with ScriptedServer(answers) as server:
        writer = write(server.url)
        writer.put(turn(0), session="s", immediate=True)
        eventually(lambda: writer.counters().dead)
        assert answers.retries == 2
        (file,) = spool.files(state)
        with contextlib.closing(Outbox(file, readonly=True)) as outbox:
            (entry,) = outbox.entries()
        assert "LLM said ?x" in entry["error"]
        assert len(entry["error"]) < 1100


def test_a_document_that_breaks_the_server(write: Any) -> None:
    """With nothing else to send, the others of its batch arrive in the end all the same."""
    stored: set[str] = set()

    def server(connection: Any) -> None:
        while (request := connection.request()) is not None:
            if request.method == "GET":
                connection.answer(200, {"status": "completed"})
            elif any("poison" in item["content"] for item in request.json["items"]):
                connection.answer(500, {"detail": "Internal Server Error"})
            else:
                stored.update(item["content"] for item in request.json["items"])
                operation = request.json["operation_id"]
                connection.answer(200, {"success": True, "operation_id": operation})

    with ScriptedServer(server) as scripted:
        writer = write(scripted.url)
        for session in ("a", "poison", "c"):
            writer.put(turn(0, session), session=session)
        eventually(lambda: writer.flush(0.1) or writer.counters().waiting == 1)
        assert len(stored) == 2


@pytest.mark.parametrize(
    "answer, times",
    [
        ({"operation_id": "\ud800"}, 1),
        ({"operation_ids": {"a": 1}}, 2),
        ({"operation_ids": [1]}, 2),
        ({"operation_id": 1}, 2),
    ],
)
def test_odd_operations(write: Any, answer: dict[str, Any], times: int) -> None:
    """An answer that names no operation is a failure like others, and is followed by a pause."""
    retained: list[dict[str, str]] = []

    def retain(given: dict[str, str]) -> dict[str, Any]:
        retained.append(given)
        return {"success": True, **(answer if len(retained) == 1 else given)}

    with ScriptedServer(Answers(retain)) as server:
        writer = write(server.url)
        writer.put(turn(0), session="s", immediate=True)
        assert writer.flush(LIMIT, completed=True)
    assert len(retained) == times
    assert len({given["operation_id"] for given in retained}) == 1
