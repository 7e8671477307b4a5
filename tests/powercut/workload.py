"""What a process does with its state directory, and what the next one makes of it.

Run as a program it lives a life; each promise and each send is marked in the recording. Imported,
it starts on what is left, delivers it, and says what does not agree with what was promised.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Optional

from filling import AT, source

from hindsight_exec.conversation import turns
from hindsight_exec.delivery.backlog import Backlog
from hindsight_exec.delivery.files import Files
from hindsight_exec.delivery.progress import Progress
from hindsight_exec.delivery.schedule import Hold
from hindsight_exec.errors import OutboxCorrupt, OutboxFull, OutboxUnavailable
from hindsight_exec.outbox import spool, store
from hindsight_exec.outbox.store import Outbox


def mark(*what: Any) -> None:
    os.access("/powercut/" + json.dumps(what), os.F_OK)


def content_of(item: bytes) -> list[str]:
    """The texts in a document."""
    return [message["content"] for message in json.loads(json.loads(item)["content"])]


class Server:
    """What the server has: documents by id, and operations that it completed."""

    def __init__(self) -> None:
        self.documents: dict[str, list[str]] = {}
        self.operations: set[str] = set()

    def receive(self, operation: str, documents: dict[str, list[str]]) -> None:
        self.operations.add(operation)
        self.documents.update(documents)


class Host:
    """A process's files, delivered to a server, as the worker does it but without a network."""

    def __init__(self, folder: Path, durability: str, server: Server) -> None:
        self.folder = folder
        self.server = server
        self.progress = Progress()
        self.files = Files(folder, durability, self.progress, key=lambda *_: "", own=self.own)
        self._own: Optional[Backlog] = None
        self._memory: Optional[Backlog] = None
        self.numbers = itertools.count()

    def own(self) -> Backlog:
        if self._own is None:
            self._own = self.files.create()
        return self._own

    def memory(self) -> Backlog:
        if self._memory is None:
            self._memory = Backlog(Outbox(None), self.progress)
        return self._memory

    # --- giving ---

    def give(self, text: str, session: str = "s", *, closed: bool = False) -> None:
        """Put a turn, on disk or, if that fails, in memory; then promise it."""
        number = next(self.numbers)
        message = {"role": "user", "content": text}
        turn = turns.turn([message], given_at=AT + number / 7 + os.getpid() * 1e3, index=number)
        of = source(session)

        def put(backlog: Backlog) -> None:
            if closed:
                name = turns.document_id(session, turn.given_at, turn.payload)
                item = turns.document_item(of, name, [turn])
                _, destination = backlog.outbox.put_document(of, name, item, turn.given_at)
                backlog.ready.add(destination)
            else:
                held = backlog.outbox.put(of, turn)
                backlog.hold(held, turn.chars, Hold())

        try:
            put(self.own())
            mark("kept", text, session, self.own().outbox.path.name)  # type: ignore[union-attr]
        except OutboxUnavailable:
            put(self.memory())
            self.deliver(self.memory())

    # --- delivering ---

    def deliver(self, backlog: Backlog, batches: int = 1000, *, unsure: bool = False) -> None:
        """Send what there is, also if the disk fails once; ``unsure`` does not hear of it."""
        try:
            self._deliver(backlog, batches, unsure)
        except OutboxCorrupt:
            raise
        except OutboxUnavailable:
            backlog.reload()
            self._deliver(backlog, batches, unsure)

    def _deliver(self, backlog: Backlog, batches: int, unsure: bool) -> None:
        backlog.close_documents(0.0, everything=True, should_close=lambda *_: True)
        for _ in range(batches):
            first, failing = backlog.to_send()
            batch = next(map(backlog.next_batch, [*first, *failing]), None)
            if batch is None:
                break
            items = backlog.outbox.items(batch)
            documents = {json.loads(item)["document_id"]: content_of(item) for item in items}
            mark("sent", batch.operation_id, documents)
            self.server.receive(batch.operation_id, documents)
            if not unsure:
                batch.accepted, batch.operation = True, batch.operation_id
                backlog.outbox.note(batch)
                backlog.poll(batch, 0.0, 0)

    def poll(self, backlog: Backlog) -> None:
        """Ask what became of what was accepted."""
        for number in list(backlog.polls):
            while number in backlog.polls:
                _, batch = backlog.next_poll(number)
                if batch.operation_id in self.server.operations:
                    backlog.outbox.complete(batch)
                else:
                    backlog.send_again(batch)

    def finish(self, backlog: Backlog) -> None:
        self.deliver(backlog)
        self.poll(backlog)
        self.deliver(backlog)
        self.poll(backlog)
        if not backlog.outbox.is_empty():
            raise OutboxCorrupt(f"not sent: {backlog.outbox.entries()}")
        self.files.retire(backlog)

    def finish_all(self) -> list[Path]:
        """Adopt and deliver whatever there is; returns what was set aside."""
        while True:
            backlogs = self.files.adopt(100)
            for backlog in backlogs:
                self.finish(backlog)
            if not backlogs:
                break
        for own in (self._own, self._memory):
            if own is not None:
                own.take_all()
                self.finish(own)
        self._own = self._memory = None
        return spool.aside(self.folder)

    def close(self) -> None:
        """Close all that is open, whatever is left in it."""
        self.files.close(self.files.take_claims())
        if self._memory is not None:
            self._memory.outbox.close()


# --- lives --------------------------------------------------------------------


def talk(host: Host, name: str, count: int = 3) -> None:
    for number in range(count):
        host.give(f"{name} {number} " + "x" * (37 * number % 211), f"s{number % 2}")


