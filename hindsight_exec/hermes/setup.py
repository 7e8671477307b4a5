"""The provider's configuration as Hermes sees it: the form, where it is saved, and the status."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping

from hindsight_exec.delivery.progress import counted
from hindsight_exec.errors import ConfigError
from hindsight_exec.hermes import embedded
from hindsight_exec.settings import reading
from hindsight_exec.settings.config import Settings, configurable
from hindsight_exec.settings.files import write_file
from hindsight_exec.settings.values import PARSERS, WrongValue, brief

from . import host
from .plugin_folder import NAME

if TYPE_CHECKING:
    from dataclasses import Field

__all__ = ["config_schema", "missing", "save_config", "state_of", "status"]

#: What a user types to empty a value where an empty answer keeps it.
EMPTY = "-"
KEY_PAGE = "https://ui.hindsight.vectorize.io"


def state_of(home: Path) -> Path:
    """Return the state directory of a Hermes folder."""
    return home / "hindsight" / "outbox"


def missing(settings: Settings) -> str:
    """Return why memory is off, for the user; "" if it is on."""
    if settings.unusable:
        return settings.unusable
    if settings.mode == "local_embedded":
        return embedded.missing(settings)
    if not settings.configured:
        return "no server is configured: run 'hermes memory setup', or set HINDSIGHT_API_URL"
    return ""


def missing_package() -> str:
    """What must be installed before anything can be sent or recalled; "" if nothing.

    Memory is not off without it: turns are kept on disk.
    """
    if importlib.util.find_spec("aiohttp") is not None:
        return ""
    return (
        "Hindsight memory cannot reach its server because the package aiohttp is missing; turns"
        " are saved on disk until it is installed: run 'hermes memory setup hindsight_exec', or"
        f" {sys.executable} -m pip install aiohttp"
    )


def config_schema(settings: Settings) -> List[Dict[str, Any]]:
    """Return the form of Hermes' dashboard, filled in with what is configured.

    The dashboard sends all fields back, those that the user did not touch with the
    defaults of this form: `save_config` tells them by that.
    """
    schema: List[Dict[str, Any]] = []
    for item in configurable():
        about = item.metadata
        field: Dict[str, Any] = {"key": item.name, "description": about["doc"]}
        if about["choices"] and about["kind"] == "choice":
            field["choices"] = list(about["choices"])
        if about["group"] == "Embedded":
            field["when"] = {"mode": "local_embedded"}
        if about["kind"] == "secret":
            field.update(secret=True, env_var=about["env"])
            if item.name == "api_key":
                field["url"] = KEY_PAGE
        else:
            field["default"] = _shown(item, settings)
            if item.default is not None:  # a form has no other number that stands for nothing
                field.update(_TYPES.get(about["kind"], {}))
                if "type" in field and math.isfinite(about["minimum"]):
                    field["minimum"] = about["minimum"]
            if not item.default:
                field["description"] += f" '{EMPTY}' empties it."
        schema.append(field)
    return schema


_TYPES = {"bool": {"type": "boolean"}, "int": {"type": "integer"}, "number": {"type": "number"}}


def _shown(item: Field[Any], settings: Settings) -> Any:
    """How a form shows the value that counts; "" where there is none."""
    value = getattr(settings, item.name)
    if value is None or (item.name == "api_url" and settings.mode == "local_embedded"):
        return ""
    if isinstance(value, tuple):
        kind = item.metadata["kind"]
        if kind == "list" or not value:
            return ",".join(value)
        table = dict(value) if kind in ("banks", "variables") else value
        return json.dumps(table, ensure_ascii=False)
    return value


def _plain(value: Any, item: Field[Any]) -> str:
    """A value as text, the same in whatever type a form keeps it."""
    kind = item.metadata["kind"]
    if kind in ("int", "number"):
        with contextlib.suppress(TypeError, ValueError):
            return repr(float(value))
    text = str(value).strip()
    return text.lower() if kind == "bool" else text


class _RefusedError(ConfigError, ValueError):
    """A value that is not saved. Hermes' dashboard shows the message of a ValueError."""


def save_config(values: Mapping[str, Any], home: Path) -> None:
    """Write the values that differ from what is configured into config.json.

    What a form sends back untouched is neither changed nor pinned. Secrets are not
    for this file.

    Raises:
        ConfigError: A value is wrong, or the file holds something else; nothing is written.
    """
    path = home / "hindsight" / "config.json"
    link_for_panel(home)
    settings = host.settings_of(home)
    # It may be the user's own file, which the one written here takes the place of.
    saved = read_config(settings.source or path)
    edited = dict(saved)
    known = {item.name: item for item in configurable()}
    for name, value in values.items():
        item = known.get(name)
        if item is None:
            edited[name] = value
            continue
        names = (name, *item.metadata["aliases"])
        stated = next((saved[one] for one in names if saved.get(one) is not None), "")
        untouched = {_plain(_shown(item, settings), item), _plain(stated, item)}
        if item.metadata["kind"] == "secret" or _plain(value, item) in untouched:
            continue
        for one in names:
            edited.pop(one, None)
        if value not in (None, "") and not (value == EMPTY and not item.default):
            edited[name] = _checked(item, value)
    if edited != saved:
        write_config(path, edited)


