"""What an initialised provider works with: its connection, its recalls, and what it keeps."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .connection import Connection
    from .mental_model import MentalModel
    from .recall import Recall
    from .retention import Retention
    from .sessions import Scope
    from .unprocessed import Unprocessed

__all__ = ["Parts"]


class Parts(NamedTuple):
    """What an initialised provider works with; without retention it is read-only."""

    connection: Connection
    recall: Recall
    mental_model: MentalModel
    unprocessed: Unprocessed
    retention: Retention | None

    def start(self, scope: Scope, query: str, *, waits: bool = False) -> None:
        """Start a recall, also among what the server has not processed yet."""
        kept = self.retention
        self.recall.start(
            scope,
            query,
            kept.until_processed if kept and waits else None,
            partial(self.unprocessed.find, scope.identity) if self.unprocessed.searches else None,
            self.unprocessed.processed_lately(scope.identity),
        )

    def close(self, *, leave_to_others: bool = False) -> None:
        """Close them in the order in which they need each other."""
        self.recall.close()
        if self.retention is not None:
            self.retention.writer.close(leave_to_others=leave_to_others)
        self.connection.close()
