"""`hindsight-exec memories`: list, search, export and forget what a bank holds."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any, Awaitable, Callable

from hindsight_exec.client.api import all_documents
from hindsight_exec.conversation.times import parse_iso
from hindsight_exec.conversation.turns import identifier, session_tag
from hindsight_exec.errors import ConfigError, Rejected
from hindsight_exec.hermes.forget import delete

from .connection import ask, probe
from .console import OK, UNDONE, agreed, counted, note, one_line, plain, say, say_json, table
from .targets import chosen_settings, folder

if TYPE_CHECKING:
    import argparse

    from hindsight_exec.client.api import HindsightClient
    from hindsight_exec.settings.config import Settings

# Documents that are fetched at once.
_AT_ONCE = 16


def show(args: argparse.Namespace) -> int:
    """`memories list`."""
    documents = _documents(_settings(args), args)
    if args.json:
        say_json(documents)
    elif documents:
        rows = [
            (
                one["id"],
                f"{_said_at(one):%Y-%m-%d %H:%M}",
                str(one.get("text_length") or ""),
                str(one.get("memory_unit_count", "")),
                ", ".join(map(str, one.get("tags") or [])),
            )
            for one in documents
        ]
        table([("document", "said", "characters", "memories", "tags"), *rows], right=[2, 3])
    else:
        say("no documents")
    return OK


def search(args: argparse.Namespace) -> int:
    """`memories search`."""
    settings = _settings(args)
    tags = _tags(args)

    async def recall(client: HindsightClient) -> list[dict[str, Any]]:
        match = "all_strict" if tags else None
        return await client.recall(
            settings.bank_id, args.query, tags=tags or None, tags_match=match
        )

    found = _ask(settings, recall)
    if args.json:
        say_json(found)
    else:
        for memory in found:
            say(one_line(memory["text"]))
            say(f"    {memory.get('type') or ''}  {plain(str(memory.get('document_id') or ''))}")
        if not found:
            say("nothing was found")
    return OK


def export(args: argparse.Namespace) -> int:
    """`memories export`: one JSON object a line, which holds the document's text, tags and metadata."""
    settings = _settings(args)
    names = [one["id"] for one in _documents(settings, args)]

    async def fetch(
        client: HindsightClient, some: list[str]
    ) -> list[dict[str, Any] | BaseException]:
        documents = (client.document(settings.bank_id, name) for name in some)
        return list(await asyncio.gather(*documents, return_exceptions=True))

    for first in range(0, len(names), _AT_ONCE):
        for document in ask(settings, partial(fetch, some=names[first : first + _AT_ONCE])):
            if isinstance(document, Rejected) and document.status == 404:
                continue  # somebody deleted it meanwhile
            if isinstance(document, BaseException):
                raise document
            say_json(document, indent=None)
    note(f"{counted(len(names), 'document')} exported")
    return OK


def forget(args: argparse.Namespace) -> int:
    """`memories forget`: show what would be deleted, ask, and delete it."""
    settings = _settings(args)
    if not (args.document or _tags(args) or args.text or args.since or args.until):
        raise ConfigError("name documents, or a filter: --session, --tag, --text, --since, --until")
    documents = _documents(settings, args)
    if args.document:
        there = {one["id"] for one in documents}
        for missing in sorted(set(args.document) - there):
            note(f"no document {missing!r}; run 'memories list' to see the ids")
        documents = [one for one in documents if one["id"] in args.document]
    names = [one["id"] for one in documents]
    for one in [] if args.json else documents:
        say(f"{plain(one['id'])}  {_said_at(one):%Y-%m-%d %H:%M}")
    if args.dry_run or not documents:
        if args.json:
            say_json({"documents": names, "deleted": 0})
        note(f"{counted(len(documents), 'document')} would be deleted")
        return OK
    question = f"Delete {counted(len(documents), 'document')} and all memories drawn from them?"
    unasked = "nothing was deleted; use --yes to delete without asking"
    if not agreed(question, yes=args.yes, unasked=unasked):
        return UNDONE
    count = ask(settings, lambda client: delete(client, settings.bank_id, names))
    if args.json:
        say_json({"documents": names, "deleted": count})
    else:
        say(f"{count} of {counted(len(names), 'document')} deleted")
    return OK


def _settings(args: argparse.Namespace) -> Settings:
    settings = chosen_settings(folder(args.state), args.url, args.api_key, args.bank)
    if settings is None:
        raise ConfigError("no server is configured; set HINDSIGHT_API_URL or give --url")
    probe(settings, settings.timeout)
    return settings


def _tags(args: argparse.Namespace) -> list[str]:
    sessions = [session_tag(args.session)] if args.session else []
    return [*sessions, *map(identifier, args.tag or ())]


def _ask(
    settings: Settings, call: Callable[[HindsightClient], Awaitable[list[dict[str, Any]]]]
) -> list[dict[str, Any]]:
    """What the server lists; nothing where there is no such bank."""
    try:
        return ask(settings, call)
    except Rejected as error:
        if error.status != 404:
            raise
        return []


def _documents(settings: Settings, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The bank's documents that the filters let through, the oldest first."""
    tags = _tags(args)

    match = "all_strict" if tags else None
    filters = {"query": args.text, "tags": tags, "tags_match": match}
    found = _ask(settings, lambda client: all_documents(client, settings.bank_id, **filters))
    since, until = args.since or 0.0, args.until or float("inf")
    chosen = [one for one in found if since <= _said_at(one).timestamp() < until]
    return sorted(chosen, key=lambda one: (_said_at(one), one["id"]))


def _said_at(document: dict[str, Any]) -> datetime:
    """When its first turn was given, which our ids tell; else when the server stored it."""
    at = datetime.fromtimestamp(0, timezone.utc)
    with contextlib.suppress(ValueError, OverflowError, OSError):
        at = parse_iso(str(document.get("created_at"))).astimezone()
    with contextlib.suppress(ValueError, OverflowError, OSError):
        name = uuid.UUID(document["id"].rpartition("/")[2])
        if name.version == 7 and name.int >> 80:  # 0 is a transcript's without timestamps
            at = datetime.fromtimestamp((name.int >> 80) / 1000, timezone.utc).astimezone()
    return at
