"""Waiting for what another thread or process brings about."""

from __future__ import annotations

import time
from typing import Any, Callable


def eventually(check: Callable[[], Any], *, seconds: float = 60.0, pause: float = 0.02) -> Any:
    """Return the first true value of ``check()``; fail with the last one when none comes."""
    deadline = time.monotonic() + seconds
    while not (value := check()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s; the last value was {value!r}")
        time.sleep(pause)
    return value
