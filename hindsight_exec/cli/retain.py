"""`hindsight-exec retain`: store a transcript in a bank, whole and once, before the command ends."""

from __future__ import annotations

import argparse
import contextlib
import sys
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Iterator, Sequence

from hindsight_exec.client.api import all_documents
from hindsight_exec.client.loop import background_loop
from hindsight_exec.conversation.transcript import read_transcript
from hindsight_exec.conversation.turns import session_tag
from hindsight_exec.conversation.turns import turn as kept
from hindsight_exec.delivery.transcripts import missing_documents
from hindsight_exec.delivery.writer import RetainWriter
from hindsight_exec.errors import ConfigError, OutboxError, Rejected
from hindsight_exec.executor.waiting import now
from hindsight_exec.hermes import embedded
from hindsight_exec.hermes.redact import shown_of
from hindsight_exec.outbox import spool
from hindsight_exec.outbox.store import Outbox

from .arguments import text
from .connection import LOOK, ask, outcome, probe, put_patiently, until_stored
from .console import Progress, counted, note, say, say_json, without_warnings
from .interrupts import deferred
from .targets import advice, chosen_settings, folder, server_data, settings_of

if TYPE_CHECKING:
    from hindsight_exec.client.api import HindsightClient
    from hindsight_exec.conversation.transcript import TranscriptTurn
    from hindsight_exec.delivery.transcripts import Document
    from hindsight_exec.settings.config import Settings

# Lines with problems that are shown; the others are counted.
_SHOWN = 10
# The time of turns that have none.
_NOW = datetime.now(timezone.utc)


def run(args: argparse.Namespace) -> int:
    state = folder(args.state)
    chosen = chosen_settings(state, args.url, args.api_key, args.bank)
    with _opened(args.file) as file, _server(chosen, state, args.bank) as settings:
        probe(settings, args.timeout)
        return _Retain(args, settings, state, _shown_url(chosen)).run(file)


def _shown_url(settings: Settings | None) -> str | None:
    """The server's address; None for the embedded server, which ends with the command."""
    if settings is None:
        return None
    found = embedded.address(settings) if settings.mode == "local_embedded" else ""
    return found or settings.api_url


@contextlib.contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdin.buffer
        return
    try:
        file = Path(name).open("rb")  # noqa: SIM115 - closed below
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error  # the message has the name
        raise ConfigError(f"cannot read {name}: {reason}") from error
    with file:
        yield file


@contextlib.contextmanager
def _server(settings: Settings | None, state: Path, bank: str | None) -> Iterator[Settings]:
    """The settings. Where no server is configured, the embedded one runs meanwhile."""
    if settings is not None:
        yield settings
        return
    from hindsight_exec.server import EmbeddedServer  # noqa: PLC0415 - only where it is used

    data = server_data()
    server = EmbeddedServer(data)
    loop = background_loop()
    url = loop.run(server.start()).result()
    note(
        f"no server is configured; the embedded server, which has no LLM, stores the turns in"
        f" {data} ('{advice('serve')}' runs it; --url names another server)"
    )
    loaded = settings_of(state)
    # In memory: no turn may wait for a server that ends with the command.
    settings = replace(
        loaded, api_url=url, api_key=None, credential="", unusable="", durability="memory"
    )
    try:
        yield replace(settings, bank_id=bank) if bank else settings
    finally:
        loop.run(server.close()).result()


