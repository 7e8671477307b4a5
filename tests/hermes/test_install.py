"""`hindsight-exec hermes install | uninstall | status`, and the edit of config.yaml."""

from __future__ import annotations

import argparse
import ast
import json
import os
import stat
from pathlib import Path

import pytest

from hindsight_exec.cli.main import main, make_parser
from hindsight_exec.hermes import install, plugin_folder
from hindsight_exec.hermes.cli import hindsight_exec_command, register_cli
from hindsight_exec.hermes.eviction import eviction
from hindsight_exec.hermes.yaml_edit import provider_of

from .recording import configure

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
    names = {*plugin_folder.FILES, "hindsight_exec", "installed.json"}
    assert {path.name for path in plugin.iterdir()} == names
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
    """The folder is what Hermes looks for: a call in __init__.py, a manifest, a command line."""
    hermes("install")
    source = (plugin / "__init__.py").read_text()
    assert "ctx.register_memory_provider(" in source[:8192]
    for path in plugin.rglob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"))
    manifest = (plugin / "plugin.yaml").read_text()
    assert "name: hindsight_exec" in manifest
    assert "kind:" not in manifest


def test_the_repository_is_such_a_folder():
    """The files at the top of the repository are those that install writes."""
    top = Path(__file__).parents[2]
    if not (top / "plugin.yaml").is_file():
        pytest.skip("the sources are not beside the tests")
    for name, text in plugin_folder.FILES.items():
        assert (top / name).read_text(encoding="utf-8") == text, name
    # With one, Hermes 0.22 takes the folder for a package to build, and refuses it without [project].
    assert not (top / "pyproject.toml").exists()


LOADS_AS_HERMES_DOES = """
import importlib.util, sys
from pathlib import Path

folder = Path(sys.argv[1])
if len(sys.argv) > 2:  # pip uninstall
    sys.meta_path[:] = [one for one in sys.meta_path if "editable" not in repr(one).lower()]
    sys.path[:] = [one for one in sys.path if not (Path(one) / "hindsight_exec").is_dir()]

def load(name):
    spec = importlib.util.spec_from_file_location(f"user_plugins.{Path(name).stem}", folder / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

class Context:
    def register_memory_provider(self, provider):
        print(provider.name)

load("__init__.py").register(Context())
load("__init__.py").register(object())
print(callable(load("cli.py").register_cli), load("config_schema.py").CONFIG_SCHEMA)
import hindsight_exec
print(folder in Path(hindsight_exec.__file__).parents)
"""


@pytest.mark.parametrize("uninstalled", [False, True])
def test_the_folder_loads(plugin, hermes, run, uninstalled):
    """What Hermes loads uses the installed package, and the folder's own after `pip uninstall`."""
    hermes("install")
    ended = run(LOADS_AS_HERMES_DOES, str(plugin), *(["uninstalled"] if uninstalled else []))
    assert (ended.status, ended.err) == (0, "")
    assert ended.out == f"hindsight_exec\nTrue None\n{uninstalled}\n"


def test_a_folder_that_is_named_like_the_package(plugin, hermes, run):
    """Programs that find the folder in front of the package get the package."""
    hermes("install")
    program = """
    import sys
    sys.path.insert(0, sys.argv[1])
    import hindsight_exec
    from hindsight_exec import DrainingExecutor
    from hindsight_exec.hermes import HindsightMemoryProvider
    from hindsight_exec.cli.main import main
    print(hindsight_exec.__file__)
    """
    ended = run(program, str(plugin.parent))
    assert (ended.status, ended.err) == (0, "")
    assert ended.out == f"{plugin / 'hindsight_exec' / '__init__.py'}\n"


@pytest.mark.parametrize(
    "given, ours",
    [
        ("", "status"),
        ("status --watch", "status --watch"),
        ("status --watch 0.5 --json", "status --watch 0.5 --json"),
        ("flush --timeout 3", "flush --timeout 3"),
        ("import", "import hermes"),
        ("import --since 2026-01-01 --yes", "import hermes --since 2026-01-01 --yes"),
        ("import hermes --session=-a --session b", "import hermes --session=-a --session b"),
        ("doctor --json", "doctor --json"),
        ("dead list", "dead list"),
        ("outbox show 1", "outbox show 1"),
    ],
)
def test_commands_in_hermes_are_ours(home, monkeypatch, given, ours):
    """What `hermes hindsight_exec` is given reaches our command line, and is understood there."""
    called = []
    monkeypatch.setenv("HINDSIGHT_EXEC_STATE", "")  # put back afterwards
    monkeypatch.setattr(
        "hindsight_exec.cli.main.main", lambda command, program: called.append(command)
    )
    parser = argparse.ArgumentParser()
    register_cli(parser)
    hindsight_exec_command(parser.parse_args(given.split()))
    assert called == [ours.split()]
    make_parser(called[0]).parse_args(called[0])


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


