"""Which state directories and which server a command is about, and what to advise the user."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

from hindsight_exec.client.urls import normalise_url
from hindsight_exec.errors import ConfigError
from hindsight_exec.hermes import embedded, host
from hindsight_exec.settings.config import Settings
from hindsight_exec.settings.folders import absolute, default_hermes_home, state_folder

if TYPE_CHECKING:
    from pathlib import Path

_called = "hindsight-exec"
_state: Path | None = None


def called_as(program: str, state: Path | None) -> None:
    """Remember how the user called us, for :func:`advice`."""
    global _called, _state
    _called, _state = program, state


def chooses_directory() -> bool:
    """Whether the user may name the state directory: Hermes has its own."""
    return not _called.startswith("hermes")


def advice(words: str, state: Path | None = None) -> str:
    """A command of ours as this user can type it, for the same (or this) state directory."""
    state = state or _state
    return f"{_called} {words}" + (f" --state {shlex.quote(str(state))}" if state else "")


def folder(state: Path | None) -> Path:
    """The state directory: the named one, else the environment's, else the user's."""
    return absolute(state) if state else state_folder(os.environ)


def folders(state: Path | None) -> list[Path]:
    """All directories where this user's turns may wait: Hermes keeps its own.

    Raises:
        ConfigError: One cannot be read, or the named one is not a state directory.
    """
    found = [folder(state)]
    _require(found[0], named=state is not None)
    if state is None and not os.environ.get("HINDSIGHT_EXEC_STATE", "").strip():
        hermes = _hermes_outbox()
        if hermes is not None and hermes.parent.is_dir():  # its configuration is there, too
            found.append(hermes)
    return found


def _require(place: Path, *, named: bool) -> None:
    """A mistyped or unreadable directory must not read as "nothing waits"."""
    where = "--state" if named else "HINDSIGHT_EXEC_STATE, and who may read it"
    try:
        names = [path.name for path in place.iterdir()]
    except OSError as error:
        if not named and isinstance(error, FileNotFoundError):
            return  # nothing was ever given
        raise ConfigError(f"no state directory {place}: {error.strerror}; check {where}") from None
    if not named or not names or ".folder.lock" in names:
        return
    if not any(name.endswith(".db") for name in names):
        inside = [place / "outbox", place / "hindsight" / "outbox"]
        nearby = next((f"; did you mean {one}?" for one in inside if one.is_dir()), "")
        raise ConfigError(f"{place} is not a state directory; check --state{nearby}")


def server_data() -> Path:
    """The default data directory of the embedded server."""
    return state_folder(os.environ) / "server"


def settings_of(place: Path) -> Settings:
    """The configuration of the directory's writers: Hermes, or the environment."""
    home = default_hermes_home(os.environ) if place == _hermes_outbox() else None
    settings = host.load_settings(home) if home else Settings.load()
    embedded.know(settings)
    return settings


def chosen_settings(
    place: Path, url: str | None, api_key: str | None, bank: str | None
) -> Settings | None:
    """The server that the arguments name, else the configured one; None if there is none."""
    loaded = settings_of(place)
    if url is None:
        if loaded.unusable:
            raise ConfigError(loaded.unusable)
        if not loaded.configured:
            return None
        found = loaded if api_key is None else replace(loaded, api_key=api_key, credential="")
    elif loaded.configured and loaded.api_url == normalise_url(url) and api_key is None:
        found = loaded
    else:
        # The configured key belongs to another server, so it does not go to this one.
        found = replace(
            loaded,
            mode="local_external",
            api_url=url,
            api_key=api_key,
            credential="",
            unusable="",
            configured=True,
        )
    return found if bank is None else replace(found, bank_id=bank)


def _hermes_outbox() -> Path | None:
    try:
        return (default_hermes_home(os.environ) / "hindsight" / "outbox").absolute()
    except ConfigError:
        return None