class _Retain:
    """One run of the command."""

    def __init__(
        self, args: argparse.Namespace, settings: Settings, state: Path, url: str | None
    ) -> None:
        self._args = args
        self._url = url
        self._name = "standard input" if args.file == "-" else args.file
        self._session = args.session or _session(args.file)
        self._settings = settings
        self._state = state
        with deferred():
            self._writer = RetainWriter(settings, state=state)
        self._bad: list[dict[str, object]] = []
        self._total = 0  # turns in the transcript
        self._before = 0  # of these, stored before this run
        self._given = 0  # and given in this run
        self._left_out = 0  # and those of which the settings keep nothing

    def run(self, file: BinaryIO) -> int:
        try:
            with Progress("turns stored") as progress:
                turns = list(read_transcript(file, self._report))
                self._total = len(turns)
                missing = self._missing(turns)
                self._before = self._total - sum(len(document.turns) for document in missing)
                with deferred():
                    looked = now()
                    for document in missing:
                        self._give(document)
                        if now() - looked > LOOK:  # counting takes its time
                            looked = now()
                            stored = self._before + self._writer.counters().own_completed
                            progress.update(stored, self._total)
                    arrived = until_stored(
                        self._writer, self._given, self._args.timeout, progress, self._before
                    )
        except KeyboardInterrupt:
            self._note_rest("interrupted")
            raise
        return self._finish(arrived=arrived)

    def _report(self, line: int, reason: str) -> None:
        self._bad.append({"line": line, "reason": reason})
        if len(self._bad) <= _SHOWN:
            note(f"{self._name} line {line}: {reason}")

    def _missing(self, turns: Sequence[TranscriptTurn]) -> list[Document]:
        """The documents that neither the server has nor the state directory."""

        def sizes(turn: TranscriptTurn) -> tuple[int, ...]:
            return kept(self._messages(turn), given_at=0.0, index=1).sizes

        # The directory first: a document that leaves it in between is found on the server.
        stored = self._on_disk() | ask(self._settings, self._on_server)
        return list(missing_documents(turns, self._session, stored, self._writer.hold, sizes))

    def _on_disk(self) -> set[str]:
        settings, found = self._settings, set()
        for path in spool.files(self._state):
            with (
                contextlib.suppress(OutboxError),
                contextlib.closing(Outbox(path, readonly=True)) as outbox,
            ):
                for entry in outbox.entries():
                    here = (entry["url"], entry["bank"]) == (settings.api_url, settings.bank_id)
                    if here and entry["state"] != "dead":
                        found.add(entry["document_id"])
        return found

    async def _on_server(self, client: HindsightClient) -> set[str]:
        with contextlib.suppress(Rejected):  # the first retain makes the bank
            tags = [session_tag(self._session)]
            found = await all_documents(client, self._settings.bank_id, tags=tags)
            return {item["id"] for item in found}
        return set()

    def _messages(self, turn: TranscriptTurn) -> list[dict[str, str]]:
        return turn.messages(
            _NOW,
            user_prefix=self._settings.retain_user_prefix,
            assistant_prefix=self._settings.retain_assistant_prefix,
        )

    def _give(self, document: Document) -> None:
        # As live turns are kept. The document's id is made of what they were before.
        shown = [turn for one in document.turns if (turn := shown_of(one, self._settings))]
        self._left_out += len(document.turns) - len(shown)
        if not shown:
            return
        past = [
            (self._messages(turn), (turn.user_at or turn.assistant_at or _NOW).timestamp())
            for turn in shown
        ]
        put_patiently(
            self._writer,
            past,
            session=self._session,
            context=self._args.context,
            tags=self._settings.retain_tags,
            metadata={"source": self._settings.retain_source or "transcript"},
            observation_scopes=self._settings.observation_scopes,
            document_id=document.id,
            first_index=document.first,
        )
        self._given += len(shown)

    def _note_rest(self, why: str) -> None:
        """Report what is where, and how to go on."""
        waiting = self._writer.counters().waiting
        accepted = self._before + self._given
        note(f"{why}; accepted {accepted} of {counted(self._total, 'turn')} of {self._name}")
        if waiting and self._settings.durability == "memory":
            note(f"{counted(waiting, 'turn')} not stored")
        elif waiting:
            note(f"{counted(waiting, 'turn')} saved on disk; '{advice('flush')}' sends them")
        if accepted + self._left_out < self._total and self._args.file != "-":
            note("run the same command again to retain the rest; it skips what is stored")

    def _finish(self, *, arrived: bool) -> int:
        refused, counters = self._writer.paused, self._writer.counters()
        if not arrived:
            self._note_rest(counters.last_error or "the server has not finished")
        with without_warnings():
            self._writer.close(0 if not arrived else None)
        documents = self._count_documents() if arrived else None
        if self._args.json:
            say_json(
                {
                    "turns": self._total,
                    "stored": counters.own_completed,
                    "stored_before": self._before,
                    "left_out": self._left_out,
                    "waiting": counters.waiting,
                    "dead": counters.own_dead,
                    "bad_lines": self._bad,
                    "url": self._url,
                    "bank": self._settings.bank_id,
                    "session": self._session,
                    "documents": documents,
                }
            )
        else:
            server = f"at {self._url}" if self._url else "of the embedded server"
            where = f"bank {self._settings.bank_id!r} {server}"
            held = "" if documents is None else f", which has {counted(documents, 'document')} now"
            before = f" ({self._before} already stored)" if self._before else ""
            if self._left_out:
                before += f" ({self._left_out} left out by retain_skip_patterns or retain_roles)"
            say(
                f"{counters.own_completed} of {counted(self._total, 'turn')} stored{before} in"
                f" {where} as session {self._session!r}{held}"
            )
        if len(self._bad) > _SHOWN:
            note(f"{self._name}: {len(self._bad) - _SHOWN} more lines with problems")
        if counters.own_dead:
            reasons = ", ".join(counters.dead_by_reason)
            note(f"the server refused {counted(counters.own_dead, 'turn')}: {reasons}")
        if not self._total:
            note(f"no turn in {self._name}")
        complete = bool(self._total and not counters.own_dead and not self._bad)
        return outcome(refused=refused, arrived=arrived, complete=complete)

    def _count_documents(self) -> int | None:
        async def count(client: HindsightClient) -> int:
            tags = [session_tag(self._session)]
            page = await client.documents(self._settings.bank_id, limit=1, tags=tags)
            return int(page["total"])

        with contextlib.suppress(Exception):  # all is stored; the number is a courtesy
            return ask(self._settings, count)
        return None


def _session(file: str) -> str:
    """The default session of a transcript: the name of its file."""
    if file == "-":
        return f"transcript-{datetime.now():%Y%m%d-%H%M%S}"
    name = file.replace("\\", "/").rstrip("/").rpartition("/")[2]
    try:
        return text(name.partition(".")[0] or name)
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"name the session with --session: {error}") from None
