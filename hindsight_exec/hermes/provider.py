"""The memory provider: what Hermes calls, and in which order things happen then.

A turn goes to the `RetainWriter`, which has it on disk when ``sync_turn``
returns; recall runs on the background loop. Nothing here waits for the network
except ``prefetch``, the two asking tools and ``shutdown``, all bounded.
"""

# ruff: noqa: ARG002 - the signatures are Hermes'

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from datetime import datetime
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Awaitable,
    Callable,
    Dict,
    List,
    Mapping,
    Optional,
    Sequence,
    Set,
    Tuple,
    TypeVar,
)

from hindsight_exec.conversation.turns import turn_messages
from hindsight_exec.delivery.writer import RetainWriter
from hindsight_exec.errors import HindsightExecError
from hindsight_exec.hermes import host, setup, tools

from .compat import DeliveryQueue, weakly
from .connection import Connection
from .identity import Identity
from .recall import LONGEST_WAIT, Recall, Recalled, framed, memories
from .scrub import is_synthetic, scrub

if TYPE_CHECKING:
    from hindsight_exec.client.api import HindsightClient
    from hindsight_exec.settings.config import Settings

__all__ = ["HindsightMemoryProvider"]

T = TypeVar("T")
_Parts = Tuple[Optional[Recall], Optional[RetainWriter], Optional[Connection]]
_NOTHING: _Parts = (None, None, None)

logger = logging.getLogger("hindsight_exec")

_PROMPT_WAIT = 1.0  # seconds the system prompt waits to learn whether the server answers


