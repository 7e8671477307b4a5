"""What the commands write: plain lines, colours and a progress bar only where they are welcome."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import re
import sys
import time
from typing import TYPE_CHECKING, Any, Iterator, Sequence

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress as RichProgress
    from typing_extensions import Self

#: Exit statuses, the same for all commands; `hindsight-exec --help` lists them.
OK, UNDONE, USAGE, UNREACHABLE, KEY_REFUSED = range(5)

#: Exit status after Ctrl-C, as a shell gives it.
INTERRUPTED = 130

_COLOURS = {"red": "31", "green": "32", "yellow": "33", "dim": "2", "bold": "1"}

# Control characters but tab and line feed.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")

# Seconds between lines of progress where there is no bar.
_LINE_EVERY = 3.0


def say(text: str = "") -> None:
    """Write a line of the command's result."""
    print(text)


def note(text: str) -> None:
    """Write a line beside the result: to standard error."""
    print(f"hindsight-exec: {plain(text)}", file=sys.stderr)


def say_json(value: Any) -> None:
    """Write the result for a script."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def forgive_encoding() -> None:
    """Have a terminal that cannot show a character show an escape, not end the command."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def without_warnings(*, errors: bool = False) -> Iterator[None]:
    """Keep the package's warnings (and errors) back where a command says the same in its own words."""
    logger = logging.getLogger("hindsight_exec")
    level = logger.level
    logger.setLevel(logging.CRITICAL if errors else logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def is_rich() -> bool:
    """Whether bars and colours are welcome: a terminal, and nobody said no."""
    environ = os.environ
    welcome = not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
    return welcome and sys.stdout.isatty() and sys.stderr.isatty()


def coloured(text: str, colour: str) -> str:
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if is_rich() else text


def plain(text: str) -> str:
    """Text that somebody else wrote, without what would steer a terminal."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def counted(number: int, noun: str) -> str:
    """`1 turn`, `2 turns`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def duration(seconds: float) -> str:
    """Seconds as somebody would say them."""
    for name, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{max(0.0, seconds):.0f} s"


def table(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Write rows as columns; those in `right` are aligned there."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = [
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths))
        ]
        say("  ".join(cells).rstrip())


class Progress:
    """How far a long command is: rich's bar on a terminal, else a line every few seconds."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: RichProgress | None = None
        self._next = time.monotonic() + _LINE_EVERY
        self._shown = ""

    def __enter__(self) -> Self:
        if is_rich() and importlib.util.find_spec("rich") is not None:
            from rich.console import Console  # noqa: PLC0415 - an extra, and slow to import
            from rich.progress import (  # noqa: PLC0415
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
            )

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._bar.add_task(self._what, total=None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, total: int, detail: str = "") -> None:
        """So many are done; to be called as often as one likes."""
        if self._bar is not None:
            task = self._bar.task_ids[0]
            what = f"{self._what} ({detail})" if detail else self._what
            self._bar.update(task, completed=done, total=total, description=what)
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + _LINE_EVERY
            text = f"{self._what}: {done} of {total}" + (f" ({detail})" if detail else "")
            if text != self._shown:
                self._shown = text
                note(text)
