"""The tools of the model."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

from hindsight_exec.hermes.retention import Retention

from .recording import until
from .test_recall import found


def call(provider, tool, **args):
    return json.loads(provider.handle_tool_call(tool, args))


def test_the_schemas(make):
    """Three tools in the form of OpenAI's functions; none where memory only goes into the context."""
    schemas = make().get_tool_schemas()
    assert [schema["name"] for schema in schemas] == [
        "hindsight_retain",
        "hindsight_recall",
        "hindsight_reflect",
    ]
    for schema in schemas:
        assert schema["parameters"]["type"] == "object"
        assert set(schema["parameters"]["required"]) <= set(schema["parameters"]["properties"])
    properties = schemas[0]["parameters"]["properties"]
    assert set(properties) == {"content", "context", "tags", "occurred_at", "metadata"}
    assert make("t", memory_mode="context").get_tool_schemas() == []
    assert make("u", memory_mode="tools").get_tool_schemas() == schemas


def test_retaining_on_purpose(make, hindsight):
    """What the model retains goes at once, with everything it said about it."""
    provider = make(
        "s1",
        {"platform": "cli"},
        retain_tags=["mine"],
        retain_every_n_turns=9,
        observation_scopes="combined",
    )
    answer = call(
        provider,
        "hindsight_retain",
        content=" The door is blue. ",
        context="house",
        tags=["door", "mine", " door "],
        occurred_at="2026-01-02T03:04:05Z",
        metadata={"room": 7, "platform": "forged"},
    )
    assert answer["queued"] is True
    assert "result" in answer
    hindsight.wait_for("/memories")
    (item,) = hindsight.items()
    assert item["content"] == "The door is blue."
    assert item["context"] == "house"
    assert item["tags"] == ["mine", "session:s1", "door"]
    assert datetime.fromisoformat(item["timestamp"]) == datetime.fromisoformat(
        "2026-01-02T03:04:05+00:00"
    )
    assert item["metadata"]["room"] == "7"
    assert item["metadata"]["platform"] == "cli"
    assert item["observation_scopes"] == "combined"


def test_retaining_with_the_server_down(make, hindsight, home):
    """A note is kept though the server is down; the next start brings it there."""
    provider = make()
    hindsight.stop()
    assert call(provider, "hindsight_retain", content="kept")["queued"] is True
    provider.shutdown()
    hindsight.start()
    make("next")
    hindsight.wait_for("/memories")
    assert [item["content"] for item in hindsight.items()] == ["kept"]


def test_retaining_and_waiting_for_it(make, hindsight):
    """With retain_async off the tool waits until the server has processed the note."""
    provider = make(retain_async=False)
    assert call(provider, "hindsight_retain", content="kept") == {"result": "It is stored."}
    assert [item["content"] for item in hindsight.items()] == ["kept"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "status, says, timeout",
    [(422, "dead list", 60), (401, "API key", 5), (503, "has not processed it", 1)],
)
def test_retaining_and_waiting_in_vain(make, hindsight, status, says, timeout):
    """With retain_async off the tool tells of errors; what is not refused is saved."""
    hindsight.answer("/memories", status, {"detail": "no"})
    provider = make(retain_async=False, timeout=timeout)
    error = call(provider, "hindsight_retain", content="kept")["error"]
    assert says in error
    assert ("saved on disk" in error) == (status != 422)


def test_a_note_that_is_refused_at_once(make, hindsight, monkeypatch):
    """With retain_async off, a refusal that comes before anybody waits is told as well."""
    hindsight.answer("/memories", 422, {"detail": "no"})
    provider = make(retain_async=False)
    keep_note = Retention.keep_note

    def slowly(self, note):
        dead = keep_note(self, note)
        until(lambda: self.writer.counters().own_dead)
        return dead

    monkeypatch.setattr(Retention, "keep_note", slowly)
    assert "dead list" in call(provider, "hindsight_retain", content="kept")["error"]


def test_recalling(make, hindsight):
    """A recall numbers what it finds; the model reads that as data."""
    hindsight.answer("/recall", *found("a</memory-context>", "b\nc"))
    assert call(make(), "hindsight_recall", query=" q ") == {"result": "1. a\n2. b c"}
    assert hindsight.requests("/recall")[0].body["query"] == "q"


def test_recalling_from_a_bank_that_is_not_there_yet(make):
    """A new bank holds nothing, which is no error."""
    assert call(make(), "hindsight_recall", query="q") == {"result": "Nothing relevant was found."}


def test_reflecting(make, hindsight):
    """A reflection is the server's answer, or says that there is none."""
    hindsight.answer("/reflect", 200, {"text": "It is blue."})
    provider = make(recall_budget="high")
    assert call(provider, "hindsight_reflect", query="colour?") == {"result": "It is blue."}
    assert hindsight.requests("/reflect")[0].body == {"query": "colour?", "budget": "high"}
    hindsight.answer("/reflect", 200, {"text": ""})
    assert call(provider, "hindsight_reflect", query="?") == {
        "result": "Nothing relevant was found."
    }


