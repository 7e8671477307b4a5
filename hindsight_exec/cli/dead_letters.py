"""`outbox` and `dead`: read and erase queued turns, and those that the server refused."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, Sequence

from hindsight_exec.conversation.turns import identifier
from hindsight_exec.errors import ConfigError, HindsightExecError
from hindsight_exec.outbox import spool
from hindsight_exec.outbox.store import Outbox

from .console import (
    OK,
    UNDONE,
    agreed,
    counted,
    duration,
    note,
    one_line,
    plain,
    say,
    say_json,
    table,
)
from .targets import advice, folders

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

_WIDTH = 50  # characters of a content in a list


@dataclass(frozen=True)
class Entry:
    """A held turn or a document, with a name that is unique in all files."""

    name: str
    path: Path
    row: dict[str, Any]


def entries(places: list[Path]) -> Iterator[Entry]:
    """All entries of the directories. Notes the files that cannot be read."""
    for folder in places:
        for path in spool.files(folder):
            try:
                with contextlib.closing(Outbox(path, readonly=True)) as outbox:
                    rows = outbox.entries()
            except HindsightExecError as error:
                if path.exists():
                    note(str(error))
                continue
            for row in rows:
                kind = "t" if row["state"] == "held" else "d"
                # A file's name begins with its time; its end tells files apart.
                yield Entry(f"{path.stem[-6:]}.{kind}{row['id']}", path, row)


def outbox_list(args: argparse.Namespace) -> int:
    return _list(args, "no turns are waiting", ("held", "queued", "accepted"))


def dead_list(args: argparse.Namespace) -> int:
    return _list(args, "there are no dead letters", ("dead",))


def _list(args: argparse.Namespace, none: str, states: tuple[str, ...]) -> int:
    found = [entry for entry in entries(folders(args.state)) if entry.row["state"] in states]
    if args.json:
        say_json([{**entry.row, "id": entry.name} for entry in found])
    elif not found:
        say(none)
    else:
        rows = [("ID", "STATE", "AGE", "TURNS", "BANK", "SESSION", "CONTENT")]
        for entry in found:
            row = entry.row
            about = row["error"] or next(iter(_messages(row["content"])), "")
            cells = (entry.name, row["state"], duration(time.time() - row["given_at"]))
            what = (str(row["turns"]), row["bank"], _cut(row["session"]), _cut(about))
            rows.append((*cells, *what))
        table(rows, right=(2, 3))
    return OK


def outbox_show(args: argparse.Namespace) -> int:
    entry = _named(args.id, list(entries(folders(args.state))), "outbox list")
    if args.json:
        say_json({**entry.row, "id": entry.name})
        return OK
    row = entry.row
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["given_at"]))
    say(f"{entry.name}: {row['state']}, {counted(row['turns'], 'turn')} accepted at {at}")
    say(f"to {row['url']}, bank {plain(row['bank'])}, session {plain(row['session'])}")
    for name, label in (("document_id", "document"), ("error", "error")):
        if row[name]:
            say(f"{label} {plain(row[name])}")
    for message in _messages(row["content"]):
        say()
        say(plain(message))
    return OK


def outbox_purge(args: argparse.Namespace) -> int:
    """Erase queued turns and dead letters for good."""
    places = folders(args.state)
    what = f"session {args.session!r}" if args.session else "all sessions"
    question = f"Erase the queued turns and dead letters of {what}?"
    unasked = "no terminal to ask on; use --yes to erase without a question"
    if not agreed(question, yes=args.yes, unasked=unasked):
        return UNDONE
    session = identifier(args.session) if args.session else None
    paths = [path for folder in places for path in spool.files(folder)]
    erased, missed = _change_owned(paths, lambda _, outbox: outbox.purge(session))
    removed = 0
    for folder in places:
        aside = spool.aside(folder)
        if aside and session is None:
            for path in aside:
                for suffix in ("", "-wal", "-journal"):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
            removed += len(aside)
        elif aside:
            missed.append(
                f"{counted(len(aside), 'file')} set aside in {folder} may also hold turns of this"
                " session; a purge without --session erases them"
            )
    if removed and not args.json:
        note(f"erased {counted(removed, 'file')} that had been set aside")
    result = {"erased": erased, "files_set_aside": removed}
    return _report(args, result, f"{counted(erased, 'turn')} erased", missed)


def dead_retry(args: argparse.Namespace) -> int:
    count, missed = _change_dead(args, lambda outbox, numbers: outbox.requeue(numbers))
    now = [f"the next start sends them; '{advice('flush')}' sends them now"] if count else []
    said = f"{counted(count, 'dead letter')} queued again"
    return _report(args, {"revived": count}, said, missed, now)


def dead_discard(args: argparse.Namespace) -> int:
    count, missed = _change_dead(args, lambda outbox, numbers: outbox.discard(numbers))
    return _report(args, {"erased": count}, f"{counted(count, 'dead letter')} erased", missed)


def _change_dead(
    args: argparse.Namespace, change: Callable[[Outbox, list[int]], int]
) -> tuple[int, list[str]]:
    """Change the named dead letters, or all: how many were changed, and what went wrong."""
    if bool(args.ids) == args.all:
        raise ConfigError(f"name dead letters (see '{advice('dead list')}'), or use --all")
    found = [entry for entry in entries(folders(args.state)) if entry.row["state"] == "dead"]
    numbers: dict[Path, list[int]] = {}
    for entry in found if args.all else [_named(name, found, "dead list") for name in args.ids]:
        numbers.setdefault(entry.path, []).append(int(entry.row["id"]))
    return _change_owned(numbers, lambda path, outbox: change(outbox, numbers[path]))


def _change_owned(
    paths: Iterable[Path], change: Callable[[Path, Outbox], int]
) -> tuple[int, list[str]]:
    """Change files that no running process owns: how many entries, and what went wrong."""
    count, missed = 0, []
    for path in paths:
        try:
            count += _owned(path, change)
        except HindsightExecError as error:
            missed.append(str(error))
    return count, missed


def _owned(path: Path, change: Callable[[Path, Outbox], int]) -> int:
    """Change a file that no running process owns, and remove it if it is empty then."""
    claim = spool.adopt(path)
    if claim is None:
        if not path.exists():
            return 0
        raise ConfigError(f"a running process owns {path.name}; end this process first")
    empty = False
    try:
        with contextlib.closing(Outbox(path)) as outbox:
            count = change(path, outbox)
            empty = outbox.is_empty()
    finally:
        claim.release(remove=empty)
    return count


def _report(
    args: argparse.Namespace,
    result: dict[str, int],
    said: str,
    problems: list[str],
    notes: Sequence[str] = (),
) -> int:
    if args.json:
        say_json({**result, "errors": problems})
    else:
        say(said)
        for text in (*notes, *problems):
            note(text)
    return UNDONE if problems else OK


def _named(name: str, found: list[Entry], command: str) -> Entry:
    with contextlib.suppress(StopIteration):
        return next(entry for entry in found if entry.name == name)
    raise ConfigError(f"no entry {name!r}; run '{advice(command)}' to see the ids")


def _messages(content: str) -> list[str]:
    """The messages of a content, or the content."""
    try:
        messages = json.loads(content)
        return [str(message["content"]) for message in messages]
    except (ValueError, TypeError, KeyError):
        return [content]


def _cut(text: str) -> str:
    text = one_line(text)
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"
