"""Reads config.json, the ``.env`` files and the environment into checked values.

A wrong value never raises here. What it could have widened decides:

- A key that says where conversations go, or who may see them, turns memory off
  until it is corrected. `Found.unusable` says why.
- Any other key gets its default, or the narrower value that it names, and one
  warning quotes the place, the key and the value.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import Field, dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

from hindsight_exec.client.urls import CLOUD_URL, EMBEDDED_URL, LOCAL_URL
from hindsight_exec.errors import ConfigError

from .clock import zone, zone_name
from .dotenv import read_variables
from .folders import managed_folder, user_home
from .values import PARSERS, WrongValue, brief

__all__ = ["Found", "profile_environment", "read", "read_config"]


@dataclass
class Found:
    """What the files and variables say: see the fields of the same names of `Settings`."""

    values: Dict[str, Any]
    problems: List[str]
    source: Optional[Path]
    configured: bool
    unusable: str
    key_in_dotenv: str
    """The API key in the profile's ``.env``, whether it counts or not."""
    timezone: str


_KEY = "HINDSIGHT_API_KEY"


class _Stated(NamedTuple):
    """A value and where it stands."""

    place: str
    name: str
    value: Any


def read(
    items: Tuple[Field[Any], ...],
    hermes_home: Optional[Path],
    environ: Mapping[str, str],
    *,
    host_loaded: bool = False,
    named: bool = False,
) -> Found:
    """Return the values of all keys.

    config.json goes first, then the variables: those of Hermes' managed
    ``.env``, those that a host has loaded, the profile's ``.env``, and the
    environment.

    Args:
        items: The keys.
        hermes_home: The Hermes profile's folder, if any.
        environ: The environment.
        host_loaded: Whether ``environ`` is what a host has made of the
            profile's files, and so goes before our own reading of them.
        named: Whether a server counts as named, whatever is found.
    """
    problems: List[str] = []
    unusable: List[str] = []
    path: Optional[Path] = None
    raw: Dict[str, Any] = {}
    variables = _Variables(environ)
    try:
        path, raw = _read_file(hermes_home, environ)
        if hermes_home:
            variables = _Variables.of_profile(hermes_home, environ, host_loaded)
    except (ConfigError, OSError) as error:
        # Another file, or a default, might name another server or bank.
        unusable.append(str(error))

    values: Dict[str, Any] = {item.name: item.default for item in items}
    stated_keys = set()
    for item in items:
        stated = _stated(item, path, raw, variables)
        if stated is None:
            continue
        about = item.metadata
        where = f"{stated.place}: {stated.name}"
        try:
            values[item.name] = PARSERS[about["kind"]](stated.value, item)
            stated_keys.add(item.name)
        except ConfigError as error:
            if values["mode"] != "local_embedded":  # which has an address of its own
                unusable.append(f"{where}: {error}")
        except WrongValue as wrong:
            secret = about["kind"] == "secret"
            shown = "a value that is not shown" if secret else brief(stated.value)
            instead = wrong.instead
            what = f"{where} is {shown}, but must be {wrong}"
            if instead is None and about["strict"]:
                if about["group"] != "Embedded" or values["mode"] == "local_embedded":
                    unusable.append(what)
                continue
            if instead is None:
                instead = item.default if about["narrow"] is None else about["narrow"]
            problems.append(f"{what}; using {brief(instead)}")
            values[item.name] = instead

    local = values["mode"] != "cloud"
    if values["mode"] == "local_embedded":
        values["api_url"] = EMBEDDED_URL + values["profile"]
        values["api_key"] = None  # the key is another server's
    elif "api_url" not in stated_keys:
        values["api_url"] = LOCAL_URL if local else CLOUD_URL
    if unusable:
        values["api_url"] = ""
        problems += [f"{reason}; memory is off until this is corrected" for reason in unusable]
    configured = named or local or bool(stated_keys & {"api_url", "api_key"})
    timezone = _timezone(hermes_home, variables, problems) if hermes_home else ""
    key = variables.in_dotenv.get(_KEY, "")
    return Found(values, problems, path, configured, "; ".join(unusable), key, timezone)