class HindsightMemoryProvider(host.MemoryProvider):
    """Hindsight as the memory of Hermes, with every turn through the outbox.

    Hermes calls it from several threads: the turn's, one for prefetches, one
    for syncs. All methods may be called from any thread and in any order, also
    after ``shutdown`` and while the process exits; none raises for what the
    server or the disk does.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Guarded by _lock; the objects behind them are safe by themselves:
        self._home: Optional[Path] = None
        self._known: Optional[Settings] = None
        self._identity = Identity()
        self._parents: Dict[str, str] = {}
        self._written: Set[str] = set()  # sessions that may have turns held
        self._writer: Optional[RetainWriter] = None
        self._connection: Optional[Connection] = None
        self._recall: Optional[Recall] = None
        self._primary = False
        self._closed = False
        self._first_turn = True
        self._recalled = Recalled()
        self._status: Optional[Callable[[str], object]] = None

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

    def get_config_schema(self) -> List[Dict[str, Any]]:
        return setup.config_schema()

    def save_config(self, values: Mapping[str, Any], hermes_home: str) -> None:
        setup.save_config(values, Path(hermes_home))

    def post_setup(self, hermes_home: str, config: Any) -> None:
        """``hermes memory setup``: asks, saves, makes this the provider, and tries the connection."""
        from .wizard import run  # noqa: PLC0415 - only when it is used

        run(Path(hermes_home))

    def get_status_config(self, provider_config: Any = None) -> Dict[str, Any]:
        """What ``hermes memory status`` shows: where turns go, and how many wait or are dead."""
        return setup.status(self._settings, self._home or host.hermes_home())

    def backup_paths(self) -> List[str]:
        return [str(Path.home() / ".hindsight")]

    # -- the session -----------------------------------------------------------

    def initialize(self, session_id: str, **kwargs: Any) -> None:
        """Takes up a session; what dead processes left behind is delivered in the background."""
        self.initialize_for_inspection(session_id, **kwargs)
        settings = self._settings
        missing = setup.missing(settings)
        if missing:
            self._warn(kwargs.get("warning_callback"), missing)
            return
        with self._lock:
            before, old = self._connection, _NOTHING
            if self._closed or (before is not None and before.settings != settings):
                # Taken up again, perhaps with another server: what there was is not for it.
                old = (self._recall, self._writer, before)
                self._recall = self._writer = self._connection = None
                self._closed = False
            self._connection = connection = self._connection or Connection(settings)
            self._recall = self._recall or Recall(connection)
            if self._primary and self._writer is None:
                self._writer = RetainWriter(
                    settings, state=setup.state_of(self._home), on_trouble=weakly(self._tell)
                )
        _close(old)
        if self._primary:
            connection.apply_missions(self._bank)
        if settings.memory_mode != "tools" or settings.auto_retain:
            connection.check(0)  # the answer is there when the system prompt is written

    def initialize_for_inspection(self, session_id: str, **kwargs: Any) -> None:
        """Learns who is served; starts nothing."""
        home = Path(kwargs.get("hermes_home") or host.hermes_home())
        settings = host.settings_of(home)
        identity = Identity.of(session_id, kwargs)
        with self._lock:
            self._home, self._known = home, settings
            self._identity = identity
            self._parents[identity.session] = identity.parent
            self._primary = (kwargs.get("agent_context") or "primary") == "primary"
            self._first_turn = True
            status = kwargs.get("status_callback")
            self._status = status if callable(status) else None

    def system_prompt_block(self) -> str:
        settings = self._settings
        connection = self._connection
        if connection is None:
            return ""
        says = ["# Hindsight Memory", f"Long-term memory is active, in the bank {self._bank}."]
        if settings.memory_mode != "tools" and settings.auto_recall:
            says.append("What may help is recalled by itself and put into the context, as data.")
        if settings.memory_mode != "context":
            says.append(
                f"{tools.RECALL} searches it, {tools.REFLECT} reasons over it,"
                f" {tools.RETAIN} keeps something on purpose."
            )
        if connection.check(_PROMPT_WAIT):
            says.append(
                "Its server cannot be reached at the moment: nothing can be recalled. What is"
                " said is kept on disk and delivered later."
            )
        return "\n".join(says)

    def on_session_end(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """What is held of the session goes now. The messages themselves were given turn by turn."""
        self._end_sessions()

    def on_session_switch(
        self,
        new_session_id: str,
        *,
        parent_session_id: str = "",
        reset: bool = False,
        rewound: bool = False,
        **kwargs: Any,
    ) -> None:
        """Sends what is held under the old identifiers, once, and takes up the new session."""
        with self._lock:
            old = self._identity
            new = old.moved(new_session_id, parent_session_id)
            if new.session == old.session:
                # Compressed in place, or a turn undone: the same conversation goes on.
                new = old
            self._identity = new
            self._parents[new.session] = new.parent
            recall = self._recall
            moved = rewound or new.session != old.session
            self._first_turn = self._first_turn or moved
        if moved:
            self._end_sessions()
            if recall is not None:
                recall.forget()

    def shutdown(self) -> None:
        """Delivers what waits, bounded by ``drain_timeout``, then closes the client. Idempotent.

        While others of its kind live in the process, what it held is sent in the background.
        What could not be delivered waits on disk. Later turns are kept there too,
        for the next process; nothing is recalled any more.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            parts = (self._recall, self._writer, self._connection)
        # A gateway shuts hundreds down, one after the other.
        _close(parts, leave_to_others=True)

    # -- turns -----------------------------------------------------------------

    def on_turn_start(self, turn_number: int, message: str, **kwargs: Any) -> None:
        """Recalls for a session's first message; the later ones are prepared by ``queue_prefetch``."""
        with self._lock:
            first, self._first_turn = self._first_turn, False
            recall = self._recall
        if first and recall is not None and not recall.started:
            self.queue_prefetch(message)

    def prefetch(self, query: str, *, session_id: str = "") -> str:
        """What was recalled for the coming turn, framed as data; waits a bounded time for it."""
        recalled = Recalled()
        recall = self._recall
        if recall is not None and self._recalls:
            if self._settings.recall_sync:
                recall.start(self._bank, query)
                recalled = recall.take(min(LONGEST_WAIT, self._settings.timeout))
                recall.forget()
            else:
                recalled = recall.take()
        self._recalled = recalled
        return framed(recalled, self._settings)

    def queue_prefetch(self, query: str, *, session_id: str = "") -> None:
        """Begins to recall for the next turn."""
        recall = self._recall
        if recall is None or not self._recalls or self._settings.recall_sync:
            return
        if self._primary and self._connection is not None:
            self._connection.apply_missions(self._bank)
        waits = self._settings.prefetch_waits_for_retain and self._writer is not None
        recall.start(self._bank, query, self._until_retained if waits else None)

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
        messages: Optional[Sequence[Mapping[str, Any]]] = None,
    ) -> None:
        """Keeps a turn: on disk when this returns, also after ``shutdown``."""
        settings, writer = self._settings, self._writer
        if writer is None or not settings.auto_retain:
            return
        user, assistant = scrub(user_content or ""), scrub(assistant_content or "")
        if not user or is_synthetic(user, messages):
            return
        said = turn_messages(
            user,
            assistant,
            at=datetime.now().astimezone(),
            user_prefix=settings.retain_user_prefix,
            assistant_prefix=settings.retain_assistant_prefix,
        )
        try:
            writer.put(said, context=settings.retain_context, **self._about(self._who(session_id)))
        except HindsightExecError as error:
            logger.warning("a turn could not be kept: %s", error)
            self._tell(f"Hindsight: this turn could not be kept: {error}")
            return
        if settings.retain_indicator and host.SHOWS_INDICATORS:
            self._tell("\N{EYE}\ufe0f Hindsight: turn kept")

    def on_pre_compress(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Nothing: what compression drops was given turn by turn."""
        return ""

    def on_memory_write(
        self,
        action: str,
        target: str,
        content: str,
        metadata: Optional[Mapping[str, Any]] = None,
    ) -> None:
        """Nothing: what Hermes notes for itself was said in a turn, and is retained with it."""

    def on_delegation(
        self, task: str, result: str, *, child_session_id: str = "", **kwargs: Any
    ) -> None:
        """Nothing: what came of it is told in the turn that asked for it."""

    # -- tools -----------------------------------------------------------------

    def get_tool_schemas(self) -> List[Dict[str, Any]]:
        if self._settings.memory_mode == "context":
            return []
        return [dict(schema) for schema in tools.SCHEMAS]

    def handle_tool_call(self, tool_name: str, args: Dict[str, Any], **kwargs: Any) -> str:
        """The tool's answer as JSON: ``{"result": …}`` or ``{"error": …}``."""
        settings, bank, writer = self._settings, self._bank, self._writer

        def note(note: tools.Note) -> None:
            if writer is None:
                raise HindsightExecError("memory is read-only here")
            writer.put_text(
                note.content,
                context=note.context,
                timestamp=note.occurred_at,
                **self._about(self._who(""), note.tags, note.metadata),
            )

        def recall(query: str) -> List[str]:
            return self._ask(lambda client: memories(client, settings, bank, query))

        def reflect(query: str) -> str:
            budget = settings.recall_budget
            return scrub(self._ask(lambda client: client.reflect(bank, query, budget=budget)))

        return tools.call(tool_name, args, note=note, recall=recall, reflect=reflect)

    def _ask(self, call: Callable[[HindsightClient], Awaitable[T]]) -> T:
        connection = self._connection
        if connection is None:
            raise HindsightExecError(setup.missing(self._settings) or "no session has begun")
        # The client's own bound comes first; this one is for a loop that was stopped.
        return connection.submit(call).result(self._settings.timeout + 5)

    # -- what older callers rely on ----------------------------------------------

    @property
    def _sync_thread(self) -> Optional[threading.Thread]:
        """The thread that delivers, once there is something to deliver."""
        return self._writer.worker if self._writer is not None else None

    @property
    def _retain_queue(self) -> DeliveryQueue:
        return DeliveryQueue(self._writer)

    # -- helpers -----------------------------------------------------------------

    @property
    def _settings(self) -> Settings:
        known = self._known
        return known if known is not None else host.settings_of(host.hermes_home())

    @property
    def _bank(self) -> str:
        return self._identity.bank(self._settings)

    @property
    def _recalls(self) -> bool:
        settings = self._settings
        return settings.auto_recall and settings.memory_mode != "tools" and not self._closed

    def _who(self, session: str) -> Identity:
        """The identity for a turn of ``session``, which may be one that was left meanwhile."""
        with self._lock:
            identity = self._identity
            session = str(session or "").strip()
            if session and session != identity.session:
                identity = identity.moved(session, self._parents.get(session, ""))
            self._written.add(identity.session)
        return identity

    def _about(
        self, who: Identity, tags: Sequence[str] = (), metadata: Optional[Mapping[str, str]] = None
    ) -> Dict[str, Any]:
        """What the writer is told of something besides its content."""
        settings = self._settings
        return {
            "session": who.session,
            "bank": who.bank(settings),
            "tags": tuple(dict.fromkeys((*who.tags(settings), *tags))),
            "metadata": {**(metadata or {}), **who.metadata(settings)},
            "observation_scopes": settings.observation_scopes,
        }

    def _end_sessions(self) -> None:
        with self._lock:
            writer = self._writer
            ended, self._written = self._written, set()
        if writer is not None:
            for session in ended:
                writer.end_session(session)

    async def _until_retained(self) -> None:
        """Waits, bounded, until the server has processed the turns of this session."""
        writer, settings, session = self._writer, self._settings, self._identity.session
        if writer is None:
            return
        done: concurrent.futures.Future[bool] = concurrent.futures.Future()

        def wait() -> None:
            try:
                done.set_result(
                    writer.flush(
                        settings.prefetch_retain_drain_timeout, session=session, completed=True
                    )
                )
            except Exception as error:
                done.set_exception(error)

        # Waiting blocks, and the loop serves all chats: a thread, where the user asked for waiting.
        threading.Thread(target=wait, name="hindsight-wait", daemon=True).start()
        await asyncio.wrap_future(done)

    def _tell(self, text: str) -> None:
        status = self._status
        if status is None:
            return
        try:
            status(text)
        except Exception:  # the host's screen may be gone
            logger.debug("the host could not show: %s", text, exc_info=True)

    @staticmethod
    def _warn(callback: Any, text: str) -> None:
        logger.warning("Hindsight memory is off: %s", text)
        if callable(callback):
            try:
                callback(f"Hindsight memory is off: {text}")
            except Exception:
                logger.debug("the host could not show a warning", exc_info=True)


def _close(parts: _Parts, *, leave_to_others: bool = False) -> None:
    """Closes them in the order in which they need each other."""
    recall, writer, connection = parts
    if recall is not None:
        recall.close()
    if writer is not None:
        writer.close(leave_to_others=leave_to_others)
    if connection is not None:
        connection.close()
