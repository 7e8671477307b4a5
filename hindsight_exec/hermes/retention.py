"""What a provider hands to its writer: turns, notes, and the ends of sessions."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from datetime import datetime
from typing import TYPE_CHECKING, Any, Callable, Mapping, Sequence

from hindsight_exec.conversation.turns import turn_messages
from hindsight_exec.delivery.writer import RetainWriter
from hindsight_exec.errors import HindsightExecError

from . import host
from .compat import weakly
from .scrub import is_synthetic, scrub

if TYPE_CHECKING:
    from pathlib import Path

    from hindsight_exec.settings.config import Settings

    from .identity import Identity
    from .sessions import Sessions
    from .tools import Note

__all__ = ["Retention"]

logger = logging.getLogger("hindsight_exec")


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
        self.writer = RetainWriter(settings, state=state, on_trouble=self._notify)

    def keep_turn(
        self,
        user: str,
        assistant: str,
        session: str,
        messages: Sequence[Mapping[str, Any]] | None,
    ) -> None:
        """Have a turn on disk when this returns, unless nobody said anything in it."""
        settings = self._settings
        user, assistant = scrub(user or ""), scrub(assistant or "")
        if not settings.auto_retain or not user or is_synthetic(user, messages):
            return
        said = turn_messages(
            user,
            assistant,
            at=datetime.now().astimezone(),
            user_prefix=settings.retain_user_prefix,
            assistant_prefix=settings.retain_assistant_prefix,
        )
        identity = self._sessions.identity_of(session)
        try:
            self.writer.put(said, context=settings.retain_context, **self._about(identity))
        except HindsightExecError as error:
            logger.warning("a turn could not be kept: %s", error)
            self._notify(f"Hindsight: this turn could not be kept: {error}")
            return
        if identity.session != self._sessions.current.session:
            self.end(identity)  # the switch came first, and could not send this turn
        if settings.retain_indicator and host.SHOWS_INDICATORS:
            self._notify("\N{EYE}\ufe0f Hindsight: turn kept")

    def keep_note(self, note: Note) -> None:
        """Have a note on disk when this returns; it is sent at once."""
        about = self._about(self._sessions.current)
        about["tags"] = tuple(dict.fromkeys((*about["tags"], *note.tags)))
        about["metadata"] = {**note.metadata, **about["metadata"]}
        self.writer.put_text(
            note.content, context=note.context, timestamp=note.occurred_at, **about
        )

    def end(self, identity: Identity) -> None:
        """Send what is held of a session."""
        self.writer.end_session(identity.session)

    async def until_processed(self) -> None:
        """Wait, bounded, until the server has processed the turns of the current session."""
        session, timeout = (
            self._sessions.current.session,
            self._settings.prefetch_retain_drain_timeout,
        )
        done: concurrent.futures.Future[bool] = concurrent.futures.Future()

        def wait() -> None:
            try:
                done.set_result(self.writer.flush(timeout, session=session, completed=True))
            except Exception as error:
                done.set_exception(error)

        # `flush` blocks, and the loop serves all chats: a thread for those who asked to wait.
        threading.Thread(target=wait, name="hindsight-wait", daemon=True).start()
        await asyncio.wrap_future(done)

    def _about(self, who: Identity) -> dict[str, Any]:
        """What the writer is told of something besides its content."""
        settings = self._settings
        return {
            "session": who.session,
            "bank": who.bank(settings),
            "tags": who.tags(settings),
            "metadata": who.metadata(settings),
            "observation_scopes": settings.observation_scopes,
        }
