"""For each key, from each place, right, wrong and empty: what counts, and what is said.

The cases are generated from the keys themselves: a new key is tested from the day it is added.
"""

from __future__ import annotations

import json
import os
from dataclasses import Field
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import pytest

from hindsight_exec.client.urls import CLOUD_URL
from hindsight_exec.settings import keyring
from hindsight_exec.settings.config import Settings, configurable

ITEMS = {item.name: item for item in configurable()}
WITH_VARIABLE = [name for name, item in ITEMS.items() if item.metadata["env"]]
# As JSON, and what it becomes. Two each, so that it can be told which of two places counts.
RIGHT: Dict[str, Tuple[Tuple[Any, Any], Tuple[Any, Any]]] = {
    "text": (("one", "one"), ("two", "two")),
    "label": (("One", "One"), ("Two", "Two")),
    "url": (("http://one", "http://one"), ("http://two", "http://two")),
    "secret": (("one", "one"), ("two", "two")),
    "bank": (("one", "one"), ("two", "two")),
    "profile": (("one", "one"), ("two", "two")),
    "template": (("one-{user}", "one-{user}"), ("two", "two")),
    "banks": (({"u": "b"}, (("u", "b"),)), ({"v": "c"}, (("v", "c"),))),
    "variables": (({"A": "1"}, (("A", "1"),)), ({"B": "2"}, (("B", "2"),))),
    "number": ((7.5, 7.5), ("8", 8.0)),
    "int": ((7, 7), ("8", 8)),
    "list": ((["one"], ("one",)), ("two, three", ("two", "three"))),
    "folders": ((["/one"], ("/one",)), ("/two, /three/", ("/two", "/three"))),
    "patterns": ((["a+"], ("a+",)), ("a,b", ("a,b",))),
    "scopes": (("per_tag", "per_tag"), ([["a"]], (("a",),))),
}  # fmt: skip
WRONG_TYPE = {"text": ["x"], "label": {}, "url": 5, "secret": ["x"], "bank": ["x"], "profile": {},
              "template": ["x"], "banks": ["x"], "variables": 5, "number": "soon", "int": "many",
              "list": {"a": 1}, "folders": {"a": 1}, "patterns": 5, "scopes": 5, "choice": ["x"], "bool": "perhaps"}  # fmt: skip
WRONG_VALUE = {"url": "localhost:8888", "secret": "a\x07b", "bank": "a/b", "profile": "a b",
               "template": "{nobody}", "banks": {"u": "a/b"}, "variables": {"A B": "1"}, "number": -1,
               "int": 1.5, "folders": ["/one", "two"], "patterns": "(", "scopes": "everything", "choice": "nonsense", "bool": "2"}  # fmt: skip


def right(item: Field[Any]) -> Tuple[Tuple[Any, Any], Tuple[Any, Any]]:
    about = item.metadata
    if about["choices"]:
        others = [one for one in about["choices"] if one != item.default] + [item.default]
        if about["kind"] == "list":
            return ((others[0], (others[0],)), (others[1], (others[1],)))
        if item.name == "mode":
            others = ["local_external", "cloud"]
        return ((others[0], others[0]), (others[1], others[1]))
    if about["kind"] == "bool":
        return ((not item.default, not item.default), (str(item.default), item.default))
    return RIGHT[about["kind"]]


class Case(NamedTuple):
    """A configuration of one key; ``said``: pieces of the one message, none of it if empty."""

    what: str
    key: str
    file: Dict[str, Any] = {}  # noqa: RUF012 - never changed
    dotenv: Optional[str] = None
    environ: Optional[str] = None
    other: Optional[str] = None
    host_loaded: bool = False
    counts: Any = None
    said: Tuple[str, ...] = ()
    off: bool = False


