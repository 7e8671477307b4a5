"""How the provider stands, and what Hermes asks, saves and shows of it."""

from __future__ import annotations

import importlib
import json
import logging
import os
import stat
import sys
import threading
import types

import pytest

from hindsight_exec import Settings
from hindsight_exec.errors import ConfigError
from hindsight_exec.hermes import (
    HindsightMemoryProvider,
    config_schema,
    host,
    register,
    setup,
)
from hindsight_exec.settings.config import configurable

from .recording import configure


@pytest.fixture
def provider(home):
    return HindsightMemoryProvider()


def test_register(provider):
    """Hermes is given a provider by name; a host without memory is left alone."""

    class Context:
        given = None

        def register_memory_provider(self, given):
            self.given = given

    context = Context()
    register(context)
    assert isinstance(context.given, HindsightMemoryProvider)
    assert context.given.name == "hindsight_exec"
    register(object())


def test_importing_is_cheap(run):
    """Importing the package needs no Hermes, and brings neither aiohttp, asyncio nor sqlite3."""
    program = (
        "import sys, hindsight_exec.hermes; "
        "print([name for name in ('aiohttp', 'asyncio', 'sqlite3') if name in sys.modules])"
    )
    assert run(program).out == "[]\n"


@pytest.mark.parametrize(
    "values, environ, available",
    [
        ({}, {}, True),  # local_external
        ({"mode": "cloud"}, {}, False),
        ({"mode": "cloud", "apiKey": "k"}, {}, True),
        ({"mode": "cloud", "api_url": "http://h"}, {}, True),
        ({"mode": "cloud"}, {"HINDSIGHT_API_KEY": "k"}, True),
        ({"mode": "cloud"}, {"HINDSIGHT_API_URL": "http://h"}, True),
        ({"mode": "local_embedded"}, {}, False),
        ({"api_url": "nonsense"}, {}, False),
    ],
)
def test_availability(provider, home, monkeypatch, values, environ, available):
    """It is available once a server is configured, and says what is missing otherwise."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    configure(home, **values)
    assert provider.is_available() is available
    assert bool(provider.unavailable_reason()) is not available


def test_not_configured_at_all(provider):
    """Without any configuration it says how to configure it, and the chat goes on."""
    assert "hermes memory setup" in provider.unavailable_reason()
    warned = []
    provider.initialize("s", warning_callback=warned.append)
    provider.sync_turn("a", "b")
    provider.queue_prefetch("a")
    assert provider.prefetch("a") == ""
    assert provider.system_prompt_block() == ""
    assert (
        "no server"
        in json.loads(provider.handle_tool_call("hindsight_recall", {"query": "q"}))["error"]
    )
    (warning,) = warned
    assert "no server is configured" in warning


def test_a_warning_callback_that_fails(provider, home):
    """What the host's callback raises stops nothing."""

    def fail(text):
        raise RuntimeError

    configure(home, api_url="nonsense")
    provider.initialize("s", warning_callback=fail)


def test_one_warning_for_hundreds_of_providers(home, own_log):
    """Providers of one folder share one reading: a wrong value is one warning, until it changes."""
    configure(home, api_url="http://h", recall_budget="huge")
    for _ in range(50):
        assert HindsightMemoryProvider().is_available()
    assert [record.levelno for record in own_log.records] == [logging.WARNING]
    configure(home, api_url="http://h", recall_budget="gigantic")
    assert HindsightMemoryProvider().is_available()
    assert len(own_log.records) == 2


def test_the_config_schema(provider, home):
    """The form has each setting with what is configured, its choices and condition; keys as secrets."""
    configure(home, api_url="http://h/", recall_types=["world", "observation"], timeout=7)
    schema = provider.get_config_schema()
    by_key = {field["key"]: field for field in schema}
    assert list(by_key) == [item.name for item in configurable()]
    assert by_key["mode"]["default"] == "local_external"
    assert by_key["api_url"]["default"] == "http://h"
    assert by_key["api_key"]["secret"] is True
    assert by_key["api_key"]["env_var"] == "HINDSIGHT_API_KEY"
    assert by_key["memory_mode"]["choices"] == ["hybrid", "context", "tools"]
    assert by_key["recall_types"]["default"] == "world,observation"
    assert by_key["llm_model"]["when"] == {"mode": "local_embedded"}
    assert by_key["timeout"] == {
        "key": "timeout",
        "description": by_key["timeout"]["description"],
        "default": 7.0,
        "type": "number",
        "minimum": 0.001,
    }
    assert "type" not in by_key["port_health_grace_timeout"]  # it may be empty
    assert all(field["description"] for field in schema)
    json.dumps(schema)


