"""The commands and their options. A command's module is imported only when the command runs."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hindsight_exec import __version__

from .arguments import Parser, add_command, date, folder, number, seconds, shared, text
from .memories_arguments import add_memories

if TYPE_CHECKING:
    from collections.abc import Sequence

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

_JSON = ("--json", {"action": "store_true", "help": "print JSON"})
_STATE = (
    "--state",
    {
        "type": folder,
        "metavar": "DIR",
        "help": "state directory (default: HINDSIGHT_EXEC_STATE, else the user's and Hermes' own)",
    },
)
_YES = {"action": "store_true", "help": "do not ask for confirmation"}


def _timeout(help_: str) -> tuple[str, dict[str, Any]]:
    kind = number(float, 0)
    return (
        "--timeout",
        {"type": kind, "default": 60.0, "metavar": "SECONDS", "help": f"{help_} (default 60)"},
    )


def make_parser(argv: Sequence[str], program: str = "hindsight-exec") -> Parser:
    """The parser for these arguments: `hermes` has its own only where it is named."""
    parser = Parser(
        prog=program,
        description="Deliver conversation turns to Hindsight, each exactly once.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"hindsight-exec {__version__}")
    commands = parser.add_subparsers(dest="command")
    json, state = shared(_JSON), shared(_STATE)
    patience = shared(_timeout("give up after SECONDS without progress; the rest stays on disk"))
    server = shared(
        ("--url", {"type": text, "help": "server to use (default: the configured one)"}),
        (
            "--api-key",
            {
                "metavar": "KEY",
                "help": "its API key; other users can see it in the process list, so prefer"
                " HINDSIGHT_API_KEY",
            },
        ),
        ("--bank", {"type": text, "metavar": "BANK", "help": "memory bank"}),
    )
    _add_demo(commands, json)
    _add_retain(commands, [server, state, json, patience])
    _add_serve(commands)
    _add_import(commands, [state, json, patience])
    _add_status(commands, [state, json])
    _add_dead_letters(commands, [state, json])
    _add_service(commands, state, json)
    add_memories(commands, [server, state, json])
    add_command(
        commands,
        "doctor",
        "doctor:run",
        "check the state directory, the server and the key",
        [server, state, json],
        "Each check that fails comes with its remedy.",
        examples=["doctor", "doctor --url http://localhost:8888"],
    )
    completion = add_command(
        commands,
        "completion",
        "completion:run",
        "print a shell's completion script",
        [],
        "For bash, add it to the start file; zsh and fish read a file of their own.",
        examples=[
            "completion zsh > ~/.zfunc/_hindsight-exec",
            "completion fish > ~/.config/fish/completions/hindsight-exec.fish",
        ],
        more='eval "$(hindsight-exec completion bash)"   # in ~/.bashrc',
    )
    completion.add_argument("shell", metavar="SHELL", help="bash, zsh, fish, tcsh or powershell")
    hermes = commands.add_parser("hermes", help="install into Hermes, or uninstall")
    if argv[:1] in (["hermes"], ["completion"]):  # other commands need not import it
        module = import_module("hindsight_exec.hermes.install")
        module.add_arguments(hermes)
        for command in hermes.commands().values():
            command.set_defaults(run=module.main)
    return parser


def _add_demo(commands: Commands, json: Parser) -> None:
    demo = add_command(
        commands,
        "demo",
        "demo:run",
        "show which turns survive the end of a process",
        [json],
        "Processes accept turns and end in five ways, with hindsight-exec and with a plain"
        " ThreadPoolExecutor. The demo needs no configuration and leaves nothing behind.",
        examples=["demo", "demo --turns 300"],
    )
    demo.add_argument(
        "--turns",
        type=number(int, 1),
        default=50,
        metavar="N",
        help="turns for each process (default 50)",
    )


def _add_retain(commands: Commands, parents: list[Parser]) -> None:
    retain = add_command(
        commands,
        "retain",
        "retain:run",
        "store a transcript in a bank",
        parents,
        "FILE is JSON Lines of OpenAI-style messages (role, content as text or parts, optionally"
        " timestamp), or one JSON list of them. User and assistant messages are paired to turns;"
        " tool calls, their results and system messages are left out. Where no server is"
        " configured, the embedded one runs for the time of the command.",
        examples=["retain talk.jsonl --bank notes", "retain - --session call-7 < talk.jsonl"],
    )
    retain.add_argument("file", metavar="FILE", help="transcript; - reads standard input")
    retain.add_argument(
        "--session", type=text, metavar="ID", help="session (default: the file's name)"
    )
    retain.add_argument(
        "--context", type=text, metavar="TEXT", help="tell the server what the content is"
    )


def _add_serve(commands: Commands) -> None:
    serve = add_command(
        commands,
        "serve",
        "serve:run",
        "run the embedded server",
        [],
        "A Hindsight-compatible server in one process and one file, for trying things out, for"
        " tests and for offline work. It is not the memory engine: it stores what it is given and"
        " finds it by its words.",
        examples=["serve", "serve --port 0 --memory"],
    )
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)"
    )
    serve.add_argument(
        "--port",
        type=number(int, 0, 65535),
        default=8888,
        help="port (default 8888); 0 takes a free one",
    )
    place = serve.add_mutually_exclusive_group()
    place.add_argument("--data", type=folder, metavar="DIR", help="data directory")
    place.add_argument("--memory", action="store_true", help="keep the data in memory only")
    serve.add_argument("--api-key", metavar="KEY", help="require this key in every request")
    serve.add_argument(
        "--latency",
        type=number(float, 0),
        default=0.0,
        metavar="SECONDS",
        help="delay every request by SECONDS",
    )
    serve.add_argument("--until-eof", action="store_true", help=argparse.SUPPRESS)


def _add_import(commands: Commands, parents: list[Parser]) -> None:
    sources = commands.add_parser("import", help="retain past conversations").add_subparsers(
        metavar="SOURCE"
    )
    hermes = add_command(
        sources,
        "hermes",
        "import_hermes:run",
        "retain past sessions of Hermes, each once",
        parents,
        "Reads Hermes' state.db without changing it. Skips sessions that already have documents in"
        " the bank, and those used in the last hour, which may still go on. An interrupted import"
        " resumes where it stopped. Shows its plan first, and asks.",
        examples=["import hermes --dry-run", "import hermes --since 2026-01-01 --yes"],
    )
    hermes.add_argument(
        "--home", type=folder, metavar="DIR", help="Hermes' folder (default: HERMES_HOME)"
    )
    hermes.add_argument(
        "--session",
        type=text,
        metavar="ID",
        action="append",
        help="import this session; may be repeated",
    )
    hermes.add_argument(
        "--since", type=date, metavar="DATE", help="import sessions used since DATE (ISO 8601)"
    )
    hermes.add_argument("--dry-run", action="store_true", help="show the plan and stop")
    hermes.add_argument("--yes", **_YES)  # type: ignore[arg-type]


def _add_status(commands: Commands, parents: list[Parser]) -> None:
    status = add_command(
        commands,
        "status",
        "status:run",
        "show queued turns, and why they wait",
        parents,
        "Waiting turns are on disk and not yet with the server. The server is processing accepted"
        " ones, and refused dead ones.",
        examples=[
            "status",
            "status --watch",
            "status --json | jq .waiting",
            "status --check --max-age 15min",
        ],
    )
    status.add_argument(
        "--watch",
        type=number(float, 0.1),
        nargs="?",
        const=2.0,
        metavar="SECONDS",
        help="refresh every SECONDS (default 2), until Ctrl-C",
    )
    status.add_argument(
        "--check",
        action="store_true",
        help="exit with status 1 if a turn waits for longer than --max-age, is dead or unreadable",
    )
    status.add_argument(
        "--max-age",
        type=seconds,
        default=3600.0,
        metavar="SPAN",
        help="for --check: 90s, 15min, 1h, 2d (default 1h)",
    )
    status.add_argument(
        "--prometheus",
        action="store_true",
        help="print metrics in Prometheus' text format",
    )
    add_command(
        commands,
        "flush",
        "flush:run",
        "deliver the turns that ended processes left",
        [*parents, shared(_timeout("wait for SECONDS at most"))],
        "Suits timers: see 'service install'. The exit status is 0 when nothing is left to deliver; what"
        " a running process holds, that process delivers.",
        examples=["flush", "flush --timeout 600"],
    )


def _add_service(commands: Commands, state: Parser, json: Parser) -> None:
    service = commands.add_parser(
        "service", help="deliver every few minutes what ended processes left"
    ).add_subparsers()
    install = add_command(
        service,
        "install",
        "service:install",
        "run 'flush' every few minutes",
        [state],
        "Uses a systemd user timer, launchd or cron. Copies the configuration of this shell, with"
        " the API key, to a file that only you can read: a scheduler does not have it.",
        examples=["service install", "service install --every 1h --dry-run"],
    )
    install.add_argument(
        "--every",
        type=seconds,
        default=300.0,
        metavar="SPAN",
        help="90s, 15min, 1h, 2d (default 5min)",
    )
    install.add_argument("--dry-run", action="store_true", help="show what would be registered")
    uninstall = add_command(
        service,
        "uninstall",
        "service:uninstall",
        "undo 'service install'; turns stay on disk",
        [],
        examples=["service uninstall"],
    )
    for command in (install, uninstall):
        command.add_argument(
            "--scheduler",
            choices=("systemd", "launchd", "cron"),
            help="scheduler to use (default: the first that is there)",
        )
    add_command(
        service,
        "status",
        "service:status",
        "tell whether it is installed, and how the last run ended",
        [json],
        examples=["service status"],
    )
    run = add_command(
        service,
        "run",
        "service:run",
        "",
        [],
        "What the scheduler starts.",
        examples=["service run ~/.config/hindsight-exec/service.json"],
    )
    run.add_argument("file", type=folder, metavar="FILE", help="configuration of the service")


def _add_dead_letters(commands: Commands, parents: list[Parser]) -> None:
    outbox = commands.add_parser("outbox", help="read or erase queued turns").add_subparsers()
    add_command(
        outbox,
        "list",
        "dead_letters:outbox_list",
        "list queued turns",
        parents,
        examples=["outbox list", "outbox list --json"],
    )
    show = add_command(
        outbox,
        "show",
        "dead_letters:outbox_show",
        "show one entry, readable",
        parents,
        examples=["outbox show 9c41d2.t1"],
    )
    show.add_argument("id", metavar="ID", help="id from 'outbox list' or 'dead list'")
    purge = add_command(
        outbox,
        "purge",
        "dead_letters:outbox_purge",
        "erase queued turns and dead letters for good",
        parents,
        examples=["outbox purge --session 20260531_101500", "outbox purge --yes"],
    )
    purge.add_argument("--session", type=text, metavar="ID", help="only of this session")
    purge.add_argument("--yes", **_YES)  # type: ignore[arg-type]

    dead = commands.add_parser("dead", help="read, retry or discard dead letters").add_subparsers()
    add_command(
        dead,
        "list",
        "dead_letters:dead_list",
        "list dead letters, with the server's reasons",
        parents,
        examples=["dead list"],
    )
    for name, what in (("retry", "queue dead letters again"), ("discard", "erase dead letters")):
        command = add_command(
            dead,
            name,
            f"dead_letters:dead_{name}",
            what,
            parents,
            examples=[f"dead {name} 9c41d2.d4", f"dead {name} --all"],
        )
        command.add_argument("ids", metavar="ID", nargs="*", help="id from 'dead list'")
        command.add_argument("--all", action="store_true", help=f"{name} all of them")
