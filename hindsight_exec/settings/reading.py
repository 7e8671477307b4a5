"""Reads config.json and the environment into checked values.

A wrong value never raises here: it is replaced, and one warning names the key,
the value and the replacement. Only a wrong server is different: guessing one
would send conversations to a stranger, so memory stays off until it is
corrected, and `Found.unusable` says why.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import Field, dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from hindsight_exec.client.urls import CLOUD_URL, EMBEDDED_URL, LOCAL_URL, normalise_url
from hindsight_exec.errors import ConfigError

from .folders import user_home
from .values import PARSERS, WrongValue, brief

__all__ = ["Found", "read"]


@dataclass
class Found:
    values: Dict[str, Any]
    problems: List[str]
    source: Optional[Path]
    configured: bool
    unusable: str


def read(
    items: Tuple[Field[Any], ...],
    hermes_home: Optional[Path],
    environ: Mapping[str, str],
    *,
    named: bool = False,
) -> Found:
    """All keys with their values, checked; what the file does not name the environment may."""
    problems: List[str] = []
    path, raw, unusable = _read_file(hermes_home, environ)
    where = str(path) if path else "environment"
    legacy = raw.get("banks")
    bank = legacy.get("hermes") if isinstance(legacy, dict) else None
    if isinstance(bank, dict):  # the form of older versions
        raw = {**{key: bank[key] for key in ("bankId", "budget") if bank.get(key)}, **raw}
    if raw.get("mode") == "local":  # its older name
        raw = {**raw, "mode": "local_embedded"}

    values: Dict[str, Any] = {item.name: item.default for item in items}
    stated_keys = set()
    for item in items:
        names = (item.name, *item.metadata["aliases"])
        stated = [(where, name, raw[name]) for name in names if raw.get(name) not in (None, "")]
        variable = item.metadata["env"]
        if not stated and environ.get(variable, "").strip():
            stated = [("environment", variable, environ[variable].strip())]
        if not stated:
            continue
        place, name, value = stated[0]
        try:
            values[item.name] = PARSERS[item.metadata["kind"]](value, item)
            stated_keys.add(item.name)
        except WrongValue as wrong:
            instead = item.default if wrong.instead is None else wrong.instead
            shown = (
                "a value that is not shown" if item.metadata["kind"] == "secret" else brief(value)
            )
            problems.append(
                f"{place}: {name} is {shown}, but must be {wrong}; using {brief(instead)}"
            )
            values[item.name] = instead

    if values["mode"] == "local_embedded":
        values["api_url"] = EMBEDDED_URL + values["profile"]
        values["api_key"] = None  # the key is another server's
    elif "api_url" not in stated_keys:
        values["api_url"] = CLOUD_URL if values["mode"] == "cloud" else LOCAL_URL
    try:
        values["api_url"] = normalise_url(values["api_url"])
    except ConfigError as error:
        unusable = unusable or f"{where}: {error}"
        values["api_url"] = ""
    if unusable:
        problems.append(f"{unusable}; memory is off until this is corrected")
    local = values["mode"] != "cloud"
    configured = named or local or bool(stated_keys & {"api_url", "api_key"})
    return Found(values, problems, path, configured, unusable)


def _read_file(
    hermes_home: Optional[Path], environ: Mapping[str, str]
) -> Tuple[Optional[Path], Dict[str, Any], str]:
    candidates = [Path(hermes_home) / "hindsight" / "config.json"] if hermes_home else []
    with contextlib.suppress(ConfigError):
        candidates.append(user_home(environ) / ".hindsight" / "config.json")
    for path in candidates:
        try:
            raw = json.loads(path.read_text(encoding="utf-8-sig"))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError, RecursionError) as error:
            # The next file might name another server, or another bank.
            return path, {}, f"{path} cannot be read ({type(error).__name__}: {error})"
        if not isinstance(raw, dict):
            return path, {}, f"{path} does not hold a JSON object"
        return path, raw, ""
    return None, {}, ""
