"""What a provider hands to its writer: turns, notes, and the ends of sessions."""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
import logging
import threading
from typing import TYPE_CHECKING, Any, Callable, Iterable, NamedTuple

from hindsight_exec.conversation.turns import turn_messages
from hindsight_exec.delivery.writer import RetainWriter
from hindsight_exec.errors import HindsightExecError

from . import host
from .callbacks import weakly
from .redact import is_skipped, kept, redact
from .scrub import RUNTIME, headline, is_synthetic, message_list, scrub, text_of
from .sessions import ForkSafeLock
from .stored import stored_contents

if TYPE_CHECKING:
    from pathlib import Path

    from hindsight_exec.settings.config import Settings

    from .connection import Connection
    from .identity import Identity
    from .sessions import Sessions

__all__ = ["Note", "Retention"]

logger = logging.getLogger("hindsight_exec")

_SAID = ("user", "assistant")
# Texts of which it is known that they are on disk: more than fit into a model's context.
_KNOWN_TEXTS = 8192


class Note(NamedTuple):
    """What the model keeps on purpose."""

    content: str
    context: str | None
    tags: tuple[str, ...]
    occurred_at: str  # ISO 8601 with an offset; "" for now
    metadata: dict[str, str]


class Ledger:
    """Which texts of which session are on disk, as far as is remembered. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = ForkSafeLock()
        # By digest; True: a checkpoint kept it, and its turn may still come.
        self._known: dict[bytes, bool] = {}

    def add(self, session: str, texts: Iterable[tuple[str, str]], *, ahead: bool = False) -> None:
        with self._lock:
            for role, text in texts:
                self._known[_digest(session, role, text)] = ahead
            while len(self._known) > _KNOWN_TEXTS:
                del self._known[next(iter(self._known))]

    def has(self, session: str, role: str, text: str) -> bool:
        return _digest(session, role, text) in self._known

    def take_ahead(self, session: str, role: str, text: str) -> bool:
        """Whether a checkpoint kept this text and no turn has brought it since."""
        digest = _digest(session, role, text)
        with self._lock:
            ahead = self._known.get(digest, False)
            if ahead:
                self._known[digest] = False
        return ahead


def _digest(*parts: str) -> bytes:
    text = "\0".join(parts).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=16).digest()


class Retention:
    """The writing half of a provider. Safe from any thread.

    Args:
        notify: Shows a text to the user; held weakly, as some hosts drop a
            provider without a shutdown.
    """

    def __init__(
        self,
        settings: Settings,
        sessions: Sessions,
        state: Path | None,
        notify: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._notify = weakly(notify)
        self._ledger = Ledger()
        self._stuck = False
        self._looked = ""  # the session whose stored messages were asked for
        #: Banks and documents that the model may delete, as they were shown to it.
        self.to_forget: set[tuple[str, str]] = set()
        self.writer = RetainWriter(settings, state=state, on_trouble=self._notify)

    def keep_turn(self, identity: Identity, user: str, assistant: str, messages: Any) -> None:
        """Have a turn on disk when this returns, unless nobody said anything in it."""
        settings, session = self._settings, identity.session
        if not settings.auto_retain or not user or is_skipped(settings, user):
            return
        sides = (("user", user), ("assistant", assistant))
        new = [
            (role, text)
            for role, text in sides
            if text and not self._ledger.take_ahead(session, role, text)
        ]
        try:
            on_disk = not new or self._put(identity, new, messages)
        except (HindsightExecError, ValueError) as error:
            logger.warning("a turn could not be kept: %s", error)
            self._notify(f"Hindsight: this turn could not be kept: {error}")
            return
        if on_disk:
            self._ledger.add(session, sides)
        if session != self._sessions.current.session:
            self.end(identity)  # the switch came first, and could not send this turn
        if settings.retain_indicator and host.SHOWS_INDICATORS:
            self._notify("\N{EYE}\ufe0f Hindsight: turn kept")

    def checkpoint(self, identity: Identity, messages: Any, connection: Connection) -> None:
        """Have all of these messages on disk when this returns.

        A host asks for this before it drops messages from its context. Those
        that came with a turn are on disk already, or were, of an earlier process;
        the others are kept here. What the server cannot be asked for is kept again.

        Raises:
            HindsightExecError: They are not on disk.
        """
        session, new, skipped = identity.session, [], False
        for message in message_list(messages):
            role, text = str(message.get("role")), scrub(text_of(message.get("content")))
            if role == "user":
                skipped = is_skipped(self._settings, text)  # with the answer to it
            if skipped:
                continue
            if role in _SAID and text and not self._ledger.has(session, role, text):
                new.append((role, text))
        if not new:
            return
        if not self._settings.auto_retain:
            raise HindsightExecError("auto_retain is off, so these messages are not on disk")
        if session != self._looked:
            self._looked = session  # the ledger knows the rest from here on
            bank = identity.bank(self._settings)
            stored = stored_contents(connection, self.writer.folder, bank, session)
            before = {one for one in new if self._is_stored(one, messages, stored)}
            self._ledger.add(session, before)
            new = [one for one in new if one not in before]
        if not self._put(identity, new, messages):
            raise HindsightExecError("these messages are in memory only, and not safe on disk")
        self._ledger.add(session, new, ahead=True)

    def _is_stored(self, said: tuple[str, str], messages: Any, stored: set[str]) -> bool:
        contents = {one["content"] for one in self._messages([said], messages)}
        return bool(contents) and contents <= stored

    def _put(self, identity: Identity, said: Iterable[tuple[str, str]], messages: Any) -> bool:
        """Hand roles and texts to the writer; whether they are on disk."""
        stored = self._messages(said, messages)
        if not stored:
            return True  # the user wants none of it kept
        about = self._about(identity)
        return self.writer.put(stored, context=self._settings.retain_context, **about)

    def _messages(self, said: Iterable[tuple[str, str]], messages: Any) -> list[dict[str, str]]:
        """The messages that are stored for roles and texts.

        Where the runtime began a turn, the assistant's answer tells what a job
        or a delegation found; of the runtime's own words the first line will do.
        """
        settings, at = self._settings, self._settings.now()
        stored: list[dict[str, str]] = []
        for role, text in said:
            label, shown = getattr(settings, f"retain_{role}_prefix"), text
            if role == "user" and is_synthetic(text, messages):
                label, shown = RUNTIME, headline(text)
            sides = {"user": "", "assistant": "", role: kept(settings, role, shown)}
            stored += turn_messages(**sides, at=at, user_prefix=label, assistant_prefix=label)
        return stored

    def keep_note(self, note: Note) -> int:
        """Have a note on disk when this returns; it is sent at once.

        Returns how many turns were dead before, for :meth:`wait_for_note`: the
        server may refuse the note before this returns.
        """
        dead = self.writer.counters().own_dead
        about = self._about(self._sessions.current)
        about["tags"] = tuple(dict.fromkeys((*about["tags"], *note.tags)))
        shown = redact if self._settings.redact else str
        noted = {name: shown(text) for name, text in note.metadata.items()}
        about["metadata"] = {**noted, **about["metadata"]}
        self.writer.put_text(
            shown(note.content),
            context=shown(note.context) if note.context else None,
            timestamp=note.occurred_at,
            **about,
        )
        return dead

    def wait_for_note(self, timeout: float, dead: int) -> None:
        """Wait until the server has processed what was kept in this session.

        Args:
            timeout: Seconds to wait at most.
            dead: What :meth:`keep_note` returned.

        Raises:
            HindsightExecError: It has not, and why, as far as that is known.
        """
        session = self._sessions.current.session
        done = self.writer.flush(timeout, session=session, completed=True)
        if self.writer.counters().own_dead > dead:
            raise HindsightExecError(
                "the server refused it; run 'hindsight-exec dead list' to see why"
            )
        if self.writer.paused:
            raise HindsightExecError("it is saved on disk, but the server refuses the API key")
        if not done:
            raise HindsightExecError(
                f"it is saved on disk, but the server has not processed it within {timeout:g} s;"
                " it will be sent again"
            )

    def end(self, identity: Identity) -> None:
        """Send what is held of a session."""
        self.writer.end_session(identity.session)

    async def until_processed(self) -> None:
        """Wait, bounded, until the server has processed the turns of the current session.

        An operation that is stuck is waited for once: until it has ended, only
        a look is taken whether it has.
        """
        session = self._sessions.current.session
        timeout = 0.0 if self._stuck else self._settings.prefetch_retain_drain_timeout
        done: concurrent.futures.Future[bool] = concurrent.futures.Future()

        def wait() -> None:
            try:
                done.set_result(self.writer.flush(timeout, session=session, completed=True))
            except Exception as error:
                done.set_exception(error)

        # `flush` blocks, and the loop serves all chats: a thread for those who asked to wait.
        threading.Thread(target=wait, name="hindsight-wait", daemon=True).start()
        self._stuck = not await asyncio.wrap_future(done)

    def _about(self, who: Identity) -> dict[str, Any]:
        """What the writer is told of something besides its content."""
        settings = self._settings
        return {
            "session": who.session,
            "bank": who.bank(settings),
            "mirror": who.mirror(settings),
            "tags": who.tags(settings),
            "metadata": who.metadata(settings),
            "observation_scopes": settings.observation_scopes,
        }
