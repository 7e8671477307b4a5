"""Faults under the outbox: the chat goes on, and what can still be read is delivered."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Callable

import pytest
from filling import batch_of, close_all, source
from serving import Serving, documents, free_port, stored, texts, turn
from waiting import eventually

from hindsight_exec.conversation import turns
from hindsight_exec.delivery import worker as delivery
from hindsight_exec.delivery.writer import RetainWriter
from hindsight_exec.errors import OutboxUnavailable
from hindsight_exec.outbox import spool
from hindsight_exec.outbox.schema import VERSION
from hindsight_exec.outbox.store import Outbox
from hindsight_exec.settings.config import Settings

pytestmark = pytest.mark.slow

IN_MEMORY = "Turns are kept in memory only"

# A program that has a writer; `trouble` is what the user was told.
GIVE = """\
import errno, fcntl, logging, os, resource, sys, time
from pathlib import Path
from hindsight_exec.settings.config import Settings
from hindsight_exec.delivery.writer import RetainWriter

logging.basicConfig(level=logging.WARNING)
trouble = []

def make():
    return RetainWriter(
        Settings(api_url=sys.argv[1], bank_id="b", drain_timeout=30.0),
        state=Path(sys.argv[2]),
        on_trouble=trouble.append,
    )

def turn(number, words=""):
    return [
        {"role": "user", "content": f"User: {number} {words}"},
        {"role": "assistant", "content": f"Assistant: {number} {words}"},
    ]
"""


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount small file systems: `mounted("size=300k")` returns where."""
    points: list[Path] = []

    def mounted(options: str) -> Path:
        point = tmp_path / f"mounted{len(points)}"
        point.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(point)]
        if sys.platform != "linux" or os.getuid() != 0 or subprocess.run(command).returncode:
            pytest.skip("cannot mount a file system")
        points.append(point)
        return point

    yield mounted
    for point in points:
        subprocess.run(["umount", "-l", str(point)], check=True)


def left(state: Path) -> list[Path]:
    return spool.files(state)


def errors(caplog: Any) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR]


# --- the disk -----------------------------------------------------------------


def test_disk_full(mounted: Any, write: Any, caplog: Any) -> None:
    """With a full disk turns go through memory, told once; with room again all are delivered."""
    folder = mounted("size=3m")
    (folder / "ballast").write_bytes(b"x" * 2_700_000)
    port = free_port()
    trouble: list[str] = []
    writer = write(f"http://127.0.0.1:{port}", folder / "state", on_trouble=trouble.append)
    for number in range(150):
        writer.put(turn(number, "x" * 2000), session="s")
    assert writer.counters().waiting == 150
    eventually(lambda: any(one.startswith(IN_MEMORY) for one in trouble))
    assert sum(one.startswith(IN_MEMORY) for one in trouble) == 1
    assert sum(one.startswith(IN_MEMORY) for one in errors(caplog)) == 1
    (folder / "ballast").unlink()
    serving = Serving(port=port)
    try:
        eventually(lambda: writer.flush(5, completed=True))
        assert sorted(stored(serving.url)["s"]) == sorted(texts(range(150), "x" * 2000))
        assert writer.close()
    finally:
        serving.close()
    assert left(folder / "state") == []


def test_turns_in_memory_go_to_disk(mounted: Any, write: Any, run: Any) -> None:
    """As soon as the disk has room, what was kept in memory is on it, and survives a kill.

    The room is that of the turns, not of the log that SQLite would gather.
    """
    folder = mounted("size=2500k")
    program = GIVE + (
        "from hindsight_exec.delivery import worker\n"
        "worker._DISK_PAUSE = 0.05\n"
        "ballast = Path(sys.argv[2]).parent / 'ballast'\n"
        "ballast.write_bytes(b'x' * 2_200_000)\n"
        "writer = make()\n"
        "for number in range(150):\n"
        "    writer.put(turn(number, 'x' * 2000), session='s')\n"
        "writer.put(turn(150), session='t', immediate=True)\n"
        "while not (told := [one for one in trouble if 'unreachable' not in one]):\n"
        "    time.sleep(0.01)\n"
        "assert len(told) == 1, trouble\n"
        "ballast.unlink()\n"
        "while any(one.outbox.summary().waiting for one in writer._engine.delivery.backlogs\n"
        "          if one.outbox.path is None):\n"
        "    time.sleep(0.01)\n"
        "os._exit(0)\n"
    )
    port = free_port()
    ended = run(program, f"http://127.0.0.1:{port}", str(folder / "state"))
    assert ended.status == 0, ended.err
    serving = Serving(port=port)
    try:
        writer = write(serving.url, folder / "state")
        assert writer.deliver_all(60)
        eventually(lambda: not left(folder / "state"))
        found = stored(serving.url)
        assert sorted(found["s"]) == sorted(texts(range(150), "x" * 2000))
        assert found["t"] == texts([150])
    finally:
        serving.close()


