"""`hindsight-exec retain`: a transcript into a bank, whole, before the command ends."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Awaitable, BinaryIO, Callable, Iterator, TypeVar

from hindsight_exec.client.loop import background_loop
from hindsight_exec.client.registry import lease
from hindsight_exec.conversation.transcript import read_transcript
from hindsight_exec.conversation.turns import identifier
from hindsight_exec.delivery.writer import RetainWriter
from hindsight_exec.errors import ConfigError, OutboxFull, Rejected, Starting
from hindsight_exec.hermes import embedded

from .console import (
    KEY_REFUSED,
    OK,
    UNDONE,
    UNREACHABLE,
    Progress,
    counted,
    note,
    say,
    say_json,
    without_warnings,
)
from .targets import chosen_settings, folder, server_data, settings_of

if TYPE_CHECKING:
    import argparse

    from hindsight_exec.client.api import HindsightClient
    from hindsight_exec.settings.config import Settings

T = TypeVar("T")

# Seconds between looks at how far the delivery is.
_LOOK = 0.2
# Seconds that closing a client may take.
_CLOSE = 2.0


def run(args: argparse.Namespace) -> int:
    state = folder(args.state)
    chosen = chosen_settings(state, args.url, args.api_key, args.bank)
    with _opened(args.file) as file, _server(chosen, state, args.bank) as settings:
        probe(settings, args.timeout)
        return _Retain(args, settings, state, _shown_url(chosen)).run(file)


def _shown_url(settings: Settings | None) -> str | None:
    """Where the server is for others, too; None for the embedded one that ends with the command."""
    if settings is None:
        return None
    found = embedded.address(settings) if settings.mode == "local_embedded" else ""
    return found or settings.api_url


@contextlib.contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdin.buffer
        return
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(Path(name).open("rb"))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error  # not the name once more
            raise ConfigError(f"cannot read {name}: {reason}") from error
        yield file


@contextlib.contextmanager
def _server(settings: Settings | None, state: Path, bank: str | None) -> Iterator[Settings]:
    """The settings; where no server is configured, the embedded one runs meanwhile."""
    if settings is not None:
        yield settings
        return
    from hindsight_exec.server import EmbeddedServer  # noqa: PLC0415 - only where it is used

    data = server_data()
    server = EmbeddedServer(data)
    loop = background_loop()
    url = loop.run(server.start()).result()
    note(
        f"no server is configured: storing in {data} with the embedded server, which is not the"
        " memory engine ('hindsight-exec serve' serves it; --url names another server)"
    )
    loaded = settings_of(state)
    # In memory: nothing may be left waiting for a server that is gone afterwards.
    settings = replace(
        loaded, api_url=url, api_key=None, credential="", unusable="", durability="memory"
    )
    try:
        yield replace(settings, bank_id=bank) if bank else settings
    finally:
        loop.run(server.close()).result()


def ask(settings: Settings, call: Callable[[HindsightClient], Awaitable[T]]) -> T:
    """``call(client)``, by way of the process' client, which also finds Hindsight's own daemon.

    Raises:
        ServerError: The server could not answer, or did not do it.
    """
    held = lease(settings.api_url, settings.api_key or "", settings.timeout)
    try:
        return background_loop().run(held.use(call)).result()
    finally:
        held.release(_CLOSE)


def probe(settings: Settings, timeout: float) -> None:
    """Find out before anything is taken whether the server answers and lets us in.

    Hindsight's own daemon is started, and waited for ``timeout`` seconds.

    Raises:
        ConfigError: There can be no daemon here.
        ServerError: It does not.
    """

    async def look(client: HindsightClient) -> None:
        await client.version()
        with contextlib.suppress(Rejected):  # the bank is made by its first retain
            await client.documents(settings.bank_id, limit=1)

    problem = embedded.missing(settings) if settings.mode == "local_embedded" else ""
    if problem:
        raise ConfigError(problem)
    deadline = time.monotonic() + timeout
    told = False
    while True:
        try:
            with without_warnings(errors=True):
                ask(settings, look)
        except Starting as error:
            if time.monotonic() >= deadline:
                raise
            if not told:
                note("Hindsight's daemon is being started; the first time takes minutes")
            told = True
            time.sleep(error.retry_after or _LOOK)
        else:
            return


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
        self._writer = RetainWriter(settings, state=state)
        self._given = 0
        self._bad: list[dict[str, object]] = []

    def run(self, file: BinaryIO) -> int:
        try:
            with Progress("turns stored") as progress:
                self._give(file, progress)
                arrived = until_stored(self._writer, self._given, self._args.timeout, progress)
        except KeyboardInterrupt:
            self._tell_waiting("interrupted")
            raise
        return self._finish(arrived=arrived)

    def _give(self, file: BinaryIO, progress: Progress) -> None:
        looked = time.monotonic()
        for turn in read_transcript(file, self._report):
            messages = turn.messages(
                datetime.now(timezone.utc),
                user_prefix=self._settings.retain_user_prefix,
                assistant_prefix=self._settings.retain_assistant_prefix,
            )
            tags = self._settings.retain_tags
            while True:
                try:
                    self._writer.put(
                        messages,
                        session=self._session,
                        context=self._args.context,
                        tags=tags,
                        metadata={"source": self._settings.retain_source or "transcript"},
                        observation_scopes=self._settings.observation_scopes,
                    )
                    break
                except OutboxFull:
                    self._writer.flush()  # the server takes more than the disk does
            self._given += 1
            if time.monotonic() - looked > _LOOK:  # to count is not for nothing
                looked = time.monotonic()
                progress.update(self._stored, self._given)

    def _report(self, line: int, reason: str) -> None:
        self._bad.append({"line": line, "reason": reason})
        note(f"{self._name} line {line}: {reason}")

    @property
    def _stored(self) -> int:
        return self._writer.counters().own_completed

    def _tell_waiting(self, why: str) -> None:
        waiting = self._writer.counters().waiting
        if self._settings.durability == "memory":
            note(f"{why}; {counted(waiting, 'turn')} not stored")
        else:
            note(
                f"{why}; {counted(waiting, 'turn')} wait on disk: 'hindsight-exec flush' sends"
                " them, so do not retain this transcript again"
            )

    def _finish(self, *, arrived: bool) -> int:
        refused, counters = self._writer.paused, self._writer.counters()
        if not arrived:
            self._tell_waiting(counters.last_error or "the server has not finished")
        with without_warnings():
            self._writer.close(0 if not arrived else None)
        documents = self._count_documents() if arrived else None
        if self._args.json:
            say_json(
                {
                    "turns": self._given,
                    "stored": counters.own_completed,
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
            say(
                f"{counters.own_completed} of {counted(self._given, 'turn')} stored in {where}"
                f" as session {self._session!r}{held}"
            )
        if counters.own_dead:
            reasons = ", ".join(counters.dead_by_reason)
            note(f"{counted(counters.own_dead, 'turn')} refused by the server: {reasons}")
        if not self._given:
            note(f"there is no turn in {self._name}")
        if refused:
            return KEY_REFUSED
        if not arrived:
            return UNREACHABLE
        fine = self._given and not counters.own_dead and not self._bad
        return OK if fine else UNDONE

    def _count_documents(self) -> int | None:
        tag = identifier(f"session:{identifier(self._session)}")

        async def count(client: HindsightClient) -> int:
            page = await client.documents(self._settings.bank_id, limit=1, tags=[tag])
            return int(page["total"])

        with contextlib.suppress(Exception):  # all is stored; the number is a courtesy
            return ask(self._settings, count)
        return None


def until_stored(writer: RetainWriter, given: int, timeout: float, progress: Progress) -> bool:
    """Wait until the server has all, or nothing has moved for ``timeout`` seconds."""
    done: list[bool] = []
    waiter = threading.Thread(target=lambda: done.append(writer.flush(completed=True)), daemon=True)
    waiter.start()
    before, moved = -1, time.monotonic()
    while waiter.is_alive():
        waiter.join(_LOOK)
        counters = writer.counters()
        settled = counters.accepted + counters.completed + counters.dead
        if settled != before:
            before, moved = settled, time.monotonic()
        if time.monotonic() - moved > timeout or writer.paused:
            return False
        progress.update(counters.own_completed, given, counters.last_error)
    return done == [True]


def _session(file: str) -> str:
    """A session for a transcript that nobody named: its file's name."""
    if file == "-":
        return f"transcript-{datetime.now():%Y%m%d-%H%M%S}"
    name = file.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return name.partition(".")[0] or name
