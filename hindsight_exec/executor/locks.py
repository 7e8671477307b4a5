"""Tells which thread holds a lock, for what a finalizer or a signal handler must not do."""

from __future__ import annotations

import threading


def holds(lock: threading.RLock) -> bool:
    """Return whether the calling thread holds the re-entrant lock."""
    try:
        threading.Condition(lock).notify(0)  # of no thread; refused to all but the holder
    except RuntimeError:
        return False
    return True
