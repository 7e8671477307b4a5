"""Turns given to a RetainWriter arrive once, in order, whatever the server and the process do."""

from __future__ import annotations

import json
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Optional

import pytest
from hindsight.proxy import Cut, Proxy
from scripted_server import ScriptedServer
from serving import Serving, documents, free_port, stored, texts, turn
from waiting import eventually

from hindsight_exec.conversation import turns
from hindsight_exec.delivery.writer import RetainWriter
from hindsight_exec.errors import OutboxFull
from hindsight_exec.outbox import spool
from hindsight_exec.outbox.store import Outbox
from hindsight_exec.settings.config import Settings

GIVE = """\
import sys, time, logging
from pathlib import Path
from hindsight_exec.settings.config import Settings
from hindsight_exec.delivery.writer import RetainWriter

url, state, first, last, *rest = sys.argv[1:]
options = dict(pair.split("=") for pair in rest)
writer = RetainWriter(
    Settings(api_url=url, bank_id="b", drain_timeout=float(options.get("drain_timeout", 20))),
    state=Path(state),
)
for number in range(int(first), int(last)):
    writer.put(
        [
            {"role": "user", "content": f"User: {number} "},
            {"role": "assistant", "content": f"Assistant: {number} "},
        ],
        session="s",
    )
print("given", flush=True)
"""


def left(state: Path) -> list[str]:
    """The files of the state directory, without its own lock."""
    return sorted(one.name for one in state.iterdir() if one.name != ".folder.lock")


# --- what arrives -------------------------------------------------------------


def test_turns_arrive_once_and_in_order(server: Serving, write: Any, state: Path) -> None:
    """All turns of a session are stored, in the order given, and no file stays behind."""
    writer = write(server.url)
    for number in range(50):
        writer.put(turn(number), session="s")
    assert writer.flush(60, completed=True)
    assert stored(server.url) == {"s": texts(range(50))}
    assert writer.close()
    assert left(state) == []


def test_shape_of_a_document(server: Serving, write: Any) -> None:
    """A document is a flat list of messages with tags, metadata, context and its session's id."""
    writer = write(server.url)
    for number in range(3):
        writer.put(
            turn(number),
            session="s",
            context="chat",
            tags=["mine", "parent:r"],
            metadata={"platform": "cli"},
        )
    assert writer.flush(60, completed=True)
    (document,) = documents(server.url)
    assert json.loads(document["original_text"]) == turn(0) + turn(1) + turn(2)
    assert document["id"].startswith("s/")
    assert document["tags"] == ["mine", "parent:r", "session:s"]
    metadata = document["document_metadata"]
    assert metadata["platform"] == "cli"
    assert (metadata["message_count"], metadata["turn_index"]) == ("6", "3")


def test_turns_are_held_until_they_fill_a_document(server: Serving, write: Any) -> None:
    """Turns wait for company; a document of some 3000 characters goes by itself."""
    writer = write(server.url)
    for number in range(10):
        writer.put(turn(number, "x" * 200), session="s")
    eventually(lambda: writer.counters().accepted >= 1)
    counters = writer.counters()
    assert 0 < counters.waiting < 10
    assert len(documents(server.url)) >= 1
    writer.end_session("s")
    eventually(lambda: writer.counters().accepted == 10)
    assert stored(server.url)["s"] == texts(range(10), "x" * 200)


@pytest.mark.parametrize("immediate", [False, True])
def test_long_turns_arrive_as_they_are(server: Serving, write: Any, immediate: bool) -> None:
    """What JSON escapes, and what it does not, in contents of any length."""
    long = '"quoted", \\ and\n\tü🎈 ' * 5000
    said = [{"role": "user", "content": long}, {"role": "assistant", "content": "short"}]
    writer = write(server.url)
    writer.put(said, session="s", immediate=immediate)
    writer.put(said[::-1], session="s", immediate=immediate)
    assert writer.close()
    assert stored(server.url) == {"s": [long, "short", "short", long]}


