"""Turns, documents and the items that are sent for them."""

from __future__ import annotations

import json
import uuid
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hindsight_exec.conversation import turns

if TYPE_CHECKING:
    from hindsight_exec.conversation.turns import Source, Turn

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

AT = 1_760_000_000.123456

# Any text at all, lone surrogates and U+0000 among it.
any_text = st.text(st.characters(exclude_categories=()))
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), any_text),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(any_text, inner, max_size=3)
    ),
    max_leaves=8,
)


def source(**values: Any) -> Source:
    return turns.source(
        **{"url": "http://h", "credential": "", "bank": "b", "session": "s", **values}
    )


def turn(*contents: str, at: float = AT, index: int = 1) -> Turn:
    messages = [{"role": "user", "content": content} for content in contents]
    return turns.turn(messages, given_at=at, index=index)


# --- ids ----------------------------------------------------------------------


@patient
@given(st.integers(0, 250_000_000_000_000_000), st.integers(1, 10**15))
def test_ids_sort_by_time(microseconds: int, later: int) -> None:
    """Of two ids that are a microsecond or more apart, the later sorts after the other."""
    first, second = (at / 1e6 for at in (microseconds, microseconds + later))
    if second * 1e9 - first * 1e9 >= 1e3:  # as far as a float of nanoseconds can tell
        assert turns.time_ordered_id(first) < turns.time_ordered_id(second)


def test_turns_a_microsecond_apart_sort_right() -> None:
    """The writer's times grow by a microsecond at least, and so do the ids."""
    ids = [turns.document_id("s", AT + n * 1e-6, "x") for n in range(5000)]
    assert ids == sorted(ids)


def test_an_id_is_a_uuid_of_version_7() -> None:
    """Ids are what RFC 9562 calls UUIDv7: 48 bits of milliseconds, version, variant."""
    made = uuid.UUID(turns.time_ordered_id(AT))
    assert made.variant == uuid.RFC_4122
    assert made.version == 7
    assert made.int >> 80 == int(AT * 1000)


def test_ids_of_one_moment_differ() -> None:
    """Two processes that are given turns of one session at one moment write two documents."""
    assert len({turns.document_id("s", AT, f"turn {n}") for n in range(1000)}) == 1000
    assert len({turns.time_ordered_id(AT) for _ in range(1000)}) == 1000


def test_any_text_names_a_document() -> None:
    """Also one with a lone surrogate, which is taken out only of what is sent."""
    assert turns.document_id("s", AT, "a\ud800") != turns.document_id("s", AT, "a")


def test_a_document_made_again_has_its_id() -> None:
    """A document that a lost page made us forget takes its own place when it is made again."""
    assert turns.document_id("s", AT, "turn") == turns.document_id("s", AT, "turn")


def test_a_document_id_begins_with_its_session() -> None:
    """All documents of a session can be told by the id."""
    session, _, rest = turns.document_id("a/b", AT, "x").rpartition("/")
    assert session == "a/b"
    assert uuid.UUID(rest)


# --- items --------------------------------------------------------------------


def test_shape_of_an_item() -> None:
    """An item is a flat list of messages as text, with id, time, tags, metadata and the rest."""
    given = source(
        context="chat",
        tags=["one", "two", "one"],
        metadata={"platform": "cli", "nothing": None, "number": 3},
        observation_scopes=[["a"]],
    )
    held = [turn("1", "2", at=AT), turn("3", at=AT + 5, index=2)]
    item = json.loads(turns.document_item(given, "s/id", held))
    assert json.loads(item.pop("content")) == [
        {"role": "user", "content": content} for content in "123"
    ]
    stamp = datetime.fromisoformat(item.pop("timestamp"))
    assert stamp.utcoffset() is not None
    assert stamp.timestamp() == pytest.approx(AT)
    assert item == {
        "document_id": "s/id",
        "context": "chat",
        "tags": ["one", "two", "session:s"],
        "metadata": {
            "platform": "cli",
            "number": "3",
            "retained_at": "2025-10-09T08:53:25.123Z",
            "session_id": "s",
            "message_count": "3",
            "turn_index": "2",
        },
        "observation_scopes": [["a"]],
    }


def test_what_was_not_given_is_left_out() -> None:
    """Neither an empty context nor scopes are sent."""
    item = json.loads(turns.document_item(source(), "s/id", [turn("1")]))
    assert set(item) == {"content", "document_id", "timestamp", "tags", "metadata"}


