"""`hindsight-exec doctor`: check what delivery needs, and name a remedy for each failure."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Iterator

from hindsight_exec.client.urls import EMBEDDED_URL
from hindsight_exec.errors import ConfigError, OutboxError
from hindsight_exec.hermes.checks import Check, server_checks
from hindsight_exec.hermes.eviction import eviction, other_provider
from hindsight_exec.outbox import spool
from hindsight_exec.outbox.store import Outbox
from hindsight_exec.settings.config import Settings
from hindsight_exec.settings.credentials import resolve_credential

from . import service
from .console import OK, UNDONE, coloured, counted, say, say_json
from .files import look, unread
from .flush import left_destinations, missing_keys
from .targets import advice, chooses_directory, chosen_settings, folders

if TYPE_CHECKING:
    import argparse
    from pathlib import Path


def run(args: argparse.Namespace) -> int:
    checks = [_sqlite()]
    try:
        places = folders(args.state)
    except ConfigError as error:
        places = []
        remedy = "name another with HINDSIGHT_EXEC_STATE or --state"
        checks.append(Check("state directory", "failed", str(error), remedy))
    checks = [*chain(*map(_directory, places)), *checks, *_servers(places, args), *_service()]
    homes = [place.parent.parent for place in places]  # Hermes' folder is one of them
    checks += filter(None, (eviction(home) or other_provider(home) for home in homes))
    checks = list(dict.fromkeys(checks))  # two directories may have the same trouble
    if args.json:
        say_json([asdict(check) for check in checks])
    else:
        colours = {"ok": "green", "warning": "yellow", "failed": "red"}
        for check in checks:
            state = coloured(check.state.ljust(7), colours[check.state])
            say(f"{state}  {check.name}: {check.found}")
            if check.remedy:
                say(f"{'':9}→ {check.remedy}")
    return UNDONE if any(check.state == "failed" for check in checks) else OK


def _directory(place: Path) -> Iterator[Check]:
    """Whether turns can be kept there, and what waits there already."""
    name = "state directory"
    elsewhere = ", or name another with HINDSIGHT_EXEC_STATE" if chooses_directory() else ""
    existed = place.exists()
    try:
        claim = spool.create(place)
    except OutboxError as error:
        yield Check(name, "failed", str(error), f"make it writable for you{elsewhere}")
        return
    try:
        Outbox(claim.path).close()
        locked = spool.is_live(claim.path)
    except OutboxError as error:
        yield Check(name, "failed", str(error), "is the disk full, or a network file system?")
        return
    finally:
        claim.release(remove=True)
    mode = stat.S_IMODE(place.stat().st_mode)
    if not locked:
        remedy = f"put it on a local disk{elsewhere}"
        yield Check(name, "failed", f"{place} does not keep locks", remedy)
    elif os.name == "posix" and mode & 0o077:
        found = f"other users may enter {place} ({mode:o})"
        yield Check(name, "failed", found, f"chmod 700 '{place}'")
    else:
        yield Check(name, "ok", str(place))
    if not existed:
        _remove(place)
        return
    files = look(place)
    waiting = sum(file.summary.waiting for file in files if not file.live)
    dead = sum(file.summary.dead for file in files)
    if waiting:
        found = f"ended processes left {counted(waiting, 'turn')}"
        remedy = f"{advice('flush')}, or {advice('service install')}"
        yield Check("waiting", "warning", found, remedy)
    if dead:
        found = f"the server refused {counted(dead, 'turn')}"
        remedy = f"run '{advice('dead list')}', then retry or discard them"
        yield Check("dead letters", "warning", found, remedy)
    for file in unread(place, files):
        yield Check(file.kind, "warning", file.about, file.remedy)


def _remove(place: Path) -> None:
    """Remove the directory that only the check has made."""
    with contextlib.suppress(OSError):  # another process has begun to use it
        (place / ".folder.lock").unlink()
        place.rmdir()


def _sqlite() -> Check:
    found = f"SQLite {sqlite3.sqlite_version}"
    if sqlite3.sqlite_version_info < (3, 24):
        return Check("SQLite", "failed", found, "use a Python with SQLite 3.24 or later")
    return Check("SQLite", "ok", found)


def _servers(places: list[Path], args: argparse.Namespace) -> Iterator[Check]:
    """The configured servers, and those that waiting turns go to, each once."""
    name = "configuration"
    asked: set[tuple[str, str | None, str]] = set()
    found = False
    for place in places[:1] if args.url else places:
        try:
            settings = chosen_settings(place, args.url, args.api_key, args.bank)
        except ConfigError as error:
            found = True
            yield Check(name, "failed", str(error), "correct it, or use --url")
            continue
        if settings is None:
            continue  # a user of Hermes may have configured nothing else
        found = True
        if _new(asked, settings):
            yield Check(name, "ok", str(settings.source or "environment and arguments"))
            yield from server_checks(settings)
    if not found:
        remedy = (
            "in Hermes, run 'hermes memory setup hindsight_exec'; elsewhere set HINDSIGHT_API_URL"
            " (and HINDSIGHT_API_KEY), or use --url"
        )
        yield Check(name, "warning", "no server is configured", remedy)
    for place in places:
        yield from _waiting_for(place, asked)


def _waiting_for(place: Path, asked: set[tuple[str, str | None, str]]) -> Iterator[Check]:
    """The servers of turns that ended processes left: it may not be the configured one."""
    files = look(place)
    for problem in missing_keys(place, files):
        yield Check("waiting", "failed", "turns wait for a server whose key is unknown", problem)
    for where in left_destinations(files):
        key = resolve_credential(where.credential, where.url, place)
        if key is None or where.url.startswith(EMBEDDED_URL):
            continue
        settings = Settings(api_url=where.url, api_key=key or None, bank_id=where.bank)
        if _new(asked, settings):
            yield from server_checks(settings)


def _service() -> Iterator[Check]:
    """Whether the scheduled runs happen, where they are installed."""
    try:
        found = service.look()
    except ConfigError:
        return  # without a home folder, none is installed
    if found["installed"]:
        state = "failed" if found["problem"] else "ok"
        remedy = f"see '{advice('service status')}'" if found["problem"] else ""
        yield Check("service", state, found["problem"] or service.describe(found), remedy)


def _new(asked: set[tuple[str, str | None, str]], settings: Settings) -> bool:
    asking = (settings.api_url, settings.api_key or None, settings.bank_id)
    new = asking not in asked
    asked.add(asking)
    return new