CONFIGURED = {
    "mode": "local_external",
    "apiUrl": "http://h",
    "recall_types": ["world", "observation"],
    "recall_budget": "huge",
    "timeout": 7,
    "mine": {"kept": True},
}


@pytest.mark.parametrize(
    "convert",
    [
        lambda value: value,
        str,
        lambda value: str(value).lower() if isinstance(value, bool) else str(value),
    ],
)
def test_saving_the_form_untouched(provider, home, convert):
    """A form that comes back as it was shown changes nothing, whatever types it kept."""
    configure(home, **CONFIGURED)
    path = home / "hindsight" / "config.json"
    before = path.read_bytes()
    schema = [field for field in provider.get_config_schema() if not field.get("secret")]
    provider.save_config({field["key"]: convert(field["default"]) for field in schema}, str(home))
    assert path.read_bytes() == before
    # A host that reads the file itself shows what is in it.
    known = {item.name for item in configurable()} & CONFIGURED.keys()
    provider.save_config({key: convert(CONFIGURED[key]) for key in known}, str(home))
    assert path.read_bytes() == before


def test_saving_one_field(provider, home):
    """One value that was changed is saved in its type, and replaces the one under an older name."""
    configure(home, **CONFIGURED)
    path = home / "hindsight" / "config.json"

    def saved(**changed):
        form = {
            field["key"]: field["default"]
            for field in provider.get_config_schema()
            if not field.get("secret")
        }
        provider.save_config({**form, **changed}, str(home))
        return json.loads(path.read_text())

    expected = {**CONFIGURED, "auto_recall": False, "api_url": "http://i"}
    del expected["apiUrl"]
    assert saved(auto_recall="False", api_url="http://i") == expected
    assert saved(retain_every_n_turns="3") == {**expected, "retain_every_n_turns": 3}
    assert saved(recall_tags="a,b") == {**expected, "retain_every_n_turns": 3, "recall_tags": "a,b"}
    assert saved(recall_tags="-") == {**expected, "retain_every_n_turns": 3}
    with pytest.raises(
        ValueError, match=r"timeout must be a number from 0\.001 to 4000000, not 'soon'"
    ):
        saved(timeout="soon")
    assert saved() == {**expected, "retain_every_n_turns": 3}


