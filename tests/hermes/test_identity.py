"""The bank of a session."""

from __future__ import annotations

import pytest

from hindsight_exec import Settings
from hindsight_exec.hermes import host
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


def test_where_a_session_works(tmp_path):
    """The folder that a host names is the project of the session."""
    folder = tmp_path / "my tool"
    folder.mkdir()
    settings = Settings(bank_id_template="{project}_{git_project}")
    assert Identity.of("s", {"cwd": str(folder)}).bank(settings) == "my-tool_my-tool"
    assert Identity.of("s", {}).bank(settings) == "hermes"


@pytest.mark.parametrize("platform, known", [("cli", True), (None, True), ("telegram", False)])
def test_where_a_terminal_is(tmp_path, monkeypatch, platform, known):
    """A host that names no folder has its own, if the session is on its terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TERMINAL_CWD", raising=False)
    assert host.working_folder({"platform": platform}) == (str(tmp_path) if known else "")
    monkeypatch.setenv("TERMINAL_CWD", "/elsewhere")
    assert host.working_folder({"platform": platform}) == ("/elsewhere" if known else "")


def test_what_hermes_tells_may_be_anything():
    """Numbers, None and blanks become words or nothing."""
    told = {"user_id": 7, "chat_id": None, "thread_id": " ", "parent_session_id": 5}
    who = Identity.of(12, told)
    assert (who.session, who.parent, who.facts) == ("12", "5", (("user_id", "7"),))
