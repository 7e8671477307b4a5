"""Finds words in what an outbox file still holds: turns that the server does not know yet.

It reads the newest rows first, a few at a time, so that a concurrent put waits
for milliseconds at most, and stops at a deadline. Nothing is kept between two
searches, and nothing is written.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Iterator, NamedTuple

from hindsight_exec.conversation.turns import payload_json
from hindsight_exec.errors import OutboxCorrupt
from hindsight_exec.executor.waiting import now

from .schema import source_of

if TYPE_CHECKING:
    from hindsight_exec.conversation.turns import Destination, Source

    from .reader import OutboxReader

__all__ = ["Found", "Query", "contents_of_session", "search", "terms"]

#: Seconds for which a search holds a file that others use, at most twice that.
_SLICE = 0.002

#: Characters of a message that are shown, around the first word that was found.
_SHOWN = 400

# Each row is JSON, whose names are in all of them.
_STEMS = frozenset(("assi", "assista", "cont", "conte", "role", "time", "timesta", "user"))

_TURNS = """SELECT t.id, t.given_at, '', t.payload, s.header
    FROM turns t JOIN sources s ON s.id = t.source
    JOIN destinations x ON x.id = s.destination
    WHERE x.url = ? AND x.credential = ? AND x.bank = ? AND (s.session = ?) = ? AND t.id < ?
    ORDER BY t.id DESC LIMIT ?"""
_DOCUMENTS = """SELECT d.id, d.given_at, d.document_id, d.item, s.header
    FROM documents d JOIN sources s ON s.id = d.source
    JOIN destinations x ON x.id = d.destination
    WHERE x.url = ? AND x.credential = ? AND x.bank = ? AND (s.session = ?) = ? AND d.id < ?
    AND d.reason IS NULL ORDER BY d.id DESC LIMIT ?"""
_NEWEST = 1 << 62


@dataclass(frozen=True)
class Query:
    """What to look for.

    Attributes:
        destination: Only turns that go there.
        session: The running session, which is not searched.
        terms: See :func:`terms`.
        accepts: Whether turns of a source may be shown.
    """

    destination: Destination
    session: str
    terms: tuple[str, ...]
    accepts: Callable[[Source], bool]

    @property
    def needed(self) -> int:
        """So many terms must be in a turn."""
        return 1 if len(self.terms) <= 3 else 2 if len(self.terms) <= 8 else 3

    def count(self, text: str) -> int:
        return sum(term in text for term in self.terms)


class Found(NamedTuple):
    """A turn that fits; ``document_id`` is "" while no document holds it."""

    hits: int
    given_at: float
    document_id: str
    text: str


def terms(words: set[str]) -> tuple[str, ...]:
    """What to look for instead of whole words: their stems, or, without spaces, pairs of signs."""
    found = set()
    for word in words:
        if word.isascii():
            found.add(word if len(word) <= 4 else word[: max(4, len(word) - 2)])
        else:
            found.update(word[at : at + 2] for at in range(max(1, len(word) - 1)))
    return tuple(sorted(found - _STEMS))[:64]


def search(outbox: OutboxReader, query: Query, deadline: float) -> list[Found]:
    """The turns that hold enough of the terms, newest first, as far as time allows.

    Args:
        deadline: When to stop, in seconds of `executor.waiting.now`.

    Raises:
        OutboxUnavailable, OutboxCorrupt: The file cannot be read.
        ValueError: The outbox is closed.
    """
    found: list[Found] = []
    headers: dict[str, bool] = {}
    for sql in (_TURNS, _DOCUMENTS):
        rows = _rows(outbox, sql, query.destination, query.session, deadline, of_it=False)
        for given_at, document_id, text, header in rows:
            if query.count(text.lower()) < query.needed:
                continue
            if header not in headers:
                headers[header] = query.accepts(_source(outbox, header))
            if now() > deadline:
                break
            if headers[header]:
                found += [
                    Found(hits, given_at, document_id, shown)
                    for hits, shown in _passages(text, query)
                ]
    return found


def contents_of_session(
    outbox: OutboxReader, destination: Destination, session: str, deadline: float
) -> list[str]:
    """What the messages of a session say, the newest first, as far as time allows.

    Raises:
        As :func:`search`.
    """
    return [
        content
        for sql in (_TURNS, _DOCUMENTS)
        for _, _, text, _ in _rows(outbox, sql, destination, session, deadline, of_it=True)
        for content in _contents(text)
    ]


def _rows(
    outbox: OutboxReader,
    sql: str,
    where: Destination,
    session: str,
    deadline: float,
    *,
    of_it: bool,
) -> Iterator[tuple[float, str, str, str]]:
    """Rows of a session, or those of all others, the newest first."""
    before, count = _NEWEST, 64
    while now() < deadline:
        start = now()
        values = (where.url, where.credential, where.bank, session, of_it, before, count)
        rows = outbox._db.all(sql, values)
        took = now() - start
        for number, given_at, document_id, content, header in rows:
            text = (
                content if isinstance(content, str) else bytes(content).decode("utf-8", "replace")
            )
            yield given_at, document_id, text, header
            before = number
        if len(rows) < count:
            return
        # As many as fit into the time; a row may have megabytes.
        count = max(1, min(4096, int(count * _SLICE / max(took, 1e-6)), count * 2))


def _source(outbox: OutboxReader, header: str) -> Source:
    try:
        return source_of(header)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise OutboxCorrupt(f"the outbox {outbox.path} is damaged: {error}") from error


def _passages(text: str, query: Query) -> Iterator[tuple[int, str]]:
    """The exchanges in a row's text, questions with answers, that hold enough of the terms."""
    contents = _contents(text)
    for start in range(0, len(contents), 2):
        exchange = contents[start : start + 2]
        hits = query.count("\n".join(exchange).lower())
        if hits >= query.needed:
            yield hits, " ".join(_around(content, query.terms) for content in exchange)


def _contents(text: str) -> Any:
    """The messages that a turn or an item holds; text that is no conversation as one message."""
    try:
        value = json.loads(text) if text.startswith('{"content": "') else None
        inner = value["content"] if value else f"[{payload_json(text)}]"
        messages = json.loads(inner) if inner.startswith("[") else [{"content": inner}]
        return [str(message["content"]) for message in messages]
    except (ValueError, TypeError, KeyError, RecursionError):
        return [text]


def _around(content: str, words: tuple[str, ...]) -> str:
    """A message, or what is around its first hit."""
    content = re.sub(r"\s+", " ", content).strip()
    if len(content) <= _SHOWN:
        return content
    lowered = content.lower()
    first = min((at for at in map(lowered.find, words) if at >= 0), default=0)
    start = max(0, min(first - _SHOWN // 4, len(content) - _SHOWN))
    cut = content[start : start + _SHOWN]
    return f"{'…' if start else ''}{cut}{'…' if start + _SHOWN < len(content) else ''}"
