"""``hermes hindsight_exec …``: our command line, for the Hermes profile that is active."""

from __future__ import annotations

import os
from typing import Any, List

from hindsight_exec.hermes.host import hermes_home
from hindsight_exec.hermes.setup import state_of

__all__ = ["hindsight_exec_command", "register_cli"]


_SWITCHES = ("json", "dry_run", "yes")


def register_cli(subparser: Any) -> None:
    """Hermes calls this with the parser of ``hermes hindsight_exec``."""
    commands = subparser.add_subparsers(dest="hindsight_exec_action", metavar="COMMAND")
    commands.add_parser("status", help="what waits, is being processed, or is dead")
    flush = commands.add_parser("flush", help="deliver what waits, now")
    flush.add_argument("--timeout", type=float, metavar="SECONDS", help="wait no longer than this")
    past = commands.add_parser("import", help="retain sessions of the past, each once")
    past.add_argument("--dry-run", action="store_true", help="show what would be done, only")
    past.add_argument("--yes", action="store_true", help="do not ask")
    commands.add_parser("doctor", help="check folder, server and key, with remedies")
    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="for scripts")


def hindsight_exec_command(args: Any) -> int:
    """Hermes calls this with the parsed arguments. Returns the exit status."""
    from hindsight_exec.cli import main  # noqa: PLC0415 - only when it is used

    home = hermes_home()
    command: List[str] = [getattr(args, "hindsight_exec_action", None) or "status"]
    if command == ["import"]:
        command.append("hermes")
    command += [f"--{name.replace('_', '-')}" for name in _SWITCHES if getattr(args, name, False)]
    if getattr(args, "timeout", None) is not None:
        command += ["--timeout", str(args.timeout)]
    os.environ["HINDSIGHT_EXEC_STATE"] = str(state_of(home))
    os.environ["HERMES_HOME"] = str(home)
    status = main(command)
    if status:
        # Hermes takes no notice of what a plugin's command returns.
        raise SystemExit(status)
    return 0
