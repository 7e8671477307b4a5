"""One suite over two servers: the real one, and the embedded one that stands in for it."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import Iterator
from typing import Any, Callable

import pytest
from serving import Serving

from hindsight_exec.client.api import HindsightClient
from hindsight_exec.conversation.turns import (
    document_id,
    document_item,
    source,
    time_ordered_id,
    turn,
)
from hindsight_exec.errors import Rejected, Unauthorized

from .conftest import KEY
from .openapi import OpenAPI
from .proxy import Proxy
from .server import Server, eventually, request

BOTH = [pytest.param("real", marks=pytest.mark.hindsight), "embedded"]
Ask = Callable[[Any], Any]


@pytest.fixture(scope="module")
def embedded() -> Iterator[str]:
    server = Serving()
    yield server.url
    server.close()


@pytest.fixture
def url(kind: str, request: pytest.FixtureRequest) -> str:
    """Where the server of this kind answers."""
    if kind == "embedded":
        found: str = request.getfixturevalue("embedded")
        return found
    server: Server = request.getfixturevalue("server")
    return server.url


@pytest.fixture
def proxy(url: str) -> Iterator[Proxy]:
    with Proxy(url) as running:
        yield running


@pytest.fixture
def ask() -> Iterator[Ask]:
    """Runs a coroutine to its end, all of a test on one loop."""
    loop = asyncio.new_event_loop()
    yield loop.run_until_complete
    loop.close()


@pytest.fixture
def client(proxy: Proxy, ask: Ask) -> Iterator[HindsightClient]:
    made = HindsightClient(proxy.url)
    yield made
    ask(made.close())


def item(session: str, text: str, at: float = 1_790_000_000.0) -> tuple[str, bytes]:
    """A document's id and item, as the delivery sends them."""
    from_here = source(
        url="http://127.0.0.1",
        credential="",
        bank="any",
        session=session,
        context="a conversation",
        tags=["team"],
        metadata={"platform": "test"},
    )
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "I see."}]
    name = document_id(session, at, session)
    return name, document_item(from_here, name, [turn(messages, given_at=at, index=1)])


def complete(ask: Ask, client: HindsightClient, bank: str, operation: str) -> dict[str, Any]:
    """Poll an operation until it has ended."""
    ended = {"completed", "failed", "cancelled"}

    def check() -> dict[str, Any] | None:
        answer: dict[str, Any] = ask(client.operation(bank, operation))
        return answer if answer["status"] in ended else None

    found: dict[str, Any] = eventually(check)
    return found


def retained(ask: Ask, client: HindsightClient, bank: str, *items: bytes) -> None:
    operation = ask(client.retain(bank, list(items)))["operation_id"]
    assert complete(ask, client, bank, operation)["status"] == "completed"


@pytest.mark.parametrize("kind", BOTH)
def test_version_names_a_version(ask: Ask, client: HindsightClient) -> None:
    """`version` is three numbers or so, whatever the server calls the field."""
    assert ask(client.version()).count(".") >= 1


@pytest.mark.parametrize("kind", BOTH)
def test_health(ask: Ask, client: HindsightClient) -> None:
    """A server that runs says that it is healthy."""
    assert ask(client.health())["status"] == "healthy"


@pytest.mark.parametrize("kind", BOTH)
def test_document_comes_back_as_it_was_sent(ask: Ask, client: HindsightClient, bank: str) -> None:
    """Text, tags and metadata of a document are those of the item; its id may hold slashes."""
    name, data = item("the/session", "Zoë’s tram № 7 leaves at 8 — “early”, 日本 🚋")
    retained(ask, client, bank, data)
    document = ask(client.document(bank, name))
    sent = json.loads(data)
    assert document["original_text"] == sent["content"]
    assert document["document_metadata"] == sent["metadata"]
    assert sorted(document["tags"]) == ["session:the/session", "team"]


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.since("0.8.6", "ignores operation ids")
def test_operation_id_makes_a_retain_idempotent(
    ask: Ask, client: HindsightClient, bank: str
) -> None:
    """The same operation id again is answered alike and stores nothing, even with other items."""
    operation = str(uuid.uuid4())
    first, second = item("s", "first"), item("s", "second")
    for data in (first[1], first[1], second[1]):
        answer = ask(client.retain(bank, [data], operation_id=operation))
        assert answer["operation_id"] == operation
    complete(ask, client, bank, operation)
    listed = ask(client.documents(bank))
    assert [document["id"] for document in listed["items"]] == [first[0]]


