"""Which folders and which server a command is about."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from hindsight_exec.client.urls import normalise_url
from hindsight_exec.errors import ConfigError
from hindsight_exec.hermes import embedded
from hindsight_exec.settings.config import Settings
from hindsight_exec.settings.folders import default_hermes_home, state_folder

if TYPE_CHECKING:
    from pathlib import Path


def folder(state: Path | None) -> Path:
    """The state folder: the one that is named, else the environment's, else the user's."""
    return state.expanduser().absolute() if state else state_folder(os.environ)


def folders(state: Path | None) -> list[Path]:
    """All folders where turns of this user may wait: Hermes keeps its own."""
    found = [folder(state)]
    if state is None and not os.environ.get("HINDSIGHT_EXEC_STATE", "").strip():
        hermes = _hermes_outbox()
        if hermes is not None and hermes.parent.is_dir():  # its configuration is there, too
            found.append(hermes)
    return found


def server_data() -> Path:
    """Where the embedded server keeps its data unless told otherwise."""
    return state_folder(os.environ) / "server"


def settings_of(place: Path) -> Settings:
    """The configuration of those who write to the folder: Hermes, or the environment."""
    home = default_hermes_home(os.environ) if place == _hermes_outbox() else None
    settings = Settings.load(home)
    embedded.know(settings)
    return settings


def chosen_settings(
    place: Path, url: str | None, api_key: str | None, bank: str | None
) -> Settings | None:
    """The server that the arguments name, else the configured one; None if there is none.

    Raises:
        ConfigError: The URL, or the configuration, is unusable.
    """
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
        # The configured key is another server's: it does not go to this one.
        found = replace(
            loaded,
            mode="local_external",
            api_url=url,
            api_key=api_key,
            credential="",
            unusable="",
            configured=True,
        )
    return replace(found, bank_id=bank) if bank else found


def _hermes_outbox() -> Path | None:
    try:
        return (default_hermes_home(os.environ) / "hindsight" / "outbox").absolute()
    except ConfigError:
        return None
