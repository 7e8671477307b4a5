"""The tool that forgets: it shows what it would delete, and deletes what was shown.

A document is what the server deletes, with all memories drawn from it. What was
drawn from several documents stays until the server looks at it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence

from hindsight_exec.errors import Rejected

from .memories import one_line

if TYPE_CHECKING:
    from hindsight_exec.client.api import HindsightClient
    from hindsight_exec.settings.config import Settings

__all__ = ["delete", "plan"]

_DOCUMENTS = 10  # that one plan shows
_SHOWN = 200  # characters of each


async def plan(
    client: HindsightClient, settings: Settings, bank: str, query: str
) -> dict[str, str]:
    """The documents that fit the query best, each with what was recalled of it."""
    try:
        results = await client.recall(
            bank, query, budget=settings.recall_budget, max_tokens=settings.recall_max_tokens
        )
    except Rejected as error:
        if error.status != 404:
            raise
        return {}
    documents: dict[str, str] = {}
    for result in results:
        name = result.get("document_id")
        if isinstance(name, str) and name and len(documents) < _DOCUMENTS:
            documents.setdefault(name, one_line(result["text"])[:_SHOWN])
    return documents


async def delete(client: HindsightClient, bank: str, documents: Sequence[str]) -> int:
    """Delete the documents; how many there were."""
    count = 0
    for document in documents:
        try:
            await client.delete_document(bank, document)
            count += 1
        except Rejected as error:
            if error.status != 404:
                raise
    return count
