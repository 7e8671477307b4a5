"""Who talks where: the bank a turn goes to, and what is said of it."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Mapping

if TYPE_CHECKING:
    from hindsight_exec.settings.config import Settings

logger = logging.getLogger("hindsight_exec")

# What Hermes tells at initialize() and the bundled provider notes as metadata.
_NOTED = (
    "platform",
    "user_id",
    "user_name",
    "chat_id",
    "chat_name",
    "chat_type",
    "thread_id",
    "agent_identity",
)


@dataclass(frozen=True)
class Identity:
    """The session a provider serves, and whom it serves. Immutable."""

    session: str = ""
    parent: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    workspace: str = ""

    @classmethod
    def of(cls, session: Any, told: Mapping[str, Any]) -> Identity:
        """From the arguments of ``initialize``."""
        facts = {name: _word(told.get(name)) for name in _NOTED}
        return cls(
            _word(session) or "hermes",
            _word(told.get("parent_session_id")),
            tuple((name, value) for name, value in facts.items() if value),
            _word(told.get("agent_workspace")),
        )

    def moved(self, session: Any, parent: Any = "") -> Identity:
        """The same, in another session."""
        return replace(self, session=_word(session) or self.session, parent=_word(parent))

    def bank(self, settings: Settings) -> str:
        """The bank: the template's, or ``bank_id`` where it is unset or comes out empty."""
        template = settings.bank_id_template
        if not template:
            return settings.bank_id
        facts = dict(self.facts)
        places = {
            "profile": facts.get("agent_identity", ""),
            "workspace": self.workspace,
            "platform": facts.get("platform", ""),
            "user": facts.get("user_id", ""),
            "session": self.session,
        }
        unknown = set(re.findall(r"{([^{}]*)}", template)) - set(places)
        if unknown or "{" in (rest := re.sub(r"{[^{}]*}", "", template)) or "}" in rest:
            _warn_template(template, settings.bank_id)
            return settings.bank_id
        text = re.sub(r"{([^{}]*)}", lambda found: _segment(places[found[1]]), template)
        # Empty places leave no doubled or dangling separators behind.
        text = re.sub(r"-{2,}", "-", re.sub(r"_{2,}", "_", text)).strip("-_")
        # The server takes at most 192 bytes and no slash (Hindsight 1.1.0).
        text = text.replace("/", "-").encode("utf-8", "replace")[:192].decode("utf-8", "ignore")
        return text or settings.bank_id

    def tags(self, settings: Settings) -> tuple[str, ...]:
        """The configured tags, then where the session stands."""
        lineage = [f"session:{self.session}"]
        if self.parent:
            lineage.append(f"parent:{self.parent}")
        return tuple(dict.fromkeys((*settings.retain_tags, *lineage)))

    def metadata(self, settings: Settings) -> dict[str, str]:
        """What is the same for all turns of the session; the writer adds counts and times."""
        noted = {"session_id": self.session, **dict(self.facts)}
        if settings.retain_source.strip():
            noted["source"] = settings.retain_source.strip()
        return noted


_warned: set[str] = set()


def _warn_template(template: str, bank: str) -> None:
    if template not in _warned:
        _warned.add(template)
        known = "{profile}, {workspace}, {platform}, {user}, {session}"
        logger.warning(
            "bank_id_template is %r, but must hold no places but %s; using bank_id %r",
            template,
            known,
            bank,
        )


def _word(value: Any) -> str:
    return str(value).strip() if value is not None else ""


def _segment(value: str) -> str:
    """A place's value, fit for a URL: other characters become single dashes."""
    return re.sub(r"[^\w-]+", "-", value).strip("-_")
