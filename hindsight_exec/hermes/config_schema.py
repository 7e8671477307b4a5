"""The settings as the panel of Hermes' desktop shows them.

Hermes loads this file by its path, in a process that runs no agent, and looks
for ``CONFIG_SCHEMA``. Its types are Hermes'; without Hermes there is none.
"""

from __future__ import annotations

from typing import Any

from hindsight_exec.client.urls import CLOUD_URL, LOCAL_URL
from hindsight_exec.errors import HindsightExecError
from hindsight_exec.settings.config import configurable

from . import host, setup
from .plugin_folder import NAME


def _schema() -> Any:
    types = {name: host.take("plugins.memory.config_schema", name) for name in _TYPES}
    if not all(types.values()):
        return None
    if not _prepared():
        return None  # a panel that wrote elsewhere would be worse than none
    # Hermes reads and writes the file in the folder of this name, and makes it the provider.
    return types["ProviderConfigSchema"](
        name=NAME,
        label="Hindsight (hindsight-exec)",
        fields=tuple(_field(types, item) for item in configurable()),
    )


_TYPES = (
    "ProviderConfigSchema", "ProviderField", "ProviderFieldOption",
    "KIND_BOOL", "KIND_NUMBER", "KIND_SECRET", "KIND_SELECT", "KIND_TEXT",
)  # fmt: skip
_KINDS = {
    "choice": "KIND_SELECT",
    "secret": "KIND_SECRET",
    "bool": "KIND_BOOL",
    "number": "KIND_NUMBER",
    "int": "KIND_NUMBER",
}


def _prepared() -> bool:
    """Whether the file that the panel writes is the one that is read, with all that is in it."""
    home = host.hermes_home()
    path = home / "hindsight" / "config.json"
    try:
        source = host.settings_of(home).source
        if source is not None and not path.exists() and source != home / NAME / path.name:
            # The user's own file: the panel would hide it with one that holds a single key.
            setup.write_config(path, setup.read_config(source))
    except (HindsightExecError, OSError):
        return False
    return setup.link_for_panel(home)


def _field(types: Any, item: Any) -> Any:
    about = item.metadata
    secret = about["kind"] == "secret"
    options = about["choices"] if about["kind"] == "choice" else ()
    is_url = item.name == "api_url"
    return types["ProviderField"](
        key=item.name,
        label=item.name.replace("_", " ").capitalize().replace("Api", "API").replace("url", "URL"),
        kind=types[_KINDS.get(about["kind"], "KIND_TEXT")],
        # Where nothing is saved, the URL is that of the mode.
        default="" if is_url else _shown(item.default),
        placeholder=f"{CLOUD_URL} (cloud), {LOCAL_URL} (local_external)" if is_url else "",
        description=about["doc"],
        options=tuple(types["ProviderFieldOption"](option, option) for option in options),
        env_key=about["env"] if secret else None,
        aliases=about["aliases"],
        env_fallbacks=(about["env"],) if about["env"] and not secret else (),
        inline=item.name in ("mode", "api_key", "api_url", "bank_id", "recall_budget"),
        group=about["group"],
    )


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)


CONFIG_SCHEMA = _schema()
