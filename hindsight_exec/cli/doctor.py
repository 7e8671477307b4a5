"""`hindsight-exec doctor`: what delivery needs, checked one by one, each failure with its remedy."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Iterator

from hindsight_exec.client.api import HindsightClient
from hindsight_exec.client.loop import background_loop
from hindsight_exec.errors import ConfigError, OutboxError, Rejected, ServerError, Unauthorized
from hindsight_exec.hermes import embedded
from hindsight_exec.outbox import spool
from hindsight_exec.outbox.store import Outbox

from .console import OK, UNDONE, coloured, say, say_json
from .status import look
from .targets import chosen_settings, folders

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from hindsight_exec.settings.config import Settings

# From this version on a retain that is sent again is told by its operation id.
_KNOWS_OPERATIONS = (0, 8, 6)
# Seconds that somebody at the terminal waits for a server that hangs.
_PATIENCE = 30.0


@dataclass(frozen=True)
class Check:
    """What was looked at, how it is, and what to do about it."""

    name: str
    state: str  # "ok", "warning" or "failed"
    found: str
    remedy: str = ""


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


def server_checks(settings: Settings) -> list[Check]:
    """Whether the configured server answers, which version it is, and whether it takes the key."""
    if settings.mode != "local_embedded":
        return background_loop().run(_ask(settings)).result()
    name = "embedded server"
    problem = embedded.missing(settings)
    if problem:
        why, _, remedy = problem.partition(": ")
        return [Check(name, "failed", why, remedy)]
    if not embedded.program():
        remedy = "pip install hindsight-all beside hindsight-exec, or install uv"
        return [Check(name, "failed", "neither hindsight-api nor uvx is there", remedy)]
    url = embedded.address(settings)
    checks = background_loop().run(_ask(replace(settings, api_url=url))).result() if url else []
    if not checks or checks[0].state == "failed":
        log = embedded.log_of(settings)
        found = f"profile {settings.profile} does not run; it is started when it is needed"
        return [Check(name, "warning", found, f"if it never comes up, see {log}")]
    return checks


async def _ask(settings: Settings) -> list[Check]:
    checks = []
    client = HindsightClient(settings.api_url, api_key=settings.api_key, timeout=_PATIENCE)
    async with client:
        try:
            version = await client.version()
        except ServerError as error:
            remedy = "start it, or correct the URL; 'hindsight-exec serve' runs an embedded one"
            return [Check("server", "failed", str(error), remedy)]
        checks.append(_version(settings.api_url, version))
        try:
            await client.documents(settings.bank_id, limit=1)
        except Unauthorized as error:
            remedy = "set HINDSIGHT_API_KEY to the key of this server"
            checks.append(Check("key", "failed", str(error), remedy))
        except Rejected as error:
            if error.status != 404:  # the bank is made by its first retain
                checks.append(Check("bank", "failed", str(error), "choose another bank"))
            else:
                checks.append(Check("key", "ok", "accepted; the bank will be made"))
        except ServerError as error:
            checks.append(Check("server", "failed", str(error), "see the server's log"))
        else:
            checks.append(Check("key", "ok", "accepted" if settings.api_key else "none is needed"))
    return checks


def _version(url: str, version: str) -> Check:
    found = f"{url}, version {version}"
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    if numbers < _KNOWS_OPERATIONS:
        return Check(
            "server",
            "warning",
            found,
            "0.8.6 and later know a repeated request; documents are stored once all the same",
        )
    return Check("server", "ok", found)
