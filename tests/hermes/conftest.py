"""Providers in a Hermes folder of their own, and the server they use."""

from __future__ import annotations

import os

import pytest

from hindsight_exec.hermes import HindsightMemoryProvider
from hindsight_exec.settings import keyring

from .recording import Hindsight, configure


@pytest.fixture
def clean(tmp_path, monkeypatch):
    """No configuration but the test's."""
    for name in list(os.environ):
        if name.startswith(("HINDSIGHT_", "HERMES_")):
            monkeypatch.delenv(name)
    home = tmp_path / "user"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(keyring, "_keys", {})
    return home


@pytest.fixture
def hindsight(tmp_path):
    server = Hindsight(tmp_path / "hindsight.db")
    yield server
    server.close()


@pytest.fixture
def home(tmp_path, clean, monkeypatch):
    """The folder of Hermes."""
    folder = tmp_path / "hermes"
    folder.mkdir()
    monkeypatch.setenv("HERMES_HOME", str(folder))
    return folder


@pytest.fixture
def make(home, hindsight):
    """Makes a provider in a session: `make(session="s", told={…}, key=value…)`."""
    made = []

    def make(session="s", told=None, *, where=None, **values):
        folder = where or home
        configure(folder, **{"api_url": hindsight.url, **values})
        provider = HindsightMemoryProvider()
        made.append(provider)
        provider.initialize(
            session, **{"hermes_home": str(folder), "agent_context": "primary", **(told or {})}
        )
        return provider

    yield make
    for provider in made:
        provider.shutdown()
