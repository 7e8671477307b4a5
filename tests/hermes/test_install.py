"""`hindsight-exec hermes install | uninstall | status`, and the edit of config.yaml."""

from __future__ import annotations

import argparse
import ast
import json
import os
import stat
from typing import TYPE_CHECKING

import pytest

from hindsight_exec.cli.main import make_parser
from hindsight_exec.hermes import install
from hindsight_exec.hermes.cli import hindsight_exec_command, register_cli
from hindsight_exec.hermes.yaml_edit import provider_of

from .recording import configure

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = """\
# mine
model:
  default: m   # the model
  provider: custom
memory:
  # notes
  memory_enabled: true
  provider: hindsight  # theirs
  nested:
    provider: x
other:
  provider: y
"""


@pytest.fixture
def hermes(home, capsys):
    """Runs a command; returns exit status, output and errors."""

    def hermes(*args):
        parser = argparse.ArgumentParser()
        install.add_arguments(parser)
        status = install.main(parser.parse_args(args))
        return (status, *capsys.readouterr())

    return hermes


@pytest.fixture
def plugin(home):
    return home / "plugins" / "hindsight_exec"


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_install_and_uninstall(hermes, home, plugin):
    """Installing writes the plugin and sets the provider; uninstalling leaves all as it was."""
    configure(home, api_url="http://h")
    (home / "config.yaml").write_text(CONFIG)
    (home / "config.yaml").chmod(0o640)
    before = everything(home)
    status, out, _ = hermes("install", "--yes")
    assert status == 0
    assert "hindsight -> hindsight_exec" in out
    assert {path.name for path in plugin.iterdir()} == {*install.FILES, "installed.json"}
    text = (home / "config.yaml").read_text()
    assert text == CONFIG.replace(
        "provider: hindsight  # theirs", "provider: hindsight_exec  # theirs"
    )
    assert stat.S_IMODE((home / "config.yaml").stat().st_mode) == 0o640
    status, out, _ = hermes("install", "--yes")
    assert (status, out.splitlines()[0]) == (0, "nothing to change")
    assert hermes("uninstall")[0] == 0
    assert everything(home) == before
    assert not plugin.exists()
    assert hermes("uninstall")[0] == 0


def test_uninstall_where_there_was_nothing(hermes, home):
    """A config.yaml that only install has made goes, too."""
    hermes("install", "--yes")
    assert "hindsight_exec" in (home / "config.yaml").read_text()
    assert hermes("uninstall")[0] == 0
    assert everything(home) == {}


def test_the_files(plugin, hermes):
    """The shim is what Hermes looks for: the word in __init__.py, a manifest, a command line."""
    hermes("install")
    source = (plugin / "__init__.py").read_text()
    assert "register_memory_provider" in source[:8192]
    for path in plugin.glob("*.py"):
        ast.parse(path.read_text())
    space: dict = {}
    exec(source, space)
    assert callable(space["register"])
    exec((plugin / "cli.py").read_text(), space)
    space["register_cli"](argparse.ArgumentParser())
    assert callable(space["hindsight_exec_command"])
    exec((plugin / "config_schema.py").read_text(), space)
    assert "CONFIG_SCHEMA" in space
    manifest = (plugin / "plugin.yaml").read_text()
    assert "name: hindsight_exec" in manifest
    assert "kind:" not in manifest


@pytest.mark.parametrize(
    "given, ours",
    [
        ("", "status"),
        ("status --watch", "status --watch=2"),
        ("status --watch 0.5 --json", "status --json --watch=0.5"),
        ("flush --timeout 3", "flush --timeout=3"),
        ("import --since 2026-01-01 --yes", "import hermes --since=2026-01-01 --yes"),
        ("import --session=-a --session b", "import hermes --session=-a --session=b"),
        ("import --dry-run", "import hermes --dry-run"),
        ("doctor --json", "doctor --json"),
    ],
)
def test_commands_in_hermes_are_ours(home, monkeypatch, given, ours):
    """What `hermes hindsight_exec` is given reaches our command line, and is understood there."""
    called = []
    monkeypatch.setenv("HINDSIGHT_EXEC_STATE", "")  # put back afterwards
    monkeypatch.setattr("hindsight_exec.cli.main.main", called.append)
    parser = argparse.ArgumentParser()
    register_cli(parser)
    hindsight_exec_command(parser.parse_args(given.split()))
    assert called == [ours.split()]
    make_parser(called[0]).parse_args(called[0])


def test_the_shim_without_the_package(plugin, hermes, caplog, monkeypatch):
    """In an environment without the package the shim says what to install, and where."""
    hermes("install")
    source = (plugin / "__init__.py").read_text()
    monkeypatch.setitem(__import__("sys").modules, "hindsight_exec.hermes", None)
    space: dict = {}
    exec(source, space)
    space["register"](object())
    assert "-m pip" in caplog.text


def test_without_asking_the_provider_stays(hermes, home):
    """Without a terminal and --yes the plugin is installed, and the provider is left as it is."""
    (home / "config.yaml").write_text(CONFIG)
    status, out, _ = hermes("install")
    assert status == 0
    assert "hermes config set memory.provider hindsight_exec" in out
    assert (home / "config.yaml").read_text() == CONFIG
    assert hermes("install", "--no-activate", "--yes")[0] == 0
    assert (home / "config.yaml").read_text() == CONFIG


def test_a_dry_run_changes_nothing(hermes, home):
    """--dry-run shows the changes and makes none."""
    status, out, _ = hermes("install", "--dry-run")
    assert status == 0
    assert "would write" in out
    assert everything(home) == {}


