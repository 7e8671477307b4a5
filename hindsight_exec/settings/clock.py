"""The time zone that Hermes is set to: "tonight" on a server in UTC may be another day."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Optional

from .files import read_bytes

if TYPE_CHECKING:
    from datetime import tzinfo
    from pathlib import Path

__all__ = ["zone", "zone_name"]

# A key at the left margin of config.yaml with a plain or a quoted word.
_TIMEZONE = re.compile(
    rb"^timezone[ \t]*:[ \t]*([\"']?)([\w/+-]+)\1[ \t]*(?:#.*)?\r?$", re.MULTILINE
)


def zone_name(hermes_home: Path, managed: Path) -> str:
    """Return ``timezone`` of config.yaml, the administrator's first; "" where it is not set."""
    for folder in (managed, hermes_home):
        try:
            found = _TIMEZONE.search(read_bytes(folder / "config.yaml"))
        except OSError:
            continue
        if found:
            return found[2].decode("ascii", "replace")
    return ""


def zone(name: str) -> Optional[tzinfo]:
    """Return a zone by its IANA name; None for "" and for a name that this system does not know."""
    from zoneinfo import ZoneInfo  # noqa: PLC0415 - only with Hermes

    try:
        return ZoneInfo(name) if name else None  # it caches
    except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        return None
