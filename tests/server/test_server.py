"""The embedded server, over real sockets: the same answers as Hindsight 1.1.0 gives."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import json
import os
import random
import socket
import sqlite3
import stat
import sys
import threading
import uuid
from typing import TYPE_CHECKING, Any, Iterator, NamedTuple
from urllib.parse import quote, urlsplit

import pytest
from serving import Serving, ServingProcess

from hindsight_exec.errors import ConfigError
from hindsight_exec.server import EmbeddedServer
from hindsight_exec.server.text import UNIT_CHARS, Unit, join_parts, sanitize, units

if TYPE_CHECKING:
    from pathlib import Path


class Answer(NamedTuple):
    status: int
    body: Any


class Api:
    """One connection to a server; the bank is `b` unless a path says otherwise."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = url
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def call(self, method: str, path: str, body: Any = None) -> Answer:
        if not path.startswith("/"):
            path = f"/v1/default/banks/{path}"
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        self._connection.request(method, path, raw, self._headers)
        response = self._connection.getresponse()
        return Answer(response.status, json.loads(response.read()))

    def get(self, path: str) -> Answer:
        return self.call("GET", path)

    def post(self, path: str, body: Any = None) -> Answer:
        return self.call("POST", path, body)

    def retain(self, *items: dict[str, Any], bank: str = "b", **more: Any) -> Answer:
        return self.post(f"{bank}/memories", {"items": list(items), **more})

    def recall(self, query: str, **more: Any) -> list[dict[str, Any]]:
        answer = self.post("b/memories/recall", {"query": query, **more})
        assert answer.status == 200, answer
        return answer.body["results"]

    def text(self, document: str) -> str:
        answer = self.get(f"b/documents/{quote(document, safe='')}")
        assert answer.status == 200, answer
        return answer.body["original_text"]

    def ids(self, query: str = "") -> list[str]:
        return [item["id"] for item in self.get(f"b/documents?{query}").body["items"]]

    def completed(self, operation: str) -> dict[str, Any]:
        """The operation once it is neither pending nor being worked on."""
        while True:
            answer = self.get(f"b/operations/{operation}").body
            if answer["status"] != "pending":
                return answer

    def close(self) -> None:
        self._connection.close()


@contextlib.contextmanager
def serving(data: Path | None = None, **options: Any) -> Iterator[Api]:
    """A connection to an embedded server."""
    server = Serving(data, **options)
    try:
        with contextlib.closing(Api(server.url, options.get("api_key"))) as api:
            yield api
    finally:
        server.close()


def start(data: Path | None = None, **options: Any) -> None:
    """Start a server that is to fail."""
    asyncio.run(EmbeddedServer(data, **options).start())


@pytest.fixture
def api() -> Iterator[Api]:
    with serving() as served:
        yield served


def item(text: str, document: str | None = None, **more: Any) -> dict[str, Any]:
    return {"content": text, **({"document_id": document} if document else {}), **more}


def conversation(*texts: str) -> str:
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    return json.dumps(messages, ensure_ascii=False)


# -- version and health ---------------------------------------------------------------------------


def test_version_says_that_it_is_not_the_memory_engine(api: Api) -> None:
    """/version gives Hindsight's version and says plainly what this server is not."""
    body = api.get("/version").body
    assert body["api_version"] == "1.1.0"
    assert body["features"]["embedded"] is True
    assert body["features"]["memory_engine"] is False
    assert "not the Hindsight memory engine" in body["notice"]
    assert api.get("/v1/version").body == body


def test_health(api: Api) -> None:
    """/health is healthy while the database answers."""
    assert api.get("/health") == (200, {"status": "healthy", "database": "connected"})
    assert api.get("/health/live").status == 200


def test_an_unknown_path_and_method_answer_json(api: Api) -> None:
    """404 and 405 carry a detail, as FastAPI's do."""
    assert api.get("/none") == (404, {"detail": "Not Found"})
    assert api.call("PUT", "/version") == (405, {"detail": "Method Not Allowed"})


