"""Reads and sets ``memory.provider`` in Hermes' config.yaml, leaving every other byte as it is.

Hermes' own ``hermes config set`` rewrites the file, and drops its comments.
"""

from __future__ import annotations

import re
from typing import List, Optional, Tuple

from hindsight_exec.errors import ConfigError

__all__ = ["provider_of", "with_provider"]

_MEMORY = re.compile(r"memory\s*:\s*(#.*)?")
_PROVIDER = re.compile(r"(?P<key>\s+provider\s*:)(?P<value>[^#\n]*?)(?P<rest>\s*(\s#.*)?)")


def provider_of(text: str) -> str:
    """``memory.provider``, or "" where it is not set, or not to be found in this simple way."""
    lines = text.splitlines()
    try:
        _, line = _find(lines, "")
    except ConfigError:
        return ""
    found = _PROVIDER.fullmatch(lines[line]) if line is not None else None
    return found["value"].strip().strip("'\"") if found else ""


def with_provider(text: str, name: str) -> str:
    """The text with ``memory.provider`` set to ``name``.

    Raises:
        ConfigError: The file is written in a form that is not understood here.
    """
    newline = "\r\n" if "\r\n" in text else "\n"
    lines = text.splitlines()
    value = name or "''"
    remedy = f"set it by hand: hermes config set memory.provider {value}"
    memory, provider = _find(lines, remedy)
    if memory is None:
        lines += ["memory:", f"  provider: {value}"]
    elif provider is None:
        child = next((line for line in lines[memory + 1 :] if line.strip()), "")
        indent = re.match(r"\s*", child)[0] or "  "  # type: ignore[index]
        lines.insert(memory + 1, f"{indent}provider: {value}")
    else:
        found = _PROVIDER.fullmatch(lines[provider])
        if found is None:
            raise ConfigError(f"memory.provider in config.yaml is not a plain word: {remedy}")
        lines[provider] = f"{found['key']} {value}{found['rest']}"
    return newline.join([*lines, ""])


def _find(lines: List[str], remedy: str) -> Tuple[Optional[int], Optional[int]]:
    """The line of ``memory:`` and that of its ``provider:``."""
    tops = [
        number for number, line in enumerate(lines) if re.match(r"['\"]?memory['\"]?\s*:", line)
    ]
    if not tops:
        return None, None
    if len(tops) > 1 or not _MEMORY.fullmatch(lines[tops[0]].rstrip()):
        raise ConfigError(f"memory in config.yaml is not a plain block: {remedy}")
    memory = tops[0]
    indent: Optional[int] = None
    for number in range(memory + 1, len(lines)):
        line = lines[number]
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        depth = len(line) - len(line.lstrip())
        if not depth:
            break
        indent = depth if indent is None else indent
        if depth == indent and re.match(r"\s+['\"]?provider['\"]?\s*:", line):
            return memory, number
    return memory, None
