"""The command line: reads the arguments, calls the command, and turns errors into one line.

Each command is a module of this room and is imported only when it is called.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hindsight_exec import __version__
from hindsight_exec.conversation.times import parse_local
from hindsight_exec.errors import (
    BadResponse,
    ConfigError,
    HindsightExecError,
    Unauthorized,
    Unavailable,
)

from .console import (
    INTERRUPTED,
    KEY_REFUSED,
    UNDONE,
    UNREACHABLE,
    USAGE,
    forgive_encoding,
    note,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_EPILOG = """\
exit status:
  0  done
  1  something was not done: a line that is not understood, turns that wait or were refused
  2  the command cannot be run like this: arguments, files, folders, ports
  3  the server is not reachable, or is not Hindsight
  4  the server refuses the API key
  130  interrupted by Ctrl-C

environment:
  HINDSIGHT_API_URL, HINDSIGHT_API_KEY, HINDSIGHT_BANK_ID  the server, its key and the bank
  HINDSIGHT_EXEC_STATE  the folder where turns wait, and where the embedded server keeps its data
  NO_COLOR  no colours and no progress bar
"""


class _Help(argparse.HelpFormatter):
    """Wraps what is one paragraph, and leaves lists of lines as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class _Parser(argparse.ArgumentParser):
    def __init__(self, *, formatter_class: Any = _Help, **options: Any) -> None:
        super().__init__(formatter_class=formatter_class, **options)

    def error(self, message: str) -> NoReturn:
        """One line, where argparse writes the whole usage first."""
        note(f"{message} (see '{self.prog} --help')")
        raise SystemExit(USAGE)


