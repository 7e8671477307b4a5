"""`hindsight-exec import hermes`: sessions that Hermes had before, each once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from hindsight_exec.conversation.turns import identifier, session_tag, turn
from hindsight_exec.delivery.schedule import Hold, chunks, documents
from hindsight_exec.delivery.writer import RetainWriter
from hindsight_exec.errors import ConfigError, Rejected
from hindsight_exec.hermes import embedded, host
from hindsight_exec.hermes.history import PastSession, PastTurn, past_sessions, when
from hindsight_exec.hermes.redact import shown_of
from hindsight_exec.hermes.setup import state_of
from hindsight_exec.outbox import spool
from hindsight_exec.settings.credentials import resolve_credential
from hindsight_exec.settings.folders import absolute, default_hermes_home

from .connection import ask, outcome, probe, put_patiently, until_stored
from .console import (
    OK,
    UNDONE,
    Progress,
    agreed,
    counted,
    note,
    say,
    say_json,
    table,
    without_warnings,
)
from .interrupts import check, deferred
from .targets import advice

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from hindsight_exec.client.api import HindsightClient
    from hindsight_exec.settings.config import Settings

# A session that was used so recently may still go on: the provider retains it live.
_QUIET_SECONDS = 3600.0

# Characters of Hindsight's own prompt, which each extraction carries (1.1.0, measured).
_PROMPT = 12_500

# Sessions asked about at once.
_AT_ONCE = 16


@dataclass
class _Plan:
    """What is to be done with a session in a bank: `new`, `begun`, or why it is left out."""

    past: PastSession
    bank: str
    state: str

    @property
    def due(self) -> bool:
        return self.state in ("new", "begun")

    @property
    def chars(self) -> int:
        return sum(len(turn.user) + len(turn.assistant) for turn in self.past.turns)

    def extractions(self, settings: Settings) -> int:
        """How many LLM calls the server needs for it: it extracts document by document."""
        now, hold = settings.now(), Hold.of(settings)
        sizes = [
            turn(_messages(one, settings, now), given_at=0.0, index=1).sizes
            for one in self.past.turns
        ]
        rest = iter(sizes)
        return sum(chunks(list(islice(rest, count))) for count in documents(sizes, hold))


def run(args: argparse.Namespace) -> int:
    home = absolute(args.home) if args.home else default_hermes_home(os.environ)
    if not home.is_dir():
        raise ConfigError(f"no folder {home}; name Hermes' folder by --home")
    settings = host.load_settings(home)
    if settings.unusable or not settings.configured:
        remedy = "run 'hermes memory setup', or set HINDSIGHT_API_URL"
        raise ConfigError(settings.unusable or f"no server is configured in {home}: {remedy}")
    if resolve_credential(settings.credential, settings.api_url) is None:
        # The server is this environment's; the folder is another profile's, which does not know it.
        settings = replace(settings, credential="")
    if settings.durability == "memory":
        raise ConfigError("durability is memory: an import needs the outbox on disk")
    wanted = (past for past in past_sessions(home.absolute()) if _wanted(past, args))
    sessions = [past for past in (_stored(past, settings) for past in wanted) if past.turns]
    embedded.know(settings)
    probe(settings, args.timeout)
    state = args.state or state_of(home.absolute())
    with _Journal(state, settings) as journal:
        plans = _plans(sessions, journal, settings, always=bool(args.session))
        due = [plan for plan in plans if plan.due]
        if args.dry_run or not due:
            _show(plans, args, settings)
            return OK
        if not args.yes:
            _show(plans, args, settings, to_ask=True)
        unasked = "no terminal to ask on; use --yes to import without a question"
        if not agreed(f"Import {_sessions(due)}?", yes=args.yes, unasked=unasked):
            return UNDONE
        return _import(plans, journal, settings, state, args)


def _stored(past: PastSession, settings: Settings) -> PastSession:
    """The session in its bank, without the turns that the user wants nothing kept of."""
    try:
        identity = past.identity.placed(settings, note)
    except ConfigError as error:
        note(f"session {past.identity.session} is left out: {error}")
        return replace(past, turns=())
    turns = tuple(turn for turn in past.turns if shown_of(turn, settings))
    return replace(past, identity=identity, turns=turns)


def _wanted(past: PastSession, args: argparse.Namespace) -> bool:
    if args.session:
        return past.identity.session in args.session
    return args.since is None or past.last_at >= args.since


def _plans(
    sessions: list[PastSession], journal: _Journal, settings: Settings, *, always: bool
) -> list[_Plan]:
    plans = []
    for past in sessions:
        in_use = not always and time.time() - past.last_at < _QUIET_SECONDS
        # The provider keeps a copy, so both banks get it. Each has its own state.
        for bank in (past.identity.bank(settings), past.identity.mirror(settings)):
            if bank is not None:
                state = journal.state(past, bank) or ("in use" if in_use else "new")
                plans.append(_Plan(past, bank, state))
    unknown = [plan for plan in plans if plan.state == "new"]
    for first in range(0, len(unknown), _AT_ONCE):
        some = unknown[first : first + _AT_ONCE]
        for plan, there in zip(some, _are_there(some, settings)):
            if there:
                plan.state = "in the bank"
    return plans


def _are_there(plans: list[_Plan], settings: Settings) -> list[bool]:
    """Whether the server has documents of these sessions: ours, or the bundled provider's."""

    async def is_there(client: HindsightClient, plan: _Plan) -> bool:
        bank, session = plan.bank, identifier(plan.past.identity.session)
        with contextlib.suppress(Rejected):  # 404: no such bank
            tagged = await client.documents(bank, limit=1, tags=[session_tag(session)])
            named = await client.documents(bank, limit=20, query=session)
            return bool(tagged["total"]) or any(
                item["id"].startswith(session) for item in named["items"]
            )
        return False

    async def are_there(client: HindsightClient) -> list[bool]:
        return await asyncio.gather(*(is_there(client, plan) for plan in plans))

    return ask(settings, are_there)


