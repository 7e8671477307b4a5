"""Writes docs/configuration.md from `Settings`: python docs/configuration.py"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from hindsight_exec.settings.config import configurable

HEAD = """\
# Configuration

<!-- Written by docs/configuration.py from hindsight_exec.settings.config.Settings. -->

This package reads the same file, keys and variables as the Hindsight provider that Hermes 0.19 bundles, and adds keys of its own, such as `durability` and `redact`.

## Which value counts

For each key, the first place in this table that sets it counts.

| | place | when |
|---|---|---|
| 1 | `$HERMES_HOME/hindsight/config.json`; `~/.hindsight/config.json` if there is no such file | always; outside Hermes only the second file |
| 2 | the administrator's `.env`: `$HERMES_MANAGED_DIR/.env`, else `/etc/hermes/.env` | with a Hermes folder |
| 3 | the variables that Hermes has loaded, from its `.env` files, a vault or the shell | inside Hermes |
| 4 | the profile's `$HERMES_HOME/.env` | with a Hermes folder |
| 5 | the environment | outside Hermes |
| 6 | the default | |

- An empty string (`""`, or `NAME=` in a `.env`) counts as not set. An empty list is a value, and so is an empty string for `recall_types`.
- If there is a config.json, the bundled provider ignores the variables of `mode`, `bank_id` and `recall_budget`. Here, `HINDSIGHT_MODE`, `HINDSIGHT_BANK_ID` and `HINDSIGHT_BUDGET` count like all others. For the other keys that have variables, both providers read the same value: a test compares them.
- A `.env` is read with python-dotenv, as Hermes reads it: comments behind values, quotes, escapes, values over lines, `${NAME}` and `${NAME:-default}`. Characters that no HTTP header takes are dropped from keys and tokens.
- In a gateway that serves several Hermes profiles, each has its own variables. The variables of the profile that the gateway was started for reach neither the other profiles nor their Hindsight daemons. Hermes profiles with the same value of the key `profile` share a daemon, and so its LLM and its database.
- Hermes' desktop reads and writes the file as `$HERMES_HOME/hindsight_exec/config.json`, which is a link to it. In a profile that was cloned it is a file, and counts where `hindsight/config.json` is missing.
- The timestamps of turns are in Hermes' time zone: `HERMES_TIMEZONE`, else `timezone` in config.yaml.

## Wrong values

A wrong value never sends conversations to another server or bank, and never shows more of them. The tables say for each key what happens: memory is *off* until the value is corrected, or the value in the column is used. One message names the file or the variable, the key, the value and what is used instead. A config.json that is not JSON (comments are not JSON) turns memory off as well: no other file is read in its place.
"""


HEADER = "| key | default | environment | if wrong | |\n|---|---|---|---|---|"

REPLACED = {
    "bank": "off; of text, what no bank may hold is replaced",
    "profile": "off; of text, what no file name may hold is replaced",
    "template": "off; where a field is not known, `bank_id`",
}

TAIL = """
## Banks of projects

`bank_id_template` with `{project}` or `{git_project}` gives each project a bank. Or the project names one itself, in `.hindsight/config.toml`:

```toml
bank_id = "app"
```

- The file is read only in the folders that you list in `trusted_project_dirs`, and in folders in them: `["~/src"]` trusts every project in `~/src`. Links are resolved first, and both the project and the file must be in such a folder. Anywhere else the file is not opened; one line says, once, that it is ignored and how to trust it.
- It applies to the folder that holds `.hindsight` and to all folders below; the nearest file wins. The home folder and its parents are never projects. The file is read when a session begins, and takes precedence over `bank_id_by_user`, `bank_id_template` and `bank_id`. If the host names a user, as in a messenger's chat, the file is ignored: it would merge the banks of several people. `import` uses the file as it is now, not as it was during the session.
- Nothing but `bank_id` counts in it: a project names no server and no key, and changes neither what is kept nor what is recalled. A file without `bank_id` changes nothing.
- A file in a trusted folder that cannot be read or names no usable bank turns memory off in that project, and says why: its turns do not go to another bank instead.
- The session's folder is the one that Hermes names (0.22 does). If Hermes names none, it is the folder that Hermes works in, in the CLI and the TUI only. Before Python 3.11, reading the file needs the package tomli, which the extra `hermes` brings.
- `mirror_to_own_bank: true` keeps what is said in a project in your own bank, too. That is the bank that you have outside of projects: the one that the template names without project fields, else `bank_id`. Turns, `hindsight_retain` and `import` follow the same rule, since a note is as much about you as a turn. Both copies are saved on disk in one step, under the same document ids, and are delivered each by itself: a bank that refuses its copy does not hold the other, and `status` counts both. The server extracts facts for each bank, so its LLM is called twice as often. `hindsight_forget` deletes both copies.
- With your own bank in `additional_banks`, a project recalls from both. What the project's bank shows is not repeated from yours: neither the same words nor anything from the same document.
- The command `retain` ignores projects, and stores in one bank.

## When turns are sent, and what it costs

A request holds documents, a document holds turns of one session, and the server extracts facts from a document in chunks of 3000 characters. Each chunk is one call of its LLM, which carries a prompt of 12 500 characters besides: the number of calls is the cost.

- `retain_every_n_turns` is 1 or not set: a document is sent once it has `retain_document_chars`, or after `retain_idle_seconds` without a turn. 100 turns of 1500 characters take 67 calls, 100 short turns (300 characters) 17.
- `retain_idle_seconds: 0`: each turn is sent at once, and is a document. 100 turns take 100 calls, however short they are.
- `retain_every_n_turns` is N, above 1: N turns are a document, whatever their length and however long they are apart; the other two keys do not count. 100 short turns take 34 calls with N = 3 and 20 with N = 10; the long ones take 67 with N = 3 and 70 with N = 10.

In all cases the rest is sent when the session ends or switches, at shutdown, at exit, or at the next start, and `hindsight_retain` sends at once. Turns that are not sent yet are on disk.

## Variables that are no keys

- `HINDSIGHT_EXEC_STATE`: the [state directory](operations.md#the-state-directory).
- `NO_COLOR`: commands use no colours and show no progress bar.
"""


def default(item: Any, value: Any = ...) -> str:
    """The default, or another value, as it is written in JSON."""
    value = item.default if value is ... else value
    if value is None or value in ("", ()):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return "`[" + ", ".join(f'"{one}"' for one in value) + "]`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value:g}`"


def if_wrong(item: Any) -> str:
    """What a wrong value means."""
    if item.metadata["strict"] or item.metadata["kind"] == "url":
        return REPLACED.get(item.metadata["kind"], "off")
    if item.metadata["narrow"] is not None:
        return default(item, item.metadata["narrow"])
    return "not set" if item.default in (None, "", ()) else "the default"


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
            lines += [f"\n## {group}\n", HEADER]
        names = "`" + "`, `".join((item.name, *item.metadata["aliases"])) + "`"
        variable = f"`{item.metadata['env']}`" if item.metadata["env"] else ""
        cells = (names, default(item), variable, if_wrong(item), describe(item))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, TAIL])


if __name__ == "__main__":
    (Path(__file__).parent / "configuration.md").write_text(page(), encoding="utf-8")