@pytest.mark.parametrize("kind", BOTH)
def test_same_document_again_changes_nothing(ask: Ask, client: HindsightClient, bank: str) -> None:
    """A document sent again under another operation has one text and its memories once."""
    name, data = item("s", "the same")
    retained(ask, client, bank, data)
    before = ask(client.document(bank, name))
    retained(ask, client, bank, data)
    after = ask(client.document(bank, name))
    for key in ("original_text", "content_hash", "memory_unit_count", "tags"):
        assert after[key] == before[key]
    assert ask(client.documents(bank))["total"] == 1


@pytest.mark.parametrize("kind", BOTH)
def test_many_documents_in_one_request(ask: Ask, client: HindsightClient, bank: str) -> None:
    """Forty documents of three sessions go as one operation, and are listed by session."""
    items = [item(f"s{n % 3}", f"number {n}", 1_790_000_000.0 + n) for n in range(40)]
    retained(ask, client, bank, *(data for _, data in items))
    assert ask(client.documents(bank, limit=1))["total"] == 40
    listed = ask(client.documents(bank, tags=["session:s1"], tags_match="any_strict"))
    names = sorted(document["id"] for document in listed["items"])
    assert names == [name for name, _ in items if name.startswith("s1/")]


@pytest.mark.parametrize("kind", BOTH)
def test_documents_are_listed_in_pages(ask: Ask, client: HindsightClient, bank: str) -> None:
    """Limit and offset cut the list in pages that together are the whole."""
    items = dict(item("s", f"number {n}", 1_790_000_000.0 + n) for n in range(7))
    retained(ask, client, bank, *items.values())
    pages = [ask(client.documents(bank, limit=3, offset=start)) for start in (0, 3, 6)]
    assert [len(page["items"]) for page in pages] == [3, 3, 1]
    assert {document["id"] for page in pages for document in page["items"]} == set(items)


@pytest.mark.parametrize("kind", BOTH)
def test_recall_finds_by_words_and_filters_by_tag(
    ask: Ask, client: HindsightClient, bank: str
) -> None:
    """Recall finds what was retained, with its document; a session's tag leaves others out."""
    rome, tram = item("rome", "Bob lives in Rome near the river"), item("tram", "Bob takes a tram")
    retained(ask, client, bank, rome[1], tram[1])
    found = ask(client.recall(bank, "Where in Rome does Bob live?"))
    assert {memory["document_id"] for memory in found} == {rome[0], tram[0]}
    assert "river" in found[0]["text"]
    found = ask(client.recall(bank, "Bob", tags=["session:tram"], tags_match="any_strict"))
    assert [memory["document_id"] for memory in found] == [tram[0]]
    few = ask(client.recall(bank, "Bob", budget="low", max_tokens=5))
    assert len(few) <= 1


@pytest.mark.parametrize("kind", BOTH)
def test_deleted_document_is_gone(ask: Ask, client: HindsightClient, bank: str) -> None:
    """A deleted document is neither read, listed nor recalled; deleting it again is refused."""
    name, data = item("s/2", "soon forgotten")
    retained(ask, client, bank, data)
    ask(client.delete_document(bank, name))
    for call in (client.document, client.delete_document):
        with pytest.raises(Rejected) as refusal:
            ask(call(bank, name))
        assert refusal.value.status == 404
    assert ask(client.documents(bank))["total"] == 0
    assert ask(client.recall(bank, "forgotten")) == []


@pytest.mark.parametrize("kind", BOTH)
def test_unknown_operation(ask: Ask, client: HindsightClient, bank: str) -> None:
    """An unknown operation is an answer, `not_found`; to retry it is refused."""
    retained(ask, client, bank, item("s", "makes the bank")[1])
    unknown = str(uuid.uuid4())
    assert ask(client.operation(bank, unknown))["status"] == "not_found"
    with pytest.raises(Rejected) as refusal:
        ask(client.retry_operation(bank, unknown))
    assert refusal.value.status == 404


