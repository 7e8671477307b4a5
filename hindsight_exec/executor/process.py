"""Tells a forked child from its parent, also where no at-fork hook runs.

``os.fork`` calls the hooks of ``os.register_at_fork``.  A host that forks in C
need not: uWSGI does not by default.  There only the process id tells.
"""

from __future__ import annotations

import os
import threading

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Callable

#: The process that module state belongs to.
pid = os.getpid()

_renewals: list[Callable[[], None]] = []
_locks: dict[int, threading.RLock] = {}


def call_in_child(renew: Callable[[], None]) -> None:
    """Have ``renew()`` called once in each forked child, in the order of registration.

    It is called right after the fork where at-fork hooks run, else by the
    first call of :func:`renew_if_forked` in the child. It may be called with
    any lock of the parent held, by a thread that does not exist here.
    """
    _renewals.append(renew)


def renew_if_forked() -> None:
    """Start afresh if this process is a child that has not yet done so."""
    global pid
    own = os.getpid()
    if own == pid:
        return
    # A lock by process: the parent cannot have held this one at the fork.
    with _locks.setdefault(own, threading.RLock()):
        if own != pid:
            for renew in _renewals:
                renew()
            pid = own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=renew_if_forked)
