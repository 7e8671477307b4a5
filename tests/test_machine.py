"""All that can be done to an executor and to an outbox, in any order, against a simple model."""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import traceback
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import pytest
from children import Child
from filling import documents_of, source, turn
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from waiting import collect

from hindsight_exec import DrainingExecutor, ExecutorClosed
from hindsight_exec.conversation import turns
from hindsight_exec.conversation.turns import Source, Turn
from hindsight_exec.errors import OutboxFull
from hindsight_exec.executor.waiting import acquire
from hindsight_exec.outbox import spool
from hindsight_exec.outbox import store as outbox_room
from hindsight_exec.outbox.salvage import salvage
from hindsight_exec.outbox.schema import Batch
from hindsight_exec.outbox.store import MAX_BYTES, Outbox

pytestmark = pytest.mark.slow

LIMIT = 60  # seconds to fail after, never reached

SETTINGS = settings(
    deadline=None,
    max_examples=20,
    stateful_step_count=30,
    suppress_health_check=[*HealthCheck],
)
FOR_LONG = settings(SETTINGS, max_examples=200, stateful_step_count=50)


numbers = itertools.count(1000)  # of equal length: no name is in another one

# --- the executor -------------------------------------------------------------


@dataclass(eq=False)
class Job:
    """A job as the model knows it."""

    number: float
    kind: str
    future: Future[Any] = field(default_factory=Future)
    entered: threading.Event = field(default_factory=threading.Event)
    leave: threading.Event = field(default_factory=threading.Event)
    cancelled: bool = False

    @property
    def held_up(self) -> bool:
        return self.kind == "blocks" and not self.leave.is_set()


