"""The embedded server's queries: documents, recall, and the configuration of banks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Sequence

from .database import first
from .requests import MISSIONS, Refused

if TYPE_CHECKING:
    import sqlite3

#: Number of units that a recall considers, by budget; `max_tokens` limits the answer as well.
CANDIDATES = {"low": 10, "mid": 30, "high": 100}

# English has about four characters to a token; the real server counts with a tokenizer.
_CHARS_PER_TOKEN = 4

_UNITS = "(SELECT count(*) FROM units WHERE document = documents.number) AS unit_count"


class Reader:
    """Queries of a database. Not thread-safe.

    Raises (all methods that name a bank):
        Refused: 404 for an unknown bank or document.
    """

    def __init__(self, sql: sqlite3.Connection) -> None:
        self._sql = sql

    def check(self) -> None:
        """Raise sqlite3.Error if the database does not answer."""
        first(self._sql, "SELECT count(*) FROM banks")

    def document(self, bank: str, document: str) -> dict[str, Any]:
        """Return a document with its text."""
        row = first(
            self._sql,
            f"SELECT *, {_UNITS} FROM documents WHERE bank = ? AND id = ?",  # noqa: S608
            (bank, document),
        )
        if row is None:
            raise Refused(404, "Document not found")
        kinds = {"world": 0, "experience": 0, "observation": 0}
        kinds.update(
            self._sql.execute(
                "SELECT kind, count(*) FROM units WHERE document = ? GROUP BY kind",
                (row["number"],),
            ).fetchall()
        )
        shown = _document(row)
        return {
            **shown,
            "original_text": row["text"],
            "nodes_by_fact_type": kinds,
            "observation_scopes": (shown["retain_params"] or {}).get("observation_scopes"),
        }

    def documents(
        self,
        bank: str,
        *,
        query: str | None,
        tags: Sequence[str],
        tags_match: str,
        limit: int,
        offset: int,
    ) -> dict[str, Any]:
        """Return a page of a bank's documents, the newest first."""
        self._require_bank(bank)
        where, values = _tagged(tags, tags_match)
        folded = (query or "").casefold()
        if folded:
            # LIKE folds ASCII only.
            where += " AND (instr(casefold(id), :folded) OR instr(casefold(text), :folded))"
        values.update(bank=bank, folded=folded, limit=limit, offset=offset)
        source = f"FROM documents WHERE bank = :bank AND {where}"
        total = first(self._sql, f"SELECT count(*) {source}", values)[0]
        rows = self._sql.execute(
            f"SELECT *, {_UNITS}, length(text) AS text_length {source}"
            " ORDER BY updated_at DESC, number DESC LIMIT :limit OFFSET :offset",
            values,
        )
        items = []
        for row in rows:
            places = {"id": row["id"], "original_text": row["text"]}
            matched = [
                name for name, text in places.items() if folded and folded in text.casefold()
            ]
            items.append(
                {**_document(row), "text_length": row["text_length"], "matched_fields": matched}
            )
        page = {"items": items, "total": total, "limit": limit, "offset": offset}
        return {**page, "total_is_estimate": False}

    def recall(
        self,
        bank: str,
        *,
        words: Sequence[str],
        types: Sequence[str],
        tags: Sequence[str],
        tags_match: str,
        budget: str,
        max_tokens: int,
    ) -> list[dict[str, Any]]:
        """Return the units that contain any of the words, the best match (bm25) first.

        This server consolidates nothing, so a unit also counts as an `observation`, where the
        request asks for this type and not for the unit's own.
        """
        self._require_bank(bank)
        where, values = _tagged(tags, tags_match)
        if "observation" not in types:
            where += f" AND units.kind IN ({_names(values, 'type', types)})"
        # Quoted words are text, never operators of the query language.
        values.update(bank=bank, words=" OR ".join(f'"{word}"' for word in words))
        rows = self._sql.execute(
            "SELECT units.*, bm25(words) AS score, documents.id AS document_id, documents.fields"  # noqa: S608
            " FROM words JOIN units ON units.number = words.rowid"
            " JOIN documents ON documents.number = units.document"
            f" WHERE words MATCH :words AND documents.bank = :bank AND {where}"
            " ORDER BY score, units.number DESC LIMIT :limit",
            {**values, "limit": CANDIDATES[budget]},
        )
        results, room = [], max_tokens * _CHARS_PER_TOKEN
        for row in rows:
            if len(row["text"]) > room:
                continue  # a shorter one may still fit
            room -= len(row["text"])
            fields = json.loads(row["fields"])
            results.append(
                {
                    "id": row["id"],
                    "text": row["text"],
                    "type": row["kind"] if row["kind"] in types else "observation",
                    "context": fields["params"].get("context"),
                    "mentioned_at": row["at"],
                    "occurred_start": None,
                    "occurred_end": None,
                    "document_id": row["document_id"],
                    "chunk_id": f"{bank}_{row['document_id']}_{row['position']}",
                    "metadata": fields["params"].get("metadata"),
                    "tags": fields["tags"],
                    "scores": {"final": -row["score"], "keyword": -row["score"]},
                }
            )
        return results

    def config(self, bank: str) -> dict[str, Any]:
        """Return the bank's missions."""
        overrides = json.loads(self._require_bank(bank))
        config = {**dict.fromkeys(MISSIONS), **overrides}
        return {"bank_id": bank, "config": config, "overrides": overrides}

    def _require_bank(self, bank: str) -> str:
        row = first(self._sql, "SELECT config FROM banks WHERE bank = ?", (bank,))
        if row is None:
            raise Refused(404, f"Bank '{bank}' not found")
        config: str = row["config"]
        return config


def _document(row: sqlite3.Row) -> dict[str, Any]:
    fields = json.loads(row["fields"])
    return {
        "id": row["id"],
        "bank_id": row["bank"],
        **{name: row[name] for name in ("content_hash", "created_at", "updated_at")},
        "memory_unit_count": row["unit_count"],
        "tags": fields["tags"],
        "document_metadata": fields["params"].get("metadata"),
        "retain_params": fields["params"] or None,
    }


def _names(values: dict[str, Any], prefix: str, entries: Sequence[str]) -> str:
    """Return names for the entries in a statement, and add the entries to its values."""
    names = [f"{prefix}{number}" for number in range(len(entries))]
    values.update(zip(names, entries))
    return ", ".join(f":{name}" for name in names)


def _tagged(tags: Sequence[str], match: str) -> tuple[str, dict[str, Any]]:
    """Return the condition on a document's tags, and its values."""
    values: dict[str, Any] = {}
    wanted = list(dict.fromkeys(tags))
    if not wanted and match != "exact":
        return "1", values
    of = "(SELECT count(*) FROM tags WHERE document = documents.number"
    some = f"{of} AND tag IN ({_names(values, 'tag', wanted)}))"
    values["wanted"] = len(wanted)
    condition = {
        "any": f"({some} > 0 OR {of}) = 0)",
        "any_strict": f"{some} > 0",
        "all": f"({some} = :wanted OR {of}) = 0)",
        "all_strict": f"{some} = :wanted",
        "exact": f"({some} = :wanted AND {of}) = :wanted)",
    }
    return condition[match], values