def test_the_key_is_asked_for_everywhere_but_at_version_and_health() -> None:
    """Without the key or with a wrong one a request is 401; /version and /health stay open."""
    with serving(api_key="sesame") as api:
        assert api.retain(item("x")).status == 200
        url = f"http://127.0.0.1:{api._connection.port}"
        for key in (None, "wrong", "sesam\u00e9".encode().decode("latin-1")):
            with contextlib.closing(Api(url, key)) as stranger:
                refused = stranger.retain(item("y"))
                assert refused == (401, {"detail": "Invalid API key"})
                assert stranger.get("b/documents").status == 401
                assert stranger.get("/version").status == 200
                assert stranger.get("/health").status == 200


# -- retain ---------------------------------------------------------------------------------------


def test_a_sync_retain_is_stored_when_it_answers(api: Api) -> None:
    """A sync retain makes the bank and stores the text, its hash, tags and metadata."""
    given = item(
        "grüße 🎈",
        "s/1",
        tags=["session:s"],
        metadata={"k": "v"},
        context="chat",
        timestamp="2026-01-02T03:04:05.25Z",
        observation_scopes="shared",
    )
    answer = api.retain(given)
    assert answer.status == 200
    assert (answer.body["async"], answer.body["items_count"]) == (False, 1)
    document = api.get("b/documents/s/1").body
    assert document["original_text"] == "grüße 🎈"
    assert document["content_hash"] == hashlib.sha256("grüße 🎈".encode()).hexdigest()
    assert document["tags"] == ["session:s"]
    assert document["document_metadata"] == {"k": "v"}
    assert document["observation_scopes"] == "shared"
    assert document["retain_params"]["event_date"] == "2026-01-02T03:04:05.250000+00:00"
    assert document["memory_unit_count"] == 1


def test_an_async_retain_is_stored_once_its_operation_has_completed(api: Api) -> None:
    """An async retain answers with an operation that can be polled until it has completed."""
    answer = api.retain(item("one", "1"), item("two", "2"), **{"async": True}).body
    assert answer["async"] is True
    operation = api.completed(answer["operation_id"])
    assert operation["status"] == "completed"
    assert operation["completed_at"]
    assert operation["result_metadata"] == {"items_count": 2}
    assert (api.text("1"), api.text("2")) == ("one", "two")


def test_an_operation_id_gives_its_first_answer_and_does_nothing_again(api: Api) -> None:
    """The same operation id again, in any spelling, is answered alike and stores nothing."""
    chosen = uuid.uuid4()
    first = api.retain(item("one", "1"), **{"async": True}, operation_id=str(chosen))
    assert first.body["operation_id"] == str(chosen)
    again = api.retain(item("other", "2"), **{"async": True}, operation_id=chosen.hex.upper())
    assert again == first
    assert api.completed(str(chosen))["status"] == "completed"
    assert api.ids() == ["1"]


def test_another_banks_operation_id_is_a_conflict(api: Api) -> None:
    """An operation id belongs to one bank: elsewhere it is 409."""
    chosen = str(uuid.uuid4())
    assert api.retain(item("x"), **{"async": True}, operation_id=chosen).status == 200
    answer = api.retain(item("x"), bank="c", **{"async": True}, operation_id=chosen)
    assert answer == (409, {"detail": f"operation_id {chosen} is already in use"})
    assert api.get(f"c/operations/{chosen}").body["status"] == "not_found"


def test_a_sync_retain_ignores_the_operation_id(api: Api) -> None:
    """Sync retains of one operation id are each carried out."""
    chosen = str(uuid.uuid4())
    api.retain(item("one", "1"), operation_id=chosen)
    api.retain(item("two", "2"), operation_id=chosen)
    assert sorted(api.ids()) == ["1", "2"]


def test_replace_is_the_default_and_idempotent(api: Api) -> None:
    """A document sent again unchanged changes nothing; with another text it is replaced."""
    api.retain(item("one", "1", tags=["a"]))
    before = api.get("b/documents/1").body
    api.retain(item("one", "1", tags=["a"]))
    assert api.get("b/documents/1").body == before
    api.retain(item("two", "1", tags=["b"]))
    after = api.get("b/documents/1").body
    assert (after["original_text"], after["tags"]) == ("two", ["b"])
    assert after["created_at"] == before["created_at"]
    assert api.recall("one") == []


def test_append_joins_texts_by_lines_and_json_lists_to_one(api: Api) -> None:
    """Appended texts are lines; where all parts are lists of messages, one list; tags are the last's."""
    for text, tag in (("one", "a"), ("two", "b")):
        api.retain(item(text, "t", tags=[tag], update_mode="append"), **{"async": True})
    for pair in (("u1", "a1"), ("u2", "ä2")):
        api.retain(item(conversation(*pair), "c", update_mode="append"))
    assert api.text("c") == conversation("u1", "a1", "u2", "ä2")
    assert api.text("t") == "one\ntwo"
    assert api.get("b/documents/t").body["tags"] == ["b"]


