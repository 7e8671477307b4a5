"""Cuts a transcript into documents, and leaves out those that are stored already. Pure.

A document's id is made of all that its turns hold: of the session, of when its first turn was, and
of every text and time. So a transcript that is retained again, after an interruption or because it
has grown, finds its documents under the same ids, wherever they were cut, and two transcripts that
begin alike never replace each other's documents.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, Iterator, Optional, Sequence

from hindsight_exec.conversation.turns import document_id, identifier

from .schedule import CHUNK, Hold, first_document

if TYPE_CHECKING:
    from datetime import datetime

    from hindsight_exec.conversation.transcript import TranscriptTurn

# More turns than a document ever had, by any settings.
_MOST_TURNS = 1000

# Characters of an id after the session that tell the time; the rest tells the content.
_TIME = len("/00000000-0000-7000-")

# Seconds between turns without a time, or with equal times: ids sort by time.
_STEP = 1e-5


@dataclass(frozen=True)
class Document:
    """A document that is yet to be stored.

    Attributes:
        id: Its id.
        first: The number of its first turn in the transcript, from 1.
        turns: Its turns.
    """

    id: str
    first: int
    turns: Sequence[TranscriptTurn]


def missing_documents(
    turns: Sequence[TranscriptTurn],
    session: str,
    stored: set[str],
    hold: Hold,
    sizes: Callable[[TranscriptTurn], Sequence[int]],
) -> Iterator[Document]:
    """The documents of the turns that are not stored, in their order.

    Args:
        turns: All turns of the transcript.
        session: The session they belong to.
        stored: Ids of documents that the server has or will have.
        hold: How much makes a document.
        sizes: The lengths of a turn's messages as JSON, in characters.
    """
    names = _Names(turns, identifier(session), stored)
    start = position = 0
    while position < len(turns):
        count = names.stored_turns(position)
        if count:
            yield from _cut(names, start, position, hold, sizes)
            start = position = position + count
        else:
            position += 1
    yield from _cut(names, start, len(turns), hold, sizes)


def _cut(
    names: _Names,
    start: int,
    end: int,
    hold: Hold,
    sizes: Callable[[TranscriptTurn], Sequence[int]],
) -> Iterator[Document]:
    turns = names.turns
    known: list[Sequence[int]] = []
    enough = 3 * max(hold.chars, CHUNK)
    while start < end:
        # As far ahead as the decision looks, so that it is the same for the whole transcript.
        while start + len(known) < end and (
            sum(sum(one) for one in known) <= enough or len(known) <= hold.turns
        ):
            known.append(sizes(turns[start + len(known)]))
        count = first_document(known, hold, ended=True)
        yield Document(names.name(start, count), start + 1, turns[start : start + count])
        start, known = start + count, known[count:]


class _Names:
    """The ids of the documents that may be made of the turns."""

    def __init__(self, turns: Sequence[TranscriptTurn], session: str, stored: set[str]) -> None:
        self.turns = turns
        self._session = session
        self._stored = stored
        self._begin = {name[: len(session) + _TIME] for name in stored}
        self._times: list[float] = []
        for turn in turns:
            at = _when(turn.user_at) or _when(turn.assistant_at) or 0.0
            # A turn without a time has that of its place: the same in each run, unlike the present.
            self._times.append(max(at, self._times[-1] + _STEP) if self._times else at)

    def name(self, start: int, count: int) -> str:
        """The id of the document with ``count`` turns from ``start`` on."""
        content = hashlib.sha256()
        for turn in self.turns[start : start + count]:
            content.update(_content(turn))
        return self._name(start, content.hexdigest())

    def stored_turns(self, start: int) -> int:
        """How many turns the stored document has that begins at ``start``; 0 if there is none."""
        if self._name(start, "any")[: len(self._session) + _TIME] not in self._begin:
            return 0
        content = hashlib.sha256()
        for count, turn in enumerate(self.turns[start : start + _MOST_TURNS], 1):
            content.update(_content(turn))
            if self._name(start, content.hexdigest()) in self._stored:
                return count
        return 0

    def _name(self, start: int, content: str) -> str:
        return document_id(self._session, self._times[start], content)


def _when(at: Optional[datetime]) -> Optional[float]:
    return None if at is None else max(at.timestamp(), 0.0)


def _content(turn: TranscriptTurn) -> bytes:
    texts = (turn.user, turn.assistant, _when(turn.user_at), _when(turn.assistant_at))
    return json.dumps(texts).encode()
