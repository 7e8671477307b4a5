"""Folders of the user: the home, Hermes' own, and the one for the state of this package."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Mapping

from hindsight_exec.errors import ConfigError

__all__ = ["absolute", "default_hermes_home", "managed_folder", "state_folder", "user_home"]


def state_folder(environ: Mapping[str, str]) -> Path:
    """Where turns wait: ``HINDSIGHT_EXEC_STATE``, else the user's state directory of the platform.

    Raises:
        ConfigError: There is no home folder to put it into.
    """
    named = environ.get("HINDSIGHT_EXEC_STATE", "").strip()
    if named:
        return absolute(named)
    if sys.platform == "win32":
        base = _local_app_data(environ)
    elif sys.platform == "darwin":
        base = user_home(environ) / "Library" / "Application Support"
    else:
        # The XDG specification has relative paths ignored.
        xdg = Path(environ.get("XDG_STATE_HOME", "").strip())
        base = xdg if xdg.is_absolute() else user_home(environ) / ".local" / "state"
    return base / "hindsight-exec"


def default_hermes_home(environ: Mapping[str, str]) -> Path:
    """The folder of Hermes: ``HERMES_HOME``, else its default on this platform."""
    named = environ.get("HERMES_HOME", "").strip()
    if named:
        return Path(named)
    if sys.platform == "win32":
        return _local_app_data(environ) / "hermes"
    return user_home(environ) / ".hermes"


def _local_app_data(environ: Mapping[str, str]) -> Path:
    local = environ.get("LOCALAPPDATA", "").strip()
    return Path(local) if local else user_home(environ) / "AppData" / "Local"


def managed_folder(environ: Mapping[str, str]) -> Path:
    """Where an administrator keeps what goes before the files of Hermes' users."""
    return Path(environ.get("HERMES_MANAGED_DIR", "").strip() or "/etc/hermes")


def absolute(path: str | os.PathLike[str]) -> Path:
    """Return an absolute path, with a leading ``~`` or ``~user`` replaced.

    Raises:
        ConfigError: There is no such user, or no home folder.
    """
    try:
        return Path(path).expanduser().absolute()
    except (KeyError, RuntimeError) as error:  # KeyError: on 3.9, for a user without a name
        raise ConfigError(f"{os.fspath(path)!r}: no such user, or no home folder") from error


def user_home(environ: Mapping[str, str]) -> Path:
    named = Path(environ.get("HOME", "") if sys.platform != "win32" else "")
    try:
        return named if named.is_absolute() else absolute("~")
    except ConfigError as error:
        raise ConfigError(
            "no home folder: set HOME, or HINDSIGHT_EXEC_STATE to a folder"
        ) from error
