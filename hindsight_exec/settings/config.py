"""`Settings`: every configuration key with its default, its check and its description.

The file, its keys and the ``HINDSIGHT_*`` variables are those of the Hindsight
provider that Hermes 0.19 bundles, so one configuration serves both. We add keys
of our own, such as ``durability``, ``drain_timeout`` and ``redact``.
"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import Field, dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Optional, Tuple, Union

from hindsight_exec.client.urls import CLOUD_URL
from hindsight_exec.errors import ConfigError

from . import clock, keyring, reading
from .banks import expand
from .llm import PROVIDERS
from .values import PARSERS, WrongValue, brief

__all__ = ["Settings", "configurable"]

logger = logging.getLogger("hindsight_exec")


class _About(NamedTuple):
    """One key of config.json: how it is read, checked and shown to the user.

    A wrong value of a ``strict`` key turns memory off: it says where conversations
    go, or who may see them. Any other wrong value becomes ``narrow``, else the default.
    ``blank``: an empty text is a value, not the absence of one.
    """

    kind: str
    doc: str
    env: str = ""
    aliases: Tuple[str, ...] = ()
    choices: Tuple[str, ...] = ()
    minimum: float = -math.inf
    group: str = ""
    strict: bool = False
    narrow: Any = None
    blank: bool = False


def _key(default: Any, kind: str, doc: str, *, repr: bool = True, **about: Any) -> Any:
    return field(default=default, repr=repr, metadata=_About(kind, doc, **about)._asdict())


@dataclass(frozen=True)
class Settings:
    """All settings. Immutable, so safe from any thread.

    Create it with :meth:`load`, or directly. If you pass ``api_key``, also pass a
    name for it as ``credential``: turns on disk refer to the key by that name,
    and so survive a change of the key. Without a name, they need this very key.

    Raises:
        ConfigError: A value is wrong (direct construction only).
    """

    # fmt: off
    mode: str = _key("cloud", "choice", "How Hindsight is reached.", env="HINDSIGHT_MODE", strict=True,
        choices=("cloud", "local_external", "local_embedded"), group="Connection")
    api_url: str = _key(CLOUD_URL, "url", "URL of the Hindsight API.", env="HINDSIGHT_API_URL",
        aliases=("apiUrl",), group="Connection")
    api_key: Optional[str] = _key(None, "secret", "Key of the Hindsight API.", env="HINDSIGHT_API_KEY",
        aliases=("apiKey",), group="Connection", repr=False)
    timeout: float = _key(120.0, "number", "Seconds a request may take.", env="HINDSIGHT_TIMEOUT",
        minimum=0.001, group="Connection")

    bank_id: str = _key("hermes", "bank", "Name of the memory bank.", env="HINDSIGHT_BANK_ID", strict=True,
        aliases=("bankId",), group="Bank")
    bank_id_template: str = _key("", "template", "Template of the bank's name, as for Python's str.format, over"
        " {profile}, {workspace}, {platform}, {user}, {chat}, {thread}, {session}, {project} (the folder that the"
        " session works in) and {git_project} (its git repository); bank_id where it comes out empty.",
        strict=True, group="Bank")
    bank_id_by_user: Tuple[Tuple[str, str], ...] = _key((), "banks", "Banks of single users, by user id or by"
        " platform:user id; they go before the template.", strict=True, group="Bank")
    trusted_project_dirs: Tuple[str, ...] = _key((), "folders", "Folders whose projects may name a bank of their own, in"
        " .hindsight/config.toml; folders in them count, too.", strict=True, group="Bank")
    mirror_to_own_bank: bool = _key(False, "bool", "What is said in a project, and hindsight_retain there, is also kept in your own"
        " bank: the one that counts outside of projects.", group="Bank")
    additional_banks: Tuple[str, ...] = _key((), "list", "Further banks that are recalled from; nothing is retained there.", strict=True, group="Bank")
    mental_model_id: str = _key("", "text", "Id of a mental model of the bank, to be shown in the system prompt.", group="Bank")
    bank_mission: str = _key("", "text", "Mission that frames how the bank reflects.", group="Bank")
    bank_retain_mission: str = _key("", "text", "Mission that steers what is extracted from what is retained.", group="Bank")

    memory_mode: str = _key("hybrid", "choice", "Memories are put into the context, offered as tools, or both (hybrid).",
        choices=("hybrid", "context", "tools"), group="Recall")
    forget_tool: bool = _key(False, "bool", "Offer the model a tool that deletes memories; it shows first what it would"
        " delete.", group="Recall")
    auto_recall: bool = _key(True, "bool", "Recall before each turn.", narrow=False, group="Recall")
    recall_sync: bool = _key(False, "bool", "Recall with the message at hand, which the turn waits for, instead of in"
        " the background with the one before.", group="Recall")
    recall_prefetch_method: str = _key("recall", "choice", "Recall memories as they are, or let the server reflect on them.",
        aliases=("prefetch_method",), choices=("recall", "reflect"), group="Recall")
    recall_budget: str = _key("mid", "choice", "How thoroughly the server searches.", env="HINDSIGHT_BUDGET",
        aliases=("budget",), choices=("low", "mid", "high"), group="Recall")
    recall_max_tokens: int = _key(4096, "int", "Tokens recalled at most.", minimum=1, group="Recall")
    recall_max_input_chars: int = _key(800, "int", "Characters of a message that are searched for; 0 means all.",
        minimum=0, group="Recall")
    recall_types: Tuple[str, ...] = _key(("observation",), "list", "Kinds of memories to recall; an empty list means all kinds.", blank=True,
        choices=("observation", "world", "experience", "opinion"), group="Recall")
    recall_tags: Tuple[str, ...] = _key((), "list", "Recall only what has these tags.", strict=True, group="Recall")
    recall_tags_match: str = _key("any", "choice", "How recall_tags match; the strict ones leave out memories without tags.",
        choices=("any", "all", "any_strict", "all_strict", "exact"), narrow="all_strict", group="Recall")
    recall_wait_seconds: float = _key(3.0, "number", "Seconds that a turn waits for its memories; at most 7, as Hermes does not wait longer.",
        minimum=0, group="Recall")
    recall_min_score: float = _key(0.0, "number", "Leave out memories that the server scores lower, from 0 to 1.", minimum=0, group="Recall")
    recall_max_results: int = _key(0, "int", "Memories recalled at most; 0 means all.", minimum=0, group="Recall")
    recall_max_chars: int = _key(20_000, "int", "Characters of recalled memories put into the context at most, cut between"
        " memories; 0 means all.", minimum=0, group="Recall")
    recall_unprocessed: bool = _key(True, "bool", "Recall also what other sessions said that the server has not processed yet.", group="Recall")
    recall_prompt_preamble: str = _key("", "text", "Words above the recalled memories, instead of ours.", group="Recall")
    recall_indicator: bool = _key(True, "bool", "Show when memories were recalled.", group="Recall")
    prefetch_waits_for_retain: bool = _key(False, "bool", "Recall only after the turns given so far were processed by the server.",
        group="Recall")
    prefetch_retain_drain_timeout: float = _key(10.0, "number", "Seconds prefetch_waits_for_retain waits at most.", minimum=0, group="Recall")

    auto_retain: bool = _key(True, "bool", "Retain each turn.", narrow=False, group="Retain")
    retain_async: bool = _key(True, "bool", "A turn counts as delivered once the server has accepted it; false: once it"
        " has processed it, and the tool hindsight_retain waits for that.", group="Retain")
    retain_every_n_turns: int = _key(1, "int", "Above 1: this many turns of a session make a document, whatever their length; the rest goes"
        " when the session ends. retain_document_chars and retain_idle_seconds then do not count.", minimum=1, group="Retain")
    retain_document_chars: int = _key(3000, "int", "Characters of a session that make a document, and go together.",
        minimum=1, group="Retain")
    retain_idle_seconds: float = _key(60.0, "number", "Seconds without a turn after which a document goes as it is; 0 sends each"
        " turn at once.", minimum=0, group="Retain")
    retain_context: str = _key("conversation between Hermes Agent and the User", "text",
        "Tells the server what is retained.", group="Retain")
    retain_tags: Tuple[str, ...] = _key((), "list", "Tags of everything that is retained.", strict=True, env="HINDSIGHT_RETAIN_TAGS", group="Retain")
    retain_source: str = _key("", "text", "Value of the metadata key source.", env="HINDSIGHT_RETAIN_SOURCE", group="Retain")
    retain_user_prefix: str = _key("User", "label", "Label of what the user says.", env="HINDSIGHT_RETAIN_USER_PREFIX", group="Retain")
    retain_assistant_prefix: str = _key("Assistant", "label", "Label of what the assistant says.",
        env="HINDSIGHT_RETAIN_ASSISTANT_PREFIX", group="Retain")
    redact: bool = _key(True, "bool", "Replace what looks like a key, a token or a password before it is saved.", group="Retain")
    retain_skip_patterns: Tuple[str, ...] = _key((), "patterns", "Regular expressions (a JSON list). Drop turns whose user message"
        " matches any of them.", strict=True, group="Retain")
    retain_strip_patterns: Tuple[str, ...] = _key((), "patterns", "Regular expressions (a JSON list). Take out what they match before a turn is"
        " saved.", strict=True, group="Retain")
    retain_max_chars: int = _key(0, "int", "Characters of a message that are kept at most; 0 means all.", minimum=0, group="Retain")
    retain_roles: Tuple[str, ...] = _key(("user", "assistant"), "list", "Whose side of a turn is kept.", choices=("user", "assistant"), group="Retain")
    observation_scopes: Union[str, Tuple[Tuple[str, ...], ...], None] = _key(None, "scopes", "How observations are scoped: combined, per_tag, all_combinations, shared, or a"
        " JSON list of lists of tags.", env="HINDSIGHT_RETAIN_OBSERVATION_SCOPES", group="Retain")
    retain_indicator: bool = _key(True, "bool", "Show when a turn is retained.", group="Retain")

    drain_timeout: float = _key(10.0, "number", "Seconds that exit or shutdown waits for turns to be delivered; what is"
        " left waits on disk.", minimum=0, group="Delivery")
    durability: str = _key("full", "choice", "What an accepted turn survives: a power cut (full) or a killed"
        " process (normal); memory never writes to disk.",
        choices=("full", "normal", "memory"), group="Delivery")

    llm_provider: str = _key("", "text", "LLM provider of Hindsight's daemon, such as " + ", ".join(PROVIDERS) +
        "; by default that of its profile, else openai.", strict=True, group="Embedded")
    llm_model: str = _key("", "text", "LLM of Hindsight's daemon; by default that of its profile, else the provider's usual one.", group="Embedded")
    llm_base_url: str = _key("", "text", "Endpoint of the LLM.", strict=True, env="HINDSIGHT_API_LLM_BASE_URL", group="Embedded")
    llm_api_key: Optional[str] = _key(None, "secret", "Key of the LLM.", env="HINDSIGHT_LLM_API_KEY",
        aliases=("llmApiKey",), group="Embedded", repr=False)
    idle_timeout: int = _key(300, "int", "Idle seconds after which Hindsight's daemon stops; it starts again when it is"
        " needed. 0 means never. Hindsight 1.1.0 ignores it.",
        env="HINDSIGHT_IDLE_TIMEOUT", minimum=0, group="Embedded")
    port_health_grace_timeout: Optional[float] = _key(None, "number", "Seconds that a slow daemon may take to answer.", minimum=0,
        group="Embedded")
    hf_endpoint: str = _key("", "text", "Mirror of Hugging Face for the daemon's models.", group="Embedded")
    hf_offline: bool = _key(False, "bool", "The daemon uses only models that are on this machine already.", group="Embedded")
    embedded_environment: Tuple[Tuple[str, str], ...] = _key((), "variables", "More environment variables of Hindsight's"
        ' daemon, as an object, such as {"HINDSIGHT_API_EMBEDDINGS_PROVIDER": "openai"}.', strict=True, group="Embedded",
        repr=False)
    profile: str = _key("hermes", "profile", "Profile of Hindsight's daemon: its own database and environment.", strict=True, group="Embedded")
    # fmt: on

    credential: str = ""
    """Names where the key is configured; never the key. "" means there is none."""
    source: Optional[Path] = field(default=None, compare=False)
    """The config.json that was read, if any."""
    configured: bool = field(default=True, compare=False)
    """Whether a server was named at all: by mode, URL or key."""
    unusable: str = field(default="", compare=False)
    """Why no server may be talked to; "" when all is well."""
    timezone: str = field(default="", compare=False)
    """The IANA name of the zone that Hermes is set to; "" for this machine's."""

    def localise(self, at: datetime) -> datetime:
        """Return the same time with the offset of the zone that Hermes is set to."""
        return at.astimezone(clock.zone(self.timezone))

    def now(self) -> datetime:
        return self.localise(datetime.now(timezone.utc))

    def bank_for(self, fields: Mapping[str, str]) -> str:
        """Return the bank of a session with the values of `banks.FIELDS`."""
        by_user, user = dict(self.bank_id_by_user), fields["user"]
        named = by_user.get(f"{fields['platform']}:{user}") or by_user.get(user) if user else None
        return named or expand(self.bank_id_template, fields) or self.bank_id

    def __post_init__(self) -> None:
        if self.unusable:
            return
        for item in configurable():
            value = getattr(self, item.name)
            if value != item.default:
                object.__setattr__(self, item.name, _checked(value, item))
        if self.api_key and not self.credential:
            reference = keyring.reference(self.api_url, self.api_key)
            object.__setattr__(self, "credential", reference)
            keyring.remember(reference, self.api_url, self.api_key)

    @classmethod
    def load(
        cls,
        hermes_home: Optional[Path] = None,
        environ: Optional[Mapping[str, str]] = None,
        *,
        host_loaded: bool = False,
    ) -> Settings:
        """Reads the configuration. Never raises for what is in it.

        Args:
            hermes_home: Folder whose ``hindsight/config.json`` is read first and
                whose ``.env`` goes before ``environ``, as in Hermes. Without it
                ``~/.hindsight/config.json`` and the environment count.
            environ: Stands in for ``os.environ``; a host that serves several
                profiles passes the profile's own.
            host_loaded: ``environ`` is what a host has made of the profile's
                files, and goes before our own reading of ``.env``.
        """
        outer = os.environ if environ is None else environ
        reference = f"hermes:{Path(hermes_home).absolute()}" if hermes_home else "env"
        found = reading.read(configurable(), hermes_home, outer, host_loaded=host_loaded)
        for problem in found.problems:
            logger.warning("%s", problem)
        values = found.values
        key = values.get("api_key")
        if key and outer.get("HINDSIGHT_API_KEY") == key and not found.unusable:
            keyring.remember(reference, values["api_url"], key, found.key_in_dotenv)
        return cls(
            **values,
            credential=reference,
            source=found.source,
            configured=found.configured,
            unusable=found.unusable,
            timezone=found.timezone,
        )


def configurable() -> Tuple[Field[Any], ...]:
    """The fields of `Settings` that are keys of config.json, in their order."""
    return tuple(item for item in fields(Settings) if "kind" in item.metadata)


def _checked(value: Any, item: Field[Any]) -> Any:
    try:
        return PARSERS[item.metadata["kind"]](value, item)
    except WrongValue as wrong:
        shown = "" if item.metadata["kind"] == "secret" else f" {brief(value)}"
        raise ConfigError(f"invalid {item.name}{shown}: it must be {wrong}") from None
