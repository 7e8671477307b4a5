"""The settings as the panel of Hermes' desktop shows them.

Hermes loads this file by its path, in a process that runs no agent, and looks
for ``CONFIG_SCHEMA``. Its types are Hermes'; without Hermes there is none.
"""

from __future__ import annotations

import importlib
from typing import Any

from hindsight_exec.settings.config import configurable


def _schema() -> Any:
    try:
        types = importlib.import_module("plugins.memory.config_schema")
        kinds = {
            "choice": types.KIND_SELECT,
            "secret": types.KIND_SECRET,
            "bool": types.KIND_BOOL,
            "number": types.KIND_NUMBER,
            "int": types.KIND_NUMBER,
        }
        # The name is that of the folder whose config.json is read and written:
        # the bundled provider's, which is ours too.
        return types.ProviderConfigSchema(
            name="hindsight",
            label="Hindsight (hindsight-exec)",
            fields=tuple(_field(types, kinds, item) for item in configurable()),
        )
    except (ImportError, AttributeError):
        return None


def _field(types: Any, kinds: Any, item: Any) -> Any:
    about = item.metadata
    secret = about["kind"] == "secret"
    options = about["choices"] if about["kind"] == "choice" else ()
    return types.ProviderField(
        key=item.name,
        label=item.name.replace("_", " ").capitalize().replace("Api", "API").replace("url", "URL"),
        kind=kinds.get(about["kind"], types.KIND_TEXT),
        default=_shown(item.default),
        description=about["doc"],
        options=tuple(types.ProviderFieldOption(option, option) for option in options),
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
