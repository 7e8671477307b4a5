"""The variables in a ``.env`` file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["read_dotenv"]


def read_dotenv(path: Path) -> Dict[str, str]:
    """Hindsight's variables in a ``.env`` file. Lines are KEY=VALUE, with or without quotes."""
    values = {}
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError:
        return {}
    for line in lines:
        name, equals, value = line.strip().partition("=")
        name = name[len("export ") :].strip() if name.startswith("export ") else name.strip()
        if equals and name.startswith("HINDSIGHT_"):
            value = value.strip()
            if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
                value = value[1:-1]
            values[name] = value
    return values
