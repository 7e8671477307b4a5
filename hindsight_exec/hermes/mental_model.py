"""The mental model that goes into the system prompt, fetched once a session.

A mental model is a page that the server writes of what it knows, and keeps up
to date; the user names one with ``mental_model_id``.
"""

from __future__ import annotations

import concurrent.futures
import logging
from typing import TYPE_CHECKING

from hindsight_exec.errors import HindsightExecError, Rejected

from .memories import quoted
from .sessions import ForkSafeLock

if TYPE_CHECKING:
    from hindsight_exec.client.api import HindsightClient

    from .connection import Connection
    from .identity import Identity

__all__ = ["MentalModel"]

logger = logging.getLogger("hindsight_exec")

_WAIT = 2.0  # seconds that the system prompt waits for it
_CHARS = 12_000  # of it that are shown


class MentalModel:
    """What one provider shows of it. Safe from any thread.

    The first answer for a session, also that there is none in time, holds for
    the whole session: the system prompt must not change meanwhile.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = ForkSafeLock()
        self._session = ""
        self._future: concurrent.futures.Future[str] | None = None
        self._text: str | None = None

    def fetch(self, identity: Identity) -> None:
        """Start to fetch it for a session, unless that was done."""
        settings = self._connection.settings
        name, bank = settings.mental_model_id, identity.bank(settings)
        if not name:
            return
        with self._lock:
            if self._session == identity.session:
                return
            self._session, self._text, self._future = identity.session, None, None

        async def work(client: HindsightClient) -> str:
            return await client.mental_model(bank, name)

        try:
            self._future = self._connection.submit(work)
        except (HindsightExecError, RuntimeError) as error:
            logger.debug("the mental model is not fetched: %s", error)

    def text(self, identity: Identity) -> str:
        """What is shown in the session, quoted; "" for nothing. Waits a bounded time for it."""
        self.fetch(identity)
        if self._text is None:
            self._text = self._taken()
        return self._text

    def _taken(self) -> str:
        future = self._future
        if future is None:
            return ""
        try:
            return quoted(future.result(_WAIT), _CHARS)
        except (concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            logger.info("the mental model did not come in time for the system prompt")
        except Rejected as error:
            name = self._connection.settings.mental_model_id
            logger.warning("mental_model_id %r cannot be shown: %s", name, error)
        except Exception as error:
            logger.info("the mental model cannot be fetched: %s", error)
        return ""