def test_an_idle_session_goes(server: Serving, write: Any) -> None:
    """After `retain_idle_seconds` without a turn, what is held goes as it is."""
    writer = write(server.url, retain_idle_seconds=0.1)
    writer.put(turn(1), session="s")
    eventually(lambda: writer.counters().accepted == 1)


def test_every_n_turns(server: Serving, write: Any) -> None:
    """With `retain_every_n_turns`, no document has fewer turns unless the hold ends."""
    writer = write(server.url, retain_every_n_turns=3, retain_document_chars=1)
    for number in range(5):
        writer.put(turn(number, "x" * 700), session="s")
    eventually(lambda: writer.counters().accepted >= 3)
    assert writer.close()
    assert stored(server.url)["s"] == texts(range(5), "x" * 700)


def test_turns_that_come_while_documents_are_closed(
    server: Serving, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turns that come after the worker has read the held ones wait for no other turn."""
    writer = write(server.url, retain_every_n_turns=3)
    late = [3, 4, 5]

    def read(outbox: Outbox, number: int, count: int) -> Any:
        rows = held_turns(outbox, number, count)
        while rows and late:
            writer.put(turn(late.pop(0)), session="s")
        return rows

    held_turns = Outbox.held_turns
    monkeypatch.setattr(Outbox, "held_turns", read)
    for number in range(3):
        writer.put(turn(number), session="s")
    eventually(lambda: writer.counters().accepted == 6)


def test_a_document_of_more_turns_than_are_read_at_once(server: Serving, write: Any) -> None:
    """With `retain_every_n_turns` at 700, a document has 700 turns."""
    writer = write(server.url, retain_every_n_turns=700, durability="normal")
    for number in range(701):
        writer.put(turn(number), session="s")
    eventually(lambda: writer.counters().accepted == 700)
    assert len(documents(server.url)) == 1


def test_immediate_turns_and_texts_go_at_once(server: Serving, write: Any) -> None:
    """What somebody asked to be remembered is a document of its own, and not held."""
    writer = write(server.url)
    writer.put(turn(1), session="held")
    writer.put(turn(2), session="s", immediate=True)
    writer.put_text("The sky is blue.", session="s", timestamp="2026-01-02T03:04:05Z")
    eventually(lambda: writer.counters().accepted == 2)
    found = {document["original_text"] for document in documents(server.url)}
    assert found == {json.dumps(turn(2)), "The sky is blue."}


def test_turns_that_differ_go_into_different_documents(server: Serving, write: Any) -> None:
    """Banks, sessions and metadata are kept apart."""
    writer = write(server.url)
    writer.put(turn(1), session="s", metadata={"chat": "1"})
    writer.put(turn(2), session="s", metadata={"chat": "2"})
    writer.put(turn(3), session="t")
    writer.put(turn(4), session="s", bank="other")
    assert writer.flush(60)
    assert stored(server.url) == {"s": texts([1, 2]), "t": texts([3])}
    assert stored(server.url, "other") == {"s": texts([4])}


def test_bad_arguments_name_the_value(write: Any) -> None:
    """What cannot be a turn is refused with its value, and nothing is kept."""
    writer = write(f"http://127.0.0.1:{free_port()}")
    for wrong in ([], ["text"], [{"role": "user", "content": {1, 2}}]):
        with pytest.raises(ValueError, match="message"):
            writer.put(wrong, session="s")
    with pytest.raises(ValueError, match="session"):
        writer.put(turn(1), session=" ")
    with pytest.raises(ValueError, match="bank"):
        writer.put(turn(1), session="s", bank="")
    for bank in ("a/b", "x" * 193):
        with pytest.raises(ValueError, match=f"'{bank[:9]}.* must"):
            writer.put(turn(1), session="s", bank=bank)
    with pytest.raises(ValueError, match="text"):
        writer.put_text("", session="s")
    assert writer.counters().given == 0


def test_threads_give_turns_at_once(server: Serving, write: Any) -> None:
    """Many threads may share a writer; each session's turns stay in its order."""
    writer = write(server.url)

    def give(session: int) -> None:
        for number in range(25):
            writer.put(turn(number), session=f"s{session}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(give, range(8)))
    assert writer.close()
    assert stored(server.url) == {f"s{n}": texts(range(25)) for n in range(8)}


# --- sharing ------------------------------------------------------------------


def test_writers_of_a_folder_share(server: Serving, write: Any, state: Path) -> None:
    """They use one file and one worker; one that closes leaves the others alone."""
    first, second = write(server.url), write(server.url)
    first.put(turn(1), session="one")
    second.put(turn(2), session="two")
    assert len(spool.files(state)) == 1
    assert first.close()
    assert stored(server.url) == {"one": texts([1])}
    assert first.worker is second.worker
    assert second.flush(60, completed=True)
    assert second.close()
    assert stored(server.url) == {"one": texts([1]), "two": texts([2])}
    wait_for_empty(server, write, state)


def test_writers_leave_their_turns_to_the_last(write: Any) -> None:
    """Many that close one after the other wait for no answer, and take few requests together."""
    go = threading.Event()

    def script(connection: Any) -> None:
        while connection.request() is not None:
            go.wait(60)
            connection.answer(200, {"success": True, "operation_id": "o"})

    with ScriptedServer(script) as slow:
        writers = [write(slow.url) for _ in range(20)]
        for number, writer in enumerate(writers):
            writer.put(turn(number), session=f"s{number}")
        *others, last = writers
        for writer in others:
            assert not writer.close(leave_to_others=True)
        go.set()
        assert last.close(60, leave_to_others=True)
        retains = [one.json["items"] for one in slow.requests if one.method == "POST"]
    assert sum(map(len, retains)) == 20
    assert len(retains) <= 3  # what went before the others ended, those, and the last


@pytest.mark.slow
def test_close_is_idempotent_and_late_turns_are_kept(
    server: Serving, write: Any, state: Path
) -> None:
    """Turns given after close() are in one file, count as waiting, and wait for the next writer."""
    writer = write(server.url)
    writer.put(turn(1), session="s")
    assert writer.close()
    assert writer.close()
    assert writer.put(turn(2), session="s")
    files = spool.files(state)
    writer.put_text("late", session="t")
    writer.put(turn(3), session="s")
    assert stored(server.url) == {"s": texts([1])}
    assert spool.files(state) == files
    assert writer.counters().waiting == 3
    assert not writer.flush(60)
    assert not writer.close()
    wait_for_empty(server, write, state)
    found = [document["original_text"] for document in documents(server.url)]
    assert sorted(found) == sorted(["late", json.dumps(turn(1)), json.dumps(turn(2) + turn(3))])


def test_late_turns_go_to_a_living_writer(server: Serving, write: Any, state: Path) -> None:
    """What a closed writer takes is delivered by another one of its folder; it cannot tell when."""
    closed, other = write(server.url), write(server.url)
    closed.put(turn(1), session="s")
    assert closed.close()
    assert other.close()
    living = write(server.url)
    assert closed.put(turn(2), session="s", immediate=True)
    assert not closed.flush(0)
    eventually(lambda: stored(server.url) == {"s": texts([1, 2])})
    assert living.close()


def test_a_late_turn_that_memory_alone_takes_is_told_lost(
    server: Serving, write: Any, caplog: Any
) -> None:
    """With durability `memory`, a turn given after close() is lost; flush() never says otherwise."""
    writer = write(server.url, durability="memory")
    assert writer.close()
    assert not writer.put(turn(1), session="s")
    assert not writer.flush(0)
    assert "1 turn given after close() will be lost" in caplog.text


def test_close_waits_for_completion_if_told(server: Serving, write: Any) -> None:
    """With `retain_async` off, close() returns when the server has processed the turns."""
    writer = write(server.url, retain_async=False)
    writer.put(turn(1), session="s")
    assert writer.close()
    assert writer.counters().completed == 1


@pytest.mark.slow
def test_close_waits_for_no_question(write: Any, state: Path) -> None:
    """Once all is accepted, a server that takes its time to say whether it is done is not waited for."""
    asked, goes_on = threading.Event(), threading.Event()

    def script(connection: Any) -> None:
        while (request := connection.request()) is not None:
            if request.target.endswith("/memories"):
                operation = request.json["operation_id"]
                connection.answer(200, {"success": True, "operation_id": operation})
            else:
                asked.set()
                goes_on.wait(60)

    with ScriptedServer(script) as slow:
        writer = write(slow.url, drain_timeout=600)
        writer.put(turn(1), session="s", immediate=True)
        assert writer.flush(60)
        assert asked.wait(60)
        assert writer.close()
        goes_on.set()
    assert left(state)  # for the next start to ask


def test_the_outbox_has_a_bound(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its bound a turn is refused with a clear error, and counted."""
    writer = write(f"http://127.0.0.1:{free_port()}")
    writer.put(turn(1), session="s")
    backlog = writer._engine.intake._own
    assert backlog is not None
    monkeypatch.setattr(backlog.outbox, "max_bytes", 300)
    with pytest.raises(OutboxFull, match="300 bytes"):
        writer.put(turn(2, "x" * 300), session="s")
    assert writer.counters().refused == 1
    assert writer.counters().waiting == 1


# --- servers in trouble -------------------------------------------------------


def test_a_server_that_is_down_is_told_once(write: Any, state: Path) -> None:
    """The user hears once that turns wait, and once that they have arrived."""
    port = free_port()
    heard: list[str] = []
    writer = write(f"http://127.0.0.1:{port}", on_trouble=heard.append, retain_idle_seconds=0)
    for number in range(5):
        writer.put(turn(number), session="s")
    eventually(lambda: heard)
    serving = Serving(port=port)
    try:
        assert writer.flush(60)
        assert stored(serving.url)["s"] == texts(range(5))
        assert len(heard) == 2
        assert "saved on disk" in heard[0]
        assert "arrived" in heard[1]
    finally:
        writer.close()
        serving.close()


def test_a_server_in_trouble_delays_no_other(server: Serving, write: Any) -> None:
    """Turns for a server that is well arrive while another hangs."""
    with ScriptedServer(hang) as hanging:
        stuck, fine = write(hanging.url), write(server.url)
        stuck.put(turn(1), session="s", immediate=True)
        eventually(lambda: hanging.requests)
        for number in range(5):
            fine.put(turn(number), session="s")
        assert fine.close()
        assert stored(server.url)["s"] == texts(range(5))
        assert not stuck.close(0.1)


def test_a_worker_that_ends_late(
    server: Serving, write: Any, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a disk held up beyond the bound is let go of in the end: the next writer delivers it."""
    hangs, goes_on = threading.Event(), threading.Event()
    close_documents = Outbox.close_documents

    def hang(*args: Any) -> int:
        hangs.set()
        goes_on.wait(60)
        return close_documents(*args)

    monkeypatch.setattr(Outbox, "close_documents", hang)
    first = write(server.url)
    first.put(turn(1), session="s")
    first.end_session("s")
    assert hangs.wait(60)
    assert not first.close(0.1)
    (path,) = spool.files(state)
    assert spool.is_live(path)
    goes_on.set()
    eventually(lambda: not spool.is_live(path))
    second = write(server.url)
    assert second.deliver_all(60)
    eventually(lambda: stored(server.url) == {"s": texts([1])})


@pytest.mark.slow
def test_a_wrong_key_keeps_everything(write: Any, state: Path, caplog: Any) -> None:
    """A key that is refused stops the sending and says so; the right one brings all in."""
    serving = Serving(api_key="right")
    try:
        heard: list[str] = []
        wrong = write(serving.url, api_key="wrong", credential="here", on_trouble=heard.append)
        wrong.put(turn(1), session="s")
        assert not wrong.close()
        assert len(heard) == 1
        assert "key" in heard[0]
        assert "wrong" not in caplog.text
        assert len(spool.files(state)) == 1
        right = write(serving.url, api_key="right", credential="here")
        right.put(turn(2), session="t")
        assert right.flush(60)
        eventually(lambda: not left(state) or right.counters().completed == 2)
    finally:
        assert right.close()
        serving.close()


def test_a_document_that_is_refused_stops_no_other(server: Serving, write: Any) -> None:
    """A batch that is refused is split until the bad document is alone: a dead letter."""
    heard: list[str] = []
    writer = write(server.url, on_trouble=heard.append)
    with Proxy(server.url) as proxy:
        writer = write(proxy.url, on_trouble=heard.append)
        for number in range(9):
            session = f"s{number}"
            if number == 4:
                writer.put(turn(4), session=session, bank="b", observation_scopes={"no": "scope"})
            else:
                writer.put(turn(number), session=session)
        assert writer.flush(60)
        assert writer.close()
    assert stored(server.url) == {f"s{n}": texts([n]) for n in range(9) if n != 4}
    counters = writer.counters()
    assert (counters.accepted, counters.dead) == (8, 1)
    assert counters.dead_by_reason == {"rejected": 1}
    assert "dead letter" in heard[-1]


def test_what_the_client_refuses_to_send_is_a_dead_letter(
    server: Serving, write: Any, state: Path, caplog: Any
) -> None:
    """A bank that no URL can carry, from an earlier version, is refused once, and stops no other."""
    claim = spool.create(state)
    with closing(Outbox(claim.path)) as outbox:
        for number, bank in enumerate(["a/b", "b", "a/b"]):
            source = turns.source(url=server.url, credential="", bank=bank, session="s")
            outbox.put(source, turns.turn(turn(number), given_at=1.76e9 + number, index=number))
    claim.release()
    heard: list[str] = []
    writer = write(server.url, on_trouble=heard.append)
    assert writer.deliver_all(60)
    assert stored(server.url) == {"s": texts([1])}
    assert writer.counters().dead_by_reason == {"rejected": 2}
    assert heard == [
        "2 turns kept as dead letters, rejected: the bank id 'a/b' must not hold a '/'"
    ]
    assert "Traceback" not in caplog.text


def test_a_key_that_no_header_can_carry_keeps_everything(
    server: Serving, write: Any, caplog: Any
) -> None:
    """Sending stops until the key is right, as with one that the server refuses; said once."""
    heard: list[str] = []
    writer = write(server.url, api_key="k", credential="here", on_trouble=heard.append)
    writer._engine._keys["here", server.url] = "schlüssel"  # as from a file that was changed
    writer.put(turn(1), session="s")
    assert not writer.close()
    assert writer.counters().waiting == 1
    assert len(heard) == 1
    assert "no HTTP header can carry" in heard[0]
    assert "Traceback" not in caplog.text


@pytest.mark.slow
def test_deliver_all_waits_for_a_file_that_takes_long_to_open(
    server: Serving, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the worker opens what was left, it is neither unopened nor in a backlog: it waits."""
    first = write(f"http://127.0.0.1:{free_port()}")
    first.put(turn(1), session="s")
    assert not first.close(0)
    is_empty, opens, goes_on = Outbox.is_empty, threading.Event(), threading.Event()

    def slow(outbox: Outbox) -> bool:
        opens.set()
        goes_on.wait(60)
        return is_empty(outbox)

    monkeypatch.setattr(Outbox, "is_empty", slow)
    second = write(server.url)
    assert opens.wait(60)
    assert not second.deliver_all(1)
    goes_on.set()


def cut_poison(exchange: Any) -> Optional[Cut]:
    return Cut.BEFORE if b"poison" in exchange.body else None


@pytest.mark.slow
def test_a_document_that_never_gets_through_stops_no_other(server: Serving, write: Any) -> None:
    """A batch that fails again and again lets others go first, and is split once they arrive."""
    poison = [{"role": "user", "content": "poison"}]
    with Proxy(server.url) as proxy:
        # First all of them: on a slow machine, they go in more than one batch.
        proxy.plan = lambda exchange: Cut.BEFORE if b"content" in exchange.body else None
        writer = write(proxy.url)
        for number in range(9):
            writer.put(poison if number == 4 else turn(number), session=f"s{number}")
        for sends in range(1, 5):  # again and again
            assert not writer.flush(0)
            eventually(lambda sends=sends: len(proxy.exchanges) >= sends)
        assert stored(server.url) == {}
        proxy.plan = cut_poison
        writer.put(turn(9), session="s9", immediate=True)
        expected = {f"s{n}": texts([n]) for n in range(10) if n != 4}
        eventually(lambda: writer.flush(0.1) or stored(server.url) == expected)
        eventually(lambda: writer.counters().waiting == 1)
        proxy.plan = lambda exchange: None
        assert writer.flush(60, completed=True)
        writer.close()
    assert stored(server.url) == {**expected, "s4": ["poison"]}


@pytest.mark.slow
@pytest.mark.parametrize("bank", ["b", "another"])
def test_what_another_process_cannot_deliver_stops_no_other(
    server: Serving, write: Any, bank: str
) -> None:
    """What was left and never gets through does not stop what is given now, of no bank."""
    with Proxy(server.url) as proxy:
        proxy.plan = cut_poison
        first = write(proxy.url)
        first.put([{"role": "user", "content": "poison"}], session="s0", bank=bank)
        assert not first.close(1)
        second = write(proxy.url)
        eventually(lambda: len(proxy.exchanges) > 3)  # it is tried, and fails
        second.put(turn(1), session="s1")
        assert second.flush(60)
        second.close()
    assert stored(server.url) == {"s1": texts([1])}


@pytest.mark.slow
@pytest.mark.parametrize("cut", list(Cut))
def test_a_request_that_is_cut_is_sent_again(server: Serving, write: Any, cut: Cut) -> None:
    """Wherever a request is cut, its turns are stored once."""
    with Proxy(server.url) as proxy:
        proxy.plan = lambda exchange: cut if len(proxy.exchanges) <= 2 else None
        writer = write(proxy.url)
        for number in range(5):
            writer.put(turn(number), session="s")
        assert writer.flush(60, completed=True)
        retains = [one.body for one in proxy.exchanges if one.method == "POST"]
        assert len(retains) >= 2
        assert len({body for body in retains if body}) == 1  # the same bytes each time
        writer.close()
    assert stored(server.url) == {"s": texts(range(5))}


def on_strike(asked: list[str]) -> Any:
    """A server that accepts what it is given, and fails to process it; what it is asked then."""

    def script(connection: Any) -> None:
        while (request := connection.request()) is not None:
            if request.target.endswith("/memories"):
                operation = request.json["operation_id"]
                connection.answer(200, {"success": True, "operation_id": operation})
            elif request.target.endswith("/retry"):
                asked.append("retry")
                connection.answer(200, {"success": True})
            else:
                asked.append("status")
                status = {"status": "failed", "error_message": "the LLM is on strike"}
                connection.answer(200, status)

    return script


@pytest.mark.slow
def test_failed_operations_are_retried_then_dead(write: Any, monkeypatch: Any) -> None:
    """An operation that fails is told to run again; one that fails for good is a dead letter."""
    monkeypatch.setattr("hindsight_exec.delivery.schedule._RETRIES", (0.0, 0.0))
    asked: list[str] = []
    with ScriptedServer(on_strike(asked)) as failing:
        writer = write(failing.url)
        writer.put(turn(1), session="s")
        assert writer.flush(60, completed=True)
        counters = writer.counters()
        assert [one for one in asked if one == "retry"] == ["retry", "retry"]
        assert (counters.accepted, counters.completed, counters.dead) == (1, 0, 1)
        assert counters.dead_by_reason == {"failed": 1}
        assert "on strike" in counters.last_error
        writer.close()


@pytest.mark.slow
def test_a_start_is_no_retry(write: Any, state: Path, monkeypatch: Any) -> None:
    """Programs that start and end while a retry is waited for do not use the retries up."""
    monkeypatch.setattr("hindsight_exec.delivery.schedule._RETRIES", (0.0, 500.0))
    asked: list[str] = []

    def batches() -> list[Any]:
        return [
            batch
            for backlog in writer._engine.delivery.backlogs
            for batch in backlog.outbox.batches()
        ]

    with ScriptedServer(on_strike(asked)) as failing:
        writer = write(failing.url)
        writer.put(turn(1), session="s")
        assert not writer.flush(1, completed=True)
        eventually(lambda: [one.retries for one in batches()] == [2])
        writer.close()
        for _ in range(4):
            asked.clear()
            writer = write(failing.url)
            eventually(lambda: asked)
            eventually(lambda: [one.retries for one in batches()] == [2])
            assert asked == ["status"]
            writer.close()
        assert writer.counters().dead == 0


@pytest.mark.slow
def test_an_old_server_is_sent_a_failed_operation_again(write: Any, monkeypatch: Any) -> None:
    """One that names operations itself retries without effect: the same document goes again."""
    monkeypatch.setattr("hindsight_exec.delivery.schedule._RETRIES", (0.0, 0.0))
    sent: list[str] = []

    def script(connection: Any) -> None:
        while (request := connection.request()) is not None:
            if request.target.endswith("/memories"):
                sent.append(request.json["items"][0]["document_id"])
                connection.answer(200, {"success": True, "operation_id": f"theirs-{len(sent)}"})
            else:
                done = request.target.endswith("theirs-2")
                connection.answer(200, {"status": "completed" if done else "failed"})

    with ScriptedServer(script) as old:
        writer = write(old.url)
        writer.put(turn(1), session="s")
        assert writer.flush(60, completed=True)
        assert len(sent) == 2
        assert len(set(sent)) == 1
        assert writer.counters().completed == 1
        writer.close()


def test_an_operation_that_the_server_forgot_is_looked_up(server: Serving, write: Any) -> None:
    """Where operations are unknown, the documents themselves tell whether they arrived."""

    class Forgetful(Proxy):
        async def _exchange(self, reader: Any, writer: Any, answers: Any, upstream: Any) -> bool:
            return await super()._exchange(reader, writer, answers, upstream)

    with Forgetful(server.url) as proxy:
        writer = write(proxy.url)
        writer.put(turn(1), session="s")
        assert writer.flush(60)
        (batch,) = writer._engine.intake._own.outbox.batches()
        batch.operation = "6e4ad2b5-4f62-4a5b-8d0c-0c2b8a6b8f1e"  # one it never heard of
        for heap in writer._engine.intake._own.polls.values():
            heap[:] = [(0.0, 0, 1, batch)]
        writer._engine.wake()
        assert writer.flush(60, completed=True)
        writer.close()
    assert stored(server.url) == {"s": texts([1])}


@pytest.mark.slow
def test_backoff_spares_a_server_that_is_down(write: Any) -> None:
    """Thousands of waiting turns make one request at a time, and not one each."""

    def script(connection: Any) -> None:
        while connection.request() is not None:
            connection.answer(503, {"detail": "later"}, {"Retry-After": 600})

    with ScriptedServer(script) as busy:
        writer = write(busy.url)
        for number in range(300):
            writer.put(turn(number, "x" * 400), session=f"s{number % 7}")
        eventually(lambda: busy.requests)
        assert not writer.flush(2)
        assert len(busy.requests) <= 4 + 1  # the first, side by side, and that of flush()
        assert not writer.close()


def test_turns_gather_while_the_server_takes_none(write: Any) -> None:
    """Documents are made when they can be sent; until then turns stay as they were given."""
    well = threading.Event()

    def script(connection: Any) -> None:
        while connection.request() is not None:
            if well.is_set():
                connection.answer(200, {"success": True, "operation_id": "o"})
            else:
                connection.answer(503, {"detail": "later"}, {"Retry-After": 600})

    with ScriptedServer(script) as busy:
        writer = write(busy.url)
        writer.put(turn(0, "x" * 2700), session="s")
        eventually(lambda: writer.counters().last_error)
        for number in range(1, 21):
            writer.put(turn(number, "x" * 2700), session="s")
        summary = writer._engine.intake._own.outbox.summary()
        assert (summary.held, summary.queued) == (20, 1)
        well.set()
        assert writer.flush(60)
        sent = [item["document_id"] for one in busy.requests[1:] for item in one.json["items"]]
        assert sent == sorted(set(sent)), "in the order of the turns"
        assert len(sent) == 21
        writer.close(0)


def test_a_stalled_writer_is_visible(write: Any, caplog: Any) -> None:
    """Turns that wait for long without a success are a warning, once."""
    writer = write(f"http://127.0.0.1:{free_port()}")
    writer._engine.delivery._stall_after = 0.3
    writer.put(turn(1), session="s", immediate=True)
    with caplog.at_level(logging.WARNING):
        eventually(lambda: "Nothing was delivered" in caplog.text)
    assert caplog.text.count("Nothing was delivered") == 1
    assert writer.counters().oldest_age > 0


# --- exits --------------------------------------------------------------------


@pytest.mark.slow
def test_turns_given_last_are_sent_at_exit(run: Any, state: Path) -> None:
    """A program that falls off the end of main delivers what it gave, in a few requests."""
    serving = Serving(latency=0.1)
    try:
        with Proxy(serving.url) as proxy:
            ended = run(GIVE, proxy.url, str(state), "0", "300")
            retains = [one for one in proxy.exchanges if one.target.endswith("/memories")]
        assert (ended.status, ended.err) == (0, "")
        assert stored(serving.url) == {"s": texts(range(300))}
        # One when the first document was full, one with what came meanwhile,
        # and at exit one with the rest; on a slow machine a few more.
        assert len(retains) < 30
    finally:
        serving.close()


def test_a_server_that_is_down_at_exit(run: Any, state: Path, server: Serving) -> None:
    """Exit says in one line how many turns wait, and the next start sends them."""
    down = f"http://127.0.0.1:{free_port()}"
    ended = run(GIVE, down, str(state), "0", "5")
    assert ended.status == 0
    assert ended.err.count("\n") == 1
    assert "5 turns are saved on disk" in ended.err
    serving = Serving(port=int(down.rsplit(":", 1)[1]))
    try:
        ended = run(GIVE, down, str(state), "5", "6")
        assert (ended.status, ended.err) == (0, "")
        eventually(lambda: stored(serving.url) == {"s": texts(range(6))})
    finally:
        serving.close()


@pytest.mark.slow
def test_a_server_that_hangs_at_exit(run: Any, state: Path) -> None:
    """Exit is bounded, cancels what hangs, and says what waits."""
    with ScriptedServer(hang) as hanging:
        ended = run(GIVE, hanging.url, str(state), "0", "5", "drain_timeout=1")
    assert ended.status == 0
    assert ended.err.count("\n") == 1
    assert "5 turns are saved on disk" in ended.err


def test_killed_right_after_put(start: Any, state: Path, server: Serving) -> None:
    """What put() has taken survives SIGKILL, and the next process delivers it."""
    child = start(GIVE + "time.sleep(60)", server.url, str(state), "0", "7")
    child.wait_for("given")
    child.close()
    writer = RetainWriter(Settings(api_url=server.url, bank_id="b"), state=state)
    eventually(lambda: stored(server.url) == {"s": texts(range(7))})
    assert writer.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_gives_turns_of_its_own(run: Any, state: Path, server: Serving) -> None:
    """A child has its own file and worker; the parent's turns stay the parent's."""
    program = GIVE + (
        "import os, warnings\n"
        "warnings.simplefilter('ignore')  # of forks beside threads, which is the point\n"
        "child = os.fork()\n"
        "say = lambda text: writer.put([{'role': 'user', 'content': text}], session='who')\n"
        "say('parent' if child else 'child')\n"
        "if child:\n"
        "    os.waitpid(child, 0)\n"
    )
    ended = run(program, server.url, str(state), "0", "3")
    assert (ended.status, ended.err) == (0, "")
    found = stored(server.url)
    assert found["s"] == texts(range(3))
    assert sorted(found["who"]) == ["child", "parent"]


def wait_for_empty(server: Serving, write: Any, state: Path) -> None:
    """Wait until what earlier writers left is delivered, completed and gone."""
    writer = write(server.url)
    eventually(lambda: not left(state))
    assert writer.close()


def hang(connection: Any) -> None:
    """Take a request and never answer."""
    connection.request()
    connection.stream.read(1)
