"""`RetainWriter`, what callers hold: it takes turns, waits for them, closes.

It is a handle. What all handles of a state directory share in a process is in
:mod:`.engine`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Mapping, Optional, Sequence

from hindsight_exec.client.urls import bank_problem
from hindsight_exec.conversation import turns
from hindsight_exec.errors import ConfigError
from hindsight_exec.executor.waiting import now
from hindsight_exec.settings.folders import state_folder

from .progress import Counters
from .registry import join, leave, living
from .schedule import Hold, documents

if TYPE_CHECKING:
    import threading

    from hindsight_exec.conversation.turns import Source, Turn
    from hindsight_exec.settings.config import Settings

    from .engine import Engine
    from .intake import Intake

__all__ = ["Counters", "RetainWriter"]

#: Sources after which a writer forgets those whose turns have arrived.
_SOURCES = 64


class RetainWriter:
    """Takes turns, keeps them on disk, and has them delivered exactly once.

    Args:
        settings: Server, bank, and how turns are held and delivered.
        state: The state directory; by default ``HINDSIGHT_EXEC_STATE``, else the
            user's state directory.
        on_trouble: Called on the worker thread with a text for the user: once
            when turns begin to wait on disk, and once when all have arrived.

    Safe from any thread, and from finalizers. :meth:`flush`, :meth:`close` and
    :meth:`deliver_all` raise RuntimeError where they would wait for themselves:
    in ``on_trouble``, and in a finalizer that interrupted a put. If such a
    finalizer calls :meth:`put`, the turn is on disk a moment after it returns.
    A forked child can use it, and writes its own outbox. Exit needs no
    :meth:`close`: it sends turns for up to ``settings.drain_timeout`` seconds,
    and the next process that uses the folder sends the rest.
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
        self._most_sources = _SOURCES
        self._closed = False
        self._engine = join(self)

    def put(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        session: str,
        bank: Optional[str] = None,
        mirror: Optional[str] = None,
        context: Optional[str] = None,
        tags: Sequence[str] = (),
        metadata: Optional[Mapping[str, Any]] = None,
        observation_scopes: Any = None,
        immediate: bool = False,
    ) -> bool:
        """Take a turn; it is on disk when this returns.

        It never waits for the network. After :meth:`close`, or at exit, the turn
        is kept all the same, counts as waiting, and the next process sends it.

        Args:
            messages: The turn's messages: JSON objects with ``role``,
                ``content`` and, ideally, ``timestamp``.
            session: The conversation. Its turns are held until they fill a
                document, the session ends, or no turn comes for a while.
            bank: The memory bank; ``settings.bank_id`` by default.
            mirror: A second bank that gets the same documents. Both copies are
                taken in one commit, counted, and delivered each by itself.
            context, tags, metadata, observation_scopes: Fields of the document;
                turns with different fields go into different documents.
            immediate: Make a document of this turn alone and send it now.

        Returns:
            Whether the turn is on disk; otherwise it is in memory only.

        Raises:
            ValueError: An argument is unusable; nothing was taken.
            OutboxFull: The outbox has reached its bound; nothing was taken.
            OutboxUnavailable: This process was forked while another thread was
                inside SQLite for 5 seconds, so it must not use it; nothing was
                taken.
        """
        sources = self._sources_of(
            session, (bank, mirror), context, tags, metadata, observation_scopes
        )

        def take(intake: Intake) -> bool:
            given_at, index = intake.next_turn(sources[0])
            turn = turns.turn(messages, given_at=given_at, index=index)
            if not immediate:
                return intake.put(sources, turn, self.hold)
            document_id = turns.document_id(sources[0].session, given_at, turn.payload)
            item = turns.document_item(sources[0], document_id, [turn])
            return intake.put_document(sources, document_id, item, given_at, 1)

        return self._take(sources, take)

    def put_text(
        self,
        text: str,
        *,
        session: str,
        bank: Optional[str] = None,
        mirror: Optional[str] = None,
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
        sources = self._sources_of(
            session, (bank, mirror), context, tags, metadata, observation_scopes
        )

        def take(intake: Intake) -> bool:
            given_at, _ = intake.next_turn(sources[0], counts=False)
            document_id = turns.document_id(sources[0].session, given_at, text)
            item = turns.text_item(sources[0], document_id, text, given_at, timestamp)
            return intake.put_document(sources, document_id, item, given_at, 1)

        return self._take(sources, take)

    def put_conversation(
        self,
        past: Sequence[tuple[Sequence[Mapping[str, Any]], float]],
        *,
        session: str,
        bank: Optional[str] = None,
        mirror: Optional[str] = None,
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
        sources = self._sources_of(
            session, (bank, mirror), context, tags, metadata, observation_scopes
        )
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
            name = document_id or turns.document_id(
                sources[0].session, first.given_at, first.payload
            )
            item = turns.document_item(sources[0], name, kept[start : start + count])
            self._put_document(sources, name, item, first.given_at, count)
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
        self._joined().forbid_wait("flush")
        if session is not None:
            session = turns.identifier(session)
        return self._flush(timeout, session=session, completed=completed, patient=True)

    def close(self, timeout: Optional[float] = None, *, leave_to_others: bool = False) -> bool:
        """Deliver the turns given through this writer, and close it. Idempotent.

        It waits at most ``timeout`` seconds (by default ``settings.drain_timeout``),
        and stops waiting as soon as a request to the server fails. The rest stays on disk.

        Args:
            leave_to_others: Begin to send held turns, but let the last writer of
                the folder wait for all: hundreds of writers then close with a
                few requests instead of one each.

        Returns:
            As :meth:`flush`.
        """
        timeout = self.settings.drain_timeout if timeout is None else timeout
        deadline = now() + timeout
        engine = self._joined()
        engine.forbid_wait("close")
        with engine.lock:
            was_closed, self._closed = self._closed, True
            has_others = len(engine.handles) > 1
        if was_closed:
            return self._flush(0, session=None, completed=False, patient=False)
        done = self._flush(
            0 if leave_to_others and has_others else timeout,
            completed=not self.settings.retain_async,
            patient=False,
            session=None,
        )
        leave(engine, self, max(0.0, deadline - now()))
        return done

    def counters(self) -> Counters:
        """Return what became of the turns given in this process, by all its writers."""
        engine = self._joined()
        counters = engine.delivery.progress.count()
        if counters.waiting:
            oldest = engine.intake.oldest()
            counters.oldest_age = max(0.0, time.time() - oldest) if oldest else 0.0
        return counters

    def deliver_all(self, timeout: float, look: Optional[Callable[[int], object]] = None) -> bool:
        """Deliver all turns in the folder but those of other live processes.

        Args:
            timeout: Seconds to wait at most.
            look: Called repeatedly with the number of turns that wait in the
                files that are being delivered.

        Returns:
            Whether no turn waits in these files any longer; False as well if a
            file could not be opened. The server may still be processing those
            it has accepted.
        """
        return self._joined().deliver_all(timeout, look)

    @property
    def paused(self) -> bool:
        """Whether nothing is sent, because the server refused the key."""
        target = (self.settings.api_url, self.settings.credential)
        return self._joined().delivery.servers.paused(target)

    @property
    def worker(self) -> Optional[threading.Thread]:
        """The thread that delivers; None until there was something to deliver."""
        return self._joined().delivery.thread

    def __repr__(self) -> str:
        counters = self._joined().delivery.progress.count()
        state = ", closed" if self._closed else ""
        return f"<RetainWriter {str(self.folder)!r} {counters.waiting} waiting{state}>"

    # --- helpers ----------------------------------------------------------

    def _sources_of(
        self,
        session: str,
        banks: tuple[Optional[str], Optional[str]],
        context: Optional[str],
        tags: Sequence[str],
        metadata: Optional[Mapping[str, Any]],
        observation_scopes: Any,
    ) -> list[Source]:
        """The source of the first bank, and that of the second one, if there is one."""
        first = self.settings.bank_id if banks[0] is None else banks[0]
        sources = [
            turns.source(
                url=self.settings.api_url,
                credential=self.settings.credential,
                bank=bank,
                session=session,
                context=context,
                tags=tags,
                metadata=metadata,
                observation_scopes=observation_scopes,
            )
            for bank in dict.fromkeys((first, banks[1]))
            if bank is not None
        ]
        for one in sources:
            if one.bank != self.settings.bank_id and (problem := bank_problem(one.bank)):
                raise ConfigError(f"the bank id {one.bank!r:.60} {problem}")
        return sources

    def _put_document(
        self, sources: list[Source], document_id: str, item: bytes, given_at: float, turns: int
    ) -> None:
        def take(intake: Intake) -> bool:
            return intake.put_document(sources, document_id, item, given_at, turns)

        self._take(sources, take, turns)

    def _take(self, sources: list[Source], take: Callable[[Intake], bool], turns: int = 1) -> bool:
        engine = self._joined()
        taker = living(engine)
        is_on_disk = take(taker.intake)
        if taker is not engine:
            # Another writer's engine delivers it; flush() of this closed writer
            # does not know when.
            with engine.delivery.progress.lock:
                for source in sources:
                    engine.delivery.progress.given(source, turns)
        # After it was counted: flush() on another thread forgets a source that
        # has no turn.
        for source in sources:
            if source not in self._sources:
                with engine.lock:
                    if len(self._sources) >= self._most_sources:
                        self._forget_finished(engine)
                        self._most_sources = max(_SOURCES, 2 * len(self._sources))
                    self._sources.add(source)
        return is_on_disk

    def _forget_finished(self, engine: Engine) -> None:
        """Forget sources whose turns have arrived for good. Called with the lock held."""
        unfinished = engine.delivery.progress.unfinished
        self._sources = {source for source in self._sources if source in unfinished}

    def _flush(
        self, timeout: Optional[float], *, session: Optional[str], completed: bool, patient: bool
    ) -> bool:
        engine = self._joined()
        with engine.lock:
            self._forget_finished(engine)
            sources = {one for one in self._sources if session in (None, one.session)}
        target = (self.settings.api_url, self.settings.credential)
        return engine.flush(sources, target, timeout, completed=completed, patient=patient)

    def _joined(self) -> Engine:
        """Return the engine; in a forked child a new one, of the child's own."""
        engine = self._engine
        if engine.pid != os.getpid():
            self._sources = set()
            engine = self._engine = join(self)
        return engine