def make_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser for these arguments: `hermes` has its own only where it is named."""
    parser = _Parser(
        prog="hindsight-exec",
        description="Conversation turns into Hindsight, each once, whatever happens to the process.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"hindsight-exec {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    json = _shared("--json", action="store_true", help="for scripts")
    state = _shared(
        "--state",
        type=Path,
        metavar="DIR",
        help="the folder where turns wait; without it HINDSIGHT_EXEC_STATE, else that of this user"
        " and that of Hermes",
    )
    patience = _shared(
        "--timeout",
        type=_number(float, 0),
        default=60.0,
        metavar="SECONDS",
        help="give up after so long without progress (60); what is left waits on disk",
    )
    server = _Parser(add_help=False)
    server.add_argument("--url", help="the server; without it the configured one")
    server.add_argument(
        "--api-key",
        metavar="KEY",
        help="its key; others can see it in the list of processes, HINDSIGHT_API_KEY they cannot",
    )
    server.add_argument("--bank", metavar="BANK", help="the memory bank")

    demo = _add(
        commands,
        "demo",
        "demo:run",
        "show which turns survive the end of a process",
        [json],
        "Processes are given turns and end in five ways: with hindsight-exec, and with a plain"
        " ThreadPoolExecutor beside it. Needs no configuration, and leaves nothing behind.",
        examples=["demo", "demo --turns 300"],
    )
    demo.add_argument(
        "--turns", type=_number(int, 1), default=50, metavar="N", help="turns for each process (50)"
    )

    retain = _add(
        commands,
        "retain",
        "retain:run",
        "store a transcript in a bank",
        [server, state, json, patience],
        "FILE is JSON Lines of OpenAI-style messages (role, content as text or parts, optionally"
        " timestamp), or one JSON list of them. User and assistant messages are paired to turns;"
        " tool calls, their results and system messages are left out. Where no server is"
        " configured, the embedded one runs for the time of the command.",
        examples=[
            "retain talk.jsonl --bank notes",
            "retain - --session call-7 < talk.jsonl",
        ],
    )
    retain.add_argument("file", metavar="FILE", help="the transcript; - reads standard input")
    retain.add_argument("--session", metavar="ID", help="the session; the file's name without it")
    retain.add_argument("--context", metavar="TEXT", help="tells the server what is retained")

    _add_serve(commands)

    _add_import(commands, [state, json, patience])

    status = _add(
        commands,
        "status",
        "status:status",
        "show what waits, and why",
        [state, json],
        "Waiting turns are on disk and not yet with the server, accepted ones it is processing, dead"
        " ones it would not take.",
        examples=["status", "status --watch", "status --json | jq .waiting"],
    )
    status.add_argument(
        "--watch",
        type=_number(float, 0.1),
        nargs="?",
        const=2.0,
        metavar="SECONDS",
        help="show it again every so often (2), until Ctrl-C",
    )
    flush = _add(
        commands,
        "flush",
        "status:flush",
        "deliver what ended processes left",
        [state, json],
        "Suits cron and systemd timers. The exit status is 0 only when nothing waits.",
        examples=["flush", "flush --timeout 600"],
    )
    flush.add_argument(
        "--timeout",
        type=_number(float, 0),
        default=60.0,
        metavar="SECONDS",
        help="wait no longer than this (60)",
    )

    _add_dead_letters(commands, [state, json])

    _add(
        commands,
        "doctor",
        "doctor:run",
        "check folder, server and key",
        [server, state, json],
        "Each check that fails comes with its remedy.",
        examples=["doctor", "doctor --url http://localhost:8888"],
    )
    completion = _add(
        commands,
        "completion",
        "completion:run",
        "print a shell's completion script",
        [],
        "For bash it goes into the start file; zsh and fish read a file of their own.",
        examples=[
            "completion zsh > ~/.zfunc/_hindsight-exec",
            "completion fish > ~/.config/fish/completions/hindsight-exec.fish",
        ],
        more='eval "$(hindsight-exec completion bash)"   # in ~/.bashrc',
    )
    completion.add_argument("shell", metavar="SHELL", help="bash, zsh, fish, tcsh or powershell")
    hermes = commands.add_parser("hermes", help="install into Hermes, or remove from it")
    if argv[:1] in (["hermes"], ["completion"]):  # who else need not import it
        module = import_module("hindsight_exec.hermes.install")
        module.add_arguments(hermes)
        hermes.set_defaults(run=module.main)
    return parser


def _add_serve(commands: argparse._SubParsersAction[_Parser]) -> None:
    serve = _add(
        commands,
        "serve",
        "serve:run",
        "run the embedded server",
        [],
        "A Hindsight-compatible server in one process and one file: for trying, for tests, for"
        " work offline. It is not the memory engine: it stores what it is given and finds it by"
        " its words.",
        examples=["serve", "serve --port 0 --memory"],
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    serve.add_argument(
        "--port", type=_number(int, 0, 65535), default=8888, help="port (8888); 0 takes a free one"
    )
    place = serve.add_mutually_exclusive_group()
    place.add_argument("--data", type=Path, metavar="DIR", help="folder of its data")
    place.add_argument("--memory", action="store_true", help="keep the data in memory only")
    serve.add_argument("--api-key", metavar="KEY", help="ask every request for this key")
    serve.add_argument(
        "--latency",
        type=_number(float, 0),
        default=0.0,
        metavar="SECONDS",
        help="let each request take that much longer",
    )
    serve.add_argument("--until-eof", action="store_true", help=argparse.SUPPRESS)


def _add_import(commands: argparse._SubParsersAction[_Parser], shared: list[_Parser]) -> None:
    past = commands.add_parser("import", help="retain conversations of the past").add_subparsers(
        dest="import_command", metavar="SOURCE", required=True
    )
    hermes = _add(
        past,
        "hermes",
        "import_hermes:run",
        "retain past sessions of Hermes, each once",
        shared,
        "Reads Hermes' state.db, and changes nothing in it. Sessions that the bank has documents"
        " of are left out, and those of the last hour, which may still go on. An import that was"
        " interrupted goes on where it was. It shows what it would do, and asks.",
        examples=["import hermes --dry-run", "import hermes --since 2026-01-01 --yes"],
    )
    hermes.add_argument("--home", metavar="DIR", help="Hermes' folder; without it HERMES_HOME")
    hermes.add_argument(
        "--session", metavar="ID", action="append", help="this one; may be repeated"
    )
    hermes.add_argument(
        "--since", type=_date, metavar="DATE", help="sessions used since (ISO 8601)"
    )
    hermes.add_argument("--dry-run", action="store_true", help="show what would be done, only")
    hermes.add_argument("--yes", action="store_true", help="do not ask")


def _date(text: str) -> float:
    """The type of an argument that is a date, as POSIX time."""
    try:
        return parse_local(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(f"{text!r} is no date such as 2026-05-31") from None


def _add_dead_letters(commands: argparse._SubParsersAction[_Parser], shared: list[_Parser]) -> None:
    outbox = commands.add_parser("outbox", help="read or erase what waits").add_subparsers(
        dest="outbox_command", metavar="COMMAND", required=True
    )
    _add(
        outbox,
        "list",
        "dead_letters:outbox_list",
        "list what waits",
        shared,
        examples=["outbox list", "outbox list --json"],
    )
    show = _add(
        outbox,
        "show",
        "dead_letters:outbox_show",
        "show one entry, readable",
        shared,
        examples=["outbox show 9c41d2.t1"],
    )
    show.add_argument("id", metavar="ID", help="as the lists show it")
    purge = _add(
        outbox,
        "purge",
        "dead_letters:outbox_purge",
        "erase what waits or is dead, for good",
        shared,
        examples=["outbox purge --session 20260531_101500", "outbox purge --yes"],
    )
    purge.add_argument("--session", metavar="ID", help="only of this session")
    purge.add_argument("--yes", action="store_true", help="do not ask")

    dead = commands.add_parser("dead", help="what the server would not take").add_subparsers(
        dest="dead_command", metavar="COMMAND", required=True
    )
    _add(
        dead,
        "list",
        "dead_letters:dead_list",
        "list dead letters, with the server's words",
        shared,
        examples=["dead list"],
    )
    for name, what in (("retry", "have them sent again"), ("discard", "erase them for good")):
        command = _add(
            dead,
            name,
            f"dead_letters:dead_{name}",
            what,
            shared,
            examples=[f"dead {name} 9c41d2.d4", f"dead {name} --all"],
        )
        command.add_argument("ids", metavar="ID", nargs="*", help="as 'dead list' shows it")
        command.add_argument("--all", action="store_true", help="all of them")


def _add(
    commands: argparse._SubParsersAction[_Parser],
    name: str,
    target: str,
    help_: str,
    parents: list[_Parser],
    description: str = "",
    *,
    examples: Sequence[str],
    more: str = "",
) -> argparse.ArgumentParser:
    """A command that calls `<module>:<function>`, imported when it is called."""
    lines = [*(f"hindsight-exec {example}" for example in examples), *filter(None, [more])]
    parser = commands.add_parser(
        name,
        help=help_,
        parents=parents,
        description=description or f"{help_.capitalize()}.",
        epilog="\n  ".join(["examples:", *lines]) + "\n",
    )
    module, _, function = target.partition(":")

    def run(args: argparse.Namespace) -> int:
        found = getattr(import_module(f".{module}", __package__), function)
        status: int = found(args)
        return status

    parser.set_defaults(run=run)
    return parser


def _shared(name: str, **options: object) -> _Parser:
    parser = _Parser(add_help=False)
    parser.add_argument(name, **options)  # type: ignore[arg-type]
    return parser


def _number(
    kind: Callable[[str], float], least: float, most: float = math.inf
) -> Callable[[str], float]:
    """The type of an argument that is a number within bounds."""
    bounds = f"from {least} to {most}" if most < math.inf else f"of at least {least}"

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number {bounds}")
        return value

    return read


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; `--help` and wrong arguments raise SystemExit."""
    forgive_encoding()
    argv = list(sys.argv[1:] if argv is None else argv)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("hindsight-exec: %(message)s"))
    logger = logging.getLogger("hindsight_exec")
    logger.addHandler(handler)
    try:
        args = make_parser(argv).parse_args(argv)
        status: int = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # Who read us has gone. What is still buffered must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNDONE
    except KeyboardInterrupt:
        return INTERRUPTED
    except HindsightExecError as error:
        note(str(error))
        return _status(error)
    except OSError as error:
        note(str(error))
        return UNDONE
    finally:
        logger.removeHandler(handler)
    return status


def _status(error: HindsightExecError) -> int:
    kinds = (
        (ConfigError, USAGE),
        (Unauthorized, KEY_REFUSED),
        ((Unavailable, BadResponse), UNREACHABLE),
    )
    return next((status for kind, status in kinds if isinstance(error, kind)), UNDONE)
