"""A provider's access to its server: which key goes where, and whether the server answers."""

from __future__ import annotations

import asyncio
import concurrent.futures
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
    from hindsight_exec.client.api import HindsightClient
    from hindsight_exec.settings.config import Settings

__all__ = ["Connection"]

logger = logging.getLogger("hindsight_exec")

T = TypeVar("T")

_CHECK_SECONDS = 2.0  # a server that needs longer for /health is busy, not away
_CHECK_AGAIN_SECONDS = 60.0

# Banks whose missions are known to be set; a gateway may have a bank for each session.
_MOST_BANKS = 10_000

_lock = ForkSafeLock()
# Results for the whole process, so that hundreds of providers ask once. Guarded by _lock, and
# told apart by pid: the parent's requests are answered in the parent.
_checks: Dict[Tuple[int, str], Tuple[float, concurrent.futures.Future[str]]] = {}
_missions_set: Set[Tuple[Any, ...]] = set()


class Connection:
    """One provider's access to its server. Safe from any thread.

    Attributes:
        trouble: Why the server could not be used last time; "" if it could.
    """

    def __init__(self, settings: Settings) -> None:
        embedded.know(settings)
        self.settings = settings
        self.trouble = ""
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

    def check(self, wait: float) -> str:
        """Return why the server is out of reach; "" if it answers, or has not answered yet.

        Waits at most ``wait`` seconds; the answer counts for the whole process for a minute.
        """
        asked = (os.getpid(), self.settings.api_url)
        with _lock:
            known = _checks.get(asked)
        if known is None or now() - known[0] > _CHECK_AGAIN_SECONDS:
            try:
                known = (now(), self.submit(_health))
            except HindsightExecError as error:
                return str(error)
            with _lock:
                _checks[asked] = known
        try:
            # Not raised: it would keep each caller's frames, and is kept itself.
            failure = known[1].exception(wait)
            return str(failure) if failure is not None else known[1].result()
        except (concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            return ""

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
        before, self.trouble = self.trouble, trouble
        if trouble and not before:
            logger.info("memory cannot be used: %s", trouble)


async def _health(client: HindsightClient) -> str:
    try:
        await asyncio.wait_for(client.health(), _CHECK_SECONDS)
    except asyncio.TimeoutError:
        return ""
    except HindsightExecError as error:
        return str(error)
    return ""


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
