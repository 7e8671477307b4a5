"""The bank of a session."""

from __future__ import annotations

import pytest

from hindsight_exec import Settings
from hindsight_exec.hermes import identity
from hindsight_exec.hermes.identity import Identity

TOLD = {
    "platform": "telegram",
    "user_id": "Ada Lovelace/7",
    "agent_identity": "coder",
    "agent_workspace": "hermes",
}


@pytest.mark.parametrize(
    "template, bank",
    [
        ("", "hermes"),
        ("hermes-{profile}", "hermes-coder"),
        ("{workspace}_{platform}_{user}", "hermes_telegram_Ada-Lovelace-7"),
        ("b-{session}", "b-s1"),
        ("fixed", "fixed"),
        ("a/b", "a-b"),
        ("{user}" * 30, "Ada-Lovelace-7" * 13 + "Ada-Lovela"),
    ],
)
def test_templates(template, bank):
    """A template's places are filled with what Hermes tells, fit for a URL."""
    settings = Settings(bank_id_template=template)
    assert Identity.of("s1", TOLD).bank(settings) == bank


@pytest.mark.parametrize(
    "template, bank",
    [
        ("hermes-{user}", "hermes"),
        ("{platform}--{user}__x", "x"),
        ("{user}", "mine"),
        ("-_-", "mine"),
    ],
)
def test_empty_places(template, bank):
    """Empty places leave no separators behind; where nothing is left, bank_id counts."""
    assert Identity.of("s1", {}).bank(Settings(bank_id="mine", bank_id_template=template)) == bank


@pytest.mark.parametrize(
    "template", ["{nobody}", "{user.__class__}", "{0}", "{", "}", "{{user}}", "{user!r}"]
)
def test_wrong_templates(template, caplog, monkeypatch):
    """A template with other places is one warning, and bank_id is used instead."""
    monkeypatch.setattr(identity, "_warned", set())
    settings = Settings(bank_id="mine", bank_id_template=template)
    for _ in range(3):
        assert Identity.of("s1", TOLD).bank(settings) == "mine"
    (record,) = caplog.records
    assert repr(template) in record.getMessage()
    assert "'mine'" in record.getMessage()


def test_what_hermes_tells_may_be_anything():
    """Numbers, None and blanks become words or nothing."""
    told = {"user_id": 7, "chat_id": None, "thread_id": " ", "parent_session_id": 5}
    who = Identity.of(12, told)
    assert (who.session, who.parent, who.facts) == ("12", "5", (("user_id", "7"),))
