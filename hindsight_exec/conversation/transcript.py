"""Reads transcripts of conversations as turns. Pure: lines in, turns out, no file, no network.

A transcript is JSON Lines of OpenAI-style messages, or one JSON list of them: `role`, `content` as
text or as parts, and optionally `timestamp` (ISO 8601, or POSIX time in seconds or milliseconds).
A turn is what the user says, and what the assistant says until the user speaks again. Tool calls,
their results and system messages are left out, as by the Hermes provider.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Callable, Iterable, Iterator

from hindsight_exec.errors import TranscriptError

from .times import parse_local
from .turns import turn_messages

_SAID = ("user", "assistant")
_LEFT_OUT = ("system", "developer", "tool", "function")

_SPACE = re.compile(r"[ \t\r\n]*")

# A POSIX time above this is in milliseconds: as seconds it would be in the year 5138.
_MILLISECONDS = 1e11


@dataclass(frozen=True)
class TranscriptTurn:
    """A question and its answer; one of them may be empty."""

    user: str
    assistant: str
    user_at: datetime | None
    assistant_at: datetime | None
    line: int  # of its first message, from 1

    def messages(
        self,
        now: datetime,
        *,
        user_prefix: str = "User",
        assistant_prefix: str = "Assistant",
        localise: Callable[[datetime], datetime] = lambda at: at,
    ) -> list[dict[str, str]]:
        """Return the turn's messages, each with its own time, or with `now` without one.

        ``localise`` gives a time the offset that it shall be stored with.
        """
        at = localise(self.user_at or self.assistant_at or now)
        prefixes = {"user_prefix": user_prefix, "assistant_prefix": assistant_prefix}
        messages = turn_messages(self.user, self.assistant, at=at, **prefixes)
        if self.assistant and self.assistant_at:
            messages[-1]["timestamp"] = localise(self.assistant_at).isoformat()
        return messages


def read_transcript(
    lines: Iterable[bytes], report: Callable[[int, str], object]
) -> Iterator[TranscriptTurn]:
    """Yield the turns of a transcript as its lines are read.

    Args:
        lines: The lines of the file, in UTF-8.
        report: Called with the number of each unreadable line, and the reason; the other lines
            are read.
    """
    return paired(_values(lines, report), report)


def paired(
    messages: Iterable[tuple[int, Any]], report: Callable[[int, str], object]
) -> Iterator[TranscriptTurn]:
    """Yield the turns of numbered messages; ``report`` as in :func:`read_transcript`."""
    turn = _Turn()
    for number, value in messages:
        try:
            message = _message(value)
        except TranscriptError as error:
            report(number, str(error))
            continue
        if message is None:
            continue
        if message.problem:
            report(number, message.problem)
        if message.role == "user" and turn.assistant:
            yield turn.finished()
            turn = _Turn()
        turn.add(number, message)
    if turn.user or turn.assistant:
        yield turn.finished()


@dataclass
class _Message:
    role: str
    text: str
    at: datetime | None = None
    problem: str = ""


@dataclass
class _Turn:
    """A turn that is being assembled."""

    user: list[_Message] = field(default_factory=list)
    assistant: list[_Message] = field(default_factory=list)
    line: int = 0

    def add(self, number: int, message: _Message) -> None:
        self.line = self.line or number
        (self.user if message.role == "user" else self.assistant).append(message)

    def finished(self) -> TranscriptTurn:
        user, assistant = (
            "\n\n".join(entry.text for entry in side) for side in (self.user, self.assistant)
        )
        # Of several messages, the user's first and the assistant's last time: those of the
        # question and of the answer.
        asked = [entry.at for entry in self.user if entry.at]
        answered = [entry.at for entry in self.assistant if entry.at]
        times = (asked[0] if asked else None, answered[-1] if answered else None)
        return TranscriptTurn(user, assistant, *times, self.line)


def _values(
    lines: Iterable[bytes], report: Callable[[int, str], object]
) -> Iterator[tuple[int, Any]]:
    """Yield the JSON values of the transcript, with the numbers of their lines."""
    numbered = enumerate(lines, 1)
    first = True
    for number, line in numbered:
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            first, is_first = first and not text, first
            if is_first and text.startswith("["):
                rest = b"".join(line for _, line in numbered)
                yield from _list_entries(number, f"{text}\n{rest.decode()}", report)
                return
            if text:
                yield number, json.loads(text)
        except UnicodeDecodeError as error:
            report(number, f"not UTF-8: {error.reason}")
        except json.JSONDecodeError as error:
            report(number, f"not JSON: {error.msg} at column {error.colno}")
        except (ValueError, RecursionError) as error:  # a number of 5000 digits, endless brackets
            report(number, f"not JSON: {error}")


def _list_entries(
    first: int, text: str, report: Callable[[int, str], object]
) -> Iterator[tuple[int, Any]]:
    """Yield the entries of one JSON list, up to the first error."""
    decoder = json.JSONDecoder()
    position, line, counted = _skip(text, 1), first, 0
    if text.startswith("]", position):
        position += 1
    else:
        while True:
            line, counted = line + text.count("\n", counted, position), position
            try:
                value, end = decoder.raw_decode(text, position)
            except (ValueError, RecursionError) as error:
                at = getattr(error, "pos", position)
                reason = getattr(error, "msg", error)
                line += text.count("\n", counted, at)
                report(line, f"the list is broken here, the rest is skipped: {reason}")
                return
            yield line, value
            position = _skip(text, end)
            if text.startswith("]", position):
                position = _skip(text, position + 1)
                break
            if not text.startswith(",", position):
                line += text.count("\n", counted, position)
                report(line, "the list is broken here, the rest is skipped: no comma")
                return
            position = _skip(text, position + 1)
    if text[position:].strip():
        report(line + text.count("\n", counted, position), "text after the list is skipped")


def _skip(text: str, position: int) -> int:
    """Return the next position that is not white space."""
    found = _SPACE.match(text, position)
    return found.end() if found else position


def _message(value: Any) -> _Message | None:
    """Return the message, or None for one that is left out.

    Raises:
        TranscriptError: The value is not a message.
    """
    if not isinstance(value, dict):
        raise TranscriptError(f"a message must be a JSON object, not {_short(value)}")
    role = value.get("role")
    if role in _LEFT_OUT:
        return None
    if role not in _SAID:
        known = ", ".join(_SAID + _LEFT_OUT)
        reason = f"unknown role {_short(role)}" if "role" in value else "no role"
        raise TranscriptError(f"{reason} (known: {known})")
    text = content_text(value.get("content"))
    if not text.strip():
        return None  # the assistant only calls a tool
    message = _Message(role, text)
    try:
        message.at = _time(value.get("timestamp"))
    except (ValueError, OverflowError, OSError):
        message.problem = (
            f"timestamp {_short(value['timestamp'])} is not a time; the message is kept without it"
        )
    return message


def content_text(content: Any) -> str:
    """The text of a message's content, which is text or a list of parts.

    Raises:
        TranscriptError: It is neither.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise TranscriptError(f"content must be text or a list of parts, not {_short(content)}")
    return "\n".join(text for text in map(_part, content) if text)


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise TranscriptError(f"a part of the content must be an object, not {_short(part)}")
    for name in ("text", "refusal"):
        if isinstance(part.get(name), str):
            return str(part[name])
    kind = str(part.get("type", "attachment"))
    if kind.startswith("tool_"):
        return ""
    return f"[{kind.replace('input_', '').replace('_url', '')}]"  # an image's data is not text


def _time(value: Any) -> datetime | None:
    """Read a time; one without an offset is local time.

    Raises:
        ValueError, OverflowError, OSError: The value is not a time.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str) and not re.fullmatch(r"-?\d+(\.\d+)?", value):
        return parse_local(value)
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(value)  # noqa: TRY004 - one kind of error for every value
    seconds = float(value)
    if not math.isfinite(seconds):
        raise ValueError(value)
    if abs(seconds) > _MILLISECONDS:
        seconds /= 1000
    return datetime.fromtimestamp(seconds, timezone.utc)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else f"{text[:37]}…"
