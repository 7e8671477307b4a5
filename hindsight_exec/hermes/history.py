"""Conversations of the past, as Hermes keeps them in its ``state.db``. Read only.

What is taken from the file was checked with hermes-agent 0.19.0: a table
``sessions``, a table ``messages`` in the order of ``id``, and structured content
as JSON behind a mark.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Iterator, Mapping
from urllib.parse import quote

from hindsight_exec.conversation.transcript import TranscriptTurn, paired
from hindsight_exec.errors import ConfigError

from .identity import Identity
from .scrub import RUNTIME, headline, is_synthetic, scrub, text_of

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

__all__ = ["PastSession", "PastTurn", "past_sessions", "recorded"]

_JSON = "\x00json:"
_SUMMARIES = ("[CONTEXT COMPACTION", "[CONTEXT SUMMARY]")
# Nobody talked there: the provider does not retain them live either.
_NOT_A_TALK = ("cron", "subagent")

Message = dict[str, Any]


@dataclass(frozen=True)
class PastTurn(TranscriptTurn):
    """A turn; ``from_runtime``: nobody typed it, and its answer tells what a job found."""

    from_runtime: bool = False

    def messages(
        self, now: datetime, *, user_prefix: str = "User", **options: Any
    ) -> list[dict[str, str]]:
        prefix = RUNTIME if self.from_runtime else user_prefix
        return super().messages(now, user_prefix=prefix, **options)


@dataclass(frozen=True)
class PastSession:
    """A session that somebody had with Hermes; ``last_at`` is POSIX time in seconds."""

    identity: Identity
    turns: tuple[PastTurn, ...]
    last_at: float
    title: str


def past_sessions(home: Path) -> Iterator[PastSession]:
    """The sessions with something said in them, the oldest first.

    Sessions that nobody talked in (scheduled, delegated) are left out, and so
    are messages that the user undid and copies that compression made.

    Raises:
        ConfigError: The file cannot be read, or is none of Hermes'.
    """
    database = home / "state.db"
    if not database.is_file():
        raise ConfigError(f"there is no {database}: name Hermes' folder with --home")
    profile = home.name if home.parent.name == "profiles" else "default"
    with _opened(database) as db:
        rows = db.execute("SELECT * FROM sessions ORDER BY started_at, id").fetchall()
        sessions = {row["id"]: dict(row) for row in rows}
        for session in sessions.values():
            if not _is_talk(session):
                continue
            found = _past_session(db, session, sessions, profile)
            if found.turns:
                yield found


def recorded(home: Path, identity: Identity) -> Identity:
    """Whom the session serves by ``state.db``, where the host did not tell.

    A gateway compresses a chat with an agent of its own, to which it names neither
    user nor chat: what they said would go to the bank of those who are not known.

    Raises:
        ConfigError: The file cannot be read.
    """
    database, named = home / "state.db", {"user_id", "chat_id"}
    if named & identity.known.keys() or not database.is_file():
        return identity
    with _opened(database) as db:
        query = "SELECT * FROM sessions WHERE id = ?"
        row = db.execute(query, (identity.session,)).fetchone()
    profile = identity.known.get("agent_identity", "")
    found = _identity(dict(row), profile) if row is not None else identity
    return found if named & found.known.keys() else identity


@contextlib.contextmanager
def _opened(database: Path) -> Iterator[sqlite3.Connection]:
    target = f"file:{quote(os.fsencode(database))}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(target, uri=True, timeout=30)) as db:
            db.row_factory = sqlite3.Row
            yield db
    except (sqlite3.Error, KeyError, IndexError) as error:
        raise ConfigError(f"{database} cannot be read as Hermes' sessions: {error}") from error


def _is_talk(session: Mapping[str, Any]) -> bool:
    try:
        config = json.loads(session.get("model_config") or "{}")
    except ValueError:
        config = {}
    delegated = isinstance(config, dict) and config.get("_delegate_from") is not None
    return not delegated and str(session["source"]) not in _NOT_A_TALK


def _past_session(
    db: sqlite3.Connection,
    session: Mapping[str, Any],
    sessions: Mapping[str, Mapping[str, Any]],
    profile: str,
) -> PastSession:
    parent = sessions.get(session.get("parent_session_id") or "")
    seen: set[tuple[str, str]] = set()
    if parent is not None:
        seen = {_key(message) for message in _messages(db, parent["id"])}
    messages = _once(_messages(db, session["id"]), seen, continued=parent is not None)
    messages = _without_notes(messages)
    pairs = paired(enumerate(messages, 1), _ignore)
    turns = tuple(filter(None, (_turn(one, messages[one.line - 1]) for one in pairs)))
    last = max((message["timestamp"] for message in messages), default=0.0)
    return PastSession(_identity(session, profile), turns, last, str(session.get("title") or ""))


def _identity(session: Mapping[str, Any], profile: str) -> Identity:
    told = {
        name: session.get(name) for name in ("user_id", "chat_id", "chat_type", "thread_id", "cwd")
    }
    told.update(
        platform=session["source"],
        parent_session_id=session.get("parent_session_id"),
        agent_identity=profile,
        agent_workspace="hermes",  # what Hermes tells at initialize()
    )
    return Identity.of(session["id"], told)


def _messages(db: sqlite3.Connection, session: str) -> list[Message]:
    """What was said in a session: archived rows count, undone ones and mere onlookers' do not."""
    rows = db.execute(
        "SELECT * FROM messages WHERE session_id = ? AND role IN ('user', 'assistant') ORDER BY id",
        (session,),
    ).fetchall()
    found: list[Message] = []
    for row in map(dict, rows):
        undone = not row.get("active", 1) and not row.get("compacted", 0)
        if not undone and not row.get("observed", 0):
            found.append(
                {
                    "role": row["role"],
                    "content": _content(row["content"]),
                    "timestamp": float(row["timestamp"]),
                    "display_kind": row.get("display_kind"),
                }
            )
    return found


