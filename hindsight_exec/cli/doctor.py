"""`hindsight-exec doctor`: what delivery needs, checked one by one, each failure with its remedy."""

from __future__ import annotations

import os
import sqlite3
import stat
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Iterator

from hindsight_exec.errors import ConfigError, OutboxError
from hindsight_exec.hermes.checks import Check, server_checks
from hindsight_exec.outbox import spool
from hindsight_exec.outbox.store import Outbox

from .console import OK, UNDONE, coloured, say, say_json
from .status import look
from .targets import chosen_settings, folders

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from hindsight_exec.settings.config import Settings


def run(args: argparse.Namespace) -> int:
    places = folders(args.state)
    checks = [*chain(*map(_folder, places)), _sqlite(), *_servers(places, args)]
    if args.json:
        say_json([asdict(check) for check in checks])
    else:
        colours = {"ok": "green", "warning": "yellow", "failed": "red"}
        for check in checks:
            say(
                f"{coloured(check.state.ljust(7), colours[check.state])}  {check.name}: {check.found}"
            )
            if check.remedy:
                say(f"{'':9}→ {check.remedy}")
    return UNDONE if any(check.state == "failed" for check in checks) else OK


def _folder(place: Path) -> Iterator[Check]:
    name = "state folder"
    existed = place.exists()
    try:
        claim = spool.create(place)
    except OutboxError as error:
        yield Check(
            name,
            "failed",
            str(error),
            "make it a folder you may write to, or name another with HINDSIGHT_EXEC_STATE",
        )
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
        yield Check(
            name,
            "failed",
            f"{place} does not keep locks",
            "name a folder on a local disk with HINDSIGHT_EXEC_STATE",
        )
    elif os.name == "posix" and mode & 0o077:
        yield Check(name, "failed", f"{place} is open to others ({mode:o})", f"chmod 700 '{place}'")
    else:
        yield Check(name, "ok", str(place))
    if not existed:
        _remove(place)
        return
    waiting = sum(file.summary.waiting for file in look(place) if not file.live)
    dead = sum(file.summary.dead for file in look(place))
    if waiting:
        yield Check(
            "waiting", "warning", f"{waiting} turns of ended processes", "hindsight-exec flush"
        )
    if dead:
        yield Check(
            "dead letters",
            "warning",
            f"{dead} turns the server would not take",
            "see 'hindsight-exec dead list', then retry or discard them",
        )
    for path in spool.aside(place):
        yield Check(
            "set aside",
            "warning",
            path.name,
            "a newer hindsight-exec reads what is newer; remove it once you have what you need",
        )


def _remove(place: Path) -> None:
    """Take away the folder that only the check has made."""
    try:
        (place / ".folder.lock").unlink()
        place.rmdir()
    except OSError:
        pass  # somebody has begun to use it


def _sqlite() -> Check:
    found = f"SQLite {sqlite3.sqlite_version}"
    if sqlite3.sqlite_version_info < (3, 24):
        return Check("SQLite", "failed", found, "use a Python with SQLite 3.24 or later")
    return Check("SQLite", "ok", found)


def _servers(places: list[Path], args: argparse.Namespace) -> Iterator[Check]:
    """The servers that the folders' turns go to, each once."""
    known: list[Settings] = []
    unconfigured = True
    for place in places[:1] if args.url else places:
        try:
            settings = chosen_settings(place, args.url, args.api_key, args.bank)
        except ConfigError as error:
            unconfigured = False
            yield Check(
                "configuration", "failed", str(error), "correct it, or name a server with --url"
            )
            continue
        if settings is None:
            continue  # a user of Hermes may have configured nothing else
        unconfigured = False
        if not any(_same_server(settings, one) for one in known):
            known.append(settings)
            yield Check("configuration", "ok", str(settings.source or "environment and arguments"))
            yield from server_checks(settings)
    if unconfigured:
        yield Check(
            "configuration",
            "warning",
            "no server is configured",
            "set HINDSIGHT_API_URL (and HINDSIGHT_API_KEY), or give --url",
        )


def _same_server(one: Settings, other: Settings) -> bool:
    return (one.api_url, one.api_key, one.bank_id) == (other.api_url, other.api_key, other.bank_id)