def test_one_document_twice(api: Api) -> None:
    """A document twice in a batch: folded into one when sync, refused whole when async."""
    refused = api.retain(item("x", "a"), item("y", "a"), item("z", "c"), **{"async": True})
    assert refused.status == 400
    assert "duplicate document_ids: ['a']" in refused.body["detail"]
    assert api.retain(item("x", "a"), item("y", "a")).status == 200
    assert api.ids() == ["a"]
    assert api.text("a") == "x\ny"


def test_items_without_an_id(api: Api) -> None:
    """Items without ids share one document, unless another item names one."""
    api.retain(item("one"), item("two"))
    assert api.get("b/documents").body["total"] == 1
    api.retain(item("three"), item("four"), item("five", "5"))
    assert api.get("b/documents").body["total"] == 4


def test_nothing_to_retain_is_no_operation(api: Api) -> None:
    """An async retain of no items succeeds without an operation."""
    answer = api.retain(**{"async": True})
    assert (answer.status, answer.body["operation_id"]) == (200, None)


def test_lone_surrogates_and_nul_are_removed(api: Api) -> None:
    """U+0000 and lone surrogates vanish from every field; pairs of surrogates are a character."""
    body = (
        rb'{"items": [{"content": "a\u0000b\ud83dc\ud83c\udf88", "document_id": "d\u00001",'
        rb' "tags": ["t\udc00"], "metadata": {"k\u0000": "v\ud800"}}]}'
    )
    assert api.call("POST", "b/memories", body).status == 200
    document = api.get("b/documents/d1").body
    assert document["original_text"] == "abc🎈"
    assert (document["tags"], document["document_metadata"]) == (["t"], {"k": "v"})


@pytest.mark.parametrize(
    "wrong, where",
    [
        ({"content": 5}, ["content"]),
        ({"content": " \n"}, ["content"]),
        ({}, ["content"]),
        ({"content": "x", "metadata": {"a": 1}}, ["metadata", "a"]),
        ({"content": "x", "metadata": []}, ["metadata"]),
        ({"content": "x", "tags": [1]}, ["tags", 0]),
        ({"content": "x", "tags": {}}, ["tags"]),
        ({"content": "x", "document_id": 1}, ["document_id"]),
        ({"content": "x", "context": {}}, ["context"]),
        ({"content": "x", "timestamp": "yesterday"}, ["timestamp"]),
        ({"content": "x", "timestamp": 5}, ["timestamp"]),
        ({"content": "x", "update_mode": "merge"}, ["update_mode"]),
        ({"content": "x", "observation_scopes": "all"}, ["observation_scopes"]),
        ({"content": "x", "observation_scopes": [["a"], 1]}, ["observation_scopes", 1]),
        ("x", []),
    ],
)
def test_a_wrong_item_is_named(api: Api, wrong: Any, where: list[Any]) -> None:
    """A field of the wrong kind is 422, says where it stands, and nothing is stored."""
    answer = api.post("b/memories", {"items": [item("fine", "1"), wrong], "async": True})
    assert answer.status == 422
    assert answer.body["detail"][0]["loc"] == ["body", "items", 1, *where]
    assert api.get("b/documents").status == 404  # not even the bank


@pytest.mark.parametrize(
    "body, status",
    [
        (b"{bad", 422),
        (b"", 422),
        (b"[]", 422),
        (b'{"items": {}}', 422),
        (b"{}", 422),
        (b'{"items": [], "async": "later"}', 422),
        (b'{"items": [], "operation_id": "x"}', 422),
        (b'{"items": [], "operation_id": 7}', 422),
        (b'{"items": ["\xff"]}', 400),
        (b"[" * 200_000, 422),
        (b'{"items": [{"content": "x", "update_mode": "append"}]}', 400),
    ],
)
def test_a_wrong_body_is_refused(api: Api, body: bytes, status: int) -> None:
    """What is no JSON object, or is not of the request's shape, is refused and never a 500."""
    assert api.call("POST", "b/memories", body).status == status