def cases() -> Iterator[Case]:
    for key, item in ITEMS.items():
        about, default = item.metadata, item.default
        (one, parsed_one), (two, parsed_two) = right(item)
        yield Case("absent", key, counts=default)
        for name in (key, *about["aliases"]):
            yield Case(f"file, as {name}", key, {name: one}, counts=parsed_one)
            yield Case(f"file, as {name}, other spelling", key, {name: two}, counts=parsed_two)
        yield Case("null", key, {key: None}, counts=default)
        empty = () if about["blank"] else default
        yield Case("empty in the file", key, {key: ""}, counts=empty)
        if about["kind"] == "list":
            yield Case("empty list", key, {key: []}, counts=())
        for what, table in (("wrong type", WRONG_TYPE), ("wrong value", WRONG_VALUE)):
            if about["kind"] in table and (about["kind"] != "text" or what == "wrong type"):
                yield wrong(f"{what} in the file", item, table[about["kind"]])
        if not about["env"]:
            continue
        stated, other = as_variable(one), as_variable(two)
        yield Case(".env", key, dotenv=stated, counts=parsed_one)
        yield Case("environment", key, environ=stated, counts=parsed_one)
        yield Case(
            "environment of a host", key, environ=stated, host_loaded=True, counts=parsed_one
        )
        yield Case(
            "file, not .env", key, {key: one}, dotenv=other, environ=other, counts=parsed_one
        )
        yield Case(".env, not the shell", key, dotenv=stated, environ=other, counts=parsed_one)
        yield Case(
            "host, not .env", key, dotenv=stated, environ=other, host_loaded=True, counts=parsed_two
        )
        yield Case("another profile", key, other=stated, counts=default)
        yield Case("empty in .env", key, dotenv="", counts=default)
        yield Case("empty in .env, not the shell", key, dotenv="", environ=stated, counts=default)
        yield Case("empty in the environment", key, environ="", counts=default)
        yield Case("empty in the file, not .env", key, {key: ""}, dotenv=stated, counts=parsed_one)
        if about["kind"] in WRONG_VALUE and about["kind"] != "text":
            yield wrong("wrong value in .env", item, WRONG_VALUE[about["kind"]], variable=True)


