"""What callers hold: give turns, wait for them, close.

:class:`RetainWriter` is a handle; what the handles of one state folder share
in a process is in :mod:`.engine`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Mapping, Optional, Sequence

from hindsight_exec.conversation import turns
from hindsight_exec.settings.folders import state_folder

from .engine import Engine, join, leave
from .progress import Counters
from .schedule import Hold, first_document

if TYPE_CHECKING:
    from hindsight_exec.settings.config import Settings
    import threading

    from hindsight_exec.conversation.turns import Source, Turn
    from hindsight_exec.outbox.store import Outbox

__all__ = ["Counters", "RetainWriter"]


class RetainWriter:
    """Takes turns, keeps them on disk, and has them delivered exactly once.

    Args:
        settings: Server, bank, and how turns are held and delivered.
        state: The state folder; without it ``HINDSIGHT_EXEC_STATE`` or the
            user's state folder counts.
        on_trouble: Called with a text for the user once when turns begin to
            wait on disk and once when all have arrived; on the worker thread.

    Safe from any thread, and usable in a forked child, which writes an outbox
    of its own. Exit needs no :meth:`close`: what was given is sent within
    ``settings.drain_timeout`` seconds, and what is left is sent by the next
    process that uses the folder.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        state: Optional[Path] = None,
        on_trouble: Optional[Callable[[str], None]] = None,
    ) -> None:
        self.settings = settings
        self.folder = Path(state or state_folder(os.environ)).absolute()
        self.on_trouble = on_trouble
        self._hold = Hold(
            chars=settings.retain_document_chars,
            turns=settings.retain_every_n_turns,
            idle=settings.retain_idle_seconds,
        )
        self._sources: set[Source] = set()  # guarded by the lock of what is shared
        self._closed = False
        self._engine = join(self)

    def put(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        session: str,
        bank: Optional[str] = None,
        context: Optional[str] = None,
        tags: Sequence[str] = (),
        metadata: Optional[Mapping[str, Any]] = None,
        observation_scopes: Any = None,
        immediate: bool = False,
    ) -> None:
        """Take a turn; it is committed to disk when this returns.

        It never waits for the network. After :meth:`close`, or when the
        process exits, it is kept all the same and sent by the next process.

        Args:
            messages: The turn's messages, JSON objects with ``role``,
                ``content`` and, best, ``timestamp``.
            session: The conversation. Its turns are held until they fill a
                document, or it ends, or nothing comes for a while.
            bank: The memory bank; ``settings.bank_id`` without it.
            context, tags, metadata, observation_scopes: What is said of the
                document; turns that differ in it go into different ones.
            immediate: Make a document of this turn alone and send it now.

        Raises:
            ValueError: An argument is unusable; nothing was taken.
            OutboxFull: The outbox holds as much as it may; nothing was taken.
        """
        source = self._source(session, bank, context, tags, metadata, observation_scopes)
        engine = self._joined()
        given_at, index = engine.next(source)
        turn = turns.turn(messages, given_at=given_at, index=index)
        if immediate:
            document_id = turns.document_id(source.session, given_at, turn.payload)
            item = turns.document_item(source, document_id, [turn])
            self._keep_document(engine, source, document_id, item, given_at)
            return
        if self._closed or engine.closed:
            engine.keep_for_later(lambda outbox: outbox.put(source, turn))
            return
        backlog, number = engine.keep(lambda outbox: outbox.put(source, turn))
        self._note(engine, source)
        with engine.delivery.progress:
            engine.delivery.progress.given(source)
            due = backlog.hold(number, turn.chars, self._hold)
        if due:
            engine.wake()

    def put_text(
        self,
        text: str,
        *,
        session: str,
        bank: Optional[str] = None,
        context: Optional[str] = None,
        tags: Sequence[str] = (),
        metadata: Optional[Mapping[str, Any]] = None,
        observation_scopes: Any = None,
        timestamp: str = "",
    ) -> None:
        """Take a text that is no conversation; it is a document and goes at once.

        Args:
            timestamp: When what it tells of happened, ISO 8601; now without it.

        Otherwise as :meth:`put`.
        """
        if not text.strip():
            raise ValueError(f"a text to retain must not be empty, not {text!r}")
        source = self._source(session, bank, context, tags, metadata, observation_scopes)
        engine = self._joined()
        given_at, _ = engine.next(source, turn=False)
        document_id = turns.document_id(source.session, given_at, text)
        item = turns.text_item(source, document_id, text, given_at, timestamp)
        self._keep_document(engine, source, document_id, item, given_at)

    def put_conversation(
        self,
        past: Sequence[tuple[Sequence[Mapping[str, Any]], float]],
        *,
        session: str,
        bank: Optional[str] = None,
        context: Optional[str] = None,
        tags: Sequence[str] = (),
        metadata: Optional[Mapping[str, Any]] = None,
        observation_scopes: Any = None,
    ) -> None:
        """Take a conversation of the past, whole; it goes at once.

        Its documents are cut and named by what is in them, so that one that is
        given again, from the start and with the same settings, is stored once.

        Args:
            past: For each turn its messages, and when it was: POSIX time in
                seconds.

        Otherwise as :meth:`put`. If the outbox is full in the middle, give all
        of it again.
        """
        source = self._source(session, bank, context, tags, metadata, observation_scopes)
        kept: list[Turn] = []
        for index, (messages, at) in enumerate(past, 1):
            # Ids sort by time, and times of old may lie together or be wrong.
            given_at = max(at, kept[-1].given_at + 1e-5) if kept else max(at, 0.0)
            kept.append(turns.turn(messages, given_at=given_at, index=index))
        while kept:
            count = first_document([turn.sizes for turn in kept], self._hold, ended=True)
            document, kept = kept[:count], kept[count:]
            at = document[0].given_at
            document_id = turns.document_id(source.session, at, document[0].payload)
            item = turns.document_item(source, document_id, document)
            self._keep_document(self._joined(), source, document_id, item, at, count)

    def end_session(self, session: str) -> None:
        """Send what is held of a session, in the background."""
        wanted = turns.identifier(session)
        engine = self._joined()
        engine.delivery.end(lambda source: source.session == wanted)
        engine.wake()

    def flush(
        self,
        timeout: Optional[float] = None,
        *,
        session: Optional[str] = None,
        completed: bool = False,
    ) -> bool:
        """Send what is held and wait until the server has accepted it.

        Args:
            timeout: Seconds to wait at most; ``None`` for no bound.
            session: Only what was given for this session.
            completed: Wait until the server has processed it, too.

        Returns:
            Whether all that was given through this writer arrived (or became
            a dead letter, see :meth:`counters`).
        """
        return self._flush(timeout, session=session, completed=completed, patient=True)

    def close(self, timeout: Optional[float] = None, *, leave_to_others: bool = False) -> bool:
        """Deliver what was given through this writer, and let go of it.

        It waits for ``timeout`` seconds at most (``settings.drain_timeout``
        without it), and no longer than until the server fails: what is left
        waits on disk. The last writer of the folder closes the sessions.
        Idempotent.

        Args:
            leave_to_others: While the process has other writers of the folder,
                begin to send what is held, but do not wait for it. The last
                one waits for all: hundreds that close take a few requests
                together, not one each.

        Returns:
            As :meth:`flush`.
        """
        if timeout is None:
            timeout = self.settings.drain_timeout
        deadline = time.monotonic() + timeout
        engine = self._joined()
        with engine.lock:
            closed, self._closed = self._closed, True
            shared = len(engine.handles) > 1
        if closed:
            return True
        done = self._flush(
            0 if leave_to_others and shared else timeout,
            completed=not self.settings.retain_async,
            patient=False,
            session=None,
        )
        leave(engine, self, max(0.0, deadline - time.monotonic()))
        return done

    def counters(self) -> Counters:
        """What became of the turns given in this process, by all its writers."""
        engine = self._joined()
        counters = engine.delivery.progress.count()
        if counters.waiting:
            oldest = engine.oldest()
            counters.oldest_age = max(0.0, time.time() - oldest) if oldest else 0.0
        return counters

    def deliver_all(self, timeout: float, look: Optional[Callable[[int], object]] = None) -> bool:
        """Deliver what waits in the folder, whoever gave it, but for live processes' turns.

        Args:
            timeout: Seconds to wait at most.
            look: Called now and then with how many turns wait in the files
                that are being delivered.

        Returns:
            Whether nothing of it waits any longer, on this process's part. A
            server that has accepted turns may still be processing them.
        """
        engine = self._joined()
        delivery = engine.delivery
        deadline = time.monotonic() + timeout
        delivery.end()
        delivery.servers.hurry()
        engine.wake()
        while True:
            with delivery.progress:
                delivery.progress.wait(min(0.2, max(0.0, deadline - time.monotonic())))
                running = delivery.running
            if look is not None:
                look(engine.waiting())
            # In this order: a file that is opened in between is waited for.
            if not engine.unopened() and not engine.is_waiting():
                return True  # what the server still processes need not be waited for
            if not running or time.monotonic() >= deadline:
                return False

    @property
    def paused(self) -> bool:
        """Whether the server refused the key, so that nothing is sent until it changes."""
        servers = self._joined().delivery.servers
        return servers.paused(self.settings.api_url, self.settings.credential)

    @property
    def worker(self) -> Optional[threading.Thread]:
        """The thread that delivers, once there was something to deliver."""
        return self._joined().delivery.thread

    def __repr__(self) -> str:
        counters = self._joined().delivery.progress.count()
        state = ", closed" if self._closed else ""
        return f"<RetainWriter {str(self.folder)!r} {counters.waiting} waiting{state}>"

    # --- helpers ----------------------------------------------------------

    def _source(
        self,
        session: str,
        bank: Optional[str],
        context: Optional[str],
        tags: Sequence[str],
        metadata: Optional[Mapping[str, Any]],
        observation_scopes: Any,
    ) -> Source:
        return turns.source(
            url=self.settings.api_url,
            credential=self.settings.credential,
            bank=self.settings.bank_id if bank is None else bank,
            session=session,
            context=context,
            tags=tags,
            metadata=metadata,
            observation_scopes=observation_scopes,
        )

    def _keep_document(
        self,
        engine: Engine,
        source: Source,
        document_id: str,
        item: bytes,
        given_at: float,
        turns: int = 1,
    ) -> None:
        def keep(outbox: Outbox) -> tuple[int, int]:
            return outbox.put_document(source, document_id, item, given_at, turns)

        if self._closed or engine.closed:
            engine.keep_for_later(keep)
            return
        backlog, (_, destination) = engine.keep(keep)
        self._note(engine, source)
        with engine.delivery.progress:
            engine.delivery.progress.given(source, turns)
            backlog.ready.add(destination)
        engine.wake()

    def _note(self, engine: Engine, source: Source) -> None:
        if source not in self._sources:
            with engine.lock:
                self._sources.add(source)

    def _flush(
        self, timeout: Optional[float], *, session: Optional[str], completed: bool, patient: bool
    ) -> bool:
        engine = self._joined()
        delivery, progress = engine.delivery, engine.delivery.progress
        wanted = None if session is None else turns.identifier(session)
        with engine.lock:
            # What has arrived for good need not be asked about again.
            self._sources = {one for one in self._sources if one in progress.unfinished}
            sources = {one for one in self._sources if wanted in (None, one.session)}
        where = (self.settings.api_url, self.settings.credential)
        left = progress.unfinished if completed else progress.waiting

        def settled() -> bool:
            return not any(source in left for source in sources)

        def over() -> bool:
            return settled() or not delivery.running or (not patient and gave_up())

        def gave_up() -> bool:
            return self.paused or progress.failures.get(where, 0) > failures

        if settled():
            return True
        failures = progress.failures.get(where, 0)
        if completed:
            delivery.watch(True)
        try:
            delivery.end(sources.__contains__)
            delivery.servers.hurry()
            engine.wake()
            with progress:
                progress.wait_for(over, timeout)
                return settled()
        finally:
            if completed:
                delivery.watch(False)

    def _joined(self) -> Engine:
        """What we share; in a forked child a new one, of its own."""
        engine = self._engine
        if engine.pid != os.getpid():
            self._sources = set()
            engine = self._engine = join(self)
        return engine
