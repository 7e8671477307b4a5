"""The background recall of one provider: started after a turn, taken by the next one."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
from typing import TYPE_CHECKING, Awaitable, Callable, Collection, NamedTuple

from hindsight_exec.errors import HindsightExecError, Starting

from .callbacks import weakly
from .memories import Memory, Recalled, query_of, recall, shown
from .sessions import ForkSafeLock, Scope

if TYPE_CHECKING:
    from hindsight_exec.client.api import HindsightClient

    from .connection import Connection
    from .identity import Identity

__all__ = ["LONGEST_WAIT", "Recall"]

logger = logging.getLogger("hindsight_exec")

# Below the 8 s that Hermes 0.19 gives a prefetch before it warns and skips the next ones.
LONGEST_WAIT = 7.0


class _Running(NamedTuple):
    scope: Scope
    future: concurrent.futures.Future[Recalled]
    unprocessed: list[Memory]  # found before the server was asked, and not shown yet

    def cancel(self) -> None:
        if self.scope.pid == os.getpid():  # the parent's future may be locked for ever
            self.future.cancel()


class Recall:
    """At most one recall at a time, the newest. Safe from any thread.

    A recall is started and taken with a `Scope`. One that was started for
    another scope is never returned.
    """

    def __init__(self, connection: Connection, notify: Callable[[str], None]) -> None:
        self._connection = connection
        self._notify = weakly(notify)
        self._before: tuple[Identity | None, tuple[str, str]] = (None, ("", ""))
        self._trouble = ""  # why recalls fail, as long as they do
        self._lock = ForkSafeLock()
        # Guarded by the lock:
        self._running: _Running | None = None
        self._closed = False

    def note_exchange(self, identity: Identity, user: str, assistant: str) -> None:
        """Remember what was said last: it completes a next message that names no topic."""
        self._before = (identity, (user, assistant))

    def start(
        self,
        scope: Scope,
        message: str,
        after: Callable[[], Awaitable[object]] | None = None,
        search: Callable[[str], list[Memory]] | None = None,
        lately: Collection[str] = (),
    ) -> None:
        """Start to recall for ``message``; drop what ran before.

        Args:
            after: What to wait for first.
            search: Finds what the server does not know yet. It reads the disk.
            lately: Documents that there may be no observations of yet.
        """
        settings = self._connection.settings
        identity, before = self._before
        query = query_of(settings, message, before if identity == scope.identity else ("", ""))
        if not query:
            return

        bank = scope.identity.bank(settings)
        unprocessed: list[Memory] = []

        async def work(client: HindsightClient) -> Recalled:
            if after is not None:
                await after()
            if search is not None:
                # Before the server is asked: what it processes meanwhile is not missed.
                loop = asyncio.get_running_loop()
                with contextlib.suppress(RuntimeError):  # the process exits
                    unprocessed.extend(await loop.run_in_executor(None, search, query))
            return await recall(client, settings, bank, query, tuple(unprocessed), lately)

        try:
            started = _Running(scope, self._connection.submit(work), unprocessed)
        except (HindsightExecError, RuntimeError) as error:
            logger.debug("recall not started: %s", error)
            return
        with self._lock:
            dropped = self._running
            newer = dropped is not None and dropped.scope.epoch > scope.epoch
            if newer or self._closed:
                dropped = started  # the session was left meanwhile
            else:
                self._running = started
        if dropped is not None:
            dropped.cancel()

    def has(self, scope: Scope) -> bool:
        """Whether a recall for the scope is under way, or waits to be taken."""
        running = self._running
        return running is not None and running.scope == scope

    def take(self, scope: Scope, wait: float) -> Recalled:
        """What was recalled for the scope, once; wait at most ``wait`` seconds for it."""
        running = self._running
        if running is None or running.scope != scope:
            return Recalled()
        try:
            recalled = running.future.result(min(wait, LONGEST_WAIT))
        except concurrent.futures.TimeoutError:
            # The next turn may still take what the server answers.
            return self._unprocessed(running)
        except (concurrent.futures.CancelledError, Starting):
            # That an embedded server starts is no trouble.
            recalled = self._unprocessed(running)
        except Exception as error:
            recalled = self._unprocessed(running, failed=True)
            self._report(str(error) or type(error).__name__)
        else:
            self._report("")
        with self._lock:
            if self._running is not running:
                return Recalled()
            self._running = None
        return recalled

    def _unprocessed(self, running: _Running, *, failed: bool = False) -> Recalled:
        """What is shown without the server's answer, once."""
        found = list(running.unprocessed)
        del running.unprocessed[: len(found)]
        return shown(found, self._connection.settings, failed=failed)

    def _report(self, trouble: str) -> None:
        """Tell log and user when recalls begin to fail, and when they work again."""
        before, self._trouble = self._trouble, trouble
        if trouble and not before:
            logger.warning("memories cannot be recalled: %s", trouble)
            self._notify(f"Hindsight: memories cannot be recalled: {trouble}")
        elif before and not trouble:
            logger.info("memories are recalled again")
            self._notify("Hindsight: memories are recalled again")

    def forget(self) -> None:
        """Drop what was recalled so far."""
        with self._lock:
            running, self._running = self._running, None
        if running is not None:
            running.cancel()

    def close(self) -> None:
        """Recall nothing any more. Idempotent."""
        with self._lock:
            self._closed = True
        self.forget()
