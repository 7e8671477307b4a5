"""`status` and `flush`: what waits in the state folders, and sending it."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Iterable

from hindsight_exec.delivery.writer import RetainWriter
from hindsight_exec.errors import HindsightExecError
from hindsight_exec.outbox import spool
from hindsight_exec.outbox.schema import Summary
from hindsight_exec.outbox.store import Outbox

from .console import (
    OK,
    UNDONE,
    Progress,
    coloured,
    counted,
    duration,
    is_rich,
    note,
    plain,
    say,
    say_json,
    without_warnings,
)
from .targets import folders, settings_of

if TYPE_CHECKING:
    import argparse
    from pathlib import Path


@dataclass(frozen=True)
class File:
    """An outbox file as it was found."""

    path: Path
    live: bool
    summary: Summary
    problem: str = ""


def look(folder: Path) -> list[File]:
    """The folder's files, the oldest first. Nothing is changed or locked."""
    found = []
    for path in spool.files(folder):
        live = spool.is_live(path)
        summary, problem = Summary(), ""
        try:
            with contextlib.closing(Outbox(path, readonly=True)) as outbox:
                summary = outbox.summary()
        except HindsightExecError as error:
            if not path.exists():
                continue  # delivered and removed meanwhile
            problem = str(error)
        found.append(File(path, live, summary, problem))
    return found


def status(args: argparse.Namespace) -> int:
    if args.watch is None:
        return _status(args)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            if is_rich():
                print("\x1b[H\x1b[J", end="")
            _status(args)
            sys.stdout.flush()
            time.sleep(args.watch)
            if not (args.json or is_rich()):
                say()
    return OK


def _status(args: argparse.Namespace) -> int:
    places = [(folder, look(folder)) for folder in folders(args.state)]
    if args.json:
        say_json(_as_json(places))
        return OK
    for number, (folder, files) in enumerate(places):
        if number:
            say()
        say(coloured(str(folder), "bold"))
        _show(folder, files)
    return OK


def _as_json(places: Iterable[tuple[Path, list[File]]]) -> dict[str, Any]:
    shown = []
    for folder, files in places:
        total = _total(file.summary for file in files)
        shown.append(
            {
                "folder": folder,
                **_numbers(total),
                "files": [
                    {
                        "file": file.path.name,
                        "live": file.live,
                        **_numbers(file.summary),
                        "problem": file.problem,
                    }
                    for file in files
                ],
                "aside": [path.name for path in spool.aside(folder)],
            }
        )
    keys = ("waiting", "accepted", "dead")
    return {**{key: sum(place[key] for place in shown) for key in keys}, "folders": shown}


def _numbers(summary: Summary) -> dict[str, Any]:
    age = None if summary.oldest_at is None else max(0.0, time.time() - summary.oldest_at)
    return {
        "waiting": summary.waiting,
        "held": summary.held,
        "queued": summary.queued,
        "accepted": summary.accepted,
        "dead": summary.dead,
        "dead_by_reason": dict(summary.dead_by_reason),
        "oldest_seconds": age,
        "bytes": summary.bytes,
        "last_error": summary.last_error,
    }


def _total(summaries: Iterable[Summary]) -> Summary:
    held = queued = accepted = dead = size = 0
    reasons: dict[str, int] = {}
    oldest: list[float] = []
    error = ""
    for one in summaries:
        held, queued, dead = held + one.held, queued + one.queued, dead + one.dead
        accepted, size = accepted + one.accepted, size + one.bytes
        for reason, count in one.dead_by_reason:
            reasons[reason] = reasons.get(reason, 0) + count
        oldest += [] if one.oldest_at is None else [one.oldest_at]
        error = one.last_error or error
    return Summary(
        held,
        queued,
        accepted,
        dead,
        tuple(sorted(reasons.items())),
        min(oldest, default=None),
        error,
        size,
    )


def _show(folder: Path, files: list[File]) -> None:
    total = _total(file.summary for file in files)
    live = sum(file.summary.waiting for file in files if file.live)
    waiting = counted(total.waiting, "turn")
    if total.oldest_at is not None:
        waiting += f", the oldest for {duration(time.time() - total.oldest_at)}"
    if live:
        waiting += f" ({live} of running processes, which send them)"
    left = total.waiting - live
    say(f"  waiting   {waiting}" + (" → hindsight-exec flush" if left else ""))
    say(f"  accepted  {counted(total.accepted, 'turn')}, which the server is processing")
    dead = counted(total.dead, "turn")
    if total.dead:
        reasons = ", ".join(f"{reason} {count}" for reason, count in total.dead_by_reason)
        dead = coloured(f"{dead}: {reasons}", "red") + " → hindsight-exec dead list"
    say(f"  dead      {dead}")
    if total.last_error:
        say(f"  last error  {plain(total.last_error)}")
    for file in files:
        if file.problem:
            say(coloured(f"  unreadable  {file.problem}", "red"))
    for path in spool.aside(folder):
        say(coloured(f"  set aside  {path.name}: damaged or newer, not delivered", "yellow"))


def flush(args: argparse.Namespace) -> int:
    """Send what ended processes left; 0 only when nothing waits afterwards."""
    deadline = time.monotonic() + args.timeout
    left = accepted = live = 0
    errors = []
    with Progress("turns sent") as progress:
        for folder in folders(args.state):
            error = _flush(folder, deadline, progress)
            files = look(folder)
            total = _total(file.summary for file in files)
            left += total.waiting
            accepted += total.accepted
            live += sum(file.summary.waiting for file in files if file.live)
            problems = [file.problem for file in files if file.problem]
            if total.waiting:
                errors += [error or total.last_error]
            errors += problems
            left += len(problems)  # nobody knows what such a file holds
    if args.json:
        say_json({"waiting": left, "accepted": accepted, "live": live, "errors": errors})
    elif not left:
        more = f"; {counted(accepted, 'turn')} being processed by the server" if accepted else ""
        say(f"nothing waits{more}")
    else:
        if live:
            note(f"{counted(live, 'turn')} held by running processes, which send them")
        if left > live:
            reason = next((error for error in errors if error), "time is up")
            note(f"{counted(left - live, 'turn')} still waiting: {reason}")
    return UNDONE if left else OK


def _flush(folder: Path, deadline: float, progress: Progress) -> str:
    """Deliver what can be of one folder; the last error."""
    total = sum(file.summary.waiting for file in look(folder) if not file.live)
    if not spool.files(folder):
        return ""
    writer = RetainWriter(settings_of(folder), state=folder)

    def look_on(waiting: int) -> None:
        # Files that are not opened yet are not counted here, but in the end.
        progress.update(max(0, total - waiting), total, writer.counters().last_error)

    try:
        writer.deliver_all(max(0.0, deadline - time.monotonic()), look_on)
        return writer.counters().last_error
    finally:
        with without_warnings():
            writer.close(0)
