"""`hindsight-exec flush`: deliver the turns that ended processes left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Iterable

from hindsight_exec.delivery.writer import RetainWriter
from hindsight_exec.executor.waiting import now
from hindsight_exec.outbox import spool
from hindsight_exec.settings.credentials import resolve_credential

from .console import OK, UNDONE, Progress, counted, note, say, say_json, without_warnings
from .files import File, held_by_others, look, total
from .interrupts import check, deferred
from .targets import folders, settings_of

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from hindsight_exec.conversation.turns import Destination


def run(args: argparse.Namespace) -> int:
    """Deliver; the status is 0 when nothing is left but what running processes deliver."""
    deadline = now() + args.timeout
    left = accepted = live = unread = 0
    errors: list[str] = []
    with Progress("turns sent") as progress:
        for folder in folders(args.state):
            error = _flush(folder, deadline, progress)
            files = look(folder)
            found, held = total(files), held_by_others(files)
            accepted += found.accepted
            live += held
            problems = [file.problem for file in files if file.problem]
            left += found.waiting - held
            unread += len(problems)  # nobody knows what such a file holds
            keys = list(missing_keys(folder, files))
            if found.waiting > held and not keys:
                keys = [error or found.last_error or f"not done within {args.timeout:g} s"]
            errors += problems + keys
    if args.json:
        say_json({"waiting": left + live, "accepted": accepted, "live": live, "errors": errors})
    elif left or unread:
        waiting = [counted(n, of) for n, of in ((left, "turn"), (unread, "unreadable file")) if n]
        note(f"{' and '.join(waiting)} still waiting: {'; '.join(errors)}")
    else:
        more = f"; the server is processing {counted(accepted, 'turn')}" if accepted else ""
        say(f"no turns are waiting{more}")
    if live and not args.json:
        note(f"running processes hold {counted(live, 'turn')} and will send them")
    return UNDONE if left or unread else OK


def _flush(folder: Path, deadline: float, progress: Progress) -> str:
    """Deliver what can be of one directory; the last error."""
    if not spool.files(folder):
        return ""
    waiting_before = sum(file.summary.waiting for file in look(folder) if not file.live)
    settings = settings_of(folder)

    def show(waiting: int) -> None:
        check()
        # Files that are not opened yet are not counted here, but in the end.
        sent = max(0, waiting_before - waiting)
        progress.update(sent, waiting_before, writer.counters().last_error)

    with deferred():
        writer = RetainWriter(settings, state=folder)
        try:
            writer.deliver_all(max(0.0, deadline - now()), show)
            return writer.counters().last_error
        finally:
            with without_warnings():
                writer.close(0)


def left_destinations(files: Iterable[File]) -> list[Destination]:
    """Where the turns go that ended processes left."""
    left = [file for file in files if file.summary.waiting and not file.live]
    return list(dict.fromkeys(where for file in left for where in file.destinations))


def missing_keys(folder: Path, files: Iterable[File]) -> Iterable[str]:
    """Which servers' keys this environment lacks, so that the folder's turns are not sent."""
    for url, reference in dict.fromkeys(
        (where.url, where.credential) for where in left_destinations(files)
    ):
        if resolve_credential(reference, url, folder) is not None:
            continue
        kind, _, home = reference.partition(":")
        if kind == "hermes":
            yield f"{url} is not the server that {home} configures"
        elif kind == "given":
            yield f"a program gave the key for {url}; set HINDSIGHT_API_KEY to this key"
        else:
            yield f"{url} is not configured here; set HINDSIGHT_API_URL and HINDSIGHT_API_KEY"