class Executor(RuleBasedStateMachine):
    """Jobs are taken first in, first out, by as many workers as there are, and each runs once.

    Between two steps all is still: the workers idle, or wait in jobs that block. What must have
    happened by then is computed by `settle`, and waited for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.name = ""
        self.logged: list[str] = []
        self.handler = logging.Handler()
        self.handler.emit = self.note
        logging.getLogger("hindsight_exec").addHandler(self.handler)

    def note(self, record: logging.LogRecord) -> None:
        # What earlier tests left to the collector may be reported here.
        if self.name and self.name in record.getMessage():
            self.logged.append(record.getMessage())

    @initialize(workers=st.sampled_from([1, 1, 2, 3]), releases=st.booleans())
    def begin(self, workers: int, releases: bool) -> None:
        self.name = f"machine {next(numbers)}"
        self.workers = workers
        self.releases = releases  # by on_deadline, which else is not given
        self.executor: Optional[DrainingExecutor] = DrainingExecutor(
            workers,
            self.name,
            on_closing=lambda: self.told.append("closing"),
            on_deadline=self.on_deadline if releases else None,
        )
        self.told: list[str] = []
        self.followers: dict[float, Job] = {}  # submitted by jobs
        self.jobs: list[Job] = []
        self.queue: list[Job] = []
        self.running: list[Job] = []
        self.ran: list[float] = []
        self.expected: list[float] = []
        self.closed = self.expired = False
        self.forks = 0

    def on_deadline(self) -> None:
        self.told.append("deadline")
        for job in self.running:
            job.leave.set()

    # --- what a job does ---

    def job(self, job: Job, executor: weakref.ref[DrainingExecutor]) -> float:
        self.ran.append(job.number)
        job.entered.set()
        if job.kind == "raises":
            raise LookupError(job.number)
        if job.kind == "calls back":
            assert job.leave.wait(LIMIT)  # until the callback is there
        if job.kind == "blocks":
            assert job.leave.wait(LIMIT)
        if job.kind == "submits" and (own := executor()) is not None:
            follower = Job(job.number + 0.5, "ends")
            try:
                follower.future = own.submit(self.job, follower, executor)
            except ExecutorClosed:
                return job.number
            self.followers[job.number] = follower
        return job.number

    # --- the model ---

    def settle(self) -> None:
        """Let happen all that can, and see that it has."""
        for job in self.running:
            assert job.held_up or job.future.result(LIMIT) == job.number
        self.running = [job for job in self.running if job.held_up]
        while self.queue and len(self.running) < self.workers:
            job = self.queue.pop(0)
            if job.cancelled:
                continue
            self.expected.append(job.number)
            assert job.entered.wait(LIMIT)
            if job.held_up:
                self.running.append(job)
                continue
            follows = job.kind == "submits" and self.executor is not None and not self.closed
            assert isinstance(job.future.exception(LIMIT), LookupError) == (job.kind == "raises")
            follower = self.followers.pop(job.number, None)
            assert (follower is not None) == follows
            if follower is not None:
                self.jobs.append(follower)
                self.queue.append(follower)
        if self.executor is None:
            return
        for _ in range(100 * LIMIT):
            # The count follows the future; a drain that ends in vain does not matter to it.
            if self.executor.pending == self.pending:
                return
            self.executor.drain(0.01)
        raise AssertionError(f"{self.executor} instead of {self.pending}")

    def release(self) -> None:
        for job in self.jobs:
            job.leave.set()

    def cancel_queue(self) -> None:
        for job in self.queue:
            job.cancelled = True
        self.queue = []

    @property
    def pending(self) -> int:
        return len(self.running) + len(self.queue)

    # --- what is done to it ---

    # A job that blocks is what lets others wait.
    kinds = st.sampled_from(
        ["blocks", "blocks", "blocks", "ends", "raises", "submits", "calls back"]
    )

    @precondition(lambda self: self.executor is not None)
    @rule(kinds=st.lists(kinds, min_size=1, max_size=6))
    def submit(self, kinds: list[str]) -> None:
        for kind in kinds:
            job = Job(len(self.jobs), kind)
            if self.closed:
                with pytest.raises(ExecutorClosed):
                    self.executor.submit(pytest.fail, "was refused")
                continue
            job.future = self.executor.submit(self.job, job, weakref.ref(self.executor))
            if kind == "calls back":
                # A done callback that would end a worker which does not expect it.
                job.future.add_done_callback(lambda _: sys.exit("from a callback"))
                job.leave.set()
            self.jobs.append(job)
            self.queue.append(job)
            if kind == "submits":
                self.settle()  # or what it submits would race with what comes next
        self.settle()

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), queued=st.booleans())
    def cancel(self, data: Any, queued: bool) -> None:
        jobs = self.queue if queued and self.queue else self.jobs
        job = jobs[data.draw(st.integers(0, len(jobs) - 1))]
        if job.kind == "calls back" and job in self.queue and not job.cancelled:
            with pytest.raises(SystemExit):  # from its callback
                job.future.cancel()
        else:
            assert job.future.cancel() == (job in self.queue or job.cancelled)
        job.cancelled |= job in self.queue

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def release_one(self, data: Any) -> None:
        self.running[data.draw(st.integers(0, len(self.running) - 1))].leave.set()
        self.settle()

    @precondition(lambda self: self.running)
    @rule()
    def release_all(self) -> None:
        self.release()
        self.settle()

    @precondition(lambda self: self.executor is not None and self.jobs)
    @rule(bound=st.sampled_from([None, 0, 0.01, LIMIT]))
    def drain(self, bound: Optional[float]) -> None:
        if self.pending:
            bound = min(bound or 0, 0.01)
        assert self.executor.drain(bound) == (not self.pending)

    @precondition(lambda self: self.executor is not None and self.running and not self.closed)
    @rule(each=st.booleans())
    def drain_meanwhile(self, each: bool) -> None:
        """A drain that waits already ends with what was accepted before it, not with what comes."""
        thread = self.waiting(self.executor.drain)
        late = Job(len(self.jobs), "blocks")
        late.future = self.executor.submit(self.job, late, weakref.ref(self.executor))
        if each:
            assert not self.executor.drain(0)  # the late one is of a wave of its own
        self.release()
        self.jobs.append(late)
        self.queue.append(late)
        thread.join(LIMIT)
        assert not thread.is_alive()
        self.settle()

    @precondition(lambda self: self.executor is not None and self.jobs)
    @rule(wait=st.booleans(), cancel=st.booleans(), bound=st.sampled_from([None, 0, 0.01]))
    def shutdown(self, wait: bool, cancel: bool, bound: Optional[float]) -> None:
        if not wait:
            self.executor.shutdown(wait=False, cancel_futures=cancel)
        elif not self.pending:
            self.executor.shutdown(cancel_futures=cancel, timeout=bound and LIMIT)
        else:
            self.executor.shutdown(cancel_futures=cancel, timeout=bound or 0)
        self.closed = True
        if cancel:
            self.cancel_queue()
        if wait and self.pending and not self.expired:
            self.expired = True
            undone = sum(not job.cancelled for job in self.queue) + len(self.running)
            self.cancel_queue()
            left = [
                int(re.findall("[0-9]+ job", text)[0][:-4])
                for text in self.logged
                if "abandoned" in text
            ]
            assert self.releases or left == [undone]
        self.settle()

    @precondition(lambda self: self.executor is not None and self.running)
    @rule()
    def shutdown_meanwhile(self) -> None:
        """A shutdown waits for what was accepted, and what comes is refused."""
        thread = self.waiting(self.executor.shutdown)
        self.closed = True
        with pytest.raises(ExecutorClosed):
            self.executor.submit(pytest.fail, "was refused")
        self.release()
        self.settle()
        thread.join(LIMIT)
        assert not thread.is_alive()
        assert not self.pending

    def waiting(self, call: Any) -> threading.Thread:
        """A thread that calls, and waits already."""
        thread = threading.Thread(target=call)
        thread.start()
        while True:
            frame = sys._current_frames().get(thread.ident)
            assert frame is not None
            if frame.f_code is acquire.__code__:
                return thread

    @precondition(lambda self: self.executor is not None and self.pending)
    @rule()
    def collect(self) -> None:
        """Nobody holds the executor any more; what it accepted goes on."""
        gone = weakref.ref(self.executor)
        self.executor = None
        collect()
        assert gone() is None

    @precondition(lambda self: hasattr(os, "fork") and self.jobs and self.forks < 3)
    @rule()
    def fork(self) -> None:
        self.forks += 1
        with warnings.catch_warnings():
            # That threads are alive is what this is about.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:
            status = 1
            try:
                self.live_in_child()
                status = 0
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0

    def live_in_child(self) -> None:
        """The executor is empty here, as open or closed as it was, and works."""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LIMIT)
        ran = [*self.ran]
        waiting = [*self.queue, *self.running]
        executor = self.executor if self.executor is not None else DrainingExecutor()
        assert executor.pending == 0
        assert executor.closing == (self.closed and self.executor is not None)
        assert executor.drain(0)
        own: list[int] = []
        if executor.closing:
            with pytest.raises(ExecutorClosed):
                executor.submit(pytest.fail, "was refused")
        else:
            futures = [executor.submit(own.append, number) for number in range(5)]
            assert executor.drain(LIMIT)
            assert sorted(own) == [*range(5)]
            assert self.workers > 1 or own == [*range(5)]
            assert [future.result(0) for future in futures] == [None] * 5
        executor.shutdown(timeout=LIMIT)
        assert executor.closing
        with pytest.raises(ExecutorClosed):
            executor.submit(pytest.fail, "was refused")
        assert self.ran == ran
        assert not any(job.future.done() for job in waiting if not job.cancelled)

    @precondition(lambda self: self.executor is None or self.closed)
    @rule(workers=st.sampled_from([1, 1, 2, 3]), releases=st.booleans())
    def begin_again(self, workers: int, releases: bool) -> None:
        self.finish()
        self.begin(workers, releases)

    # --- what is true at any time ---

    @invariant()
    def runs_in_order_and_once(self) -> None:
        if self.workers == 1:
            assert self.ran == self.expected
        else:
            assert sorted(self.ran) == sorted(self.expected)

    @invariant()
    def futures_tell(self) -> None:
        for job in self.jobs:
            held = job in self.running or (job in self.queue and not job.cancelled)
            assert job.future.done() == (not held), job
            assert job.future.cancelled() == job.cancelled, job
            assert job.future.running() == (job in self.running), job

    @invariant()
    def says_what_it_is(self) -> None:
        told = ["closing"] * self.closed + ["deadline"] * (self.expired and self.releases)
        assert self.told == told
        if self.executor is None:
            return
        assert self.executor.pending == self.pending
        assert self.executor.closing == self.closed
        closing = ", closing" if self.closed else ""
        text = f"<DrainingExecutor {self.name!r} {self.pending} pending{closing}>"
        assert repr(self.executor) == text

    # --- the end ---

    def finish(self) -> None:
        """All that was accepted is over, and no thread is left."""
        self.release()
        self.settle()
        self.runs_in_order_and_once()
        futures = [job.future for job in self.jobs]
        assert concurrent.futures.wait(futures, LIMIT).not_done == set()
        if self.executor is not None:
            assert self.executor.drain(0)
            self.executor.shutdown(timeout=LIMIT)
        self.executor = None
        for thread in threading.enumerate():
            if thread.name.startswith(f"{self.name}_"):
                thread.join(LIMIT)
                assert not thread.is_alive()
        # Nobody may say that a failed job was not looked at: all were.
        assert all(re.search("abandoned|in worker|done callback", text) for text in self.logged)
        self.logged.clear()

    def teardown(self) -> None:
        try:
            if self.name:
                self.finish()
        finally:
            logging.getLogger("hindsight_exec").removeHandler(self.handler)


TestExecutor = Executor.TestCase
TestExecutor.settings = SETTINGS


class ExecutorForLong(Executor):
    """The same, for longer."""


TestExecutorForLong = pytest.mark.soak(pytest.mark.timeout(3000)(ExecutorForLong.TestCase))
TestExecutorForLong.settings = FOR_LONG


# --- the outbox ---------------------------------------------------------------


@dataclass(eq=False)
class Document:
    """A document as the model knows it: in no batch, in one, or dead."""

    source: Source
    document_id: str
    given_at: float
    turns: list[Turn]
    item: bytes
    batch: Optional[int] = None
    dead: bool = False


@dataclass(eq=False)
class File:
    """An outbox file, and what should be in it, in its order; `outbox` is None if nobody owns it."""

    path: Path
    claim: Optional[spool.Claim] = None
    outbox: Optional[Outbox] = None
    held: list[tuple[Source, Turn]] = field(default_factory=list)
    documents: list[Document] = field(default_factory=list)
    batches: dict[int, Batch] = field(default_factory=dict)

    def of(self, source: Source) -> list[Turn]:
        return [turn for own, turn in self.held if own == source]

    def members(self, batch: Batch) -> list[Document]:
        return [one for one in self.documents if one.batch == batch.id]

    def ready(self) -> list[Document]:
        return [one for one in self.documents if one.batch is None and not one.dead]

    def dead(self) -> list[Document]:
        return [one for one in self.documents if one.dead]

    def state(self, one: Document) -> str:
        if one.dead:
            return "dead"
        accepted = one.batch is not None and self.batches[one.batch].accepted
        return "accepted" if accepted else "queued"


# A process that takes turns and says so after each; the parent kills it.
GIVE = """\
import sys
from pathlib import Path
from filling import source, turn
from hindsight_exec.outbox import spool
from hindsight_exec.outbox.store import Outbox

