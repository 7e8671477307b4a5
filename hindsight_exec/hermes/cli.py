"""``hermes hindsight_exec …``: our command line, for the Hermes profile that is active."""

from __future__ import annotations

import argparse
import os
from pkgutil import resolve_name
from typing import Any, List

from .host import hermes_home
from .setup import state_of

__all__ = ["hindsight_exec_command", "register_cli"]

# The command line stands above this room and imports it. Hermes asks this room for it, so it is
# named here as setup.cfg names it, and loaded when it is used.
_MAIN = "hindsight_exec.cli.main:main"
# Hermes' parser has names of its own.
_KEPT = "hindsight_exec_arguments"


def register_cli(subparser: Any) -> None:
    """Hermes calls this with the parser of ``hermes hindsight_exec``."""
    subparser.usage = "hermes hindsight_exec [COMMAND] [OPTION ...]"
    subparser.formatter_class = argparse.RawDescriptionHelpFormatter
    subparser.epilog = (
        "commands, for the turns of this profile:\n"
        "  status      what waits, is being processed, or was refused (default)\n"
        "  flush       deliver what waits, now\n"
        "  import      retain past sessions, each once\n"
        "  doctor      check folder, server and key, with remedies\n"
        "  outbox      list and show what waits\n"
        "  dead        list, retry or discard what the server refused\n"
        "\n'hermes hindsight_exec COMMAND --help' shows the options of a command."
    )
    subparser.add_argument(_KEPT, nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def hindsight_exec_command(args: Any) -> int:
    """Hermes calls this with the parsed arguments. Returns the exit status."""
    home = hermes_home()
    command: List[str] = getattr(args, _KEPT, None) or ["status"]
    if command[0] == "import" and command[1:2] != ["hermes"]:
        command = ["import", "hermes", *command[1:]]
    os.environ["HINDSIGHT_EXEC_STATE"] = str(state_of(home))
    os.environ["HERMES_HOME"] = str(home)
    status = resolve_name(_MAIN)(command, program="hermes hindsight_exec")
    if status:
        # Hermes takes no notice of what a plugin's command returns.
        raise SystemExit(status)
    return 0
