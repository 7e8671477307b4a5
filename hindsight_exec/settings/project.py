"""The bank that a project names in its ``.hindsight/config.toml``, in folders that the user trusts.

Whoever wrote the project wrote that file, so it is opened only in folders that the
user's own configuration lists, and only its ``bank_id`` counts.
"""

from __future__ import annotations

import importlib
import os
import stat
import sys
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional, Tuple

from hindsight_exec.client.urls import bank_problem
from hindsight_exec.errors import ConfigError

from .folders import user_home

__all__ = ["ProjectFile", "project_file"]

_NAME = Path(".hindsight", "config.toml")
_MOST_BYTES = 1 << 16


class ProjectFile(NamedTuple):
    """The bank that a project's file names; "" for none.

    ``ignored`` is the file that was found and not opened, as its folder is not trusted.
    """

    bank: str = ""
    ignored: Optional[Path] = None


def project_file(folder: str, trusted: Tuple[str, ...]) -> ProjectFile:
    """Find and read the file of a folder, else that of the nearest folder above it.

    The user's home and what is above it are no projects.

    Raises:
        ConfigError: The folder is trusted, and its file does not name a usable bank.
    """
    try:
        start, home = Path(folder).resolve(), user_home(os.environ).resolve()
        roots = [Path(one).resolve() for one in trusted]
    except (OSError, RuntimeError, ConfigError):  # a link that leads to itself; no home
        return ProjectFile()
    if start.is_symlink():  # the same from 3.13 on, which returns it as it is
        return ProjectFile()
    for place in (start, *start.parents):
        if place == home or place in home.parents:
            break
        path = place / _NAME
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            mode, problem = 0, f"cannot be read: {error.strerror}"
        else:
            problem = "" if stat.S_ISREG(mode) else "is not a file"
        # The folder, and where a link in it leads to. None above is trusted if this one is not.
        real = Path(os.path.realpath(path))
        if not all(any(_is_in(one, root) for root in roots) for one in (place, real.parent)):
            return ProjectFile(ignored=path)
        if problem:
            raise ConfigError(f"{path} {problem}")
        return ProjectFile(_bank_of(path))
    return ProjectFile()


def _is_in(folder: Path, root: Path) -> bool:
    return folder == root or root in folder.parents


def _bank_of(path: Path) -> str:
    bank = _read(path).get("bank_id", "")
    if not isinstance(bank, str):
        raise ConfigError(f"{path}: bank_id must be text, not {bank!r:.60}")
    if bank.strip() and (problem := bank_problem(bank.strip())):
        raise ConfigError(f"{path}: bank_id {bank!r:.60} {problem}")
    return bank.strip()


def _read(path: Path) -> Dict[str, Any]:
    try:
        toml: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    except ModuleNotFoundError:
        raise ConfigError(f"{path} cannot be read: before Python 3.11, install tomli") from None
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ConfigError(f"{path} cannot be read: it has more than {_MOST_BYTES} bytes")
        values: Dict[str, Any] = toml.loads(content.decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__}: {error})") from error
    return values