outbox = Outbox(spool.create(Path(sys.argv[1])).path)
for number in range(int(sys.argv[2]), int(sys.argv[2]) + 20):
    outbox.put(source(str(number % 2)), turn(number))
    print(number, flush=True)
print("all", flush=True)
signal.pause()
"""


words = st.text(st.characters(), max_size=50)
sources = st.sampled_from([source("s"), source("t"), source("a/b", "c"), source("s", context="c")])


class Outboxes(RuleBasedStateMachine):
    """A turn that was put is in one place: held, in a document, completed, erased; and unchanged.

    The place is a file of a state directory, owned by a claim, or left by a process that ended or
    was killed, for the next one to adopt.
    """

    killing = False  # a real process, which takes its time to start

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.state = Path(self.folder.name) / "state"
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(outbox_room, "MAX_SOURCES", 3)
        self.files: list[File] = []
        self.put_so_far: list[Turn] = []
        self.gone: list[Turn] = []  # completed or erased
        self.numbers = 0
        self.purged = 0

    def draw(self, data: Any, choices: list[Any]) -> Any:
        return data.draw(st.integers(0, len(choices) - 1).map(choices.__getitem__))

    @property
    def owned(self) -> list[File]:
        return [file for file in self.files if file.outbox is not None]

    @property
    def full(self) -> list[File]:
        return [file for file in self.owned if file.held or file.documents]

    @property
    def roomy(self) -> list[File]:
        return [file for file in self.owned if file.outbox.max_bytes == MAX_BYTES]

    @property
    def left(self) -> list[File]:
        return [file for file in self.files if file.outbox is None]

    def open(self, file: File, **options: Any) -> None:
        file.outbox = Outbox(file.path, **options)
        assert spool.is_live(file.path)
        assert spool.adopt(file.path) is None

    def close(self, file: File) -> None:
        file.outbox.close()
        file.claim.release()
        file.outbox = file.claim = None

    # --- processes, as far as the files know them ---

    @initialize()
    def begin(self) -> None:
        self.start("FULL", MAX_BYTES)

    @precondition(lambda self: len(self.files) < 3 and len(self.put_so_far) > 3)
    @rule(synchronous=st.sampled_from(["FULL", "NORMAL"]), bound=st.sampled_from([MAX_BYTES, 900]))
    def start(self, synchronous: str, bound: int) -> None:
        claim = spool.create(self.state)
        self.files.append(File(claim.path, claim))
        self.open(self.files[-1], synchronous=synchronous, max_bytes=bound)

    @precondition(lambda self: self.full)
    @rule(data=st.data(), vacuum=st.booleans(), again=st.booleans())
    def end(self, data: Any, vacuum: bool, again: bool) -> None:
        file = self.draw(data, self.full)
        if vacuum:
            file.outbox.vacuum()
        self.close(file)
        if again:
            self.adopt_file(file)

    @precondition(lambda self: self.full)
    @rule(
        data=st.data(),
        at=st.sampled_from(["rest", "a commit", "a write of the log"]),
        again=st.booleans(),
    )
    def kill(self, data: Any, at: str, again: bool) -> None:
        """What is on disk at this moment is what the next process finds."""
        file = self.draw(data, self.full)
        database = file.outbox._db
        if at == "a commit":
            database.execute("PRAGMA cache_size = 1")  # so that it is in the log already
            database.execute("BEGIN IMMEDIATE")
            database.execute("UPDATE turns SET payload = payload || hex(zeroblob(9000))")
            database.execute("DELETE FROM documents")
        kept = {}
        for suffix in ("", "-wal"):
            original = Path(f"{file.path}{suffix}")
            kept[original] = Path(f"{file.path}{suffix}.kept")
            shutil.copy(original, kept[original])
        if at == "a commit":
            database.execute("ROLLBACK")
        if at == "a write of the log":
            with Path(f"{file.path}-wal.kept").open("ab") as log:
                log.write(b"\x2a" * 4000)
        self.close(file)
        for original, copy in kept.items():
            copy.replace(original)
        if again:
            self.adopt_file(file)

    @precondition(lambda self: self.killing and len(self.files) < 4)
    @rule(after=st.integers(0, 19) | st.just(20))
    def kill_process(self, after: int) -> None:
        first = self.numbers + 1
        self.numbers += 20
        with tempfile.TemporaryDirectory() as folder:
            child = Child(
                Path(folder),
                GIVE,
                str(self.state),
                str(first),
                PYTHONPATH=os.pathsep.join(sys.path),
            )
            try:
                child.wait_for(str(first + after) if after < 20 else "all")
                path = spool.files(self.state)[-1]
                assert spool.adopt(path) is None
                assert spool.is_live(path)
            finally:
                child.close()
        assert not spool.is_live(path)
        # What it said it had taken is there, and what it was about to say may be.
        file = File(path, spool.adopt(path))
        self.open(file)
        count = file.outbox.summary().held
        assert count >= min(after + 1, 20)
        for number in range(first, first + count):
            file.held.append((source(str(number % 2)), turn(number)))
        if after < 20:
            # How many there are is chance, which the steps to come may not depend on.
            self.check(file)
            file.outbox.close()
            file.claim.release(remove=True)
        else:
            self.put_so_far += [given for _, given in file.held]
            self.files.append(file)

    @precondition(lambda self: self.left)
    @rule(data=st.data())
    def adopt(self, data: Any) -> None:
        self.adopt_file(self.draw(data, self.left))

    def adopt_file(self, file: File) -> None:
        file.claim = spool.adopt(file.path)
        assert file.claim is not None
        self.open(file)

    @precondition(lambda self: self.roomy and self.left)
    @rule(data=st.data())
    def salvage(self, data: Any) -> None:
        """All of a file goes over to another, as documents."""
        old, new = self.draw(data, self.left), self.draw(data, self.roomy)
        claim = spool.adopt(old.path)
        assert claim is not None
        saved = salvage(old.path, new.outbox)
        claim.release(remove=True)
        self.files.remove(old)
        assert saved == len(old.held) + sum(len(one.turns) for one in old.documents)
        for one in old.documents:
            one.batch, one.dead = None, False
        new.documents += old.documents
        for of, given in old.held:
            name = turns.document_id(of.session, given.given_at, given.payload)
            item = turns.document_item(of, name, [given])
            new.documents.append(Document(of, name, given.given_at, [given], item))

    # --- what an owner does ---

    @precondition(lambda self: self.owned)
    @rule(data=st.data(), words=st.lists(words, min_size=1, max_size=5), closed=st.booleans())
    def put(self, data: Any, words: list[str], closed: bool) -> None:
        file = self.draw(data, self.owned)
        of = data.draw(sources)
        for text in words:
            self.numbers += 1
            given = turn(self.numbers, text)
            if not closed:
                with self.taking(file, given, len(given.payload.encode())):
                    file.outbox.put(of, given)
                    file.held.append((of, given))
                continue
            document_id = f"{of.session}/{given.index}"
            item = turns.document_item(of, document_id, [given])
            with self.taking(file, given, len(item)):
                file.outbox.put_document(of, document_id, item, given.given_at)
                file.documents.append(Document(of, document_id, given.given_at, [given], item))

    @contextmanager
    def taking(self, file: File, given: Turn, size: int) -> Iterator[None]:
        fits = file.outbox.bytes + size <= file.outbox.max_bytes
        try:
            yield
        except OutboxFull:
            assert not fits
        else:
            assert fits
            self.put_so_far.append(given)

    def next_turn(self, words: str = "") -> Turn:
        self.numbers += 1
        return turn(self.numbers, words)

    @precondition(lambda self: any(file.held for file in self.owned))
    @rule(data=st.data(), each=st.integers(1, 3), only_one=st.booleans())
    def close_documents(self, data: Any, each: int, only_one: bool) -> None:
        file = self.draw(data, [file for file in self.owned if file.held])
        held = self.draw(data, file.outbox.held())
        of = file.outbox.source(held.source)
        made = documents_of(file.outbox, held.source, each)[: 1 if only_one else None]
        file.outbox.close_documents(held.source, made)
        for rows, document_id, given_at, item in made:
            members = file.of(of)[: len(rows)]
            file.held = [one for one in file.held if one[1] not in members]
            file.documents.append(Document(of, document_id, given_at, members, item))

    @precondition(lambda self: any(file.ready() for file in self.owned))
    @rule(data=st.data(), count=st.integers(1, 4))
    def make_batch(self, data: Any, count: int) -> None:
        file = self.draw(data, [file for file in self.owned if file.ready()])
        bank = self.draw(data, file.ready()).source.bank
        members = [one for one in file.ready() if one.source.bank == bank][:count]
        (destination,) = (
            number for number, one in file.outbox.destinations().items() if one.bank == bank
        )
        batch = file.outbox.make_batch(
            destination,
            [number for number, _ in file.outbox.ready(destination, count)],
            f"operation {len(file.batches)}",
        )
        file.batches[batch.id] = batch
        for one in members:
            one.batch = batch.id

    @precondition(lambda self: self.with_batches)
    @rule(data=st.data())
    def note(self, data: Any) -> None:
        file, batch, _ = self.draw_batch(data)
        batch.accepted = not batch.accepted
        batch.operation, batch.retries, batch.retry_at = "theirs", batch.retries + 1, 5.5
        file.outbox.note(batch, "an error")

    @precondition(lambda self: self.with_batches)
    @rule(data=st.data())
    def complete(self, data: Any) -> None:
        file, batch, members = self.draw_batch(data)
        file.outbox.complete(batch)
        del file.batches[batch.id]
        self.forget(file, members)

    @precondition(lambda self: self.with_batches)
    @rule(data=st.data())
    def mark_dead(self, data: Any) -> None:
        file, batch, members = self.draw_batch(data)
        file.outbox.mark_dead(batch, "failed", "why")
        del file.batches[batch.id]
        for one in members:
            one.batch, one.dead = None, True

    @precondition(lambda self: self.with_batches)
    @rule(data=st.data())
    def split(self, data: Any) -> None:
        file, batch, members = self.draw_batch(data)
        if len(members) < 2:
            return
        middle = len(members) // 2
        del file.batches[batch.id]
        for half in file.outbox.split(batch, ("left", "right")):
            file.batches[half.id] = half
            left = half.operation_id == "left"
            for one in members[:middle] if left else members[middle:]:
                one.batch = half.id

    @property
    def with_batches(self) -> list[File]:
        return [file for file in self.owned if file.batches]

    def draw_batch(self, data: Any) -> tuple[File, Batch, list[Document]]:
        file = self.draw(data, self.with_batches)
        batch = self.draw(data, [*file.batches.values()])
        return file, batch, file.members(batch)

    @precondition(lambda self: any(file.dead() for file in self.owned))
    @rule(data=st.data(), again=st.booleans())
    def dead_letters(self, data: Any, again: bool) -> None:
        file = self.draw(data, [file for file in self.owned if file.dead()])
        dead = file.dead()
        if again:
            assert file.outbox.requeue() == len(dead)
            for one in dead:
                one.dead = False
        else:
            assert file.outbox.discard() == len(dead)
            self.forget(file, dead)

    @precondition(lambda self: self.full and self.purged < 2)
    @rule(data=st.data(), session=st.sampled_from([None, "s", "t", "a/b"]))
    def purge(self, data: Any, session: Optional[str]) -> None:
        self.purged += 1
        file = self.draw(data, self.full)
        held = [one for one in file.held if session in (None, one[0].session)]
        erased = [one for one in file.documents if session in (None, one.source.session)]
        count = len(held) + sum(len(one.turns) for one in erased)
        assert file.outbox.purge(session) == count
        file.held = [one for one in file.held if one not in held]
        self.gone += [given for _, given in held]
        self.forget(file, erased)
        for batch in [*file.batches.values()]:
            if not file.members(batch):
                del file.batches[batch.id]

    def forget(self, file: File, documents: list[Document]) -> None:
        file.documents = [one for one in file.documents if one not in documents]
        self.gone += [given for one in documents for given in one.turns]

    # --- what is true at any time ---

    @invariant()
    def all_is_in_its_place(self) -> None:
        for file in self.owned:
            self.check(file)

    def check(self, file: File) -> None:
        outbox = file.outbox
        numbers = {of: number for number, of in outbox.sources().items()}
        held = {of: file.of(of) for of, _ in file.held}
        assert {one.source: one.turns for one in outbox.held()} == {
            numbers[of]: len(own) for of, own in held.items()
        }
        for of, own in held.items():
            assert [given for _, given in outbox.held_turns(numbers[of], 1000)] == own
        assert outbox.batches() == [*file.batches.values()]
        for batch in file.batches.values():
            members = file.members(batch)
            assert outbox.items(batch) == [one.item for one in members]
            assert outbox.document_ids(batch) == [one.document_id for one in members]
        for destination, where in outbox.destinations().items():
            assert [size for _, size in outbox.ready(destination, 1000)] == [
                len(one.item) for one in file.ready() if one.source.bank == where.bank
            ]
        expected = [
            (given.given_at, "held", of.session, of.bank, 1, "", f"[{given.payload}]")
            for of, given in file.held
        ] + [
            (
                one.given_at, file.state(one), one.source.session, one.source.bank,
                len(one.turns), one.document_id, json.loads(one.item)["content"],
            )
            for one in file.documents
        ]  # fmt: skip
        names = ("given_at", "state", "session", "bank", "turns", "document_id", "content")
        entries = outbox.entries()
        assert [tuple(one[name] for name in names) for one in entries] == sorted(expected)
        summary = outbox.summary()
        for state in ("held", "queued", "accepted", "dead"):
            count = sum(one[4] for one in expected if one[1] == state)
            assert getattr(summary, state) == count, state
        assert summary.dead_by_reason == ((("failed", summary.dead),) if summary.dead else ())
        assert outbox.bytes == summary.bytes
        assert outbox.bytes == sum(len(given.payload.encode()) for _, given in file.held) + sum(
            len(one.item) for one in file.documents
        )
        assert outbox.is_empty() == (not expected)

    # --- the end ---

    def teardown(self) -> None:
        try:
            for file in self.left:
                self.adopt_file(file)
                self.check(file)
            found = [
                message["content"]
                for file in self.files
                for entry in file.outbox.entries()
                for message in json.loads(entry["content"])
            ]
            gone = [json.loads(given.payload)["content"] for given in self.gone]
            every = [json.loads(given.payload)["content"] for given in self.put_so_far]
            assert sorted(found + gone) == sorted(every)
            assert spool.files(self.state) == sorted(file.path for file in self.files)
        finally:
            for file in self.owned:
                self.close(file)
            self.patch.undo()
            self.folder.cleanup()


TestOutboxes = Outboxes.TestCase
TestOutboxes.settings = SETTINGS


class OutboxesForLong(Outboxes):
    """The same, for longer, and with processes that are killed."""

    killing = hasattr(signal, "SIGKILL")


TestOutboxesForLong = pytest.mark.soak(pytest.mark.timeout(3000)(OutboxesForLong.TestCase))
TestOutboxesForLong.settings = FOR_LONG
