"""What the commands write: plain lines, colours and a progress bar only where they are welcome."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import re
import shutil
import sys
from typing import TYPE_CHECKING, Any, Iterator, Sequence

from hindsight_exec.errors import ConfigError
from hindsight_exec.executor.waiting import now

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from typing_extensions import Self

#: Exit statuses, the same for all commands; `hindsight-exec --help` lists them.
OK, UNDONE, USAGE, UNREACHABLE, KEY_REFUSED = range(5)

_COLOURS = {"red": "31", "green": "32", "yellow": "33", "dim": "2", "bold": "1"}

# Control characters but tab and line feed.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")

# Seconds between lines of progress where there is no bar.
_LINE_EVERY = 3.0

# A column of a table is not cut below this many characters.
_NARROWEST = 6


def say(text: str = "") -> None:
    """Write a line of the command's result."""
    print(text)


def note(text: str) -> None:
    """Write a line beside the result, to standard error; nobody may be reading it."""
    with contextlib.suppress(OSError):
        print(f"hindsight-exec: {plain(text)}", file=sys.stderr)


def say_json(value: Any, *, indent: int | None = 2) -> None:
    """Write the result for a script; on one line without ``indent``."""
    # Where the terminal's encoding lacks a character, only an escape of JSON's own is still JSON.
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(value, indent=indent, ensure_ascii=not unicode, default=str))


def prepare_streams() -> None:
    """Make standard streams usable that the caller closed or that lack characters.

    Python has None for a closed stream, and the next file that we open gets its number: a library
    that writes to standard error would write into an outbox.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def finish_output() -> bool:
    """Write out what is buffered; whether that worked. The reader of a pipe may have left."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # What is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            note(f"cannot write the output: {error.strerror}")
        return False
    return True


@contextlib.contextmanager
def without_warnings(*, errors: bool = False) -> Iterator[None]:
    """Silence the package's warnings (and errors) where a command reports the same itself."""
    logger = logging.getLogger("hindsight_exec")
    level = logger.level
    logger.setLevel(logging.CRITICAL if errors else logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def is_rich() -> bool:
    """Whether bars and colours are welcome: on a terminal, unless the user said no."""
    welcome = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return welcome and sys.stdout.isatty() and sys.stderr.isatty()


def coloured(text: str, colour: str) -> str:
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if is_rich() else text


def plain(text: str) -> str:
    """A text of foreign origin, without what would steer a terminal."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def one_line(text: str) -> str:
    """The same on one line."""
    return plain(" ".join(text.split()))


def counted(number: int, noun: str) -> str:
    """`1 turn`, `2 turns`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    for name, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{max(0.0, seconds):.0f} s"


def table(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Write rows as columns, cut to the width of a terminal; those in ``right`` align there.

    Cells of foreign origin neither steer the terminal nor break their line.
    """
    rows = [[*map(one_line, row)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    if sys.stdout.isatty():
        room = shutil.get_terminal_size().columns - 2 * (len(widths) - 1)
        while sum(widths) > room and max(widths) > _NARROWEST:
            widths[widths.index(max(widths))] -= 1
    for row in rows:
        cells = []
        for number, (text, width) in enumerate(zip(row, widths)):
            cell = text if len(text) <= width else f"{text[: width - 1]}…"
            cells.append(cell.rjust(width) if number in right else cell.ljust(width))
        say("  ".join(cells).rstrip())


def agreed(question: str, *, yes: bool, unasked: str) -> bool:
    """Whether the user agrees; ``yes`` agrees beforehand. ``unasked``: the error without a terminal."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise ConfigError(unasked)
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


class Progress:
    """How far a long command is: rich's bar on a terminal, else a line every few seconds."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: RichProgress | None = None
        self._next = now() + _LINE_EVERY
        self._shown = ""

    def __enter__(self) -> Self:
        if is_rich() and importlib.util.find_spec("rich") is not None:
            from rich import console, progress  # noqa: PLC0415 - an extra, and slow to import

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeRemainingColumn(),
                console=console.Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._bar.add_task(self._what, total=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, total: int, detail: str = "") -> None:
        """Report the state. Call it as often as you like."""
        if self._bar is not None:
            task = self._bar.task_ids[0]
            what = f"{self._what} ({detail})" if detail else self._what
            self._bar.update(task, completed=done, total=total, description=what)
        elif now() >= self._next:
            self._next = now() + _LINE_EVERY
            text = f"{self._what}: {done} of {total}" + (f" ({detail})" if detail else "")
            if text != self._shown:
                self._shown = text
                note(text)