@pytest.mark.parametrize("bank", ["_x", "x" * 193, "ü" * 97, "a%0Ab"])
def test_a_banks_id_has_limits(api: Api, bank: str) -> None:
    """A bank id is at most 192 bytes, without control characters or a leading underscore."""
    assert api.retain(item("x"), bank=quote(bank, safe="%")).status == 400


def test_tags_in_one_string_of_json(api: Api) -> None:
    """Tags that a tool bridge sent as a string are read as the list they mean."""
    api.retain(item("x", "1", tags='["a", "b"]'), item("y", "2", tags="c"))
    assert api.get("b/documents/1").body["tags"] == ["a", "b"]
    assert api.get("b/documents/2").body["tags"] == ["c"]


# -- operations -----------------------------------------------------------------------------------


def test_an_unknown_operation(api: Api) -> None:
    """Its status is `not_found` with 200, its retry 404, and what is no UUID 400."""
    unknown = str(uuid.uuid4())
    answer = api.get(f"b/operations/{unknown}")
    assert (answer.status, answer.body["status"]) == (200, "not_found")
    assert api.post(f"b/operations/{unknown}/retry").status == 404
    assert api.get("b/operations/x").status == 400
    assert api.post("b/operations/x/retry").status == 400


@pytest.mark.slow
def test_a_pending_operation_cannot_be_retried() -> None:
    """With a latency an operation can be seen pending; a retry is 409 then, and when completed."""
    with serving(latency=0.3) as api:
        operation = api.retain(item("x"), **{"async": True}).body["operation_id"]
        retry = api.post(f"b/operations/{operation}/retry")
        assert retry.status == 409
        assert api.completed(operation)["status"] == "completed"
        assert api.post(f"b/operations/{operation}/retry").status == 409


def test_a_failed_operation_is_retried(tmp_path: Path) -> None:
    """An operation that fails says why and fails alone; its retry stores it once the cause is gone."""
    with serving(tmp_path) as api:
        api.retain(item("made", "0"))
    with contextlib.closing(sqlite3.connect(tmp_path / "server.sqlite3")) as sql:
        sql.execute(
            "CREATE TRIGGER broken BEFORE INSERT ON documents WHEN new.id = '1'"
            " BEGIN SELECT RAISE(ABORT, 'no room for it'); END"
        )
    with serving(tmp_path) as api:
        later = {"async": True}
        failing = api.retain(item("zero", "00"), item("one", "1"), **later).body["operation_id"]
        fine = api.retain(item("two", "2"), **later).body["operation_id"]
        failed = api.completed(failing)
        assert (failed["status"], failed["error_message"]) == ("failed", "no room for it")
        assert api.completed(fine)["status"] == "completed"
        assert sorted(api.ids()) == ["0", "2"]
        assert api.post(f"b/operations/{failing}/retry").status == 200
        failed_again = api.completed(failing)
        assert (failed_again["status"], failed_again["retry_count"]) == ("failed", 1)
    with contextlib.closing(sqlite3.connect(tmp_path / "server.sqlite3")) as sql:
        sql.execute("DROP TRIGGER broken")
    with serving(tmp_path) as api:
        assert api.post(f"b/operations/{failing}/retry").status == 200
        assert api.completed(failing)["status"] == "completed"
        assert (api.text("00"), api.text("1")) == ("zero", "one")


# -- documents ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document", ["s/1/2", "/s//1/", "ü🎈 %2F?#&=+", "a.b/../c", ".", "..", "x" * 2000, "\n"]
)
def test_a_documents_id_may_hold_anything(api: Api, document: str) -> None:
    """Documents with slashes and every other character in their ids are read and deleted."""
    api.retain(item("text", document))
    assert api.ids() == [document]
    assert api.text(document) == "text"
    path = f"b/documents/{quote(document, safe='')}"
    deleted = api.call("DELETE", path)
    assert (deleted.status, deleted.body["memory_units_deleted"]) == (200, 1)
    assert api.call("DELETE", path) == (404, {"detail": "Document not found"})
    assert api.get(path) == (404, {"detail": "Document not found"})
    assert api.recall("text") == []


