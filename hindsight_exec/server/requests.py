"""Checks the requests of the embedded server as the real server does.

For a wrong request, each function raises `Refused` with the real server's status and `detail`
(FastAPI's list of errors for 422), so a client that works here works there.
"""

from __future__ import annotations

import contextlib
import json
import re
import unicodedata
import uuid
from collections import Counter
from datetime import timezone
from typing import Any, Mapping, Sequence

from hindsight_exec.conversation.times import parse_iso

from .text import sanitize

BUDGETS = ("low", "mid", "high")
TYPES = ("experience", "observation", "world")
TAGS_MATCH = ("any", "all", "any_strict", "all_strict", "exact")
MISSIONS = ("observations_mission", "reflect_mission", "retain_mission")
UPDATE_MODES = ("replace", "append")
SCOPES = ("per_tag", "combined", "all_combinations", "shared")

# Number of words that a recall searches for: an OR of thousands would block the server.
_WORDS = 200

# Hindsight's limit; a longer id would not fit its storage keys.
_BANK_BYTES = 192


class Refused(Exception):  # noqa: N818 - an answer, not an error of this program
    """The response to a wrong request: its HTTP status and `detail`."""

    def __init__(self, status: int, detail: Any) -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail


class _Errors:
    """All errors of a request body, as FastAPI lists them."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    def add(self, kind: str, where: Sequence[str | int], message: str, value: Any) -> None:
        self.found.append({"type": kind, "loc": ["body", *where], "msg": message, "input": value})

    def value(self, where: Sequence[str | int], message: str, value: Any) -> None:
        self.add("value_error", where, f"Value error, {message}", value)

    def missing(self, where: Sequence[str | int], value: Any) -> None:
        self.add("missing", where, "Field required", value)

    def dictionary(self, where: Sequence[str | int], value: Any, kind: str = "dict_type") -> None:
        if not isinstance(value, dict):
            self.add(kind, where, "Input should be a valid dictionary", value)

    def string(self, where: Sequence[str | int], value: Any) -> None:
        if not isinstance(value, str):
            self.add("string_type", where, "Input should be a valid string", value)

    def entries(self, where: Sequence[str | int], value: Any) -> Sequence[Any]:
        """The entries of a list; none of anything else."""
        if isinstance(value, list):
            return value
        self.add("list_type", where, "Input should be a valid list", value)
        return []

    def strings(self, where: Sequence[str | int], value: Any) -> None:
        for index, entry in enumerate(self.entries(where, value)):
            self.string([*where, index], entry)

    def choice(self, where: Sequence[str | int], value: Any, choices: Sequence[str]) -> None:
        if value not in choices:
            *first, last = (repr(choice) for choice in choices)
            self.add("literal_error", where, f"Input should be {', '.join(first)} or {last}", value)

    def refuse(self) -> None:
        if self.found:
            raise Refused(422, self.found)


def body(raw: bytes) -> dict[str, Any]:
    """Return the JSON object of a request, without characters that cannot be stored."""
    errors = _Errors()
    value: Any = None
    try:
        value = json.loads(raw)
    except UnicodeDecodeError:
        raise Refused(400, "There was an error parsing the body") from None
    except (ValueError, RecursionError) as error:
        # A number of 5000 digits and a hundred thousand brackets have no position.
        errors.add("json_invalid", [getattr(error, "pos", 0)], "JSON decode error", {})
    errors.refuse()
    errors.dictionary([], value, "model_attributes_type")
    errors.refuse()
    cleaned: dict[str, Any] = sanitize(value)
    return cleaned


def bank_id(bank: str) -> str:
    """Return the id if a bank may have this name."""
    if len(bank.encode("utf-8", "replace")) > _BANK_BYTES:
        raise Refused(400, f"Bank id is too long: at most {_BANK_BYTES} bytes of UTF-8 are allowed")
    if any(unicodedata.category(character) == "Cc" for character in bank):
        raise Refused(400, "Bank id must not contain control characters")
    if bank.startswith("_"):
        raise Refused(400, "Bank id must not start with '_': that prefix is reserved")
    return bank


def operation_id(text: str) -> str:
    """Return the id of an operation in its canonical form."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise Refused(400, f"Invalid operation_id format: {text}") from None


def retain(request: dict[str, Any]) -> tuple[list[dict[str, Any]], bool, str | None]:
    """Return the items, whether they may be stored later, and the caller's operation id."""
    errors = _Errors()
    entries: Sequence[Any] = []
    if "items" not in request:
        errors.missing(["items"], request)
    else:
        entries = errors.entries(["items"], request["items"])
    items = [_item(entry, index, errors) for index, entry in enumerate(entries)]
    later = request.get("async", False)
    if not isinstance(later, bool):
        errors.add("bool_type", ["async"], "Input should be a valid boolean", later)
    chosen = request.get("operation_id")
    if chosen is not None:
        try:
            chosen = str(uuid.UUID(chosen))
        except (ValueError, AttributeError, TypeError):
            errors.value(["operation_id"], "operation_id must be a valid UUID", chosen)
    errors.refuse()
    for item in items:
        if item["append"] and not item["document_id"]:
            raise Refused(400, "update_mode='append' requires a document_id")
    counts = Counter(item["document_id"] for item in items if item["document_id"])
    twice = [document for document, count in counts.items() if count > 1]
    if later and twice:
        raise Refused(
            400,
            f"Batch contains duplicate document_ids: {twice}. Each content item in an async"
            " batch must have a unique document_id; async=false folds them into one document.",
        )
    # Items without ids make one document; beside named items, each makes its own.
    shared = None if any(item["document_id"] for item in items) else str(uuid.uuid4())
    for item in items:
        item["document_id"] = item["document_id"] or shared or str(uuid.uuid4())
    return items, later, chosen


