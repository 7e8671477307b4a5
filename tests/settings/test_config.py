from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hindsight_exec.errors import ConfigError
from hindsight_exec.settings import config, keyring
from hindsight_exec.settings.config import Settings
from hindsight_exec.settings.credentials import resolve_credential
from hindsight_exec.settings.folders import absolute, default_hermes_home, state_folder
from hindsight_exec.settings.values import brief

BUNDLED_DEFAULTS = {
    "mode": "cloud",
    "api_url": "https://api.hindsight.vectorize.io",
    "timeout": 120,
    "bank_id": "hermes",
    "memory_mode": "hybrid",
    "recall_budget": "mid",
    "recall_prefetch_method": "recall",
    "recall_max_tokens": 4096,
    "recall_max_input_chars": 800,
    "recall_types": ("observation",),
    "recall_wait_seconds": 3,
    "recall_min_score": 0,
    "recall_max_results": 0,
    "recall_max_chars": 20_000,
    "recall_tags_match": "any",
    "auto_recall": True,
    "auto_retain": True,
    "retain_async": True,
    "retain_every_n_turns": 1,
    "redact": True,
    "retain_skip_patterns": (),
    "retain_roles": ("user", "assistant"),
    "retain_context": "conversation between Hermes Agent and the User",
    "retain_user_prefix": "User",
    "retain_assistant_prefix": "Assistant",
    "idle_timeout": 300,
    "profile": "hermes",
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty user's home: no configuration, no variables."""
    for name in os.environ:
        if name.startswith(("HINDSIGHT_", "HERMES_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "user"))
    (tmp_path / "user").mkdir()
    monkeypatch.setattr(keyring, "_keys", {})
    return tmp_path / "hermes"


def write(home: Path, content: object) -> Path:
    path = home / "hindsight" / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_nothing_configured(home):
    """Without a file or a variable the defaults are the bundled provider's, and no server counts as named."""
    settings = Settings.load(home)
    assert {key: getattr(settings, key) for key in BUNDLED_DEFAULTS} == BUNDLED_DEFAULTS
    assert not settings.configured
    assert not settings.unusable
    assert settings.source is None


def test_every_key_of_the_file_is_read(home):
    """Each key of config.json reaches its setting."""
    values = {
        "mode": "local_external", "api_url": "http://127.0.0.1:9999/", "apiKey": "k", "timeout": 7,
        "bank_id": "b", "bank_id_template": "t-{user}", "bank_id_by_user": {"7": "seven"}, "trusted_project_dirs": ["/src"], "mirror_to_own_bank": True, "additional_banks": ["b2"], "mental_model_id": "mm1", "bank_mission": "m", "bank_retain_mission": "r",
        "memory_mode": "tools", "forget_tool": True, "auto_recall": False, "recall_sync": True,
        "recall_prefetch_method": "reflect", "recall_budget": "high", "recall_max_tokens": 5,
        "recall_max_input_chars": 0, "recall_types": "world, experience", "recall_tags": ["a", "b"],
        "recall_tags_match": "all_strict", "recall_wait_seconds": 1, "recall_min_score": 0.5,
        "recall_max_results": 4, "recall_unprocessed": False, "recall_max_chars": 99, "recall_prompt_preamble": "p", "recall_indicator": False,
        "prefetch_waits_for_retain": True, "prefetch_retain_drain_timeout": 3, "auto_retain": False,
        "retain_async": False, "retain_every_n_turns": 3, "retain_document_chars": 10,
        "retain_idle_seconds": 0, "retain_context": "c", "retain_tags": "x,y,x", "retain_source": "s",
        "redact": False, "retain_skip_patterns": ["a,b"], "retain_strip_patterns": "c,d",
        "retain_max_chars": 8, "retain_roles": "user", "retain_user_prefix": "U", "retain_assistant_prefix": "A",
        "observation_scopes": [["a"], ["b", "c"]], "retain_indicator": False, "drain_timeout": 2,
        "durability": "normal", "llm_provider": "groq", "llm_model": "mm", "llm_base_url": "http://l",
        "llm_api_key": "lk", "hf_endpoint": "http://hf", "hf_offline": True,
        "embedded_environment": {"HINDSIGHT_API_LOG_LEVEL": "debug"},
        "idle_timeout": 0, "port_health_grace_timeout": 60, "profile": "pp",
    }  # fmt: skip
    path = write(home, values)
    settings = Settings.load(home)
    expected = {
        **values,
        "api_url": "http://127.0.0.1:9999",
        "api_key": "k",
        "bank_id_by_user": (("7", "seven"),),
        "embedded_environment": (("HINDSIGHT_API_LOG_LEVEL", "debug"),),
        "recall_types": ("world", "experience"),
        "recall_tags": ("a", "b"),
        "retain_tags": ("x", "y"),
        "trusted_project_dirs": ("/src",),
        "mirror_to_own_bank": True,
        "additional_banks": ("b2",),
        "retain_skip_patterns": ("a,b",),
        "retain_strip_patterns": ("c,d",),
        "retain_roles": ("user",),
        "observation_scopes": (("a",), ("b", "c")),
    }
    del expected["apiKey"]
    assert {item.name: getattr(settings, item.name) for item in config.configurable()} == expected
    assert settings.source == path
    assert settings.configured


def test_variables_count_where_the_file_is_silent(home):
    """A HINDSIGHT_ variable is used unless the file names the key, HINDSIGHT_BANK_ID included."""
    write(home, {"mode": "local_external", "timeout": 9})
    settings = Settings.load(
        home,
        {
            "HINDSIGHT_BANK_ID": "from-env",
            "HINDSIGHT_TIMEOUT": "33",
            "HINDSIGHT_API_URL": "http://h:1",
            "HINDSIGHT_API_KEY": "k",
            "HINDSIGHT_RETAIN_TAGS": '["a","b"]',
            "HINDSIGHT_BUDGET": "LOW",
            "HINDSIGHT_RETAIN_OBSERVATION_SCOPES": "per_tag",
            "HINDSIGHT_RETAIN_SOURCE": "",
        },
    )
    assert settings.bank_id == "from-env"
    assert settings.timeout == 9
    assert settings.api_url == "http://h:1"
    assert settings.api_key == "k"
    assert settings.retain_tags == ("a", "b")
    assert settings.recall_budget == "low"
    assert settings.observation_scopes == "per_tag"
    assert settings.retain_source == ""


def test_older_spellings(home):
    """The banks object, the aliases and the mode "local" of older versions are understood."""
    write(home, {"mode": "local", "banks": {"hermes": {"bankId": "old", "budget": "high"}}})
    settings = Settings.load(home)
    assert settings.mode == "local_embedded"
    assert (settings.bank_id, settings.recall_budget) == ("old", "high")


def test_the_legacy_file(home, tmp_path):
    """~/.hindsight/config.json is read where Hermes' folder has none, and only there."""
    legacy = tmp_path / "user" / ".hindsight" / "config.json"
    legacy.parent.mkdir()
    legacy.write_text('{"bank_id": "legacy"}', encoding="utf-8")
    assert Settings.load(home).bank_id == "legacy"
    assert Settings.load().source == legacy
    write(home, {"bank_id": "profile"})
    assert Settings.load(home).bank_id == "profile"


@pytest.mark.parametrize(
    "key, value, used",
    [
        ("timeout", "soon", 120.0),
        ("timeout", 0, 120.0),
        ("timeout", True, 120.0),
        ("timeout", float("inf"), 120.0),
        ("timeout", 10**400, 120.0),
        ("recall_budget", "enormous", "mid"),
        ("recall_budget", ["mid"], "mid"),
        ("recall_max_tokens", 1.5, 4096),
        ("recall_types", "observation,wurld", ("observation",)),
        ("recall_types", {"a": 1}, ("observation",)),
        ("retain_every_n_turns", 0, 1),
        ("retain_every_n_turns", "many", 1),
        ("retain_async", "perhaps", True),
        ("retain_context", ["x"], "conversation between Hermes Agent and the User"),
        ("observation_scopes", "everything", None),
        ("observation_scopes", [[1]], None),
        ("durability", "forever", "full"),
        ("recall_tags_match", "anny", "all_strict"),
        ("auto_recall", "perhaps", False),
        ("auto_retain", "flase", False),
        ("bank_id", "a/b", "a-b"),
        ("bank_id", "x" * 300, "x" * 192),
    ],
)
def test_a_wrong_value_is_one_warning(home, caplog, key, value, used):
    """A wrong value never raises: one warning names key, value and what is used instead."""
    write(home, {"api_url": "http://h", key: value})
    settings = Settings.load(home)
    assert getattr(settings, key) == used
    (record,) = caplog.records
    message = record.getMessage()
    assert record.levelno == logging.WARNING
    assert f": {key} is {brief(value)}" in message
    assert f"using {brief(used)}" in message


@pytest.mark.parametrize(
    "key, value",
    [
        ("mode", "clout"),
        ("mode", ["cloud"]),
        ("api_url", ["http://h"]),
        ("api_url", "localhost:8888"),
        ("api_url", "   "),
        ("bank_id", {"name": "b"}),
        ("bank_id_template", ["{user}"]),
        ("recall_tags", {"user": "a"}),
        ("retain_tags", [["a"]]),
    ],
)
def test_a_wrong_value_never_widens(home, caplog, key, value):
    """A value that would send conversations elsewhere turns memory off, and the reason quotes it."""
    path = write(home, {"api_url": "http://h", key: value})
    settings = Settings.load(home, {"HOME": str(home)})
    assert settings.unusable.startswith(f"{path}: {key}")
    assert (str(value).strip() or "unusable") in settings.unusable
    assert settings.api_url == ""
    (record,) = caplog.records
    assert record.getMessage() == f"{settings.unusable}; memory is off until this is corrected"


@pytest.mark.parametrize("key", ["llm_provider", "llm_base_url", "profile"])
def test_where_an_embedded_server_sends_texts(home, key):
    """What decides which LLM reads the conversations is strict where there is an embedded server."""
    write(home, {"mode": "local_embedded", key: {}})
    assert f"{key} is {{}}" in Settings.load(home, {}).unusable
    write(home, {"api_url": "http://h", key: {}})
    assert not Settings.load(home, {}).unusable


def test_the_reason_names_the_place(home):
    """A reason names the file or the variable in which the value stands, loaded by a host or not."""
    write(home, {"bank_id": "b"})
    (home / ".env").write_text("HINDSIGHT_MODE=clout\n", encoding="utf-8")
    for environ in ({}, {"HINDSIGHT_MODE": "clout"}):
        for host_loaded in (False, True):
            reason = Settings.load(home, environ, host_loaded=host_loaded).unusable
            assert reason.startswith(f"{home / '.env'}: HINDSIGHT_MODE is 'clout'")
    (home / ".env").unlink()
    reason = Settings.load(home, {"HINDSIGHT_MODE": "clout"}).unusable
    assert reason.startswith("environment: HINDSIGHT_MODE is 'clout'")


@pytest.mark.parametrize(
    "wrong",
    [
        {"durability": "paranoid"},
        {"timeout": "abc"},
        {"timeout": -1},
        {"mode": "clout"},
        {"bank_id": ""},
        {"bank_id": "a/b"},
        {"recall_tags_match": "anny"},
        {"api_key": "\u03a9"},
        {"retain_every_n_turns": 0},
    ],
)
def test_a_program_is_told_at_once(wrong):
    """Settings made by a program raise for a wrong value, and name the key."""
    with pytest.raises(ConfigError, match=f"invalid {next(iter(wrong))}"):
        Settings(**{"api_url": "http://h", **wrong})


@pytest.mark.parametrize("value", ["", [], "[]", " , "])
def test_no_filter_of_types(home, value):
    """An empty recall_types recalls all kinds."""
    write(home, {"recall_types": value})
    assert Settings.load(home).recall_types == ()


@pytest.mark.parametrize("value", ["any", "all", "any_strict", "all_strict", "exact"])
def test_all_ways_to_match_tags(home, value):
    """Each way to match tags that the server knows is taken."""
    write(home, {"recall_tags_match": value, "observation_scopes": "shared"})
    settings = Settings.load(home)
    assert (settings.recall_tags_match, settings.observation_scopes) == (value, "shared")


@pytest.mark.parametrize("value", ["true", "yes", "ON", 1, True, "1"])
def test_spellings_of_true(home, value):
    """Booleans may be written as words or digits."""
    write(home, {"recall_sync": value})
    assert Settings.load(home).recall_sync is True


@pytest.mark.parametrize("value", ["false", "No", "off", 0, False, "0"])
def test_spellings_of_false(home, value):
    """So may false ones: "false" is not true because it is text."""
    write(home, {"auto_retain": value})
    assert Settings.load(home).auto_retain is False


@pytest.mark.parametrize("value", ["a, b", ["a", "b"], '[["a", "b"]]', [["a", "b"]]])
def test_spellings_of_scopes(home, value):
    """A flat list of tags is one scope, also as JSON text; a bare word is no scope."""
    write(home, {"observation_scopes": value})
    expected = None if value == "a, b" else (("a", "b"),)
    assert Settings.load(home).observation_scopes == expected


@pytest.mark.parametrize("content", ["{", "[]", "\x00", "[" * 100_000, "null"])
def test_a_broken_file_guesses_no_server(home, tmp_path, caplog, content):
    """A file that cannot be read switches memory off, says so once, and no other file is used."""
    legacy = tmp_path / "user" / ".hindsight" / "config.json"
    legacy.parent.mkdir()
    legacy.write_text('{"api_url": "http://stranger"}', encoding="utf-8")
    path = write(home, content)
    settings = Settings.load(home, {**os.environ, "HINDSIGHT_API_URL": "http://stranger"})
    assert str(path) in settings.unusable
    (record,) = caplog.records
    assert "memory is off until this is corrected" in record.getMessage()
    assert resolve_credential(settings.credential, "http://stranger") is None


@pytest.mark.parametrize(
    "url",
    ["localhost:8888", "ftp://h", "http://", "http://h:99999", "http://h/?key=SECRET", "http://a b",
     "http://user:SECRET@h", "http://SECRET@h:x", "http://[::1", "//h", "http://h/#SECRET"],
)  # fmt: skip
def test_a_wrong_url_guesses_no_server(home, caplog, url):
    """A wrong URL switches memory off, and what may be secret in it is not repeated."""
    write(home, {"api_url": url})
    settings = Settings.load(home)
    assert settings.unusable
    (record,) = caplog.records
    assert "SECRET" not in record.getMessage()
    with pytest.raises(ConfigError) as caught:
        Settings(api_url=url)
    assert "SECRET" not in str(caught.value)


def test_the_key_is_not_shown(home, caplog):
    """No repr and no warning holds the key."""
    write(home, {"api_key": "KEY-Ω", "api_url": "http://h"})
    assert "KEY" not in repr(Settings.load(home))
    assert "KEY" not in caplog.text
    assert "api_key is a value that is not shown" in caplog.text
    settings = Settings(api_url="http://h", api_key="KEY")
    assert "KEY" not in repr(settings)
    assert "KEY" not in settings.credential
    assert "KEY" not in repr(Settings(llm_api_key="KEY", embedded_environment=(("A", "KEY"),)))


def test_the_key_goes_only_to_its_server(home):
    """A reference resolves for the URL its configuration names, read anew each time."""
    write(home, {"api_url": "http://h:1", "api_key": "one"})
    reference = Settings.load(home).credential
    assert "one" not in reference
    assert resolve_credential(reference, "http://h:1/") == "one"
    assert resolve_credential(reference, "http://h:2") is None
    assert resolve_credential(reference, "nonsense") is None
    write(home, {"api_url": "http://h:1", "api_key": "two"})
    assert resolve_credential(reference, "http://h:1") == "two"
    write(home, {"api_url": "http://h:2", "api_key": "two"})
    assert resolve_credential(reference, "http://h:1") is None


def test_no_key_is_no_obstacle(home):
    """A configuration without a key resolves to "", and to the key once there is one."""
    write(home, {"api_url": "http://h:1"})
    reference = Settings.load(home).credential
    assert resolve_credential(reference, "http://h:1") == ""
    (home / ".env").write_text("HINDSIGHT_API_KEY='late'\n", encoding="utf-8")
    assert resolve_credential(reference, "http://h:1") == "late"
    assert resolve_credential("", "http://anything") == ""


def test_the_env_file_of_hermes(home):
    """Hermes' .env goes before the environment, with comments, export and quotes."""
    home.mkdir()
    (home / ".env").write_text(
        '# HINDSIGHT_API_KEY=no\nOTHER=1\nexport HINDSIGHT_API_KEY = "dot env"\n'
        "HINDSIGHT_API_URL=http://dot\nbroken line\n",
        encoding="utf-8",
    )  # fmt: skip
    settings = Settings.load(home, {"HINDSIGHT_API_KEY": "outer", "HINDSIGHT_BANK_ID": "b"})
    assert (settings.api_key, settings.api_url) == ("dot env", "http://dot")
    assert settings.bank_id == "b"
    assert resolve_credential(settings.credential, "http://dot") == "dot env"


def test_what_a_host_has_loaded(home):
    """What a host has loaded goes before our reading of the files, where it holds a value."""
    home.mkdir()
    (home / ".env").write_text("HINDSIGHT_API_KEY=file\nHINDSIGHT_BANK_ID=file\n", encoding="utf-8")
    environ = {
        "HINDSIGHT_API_KEY": "vault",
        "HINDSIGHT_BANK_ID": "",
        "HINDSIGHT_API_URL": "http://h",
    }
    settings = Settings.load(home, environ, host_loaded=True)
    assert (settings.api_key, settings.bank_id) == ("vault", "file")
    (home / ".env").write_text(
        "HINDSIGHT_API_KEY=file\nHINDSIGHT_API_URL=http://h\n", encoding="utf-8"
    )
    assert resolve_credential(settings.credential, "http://h") == "vault"
    assert Settings.load(home, environ).api_key == "file"


def test_a_new_key_counts_at_once(home, monkeypatch):
    """A host's key counts until the user puts another one into `.env`."""
    monkeypatch.setenv("HERMES_HOME", str(home))
    monkeypatch.setenv("HINDSIGHT_API_URL", "http://h")
    monkeypatch.setenv("HINDSIGHT_API_KEY", "old")
    home.mkdir()
    (home / ".env").write_text("HINDSIGHT_API_KEY=old\n", encoding="utf-8")
    settings = Settings.load(home, os.environ, host_loaded=True)
    assert resolve_credential(settings.credential, "http://h") == "old"
    (home / ".env").write_text("HINDSIGHT_API_KEY=new\n", encoding="utf-8")
    assert resolve_credential(settings.credential, "http://h") == "new"


@pytest.mark.parametrize("host_loaded", [False, True])
def test_the_managed_file(home, tmp_path, host_loaded):
    """The administrator's `.env` goes before the user's and before the environment."""
    home.mkdir()
    managed = tmp_path / "managed"
    managed.mkdir()
    (managed / ".env").write_text("HINDSIGHT_API_URL=http://managed\n", encoding="utf-8")
    (home / ".env").write_text("HINDSIGHT_API_URL=http://user\n", encoding="utf-8")
    environ = {"HERMES_MANAGED_DIR": str(managed), "HINDSIGHT_API_URL": "http://outer"}
    settings = Settings.load(home, environ, host_loaded=host_loaded)
    assert settings.api_url == "http://managed"


def test_comments_in_json(home):
    """A file with comments is no JSON: memory is off, and the reason says what is wrong where."""
    path = write(home, '{\n  // mine\n  "bank_id": "b"\n}')
    reason = Settings.load(home, {"HINDSIGHT_API_URL": "http://stranger"}).unusable
    assert str(path) in reason
    assert "line 2" in reason
    assert "JSON has no comments" in reason


def test_an_env_file_that_cannot_be_read(home, monkeypatch):
    """A `.env` with our variables that cannot be read turns memory off; one without is no matter."""
    home.mkdir()
    (home / ".env").write_bytes("HINDSIGHT_API_URL=http://h\n".encode("utf-32"))
    reason = Settings.load(home, {}).unusable
    assert reason.startswith(f"{home / '.env'} cannot be read")
    assert "UTF-8" in reason
    (home / ".env").write_bytes("OTHER=1\n".encode("utf-32"))
    assert not Settings.load(home, {}).unusable
    monkeypatch.setitem(sys.modules, "dotenv.parser", None)
    (home / ".env").write_text("OTHER=1\n", encoding="utf-8")
    assert not Settings.load(home, {}).unusable
    (home / ".env").write_text("HINDSIGHT_API_URL=http://h\n", encoding="utf-8")
    assert "pip install python-dotenv" in Settings.load(home, {}).unusable


def test_profiles_do_not_mix(home, tmp_path, monkeypatch):
    """The environment completes the configuration of this process' Hermes folder only."""
    monkeypatch.setenv("HERMES_HOME", str(home))
    monkeypatch.setenv("HINDSIGHT_API_KEY", "mine")
    monkeypatch.setenv("HINDSIGHT_API_URL", "http://h")
    assert resolve_credential(f"hermes:{home}", "http://h") == "mine"
    assert resolve_credential(f"hermes:{tmp_path / 'other'}", "http://h") is None


def test_a_key_handed_over_by_a_host(home):
    """A key that only the caller's environ holds resolves in this process, and in no other."""
    settings = Settings.load(home, {"HINDSIGHT_API_KEY": "scoped", "HINDSIGHT_API_URL": "http://h"})
    assert resolve_credential(settings.credential, "http://h") == "scoped"
    keyring._keys.clear()  # what a new process starts with
    assert resolve_credential(settings.credential, "http://h") is None


def test_a_key_handed_over_by_a_program(home, monkeypatch):
    """A program's own key resolves while it holds it, and later where it is given the same again."""
    settings = Settings(api_url="http://h", api_key="k")
    assert resolve_credential(settings.credential, "http://h") == "k"
    assert Settings(api_url="http://h", api_key="other").credential != settings.credential
    keyring._keys.clear()
    assert resolve_credential(settings.credential, "http://h") is None
    monkeypatch.setenv("HINDSIGHT_API_KEY", "wrong")
    assert resolve_credential(settings.credential, "http://h") is None
    monkeypatch.setenv("HINDSIGHT_API_KEY", "k")
    assert resolve_credential(settings.credential, "http://h") == "k"


def test_the_environment_alone(home, monkeypatch):
    """Outside Hermes the reference stands for the environment."""
    monkeypatch.setenv("HINDSIGHT_API_KEY", "k")
    settings = Settings.load()
    assert settings.configured
    assert resolve_credential(settings.credential, settings.api_url) == "k"
    assert resolve_credential(settings.credential, "http://h") is None
    assert resolve_credential("unknown", "http://h") is None


def test_settings_are_values():
    """Settings compare, hash and copy as values."""
    settings = Settings(api_url="http://h")
    assert settings == Settings(api_url="http://H:80/")
    assert len({settings, Settings(api_url="http://h")}) == 1
    assert replace(settings, drain_timeout=1.0) != settings


def test_where_turns_wait(tmp_path, monkeypatch):
    """The state directory is the named one, else the platform's; a relative XDG path is ignored."""
    assert state_folder({"HINDSIGHT_EXEC_STATE": str(tmp_path)}) == tmp_path
    monkeypatch.chdir(tmp_path)
    assert state_folder({"HINDSIGHT_EXEC_STATE": "x"}) == Path.cwd() / "x"
    user = str(tmp_path)
    for platform, environ, expected in [
        ("linux", {"HOME": user}, ".local/state/hindsight-exec"),
        ("linux", {"HOME": user, "XDG_STATE_HOME": "rel"}, ".local/state/hindsight-exec"),
        ("linux", {"XDG_STATE_HOME": user + "/x"}, "x/hindsight-exec"),
        ("darwin", {"HOME": user}, "Library/Application Support/hindsight-exec"),
        ("win32", {"LOCALAPPDATA": user}, "hindsight-exec"),
    ]:
        monkeypatch.setattr("sys.platform", platform)
        assert state_folder(environ) == tmp_path / expected


def test_where_hermes_lives(tmp_path, monkeypatch):
    """Hermes' folder is HERMES_HOME, else ~/.hermes, else under LOCALAPPDATA on Windows."""
    assert default_hermes_home({"HERMES_HOME": str(tmp_path)}) == tmp_path
    monkeypatch.setattr("sys.platform", "linux")
    assert default_hermes_home({"HOME": str(tmp_path)}) == tmp_path / ".hermes"
    monkeypatch.setattr("sys.platform", "win32")
    assert default_hermes_home({"LOCALAPPDATA": str(tmp_path)}) == tmp_path / "hermes"


@pytest.mark.parametrize("error", [RuntimeError, KeyError])
def test_no_home_folder(monkeypatch, error):
    """Without a home folder the state directory is a clear error, and loading still works."""

    def homeless(_):
        raise error

    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(ConfigError, match="HINDSIGHT_EXEC_STATE"):
        state_folder({})
    assert Settings.load(None, {}).source is None


def test_folder_of_an_unknown_user():
    """A folder below the home of a user who does not exist is a clear error."""
    with pytest.raises(ConfigError, match="'~nobody-of-that-name/x': no such user"):
        absolute("~nobody-of-that-name/x")
