"""Transcripts: what real programs write, and what is wrong with it."""

from __future__ import annotations

import io
import json
import random
from datetime import datetime, timezone
from typing import Any

import pytest
from transcripts import made_transcript

from hindsight_exec.conversation.transcript import TranscriptTurn, read_transcript

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=timezone.utc)


def read(raw: str | bytes) -> tuple[list[TranscriptTurn], list[tuple[int, str]]]:
    """The turns of a transcript and what was wrong with it."""
    problems: list[tuple[int, str]] = []
    lines = io.BytesIO(raw.encode() if isinstance(raw, str) else raw)
    turns = list(read_transcript(lines, lambda line, reason: problems.append((line, reason))))
    return turns, problems


def said(*messages: Any, **options: Any) -> list[tuple[str, str]]:
    """The two sides of each turn of these messages, which must be fine."""
    turns, problems = read("\n".join(map(json.dumps, messages)))
    assert problems == []
    assert read(json.dumps(messages, **options))[0] is not None
    return [(turn.user, turn.assistant) for turn in turns]


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


@pytest.mark.parametrize("indent", [None, 2])
def test_lines_and_lists_say_the_same(indent: int | None) -> None:
    """JSON Lines and a JSON list of the same messages are the same turns."""
    messages = [user("hi"), assistant("hello"), user("bye"), assistant("see you")]
    turns, problems = read("\n".join(map(json.dumps, messages)))
    assert [(turn.user, turn.assistant, turn.line) for turn in turns] == [
        ("hi", "hello", 1),
        ("bye", "see you", 3),
    ]
    listed, more = read(json.dumps(messages, indent=indent))
    assert [(turn.user, turn.assistant) for turn in listed] == [("hi", "hello"), ("bye", "see you")]
    assert [turn.line for turn in listed] == ([1, 1] if indent is None else [2, 10])
    assert problems == more == []


def test_empty_transcripts() -> None:
    """Nothing, blank lines and an empty list hold no turn and no mistake."""
    for raw in ("", "\n \n", "[]", "\n[ ]\n"):
        assert read(raw) == ([], [])


def test_messages_of_one_side_belong_together() -> None:
    """A turn goes on until the user speaks again after an answer."""
    assert said(
        assistant("welcome"), user("a"), user("b"), assistant("c"), assistant("d"), user("e")
    ) == [("", "welcome"), ("a\n\nb", "c\n\nd"), ("e", "")]


def test_tools_and_system_messages_are_left_out() -> None:
    """Tool calls, their results and system messages are not said by anybody."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert said(
        {"role": "system", "content": "be kind"},
        user("weather?"),
        assistant(None, tool_calls=[call]),
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
        assistant("Rain."),
        {"role": "developer", "content": "x"},
        {"role": "function", "name": "f", "content": "x"},
    ) == [("weather?", "Rain.")]


def test_content_in_parts() -> None:
    """Texts of parts are lines; what is no text leaves its kind, never its data."""
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    assert said(
        user([{"type": "text", "text": "look"}, picture, "here", {"type": "input_audio"}]),
        assistant(
            [
                {"type": "output_text", "text": "nice"},
                {"type": "refusal", "refusal": "no"},
                {"type": "tool_use", "input": {}},
            ]
        ),
        user([]),
    ) == [("look\n[image]\nhere\n[audio]", "nice\nno")]


@pytest.mark.parametrize(
    "stamp, expected",
    [
        ("2026-03-01T10:00:00Z", "2026-03-01T10:00:00+00:00"),
        ("2026-03-01T10:00:00.123456789+02:00", "2026-03-01T10:00:00.123456+02:00"),
        (1_772_359_200, "2026-03-01T10:00:00+00:00"),
        (1_772_359_200.5, "2026-03-01T10:00:00.500000+00:00"),
        ("1772359200", "2026-03-01T10:00:00+00:00"),
        (1_772_359_200_000, "2026-03-01T10:00:00+00:00"),
    ],
)
def test_times(stamp: Any, expected: str) -> None:
    """A time is ISO 8601, or POSIX seconds or milliseconds."""
    turns, problems = read(json.dumps(user("x", timestamp=stamp)))
    assert problems == []
    assert turns[0].messages(NOW)[0]["timestamp"] == expected


def test_a_time_without_an_offset_is_local() -> None:
    """A naive time gets this machine's offset."""
    (turn,), _ = read(json.dumps(user("x", timestamp="2026-03-01T10:00:00")))
    assert turn.user_at == datetime(2026, 3, 1, 10).astimezone()


