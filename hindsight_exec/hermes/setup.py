"""The provider's configuration as Hermes sees it: what to ask, where to save, how it stands."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional

from hindsight_exec.client.urls import CLOUD_URL, LOCAL_URL
from hindsight_exec.errors import ConfigError
from hindsight_exec.hermes import embedded
from hindsight_exec.settings import reading
from hindsight_exec.settings.config import Settings, configurable
from hindsight_exec.settings.files import write_file

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["config_schema", "missing", "save_config", "state_of", "status"]

KEY_PAGE = "https://ui.hindsight.vectorize.io"


def state_of(home: Optional[Path]) -> Optional[Path]:
    """Where the turns of a Hermes folder wait."""
    return None if home is None else home / "hindsight" / "outbox"


def missing(settings: Settings) -> str:
    """Why memory cannot be used, in words for the user; "" if it can."""
    if settings.unusable:
        return settings.unusable
    if settings.mode == "local_embedded":
        return embedded.missing(settings)
    if not settings.configured:
        return "no server is configured: run 'hermes memory setup', or set HINDSIGHT_API_KEY"
    return ""


def missing_package() -> str:
    """What must be installed before anything can be sent or recalled; "" if nothing.

    Memory is not off without it: turns are kept on disk.
    """
    if importlib.util.find_spec("aiohttp") is not None:
        return ""
    return (
        "Hindsight memory cannot reach its server because the package aiohttp is missing; turns"
        f" are saved on disk until it is installed: {sys.executable} -m pip install aiohttp"
    )


def config_schema() -> List[Dict[str, Any]]:
    """What ``hermes memory setup`` asks."""
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
        elif item.default is not None:
            default: Any = item.default
            field["default"] = ",".join(default) if isinstance(default, tuple) else default
        if item.name == "api_url":
            for mode, url in (("cloud", CLOUD_URL), ("local_external", LOCAL_URL)):
                schema.append({**field, "default": url, "when": {"mode": mode}})
        else:
            schema.append(field)
    return schema


def save_config(values: Mapping[str, Any], home: Path) -> None:
    """Merges values into config.json; secrets are not for this file.

    Raises:
        ConfigError: The file holds something else, which is not overwritten.
    """
    path = home / "hindsight" / "config.json"
    existing = read_config(path)
    secret = {item.name for item in configurable() if item.metadata["kind"] == "secret"}
    existing.update({key: value for key, value in values.items() if key not in secret})
    write_config(path, existing)


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


def write_private(path: Path, text: str) -> None:
    """Replace a text file in one step; see `write_file`."""
    write_file(path, text.encode())


def status(settings: Settings, home: Path) -> Dict[str, Any]:
    """How memory stands: where it goes, and what waits; no key is shown."""
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
    folder = home / "hindsight" / "outbox"
    for path in spool.files(folder):
        try:
            outbox = Outbox(path, readonly=True)
            try:
                found = outbox.summary()
            finally:
                outbox.close()
        except Exception as error:  # one that cannot be read must not hide the others
            unreadable += path.exists()
            errors.append(f"{path.name}: {error}")
            continue
        waiting += found.waiting
        accepted += found.accepted
        dead += found.dead
        oldest += [found.oldest_at] if found.oldest_at is not None else []
        errors += [found.last_error] if found.last_error else []
    shown: Dict[str, Any] = {"waiting": _turns(waiting), "dead": _turns(dead)}
    if oldest:
        shown["waiting"] += f", the oldest for {max(0, round(time.time() - min(oldest)))} s"
    if accepted:
        shown["being processed"] = _turns(accepted)
    if dead:
        shown["dead"] += ": see 'hindsight-exec dead list'"
    if unreadable:
        shown["unreadable"] = f"{unreadable} files in {folder}"
    if errors and (waiting or dead or unreadable):
        shown["last error"] = errors[-1]
    return shown


def _turns(count: int) -> str:
    return f"{count} turn" if count == 1 else f"{count} turns"
