"""The bank of a session, by template and by user."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from hindsight_exec import Settings
from hindsight_exec.client.urls import bank_problem
from hindsight_exec.errors import ConfigError
from hindsight_exec.settings.banks import FIELDS, expand, repository_name, usable_bank

SESSION = dict.fromkeys(FIELDS, "") | {
    "platform": "telegram",
    "user": "Ada Lovelace/7",
    "chat": "-100",
    "thread": "5",
    "project": "tools",
    "git_project": "org/app",
}


@pytest.mark.parametrize(
    "template, bank",
    [
        ("{{{user:.3}}}", "{Ada}"),
        ("{user:.3}", "Ada"),
        ("{user:x<16}", "Ada-Lovelace-7xx"),
        ("{thread:0>4}", "0005"),
        ("{chat}-{thread}", "100-5"),
        ("{project}_{git_project}", "tools_org-app"),
        ("{{}}", "{}"),
        ("a/{profile}", "a-"),
        ("b\ud800", "b?"),
    ],
)
def test_templates(template: str, bank: str) -> None:
    """A template is one of str.format, and what no bank may hold is replaced."""
    assert Settings(bank_id_template=template).bank_for(SESSION) == bank


@pytest.mark.parametrize(
    "template",
    ["{nobody}", "{user.__class__}", "{user[0]}", "{0}", "{}", "{", "}", "{user!r}", "{user:{thread}}",
     "{user:d}", "{user:99999}", "{user:.3f}"],
)  # fmt: skip
def test_wrong_templates(template: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Another field, a look into a value and a wrong format are one warning; bank_id counts."""
    with pytest.raises(ConfigError, match="bank_id_template"):
        Settings(bank_id_template=template)
    environ = {"HINDSIGHT_BANK_ID": "mine", "HOME": str(tmp_path)}
    path = tmp_path / ".hindsight" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"bank_id_template": template}))
    settings = Settings.load(None, environ)
    assert settings.bank_for(SESSION) == "mine"
    (record,) = caplog.records
    assert f"{path}: bank_id_template is {template!r}" in record.getMessage()


@pytest.mark.parametrize(
    "table", [{"7": "one", "telegram:8": "two"}, '{"7": "one", "telegram:8": "two"}']
)
def test_banks_by_user(table: object, tmp_path: Path) -> None:
    """A user that the table names has a bank of their own, also by platform."""
    settings = Settings(bank_id="all", bank_id_template="t-{user}", bank_id_by_user=table)  # type: ignore[arg-type]
    assert settings.bank_for({**SESSION, "user": "7"}) == "one"
    assert settings.bank_for({**SESSION, "user": "8"}) == "two"
    assert settings.bank_for({**SESSION, "user": "8", "platform": "cli"}) == "t-8"
    assert settings.bank_for({**SESSION, "user": ""}) == "t"
    with pytest.raises(ConfigError, match="bank_id_by_user"):
        Settings(bank_id_by_user={"7": ["b"]})  # type: ignore[arg-type]


def test_every_bank_that_is_made_can_be_carried() -> None:
    """Whatever a field brings, the bank is one that a URL can carry, and always the same."""
    for text in ("a/b", "\u00e9" * 200, "x" * 191 + "\u20ac", "\ud800", "a\0b", " a ", "../.."):
        bank = usable_bank(text)
        assert not bank_problem(bank)
        assert bank == usable_bank(text)
        assert not bank_problem(expand("{user}-x", {**SESSION, "user": text}))
    assert usable_bank("  ") == ""


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_repository_of_a_folder(tmp_path: Path) -> None:
    """The repository's name is the same in its folders and worktrees, and the folder's own elsewhere."""

    def git(*words: str, where: Path) -> None:
        identity = ["-c", "user.name=x", "-c", "user.email=x@y", "-c", "protocol.file.allow=always"]
        subprocess.run(["git", *identity, *words], cwd=where, check=True, capture_output=True)

    app = tmp_path / "app"
    (app / "src").mkdir(parents=True)
    git("init", where=app)
    git("commit", "--allow-empty", "-m", "x", where=app)
    git("worktree", "add", "../app-fix", where=app)
    git("clone", "--bare", "app", "bare.git", where=tmp_path)
    git("worktree", "add", "../bare-fix", where=tmp_path / "bare.git")
    lib = tmp_path / "lib"
    lib.mkdir()
    git("init", where=lib)
    git("commit", "--allow-empty", "-m", "x", where=lib)
    git("submodule", "add", str(lib), "vendor", where=app)
    assert repository_name(str(app / "src")) == "app"
    assert repository_name(str(tmp_path / "app-fix")) == "app"
    assert repository_name(str(tmp_path / "bare-fix")) == "bare.git"
    assert repository_name(str(app / "vendor")) == "vendor"
    assert repository_name(str(tmp_path)) == tmp_path.name