def test_metadata_of_ours_counts() -> None:
    """What a caller calls `session_id` does not hide the session."""
    item = json.loads(
        turns.document_item(source(metadata={"session_id": "x"}), "s/id", [turn("1")])
    )
    assert item["metadata"]["session_id"] == "s"


def test_a_text_item() -> None:
    """A text is sent as it is, with its own time if it has one."""
    item = json.loads(turns.text_item(source(), "s/id", "a\x00b", AT, "2020-01-01"))
    assert (item["content"], item["timestamp"]) == ("ab", "2020-01-01")
    assert "message_count" not in item["metadata"]
    item = json.loads(turns.text_item(source(), "s/id", "text", AT))
    assert datetime.fromisoformat(item["timestamp"]).timestamp() == pytest.approx(AT)


def test_messages_of_a_turn() -> None:
    """Both sides are labelled and have the time; an empty side is left out."""
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2)))
    assert turns.turn_messages("hi", "ho", at=at, assistant_prefix="") == [
        {"role": "user", "content": "User: hi", "timestamp": "2026-01-02T03:04:05+02:00"},
        {"role": "assistant", "content": "ho", "timestamp": "2026-01-02T03:04:05+02:00"},
    ]
    assert [one["role"] for one in turns.turn_messages(" ", "ho", at=at)] == ["assistant"]
    assert turns.turn_messages("", "\n", at=at) == []


@patient
@given(st.lists(st.dictionaries(any_text, json_values, max_size=4), min_size=1, max_size=4))
def test_any_json_can_be_kept_and_read_again(messages: list[dict[str, Any]]) -> None:
    """Whatever JSON a message is, its payload is JSON in UTF-8, of the sizes that it says."""
    made = turns.turn(messages, given_at=AT, index=1)
    made.payload.encode()
    read = json.loads(f"[{made.json}]")
    assert len(read) == len(made.sizes) == len(messages)
    assert made.chars == len(made.json) - 2 * (len(messages) - 1)
    item = json.loads(turns.document_item(source(), "s/id", [made, made]))
    assert json.loads(item["content"]) == read + read


