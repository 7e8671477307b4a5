"""Turns that are given when main has ended: by threads that live on, or at the very end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Serving, stored, texts

from hindsight_exec import RetainWriter, Settings

PROGRAM = """\
import atexit, os, queue, sys, threading, time
from pathlib import Path
from hindsight_exec import RetainWriter, Settings

url, state = sys.argv[1:3]
writer = RetainWriter(
    Settings(api_url=url, bank_id="b", drain_timeout=30, retain_idle_seconds=60), state=Path(state)
)
main_is_over = threading.Event()
threading._register_atexit(main_is_over.set)  # called before our own

def give(number):
    writer.put(
        [
            {"role": "user", "content": f"User: {number} "},
            {"role": "assistant", "content": f"Assistant: {number} "},
        ],
        session="s",
    )
"""


@pytest.fixture
def server() -> Iterator[Serving]:
    serving = Serving()
    yield serving
    serving.close()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0, pytest.param(0.3, marks=pytest.mark.soak)])
def test_a_thread_that_lives_on_has_its_turns_delivered(
    server: Serving, state: Path, start: Any, pause: float
) -> None:
    """A server in a non-daemon thread outlives main, at once or for a minute: its turns arrive
    while it runs, and its last."""
    child = start(
        PROGRAM
        + f"pause = {pause}"
        + """
def serve():
    main_is_over.wait()
    for number in range(200):
        time.sleep(pause)
        give(number)
        if number % 20 == 19:
            assert writer.flush(60, completed=True)
            say(writer.counters().completed)
    give(200)

give("first")
threading.Thread(target=serve).start()
""",
        server.url,
        str(state),
    )
    ended = child.end(300)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.split() == [str(number) for number in range(21, 202, 20)]
    assert stored(server.url) == {"s": texts(["first", *range(201)])}


NO_THREADS = pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 3), reason="starts no thread once exit has begun"
)


@pytest.mark.parametrize("given", ["before", pytest.param("only", marks=NO_THREADS)])
def test_turns_that_still_arrive_at_exit_are_delivered(
    server: Serving, state: Path, run: Any, given: str
) -> None:
    """Exit waits for a daemon thread that is about to give the turns in its queue."""
    ended = run(
        PROGRAM
        + """
turns = queue.Queue()

def work():
    while True:
        give(turns.get())  # and no pause: on a busy machine, a short one may be a long one

for number in range(50):
    turns.put(number)
"""
        + ("give('first')\nassert writer.flush(60)\n" if given == "before" else "")
        + """
threading.Thread(target=work, daemon=True).start()
while turns.qsize() == 50:
    time.sleep(0.001)
""",
        server.url,
        str(state),
    )
    assert (ended.status, ended.err) == (0, "")
    first = ["first"] if given == "before" else []
    assert stored(server.url) == {"s": texts([*first, *range(50)])}


def test_a_put_in_progress_is_waited_for(server: Serving, state: Path, run: Any) -> None:
    """A put that a slow disk holds up as main ends is delivered, too."""
    ended = run(
        PROGRAM
        + """
from hindsight_exec.outbox.store import Outbox
put, begun = Outbox.put_for, threading.Event()

def slow(*args):
    begun.set()
    main_is_over.wait()
    time.sleep(0.3)
    return put(*args)

give(0)
Outbox.put_for = slow
threading.Thread(target=give, args=(1,), daemon=True).start()
begun.wait()
""",
        server.url,
        str(state),
    )
    assert (ended.status, ended.err) == (0, "")
    assert stored(server.url) == {"s": texts([0, 1])}


@pytest.mark.slow
def test_exit_waits_for_no_thread_that_never_pauses(server: Serving, state: Path, run: Any) -> None:
    """A daemon thread that gives turns without end is waited for within the bound only."""
    ended = run(
        PROGRAM.replace("drain_timeout=30", "drain_timeout=1")
        + """
def work():
    number = 0
    while True:
        give(number)
        number += 1
        time.sleep(0.01)

threading.Thread(target=work, daemon=True).start()
time.sleep(0.1)
""",
        server.url,
        str(state),
    )
    assert ended.status == 0
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("given", ["old", "new"])
def test_the_last_turns_of_all_are_kept_in_one_file(
    server: Serving, state: Path, run: Any, given: str
) -> None:
    """Turns that are given when everything is closed cost an insert each, and the next start sends them."""
    ended = run(
        PROGRAM
        + """
give("first")
assert writer.flush(60, completed=True)
def late():
    global writer
    if "new" in sys.argv:
        writer = RetainWriter(writer.settings, state=Path(state))
    for number in range(50):
        give(number)
    say(len(list(Path(state).glob("*.db"))), writer.counters().waiting, writer.flush(60))
atexit.register(late)
""",
        server.url,
        str(state),
        given,
    )
    assert (ended.status, ended.err) == (0, "")
    assert ended.out == "1 50 False\n"
    ended = run(PROGRAM + "assert writer.deliver_all(60)", server.url, str(state))
    assert (ended.status, ended.err) == (0, "")
    assert stored(server.url) == {"s": texts(["first", *range(50)])}


@pytest.mark.slow
def test_a_worker_that_exit_overtakes_says_nothing(server: Serving, state: Path, run: Any) -> None:
    """A worker that is about to send when the loop has closed leaves the turn on disk, quietly."""
    ended = run(
        PROGRAM.replace("drain_timeout=30", "drain_timeout=0.1")
        + """
from hindsight_exec.client.loop import BackgroundLoop
run, tried = BackgroundLoop.run, threading.Event()

def late(loop, coroutine):
    while not loop._closed:
        time.sleep(0.01)
    try:
        return run(loop, coroutine)
    finally:
        tried.set()

BackgroundLoop.run = late
atexit.register(lambda: tried.wait(30) and time.sleep(0.5))  # time to say something
give(0)
writer.end_session("s")
""",
        server.url,
        str(state),
    )
    assert ended.status == 0
    said = [line for line in ended.err.splitlines() if "saved on disk" not in line]
    assert [line for line in said if "abandoned" not in line] == []
    writer = RetainWriter(Settings(api_url=server.url, bank_id="b"), state=state)
    assert writer.flush(60)
    assert writer.close()
    assert stored(server.url) == {"s": texts([0])}
