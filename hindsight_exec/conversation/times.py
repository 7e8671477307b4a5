"""Times as text."""

from __future__ import annotations

import re
from datetime import datetime


def parse_iso(text: str) -> datetime:
    """An ISO 8601 time as every Python reads it; without an offset it is naive.

    Python < 3.11 reads neither the Z nor a fraction of other than 3 or 6 digits.

    Raises:
        ValueError: It is none.
    """
    digits = re.sub(r"\.(\d+)", lambda match: "." + match[1][:6].ljust(6, "0"), text.strip())
    return datetime.fromisoformat(re.sub("[zZ]$", "+00:00", digits))


def parse_local(text: str) -> datetime:
    """As :func:`parse_iso`; one without an offset is local time, and gets the local offset.

    Raises:
        ValueError, OverflowError, OSError: It is none, or none that the system knows an offset for.
    """
    moment = parse_iso(text)
    return moment if moment.tzinfo else moment.astimezone()
