"""`hermes memory setup`: what is asked, what is kept, and what it says at the end."""

from __future__ import annotations

import io
import json
import stat
import sys

import pytest

from hindsight_exec import Settings
from hindsight_exec.hermes import HindsightMemoryProvider

from .recording import Hindsight, configure


@pytest.fixture
def setup(home, monkeypatch, capsys):
    """Answers the questions, one line each; returns what was shown."""

    def setup(*answers):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{one}\n" for one in answers)))
        HindsightMemoryProvider().post_setup(str(home), {"memory": {}})
        return capsys.readouterr().out

    return setup


def saved(home):
    return json.loads((home / "hindsight" / "config.json").read_text())


def test_a_server_on_this_machine(setup, home, hindsight):
    """From nothing to a provider that works: mode, URL, no key, a bank; nothing else is asked."""
    (home / "config.yaml").write_text("# mine\nmodel: x\n")
    shown = setup("local_external", hindsight.url, "", "b")
    assert shown.count("]: ") == 4
    assert saved(home) == {"mode": "local_external", "api_url": hindsight.url, "bank_id": "b"}
    assert (home / "config.yaml").read_text() == (
        "# mine\nmodel: x\nmemory:\n  provider: hindsight_exec\n"
    )
    assert not (home / ".env").exists()
    assert f"server: {hindsight.url}, version" in shown
    assert "Ready" in shown


def test_enter_keeps_everything(setup, home, hindsight):
    """Enter to each question changes no value, be it in config.json or in the environment's file."""
    configure(home, api_url=hindsight.url, bankId="old", recall_budget="low")
    (home / ".env").write_text("OTHER=1\nHINDSIGHT_API_KEY=SECRET\n")
    (home / "config.yaml").write_text("memory:\n  provider: hindsight_exec\n")
    before = Settings.load(home), (home / ".env").read_text()
    shown = setup("", "", "", "")
    assert (Settings.load(home), (home / ".env").read_text()) == before
    assert saved(home)["bankId"] == "old"
    assert "[old]" in shown
    assert "[set]" in shown
    assert "SECRET" not in shown


def test_the_key_goes_to_the_environments_file(setup, home, clean, tmp_path):
    """A new key replaces the old ones wherever they stood, and is shown nowhere; the file keeps its mode."""
    server = Hindsight(tmp_path / "locked.db", api_key="NEW-SECRET")
    try:
        configure(home, api_url=server.url, apiKey="OLD-SECRET")
        (home / ".env").write_text("# mine\nexport HINDSIGHT_API_KEY='OLDER-SECRET'\nOTHER=1\n")
        (home / ".env").chmod(0o640)
        shown = setup("", "", "NEW-SECRET", "")
    finally:
        server.close()
    assert "SECRET" not in shown
    assert "key: accepted" in shown
    text = (home / ".env").read_text()
    assert text == "# mine\nexport HINDSIGHT_API_KEY=NEW-SECRET\nOTHER=1\n"
    assert stat.S_IMODE((home / ".env").stat().st_mode) == 0o640
    assert "apiKey" not in saved(home)


def test_a_key_that_is_refused(setup, home, tmp_path):
    """A wrong key is saved, and what to do about it is said."""
    server = Hindsight(tmp_path / "locked.db", api_key="right")
    try:
        shown = setup("local_external", server.url, "wrong", "")
    finally:
        server.close()
    assert "\N{BALLOT X} key: " in shown
    assert "set HINDSIGHT_API_KEY" in shown
    assert "saved on disk" in shown
    assert "Ready" not in shown


def test_no_server(setup, home, hindsight):
    """A server that does not answer is named, with what to do."""
    hindsight.stop()
    shown = setup("local_external", hindsight.url, "", "")
    assert "\N{BALLOT X} server: " in shown
    assert "hermes hindsight_exec doctor" in shown


def test_wrong_answers_are_asked_again(setup, home, hindsight):
    """An answer that cannot be is asked for again, with the reason."""
    shown = setup("lokal", "local_external", "ftp://x", hindsight.url, "", "a" * 300, "b")
    assert "It must be one of cloud, local_external, local_embedded." in shown
    assert "it must begin with http://" in shown
    assert "It must be text of at most 192 bytes" in shown
    assert saved(home)["bank_id"] == "b"


def test_another_mode(setup, home, hindsight):
    """A change of mode forgets the old server's URL, and asks whether its key is to go along."""
    configure(home, mode="cloud", api_url="http://other.invalid", apiKey="SECRET")
    shown = setup("local_external", "", "-", "")
    assert "belongs to http://other.invalid" in shown
    assert saved(home)["api_url"] == "http://localhost:8888"
    assert Settings.load(home).api_key is None


def test_the_users_own_file_is_taken_over(setup, home, clean, hindsight):
    """What ~/.hindsight/config.json held goes on counting, and that file stays as it is."""
    own = clean / ".hindsight" / "config.json"
    own.parent.mkdir()
    text = json.dumps({"mode": "local_external", "api_url": hindsight.url, "recall_budget": "low"})
    own.write_text(text)
    setup("", "", "", "mine")
    assert own.read_text() == text
    assert saved(home)["recall_budget"] == "low"
    assert Settings.load(home).api_url == hindsight.url


def test_giving_up(setup, home):
    """The end of the input, or Ctrl-C, changes nothing."""
    assert "Nothing was changed" in setup("local_external")
    assert list(home.iterdir()) == []


def test_a_file_that_cannot_be_read(setup, home):
    """A damaged config.json is named before anything is asked, and stays."""
    path = home / "hindsight" / "config.json"
    path.parent.mkdir()
    path.write_text("{broken")
    shown = setup()
    assert "repair or remove it" in shown
    assert "]: " not in shown
    assert path.read_text() == "{broken"


def test_a_config_yaml_that_is_not_understood(setup, home, hindsight):
    """Where memory.provider cannot be set, the command that does is said, and nothing is written."""
    (home / "config.yaml").write_text("memory: &m {provider: ''}\nother: *m\n")
    shown = setup("local_external", hindsight.url, "", "")
    assert "hermes config set memory.provider hindsight_exec" in shown
    assert not (home / "hindsight").exists()


def test_all_files_are_checked_before_one_is_written(setup, home):
    """A `.env` that cannot be changed leaves all files as they were, and is named."""
    raw = "HINDSIGHT_API_KEY=old\n".encode("utf-32")
    (home / ".env").write_bytes(raw)
    shown = setup("local_external", "http://127.0.0.1:9", "new", "b")
    assert f"Not set up: {home / '.env'} cannot be changed: it is UTF-32" in shown
    assert not (home / "hindsight" / "config.json").exists()
    assert not (home / "config.yaml").exists()
    assert (home / ".env").read_bytes() == raw


def test_a_file_in_another_encoding(setup, home, hindsight):
    """A `.env` with bytes that are not UTF-8 is changed all the same, and keeps them."""
    (home / ".env").write_bytes("NAME=caf\u00e9\nHINDSIGHT_API_KEY=old\n".encode("latin-1"))
    setup("local_external", hindsight.url, "new", "b")
    assert (home / ".env").read_bytes() == "NAME=caf\u00e9\nHINDSIGHT_API_KEY=new\n".encode(
        "latin-1"
    )
    assert saved(home)["bank_id"] == "b"