STEPS = [
    "source", "destinations", "held_turns", "close_documents", "ready",
    "make_batch", "items", "note", "turns_of", "complete", "vacuum", "is_empty",
]  # fmt: skip


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("step", STEPS)
def test_a_disk_that_fails_for_a_while(
    server: Serving, state: Path, write: Any, monkeypatch: Any, step: str, times: int
) -> None:
    """Whatever step of the delivery the disk refuses, it is done later, and nothing waits."""
    monkeypatch.setattr(delivery, "_DISK_PAUSE", 0.05)
    whole = getattr(Outbox, step)
    failures = iter(range(times))

    def fail(self: Outbox, *arguments: Any) -> Any:
        if next(failures, None) is not None:
            raise OutboxUnavailable("disk I/O error")
        return whole(self, *arguments)

    writer = write(server.url, state)
    monkeypatch.setattr(Outbox, step, fail)
    for number in range(5):
        writer.put(turn(number), session="s")
    writer.put(turn(5), session="s", immediate=True)
    for _ in range(100):
        if writer.flush(1, completed=True):
            break
    assert writer.close()
    assert sorted(stored(server.url)["s"]) == sorted(texts(range(6)))


# A disk that failed to sync may refuse to read the file, too, until it has recovered.
UNREADABLE = """
from hindsight_exec.errors import OutboxUnavailable
from hindsight_exec.outbox.store import Outbox

def unfinished(outbox, read=Outbox.unfinished):
    if outbox.path is not None:
        raise OutboxUnavailable("not recovered")
    return read(outbox)

Outbox.unfinished = unfinished
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on file sizes")
@pytest.mark.parametrize("readable", [True, False])
def test_a_limit_on_file_sizes(run: Any, state: Path, server: Serving, readable: bool) -> None:
    """A file that may not grow is a disk that is full: nothing is lost, and it is said once."""
    program = GIVE + (
        "resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))\n"
        + ("" if readable else UNREADABLE)
        + "writer = make()\n"
        "for number in range(100):\n"
        "    writer.put(turn(number, 'x' * 2000), session=str(number))\n"
        "writer.flush(3)\n"
        "print(sum(one.startswith('Turns are kept in memory') for one in trouble))\n"
    )
    ended = run(program, server.url, str(state))
    assert (ended.status, ended.out) == (0, "1\n")
    assert ended.err.count(IN_MEMORY) == 1
    assert "Traceback" not in ended.err
    # What is on disk needs room to be delivered: the next process has it.
    writer = RetainWriter(Settings(api_url=server.url, bank_id="b"), state=state)
    eventually(lambda: not left(state))
    assert writer.close()
    assert stored(server.url) == {str(number): texts([number], "x" * 2000) for number in range(100)}


def test_a_read_only_folder(mounted: Any, write: Any, server: Serving, caplog: Any) -> None:
    """What waits in it is left, with a warning; new turns go through memory, told once."""
    folder = mounted("size=2m")
    state = folder / "state"
    claim = spool.create(state)
    with closing(Outbox(claim.path)) as outbox:
        outbox.put(source("old", url=server.url), turns.turn(turn(0), given_at=1.7e9, index=1))
    claim.release()
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    writer = write(server.url, state)
    for number in range(10):
        writer.put(turn(number), session="s")
    assert writer.flush(60)
    assert stored(server.url) == {"s": texts(range(10))}
    assert sum(one.startswith(IN_MEMORY) for one in errors(caplog)) == 1
    assert writer.close()
    subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
    writer = write(server.url, state)
    eventually(lambda: not left(state))
    assert stored(server.url)["old"] == texts([0])


def test_a_file_in_the_folders_place(write: Any, server: Serving, state: Path) -> None:
    """Where no folder can be made, turns go through memory and arrive."""
    state.write_text("in the way")
    trouble: list[str] = []
    writer = write(server.url, state, on_trouble=trouble.append)
    for number in range(10):
        writer.put(turn(number), session="s")
    assert writer.flush(60, completed=True)
    assert stored(server.url) == {"s": texts(range(10))}
    eventually(lambda: trouble)
    assert [one[: len(IN_MEMORY)] for one in trouble] == [IN_MEMORY]
    assert state.read_text() == "in the way"


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be removed there")
def test_the_folder_is_removed_while_running(write: Any, server: Serving, state: Path) -> None:
    """What was taken before and after is delivered by the process that took it."""
    writer = write(server.url, state)
    for number in range(5):
        writer.put(turn(number), session="s")
    shutil.rmtree(state)
    for number in range(5, 10):
        writer.put(turn(number), session="s")
    assert writer.flush(60, completed=True)
    assert sorted(stored(server.url)["s"]) == sorted(texts(range(10)))
    assert writer.close()


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be removed there")
def test_turns_given_after_the_folder_was_removed(
    run: Any, write: Any, server: Serving, state: Path
) -> None:
    """They are on disk all the same: a later process delivers them."""
    program = GIVE + (
        "import shutil\n"
        "writer = make()\n"
        "writer.put(turn(0), session='s')\n"
        "shutil.rmtree(sys.argv[2])\n"
        "for number in range(1, 5):\n"
        "    writer.put(turn(number), session='s')\n"
        "os._exit(0)\n"
    )
    assert run(program, f"http://127.0.0.1:{server.url.rpartition(':')[2]}", str(state)).status == 0
    write(server.url, state)
    eventually(lambda: stored(server.url) == {"s": texts(range(1, 5))})


# --- damaged files ------------------------------------------------------------


def dead_process(state: Path, session: str, url: str) -> Path:
    """The file of a process that was killed: dead letters, batches, documents, held turns; a part
    of it in the log."""
    claim = spool.create(state)
    given = source(session, url=url)
    with closing(Outbox(claim.path, synchronous="NORMAL")) as outbox:
        for number in range(24):
            held = outbox.put(
                given, turns.turn(turn(number), given_at=1.7e9 + number, index=number)
            )
            if number in (5, 11, 17):
                destination = close_all(outbox, held)
                if number < 17:
                    batch_of(outbox, destination, str(uuid.uuid4()))
            if number == 11:
                outbox._db.first("PRAGMA wal_checkpoint(TRUNCATE)")
        copies = [path.read_bytes() for path in files_of(claim.path)]
    for path, content in zip([claim.path, Path(f"{claim.path}-wal")], copies):
        path.write_bytes(content)  # as SIGKILL leaves it: closing has tidied up
    claim.release()
    return claim.path


def files_of(path: Path) -> list[Path]:
    return [path, Path(f"{path}-wal")]


def readable(path: Path) -> set[str]:
    """The texts that somebody who knows SQLite can still get at, from a copy."""
    copy = path.parent.parent / f"copy-{path.name}"
    for one, other in zip(files_of(path), files_of(copy)):
        if one.exists():
            shutil.copy(one, other)
    found: set[str] = set()
    with suppress(sqlite3.Error), closing(sqlite3.connect(copy)) as db:
        if db.execute("PRAGMA user_version").fetchone()[0] != VERSION:
            return set()
        sources = {}
        for number, header in db.execute("SELECT id, header FROM sources"):
            with suppress(ValueError, TypeError):
                sources[number] = json.loads(header)["session"]
        for number, sizes, payload in db.execute("SELECT source, sizes, payload FROM turns"):
            with suppress(ValueError, TypeError):
                if number in sources and len(json.loads(sizes)) == 2:
                    found.update(one["content"] for one in json.loads(f"[{payload}]"))
        for number, document_id, item in db.execute(
            "SELECT source, document_id, item FROM documents"
        ):
            with suppress(ValueError, TypeError):
                read = json.loads(item)
                if number in sources and read["document_id"] == document_id:
                    found.update(one["content"] for one in json.loads(read["content"]))
    return found


Mutation = Callable[[random.Random, bytearray, int], None]


def overwrite(chance: random.Random, content: bytearray, page: int) -> None:
    start = page * 4096 + chance.randrange(4096)
    noise = bytes(chance.randrange(256) for _ in range(chance.choice([1, 4, 50, 600])))
    content[start : start + len(noise)] = noise


def erase(chance: random.Random, content: bytearray, page: int) -> None:
    content[page * 4096 : (page + 1) * 4096] = bytes(4096)


def swap(chance: random.Random, content: bytearray, page: int) -> None:
    other = chance.randrange(len(content) // 4096)
    content[page * 4096 : (page + 1) * 4096] = content[other * 4096 : (other + 1) * 4096]


def truncate(chance: random.Random, content: bytearray, page: int) -> None:
    del content[page * 4096 + chance.randrange(4096) :]


MUTATIONS: list[Mutation] = [overwrite, overwrite, erase, swap, truncate]


def damage(chance: random.Random, path: Path, mutation: Mutation, where: int) -> None:
    """Change the database or its log at some page."""
    database, log = files_of(path)
    pages = database.stat().st_size // 4096
    victim, page = (database, where) if where < pages else (log, where - pages)
    content = bytearray(victim.read_bytes())
    mutation(chance, content, page % max(1, len(content) // 4096))
    victim.write_bytes(content)


def deliver_damaged(
    rounds: int, seed: int, server: Serving, state: Path, write: Any, caplog: Any
) -> None:
    chance = random.Random(seed)
    expected: dict[str, set[str]] = {}
    for number in range(rounds):
        session = f"session{number}"
        path = dead_process(state, session, server.url)
        pages = sum(one.stat().st_size for one in files_of(path)) // 4096
        damage(chance, path, MUTATIONS[number % len(MUTATIONS)], number % pages)
        expected[session] = readable(path)
    writer = write(server.url, state)
    for number in range(5):
        writer.put(turn(number), session="alive")
    assert writer.flush(60)
    eventually(lambda: len(left(state)) <= 1)
    assert writer.close()
    found = stored_leniently(server.url)
    assert found["alive"] == set(texts(range(5)))
    lost = {key: texts - found.get(key, set()) for key, texts in expected.items()}
    assert not {key: texts for key, texts in lost.items() if texts}
    assert not [one for one in errors(caplog) if "Delivery failed" in one]


def stored_leniently(url: str) -> dict[str, set[str]]:
    """As `stored`, where some documents hold damaged text."""
    found: dict[str, set[str]] = {}
    for document in documents(url):
        with suppress(ValueError, TypeError, KeyError):
            messages = json.loads(document["original_text"])
            session = document["id"].rpartition("/")[0]
            found.setdefault(session, set()).update(one["content"] for one in messages)
    return found


def test_files_damaged_at_every_page(server: Serving, state: Path, write: Any, caplog: Any) -> None:
    """Overwritten, erased, swapped or cut off at every page of the file and of its log."""
    deliver_damaged(50, 1, server, state, write, caplog)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 12))
def test_files_damaged_hundreds_of_times(
    server: Serving, state: Path, write: Any, caplog: Any, seed: int
) -> None:
    """The same with 600 mutations."""
    deliver_damaged(60, seed, server, state, write, caplog)


# Damages pages of a file that another process has open.
DAMAGE = """\
import os, random, sys
path, seed = sys.argv[1], int(sys.argv[2])
chance = random.Random(seed)
with open(path, "r+b") as file:
    size = os.path.getsize(path)
    for page in range(seed % 3, size // 4096, 3):
        file.seek(page * 4096 + chance.randrange(4096))
        file.write(bytes(chance.randrange(256) for _ in range(chance.choice([1, 50, 2000]))))
    if seed % 4 == 3:
        file.truncate(size // 2)
"""


def damage_while_running(
    rounds: int, seed: int, server: Serving, state: Path, write: Any, caplog: Any
) -> None:
    chance = random.Random(seed)
    writer = write(server.url, state)
    number = 0
    for _ in range(rounds):
        for _ in range(chance.randint(1, 12)):
            number += 1
            writer.put(turn(number, "x" * chance.choice([1, 900])), session="s")
        for path in left(state):
            victim = chance.choice([one for one in files_of(path) if one.exists()])
            command = [sys.executable, "-c", DAMAGE, str(victim), str(chance.randrange(100))]
            subprocess.run(command, check=True)
        if chance.random() < 0.5:
            writer.end_session("s")
        if chance.random() < 0.3:
            writer.flush(1)
        assert writer.counters().given == number
        repr(writer)
    writer.close(20)
    writer = write(server.url, state)
    writer.put(turn(0), session="alive")
    assert writer.flush(60, completed=True)
    assert writer.close()
    found = stored_leniently(server.url)
    assert found["alive"] == set(texts([0]))
    assert not [one for one in errors(caplog) if "Delivery failed" in one]


def test_a_file_damaged_while_running(
    server: Serving, state: Path, write: Any, caplog: Any
) -> None:
    """Whatever becomes of the open file and its log, put() raises nothing and the chat goes on."""
    damage_while_running(20, 1, server, state, write, caplog)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 12))
def test_a_file_damaged_while_running_for_long(
    server: Serving, state: Path, write: Any, caplog: Any, seed: int
) -> None:
    """The same hundreds of times."""
    damage_while_running(60, seed, server, state, write, caplog)


def test_files_that_are_none_of_ours(server: Serving, state: Path, write: Any, caplog: Any) -> None:
    """A newer file is left alone, one that is no outbox is set aside, and both stop no other."""
    newer, other = (dead_process(state, session, server.url) for session in ("newer", "other"))
    with closing(sqlite3.connect(newer)) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
    (state / "0.db").write_bytes(b"no database" * 1000)
    (state / "1.db").touch()
    (state / "2.db").symlink_to(state.parent / "elsewhere")
    writer = write(server.url, state)
    eventually(lambda: not other.exists() and len(spool.aside(state)) == 1)
    assert writer.close()
    assert left(state) == sorted([state / "2.db", newer])
    assert stored_leniently(server.url) == {"other": set(texts(range(24)))}
    aside = sorted(one.name.split(".")[1].split("-")[0] for one in spool.aside(state))
    assert aside == ["damaged"]
    assert len(errors(caplog)) == 1
    warned = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert [one for one in warned if newer.name in one and "start a newer hindsight-exec" in one]
    assert not (state.parent / "elsewhere").exists()
    before = sorted(one.name for one in state.iterdir())
    assert write(server.url, state).close()
    assert sorted(one.name for one in state.iterdir()) == before


# --- the clock ----------------------------------------------------------------


@pytest.mark.parametrize("at", [0.5, 1.0, 4e9, 8e9])
def test_a_clock_that_is_wrong(run: Any, state: Path, server: Serving, at: float) -> None:
    """With a clock in 1970, 2096 or 2223 turns arrive as with any other."""
    program = GIVE + (
        f"time.time = lambda: {at}\n"
        "writer = make()\n"
        "for number in range(5):\n"
        "    writer.put(turn(number), session='s')\n"
        "assert writer.flush(60, completed=True)\n"
        "writer.put(turn(5), session='s', immediate=True)\n"
    )
    ended = run(program, server.url, str(state))
    assert (ended.status, ended.err) == (0, "")
    assert stored(server.url) == {"s": texts(range(6))}


def test_a_clock_that_is_set(run: Any, state: Path, server: Serving) -> None:
    """Set back and forward by years, it changes neither the order nor what arrives."""
    program = GIVE + (
        "real, shift = time.time, [0.0]\n"
        "time.time = lambda: real() + shift[0]\n"
        "writer = make()\n"
        "for number, years in enumerate([0, -5, 10, -20, 0, 3, -3, 30, 0, -1]):\n"
        "    shift[0] = years * 31_536_000.0\n"
        "    writer.put(turn(number), session='s')\n"
        "    if number % 3 == 2:\n"
        "        assert writer.flush(60)\n"
        "assert writer.flush(60, completed=True)\n"
    )
    ended = run(program, server.url, str(state))
    assert (ended.status, ended.err) == (0, "")
    assert stored(server.url) == {"s": texts(range(10))}


# --- many files, no locks -----------------------------------------------------


def adopt_many(count: int, server: Serving, state: Path, write: Any, caplog: Any) -> None:
    for number in range(count):
        claim = spool.create(state)
        with closing(Outbox(claim.path, synchronous="NORMAL")) as outbox:
            one = turns.turn(turn(number), given_at=1.7e9 + number, index=1)
            outbox.put(source(f"session{number}", url=server.url), one)
        claim.release()
    most = 0

    def all_gone() -> bool:
        nonlocal most
        with suppress(FileNotFoundError):
            most = max(most, len(list(state.glob("*-wal"))))
        return len(left(state)) <= 1  # our own

    writer = write(server.url, state)
    writer.put(turn(0), session="alive")
    assert writer.flush(60)
    eventually(all_gone, seconds=60 + count)
    assert writer.close()
    found = stored(server.url)
    assert found.pop("alive") == texts([0])
    assert found == {f"session{number}": texts([number]) for number in range(count)}
    assert most <= 70  # open at once
    assert not errors(caplog)


def test_many_orphans(server: Serving, state: Path, write: Any, caplog: Any) -> None:
    """Hundreds of files that dead processes left are delivered, a few open at a time."""
    adopt_many(100, server, state, write, caplog)


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_two_thousand_orphans(server: Serving, state: Path, write: Any, caplog: Any) -> None:
    """So are two thousand."""
    adopt_many(2000, server, state, write, caplog)


@pytest.mark.skipif(sys.platform == "win32", reason="flock is POSIX")
def test_locks_are_refused(run: Any, state: Path, server: Serving) -> None:
    """A file system without locks: turns go through memory, with one warning, and arrive."""
    program = GIVE + (
        "def refuse(*_):\n"
        "    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))\n"
        "fcntl.flock = refuse\n"
        "writer = make()\n"
        "for number in range(10):\n"
        "    writer.put(turn(number), session='s')\n"
        "assert writer.flush(60)\n"
        "print(len(trouble))\n"
    )
    ended = run(program, server.url, str(state))
    assert (ended.status, ended.out) == (0, "1\n")
    assert ended.err.count("\n") == 1
    assert IN_MEMORY in ended.err
    assert stored(server.url) == {"s": texts(range(10))}


# --- hostile input, and secrets -----------------------------------------------


@pytest.mark.parametrize(
    "session",
    ["../../etc/passwd", "a/b//c/", "%2F%00", "\x01\x1b[31m\x7f", "\u202e\U0001f600", "s" * 10_000],
    ids=repr,
)
def test_odd_sessions(server: Serving, state: Path, write: Any, session: str) -> None:
    """Any text can be a session, and its turns are found under it."""
    writer = write(server.url, state)
    writer.put(turn(1), session=session)
    writer.put(turn(2), session=session, immediate=True)
    writer.end_session(session)
    assert writer.flush(60, session=session, completed=True)
    (found,) = stored(server.url).values()
    assert sorted(found) == sorted(texts([1, 2]))
    assert [one.name for one in state.parent.iterdir()] == ["state"]


def test_odd_texts(server: Serving, state: Path, write: Any) -> None:
    """NUL, lone surrogates, escapes and ten megabytes arrive, but for what no server keeps."""
    writer = write(server.url, state)
    given = ["a\x00b", "a\ud800b", "\\u0000", "x" * 10_000_000, "\x7f\u2028\U0001f600"]
    for text in given:
        writer.put([{"role": "user", "content": text}], session="s")
    assert writer.flush(100, completed=True)
    assert stored(server.url)["s"] == ["ab", "ab", *given[2:]]


def test_the_key_is_nowhere(
    state: Path, write: Any, caplog: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither the files, nor the log, nor a repr, nor an error holds the key."""
    caplog.set_level(logging.DEBUG)
    key = "hsk-very-secret-0123456789"
    given = Settings(api_url=f"http://127.0.0.1:{free_port()}", bank_id="b", api_key=key)
    trouble: list[str] = []
    writer = RetainWriter(given, state=state, on_trouble=trouble.append)
    writer.put(turn(1), session="s")
    writer.put(turn(2), session="s", immediate=True)
    assert not writer.flush(0.5)
    shown = [repr(writer), repr(given), repr(writer.counters()), *trouble, caplog.text]
    with closing(Outbox(left(state)[0], readonly=True)) as outbox:
        shown += [repr(outbox.entries()), repr(outbox.summary()), repr(outbox.destinations())]
    content = [one.read_bytes().decode("latin-1") for one in state.iterdir()]
    writer.close(0)
    shown += capfd.readouterr()
    content += [one.read_bytes().decode("latin-1") for one in state.iterdir()]
    assert not [one for one in [*shown, *content] if key in one or "very-secret" in one]