def _import(
    plans: list[_Plan], journal: _Journal, settings: Settings, state: Path, args: argparse.Namespace
) -> int:
    due = [plan for plan in plans if plan.due]
    total = sum(len(plan.past.turns) for plan in due)
    elsewhere = state if args.home else None  # else `flush` looks there by itself
    with deferred():
        writer = RetainWriter(settings, state=state)
        try:
            with Progress("turns stored") as progress:
                for plan in due:
                    check()
                    journal.note(plan.past, plan.bank, "begun")
                    _give(writer, plan, settings)
                    journal.note(plan.past, plan.bank, "done")
                    plan.state = "imported"
                    progress.update(writer.counters().own_completed, total)
                arrived = until_stored(writer, total, args.timeout, progress)
        finally:
            counters, refused = writer.counters(), writer.paused
            if counters.waiting:
                waiting = counted(counters.waiting, "turn")
                note(f"{waiting} saved on disk; '{advice('flush', elsewhere)}' sends them")
            with without_warnings():
                writer.close(0 if counters.waiting else None)
    _show(plans, args, settings, stored=counters.own_completed)
    if counters.own_dead:
        dead = counted(counters.own_dead, "turn")
        note(f"the server refused {dead}; run '{advice('dead list', elsewhere)}' to see them")
    return outcome(refused=refused, arrived=arrived, complete=not counters.own_dead)


def _messages(
    one: PastTurn, settings: Settings, now: datetime, **more: Any
) -> list[dict[str, str]]:
    return one.messages(
        now,
        user_prefix=settings.retain_user_prefix,
        assistant_prefix=settings.retain_assistant_prefix,
        **more,
    )


