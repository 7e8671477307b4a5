"""What of a session is stored already, whichever process gave it.

A provider remembers what it was given itself. In a session that was resumed, an
earlier process was given the rest.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import logging
from typing import TYPE_CHECKING

from hindsight_exec.conversation.turns import Destination, identifier, session_tag
from hindsight_exec.delivery.unprocessed import unprocessed_contents
from hindsight_exec.errors import HindsightExecError

if TYPE_CHECKING:
    from pathlib import Path

    from hindsight_exec.client.api import HindsightClient

    from .connection import Connection

__all__ = ["stored_contents"]

logger = logging.getLogger("hindsight_exec")

_WAIT = 5.0  # seconds for the server: Hermes waits before it compresses
_AT_ONCE = 16


def stored_contents(connection: Connection, folder: Path, bank: str, session: str) -> set[str]:
    """The contents of the session's messages on disk and on the server, as far as they are found."""
    settings, session = connection.settings, identifier(session)
    destination = Destination(settings.api_url, settings.credential, bank)
    # The disk first: what leaves it meanwhile is on the server.
    found = unprocessed_contents(folder, destination, session)
    try:
        asked = connection.submit(lambda client: _on_server(client, bank, session))
        try:
            found |= asked.result(_WAIT)
        finally:
            asked.cancel()
    except (HindsightExecError, RuntimeError, concurrent.futures.TimeoutError) as error:
        logger.info("what the server has of session %s is not known: %s", session, error)
    except concurrent.futures.CancelledError:
        logger.debug("shut down while the server was asked")
    return found


async def _on_server(client: HindsightClient, bank: str, session: str) -> set[str]:
    from hindsight_exec.client.api import all_documents  # noqa: PLC0415 - the client brings it

    listed = await all_documents(client, bank, tags=[session_tag(session)])
    names = [item["id"] for item in listed]
    found: set[str] = set()
    for start in range(0, len(names), _AT_ONCE):
        some = names[start : start + _AT_ONCE]
        for document in await asyncio.gather(*(client.document(bank, name) for name in some)):
            found.update(_contents(document.get("original_text") or ""))
    return found


def _contents(text: str) -> list[str]:
    """What the messages of a document say; the bundled provider nests them by turns."""
    try:
        entries = json.loads(text)
        flat = [one for entry in entries for one in (entry if isinstance(entry, list) else [entry])]
        return [str(message["content"]) for message in flat]
    except (ValueError, TypeError, KeyError, RecursionError):
        return [text]
