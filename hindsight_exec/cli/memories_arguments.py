"""The arguments of `hindsight-exec memories`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .arguments import add_command, date, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .arguments import Parser


def add_memories(commands: Any, parents: Sequence[Parser]) -> None:
    """Add the group, whose commands are in :mod:`.memories`."""
    group = commands.add_parser(
        "memories", help="list, search, export or forget what a bank holds"
    ).add_subparsers()
    names = {
        "list": ("show", "list documents", ["memories list --session call-7"]),
        "search": ("search", "search memories as the server does", ["memories search 'blue door'"]),
        "export": ("export", "print documents as JSON Lines", ["memories export > bank.jsonl"]),
        "forget": (
            "forget",
            "delete documents and the memories drawn from them",
            ["memories forget --session call-7 --dry-run", "memories forget ID --yes"],
        ),
    }
    for name, (function, help_, examples) in names.items():
        command = add_command(
            group, name, f"memories:{function}", help_, parents, examples=examples
        )
        if name == "search":
            command.add_argument("query", metavar="QUERY", help="what to search for")
        if name == "forget":
            command.add_argument("document", metavar="ID", nargs="*", help="documents")
            command.add_argument("--dry-run", action="store_true", help="show them and stop")
            command.add_argument("--yes", action="store_true", help="do not ask for confirmation")
        command.add_argument("--session", type=text, metavar="ID", help="of this session")
        command.add_argument(
            "--tag",
            type=text,
            metavar="TAG",
            action="append",
            help="with this tag; may be repeated",
        )
        if name != "search":
            command.add_argument(
                "--text", type=text, metavar="TEXT", help="with this in id or text"
            )
            command.add_argument("--since", type=date, metavar="DATE", help="said since DATE")
            command.add_argument("--until", type=date, metavar="DATE", help="said before DATE")