def _give(writer: RetainWriter, plan: _Plan, settings: Settings) -> None:
    identity = plan.past.identity
    now = settings.now()
    messages, originals = [], []
    for one in plan.past.turns:
        shown = shown_of(one, settings)
        if shown is not None:
            given = _messages(shown, settings, now, localise=settings.localise)
            messages.append((given, when(one) or now.timestamp()))
            # Without the zone: documents are named by these, wherever an import runs.
            originals.append(_messages(one, settings, now))
    put_patiently(
        writer,
        messages,
        session=identity.session,
        bank=plan.bank,
        context=settings.retain_context,
        tags=identity.tags(settings),
        metadata=identity.metadata(settings),
        observation_scopes=settings.observation_scopes,
        originals=originals,
    )


def _show(
    plans: list[_Plan],
    args: argparse.Namespace,
    settings: Settings,
    *,
    stored: int | None = None,
    to_ask: bool = False,
) -> None:
    chosen = [plan for plan in plans if plan.due or plan.state == "imported"]
    turns = sum(len(plan.past.turns) for plan in chosen)
    if args.json and not to_ask:
        sessions = [
            {
                "session": plan.past.identity.session,
                "bank": plan.bank,
                "title": plan.past.title,
                "state": plan.state,
                "turns": len(plan.past.turns),
                "characters": plan.chars,
                "extractions": plan.extractions(settings),
                "last_at": plan.past.last_at,
            }
            for plan in plans
        ]
        say_json({"sessions": sessions, "turns": turns, "stored": stored})
        return
    if stored is not None:
        say(f"{stored} of {counted(turns, 'turn')} stored")
        return
    rows = [
        (
            plan.past.identity.session,
            plan.bank,
            f"{datetime.fromtimestamp(plan.past.last_at):%Y-%m-%d}",
            str(len(plan.past.turns)),
            plan.state,
            plan.past.title[:40],
        )
        for plan in plans
    ]
    if rows:
        table([("session", "bank", "last used", "turns", "state", "title"), *rows], right=[3])
    calls = sum(plan.extractions(settings) for plan in chosen)
    prompt = calls * _PROMPT + sum(plan.chars for plan in chosen)
    say(
        f"{_sessions([plan for plan in plans if plan.due])} to import, with"
        f" {counted(turns, 'turn')}: about {counted(calls, 'call')} of the server's LLM,"
        f" with {prompt / 1e6:.1f} million characters of prompt"
    )


def _sessions(plans: list[_Plan]) -> str:
    count = len({plan.past.identity.session for plan in plans})
    copies = len(plans) - count
    return counted(count, "session") + (f", {copies} of them to two banks" if copies else "")


class _Journal:
    """Which sessions were imported into which bank: a line for each step, flushed to the disk.

    Only one import at a time may use it.
    """

    def __init__(self, state: Path, settings: Settings) -> None:
        self._path = state / "imported.jsonl"
        self._settings = settings
        self._known: dict[tuple[str, str, str], str] = {}

    def __enter__(self) -> _Journal:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(self._path, flags, 0o600)
        self._file = os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace")
        if not spool.try_lock(self._file.fileno()):
            self._file.close()
            raise ConfigError(f"another import runs: {self._path} is locked")
        for line in self._file:
            with contextlib.suppress(ValueError, TypeError):  # a killed process, a damaged disk
                value = json.loads(line)
                if isinstance(value, list) and len(value) == 4:
                    self._known[value[0], value[1], value[2]] = value[3]
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def state(self, past: PastSession, bank: str) -> str:
        """`done`, `begun`, or nothing."""
        return self._known.get(self._key(past, bank), "")

    def note(self, past: PastSession, bank: str, state: str) -> None:
        self._known[self._key(past, bank)] = state
        self._file.write(f"\n{json.dumps([*self._key(past, bank), state])}")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _key(self, past: PastSession, bank: str) -> tuple[str, str, str]:
        return self._settings.api_url, bank, past.identity.session
