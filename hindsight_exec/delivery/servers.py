"""The servers that turns are sent to: their keys, clients and failures."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Callable, Optional

from hindsight_exec.errors import ServerError, Starting, Unauthorized, Unavailable
from hindsight_exec.executor.waiting import now

from .schedule import Lane

if TYPE_CHECKING:
    from hindsight_exec.client.registry import Lease
    from hindsight_exec.conversation.turns import Destination

    from .progress import Progress

_logger = logging.getLogger("hindsight_exec")

#: Seconds before a server that refused the key is asked again even if the key
#: has not changed: an operator may have corrected it on the server.
_PAUSE = 600.0
#: Seconds between checks whether the key for such a server has changed.
_KEY_CHECK = 30.0


class Server:
    """A URL and a credential reference. Used by the worker only."""

    def __init__(self, target: tuple[str, str]) -> None:
        self.target = target
        self.lane = Lane()
        self.key: Optional[str] = None
        self.lease: Optional[Lease] = None
        self.given_up = False  # the process is closing, and this server failed
        self.accepted = 0  # batches

    def may_send(self, now: float) -> bool:
        """Whether a request may start now."""
        return not (self.given_up or self.lease is None) and self.lane.may_send(now)

    def opens_at(self, now: float) -> list[float]:
        """When the next request may start; empty if a response decides that, or never."""
        if self.given_up:
            return []
        if self.lane.paused:
            return [now + _KEY_CHECK]
        opens = self.lane.open_at(now)
        return [] if opens is None else [opens]

    @property
    def troubled(self) -> bool:
        return self.lane.paused or self.lane.backoff.failures > 0


class Servers:
    """All servers of an engine.

    Args:
        lease: Returns a share in the client of URL and key ("" for none).
        key: Returns the key for a credential reference and URL; None if it
            cannot be resolved, "" if none is needed.
        progress: Told of failures.
        notify: Tells the user that trouble has begun or ended.
    """

    def __init__(
        self,
        *,
        lease: Callable[[str, str], Lease],
        key: Callable[[str, str], Optional[str]],
        progress: Progress,
        notify: Callable[[str], None],
    ) -> None:
        self._lease = lease
        self._key = key
        self._progress = progress
        self._notify = notify
        self._all: dict[tuple[str, str], Server] = {}
        self._notified = False  # of trouble that has not ended
        self.closing = False

    def get(self, destination: Destination) -> Server:
        """Return the server of a destination, with a client if its key is known."""
        target = (destination.url, destination.credential)
        server = self._all.get(target)
        if server is None:
            server = Server(target)
            with self._progress.lock:
                self._all[target] = server
        if server.lease is None or server.lane.paused:
            key = self._key(destination.credential, destination.url)
            if key is None:
                if not server.lane.paused:
                    self._pause(server, f"no API key is configured for {destination.url}")
            elif server.lease is None or key != server.key:
                if server.lease is not None:
                    server.lease.release()
                server.lease = self._lease(destination.url, key)
                server.key = key
                server.lane.paused = False
                server.lane.backoff.succeeded()
        return server

    def failed(self, server: Server, error: BaseException) -> None:
        """Note a request that failed and may succeed later."""
        if isinstance(error, Unauthorized):
            self._pause(server, str(error))
            return
        if not isinstance(error, ServerError):
            _logger.error("A request failed unexpectedly", exc_info=error)
        retry_after = error.retry_after if isinstance(error, Unavailable) else None
        if isinstance(error, Starting):
            server.lane.backoff.not_before = now() + (retry_after or 1.0)
        else:
            server.lane.backoff.failed(now(), retry_after)
        server.given_up = self.closing
        # A single failure is no news: a restart, a burst.
        if not isinstance(error, Starting) and server.lane.backoff.failures == 2:
            self._notify_of_trouble(
                f"Hindsight is unreachable; turns are saved on disk and will be sent later ({error})"
            )
        # Last: it wakes threads that may close the engine next.
        self._progress.failed(server.target, str(error) or type(error).__name__)

    def _pause(self, server: Server, reason: str) -> None:
        first = not server.lane.paused
        server.lane.paused = True
        server.lane.backoff.not_before = now() + _PAUSE
        server.given_up = self.closing
        if first:
            _logger.error(
                "%s. Turns are saved on disk and will be sent once the key is correct.", reason
            )
            self._notify_of_trouble(
                f"Hindsight does not accept the API key; turns are saved on disk ({reason})"
            )
        self._progress.failed(server.target, reason)

    def succeeded(self, server: Server) -> None:
        """Note a request that the server took."""
        server.lane.backoff.succeeded()
        server.lane.paused = False

    def all_accepted(self) -> None:
        """Note that no turn given in this process is waiting any longer."""
        if self._notified:
            self._notified = False
            self._notify("Hindsight is back; all turns have arrived")

    def _notify_of_trouble(self, text: str) -> None:
        self._notified = True
        self._notify(text)

    def hurry(self) -> None:
        """Retry servers in trouble once, now: a thread waits. Safe from any thread."""
        with self._progress.lock:
            for server in self._all.values():
                if not server.lane.paused:
                    server.lane.backoff.hurry()

    def paused(self, target: tuple[str, str]) -> bool:
        """Whether the server refused the key, so that nothing is sent. Safe from any thread."""
        server = self._all.get(target)
        return server is not None and server.lane.paused

    def release(self, wait: float) -> None:
        """Give the clients back; their sessions close within ``wait`` seconds."""
        for server in self._all.values():
            if server.lease is not None:
                server.lease.release(wait)
