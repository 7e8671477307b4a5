"""Signals that ask a command to end: it ends as with Ctrl-C, and so cleans up.

A handler that raises does so between any two bytecodes, also between taking a lock and the block
that releases it: the next use of the lock would wait for ever. So a command that works with a
writer defers signals, and asks for them where it holds nothing.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import Iterator

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")

_deferring = False
_pending = 0  # the signal that came meanwhile


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to end."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.status = 128 + number  # as a shell reports it


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Raise :class:`Interrupted` for SIGINT, SIGTERM and SIGHUP, on the main thread."""
    global _deferring, _pending
    on_main = threading.current_thread() is threading.main_thread()
    numbers = [getattr(signal, name) for name in _NAMES if on_main and hasattr(signal, name)]
    old = {one: signal.getsignal(one) for one in numbers}
    # A signal that is ignored stays so: `nohup` asks for it.
    old = {one: was for one, was in old.items() if was not in (signal.SIG_IGN, None)}
    _deferring, _pending = False, 0
    for number in old:
        signal.signal(number, _handle)
    try:
        yield
    finally:
        for number, was in old.items():
            signal.signal(number, was)


def _handle(number: int, _frame: object) -> None:
    global _pending
    if _deferring and not _pending:
        _pending = number
        return
    if not _deferring:
        _ignore()  # a second signal must not cut the clean-up short
    raise Interrupted(number)


def _ignore() -> None:
    for name in _NAMES[1:]:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Keep signals for :func:`check` and for the end of the block. A second one is not kept."""
    global _deferring
    _deferring = True
    try:
        yield
        check()
    finally:
        _deferring = False


def check() -> None:
    """Raise :class:`Interrupted` if a signal was deferred."""
    if _pending:
        _ignore()
        raise Interrupted(_pending)