def test_documents_come_in_pages(api: Api) -> None:
    """A list is cut by limit and offset, the newest first, and says how many there are."""
    for number in range(7):
        api.retain(item(f"text {number}", str(number)))
    page = api.get("b/documents?limit=3&offset=2").body
    assert [entry["id"] for entry in page["items"]] == ["4", "3", "2"]
    assert (page["total"], page["limit"], page["offset"]) == (7, 3, 2)
    assert page["items"][0]["text_length"] == 6
    assert api.get("b/documents?limit=0").body["items"] == []
    for wrong in ("limit=-1", "limit=x", "offset=-1", "tags_match=some"):
        assert api.get(f"b/documents?{wrong}").status == 422


def test_documents_are_searched(api: Api) -> None:
    """`q` finds text in ids and documents, without regard to case, and no pattern in it."""
    api.retain(item("The QUÄRK is 100% fine", "first"), item("other", "QuärkId"), item("x", "y_z"))
    found = {
        entry["id"]: entry for entry in api.get(f"b/documents?q={quote('quärk')}").body["items"]
    }
    assert set(found) == {"first", "QuärkId"}
    assert found["first"]["matched_fields"] == ["original_text"]
    assert found["QuärkId"]["matched_fields"] == ["id"]
    assert api.ids("q=100%25") == ["first"]
    assert api.ids("q=%25") == ["first"]
    assert api.ids("q=_") == ["y_z"]


TAGGED = {"none": [], "a": ["a"], "b": ["b"], "ab": ["a", "b"], "abc": ["a", "b", "c"], "c": ["c"]}


@pytest.mark.parametrize(
    "match, expected",
    [
        ("any", {"none", "a", "b", "ab", "abc"}),
        ("all", {"none", "ab", "abc"}),
        ("any_strict", {"a", "b", "ab", "abc"}),
        ("all_strict", {"ab", "abc"}),
        ("exact", {"ab"}),
    ],
)
def test_tags_choose_documents_and_memories(api: Api, match: str, expected: set[str]) -> None:
    """The list and the recall are filtered by tags alike; only the strict ways leave out untagged."""
    api.retain(*(item(f"word {name}", name, tags=tags) for name, tags in TAGGED.items()))
    assert set(api.ids(f"tags=a&tags=b&tags_match={match}")) == expected
    results = api.recall("word", tags=["a", "b"], tags_match=match)
    assert {result["document_id"] for result in results} == expected


def test_tags_match_as_in_hindsight_unless_said(api: Api) -> None:
    """Without a word the list takes any_strict and the recall any."""
    api.retain(*(item(f"word {name}", name, tags=tags) for name, tags in TAGGED.items()))
    assert set(api.ids("tags=c")) == {"abc", "c"}
    assert {entry["document_id"] for entry in api.recall("word", tags=["c"])} == {
        "none",
        "abc",
        "c",
    }


def test_an_unknown_bank_is_404(api: Api) -> None:
    """Reading from a bank that nobody made is 404, as on the real server."""
    detail = {"detail": "Bank 'b' not found"}
    assert api.get("b/documents") == (404, detail)
    assert api.get("b/config") == (404, detail)
    assert api.post("b/memories/recall", {"query": "x"}) == (404, detail)


def test_banks_do_not_see_each_other(api: Api) -> None:
    """A document is found, listed and deleted in its own bank only."""
    api.retain(item("secret", "1"), bank="c")
    api.retain(item("public", "2"))
    assert api.ids() == ["2"]
    assert api.recall("secret") == []
    assert api.get("b/documents/1").status == 404
    assert api.call("DELETE", "b/documents/1").status == 404


# -- recall and reflect ---------------------------------------------------------------------------


def test_recall_finds_a_message_and_tells_where_it_stands(api: Api) -> None:
    """A recalled memory is one message, with its document, tags, metadata and time."""
    talk = [
        {"role": "user", "content": "User: Where do I keep the bicycle?"},
        {
            "role": "assistant",
            "content": "Assistant: In the Müller shed.",
            "timestamp": "2026-03-01T10:00:00+01:00",
        },
    ]
    api.retain(
        item(
            json.dumps(talk),
            "s/1",
            tags=["session:s"],
            metadata={"k": "v"},
            context="chat",
            timestamp="2026-02-01T00:00:00Z",
        )
    )
    (found,) = api.recall("muller")  # diacritics are no difference
    assert found["text"] == "Assistant: In the Müller shed."
    assert (found["document_id"], found["tags"]) == ("s/1", ["session:s"])
    assert (found["metadata"], found["context"]) == ({"k": "v"}, "chat")
    assert (found["type"], found["mentioned_at"]) == ("experience", "2026-03-01T10:00:00+01:00")
    (other,) = api.recall("Where is my BICYCLE?")
    assert (other["type"], other["mentioned_at"]) == ("world", "2026-02-01T00:00:00+00:00")