def _checked(item: Field[Any], value: Any) -> Any:
    """The value as config.json holds it."""
    try:
        parsed = PARSERS[item.metadata["kind"]](value, item)
    except (WrongValue, ConfigError) as error:
        raise _RefusedError(f"{item.name} must be {error}, not {brief(value)}") from None
    return parsed if isinstance(parsed, (bool, int, float)) else value


# -- the desktop's panel -------------------------------------------------------------------


def link_for_panel(home: Path) -> bool:
    """Let Hermes' desktop panel read and write our config.json; return whether it does.

    It looks into the folder that is named like the provider. `hermes profile create
    --clone` copies that folder, too: a file there is the new profile's configuration.
    """
    ours, panels = home / "hindsight" / "config.json", home / NAME / "config.json"
    try:
        if not panels.exists() and not ours.exists():
            # `hermes profile create --clone` fails on a link to no file. The panel's own file counts.
            panels.unlink(missing_ok=True)
            return True
        if not panels.is_symlink():
            for folder in (ours.parent, panels.parent):
                folder.mkdir(parents=True, exist_ok=True)
            if panels.exists():
                if ours.exists() or not panels.is_file():
                    return False
                panels.replace(ours)
            panels.symlink_to(Path("..", ours.parent.name, ours.name))
        return panels.resolve() == ours.resolve()
    except OSError:
        return False


def unlink_for_panel(home: Path) -> None:
    """Undo `link_for_panel`."""
    panels = home / NAME / "config.json"
    if panels.is_symlink():
        panels.unlink()
        with contextlib.suppress(OSError):
            panels.parent.rmdir()


def read_config(path: Path) -> Dict[str, Any]:
    """What a config.json holds; nothing if there is none.

    Raises:
        ConfigError: It cannot be read, or holds something else.
    """
    try:
        return reading.read_config(path)
    except FileNotFoundError:
        return {}
    except ConfigError as error:
        raise ConfigError(f"{error}: repair or remove it first") from error


def write_config(path: Path, values: Mapping[str, Any]) -> None:
    write_file(path, config_bytes(values))


def config_bytes(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def status(settings: Settings, home: Path) -> Dict[str, Any]:
    """Return where turns go and what waits. No key is shown."""
    shown: Dict[str, Any] = {
        "mode": settings.mode,
        "api_url": settings.api_url or "unusable",
        "api_key": "set" if settings.api_key else "not set",
        "bank": settings.bank_id_template or settings.bank_id,
        "config": str(settings.source or "environment"),
    }
    if settings.mode == "local_embedded":
        shown["api_url"] = embedded.address(settings) or "not started yet"
        shown.update(embedded.llm_of(settings))
        shown["log"] = str(embedded.log_of(settings))
    problem = missing(settings) or missing_package()
    if problem:
        shown["problem"] = problem
    shown.update(_waiting(home))
    return shown


def _waiting(home: Path) -> Dict[str, Any]:
    from hindsight_exec.outbox import spool  # noqa: PLC0415 - brings sqlite3
    from hindsight_exec.outbox.store import Outbox  # noqa: PLC0415

    waiting = accepted = dead = unreadable = 0
    oldest: List[float] = []
    errors: List[str] = []
    folder = state_of(home)
    for path in spool.files(folder):
        try:
            with contextlib.closing(Outbox(path, readonly=True)) as outbox:
                found = outbox.summary()
        except Exception as error:  # one that cannot be read must not hide the others
            unreadable += path.exists()
            errors.append(f"{path.name}: {error}")
            continue
        waiting += found.waiting
        accepted += found.accepted
        dead += found.dead
        oldest += [found.oldest_at] if found.oldest_at is not None else []
        errors += [found.last_error] if found.last_error else []
    shown: Dict[str, Any] = {"waiting": counted(waiting), "dead": counted(dead)}
    if oldest:
        shown["waiting"] += f", the oldest for {max(0, round(time.time() - min(oldest)))} s"
    if accepted:
        shown["being processed"] = counted(accepted)
    if dead:
        shown["dead"] += ": see 'hindsight-exec dead list'"
    if unreadable:
        shown["unreadable"] = f"{unreadable} files in {folder}"
    if errors and (waiting or dead or unreadable):
        shown["last error"] = errors[-1]
    return shown