def _item(entry: Any, index: int, errors: _Errors) -> dict[str, Any]:
    at: list[str | int] = ["items", index]
    errors.dictionary(at, entry, "model_attributes_type")
    entry = entry if isinstance(entry, dict) else {}
    content = entry.get("content")
    if "content" not in entry:
        errors.missing([*at, "content"], entry)
    elif not isinstance(content, str):
        errors.string([*at, "content"], content)
    elif not content.strip():
        errors.value([*at, "content"], "content cannot be empty", content)
    for name in ("context", "document_id"):
        if entry.get(name) is not None:
            errors.string([*at, name], entry[name])
    metadata = entry.get("metadata")
    if isinstance(metadata, dict):
        for key, value in metadata.items():
            errors.string([*at, "metadata", key], value)
    elif metadata is not None:
        errors.dictionary([*at, "metadata"], metadata)
    tags = _tags(entry.get("tags"))
    if tags is not None:
        errors.strings([*at, "tags"], tags)
    mode = entry.get("update_mode")
    if mode is not None:
        errors.choice([*at, "update_mode"], mode, UPDATE_MODES)
    scopes = entry.get("observation_scopes")
    if isinstance(scopes, list):
        for number, scope in enumerate(scopes):
            errors.strings([*at, "observation_scopes", number], scope)
    elif scopes is not None:
        errors.choice([*at, "observation_scopes"], scopes, SCOPES)
    dated = str(entry.get("timestamp")).lower() != "unset"
    date = _event_date(entry.get("timestamp"), [*at, "timestamp"], errors) if dated else None
    params = {"context": entry.get("context"), "event_date": date, "metadata": metadata}
    params["observation_scopes"] = scopes
    return {
        "content": content,
        "document_id": entry.get("document_id"),
        "append": mode == "append",
        "tags": tags or [],
        "dated": dated,
        "params": {name: value for name, value in params.items() if value},
    }


def _tags(value: Any) -> Any:
    """Return tags as a list; some tool bridges send the list as a JSON string."""
    if not isinstance(value, str):
        return value
    parsed = None
    with contextlib.suppress(ValueError, RecursionError):
        parsed = json.loads(value)
    return parsed if isinstance(parsed, list) else [value]


def _event_date(value: Any, at: Sequence[str | int], errors: _Errors) -> str | None:
    """Return the time of the content as ISO 8601 with an offset; None without one."""
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        errors.value(at, f"timestamp must be a string, got {type(value).__name__}", value)
        return None
    try:
        moment = parse_iso(value)
    except ValueError:
        errors.value(at, f"Invalid timestamp format: {value!r}. Expected ISO format", value)
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).isoformat()


def recall(request: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `Store.recall`."""
    errors = _Errors()
    words: list[str] = []
    query = request.get("query")
    if "query" not in request:
        errors.missing(["query"], request)
    elif not isinstance(query, str):
        errors.string(["query"], query)
    else:
        words = list(dict.fromkeys(re.findall(r"[^\W_]+", query)))
        if not words:
            errors.value(["query"], "query must contain at least one word character", query)
    budget = request.get("budget", "mid")
    errors.choice(["budget"], budget, BUDGETS)
    match = request.get("tags_match", "any")
    errors.choice(["tags_match"], match, TAGS_MATCH)
    tokens = request.get("max_tokens", 4096)
    if isinstance(tokens, bool) or not isinstance(tokens, int):
        errors.add("int_type", ["max_tokens"], "Input should be a valid integer", tokens)
    for name in ("types", "tags"):
        if request.get(name) is not None:
            errors.strings([name], request[name])
    errors.refuse()
    types = request.get("types") or list(TYPES)
    unknown = sorted(set(types) - set(TYPES))
    if unknown:
        raise Refused(
            422, f"Invalid fact type(s): {', '.join(unknown)}. Must be one of: {', '.join(TYPES)}"
        )
    return {
        "words": words[:_WORDS],
        "types": types,
        "tags": request.get("tags") or [],
        "tags_match": match,
        "budget": budget,
        "max_tokens": tokens,
    }


def missions(request: dict[str, Any]) -> dict[str, str | None]:
    """Return the part of a bank's configuration that this server stores: its missions."""
    errors = _Errors()
    updates: Any = request.get("updates")
    errors.dictionary(["updates"], updates)
    errors.refuse()
    unknown = sorted(set(updates) - set(MISSIONS))
    if unknown:
        raise Refused(
            400, f"Unknown configuration fields: {unknown}. This server keeps {list(MISSIONS)}."
        )
    for name, mission in updates.items():
        if mission is not None:
            errors.string(["updates", name], mission)
    errors.refuse()
    return dict(updates)


def count(query: Mapping[str, str], name: str, default: int) -> int:
    """Return a number of 0 or more from a query string."""
    text = query.get(name)
    if text is None:
        return default
    kind, message = "int_parsing", "Input should be a valid integer"
    if re.fullmatch("-?[0-9]{1,18}", text):
        if int(text) >= 0:
            return int(text)
        kind, message = "greater_than_equal", "Input should be greater than or equal to 0"
    raise Refused(422, [{"type": kind, "loc": ["query", name], "msg": message, "input": text}])