def test_recall_puts_the_best_match_first(api: Api) -> None:
    """Memories are ordered by bm25: more of the query's words, and rarer ones, come first."""
    for number in range(10):
        api.retain(item(f"the weather of day {number}", f"w{number}"), item("day", f"d{number}"))
    api.retain(item("a zeppelin in the sky", "z"), item("the zeppelin and the weather", "zw"))
    found = [entry["document_id"] for entry in api.recall("zeppelin weather")]
    assert found[:2] == ["zw", "z"]
    assert len(found) == 12


def test_recall_by_type(api: Api) -> None:
    """What the assistant said is an experience, all else world, and each its own observation."""
    api.retain(item(conversation("the owl asks", "the owl answers")), item("the owl text", "t"))

    def types(*asked: str) -> list[tuple[str, str]]:
        return sorted((entry["type"], entry["text"]) for entry in api.recall("owl", types=asked))

    world = [("world", "the owl asks"), ("world", "the owl text")]
    experience = [("experience", "the owl answers")]
    assert types("world") == world
    assert types("experience") == experience
    assert types("world", "experience") == types() == experience + world
    assert [kind for kind, _ in types("observation")] == ["observation"] * 3
    assert api.post("b/memories/recall", {"query": "x", "types": ["facts"]}).status == 422


def test_recall_is_bounded(api: Api) -> None:
    """The budget bounds how many memories come, max_tokens how much text."""
    api.retain(*(item(f"owl {number} " + "x" * 400, str(number)) for number in range(40)))
    assert [len(api.recall("owl", budget=budget)) for budget in ("low", "mid", "high")] == [
        10,
        30,
        40,
    ]
    assert 1 <= len(api.recall("owl", max_tokens=250)) <= 2
    assert api.recall("owl", max_tokens=0) == []


@pytest.mark.parametrize(
    "query", ['"', 'owl"', "owl AND NOT", "owl*", "NEAR(owl", "-owl", "text:owl"]
)
def test_a_query_is_words_and_never_an_expression(api: Api, query: str) -> None:
    """Signs that mean something to the search engine are no operators and no error."""
    api.retain(item("an owl"))
    answer = api.post("b/memories/recall", {"query": query})
    assert answer.status == (200 if "owl" in query else 422)
    assert len(answer.body.get("results", ())) == ("owl" in query)


def test_a_query_of_thousands_of_words(api: Api) -> None:
    """A very long query is answered."""
    api.retain(item("an owl"))
    assert api.recall("owl " + " ".join(map(str, range(5000))))


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"query": 5},
        {"query": " ... "},
        {"query": "x", "budget": "huge"},
        {"query": "x", "tags_match": "some"},
        {"query": "x", "tags": "t"},
        {"query": "x", "types": [5]},
        {"query": "x", "max_tokens": "many"},
        {"query": "x", "max_tokens": True},
    ],
)
def test_a_wrong_recall_is_refused(api: Api, wrong: dict[str, Any]) -> None:
    """A recall of the wrong shape is 422."""
    api.retain(item("x"))
    assert api.post("b/memories/recall", wrong).status == 422


def test_reflect_says_that_there_is_no_model(api: Api) -> None:
    """Reflect is 400 and says why, as the real server without an LLM."""
    answer = api.post("b/reflect", {"query": "who am I?"})
    assert answer.status == 400
    assert "requires an LLM provider" in answer.body["detail"]


# -- bank config ----------------------------------------------------------------------------------


def test_missions_are_kept(api: Api) -> None:
    """A bank's missions are set, read and removed; other fields are refused."""
    updated = api.call("PATCH", "b/config", {"updates": {"retain_mission": "Keep names."}})
    assert updated.status == 200
    assert api.get("b/config").body == updated.body
    assert updated.body["overrides"] == {"retain_mission": "Keep names."}
    assert updated.body["config"]["reflect_mission"] is None
    api.call("PATCH", "b/config", {"updates": {"reflect_mission": "x", "retain_mission": None}})
    assert api.get("b/config").body["overrides"] == {"reflect_mission": "x"}
    assert api.call("PATCH", "b/config", {"updates": {"colour": "red"}}).status == 400
    assert api.call("PATCH", "b/config", {"updates": {"retain_mission": 5}}).status == 422
    assert api.call("PATCH", "b/config", {"updates": []}).status == 422


