"""What the embedded server keeps: banks, operations, documents and their units.

Durable before it is acknowledged: an accepted operation carries its items and is committed before
its answer, and the documents it writes and its status `completed` are ONE transaction. So a server
that was killed runs what was pending once, and never twice.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import uuid
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Mapping, Sequence

from .database import first, open_database, transaction
from .requests import MISSIONS, Refused
from .text import join_parts, units

if TYPE_CHECKING:
    from pathlib import Path

#: Units a recall looks at, by budget; `max_tokens` cuts the answer as well.
CANDIDATES = {"low": 10, "mid": 30, "high": 100}

# English text has about four characters to a token; the real server counts with a tokenizer.
_CHARS_PER_TOKEN = 4

_UNITS = "(SELECT count(*) FROM units WHERE document = documents.number) AS unit_count"


class Store:
    """Banks, documents and operations. Not thread-safe: made, used and closed on one thread.

    Raises:
        ConfigError: The file cannot be opened, or another server uses it.
    """

    def __init__(self, database: Path | None) -> None:
        self._sql = open_database(database)

    def close(self) -> None:
        self._sql.close()

    def check(self) -> None:
        """Raises sqlite3.Error when the database does not answer."""
        first(self._sql, "SELECT count(*) FROM banks")

    # -- retain -----------------------------------------------------------------------------------

    def accept(self, bank: str, items: list[dict[str, Any]], chosen: str | None) -> tuple[str, int]:
        """Keep the items as a pending operation; its id and count.

        An id that the caller chose before gives its first answer, and nothing is done.

        Raises:
            Refused: 409 for another bank's operation.
        """
        with transaction(self._sql):
            if chosen is not None:
                row = first(self._sql, "SELECT bank, count FROM operations WHERE id = ?", (chosen,))
                if row is not None:
                    if row["bank"] != bank:
                        raise Refused(409, f"operation_id {chosen} is already in use")
                    return chosen, row["count"]
            operation, now = chosen or str(uuid.uuid4()), _now()
            self._make_bank(bank)
            self._sql.execute(
                "INSERT INTO operations (id, bank, status, count, items, created_at, updated_at)"
                " VALUES (?, ?, 'pending', ?, ?, ?, ?)",
                (operation, bank, len(items), _text(items), now, now),
            )
            return operation, len(items)

    def retain(self, bank: str, items: list[dict[str, Any]]) -> None:
        """Store the items before this returns."""
        with transaction(self._sql):
            self._make_bank(bank)
            self._write(bank, items)

    def run_pending(self, limit: int = 50) -> int:
        """Run the oldest pending operations, in their order; how many were run."""
        with transaction(self._sql):
            rows = self._sql.execute(
                "SELECT number, bank, items FROM operations WHERE status = 'pending'"
                " ORDER BY number LIMIT ?",
                (limit,),
            ).fetchall()
            for row in rows:
                self._sql.execute("SAVEPOINT operation")
                try:
                    self._write(row["bank"], json.loads(row["items"]))
                except sqlite3.OperationalError:
                    raise  # a full disk, not this operation: all of them stay pending
                except Exception as error:
                    self._sql.execute("ROLLBACK TO operation")
                    self._end(row["number"], "failed", str(error))
                else:
                    self._end(row["number"], "completed", None)
                self._sql.execute("RELEASE operation")
        return len(rows)

    def _end(self, number: int, status: str, error: str | None) -> None:
        # A completed operation's items stand in its documents; a failed one's wait for its retry.
        now = _now()
        self._sql.execute(
            "UPDATE operations SET status = ?, error = ?, updated_at = ?, completed_at = ?,"
            " items = CASE ? WHEN 'failed' THEN items END WHERE number = ?",
            (status, error, now, now, status, number),
        )

    def _make_bank(self, bank: str) -> None:
        self._sql.execute("INSERT OR IGNORE INTO banks (bank) VALUES (?)", (bank,))

    def _write(self, bank: str, items: list[dict[str, Any]]) -> None:
        documents: dict[str, list[dict[str, Any]]] = {}
        for item in items:
            documents.setdefault(item["document_id"], []).append(item)
        written = [self._write_document(bank, name, parts) for name, parts in documents.items()]
        # All at once: FTS5 writes its index down at the end of each statement (45 µs a unit, so 6).
        self._sql.execute(
            "INSERT INTO words (rowid, text) SELECT number, text FROM units"
            " WHERE document IN (SELECT value FROM json_each(?))",
            (json.dumps(written),),
        )

    def _write_document(self, bank: str, document: str, parts: list[dict[str, Any]]) -> int | None:
        old = first(
            self._sql,
            "SELECT number, text, fields FROM documents WHERE bank = ? AND id = ?",
            (bank, document),
        )
        text = join_parts([part["content"] for part in parts])
        if old is not None and any(part["append"] for part in parts):
            text = join_parts([old["text"], text])
        tags = list(dict.fromkeys(tag for part in parts for tag in part["tags"]))
        # The time of sending is no part of it: what is sent again changes nothing.
        fields = _text({"tags": tags, "params": parts[0]["params"]})
        if old is not None and (old["text"], old["fields"]) == (text, fields):
            return None
        digest, now = hashlib.sha256(text.encode()).hexdigest(), _now()
        if old is None:
            number = self._sql.execute(
                "INSERT INTO documents (bank, id, text, content_hash, fields, created_at,"
                " updated_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (bank, document, text, digest, fields, now, now),
            ).lastrowid
        else:
            number = old["number"]
            self._sql.execute(
                "UPDATE documents SET text = ?, content_hash = ?, fields = ?, updated_at = ?"
                " WHERE number = ?",
                (text, digest, fields, now, number),
            )
            self._sql.execute("DELETE FROM tags WHERE document = ?", (number,))
            self._sql.execute("DELETE FROM units WHERE document = ?", (number,))
        self._sql.executemany(
            "INSERT INTO tags (document, tag) VALUES (?, ?)",
            [(number, tag) for tag in tags],
        )
        at = parts[0]["params"].get("event_date") or (now if parts[0]["dated"] else None)
        self._sql.executemany(
            "INSERT INTO units (document, position, id, kind, text, at) VALUES (?, ?, ?, ?, ?, ?)",
            [
                (number, position, str(uuid.uuid4()), unit.kind, unit.text, unit.at or at)
                for position, unit in enumerate(units(text))
            ],
        )
        return number

    # -- operations -------------------------------------------------------------------------------

    def operation(self, bank: str, operation: str) -> dict[str, Any]:
        """The operation as the API shows it; an unknown one has the status `not_found`."""
        row = first(
            self._sql, "SELECT * FROM operations WHERE id = ? AND bank = ?", (operation, bank)
        )
        kind = "batch_retain" if row else None
        return {
            "operation_id": operation,
            "id": operation,
            "status": row["status"] if row else "not_found",
            "operation_type": kind,
            "task_type": kind,
            "created_at": row["created_at"] if row else None,
            "updated_at": row["updated_at"] if row else None,
            "completed_at": row["completed_at"] if row else None,
            "error_message": row["error"] if row else None,
            "retry_count": row["retries"] if row else None,
            "result_metadata": {"items_count": row["count"]} if row else None,
        }

    def retry(self, bank: str, operation: str) -> None:
        """Make a failed operation pending again.

        Raises:
            Refused: 404 for an unknown one, 409 for one that has not failed.
        """
        with transaction(self._sql):
            row = first(
                self._sql,
                "SELECT number, status FROM operations WHERE id = ? AND bank = ?",
                (operation, bank),
            )
            if row is None:
                raise Refused(404, f"Operation {operation} not found for bank {bank}")
            if row["status"] != "failed":
                raise Refused(
                    409,
                    f"Operation {operation} cannot be retried: status is '{row['status']}',"
                    " expected 'failed'",
                )
            self._sql.execute(
                "UPDATE operations SET status = 'pending', error = NULL, completed_at = NULL,"
                " retries = retries + 1, updated_at = ? WHERE number = ?",
                (_now(), row["number"]),
            )

    # -- documents --------------------------------------------------------------------------------

    def document(self, bank: str, document: str) -> dict[str, Any]:
        """One document with its text.

        Raises:
            Refused: 404.
        """
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
        """One page of a bank's documents, the newest first.

        Raises:
            Refused: 404 for an unknown bank.
        """
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
        return {
            "items": items,
            "total": total,
            "limit": limit,
            "offset": offset,
            "total_is_estimate": False,
        }

    def delete_document(self, bank: str, document: str) -> int:
        """Delete the document and its units; how many units it had.

        Raises:
            Refused: 404.
        """
        with transaction(self._sql):
            count: int = self.document(bank, document)["memory_unit_count"]
            self._sql.execute("DELETE FROM documents WHERE bank = ? AND id = ?", (bank, document))
        return count

    # -- recall -----------------------------------------------------------------------------------

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
        """The units that hold any of the words, the best match (bm25) first.

        Nothing is consolidated here, so each unit answers as an `observation` too, where that is
        asked for and its own type is not.

        Raises:
            Refused: 404 for an unknown bank.
        """
        self._require_bank(bank)
        where, values = _tagged(tags, tags_match)
        if "observation" not in types:
            where += f" AND units.kind IN ({_names(values, 'type', types)})"
        # Words in quotes are text, never operators of the query language.
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

    # -- banks ------------------------------------------------------------------------------------

    def config(self, bank: str) -> dict[str, Any]:
        """The bank's missions.

        Raises:
            Refused: 404 for an unknown bank.
        """
        overrides = json.loads(self._require_bank(bank))
        config = {**dict.fromkeys(MISSIONS), **overrides}
        return {"bank_id": bank, "config": config, "overrides": overrides}

    def update_config(self, bank: str, updates: Mapping[str, str | None]) -> dict[str, Any]:
        """Set missions of the bank, None removes one; the bank is made if need be."""
        with transaction(self._sql):
            self._make_bank(bank)
            merged = {**self.config(bank)["overrides"], **updates}
            kept = {name: mission for name, mission in merged.items() if mission is not None}
            self._sql.execute("UPDATE banks SET config = ? WHERE bank = ?", (_text(kept), bank))
        return self.config(bank)

    def _require_bank(self, bank: str) -> str:
        row = first(self._sql, "SELECT config FROM banks WHERE bank = ?", (bank,))
        if row is None:
            raise Refused(404, f"Bank '{bank}' not found")
        config: str = row["config"]
        return config


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _document(row: sqlite3.Row) -> dict[str, Any]:
    fields = json.loads(row["fields"])
    return {
        "id": row["id"],
        "bank_id": row["bank"],
        "content_hash": row["content_hash"],
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
        "memory_unit_count": row["unit_count"],
        "tags": fields["tags"],
        "document_metadata": fields["params"].get("metadata"),
        "retain_params": fields["params"] or None,
    }


def _names(values: dict[str, Any], prefix: str, entries: Sequence[str]) -> str:
    """Names for the entries in a statement; the entries are added to its values."""
    names = [f"{prefix}{number}" for number in range(len(entries))]
    values.update(zip(names, entries))
    return ", ".join(f":{name}" for name in names)


def _tagged(tags: Sequence[str], match: str) -> tuple[str, dict[str, Any]]:
    """The condition on a document's tags, and its values."""
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