def test_saving(provider, home):
    """Values are merged into config.json, without secrets, readable by the owner only."""
    provider.save_config({"bank_id": "b", "api_key": "SECRET"}, str(home))
    provider.save_config({"recall_budget": "low", "mode": "local_external"}, str(home))
    path = home / "hindsight" / "config.json"
    assert json.loads(path.read_text()) == {
        "bank_id": "b",
        "recall_budget": "low",
        "mode": "local_external",
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["config.json"]


def test_saving_what_the_users_own_file_says(provider, home, clean):
    """The first save takes over what ~/.hindsight/config.json says, which the new file hides."""
    path = clean / ".hindsight" / "config.json"
    path.parent.mkdir()
    path.write_text('{"mode": "local_external", "bank_id": "mine"}')
    provider.save_config({"recall_budget": "low"}, str(home))
    saved = json.loads((home / "hindsight" / "config.json").read_text())
    assert saved == {"mode": "local_external", "bank_id": "mine", "recall_budget": "low"}


def test_the_panels_file(home):
    """The file in the folder named like the provider is a link to ours, and no other file is touched."""
    ours, panels = home / "hindsight" / "config.json", home / "hindsight_exec" / "config.json"
    configure(home, bank_id="b")
    assert setup.link_for_panel(home)
    assert setup.link_for_panel(home)
    assert json.loads(panels.read_text())["bank_id"] == "b"
    setup.unlink_for_panel(home)
    assert not panels.parent.exists()
    panels.parent.mkdir()
    panels.write_text("{}")
    assert not setup.link_for_panel(home)
    setup.unlink_for_panel(home)
    assert (panels.read_text(), json.loads(ours.read_text())["bank_id"]) == ("{}", "b")


def test_no_link_to_nothing(home):
    """Without our file there is no link: `hermes profile create --clone` fails on one."""
    panels = home / "hindsight_exec" / "config.json"
    assert setup.link_for_panel(home)
    assert not panels.is_symlink()
    configure(home, bank_id="b")
    assert setup.link_for_panel(home)
    assert panels.is_symlink()
    (home / "hindsight" / "config.json").unlink()
    assert setup.link_for_panel(home)
    assert not panels.is_symlink()


def test_a_cloned_profile(home):
    """A profile's clone, which got the folder named like the provider, is configured the same."""
    panels = home / "hindsight_exec" / "config.json"
    panels.parent.mkdir()
    panels.write_text('{"mode": "local_external", "bank_id": "b"}')
    assert Settings.load(home).bank_id == "b"
    assert setup.link_for_panel(home)
    assert panels.is_symlink()
    assert Settings.load(home).bank_id == "b"
    assert Settings.load(home).source == home / "hindsight" / "config.json"


@pytest.mark.parametrize("content", ["{broken", "[]"])
def test_saving_destroys_nothing(provider, home, content):
    """A config.json that cannot be read is an error, and stays as it is."""
    path = home / "hindsight" / "config.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        provider.save_config({"bank_id": "b"}, str(home))
    assert path.read_text() == content


def test_status(make, hindsight, home):
    """The status shows where turns go and how many wait, and no key."""
    fresh = HindsightMemoryProvider()
    provider = make(api_key="SECRET", bank_id="b")
    hindsight.stop()
    provider.sync_turn("one", "ok")
    provider.sync_turn("two", "ok")
    for shown in (provider.get_status_config({}), fresh.get_status_config(None)):
        assert shown["api_url"] == hindsight.url
        assert (shown["bank"], shown["api_key"]) == ("b", "set")
        assert shown["waiting"].startswith("2 turns, the oldest for ")
        assert shown["dead"] == "0 turns"
        assert "SECRET" not in str(shown)


def test_status_of_dead_turns(make, hindsight):
    """Turns that the server refuses for good are shown as dead, with its words."""
    hindsight.answer("/memories", 422, {"detail": "too odd"})
    provider = make()
    provider.sync_turn("odd", "ok")
    provider._writer.flush()
    shown = provider.get_status_config({})
    assert shown["dead"].startswith("1 turn:")
    assert shown["waiting"] == "0 turns"


def test_status_with_a_damaged_file(provider, home):
    """A file that cannot be read is counted, and hides nothing else."""
    folder = home / "hindsight" / "outbox"
    folder.mkdir(parents=True)
    (folder / "x.db").write_bytes(b"no database")
    shown = provider.get_status_config({})
    assert shown["unreadable"].startswith("1 file")
    assert "x.db" in shown["last error"]


def test_backup(provider, clean):
    """What lies outside Hermes' folder is named for its backup."""
    assert provider.backup_paths() == [str(clean / ".hindsight")]


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="becomes another user")
def test_nameless_user_without_home(run):
    """A user whom the system does not know, without HOME, has nothing to back up, and no daemon."""
    ended = run(
        """
        import os
        from hindsight_exec import ConfigError, Settings
        from hindsight_exec.hermes import HindsightMemoryProvider, embedded
        provider = HindsightMemoryProvider()
        os.environ.pop("HOME", None)
        os.setuid(54321)
        say(provider.backup_paths(), repr(embedded.address(Settings(mode="local_embedded"))))
        try:
            Settings(trusted_project_dirs=("~/src",))
        except ConfigError as error:
            say(error)
        """
    )
    said = "invalid trusted_project_dirs ('~/src',): it must be a list of absolute folders"
    assert ended == (0, f"[] ''\n{said}\n", "")


