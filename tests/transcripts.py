"""A transcript as a chat program would have written it, the same on every run."""

from __future__ import annotations

import json
import random
from datetime import datetime, timedelta, timezone
from typing import Any

# fmt: off
_WORDS = """
    Fahrrad Müller Straße café naïve größer Übung Ärger Öl señor Ελλάδα привет 東京 мир the a budget
    meeting recipe train garden code deploy bug sister birthday Tuesday colour zwölf 🎈 🚲 👩‍🚀 🇩🇪 ☕
    it's "quoted" back\\slash <tag> {brace} 100% a/b
""".split()  # noqa: SIM905 - a list of words would take forty lines
# fmt: on


def made_transcript(turns: int, seed: int = 1) -> tuple[list[str], list[tuple[str, str]]]:
    """The lines of a transcript, and what its turns say.

    It has a system message, tool calls with their results, contents in parts, times as ISO 8601,
    as seconds or not at all, and texts of some words to some thousand characters.
    """
    random_ = random.Random(seed)
    at = datetime(2026, 1, 5, 8, 0, tzinfo=timezone.utc)
    lines: list[dict[str, Any]] = [{"role": "system", "content": "You are a helpful assistant."}]
    said = []
    for number in range(turns):
        at += timedelta(seconds=random_.uniform(5, 5000))
        question, answer = _text(random_, number, 40), _text(random_, number, 120)
        lines.append({"role": "user", "content": _content(random_, question), **_time(number, at)})
        if number % 5 == 1:
            lines += _tool_call(random_, f"call_{number}")
        at += timedelta(seconds=random_.uniform(1, 30))
        lines.append(
            {"role": "assistant", "content": _content(random_, answer), **_time(number, at)}
        )
        said.append((question, answer))
    return [
        json.dumps(line, ensure_ascii=number % 2 == 0) for number, line in enumerate(lines)
    ], said


def _text(random_: random.Random, number: int, most: int) -> str:
    """A text that no other turn has; now and then a long one, or one with line ends."""
    words = random_.choices(_WORDS, k=random_.randint(3, most * (10 if number % 50 == 7 else 1)))
    return f"#{number} " + " ".join(words).replace("bug ", "bug\n", 1)


def _content(random_: random.Random, text: str) -> Any:
    return [{"type": "text", "text": text}] if random_.random() < 0.2 else text


def _time(number: int, at: datetime) -> dict[str, Any]:
    if number % 7 == 3:
        return {}
    return {"timestamp": at.timestamp() if number % 7 == 4 else at.isoformat()}


def _tool_call(random_: random.Random, call: str) -> list[dict[str, Any]]:
    function = {"name": "search", "arguments": json.dumps({"q": random_.choice(_WORDS)})}
    return [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": call, "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": call, "content": json.dumps({"hits": [1, 2, 3]})},
    ]