@pytest.mark.parametrize("kind", BOTH)
def test_completed_operation_cannot_be_retried(
    ask: Ask, client: HindsightClient, bank: str
) -> None:
    """To retry what has not failed is refused with 409."""
    operation = ask(client.retain(bank, [item("s", "once")[1]]))["operation_id"]
    complete(ask, client, bank, operation)
    with pytest.raises(Rejected) as refusal:
        ask(client.retry_operation(bank, operation))
    assert refusal.value.status == 409


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.since("1.0", "refuses such a batch with 500")
def test_batch_that_names_a_document_twice_is_refused(
    ask: Ask, client: HindsightClient, bank: str
) -> None:
    """Two items of one document in an asynchronous batch are an error, and nothing is stored."""
    data = item("s", "twice")[1]
    with pytest.raises(Rejected) as refusal:
        ask(client.retain(bank, [data, data]))
    assert refusal.value.status == 400
    assert "duplicate document_ids" in refusal.value.detail


@pytest.mark.parametrize("kind", BOTH)
def test_synchronous_retain_is_done_when_it_is_answered(
    ask: Ask, client: HindsightClient, bank: str
) -> None:
    """A synchronous retain has stored the document when it returns."""
    name, data = item("s", "now")
    ask(client.retain(bank, [data], asynchronous=False))
    assert ask(client.document(bank, name))["memory_unit_count"] >= 1


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.since("1.0", "forgets the settings of a bank that is not made yet")
def test_missions_are_kept(ask: Ask, client: HindsightClient, bank: str) -> None:
    """A mission that was set is the bank's from then on."""
    answer = ask(client.update_bank_config(bank, {"retain_mission": "Names of trams."}))
    assert answer["config"]["retain_mission"] == "Names of trams."
    assert ask(client.bank_config(bank))["config"]["retain_mission"] == "Names of trams."


@pytest.mark.parametrize("kind", BOTH)
def test_reflect_without_a_model_is_refused(ask: Ask, client: HindsightClient, bank: str) -> None:
    """A server without an LLM refuses to reflect, in words that say why."""
    retained(ask, client, bank, item("s", "makes the bank")[1])
    with pytest.raises(Rejected, match="requires an LLM") as refusal:
        ask(client.reflect(bank, "What now?"))
    assert refusal.value.status == 400


@pytest.mark.parametrize("kind", BOTH)
def test_only_the_key_lets_in(
    kind: str, ask: Ask, bank: str, request: pytest.FixtureRequest
) -> None:
    """Without the key, or with another, everything but version and health is Unauthorized."""
    server = Serving(api_key=KEY) if kind == "embedded" else None
    address = server.url if server else request.getfixturevalue("locked").url

    async def talk() -> None:
        for wrong in (None, "another key"):
            async with HindsightClient(address, api_key=wrong) as client:
                await client.version()
                await client.health()
                with pytest.raises(Unauthorized):
                    await client.retain(bank, [item("s", "secret")[1]])
                with pytest.raises(Unauthorized):
                    await client.recall(bank, "secret")
        async with HindsightClient(address, api_key=KEY) as client:
            await client.retain(bank, [item("s", "secret")[1]])
            await client.recall(bank, "secret")

    ask(talk())
    if server:
        server.close()


@pytest.mark.hindsight
@pytest.mark.parametrize("kind", ["real"])
@pytest.mark.since("1.0", "does not describe operation ids")
def test_requests_and_answers_are_those_of_the_openapi_description(
    ask: Ask, client: HindsightClient, proxy: Proxy, url: str, bank: str, thinking: Server
) -> None:
    """Every request the client can make, with every argument, is one the server describes."""
    name, data = item("s/1", "all of it")
    operation = str(uuid.uuid4())
    many = {
        "document_id": f"s/{time_ordered_id(0)}",
        "content": "text",
        "observation_scopes": [["a"], ["b", "c"]],
    }
    ask(client.version())
    ask(client.health())
    ask(client.retain(bank, [data], operation_id=operation))
    complete(ask, client, bank, operation)
    ask(client.retain(bank, [many], asynchronous=False))
    ask(client.document(bank, name))
    ask(
        client.documents(
            bank, limit=5, offset=0, query="all", tags=["team", "b"], tags_match="all_strict"
        )
    )
    ask(
        client.recall(
            bank,
            "all",
            budget="mid",
            max_tokens=100,
            types=["world", "experience", "observation"],
            tags=["team"],
            tags_match="all",
        )
    )
    for call in (client.retry_operation(bank, operation), client.reflect(bank, "?", budget="low")):
        with pytest.raises(Rejected):
            ask(call)
    ask(client.update_bank(bank, {"reflect_mission": "Be brief."}))
    ask(client.update_bank_config(bank, {"retain_mission": "Be brief."}))
    ask(client.bank_config(bank))
    ask(client.delete_document(bank, name))

    description = OpenAPI(request("GET", f"{url}/openapi.json")[1])
    problems = [
        f"{exchange.method} {exchange.path}: {problem}"
        for exchange in proxy.exchanges
        for problem in description.problems(exchange)
    ]
    with Proxy(thinking.url) as second:

        async def reflect() -> str:
            async with HindsightClient(second.url) as thinker:
                await thinker.retain(bank, [data], asynchronous=False)
                return await thinker.reflect(bank, "What is it?")

        assert ask(reflect())
        problems += [p for exchange in second.exchanges for p in description.problems(exchange)]
    assert problems == []