def test_each_message_has_its_own_time() -> None:
    """Question and answer keep their times; where there is none, the turn's or now is taken."""
    lines = [
        user("q", timestamp=0),
        assistant("a", timestamp=60),
        user("q"),
        assistant("a", timestamp=120),
        user("q"),
        assistant("a"),
    ]
    turns, _ = read("\n".join(map(json.dumps, lines)))
    times = [[message["timestamp"] for message in turn.messages(NOW)] for turn in turns]
    first, second = "1970-01-01T00:01:00+00:00", "1970-01-01T00:02:00+00:00"
    assert times == [
        ["1970-01-01T00:00:00+00:00", first],
        [second, second],
        [NOW.isoformat(), NOW.isoformat()],
    ]


def test_messages_have_the_providers_shape() -> None:
    """A turn's messages are labelled, and an empty side is left out."""
    (turn,), _ = read(json.dumps(user("hi")))
    assert turn.messages(NOW, user_prefix="Me") == [
        {"role": "user", "content": "Me: hi", "timestamp": NOW.isoformat()}
    ]


@pytest.mark.parametrize(
    "line, reason",
    [
        (b"{bad", "not JSON: "),
        (b"\xff{}", "not UTF-8"),
        (b"5", "a message must be a JSON object, not 5"),
        (b'["x"]', 'a message must be a JSON object, not ["x"]'),
        (b"{}", "no role"),
        (b'{"role": "wizard", "content": "x"}', 'unknown role "wizard"'),
        (b'{"role": ["user"], "content": "x"}', "unknown role"),
        (b'{"role": "user", "content": 5}', "content must be text or a list of parts, not 5"),
        (b'{"role": "user", "content": [5]}', "a part of the content must be an object, not 5"),
        (b"9" * 5000, ""),  # no JSON for some Pythons, a number for others
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_line_is_named_and_the_rest_goes_on(line: bytes, reason: str) -> None:
    """A line that is no message is told by its number and reason, and stops nothing."""
    fine = json.dumps(user("fine")).encode(), json.dumps(assistant("too")).encode()
    turns, problems = read(b"\n".join([fine[0], b"", line, fine[1]]))
    assert [(turn.user, turn.assistant) for turn in turns] == [("fine", "too")]
    ((number, told),) = problems
    assert number == 3
    assert told.startswith(reason)
    assert len(told) < 200


@pytest.mark.parametrize("stamp", ["soon", [], True, 1e300, "1e999", {"$date": 5}])
def test_a_bad_time_does_not_cost_the_message(stamp: Any) -> None:
    """A time that is not understood is reported; the message stays."""
    turns, problems = read(json.dumps(user("fine", timestamp=stamp)))
    assert [turn.user for turn in turns] == ["fine"]
    assert turns[0].user_at is None
    assert problems[0][0] == 1
    assert "is not a time" in problems[0][1]


def test_a_broken_list_gives_what_it_holds() -> None:
    """A list that is cut off or broken gives the messages before that, and the line."""
    whole = json.dumps([user("a"), assistant("b"), user("c"), assistant("d")], indent=1)
    for broken, line in (
        (whole[:-20], 16),
        (whole.replace('},\n {\n  "role": "user"', '}\n {\n  "role": "user"'), 10),
    ):
        turns, problems = read(broken)
        assert (turns[0].user, turns[0].assistant) == ("a", "b")
        assert [number for number, _ in problems] == [line]
        assert "the list is broken here" in problems[0][1]
    turns, problems = read(whole + "\n{}")
    assert len(turns) == 2
    assert problems == [(19, "text after the list is skipped")]


def test_a_byte_order_mark_and_windows_lines() -> None:
    """A BOM and CRLF are no mistakes."""
    raw = "\ufeff" + "\r\n".join([json.dumps(user("a")), json.dumps(assistant("b")), ""])
    turns, problems = read(raw)
    assert [(turn.user, turn.assistant) for turn in turns] == [("a", "b")]
    assert problems == []


def test_a_long_real_transcript() -> None:
    """Hundreds of turns with umlauts, emoji and tool calls are read whole and in order."""
    lines, expected = made_transcript(300)
    turns, problems = read("\n".join(lines))
    assert problems == []
    assert [(turn.user, turn.assistant) for turn in turns] == expected
    assert read(f"[{','.join(lines)}]")[0] != []


def test_any_bytes_are_read_without_an_exception() -> None:
    """Transcripts with bytes changed at random are read; what is told has a line of the file."""
    lines, _ = made_transcript(20)
    for raw in (
        "\n".join(lines).encode(),
        json.dumps([json.loads(line) for line in lines]).encode(),
    ):
        for seed in range(150):
            random_ = random.Random(seed)
            damaged = bytearray(raw)
            for _ in range(random_.randint(1, 20)):
                damaged[random_.randrange(len(damaged))] = random_.randrange(256)
            _, problems = read(bytes(damaged))
            assert all(1 <= number <= damaged.count(b"\n") + 1 for number, _ in problems)
