"""Cleans, joins and cuts the texts of the embedded server. Pure.

Each rule is the real server's (Hindsight 1.1.0), so a document looks the same in both.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Iterator

from hindsight_exec.conversation.turns import storable_values

#: The longest unit in characters: the size of Hindsight's chunks.
UNIT_CHARS = 3000

# Where a long text may be cut, the best place first.
_BREAKS = ("\n\n", "\n", ". ", " ")


#: Returns a JSON value without what PostgreSQL cannot store: U+0000 and lone surrogates. Python's
#: parser joins PAIRS of escaped surrogates to one character, so those that are left stand alone.
sanitize = storable_values


def join_parts(parts: list[str]) -> str:
    """Join the parts of a document: JSON lists of objects are merged, other texts by lines."""
    merged: list[Any] = []
    for part in parts:
        entries = _json(part)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            return "\n".join(parts)
        merged += entries
    # A single part keeps its bytes; several are one list again.
    return parts[0] if len(parts) == 1 else json.dumps(merged, ensure_ascii=False)


@dataclass(frozen=True)
class Unit:
    """What recall finds: a message of a conversation, or a piece of a text."""

    text: str
    kind: str  # "experience": what the assistant said; "world": all else
    at: str | None  # the message's own time


def units(document: str) -> list[Unit]:
    """Return the units of a document's text, in order."""
    messages = list(_messages(_json(document)))
    if not messages:
        # Appended nested conversations have one JSON list on each line.
        messages = [entry for line in document.split("\n") for entry in _messages(_json(line))]
    found: list[Unit] = []
    for message in messages or [{"content": document}]:
        kind = "experience" if message.get("role") == "assistant" else "world"
        at = message.get("timestamp") if isinstance(message.get("timestamp"), str) else None
        found += [Unit(piece, kind, at) for piece in _pieces(_content_text(message.get("content")))]
    return found


def _json(text: str) -> Any:
    try:
        return json.loads(text) if text.lstrip().startswith(("[", "{")) else None
    except (ValueError, RecursionError):
        return None


def _messages(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the messages of a list of messages, or of a list of turns."""
    for entry in value if isinstance(value, list) else [value]:
        for message in entry if isinstance(entry, list) else [entry]:
            if isinstance(message, dict) and "role" in message:
                yield message


def _content_text(content: Any) -> str:
    if isinstance(content, list):
        texts = (part.get("text") if isinstance(part, dict) else part for part in content)
        return "\n".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def _pieces(text: str) -> Iterator[str]:
    text = text.strip()
    start = 0  # slicing the rest off for each piece would take minutes for 50 MB
    while len(text) - start > UNIT_CHARS:
        window = text[start : start + UNIT_CHARS]
        cuts = (window.rfind(mark, 1) + len(mark) for mark in _BREAKS)
        # A cut in the first half would leave a crumb; a text without marks is cut anywhere.
        cut = next((cut for cut in cuts if cut > UNIT_CHARS // 2), UNIT_CHARS)
        yield window[:cut].strip()
        start += cut
        while text[start].isspace():  # it ends: the text's last character is none
            start += 1
    if text:
        yield text[start:]
