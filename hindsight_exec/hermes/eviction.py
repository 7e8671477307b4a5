"""Tells when Hermes switched this plugin off by itself, and why.

The package manager of Hermes 0.22 disables a plugin that does not fit a new version,
empties ``memory.provider`` and goes on: without a word here, turns would be lost from
then on.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Dict, Iterator, Optional

from hindsight_exec.errors import ConfigError
from hindsight_exec.settings.files import read_bytes

from .checks import Check
from .plugin_folder import NAME
from .yaml_edit import disabled_plugins, provider_of

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["eviction", "other_provider"]


def eviction(home: Path) -> Optional[Check]:
    """Return what happened to the plugin in this Hermes folder; None if it was not switched off."""
    try:
        text = read_bytes(home / "config.yaml").decode()
        if NAME not in disabled_plugins(text) or provider_of(text) not in ("", NAME):
            return None
    except (ConfigError, OSError, UnicodeDecodeError):
        return None
    found = f"the provider is switched off in {home / 'config.yaml'}: no turn is kept"
    for receipt in _receipts(home):
        reason = _reason(receipt, home)
        if reason:
            found += f" since {receipt.get('finished_at', 'an update')} ({reason})"
            break
    remedy = (
        "run 'hindsight-exec hermes install', or 'hermes plugins enable"
        f" {NAME}' and 'hermes config set memory.provider {NAME}'"
    )
    return Check("provider", "failed", found, remedy)


def other_provider(home: Path) -> Optional[Check]:
    """Return which provider Hermes uses, where this plugin is installed and is not the one."""
    config = home / "config.yaml"
    try:
        active = provider_of(read_bytes(config).decode())
    except (ConfigError, OSError, UnicodeDecodeError):
        return None
    if active == NAME or not (home / "plugins" / NAME).is_dir():
        return None
    found = f"memory.provider is {active or 'not set'} in {config}: no turn comes here"
    return Check("provider", "warning", found, "run 'hindsight-exec hermes install' to change it")


def _receipts(home: Path) -> Iterator[Dict[str, Any]]:
    """What the package manager wrote down, the newest first. A profile's may be in the main folder."""
    homes = [home, home.parent.parent] if home.parent.name == "profiles" else [home]
    paths = [path for one in homes for path in one.glob("logs/update_receipts/*.json")]
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            receipt = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(receipt, dict):
            yield receipt


def _reason(receipt: Dict[str, Any], home: Path) -> str:
    warnings = receipt.get("warnings")
    for warning in warnings if isinstance(warnings, list) else ():
        start, _, reason = str(warning).partition(f"'{NAME}' in {home}: ")
        if reason and "Disabled" in start:
            return " ".join(reason.split())[:200]
    return ""