# -- the server and its file ----------------------------------------------------------------------


def test_the_file_is_the_users_alone(tmp_path: Path) -> None:
    """The folder is 0700 and every file in it 0600, and all is there again after a restart."""
    folder = tmp_path / "a" / "b"
    with serving(folder) as api:
        api.retain(item("kept", "1"))
        if os.name == "posix":
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
            assert set(modes.values()) == {0o600}, modes
    with serving(folder) as api:
        assert api.text("1") == "kept"
    assert [path.name for path in folder.iterdir()] == ["server.sqlite3"]


def test_a_file_of_an_older_version_is_brought_up_to_date(tmp_path: Path) -> None:
    """Version 1 indexed each unit as it came; what it wrote is found, replaced and added to."""
    with serving(tmp_path) as api:
        api.retain(item("an old word", "1"), item("another word", "2"))
    with contextlib.closing(sqlite3.connect(tmp_path / "server.sqlite3")) as sql:
        sql.execute(
            "CREATE TRIGGER unit_made AFTER INSERT ON units BEGIN"
            " INSERT INTO words (rowid, text) VALUES (new.number, new.text); END"
        )
        sql.execute("PRAGMA user_version = 1")
    with serving(tmp_path) as api:
        api.retain(item("a new word", "1"), item("a third word", "3"))
        assert sorted(one["text"] for one in api.recall("word")) == [
            "a new word",
            "a third word",
            "another word",
        ]
        assert api.recall("old") == []
    with contextlib.closing(sqlite3.connect(tmp_path / "server.sqlite3")) as sql:
        sql.execute("INSERT INTO words (words, rank) VALUES ('integrity-check', 1)")


@pytest.mark.slow
def test_two_servers_do_not_share_a_file(tmp_path: Path) -> None:
    """A second server on the same folder is refused in one line, and the first goes on."""
    with serving(tmp_path) as api:
        with pytest.raises(ConfigError, match="in use by another server"):
            start(tmp_path)
        assert api.retain(item("x")).status == 200


def test_a_port_in_use_is_one_line(api: Api) -> None:
    """A port that is taken is a ConfigError which names it."""
    port = api._connection.port
    with pytest.raises(ConfigError, match=f"port {port}"):
        start(port=port)


@pytest.mark.parametrize("option", [{"host": "no.such.host.invalid"}, {"port": 70000}])
def test_an_unusable_address_is_one_line(option: dict[str, Any]) -> None:
    """An address nobody can listen at is a ConfigError."""
    with pytest.raises(ConfigError, match="cannot listen on"):
        start(**option)


def test_a_client_that_leaves_is_no_error(own_log: pytest.LogCaptureFixture) -> None:
    """A connection that ends in the middle of a request is not logged, and keeps nobody waiting."""
    with serving() as api:
        port = api._connection.port
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(
                b"POST /v1/default/banks/b/memories HTTP/1.1\r\nHost: x\r\n"
                b'Content-Length: 99\r\n\r\n{"items": ['
            )
            assert api.retain(item("x")).status == 200  # by now the server waits for the rest
    assert not own_log.records


