"""The HTTP clients of the process: one for each server and key, shared by all who use it.

A gateway has a memory provider for each of hundreds of chats; one session serves
them all on the background loop, and is closed when the last lets go of it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import (
    TYPE_CHECKING,
    Any,
    Awaitable,
    Callable,
    Dict,
    List,
    Optional,
    Protocol,
    Tuple,
    TypeVar,
)

from hindsight_exec.errors import ExecutorClosed, Unavailable

from .loop import background_loop

if TYPE_CHECKING:
    from .api import HindsightClient

__all__ = ["Finder", "Lease", "find_by", "lease"]

T = TypeVar("T")
_Target = Tuple[str, str, float]


class Finder(Protocol):
    """Knows where a server is whose own URL is but a name. Used on the loop only; never blocks."""

    def find(self) -> str:
        """Its URL now; raises `Unavailable` while it has none."""

    def lost(self) -> None:
        """Nobody answered there. May raise `Unavailable` with a better word for it."""


_finders: Dict[str, Finder] = {}  # single dict operations: safe from any thread


def find_by(url: str, finder: Finder) -> None:
    """From now on requests to this (normalised) URL go where the finder says."""
    _finders[url] = finder


class _Shared:
    """One client and who holds it."""

    def __init__(self, target: _Target) -> None:
        self.target = target
        self.holders = 0  # guarded by _lock
        # All touched on the loop only.
        self._url = target[0]
        self._client: Optional[HindsightClient] = None
        self.closed = False

    def client(self) -> HindsightClient:
        if self.closed:  # a new one would be closed by nobody
            raise ExecutorClosed(f"the client of {self.target[0]} has been closed")
        if self._client is None:
            from .api import HindsightClient  # noqa: PLC0415 - made when first used

            _, key, timeout = self.target
            self._client = HindsightClient(self._url, api_key=key or None, timeout=timeout)
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


_lock = threading.Lock()
_shared: Dict[_Target, _Shared] = {}
# A forked child neither uses nor closes its parent's clients, and keeps them
# referenced: collecting them would close sockets that the parent still uses.
_inherited: List[Any] = []


def _after_fork_in_child() -> None:
    global _lock, _shared
    _inherited.append(_shared)
    _lock, _shared = threading.Lock(), {}


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class Lease:
    """A share in a client. Made by `lease`; safe from any thread."""

    def __init__(self, shared: _Shared) -> None:
        self._shared = shared
        self._released = False
        self._pid = os.getpid()

    @property
    def target(self) -> _Target:
        """URL, key ("" for none) and time-out in seconds."""
        return self._shared.target

    @property
    def inherited(self) -> bool:
        """Whether it is a forked parent's: to be left alone."""
        return self._pid != os.getpid()

    def client(self) -> HindsightClient:
        """The client; to be called and used on the background loop, best through `use`.

        Raises:
            ExecutorClosed: It has been closed: all leases were released, or the process exits.
        """
        return self._shared.client()

    async def use(self, call: Callable[[HindsightClient], Awaitable[T]]) -> T:
        """``await call(client)``, on the background loop.

        Raises:
            ExecutorClosed: As `client`; besides what the call raises.
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
                # It was closed under the call, which may have opened a session since.
                await client.close()

    def release(self, wait: float = 0.0) -> None:
        """Lets go; the last one closes the client, waiting at most ``wait`` seconds. Idempotent."""
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
        # While the process exits, the loop closes it by itself.
        with contextlib.suppress(Exception):
            closing = background_loop().run(self._shared.close())
            if wait:
                closing.result(wait)


def lease(url: str, key: str, timeout: float) -> Lease:
    """A share in the process' client of a server (its normalised URL) and key ("" for none)."""
    target = (url, key, timeout)
    with _lock:
        found = _shared.get(target)
        if found is None:
            found = _shared[target] = _Shared(target)
        found.holders += 1
        return Lease(found)
