"""Waiting for what another thread, another process or the collector brings about."""

from __future__ import annotations

import gc
import time
from typing import Any, Callable


def eventually(
    check: Callable[[], Any], what: str = "", *, seconds: float = 60.0, pause: float = 0.02
) -> Any:
    """Return the first true value of ``check()``; fail with the last one when none comes.

    ``what`` says then what did not come.
    """
    deadline = time.monotonic() + seconds
    while not (value := check()):
        if time.monotonic() > deadline:
            about = f"{what}: " if what else ""
            raise AssertionError(f"{about}not within {seconds:g} s; the last value was {value!r}")
        time.sleep(pause)
    return value


def collect() -> None:
    """Collect all that nobody refers to."""
    for _ in range(3):  # PyPy needs more than one
        gc.collect()
