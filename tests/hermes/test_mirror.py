"""`mirror_to_own_bank`: what is said in a project is kept in the user's own bank, too."""

from __future__ import annotations

import json
import re

import pytest

from .recording import LIMIT
from .test_recall import found
from .test_tools import call
from .test_unprocessed import FACT, asked

PROJECT = {"platform": "cli", "cwd": "/src/app"}
ELSEWHERE = {"platform": "telegram"}
MIRRORED = {"bank_id": "own", "bank_id_template": "{project}", "mirror_to_own_bank": True}
BANKS = ("app", "own")


def test_both_banks(make, hindsight):
    """Turns and notes of a project are in both banks, under the same ids, once in each."""
    provider = make(told=PROJECT, **MIRRORED)
    for number in range(3):
        provider.sync_turn(f"question {number}", "ok")
    call(provider, "hindsight_retain", content=FACT)
    provider.shutdown()
    first, second = ([*hindsight.documents(bank)] for bank in BANKS)
    assert first == second
    assert len(first) == 2
    for bank in BANKS:
        sent = hindsight.requests(f"/banks/{bank}/memories", "POST")
        ids = [item["document_id"] for one in sent for item in one.body["items"]]
        assert len(ids) == len(set(ids)) == 2


@pytest.mark.parametrize(
    "told, values",
    [
        (ELSEWHERE, MIRRORED),
        (PROJECT, {**MIRRORED, "bank_id_template": ""}),
        (PROJECT, {**MIRRORED, "mirror_to_own_bank": False}),
        ({**PROJECT, "user_id": "7"}, {**MIRRORED, "bank_id_by_user": {"7": "own"}}),
    ],
)
def test_one_bank(make, hindsight, told, values):
    """Outside of a project, without a bank for projects, and unless it is set, there is one copy."""
    provider = make(told=told, **values)
    provider.sync_turn("question", "ok")
    provider.shutdown()
    assert len(hindsight.items()) == 1


def test_the_own_bank_of_a_user(make, hindsight):
    """The own bank is what the template names without the project: another user's is never it."""
    values = {**MIRRORED, "bank_id_template": "{user}-{git_project}"}
    provider = make(told={**PROJECT, "user_id": "ada"}, **values)
    provider.sync_turn("question", "ok")
    provider.shutdown()
    assert hindsight.said("ada-app") == hindsight.said("ada") == ["question"]
    assert hindsight.said("own") == []


@pytest.mark.parametrize("refused", BANKS)
def test_a_bank_that_refuses(make, hindsight, refused):
    """A dead letter of one bank does not hold the other."""
    hindsight.answer(f"/banks/{refused}/memories", 422, {"detail": "no"})
    provider = make(told=PROJECT, **MIRRORED)
    provider.sync_turn("question", "ok")
    provider._writer.flush()
    (other,) = set(BANKS) - {refused}
    assert hindsight.said(other) == ["question"]
    assert provider.get_status_config({})["dead"].startswith("1 turn:")


def test_a_server_that_comes_back(make, hindsight):
    """Both copies wait on disk, and each arrives once."""
    hindsight.stop()
    provider = make(told=PROJECT, **MIRRORED)
    provider.sync_turn("question", "ok")
    provider.on_session_end([])
    hindsight.start()
    assert provider._writer.flush(LIMIT)
    assert [hindsight.said(bank) for bank in BANKS] == [["question"]] * 2


@pytest.mark.parametrize("told", [PROJECT, ELSEWHERE])
def test_read_your_own_writes(make, told):
    """What waits is shown once, in a session of the project and in one outside of it."""
    values = {**MIRRORED, "additional_banks": ["own", "app"]}
    make("a", PROJECT, **values).sync_turn(FACT, "ok")
    second = make("b", told, **values)
    assert asked(second).count("Rex") == 1
    assert call(second, "hindsight_recall", query="my dog")["result"].count("Rex") == 1


def test_recall_of_both(make, hindsight):
    """Recalled from both banks, the memories of a document are shown for the first bank only."""
    copied = [
        {"id": "1", "text": "The dog is Rex.", "document_id": "a/1"},
        {"id": "2", "text": "Rex likes the user.", "document_id": "a/1"},
    ]
    own = [
        {"id": "3", "text": "The user has a dog, Rex.", "document_id": "a/1"},
        {"id": "4", "text": "The cat is Tom.", "document_id": "b/1"},
    ]
    same = {"text": "An observation.", "document_id": None}
    hindsight.answer("/app/memories/recall", 200, {"results": [*copied, {"id": "5", **same}]})
    hindsight.answer("/own/memories/recall", 200, {"results": [*own, {"id": "6", **same}]})
    provider = make(told=PROJECT, **MIRRORED, additional_banks=["own"])
    provider.queue_prefetch("dog")
    assert re.findall(r'- "(.*?)"(.*)', provider.prefetch("dog")) == [
        ("The dog is Rex.", ""),
        ("The cat is Tom.", " (bank own)"),
        ("Rex likes the user.", ""),
        ("An observation.", ""),
    ]


def test_forgetting(make, hindsight):
    """What is forgotten in a project is deleted from both banks."""
    provider = make(told=PROJECT, **MIRRORED, forget_tool=True)
    call(provider, "hindsight_retain", content=FACT)
    provider._writer.flush()
    (document,) = hindsight.documents("own")
    hindsight.answer("/app/memories/recall", *found("Rex"))
    body = {"results": [{"id": "1", "text": "Rex", "document_id": document.id}]}
    hindsight.answer("/app/memories/recall", 200, body)
    call(provider, "hindsight_forget", query="dog")
    answer = call(provider, "hindsight_forget", document_ids=[document.id])["result"]
    assert answer.startswith("1 of 1 documents deleted")
    assert "in the bank own, 1 were there" in answer
    assert [hindsight.documents(bank) for bank in BANKS] == [[], []]


def test_missions(make, hindsight):
    """Both banks get the missions."""
    make(told=PROJECT, **MIRRORED, bank_mission="m")
    seen = hindsight.wait_for("/config", 2, "PATCH")
    assert sorted(one.path.split("/")[4] for one in seen) == sorted(BANKS)


def test_unusable_bank(make, hindsight, caplog):
    """A value that is neither true nor false is one warning, and mirrors nothing."""
    provider = make(told=PROJECT, **{**MIRRORED, "mirror_to_own_bank": "maybe"})
    provider.sync_turn("question", "ok")
    provider.shutdown()
    assert len(hindsight.items()) == 1
    assert "mirror_to_own_bank is 'maybe'" in caplog.text
    assert json.dumps(hindsight.items()).count("question") == 1