def test_an_unusable_folder_is_one_line(tmp_path: Path) -> None:
    """A folder that cannot be made, a file that is no database, and a newer one are ConfigErrors."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot open"):
        start(tmp_path / "file" / "folder")
    (tmp_path / "server.sqlite3").write_bytes(b"no database" * 1000)
    with pytest.raises(ConfigError, match="cannot use"):
        start(tmp_path)
    (tmp_path / "newer").mkdir()
    with contextlib.closing(sqlite3.connect(tmp_path / "newer" / "server.sqlite3")) as sql:
        sql.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigError, match="newer hindsight-exec"):
        start(tmp_path / "newer")


@pytest.mark.slow
def test_a_killed_server_has_all_it_acknowledged_once(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Killed at random while it takes appends, it holds each acknowledged line once and in order."""
    random_ = random.Random(4)
    server = ServingProcess(tmp_path)
    request.addfinalizer(server.kill)
    sent: list[tuple[str, str]] = []  # each line and its operation, in order
    answered = 0

    def send(api: Api, number: int) -> None:
        """Send lines until so many are answered; what was not is sent again under its id."""
        nonlocal answered
        while answered < number:
            if answered == len(sent):
                sent.append((str(answered), str(uuid.uuid4())))
            line, operation = sent[answered]
            append = item(line, "log", update_mode="append")
            answer = api.retain(append, **{"async": True}, operation_id=operation)
            assert answer.status == 200
            answered += 1

    for _ in range(5):
        server.start()
        killer = threading.Timer(random_.uniform(0.02, 0.3), server.kill)
        killer.start()
        cut = contextlib.suppress(OSError, http.client.HTTPException)
        with contextlib.closing(Api(server.url)) as api, cut:
            send(api, sys.maxsize)
        killer.join()
    server.start()
    with contextlib.closing(Api(server.url)) as api:
        send(api, answered + 20)
        assert api.completed(sent[-1][1])["status"] == "completed"
        assert api.text("log").split("\n") == [line for line, _ in sent]


# -- text -----------------------------------------------------------------------------------------


def test_join_parts() -> None:
    """Lists of objects become one list, anything else lines, and a single part keeps its bytes."""
    assert join_parts(['[{"a":1}]']) == '[{"a":1}]'
    assert json.loads(join_parts(['[{"a":1}]', '[{"b":"ü"}]'])) == [{"a": 1}, {"b": "ü"}]
    assert join_parts(["[[1]]", "[[2]]"]) == "[[1]]\n[[2]]"
    assert join_parts(["[1", "x"]) == "[1\nx"


def test_units_of_conversations() -> None:
    """Flat, nested and appended conversations have one unit a message; tool parts give their text."""
    flat = conversation("u1", "a1")
    nested = f"[{flat}]"
    assert [unit.text for unit in units(flat)] == ["u1", "a1"]
    assert units(nested) == units(flat)
    assert [unit.text for unit in units(f"{nested}\n{nested}")] == ["u1", "a1", "u1", "a1"]
    parts = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {}}, "y"]
    assert units(json.dumps([{"role": "user", "content": parts}]))[0].text == "x\ny"
    assert units(json.dumps([{"role": "assistant", "content": None}])) == []


def test_units_of_a_long_text() -> None:
    """A long text is cut at its breaks, no unit is too long, and no word is lost."""
    sentence = "One sentence is much like another in this text. "
    text = (sentence * 30 + "\n\n") * 10
    found = units(text)
    assert all(0 < len(unit.text) <= UNIT_CHARS for unit in found)
    assert " ".join(unit.text for unit in found).split() == text.split()
    assert found[0].text.endswith("text.")
    assert [len(unit.text) for unit in units("x" * 7000)] == [3000, 3000, 1000]


def test_sanitize_goes_through_everything() -> None:
    """Keys and values at any depth are cleaned; other values stay as they are."""
    given = {"a\x00": ["\ud800x", 1, None, {"b": "ok\udfff"}]}
    assert sanitize(given) == {"a": ["x", 1, None, {"b": "ok"}]}


# -- large bodies ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("later", [True, False])
def test_a_large_message_does_not_stop_the_server(
    later: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the server cuts and stores a message of 50 MB, it answers /version."""
    busy, asked = threading.Event(), threading.Event()

    def held(text: str) -> list[Unit]:
        busy.set()
        assert asked.wait(60), "nothing was answered while a document was stored"
        return units(text)

    monkeypatch.setattr("hindsight_exec.server.store.units", held)
    content = conversation("all the words of a long day " * 1_800_000)
    with serving() as api, contextlib.closing(Api(api.url)) as other:
        giving = threading.Thread(target=lambda: api.retain(item(content, "d"), **{"async": later}))
        giving.start()
        assert busy.wait(60)
        assert other.get("/version").status == 200
        asked.set()
        giving.join()
        assert other.get("/version").status == 200
        assert other.get("b/documents/d").body["memory_unit_count"] > 16_000


def test_a_large_refused_body_is_quoted() -> None:
    """A wrong request of 5 MB gets its 422, with the value that is wrong."""
    with serving() as api:
        wrong = ["x" * 5_000_000]
        answer = api.retain(item("text", "d", metadata=wrong))
        assert (answer.status, answer.body["detail"][0]["input"]) == (422, wrong)
