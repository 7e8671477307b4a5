"""Which session a provider serves now, and what it still knows of the ones before.

Turns and recalls arrive late: the host's worker may hand over a turn of a
session that the user has left already. Everything that belongs to a session is
therefore asked for here, with the session's id.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, replace
from typing import Any

from .identity import Identity

__all__ = ["ForkSafeLock", "Scope", "Sessions"]

# Earlier sessions whose late turns still find their parent session.
_REMEMBERED = 16


class ForkSafeLock:
    """A lock that is free in a forked child, whoever held it in the parent.

    It needs no at-fork hook: some servers fork without running them. Data that
    it guards must change in one assignment, as a child may be forked anywhere.
    """

    def __init__(self) -> None:
        self._locks: dict[int, threading.Lock] = {}

    def __enter__(self) -> None:
        pid = os.getpid()
        lock = self._locks.get(pid)
        (lock or self._locks.setdefault(pid, threading.Lock())).acquire()

    def __exit__(self, *_: object) -> None:
        lock = self._locks.get(os.getpid())
        if lock is not None:  # None: forked inside the block
            lock.release()


@dataclass(frozen=True)
class Scope:
    """What a recall is for. What was recalled for one scope is never shown in another.

    ``epoch`` counts the switches: a session that the user comes back to is a
    new scope. ``pid`` sets a forked child's recalls apart from its parent's.
    """

    identity: Identity
    epoch: int
    pid: int


@dataclass(frozen=True)
class _State:
    identity: Identity
    epoch: int
    left: tuple[Identity, ...]  # the newest first


class Sessions:
    """The current session of a provider and the ones it left. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = ForkSafeLock()
        # Replaced as a whole, under the lock; read without it.
        self._state = _State(Identity(), 0, ())

    @property
    def current(self) -> Identity:
        return self._state.identity

    def written_by(self, author: Any) -> None:
        """From now on somebody else writes in the current session."""
        with self._lock:
            state = self._state
            self._state = replace(state, identity=state.identity.written_by(author))

    def begin(self, identity: Identity) -> None:
        """Serve this session from now on."""
        with self._lock:
            self._replace(identity)

    def switch(self, session: str, parent: str, *, rewound: bool) -> bool:
        """Serve another session from now on; whether the conversation moved at all.

        Compression in place names the same session: its conversation goes on.
        """
        with self._lock:
            identity = self._state.identity.moved(session, parent)
            same = identity.session == self._state.identity.session
            if same and not rewound:
                return False
            self._replace(self._state.identity if same else identity)
            return True

    def identity_of(self, session: Any) -> Identity:
        """Who talks in a session: the current one, or one that was left."""
        state = self._state
        named = state.identity.moved(session).session
        for identity in (state.identity, *state.left):
            if identity.session == named:
                return identity
        return state.identity.moved(named)

    def scope(self, session: Any = "") -> Scope | None:
        """What a recall for ``session`` is for; None if the user has left that session."""
        state = self._state
        if state.identity.moved(session).session != state.identity.session:
            return None
        return Scope(state.identity, state.epoch, os.getpid())

    def _replace(self, identity: Identity) -> None:
        old = self._state
        left = (old.identity, *(one for one in old.left if one.session != old.identity.session))
        self._state = _State(identity, old.epoch + 1, left[:_REMEMBERED])
