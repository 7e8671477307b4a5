"""`hindsight-exec service`: have the system deliver, every few minutes, what ended processes left.

What the scheduler starts has neither this shell's PATH nor its variables. So all paths are absolute
and the configuration is kept in a file of ours, and each run notes how it ended, for `status`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hindsight_exec.errors import ConfigError, HindsightExecError
from hindsight_exec.settings.folders import absolute

from . import schedulers
from .console import OK, UNDONE, duration, note, say, say_json
from .targets import advice, folders, settings_of

if TYPE_CHECKING:
    import argparse

# Variables that decide where turns wait, where they go, and how the server is reached.
_NAMES = ("HOME", "HERMES_HOME", "XDG_STATE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")

# A run is late after so many intervals.
_LATE = 3


def install(args: argparse.Namespace) -> int:
    """Write the configuration, and register with the scheduler."""
    environment = {name: value for name, value in os.environ.items() if _is_kept(name)}
    state = str(absolute(args.state)) if args.state else None
    places = folders(args.state)
    scheduler = schedulers.choose(args.scheduler)
    file = _file()
    command = [
        os.path.abspath(sys.executable),  # noqa: PTH100 - not resolved: a venv's is a link
        str(Path(__file__).absolute().parent.parent),
        *("service", "run", str(file)),
    ]
    shown = scheduler.show(command, args.every)  # refuses what it cannot do
    if args.dry_run:
        say(shown)
        return OK
    known = _configuration(file)
    before = known.get("scheduler") or scheduler.name
    if known and known.get("state") != state:
        note(f"this replaces the runs for {known.get('state') or 'the default directories'}")
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept = {"every": args.every, "state": state, "environment": environment}
    _write(file, {**kept, "scheduler": before})
    for text in scheduler.install(command, args.every):
        note(text)
    if before != scheduler.name:  # until here, both run it: better than none
        schedulers.choose(before).uninstall()
        _write(file, {**kept, "scheduler": scheduler.name})
    say(f"{scheduler.name} runs 'flush' every {duration(args.every)}")
    say(f"configuration: {file}")
    for place in places:
        settings = settings_of(place)
        where = str(settings.source or "the environment")
        if settings.configured and not settings.unusable:
            say(f"{place} → {settings.api_url}, configured in {where}")
    if "HINDSIGHT_API_KEY" in environment:
        note(f"the API key of this shell was copied to {file}, which only you can read")
    return OK


def uninstall(args: argparse.Namespace) -> int:
    """Undo what :func:`install` did. Turns stay where they are."""
    file = _file()
    known = _configuration(file)
    scheduler = schedulers.choose(known.get("scheduler") or args.scheduler)
    for text in scheduler.uninstall():
        note(text)
    for path in (file, _last(file)):
        path.unlink(missing_ok=True)
    say("no scheduled run is left" if known else "no scheduled run was installed")
    return OK


def status(args: argparse.Namespace) -> int:
    found = look()
    if args.json:
        say_json(found)
    else:
        say(found["problem"] or f"ok: {describe(found)}")
    return UNDONE if found["problem"] else OK


def run(args: argparse.Namespace) -> int:
    """What the scheduler starts: flush, with the configuration of the file."""
    from . import flush  # noqa: PLC0415 - the others need no delivery
    from .parser import make_parser  # noqa: PLC0415 - it brings this command

    known = _configuration(args.file)
    if not known:
        raise ConfigError(f"no configuration in {args.file}; run '{advice('service install')}'")
    os.environ.update(known["environment"])
    state = ["--state", known["state"]] if known["state"] else []
    status, written = UNDONE, io.StringIO()
    try:
        with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
            # A run ends before the next one begins.
            words = ["flush", "--timeout", str(max(30, known["every"] - 10)), *state]
            status = flush.run(make_parser(words).parse_args(words))
    except Exception as error:
        written.write(str(error))
        raise
    finally:
        _write(
            _last(args.file),
            {"at": time.time(), "status": status, "output": written.getvalue().strip()},
        )
        print(written.getvalue(), end="")
    return status


def look() -> dict[str, Any]:
    """Whether runs are installed, when the last one was, and what is wrong with that."""
    file = _file()
    known, last = _configuration(file), _read(_last(file))
    found = {
        "installed": bool(known),
        **{name: known.get(name) for name in ("scheduler", "every")},
        **{f"last_{name}": last.get(name) for name in ("at", "status", "output")},
        "problem": "",
    }
    if not known:
        found["problem"] = f"not installed; '{advice('service install')}' installs it"
        return found
    since = last.get("at") or file.stat().st_mtime
    try:
        is_installed = schedulers.choose(known["scheduler"]).is_installed()
    except HindsightExecError as error:
        found["problem"] = str(error)
        return found
    if not is_installed:
        found["problem"] = f"{known['scheduler']} has lost it; run '{advice('service install')}'"
    elif time.time() - since > _LATE * known["every"] + 60:
        late = duration(time.time() - since)
        found["problem"] = f"{known['scheduler']} has not run it for {late}"
    elif last.get("status"):
        found["problem"] = f"the last run was incomplete: {last.get('output')}"
    return found


def describe(found: dict[str, Any]) -> str:
    at = found["last_at"]
    last = f"last run {duration(time.time() - at)} ago" if at else "no run yet"
    return f"{found['scheduler']} runs it every {duration(found['every'])}; {last}"


def _is_kept(name: str) -> bool:
    return name.startswith("HINDSIGHT_") or name in _NAMES or name.lower() in _PROXIES


def _file() -> Path:
    """Our configuration of the service, beside that of other programs of the user."""
    return schedulers.config_folder() / "hindsight-exec" / "service.json"


def _last(file: Path) -> Path:
    return file.with_name("service-last.json")


def _configuration(file: Path) -> dict[str, Any]:
    """What :func:`install` wrote; nothing if it did not, or if the file was damaged since."""
    value = _read(file)
    return value if value.keys() >= {"every", "state", "environment", "scheduler"} else {}


def _read(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _write(file: Path, value: dict[str, Any]) -> None:
    """Replace the file; private from its first byte on, as it may hold a key."""
    new = file.with_name(f"{file.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=2)
    new.replace(file)