def test_inspection_starts_nothing(provider, home, hindsight):
    """An agent that is only inspected starts no thread and asks no server."""
    configure(home, api_url=hindsight.url)
    before = set(threading.enumerate())
    provider.initialize_for_inspection("s", hermes_home=str(home), agent_context="primary")
    provider.get_tool_schemas()
    provider.system_prompt_block()
    assert set(threading.enumerate()) == before
    assert hindsight.seen == []


def test_a_foreign_module_of_the_same_name(monkeypatch):
    """A module called `agent` that is not Hermes' is no trouble."""
    monkeypatch.setitem(sys.modules, "agent", types.ModuleType("agent"))
    monkeypatch.setitem(sys.modules, "agent.memory_provider", None)
    assert host.take("agent.memory_provider", "MemoryProvider") is None


def test_the_secret_scope(make, hindsight, home, monkeypatch):
    """Keys come from Hermes' secret scope where it has one, in the context of the calling thread."""
    scope = types.ModuleType("agent.secret_scope")
    scope.current_secret_scope = lambda: {"HINDSIGHT_API_KEY": "scoped"}
    scope.is_multiplex_active = lambda: True
    monkeypatch.setitem(sys.modules, "agent", types.ModuleType("agent"))
    monkeypatch.setitem(sys.modules, "agent.secret_scope", scope)
    monkeypatch.setenv("HINDSIGHT_API_KEY", "of another profile")
    provider = make()
    scope.current_secret_scope = lambda: None  # no thread of ours has one
    provider.sync_turn("a", "b")
    provider.handle_tool_call("hindsight_recall", {"query": "q"})
    provider.shutdown()
    keys = {one.key for one in hindsight.seen if "/banks/" in one.path}
    assert keys == {"Bearer scoped"}
    assert "HINDSIGHT_API_KEY" not in host.environment()


def test_the_desktop_panel(monkeypatch, home):
    """The panel's schema names each setting, and the provider that is to stay active."""
    kinds = types.ModuleType("plugins.memory.config_schema")
    for name in ("TEXT", "SELECT", "SECRET", "BOOL", "NUMBER"):
        setattr(kinds, f"KIND_{name}", name.lower())
    for name in ("ProviderConfigSchema", "ProviderField"):
        setattr(kinds, name, type(name, (types.SimpleNamespace,), {}))
    kinds.ProviderFieldOption = lambda value, label: value
    for name in ("plugins", "plugins.memory"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "plugins.memory.config_schema", kinds)
    configure(home)
    schema = config_schema._schema()
    assert schema.name == "hindsight_exec"
    fields = {field.key: field for field in schema.fields}
    assert set(fields) == {item.name for item in configurable()}
    assert (fields["api_key"].kind, fields["api_key"].env_key) == ("secret", "HINDSIGHT_API_KEY")
    assert fields["mode"].options == ("cloud", "local_external", "local_embedded")
    assert fields["auto_retain"].default == "true"
    assert (fields["api_url"].label, fields["api_url"].default) == ("API URL", "")
    assert (home / "hindsight_exec" / "config.json").is_symlink()
    (home / "hindsight_exec" / "config.json").unlink()
    (home / "hindsight_exec" / "config.json").mkdir()
    assert config_schema._schema() is None


def test_the_desktop_panel_without_hermes():
    """Without Hermes there is no panel, and no error."""
    if host.take("plugins.memory.config_schema", "ProviderField") is None:
        assert importlib.reload(config_schema).CONFIG_SCHEMA is None


def test_the_settings_of_another_profile(home, tmp_path, monkeypatch):
    """Inside Hermes, what it has loaded completes its own profile, and no other."""
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.setenv("HINDSIGHT_API_URL", "http://mine")
    assert host.load_settings(other).api_url == "http://mine"  # in a shell, it is meant for all
    monkeypatch.setitem(sys.modules, "hermes_cli.env_loader", types.ModuleType("env_loader"))
    assert host.load_settings(home).api_url == "http://mine"
    assert not host.load_settings(other).configured
