"""The servers of a process, as the delivery sees them: keys, clients, trouble."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Callable, Optional

from hindsight_exec.errors import ServerError, Starting, Unauthorized, Unavailable

from .schedule import Lane

if TYPE_CHECKING:
    from hindsight_exec.client.registry import Lease
    from hindsight_exec.conversation.turns import Destination

    from .progress import Progress

_logger = logging.getLogger("hindsight_exec")

#: Seconds after which a server that refused the key is asked again, even if
#: the key has not changed: it may have been set right over there.
_PAUSE = 600.0
#: Seconds between looks whether the key for such a server has changed.
_KEY_CHECK = 30.0


class Server:
    """A server: URL and credential reference. Used by the worker only."""

    def __init__(self, where: tuple[str, str]) -> None:
        self.where = where
        self.lane = Lane()
        self.key: Optional[str] = None
        self.lease: Optional[Lease] = None
        self.given_up = False  # for this process: it closes, and this server failed
        self.taken = 0  # batches

    def may_send(self, now: float) -> bool:
        """Whether a request may start now."""
        return not (self.given_up or self.lease is None) and self.lane.may_send(now)

    def opens_at(self, now: float) -> list[float]:
        """When it can be asked again; nothing if an answer will tell, or never."""
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
    """All servers that turns are sent to.

    Args:
        lease: Gives a share in the client of URL and key ("" for none).
        key: The key for a credential reference and URL; None if it cannot be
            had, "" if none is needed.
        progress: Told of failures.
        tell: Tells the user of trouble, and of its end.
    """

    def __init__(
        self,
        *,
        lease: Callable[[str, str], Lease],
        key: Callable[[str, str], Optional[str]],
        progress: Progress,
        tell: Callable[[str], None],
    ) -> None:
        self._lease = lease
        self._key = key
        self._progress = progress
        self._tell = tell
        self._all: dict[tuple[str, str], Server] = {}
        self._told = False
        self.closing = False

    def get(self, destination: Destination) -> Server:
        """The server of a destination, with a client if there is a key."""
        where = (destination.url, destination.credential)
        server = self._all.get(where)
        if server is None:
            server = Server(where)
            with self._progress:
                self._all[where] = server
        if server.lease is None or server.lane.paused:
            key = self._key(destination.credential, destination.url)
            if key is None:
                if not server.lane.paused:
                    self._pause(server, f"no key for {destination.url} can be found")
            elif server.lease is None or key != server.key:
                if server.lease is not None:
                    server.lease.release()
                server.lease = self._lease(destination.url, key)
                server.key = key
                server.lane.paused = False
                server.lane.backoff.succeeded()
        return server

    def failed(self, server: Server, error: BaseException) -> None:
        """A request failed in a way that may pass."""
        if isinstance(error, Unauthorized):
            self._pause(server, str(error))
            return
        if not isinstance(error, ServerError):
            _logger.error("A request failed unexpectedly", exc_info=error)
        retry_after = error.retry_after if isinstance(error, Unavailable) else None
        if isinstance(error, Starting):
            server.lane.backoff.not_before = time.monotonic() + (retry_after or 1.0)
        else:
            server.lane.backoff.failed(time.monotonic(), retry_after)
        server.given_up = self.closing
        # One failure is nothing to talk about: a restart, a burst.
        if not isinstance(error, Starting) and server.lane.backoff.failures == 2:
            self._say(f"Hindsight cannot be reached; turns wait on disk ({error})")
        # Last, as it lets those go on who wait, perhaps to close.
        self._progress.failed(server.where, str(error) or type(error).__name__)

    def _pause(self, server: Server, why: str) -> None:
        first = not server.lane.paused
        server.lane.paused = True
        server.lane.backoff.not_before = time.monotonic() + _PAUSE
        server.given_up = self.closing
        if first:
            _logger.error("%s. Turns are kept, and sent once the key is right.", why)
            self._say(f"Hindsight does not accept the key; turns are kept on disk ({why})")
        self._progress.failed(server.where, why)

    def succeeded(self, server: Server) -> None:
        """It took a request."""
        server.lane.backoff.succeeded()
        server.lane.paused = False

    def arrived(self) -> None:
        """Nothing given in this process waits any longer."""
        if self._told:
            self._told = False
            self._tell("All turns that waited have arrived at Hindsight")

    def _say(self, text: str) -> None:
        self._told = True
        self._tell(text)

    def hurry(self) -> None:
        """Somebody waits: ask servers in trouble once more, now. Safe from any thread."""
        with self._progress:
            for server in self._all.values():
                if not server.lane.paused:
                    server.lane.backoff.hurry()

    def paused(self, url: str, credential: str) -> bool:
        """Whether it refused the key, so that nothing is sent. Safe from any thread."""
        server = self._all.get((url, credential))
        return server is not None and server.lane.paused

    def release(self, wait: float) -> None:
        """Let go of the clients; their sessions close within ``wait`` seconds."""
        for server in self._all.values():
            if server.lease is not None:
                server.lease.release(wait)