def _timezone(home: Path, variables: _Variables, problems: List[str]) -> str:
    stated = variables.find("HERMES_TIMEZONE")
    name = stated.value if stated else zone_name(home, variables.managed)
    if name and zone(name) is None:
        problems.append(
            f"{stated.place if stated else 'config.yaml'}: the time zone {brief(name)} is not known"
            " to this system; using the local one"
        )
        return ""
    return str(name)


def _stated(
    item: Field[Any], path: Optional[Path], raw: Mapping[str, Any], variables: _Variables
) -> Optional[_Stated]:
    # An empty text leaves the key to its variable or its default.
    empty = (None,) if item.metadata["blank"] else (None, "")
    for name in (item.name, *item.metadata["aliases"]):
        if raw.get(name) not in empty:
            return _Stated(str(path), name, raw[name])
    return variables.find(item.metadata["env"])


class _Variables:
    """Variables in layers, each with the place to name in a message; the first layer counts."""

    def __init__(self, environ: Mapping[str, str], *files: Tuple[str, Mapping[str, str]]) -> None:
        self._layers = [*files, ("environment", environ)]
        self._files = files
        self.in_dotenv = files[-1][1] if files else {}
        self.managed = managed_folder(environ)

    @classmethod
    def of_profile(cls, home: Path, environ: Mapping[str, str], host_loaded: bool) -> _Variables:
        paths = (managed_folder(environ) / ".env", home / ".env")
        files = [(str(path), read_variables(path, environ=environ)) for path in paths]
        variables = cls(environ, *files)
        if host_loaded:
            # Where the host holds no value, the file may have got one since.
            loaded = {name: value for name, value in environ.items() if value.strip()}
            variables._layers = [files[0], ("environment", loaded), files[1]]
        return variables

    def merged(self) -> Dict[str, str]:
        found: Dict[str, str] = {}
        for _, variables in reversed(self._layers):
            found.update(variables)
        return found

    def find(self, name: str) -> Optional[_Stated]:
        for place, variables in self._layers:
            if name in variables:
                value = variables[name].strip()
                # A host's environment repeats what it has read in a file.
                same = [file for file, holds in self._files if holds.get(name) == variables[name]]
                return _Stated(same[0] if same else place, name, value) if value else None
        return None


def profile_environment(
    hermes_home: Path, environ: Mapping[str, str], *, host_loaded: bool
) -> Dict[str, str]:
    """Return the environment of a profile: that of the process, with the profile's ``.env``.

    Raises:
        ConfigError: A ``.env`` cannot be read.
    """
    return _Variables.of_profile(hermes_home, environ, host_loaded).merged()


def _read_file(
    hermes_home: Optional[Path], environ: Mapping[str, str]
) -> Tuple[Optional[Path], Dict[str, Any]]:
    """Return the config.json that counts and what it holds; raises as `read_config`."""
    candidates = [Path(hermes_home) / "hindsight" / "config.json"] if hermes_home else []
    if hermes_home:
        # `hermes profile create --clone` copies the folder that is named like the provider.
        cloned = Path(hermes_home) / "hindsight_exec" / "config.json"
        candidates += [cloned] if cloned.is_file() else []
    with contextlib.suppress(ConfigError):
        candidates.append(user_home(environ) / ".hindsight" / "config.json")
    for path in candidates:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            raw = read_config(path)
            legacy = raw.get("banks")
            bank = legacy.get("hermes") if isinstance(legacy, dict) else None
            if isinstance(bank, dict):  # the form of older versions
                raw = {**{key: bank[key] for key in ("bankId", "budget") if bank.get(key)}, **raw}
            if raw.get("mode") == "local":  # its older name
                raw = {**raw, "mode": "local_embedded"}
            return path, raw
    return None, {}


def read_config(path: Path) -> Dict[str, Any]:
    """Return what a config.json holds.

    Raises:
        ConfigError: It cannot be read, or holds something else.
        FileNotFoundError: There is none.
        NotADirectoryError: There is none.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError, RecursionError) as error:
        hint = ""
        if isinstance(error, json.JSONDecodeError) and error.doc[error.pos :][:1] in "/#":
            hint = "; JSON has no comments"
        raise ConfigError(
            f"{path} cannot be read ({type(error).__name__}: {error}){hint}"
        ) from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} does not hold a JSON object")
    return raw