@pytest.mark.parametrize("name", list(install.FILES))
def test_what_is_not_ours_stays(hermes, plugin, home, name):
    """A file that somebody else wrote or changed is neither overwritten nor removed."""
    plugin.mkdir(parents=True)
    (plugin / name).write_text("mine")
    status, _, err = hermes("install", "--yes")
    assert status == 1
    assert str(plugin / name) in err
    assert everything(home) == {f"plugins/hindsight_exec/{name}": b"mine"}
    (plugin / name).unlink()
    hermes("install")
    (plugin / name).write_text("changed")
    assert hermes("install")[0] == 1
    assert hermes("uninstall")[0] == 0
    assert everything(home) == {f"plugins/hindsight_exec/{name}": b"changed"}


def test_an_older_version_is_renewed(hermes, plugin, monkeypatch):
    """A file of an older version, which nobody has changed, is renewed."""
    with monkeypatch.context() as older:
        older.setitem(install.FILES, "cli.py", "# older\n")
        hermes("install")
    assert "another version" in hermes("status")[1]
    assert hermes("install")[0] == 0
    assert (plugin / "cli.py").read_text() == install.FILES["cli.py"]


def test_from_the_bundled_provider(hermes, home):
    """--from-bundled shows what it will do and waits for --yes; configuration and bank stay."""
    configure(home, api_url="http://h", bank_id="mine")
    (home / "config.yaml").write_text(CONFIG)
    before = everything(home)
    status, _, err = hermes("install", "--from-bundled")
    assert status == 1
    assert "hindsight -> hindsight_exec" in err
    assert "bank 'mine' at http://h" in err
    assert everything(home) == before
    assert hermes("install", "--from-bundled", "--yes")[0] == 0
    assert provider_of((home / "config.yaml").read_text()) == "hindsight_exec"
    assert everything(home)["hindsight/config.json"] == before["hindsight/config.json"]
    assert hermes("uninstall")[0] == 0
    assert everything(home) == before


def test_from_the_bundled_provider_keeps_its_bank(hermes, home, monkeypatch):
    """Where the bundled provider passed over HINDSIGHT_BANK_ID, its bank is named, until uninstalled."""
    monkeypatch.setenv("HINDSIGHT_BANK_ID", "never-used")
    configure(home, api_url="http://h")
    (home / "config.yaml").write_text(CONFIG)
    assert hermes("install", "--from-bundled", "--yes")[0] == 0
    path = home / "hindsight" / "config.json"
    assert json.loads(path.read_text())["bank_id"] == "hermes"
    hermes("uninstall")
    assert "bank_id" not in json.loads(path.read_text())


def test_from_another_provider(hermes, home):
    """--from-bundled is refused where another provider is active."""
    (home / "config.yaml").write_text("memory:\n  provider: honcho\n")
    status, _, err = hermes("install", "--from-bundled", "--yes")
    assert status == 1
    assert "honcho" in err


def test_from_a_provider_that_cannot_be_read(hermes, home):
    """A config.yaml that is not understood is told as that, and not as one without a provider."""
    (home / "config.yaml").write_text("a: &p hindsight\nmemory: {provider: *p}\nb: &c [*p\n")
    status, _, err = hermes("install", "--from-bundled", "--yes")
    assert (status, err.count("\n")) == (1, 1)
    assert "config.yaml is not valid YAML (line 4): correct it first" in err


def test_uninstall_keeps_a_provider_chosen_since(hermes, home):
    """Uninstalling does not touch a provider that was chosen after the installation."""
    (home / "config.yaml").write_text(CONFIG)
    hermes("install", "--yes")
    changed = (home / "config.yaml").read_text().replace("hindsight_exec", "honcho")
    (home / "config.yaml").write_text(changed)
    hermes("uninstall")
    assert (home / "config.yaml").read_text() == changed


def test_uninstall_keeps_turns(hermes, home):
    """Uninstalling removes no turn that waits."""
    box = home / "hindsight" / "outbox" / "x.db"
    box.parent.mkdir(parents=True)
    box.write_bytes(b"turns")
    hermes("install")
    assert str(box.parent) in hermes("uninstall")[1]
    assert box.read_bytes() == b"turns"


def test_links_stay(hermes, home, tmp_path):
    """A config.yaml that is a link to elsewhere stays one."""
    real = tmp_path / "dotfiles.yaml"
    real.write_text(CONFIG)
    (home / "config.yaml").symlink_to(real)
    hermes("install", "--yes")
    assert (home / "config.yaml").is_symlink()
    assert provider_of(real.read_text()) == "hindsight_exec"


def test_status(hermes, home):
    """The status tells what is installed and active, also as JSON; its exit status says whether all is well."""
    assert hermes("status")[0] == 1
    configure(home, api_url="http://h")
    hermes("install", "--yes")
    status, out, _ = hermes("status", "--json")
    shown = json.loads(out)
    assert status == 0
    assert (shown["installed"], shown["memory.provider"]) == ("yes", "hindsight_exec")
    assert shown["waiting"] == "0 turns"


def test_json(hermes):
    """--json prints one object."""
    shown = json.loads(hermes("install", "--json", "--yes")[1])
    assert shown["changed"] is True
    assert shown["changes"]


def test_no_such_folder(hermes, tmp_path):
    """A folder that is not there is one clear line."""
    status, _, err = hermes("install", "--home", str(tmp_path / "none"))
    assert status == 1
    assert len(err.splitlines()) == 1


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(hermes, home):
    """A folder that cannot be written is one clear line."""
    home.chmod(0o500)
    status, _, err = hermes("install")
    home.chmod(0o700)
    assert status == 1
    assert len(err.splitlines()) == 1
