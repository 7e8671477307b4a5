"""`hindsight-exec status`: what waits in the state directories, for people, scripts and monitors."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any, Iterable, Sequence

from hindsight_exec.outbox import spool

from .console import OK, UNDONE, coloured, counted, duration, is_rich, plain, say, say_json
from .files import File, held_by_others, look, total, unread
from .targets import advice, folders

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from hindsight_exec.outbox.schema import Summary

    Place = tuple[Path, list[File]]


def run(args: argparse.Namespace) -> int:
    if args.watch is None:
        return _once(args)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            if is_rich():
                print("\x1b[H\x1b[J", end="")
            _once(args)
            sys.stdout.flush()
            time.sleep(args.watch)
            if not (args.json or is_rich()):
                say()
    return OK


def _once(args: argparse.Namespace) -> int:
    places = [(folder, look(folder)) for folder in folders(args.state)]
    problems = list(_problems(places, args.max_age)) if args.check else []
    if args.json:
        say_json({**_as_json(places), **({"problems": problems} if args.check else {})})
    elif args.prometheus:
        _metrics(places)
    elif args.check:
        say("; ".join(problems) or "ok: no turn waits too long, and none is dead")
    else:
        for number, (folder, files) in enumerate(places):
            if number:
                say()
            say(coloured(str(folder), "bold"))
            _show(folder, files)
    return UNDONE if problems else OK


def _problems(places: Iterable[Place], max_age: float) -> Iterable[str]:
    """What a monitor should report."""
    for folder, files in places:
        found = total(files)
        age = _age(found)
        if age is not None and age > max_age:
            yield f"a turn waits for {duration(age)} in {folder} (limit {duration(max_age)})"
        if found.dead:
            yield f"{counted(found.dead, 'dead letter')} in {folder}"
        unreadable = len(unread(folder, files))
        if unreadable:
            yield f"{counted(unreadable, 'unreadable file')} in {folder}"


def _age(summary: Summary) -> float | None:
    """Seconds that the oldest waiting turn waits."""
    return None if summary.oldest_at is None else max(0.0, time.time() - summary.oldest_at)


def _as_json(places: Iterable[Place]) -> dict[str, Any]:
    shown = [
        {
            "folder": folder,
            **_numbers(total(files)),
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
        for folder, files in places
    ]
    keys = ("waiting", "accepted", "dead")
    return {**{key: sum(place[key] for place in shown) for key in keys}, "folders": shown}


def _numbers(summary: Summary) -> dict[str, Any]:
    names = ("waiting", "held", "queued", "accepted", "dead")
    return {
        **{name: getattr(summary, name) for name in names},
        "dead_by_reason": dict(summary.dead_by_reason),
        "oldest_seconds": _age(summary),
        "bytes": summary.bytes,
        "last_error": summary.last_error,
    }


def _metrics(places: Sequence[Place]) -> None:
    """Gauges in Prometheus' text format, for the textfile collector of node_exporter."""
    found = [(folder, files, total(files)) for folder, files in places]
    gauges = (
        ("waiting_turns", "Turns on disk that the server does not have yet.", "waiting"),
        ("accepted_turns", "Turns that the server is processing.", "accepted"),
        ("dead_turns", "Turns that the server refused or could not process.", "dead"),
        ("outbox_bytes", "Bytes of turns on disk.", "bytes"),
    )
    for name, about, attribute in gauges:
        _gauge(name, about, [(folder, getattr(sums, attribute)) for folder, _, sums in found])
    ages = [(folder, _age(sums) or 0.0) for folder, _, sums in found]
    _gauge("oldest_waiting_seconds", "How long the oldest waiting turn waits.", ages)
    unreadable = [(folder, len(unread(folder, files))) for folder, files, _ in found]
    _gauge("unreadable_files", "Outbox files that cannot be read or were set aside.", unreadable)


def _gauge(name: str, about: str, values: Iterable[tuple[Path, float]]) -> None:
    say(f"# HELP hindsight_exec_{name} {about}")
    say(f"# TYPE hindsight_exec_{name} gauge")
    for folder, value in values:
        label = str(folder).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        say(f'hindsight_exec_{name}{{folder="{label}"}} {value}')


def _show(folder: Path, files: list[File]) -> None:
    found, live = total(files), held_by_others(files)
    waiting = counted(found.waiting, "turn")
    age = _age(found)
    if age is not None:
        waiting += f", the oldest for {duration(age)}"
    if live:
        waiting += f" ({live} of running processes, which send them)"
    left = found.waiting - live
    say(f"  waiting   {waiting}" + (f" → {advice('flush')}" if left else ""))
    say(f"  accepted  {counted(found.accepted, 'turn')}, which the server is processing")
    dead = counted(found.dead, "turn")
    if found.dead:
        reasons = ", ".join(f"{reason} {count}" for reason, count in found.dead_by_reason)
        dead = coloured(f"{dead}: {reasons}", "red") + f" → {advice('dead list')}"
    say(f"  dead      {dead}")
    if found.last_error:
        say(f"  last error  {plain(found.last_error)}")
    for file in unread(folder, files):
        colour = "red" if file.kind == "unreadable" else "yellow"
        say(coloured(f"  {file.kind:<9} {file.about}", colour) + f" → {file.remedy}")
