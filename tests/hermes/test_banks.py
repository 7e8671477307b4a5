"""Several banks, and the mental model of one."""

from __future__ import annotations

import json
import re

import pytest

from hindsight_exec.hermes import memories

from .test_recall import found
from .test_tools import call


@pytest.fixture
def banks(hindsight, monkeypatch):
    """Answers of three banks."""
    monkeypatch.setattr(memories, "_warned", set())
    hindsight.answer("/banks/own/memories/recall", *found("o1", "o2"))
    hindsight.answer("/banks/team/memories/recall", *found("t1", "t2", "t3"))
    hindsight.answer("/banks/docs/memories/recall", *found("d1"))
    return {"bank_id": "own", "additional_banks": ["team", "docs"]}


def test_additional_banks(make, banks):
    """Memories of all banks are recalled in turn, and those of other banks are marked."""
    provider = make(**banks)
    provider.queue_prefetch("q")
    shown = re.findall(r'- "(\w+)"(.*)', provider.prefetch("q"))
    assert shown == [
        ("o1", ""),
        ("t1", " (bank team)"),
        ("d1", " (bank docs)"),
        ("o2", ""),
        ("t2", " (bank team)"),
        ("t3", " (bank team)"),
    ]


def test_one_bank_that_fails(make, hindsight, banks, caplog):
    """A bank that fails is one warning, and hides nothing of the others."""
    hindsight.answer("/banks/team/memories/recall", 403, {"detail": "not yours"})
    provider = make(**banks)
    for _ in range(2):
        provider.queue_prefetch("q")
        shown = provider.prefetch("q")
        assert re.findall(r'- "(\w+)"', shown) == ["o1", "d1", "o2"]
    (warning,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert "bank team cannot be recalled from" in warning


def test_tools_of_several_banks(make, hindsight, banks):
    """The tools search all banks, or the one that the model names."""
    provider = make(**banks)
    schemas = {one["name"]: one["parameters"]["properties"] for one in provider.get_tool_schemas()}
    assert schemas["hindsight_recall"]["bank"]["enum"] == ["team", "docs"]
    assert "bank" not in schemas["hindsight_retain"]
    assert call(provider, "hindsight_recall", query="q")["result"].count("\n") == 5
    assert call(provider, "hindsight_recall", query="q", bank="docs") == {"result": "1. d1"}
    hindsight.answer("/banks/team/reflect", 200, {"text": "of the team"})
    answer = call(provider, "hindsight_reflect", query="q", bank="team")
    assert answer == {"result": "of the team"}
    assert "there is no bank" in call(provider, "hindsight_recall", query="q", bank="x")["error"]


def test_one_bank_only(make):
    """Without additional banks the tools have no argument for them."""
    assert "bank" not in json.dumps(make().get_tool_schemas()[1]["parameters"])


def test_nothing_is_retained_elsewhere(make, hindsight, banks):
    """Turns and notes go to the conversation's own bank."""
    provider = make(**banks)
    provider.sync_turn("hello there", "ok")
    call(provider, "hindsight_retain", content="note")
    provider.shutdown()
    assert {one.path.split("/")[4] for one in hindsight.requests("/memories", "POST")} == {"own"}


def test_a_mental_model(make, hindsight):
    """A mental model is in the system prompt, quoted, and fetched once a session."""
    text = "# Ada\nlikes <b>blue</b> doors</memory-context>"
    hindsight.answer("/mental-models/me", 200, {"id": "me", "content": text})
    provider = make(mental_model_id="me")
    first = provider.system_prompt_block()
    assert first.endswith("> # Ada\n> likes \\u003cb\\u003eblue\\u003c/b\\u003e doors")
    hindsight.answer("/mental-models/me", 200, {"id": "me", "content": "changed"})
    assert provider.system_prompt_block() == first
    assert len(hindsight.requests("/mental-models/me")) == 1
    provider.on_session_switch("t", parent_session_id="s", reset=True)
    assert provider.system_prompt_block().endswith("> changed")


@pytest.mark.parametrize("status", [404, 500])
def test_a_mental_model_that_is_not_there(make, hindsight, status):
    """A mental model that cannot be fetched leaves the prompt as it is, for the whole session."""
    hindsight.answer("/mental-models/me", status, {"detail": "no"})
    provider = make(mental_model_id="me")
    first = provider.system_prompt_block()
    assert "What memory knows" not in first
    hindsight.answer("/mental-models/me", 200, {"id": "me", "content": "there"})
    assert provider.system_prompt_block() == first
