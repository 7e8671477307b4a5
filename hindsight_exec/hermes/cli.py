"""``hermes hindsight_exec …``: our command line, for the Hermes profile that is active."""

from __future__ import annotations

import os
from typing import Any, List

from .host import hermes_home
from .setup import state_of

__all__ = ["hindsight_exec_command", "register_cli"]


#: Options that are handed on, as Hermes' parser keeps them: it has names of its own.
_OPTIONS = ("json", "watch", "timeout", "session", "since", "dry-run", "yes")
_KEPT = "hindsight_exec_"


def register_cli(subparser: Any) -> None:
    """Hermes calls this with the parser of ``hermes hindsight_exec``."""
    commands = subparser.add_subparsers(dest=f"{_KEPT}action", metavar="COMMAND")
    status = commands.add_parser("status", help="what waits, is being processed, or is dead")
    _option(
        status,
        "watch",
        nargs="?",
        const="2",
        metavar="SECONDS",
        help="show it again every so often (2), until Ctrl-C",
    )
    flush = commands.add_parser("flush", help="deliver what waits, now")
    _option(flush, "timeout", metavar="SECONDS", help="wait no longer than this")
    past = commands.add_parser("import", help="retain sessions of the past, each once")
    _option(past, "session", metavar="ID", action="append", help="this one; may be repeated")
    _option(past, "since", metavar="DATE", help="sessions used since (ISO 8601)")
    _option(past, "dry-run", action="store_true", help="show what would be done, only")
    _option(past, "yes", action="store_true", help="do not ask")
    commands.add_parser("doctor", help="check folder, server and key, with remedies")
    for command in commands.choices.values():
        _option(command, "json", action="store_true", help="for scripts")


def _option(command: Any, name: str, **more: Any) -> None:
    command.add_argument(f"--{name}", dest=f"{_KEPT}{name}", **more)


def hindsight_exec_command(args: Any) -> int:
    """Hermes calls this with the parsed arguments. Returns the exit status."""
    from hindsight_exec.cli.main import main  # noqa: PLC0415 - only when it is used

    home = hermes_home()
    command: List[str] = [getattr(args, f"{_KEPT}action", None) or "status"]
    if command == ["import"]:
        command.append("hermes")
    for name in _OPTIONS:
        given = getattr(args, f"{_KEPT}{name}", None)
        if given is True:
            command.append(f"--{name}")
        elif given:
            values = given if isinstance(given, list) else [given]
            command += [f"--{name}={value}" for value in values]
    os.environ["HINDSIGHT_EXEC_STATE"] = str(state_of(home))
    os.environ["HERMES_HOME"] = str(home)
    status = main(command)
    if status:
        # Hermes takes no notice of what a plugin's command returns.
        raise SystemExit(status)
    return 0
