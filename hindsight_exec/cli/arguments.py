"""What the parsers of all commands share: one-line errors, examples, and types of arguments.

An error of argparse is a page of usage. Ours is one line that quotes what was wrong and names the
nearest option or command.
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hindsight_exec.conversation.times import parse_local

from .console import USAGE, note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Option = tuple[str, dict[str, Any]]


class _Help(argparse.HelpFormatter):
    """Wraps a text that is one paragraph, and leaves lists of lines as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the nearest option or command."""

    def __init__(self, *, formatter_class: Any = _Help, **options: Any) -> None:
        super().__init__(formatter_class=formatter_class, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # Here rather than in parse_args(): only the parser of the command knows its options.
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            options = [name for name in self._option_string_actions if name.startswith("--")]
            self.error(
                f"unknown argument {unknown[0]!r}" + _nearest(unknown[0].partition("=")[0], options)
            )
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        found = re.match(r"argument (?:[A-Z]+): invalid choice: '(.*?)'", message)
        if found and self.commands():
            message = f"unknown command {found[1]!r}" + _nearest(found[1], list(self.commands()))
        note(f"{message}; see '{self.prog} --help'")
        raise SystemExit(USAGE)

    def commands(self) -> dict[str, Parser]:
        """The parsers of this parser's commands, by name."""
        groups = (one for one in self._actions if isinstance(one, argparse._SubParsersAction))
        return {name: parser for group in groups for name, parser in group.choices.items()}

    def add_subparsers(self, **options: Any) -> Any:
        """Add commands. Called without one, the program shows its help instead of an error."""

        def show_help(_args: argparse.Namespace) -> int:
            self.print_help()
            return USAGE

        self.set_defaults(run=show_help)
        return super().add_subparsers(**{"metavar": "COMMAND", **options, "required": False})


def _nearest(word: str, known: Sequence[str]) -> str:
    found = difflib.get_close_matches(word, known, 1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def option(name: str, help_: str, **settings: Any) -> Option:
    """An argument, with what argparse's ``add_argument`` takes."""
    return name, {"help": help_, **settings}


def flag(name: str, help_: str) -> Option:
    return option(name, help_, action="store_true")


def add_command(
    commands: argparse._SubParsersAction[Parser],
    name: str,
    target: str,
    help_: str,
    options: Iterable[Option | list[Option]],
    description: str = "",
    *,
    examples: Iterable[str],
    more: str = "",
) -> None:
    """Add a command that calls ``target``, ``<module>:<function>``, imported when it is called.

    Of options in a list of their own, the user may give only one.
    """
    lines = [*(f"hindsight-exec {example}" for example in examples), *filter(None, [more])]
    listed: dict[str, Any] = {"help": help_} if help_ else {}  # else the list does not show it
    parser = commands.add_parser(
        name,
        **listed,
        description=description or f"{help_[:1].upper() + help_[1:]}.",
        epilog="\n  ".join(["examples:", *lines]) + "\n",
    )
    for entry in options:
        group = entry if isinstance(entry, list) else [entry]
        place = parser.add_mutually_exclusive_group() if isinstance(entry, list) else parser
        for argument, settings in group:
            place.add_argument(argument, **settings)
    module, _, function = target.partition(":")

    def run(args: argparse.Namespace) -> int:
        found = getattr(import_module(f".{module}", __package__), function)
        status: int = found(args)
        return status

    parser.set_defaults(run=run)


def number(
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
            raise argparse.ArgumentTypeError(f"invalid value {text!r} (expected a number {bounds})")
        return value

    return read


def text(value: str) -> str:
    """The type of an argument that is a text: not empty, and as it was typed.

    A locale such as C turns bytes above 127 into lone surrogates, which no server stores.
    """
    try:
        value = os.fsencode(value).decode() if re.search("[\ud800-\udfff]", value) else value
    except (UnicodeDecodeError, UnicodeEncodeError):
        raise argparse.ArgumentTypeError(
            f"invalid value {value!r}: not UTF-8, and this locale has no other encoding for it;"
            " set LC_ALL"
        ) from None
    return _not_empty(value)


def folder(value: str) -> Path:
    """The type of an argument that is a directory, in the bytes that were typed."""
    return Path(_not_empty(value))


def _not_empty(value: str) -> str:
    if not value.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return value


_UNITS = {"": 1, "s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}


def seconds(value: str) -> float:
    """The type of an argument that is a time span, in seconds: `90`, `90s`, `15min`, `1h`, `2d`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|m|h|d|)", value.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"invalid value {value!r} (expected 90s, 15min, 1h or 2d)")
    return float(found[1]) * _UNITS[found[2]]


def interval(value: str) -> float:
    """The type of an argument that is a time span of a minute or more."""
    found = seconds(value)
    if found < 60:
        raise argparse.ArgumentTypeError(f"invalid value {value!r} (expected 1min or more)")
    return found


def date(text: str) -> float:
    """The type of an argument that is a date, as POSIX time."""
    try:
        return parse_local(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(f"invalid date {text!r} (expected YYYY-MM-DD)") from None