# Requests to send to both servers, one after the other, and compared by status and form.
ITEM = {
    "content": json.dumps([{"role": "user", "content": "Bob lives in Rome"}]),
    "document_id": "s/1",
    "tags": ["session:s"],
    "metadata": {"a": "b"},
    "timestamp": "2026-01-02T03:04:05Z",
    "context": "a talk",
}
UNKNOWN = "00000000-0000-4000-8000-000000000000"
B = "/v1/default/banks/BANK"
REQUESTS: dict[str, tuple[Any, ...]] = {
    "version": ("GET", "/version"),
    "health": ("GET", "/health"),
    "documents of no bank": ("GET", f"{B}/documents"),
    "document of no bank": ("GET", f"{B}/documents/s/1"),
    "recall of no bank": ("POST", f"{B}/memories/recall", {"query": "Bob"}),
    "operation of no bank": ("GET", f"{B}/operations/{UNKNOWN}"),
    "retain": ("POST", f"{B}/memories", {"items": [ITEM]}),
    "retain later": ("POST", f"{B}/memories", {"items": [ITEM], "async": True}),
    "retain nothing": ("POST", f"{B}/memories", {"items": []}),
    "retain nothing later": ("POST", f"{B}/memories", {"items": [], "async": True}),
    "retain without items": ("POST", f"{B}/memories", {"async": True}),
    "retain a list": ("POST", f"{B}/memories", []),
    "retain text": ("POST", f"{B}/memories", {"items": "text"}),
    "item without content": ("POST", f"{B}/memories", {"items": [{"document_id": "x"}]}),
    "empty content": ("POST", f"{B}/memories", {"items": [{"content": "  "}]}),
    "number as metadata": (
        "POST",
        f"{B}/memories",
        {"items": [{"content": "x", "metadata": {"n": 1}}]},
    ),
    "wrong time": ("POST", f"{B}/memories", {"items": [{"content": "x", "timestamp": "soon"}]}),
    "time unset": ("POST", f"{B}/memories", {"items": [{"content": "x", "timestamp": "unset"}]}),
    "wrong update mode": (
        "POST",
        f"{B}/memories",
        {"items": [{"content": "x", "update_mode": "merge"}]},
    ),
    "append to nothing": (
        "POST",
        f"{B}/memories",
        {"items": [{"content": "x", "update_mode": "append"}]},
    ),
    "a document twice": ("POST", f"{B}/memories", {"items": [ITEM, ITEM], "async": True}),
    "operation id that is none": (
        "POST",
        f"{B}/memories",
        {"items": [ITEM], "async": True, "operation_id": "mine"},
    ),
    "a field nobody knows": ("POST", f"{B}/memories", {"items": [{**ITEM, "mood": "good"}]}),
    "nul and half a character": (
        "POST",
        f"{B}/memories",
        {"items": [{"content": "a\0b\ud800c", "document_id": "odd"}]},
    ),
    "what became of it": ("GET", f"{B}/documents/odd"),
    "long bank id": ("POST", f"/v1/default/banks/{'b' * 193}/memories", {"items": [ITEM]}),
    "document": ("GET", f"{B}/documents/s/1"),
    "document, escaped": ("GET", f"{B}/documents/s%2F1"),
    "no such document": ("GET", f"{B}/documents/s/2"),
    "documents": ("GET", f"{B}/documents?limit=2&q=ROME"),
    "documents by tag": ("GET", f"{B}/documents?tags=session:s&tags_match=all_strict"),
    "documents from the end": ("GET", f"{B}/documents?offset=1000"),
    "limit that is none": ("GET", f"{B}/documents?limit=many"),
    "recall": ("POST", f"{B}/memories/recall", {"query": "Bob"}),
    "recall by tag": (
        "POST",
        f"{B}/memories/recall",
        {"query": "Bob", "tags": ["session:s"], "tags_match": "all_strict"},
    ),
    "recall another tag": (
        "POST",
        f"{B}/memories/recall",
        {"query": "Bob", "tags": ["t"], "tags_match": "any_strict"},
    ),
    "recall without query": ("POST", f"{B}/memories/recall", {}),
    "recall signs": ("POST", f"{B}/memories/recall", {"query": "?!"}),
    "wrong budget": ("POST", f"{B}/memories/recall", {"query": "Bob", "budget": "huge"}),
    "wrong type": ("POST", f"{B}/memories/recall", {"query": "Bob", "types": ["guess"]}),
    "wrong tags_match": ("POST", f"{B}/memories/recall", {"query": "Bob", "tags_match": "no"}),
    "reflect": ("POST", f"{B}/reflect", {"query": "Bob?"}),
    "unknown operation": ("GET", f"{B}/operations/{UNKNOWN}"),
    "operation that is none": ("GET", f"{B}/operations/mine"),
    "retry an unknown operation": ("POST", f"{B}/operations/{UNKNOWN}/retry"),
    "configuration": ("GET", f"{B}/config"),
    "a mission": ("PATCH", f"{B}/config", {"updates": {"retain_mission": "Trams."}}),
    "a setting nobody knows": ("PATCH", f"{B}/config", {"updates": {"mood": "good"}}),
    "a bank's profile": ("PUT", B, {"reflect_mission": "Be brief."}),
    "delete": ("DELETE", f"{B}/documents/s/1"),
    "delete again": ("DELETE", f"{B}/documents/s/1"),
    "no such path": ("GET", f"{B}/nonsense"),
    "wrong method": ("PUT", f"{B}/memories"),
}


