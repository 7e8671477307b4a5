"""The embedded server's changes: banks, operations, documents and their units.

An operation is committed, with its items, before the server acknowledges it. Its documents and its
status `completed` are ONE transaction. So a killed server runs pending operations once, never twice.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import uuid
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Mapping

from .database import first, open_database, transaction
from .reader import Reader
from .requests import Refused
from .text import join_parts, units

if TYPE_CHECKING:
    from pathlib import Path


class Store(Reader):
    """Banks, documents and operations. Not thread-safe: create, use and close it on one thread.

    Raises:
        ConfigError: The file cannot be opened, or another server uses it.
    """

    def __init__(self, database: Path | None) -> None:
        super().__init__(open_database(database))

    def close(self) -> None:
        self._sql.close()

    # -- retain -----------------------------------------------------------------------------------

    def accept(self, bank: str, items: list[dict[str, Any]], chosen: str | None) -> tuple[str, int]:
        """Store the items as a pending operation; return its id and the number of items.

        A repeated id of the caller's returns the first answer and changes nothing.

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
        """Run the oldest pending operations in their order; return how many."""
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
                    raise  # a full disk, for example: all operations stay pending
                except Exception as error:
                    self._sql.execute("ROLLBACK TO operation")
                    self._end(row["number"], "failed", str(error))
                else:
                    self._end(row["number"], "completed", None)
                self._sql.execute("RELEASE operation")
        return len(rows)

    def _end(self, number: int, status: str, error: str | None) -> None:
        # The documents hold a completed operation's items; a failed one's wait for its retry.
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
        # In one statement: FTS5 writes its index at the end of each (6 µs a unit instead of 45).
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
        # Without the time of sending, so that a resend changes nothing.
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
        """Return the operation as the API shows it; an unknown one has the status `not_found`."""
        row = first(
            self._sql, "SELECT * FROM operations WHERE id = ? AND bank = ?", (operation, bank)
        )
        kind = "batch_retain" if row else None
        known = dict(row) if row else {"status": "not_found"}
        return {
            "operation_id": operation,
            "id": operation,
            "status": known["status"],
            "operation_type": kind,
            "task_type": kind,
            **{name: known.get(name) for name in ("created_at", "updated_at", "completed_at")},
            "error_message": known.get("error"),
            "retry_count": known.get("retries"),
            "result_metadata": {"items_count": known["count"]} if row else None,
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

    # -- documents and banks ------------------------------------------------------------

    def delete_document(self, bank: str, document: str) -> int:
        """Delete the document and its units; return how many units it had."""
        with transaction(self._sql):
            count: int = self.document(bank, document)["memory_unit_count"]
            self._sql.execute("DELETE FROM documents WHERE bank = ? AND id = ?", (bank, document))
        return count

    def update_config(self, bank: str, updates: Mapping[str, str | None]) -> dict[str, Any]:
        """Set missions of the bank, which is created if necessary; None removes a mission."""
        with transaction(self._sql):
            self._make_bank(bank)
            merged = {**self.config(bank)["overrides"], **updates}
            kept = {name: mission for name, mission in merged.items() if mission is not None}
            self._sql.execute("UPDATE banks SET config = ? WHERE bank = ?", (_text(kept), bank))
        return self.config(bank)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
