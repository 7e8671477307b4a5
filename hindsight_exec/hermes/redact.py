"""Hides what looks like a key, a token or a password, before it gets to the disk.

Hermes 0.22 does so for all it hands to providers; older hosts and the history
in ``state.db`` do not. The classes are those that secret scanners agree on.
Words, hashes and identifiers without such a shape stay.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from hindsight_exec.conversation.transcript import TranscriptTurn
    from hindsight_exec.settings.config import Settings

    AnyTurn = TypeVar("AnyTurn", bound=TranscriptTurn)

__all__ = ["REDACTED", "is_skipped", "kept", "redact", "shown_of"]

REDACTED = "[redacted]"

# Formats that say themselves what they are.
_TOKENS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END [A-Z ]*PRIVATE KEY(?: BLOCK)?-----|\Z)"
    r"|(?<![A-Za-z0-9])(?:"
    r"(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}(?![0-9A-Za-z])"  # AWS
    r"|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255}"
    r"|gl(?:pat|ptt|dt|rt)-[\w-]{20,}"  # GitLab
    r"|xox[abeoprs]-[\w-]{10,}|xapp-\d-[\w-]{10,}"  # Slack
    r"|sk-(?=[\w-]*\d)[\w-]{20,}"  # OpenAI, Anthropic, OpenRouter
    r"|AIza[\w-]{35}|ya29\.[\w-]{20,}|GOCSPX-[\w-]{20,}"  # Google
    r"|[rs]k_(?:live|test)_[A-Za-z0-9]{16,}|whsec_[A-Za-z0-9+/]{24,}"  # Stripe
    r"|hf_[A-Za-z0-9]{30,}|npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,}"
    r"|SG\.[\w-]{22}\.[\w-]{43}|dop_v1_[0-9a-f]{64}|SK[0-9a-f]{32}"  # SendGrid, DigitalOcean, Twilio
    r"|\d{8,10}:AA[\w-]{33}"  # Telegram
    r"|[MNO][\w-]{23,27}\.[\w-]{6}\.[\w-]{27,38}"  # Discord
    r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}"  # JSON web tokens
    r")",
    re.DOTALL,
)
_HOOKS = re.compile(
    r"(https://(?:hooks\.slack\.com/services|discord(?:app)?\.com/api/webhooks)/)[\w/-]{20,}"
)
_HEADERS = re.compile(r"\b((?:bearer|basic)\s+)[\w.~+/=-]{16,}", re.IGNORECASE)
_IN_URLS = re.compile(
    r"\b([a-z][a-z0-9+.-]{0,20}://[^\s/:@]{0,200}:)[^\s/@]{1,200}@", re.IGNORECASE
)
# A name that says "secret", and its value.
_NAMED = re.compile(
    r"\b([\w.-]{0,60}(?:pass(?:word|wd|phrase)|pwd|secret|token|credential"
    r"|(?:api|access|account|auth|private|signing|encryption)[_-]?key)"
    r"[\"']?\s*(?:[:=]|\bis\b)\s*)([\"']?)([^\s\"',;]{6,200})",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """The text with ``[redacted]`` in the place of what looks like a secret."""
    text = _TOKENS.sub(REDACTED, text)
    text = _HOOKS.sub(rf"\1{REDACTED}", text)
    text = _HEADERS.sub(rf"\1{REDACTED}", text)
    text = _IN_URLS.sub(rf"\1{REDACTED}@", text)
    return _NAMED.sub(_named, text)


def _named(found: re.Match[str]) -> str:
    name, quote, value = found.groups()
    # Code, placeholders and prose are no secrets: `token = read()`, `password: <yours>`.
    looks_random = re.search(r"\d", value) and re.search(r"[A-Za-z]", value)
    if not looks_random or re.search(r"[(){}<>$\[\]]", value) or value.startswith(("http", "/")):
        return found[0]
    return f"{name}{quote}{REDACTED}"


def is_skipped(settings: Settings, user: str) -> bool:
    """Whether the user wants no turn kept whose question reads like this."""
    return any(re.search(pattern, user) for pattern in settings.retain_skip_patterns)


def kept(settings: Settings, role: str, text: str) -> str:
    """What is kept of what somebody said: "" for roles that are not wanted."""
    if role not in settings.retain_roles:
        return ""
    for pattern in settings.retain_strip_patterns:
        text = re.sub(pattern, "", text)
    if settings.redact:
        text = redact(text)
    limit = settings.retain_max_chars
    return text.strip() if not limit or len(text) <= limit else text[:limit].strip() + " […]"


def shown_of(turn: AnyTurn, settings: Settings) -> AnyTurn | None:
    """What of a turn is stored, by the user's settings; None for nothing."""
    if is_skipped(settings, turn.user):
        return None
    user, assistant = (kept(settings, role, getattr(turn, role)) for role in ("user", "assistant"))
    return replace(turn, user=user, assistant=assistant) if user or assistant else None
