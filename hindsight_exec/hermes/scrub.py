"""What of a turn people said: injected memories and the host's own prompts are not theirs."""

from __future__ import annotations

import re
from typing import Any, Mapping

from hindsight_exec.conversation.transcript import content_text
from hindsight_exec.errors import TranscriptError

__all__ = ["RUNTIME", "headline", "is_synthetic", "message_list", "scrub", "text_of"]

# Labels what the runtime said in the user's place.
RUNTIME = "Runtime (not the user)"

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
# Hermes puts the text of a skill, or of a bundle of them, around what the user typed with its name.
_SKILL = "[IMPORTANT: The user has invoked the "
_TYPED = re.compile(
    r"[^\n]* skill bundle,.*?\nUser instruction: (.*?)(?:\n\n\[Loaded as part of the |\Z)"
    r"|.*The user has provided the following instruction alongside the skill invocation: "
    r"(.*?)(?:\n\n\[Runtime note:|\Z)",
    re.DOTALL,
)

# How the prompts begin that Hermes (0.19 to 0.22) writes in the user's place.
_SYNTHETIC = re.compile(
    r"\[(?:"
    r"IMPORTANT: (?:Background process |\d+ background |MCP servers have been reloaded"
    r"|Watch patterns disabled|You are running as a scheduled cron job)"
    r"|Background process |ASYNC DELEGATION |Heartbeat\b|Goal set\]"
    r"|Continuing toward (?:your standing goal|this kanban task)"
    r"|The work looks complete, but the task is still open\]"
    r"|CONTEXT COMPACTION|CONTEXT SUMMARY\]|PRIOR CONTEXT\b"
    r"|Your active task list was preserved across context compression\]"
    r"|System: (?:[Yy]our previous |[Tt]he previous (?:response|turn) |Continue now\."
    r"|You edited code in this turn|You are a Hermes kanban worker"
    r"|The active model for this chat has changed to )"
    r")"
    r"|work kanban task \S+\Z"
)
# Hermes 0.20 and later say of a user's message whose it is; these kinds are a person's.
_PERSONAL_KINDS = ("", "steer", "skill_invocation")


def scrub(text: str) -> str:
    """The text without what Hermes put into it: memories, and skills that the user called."""
    if "memory-context" in text.lower():
        text = _TAG.sub("", _OPEN_BLOCK.sub("", _BLOCK.sub("", text)))
    rest, text = text, ""
    while rest != text:  # there may be several notes
        text, rest = rest, _NOTE.sub("", rest)
    text = text.strip()
    if text.startswith(_SKILL):
        typed = _TYPED.match(text)
        text = (typed[1] or typed[2] or "").strip() if typed else ""
    return text


def is_synthetic(text: str, messages: Any = None) -> bool:
    """Whether the runtime, not the user, said this: a nudge, a finished background job.

    Args:
        text: The user's side of the turn, scrubbed.
        messages: The conversation so far, in any shape. A message of the user
            with this text may carry one of Hermes' marks.
    """
    if _SYNTHETIC.match(text):
        return True
    for message in reversed(message_list(messages)):
        if message.get("role") == "user" and scrub(text_of(message.get("content"))) == text:
            marked = any(value for name, value in message.items() if name.endswith("_synthetic"))
            return marked or str(message.get("display_kind") or "") not in _PERSONAL_KINDS
    return False


def headline(text: str) -> str:
    """The first line of what the runtime said. The rest of it is often a job's whole output."""
    first = text.partition("\n")[0]
    return first if len(first) <= 200 else first[:199] + "…"


def message_list(messages: Any) -> list[Mapping[str, Any]]:
    """The messages that Hermes passes: a list, or a snapshot with ``messages()``; never raises."""
    try:
        found = messages.messages() if callable(getattr(messages, "messages", None)) else messages
        if isinstance(found, Mapping):
            return [found]
        return [one for one in found or () if isinstance(one, Mapping) and one]
    except Exception:  # a foreign object may raise anything
        return []


def text_of(content: Any) -> str:
    """The text of what Hermes passes as content: text, parts, or something else; never raises."""
    try:
        return content_text(content)
    except TranscriptError:
        return str(content)
