"""Reads times that are text."""

from __future__ import annotations

import re
from datetime import datetime


def parse_iso(text: str) -> datetime:
    """Read an ISO 8601 time; one without an offset is naive.

    Python before 3.11 reads neither the Z nor fractions of other than 3 or 6 digits.

    Raises:
        ValueError: The text is not a time.
    """
    digits = re.sub(r"\.(\d+)", lambda match: "." + match[1][:6].ljust(6, "0"), text.strip())
    return datetime.fromisoformat(re.sub("[zZ]$", "+00:00", digits))


def parse_local(text: str) -> datetime:
    """Read an ISO 8601 time; one without an offset is local time, and gets the local offset.

    Raises:
        ValueError, OverflowError, OSError: The text is not a time, or the system knows no offset
            for it.
    """
    moment = parse_iso(text)
    return moment if moment.tzinfo else moment.astimezone()
