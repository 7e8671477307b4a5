"""Everything that this package takes from Hermes, with substitutes where Hermes is not installed.

No other module imports Hermes. The names exist in Hermes 0.19.0; those of later
versions are used where they are found.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
import sys
from dataclasses import dataclass
from getpass import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Tuple

from hindsight_exec.errors import ConfigError
from hindsight_exec.settings import reading
from hindsight_exec.settings.config import Settings
from hindsight_exec.settings.dotenv import read_variables
from hindsight_exec.settings.folders import default_hermes_home, managed_folder

if TYPE_CHECKING:

    class MemoryProvider:
        """Hermes' abstract base class; its methods are all ours."""


__all__ = ["MemoryProvider", "RecallStatus", "environment", "hermes_home", "settings_of", "take"]


def take(module: str, name: str) -> Any:
    """``name`` of Hermes' ``module``, or None. Its module names are general: others may own them."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except Exception:  # a foreign module may raise anything
        return None


@dataclass(frozen=True)
class _RecallStatus:
    """What a later Hermes shows of a recall; 0 memories: recalled, but not countable."""

    provider_label: str
    count: int
    glyph: str = ""


if not TYPE_CHECKING:
    _base = take("agent.memory_provider", "MemoryProvider")
    MemoryProvider = _base if isinstance(_base, type) else object

_status = take("agent.memory_provider", "RecallStatus")
#: A Hermes that has this class shows indicators; 0.19 does not.
SHOWS_INDICATORS = _status is not None
RecallStatus: Any = _status or _RecallStatus


def ask_secret(prompt: str) -> str:
    """What the user types, unseen. From a pipe: its next line.

    Raises:
        EOFError: There is no more input.
    """
    if sys.stdin.isatty():
        typed: str = (take("hermes_cli.secret_prompt", "masked_secret_prompt") or getpass)(prompt)
        return typed
    return input(prompt)


def hermes_home() -> Path:
    """The folder of the profile that is active in this context."""
    get = take("hermes_constants", "get_hermes_home")
    return Path(get()) if get else default_hermes_home(os.environ)


def tool(name: str) -> str:
    """A program that Hermes keeps for itself; "" if it has none."""
    launcher = take("pm", "uv_launcher")  # from 0.22 on
    with contextlib.suppress(Exception):
        found = launcher(name) if launcher else None
        if found:
            return str(found)
    return shutil.which(name, path=str(hermes_home() / "bin")) or ""


def working_folder(told: Mapping[str, Any]) -> str:
    """The folder that a session on a terminal works in; "" for other sessions.

    A host before 0.22 does not say at initialize(). A gateway's own folder is no session's.
    """
    if told.get("platform") not in (None, "", "cli", "tui"):
        return ""
    named = os.environ.get("TERMINAL_CWD", "")
    try:
        return named if Path(named).is_absolute() else str(Path.cwd())
    except OSError:  # it was removed
        return ""


def environment() -> Mapping[str, str]:
    """The variables that count in this context.

    A gateway that serves several profiles gives each its own secrets, bound to
    the calling thread. The process's environment holds those of the profile that
    the gateway was started for: they are no other profile's.
    """
    scope = _scope()
    routed = take("agent.secret_scope", "serves_routed_profile")
    routed = routed or take("agent.secret_scope", "is_multiplex_active")
    if routed and routed():
        return {**_of_the_machine(), **(scope or {})}
    # Elsewhere a host's scope lies over the process's environment.
    return os.environ if scope is None else {**os.environ, **scope}


def profile_environment(settings: Settings) -> Dict[str, str]:
    """The environment of the profile that settings were loaded from, for its programs."""
    environ = environment()
    kind, _, home = settings.credential.partition(":")
    if kind == "hermes":
        with contextlib.suppress(ConfigError, OSError):
            return reading.profile_environment(Path(home), environ, host_loaded=_has_loaded())
    return dict(environ)


def load_settings(home: Path) -> Settings:
    """The settings of any Hermes folder: what the host has loaded for its own is no other's."""
    if not _has_loaded():
        return Settings.load(home)
    own = hermes_home().absolute() == home.absolute()
    return Settings.load(home, environment() if own else _of_the_machine(), host_loaded=own)


def _has_loaded() -> bool:
    """Whether this process is Hermes, and its environment made of the files of a profile."""
    return _scope() is not None or "hermes_cli.env_loader" in sys.modules


def _scope() -> Optional[Mapping[str, str]]:
    current = take("agent.secret_scope", "current_secret_scope")
    scope: Optional[Mapping[str, str]] = current() if current else None
    return scope


# What is the machine's, not a profile's: where programs and files are, languages, proxies.
_MACHINE = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|TMP|TEMP|XDG_\w+|PYTHONPATH"
    r"|VIRTUAL_ENV|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|(HTTPS?|ALL|NO)_PROXY"
    r"|HERMES_MANAGED_DIR|SYSTEMROOT|WINDIR|COMSPEC|PATHEXT|(LOCAL)?APPDATA|PROGRAM\w+"
    r"|USERPROFILE|HOMEDRIVE|HOMEPATH|NUMBER_OF_PROCESSORS",
    re.IGNORECASE,
)


def _of_the_machine() -> Dict[str, str]:
    try:
        profiles = read_variables(default_hermes_home(os.environ) / ".env")
    except (ConfigError, OSError):
        profiles = {}
    return {
        name: value
        for name, value in os.environ.items()
        if _MACHINE.fullmatch(name) and name not in profiles
    }


_OURS = ("HINDSIGHT_", "HERMES_TIMEZONE", "HERMES_MANAGED_DIR")
_cache: Dict[Path, Tuple[Any, Settings]] = {}


def settings_of(home: Path) -> Settings:
    """The settings of a Hermes folder, read again when files or variables have changed.

    A gateway makes hundreds of providers: they share one reading, and one warning
    for each wrong value. Safe from any thread (at worst it is read twice).
    """
    environ = environment()
    legacy = Path(environ.get("HOME", "")) / ".hindsight" / "config.json"
    managed = managed_folder(environ)
    files = (
        home / "hindsight" / "config.json", home / "hindsight_exec" / "config.json", home / ".env", home / "config.yaml", legacy,
        managed / ".env", managed / "config.yaml",
    )  # fmt: skip
    ours = sorted(item for item in environ.items() if item[0].startswith(_OURS))
    state = (tuple(map(_stamp, files)), ours)
    cached = _cache.get(home)
    if cached is None or cached[0] != state:
        _cache[home] = cached = (state, Settings.load(home, environ, host_loaded=True))
    return cached[1]


def _stamp(path: Path) -> Optional[Tuple[int, int, int]]:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size)
