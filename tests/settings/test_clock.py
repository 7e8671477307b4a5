"""The time zone of Hermes."""

from __future__ import annotations

import json
import os
import types
from datetime import datetime, timezone
from pathlib import Path
from typing import Dict

import pytest

from hindsight_exec.conversation.transcript import TranscriptTurn
from hindsight_exec.conversation.turns import document_item, source, turn, turn_messages
from hindsight_exec.settings.config import Settings

WINTER = datetime(2026, 1, 31, 23, 30, tzinfo=timezone.utc)
SUMMER = datetime(2026, 7, 31, 23, 30, tzinfo=timezone.utc)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "hermes"
    (tmp_path / "managed").mkdir()
    folder.mkdir()
    (folder / "config.yaml").write_text("model: x\n", encoding="utf-8")
    return folder


def load(home: Path, host_loaded: bool = False, **environ: str) -> Settings:
    base = {"HOME": str(home.parent), "HERMES_MANAGED_DIR": str(home.parent / "managed")}
    return Settings.load(home, {**base, **environ}, host_loaded=host_loaded)


@pytest.mark.parametrize(
    "line, name",
    [
        ("timezone: Asia/Kolkata", "Asia/Kolkata"),
        ("timezone: 'Europe/Berlin'  # ours\r", "Europe/Berlin"),
        ('timezone: "Etc/GMT+5"', "Etc/GMT+5"),
        ("timezone:", ""),
        ("timezone: ''", ""),
        ("# timezone: Asia/Kolkata", ""),
        ("cron:\n  timezone: Asia/Kolkata", ""),
    ],
)
def test_the_zone_in_config_yaml(home: Path, line: str, name: str) -> None:
    """`timezone` at the top of config.yaml counts, in quotes or not."""
    (home / "config.yaml").write_bytes(f"model: x\n{line}\nmemory: {{}}\n".encode())
    assert load(home).timezone == name


def test_which_zone_counts(home: Path) -> None:
    """The variable goes before the files, and the administrator's files before the user's."""
    (home / "config.yaml").write_text("timezone: Asia/Kolkata\n", encoding="utf-8")
    managed = home.parent / "managed"
    (managed / "config.yaml").write_text("timezone: Europe/Berlin\n", encoding="utf-8")
    assert load(home).timezone == "Europe/Berlin"
    assert load(home, HERMES_TIMEZONE="Asia/Tokyo").timezone == "Asia/Tokyo"
    (home / ".env").write_text("HERMES_TIMEZONE=Africa/Cairo\n", encoding="utf-8")
    assert load(home, HERMES_TIMEZONE="Asia/Tokyo").timezone == "Africa/Cairo"
    assert load(home, True, HERMES_TIMEZONE="Asia/Tokyo").timezone == "Asia/Tokyo"
    (managed / ".env").write_text("HERMES_TIMEZONE=Asia/Seoul\n", encoding="utf-8")
    assert load(home, True, HERMES_TIMEZONE="Asia/Tokyo").timezone == "Asia/Seoul"


def test_a_zone_that_is_not_known(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A zone that is not known is one warning, and the local one is used."""
    settings = load(home, HERMES_TIMEZONE="Mars/Olympus")
    assert settings.timezone == ""
    assert settings.now().utcoffset() == datetime.now().astimezone().utcoffset()
    (record,) = caplog.records
    assert "environment: the time zone 'Mars/Olympus' is not known" in record.getMessage()


def test_times_have_the_offset_of_the_zone(home: Path) -> None:
    """The offset is that of the time, not of today: summer is not winter."""
    settings = load(home, HERMES_TIMEZONE="Europe/Berlin")
    assert settings.localise(WINTER).isoformat() == "2026-02-01T00:30:00+01:00"
    assert settings.localise(SUMMER).isoformat() == "2026-08-01T01:30:00+02:00"
    past = TranscriptTurn("q", "a", WINTER, SUMMER, 1)
    stamps = [one["timestamp"] for one in past.messages(SUMMER, localise=settings.localise)]
    assert stamps == ["2026-02-01T00:30:00+01:00", "2026-08-01T01:30:00+02:00"]


def test_a_document_keeps_the_offset_of_its_turn(home: Path) -> None:
    """A document's time has the offset of its first message, whichever process sends it."""
    at = load(home, HERMES_TIMEZONE="Asia/Kolkata").localise(WINTER)
    given = turn(turn_messages("q", "a", at=at), given_at=WINTER.timestamp(), index=1)
    about = source(url="http://h", credential="", bank="b", session="s")
    assert (
        json.loads(document_item(about, "d", [given]))["timestamp"] == "2026-02-01T05:00:00+05:30"
    )
    bare = turn([{"role": "user", "content": "q"}], given_at=WINTER.timestamp(), index=1)
    local = WINTER.astimezone().isoformat()
    assert json.loads(document_item(about, "d", [bare]))["timestamp"] == local


@pytest.mark.hermes
@pytest.mark.parametrize("environ", [{}, {"HERMES_TIMEZONE": "Asia/Tokyo"}])
@pytest.mark.parametrize("line", ["", "timezone: Asia/Kolkata", 'timezone: "Europe/Berlin" # ours'])
def test_the_clock_of_this_hermes(
    home: Path, line: str, environ: Dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The zone is the one that Hermes itself uses."""
    clock: types.ModuleType = pytest.importorskip("hermes_time")
    (home / "config.yaml").write_text(f"model: x\n{line}\n", encoding="utf-8")
    monkeypatch.setenv("HERMES_HOME", str(home))
    monkeypatch.delenv("HERMES_TIMEZONE", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    clock.reset_cache()
    try:
        zone = clock.get_timezone()
    finally:
        clock.reset_cache()
    settings = Settings.load(home, os.environ, host_loaded=True)
    assert settings.timezone == (getattr(zone, "key", "") if zone else "")
