"""A provider's access to its server: which key goes where, and whether the server answers."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING, Any, Awaitable, Callable, Dict, Optional, Set, Tuple, TypeVar

from hindsight_exec.client.loop import background_loop
from hindsight_exec.client.registry import Lease, lease
from hindsight_exec.errors import ConfigError, ExecutorClosed, HindsightExecError, Rejected
from hindsight_exec.executor.waiting import now
from hindsight_exec.hermes import embedded
from hindsight_exec.settings.credentials import resolve_credential

from .sessions import ForkSafeLock

if TYPE_CHECKING:
    import concurrent.futures

    from hindsight_exec.client.api import HindsightClient
    from hindsight_exec.settings.config import Settings

__all__ = ["Connection"]

logger = logging.getLogger("hindsight_exec")

T = TypeVar("T")

_WAKE_AGAIN_SECONDS = 60.0

# Banks whose missions are known to be set; a gateway may have a bank for each session.
_MOST_BANKS = 10_000

_lock = ForkSafeLock()
# For the whole process, so that hundreds of providers ask once. Guarded by _lock.
_woken: Dict[Tuple[int, str], float] = {}  # when each server was, by process and URL
_missions_set: Set[Tuple[Any, ...]] = set()


class Connection:
    """One provider's access to its server. Safe from any thread."""

    def __init__(self, settings: Settings) -> None:
        embedded.know(settings)
        self.settings = settings
        self._trouble = ""  # why the server could not be used last time
        # Guarded by _lock:
        self._lease: Optional[Lease] = None
        self._running: Set[Tuple[int, concurrent.futures.Future[Any]]] = set()
        self._closed = False

    def submit(
        self, call: Callable[[HindsightClient], Awaitable[T]]
    ) -> concurrent.futures.Future[T]:
        """Start ``call(client)`` on the background loop.

        Raises:
            HindsightExecError: After `close`, at exit, or if no key may be used for the server.
        """
        held = self._hold()

        async def run() -> T:
            try:
                answer = await held.use(call)
            except Rejected:
                raise  # the server answers; this request was wrong
            except HindsightExecError as error:
                self._note(str(error))
                raise
            self._note("")
            return answer

        future = background_loop().run(run())
        with _lock:
            self._running.add((os.getpid(), future))
        future.add_done_callback(self._over)
        return future

    def wake(self) -> None:
        """Ask the server whether it answers, once a minute: an embedded one is started for it."""
        server = (os.getpid(), self.settings.api_url)
        with _lock:
            if now() - _woken.get(server, -_WAKE_AGAIN_SECONDS) < _WAKE_AGAIN_SECONDS:
                return
            _woken[server] = now()
        with contextlib.suppress(HindsightExecError):
            self.submit(lambda client: client.health())

    def apply_missions(self, bank: str) -> None:
        """Set the bank's missions in the background where they differ from the configured ones."""
        settings = self.settings
        wanted = {
            "reflect_mission": settings.bank_mission,
            "retain_mission": settings.bank_retain_mission,
        }
        wanted = {name: text for name, text in wanted.items() if text}
        mark = (settings.api_url, bank, *wanted.items())
        with _lock:
            if not wanted or mark in _missions_set:
                return
            if len(_missions_set) >= _MOST_BANKS:
                _missions_set.clear()
            _missions_set.add(mark)

        async def apply(client: HindsightClient) -> None:
            try:
                await _set_missions(client, bank, wanted)
            except Rejected as error:
                logger.warning("the missions of bank %s cannot be set: %s", bank, error)
            except BaseException:
                with _lock:
                    _missions_set.discard(mark)  # the next turn tries again
                raise

        with contextlib.suppress(HindsightExecError):
            self.submit(apply)

    def close(self, wait: float = 2.0) -> None:
        """Cancel running requests and release the client. Idempotent.

        The last connection that releases a client closes it, within ``wait`` seconds.
        """
        with _lock:
            self._closed = True
            held, self._lease = self._lease, None
            running = list(self._running)
        for pid, future in running:
            if pid == os.getpid():
                future.cancel()
        if held is not None:
            held.release(wait)

    def _hold(self) -> Lease:
        settings = self.settings
        key = resolve_credential(settings.credential, settings.api_url)
        if key is None:
            # The configuration has moved on to another server: its key is not for this one.
            raise ConfigError(
                f"the configuration no longer names {settings.api_url}; start a new session"
            )
        wanted = (settings.api_url, key, settings.timeout)
        with _lock:
            if self._closed:
                raise ExecutorClosed("this memory provider has been shut down")
            old = self._lease
            if old is not None and old.target == wanted and not old.inherited:
                return old
            self._lease = held = lease(*wanted)
        if old is not None:
            old.release()
        return held

    def _over(self, future: concurrent.futures.Future[Any]) -> None:
        with _lock:
            self._running.discard((os.getpid(), future))

    def _note(self, trouble: str) -> None:
        before, self._trouble = self._trouble, trouble
        if trouble and not before:
            logger.info("memory cannot be used: %s", trouble)


async def _set_missions(client: HindsightClient, bank: str, wanted: Dict[str, str]) -> None:
    try:
        has = (await client.bank_config(bank))["config"]
    except Rejected as error:
        if error.status != 404:
            raise
        has = {}  # there is no such bank yet
    changed = {name: text for name, text in wanted.items() if has.get(name) != text}
    if not changed:
        return
    try:
        await client.update_bank_config(bank, changed)
    except Rejected as error:
        if error.status != 404:
            raise
        await client.update_bank(bank, changed)  # the server has settings of banks switched off
    logger.info("bank %s: set %s", bank, " and ".join(changed))
