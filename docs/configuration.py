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


TAIL = """
## When turns are sent, and what it costs

A request holds documents, a document holds turns of one session, and the server extracts facts from a document in chunks of 3000 characters. Each chunk is one call of its LLM, which carries a prompt of 12 500 characters besides: the number of calls is the cost.

- `retain_every_n_turns` is 1 or not set: a document is sent once it has `retain_document_chars`, or after `retain_idle_seconds` without a turn. 100 turns of 1500 characters take 67 calls, 100 short turns (300 characters) 17.
- `retain_idle_seconds: 0`: each turn is sent at once, and is a document. 100 turns take 100 calls, however short they are.
- `retain_every_n_turns` is N, above 1: N turns are a document, whatever their length and however long they are apart; the other two keys do not count. 100 short turns take 34 calls with N = 3 and 20 with N = 10; the long ones take 67 with N = 3 and 70 with N = 10.

In all cases the rest is sent when the session ends or switches, at shutdown, at exit, or at the next start, and `hindsight_retain` sends at once. Turns that are not sent yet are on disk.
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
    return "\n".join([*lines, TAIL])


if __name__ == "__main__":
    (Path(__file__).parent / "configuration.md").write_text(page(), encoding="utf-8")
