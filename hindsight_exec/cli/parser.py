"""The commands and their options. A command's module is imported only when the command runs."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import TYPE_CHECKING

from hindsight_exec import __version__

from .arguments import (
    Parser,
    add_command,
    date,
    flag,
    folder,
    interval,
    number,
    option,
    seconds,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .arguments import Option

    Commands = argparse._SubParsersAction[Parser]

_EPILOG = """\
exit status:
  0  done
  1  incomplete: some lines were unreadable, or some turns are still queued or were refused
  2  usage error: arguments, files, folders or ports
  3  the server is unreachable, or is not Hindsight
  4  the server refused the API key
  130  interrupted by Ctrl-C; 143 by SIGTERM

environment:
  HINDSIGHT_API_URL, HINDSIGHT_API_KEY, HINDSIGHT_BANK_ID  the server, its key and the bank
  HINDSIGHT_EXEC_STATE  the state directory, for queued turns and the data of the embedded server
  NO_COLOR  turn off colours and the progress bar
"""

_JSON = flag("--json", "print JSON")
_STATE = option(
    "--state",
    "state directory (default: HINDSIGHT_EXEC_STATE, else the user's and Hermes' own)",
    type=folder,
    metavar="DIR",
)
_COMMON = (_STATE, _JSON)
_SERVER = (
    option("--url", "server to use (default: the configured one)", type=text),
    option(
        "--api-key",
        "its API key; other users can see it in the process list, so prefer HINDSIGHT_API_KEY",
        metavar="KEY",
    ),
    option("--bank", "memory bank", type=text, metavar="BANK"),
)
_YES = flag("--yes", "do not ask for confirmation")


def _timeout(meaning: str) -> Option:
    kind = number(float, 0)
    help_ = f"{meaning} (default 60)"
    return option("--timeout", help_, type=kind, default=60.0, metavar="SECONDS")


_PATIENCE = _timeout("give up after SECONDS without progress; the rest stays on disk")


def make_parser(argv: Sequence[str], program: str = "hindsight-exec") -> Parser:
    """The parser for these arguments: `hermes` has its own only where it is named."""
    parser = Parser(
        prog=program,
        description="Deliver conversation turns to Hindsight, each exactly once.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"hindsight-exec {__version__}")
    commands = parser.add_subparsers(dest="command")
    _add_demo(commands)
    _add_retain(commands)
    _add_serve(commands)
    _add_import(commands)
    _add_status_and_flush(commands)
    _add_outbox(commands)
    _add_dead(commands)
    _add_service(commands)
    _add_memories(commands)
    _add_doctor_and_completion(commands)
    hermes = commands.add_parser("hermes", help="install into Hermes, or uninstall")
    if argv[:1] in (["hermes"], ["completion"]):  # other commands need not import it
        module = import_module("hindsight_exec.hermes.install")
        module.add_arguments(hermes)
        for command in hermes.commands().values():
            command.set_defaults(run=module.main)
    return parser


# From here on a table: a formatter would give each argument a line of its own.
# fmt: off
def _add_doctor_and_completion(commands: Commands) -> None:
    add_command(commands, "doctor", "doctor:run", "check the state directory, the server and the key",
        [*_SERVER, *_COMMON],
        "Each check that fails comes with its remedy.",
        examples=["doctor", "doctor --url http://localhost:8888"])
    add_command(commands, "completion", "completion:run", "print a shell's completion script",
        [option("shell", "bash, zsh, fish, tcsh or powershell", metavar="SHELL")],
        "For bash, add it to the start file; zsh and fish read a file of their own.",
        examples=["completion zsh > ~/.zfunc/_hindsight-exec", "completion fish > ~/.config/fish/completions/hindsight-exec.fish"],
        more='eval "$(hindsight-exec completion bash)"   # in ~/.bashrc')


def _add_demo(commands: Commands) -> None:
    add_command(commands, "demo", "demo:run", "show which turns survive the end of a process",
        [_JSON, option("--turns", "turns for each process (default 50)", type=number(int, 1), default=50, metavar="N")],
        "Processes accept turns and end in five ways, with hindsight-exec and with a plain"
        " ThreadPoolExecutor. The demo needs no configuration and leaves nothing behind.",
        examples=["demo", "demo --turns 300"])


def _add_retain(commands: Commands) -> None:
    add_command(commands, "retain", "retain:run", "store a transcript in a bank",
        [*(*_SERVER, *_COMMON, _PATIENCE),
         option("file", "transcript; - reads standard input", metavar="FILE"),
         option("--session", "session (default: the file's name)", type=text, metavar="ID"),
         option("--context", "tell the server what the content is", type=text, metavar="TEXT")],
        "FILE is JSON Lines of OpenAI-style messages (role, content as text or parts, optionally"
        " timestamp), or one JSON list of them. User and assistant messages are paired to turns;"
        " tool calls, their results and system messages are left out. If no server is configured,"
        " the command runs the embedded one (see 'serve') until it ends.",
        examples=["retain talk.jsonl --bank notes", "retain - --session call-7 < talk.jsonl"])


def _add_serve(commands: Commands) -> None:
    add_command(commands, "serve", "serve:run", "run the embedded server",
        [option("--host", "address to listen on (default 127.0.0.1)", type=text, default="127.0.0.1"),
         option("--port", "port (default 8888); 0 takes a free one", type=number(int, 0, 65535), default=8888),
         [option("--data", "data directory (default: server, in the state directory)", type=folder, metavar="DIR"),
          flag("--memory", "keep the data in memory only")],
         option("--api-key", "require this key in every request", type=text, metavar="KEY"),
         option("--latency", "delay every request by SECONDS", type=number(float, 0), default=0.0, metavar="SECONDS"),
         flag("--until-eof", argparse.SUPPRESS)],
        "A Hindsight-compatible server in one process and one file, for trying things out, for"
        " tests and for offline work. It has no LLM: it stores what it is given, and finds it only"
        " by its words.",
        examples=["serve", "serve --port 0 --memory"])


def _add_import(commands: Commands) -> None:
    group = commands.add_parser("import", help="retain past conversations")
    sources = group.add_subparsers(metavar="SOURCE")
    add_command(sources, "hermes", "import_hermes:run", "retain past sessions of Hermes, each once",
        [*(*_COMMON, _PATIENCE),
         option("--home", "Hermes' folder (default: HERMES_HOME, else ~/.hermes)", type=folder, metavar="DIR"),
         option("--session", "import this session; may be repeated", type=text, metavar="ID", action="append"),
         option("--since", "import sessions used since DATE (ISO 8601)", type=date, metavar="DATE"),
         flag("--dry-run", "show the plan and stop"),
         _YES],
        "Reads Hermes' state.db without changing it. Skips sessions that already have documents in"
        " the bank, and those used in the last hour, which may still go on. An interrupted import"
        " resumes where it stopped. Shows its plan first, and asks.",
        examples=["import hermes --dry-run", "import hermes --since 2026-01-01 --yes"])


def _add_status_and_flush(commands: Commands) -> None:
    add_command(commands, "status", "status:run", "show queued turns, and why they wait",
        [*_COMMON,
         option("--watch", "refresh every SECONDS (default 2), until Ctrl-C",
                type=number(float, 0.1, 86400), nargs="?", const=2.0, metavar="SECONDS"),
         flag("--check", "exit with status 1 if a turn waits for longer than --max-age, is dead or unreadable"),
         option("--max-age", "for --check: longest wait, such as 90s, 15min or 1d (default 1h)", type=seconds, default=3600.0, metavar="SPAN"),
         flag("--prometheus", "print metrics in Prometheus' text format")],
        "Waiting turns are on disk and not yet with the server. Accepted turns are being processed"
        " by the server. Dead turns were refused, or their processing failed.",
        examples=["status", "status --watch", "status --json | jq .waiting", "status --check --max-age 15min"])
    add_command(commands, "flush", "flush:run", "deliver the turns that ended processes left",
        [*_COMMON, _timeout("wait for SECONDS at most")],
        "Suitable for timers: see 'service install'. The exit status is 0 when nothing is left to"
        " deliver; turns that a running process holds are left to it.",
        examples=["flush", "flush --timeout 600"])


def _add_service(commands: Commands) -> None:
    service = commands.add_parser(
        "service", help="deliver every few minutes what ended processes left"
    ).add_subparsers()
    scheduler = option("--scheduler", "scheduler to use (default: the first that is there)",
        choices=("systemd", "launchd", "cron"))
    add_command(service, "install", "service:install", "run 'flush' every few minutes",
        [_STATE,
         option("--every", "interval, such as 15min or 2h (default 5min)", type=interval, default=300.0, metavar="SPAN"),
         flag("--dry-run", "show what would be registered"),
         scheduler],
        "Uses a systemd user timer, launchd or cron. Copies the configuration of this shell, with"
        " the API key, to a file that only you can read: a scheduler does not have it.",
        examples=["service install", "service install --every 1h --dry-run"])
    add_command(service, "uninstall", "service:uninstall", "undo 'service install'; turns stay on disk",
        [scheduler], examples=["service uninstall"])
    add_command(service, "status", "service:status", "tell whether it is installed, and how the last run ended",
        [_JSON], examples=["service status"])
    add_command(service, "run", "service:run", "",
        [option("file", "configuration of the service", type=folder, metavar="FILE")],
        "What the scheduler starts.",
        examples=["service run ~/.config/hindsight-exec/service.json"])


def _add_outbox(commands: Commands) -> None:
    outbox = commands.add_parser("outbox", help="read or erase queued turns").add_subparsers()
    add_command(outbox, "list", "dead_letters:outbox_list", "list queued turns",
        _COMMON, examples=["outbox list", "outbox list --json"])
    add_command(outbox, "show", "dead_letters:outbox_show", "show one entry, readable",
        [*_COMMON, option("id", "id from 'outbox list' or 'dead list'", metavar="ID")],
        examples=["outbox show 9c41d2.t1"])
    add_command(outbox, "purge", "dead_letters:outbox_purge", "erase queued turns and dead letters for good",
        [*_COMMON, option("--session", "only of this session", type=text, metavar="ID"), _YES],
        examples=["outbox purge --session 20260531_101500", "outbox purge --yes"])


def _add_dead(commands: Commands) -> None:
    dead = commands.add_parser("dead", help="list, retry or discard dead letters").add_subparsers()
    add_command(dead, "list", "dead_letters:dead_list", "list dead letters, with the server's reasons",
        _COMMON, examples=["dead list"])
    ids = option("ids", "id from 'dead list'", metavar="ID", nargs="*")
    for name, what in (("retry", "queue dead letters again"), ("discard", "erase dead letters")):
        add_command(dead, name, f"dead_letters:dead_{name}", what,
            [*_COMMON, ids, flag("--all", f"{name} all of them")],
            examples=[f"dead {name} 9c41d2.d4", f"dead {name} --all"])


def _add_memories(commands: Commands) -> None:
    group = commands.add_parser(
        "memories", help="list, search, export or forget what a bank holds"
    ).add_subparsers()
    common = [*_SERVER, *_COMMON]
    tagged = [
        option("--session", "of this session", type=text, metavar="ID"),
        option("--tag", "with this tag; may be repeated", type=text, metavar="TAG", action="append"),
    ]
    filters = [
        *tagged,
        option("--text", "with this in id or text", type=text, metavar="TEXT"),
        option("--since", "said since DATE", type=date, metavar="DATE"),
        option("--until", "said before DATE", type=date, metavar="DATE"),
    ]
    add_command(group, "list", "memories:show", "list documents",
        [*common, *filters], examples=["memories list --session call-7"])
    add_command(group, "search", "memories:search", "search memories as the server does",
        [*common, option("query", "what to search for", metavar="QUERY"), *tagged],
        examples=["memories search 'blue door'"])
    add_command(group, "export", "memories:export", "print documents as JSON Lines",
        [*common, *filters],
        "Print documents as JSON Lines: one document per line, with its text, tags and metadata.",
        examples=["memories export > bank.jsonl"])
    add_command(group, "forget", "memories:forget", "delete documents and the memories drawn from them",
        [*common,
         option("document", "documents", metavar="ID", nargs="*"),
         flag("--dry-run", "show them and stop"),
         _YES,
         *filters],
        examples=["memories forget --session call-7 --dry-run", "memories forget ID --yes"])
