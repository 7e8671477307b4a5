"""Which documents of a transcript are yet to be stored, whatever is stored already."""

from __future__ import annotations

from datetime import datetime, timezone

from hypothesis import given
from hypothesis import strategies as st

from hindsight_exec.conversation.transcript import TranscriptTurn
from hindsight_exec.delivery.schedule import Hold
from hindsight_exec.delivery.transcripts import Document, missing_documents

moments = st.none() | st.integers(-5, 3).map(
    lambda second: datetime.fromtimestamp(second, timezone.utc)
)
conversations = st.lists(
    st.builds(
        TranscriptTurn,
        user=st.sampled_from(["", "a", "a long question", "\ud800"]),
        assistant=st.sampled_from(["", "b", "an answer"]),
        user_at=moments,
        assistant_at=moments,
        line=st.just(1),
    ),
    max_size=30,
)
holds = st.builds(Hold, chars=st.sampled_from([0, 5, 3000]), turns=st.integers(1, 4))


def missing(turns: list[TranscriptTurn], stored: set[str], hold: Hold) -> list[Document]:
    def sizes(turn: TranscriptTurn) -> list[int]:
        return [len(turn.user) * 100, len(turn.assistant) * 100]

    return list(missing_documents(turns, "s", stored, hold, sizes))


def numbers(documents: list[Document]) -> list[int]:
    return [
        number
        for document in documents
        for number in range(document.first, document.first + len(document.turns))
    ]


@given(conversations, holds)
def test_a_transcript_is_cut_whole_and_in_order(turns: list[TranscriptTurn], hold: Hold) -> None:
    """Every turn is in one document; ids differ, and sort as the turns do."""
    documents = missing(turns, set(), hold)
    assert numbers(documents) == list(range(1, len(turns) + 1))
    assert [turn for document in documents for turn in document.turns] == turns
    ids = [document.id for document in documents]
    assert ids == sorted(set(ids))


@given(conversations, st.lists(st.tuples(st.integers(0, 30), holds), max_size=3), st.data())
def test_what_is_missing_is_stored_once(
    turns: list[TranscriptTurn], runs: list[tuple[int, Hold]], data: st.DataObject
) -> None:
    """Runs over a growing transcript, each cut anyhow and ended anywhere, store each turn once."""
    stored: dict[str, Document] = {}
    for length, hold in [*sorted(runs, key=lambda run: run[0]), (len(turns), Hold())]:
        documents = missing(turns[:length], set(stored), hold)
        reached = data.draw(st.integers(0, len(documents)))
        stored.update((document.id, document) for document in documents[:reached])
    stored.update((document.id, document) for document in missing(turns, set(stored), Hold()))
    assert sorted(numbers(list(stored.values()))) == list(range(1, len(turns) + 1))
    assert missing(turns, set(stored), Hold()) == []
