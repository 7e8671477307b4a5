"""Files of variables, against the loaders of the programs that own them."""

from __future__ import annotations

import os
import re
import stat
from importlib import metadata
from pathlib import Path
from typing import Dict, Optional

import pytest

from hindsight_exec.errors import ConfigError
from hindsight_exec.settings.dotenv import (
    EMBED,
    HERMES,
    Dialect,
    _decode,
    read_variables,
    set_variables,
    with_variables,
)
from hindsight_exec.settings.files import write_file

from .dotenv_corpus import CASES, DIFFERENT, LATER

PATH = Path(".env")
DIALECTS = pytest.mark.parametrize("dialect", [HERMES, EMBED], ids=["hermes", "embed"])
_NEWER = tuple(map(int, metadata.version("python-dotenv").split(".")[:3])) >= (1, 2, 3)


def expected(case: str) -> Dict[str, str]:
    return LATER[case] if _NEWER and case in LATER else CASES[case][1]


def ours(variables: Dict[str, str]) -> Dict[str, str]:
    return {
        name: value
        for name, value in variables.items()
        if re.fullmatch(r"HINDSIGHT_\w+", name, re.ASCII)
    }


@pytest.mark.parametrize("case", CASES)
def test_read_as_hermes_reads_it(case: str, tmp_path: Path) -> None:
    """A `.env` has the variables that Hermes loads from it."""
    path = tmp_path / ".env"
    path.write_bytes(CASES[case][0])
    assert ours(read_variables(path, environ={"OUTER": "outer"})) == expected(case)


@pytest.mark.hermes
def test_the_loader_of_this_hermes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table holds what the loader of the Hermes that is installed makes of each case."""
    loader = pytest.importorskip("hermes_cli.env_loader")
    differences = []
    for case, (raw, _) in CASES.items():
        for name in list(os.environ):
            if "HINDSIGHT" in name or name in ("A", "B", "OTHER"):
                monkeypatch.delenv(name)
        monkeypatch.setenv("OUTER", "outer")
        (tmp_path / ".env").write_bytes(raw)
        loader.load_hermes_dotenv(hermes_home=tmp_path)
        if ours(dict(os.environ)) != expected(case):
            differences.append(case)
    assert differences == list(DIFFERENT[_minor()])


@pytest.mark.hermes
@pytest.mark.parametrize("case", CASES)
def test_hermes_reads_what_is_written(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that is set in any file is the one that Hermes loads, by both of its parsers."""
    loader = pytest.importorskip("hermes_cli.env_loader")
    scope = pytest.importorskip("agent.secret_scope")
    path = tmp_path / ".env"
    path.write_bytes(CASES[case][0])
    monkeypatch.delenv("HINDSIGHT_API_KEY", raising=False)
    try:
        set_variables(path, {"HINDSIGHT_API_KEY": "new#key"})
    except ConfigError:
        assert path.read_bytes() == CASES[case][0]
        return
    loader.load_hermes_dotenv(hermes_home=tmp_path)
    assert os.environ["HINDSIGHT_API_KEY"] == "new#key"
    latin = "latin-1" in case and _minor() < 22  # in which a profile of these bytes has no keys
    if "over lines" not in case and not latin:
        assert scope.build_profile_secret_scope(tmp_path)["HINDSIGHT_API_KEY"] == "new#key"


def _minor() -> int:
    names = metadata.packages_distributions()["hermes_cli"]
    (name,) = {name for name in names if name.startswith("hermes")}
    return int(metadata.version(name).split(".")[1])


# -- writing -------------------------------------------------------------------------------------


def check(raw: bytes, name: str, value: Optional[str], dialect: Dialect) -> None:
    """Change a file, unless that is refused: all other bytes are as they were."""
    try:
        changed = with_variables(raw, {name: value}, dialect, PATH)
        without = with_variables(raw, {name: None}, dialect, PATH)
        back = with_variables(changed, {name: None}, dialect, PATH)
    except ConfigError as error:
        assert "nothing was written" in str(error) or "UTF-32" in str(error)
        return
    mark, encoding, text = _decode(raw)
    assert _decode(changed)[0] == mark
    # Removing leaves all of the other pieces, and of the own ones the blank lines above.
    rest = without[len(mark) :].decode(encoding)
    for entry in dialect.split(text):
        keep = entry.text
        if entry.name == name:
            keep = re.findall(r"^(?:\s*[\r\n])?", keep)[0]
        assert rest.startswith(keep)
        rest = rest[len(keep) :]
    assert not rest
    # Setting adds one line, and a line ending where there was none before or behind it.
    assert back.strip(b"\r\n\0") == without.strip(b"\r\n\0") or mark
    assert _decode(back)[2].strip("\r\n") == _decode(without)[2].strip("\r\n")


@DIALECTS
@pytest.mark.parametrize("value", ["new", "with blank # and hash", None])
@pytest.mark.parametrize("case", CASES)
def test_all_else_stays(case: str, value: Optional[str], dialect: Dialect) -> None:
    """Setting or removing a variable leaves all other bytes of the file."""
    check(CASES[case][0], "HINDSIGHT_API_KEY", value, dialect)


