"""`RetainWriter`, what callers hold: it takes turns, waits for them, closes.

It is a handle. What all handles of a state folder share in a process is in
:mod:`.engine`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Mapping, Optional, Sequence

from hindsight_exec.conversation import turns
from hindsight_exec.settings.folders import state_folder

from .progress import Counters
from .registry import join, leave
from .schedule import Hold, documents

if TYPE_CHECKING:
    import threading

    from hindsight_exec.conversation.turns import Source, Turn
    from hindsight_exec.outbox.store import Outbox
    from hindsight_exec.settings.config import Settings

    from .engine import Engine

__all__ = ["Counters", "RetainWriter"]


class RetainWriter:
    """Takes turns, keeps them on disk, and has them delivered exactly once.

    Args:
        settings: Server, bank, and how turns are held and delivered.
        state: The state folder; by default ``HINDSIGHT_EXEC_STATE``, else the
            user's state folder.
        on_trouble: Called on the worker thread with a text for the user: once
            when turns begin to wait on disk, and once when all have arrived.

    Safe from any thread, and usable in a forked child, which writes its own
    outbox. Exit needs no :meth:`close`: turns are sent for up to
    ``settings.drain_timeout`` seconds, and the next process that uses the
    folder sends the rest.
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
        self.hold = Hold.of(settings)
        self._sources: set[Source] = set()  # guarded by the engine's lock
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
    ) -> bool:
        """Take a turn; it is on disk when this returns.

        It never waits for the network. After :meth:`close`, or when the
        process exits, the turn is kept all the same and the next process sends it.

        Args:
            messages: The turn's messages: JSON objects with ``role``,
                ``content`` and, ideally, ``timestamp``.
            session: The conversation. Its turns are held until they fill a
                document, the session ends, or no turn comes for a while.
            bank: The memory bank; ``settings.bank_id`` by default.
            context, tags, metadata, observation_scopes: Fields of the document;
                turns with different fields go into different documents.
            immediate: Make a document of this turn alone and send it now.

        Returns:
            Whether it is on disk; else it is in memory only, or, after close, lost.

        Raises:
            ValueError: An argument is unusable; nothing was taken.
            OutboxFull: The outbox has reached its bound; nothing was taken.
        """
        source = self._source(session, bank, context, tags, metadata, observation_scopes)
        engine = self._joined()
        given_at, index = engine.next_turn(source)
        turn = turns.turn(messages, given_at=given_at, index=index)
        if immediate:
            document_id = turns.document_id(source.session, given_at, turn.payload)
            item = turns.document_item(source, document_id, [turn])
            return self._keep_document(engine, source, document_id, item, given_at)
        if self._closed or engine.closed:
            return engine.keep_for_later(lambda outbox: outbox.put(source, turn))
        backlog, number = engine.keep(lambda outbox: outbox.put(source, turn))
        self._note(engine, source)
        with engine.delivery.progress:
            engine.delivery.progress.given(source)
            should_wake = backlog.hold(number, turn.chars, self.hold)
        if should_wake:
            engine.wake()
        return backlog.outbox.path is not None

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
    ) -> bool:
        """Take a text that is no conversation: one document, sent at once.

        Args:
            timestamp: When the events in it happened, ISO 8601; now by default.

        Otherwise as :meth:`put`.
        """
        if not text.strip():
            raise ValueError(f"a text to retain must not be empty, not {text!r}")
        source = self._source(session, bank, context, tags, metadata, observation_scopes)
        engine = self._joined()
        given_at, _ = engine.next_turn(source, counts=False)
        document_id = turns.document_id(source.session, given_at, text)
        item = turns.text_item(source, document_id, text, given_at, timestamp)
        return self._keep_document(engine, source, document_id, item, given_at)

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
        originals: Optional[Sequence[Sequence[Mapping[str, Any]]]] = None,
        document_id: Optional[str] = None,
        first_index: int = 1,
    ) -> None:
        """Take a whole conversation of the past and send it at once.

        Its content decides how documents are cut and named: given twice, from
        its start and with the same settings, it is stored once.

        Args:
            past: For each turn its messages and its POSIX time in seconds.
            originals: Each turn's messages before anything was hidden in them;
                they decide how documents are cut and named.
            document_id: All of it is one document, with this id.
            first_index: The number of the first turn in its session.

        Otherwise as :meth:`put`. If the outbox is full halfway, give all again.
        """
        source = self._source(session, bank, context, tags, metadata, observation_scopes)
        kept: list[Turn] = []
        named: list[Turn] = []
        for index, (messages, at) in enumerate(past, first_index):
            # Ids sort by time, and recorded times may be equal or wrong.
            given_at = max(at, kept[-1].given_at + 1e-5) if kept else max(at, 0.0)
            kept.append(turns.turn(messages, given_at=given_at, index=index))
            original = messages if originals is None else originals[index - first_index]
            named.append(turns.turn(original, given_at=given_at, index=index))
        counts = documents([turn.sizes for turn in named], self.hold)
        start = 0
        for count in [len(kept)] if document_id else counts:
            first = named[start]
            name = document_id or turns.document_id(source.session, first.given_at, first.payload)
            item = turns.document_item(source, name, kept[start : start + count])
            self._keep_document(self._joined(), source, name, item, first.given_at, count)
            start += count

    def end_session(self, session: str) -> None:
        """Send the held turns of a session, in the background."""
        session = turns.identifier(session)
        engine = self._joined()
        engine.delivery.end(lambda source: source.session == session)
        engine.wake()

    def flush(
        self,
        timeout: Optional[float] = None,
        *,
        session: Optional[str] = None,
        completed: bool = False,
    ) -> bool:
        """Send held turns and wait until the server has accepted them.

        Args:
            timeout: Seconds to wait at most; ``None`` for no bound.
            session: Only the turns of this session.
            completed: Wait until the server has processed them, too.

        Returns:
            Whether all turns given through this writer arrived (or became dead
            letters, see :meth:`counters`).
        """
        return self._flush(timeout, session=session, completed=completed, patient=True)

    def close(self, timeout: Optional[float] = None, *, leave_to_others: bool = False) -> bool:
        """Deliver the turns given through this writer, and close it. Idempotent.

        It waits for ``timeout`` seconds (by default ``settings.drain_timeout``)
        at most, and not after the server has failed: the rest stays on disk.
        The last writer of the folder closes the HTTP sessions.

        Args:
            leave_to_others: If the process has other writers of the folder,
                begin to send held turns, but do not wait; the last writer waits
                for all. Hundreds of writers then close with a few requests
                instead of one each.

        Returns:
            As :meth:`flush`.
        """
        timeout = self.settings.drain_timeout if timeout is None else timeout
        deadline = time.monotonic() + timeout
        engine = self._joined()
        with engine.lock:
            was_closed, self._closed = self._closed, True
            has_others = len(engine.handles) > 1
        if was_closed:
            return True
        done = self._flush(
            0 if leave_to_others and has_others else timeout,
            completed=not self.settings.retain_async,
            patient=False,
            session=None,
        )
        leave(engine, self, max(0.0, deadline - time.monotonic()))
        return done

    def counters(self) -> Counters:
        """Return what became of the turns given in this process, by all its writers."""
        engine = self._joined()
        counters = engine.delivery.progress.count()
        if counters.waiting:
            oldest = engine.oldest()
            counters.oldest_age = max(0.0, time.time() - oldest) if oldest else 0.0
        return counters

    def deliver_all(self, timeout: float, look: Optional[Callable[[int], object]] = None) -> bool:
        """Deliver all turns in the folder but those of other live processes.

        Args:
            timeout: Seconds to wait at most.
            look: Called repeatedly with the number of turns that wait in the
                files that are being delivered.

        Returns:
            Whether no turn waits in these files any longer. The server may
            still be processing those it has accepted.
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
                return True
            if not running or time.monotonic() >= deadline:
                return False

    @property
    def paused(self) -> bool:
        """Whether nothing is sent, because the server refused the key."""
        servers = self._joined().delivery.servers
        return servers.paused(self.settings.api_url, self.settings.credential)

    @property
    def worker(self) -> Optional[threading.Thread]:
        """The thread that delivers; None until there was something to deliver."""
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
    ) -> bool:
        def put(outbox: Outbox) -> tuple[int, int]:
            return outbox.put_document(source, document_id, item, given_at, turns)

        if self._closed or engine.closed:
            return engine.keep_for_later(put)
        backlog, (_, destination) = engine.keep(put)
        self._note(engine, source)
        with engine.delivery.progress:
            engine.delivery.progress.given(source, turns)
            backlog.ready.add(destination)
        engine.wake()
        return backlog.outbox.path is not None

    def _note(self, engine: Engine, source: Source) -> None:
        if source not in self._sources:
            with engine.lock:
                self._sources.add(source)

    def _flush(
        self, timeout: Optional[float], *, session: Optional[str], completed: bool, patient: bool
    ) -> bool:
        engine = self._joined()
        delivery, progress = engine.delivery, engine.delivery.progress
        if session is not None:
            session = turns.identifier(session)
        with engine.lock:
            # Turns that have arrived for good need not be looked up again.
            self._sources = {one for one in self._sources if one in progress.unfinished}
            sources = {one for one in self._sources if session in (None, one.session)}
        target = (self.settings.api_url, self.settings.credential)
        left = progress.unfinished if completed else progress.waiting

        def settled() -> bool:
            return not any(source in left for source in sources)

        def gave_up() -> bool:
            return self.paused or progress.failures.get(target, 0) > failures

        def over() -> bool:
            return settled() or not delivery.running or (not patient and gave_up())

        if settled():
            return True
        failures = progress.failures.get(target, 0)
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
        """Return the engine; in a forked child a new one, of the child's own."""
        engine = self._engine
        if engine.pid != os.getpid():
            self._sources = set()
            engine = self._engine = join(self)
        return engine
