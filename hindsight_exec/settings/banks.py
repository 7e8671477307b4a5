"""The name of the bank of a session: from a template, or from the table of users."""

from __future__ import annotations

import re
import string
from pathlib import Path
from typing import Mapping

from hindsight_exec.client.urls import MAX_BANK_BYTES
from hindsight_exec.executor.process import call_in_child

__all__ = ["FIELDS", "expand", "repository_name", "usable_bank"]

FIELDS = (
    "profile", "workspace", "platform", "user", "chat", "thread", "session", "project", "git_project"
)  # fmt: skip


def expand(template: str, fields: Mapping[str, str]) -> str:
    """Return the bank that a template names; "" if it comes out empty.

    The template is one of `str.format`, without access to attributes and items.
    What no bank may hold is replaced, the same way each time.

    Raises:
        ValueError: It names another field, or its syntax is wrong.
    """
    pieces = []
    for literal, name, spec, conversion in string.Formatter().parse(template):
        pieces.append(literal)
        if name is None:
            continue
        if name not in fields or conversion:
            raise ValueError(f"{{{name}{'!' + conversion if conversion else ''}}} is no field")
        if not re.fullmatch(r"(?:[^{}]?[<>^])?0?\d{0,3}(?:\.\d{1,3})?s?", spec or ""):
            raise ValueError(f"{spec!r} is no format for text")
        pieces.append(format(_segment(fields[name]), spec or ""))
    # Empty fields leave no doubled or dangling separators behind.
    text = re.sub(r"-{2,}", "-", re.sub(r"_{2,}", "_", "".join(pieces)))
    return usable_bank(text.strip("-_"))


def usable_bank(text: str) -> str:
    """Return a bank's id made of text, the same for the same text; "" if nothing is left."""
    usable = text.replace("/", "-").encode("utf-8", "replace")[:MAX_BANK_BYTES]
    return usable.decode("utf-8", "ignore").strip()


def _segment(value: str) -> str:
    """A field's value: what does not fit into a URL becomes single dashes."""
    return re.sub(r"[^\w-]+", "-", value).strip("-_")


# Not `lru_cache`: PyPy's has a lock, and a fork may leave it held for ever.
# A dict has one where there is no GIL, so a child begins with another dict.
_names: dict[str, str] = {}
call_in_child(lambda: globals().update(_names={}))


def repository_name(folder: str) -> str:
    """Return the name of the git repository that holds a folder; the folder's own outside of one.

    The worktrees of a repository share its name.
    """
    name = _names.get(folder)
    if name is None:
        if len(_names) >= 256:
            _names.clear()
        name = _names[folder] = _repository_name(Path(folder))
    return name


def _repository_name(start: Path) -> str:
    for place in (start, *start.parents):
        mark = place / ".git"
        try:
            if mark.is_dir():
                return place.name
            # A worktree's file names its own part of the repository's folder.
            pointer = mark.read_text(encoding="utf-8", errors="replace")
            own = (place / pointer.partition("gitdir:")[2].strip()).resolve()
            common = (own / (own / "commondir").read_text(encoding="utf-8").strip()).resolve()
            return common.parent.name if common.name == ".git" else common.name
        except FileNotFoundError:
            if mark.is_file():
                return place.name  # a submodule
        except OSError:
            break
    return start.name
