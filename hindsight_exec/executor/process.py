"""Tells a forked child from its parent, also where no at-fork hook runs.

``os.fork`` calls the hooks of ``os.register_at_fork``.  A host that forks in C
need not: uWSGI does not by default.  There only the process id tells, or a page
of memory that the kernel wipes at a fork, which is read in a tenth of the time.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any, Callable


class _PidMark:
    """A mark for systems without such pages."""

    def __getitem__(self, _: int) -> int:
        return _generation if os.getpid() == pid else 0

    def __setitem__(self, _: int, generation: int) -> None:
        pass  # it is always looked up


def _make_mark() -> Any:
    if sys.platform != "linux":
        return _PidMark()
    with contextlib.suppress(ImportError, AttributeError, OSError, ValueError):
        import mmap  # noqa: PLC0415 - not on every system

        page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(18)  # MADV_WIPEONFORK, since Linux 4.14
        return page
    return _PidMark()


#: The process that module state belongs to.
pid = os.getpid()
#: ``mark[0]`` is another number in each generation of processes, and 0 in a
#: child that has not started afresh.
mark = _make_mark()
_generation = mark[0] = 1

_renewals: list[Callable[[], None]] = []
_locks: dict[int, threading.RLock] = {}


def call_in_child(renew: Callable[[], None]) -> None:
    """Have ``renew()`` called once in each forked child, in the order of registration.

    It is called right after the fork where at-fork hooks run, else by the
    first call of :func:`renew_if_forked` in the child. It may be called with
    any lock of the parent held, by a thread that does not exist here.
    """
    _renewals.append(renew)


def _after_fork() -> None:
    global pid
    pid = 0  # the first process of a new PID namespace may have its parent's number
    renew_if_forked()


def renew_if_forked() -> None:
    """Start afresh if this process is a child that has not yet done so."""
    global pid, _generation
    own = os.getpid()
    if own == pid:
        return
    # A lock by process: the parent cannot have held this one at the fork.
    with _locks.setdefault(own, threading.RLock()):
        if own != pid:
            for renew in _renewals:
                renew()
            _generation = _generation % 255 + 1
            pid = own
            mark[0] = _generation


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