def _content(stored: Any) -> Any:
    if isinstance(stored, bytes):
        stored = stored.decode(errors="replace")
    if isinstance(stored, str) and stored.startswith(_JSON):
        with contextlib.suppress(ValueError):
            return json.loads(stored[len(_JSON) :])
    return stored if stored is None else str(stored)


def _once(messages: list[Message], seen: set[tuple[str, str]], *, continued: bool) -> list[Message]:
    """The messages without those that compression put there.

    It writes a summary and, around it, copies of messages: a run of copies
    that has a summary in it, or that a continuation begins with. What a user
    says twice stands elsewhere, and stays.
    """
    kept: list[Message] = []
    run: list[Message] = []
    drop = continued
    for message in messages:
        key = _key(message)
        summary = key[1].startswith(_SUMMARIES)
        if summary or key in seen:
            run.append(message)
            drop = drop or summary
            continue
        kept += [] if drop else run
        kept.append(message)
        run, drop = [], False
        seen.add(key)
    return kept + ([] if drop else run)


def _key(message: Message) -> tuple[str, str]:
    content = message["content"]
    text = content if isinstance(content, str) else json.dumps(content, sort_keys=True)
    return message["role"], text.strip()


def _without_notes(messages: list[Message]) -> list[Message]:
    """The messages without what the runtime said beside a person, before the assistant spoke."""
    kept: list[Message] = []
    for message in messages:
        both = message["role"] == "user" and kept and kept[-1]["role"] == "user"
        if both and _is_from_runtime(message):
            continue
        if both and _is_from_runtime(kept[-1]):
            kept.pop()
        kept.append(message)
    return kept


def _turn(turn: TranscriptTurn, first: Message) -> PastTurn | None:
    """A turn as the provider retains it live; None if nobody said anything in it."""
    user, from_runtime = scrub(turn.user), _is_from_runtime(first)
    if not user:
        return None
    if from_runtime:
        user = headline(user)
    times = (turn.user_at, turn.assistant_at)
    return PastTurn(user, scrub(turn.assistant), *times, turn.line, from_runtime)


def _is_from_runtime(message: Message) -> bool:
    return is_synthetic(scrub(text_of(message["content"])), message)


def _ignore(line: int, reason: str) -> None:
    """Hermes' own rows: what is not understood of them was not said."""


def when(turn: TranscriptTurn) -> float | None:
    """When a turn was: POSIX time in seconds."""
    moment = turn.user_at or turn.assistant_at
    return None if moment is None else moment.timestamp()
