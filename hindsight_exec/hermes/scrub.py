"""What of a turn is conversation: injected memories and the host's own prompts are not."""

from __future__ import annotations

import re
from typing import Any, Mapping, Sequence

__all__ = ["is_synthetic", "scrub"]

_BLOCK = re.compile(r"<\s*memory-context\s*>.*?</\s*memory-context\s*>", re.IGNORECASE | re.DOTALL)
# A block that was cut off has no end; Hermes opens it on a line of its own.
_OPEN_BLOCK = re.compile(
    r"^[ \t]*<\s*memory-context\s*>[ \t]*\r?\n.*\Z", re.IGNORECASE | re.DOTALL | re.MULTILINE
)
_TAG = re.compile(r"</?\s*memory-context\s*>", re.IGNORECASE)
_NOTE = re.compile(
    r"\A\s*\[System note: (?:The following is recalled|Your previous turn|The previous turn|"
    r"A new message has arrived)[^\]]*\]",
    re.IGNORECASE,
)

# How the prompts begin that Hermes (0.19 to 2026-11) writes in the user's place.
_SYNTHETIC = (
    "[IMPORTANT: Background process ",
    "[IMPORTANT: MCP servers have been reloaded",
    "[IMPORTANT: Watch patterns disabled",
    "[IMPORTANT: You are running as a scheduled cron job",
    "[Background process ",
    "[ASYNC DELEGATION ",
    "[Continuing toward your standing goal]",
    "[Continuing toward this kanban task",
    "[CONTEXT COMPACTION",
    "[CONTEXT SUMMARY]",
    "[Your active task list was preserved across context compression]",
    "[System: Your previous ",
    "[System: The previous response ",
    "[System: Continue now.",
    "[System: You edited code in this turn",
    "[System: You are a Hermes kanban worker",
)


def scrub(text: str) -> str:
    """The text without memories that Hermes put into it, so that they are not stored again."""
    if "memory-context" in text.lower():
        text = _TAG.sub("", _OPEN_BLOCK.sub("", _BLOCK.sub("", text)))
    rest, text = text, ""
    while rest != text:  # there may be several notes
        text, rest = rest, _NOTE.sub("", rest)
    return text.strip()


def is_synthetic(text: str, messages: Sequence[Mapping[str, Any]] | None = None) -> bool:
    """Whether the runtime, not the user, said this: a nudge, a finished background job.

    Args:
        text: The user's side of the turn, scrubbed.
        messages: The conversation so far, whose last user message may carry
            one of Hermes' ``_…_synthetic`` marks.
    """
    if text.startswith(_SYNTHETIC):
        return True
    for message in reversed(messages or ()):
        if message.get("role") == "user":
            marked = any(value for name, value in message.items() if name.endswith("_synthetic"))
            return marked and str(message.get("content", "")).strip() == text
    return False