def as_variable(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def wrong(what: str, item: Field[Any], value: Any, *, variable: bool = False) -> Case:
    """What the key's own description says of a wrong value."""
    about = item.metadata
    place = "{env}" if variable else "{file}"
    shown = as_variable(value) if variable else value
    said: Tuple[str, ...] = (f"{place}: {about['env'] if variable else item.name}",)
    if about["kind"] != "secret":
        said += (repr(shown) if about["kind"] != "url" else str(shown),)
    where: Dict[str, Any] = (
        {"dotenv": as_variable(value)} if variable else {"file": {item.name: value}}
    )
    replaced = {"bank": "a-b", "profile": "a-b", "template": ""}.get(about["kind"])
    if "value" in what and replaced is not None:
        return Case(what, item.name, counts=replaced, said=(*said, "using"), **where)
    if about["strict"] or about["kind"] == "url":
        return Case(what, item.name, counts=item.default, said=said, off=True, **where)
    instead = item.default if about["narrow"] is None else about["narrow"]
    return Case(what, item.name, counts=instead, said=(*said, "using"), **where)


CASES = list(cases())


@pytest.mark.parametrize("case", CASES, ids=[f"{one.key}: {one.what}" for one in CASES])
def test_each_key(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What counts is what the table of places says, and a message names place, key and value."""
    for name in list(os.environ):
        if name.startswith(("HINDSIGHT_", "HERMES_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(keyring, "_keys", {})
    home, other = tmp_path / "profile", tmp_path / "other"
    for folder in (home, other):
        (folder / "hindsight").mkdir(parents=True)
    item = ITEMS[case.key]
    variable = item.metadata["env"]
    values = dict(case.file)
    if item.metadata["group"] == "Embedded":
        values["mode"] = "local_embedded"
    file, env = home / "hindsight" / "config.json", home / ".env"
    file.write_text(json.dumps(values), encoding="utf-8")
    for folder, text in ((home, case.dotenv), (other, case.other)):
        if text is not None:
            (folder / ".env").write_text(f"{variable}='{text}'\n", encoding="utf-8")
    environ = {"HOME": str(tmp_path), "HERMES_MANAGED_DIR": str(tmp_path / "managed")}
    if case.environ is not None:
        environ[variable] = case.environ
    settings = Settings.load(home, environ, host_loaded=case.host_loaded)
    messages: List[str] = [record.getMessage() for record in caplog.records]
    assert bool(settings.unusable) == case.off
    assert len(messages) == bool(case.said), messages
    for piece in case.said:
        assert piece.replace("{file}", str(file)).replace("{env}", str(env)) in messages[0]
    counts = case.counts
    if case.off:
        assert messages == [f"{settings.unusable}; memory is off until this is corrected"]
        return
    if case.key == "api_url" and counts == CLOUD_URL and settings.mode != "cloud":
        counts = settings.api_url
    assert getattr(settings, case.key) == counts


def test_every_documented_key_is_in_the_matrix() -> None:
    """The page names the keys that are tested, and no others; those with a variable have them all."""
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
    for key in ITEMS:
        assert f"| `{key}`" in page
        kinds = {case.what for case in CASES if case.key == key}
        assert {"absent", "null", "empty in the file"} <= kinds
        assert key not in WITH_VARIABLE or {".env", "environment", "another profile"} <= kinds


# -- the provider that Hermes 0.19 bundles -----------------------------------------------------------

# Its attribute for each key, and the keys for which it asks no variable where there is a file:
# for these we do (public threads asked for it).
BUNDLED = {
    "mode": "_mode", "api_url": "_api_url", "api_key": "_api_key", "timeout": "_timeout",
    "bank_id": "_bank_id", "recall_budget": "_budget", "retain_tags": "_retain_tags",
    "retain_source": "_retain_source", "retain_user_prefix": "_retain_user_prefix",
    "retain_assistant_prefix": "_retain_assistant_prefix", "observation_scopes": "_observation_scopes",
    "idle_timeout": "_idle_timeout",
}  # fmt: skip
ONLY_OURS = {"mode", "bank_id", "recall_budget"}


@pytest.mark.hermes
@pytest.mark.parametrize("key", BUNDLED)
def test_precedence_is_that_of_the_bundled_provider(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From file, variable, both and neither, each key is what the bundled provider makes of it."""
    bundled = pytest.importorskip("plugins.memory.hindsight")
    monkeypatch.setenv("HERMES_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    item = ITEMS[key]
    (one, _), (two, _) = right(item)
    if item.metadata["kind"] in ("number", "int"):
        one, two = 7, "8"
    path = tmp_path / "hindsight" / "config.json"
    path.parent.mkdir()
    base = {} if key in ("mode", "api_url") else {"api_url": "http://h", "mode": "local_external"}
    for file, variable in ((None, None), (one, None), (None, two), (one, two), ("", two)):
        values = {**base, **({} if file is None else {key: file})}
        path.write_text(json.dumps(values), encoding="utf-8")
        monkeypatch.delenv(item.metadata["env"], raising=False)
        if variable is not None:
            monkeypatch.setenv(item.metadata["env"], as_variable(variable))
        theirs = bundled.HindsightMemoryProvider()
        monkeypatch.setattr(theirs, "_get_client", lambda *_: None)
        theirs.initialize("s", hermes_home=str(tmp_path), platform="cli", agent_context="primary")
        got, mine = getattr(theirs, BUNDLED[key]), getattr(Settings.load(tmp_path), key)
        # An empty text where a number belongs is the default there, and no value here.
        number = file == "" and item.metadata["kind"] in ("number", "int")
        if variable is not None and not file and (key in ONLY_OURS or number):
            assert plain(mine) in (variable, int(variable) if number else None)
            continue
        assert plain(mine) == plain(got), (file, variable)


def plain(value: Any) -> Any:
    """The same value of both in one form: lists, numbers, nothing."""
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return value or None
