"""`hindsight-exec memories`: what a bank holds, and how it is forgotten."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pytest
from serving import documents

from hindsight_exec import HindsightClient
from hindsight_exec.conversation.turns import document_id, document_item, source, turn

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from serving import Serving

    from .running import Cli


@pytest.fixture
def bank(cli: Cli, server: Serving) -> Any:
    """Two sessions in a bank, and the command on it."""
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc).timestamp()
    items = []
    for session in ("one", "two"):
        message = {"role": "user", "content": f"the door of {session} is blue"}
        given = turn([message], given_at=at, index=0)
        where = source(url=server.url, credential="", bank="b", session=session)
        items.append(document_item(where, document_id(session, at, session), [given]))

    async def retain() -> None:
        async with HindsightClient(server.url) as client:
            await client.retain("b", items, asynchronous=False)

    asyncio.run(retain())

    def memories(*arguments: str) -> Any:
        command, *rest = arguments
        return cli("memories", command, *rest, "--url", server.url, "--bank", "b")

    return memories


def test_documents_are_listed(bank: Any, server: Serving) -> None:
    """The list has all documents, or those of a session, with a tag, of a time, with a text."""
    ids = [one["id"] for one in documents(server.url)]
    assert [one["id"] for one in bank("list", "--json").json] == ids
    for filters, count in (
        (["--session", "one"], 1),
        (["--tag", "session:two"], 1),
        (["--session", "one", "--tag", "session:two"], 0),
        (["--since", "2026-01-01", "--until", "2026-02-01"], 2),
        (["--since", "2026-02-01"], 0),
        (["--text", "one/"], 1),
    ):
        assert len(bank("list", "--json", *filters).json) == count, filters
    out = bank("list").out
    assert "2026-01-02" in out
    assert ids[0] in out


def test_a_transcript_without_times(bank: Any, cli: Cli, server: Serving) -> None:
    """Its documents count as said when they were stored."""
    file = cli.folder / "undated.jsonl"
    file.write_text(json.dumps({"role": "user", "content": "the door is red"}) + "\n")
    assert cli("retain", str(file), "--url", server.url, "--bank", "b").status == 0
    (document,) = bank("list", "--json", "--session", "undated").json
    shown = bank("list", "--session", "undated").out
    assert "1970" not in shown
    assert document["id"] in shown
    assert bank("list", "--json", "--until", "1980-01-01").json == []


def test_memories_are_searched(bank: Any) -> None:
    """A search is the server's own recall."""
    done = bank("search", "door", "--session", "two")
    assert "the door of two" in done.out
    assert "the door of one" not in done.out
    assert len(bank("search", "door", "--json").json) == 2
    assert "nothing was found" in bank("search", "elephant").out


def test_documents_are_exported(bank: Any) -> None:
    """An export is a line for each document, with its text, tags and metadata."""
    lines = [json.loads(line) for line in bank("export", "--session", "one").out.splitlines()]
    (document,) = lines
    assert "the door of one is blue" in document["original_text"]
    assert document["tags"] == ["session:one"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_exports_are_json_in_every_encoding(cli: Cli, server: Serving, encoding: str) -> None:
    """What the encoding of stdout lacks is an escape of JSON's own."""
    cli.transcript(1)
    where = ("--url", server.url, "--bank", "b")
    assert cli("retain", "talk.jsonl", *where, "--session", "grüße🎈").status == 0
    done = cli("memories", "export", *where, PYTHONIOENCODING=encoding)
    assert "session:grüße🎈" in done.json["tags"]


def test_what_is_forgotten_is_told_to_scripts(bank: Any, server: Serving) -> None:
    """With --json, the documents and how many were deleted are one JSON object."""
    ids = [one["id"] for one in documents(server.url)]
    arguments = ("forget", "--session", "one", "--json")
    assert bank(*arguments, "--dry-run").json == {"documents": ids[:1], "deleted": 0}
    assert bank(*arguments, "--yes").json == {"documents": ids[:1], "deleted": 1}


def test_documents_are_forgotten(bank: Any, server: Serving) -> None:
    """Forgetting shows first what it would delete, asks, and deletes that only."""
    ids = [one["id"] for one in documents(server.url)]
    shown = bank("forget", "--session", "one", "--dry-run")
    assert ids[0] in shown.out
    assert "1 document would be deleted" in shown.err
    asked = bank("forget", "--session", "one")
    assert (asked.status, "--yes" in asked.err) == (2, True)
    assert len(documents(server.url)) == 2
    assert bank("forget", "--session", "one", "--yes").out.endswith("1 of 1 document deleted\n")
    assert [one["id"] for one in documents(server.url)] == ids[1:]
    assert "no document 'nope'" in bank("forget", "nope", "--yes").err
    assert bank("forget", ids[1], "--yes").status == 0
    assert documents(server.url) == []


def test_everything_is_not_forgotten_by_accident(bank: Any, server: Serving) -> None:
    """Without documents and filters nothing is deleted."""
    done = bank("forget", "--yes")
    assert (done.status, "name documents" in done.err) == (2, True)
    assert len(documents(server.url)) == 2


def test_a_bank_that_is_not_there(cli: Cli, server: Serving) -> None:
    """A bank that nothing was retained in holds nothing, which is no error."""
    for command in (["list"], ["search", "x"], ["export"]):
        done = cli("memories", *command, "--url", server.url, "--bank", "nobody")
        assert done.status == 0, done
