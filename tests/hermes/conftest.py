"""Providers in a Hermes folder of their own, and the server they use."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from hindsight_exec.hermes import HindsightMemoryProvider
from hindsight_exec.settings import keyring

from .hosts import Host
from .llm import FakeLLM
from .managed import Checkout
from .recording import Hindsight, configure

TOP = Path(__file__).parents[2]


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


@pytest.fixture
def llm():
    llm = FakeLLM()
    yield llm
    llm.close()


@pytest.fixture
def host(tmp_path, home, llm, hindsight):
    """The Hermes that is installed here, with our plugin in it."""
    host = Host(tmp_path, home, llm, hindsight.url)
    yield host
    host.close()


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    """Hermes 0.22 under its own package manager."""
    return Checkout(tmp_path_factory.mktemp("managed"))


@pytest.fixture(scope="session")
def clone(tmp_path_factory):
    """A git repository of all that the repository of this project holds."""
    if not (TOP / "plugin.yaml").is_file():
        pytest.skip("the sources are not beside the tests")
    folder = tmp_path_factory.mktemp("clone") / "hindsight_exec"
    ignored = (TOP / ".gitignore").read_text(encoding="utf-8").replace("/", "").split()
    shutil.copytree(TOP, folder, ignore=shutil.ignore_patterns(".git", *ignored))
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "clone")
    return folder


def git(folder, *args):
    command = ["git", "-C", folder, "-c", "user.name=n", "-c", "user.email=e", *args]
    subprocess.run(command, check=True)
