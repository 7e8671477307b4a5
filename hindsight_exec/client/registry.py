"""The HTTP clients of the process: one for each server and key, shared by its users.

A gateway has a memory provider for each of hundreds of chats. One client serves
them all on the background loop; the last user's release closes it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Awaitable, Callable, Optional, Protocol, Tuple, TypeVar

from hindsight_exec.errors import ConfigError, ExecutorClosed, Unauthorized, Unavailable
from hindsight_exec.executor.locks import holds
from hindsight_exec.executor.process import call_in_child, renew_if_forked

from .loop import background_loop

if TYPE_CHECKING:
    from .api import HindsightClient

__all__ = ["Finder", "Lease", "find_by", "is_inside", "lease"]

T = TypeVar("T")
_Target = Tuple[str, str, float]


class Finder(Protocol):
    """Finds a server whose own URL is only a name. Called on the loop; never blocks."""

    def find(self) -> str:
        """Return its URL now; raises `Unavailable` while it has none."""

    def lost(self) -> None:
        """There was no response from that URL. May raise `Unavailable` with a better text."""


_finders: dict[str, Finder] = {}  # single dict operations: safe from any thread


def find_by(url: str, finder: Finder) -> None:
    """From now on, send requests for this (normalised) URL where the finder says."""
    _finders[url] = finder


class _Shared:
    """A client and the number of its holders."""

    def __init__(self, target: _Target) -> None:
        self.target = target
        self.holders = 0  # guarded by _lock
        # Used on the loop only:
        self._url = target[0]
        self._client: Optional[HindsightClient] = None
        self.closed = False

    def client(self) -> HindsightClient:
        if self.closed:  # nothing would close a new one
            raise ExecutorClosed(f"the client of {self.target[0]} has been closed")
        if self._client is None:
            from .api import HindsightClient  # noqa: PLC0415 - made when first used

            _, key, timeout = self.target
            try:
                self._client = HindsightClient(self._url, api_key=key or None, timeout=timeout)
            except ConfigError as error:  # no header can carry the key
                raise Unauthorized("", self._url, None, str(error)) from None
            background_loop().add_closer(self.close)
        return self._client

    async def move(self, url: str) -> None:
        """Have the client talk to this URL."""
        if url != self._url:
            self._url = url
            await self._drop()

    async def close(self) -> None:
        self.closed = True
        await self._drop()

    async def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            background_loop().remove_closer(self.close)
            await client.close()


# Re-entrant: a finalizer may release a lease while its thread is in here.
_lock = threading.RLock()  # guards `_shared` and the counts of holders
_shared: dict[_Target, _Shared] = {}
# A forked child keeps its parent's clients referenced, and never touches them:
# collecting them would close sockets that the parent still uses.
_inherited: list[object] = []


def _renew() -> None:
    global _lock, _shared
    _inherited.append(_shared)
    _lock, _shared = threading.RLock(), {}


call_in_child(_renew)


class Lease:
    """A share in a client. Made by `lease`; safe from any thread."""

    def __init__(self, shared: _Shared) -> None:
        self._shared = shared
        self._released = False
        self._pid = os.getpid()

    @property
    def target(self) -> _Target:
        """URL, key ("" for none) and timeout in seconds."""
        return self._shared.target

    @property
    def inherited(self) -> bool:
        """Whether it belongs to a forked child's parent and must be left alone."""
        return self._pid != os.getpid()

    async def use(self, call: Callable[[HindsightClient], Awaitable[T]]) -> T:
        """``await call(client)``, on the background loop.

        Raises:
            ExecutorClosed: It is closed: all leases were released, or the process exits.
            Unauthorized: The key is unusable.
            Whatever the call raises.
        """
        finder = _finders.get(self.target[0])
        if finder is not None:
            await self._shared.move(finder.find())
        client = self._shared.client()
        try:
            return await call(client)
        except Unavailable as error:
            if finder is not None and error.status is None:
                finder.lost()
            raise
        finally:
            if self._shared.closed:
                # Closed during the call, which may have opened a session since.
                await client.close()

    def release(self, wait: float = 0.0) -> None:
        """Give the share back; the last one closes the client. Idempotent.

        Closing takes ``wait`` seconds at most.
        """
        if self.inherited:
            return
        with _lock:
            if self._released:
                return
            self._released = True
            self._shared.holders -= 1
            if self._shared.holders:
                return
            _shared.pop(self.target, None)
        # While the process exits, the loop closes the client itself.
        with contextlib.suppress(Exception):
            closing = background_loop().run(self._shared.close())
            if wait:
                closing.result(wait)


def lease(url: str, key: str, timeout: float) -> Lease:
    """Return a share in the client of a server (its normalised URL) and key ("" for none)."""
    renew_if_forked()
    target = (url, key, timeout)
    with _lock:
        shared = _shared.setdefault(target, _Shared(target))
        shared.holders += 1
        return Lease(shared)


def is_inside() -> bool:
    """Whether this thread is the loop's, or was interrupted inside the loop or this module."""
    return holds(_lock) or background_loop().is_inside()
