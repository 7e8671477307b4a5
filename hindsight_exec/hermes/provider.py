"""The memory provider: what Hermes calls, in which order, and what happens then.

`RetainWriter` has a turn on disk when ``sync_turn`` returns; recalls run on the
background loop. Only ``prefetch``, two of the tools and ``shutdown`` wait for
the network, and all of them for a bounded time.
"""

# ruff: noqa: ARG002 - the signatures are Hermes'

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Mapping, Sequence

from hindsight_exec.errors import ConfigError, HindsightExecError
from hindsight_exec.hermes import embedded, host, prompt, setup, tools

from .connection import Connection
from .identity import Identity
from .memories import Recalled, framed
from .mental_model import MentalModel
from .parts import Parts
from .recall import Recall
from .retention import Retention
from .scrub import scrub, text_of
from .sessions import ForkSafeLock, Sessions
from .unprocessed import Unprocessed

if TYPE_CHECKING:
    from hindsight_exec.delivery.writer import RetainWriter
    from hindsight_exec.settings.config import Settings

__all__ = ["HindsightMemoryProvider"]

logger = logging.getLogger("hindsight_exec")


class HindsightMemoryProvider(host.MemoryProvider):
    """Hindsight as the memory of Hermes, with every turn through the outbox.

    Hermes calls it from several threads: the turn's, one for prefetches, one
    for syncs. All methods may be called from any thread, in any order, after
    ``shutdown``, while the process exits and in a forked child; none raises for
    what the server or the disk does.
    """

    # Version 2: `on_pre_compress` confirms what is on disk, and only that.
    pre_compress_checkpoint_api_version = 2

    def __init__(self) -> None:
        self._sessions = Sessions()
        self._recalled = Recalled()  # what the last prefetch showed
        self._home: Path | None = None
        self._loaded: Settings | None = None
        self._status: Callable[[str], object] | None = None
        self._read_only = False
        self._misplaced = ""  # what is wrong with the bank that the project names
        self._lock = ForkSafeLock()
        # Replaced under the lock:
        self._parts: Parts | None = None
        self._closed = False

    # -- what Hermes asks before a session -----------------------------------

    @property
    def name(self) -> str:
        return "hindsight_exec"

    def is_available(self) -> bool:
        """Whether a server is configured. Asks no network."""
        return not self.unavailable_reason()

    def unavailable_reason(self) -> str:
        """What is missing, in words for the user; "" if nothing is."""
        return setup.missing(self._settings)

    def get_config_schema(self) -> list[dict[str, Any]]:
        return setup.config_schema(self._settings)

    def save_config(self, values: Mapping[str, Any], hermes_home: str) -> None:
        setup.save_config(values, Path(hermes_home))

    def post_setup(self, hermes_home: str, config: Any) -> None:
        """``hermes memory setup``: ask, save, make this the provider, and try the connection."""
        from .wizard import run  # noqa: PLC0415 - only when it is used

        run(Path(hermes_home))

    def get_status_config(self, provider_config: Any = None) -> dict[str, Any]:
        """What ``hermes memory status`` shows: where turns go, and how many wait or are dead."""
        shown = setup.status(self._settings, self._home or host.hermes_home())
        identity, problem = self._placed("", {})
        if problem or identity.project_bank:
            shown["bank of this project"] = problem or identity.project_bank
        return shown

    def identity_signature(self) -> dict[str, Any]:
        """What a gateway's cached agent must be rebuilt for, when it changes.

        Hermes asks an uninitialised provider for it, for each message.
        """
        # All of them: an agent keeps the settings that it began with. Keys are not shown.
        return {"hindsight_exec.settings": repr(self._settings)}

    def backup_paths(self) -> list[str]:
        try:
            return [str(embedded.folder())]
        except ConfigError:
            return []  # nothing is kept in a home folder that does not exist

    # -- the session -----------------------------------------------------------

    def initialize(self, session_id: str, **kwargs: Any) -> None:
        """Serve a session; the background delivers what dead processes left behind."""
        self.initialize_for_inspection(session_id, **kwargs)
        settings = self._settings
        missing = setup.missing(settings) or self._misplaced
        if missing:
            self._warn(kwargs, f"Hindsight memory is off: {missing}")
            with self._lock:
                left, self._parts = self._parts, None
            if left is not None:
                left.close(leave_to_others=True)  # of the session before
            return
        if setup.missing_package():
            self._warn(kwargs, setup.missing_package())
        if embedded.first_start(settings):
            logger.info("%s", embedded.FIRST_START)
            self._show(kwargs.get("warning_callback"), embedded.FIRST_START)
        state = setup.state_of(self._home or host.hermes_home())
        with self._lock:
            old = parts = self._parts
            if parts is None or self._closed or parts.connection.settings != settings:
                connection = Connection(settings)
                recall = Recall(connection, self._notify)
                unprocessed = Unprocessed(settings, state)
                parts = Parts(connection, recall, MentalModel(connection), unprocessed, None)
            if not self._read_only and parts.retention is None:
                parts = parts._replace(
                    retention=Retention(settings, self._sessions, state, self._notify)
                )
            self._parts, self._closed = parts, False
        if old is not None and old.connection is not parts.connection:
            old.close()
        if not self._read_only:
            self._apply_missions(parts)
        parts.mental_model.fetch(self._sessions.current)
        if settings.memory_mode != "tools" or settings.auto_retain:
            parts.connection.wake()

    def initialize_for_inspection(self, session_id: str, **kwargs: Any) -> None:
        """Learn whom to serve; start nothing."""
        home = Path(kwargs.get("hermes_home") or host.hermes_home())
        status = kwargs.get("status_callback")
        self._home, self._loaded = home, host.settings_of(home)
        self._status = status if callable(status) else None
        self._read_only = (kwargs.get("agent_context") or "primary") != "primary"
        identity, self._misplaced = self._placed(session_id, kwargs)
        self._sessions.begin(identity)

    def system_prompt_block(self) -> str:
        parts = self._parts
        if parts is None:
            return ""
        opener = self._sessions.current.written_by(None)
        return prompt.system_prompt(
            self._settings,
            opener,
            read_only=self._read_only,
            mental_model=parts.mental_model.text(opener),
        )

    def on_session_end(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Send what is held of the session. Hermes gave the messages turn by turn."""
        self._end(self._sessions.current)

    def on_session_switch(
        self,
        new_session_id: str,
        *,
        parent_session_id: str = "",
        reset: bool = False,
        rewound: bool = False,
        **kwargs: Any,
    ) -> None:
        """Serve the new session, and send what is held of the old one."""
        old, parts = self._sessions.current, self._parts
        if self._sessions.switch(new_session_id, parent_session_id, rewound=rewound):
            if parts is not None:
                parts.recall.forget()
            self._end(old)

    def shutdown(self) -> None:
        """Deliver what waits, bounded by ``drain_timeout``, then close the client. Idempotent.

        While the process has other providers, the background sends what this
        one held. What cannot be delivered waits on disk, and so do later turns.
        """
        with self._lock:
            parts = None if self._closed else self._parts
            self._closed = True
        if parts is not None:
            # A gateway shuts hundreds down, one after the other.
            parts.close(leave_to_others=True)

    # -- turns -----------------------------------------------------------------

    def on_turn_start(self, turn_number: int, message: str, **kwargs: Any) -> None:
        """Note who writes, and recall for the message if nothing was prepared for this turn.

        ``queue_prefetch`` prepares a turn after the one before. It has not for a
        session's first turn, for another author's, and after a turn that the
        runtime began or the user interrupted.
        """
        author = {name: kwargs.get(f"author_{name}") for name in ("id", "name", "is_bot")}
        self._sessions.written_by(author)
        scope, parts = self._sessions.scope(), self._parts
        if parts is not None and scope is not None and not parts.recall.has(scope):
            self.queue_prefetch(message)

    def prefetch(self, query: str, *, session_id: str = "") -> str:
        """What was recalled for the coming turn, framed as data; waits a bounded time for it."""
        self._recalled = Recalled()
        scope, parts = self._sessions.scope(session_id), self._parts
        if scope is not None and parts is not None and self._recalls:
            if self._settings.recall_sync:
                parts.start(scope, query)
                recalled = parts.recall.take(scope, self._settings.timeout)
                parts.recall.forget()
            else:
                recalled = parts.recall.take(scope, self._settings.recall_wait_seconds)
            if self._sessions.scope() == scope:
                self._recalled = recalled
        return framed(self._recalled, self._settings)

    def queue_prefetch(self, query: str, *, session_id: str = "") -> None:
        """Start to recall for the next turn of a session, unless the user has left it."""
        scope, parts = self._sessions.scope(session_id), self._parts
        if scope is None or parts is None or not self._recalls or self._settings.recall_sync:
            return
        if not self._read_only:
            self._apply_missions(parts)
        parts.start(scope, query, waits=self._settings.prefetch_waits_for_retain)

    def recall_status(self) -> Any:
        """What the last ``prefetch`` put into the context, for Hermes' indicator; None if nothing."""
        if not self._settings.recall_indicator or not self._recalled.text:
            return None
        return host.RecallStatus(
            provider_label="Hindsight", count=self._recalled.count, glyph="\N{EYE}\ufe0f"
        )

    def sync_turn(
        self,
        user_content: str,
        assistant_content: str,
        *,
        session_id: str = "",
        messages: Any = None,
        turn_author: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep a turn: it is on disk when this returns, also after ``shutdown``.

        Args:
            messages: The conversation so far: a list, or a snapshot of it.
            turn_author: Who wrote the user's side, where several people share a chat.
        """
        parts = self._parts
        if parts is None:
            return
        identity = self._sessions.identity_of(session_id).written_by(turn_author)
        user, assistant = scrub(text_of(user_content)), scrub(text_of(assistant_content))
        parts.recall.note_exchange(identity, user, assistant)
        if parts.retention is not None:
            parts.retention.keep_turn(identity, user, assistant, messages)

    def on_pre_compress(self, messages: Any, *, require_checkpoint: bool = False) -> str:
        """Confirm that all messages are on disk, if Hermes asks for that; adds no text.

        Raises:
            HindsightExecError: They are not, so Hermes must not drop them.
        """
        if require_checkpoint:
            parts = self._parts
            if parts is None or parts.retention is None:
                raise HindsightExecError("memory is off or read-only here; nothing is on disk")
            from .history import recorded  # noqa: PLC0415 - brings sqlite3

            who = recorded(self._home or host.hermes_home(), self._sessions.current)
            parts.retention.checkpoint(who, messages, parts.connection)
        return ""

    def on_memory_write(
        self,
        action: str,
        target: str,
        content: str,
        metadata: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Nothing: what Hermes notes for itself was said in a turn, and is retained with it."""

    def on_delegation(
        self, task: str, result: str, *, child_session_id: str = "", **kwargs: Any
    ) -> None:
        """Nothing: the turn that asked for it tells what came of it."""

    # -- tools -----------------------------------------------------------------

    def get_tool_schemas(self) -> list[dict[str, Any]]:
        return tools.schemas(self._settings, read_only=self._read_only)

    def handle_tool_call(self, tool_name: str, args: dict[str, Any], **kwargs: Any) -> str:
        """The tool's answer as JSON: ``{"result": …}`` or ``{"error": …}``."""
        parts = self._parts
        if parts is None:
            missing = setup.missing(self._settings) or self._misplaced
            return tools.error(missing or "no session has begun")
        who = self._sessions.current
        return tools.call(tool_name, args, who, parts)

    # -- helpers -----------------------------------------------------------------

    @property
    def _writer(self) -> RetainWriter | None:
        parts = self._parts
        return parts.retention.writer if parts is not None and parts.retention else None

    @property
    def _settings(self) -> Settings:
        return self._loaded or host.settings_of(host.hermes_home())

    def _placed(self, session: str, told: Mapping[str, Any]) -> tuple[Identity, str]:
        """The session that a host begins, and why its project's memory is off, if it is."""
        identity = Identity.of(session, {"cwd": host.working_folder(told), **told})
        try:
            return identity.placed(self._settings, lambda text: self._warn(told, text)), ""
        except ConfigError as error:
            return identity, str(error)

    def _warn(self, told: Mapping[str, Any], text: str) -> None:
        logger.warning("%s", text)
        self._show(told.get("warning_callback"), text)

    def _apply_missions(self, parts: Parts) -> None:
        settings, current = self._settings, self._sessions.current
        for bank in (current.bank(settings), current.mirror(settings)):
            if bank is not None:
                parts.connection.apply_missions(bank)

    @property
    def _recalls(self) -> bool:
        settings = self._settings
        return settings.auto_recall and settings.memory_mode != "tools" and not self._closed

    def _end(self, identity: Identity) -> None:
        """Send what is held of a session."""
        parts = self._parts
        if parts is not None and parts.retention is not None:
            parts.retention.end(identity)

    def _notify(self, text: str) -> None:
        self._show(self._status, text)

    @staticmethod
    def _show(callback: Any, text: str) -> None:
        if not callable(callback):
            return
        try:
            callback(text)
        except Exception:  # the host's screen may be gone
            logger.debug("the host could not show: %s", text, exc_info=True)