@pytest.mark.parametrize("name", [*plugin_folder.FILES, "hindsight_exec/errors.py"])
def test_what_is_not_ours_stays(hermes, plugin, home, name):
    """A file that somebody else wrote or changed is neither overwritten nor removed."""
    (plugin / name).parent.mkdir(parents=True)
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
    """Files of an older version, which nobody has changed, are renewed, or removed if they are no more."""
    with monkeypatch.context() as older:
        older.setitem(plugin_folder.FILES, "cli.py", "# older\n")
        older.setitem(plugin_folder.FILES, "hindsight_exec/gone.py", "# older\n")
        hermes("install")
    assert "another version" in hermes("status")[1]
    assert hermes("install")[0] == 0
    assert (plugin / "cli.py").read_text() == plugin_folder.FILES["cli.py"]
    assert not (plugin / "hindsight_exec" / "gone.py").exists()


def test_a_clone_stays(hermes, plugin, home):
    """In a clone nothing is written but the record of the provider before, which uninstall brings back."""
    (plugin / ".git").mkdir(parents=True)
    (plugin / "plugin.yaml").write_text("name: hindsight_exec\n")
    (home / "config.yaml").write_text(CONFIG)
    for _ in range(2):
        status, out, _ = hermes("install", "--yes")
        assert status == 0
        assert "hermes plugins update hindsight_exec" in out
    assert {path.name for path in plugin.iterdir()} == {".git", "plugin.yaml", "installed.json"}
    assert "installed: as a clone" in hermes("status")[1]
    hermes("uninstall")
    assert (home / "config.yaml").read_text() == CONFIG
    assert {path.name for path in plugin.iterdir()} == {".git", "plugin.yaml"}


EVICTED = """\
# mine
memory:
  provider: ''   # by Hermes
plugins:
  disabled:
  - other
  - hindsight_exec
"""


def evict(home: Path, reason: str = "its build failed") -> None:
    """What the package manager of Hermes 0.22 does to a plugin that does not fit."""
    (home / "config.yaml").write_text(EVICTED)
    receipts = home / "logs" / "update_receipts"
    receipts.mkdir(parents=True)
    receipt = {
        "finished_at": "2026-11-25T10:00:00+00:00",
        "warnings": [f"Disabled plugin 'hindsight_exec' in {home}: {reason}"],
    }
    (receipts / "pm_1.json").write_text(json.dumps(receipt))
    (receipts / "latest.json").write_text("{broken")


def test_an_update_of_hermes_switched_it_off(hermes, home):
    """status and install say when and why; install switches it on again, without being asked to."""
    assert eviction(home) is None
    hermes("install", "--yes")
    assert eviction(home) is None
    evict(home)
    status, out, _ = hermes("status")
    assert status == 1
    assert "no turn is kept since 2026-11-25T10:00:00+00:00 (its build failed)" in out
    assert "run 'hindsight-exec hermes install'" in out
    status, out, _ = hermes("install")
    assert status == 0
    assert "no turn is kept since 2026-11-25" in out
    expected = EVICTED.replace("''", "hindsight_exec").replace("  - hindsight_exec\n", "")
    assert (home / "config.yaml").read_text() == expected
    assert eviction(home) is None
    assert hermes("status")[0] == 0


def test_the_doctor_tells(home, hindsight, capsys, monkeypatch):
    """`doctor` fails while Hermes has the provider switched off, and says what brings it back."""
    configure(home, api_url=hindsight.url)
    evict(home)
    monkeypatch.setenv("HINDSIGHT_EXEC_STATE", str(home / "hindsight" / "outbox"))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "no turn is kept since 2026-11-25" in out
    assert "hermes plugins enable hindsight_exec" in out


def test_the_doctor_tells_of_another_provider(hermes, home, hindsight, capsys, monkeypatch):
    """`doctor` warns where the plugin is installed and Hermes uses another provider, or none."""
    configure(home, api_url=hindsight.url)
    monkeypatch.setenv("HINDSIGHT_EXEC_STATE", str(home / "hindsight" / "outbox"))
    config = home / "config.yaml"
    for installed, text, told in (
        (False, "memory:\n  provider: honcho\n", ""),
        (True, "memory:\n  provider: honcho\n", "memory.provider is honcho in"),
        (True, "", "memory.provider is not set in"),
        (True, "memory:\n  provider: hindsight_exec\n", ""),
    ):
        config.write_text(text)
        if installed:
            hermes("install", "--no-activate")
        assert main(["doctor"]) == 0
        out = capsys.readouterr().out
        assert (told in out) if told else ("memory.provider" not in out)


def test_switched_off_on_purpose(hermes, home):
    """Where it never was the provider, or is not wanted, install leaves it off unless told otherwise."""
    evict(home)
    assert hermes("install")[0] == 0
    assert (home / "config.yaml").read_text() == EVICTED
    assert hermes("install", "--yes")[0] == 0
    evicted = EVICTED.replace("provider: ''", "provider: honcho")
    (home / "config.yaml").write_text(evicted)
    assert eviction(home) is None
    assert hermes("install", "--no-activate")[0] == 0
    assert (home / "config.yaml").read_text() == evicted


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


def test_from_the_plugin_of_the_catalog(hermes, home):
    """--from-bundled takes over from the catalog's plugin, too, and says how to remove it."""
    configure(home, api_url="http://h", bank_id="mine")
    (home / "plugins" / "hindsight").mkdir(parents=True)
    (home / "config.yaml").write_text(CONFIG)
    before = everything(home)
    status, out, _ = hermes("install", "--from-bundled", "--yes")
    assert status == 0
    assert "hermes plugins remove hindsight'" in out
    assert hermes("uninstall")[0] == 0
    assert everything(home) == before


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
