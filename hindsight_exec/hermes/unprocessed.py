"""Read your own writes: what a recall adds of turns that the server has not processed yet."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING

from hindsight_exec.conversation.turns import Destination, identifier
from hindsight_exec.delivery.unprocessed import processed_lately, search_unprocessed
from hindsight_exec.outbox.search import Query, terms

from .memories import Memory, one_line, topic_words

if TYPE_CHECKING:
    from pathlib import Path

    from hindsight_exec.conversation.turns import Source
    from hindsight_exec.settings.config import Settings

    from .identity import Identity

__all__ = ["Unprocessed"]

_SHOWN = 5  # passages that the server has not processed


class Unprocessed:
    """Searches a state directory, also for a provider that writes nothing. Safe from any thread."""

    def __init__(self, settings: Settings, folder: Path | None) -> None:
        self._settings = settings
        self._folder = folder if settings.recall_unprocessed else None

    @property
    def searches(self) -> bool:
        return self._folder is not None

    def find(self, identity: Identity, query: str) -> list[Memory]:
        """What other sessions said of this that the server has not processed yet.

        It reads the disk, for a bounded time, and finds what any process gave
        that uses the same state directory, server, key and bank.
        """
        settings, bank = self._settings, identity.bank(self._settings)
        words = terms(topic_words(query))
        if self._folder is None or not words:
            return []
        destination = Destination(settings.api_url, settings.credential, bank)
        session = identifier(identity.session)
        looked_for = Query(destination, session, words, self._is_visible)
        memories = []
        for one in search_unprocessed(self._folder, looked_for)[:_SHOWN]:
            at = settings.localise(datetime.fromtimestamp(one.given_at, timezone.utc))
            mark = f" (said at {at:%Y-%m-%d %H:%M}, not yet processed)"
            memories.append(Memory(one_line(one.text), mark, one.document_id))
        return memories

    def processed_lately(self, identity: Identity) -> set[str]:
        """Documents of other sessions that the server may have made no observations of yet."""
        if self._folder is None:
            return set()
        own = identifier(identity.session) + "/"
        return {name for name in processed_lately(self._folder) if not name.startswith(own)}

    def _is_visible(self, source: Source) -> bool:
        """Whether ``recall_tags`` let a recall see it."""
        wanted, has = set(self._settings.recall_tags), set(source.tags)
        match = self._settings.recall_tags_match
        if match == "exact":
            return has == wanted
        if not wanted:
            return True
        return wanted <= has if match.startswith("all") else bool(wanted & has)
