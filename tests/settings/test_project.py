"""The bank that a project names, in folders that the user trusts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hindsight_exec import Settings
from hindsight_exec.errors import ConfigError
from hindsight_exec.settings.project import ProjectFile, project_file


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture
def src(home: Path) -> Path:
    src = home / "src"
    (src / "app" / "deep").mkdir(parents=True)
    return src


def write(folder: Path, text: str = 'bank_id = "app"') -> Path:
    path = folder / ".hindsight" / "config.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("trusted", ["src", "src/app", "."])
@pytest.mark.parametrize("folder", ["src/app", "src/app/deep"])
def test_a_trusted_folder(home: Path, src: Path, trusted: str, folder: str) -> None:
    """A project in or below a trusted folder names its bank, for the folders in it, too."""
    write(src / "app")
    assert project_file(str(home / folder), (str(home / trusted),)) == ProjectFile("app")


@pytest.mark.parametrize("trusted", [(), ("src/app/deep",), ("src/ap",), ("src/app2",), ("other",)])
def test_another_folder(home: Path, src: Path, trusted: tuple[str, ...]) -> None:
    """A project elsewhere names none: its file is not even opened."""
    path = write(src / "app")
    path.unlink()
    os.mkfifo(path)  # opening it would wait for ever
    listed = tuple(str(home / one) for one in trusted)
    assert project_file(str(src / "app"), listed) == ProjectFile(ignored=path)


def test_the_nearest_file_counts(src: Path) -> None:
    """Of two files the nearer one counts, as a file of its own: also if it names no bank."""
    write(src)
    assert project_file(str(src / "app"), (str(src),)) == ProjectFile("app")
    write(src / "app", "")
    assert project_file(str(src / "app"), (str(src),)) == ProjectFile()


def test_no_file(src: Path) -> None:
    """Without a file there is nothing to say."""
    assert project_file(str(src / "app"), (str(src),)) == ProjectFile()
    assert project_file(str(src / "gone" / "app"), (str(src),)) == ProjectFile()


def test_the_home_is_no_project(home: Path, src: Path) -> None:
    """The file in the home folder is the user's own, and those above it are anybody's."""
    write(home)
    write(home.parent)
    for folder in (home, src / "app", home.parent):
        assert project_file(str(folder), (str(home.parent),)) == ProjectFile()


def test_links_are_resolved(home: Path, src: Path) -> None:
    """Trust follows where folders and files are, not what they are called."""
    evil = home / "evil"
    evil.mkdir()
    path = write(evil)
    (src / "link").symlink_to(evil)
    (home / "alias").symlink_to(src)
    write(src / "app")
    assert project_file(str(src / "link"), (str(src),)) == ProjectFile(ignored=path)
    assert project_file(str(home / "alias" / "app"), (str(src),)) == ProjectFile("app")
    assert project_file(str(src / "app"), (str(home / "alias"),)) == ProjectFile("app")


@pytest.mark.parametrize("link", [".hindsight", ".hindsight/config.toml"])
@pytest.mark.parametrize("into_trusted", [True, False])
def test_a_file_that_is_elsewhere(home: Path, src: Path, link: str, into_trusted: bool) -> None:
    """A project's file counts only if both it and the project are in trusted folders."""
    here, there = (home / "evil", src / "app") if into_trusted else (src / "app", home / "evil")
    here.mkdir(exist_ok=True)
    there.mkdir(exist_ok=True)
    write(there)
    (here / link).parent.mkdir(exist_ok=True)
    (here / link).symlink_to(there / link)
    path = here / ".hindsight" / "config.toml"
    assert project_file(str(here), (str(src),)) == ProjectFile(ignored=path)


def test_a_link_that_leads_to_itself(src: Path) -> None:
    """A folder that cannot be resolved holds no project."""
    (src / "loop").symlink_to(src / "loop")
    assert project_file(str(src / "loop"), (str(src / "loop"),)) in (
        ProjectFile(),
        ProjectFile(ignored=src / "loop" / ".hindsight" / "config.toml"),
    )


@pytest.mark.parametrize(
    "text, says",
    [
        ("bank_id = ", "cannot be read"),
        ("bank_id = 5", "must be text, not 5"),
        ('bank_id = ["a"]', "must be text"),
        ('bank_id = "a/b"', "must not hold a '/'"),
        (f'bank_id = "{"x" * 500}"', "must have at most"),
        ("\x00", "cannot be read"),
        ("#" * 70_000, "more than 65536 bytes"),
        ("a = " + "[" * 20_000, "cannot be read"),
    ],
)
def test_wrong_files(src: Path, text: str, says: str) -> None:
    """A file of a trusted project that does not name a usable bank is an error that says why."""
    path = write(src / "app", text)
    with pytest.raises(ConfigError) as caught:
        project_file(str(src / "app"), (str(src),))
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_no_text(src: Path) -> None:
    """Bytes that are no UTF-8, and a folder in the file's place, are errors."""
    path = write(src / "app")
    path.write_bytes(b'bank_id = "\xff"')
    with pytest.raises(ConfigError, match="cannot be read"):
        project_file(str(src / "app"), (str(src),))
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match="is not a file"):
        project_file(str(src / "app"), (str(src),))


@pytest.mark.parametrize("text", ["", 'bank_id = ""', 'api_url = "http://x"\nrecall_tags = ["a"]'])
def test_files_that_name_no_bank(src: Path, text: str) -> None:
    """Nothing but bank_id counts, and an empty one names none."""
    write(src / "app", text)
    assert project_file(str(src / "app"), (str(src),)) == ProjectFile()


def test_the_listed_folders(home: Path) -> None:
    """~ is the home folder, and a relative folder turns memory off: it may be any."""
    assert Settings(trusted_project_dirs=("~/src",)).trusted_project_dirs == (f"{home}/src",)
    for wrong in (("src",), ("~nobody-of-this-name/src",), ({"a": 1},)):
        with pytest.raises(ConfigError, match="trusted_project_dirs"):
            Settings(trusted_project_dirs=wrong)  # type: ignore[arg-type]