def live(host: Host) -> None:
    """A process from its first start ever, with all that can become of turns."""
    talk(host, "first", 6)
    own = host.own()
    host.deliver(own)
    talk(host, "under way")
    host.poll(own)
    host.give("a text", closed=True)
    talk(host, "more")
    host.deliver(own, unsure=True)
    talk(host, "unsure")
    host.give("secret", "erased")
    mark("purge")
    own.outbox.purge("erased")
    own.holding.clear()
    own.reload()
    store._VACUUM_BYTES = 0
    for number in range(5):
        host.give(f"long {number} " + "y" * 9000, "long", closed=True)
    host.deliver(own)
    host.poll(own)
    own.outbox.vacuum()
    talk(host, "vacuumed")
    first, _ = own.to_send()
    batch = own.next_batch(first[0]) if first else None
    if batch is not None:
        own.outbox.mark_dead(batch, "failed", "why")
        own.outbox.requeue()
        own.reload()
    host.files.close(host.files.take_claims())
    late = Host(host.folder, "full", host.server)
    late.numbers = host.numbers
    late.give("late")
    late.files.close(late.files.take_claims())
    heir = Host(host.folder, "full", host.server)
    heir.numbers = host.numbers
    for backlog in heir.files.adopt(1):
        talk(heir, "heir")
        heir.finish(backlog)
    damage(heir)
    heir.files.adopt(1)
    talk(heir, "end")


def damage(host: Host) -> None:
    """Leave a file whose batches cannot be read, and be done with it."""
    other = Host(host.folder, "full", host.server)
    other.numbers = host.numbers
    talk(other, "damaged", 8)
    own = other.own()
    with own.outbox._db.access, own.outbox._db.step:
        (page,) = own.outbox._db.first("SELECT rootpage FROM sqlite_master WHERE name = 'batches'")
    claims = other.files.take_claims()
    own.outbox.close()
    path = own.outbox.path
    assert path is not None
    # Or a loss of power could bring its log back, and it would not be damaged any more.
    spool.sync_names(path.parent)
    descriptor = os.open(path, os.O_RDWR)
    mark("damage", path.stem)
    os.pwrite(descriptor, b"\xff" * 4096, (page - 1) * 4096)
    os.fsync(descriptor)
    os.close(descriptor)
    claim = claims[own]
    assert claim is not None
    claim.release()


def live_shortly(host: Host) -> None:
    """A process beside others: it takes, delivers, adopts, and is gone in the middle."""
    for number in range(4):
        talk(host, f"{os.getpid()} {number}")
        host.deliver(host.own(), 1, unsure=number == 2)
        host.poll(host.own())
        for backlog in host.files.adopt(1):
            host.finish(backlog)
    talk(host, f"{os.getpid()} end")
    os._exit(0)


# --- what the next one makes of it --------------------------------------------


class Promise:
    """What was promised, and what the server had, at a point of a recording."""

    def __init__(self) -> None:
        self.server = Server()
        self.kept: dict[str, list[tuple[str, str]]] = {}  # text and session by file, in order
        self.purged = False
        self.damaged: set[str] = set()

    def follow(self, what: Any) -> None:
        if what[0] == "kept":
            self.kept.setdefault(what[3], []).append((what[1], what[2]))
        elif what[0] == "sent":
            self.server.receive(what[1], what[2])
        elif what[0] == "purge":
            self.purged = True
        elif what[0] == "damage":
            self.damaged.add(what[1])

    def trouble(self, folder: Path, *, killed: bool, durability: str) -> list[str]:
        """Start on a folder, deliver what is there, and say what is wrong."""
        server = Server()
        server.documents = dict(self.server.documents)
        server.operations = set(self.server.operations)
        had = {text for texts in server.documents.values() for text in texts}
        found = []
        if folder.exists():
            host = Host(folder, durability, server)
            try:
                host.give("next")
                aside = host.finish_all()
            except Exception as error:
                host.close()
                return [f"not delivered: {error!r}"]
            odd = [one.name for one in aside if one.name.split(".")[0] not in self.damaged]
            if odd:
                found.append(f"set aside: {odd}")
            left = [one.name for one in folder.iterdir() if not one.name.endswith(".aside")]
            if set(left) - {".folder.lock"} - {f"{one.name}-wal" for one in aside}:
                found.append(f"left: {left}")
        count = Counter(text for texts in server.documents.values() for text in texts)
        found += [f"twice: {text}" for text, times in count.items() if times > 1]
        found += [f"replaced: {text}" for text in had - count.keys()]
        for name, kept in self.kept.items():
            there = [
                text in count for text, session in kept if not (self.purged and session == "erased")
            ]
            if not all(there) and (killed or durability == "full"):
                found.append(f"lost of {name}: {[one for one, ok in zip(kept, there) if not ok]}")
            elif there != sorted(there, reverse=True):
                found.append(f"a gap in {name}: {there}")
        return found


if __name__ == "__main__":
    lives: dict[str, Callable[[Host], None]] = {"long": live, "short": live_shortly}
    root, durability, life = sys.argv[1:4]
    state = Path(root) / "new" / "parents" / "outbox"
    if life == "short":
        state = Path(root) / "outbox"
    try:
        lives[life](Host(state, durability, Server()))
    except (OutboxUnavailable, OutboxFull, OSError) as error:
        # A fault was injected where the delivery would wait and try again: it ends here.
        mark("ended", str(error))
    os._exit(0)  # as killed: nothing is closed
