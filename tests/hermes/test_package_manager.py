"""The package manager of Hermes 0.22: it installs what we need, and an update keeps us.

It resolves all plugins of all profiles together with Hermes itself, and switches off those
that do not fit.
"""

from __future__ import annotations

import shutil

import pytest

from hindsight_exec.hermes.eviction import eviction

from .hosts import HERMES, marks
from .llm import REPLY

pytestmark = [
    *marks,
    pytest.mark.skipif(
        HERMES is None or HERMES.generation < (0, 22), reason="Hermes before 0.22 has none"
    ),
]


@pytest.fixture
def managed(host, checkout):
    host.use(checkout)
    return host


def add_plugin(home, name, dependency):
    """Another plugin, enabled, with a dependency of its own."""
    folder = home / "plugins" / name
    folder.mkdir()
    (folder / "__init__.py").write_text("def register(ctx): pass\n")
    (folder / "plugin.yaml").write_text(
        f"name: {name}\nversion: 1.0.0\ndescription: d\npip_dependencies: [{dependency!r}]\n"
    )


def test_what_install_writes(managed, hindsight):
    """Setup brings aiohttp, an update keeps the provider, and its folder needs nothing else."""
    managed.run(managed.hermes, "memory", "setup", "hindsight_exec")
    before = (managed.home / "config.yaml").read_text()
    managed.run(managed.checkout.update())
    assert (managed.home / "config.yaml").read_text() == before
    python = str(managed.checkout.prepared(managed.home))
    managed.run([python, "-c"], "import aiohttp")
    managed.run([python, "-c"], "import hindsight_exec", status=1)
    managed.printed = ""
    assert REPLY in managed.run([python, "-m", "hermes_cli.main", "-z"], "the door is blue")
    assert hindsight.said() == ["the door is blue"]
    managed.run([python, "-m", "hermes_cli.main", "hindsight_exec"], "doctor")
    managed.check_silence()


def test_a_clone_in_two_profiles_beside_other_plugins(managed, clone):
    """A clone and what install writes resolve together, each in a profile, beside others."""
    managed.run(managed.hermes, "profile", "create", "work", "--no-alias", "--no-skills")
    work = managed.home / "profiles" / "work"
    shutil.copytree(clone, work / "plugins" / "hindsight_exec")
    (work / "config.yaml").write_text("memory:\n  provider: hindsight_exec\n")
    add_plugin(managed.home, "other", "idna>=3,<4")
    with (managed.home / "config.yaml").open("a") as config:
        config.write("plugins:\n  enabled: [other]\n")
    before = (managed.home / "config.yaml").read_text()
    managed.run(managed.checkout.update())
    assert (managed.home / "config.yaml").read_text() == before
    assert eviction(work) is None
    lock = managed.checkout.prepared(managed.home).parents[2] / "workspace" / "uv.lock"
    text = lock.read_text()
    assert text.count('name = "hermes-plugin-hindsight-exec-') == 2
    assert 'name = "hermes-plugin-other-' in text


def test_switched_off(managed):
    """Where an update does switch the provider off, we say when and why, and bring it back."""
    manifest = managed.home / "plugins" / "hindsight_exec" / "plugin.yaml"
    good = manifest.read_text()
    manifest.write_text(good.replace("aiohttp>=3.9.1,<4", "aiohttp>=99"))
    managed.run(managed.checkout.update())
    found = eviction(managed.home)
    assert found is not None
    assert "since 20" in found.found
    assert "aiohttp" in found.found
    assert "switched off" in managed.run(managed.ours, "hermes", "status", status=1)
    manifest.write_text(good)
    managed.run(managed.ours, "hermes", "install")
    assert eviction(managed.home) is None
    managed.run(managed.checkout.update())
    assert eviction(managed.home) is None
    assert "installed: yes" in managed.run(managed.ours, "hermes", "status")
