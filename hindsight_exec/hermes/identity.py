"""Who talks where, and what follows from it: the bank, the tags and the metadata of a turn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Mapping

from hindsight_exec.settings.banks import repository_name
from hindsight_exec.settings.project import project_file

if TYPE_CHECKING:
    from hindsight_exec.settings.config import Settings

# Files of projects that the user was told of.
_ignored: set[Path] = set()

# What Hermes passes to initialize() and the bundled provider stores as metadata.
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
    """The session that a provider serves, and whom it serves. Immutable.

    ``author`` is who wrote a turn of a shared chat; it replaces the user who
    opened the chat.
    """

    session: str = ""
    parent: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    workspace: str = ""
    author: tuple[tuple[str, str], ...] = ()
    folder: str = ""
    """That the session works in; "" if there is none."""
    project_bank: str = ""
    """That the project of the folder names; "" if it names none."""

    @classmethod
    def of(cls, session: Any, told: Mapping[str, Any]) -> Identity:
        """From the arguments of ``initialize``."""
        facts = {name: _word(told.get(name)) for name in _NOTED}
        return cls(
            _word(session) or "hermes",
            _word(told.get("parent_session_id")),
            tuple((name, value) for name, value in facts.items() if value),
            _word(told.get("agent_workspace")),
            folder=_word(told.get("cwd")),
        )

    def moved(self, session: Any, parent: Any = "") -> Identity:
        """The same people in another session; nobody has written there yet."""
        session = _word(session) or self.session
        return replace(self, session=session, parent=_word(parent), author=())

    def placed(self, settings: Settings, notify: Callable[[str], object]) -> Identity:
        """The same with the bank that the project names in its own file, if the user trusts it.

        Where the host names a user, as in a messenger's chat, the file is not asked: it
        would merge the banks of several people.

        Args:
            notify: Called with words for the user, once for a file that is not trusted.

        Raises:
            ConfigError: See `project_file`.
        """
        if not self.folder or self.known.get("user_id"):
            return self
        found = project_file(self.folder, settings.trusted_project_dirs)
        if found.ignored is not None and found.ignored not in _ignored:
            _ignored.add(found.ignored)
            folder = found.ignored.parents[1]
            notify(
                f"{found.ignored} is ignored; to keep this project's memories in the bank that it"
                f" names, add {folder} to trusted_project_dirs"
            )
        return replace(self, project_bank=found.bank)

    def written_by(self, author: Any) -> Identity:
        """The same session with the author of a turn: Hermes' ``{"id", "name", "is_bot"}``."""
        told = author if isinstance(author, Mapping) else {}
        facts = {"user_id": _word(told.get("id")), "user_name": _word(told.get("name"))}
        if told.get("is_bot"):
            facts["author_is_bot"] = "true"
        named = facts["user_id"] or facts["user_name"]
        return replace(self, author=tuple(facts.items()) if named else ())

    @property
    def known(self) -> dict[str, str]:
        """What is known of the turn's author and of the chat; empty values are left out."""
        merged = {**dict(self.facts), **dict(self.author)}
        return {name: value for name, value in merged.items() if value}

    def bank(self, settings: Settings) -> str:
        """The bank: the project's, the user's own, the template's, or ``bank_id``."""
        return self.project_bank or settings.bank_for(self._fields(self.folder))

    def mirror(self, settings: Settings) -> str | None:
        """The bank that gets a copy: the one without the project, where this is another."""
        own = settings.bank_for(self._fields("")) if settings.mirror_to_own_bank else None
        return None if own == self.bank(settings) else own

    def _fields(self, folder: str) -> dict[str, str]:
        facts = self.known
        return {
            "profile": facts.get("agent_identity", ""),
            "workspace": self.workspace,
            "platform": facts.get("platform", ""),
            "user": facts.get("user_id", ""),
            "chat": facts.get("chat_id", ""),
            "thread": facts.get("thread_id", ""),
            "session": self.session,
            "project": Path(folder).name,
            "git_project": repository_name(folder) if folder else "",
        }

    def tags(self, settings: Settings) -> tuple[str, ...]:
        """The configured tags, then the session, its parent, and the author in a shared chat."""
        lineage = [f"session:{self.session}"]
        if self.parent:
            lineage.append(f"parent:{self.parent}")
        if self.author:
            lineage.append(f"user:{self.known.get('user_id') or self.known['user_name']}")
        return tuple(dict.fromkeys((*settings.retain_tags, *lineage)))

    def metadata(self, settings: Settings) -> dict[str, str]:
        """What is known of a turn besides its content; the writer adds counts and times."""
        noted = {"session_id": self.session, **self.known}
        if settings.retain_source.strip():
            noted["source"] = settings.retain_source.strip()
        return noted


def _word(value: Any) -> str:
    return str(value).strip() if value is not None else ""