@patient
@given(st.data())
def test_long_contents_are_written_later(data: st.DataObject) -> None:
    """Long contents are kept as they are, and are the same JSON as all else in the document."""
    letters = st.sampled_from('a \n\t\r"\\ü🎈\x00\ud800')
    long = st.text(letters, min_size=1, max_size=50).map(lambda text: text * (5000 // len(text)))
    content = st.one_of(st.integers(0, 9), st.text(letters), st.lists(long, max_size=1), long)
    message = st.fixed_dictionaries({"role": any_text, "content": content, "more": json_values})
    messages = data.draw(st.lists(message, min_size=1, max_size=4))
    made = turns.turn(messages, given_at=AT, index=1)
    short = [turns.turn([{"": one}], given_at=AT, index=1) for one in messages]
    plain = [one.payload[len('{"": ') : -1] for one in short]  # nothing long is on top
    assert made.json == ", ".join(plain)
    for one, size, text in zip(messages, made.sizes, plain):
        # Kept beside the JSON by the length that was given; what is not storable goes afterwards.
        beside = isinstance(one["content"], str) and len(one["content"]) > 4000
        assert len(text) / 2 <= size <= len(text) if beside else size == len(text)
    made.payload.encode()


@pytest.mark.parametrize(
    "payload",
    ["[", "[0]\n[]\nx", "[0]\n[5]\nx", '[0]\n[{"content": "x"}]\nx', "[" * 100_000, "[0]\n{"],
)
def test_a_damaged_payload_is_left_as_it_is(payload: str) -> None:
    """What cannot be read is not lost by reading it."""
    assert turns.payload_json(payload) == payload


# --- characters ---------------------------------------------------------------


@pytest.mark.parametrize(
    "given,kept",
    [
        ("a\x00b", "ab"),
        ("a\ud800b\udfffc", "abc"),
        ("\x00\x00", ""),
        ("\\u0000", "\\u0000"),
        ("\\\\u0000\\", "\\\\u0000\\"),
        ("\\\x00u0000", "\\u0000"),
        ("\U0001f600 ü \x1f\x7f\u2028", "\U0001f600 ü \x1f\x7f\u2028"),
    ],
)
def test_unstorable_characters(given: str, kept: str) -> None:
    """U+0000 and lone surrogates go, as they would on the server; all else stays."""
    made = turns.turn([{given: [given, {"in": given}]}], given_at=AT, index=1)
    assert json.loads(made.payload) == {kept: [kept, {"in": kept}]}


def test_unstorable_characters_of_a_source() -> None:
    """Nothing that a caller gives makes an item that cannot be sent."""
    bad = "x\x00\ud800"
    given = source(
        bank=bad,
        session=bad,
        context=bad,
        tags=[bad],
        metadata={bad: bad},
        observation_scopes=[[bad, "\\u0000"]],
    )
    assert (given.bank, given.session, given.context) == ("x", "x", "x")
    assert given.tags == ("x", "session:x")
    item = json.loads(
        turns.document_item(given, turns.document_id(given.session, AT, "x"), [turn("1")])
    )
    assert item["metadata"]["x"] == "x"
    assert item["observation_scopes"] == [["x", "\\u0000"]]
    text = turns.text_item(given, "s/id", bad, AT, "2020\ud800")
    assert json.loads(text)["timestamp"] == "2020"


@patient
@given(any_text)
def test_storable_text_is_storable(text: str) -> None:
    """What is storable is UTF-8 without U+0000, and stays as it is."""
    kept = turns.storable(text)
    assert b"\x00" not in kept.encode()
    assert turns.storable(kept) == kept


@patient
@given(any_text, any_text)
def test_long_identifiers(first: str, second: str) -> None:
    """An identifier has 255 characters at most, and two of them are two."""
    names = [turns.identifier(text * 300) for text in (first, second)]
    assert max(map(len, names)) <= 255
    if turns.storable(first * 300) != turns.storable(second * 300):
        assert names[0] != names[1]
    assert [turns.identifier(name) for name in names] == names


def test_a_session_of_ten_thousand_characters() -> None:
    """Its documents and its tag can be indexed, and start as the session does."""
    given = source(session="long/" * 2000)
    assert len(given.session) == 255
    assert given.session.startswith("long/")
    assert all(len(tag) <= 255 for tag in given.tags)
    assert len(turns.document_id(given.session, AT, "x")) <= 300


# --- bad input ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["bank", "session"])
@pytest.mark.parametrize("value", ["", " \n", "\x00", "\ud800", None, 5, b"s"])
def test_an_empty_bank_or_session(name: str, value: Any) -> None:
    """Without a bank or a session there is a ValueError that names which."""
    with pytest.raises(ValueError, match=f"{name} must be a text that is not empty"):
        source(**{name: value})


@pytest.mark.parametrize(
    "name,value",
    [
        ("tags", "text"),
        ("tags", 5),
        ("metadata", ["a"]),
        ("metadata", "text"),
        ("observation_scopes", {1, 2}),
        ("observation_scopes", float("nan")),
    ],
)
def test_other_bad_arguments(name: str, value: Any) -> None:
    """What is unusable is a ValueError that names the argument."""
    with pytest.raises(ValueError, match=name):
        source(**{name: value})


def test_an_error_is_short() -> None:
    """A message never repeats the whole of a long value."""
    with pytest.raises(ValueError) as caught:
        turns.turn([["x" * 100_000]], given_at=AT, index=1)  # type: ignore[list-item]
    assert len(str(caught.value)) < 200


def deep() -> Any:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    "messages",
    [
        [],
        None,
        "text",
        {"role": "user"},
        [["role"]],
        [None],
        [{"content": b"bytes"}],
        [{"content": {1, 2}}],
        [{"content": float("nan")}],
        [{"content": float("inf")}],
        [{("a", "b"): 1}],
        [{"content": datetime(2026, 1, 2)}],
    ],
    ids=repr,
)
def test_what_is_no_turn(messages: Any) -> None:
    """Messages that are missing, no mappings or not JSON are a ValueError."""
    with pytest.raises(ValueError):
        turns.turn(messages, given_at=AT, index=1)


def test_what_is_nested_too_deep() -> None:
    """A message that no JSON can be made of is a ValueError, however it fails."""
    with pytest.raises(ValueError):
        turns.turn([{"content": deep()}], given_at=AT, index=1)


def test_ten_megabytes() -> None:
    """A turn of 10 MB is a turn like any other."""
    made = turn("x" * 10_000_000)
    assert made.chars > 10_000_000
    assert len(turns.document_item(source(), "s/id", [made])) > 10_000_000