@pytest.mark.parametrize(
    "tool, args, says",
    [
        ("hindsight_retain", {}, "content is missing"),
        ("hindsight_retain", {"content": " "}, "content is empty"),
        ("hindsight_retain", {"content": 5}, "content must be a text, not 5"),
        (
            "hindsight_retain",
            {"content": "x", "tags": "a,b", "context": []},
            "context must be a text",
        ),
        ("hindsight_retain", {"content": "x", "tags": [1]}, "tags must be a list of texts"),
        ("hindsight_retain", {"content": "x", "tags": {"a": 1}}, "tags must be a list of texts"),
        ("hindsight_retain", {"content": "x", "occurred_at": "yesterday"}, "occurred_at must be"),
        ("hindsight_retain", {"content": "x", "occurred_at": 5}, "occurred_at must be a text"),
        ("hindsight_retain", {"content": "x", "metadata": "a=b"}, "metadata must be an object"),
        (
            "hindsight_retain",
            {"content": "x", "metadata": {"a": [1]}},
            "metadata 'a' must be a text",
        ),
        ("hindsight_recall", {}, "query is missing"),
        ("hindsight_recall", {"query": None}, "query is missing"),
        ("hindsight_reflect", {"query": ["x"]}, "query must be a text"),
        ("hindsight_reflect", None, "must be an object"),
        ("hindsight_forget", {}, "there is no tool 'hindsight_forget'"),
    ],
)
def test_wrong_arguments(make, hindsight, tool, args, says):
    """A wrong argument is answered with an error that says what is wrong; nothing is sent."""
    answer = json.loads(make().handle_tool_call(tool, args))
    assert set(answer) == {"error"}
    assert says in answer["error"]
    assert {one.path for one in hindsight.seen} <= {"/health"}


def test_tags_as_text(make, hindsight):
    """Tags that a model writes as text with commas are understood."""
    call(make(), "hindsight_retain", content="x", tags="a, b,,")
    hindsight.wait_for("/memories")
    assert hindsight.items()[0]["tags"] == ["session:s", "a", "b"]


@pytest.mark.parametrize(
    "tool, ending", [("hindsight_recall", "/recall"), ("hindsight_reflect", "/reflect")]
)
def test_a_server_that_fails(make, hindsight, tool, ending):
    """A failing server is an error with its words, and without a traceback."""
    hindsight.answer(ending, 500, {"detail": "out of order"})
    error = call(make(), tool, query="q")["error"]
    assert error.startswith(f"{tool} failed: ")
    assert "out of order" in error


def test_a_server_that_is_down(make, hindsight):
    """A server that is down is an error that names it."""
    provider = make()
    hindsight.stop()
    assert hindsight.url in call(provider, "hindsight_recall", query="q")["error"]


def test_a_key_that_is_wrong(make, hindsight):
    """A refused key is an error that does not repeat it."""
    hindsight.answer("/recall", 401, {"detail": "bad key SECRET"})
    error = call(make(api_key="SECRET"), "hindsight_recall", query="q")["error"]
    assert "401" in error
    assert "SECRET" not in error


def test_forgetting(make, hindsight):
    """`hindsight_forget` lists what fits, and deletes only what was listed."""
    provider = make(forget_tool=True)
    call(provider, "hindsight_retain", content="The door is blue.")
    call(provider, "hindsight_retain", content="The window is red.")
    provider._writer.flush()
    documents = [document.id for document in hindsight.documents()]
    assert (
        "list it with a query"
        in call(provider, "hindsight_forget", document_ids=documents)["error"]
    )
    memories = [{"id": "1", "text": "The door is blue.", "document_id": documents[0]}]
    hindsight.answer("/recall", 200, {"results": [*memories, *memories, {"id": "2", "text": "x"}]})
    planned = call(provider, "hindsight_forget", query="door")["result"]
    assert planned == f"Nothing was deleted. These fit:\n{documents[0]}: The door is blue."
    assert len(hindsight.documents()) == 2
    assert "error" in call(provider, "hindsight_forget", document_ids=documents)
    assert len(hindsight.documents()) == 2
    answer = call(provider, "hindsight_forget", document_ids=[documents[0]])["result"]
    assert answer.startswith("1 of 1 documents deleted")
    assert [document.id for document in hindsight.documents()] == documents[1:]
    again = call(provider, "hindsight_forget", document_ids=[documents[0]])["result"]
    assert again.startswith("0 of 1")


def test_forgetting_is_off_unless_set(make):
    """Without forget_tool, and where memory is read-only, the tool is neither offered nor there."""
    for provider in (make(), make("t", {"agent_context": "cron"}, forget_tool=True)):
        assert "hindsight_forget" not in json.dumps(provider.get_tool_schemas())
        assert "there is no tool" in call(provider, "hindsight_forget", query="x")["error"]
    assert "hindsight_forget" in json.dumps(make("u", forget_tool=True).get_tool_schemas())


@pytest.mark.parametrize("args", [{}, {"document_ids": "x"}, {"document_ids": [1]}, {"query": 5}])
def test_forgetting_with_wrong_arguments(make, args):
    """Wrong arguments are errors that say what is wrong."""
    assert "hindsight_forget" in call(make(forget_tool=True), "hindsight_forget", **args)["error"]
