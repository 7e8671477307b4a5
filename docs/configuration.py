"""Writes docs/configuration.md from `Settings`: python docs/configuration.py"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from hindsight_exec.settings.config import configurable

HEAD = """\
# Configuration

<!-- Written by docs/configuration.py from hindsight_exec.settings.config.Settings. -->

In Hermes: `$HERMES_HOME/hindsight/config.json`, else `~/.hindsight/config.json`, the same files, keys and variables as the Hindsight provider that Hermes 0.19 bundles. Outside Hermes: the second file and the environment. What the file names goes before the environment.

A wrong value is replaced, and one warning names the key, the value and what is used instead. Only a wrong server is different: guessing one would send conversations to a stranger, so memory stays off until it is corrected.
"""


def default(item: Any) -> str:
    """The default as it is written in JSON."""
    value = item.default
    if value is None or value in ("", ()):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return "`[" + ", ".join(f'"{one}"' for one in value) + "]`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value:g}`"


def describe(item: Any) -> str:
    """What the key is for, and what it may be."""
    text = str(item.metadata["doc"])
    if item.metadata["choices"]:
        text += " One of " + ", ".join(f"`{one}`" for one in item.metadata["choices"]) + "."
        if item.metadata["kind"] == "list":
            text = text.replace("One of", "Any of")
    if item.metadata["minimum"] > 0 and not math.isinf(item.metadata["minimum"]):
        text += f" At least {item.metadata['minimum']:g}."
    return text.replace("|", "\\|")


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    group = ""
    for item in configurable():
        if item.metadata["group"] != group:
            group = item.metadata["group"]
            lines += [f"\n## {group}\n", "| key | default | environment | |", "|---|---|---|---|"]
        names = "`" + "`, `".join((item.name, *item.metadata["aliases"])) + "`"
        variable = f"`{item.metadata['env']}`" if item.metadata["env"] else ""
        lines.append(f"| {names} | {default(item)} | {variable} | {describe(item)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "configuration.md").write_text(page(), encoding="utf-8")