def form(value: Any, where: str = "") -> set[str]:
    """What a client can rely on: which keys there are, and the types of what is not null."""
    if isinstance(value, dict):
        return {line for key in value for line in form(value[key], f"{where}.{key}")}
    if isinstance(value, list):
        return {line for item in value for line in form(item, f"{where}[]")}
    return set() if value is None else {f"{where}: {type(value).__name__}"}


# Where the two differ, as patterns of lines of `form`, and why they may.
DIFFERENCES = {
    r"\.features\.(embedded|memory_engine): bool": "the embedded server says what it is not",
    r"\.notice: str": "and says it in words",
    r"\.db_(acquire_ms|pool_\w+): \w+": "it has no pool of connections",
    r"\.usage\.(cached|thoughts)_tokens: int": "it asks no model, so no tokens are counted",
    r"\.detail\[\]\.ctx\.expected: str": "the choices stand in `msg` as well",
    r"\.config\.(?!.*mission).*": "of a bank's settings it keeps the missions",
}
# Requests that only the real server knows, and why that is enough.
REAL_ONLY = {
    "a bank's profile": "a bank's missions are set by PATCH; PUT is for servers without it",
}


@pytest.mark.hindsight
@pytest.mark.parametrize("kind", ["real"])
@pytest.mark.since("1.0", "answers in other words than 1.1.0")
def test_both_servers_answer_alike(url: str, embedded: str, bank: str) -> None:
    """Right and wrong requests have the same status and form of answer, but for what is listed."""
    found: dict[str, object] = {}
    used = set()
    for name, (method, path, *body) in REQUESTS.items():
        target = path.replace("BANK", bank)
        real = request(method, url + target, *body)
        ours = request(method, embedded + target, *body)
        if name in REAL_ONLY:
            assert (real[0] < 300, ours[0]) == (True, 404), name
            continue
        lines = form(real[1]) ^ form(ours[1])
        for pattern in DIFFERENCES:
            explained = {line for line in lines if re.fullmatch(pattern, line)}
            lines -= explained
            used |= {pattern} if explained else set()
        if real[0] != ours[0] or lines:
            found[name] = (real, ours, lines)
    assert found == {}
    assert used == set(DIFFERENCES), "a difference that is listed is gone"