@DIALECTS
@pytest.mark.parametrize(
    "raw, value, changed",
    [
        (b"", "v", b"K=v\n"),
        (b"A=1", "v", b"A=1\nK=v\n"),
        (b"A=1\r\n", "v", b"A=1\r\nK=v\r\n"),
        (b"\xef\xbb\xbfK=old\nA=1\n", None, b"\xef\xbb\xbfA=1\n"),
        (b"\xef\xbb\xbfK=old\nA=1\n", "v", b"\xef\xbb\xbf\nK=v\nA=1\n"),
        (b"K=old\nA=caf\xe9\n", "v", b"K=v\nA=caf\xe9\n"),
        (b"A=x\x0cy\nK=old\n\n\nB=2\n", None, b"A=x\x0cy\n\n\nB=2\n"),
        (b"A=x\xe2\x80\xa8y\n\nexport  K=old\r\nB=2\n", "v",
         b"A=x\xe2\x80\xa8y\n\nexport K=v\r\nB=2\n"),
        (b"A=x\xc2\x85y\nK=1\nB=2\nK=3\n", "v", b"A=x\xc2\x85y\nB=2\nK=v\n"),
        (b"A=1\n\n   K='a' # mine\n", None, b"A=1\n\n"),
    ],
)  # fmt: skip
def test_bytes(raw: bytes, value: Optional[str], changed: bytes, dialect: Dialect) -> None:
    """The one line is spliced in: marks, line endings, blank lines and foreign bytes stay."""
    assert with_variables(raw, {"K": value}, dialect, PATH) == changed


@pytest.mark.parametrize(
    "value", ["v", "a b", "a # b", "it's", 'say "hi"', "#x", "a\\", "$x", " x ", "", "'x' # \"y"]
)
def test_values(value: str, tmp_path: Path) -> None:
    """A value is written so that it is read back."""
    path = tmp_path / ".env"
    set_variables(path, {"NAME": value})
    assert read_variables(path) == {"NAME": value}


@pytest.mark.parametrize("value", ["${HOME}", "a\0b"])
def test_what_cannot_be_written(value: str, tmp_path: Path) -> None:
    """A value that Hermes would read otherwise is refused, and the file stays."""
    path = tmp_path / ".env"
    path.write_bytes(b"A=1\n")
    with pytest.raises(ConfigError, match="K cannot be set"):
        set_variables(path, {"K": value})
    assert path.read_bytes() == b"A=1\n"


def test_a_quote_that_never_ends(tmp_path: Path) -> None:
    """A broken line above does not swallow the new one."""
    path = tmp_path / ".env"
    path.write_bytes(b"A='open\n")
    set_variables(path, {"K": "v"})
    assert read_variables(path) == {"K": "v"}


def test_random_files() -> None:
    """Whatever a file holds, a change is what is read afterwards, and nothing else changes."""
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies
    parts = st.sampled_from(
        ["K", "A", "_KEY", "=", "'", '"', "#", " ", "\t", "\n", "\r\n", "\r", "\x0c", "\u2028", "\x85",
         "\u200b", "\xe9", "export ", "${K}", "${A:-x}", "\\", "$", "v", "K=v\n", "\nA=w", "\ufeff", "\0"]
    )  # fmt: skip

    @hypothesis.settings(max_examples=400, deadline=None, derandomize=True)
    @hypothesis.given(
        text=st.lists(parts, max_size=14).map("".join),
        mark=st.sampled_from([b"", b"", b"\xef\xbb\xbf"]),
        encoding=st.sampled_from(["utf-8", "utf-8", "latin-1", "utf-16"]),
        value=st.sampled_from([None, "v", "a # b", "it's", "a\\"]),
        dialect=st.sampled_from([HERMES, EMBED]),
    )
    def run(text: str, mark: bytes, encoding: str, value: Optional[str], dialect: Dialect) -> None:
        raw = mark + text.encode(encoding, "replace")
        check(raw, "K", value, dialect)
        try:
            changed = with_variables(raw, {"K": value}, dialect, PATH)
        except ConfigError:
            return
        stated = [one.value for one in dialect.split(_decode(changed)[2]) if one.name == "K"]
        assert stated[-1:] == ([] if value is None else [value])

    run()


# -- files ---------------------------------------------------------------------------------------


def test_mode_owner_and_links_stay(tmp_path: Path) -> None:
    """A file that is replaced keeps mode, owner and the links to it; a new one is the owner's only."""
    real = tmp_path / "real"
    write_file(real, b"1")
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    real.chmod(0o640)
    owner = os.geteuid() or 12345  # only root gives files away
    os.chown(real, owner, -1)
    link = tmp_path / "link"
    link.symlink_to(real)
    write_file(link, b"2")
    assert link.is_symlink()
    assert real.read_bytes() == b"2"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert real.stat().st_uid == owner
    assert sorted(one.name for one in tmp_path.iterdir()) == ["link", "real"]
